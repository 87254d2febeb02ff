//! pg_control: what a data directory says about itself.
//!
//! Knows `ControlFileData` (`src/include/catalog/pg_control.h`): its fields that matter here have had the
//! same offsets from 13 to 18, only the checksum moved. The layout is that of 64-bit little-endian
//! machines; on others the CRC does not match. PostgreSQL overwrites the file in place, so a reader may
//! see half of a write and has to read again (`src/common/controldata_utils.c`).

use super::lsn::{Lsn, SegmentSize, SystemId, TimelineId};
use super::version::{Major, unsupported};
use super::{u32_at, u64_at};
use crate::error::{Context, Error, Kind, Result};
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Where pg_control lies in a data directory.
pub const CONTROL_PATH: &str = "global/pg_control";

/// The size of the file; all but the first 300 bytes are zero.
pub const CONTROL_FILE_BYTES: usize = 8192;

const READ_ATTEMPTS: u32 = 50;
const READ_DELAY: Duration = Duration::from_millis(10);

/// What the cluster was doing when pg_control was last written (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting.
    Startup,
    /// Stopped cleanly as a primary.
    ShutDown,
    /// Stopped cleanly as a standby.
    ShutDownInRecovery,
    /// Stopping.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// A standby, or restoring from an archive.
    InArchiveRecovery,
    /// Running as a primary, or killed while it was.
    InProduction,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Startup,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }
}

impl fmt::Display for ClusterState {
    /// The words of pg_controldata.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// How much the WAL says (`WalLevel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Enough for crash recovery; no backup can be taken.
    Minimal,
    /// Enough for archives and standbys.
    Replica,
    /// Enough for logical decoding.
    Logical,
}

/// What pg_control says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identifier.
    pub system_id: SystemId,
    /// Its version.
    pub major: Major,
    /// `catalog_version_no`, part of the name of its directory in tablespaces.
    pub catalog_version: u32,
    /// What it was doing.
    pub state: ClusterState,
    /// When pg_control was last written, in seconds since 1970.
    pub written_unix_seconds: i64,
    /// Where the last checkpoint record is.
    pub checkpoint: Lsn,
    /// Where replay of that checkpoint starts.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: TimelineId,
    /// The timeline before it, equal unless the checkpoint ended a recovery.
    pub previous_timeline: TimelineId,
    /// `full_page_writes` as of that checkpoint.
    pub full_page_writes: bool,
    /// When that checkpoint was taken, in seconds since 1970.
    pub checkpoint_unix_seconds: i64,
    /// What recovery must at least reach; invalid on a primary.
    pub min_recovery_point: Lsn,
    /// On which timeline; 0 on a primary.
    pub min_recovery_timeline: TimelineId,
    /// The start of the backup that is being recovered, else invalid.
    pub backup_start: Lsn,
    /// The end of the standby backup that is being recovered, else invalid.
    pub backup_end: Lsn,
    /// Whether the record of the backup's end must still be seen.
    pub backup_end_required: bool,
    /// wal_level of the server that wrote it.
    pub wal_level: WalLevel,
    /// wal_log_hints.
    pub wal_log_hints: bool,
    /// Settings that a server replaying this cluster's WAL must at least have.
    pub max_connections: u32,
    /// max_worker_processes.
    pub max_worker_processes: u32,
    /// max_wal_senders.
    pub max_wal_senders: u32,
    /// max_prepared_transactions.
    pub max_prepared_xacts: u32,
    /// max_locks_per_transaction.
    pub max_locks_per_xact: u32,
    /// The size of a page.
    pub block_size: u32,
    /// Pages in one file of a relation.
    pub blocks_per_file: u32,
    /// The size of a page of WAL.
    pub wal_block_size: u32,
    /// The size of a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
}

impl ControlFile {
    /// Reads the pg_control of a data directory, again while a write is under way.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Config` for an unsupported version, `Corrupt` if it never makes sense.
    pub fn read(pgdata: &Path) -> Result<ControlFile> {
        Self::read_with_bytes(pgdata).map(|(control, _)| control)
    }

    /// Reads it as [`ControlFile::read`] does and also returns the whole file, for a backup.
    ///
    /// # Errors
    /// As [`ControlFile::read`].
    pub fn read_with_bytes(pgdata: &Path) -> Result<(ControlFile, Vec<u8>)> {
        let path = pgdata.join(CONTROL_PATH);
        let mut attempt = 1;
        loop {
            let bytes = std::fs::read(&path).context(|| format!("read {}", path.display()))?;
            match Self::parse(&bytes) {
                Ok(control) => return Ok((control, bytes)),
                Err(error) if error.kind() != Kind::Corrupt || attempt == READ_ATTEMPTS => {
                    return Err(error.context(format!("read {}", path.display())));
                }
                Err(_) => std::thread::sleep(READ_DELAY),
            }
            attempt += 1;
        }
    }

