#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use common::postgres::relation::relation_file;
use common::postgres::walmap::{
    BlockRun, Entry, Exit, FirstRecord, LastRecord, Leading, NeedsFull, RelationChange, RelationFork, Segment, Trailing,
};
use std::collections::BTreeMap;

use super::super::FileChange;

const SIZE: u32 = 1 << 20;

/// Segment `number` on timeline `timeline`, which changes `block` of one relation and fits its neighbours.
fn map(number: u64, block: u32) -> SegmentMap {
    let start = number * u64::from(SIZE);
    let last = |start: u64| start + u64::from(SIZE) - 0x80;
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
            relations: vec![RelationChange {
                fork: RelationFork {
                    tablespace: 1663,
                    database: 5,
                    relation: 16384,
                    fork: 0,
                },
                limit: None,
                blocks: vec![BlockRun {
                    first: block,
                    last: block,
                }],
            }],
            ..Changes::default()
        },
    }
}

#[derive(Default)]
struct Fake {
    maps: BTreeMap<u64, SegmentMap>,
    whole: BTreeMap<u64, SegmentMap>,
    scanned: Vec<u64>,
}

impl Maps for Fake {
    fn map(&mut self, number: SegmentNumber) -> Result<SegmentMap, String> {
        self.maps
            .get(&number.0)
            .cloned()
            .ok_or_else(|| "it is missing".to_owned())
    }

    fn scan_whole(&mut self, number: SegmentNumber) -> Result<SegmentMap, String> {
        self.scanned.push(number.0);
        self.whole
            .get(&number.0)
            .cloned()
            .ok_or_else(|| "it cannot be read".to_owned())
    }
}

fn lsn(segment: u64, offset: u64) -> Lsn {
    Lsn(segment * u64::from(SIZE) + offset)
}

/// Segments 2 to 5, changed by `change` before they are added up from within 2 to within 5.
fn added(change: impl FnOnce(&mut Fake)) -> Result<Vec<u32>, String> {
    let mut fake = Fake::default();
    for number in 2..=5 {
        fake.maps.insert(number, map(number, number as u32 * 10));
    }
    change(&mut fake);
    let changed =
        add_up(&mut fake, SegmentNumber(2)..=SegmentNumber(5), lsn(5, 0x8000)).map_err(|unknown| match unknown {
            Unknown::Missing(why) => format!("missing: {why}"),
            Unknown::Told(why) => why,
        })?;
    match changed.file(&relation_file("data/base/5/16384").unwrap(), 0, 1000) {
        FileChange::Blocks { blocks, .. } => Ok(blocks.iter().collect()),
        FileChange::Whole(why) => panic!("{why}"),
    }
}

fn refused(change: impl FnOnce(&mut Fake)) -> String {
    added(change).unwrap_err()
}

fn of(fake: &mut Fake, number: u64) -> &mut SegmentMap {
    fake.maps.get_mut(&number).unwrap()
}

#[test]
fn the_changes_of_all_segments_come_together() {
    assert_eq!(added(|_| {}).unwrap(), [20, 30, 40, 50]);
}

#[test]
fn a_segment_without_a_map_leaves_nothing_certain() {
    for number in 2..=5 {
        let why = refused(|fake| {
            fake.maps.remove(&number);
        });
        assert_eq!(why, "missing: it is missing");
    }
}

#[test]
fn segments_that_do_not_follow_one_another_leave_nothing_certain() {
    let why = refused(|fake| of(fake, 4).first_record.as_mut().unwrap().previous += 8);
    assert!(why.contains("does not follow the one before it"), "{why}");
    for change in [
        |map: &mut SegmentMap| map.segment.system_identifier = 8,
        |map: &mut SegmentMap| map.segment.major = 14,
        |map: &mut SegmentMap| map.segment.timeline = 0,
    ] {
        let why = refused(|fake| change(of(fake, 4)));
        assert!(why.contains("not neighbours"), "{why}");
    }
    let why = refused(|fake| of(fake, 3).entry = Entry::Unknown);
    assert!(why.contains("not whole"), "{why}");
}

#[test]
fn what_is_not_understood_or_ends_early_leaves_nothing_certain() {
    for number in 2..=5u64 {
        let at = lsn(number, 0x4000).0;
        let why = refused(|fake| {
            of(fake, number).exit = Exit::Incomplete {
                lsn: at,
                doubt: Doubt::RecordChecksum,
            };
        });
        assert!(why.contains("fails its checksum"), "{number}: {why}");
        let why = refused(|fake| of(fake, number).exit = Exit::Ended { lsn: at });
        assert!(why.contains("WAL ends at"), "{number}: {why}");
    }
}

