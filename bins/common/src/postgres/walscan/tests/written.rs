//! What real segments seldom hold: replaced, endless and unknown records.

use super::scan;
use super::writer::{Record, SEGMENT, Writer};
use crate::postgres::walmap::{
    Changes, Doubt, Entry, Exit, FullReason, RelationChange, SegmentMap, TransactionEnd, join, join_all,
};
use crate::postgres::walscan::Scanner;

const LOGICAL_MESSAGE: u8 = 21;
const HEAP: u8 = 10;

fn maps(writer: Writer) -> Vec<SegmentMap> {
    writer
        .segments()
        .iter()
        .map(|(segment, bytes)| scan(*segment, bytes))
        .collect()
}

fn blocks(changes: &Changes) -> Vec<u32> {
    changes
        .relations
        .iter()
        .flat_map(RelationChange::block_numbers)
        .collect()
}

#[test]
fn a_record_between_two_segments_is_decoded_when_they_are_joined() {
    let mut writer = Writer::new();
    writer.put(&Record::new(HEAP, 0, &[0; 3]).block(3));
    writer.fill_segment_but(64);
    let start = writer.put(&Record::new(HEAP, 0, &[5; 900]).block(77));
    writer.put(&Record::new(HEAP, 0, &[0; 3]).block(4));
    let maps = maps(writer);
    assert!(matches!(&maps[0].exit, Exit::Trailing(trailing) if trailing.start == start));
    assert!(matches!(&maps[1].entry, Entry::Continuation(_)));
    assert_eq!((blocks(&maps[0].changes), blocks(&maps[1].changes)), (vec![3], vec![4]));
    let joined = join(&maps[0], &maps[1]).unwrap();
    assert_eq!((blocks(&joined.changes), joined.incomplete), (vec![77], None));
    assert_eq!(maps[0].known_until(), start);
}

#[test]
fn a_record_with_only_eight_bytes_in_the_first_segment_is_decoded_too() {
    let mut writer = Writer::new();
    writer.fill_segment_but(8);
    assert_eq!(writer.bytes.len(), SEGMENT - 8);
    writer.put(&Record::new(HEAP, 0, &[5; 40]).block(77));
    writer.put(&Record::new(HEAP, 0, &[5; 40]).block(78));
    let joined = maps(writer);
    let joined = join(&joined[0], &joined[1]).unwrap();
    assert_eq!((blocks(&joined.changes), joined.incomplete), (vec![77], None));
}

#[test]
fn a_record_too_long_to_keep_is_opaque_until_its_segments_are_scanned_again() {
    let mut writer = Writer::new();
    writer.put(&Record::new(HEAP, 0, &[0; 3]).block(3));
    writer.put(&Record::new(LOGICAL_MESSAGE, 0, &vec![9; 2_500_000]).block(5));
    writer.put(&Record::new(HEAP, 0, &[0; 3]).block(4));
    let segments = writer.segments();
    let short: Vec<SegmentMap> = segments.iter().map(|(segment, bytes)| scan(*segment, bytes)).collect();
    assert_eq!(short[1].exit, Exit::Through);
    let opaque = |joined: crate::postgres::walmap::Joined| joined.incomplete.map(|(_, doubt)| doubt);
    assert_eq!(opaque(join(&short[0], &short[1]).unwrap()), Some(Doubt::Opaque));
    assert_eq!(opaque(join(&short[1], &short[2]).unwrap()), Some(Doubt::Opaque));
    assert!(short.iter().all(|map| map.encode().len() < 1000));
    let long = segments.iter().map(|(segment, bytes)| {
        let mut scanner = Scanner::new(*segment).keep_fragments(1 << 30);
        scanner.feed(bytes);
        scanner.finish()
    });
    let long: Vec<SegmentMap> = long.collect();
    let joined = join_all(&long.iter().collect::<Vec<_>>()).unwrap();
    assert_eq!((blocks(&joined.changes), joined.incomplete), (vec![5], None));
    for map in &long {
        assert_eq!(&SegmentMap::decode(&map.encode()).unwrap(), map);
    }
}

