//! How far the archived WAL leads along a timeline's history, and so what a backup can be recovered to. Pure.
//!
//! Knows which file PostgreSQL would read for each position (`XLogFileReadAnyTLI`,
//! `src/backend/access/transam/xlogrecovery.c`): the newest timeline of the history that has the segment, and an older
//! one where the newer file is missing, even beyond the point where the history left it, unless the file before was
//! of a newer one. That case would replay WAL of a branch that was given up, so it counts as a gap here.

use std::collections::BTreeMap;

use crate::postgres::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};
use crate::repository::Label;
use crate::repository::backup::BackupInfo;
use crate::repository::wal::WalList;
use crate::time::UtcTime;

/// Segments by timeline, in unbroken ranges, sorted and apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wal(BTreeMap<TimelineId, Vec<(SegmentNumber, SegmentNumber)>>);

/// Segments of one timeline that are needed, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The timeline in the files' names.
    pub timeline: TimelineId,
    /// The first.
    pub first: SegmentNumber,
    /// The last.
    pub last: SegmentNumber,
}

/// The first segment that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The timeline whose file is needed.
    pub timeline: TimelineId,
    /// Its number.
    pub number: SegmentNumber,
    /// The last of the missing ones, if segments of the history follow.
    pub until: Option<SegmentNumber>,
    /// An older timeline has a file of this number, with WAL that this history gave up.
    pub branch: Option<TimelineId>,
}

/// What one backup reaches along one history: every position from `from_lsn` up to `to_lsn`, which is not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The backup it starts from.
    pub label: Label,
    /// The timeline that recovery follows.
    pub timeline: TimelineId,
    /// The earliest moment, by the server's clock.
    pub from_time: UtcTime,
    /// The earliest position.
    pub from_lsn: Lsn,
    /// Behind the last WAL that is there.
    pub to_lsn: Lsn,
    /// The last segment that is there without a gap, and the timeline in its name.
    pub last: (TimelineId, SegmentNumber),
    /// What is missing behind it, if WAL of this history follows a gap: then the end of WAL is not reached.
    pub missing: Option<Missing>,
}

/// What a walk along a history found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// What is there, in order.
    pub there: Vec<Stretch>,
    /// Where it ends too early; `None` if all that was asked for is there.
    pub missing: Option<Missing>,
}

impl Walk {
    /// The last segment that is there without a gap.
    pub fn last(&self) -> Option<SegmentNumber> {
        self.there.last().map(|stretch| stretch.last)
    }
}

impl Missing {
    /// The files that are missing, by name.
    pub fn names(&self, size: SegmentSize) -> String {
        let name = |number| SegmentName::new(self.timeline, number, size).to_string();
        match self.until {
            Some(until) if until > self.number => format!("{} to {}", name(self.number), name(until)),
            _ => name(self.number),
        }
    }
}