#[test]
fn the_last_segment_needs_to_be_known_only_up_to_the_start_of_this_backup() {
    for exit in [
        Exit::Ended { lsn: lsn(5, 0x8000).0 },
        Exit::Incomplete {
            lsn: lsn(5, 0x8000).0,
            doubt: Doubt::PageAddress,
        },
    ] {
        assert_eq!(added(|fake| of(fake, 5).exit = exit).unwrap(), [20, 30, 40, 50]);
    }
    refused(|fake| of(fake, 5).exit = Exit::Ended { lsn: lsn(5, 0x7ff8).0 });
}

#[test]
fn a_record_after_which_nothing_is_certain_counts_wherever_its_segment_has_it() {
    let with = |number: u64, at: Lsn| {
        move |fake: &mut Fake| {
            of(fake, number).changes.needs_full.push(NeedsFull {
                reason: FullReason::MinimalWal,
                lsn: at.0,
            });
        }
    };
    // A map names the first record of each kind: there may be another one behind the start.
    for (number, at) in [
        (2, lsn(2, 0x1000)),
        (2, lsn(2, 0x100)),
        (2, lsn(2, 0x1008)),
        (3, lsn(3, 0x100)),
        (5, lsn(5, 0x100)),
    ] {
        let why = refused(with(number, at));
        assert!(why.contains("wal_level was minimal"), "{why}");
    }
}

/// Makes a record cross from 3 into 4 whose fragments were not kept.
fn crossing(fake: &mut Fake, bytes: bool) -> (SegmentMap, SegmentMap) {
    // An empty XLOG record (RM_XLOG, no-op) of 24 + 2 + 100 bytes would do; what matters here is where its bytes are.
    let mut three = fake.maps[&3].clone();
    let mut four = fake.maps[&4].clone();
    let start = three.segment.end() - 0x40;
    let record = record(three.last_record.unwrap().start);
    let (head, tail) = record.split_at(0x40);
    three.exit = Exit::Trailing(Trailing {
        start,
        total: record.len() as u32,
        held: 0x40,
        bytes: bytes.then(|| head.to_vec()),
    });
    four.entry = Entry::Continuation(Leading {
        remaining: tail.len() as u32,
        held: tail.len() as u32,
        bytes: bytes.then(|| tail.to_vec()),
    });
    four.first_record.as_mut().unwrap().previous = start;
    (three, four)
}

/// A record of the heap that changes block 77 of the relation (`XLOG_HEAP_INSERT`), with data to make it long.
fn record(previous: u64) -> Vec<u8> {
    let data = vec![7u8; 200];
    let mut body = vec![0u8, 0x20, 200, 0];
    for number in [1663u32, 5, 16384, 77] {
        body.extend_from_slice(&number.to_le_bytes());
    }
    body.extend_from_slice(&data);
    let mut record = Vec::new();
    record.extend_from_slice(&((24 + body.len()) as u32).to_le_bytes());
    record.extend_from_slice(&700u32.to_le_bytes());
    record.extend_from_slice(&previous.to_le_bytes());
    record.extend_from_slice(&[0x00, 10, 0, 0]);
    let crc = common::digest::crc32c(&[&body[..], &record[..20]].concat());
    record.extend_from_slice(&crc.to_le_bytes());
    record.extend_from_slice(&body);
    record
}

#[test]
fn the_record_between_two_segments_counts() {
    let found = added(|fake| {
        let (three, four) = crossing(fake, true);
        fake.maps.insert(3, three);
        fake.maps.insert(4, four);
    });
    assert_eq!(found.unwrap(), [20, 30, 40, 50, 77]);
}

#[test]
fn a_record_that_was_not_kept_is_read_anew_or_leaves_nothing_certain() {
    let found = added(|fake| {
        let (three, four) = crossing(fake, true);
        fake.whole.insert(3, three);
        fake.whole.insert(4, four);
        let (three, four) = crossing(fake, false);
        fake.maps.insert(3, three);
        fake.maps.insert(4, four);
    });
    assert_eq!(found.unwrap(), [20, 30, 40, 50, 77]);
    let why = refused(|fake| {
        let (three, four) = crossing(fake, false);
        fake.maps.insert(3, three);
        fake.maps.insert(4, four);
    });
    assert_eq!(why, "it cannot be read");
}
