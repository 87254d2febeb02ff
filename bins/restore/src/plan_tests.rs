#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use common::repository::Label;
use common::repository::wal::{Range, WalList};

use crate::maps::Ending;
use crate::refusal::windows;

const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// Three timelines. 2 left 1 in segment 5 (an operator went back to 05:00), 3 left 2 in segment 11.
///
/// | backup | timeline | segment | stopped |
/// |---|---|---|---|
/// | a | 1 | 2 | 02:00 |
/// | b | 1 | 8 | 08:00, on the branch that was given up |
/// | c | 2 | 9 | 13:00 |
/// | d | 3 | 14 | 16:00 |
fn archive() -> Archive {
    Archive {
        backups: vec![
            backup('a', 1, 2, "02"),
            backup('b', 1, 8, "08"),
            backup('c', 2, 9, "13"),
            backup('d', 3, 14, "16"),
        ],
        wal: wal(&[(1, 1, 20), (2, 5, 15), (3, 11, 18)]),
        histories: [(2, vec![(1, 5)]), (3, vec![(1, 5), (2, 11)])]
            .into_iter()
            .map(history_of)
            .collect(),
        segment_size: SIZE,
        stored: BTreeMap::new(),
        unusable: BTreeMap::new(),
        damaged: BTreeMap::new(),
        incomplete: false,
    }
}

fn history_of((id, switches): (u32, Vec<(u32, u64)>)) -> (TimelineId, TimelineHistory) {
    let lines: Vec<String> = switches
        .iter()
        .map(|(left, segment)| format!("{left}\t{}\tx\n", at(*segment, 0x100)))
        .collect();
    (
        TimelineId(id),
        TimelineHistory::parse(TimelineId(id), lines.concat().as_bytes()).unwrap(),
    )
}

fn at(segment: u64, offset: u64) -> Lsn {
    Lsn(segment * SIZE.bytes() + offset)
}

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

fn label(letter: char) -> Label {
    format!("20261120T000000Z-full-{}", letter.to_string().repeat(6))
        .parse()
        .unwrap()
}

/// Starts at 0x28 and stops at 0x138 of `segment`.
fn backup(letter: char, timeline: u32, segment: u64, hour: &str) -> BackupInfo {
    let text = format!(
        r#"{{"format":1,"label":"{}","type":"full","cluster":"main","system_identifier":"7","major":15,
        "server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,
        "started":"2026-11-20T00:00:00Z","stopped":"2026-11-20T{hour}:00:00Z","finished":"2026-11-20T{hour}:01:00Z",
        "timeline":{timeline},"start_lsn":"{}","stop_lsn":"{}","wal":{{"first":"x","last":"y"}},"segment_size":{},
        "block_size":8192,"data_checksums":true,"tablespaces":[],"base":null,"references":[],"reused_from":null,
        "files":1,"size":1,"stored":1,"durations":{{}},"damaged_pages":0,"good":true,"objects":[],"signature":null}}"#,
        label(letter),
        at(segment, 0x28),
        at(segment, 0x138),
        SIZE.bytes(),
    );
    serde_json::from_str(&text).unwrap()
}

fn moment(text: &str) -> UtcTime {
    format!("2026-11-20T{text}:00Z").parse().unwrap()
}

fn time(text: &str) -> Target {
    Target::Time {
        time: moment(text),
        written: format!("2026-11-20T{text}:00Z"),
    }
}

fn request(target: Target) -> Request {
    Request {
        target,
        exclusive: false,
        timeline: Timeline::Latest,
        action: None,
        backup: None,
        standby: false,
    }
}

fn now() -> UtcTime {
    moment("22:00")
}

/// Where no map can be read.
struct NoMaps;

impl Maps for NoMaps {
    fn find(&self, _: Wanted<'_>, _: &Walk) -> Lookup {
        Lookup::Unknown("no map".into())
    }

    fn ending(&self, _: &Walk) -> Ending {
        Ending {
            unknown: Some("no map".into()),
            ..Ending::default()
        }
    }

    fn first_commit(&self, _: TimelineId, _: SegmentNumber, _: Lsn) -> Option<UtcTime> {
        None
    }
}

