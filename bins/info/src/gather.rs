//! Reads what the report says. A repository that cannot be read is part of the report, not the end of it.

use std::collections::BTreeMap;
use std::path::Path;

use common::error::{Result, chain};
use common::postgres::{SegmentName, SegmentNumber, SegmentSize, SystemId, TimelineHistory, TimelineId, WalName};
use common::repository::backup::BackupInfo;
use common::repository::catalog::{self, Catalog};
use common::repository::dumps;
use common::repository::events::{self, KnownSystem};
use common::repository::manifest::Node;
use common::repository::pins::Pins;
use common::repository::reach::{self, Wal, Window};
use common::repository::wal::{self, Histories, WalList};
use common::repository::{Repository, reader};
use common::time::UtcTime;

use crate::report::{
    BackupReport, Blocks, DamagedFile, DumpReport, Report, RepositoryReport, SystemReport, Unreadable,
    UnreadableHistory, Unrecoverable, WalRange, WindowReport,
};
use crate::unfinished::Running;

/// What this host knows besides.
pub struct Known<'a> {
    /// Where documents of backups are remembered.
    pub cache: &'a Path,
    /// Which repositories it has used.
    pub pins: Pins,
    /// Which backups run on it.
    pub running: Running,
}

/// Reads every repository.
pub fn report(cluster: &str, repositories: &[Repository], known: &Known<'_>) -> Report {
    let one = |repository: &Repository| match read(repository, known) {
        Ok(report) => report,
        Err(error) => RepositoryReport {
            name: repository.name.clone(),
            url: repository.url.clone(),
            error: Some(match error.nearest_hint() {
                Some(hint) => format!("{} ({hint})", chain(&error)),
                None => chain(&error),
            }),
            ..RepositoryReport::default()
        },
    };
    Report {
        schema: 1,
        cluster: cluster.to_owned(),
        repositories: repositories.iter().map(one).collect(),
    }
}

fn read(repository: &Repository, known_here: &Known<'_>) -> Result<RepositoryReport> {
    let identity = repository.identity()?;
    known_here.pins.compare(repository)?;
    let catalog = catalog::read(repository, Some(known_here.cache))?;
    let mut systems = Vec::new();
    for known in events::systems(repository)? {
        systems.push(system(repository, &known, &catalog)?);
    }
    Ok(RepositoryReport {
        name: repository.name.clone(),
        url: repository.url.clone(),
        error: None,
        uuid: Some(identity.uuid.clone()),
        encrypted: Some(identity.encrypted),
        backups: catalog
            .backups
            .iter()
            .map(|info| backup(repository, info, catalog.lacks(info)))
            .collect(),
        dumps: logical(repository)?,
        unfinished: catalog
            .unfinished
            .iter()
            .map(|label| known_here.running.describe(repository, *label))
            .collect(),
        unreadable: catalog
            .unreadable
            .iter()
            .map(|(label, why)| Unreadable {
                label: label.to_string(),
                why: why.clone(),
            })
            .collect(),
        systems,
    })
}

fn logical(repository: &Repository) -> Result<Vec<DumpReport>> {
    let mut reports = Vec::new();
    for label in dumps::labels(repository)? {
        let Some(Ok(info)) = dumps::document(repository, label)? else {
            continue;
        };
        reports.push(DumpReport {
            label: label.to_string(),
            scope: info.scope.to_string(),
            started: info.started,
            duration_seconds: info.finished.since(info.started).as_secs_f64(),
            databases: info.databases,
            tables: info.tables,
            size_bytes: info.size,
            stored_bytes: info.stored,
            server_version: info.server_version,
        });
    }
    reports.sort_by(|a, b| (a.started, &a.label).cmp(&(b.started, &b.label)));
    Ok(reports)
}