#[test]
fn a_broken_record_that_another_replaces_is_dropped() {
    let mut writer = Writer::new();
    writer.put(&Record::new(HEAP, 0, &[0; 3]).block(3));
    writer.fill_segment_but(64);
    let torn = writer.put_torn_at_segment_end(&Record::new(HEAP, 0, &[5; 900]).block(77));
    let mut main = torn.to_le_bytes().to_vec();
    main.extend_from_slice(&[0; 8]);
    writer.put(&Record::new(0, 0xd0, &main));
    writer.put(&Record::new(HEAP, 0, &[0; 3]).block(4));
    let maps = maps(writer);
    assert_eq!(maps[1].entry, Entry::Overwrite { lsn: torn });
    let joined = join(&maps[0], &maps[1]).unwrap();
    assert_eq!((blocks(&joined.changes), joined.incomplete), (vec![], None));
}

#[test]
fn a_replacement_of_some_other_record_is_not_believed() {
    let mut writer = Writer::new();
    writer.fill_segment_but(64);
    let torn = writer.put_torn_at_segment_end(&Record::new(HEAP, 0, &[5; 900]).block(77));
    let mut main = (torn - 8).to_le_bytes().to_vec();
    main.extend_from_slice(&[0; 8]);
    writer.put(&Record::new(0, 0xd0, &main));
    let maps = maps(writer);
    assert!(join(&maps[0], &maps[1]).unwrap().incomplete.is_some());
}

fn map_of(record: &Record) -> SegmentMap {
    let mut writer = Writer::new();
    writer.put(record);
    maps(writer).remove(0)
}

fn reason(record: &Record) -> Option<FullReason> {
    map_of(record).changes.needs_full.first().map(|need| need.reason)
}

#[test]
fn records_that_hide_changes_ask_for_a_full_backup() {
    assert_eq!(reason(&Record::new(HEAP, 0x01, &[])), Some(FullReason::SpecialRecord));
    assert_eq!(reason(&Record::new(200, 0x01, &[])), Some(FullReason::SpecialRecord));
    assert_eq!(reason(&Record::new(200, 0x00, &[]).block(1)), None);
    assert_eq!(reason(&Record::new(2, 0x31, &[0; 20])), Some(FullReason::SpecialRecord));
    assert_eq!(reason(&Record::new(2, 0x11, &[0; 3])), Some(FullReason::Undecodable));
    assert_eq!(reason(&Record::new(4, 0x31, &[0; 16])), Some(FullReason::SpecialRecord));
    assert_eq!(
        reason(&Record::new(1, 0x80, &[0xff; 16])),
        Some(FullReason::Undecodable)
    );
    let mut minimal = vec![0; 28];
    assert_eq!(reason(&Record::new(0, 0x60, &minimal)), Some(FullReason::MinimalWal));
    minimal[20] = 1;
    assert_eq!(reason(&Record::new(0, 0x60, &minimal)), None);
    minimal[20] = 9;
    assert_eq!(reason(&Record::new(0, 0x60, &minimal)), Some(FullReason::Undecodable));
}

#[test]
fn an_unknown_resource_manager_or_block_reference_ends_the_map() {
    for (record, expected) in [
        (Record::new(22, 0, &[]), Doubt::ResourceManager),
        (Record::new(127, 0, &[]), Doubt::ResourceManager),
        (Record::new(HEAP, 0, &[]).block(u32::MAX), Doubt::BlockReference),
        (
            Record {
                references: vec![40, 0, 0, 0],
                ..Record::new(HEAP, 0, &[])
            },
            Doubt::BlockReference,
        ),
        (
            Record {
                references: vec![251],
                ..Record::new(HEAP, 0, &[])
            },
            Doubt::BlockReference,
        ),
        (
            Record {
                references: vec![0, 0x80, 0, 0, 1, 0, 0, 0],
                ..Record::new(HEAP, 0, &[])
            },
            Doubt::BlockReference,
        ),
    ] {
        let map = map_of(&record);
        let start = map.segment.start + 40;
        assert_eq!(
            map.exit,
            Exit::Incomplete {
                lsn: start,
                doubt: expected
            }
        );
    }
}