/// What is known of the end of WAL and of one transaction or restore point.
#[derive(Default)]
struct Known {
    lookup: Option<Lookup>,
    ending: Ending,
}

impl Maps for Known {
    fn find(&self, _: Wanted<'_>, _: &Walk) -> Lookup {
        self.lookup.clone().unwrap_or(Lookup::Unknown("no map".into()))
    }

    fn ending(&self, _: &Walk) -> Ending {
        self.ending.clone()
    }

    fn first_commit(&self, _: TimelineId, _: SegmentNumber, _: Lsn) -> Option<UtcTime> {
        None
    }
}

fn found(lookup: Lookup) -> Known {
    Known {
        lookup: Some(lookup),
        ending: Ending::default(),
    }
}

fn places(lsns: &[Lsn]) -> Lookup {
    Lookup::At(lsns.iter().map(|lsn| Place { lsn: *lsn, time: None }).collect())
}

/// All is known: the last commit, and the last record, in segment 18.
fn commits(last: &str) -> Known {
    Known {
        lookup: None,
        ending: Ending {
            end: None,
            last_commit: Some(moment(last)),
            seen: Some(moment(last)),
            last_record: Some(at(18, 0x500)),
            unknown: None,
        },
    }
}

/// Letter of the backup and the timeline, or the kind of refusal.
type Answer = std::result::Result<(char, u32), Kind>;

fn answer(request: &Request, archive: &Archive, maps: &dyn Maps) -> Answer {
    let choice = decide(request, archive, maps, now()).map_err(|error| error.kind())?;
    let letter = choice.backup.label.to_string().chars().last().unwrap();
    Ok((letter, choice.timeline.0))
}

fn decided(request: &Request) -> Choice {
    decide(request, &archive(), &NoMaps, now()).unwrap()
}

fn refusal(request: &Request, archive: &Archive) -> Error {
    decide(request, archive, &NoMaps, now()).unwrap_err()
}

#[test]
fn every_target_on_every_timeline_finds_its_backup() {
    use Kind::{Config, Refused};
    use Timeline::{Current, Latest};
    let number = |id| Timeline::Number(TimelineId(id));
    let lsn = |segment| Target::Lsn(at(segment, 0x200));
    let table: Vec<(Target, Timeline, Option<char>, Answer)> = vec![
        (Target::End, Latest, None, Ok(('d', 3))),
        (Target::End, Current, None, Ok(('d', 3))),
        (Target::End, number(3), None, Ok(('d', 3))),
        (Target::End, number(2), None, Ok(('c', 2))),
        (Target::End, number(1), None, Ok(('b', 1))),
        (Target::End, number(9), None, Err(Config)),
        (Target::End, Latest, Some('a'), Ok(('a', 3))),
        (Target::End, Latest, Some('b'), Ok(('b', 1))),
        (Target::End, Latest, Some('c'), Ok(('c', 3))),
        (Target::End, Current, Some('a'), Ok(('a', 1))),
        (Target::End, Current, Some('c'), Ok(('c', 2))),
        (Target::End, number(2), Some('a'), Ok(('a', 2))),
        (Target::End, number(3), Some('b'), Err(Refused)),
        (Target::End, number(1), Some('c'), Err(Refused)),
        (Target::End, Latest, Some('e'), Err(Kind::NotFound)),
        (Target::Immediate, Latest, None, Ok(('d', 3))),
        (Target::Immediate, Latest, Some('a'), Ok(('a', 3))),
        (Target::Immediate, number(2), None, Ok(('c', 2))),
        (time("16:00"), Latest, None, Ok(('d', 3))),
        (time("15:59"), Latest, None, Ok(('c', 3))),
        (time("13:30"), Latest, None, Ok(('c', 3))),
        (time("12:59"), Latest, None, Ok(('a', 3))),
        // The branch of b was given up: the time 09:00 of timeline 3 lies at the switch to 2.
        (time("09:00"), Latest, None, Ok(('a', 3))),
        (time("09:00"), number(1), None, Ok(('b', 1))),
        (time("09:00"), Current, None, Ok(('b', 1))),
        (time("09:00"), Latest, Some('b'), Ok(('b', 1))),
        (time("07:00"), Current, None, Ok(('a', 1))),
        (time("01:59"), Latest, None, Err(Refused)),
        (time("12:00"), number(2), Some('c'), Err(Refused)),
        (time("21:00"), Latest, None, Ok(('d', 3))),
        (time("22:01"), Latest, None, Err(Refused)),
        (lsn(3), Latest, None, Ok(('a', 3))),
        (lsn(10), Latest, None, Ok(('c', 3))),
        (lsn(10), number(1), None, Ok(('b', 1))),
        (lsn(13), number(2), None, Ok(('c', 2))),
        (lsn(13), Latest, None, Ok(('c', 3))),
        (lsn(18), Latest, None, Ok(('d', 3))),
        (lsn(19), Latest, None, Err(Refused)),
        (lsn(19), number(1), None, Ok(('b', 1))),
        (Target::Lsn(at(2, 0x138)), Latest, None, Ok(('a', 3))),
        (Target::Lsn(at(2, 0x137)), Latest, None, Err(Refused)),
        (lsn(3), Latest, Some('d'), Err(Refused)),
        (Target::Xid(734), Latest, None, Ok(('d', 3))),
        (Target::Xid(734), Latest, Some('a'), Ok(('a', 3))),
        (Target::Name("x".into()), number(1), None, Ok(('b', 1))),
    ];
    for (target, timeline, named, expected) in table {
        let request = Request {
            timeline,
            backup: named.map(label),
            ..request(target)
        };
        assert_eq!(answer(&request, &archive(), &NoMaps), expected, "{request:?}");
    }
}

