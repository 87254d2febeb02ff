//! Damaged and arbitrary bytes: never a panic, never a map that looks whole and lacks a block.

use proptest::prelude::*;

use super::real::{VERSIONS, fixture, maps};
use super::{Segment, scan};
use crate::postgres::walmap::{Doubt, Exit, SegmentMap, join};
use crate::postgres::walscan::Scanner;

fn is_incomplete(map: &SegmentMap) -> bool {
    matches!(map.exit, Exit::Incomplete { .. })
}

#[test]
fn a_flipped_bit_makes_the_map_incomplete_or_changes_nothing() {
    for major in VERSIONS {
        let fixture = fixture(major);
        let whole = maps(&fixture);
        let (segment, bytes) = &fixture.segments[0];
        let mut bytes = bytes.clone();
        let mut noticed = 0;
        // Odd steps reach every kind of byte: headers of pages and records, block references, data, padding.
        for (turn, at) in (0..bytes.len()).step_by(6007).enumerate() {
            bytes[at] ^= 1 << (turn % 8);
            let map = scan(*segment, &bytes);
            let same = map.changes == whole[0].changes && map.reaches_end();
            assert!(
                is_incomplete(&map) || same,
                "PostgreSQL {major}, byte {at}: {:?}",
                map.exit
            );
            if !is_incomplete(&map) && map != whole[0] {
                let joined = join(&map, &whole[1]).unwrap();
                let same = joined == join(&whole[0], &whole[1]).unwrap();
                assert!(joined.incomplete.is_some() || same, "PostgreSQL {major}, byte {at}");
            }
            noticed += usize::from(is_incomplete(&map));
            bytes[at] ^= 1 << (turn % 8);
        }
        assert!(noticed > 80, "only {noticed} flips were noticed");
    }
}

