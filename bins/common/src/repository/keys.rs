//! Names: clusters, labels, and where each object lies (FORMAT.md, section 1).
//!
//! Everything read from a store passes one of the parsers here before it becomes part of a key or a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::postgres::{SystemId, WalName};
use crate::storage::Key;
use crate::time::UtcTime;

/// A configured cluster's name: `[A-Za-z0-9][A-Za-z0-9_.-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(String);

impl ClusterName {
    /// Checks `name`.
    ///
    /// # Errors
    /// `Config` if it has other characters, begins with a dot or dash, or is longer than 63.
    pub fn parse(name: &str) -> Result<Self> {
        let ok = name.len() <= 63
            && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if ok {
            Ok(Self(name.to_owned()))
        } else {
            Err(
                Error::new(Kind::Config, format!("\"{name}\" cannot be a cluster's name"))
                    .hint("use up to 63 letters, digits, '_', '.', '-', beginning with a letter or digit"),
            )
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Six random hexadecimal digits that keep two hosts from choosing the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nonce([u8; 3]);

impl Nonce {
    /// Draws a nonce from the system's random source.
    ///
    /// # Errors
    /// `Failed` if there is none.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 3];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::new(Kind::Failed, "draw random bytes").because(error.to_string()))?;
        Ok(Self(bytes))
    }

    fn parse(text: &str) -> Option<Self> {
        let lower_hex = text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if text.len() != 6 || !lower_hex {
            return None;
        }
        let number = u32::from_str_radix(text, 16).ok()?;
        let [_, a, b, c] = number.to_be_bytes();
        Some(Self([a, b, c]))
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}")
    }
}

/// What a physical backup holds of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// Every block.
    Full,
    /// What changed since the latest full.
    Diff,
    /// What changed since the latest backup.
    Incr,
}

impl fmt::Display for BackupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Diff => "diff",
            Self::Incr => "incr",
        })
    }
}

/// A backup's name: start time, type, nonce. Sorts by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    started: UtcTime,
    kind: BackupType,
    nonce: Nonce,
}

impl Label {
    /// Names a backup of `kind` that starts now.
    pub fn new(started: UtcTime, kind: BackupType, nonce: Nonce) -> Self {
        Self {
            started: started.whole_seconds(),
            kind,
            nonce,
        }
    }

    /// The job's start by its host's clock, in whole seconds.
    pub fn started(&self) -> UtcTime {
        self.started
    }

    /// The type in the name.
    pub fn kind(&self) -> BackupType {
        self.kind
    }
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(Kind::Refused, format!("\"{text}\" is not a backup's label"))
                .hint("labels look like 20261120T020000Z-full-3f9a1c; pgkeep-info lists them")
        };
        let mut parts = text.split('-');
        let (Some(time), Some(kind), Some(nonce), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let kind = match kind {
            "full" => BackupType::Full,
            "diff" => BackupType::Diff,
            "incr" => BackupType::Incr,
            _ => return Err(wrong()),
        };
        let started = UtcTime::parse_compact(time).map_err(|_| wrong())?;
        let nonce = Nonce::parse(nonce).ok_or_else(wrong)?;
        Ok(Self { started, kind, nonce })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.started.compact(), self.kind, self.nonce)
    }
}

impl Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A logical dump's name: start time, `dump`, nonce. Sorts by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DumpLabel {
    started: UtcTime,
    nonce: Nonce,
}

impl DumpLabel {
    /// Names a dump that starts now.
    pub fn new(started: UtcTime, nonce: Nonce) -> Self {
        Self {
            started: started.whole_seconds(),
            nonce,
        }
    }

    /// The job's start by its host's clock, in whole seconds.
    pub fn started(&self) -> UtcTime {
        self.started
    }
}

impl FromStr for DumpLabel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(Kind::Refused, format!("\"{text}\" is not a dump's label"))
                .hint("labels look like 20261120T020000Z-dump-3f9a1c; pgkeep-info lists them")
        };
        let (time, nonce) = text.split_once("-dump-").ok_or_else(wrong)?;
        let started = UtcTime::parse_compact(time).map_err(|_| wrong())?;
        let nonce = Nonce::parse(nonce).ok_or_else(wrong)?;
        Ok(Self { started, nonce })
    }
}

impl fmt::Display for DumpLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-dump-{}", self.started.compact(), self.nonce)
    }
}

impl Serialize for DumpLabel {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DumpLabel {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Makes the keys of one cluster.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    pub(super) cluster: &'a ClusterName,
}

impl Keys<'_> {
    fn key(&self, below: &str) -> Result<Key> {
        Key::parse(&format!("{}/{below}", self.cluster))
    }

    /// `repository.json`.
    ///
    /// # Errors
    /// None that a validated cluster name can cause.
    pub fn identity(&self) -> Result<Key> {
        self.key("repository.json")
    }