#[test]
fn what_the_maps_know_chooses_the_backup_before_a_transaction() {
    let known = |lsn| found(places(&[lsn]));
    let absent = found(Lookup::Absent(There::default()));
    let xid = request(Target::Xid(734));
    assert_eq!(answer(&xid, &archive(), &known(at(10, 0x80))), Ok(('c', 3)));
    assert_eq!(answer(&xid, &archive(), &known(at(3, 0x80))), Ok(('a', 3)));
    assert_eq!(answer(&xid, &archive(), &known(at(1, 0x80))), Err(Kind::Refused));
    assert_eq!(answer(&xid, &archive(), &absent), Err(Kind::Refused));
    let name = Request {
        timeline: Timeline::Number(TimelineId(2)),
        ..request(Target::Name("x".into()))
    };
    let choice = decide(&name, &archive(), &known(at(10, 0)), now()).unwrap();
    // A record that ends where a segment does needs nothing of the next one.
    assert_eq!(
        choice.wal,
        [Stretch {
            timeline: TimelineId(2),
            first: SegmentNumber(9),
            last: SegmentNumber(9)
        }]
    );
    assert!(choice.notes.is_empty() && !choice.to_end);
}

#[test]
fn where_the_maps_know_nothing_the_plan_says_so() {
    for (backup, words) in [
        (None, "the newest backup is taken"),
        (Some(label('a')), "the named backup is taken"),
    ] {
        let choice = decided(&Request {
            backup,
            ..request(Target::Xid(734))
        });
        assert!(choice.notes[0].contains(words), "{:?}", choice.notes);
    }
    let choice = decided(&request(time("21:00")));
    assert!(
        choice.notes[0].contains("could not be checked whether a transaction was committed after the target (no map)"),
        "{:?}",
        choice.notes
    );
    let known = decide(&request(time("15:00")), &archive(), &commits("15:30"), now()).unwrap();
    assert!(known.notes.is_empty(), "{:?}", known.notes);
}