    /// Parses the file's content.
    ///
    /// # Errors
    /// `Config` for an unsupported version, `Corrupt` if the checksum or a value cannot be right.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile> {
        let fields = Fields(bytes);
        let (version, catalog_version) = (fields.u32(8)?, fields.u32(12)?);
        let crc_at = match version {
            1300 | 1700 => 288,
            1800 => 292,
            _ => return Err(unsupported(format!("pg_control has the version {version}"))),
        };
        let covered = bytes.get(..crc_at).ok_or_else(|| fields.short())?;
        let (stored, computed) = (fields.u32(crc_at)?, crc32c::crc32c(covered));
        if stored != computed {
            let message = format!("checksum of pg_control is {computed:08x}, but it says {stored:08x}");
            return Err(Error::new(Kind::Corrupt, message));
        }
        let major = Major::from_control(version, catalog_version).ok_or_else(|| {
            unsupported(format!(
                "pg_control has the version {version} and the catalog {catalog_version}"
            ))
        })?;
        Self::from_fields(&fields, major, catalog_version)
    }

    fn from_fields(fields: &Fields<'_>, major: Major, catalog_version: u32) -> Result<ControlFile> {
        Ok(ControlFile {
            system_id: SystemId(fields.u64(0)?),
            major,
            catalog_version,
            state: ClusterState::from_number(fields.u32(16)?).ok_or_else(|| fields.wrong("state"))?,
            written_unix_seconds: fields.u64(24)?.cast_signed(),
            checkpoint: Lsn(fields.u64(32)?),
            // The copy of the checkpoint record begins at 40.
            redo: Lsn(fields.u64(40)?),
            timeline: TimelineId(fields.u32(48)?),
            previous_timeline: TimelineId(fields.u32(52)?),
            full_page_writes: fields.flag(56)?,
            checkpoint_unix_seconds: fields.u64(104)?.cast_signed(),
            min_recovery_point: Lsn(fields.u64(136)?),
            min_recovery_timeline: TimelineId(fields.u32(144)?),
            backup_start: Lsn(fields.u64(152)?),
            backup_end: Lsn(fields.u64(160)?),
            backup_end_required: fields.flag(168)?,
            wal_level: match fields.u32(172)? {
                0 => WalLevel::Minimal,
                1 => WalLevel::Replica,
                2 => WalLevel::Logical,
                _ => return Err(fields.wrong("wal_level")),
            },
            wal_log_hints: fields.flag(176)?,
            max_connections: fields.u32(180)?,
            max_worker_processes: fields.u32(184)?,
            max_wal_senders: fields.u32(188)?,
            max_prepared_xacts: fields.u32(192)?,
            max_locks_per_xact: fields.u32(196)?,
            block_size: fields.power_of_two(216, "block size")?,
            blocks_per_file: fields.u32(220)?,
            wal_block_size: fields.power_of_two(224, "WAL block size")?,
            segment_size: SegmentSize::new(u64::from(fields.u32(228)?))?,
            data_checksums: fields.u32(252)? != 0,
        })
    }

    /// The name of this cluster's directory in a tablespace, like `PG_15_202209061`.
    pub fn tablespace_directory(&self) -> String {
        format!("PG_{}_{}", self.major, self.catalog_version)
    }
}

