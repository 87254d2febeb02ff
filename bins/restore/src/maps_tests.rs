#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use common::postgres::walmap::{
    Entry, FirstRecord, LastRecord, RestorePoint, Segment, Trailing, TransactionEnd, Transactions,
};

const SIZE: u32 = 1 << 20;

/// Segment `number`, which begins and ends with its own records, linked to its neighbours.
fn map(number: u64, ends: &[(u32, i64)], points: &[(&str, i64)]) -> SegmentMap {
    let start = number * u64::from(SIZE);
    let last = |start: u64| start + u64::from(SIZE) - 0x80;
    let end = |(at, (xid, time)): (usize, &(u32, i64))| TransactionEnd {
        xid: *xid,
        lsn: start + 0x100 * (at as u64 + 1),
        time: *time,
        aborted: false,
    };
    let mut ends: Vec<TransactionEnd> = ends.iter().enumerate().map(end).collect();
    let moment = |end: &TransactionEnd| Moment {
        time: end.time,
        lsn: end.lsn,
    };
    let numbers = || ends.iter().map(|end| end.xid);
    let mut transactions = Transactions {
        count: ends.len() as u64,
        first: ends.first().map(moment),
        last: ends.last().map(moment),
        latest: ends.iter().max_by_key(|end| end.time).map(moment),
        xids: numbers().min().zip(numbers().max()),
        ..Transactions::default()
    };
    ends.sort_by_key(|end| end.xid);
    transactions.ends = ends;
    let point = |(name, time): &(&str, i64)| RestorePoint {
        name: (*name).to_owned(),
        lsn: start + 0x8000,
        time: *time,
    };
    SegmentMap {
        segment: Segment {
            system_identifier: 7,
            timeline: 1,
            start,
            size: SIZE,
            major: 15,
            sha256: [0; 32],
        },
        page_timelines: (1, 1),
        entry: Entry::Record,
        exit: Exit::Filled,
        first_record: Some(FirstRecord {
            start: start + 0x28,
            previous: last(start - u64::from(SIZE)),
        }),
        last_record: Some(LastRecord {
            start: last(start),
            end: start + u64::from(SIZE),
        }),
        changes: Changes {
            transactions,
            restore_points: points.iter().map(point).collect(),
            ..Changes::default()
        },
    }
}

/// A record of so many bytes begins in the map and goes on in the next one, which did not keep it.
fn opaque(mut map: SegmentMap) -> SegmentMap {
    map.exit = Exit::Trailing(Trailing {
        start: map.segment.end() - 0x100,
        total: 300_000,
        held: 0x100,
        bytes: None,
    });
    map
}

fn after_opaque(mut map: SegmentMap) -> SegmentMap {
    map.entry = Entry::Continuation(common::postgres::walmap::Leading {
        remaining: 300_000 - 0x100,
        held: 300_000 - 0x100,
        bytes: None,
    });
    map
}

fn search(wanted: Wanted<'_>, maps: Vec<Read>) -> Lookup {
    let mut search = Search::new(wanted);
    maps.into_iter().for_each(|map| search.segment(map));
    search.finish()
}

fn backwards(maps: Vec<Read>) -> (Ending, usize) {
    let mut search = Backwards::default();
    let mut read = 0;
    for map in maps.into_iter().rev() {
        read += 1;
        if !search.segment(map) {
            break;
        }
    }
    (search.finish(), read)
}

fn time(micros: i64) -> Option<UtcTime> {
    Some(UtcTime::from_pg_micros(micros).unwrap())
}

fn missing() -> Read {
    Err("no map".into())
}

#[test]
fn a_transaction_is_found_with_the_end_of_its_record_and_a_name_as_often_as_it_is_there() {
    let maps = || {
        vec![
            Ok(map(2, &[(700, 5), (702, 6)], &[("a", 5)])),
            Ok(map(3, &[(701, 7)], &[("b", 8)])),
            Ok(map(4, &[], &[("a", 9)])),
        ]
    };
    let one = |segment: u64, offset: u64, micros| Place {
        lsn: Lsn(segment * u64::from(SIZE) + offset),
        time: time(micros),
    };
    assert_eq!(search(Wanted::Xid(702), maps()), Lookup::At(vec![one(2, 0x200, 6)]));
    let twice = vec![one(2, 0x8000, 5), one(4, 0x8000, 9)];
    assert_eq!(search(Wanted::Name("a"), maps()), Lookup::At(twice));
}

#[test]
fn what_is_not_there_is_absent_with_what_is_there_instead() {
    let maps = || {
        vec![
            Ok(map(2, &[(700, 5)], &[("row 1", 5), ("row 2", 6)])),
            Ok(map(3, &[(690, 7)], &[])),
        ]
    };
    let Lookup::Absent(there) = search(Wanted::Name("Row 3"), maps()) else {
        panic!("not absent");
    };
    assert_eq!((there.points, there.transactions, there.xids), (2, 2, Some((690, 700))));
    assert_eq!(there.nearest, Some((1, "row 2".into())), "the later one of equals");
    let Lookup::Absent(there) = search(Wanted::Name("something else"), maps()) else {
        panic!("not absent");
    };
    assert_eq!(there.nearest, None);
    assert!(matches!(search(Wanted::Xid(695), maps()), Lookup::Absent(_)));
}