    /// The folder of all events.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn events(&self) -> Result<Key> {
        self.key("events")
    }

    /// One event.
    ///
    /// # Errors
    /// `Refused` if `kind` cannot be part of a name.
    pub fn event(&self, time: UtcTime, nonce: Nonce, kind: &str) -> Result<Key> {
        self.key(&format!("events/{}-{nonce}-{kind}.json", time.compact()))
    }

    /// An object that is written to try a repository out, and deleted: a lease of a job that does not exist.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn probe(&self, nonce: Nonce) -> Result<Key> {
        self.key(&format!("lease/probe/{nonce}.json"))
    }

    /// The folder of a job's lease.
    ///
    /// # Errors
    /// `Refused` if `job` cannot be part of a name.
    pub fn lease(&self, job: &str) -> Result<Key> {
        self.key("lease")?.join(job)
    }

    /// The folder of all WAL.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn wal_root(&self) -> Result<Key> {
        self.key("wal")
    }

    /// The folder of one system identifier's WAL.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn wal_of(&self, system: SystemId) -> Result<Key> {
        self.key(&format!("wal/{system}"))
    }

    /// The folder of one system identifier's timeline history files.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn histories(&self, system: SystemId) -> Result<Key> {
        self.key(&format!("wal/{system}/history"))
    }

    /// A file as PostgreSQL archived it.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn wal(&self, system: SystemId, name: &WalName, suffix: &str) -> Result<Key> {
        self.wal_object(system, name, ".zst", suffix)
    }

    /// The map of a segment.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn map(&self, system: SystemId, name: &WalName, suffix: &str) -> Result<Key> {
        self.wal_object(system, name, ".map.zst", suffix)
    }

    fn wal_object(&self, system: SystemId, name: &WalName, ending: &str, suffix: &str) -> Result<Key> {
        let name_text = name.to_string();
        let folder = match name {
            WalName::History { .. } => "history",
            _ => name_text.get(..16).unwrap_or("short"),
        };
        self.key(&format!("wal/{system}/{folder}/{name_text}{ending}{suffix}"))
    }

    /// The folder of all backups.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn backups(&self) -> Result<Key> {
        self.key("backup")
    }

    /// The folder of all dumps.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn dumps(&self) -> Result<Key> {
        self.key("dump")
    }

    /// One object of a dump, `name` as in `dump.json`: `1.dump.zst.age`.
    ///
    /// # Errors
    /// `Refused` if `name`, which may come from a repository, is no key.
    pub fn of_dump(&self, label: DumpLabel, name: &str) -> Result<Key> {
        self.key(&format!("dump/{label}/{name}"))
    }

    /// The folder of one backup.
    ///
    /// # Errors
    /// `Refused` if the name becomes too long.
    pub fn of_label(&self, label: Label) -> Result<Key> {
        self.key(&format!("backup/{label}"))
    }

    /// One object of a backup, `name` as in `backup.json`: `data/1.tar.zst`, `manifest.zst.age`.
    ///
    /// # Errors
    /// `Refused` if `name`, which may come from a repository, is no key.
    pub fn of_backup(&self, label: Label, name: &str) -> Result<Key> {
        self.key(&format!("backup/{label}/{name}"))
    }

    /// One object of what a restore test found: `report.json`, `details.json.zst`.
    ///
    /// # Errors
    /// `Refused` if `name` cannot be part of a name.
    pub fn of_evidence(&self, time: UtcTime, nonce: Nonce, name: &str) -> Result<Key> {
        self.key(&format!("evidence/{}-{nonce}/{name}", time.compact()))
    }

    /// The folder of what all restore tests found.
    ///
    /// # Errors
    /// As [`Keys::identity`].
    pub fn evidence(&self) -> Result<Key> {
        self.key("evidence")
    }

    /// Where a damaged object goes when it is replaced.
    ///
    /// # Errors
    /// `Refused` if the name becomes too long.
    pub fn damaged(&self, time: UtcTime, nonce: Nonce, original: &Key) -> Result<Key> {
        let text = original.to_string();
        let below = text.strip_prefix(&format!("{}/", self.cluster)).unwrap_or(&text);
        self.key(&format!(
            "damaged/{}-{nonce}/{}",
            time.compact(),
            below.replace('/', "%")
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_label_reads_back_as_it_was_written() {
        let text = "20261120T020000Z-full-3f9a1c";
        assert_eq!(text.parse::<Label>().unwrap().to_string(), text);
    }

    #[test]
    fn a_label_with_path_tricks_is_refused() {
        for text in [
            "",
            "..",
            "../x",
            "20261120T020000Z-full-3f9a1c/..",
            "20261120T020000Z-full-3F9A1C",
            "20261120T020000Z-dump-3f9a1c",
            "x-full-3f9a1c",
            "20261320T020000Z-full-3f9a1c",
        ] {
            assert_eq!(text.parse::<Label>().unwrap_err().kind(), Kind::Refused, "{text}");
        }
    }

    #[test]
    fn a_cluster_name_with_path_tricks_is_refused() {
        for text in ["", ".", "..", "a/b", "-a", ".a", "a b", "ä", &"a".repeat(64)] {
            assert!(ClusterName::parse(text).is_err(), "{text}");
        }
        assert!(ClusterName::parse("main-15.eu_1").is_ok());
    }

    #[test]
    fn labels_sort_by_time_first() {
        let early: Label = "20261120T020000Z-incr-ffffff".parse().unwrap();
        let late: Label = "20261120T020001Z-full-000000".parse().unwrap();
        assert!(early < late);
    }
}