#[test]
fn the_end_of_recovery_names_both_timelines() {
    let mut main = vec![0; 8];
    main.extend_from_slice(&4u32.to_le_bytes());
    main.extend_from_slice(&3u32.to_le_bytes());
    let map = map_of(&Record::new(0, 0x90, &main));
    let switch = map.changes.timeline_switches[0];
    assert_eq!((switch.from, switch.to), (3, 4));
    assert_eq!(SegmentMap::decode(&map.encode()).unwrap(), map);
}

#[test]
fn a_list_of_transactions_that_does_not_fit_keeps_the_first_ones_and_says_so() {
    let mut writer = Writer::new();
    for turn in 0i64..15_000 {
        let time = (turn * 7_000_000_000).to_le_bytes();
        writer.put(&Record::new(1, if turn % 3 == 0 { 0x20 } else { 0 }, &time));
    }
    let map = maps(writer).remove(0);
    let known = &map.changes.transactions;
    assert_eq!(known.count, 15_000);
    assert!(known.truncated && known.ends.len() > 5_000 && known.ends.len() < 15_000);
    assert_eq!(known.xids, Some((7, 7)));
    let TransactionEnd { time, aborted, .. } = known.ends[1];
    assert_eq!((time, aborted), (7_000_000_000, false));
    assert_eq!(known.latest, known.last);
    let bytes = map.encode();
    assert!(bytes.len() < 70_000);
    assert_eq!(SegmentMap::decode(&bytes).unwrap(), map);
}

#[test]
fn a_segment_that_does_not_follow_its_neighbour_is_a_broken_link() {
    let mut writer = Writer::new();
    writer.fill_segment_but(0);
    let first = maps(writer).remove(0);
    assert_eq!(first.exit, Exit::Filled);
    let mut writer = Writer::new();
    writer.put(&Record::new(HEAP, 0, &[0; 300]));
    writer.fill_segment_but(0);
    writer.put(&Record::new(HEAP, 0, &[]).block(9));
    let other = maps(writer);
    assert_eq!(join(&other[0], &other[1]).unwrap().incomplete, None);
    let mut stranger = other[1].clone();
    if let Some(record) = &mut stranger.first_record {
        record.previous -= 8;
    }
    let doubt = join(&first, &stranger).unwrap().incomplete.map(|(_, doubt)| doubt);
    assert_eq!(doubt, Some(Doubt::PreviousLink));
}

#[test]
fn a_truncation_gives_the_limit_of_the_heap_and_its_visibility_map() {
    const SMGR: u8 = 2;
    // xl_smgr_truncate: the first block that is cut off, the relation, and which forks.
    let truncate = |flags: u32| {
        let words = [70u32, 1663, 5, 16384, flags];
        let main: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        map_of(&Record::new(SMGR, 0x21, &main)).changes
    };
    let limits = |changes: &Changes| -> Vec<(u8, Option<u32>)> {
        changes
            .relations
            .iter()
            .map(|change| {
                let fork = change.fork;
                assert_eq!((fork.tablespace, fork.database, fork.relation), (1663, 5, 16384));
                (fork.fork, change.limit)
            })
            .collect()
    };
    assert_eq!(limits(&truncate(0x1)), [(0, Some(70))]);
    assert_eq!(limits(&truncate(0x7)), [(0, Some(70)), (2, Some(0))]);
    assert_eq!(limits(&truncate(0x2)), [(2, Some(0))]);
    let unknown = truncate(0x8);
    assert_eq!(unknown.needs_full.len(), 1, "a fork that is not known");
}