#[test]
fn a_map_that_is_missing_or_does_not_fit_makes_absence_unknown_and_hides_nothing_that_is_found() {
    let mut other = map(3, &[], &[]);
    other.first_record.as_mut().unwrap().previous = 5;
    let mut cut = map(3, &[], &[]);
    cut.exit = Exit::Incomplete {
        lsn: 0x30_8000,
        doubt: Doubt::RecordChecksum,
    };
    let mut ended = map(3, &[], &[]);
    ended.exit = Exit::Ended { lsn: 0x30_8000 };
    for odd in [missing(), Ok(other), Ok(cut), Ok(ended)] {
        let maps = || vec![Ok(map(2, &[(700, 5)], &[])), odd.clone(), Ok(map(4, &[(701, 6)], &[]))];
        let lookup = search(Wanted::Xid(702), maps());
        assert!(matches!(lookup, Lookup::Unknown(_)), "{odd:?}: {lookup:?}");
        assert!(matches!(search(Wanted::Xid(701), maps()), Lookup::At(_)), "{odd:?}");
    }
    let Lookup::Unknown(why) = search(Wanted::Xid(9), vec![missing(), missing(), missing()]) else {
        panic!("not unknown");
    };
    assert_eq!(why, "no map, and 2 more like it");
}

#[test]
fn where_wal_just_ends_in_the_last_segment_nothing_is_hidden() {
    let mut last = map(3, &[], &[]);
    last.exit = Exit::Ended { lsn: 0x30_8000 };
    let lookup = search(Wanted::Xid(702), vec![Ok(map(2, &[], &[])), Ok(last)]);
    assert!(matches!(lookup, Lookup::Absent(_)), "{lookup:?}");
}

#[test]
fn a_long_record_across_segments_may_be_a_commit_and_is_no_restore_point() {
    let maps = || vec![Ok(opaque(map(2, &[], &[]))), Ok(after_opaque(map(3, &[], &[])))];
    assert!(matches!(search(Wanted::Name("x"), maps()), Lookup::Absent(_)));
    assert!(matches!(search(Wanted::Xid(700), maps()), Lookup::Unknown(_)));
}

#[test]
fn a_list_that_was_cut_short_makes_a_number_in_its_range_unknown() {
    let mut cut = map(2, &[(700, 5), (710, 6)], &[]);
    cut.changes.transactions.truncated = true;
    assert!(matches!(
        search(Wanted::Xid(705), vec![Ok(cut.clone())]),
        Lookup::Unknown(_)
    ));
    assert!(matches!(
        search(Wanted::Xid(711), vec![Ok(cut.clone())]),
        Lookup::Absent(_)
    ));
    assert!(matches!(search(Wanted::Xid(710), vec![Ok(cut)]), Lookup::At(_)));
}

#[test]
fn the_last_commit_is_searched_from_the_end_and_one_segment_further() {
    let maps = vec![
        Ok(map(2, &[(700, 50)], &[])),
        Ok(map(3, &[(701, 8)], &[])),
        Ok(map(4, &[(702, 7)], &[])),
        Ok(map(5, &[], &[("x", 9)])),
    ];
    let (ending, read) = backwards(maps);
    assert_eq!(read, 3, "segment 2 is not needed");
    assert_eq!(
        (ending.last_commit, ending.seen, ending.unknown),
        (time(8), time(9), None)
    );
    assert_eq!(ending.last_record, Some(Lsn(6 * u64::from(SIZE) - 0x80)));
    let (ending, _) = backwards(vec![Ok(map(2, &[], &[])), Ok(map(3, &[], &[]))]);
    assert_eq!(
        (ending.last_commit, ending.unknown),
        (None, None),
        "surely no commit at all"
    );
}

#[test]
fn a_commit_may_hide_behind_the_last_one_that_is_known_but_not_before_it() {
    let known = || Ok(map(3, &[(701, 8)], &[]));
    let (ending, _) = backwards(vec![known(), missing()]);
    assert_eq!((ending.last_commit, ending.unknown), (time(8), Some("no map".into())));
    let (ending, _) = backwards(vec![missing(), known()]);
    assert_eq!((ending.last_commit, ending.unknown), (time(8), None));
    let (ending, _) = backwards(vec![
        known(),
        Ok(opaque(map(4, &[], &[]))),
        Ok(after_opaque(map(5, &[], &[]))),
    ]);
    assert!(ending.unknown.is_some());
    let (ending, read) = backwards(vec![missing(); 100]);
    assert!(ending.unknown.is_some());
    assert_eq!(read, 16);
}
