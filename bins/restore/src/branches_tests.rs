#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use super::*;
use crate::maps::{Ending, Lookup, Maps, Wanted};
use crate::plan::{Archive, Unusable, decide};
use crate::target::Request;
use common::postgres::SegmentSize;
use common::repository::reach::Wal;
use common::repository::wal::{Range, WalList};

const SIZE: SegmentSize = SegmentSize::DEFAULT;

fn at(segment: u64, offset: u64) -> Lsn {
    Lsn(segment * SIZE.bytes() + offset)
}

fn moment(text: &str) -> UtcTime {
    format!("2026-11-20T{text}:00Z").parse().unwrap()
}

/// Timeline, first and last segment, when the first (and the history) and the last were stored.
type Line = (u32, u64, u64, &'static str, &'static str);

/// Timelines with one backup in segment 2 of timeline 1, stopped at 02:00; `left`: for each history, what it left where.
fn archive(lines: &[Line], left: &[(u32, &[(u32, u64)])]) -> Archive {
    let range = |(timeline, first, last, ..): &Line| Range {
        timeline: TimelineId(*timeline),
        first: SegmentNumber(*first),
        last: SegmentNumber(*last),
    };
    let times = |(timeline, first, last, stored, until): &Line| {
        let times = StoredTimes {
            history: (*timeline > 1).then(|| moment(stored)),
            first: Some((SegmentNumber(*first), moment(stored))),
            last: Some((SegmentNumber(*last), moment(until))),
        };
        (TimelineId(*timeline), times)
    };
    let history = |(id, left): &(u32, &[(u32, u64)])| {
        let line = |(id, segment): &(u32, u64)| format!("{id}\t{}\tx\n", at(*segment, 0x100));
        let text: String = left.iter().map(line).collect();
        (
            TimelineId(*id),
            TimelineHistory::parse(TimelineId(*id), text.as_bytes()).unwrap(),
        )
    };
    Archive {
        backups: vec![backup()],
        wal: Wal::union(&[WalList {
            ranges: lines.iter().map(range).collect(),
            ..WalList::default()
        }]),
        histories: left.iter().map(history).collect(),
        segment_size: SIZE,
        stored: lines.iter().map(times).collect(),
        unusable: BTreeMap::new(),
        damaged: BTreeMap::new(),
        incomplete: false,
    }
}

fn backup() -> BackupInfo {
    let text = format!(
        r#"{{"format":1,"label":"20261120T020000Z-full-3f9a1c","type":"full","cluster":"main","system_identifier":"7",
        "major":15,"server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,
        "started":"2026-11-20T02:00:00Z","stopped":"2026-11-20T02:00:00Z","finished":"2026-11-20T02:02:00Z",
        "timeline":1,"start_lsn":"{}","stop_lsn":"{}","wal":{{"first":"a","last":"b"}},"segment_size":{},
        "block_size":8192,"data_checksums":false,"tablespaces":[],"base":null,"references":[],"reused_from":null,
        "files":1,"size":1,"stored":1,"durations":{{}},"damaged_pages":0,"good":true,"objects":[],"signature":null}}"#,
        at(2, 0x28),
        at(2, 0x138),
        SIZE.bytes()
    );
    serde_json::from_str(&text).unwrap()
}

/// The first and the last commit of each timeline.
#[derive(Default)]
struct Commits(BTreeMap<u32, (&'static str, &'static str)>);

/// Where the WAL of each timeline ends in its last segment.
struct Ends(BTreeMap<u32, Lsn>);

impl Maps for Ends {
    fn find(&self, _: Wanted<'_>, _: &Walk) -> Lookup {
        Lookup::Unknown("no map".into())
    }

    fn ending(&self, walk: &Walk) -> Ending {
        Ending {
            end: walk.there.last().and_then(|one| self.0.get(&one.timeline.0)).copied(),
            ..Ending::default()
        }
    }

    fn first_commit(&self, _: TimelineId, _: SegmentNumber, _: Lsn) -> Option<UtcTime> {
        None
    }
}

impl Maps for Commits {
    fn find(&self, _: Wanted<'_>, _: &Walk) -> Lookup {
        Lookup::Unknown("no map".into())
    }

    fn ending(&self, walk: &Walk) -> Ending {
        let last = walk.there.last().and_then(|one| self.0.get(&one.timeline.0));
        // Up to segment 4 nothing is younger than 09:00.
        let early = walk.there.last().is_some_and(|one| one.last < SegmentNumber(5));
        let last_commit = last.map(|(_, last)| moment(if early { "09:00" } else { last }));
        Ending {
            last_commit,
            unknown: last_commit.is_none().then(|| "no map".to_owned()),
            ..Ending::default()
        }
    }