#[test]
fn a_restore_point_that_is_there_twice_is_reached_from_the_newest_backup_that_meets_one_of_them_first() {
    let name = |places| decide(&request(Target::Name("x".into())), &archive(), &places, now());
    // From d PostgreSQL would meet the first one between the backup's start and its end, and fail.
    let within = found(places(&[at(14, 0x80), at(16, 0)]));
    let choice = name(within).unwrap();
    assert_eq!(choice.backup.label, label('c'));
    assert!(choice.notes[0].contains("in WAL 2 times"), "{:?}", choice.notes);
    assert_eq!(choice.wal.last().unwrap().last, SegmentNumber(14));
    let choice = name(found(places(&[at(3, 0x80), at(16, 0x80)]))).unwrap();
    assert_eq!(
        (choice.backup.label, choice.wal.last().unwrap().last),
        (label('d'), SegmentNumber(16))
    );
}

#[test]
fn what_is_not_in_the_maps_is_refused_with_what_there_is() {
    let point = |name: &str| (name.to_owned(), Some(moment("15:00")));
    let there = There {
        points: 7,
        last_points: [point("row 1"), point("row 2")].into(),
        nearest: Some((1, "row 2".into())),
        transactions: 9,
        xids: Some((730, 750)),
    };
    let refused = |target, there| {
        let error = decide(&request(target), &archive(), &found(Lookup::Absent(there)), now()).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        format!("{} / {}", common::error::chain(&error), error.nearest_hint().unwrap())
    };
    let name = refused(Target::Name("row 22".into()), there.clone());
    for part in [
        "restore point \"row 22\" is not in the archived WAL",
        "did you mean \"row 2\"?",
        "7 restore points",
        "\"row 1\" (2026-11-20T15:00:00Z)",
    ] {
        assert!(name.contains(part), "{name}");
    }
    let xid = refused(Target::Xid(900), there);
    assert!(
        xid.contains("9 transactions") && xid.contains("from 730 to 750"),
        "{xid}"
    );
    let nothing = refused(Target::Xid(900), There::default());
    assert!(nothing.contains("no transaction ends"), "{nothing}");
}

#[test]
fn a_target_without_an_action_pauses_and_no_target_promotes() {
    assert_eq!(decided(&request(time("15:00"))).action, Action::Pause);
    assert_eq!(decided(&request(Target::End)).action, Action::Promote);
    let shutdown = Request {
        action: Some(Action::Shutdown),
        ..request(Target::Immediate)
    };
    assert_eq!(decided(&shutdown).action, Action::Shutdown);
}

#[test]
fn a_time_behind_the_last_commit_means_the_last_record_where_the_archive_covers_it() {
    // The last commit was at 15:30; backup d stopped at 16:00, so WAL until then is there.
    let exclusive = Request {
        exclusive: true,
        ..request(time("15:45"))
    };
    for request in [request(time("15:45")), exclusive] {
        let choice = decide(&request, &archive(), &commits("15:30"), now()).unwrap();
        // What is archived later holds later commits: recovery must not go on to them.
        assert_eq!((choice.target, choice.exclusive), (Target::Lsn(at(18, 0x500)), false));
        assert_eq!((choice.action, choice.to_end), (Action::Pause, false));
        assert!(choice.notes[0].contains("nothing was committed after the target"));
    }
    // Nothing shows that WAL until 17:00 is there.
    let error = decide(&request(time("17:00")), &archive(), &commits("15:30"), now()).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(
        error.nearest_hint().unwrap().contains("2026-11-20T16:00:00Z"),
        "{error:?}"
    );
    // A later commit shows it, or a later restore point.
    let choice = decide(&request(time("17:00")), &archive(), &commits("18:00"), now()).unwrap();
    assert_eq!(choice.target, time("17:00"));
    let mut seen = commits("15:30");
    seen.ending.seen = Some(moment("18:00"));
    let choice = decide(&request(time("17:00")), &archive(), &seen, now()).unwrap();
    assert_eq!(choice.target, Target::Lsn(at(18, 0x500)));
}

#[test]
fn where_the_last_record_is_not_known_all_wal_stands_in_and_only_a_promotion_ends_it() {
    let mut known = commits("15:30");
    for last_record in [None, Some(at(14, 0x100))] {
        known.ending.last_record = last_record;
        let choice = decide(&request(time("15:45")), &archive(), &known, now()).unwrap();
        assert_eq!(choice.backup.label, label('c'));
    }
    let late = |action| Request {
        action,
        ..request(time("16:00"))
    };
    let choice = decide(&late(None), &archive(), &known, now()).unwrap();
    assert_eq!((choice.target, choice.action), (Target::End, Action::Promote));
    let paused = decide(&late(Some(Action::Pause)), &archive(), &known, now()).unwrap_err();
    assert_eq!(paused.kind(), Kind::Refused);
}

