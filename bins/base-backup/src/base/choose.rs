//! Chooses the type of a backup, and the backup that it leans on.

use std::time::Duration;

use common::postgres::{SegmentName, SegmentSize, TimelineHistory};
use common::repository::backup::BackupInfo;
use common::repository::{BackupType, Label, reach};
use common::time::UtcTime;
use common::units::display_duration;

/// A timer may come a little earlier than the last time: a full backup is due so much before its interval is over, as a part of it.
const EARLY_PART: u32 = 24;

/// The type that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// What is due.
    Auto,
    /// Everything.
    Full,
    /// What changed since the last full one.
    Diff,
    /// What changed since the last one.
    Incr,
}

/// The cluster as it is now.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// PostgreSQL's system identifier, as text.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub major: u32,
    /// The size of a page, in bytes.
    pub block_size: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// The timeline it is on, and those that led there.
    pub history: TimelineHistory,
    /// Segments that two histories claim, and since when: the stored one need not be this server's.
    pub disputed: Vec<(SegmentName, UtcTime)>,
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A full backup, and why, where something else was possible.
    Full(Option<String>),
    /// A backup of what changed since another one.
    Since(BackupType, Label),
}

/// Why a backup cannot be leaned on, if so.
fn unfit(backup: &BackupInfo, cluster: &Cluster) -> Option<String> {
    let label = backup.label;
    if !backup.good {
        return Some(format!("{label} has damaged pages"));
    }
    if backup.system_identifier != cluster.system_identifier {
        return Some(format!("{label} is of another cluster"));
    }
    if backup.major != cluster.major {
        let (then, now) = (backup.major, cluster.major);
        return Some(format!("{label} is of PostgreSQL {then}, and this is {now}"));
    }
    if backup.block_size != cluster.block_size {
        return Some(format!("{label} has pages of another size"));
    }
    // pg_checksums rewrites pages without WAL.
    if backup.data_checksums != cluster.data_checksums {
        let what = if cluster.data_checksums { "on" } else { "off" };
        return Some(format!("data checksums were switched {what} since {label}"));
    }
    if !reach::follows(backup, &cluster.history) {
        let timeline = backup.timeline;
        return Some(format!(
            "{label} was taken on timeline {timeline}, which this server's timeline {} left before the backup was over",
            cluster.history.timeline().0
        ));
    }
    cluster
        .disputed
        .iter()
        .find(|(segment, since)| may_part(segment, *since, backup, &cluster.history))
        .map(|(segment, _)| {
            format!(
                "another server wrote other WAL as {segment}, so the archive cannot tell what changed here since {label}"
            )
        })
}

/// Whether two histories may have parted between a backup and this server as it is: at a segment behind the backup's start, or at an
/// earlier one, if the backup was there before anybody knew of the other history and may belong to that.
fn may_part(segment: &SegmentName, since: UtcTime, backup: &BackupInfo, history: &TimelineHistory) -> bool {
    let Ok(size) = SegmentSize::new(backup.segment_size) else {
        return true;
    };
    let (Some(number), start) = (segment.number(size), backup.start_lsn.0 / size.bytes()) else {
        return true;
    };
    let end = history.switch_point(segment.timeline).map(|lsn| lsn.0 / size.bytes());
    let is_here = history.begin(segment.timeline).is_some() && end.is_none_or(|end| number.0 <= end);
    is_here && (number.0 >= start || backup.started <= since)
}

/// Chooses among `backups`, oldest first, which every repository has that decides. `usable` says why what a backup holds cannot be
/// known here, if so.
pub fn choose(
    asked: Asked,
    backups: &[BackupInfo],
    cluster: &Cluster,
    now: UtcTime,
    full_interval: Duration,
    usable: &dyn Fn(&BackupInfo) -> Result<(), String>,
) -> Choice {
    let wanted = match asked {
        Asked::Full => return Choice::Full(None),
        Asked::Diff => BackupType::Diff,
        Asked::Incr | Asked::Auto => BackupType::Incr,
    };
    let possible = |backup: &&BackupInfo| wanted == BackupType::Incr || backup.kind == BackupType::Full;
    let mut first_reason = None;
    let mut base = None;
    for backup in backups.iter().rev().filter(possible) {
        match unfit(backup, cluster).map_or_else(|| usable(backup), Err) {
            Ok(()) => {
                base = Some(backup);
                break;
            }
            Err(why) => {
                first_reason.get_or_insert(why);
            }
        }
    }
    let Some(base) = base else {
        let none = || "there is no earlier backup that can be read".to_owned();
        return Choice::Full(Some(first_reason.unwrap_or_else(none)));
    };
    if asked == Asked::Auto
        && let Some(why) = full_is_due(backups, cluster, now, full_interval)
    {
        return Choice::Full(Some(why));
    }
    Choice::Since(wanted, base.label)
}

fn full_is_due(backups: &[BackupInfo], cluster: &Cluster, now: UtcTime, interval: Duration) -> Option<String> {
    let full = |backup: &&BackupInfo| backup.kind == BackupType::Full && unfit(backup, cluster).is_none();
    let Some(last) = backups.iter().rev().find(full) else {
        return Some("there is no full backup of this cluster as it is now".to_owned());
    };
    let (label, age) = (last.label, now.since(last.started));
    if last.started > now {
        return Some(format!(
            "the last full backup, {label}, comes from the future: a clock is wrong"
        ));
    }
    if age >= interval.saturating_sub(interval / EARLY_PART) {
        let (age, interval) = (display_duration(age), display_duration(interval));
        return Some(format!(
            "the last full backup, {label}, is {age} old, and full_interval is {interval}"
        ));
    }
    None
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