fn backup(repository: &Repository, info: &BackupInfo, lacks: Option<common::repository::Label>) -> BackupReport {
    let (damage, damage_unknown) = match damage(repository, info) {
        Ok(damage) => (damage, None),
        Err(error) => (Vec::new(), Some(chain(&error))),
    };
    BackupReport {
        label: info.label.to_string(),
        kind: info.kind.to_string(),
        system_identifier: info.system_identifier.clone(),
        started: info.started,
        stopped: info.stopped,
        duration_seconds: info.finished.since(info.started).as_secs_f64(),
        timeline: info.timeline,
        start_lsn: info.start_lsn.to_string(),
        stop_lsn: info.stop_lsn.to_string(),
        wal_first: info.wal.first.clone(),
        wal_last: info.wal.last.clone(),
        size_bytes: info.size,
        stored_bytes: info.stored,
        files: info.files,
        good: info.good && lacks.is_none(),
        lacks: lacks.map(|label| label.to_string()),
        damaged_pages: info.damaged_pages,
        damage,
        damage_unknown,
        references: info.references.iter().map(ToString::to_string).collect(),
        note: info.note.clone(),
    }
}

/// The damaged files of a backup: only its manifest names them.
fn damage(repository: &Repository, info: &BackupInfo) -> Result<Vec<DamagedFile>> {
    let mut found = Vec::new();
    if info.damaged_pages == 0 {
        return Ok(found);
    }
    reader::open_manifest(repository, info)?.for_each(|entry| {
        if let Node::File(file) = &entry.node
            && !file.damaged.is_empty()
        {
            let run = |(first, count): &(u32, u32)| Blocks {
                first: *first,
                last: first.saturating_add(count.saturating_sub(1)),
            };
            found.push(DamagedFile {
                path: String::from_utf8_lossy(&entry.path).into_owned(),
                blocks: file.damaged.iter().map(run).collect(),
            });
        }
        Ok(())
    })?;
    Ok(found)
}

fn system(repository: &Repository, known: &KnownSystem, catalog: &Catalog) -> Result<SystemReport> {
    let size = SegmentSize::new(known.segment_size)?;
    let list = wal::list(repository, known.system, size)?;
    let identifier = known.system.to_string();
    let backups: Vec<&BackupInfo> = catalog
        .backups
        .iter()
        .filter(|info| info.system_identifier == identifier)
        .collect();
    let histories = histories(repository, known, &backups)?;
    let wal = Wal::union([&list]);
    let (mut found, mut unrecoverable) = (Vec::new(), Vec::new());
    let mut stored = LastStored {
        repository,
        system: known.system,
        list: &list,
        asked: BTreeMap::new(),
    };
    for info in backups {
        if let Some(lacks) = catalog.lacks(info) {
            unrecoverable.push(Unrecoverable {
                label: info.label.to_string(),
                missing: format!("backup {lacks}"),
                is_wal: false,
            });
            continue;
        }
        match windows(info, &wal, &histories.known, size) {
            Ok(windows) => found.extend(windows.into_iter().map(|window| describe(&window, &mut stored, size))),
            Err(lost) => unrecoverable.push(lost),
        }
    }
    Ok(SystemReport {
        system_identifier: identifier,
        major: known.major,
        wal_segments: list.segments,
        wal_stored_bytes: list.stored_bytes,
        wal_ranges: list
            .ranges
            .iter()
            .map(|range| wal_range(range.timeline, range.first, range.last, size))
            .collect(),
        wal_gaps: gaps(&list, size),
        windows: found,
        unrecoverable,
        unreadable_histories: histories
            .unreadable
            .iter()
            .map(|one| UnreadableHistory {
                timeline: one.timeline.0,
                why: chain(&one.error),
            })
            .collect(),
        foreign: list.foreign,
    })
}

/// What a backup reaches, on its own timeline first, then on those that go on from it; or why it reaches nothing.
fn windows(
    info: &BackupInfo,
    wal: &Wal,
    known: &BTreeMap<TimelineId, TimelineHistory>,
    size: SegmentSize,
) -> std::result::Result<Vec<Window>, Unrecoverable> {
    let own = info.timeline();
    let lost = |missing: String| Unrecoverable {
        label: info.label.to_string(),
        missing,
        is_wal: true,
    };
    let mut first_missing = None;
    let mut found = Vec::new();
    let others = known.keys().copied().filter(|id| *id != own);
    for id in std::iter::once(own).chain(others) {
        let Some(history) = reach::history(known, id).filter(|history| reach::follows(info, history)) else {
            continue;
        };
        match reach::window(info, &history, wal, size) {
            // Without WAL of its own a later timeline leads no further than the one it left.
            Ok(window) if id != own && history.begin(id).is_none_or(|begin| window.to_lsn <= begin) => {}
            Ok(window) => found.push(window),
            Err(missing) => {
                let name = SegmentName::new(missing.timeline, missing.number, size);
                first_missing.get_or_insert(name.to_string());
            }
        }
    }
    if found.is_empty() {
        let history = || format!("{:08X}.history", own.0);
        return Err(lost(first_missing.unwrap_or_else(history)));
    }
    Ok(found)
}