#[test]
fn the_last_commit_itself_is_reached_exclusively_only() {
    let choice = decide(&request(time("17:00")), &archive(), &commits("17:00"), now()).unwrap();
    assert_eq!(choice.target, Target::Lsn(at(18, 0x500)));
    let exclusive = Request {
        exclusive: true,
        ..request(time("17:00"))
    };
    let choice = decide(&exclusive, &archive(), &commits("17:00"), now()).unwrap();
    assert_eq!((choice.target, choice.exclusive), (time("17:00"), true));
}

#[test]
fn a_refused_moment_comes_with_the_windows_that_can_be_reached() {
    let error = refusal(&request(time("01:00")), &archive());
    let hint = error.nearest_hint().unwrap();
    for part in [
        "2026-11-20T02:00:00Z to 2026-11-20T08:00:00Z",
        "0/15000000 (timeline 1)",
        "2026-11-20T02:00:00Z to 2026-11-20T16:00:00Z and on to LSN 0/13000000 (timeline 3)",
    ] {
        assert!(hint.contains(part), "{hint}");
    }
}

#[test]
fn missing_wal_is_refused_by_name() {
    let mut archive = archive();
    archive.wal = wal(&[(1, 1, 20), (2, 5, 15), (3, 11, 13), (3, 15, 18)]);
    let error = refusal(&request(Target::End), &archive);
    assert_eq!(error.kind(), Kind::Refused);
    let text = common::error::chain(&error);
    assert!(
        text.contains("cannot become consistent") && text.contains("00000003000000000000000E"),
        "{text}"
    );

    archive.wal = wal(&[(1, 1, 20), (2, 5, 15), (3, 11, 15), (3, 17, 18)]);
    let text = common::error::chain(&refusal(&request(Target::End), &archive));
    assert!(
        text.contains("the end of WAL cannot be reached: WAL 000000030000000000000010 is missing"),
        "{text}"
    );
    assert_eq!(
        answer(&request(Target::Lsn(at(15, 9))), &archive, &NoMaps),
        Ok(('d', 3))
    );
    assert_eq!(
        answer(&request(Target::Lsn(at(17, 9))), &archive, &NoMaps),
        Err(Kind::Refused)
    );
    assert_eq!(answer(&request(time("16:30")), &archive, &NoMaps), Err(Kind::Refused));
    assert_eq!(answer(&request(Target::Immediate), &archive, &NoMaps), Ok(('d', 3)));
    // Where a transaction lies is not known: PostgreSQL itself stops with an error if it is behind the gap.
    let xid = decide(&request(Target::Xid(734)), &archive, &NoMaps, now()).unwrap();
    assert!(
        xid.notes.iter().any(|note| note.contains("000000030000000000000010")),
        "{:?}",
        xid.notes
    );
}

#[test]
fn a_time_before_a_later_backup_does_not_need_the_wal_behind_it() {
    let mut archive = archive();
    archive.wal = wal(&[(1, 1, 20), (2, 5, 15), (3, 11, 14), (3, 17, 18)]);
    assert_eq!(answer(&request(time("15:00")), &archive, &NoMaps), Ok(('c', 3)));
}

#[test]
fn a_new_timeline_without_wal_is_not_followed_into_the_old_branch() {
    let mut archive = archive();
    archive.backups.truncate(2);
    archive.wal = wal(&[(1, 1, 20)]);
    archive.histories = [history_of((2, vec![(1, 5)]))].into();
    let error = refusal(&request(Target::End), &archive);
    assert_eq!(error.kind(), Kind::Refused);
    let end_of_old = Request {
        timeline: Timeline::Number(TimelineId(1)),
        ..request(Target::End)
    };
    assert_eq!(answer(&end_of_old, &archive, &NoMaps), Ok(('b', 1)));
}

