//! What a repository holds, as far as retention needs to know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use common::error::{Error, Kind, Result, chain};
use common::postgres::{SegmentSize, SystemId, TimelineHistory, TimelineId};
use common::repository::backup::{self, BackupInfo};
use common::repository::dumps::{self, Dump};
use common::repository::lease;
use common::repository::wal::{self, WalList};
use common::repository::{DumpLabel, Label, Repository, catalog, reach};
use common::repository::{events, tombstones};
use common::time::UtcTime;
use common::units::display_duration;

use crate::garbage::Left;

/// Clocks that are further apart make ages meaningless.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);

/// One system's WAL.
pub struct SystemWal {
    /// Whose.
    pub system: SystemId,
    /// The size of its segments.
    pub size: SegmentSize,
    /// What there is.
    pub list: WalList,
    /// Timeline histories that could be read.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
}

/// All of it.
pub struct Survey {
    /// The store's time.
    pub now: UtcTime,
    /// Backups, oldest first.
    pub backups: Vec<BackupInfo>,
    /// Labels whose `backup.json` cannot be read, and why.
    pub unreadable: Vec<(Label, String)>,
    /// Backups of which something that they lean on is not there.
    pub lacking: BTreeSet<Label>,
    /// Labels without one.
    pub left: Vec<Left>,
    /// Backups that are kept by hand, and why.
    pub marks: BTreeMap<Label, String>,
    /// WAL of the systems that events name, in the order in which they came.
    pub wal: Vec<SystemWal>,
    /// Dumps, oldest first.
    pub dumps: Vec<Dump>,
    /// Those of tenants that were erased.
    pub erased: BTreeSet<DumpLabel>,
}

/// Looks at everything.
///
/// # Errors
/// `Config` if the clocks of host and store are too far apart; else what the store says.
pub fn survey(repository: &Repository, cache: &Path, now: UtcTime) -> Result<Survey> {
    repository.identity()?;
    let store_time = repository.store.now()?;
    compare_clocks(now, store_time)?;
    let catalog = catalog::read(repository, Some(cache))?;
    let events = events::read(repository)?;
    let known = events::systems_of(&events)?;
    let holder = lease::newest(repository, "base-backup")?.filter(|lease| lease.is_held(store_time));
    let lacks = |info: &&BackupInfo| catalog.lacks(info).is_some();
    let lacking = catalog.backups.iter().filter(lacks).map(|info| info.label).collect();
    let mut left = Vec::new();
    for label in catalog.unfinished {
        left.push(look_at(
            repository,
            label,
            holder.as_ref().map(|lease| lease.owner.as_str()),
        )?);
    }
    let mut wal = Vec::new();
    for system in known {
        let size = SegmentSize::new(system.segment_size).map_err(|error| error.with_kind(Kind::Corrupt))?;
        let list = wal::list(repository, system.system, size)?;
        wal.push(SystemWal {
            system: system.system,
            size,
            list,
            histories: histories(repository, system.system),
        });
    }
    Ok(Survey {
        now: store_time,
        backups: catalog.backups,
        unreadable: catalog.unreadable,
        lacking,
        left,
        erased: tombstones::dumps(&events),
        marks: events::marks(events.into_iter().map(|event| event.what)),
        wal,
        dumps: dumps::list(repository)?,
    })
}

/// Without the key histories cannot be read: then no branch is taken for one that was left.
fn histories(repository: &Repository, system: SystemId) -> BTreeMap<TimelineId, TimelineHistory> {
    match wal::read_histories(repository, system) {
        Ok(found) => found.known,
        Err(error) => {
            log::debug!("timeline histories cannot be listed: {}", chain(&error));
            BTreeMap::new()
        }
    }
}

impl SystemWal {
    /// Whether recovery from a backup can follow the newest timeline; `true` where that is not known.
    pub fn follows(&self, backup: &BackupInfo) -> bool {
        let newest = self.list.ranges.iter().map(|range| range.timeline).max();
        let newest = newest.into_iter().chain(self.list.histories.iter().copied()).max();
        let history = newest.and_then(|newest| reach::history(&self.histories, newest));
        history.is_none_or(|history| reach::follows(backup, &history))
    }
}

fn compare_clocks(now: UtcTime, store: UtcTime) -> Result<()> {
    let apart = now.distance(store);
    if apart <= CLOCK_TOLERANCE {
        return Ok(());
    }
    let message = format!(
        "the clocks of this host ({now}) and of the store ({store}) are {} apart, so nobody can tell how old something is",
        display_duration(apart)
    );
    Err(Error::new(Kind::Config, message).hint("set the clock that is wrong (NTP), and run it again"))
}

fn look_at(repository: &Repository, label: Label, holder: Option<&str>) -> Result<Left> {
    let intent = match backup::read_intent(repository, label) {
        Ok(intent) => Some(intent),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt | Kind::Refused) => None,
        Err(error) => return Err(error),
    };
    let mut left = Left {
        label,
        leans_on: intent
            .as_ref()
            .map(|intent| intent.leans_on.clone())
            .unwrap_or_default(),
        written: None,
        has_lease: false,
        objects: 0,
        bytes: 0,
    };
    // An owner is "host:pid:nonce".
    let prefix = intent.map(|intent| format!("{}:{}:", intent.host, intent.pid));
    left.has_lease = prefix.is_some_and(|prefix| holder.is_some_and(|owner| owner.starts_with(&prefix)));
    let folder = repository.keys().of_label(label)?;
    repository.store.list(Some(&folder), &mut |_, stat| {
        left.objects += 1;
        left.bytes += stat.size;
        left.written = left.written.max(Some(stat.modified));
        Ok(())
    })?;
    Ok(left)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn clocks_more_than_ten_minutes_apart_are_refused() {
        let now = UtcTime::parse_compact("20261120T120000Z").unwrap();
        for seconds in [0, 600] {
            compare_clocks(now, now.plus(Duration::from_secs(seconds))).unwrap();
            compare_clocks(now, now.minus(Duration::from_secs(seconds))).unwrap();
        }
        for other in [now.plus(Duration::from_secs(601)), now.minus(Duration::from_secs(601))] {
            assert_eq!(compare_clocks(now, other).unwrap_err().kind(), Kind::Config);
        }
    }
}