impl Wal {
    /// What several repositories hold together.
    pub fn union<'a>(lists: impl IntoIterator<Item = &'a WalList>) -> Self {
        let mut all: BTreeMap<TimelineId, Vec<(SegmentNumber, SegmentNumber)>> = BTreeMap::new();
        for range in lists.into_iter().flat_map(|list| &list.ranges) {
            all.entry(range.timeline).or_default().push((range.first, range.last));
        }
        for ranges in all.values_mut() {
            ranges.sort();
            ranges.dedup_by(|next, before| {
                let joins = next.0 <= before.1.next();
                if joins {
                    before.1 = before.1.max(next.1);
                }
                joins
            });
        }
        Self(all)
    }

    /// Timelines that have segments.
    pub fn timelines(&self) -> impl Iterator<Item = TimelineId> {
        self.0.keys().copied()
    }

    /// The range of `timeline` that holds `number`.
    fn range(&self, timeline: TimelineId, number: SegmentNumber) -> Option<(SegmentNumber, SegmentNumber)> {
        let ranges = self.0.get(&timeline)?;
        let at = ranges.partition_point(|range| range.1 < number);
        ranges.get(at).copied().filter(|range| range.0 <= number)
    }

    /// The first segment of `timeline` at or after `number`.
    fn first_from(&self, timeline: TimelineId, number: SegmentNumber) -> Option<SegmentNumber> {
        let ranges = self.0.get(&timeline)?;
        let at = ranges.partition_point(|range| range.1 < number);
        ranges.get(at).map(|range| range.0.max(number))
    }

    /// Walks from the segment of `from` along `history`, to the segment that holds `to`, or as far as it goes.
    ///
    /// Without `to`, `missing` tells of WAL of the history behind a gap, or of a branch that would be taken instead;
    /// that the WAL simply ends is not missing.
    pub fn walk(&self, history: &TimelineHistory, from: Lsn, to: Option<Lsn>, size: SegmentSize) -> Walk {
        let mut walk = Walk {
            there: Vec::new(),
            missing: None,
        };
        let mut number = SegmentNumber::containing(from, size);
        let last = to.map(|to| SegmentNumber::containing(to, size));
        while last.is_none_or(|last| number <= last) {
            let end = Lsn(number.next().start(size).0.saturating_sub(1));
            let needed_until = to.map_or(end, |to| to.min(end));
            let needed = history.timeline_at(needed_until);
            let Some(timeline) = self.serves(history, needed, number, size) else {
                let before = walk.there.last().map(|stretch| stretch.timeline);
                walk.missing = self.missing(history, (before, needed), number, to.is_some(), size);
                break;
            };
            match walk.there.last_mut() {
                Some(stretch) if stretch.timeline == timeline => stretch.last = number,
                _ => walk.there.push(Stretch {
                    timeline,
                    first: number,
                    last: number,
                }),
            }
            if number.0 == u64::MAX {
                break;
            }
            number = number.next();
        }
        walk
    }

    /// The newest timeline of the history, from `needed` on, that has this segment: a newer one begins with a copy.
    fn serves(
        &self,
        history: &TimelineHistory,
        needed: TimelineId,
        number: SegmentNumber,
        size: SegmentSize,
    ) -> Option<TimelineId> {
        let candidates = history.candidates(number, size);
        candidates
            .into_iter()
            .filter(|id| *id >= needed)
            .find(|id| self.range(*id, number).is_some())
    }

    fn missing(
        &self,
        history: &TimelineHistory,
        (before, needed): (Option<TimelineId>, TimelineId),
        number: SegmentNumber,
        required: bool,
        size: SegmentSize,
    ) -> Option<Missing> {
        // PostgreSQL never goes back to an older timeline than that of the file before.
        let tempting = |id: &TimelineId| *id < needed && before.is_none_or(|before| before <= *id);
        let older = history.candidates(number, size).into_iter().filter(tempting);
        let branch = older.into_iter().find(|id| self.range(*id, number).is_some());
        // What follows on the history: segments of a timeline up to the one in which it was left.
        let belongs = |id: TimelineId, found: SegmentNumber| {
            history
                .switch_point(id)
                .is_none_or(|left| found <= SegmentNumber::containing(left, size))
        };
        let timelines = history
            .ancestors()
            .iter()
            .map(|ancestor| ancestor.timeline)
            .chain([history.timeline()]);
        let after = timelines
            .filter(|id| *id >= needed)
            .filter_map(|id| self.first_from(id, number).filter(|found| belongs(id, *found)))
            .min();
        if !required && branch.is_none() && after.is_none() {
            return None;
        }
        let until = after.map(|after| SegmentNumber(after.0.saturating_sub(1)));
        Some(Missing {
            timeline: needed,
            number,
            until,
            branch,
        })
    }
}

/// The history of a timeline. Only the first needs no file; PostgreSQL refuses to follow another one without.
pub fn history(known: &BTreeMap<TimelineId, TimelineHistory>, id: TimelineId) -> Option<TimelineHistory> {
    let found = known.get(&id).cloned();
    found.or_else(|| (id == TimelineId(1)).then(|| TimelineHistory::root(id)))
}

/// Whether recovery from this backup can follow this history.
pub fn follows(backup: &BackupInfo, history: &TimelineHistory) -> bool {
    history.contains(backup.timeline(), backup.stop_lsn) && history.contains(backup.timeline(), backup.start_lsn)
}

/// What a backup whose history this is reaches along it, or what is missing for it to become consistent.
///
/// # Errors
/// What is missing.
pub fn window(
    backup: &BackupInfo,
    history: &TimelineHistory,
    wal: &Wal,
    size: SegmentSize,
) -> Result<Window, Box<Missing>> {
    let walk_to = |to| wal.walk(history, backup.start_lsn, to, size);
    let consistent = walk_to(Some(before(backup.stop_lsn)));
    if let Some(missing) = consistent.missing {
        return Err(Box::new(missing));
    }
    let all = walk_to(None);
    let end = all.last().map_or(Lsn(0), |last| last.next().start(size));
    // Where the next segment is there on the timeline that is left in it, that one leads up to the switch.
    let switches = history.ancestors().iter().map(|ancestor| ancestor.switch_point);
    let further = switches
        .filter(|switch| *switch > end)
        .filter(|switch| walk_to(Some(before(*switch))).missing.is_none());
    let to_lsn = further.max().unwrap_or(end).max(backup.stop_lsn);
    let at_end = walk_to(Some(before(to_lsn)));
    let first = (history.timeline(), SegmentNumber::containing(backup.start_lsn, size));
    Ok(Window {
        label: backup.label,
        timeline: history.timeline(),
        from_time: backup.stopped,
        from_lsn: backup.stop_lsn,
        to_lsn,
        last: at_end
            .there
            .last()
            .map_or(first, |stretch| (stretch.timeline, stretch.last)),
        missing: all.missing,
    })
}

