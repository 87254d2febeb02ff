//! A backup's documents: what is said before its first byte, and what makes it one (FORMAT.md, section 8).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Digest;
use crate::error::{Error, Kind, Result};
use crate::postgres::{Lsn, SegmentSize, SystemId, TimelineId};
use crate::repository::{BackupType, FORMAT, Label, Repository, document};
use crate::time::UtcTime;

/// `intent.json`: written before the first byte of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The document's format.
    pub format: u32,
    /// The backup to be.
    pub label: Label,
    /// Where the program runs.
    pub host: String,
    /// Its process number there.
    pub pid: u32,
    /// When it started, by the host's clock.
    pub started: UtcTime,
    /// Whose backup, as text.
    pub system_identifier: String,
    /// Backups that it will refer to.
    pub leans_on: Vec<Label>,
}

/// `backup.json`: written last; without it there is no backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupInfo {
    /// The document's format.
    pub format: u32,
    /// The backup's name.
    pub label: Label,
    /// What it holds of its own.
    #[serde(rename = "type")]
    pub kind: BackupType,
    /// The cluster.
    pub cluster: String,
    /// PostgreSQL's system identifier, as text.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub major: u32,
    /// PostgreSQL's full version, `15.18`.
    pub server_version: String,
    /// The program that made it.
    pub pgkeep: String,
    /// Where it ran.
    pub host: String,
    /// `primary` or `standby`.
    pub role: String,
    /// The operator's note.
    pub note: Option<String>,
    /// The job's start, by the host's clock.
    pub started: UtcTime,
    /// When PostgreSQL's backup stopped: the earliest moment this backup can be recovered to, by the server's clock.
    pub stopped: UtcTime,
    /// When the last object was stored, by the host's clock.
    pub finished: UtcTime,
    /// The timeline it was taken on.
    pub timeline: u32,
    /// Replay starts here.
    pub start_lsn: Lsn,
    /// Replay must reach this.
    pub stop_lsn: Lsn,
    /// The WAL between, by segment names.
    pub wal: WalSpan,
    /// The size of a WAL segment, in bytes.
    pub segment_size: u64,
    /// The size of a page, in bytes.
    pub block_size: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Tablespaces besides the two in the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// The backup that changes were counted from.
    pub base: Option<Label>,
    /// Every label whose bytes the manifest points at, committed or not.
    pub references: Vec<Label>,
    /// The interrupted backup whose stored ranges were used again.
    pub reused_from: Option<Label>,
    /// Number of files.
    pub files: u64,
    /// Sum of the files' sizes, in bytes.
    pub size: u64,
    /// Sum of the stored objects' sizes, in bytes.
    pub stored: u64,
    /// Seconds by phase.
    pub durations: BTreeMap<String, f64>,
    /// Pages whose checksum failed.
    pub damaged_pages: u64,
    /// Whether it counts: false where pages are damaged.
    pub good: bool,
    /// Every object of the label except `intent.json` and this one.
    pub objects: Vec<ObjectRecord>,
    /// Reserved.
    pub signature: Option<serde_json::Value>,
}

/// The first and the last WAL segment that a backup needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSpan {
    /// Holds the start LSN.
    pub first: String,
    /// Holds the last byte before the stop LSN.
    pub last: String,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID, which is the link's name.
    pub oid: u32,
    /// Where it was.
    pub location: String,
}

/// A stored object of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// Its key below the label: `data/1.tar.zst`.
    pub key: String,
    /// Stored size, in bytes.
    pub size: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: Sha256Digest,
    /// Length of the plain content, in bytes.
    pub plain: u64,
}

impl BackupInfo {
    /// PostgreSQL's system identifier.
    ///
    /// # Errors
    /// `Corrupt` if it is no number.
    pub fn system(&self) -> Result<SystemId> {
        self.system_identifier
            .parse()
            .map(SystemId)
            .map_err(|error| Error::new(Kind::Corrupt, "a backup's system identifier is no number").because(error))
    }

    /// The size of its WAL segments.
    ///
    /// # Errors
    /// `Corrupt` if it is none that PostgreSQL has.
    pub fn wal_segment_size(&self) -> Result<SegmentSize> {
        SegmentSize::new(self.segment_size).map_err(|error| error.with_kind(Kind::Corrupt))
    }

    /// The timeline it was taken on.
    pub fn timeline(&self) -> TimelineId {
        TimelineId(self.timeline)
    }
}

/// Writes the intent of a backup.
///
/// # Errors
/// What the store says.
pub fn write_intent(repository: &Repository, intent: &Intent) -> Result<()> {
    let key = repository.keys().of_backup(intent.label, "intent.json")?;
    document::write(repository.store.as_ref(), &key, intent)?;
    Ok(())
}