#[test]
fn every_bit_of_the_first_and_second_page_header_and_first_records_is_guarded() {
    let fixture = fixture(16);
    let whole = maps(&fixture);
    let (segment, bytes) = &fixture.segments[1];
    let mut bytes = bytes.clone();
    for bit in (0..200 * 8).chain(8192 * 8..(8192 + 100) * 8) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let map = scan(*segment, &bytes);
        let kept = map.changes == whole[1].changes && map.reaches_end();
        assert!(is_incomplete(&map) || kept, "bit {bit}: {:?}", map.exit);
        if !is_incomplete(&map) && map != whole[1] {
            // A flip in the leading continuation shows when the maps are joined; one in the timeline changes no block.
            let joined = join(&whole[0], &map).unwrap();
            let same = joined == join(&whole[0], &whole[1]).unwrap();
            assert!(joined.incomplete.is_some() || same, "bit {bit}");
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_short_file_is_incomplete_and_keeps_what_came_before() {
    let fixture = fixture(15);
    let (segment, bytes) = &fixture.segments[0];
    for length in [0, 1, 39, 40, 8191, 8192, 100_000, bytes.len() - 1] {
        let map = scan(*segment, &bytes[..length]);
        let Exit::Incomplete { lsn, doubt } = map.exit else {
            panic!("{length} bytes: {:?}", map.exit)
        };
        assert_eq!(doubt, Doubt::Short);
        assert!(lsn <= segment.start + length as u64);
    }
    let mut long = bytes.clone();
    long.extend_from_slice(&[0; 8192]);
    let doubt = Doubt::Long;
    assert!(matches!(scan(*segment, &long).exit, Exit::Incomplete { doubt: found, .. } if found == doubt));
}

#[test]
fn a_zeroed_tail_is_a_normal_end_and_joins_nothing() {
    for major in VERSIONS {
        let fixture = fixture(major);
        let (segment, bytes) = &fixture.segments[0];
        let whole = maps(&fixture);
        let mut bytes = bytes.clone();
        bytes[500 * 1024 / 8192 * 8192..].fill(0);
        let map = scan(*segment, &bytes);
        assert!(matches!(map.exit, Exit::Ended { .. }), "{:?}", map.exit);
        assert!(join(&map, &whole[1]).unwrap().incomplete.is_some());
        // A page of this segment behind the end means that something was lost before it.
        let (_, original) = &fixture.segments[0];
        let last = bytes.len() - 8192;
        bytes[last..].copy_from_slice(&original[last..]);
        let doubt = Doubt::AfterEnd;
        assert!(matches!(scan(*segment, &bytes).exit, Exit::Incomplete { doubt: found, .. } if found == doubt));
        // An old page of a recycled file does not.
        bytes[last + 8..last + 16].copy_from_slice(&1u64.to_le_bytes());
        assert!(matches!(scan(*segment, &bytes).exit, Exit::Ended { .. }));
    }
}

#[test]
fn another_version_cluster_place_or_timeline_is_never_mistaken() {
    let fixture = fixture(17);
    let (segment, bytes) = &fixture.segments[0];
    let of = |segment: Segment| match scan(segment, bytes).exit {
        Exit::Incomplete { doubt, lsn } if lsn == segment.start => doubt,
        exit => panic!("{exit:?}"),
    };
    assert_eq!(of(Segment { major: 16, ..*segment }), Doubt::PageMagic);
    assert_eq!(of(Segment { major: 12, ..*segment }), Doubt::Version);
    assert_eq!(
        of(Segment {
            system_identifier: 1,
            ..*segment
        }),
        Doubt::SystemIdentifier
    );
    assert_eq!(of(Segment { start: 0, ..*segment }), Doubt::PageAddress);
    assert_eq!(
        of(Segment {
            timeline: 0,
            ..*segment
        }),
        Doubt::PageTimeline
    );
    assert_eq!(
        of(Segment {
            size: 1 << 24,
            start: 0,
            ..*segment
        }),
        Doubt::PageHeader
    );
    // A file of a later timeline may begin with pages of the one before.
    assert!(
        scan(
            Segment {
                timeline: 2,
                ..*segment
            },
            bytes
        )
        .reaches_end()
    );
}

#[test]
fn every_damaged_byte_of_an_encoded_map_is_noticed() {
    let map = maps(&fixture(18)).remove(1);
    let bytes = map.encode();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(SegmentMap::decode(&damaged).is_err(), "byte {at}");
    }
    for length in (0..bytes.len()).step_by(7) {
        assert!(SegmentMap::decode(&bytes[..length]).is_err());
    }
}

fn segment_of(major: u8) -> Segment {
    Segment {
        system_identifier: 5,
        timeline: 1,
        start: 1 << 20,
        size: 1 << 20,
        major,
        sha256: [0; 32],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40_000), major in 12u8..20) {
        let map = scan(segment_of(major), &bytes);
        prop_assert!(!map.reaches_end());
        _ = SegmentMap::decode(&bytes);
    }

    /// With the magic, length and CRC repaired, damage reaches the checks behind them.
    #[test]
    fn a_map_with_a_valid_crc_never_panics_and_is_canonical(
        at in 0usize..4000, byte in any::<u8>(), cut in 0usize..50, major in 13u8..19,
    ) {
        let mut bytes = maps(&fixture(major)).remove(1).encode();
        bytes.truncate(bytes.len() - 4 - cut);
        let at = at % bytes.len();
        bytes[at] = byte;
        let length = bytes.len() as u32 + 4;
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        if let Ok(map) = SegmentMap::decode(&bytes) {
            prop_assert_eq!(map.encode(), bytes);
        }
    }

    /// Overwrites a stretch of a real segment; whatever is still complete says the same as before.
    #[test]
    fn a_damaged_stretch_never_loses_a_block_unnoticed(
        at in 0usize..1_000_000, junk in proptest::collection::vec(any::<u8>(), 1..200), major in 13u8..19,
    ) {
        let fixture = fixture(major);
        let whole = maps(&fixture).remove(0);
        let (segment, bytes) = &fixture.segments[0];
        let mut bytes = bytes.clone();
        bytes[at..at + junk.len()].copy_from_slice(&junk);
        let mut scanner = Scanner::new(*segment);
        bytes.chunks(junk.len() * 37).for_each(|piece| scanner.feed(piece));
        let map = scanner.finish();
        prop_assert!(is_incomplete(&map) || map.changes == whole.changes);
    }
}