#[test]
fn a_timeline_whose_history_is_lost_is_not_followed() {
    let mut archive = archive();
    archive.histories.remove(&TimelineId(3));
    assert_eq!(answer(&request(Target::End), &archive, &NoMaps), Ok(('c', 2)));
    let third = Request {
        timeline: Timeline::Number(TimelineId(3)),
        ..request(Target::End)
    };
    assert_eq!(answer(&third, &archive, &NoMaps), Err(Kind::Config));
}

#[test]
fn a_damaged_backup_counts_only_by_name() {
    let mut archive = archive();
    archive.backups[3].good = false;
    assert_eq!(answer(&request(Target::End), &archive, &NoMaps), Ok(('c', 3)));
    let named = Request {
        backup: Some(label('d')),
        ..request(Target::End)
    };
    let choice = decide(&named, &archive, &NoMaps, now()).unwrap();
    assert!(choice.notes[0].contains("damaged"), "{:?}", choice.notes);
    archive.backups.iter_mut().for_each(|backup| backup.good = false);
    assert_eq!(answer(&request(Target::End), &archive, &NoMaps), Err(Kind::NotFound));
}

#[test]
fn no_backup_is_not_found_and_temporary_where_a_repository_is_silent() {
    let mut empty = Archive {
        backups: Vec::new(),
        ..archive()
    };
    assert_eq!(answer(&request(Target::End), &empty, &NoMaps), Err(Kind::NotFound));
    empty.incomplete = true;
    assert_eq!(answer(&request(Target::End), &empty, &NoMaps), Err(Kind::Transient));
    let mut gap = archive();
    gap.wal = wal(&[]);
    gap.incomplete = true;
    assert_eq!(answer(&request(Target::End), &gap, &NoMaps), Err(Kind::Transient));
}

#[test]
fn a_newer_backup_on_another_branch_is_mentioned() {
    let choice = decided(&request(time("09:00")));
    assert!(choice.notes[1].contains(&label('b').to_string()), "{:?}", choice.notes);
    assert!(choice.notes[1].contains("--target-timeline 1"), "{:?}", choice.notes);
    assert!(decided(&request(Target::End)).notes.is_empty());
}

#[test]
fn the_wal_that_is_needed_follows_the_history() {
    let choice = decided(&Request {
        backup: Some(label('a')),
        ..request(Target::End)
    });
    let names: Vec<String> = choice.wal.iter().map(|one| stretch_names(one, SIZE)).collect();
    assert_eq!(
        names,
        [
            "000000010000000000000002 to 000000010000000000000004",
            "000000020000000000000005 to 00000002000000000000000A",
            "00000003000000000000000B to 000000030000000000000012",
        ]
    );
    assert_eq!(wal_bytes(&choice.wal, SIZE), 17 * SIZE.bytes());
    assert!(choice.newest && choice.to_end);
    let older = decided(&Request {
        timeline: Timeline::Number(TimelineId(2)),
        ..request(Target::End)
    });
    assert!(!older.newest);
}

#[test]
fn windows_span_backups_whose_wal_is_joined() {
    let found = windows(&archive(), &NoMaps);
    let short: Vec<(u32, UtcTime, UtcTime)> = found.iter().map(|one| (one.timeline.0, one.from, one.to)).collect();
    assert_eq!(
        short,
        [
            (1, moment("02:00"), moment("08:00")),
            (2, moment("02:00"), moment("13:00")),
            (3, moment("02:00"), moment("16:00")),
        ]
    );
}

#[test]
fn a_backup_that_stops_at_the_end_of_a_segment_needs_no_other_one() {
    let mut archive = archive();
    // So may one of a standby, after the primary has ended a segment.
    archive.backups[3].stop_lsn = at(15, 0);
    for (last, right) in [(14, true), (15, true), (13, false)] {
        archive.wal = wal(&[(1, 1, 20), (2, 5, 15), (3, 11, last)]);
        let mut asked = request(Target::Immediate);
        asked.backup = Some(label('d'));
        assert_eq!(answer(&asked, &archive, &NoMaps).is_ok(), right, "{last}");
    }
}
