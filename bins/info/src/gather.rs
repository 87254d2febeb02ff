//! Reads what the report says. A repository that cannot be read is part of the report, not the end of it.

use std::collections::BTreeMap;
use std::path::Path;

use common::error::{Result, chain};
use common::postgres::{SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};
use common::repository::backup::BackupInfo;
use common::repository::catalog::{self, Catalog};
use common::repository::events::{self, KnownSystem};
use common::repository::wal::{self, WalList};
use common::repository::{Repository, windows};

use crate::report::{
    BackupReport, Report, RepositoryReport, SystemReport, Unreadable, Unrecoverable, WalRange, WindowReport,
};

/// Reads every repository.
pub fn report(cluster: &str, repositories: &[Repository], cache: &Path) -> Report {
    let one = |repository: &Repository| match read(repository, cache) {
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

fn read(repository: &Repository, cache: &Path) -> Result<RepositoryReport> {
    let identity = repository.identity()?;
    let catalog = catalog::read(repository, Some(cache))?;
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
        backups: catalog.backups.iter().map(backup).collect(),
        unfinished: catalog.unfinished.iter().map(ToString::to_string).collect(),
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

fn backup(info: &BackupInfo) -> BackupReport {
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
        good: info.good,
        damaged_pages: info.damaged_pages,
        references: info.references.iter().map(ToString::to_string).collect(),
        note: info.note.clone(),
    }
}

fn system(repository: &Repository, known: &KnownSystem, catalog: &Catalog) -> Result<SystemReport> {
    let size = SegmentSize::new(known.segment_size)?;
    let list = wal::list(repository, known.system, size)?;
    let histories = timelines(repository, known)?;
    let segment = |timeline, number| SegmentName::new(timeline, number, size).to_string();
    let mut found = Vec::new();
    let mut unrecoverable = Vec::new();
    let identifier = known.system.to_string();
    for info in catalog
        .backups
        .iter()
        .filter(|info| info.system_identifier == identifier)
    {
        match windows::windows(info, &list, &histories)? {
            Ok(reached) => found.extend(reached.into_iter().map(|window| WindowReport {
                label: window.label.to_string(),
                timeline: window.timeline.0,
                from_time: window.from_time,
                from_lsn: window.from_lsn.to_string(),
                to_lsn: window.to_lsn.to_string(),
                last_segment: segment(window.timeline, window.last),
            })),
            Err(gap) => unrecoverable.push(Unrecoverable {
                label: gap.label.to_string(),
                missing: segment(gap.timeline, gap.missing),
            }),
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
        foreign: list.foreign,
    })
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

/// Timeline histories; without the key they are unknown, and each timeline stands for itself.
fn timelines(repository: &Repository, known: &KnownSystem) -> Result<BTreeMap<TimelineId, TimelineHistory>> {
    if repository.identity()?.encrypted && !repository.opening.has_identity() {
        log::warn!(
            "repository \"{}\": no key here, so what lies beyond a promotion is not shown",
            repository.name
        );
        return Ok(BTreeMap::new());
    }
    wal::histories(repository, known.system)?
        .into_iter()
        .map(|(timeline, content)| Ok((timeline, TimelineHistory::parse(timeline, &content)?)))
        .collect()
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