    fn first_commit(&self, id: TimelineId, _: SegmentNumber, _: Lsn) -> Option<UtcTime> {
        self.0.get(&id.0).map(|(first, _)| moment(first))
    }
}

fn request(target: Target, timeline: Timeline) -> Request {
    Request {
        target,
        exclusive: false,
        timeline,
        action: None,
        backup: None,
        standby: false,
    }
}

fn decided(archive: &Archive, commits: &Commits, target: Target, timeline: Timeline) -> Result<crate::plan::Choice> {
    decide(&request(target, timeline), archive, commits, moment("22:00"))
}

/// A copy was restored at 10:00 and archives on timeline 2; its production went on with timeline 1 until 12:00.
fn taken_over() -> Archive {
    archive(
        &[(1, 1, 20, "01:00", "12:00"), (2, 5, 6, "10:00", "10:01")],
        &[(2, &[(1, 5)])],
    )
}

#[test]
fn a_branch_that_was_still_written_is_never_left_by_default() {
    let refused = |commits: &Commits| {
        let error = decided(&taken_over(), commits, Target::End, Timeline::Latest).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        let hint = error.nearest_hint().unwrap().to_owned();
        assert!(
            hint.contains("--target-timeline 1 (WAL up to 000000010000000000000014"),
            "{hint}"
        );
        assert!(hint.contains("--target-timeline 2 ("), "{hint}");
    };
    refused(&Commits::default());
    // Either clock is enough.
    refused(&Commits(BTreeMap::from([
        (1, ("01:00", "09:00")),
        (2, ("10:00", "10:01")),
    ])));
    let mut copied = taken_over();
    copied.stored.clear();
    let error = |commits| decided(&copied, &commits, Target::End, Timeline::Latest).is_err();
    assert!(error(Commits(BTreeMap::from([
        (1, ("01:00", "12:00")),
        (2, ("10:00", "10:01"))
    ]))));
    assert!(!error(Commits(BTreeMap::from([
        (1, ("01:00", "09:00")),
        (2, ("10:00", "10:01"))
    ]))));
}

#[test]
fn a_named_timeline_is_followed_and_the_other_one_is_noted() {
    for (own, other) in [(1, 2), (2, 1)] {
        let timeline = Timeline::Number(TimelineId(own));
        let choice = decided(&taken_over(), &Commits::default(), Target::End, timeline).unwrap();
        assert_eq!(choice.timeline, TimelineId(own));
        assert_eq!(choice.branches.len(), 1);
        assert_eq!(
            (choice.branches[0].timeline, choice.branches[0].fork_lsn),
            (other, at(5, 0x100))
        );
        let note = format!("timeline {other} has WAL beyond {}", at(5, 0x100));
        assert!(choice.branches[0].note.contains(&note), "{:?}", choice.branches);
    }
}

#[test]
fn a_branch_that_had_ended_before_is_only_noted() {
    // Back to an earlier moment, and a failover whose old primary had archived more than the new one knew.
    for until in ["09:59", "10:00"] {
        let archive = archive(
            &[(1, 1, 20, "01:00", until), (2, 5, 30, "10:00", "12:00")],
            &[(2, &[(1, 5)])],
        );
        let commits = Commits(BTreeMap::from([(1, ("01:00", "09:58")), (2, ("10:00", "12:00"))]));
        let choice = decided(&archive, &commits, Target::End, Timeline::Latest).unwrap();
        assert_eq!((choice.timeline, choice.branches.len()), (TimelineId(2), 1));
        assert!(!choice.branches[0].alive);
    }
    // A failover that left nothing behind says nothing.
    let clean = archive(
        &[(1, 1, 4, "01:00", "09:59"), (2, 5, 30, "10:00", "12:00")],
        &[(2, &[(1, 5)])],
    );
    let choice = decided(&clean, &Commits::default(), Target::End, Timeline::Latest).unwrap();
    assert!(
        choice.branches.is_empty() && choice.notes.is_empty(),
        "{:?}",
        choice.notes
    );
}

