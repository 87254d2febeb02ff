//! The header of a WAL segment: which cluster wrote it, and which piece of WAL it is.
//!
//! Knows `XLogLongPageHeaderData` (`src/include/access/xlog_internal.h`), the first 40 bytes of every
//! segment. A recycled segment keeps the header of its former life until it is written again, so a file
//! is what its header says, not what its name says.

use super::lsn::{Lsn, SegmentNumber, SegmentSize, SystemId, TimelineId};
use super::names::{SegmentName, WalName};
use super::version::Major;
use super::{u16_at, u32_at, u64_at};
use crate::error::{Error, Kind, Result};

/// Bytes that [`SegmentHeader::parse`] needs.
pub const HEADER_BYTES: usize = 40;

const XLP_LONG_HEADER: u16 = 0x0002;
const XLP_ALL_FLAGS: u16 = 0x000F;

/// What the first page of a segment says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The version that wrote it.
    pub major: Major,
    /// The cluster that wrote it.
    pub system_id: SystemId,
    /// The timeline of its first page; the name's may be newer.
    pub timeline: TimelineId,
    /// The position of its first byte.
    pub page_address: Lsn,
    /// The size of the segment.
    pub segment_size: SegmentSize,
    /// The size of a WAL page, 8192 unless PostgreSQL was built otherwise.
    pub page_size: u32,
}

impl SegmentHeader {
    /// Parses the first bytes of a segment, at least [`HEADER_BYTES`].
    ///
    /// # Errors
    /// `Corrupt` if they are not the start of a segment of a supported version.
    pub fn parse(bytes: &[u8]) -> Result<SegmentHeader> {
        let short = || {
            Error::new(
                Kind::Corrupt,
                format!("WAL segment header of {} bytes is too short", bytes.len()),
            )
        };
        let magic = u16_at(bytes, 0).ok_or_else(short)?;
        let major = Major::from_wal_magic(magic).ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                format!("magic number {magic:04X} is not that of a WAL segment"),
            )
            .hint("WAL of PostgreSQL 13 to 18 is supported")
        })?;
        let info = u16_at(bytes, 2).ok_or_else(short)?;
        if info & !XLP_ALL_FLAGS != 0 || info & XLP_LONG_HEADER == 0 {
            return Err(Error::new(
                Kind::Corrupt,
                format!("page flags {info:04X} are not those of a segment's start"),
            ));
        }
        Ok(SegmentHeader {
            major,
            timeline: TimelineId(u32_at(bytes, 4).ok_or_else(short)?),
            page_address: Lsn(u64_at(bytes, 8).ok_or_else(short)?),
            system_id: SystemId(u64_at(bytes, 24).ok_or_else(short)?),
            segment_size: SegmentSize::new(u64::from(u32_at(bytes, 32).ok_or_else(short)?))?,
            page_size: page_size(u32_at(bytes, 36).ok_or_else(short)?)?,
        })
    }

    /// The name that a segment with this header has on its own timeline.
    pub fn own_name(&self) -> SegmentName {
        SegmentName::new(
            self.timeline,
            SegmentNumber::containing(self.page_address, self.segment_size),
            self.segment_size,
        )
    }

    /// Checks that a segment (or partial segment) of this name, in this cluster, may have this header.
    ///
    /// The header's timeline may be older than the name's: the first segment of a new timeline is a copy.
    ///
    /// # Errors
    /// `Refused` if the file is something else than its name says.
    pub fn agrees_with(&self, name: &WalName, system_id: SystemId) -> Result<()> {
        let (WalName::Segment(segment) | WalName::Partial(segment)) = name else {
            return Err(Error::new(
                Kind::Refused,
                format!("{name} is not the name of a segment"),
            ));
        };
        if self.system_id != system_id {
            let message = format!(
                "{name} was written by the cluster {}, not by {system_id}",
                self.system_id
            );
            return Err(Error::new(Kind::Refused, message)
                .hint("does the configured data_directory belong to the server that archives?"));
        }
        if segment.start(self.segment_size) != Some(self.page_address) {
            let message = format!(
                "{name} holds the WAL at {}, which its name does not say",
                self.page_address
            );
            return Err(Error::new(Kind::Refused, message).hint("a recycled segment that was not written again?"));
        }
        if self.timeline > segment.timeline {
            let message = format!("{name} holds WAL of the later timeline {}", self.timeline);
            return Err(Error::new(Kind::Refused, message));
        }
        Ok(())
    }
}

fn page_size(bytes: u32) -> Result<u32> {
    match bytes {
        1024 | 2048 | 4096 | 8192 | 16384 | 32768 | 65536 => Ok(bytes),
        _ => Err(Error::new(Kind::Corrupt, format!("{bytes} bytes is no WAL page size"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::postgres::fixtures;
    use proptest::prelude::*;

    fn golden(major: Major) -> (WalName, SystemId, Vec<u8>) {
        let expected = fixtures::expected(major);
        let name = expected["walfile"].as_str().unwrap();
        let system = SystemId(expected["system"]["system_identifier"].as_u64().unwrap());
        (WalName::parse(name).unwrap(), system, fixtures::read(major, name))
    }

    #[test]
    fn the_header_of_every_version_says_what_its_server_says() {
        for major in Major::ALL {
            let (name, system, bytes) = golden(major);
            let header = SegmentHeader::parse(&bytes).unwrap();
            let expected = fixtures::expected(major);
            assert_eq!(header.major, major);
            assert_eq!(
                header.segment_size.bytes(),
                expected["init"]["bytes_per_wal_segment"].as_u64().unwrap()
            );
            assert_eq!(
                u64::from(header.page_size),
                expected["init"]["wal_block_size"].as_u64().unwrap()
            );
            assert_eq!(WalName::Segment(header.own_name()), name);
            header.agrees_with(&name, system).unwrap();
        }
    }

    #[test]
    fn a_header_that_is_not_the_names_is_refused() {
        let (name, system, bytes) = golden(Major::V15);
        let header = SegmentHeader::parse(&bytes).unwrap();
        let segment = name.segment().unwrap();
        let refused =
            |name: WalName, system: SystemId| header.agrees_with(&name, system).unwrap_err().kind() == Kind::Refused;
        assert!(refused(name, SystemId(system.0 + 1)));
        assert!(refused(name.next(header.segment_size).unwrap(), system));
        assert!(refused(
            WalName::Segment(SegmentName {
                timeline: TimelineId(2),
                ..segment
            }),
            system
        ));
        assert!(refused(
            WalName::Segment(SegmentName {
                segment: 0x100,
                ..segment
            }),
            system
        ));
        assert!(refused(
            WalName::History {
                timeline: TimelineId(3)
            },
            system
        ));
        let newer = SegmentName {
            timeline: TimelineId(4),
            ..segment
        };
        header.agrees_with(&WalName::Segment(newer), system).unwrap();
        header.agrees_with(&WalName::Partial(segment), system).unwrap();
    }

    #[test]
    fn zeros_and_stumps_are_corrupt() {
        let (_, _, bytes) = golden(Major::V15);
        assert_eq!(SegmentHeader::parse(&[0; 64]).unwrap_err().kind(), Kind::Corrupt);
        for length in 0..HEADER_BYTES {
            assert_eq!(
                SegmentHeader::parse(&bytes[..length]).unwrap_err().kind(),
                Kind::Corrupt
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), lucky: bool) {
            if lucky && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&[0x10, 0xD1, 2, 0]);
            }
            if let Ok(header) = SegmentHeader::parse(&bytes) {
                let _ = header.agrees_with(&WalName::Segment(header.own_name()), header.system_id);
            }
        }
    }
}
