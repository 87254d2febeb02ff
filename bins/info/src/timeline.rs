//! What can be recovered along a timeline, as a line of characters. Pure.
//!
//! A window ends with a segment of WAL, not with a time. Its end is taken to be the moment when that segment was stored,
//! brought into what the backups around it prove: WAL before a backup is no younger than that backup, whenever it was copied.

use std::collections::{BTreeMap, BTreeSet};

use common::postgres::Lsn;
use common::time::UtcTime;
use serde::Serialize;

use crate::report::{BackupReport, SystemReport, WindowReport};

/// Characters of a line.
pub const WIDTH: usize = 60;

/// What recovery along one timeline reaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// PostgreSQL's system identifier.
    pub system_identifier: String,
    /// The timeline that recovery follows.
    pub timeline: u32,
    /// The oldest moment that can be recovered.
    pub from: UtcTime,
    /// The newest, as far as is known.
    pub to: UtcTime,
    /// At most 60 characters: `F`, `D` and `I` for a backup, `=` for what can be recovered, `.` for what cannot.
    pub line: String,
    /// What cannot be recovered between the two ends. A short one may hide behind the letters of the line.
    pub gaps: Vec<Gap>,
}

/// Moments that cannot be recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Behind this moment.
    pub from: UtcTime,
    /// Before this one.
    pub to: UtcTime,
}

/// A row for each timeline that good backups reach.
pub fn rows(systems: &[SystemReport], backups: &[BackupReport]) -> Vec<Row> {
    let mut rows = Vec::new();
    for system in systems {
        let own: BTreeMap<&str, &BackupReport> = backups
            .iter()
            .filter(|backup| backup.system_identifier == system.system_identifier)
            .map(|backup| (backup.label.as_str(), backup))
            .collect();
        let timelines: BTreeSet<u32> = system.windows.iter().map(|window| window.timeline).collect();
        rows.extend(timelines.into_iter().filter_map(|timeline| {
            let windows = system.windows.iter().filter(|window| window.timeline == timeline);
            row(system, timeline, &reaches(windows, &own))
        }));
    }
    rows
}

/// A backup and how far it leads on one timeline.
struct Reach<'a> {
    backup: &'a BackupReport,
    start_lsn: Option<Lsn>,
    stop_lsn: Option<Lsn>,
    to_lsn: Option<Lsn>,
    last_stored: Option<UtcTime>,
}

fn reaches<'a>(
    windows: impl Iterator<Item = &'a WindowReport>,
    backups: &BTreeMap<&str, &'a BackupReport>,
) -> Vec<Reach<'a>> {
    let mut found: Vec<Reach<'a>> = windows
        .filter_map(|window| {
            let backup = backups.get(window.label.as_str())?;
            Some(Reach {
                backup,
                start_lsn: backup.start_lsn.parse().ok(),
                stop_lsn: backup.stop_lsn.parse().ok(),
                to_lsn: window.to_lsn.parse().ok(),
                last_stored: window.last_stored,
            })
        })
        .collect();
    found.sort_by_key(|reach| reach.backup.stopped);
    found
}

/// The newest moment that a backup leads to, given the others of its timeline.
fn end(reach: &Reach<'_>, others: &[Reach<'_>]) -> UtcTime {
    let behind = |other: &&Reach<'_>| other.start_lsn.zip(reach.to_lsn).is_some_and(|(start, to)| start >= to);
    let within = |other: &&Reach<'_>| other.stop_lsn.zip(reach.to_lsn).is_some_and(|(stop, to)| stop <= to);
    let latest = others.iter().filter(behind).map(|other| other.backup.started).min();
    let earliest = others.iter().filter(within).map(|other| other.backup.stopped).max();
    let own = reach.backup.stopped;
    let stored = reach.last_stored.unwrap_or(own);
    let bounded = latest.map_or(stored, |latest| stored.min(latest));
    bounded.max(earliest.unwrap_or(own)).max(own)
}

fn row(system: &SystemReport, timeline: u32, reaches: &[Reach<'_>]) -> Option<Row> {
    let good = || reaches.iter().filter(|reach| reach.backup.good);
    let from = good().next()?.backup.stopped;
    let mut to = from;
    let mut gaps = Vec::new();
    for reach in good() {
        if reach.backup.stopped > to {
            gaps.push(Gap {
                from: to,
                to: reach.backup.stopped,
            });
        }
        to = to.max(end(reach, reaches));
    }
    let backups: Vec<&BackupReport> = good().map(|reach| reach.backup).collect();
    Some(Row {
        system_identifier: system.system_identifier.clone(),
        timeline,
        from,
        to,
        line: line((from, to), &gaps, &backups),
        gaps,
    })
}

fn line((from, to): (UtcTime, UtcTime), gaps: &[Gap], backups: &[&BackupReport]) -> String {
    let span = to.since(from).as_secs_f64();
    let last = if span > 0.0 { WIDTH - 1 } else { 0 };
    let place = |time: UtcTime| {
        let part = time.since(from).as_secs_f64() / span.max(f64::MIN_POSITIVE);
        ((part * last as f64).round() as usize).min(last)
    };
    let mut line = vec!['='; last + 1];
    for gap in gaps {
        for one in line.iter_mut().take(place(gap.to) + 1).skip(place(gap.from)) {
            *one = '.';
        }
    }
    // Of several backups in one place the one that needs the fewest others is shown.
    for kind in ["incr", "diff", "full"] {
        for backup in backups.iter().filter(|backup| backup.kind == kind) {
            let letter = kind.chars().next().unwrap_or('?').to_ascii_uppercase();
            if let Some(one) = line.get_mut(place(backup.stopped)) {
                *one = letter;
            }
        }
    }
    line.into_iter().collect()
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