#[test]
fn a_branch_whose_wal_ends_at_the_fork_is_none() {
    // Timeline 1 was shut down and its server followed timeline 2; leading again, it archived its last segment at 12:00.
    let archive = archive(
        &[
            (1, 1, 5, "01:00", "12:00"),
            (2, 5, 30, "10:00", "11:59"),
            (3, 30, 31, "12:00", "13:00"),
        ],
        &[(2, &[(1, 5)]), (3, &[(1, 5), (2, 30)])],
    );
    let decided = |end| {
        let ends = Ends(BTreeMap::from([(1, end), (2, at(30, 0x100))]));
        decide(
            &request(Target::End, Timeline::Latest),
            &archive,
            &ends,
            moment("22:00"),
        )
    };
    let choice = decided(at(5, 0x100)).unwrap();
    assert_eq!((choice.timeline, choice.branches.len()), (TimelineId(3), 0));
    assert_eq!(decided(at(5, 0x108)).unwrap().branches.len(), 1);
}

#[test]
fn what_a_crash_left_is_noted_however_late_it_was_stored() {
    // The primary lost power at 09:58; it was back at 10:05, and its last one or two segments were stored before it was rewound.
    let left = |last, stored| {
        archive(
            &[(1, 1, last, "01:00", stored), (2, 5, 30, "10:00", "12:00")],
            &[(2, &[(1, 5)])],
        )
    };
    let commits = |last| Commits(BTreeMap::from([(1, ("01:00", last)), (2, ("10:00", "12:00"))]));
    for last in [5, 6] {
        let choice = decided(&left(last, "10:05"), &commits("09:58"), Target::End, Timeline::Latest).unwrap();
        assert_eq!((choice.timeline, choice.branches.len()), (TimelineId(2), 1));
        assert!(!choice.branches[0].alive);
    }
    let refused = |archive: &Archive, commits: &Commits| {
        decided(archive, commits, Target::End, Timeline::Latest)
            .unwrap_err()
            .kind()
            == Kind::Refused
    };
    // It went on to commit, or to write, or nobody knows.
    assert!(refused(&left(6, "10:05"), &commits("10:01")));
    assert!(refused(&left(7, "10:05"), &commits("09:58")));
    assert!(refused(&left(6, "10:05"), &Commits::default()));
}

#[test]
fn a_short_branch_beside_the_one_that_goes_on_is_only_noted() {
    // The copy's timeline 2 ended long before production failed over from 1 to 3.
    let trunk = archive(
        &[
            (1, 1, 20, "01:00", "12:59"),
            (2, 5, 6, "10:00", "10:01"),
            (3, 20, 25, "13:00", "14:00"),
        ],
        &[(2, &[(1, 5)]), (3, &[(1, 20)])],
    );
    let choice = decided(&trunk, &Commits::default(), Target::End, Timeline::Latest).unwrap();
    let noted: Vec<u32> = choice.branches.iter().map(|branch| branch.timeline).collect();
    assert_eq!((choice.timeline, noted), (TimelineId(3), vec![1, 2]));
    // The other way round: production is on 2, and somebody recovered timeline 1 to 3.
    let side = archive(
        &[
            (1, 1, 20, "01:00", "09:59"),
            (2, 5, 30, "10:00", "14:00"),
            (3, 20, 21, "13:00", "13:01"),
        ],
        &[(2, &[(1, 5)]), (3, &[(1, 20)])],
    );
    assert!(decided(&side, &Commits::default(), Target::End, Timeline::Latest).is_err());
}

#[test]
fn what_lies_before_the_fork_is_the_same_on_either_branch() {
    let commits = Commits(BTreeMap::from([(1, ("01:00", "12:00")), (2, ("10:00", "10:01"))]));
    let early = |target| decided(&taken_over(), &commits, target, Timeline::Latest).unwrap();
    assert!(early(Target::Lsn(at(4, 0))).branches.is_empty());
    assert!(early(Target::Immediate).branches.is_empty());
    let late = |target| {
        decided(&taken_over(), &commits, target, Timeline::Latest)
            .unwrap_err()
            .kind()
    };
    assert_eq!(late(Target::Lsn(at(6, 0))), Kind::Refused);
    assert_eq!(late(Target::Xid(740)), Kind::Refused);
    let time = Target::Time {
        time: moment("10:00"),
        written: "10:00".into(),
    };
    assert_eq!(late(time), Kind::Refused);
}