/// The bytes of pg_control, read by offset.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> Result<u32> {
        u32_at(self.0, at).ok_or_else(|| self.short())
    }

    fn u64(&self, at: usize) -> Result<u64> {
        u64_at(self.0, at).ok_or_else(|| self.short())
    }

    fn flag(&self, at: usize) -> Result<bool> {
        self.0.get(at).map(|byte| *byte != 0).ok_or_else(|| self.short())
    }

    fn power_of_two(&self, at: usize, what: &str) -> Result<u32> {
        let value = self.u32(at)?;
        // All sizes that configure offers (`--with-blocksize`, `--with-wal-blocksize`).
        if value.is_power_of_two() && (1024..=65536).contains(&value) {
            Ok(value)
        } else {
            Err(self.wrong(what))
        }
    }

    fn short(&self) -> Error {
        Error::new(
            Kind::Corrupt,
            format!("pg_control of {} bytes is too short", self.0.len()),
        )
    }

    fn wrong(&self, what: &str) -> Error {
        Error::new(Kind::Corrupt, format!("pg_control has an impossible {what}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::postgres::fixtures;
    use proptest::prelude::*;
    use serde_json::Value;

    fn lsn(value: &Value) -> Lsn {
        value.as_str().unwrap().parse().unwrap()
    }

    #[test]
    fn pg_control_of_every_version_says_what_its_server_says() {
        for major in Major::ALL {
            let control = ControlFile::parse(&fixtures::read(major, "pg_control")).unwrap();
            let said = fixtures::expected(major);
            let (system, checkpoint, init) = (&said["system"], &said["checkpoint"], &said["init"]);
            assert_eq!(control.major, major);
            assert_eq!(control.system_id.0, system["system_identifier"].as_u64().unwrap());
            assert_eq!(
                u64::from(control.catalog_version),
                system["catalog_version_no"].as_u64().unwrap()
            );
            assert_eq!(control.checkpoint, lsn(&checkpoint["checkpoint_lsn"]));
            assert_eq!(control.redo, lsn(&checkpoint["redo_lsn"]));
            assert_eq!(
                u64::from(control.timeline.0),
                checkpoint["timeline_id"].as_u64().unwrap()
            );
            assert_eq!(
                u64::from(control.previous_timeline.0),
                checkpoint["prev_timeline_id"].as_u64().unwrap()
            );
            assert_eq!(
                control.full_page_writes,
                checkpoint["full_page_writes"].as_bool().unwrap()
            );
            assert_eq!(
                u64::from(control.block_size),
                init["database_block_size"].as_u64().unwrap()
            );
            assert_eq!(
                u64::from(control.blocks_per_file),
                init["blocks_per_segment"].as_u64().unwrap()
            );
            assert_eq!(
                u64::from(control.wal_block_size),
                init["wal_block_size"].as_u64().unwrap()
            );
            assert_eq!(
                control.segment_size.bytes(),
                init["bytes_per_wal_segment"].as_u64().unwrap()
            );
            assert_eq!(control.data_checksums, init["data_page_checksum_version"] == 1);
            assert_eq!(
                control.min_recovery_point,
                lsn(&said["recovery"]["min_recovery_end_lsn"])
            );
            assert_eq!(control.backup_start, lsn(&said["recovery"]["backup_start_lsn"]));
            let times = [
                (control.written_unix_seconds, &system["pg_control_last_modified"]),
                (control.checkpoint_unix_seconds, &checkpoint["checkpoint_time"]),
            ];
            for (seconds, text) in times {
                let time: jiff::Timestamp = text.as_str().unwrap().parse().unwrap();
                assert_eq!(seconds, time.as_second());
            }
        }
    }

    #[test]
    fn pg_control_of_every_version_has_the_settings_it_was_started_with() {
        for major in Major::ALL {
            let control = ControlFile::parse(&fixtures::read(major, "pg_control")).unwrap();
            assert_eq!(control.state, ClusterState::InProduction);
            assert_eq!(control.wal_level, WalLevel::Logical);
            assert_eq!((control.max_connections, control.max_worker_processes), (101, 9));
            assert_eq!((control.max_wal_senders, control.max_prepared_xacts), (11, 3));
            assert_eq!(control.max_locks_per_xact, 65);
            assert!(!control.wal_log_hints && !control.backup_end_required);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let golden = fixtures::read(Major::V15, "pg_control");
        for at in (0..292).filter(|at| !(8..12).contains(at)) {
            let mut bytes = golden.clone();
            bytes[at] ^= 0x10;
            assert_eq!(
                ControlFile::parse(&bytes).unwrap_err().kind(),
                Kind::Corrupt,
                "byte {at}"
            );
        }
        assert_eq!(ControlFile::parse(&golden[..290]).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn another_version_is_a_configuration_error() {
        let mut bytes = fixtures::read(Major::V15, "pg_control");
        bytes[8..12].copy_from_slice(&1201_u32.to_le_bytes());
        assert_eq!(ControlFile::parse(&bytes).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn a_missing_file_is_not_found() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(ControlFile::read(directory.path()).unwrap_err().kind(), Kind::NotFound);
        std::fs::create_dir(directory.path().join("global")).unwrap();
        let golden = fixtures::read(Major::V18, "pg_control");
        std::fs::write(directory.path().join(CONTROL_PATH), &golden).unwrap();
        let (control, bytes) = ControlFile::read_with_bytes(directory.path()).unwrap();
        assert_eq!((control.major, bytes), (Major::V18, golden));
        assert_eq!(control.tablespace_directory(), "PG_18_202506291");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), version in 0..3_usize) {
            let mut bytes = bytes;
            if bytes.len() >= 296 {
                // A right checksum over wrong values.
                let (number, at) = [(1300_u32, 288), (1700, 288), (1800, 292)][version];
                bytes[8..12].copy_from_slice(&number.to_le_bytes());
                let crc = crc32c::crc32c(&bytes[..at]);
                bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = ControlFile::parse(&bytes);
        }
    }
}