fn describe(window: &Window, stored: &mut LastStored<'_>, size: SegmentSize) -> WindowReport {
    let last = SegmentName::new(window.last.0, window.last.1, size);
    WindowReport {
        label: window.label.to_string(),
        timeline: window.timeline.0,
        from_time: window.from_time,
        from_lsn: window.from_lsn.to_string(),
        to_lsn: window.to_lsn.to_string(),
        last_segment: last.to_string(),
        last_stored: stored.time(window.last, last),
        missing: window.missing.map(|missing| missing.names(size)),
    }
}

/// When the last segments of windows were stored.
struct LastStored<'a> {
    repository: &'a Repository,
    system: SystemId,
    list: &'a WalList,
    asked: BTreeMap<SegmentName, Option<UtcTime>>,
}

impl LastStored<'_> {
    /// The list knows the last segment of each timeline; the store is asked for those before a gap, once for each.
    fn time(&mut self, last: (TimelineId, SegmentNumber), name: SegmentName) -> Option<UtcTime> {
        let listed = self.list.stored.get(&last.0).and_then(|stored| stored.last);
        if let Some((number, time)) = listed
            && number == last.1
        {
            return Some(time);
        }
        let (repository, system) = (self.repository, self.system);
        *self.asked.entry(name).or_insert_with(|| {
            ask(repository, system, name).unwrap_or_else(|error| {
                log::debug!("when WAL {name} was stored is not known: {}", chain(&error));
                None
            })
        })
    }
}

fn ask(repository: &Repository, system: SystemId, name: SegmentName) -> Result<Option<UtcTime>> {
    let suffix = repository.suffix()?;
    let key = repository.keys().wal(system, &WalName::Segment(name), suffix)?;
    Ok(repository.store.stat(&key)?.map(|stat| stat.modified))
}

fn wal_range(timeline: TimelineId, first: SegmentNumber, last: SegmentNumber, size: SegmentSize) -> WalRange {
    WalRange {
        timeline: timeline.0,
        first: SegmentName::new(timeline, first, size).to_string(),
        last: SegmentName::new(timeline, last, size).to_string(),
        segments: last.0.saturating_sub(first.0).saturating_add(1),
    }
}

/// What is missing between the runs of each timeline.
fn gaps(list: &WalList, size: SegmentSize) -> Vec<WalRange> {
    list.ranges
        .windows(2)
        .filter_map(|pair| match pair {
            [before, after] if before.timeline == after.timeline => {
                let last = SegmentNumber(after.first.0.saturating_sub(1));
                Some(wal_range(before.timeline, before.last.next(), last, size))
            }
            _ => None,
        })
        .collect()
}

/// Timeline histories; without the key they are unknown, and the timeline of each backup stands for itself.
fn histories(repository: &Repository, known: &KnownSystem, backups: &[&BackupInfo]) -> Result<Histories> {
    if repository.identity()?.encrypted && !repository.opening.has_identity() {
        log::warn!(
            "repository \"{}\": no key here, so what lies beyond a promotion is not shown",
            repository.name
        );
        let own = |info: &&BackupInfo| (info.timeline(), TimelineHistory::root(info.timeline()));
        return Ok(Histories {
            known: backups.iter().map(own).collect(),
            unreadable: Vec::new(),
        });
    }
    wal::read_histories(repository, known.system)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::repository::wal::Range;

    #[test]
    fn a_gap_lies_between_two_runs_of_one_timeline() {
        let range = |timeline, first, last| Range {
            timeline: TimelineId(timeline),
            first: SegmentNumber(first),
            last: SegmentNumber(last),
        };
        let list = WalList {
            ranges: vec![range(1, 1, 3), range(1, 6, 7), range(2, 9, 9)],
            ..WalList::default()
        };
        let found = gaps(&list, SegmentSize::DEFAULT);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].first, "000000010000000000000004");
        assert_eq!(found[0].last, "000000010000000000000005");
        assert_eq!(found[0].segments, 2);
    }
}