#[test]
fn a_time_on_a_branch_that_was_given_up_shows_the_fork() {
    // Recovered at 10:00 to a moment in segment 5; 09:30 lies on what was given up.
    let archive = archive(
        &[(1, 1, 20, "01:00", "09:59"), (2, 5, 30, "10:00", "12:00")],
        &[(2, &[(1, 5)])],
    );
    let target = Target::Time {
        time: moment("09:30"),
        written: "09:30".into(),
    };
    let choice = decided(&archive, &Commits::default(), target, Timeline::Latest).unwrap();
    assert_eq!(choice.timeline, TimelineId(2));
    assert!(
        choice.branches[0].note.contains("--target-timeline 1"),
        "{:?}",
        choice.branches
    );
}

#[test]
fn a_history_that_cannot_be_read_gives_up_its_own_branch_only() {
    let mut archive = archive(&[(1, 1, 20, "01:00", "12:00")], &[]);
    let unusable = Unusable {
        object: "wal/7/history/00000009.history.zst".into(),
        why: "it is damaged".into(),
    };
    archive.unusable.insert(TimelineId(9), unusable);
    let with = |timeline| decided(&archive, &Commits::default(), Target::End, timeline);
    // It may be the newest.
    let error = with(Timeline::Latest).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    let hint = error.nearest_hint().unwrap();
    assert!(
        hint.contains("--target-timeline 1 ") && hint.contains("00000009.history.zst"),
        "{hint}"
    );
    for timeline in [Timeline::Number(TimelineId(1)), Timeline::Current] {
        let choice = with(timeline).unwrap();
        assert!(
            choice.notes.iter().any(|note| note.contains("00000009.history.zst")),
            "{:?}",
            choice.notes
        );
    }
    let error = with(Timeline::Number(TimelineId(9))).unwrap_err();
    assert!(
        error.nearest_hint().unwrap().contains("00000009.history.zst"),
        "{error:?}"
    );
}

#[test]
fn a_lower_history_that_cannot_be_read_is_only_noted() {
    let mut archive = archive(
        &[(1, 1, 4, "01:00", "09:59"), (3, 5, 30, "10:00", "12:00")],
        &[(3, &[(1, 5)])],
    );
    let unusable = Unusable {
        object: "00000002.history.zst".into(),
        why: "it is damaged".into(),
    };
    archive.unusable.insert(TimelineId(2), unusable);
    let choice = decided(&archive, &Commits::default(), Target::End, Timeline::Latest).unwrap();
    assert_eq!(choice.timeline, TimelineId(3));
    assert!(
        choice.notes.iter().any(|note| note.contains("00000002.history.zst")),
        "{:?}",
        choice.notes
    );
}

#[test]
fn a_damaged_document_is_passed_over_with_a_word() {
    let mut archive = archive(&[(1, 1, 20, "01:00", "12:00")], &[]);
    let newer = "20261120T030000Z-full-aaaaaa".parse().unwrap();
    archive.damaged.insert(newer, "it is damaged".into());
    let mut wanted = request(Target::End, Timeline::Latest);
    let go = |wanted: &Request, archive: &Archive| decide(wanted, archive, &Commits::default(), moment("22:00"));
    let choice = go(&wanted, &archive).unwrap();
    assert!(
        choice.notes.iter().any(|note| note.contains("aaaaaa")),
        "{:?}",
        choice.notes
    );
    wanted.backup = Some(newer);
    assert_eq!(go(&wanted, &archive).unwrap_err().kind(), Kind::Corrupt);
    wanted.backup = None;
    archive.backups.clear();
    assert_eq!(go(&wanted, &archive).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn histories_part_where_they_differ() {
    let history = |id: u32, left: &[(u32, u64)]| {
        let line = |(id, segment): &(u32, u64)| format!("{id}\t{}\tx\n", at(*segment, 0));
        let text: String = left.iter().map(line).collect();
        TimelineHistory::parse(TimelineId(id), text.as_bytes()).unwrap()
    };
    let id = TimelineId;
    let root = TimelineHistory::root(id(1));
    let (two, three) = (history(2, &[(1, 5)]), history(3, &[(1, 5)]));
    let four = history(4, &[(1, 5), (2, 9)]);
    assert_eq!(fork(&two, &root), Some((at(5, 0), Some(id(2)))));
    assert_eq!(fork(&root, &two), Some((at(5, 0), None)));
    assert_eq!(fork(&three, &two), Some((at(5, 0), Some(id(3)))));
    assert_eq!(fork(&four, &three), Some((at(5, 0), Some(id(2)))));
    assert_eq!(fork(&four, &two), Some((at(9, 0), Some(id(4)))));
    assert_eq!(fork(&four, &history(5, &[(1, 3)])), Some((at(3, 0), Some(id(2)))));
    assert_eq!(fork(&two, &two), None);
}