/// The last byte before a position.
pub fn before(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::repository::wal::Range;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn wal(ranges: &[(u32, u64, u64)]) -> Wal {
        let one = |(timeline, first, last): &(u32, u64, u64)| Range {
            timeline: TimelineId(*timeline),
            first: SegmentNumber(*first),
            last: SegmentNumber(*last),
        };
        Wal::union(&[WalList {
            ranges: ranges.iter().map(one).collect(),
            ..WalList::default()
        }])
    }

    fn at(segment: u64, offset: u64) -> Lsn {
        Lsn(segment * SIZE.bytes() + offset)
    }

    /// Timeline 2 left timeline 1 in the middle of segment 5.
    fn second() -> TimelineHistory {
        TimelineHistory::parse(TimelineId(2), format!("1\t{}\tx\n", at(5, 0x100)).as_bytes()).unwrap()
    }

    fn stretches(walk: &Walk) -> Vec<(u32, u64, u64)> {
        walk.there
            .iter()
            .map(|one| (one.timeline.0, one.first.0, one.last.0))
            .collect()
    }

    #[test]
    fn what_two_repositories_hold_is_joined() {
        let joined = wal(&[(1, 4, 6), (1, 1, 3), (1, 5, 9), (1, 11, 12), (1, 11, 11)]);
        assert_eq!(
            joined,
            Wal([(
                TimelineId(1),
                vec![
                    (SegmentNumber(1), SegmentNumber(9)),
                    (SegmentNumber(11), SegmentNumber(12)),
                ]
            )]
            .into())
        );
    }

    #[test]
    fn a_walk_ends_where_the_wal_ends() {
        let walk = wal(&[(1, 2, 9)]).walk(&TimelineHistory::root(TimelineId(1)), at(3, 40), None, SIZE);
        assert_eq!((stretches(&walk), walk.missing), (vec![(1, 3, 9)], None));
        assert_eq!(walk.last(), Some(SegmentNumber(9)));
    }

    #[test]
    fn a_gap_before_the_end_is_missing_with_both_ends() {
        let walk = wal(&[(1, 2, 4), (1, 8, 9)]).walk(&TimelineHistory::root(TimelineId(1)), at(3, 0), None, SIZE);
        let missing = walk.missing.unwrap();
        assert_eq!((missing.number.0, missing.until), (5, Some(SegmentNumber(7))));
        assert_eq!(
            missing.names(SIZE),
            "000000010000000000000005 to 000000010000000000000007"
        );
    }

    #[test]
    fn a_gap_behind_what_is_asked_for_does_not_matter() {
        let history = TimelineHistory::root(TimelineId(1));
        let walk = wal(&[(1, 2, 4), (1, 8, 9)]).walk(&history, at(3, 0), Some(at(4, 100)), SIZE);
        assert_eq!((stretches(&walk), walk.missing), (vec![(1, 3, 4)], None));
        let walk = wal(&[(1, 2, 4), (1, 8, 9)]).walk(&history, at(3, 0), Some(at(5, 0)), SIZE);
        assert_eq!(walk.missing.unwrap().number, SegmentNumber(5));
    }

    #[test]
    fn the_newer_timeline_takes_over_in_the_segment_of_the_switch() {
        let walk = wal(&[(1, 2, 9), (2, 5, 7)]).walk(&second(), at(3, 0), None, SIZE);
        assert_eq!((stretches(&walk), walk.missing), (vec![(1, 3, 4), (2, 5, 7)], None));
    }

    #[test]
    fn before_the_switch_either_copy_of_its_segment_serves() {
        for ranges in [&[(1, 2, 5)][..], &[(1, 2, 4), (2, 5, 5)]] {
            let walk = wal(ranges).walk(&second(), at(3, 0), Some(at(5, 0x80)), SIZE);
            assert_eq!(walk.missing, None, "{ranges:?}");
        }
        let walk = wal(&[(1, 2, 5)]).walk(&second(), at(3, 0), Some(at(5, 0x180)), SIZE);
        assert_eq!(walk.missing.unwrap().branch, Some(TimelineId(1)));
    }

    #[test]
    fn a_branch_that_was_given_up_is_never_followed_silently() {
        // Timeline 1 went on after 2 had left it, and nothing of 2 has been archived yet.
        let walk = wal(&[(1, 2, 9)]).walk(&second(), at(3, 0), None, SIZE);
        let missing = walk.missing.unwrap();
        assert_eq!(
            (missing.timeline.0, missing.number.0, missing.branch),
            (2, 5, Some(TimelineId(1)))
        );
    }

    #[test]
    fn a_promotion_whose_wal_is_still_to_come_is_no_gap() {
        // The segment of the switch exists as .partial only.
        let walk = wal(&[(1, 2, 4)]).walk(&second(), at(3, 0), None, SIZE);
        assert_eq!((stretches(&walk), walk.missing), (vec![(1, 3, 4)], None));
    }

    #[test]
    fn a_missing_first_segment_of_a_timeline_is_a_gap() {
        let walk = wal(&[(1, 2, 4), (2, 6, 8)]).walk(&second(), at(3, 0), None, SIZE);
        let missing = walk.missing.unwrap();
        assert_eq!(
            (missing.timeline.0, missing.number.0, missing.until),
            (2, 5, Some(SegmentNumber(5)))
        );
    }

    #[test]
    fn nothing_at_all_is_missing_from_its_first_segment() {
        let walk = wal(&[]).walk(&TimelineHistory::root(TimelineId(1)), at(3, 0), Some(at(3, 1)), SIZE);
        assert_eq!((walk.last(), walk.missing.unwrap().number.0), (None, 3));
    }

    fn backup(timeline: u32, start: Lsn, stop: Lsn) -> BackupInfo {
        let text = format!(
            r#"{{"format":1,"label":"20261120T020000Z-full-3f9a1c","type":"full","cluster":"main","system_identifier":"7",
            "major":15,"server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,
            "started":"2026-11-20T02:00:00Z","stopped":"2026-11-20T02:01:00Z","finished":"2026-11-20T02:02:00Z",
            "timeline":{timeline},"start_lsn":"{start}","stop_lsn":"{stop}","wal":{{"first":"a","last":"b"}},
            "segment_size":{},"block_size":8192,"data_checksums":false,"tablespaces":[],"base":null,"references":[],
            "reused_from":null,"files":1,"size":1,"stored":1,"durations":{{}},"damaged_pages":0,"good":true,"objects":[],
            "signature":null}}"#,
            SIZE.bytes()
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_backup_without_its_own_wal_reaches_nothing_and_says_which_segment_is_missing() {
        let (backup, root) = (backup(1, at(2, 40), at(4, 8)), TimelineHistory::root(TimelineId(1)));
        for (ranges, missing) in [
            (&[(1, 3, 9)][..], 2),
            (&[(1, 2, 3), (1, 5, 9)], 4),
            (&[(1, 2, 2)], 3),
            (&[], 2),
        ] {
            let found = window(&backup, &root, &wal(ranges), SIZE).unwrap_err();
            assert_eq!(found.number.0, missing, "{ranges:?}");
        }
    }

    #[test]
    fn a_window_ends_exactly_where_a_walk_fails() {
        let (root, second) = (TimelineHistory::root(TimelineId(1)), second());
        let backup = backup(1, at(2, 40), at(3, 0));
        type Case<'a> = (&'a TimelineHistory, &'a [(u32, u64, u64)], Lsn, bool);
        let cases: [Case<'_>; 8] = [
            (&root, &[(1, 1, 9)], at(10, 0), false),
            (&root, &[(1, 1, 4), (1, 6, 9)], at(5, 0), true),
            // The backup stops at the end of a segment.
            (&root, &[(1, 2, 2)], at(3, 0), false),
            (&second, &[(1, 1, 5), (2, 5, 9)], at(10, 0), false),
            (&second, &[(1, 1, 4), (2, 5, 5), (2, 7, 9)], at(6, 0), true),
            (&second, &[(1, 1, 3), (2, 5, 9)], at(4, 0), true),
            // The old timeline's segment leads up to the switch, and what it holds behind that is given up.
            (&second, &[(1, 1, 9)], at(5, 0x100), true),
            (&second, &[(1, 1, 4)], at(5, 0), false),
        ];
        for (history, ranges, to, missing) in cases {
            let wal = wal(ranges);
            let found = window(&backup, history, &wal, SIZE).unwrap();
            assert_eq!((found.to_lsn, found.missing.is_some()), (to, missing), "{ranges:?}");
            let reached = |lsn| wal.walk(history, backup.start_lsn, Some(lsn), SIZE).missing.is_none();
            assert!(reached(before(to)) && !reached(to), "{ranges:?}");
        }
    }
}
