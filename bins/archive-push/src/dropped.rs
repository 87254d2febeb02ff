//! WAL that is given up so that a server goes on, where `wal_drop_limit` allows it.
//!
//! Without the limit nothing is ever dropped: while repositories are away `pg_wal` grows, and in the end the server stops. With it, a
//! segment that cannot be stored and waits with more than the limit is called archived, so that PostgreSQL removes it. That is said
//! as an error each time, noted in the state directory, and written into every repository as a gap when they are back. A new full
//! backup has to follow: nothing after the gap can be reached from a backup before it. Histories are never dropped.

use std::path::{Path, PathBuf};

use common::durable;
use common::error::{Context, Error, Kind, Result, chain};
use common::postgres::{SegmentSize, SystemId, WalName};
use common::repository::{Repository, events};
use common::time::UtcTime;
use common::units::ByteSize;
use serde::{Deserialize, Serialize};

const REASON: &str = "repositories were away and pg_wal held more than wal_drop_limit";

/// Segments without a gap between them, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Whose.
    pub system_identifier: String,
    /// The first that was dropped.
    pub first: String,
    /// The last that was dropped.
    pub last: String,
    /// Names of the repositories that have been told.
    pub told: Vec<String>,
}

/// What this cluster has dropped, and not told every repository yet.
pub struct Dropped(PathBuf);

/// Whether the file may be dropped: a segment, for a failure that passes by itself, beyond the limit.
pub fn may_drop(name: &WalName, failed: Kind, waiting: u64, limit: ByteSize) -> bool {
    matches!(name, WalName::Segment(_)) && failed == Kind::Transient && limit.0 > 0 && waiting > limit.0
}

/// Puts a segment behind the last gap, or begins a new one.
fn add(gaps: &mut Vec<Gap>, system: SystemId, name: &WalName, size: SegmentSize) {
    let WalName::Segment(segment) = name else { return };
    let text = segment.to_string();
    let follows = |gap: &Gap| {
        let last = match WalName::parse(&gap.last) {
            Ok(WalName::Segment(last)) => last.next(size).map(|next| next.to_string()),
            _ => None,
        };
        gap.told.is_empty() && gap.system_identifier == system.to_string() && last.as_ref() == Some(&text)
    };
    match gaps.last_mut() {
        Some(gap) if gap.last == text => {}
        Some(gap) if follows(gap) => gap.last = text,
        _ => gaps.push(Gap {
            system_identifier: system.to_string(),
            first: text.clone(),
            last: text,
            told: Vec::new(),
        }),
    }
}

impl Dropped {
    /// What is noted for a cluster.
    pub fn of(state_directory: &Path, cluster: &str) -> Self {
        Self(state_directory.join(cluster).join("dropped-wal.json"))
    }

    /// Whether anything is noted.
    pub fn is_any(&self) -> bool {
        self.0.exists()
    }

    fn read(&self) -> Result<Vec<Gap>> {
        let what = || format!("read {}", self.0.display());
        match std::fs::read(&self.0) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| Error::new(Kind::Failed, what()).because(error))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).context(what),
        }
    }

    fn write(&self, gaps: &[Gap]) -> Result<()> {
        let bytes = serde_json::to_vec(gaps)
            .map_err(|error| Error::new(Kind::Failed, "encode what was dropped").because(error))?;
        if let Some(directory) = self.0.parent() {
            durable::create_dir_all(directory, 0o755)?;
        }
        durable::replace(&self.0, &bytes, 0o600)
    }

    /// Notes, durably, that a segment is given up.
    ///
    /// # Errors
    /// What the state directory says: then it must not be dropped.
    pub fn note(&self, system: SystemId, name: &WalName, size: SegmentSize) -> Result<()> {
        let mut gaps = self.read()?;
        add(&mut gaps, system, name, size);
        self.write(&gaps)
    }

    /// Writes the gaps into the repositories that do not know of them; what all know is forgotten. A repository that is still away is
    /// told another time.
    pub fn tell(&self, repositories: &[Repository], now: UtcTime, host: &str) {
        let told = self.read().and_then(|mut gaps| {
            if gaps.is_empty() {
                return Ok(());
            }
            for gap in &mut gaps {
                for repository in repositories {
                    if gap.told.contains(&repository.name) {
                        continue;
                    }
                    let what = events::What::Gap {
                        system_identifier: gap.system_identifier.clone(),
                        first: gap.first.clone(),
                        last: gap.last.clone(),
                        reason: REASON.to_owned(),
                    };
                    match events::append(repository, now, host, what) {
                        Ok(_) => gap.told.push(repository.name.clone()),
                        Err(error) => log::debug!(
                            "repository \"{}\" is not told of a gap: {}",
                            repository.name,
                            chain(&error)
                        ),
                    }
                }
            }
            gaps.retain(|gap| gap.told.len() < repositories.len());
            match gaps.is_empty() {
                true => std::fs::remove_file(&self.0).context(|| format!("remove {}", self.0.display())),
                false => self.write(&gaps),
            }
        });
        if let Err(error) = told {
            log::warn!("cannot tell the repositories which WAL was dropped: {}", chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn name(text: &str) -> WalName {
        WalName::parse(text).unwrap()
    }

    #[test]
    fn only_a_segment_beyond_a_limit_that_is_set_is_dropped() {
        let segment = name("000000010000000000000004");
        assert!(may_drop(&segment, Kind::Transient, SIZE + 1, ByteSize(SIZE)));
        assert!(!may_drop(&segment, Kind::Transient, u64::MAX, ByteSize(0)), "0: never");
        assert!(
            !may_drop(&segment, Kind::Transient, SIZE, ByteSize(SIZE)),
            "within the limit"
        );
        for kind in [Kind::Refused, Kind::Config, Kind::Failed, Kind::Corrupt] {
            assert!(
                !may_drop(&segment, kind, u64::MAX, ByteSize(1)),
                "{kind:?} does not pass by itself"
            );
        }
        for other in [
            "00000002.history",
            "000000010000000000000004.partial",
            "000000010000000000000004.00000028.backup",
        ] {
            assert!(
                !may_drop(&name(other), Kind::Transient, u64::MAX, ByteSize(1)),
                "{other}"
            );
        }
    }

    #[test]
    fn neighbours_are_one_gap() {
        let size = SegmentSize::new(SIZE).unwrap();
        let mut gaps = Vec::new();
        for text in [
            "0000000100000000000000FE",
            "0000000100000000000000FF",
            "0000000100000000000000FF",
            "000000010000000100000000",
            "000000010000000100000007",
        ] {
            add(&mut gaps, SystemId(7), &name(text), size);
        }
        let ends: Vec<_> = gaps.iter().map(|gap| (gap.first.as_str(), gap.last.as_str())).collect();
        assert_eq!(
            ends,
            [
                ("0000000100000000000000FE", "000000010000000100000000"),
                ("000000010000000100000007", "000000010000000100000007")
            ]
        );
        gaps[1].told.push("local".to_owned());
        add(&mut gaps, SystemId(7), &name("000000010000000100000008"), size);
        assert_eq!(gaps.len(), 3, "what somebody has been told of does not grow");
    }
}
