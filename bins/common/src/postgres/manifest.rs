//! PostgreSQL's own backup_manifest, so that pg_verifybackup can check a restored backup.
//!
//! Knows the format of `src/backend/backup/backup_manifest.c`: version 1 up to 16, version 2 with the
//! system identifier from 17 on. Written as a stream; what belongs in it, and in which order, is up to
//! the caller (pg_verifybackup does not mind the order).

use super::lsn::{Lsn, SystemId, TimelineId};
use super::version::Major;
use crate::error::{Context, Error, Kind, Result};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// WAL that is needed to make the backup consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// On this timeline.
    pub timeline: TimelineId,
    /// From here.
    pub start: Lsn,
    /// To here.
    pub end: Lsn,
}

/// The name that something in a backup has in PostgreSQL's manifest; nothing for extra paths.
pub fn manifest_path(path: &Path) -> Option<PathBuf> {
    match path.strip_prefix("data") {
        Ok(below) => Some(below.to_path_buf()),
        Err(_) => path
            .strip_prefix("tablespace")
            .ok()
            .map(|below| Path::new("pg_tblspc").join(below)),
    }
}

/// Writes a backup_manifest.
pub struct ManifestWriter<W: Write> {
    inner: W,
    digest: Sha256,
    first: bool,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins the manifest of a backup of this cluster.
    ///
    /// # Errors
    /// What writing says; as for the other functions here.
    pub fn new(inner: W, major: Major, system_id: SystemId) -> Result<Self> {
        let mut writer = ManifestWriter {
            inner,
            digest: Sha256::new(),
            first: true,
        };
        if major < Major::V17 {
            writer.put("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")?;
        } else {
            writer.put(&format!(
                "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system_id},\n\"Files\": ["
            ))?;
        }
        Ok(writer)
    }

    /// Adds a file, named relative to the data directory (see [`manifest_path`]).
    ///
    /// # Errors
    /// What writing says.
    pub fn file(&mut self, path: &Path, size: u64, modified: SystemTime, crc32c: u32) -> Result<()> {
        let separator = if std::mem::take(&mut self.first) { "" } else { "," };
        let name = match path.to_str() {
            Some(text) => format!("\"Path\": {}", json_string(text)),
            None => format!("\"Encoded-Path\": \"{}\"", hex(path.as_os_str().as_bytes())),
        };
        let modified = jiff::Timestamp::try_from(modified).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let modified = modified.strftime("%Y-%m-%d %H:%M:%S GMT");
        // The bytes of the number as they lie in memory.
        let checksum = hex(&crc32c.to_le_bytes());
        self.put(&format!(
            "{separator}\n{{ {name}, \"Size\": {size}, \"Last-Modified\": \"{modified}\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}"
        ))
    }

    /// Adds the WAL that is needed, newest timeline first, and ends the manifest.
    ///
    /// # Errors
    /// `Failed` without any range: pg_verifybackup could not parse that; else what writing says.
    pub fn finish(mut self, ranges: &[WalRange]) -> Result<W> {
        if ranges.is_empty() {
            return Err(Error::new(Kind::Failed, "backup_manifest needs at least one WAL range"));
        }
        self.put("\n],\n\"WAL-Ranges\": [\n")?;
        for (at, range) in ranges.iter().enumerate() {
            let separator = if at == 0 { "" } else { ",\n" };
            self.put(&format!(
                "{separator}{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                range.timeline.0, range.start, range.end
            ))?;
        }
        self.put("\n],\n")?;
        let digest = hex(&self.digest.finalize_reset());
        self.put(&format!("\"Manifest-Checksum\": \"{digest}\"}}\n"))?;
        Ok(self.inner)
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.digest.update(text.as_bytes());
        self.inner
            .write_all(text.as_bytes())
            .context(|| "write backup_manifest")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Quotes text for JSON.
fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::ffi::OsStr;
    use std::time::Duration;

    fn manifest(major: Major) -> String {
        let mut writer = ManifestWriter::new(Vec::new(), major, SystemId(7_710_397_825_571_279_154)).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_900);
        writer
            .file(Path::new("base/5/\"1\""), 8192, modified, 0x0102_0304)
            .unwrap();
        writer
            .file(Path::new(OsStr::from_bytes(b"\xff/x")), 0, SystemTime::UNIX_EPOCH, 0)
            .unwrap();
        let range = |timeline, start, end| WalRange {
            timeline: TimelineId(timeline),
            start: Lsn(start),
            end: Lsn(end),
        };
        let bytes = writer
            .finish(&[range(2, 0x300_0000, 0x400_0000), range(1, 0x200_0028, 0x300_0000)])
            .unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_manifest_reads_as_postgresql_writes_it() {
        let expected = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"base/5/\\\"1\\\"\", \"Size\": 8192, \"Last-Modified\": \"2023-11-14 22:13:20 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"04030201\" },\n\
            { \"Encoded-Path\": \"ff2f78\", \"Size\": 0, \"Last-Modified\": \"1970-01-01 00:00:00 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\" }\n],\n\"WAL-Ranges\": [\n\
            { \"Timeline\": 2, \"Start-LSN\": \"0/3000000\", \"End-LSN\": \"0/4000000\" },\n\
            { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/3000000\" }\n],\n";
        let text = manifest(Major::V16);
        let checksum = hex(&Sha256::digest(expected));
        assert_eq!(text, format!("{expected}\"Manifest-Checksum\": \"{checksum}\"}}\n"));
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }

    #[test]
    fn from_17_on_it_names_the_cluster() {
        for major in [Major::V17, Major::V18] {
            let value: serde_json::Value = serde_json::from_str(&manifest(major)).unwrap();
            assert_eq!(value["PostgreSQL-Backup-Manifest-Version"], 2);
            assert_eq!(value["System-Identifier"], 7_710_397_825_571_279_154_u64);
        }
    }

    #[test]
    fn names_lead_to_where_a_restore_puts_them() {
        assert_eq!(manifest_path(Path::new("data/base/1")), Some("base/1".into()));
        assert_eq!(
            manifest_path(Path::new("tablespace/7/PG_15/1")),
            Some("pg_tblspc/7/PG_15/1".into())
        );
        assert_eq!(manifest_path(Path::new("extra/etc/x")), None);
    }
}