/// Reads the intent of a backup.
///
/// # Errors
/// `NotFound` if there is surely none; `Corrupt` or `Refused` if it is not sound.
pub fn read_intent(repository: &Repository, label: Label) -> Result<Intent> {
    let key = repository.keys().of_backup(label, "intent.json")?;
    document::read(repository.store.as_ref(), &key)
}

/// Makes a backup: writes `backup.json`. Everything it names must be stored.
///
/// # Errors
/// What the store says.
pub fn commit(repository: &Repository, info: &BackupInfo) -> Result<()> {
    let key = repository.keys().of_backup(info.label, "backup.json")?;
    document::write_sealed(repository.store.as_ref(), &key, info)?;
    Ok(())
}

/// Reads a backup's `backup.json` and checks that it describes this backup.
///
/// # Errors
/// `NotFound` if there is surely no such backup; `Corrupt` or `Refused` if the document is not sound.
pub fn read(repository: &Repository, label: Label) -> Result<BackupInfo> {
    let key = repository.keys().of_backup(label, "backup.json")?;
    let info: BackupInfo = document::read_sealed(repository.store.as_ref(), &key)?;
    check(repository, label, &info).map_err(|error| {
        let place = repository.store.describe(Some(&key));
        error.context(format!("believe {place}"))
    })?;
    Ok(info)
}

/// Checks that a document describes this backup and agrees with itself.
///
/// # Errors
/// `Corrupt`.
pub fn check(repository: &Repository, label: Label, info: &BackupInfo) -> Result<()> {
    let wrong = |why: String| Err(Error::new(Kind::Corrupt, why));
    if info.label != label || info.cluster != repository.cluster.as_str() || info.format > FORMAT {
        return wrong("it describes another backup".to_owned());
    }
    if info.kind != label.kind() || info.started.whole_seconds() != label.started() {
        return wrong(format!(
            "it says type {} and start {}, and the label is {label}",
            info.kind, info.started
        ));
    }
    if info.stop_lsn < info.start_lsn || !info.start_lsn.is_valid() || info.timeline == 0 {
        let (timeline, start, stop) = (info.timeline, info.start_lsn, info.stop_lsn);
        return wrong(format!("it goes from {start} to {stop} on timeline {timeline}"));
    }
    if info.good && info.damaged_pages > 0 {
        return wrong(format!(
            "it has {} damaged pages and calls itself good",
            info.damaged_pages
        ));
    }
    info.system()?;
    info.wal_segment_size()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::codec::{Opening, Sealing};
    use crate::repository::ClusterName;
    use crate::storage::memory::MemoryStore;
    use std::sync::Arc;

    #[test]
    fn a_document_that_contradicts_itself_or_its_name_is_damaged() {
        let store = Arc::new(MemoryStore::new());
        let cluster = ClusterName::parse("main").unwrap();
        let clear = || Sealing::Clear;
        let (name, url) = ("a".to_owned(), "memory".to_owned());
        let repository = Repository::new(name, url, true, store, clear(), clear(), Opening::none(), cluster);
        let label: Label = "20261120T020000Z-full-3f9a1c".parse().unwrap();
        let text = r#"{"format":1,"label":"20261120T020000Z-full-3f9a1c","type":"full","cluster":"main",
            "system_identifier":"7","major":15,"server_version":"15.18","pgkeep":"x","host":"h","role":"primary",
            "note":null,"started":"2026-11-20T02:00:00.5Z","stopped":"2026-11-20T02:01:00Z",
            "finished":"2026-11-20T02:02:00Z","timeline":1,"start_lsn":"0/2000028","stop_lsn":"0/2000138",
            "wal":{"first":"a","last":"b"},"segment_size":16777216,"block_size":8192,"data_checksums":false,
            "tablespaces":[],"base":null,"references":[],"reused_from":null,"files":1,"size":1,"stored":1,"durations":{},
            "damaged_pages":0,"good":true,"objects":[],"signature":null}"#;
        let judged = |text: &str| check(&repository, label, &serde_json::from_str(text).unwrap());
        judged(text).unwrap();
        for (from, to) in [
            ("-full-3f9a1c\"", "-full-000000\""),
            ("\"cluster\":\"main\"", "\"cluster\":\"other\""),
            ("\"type\":\"full\"", "\"type\":\"incr\""),
            ("02:00:00.5Z", "02:00:01Z"),
            ("0/2000138", "0/2000020"),
            ("0/2000028", "0/0"),
            ("\"timeline\":1", "\"timeline\":0"),
            ("\"damaged_pages\":0", "\"damaged_pages\":1"),
            ("\"system_identifier\":\"7\"", "\"system_identifier\":\"x\""),
            ("16777216", "16777217"),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            assert_eq!(judged(&changed).unwrap_err().kind(), Kind::Corrupt, "{to}");
        }
    }
}
