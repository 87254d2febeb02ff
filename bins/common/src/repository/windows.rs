//! The recoverable windows: which moments each backup and the WAL behind it can be recovered to. Pure.
//!
//! A window begins where its backup is consistent and ends with the last segment that follows without a gap. Where a
//! timeline was left, the segment that holds the switch point is read from the new timeline, as PostgreSQL does
//! (`xlogrecovery.c`, `XLogFileReadAnyTLI`, 13 to 18).

use std::collections::BTreeMap;

use crate::error::Result;
use crate::postgres::{Lsn, SegmentNumber, TimelineHistory, TimelineId};
use crate::repository::Label;
use crate::repository::backup::BackupInfo;
use crate::repository::wal::WalList;
use crate::time::UtcTime;

/// What one backup reaches on one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The backup it starts from.
    pub label: Label,
    /// The timeline recovery ends on.
    pub timeline: TimelineId,
    /// The earliest moment, by the server's clock.
    pub from_time: UtcTime,
    /// The earliest position.
    pub from_lsn: Lsn,
    /// The position behind the last segment that is there without a gap.
    pub to_lsn: Lsn,
    /// The last segment that is there without a gap.
    pub last: SegmentNumber,
}

/// Why a backup reaches nothing at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    /// The backup.
    pub label: Label,
    /// The first segment that is missing between its start and its stop.
    pub missing: SegmentNumber,
    /// Its timeline.
    pub timeline: TimelineId,
}

/// Every window of `backup`, its own timeline first, or why there is none.
///
/// # Errors
/// `Corrupt` if the document's segment size is none that PostgreSQL has.
pub fn windows(
    backup: &BackupInfo,
    wal: &WalList,
    histories: &BTreeMap<TimelineId, TimelineHistory>,
) -> Result<std::result::Result<Vec<Window>, Unreachable>> {
    let size = backup.wal_segment_size()?;
    let own = backup.timeline();
    let first = SegmentNumber::containing(backup.start_lsn, size);
    let stop = SegmentNumber::ending_at(backup.stop_lsn, size);
    let reached = wal.reaches(own, first);
    let Some(last) = reached.filter(|last| *last >= stop) else {
        let missing = reached.map_or(first, SegmentNumber::next);
        return Ok(Err(Unreachable {
            label: backup.label,
            missing,
            timeline: own,
        }));
    };
    let window = |timeline, last: SegmentNumber| Window {
        label: backup.label,
        timeline,
        from_time: backup.stopped,
        from_lsn: backup.stop_lsn,
        to_lsn: last.next().start(size),
        last,
    };
    let mut found = vec![window(own, last)];
    for (timeline, history) in histories {
        if *timeline == own || !history.contains(own, backup.stop_lsn) {
            continue;
        }
        // Walk from the backup's timeline to this one, a leg for each timeline between.
        let legs = history
            .ancestors()
            .iter()
            .skip_while(|ancestor| ancestor.timeline != own);
        let mut at = first;
        let mut whole = true;
        for leg in legs {
            let switch = SegmentNumber::containing(leg.switch_point, size);
            if switch > at {
                whole = whole && wal.covers(leg.timeline, at, SegmentNumber(switch.0.saturating_sub(1)));
            }
            at = at.max(switch);
        }
        if let Some(last) = wal.reaches(*timeline, at).filter(|_| whole) {
            found.push(window(*timeline, last));
        }
    }
    Ok(Ok(found))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::wal::Range;

    const SEGMENT: u64 = 16 << 20;

    fn backup(timeline: u32, start: u64, stop: u64) -> BackupInfo {
        let text = format!(
            r#"{{"format":1,"label":"20261120T020000Z-full-3f9a1c","type":"full","cluster":"main","system_identifier":"7",
            "major":15,"server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,
            "started":"2026-11-20T02:00:00Z","stopped":"2026-11-20T02:01:00Z","finished":"2026-11-20T02:02:00Z",
            "timeline":{timeline},"start_lsn":"{}","stop_lsn":"{}","wal":{{"first":"a","last":"b"}},"segment_size":{SEGMENT},
            "block_size":8192,"data_checksums":false,"tablespaces":[],"base":null,"references":[],"reused_from":null,
            "files":1,"size":1,"stored":1,"durations":{{}},"damaged_pages":0,"good":true,"objects":[],"signature":null}}"#,
            Lsn(start),
            Lsn(stop)
        );
        serde_json::from_str(&text).unwrap()
    }

    fn wal(ranges: &[(u32, u64, u64)]) -> WalList {
        let range = |(timeline, first, last): &(u32, u64, u64)| Range {
            timeline: TimelineId(*timeline),
            first: SegmentNumber(*first),
            last: SegmentNumber(*last),
        };
        WalList {
            ranges: ranges.iter().map(range).collect(),
            ..WalList::default()
        }
    }

    fn histories(texts: &[(u32, &str)]) -> BTreeMap<TimelineId, TimelineHistory> {
        let parse = |(timeline, text): &(u32, &str)| {
            let timeline = TimelineId(*timeline);
            (timeline, TimelineHistory::parse(timeline, text.as_bytes()).unwrap())
        };
        texts.iter().map(parse).collect()
    }

    fn reached(
        backup: &BackupInfo,
        wal: &WalList,
        histories: &BTreeMap<TimelineId, TimelineHistory>,
    ) -> Vec<(u32, u64)> {
        match windows(backup, wal, histories).unwrap() {
            Ok(found) => found.iter().map(|window| (window.timeline.0, window.last.0)).collect(),
            Err(_) => Vec::new(),
        }
    }

    #[test]
    fn a_window_ends_at_the_first_gap() {
        let backup = backup(1, 2 * SEGMENT + 40, 3 * SEGMENT);
        let none = BTreeMap::new();
        assert_eq!(reached(&backup, &wal(&[(1, 1, 9)]), &none), [(1, 9)]);
        assert_eq!(reached(&backup, &wal(&[(1, 1, 4), (1, 6, 9)]), &none), [(1, 4)]);
        assert_eq!(
            reached(&backup, &wal(&[(1, 2, 2)]), &none),
            [(1, 2)],
            "the stop is at the segment's end"
        );
    }

    #[test]
    fn a_backup_without_its_own_wal_reaches_nothing_and_says_which_segment_is_missing() {
        let backup = backup(1, 2 * SEGMENT + 40, 4 * SEGMENT + 8);
        for (ranges, missing) in [
            (&[(1, 3, 9)][..], 2),
            (&[(1, 2, 3), (1, 5, 9)], 4),
            (&[(1, 2, 2)], 3),
            (&[], 2),
        ] {
            let found = windows(&backup, &wal(ranges), &BTreeMap::new()).unwrap().unwrap_err();
            assert_eq!(found.missing.0, missing, "{ranges:?}");
        }
    }

    #[test]
    fn later_timelines_are_reached_through_their_switch_points() {
        let backup = backup(1, 2 * SEGMENT + 40, 3 * SEGMENT);
        // Timeline 2 left 1 in segment 5; timeline 3 left 2 in segment 7; timeline 4 left 1 before the backup.
        let histories = histories(&[
            (2, "1\t0/5000100\treason\n"),
            (3, "1\t0/5000100\treason\n2\t0/7000100\treason\n"),
            (4, "1\t0/2000010\treason\n"),
        ]);
        let all = wal(&[(1, 1, 5), (2, 5, 9), (3, 7, 8), (4, 2, 9)]);
        assert_eq!(reached(&backup, &all, &histories), [(1, 5), (2, 9), (3, 8)]);
        let gap = wal(&[(1, 1, 4), (2, 5, 5), (3, 7, 8)]);
        assert_eq!(reached(&backup, &gap, &histories), [(1, 4), (2, 5)]);
        let early = wal(&[(1, 1, 3), (2, 5, 9)]);
        assert_eq!(reached(&backup, &early, &histories), [(1, 3)]);
    }
}
