//! Two neighbouring 1 MiB segments of every version, with what a second decoder found in them.
//!
//! `tests/fixtures/walscan/README.md` tells the workload and where the expected results come from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::{Segment, SegmentMap, scan, scan_in_pieces};
use crate::postgres::walmap::{Changes, Doubt, Exit, Joined, join};
use crate::postgres::walscan::Scanner;

pub(super) const VERSIONS: [u8; 6] = [13, 14, 15, 16, 17, 18];

pub(super) struct Fixture {
    pub(super) segments: Vec<(Segment, Vec<u8>)>,
    expected: String,
}

pub(super) fn fixture(major: u8) -> Fixture {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/fixtures/walscan/pg{major}"));
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let about = String::from_utf8(read("about.txt")).unwrap();
    let words: Vec<&str> = about.split_whitespace().collect();
    let first = u64::from_str_radix(words[1], 16).unwrap();
    let wal = zstd::decode_all(&read("wal.zst")[..]).unwrap();
    let segments = wal.chunks(1 << 20).zip(first..).map(|(bytes, number)| {
        let segment = Segment {
            system_identifier: words[0].parse().unwrap(),
            timeline: 1,
            start: number << 20,
            size: 1 << 20,
            major,
            sha256: [7; 32],
        };
        (segment, bytes.to_vec())
    });
    Fixture {
        segments: segments.collect(),
        expected: String::from_utf8(read("expected.txt")).unwrap(),
    }
}

/// All changes in the words of `expected.txt`.
fn describe(all: &[Changes]) -> String {
    let mut lines: BTreeMap<(u8, Vec<u64>), String> = BTreeMap::new();
    let mut blocks: BTreeMap<[u32; 4], Vec<u32>> = BTreeMap::new();
    let mut limits: BTreeMap<[u32; 4], u32> = BTreeMap::new();
    let mut points = String::new();
    for changes in all {
        for change in &changes.relations {
            let fork = change.fork;
            let key = [fork.tablespace, fork.database, fork.relation, u32::from(fork.fork)];
            blocks.entry(key).or_default().extend(change.block_numbers());
            if let Some(limit) = change.limit {
                let known = limits.entry(key).or_insert(limit);
                *known = limit.min(*known);
            }
        }
        for (tablespace, database) in &changes.databases {
            let line = format!("database {tablespace} {database}");
            lines.insert((2, vec![u64::from(*tablespace), u64::from(*database)]), line);
        }
        for tablespace in &changes.tablespaces {
            lines.insert((3, vec![u64::from(*tablespace)]), format!("tablespace {tablespace}"));
        }
        for end in &changes.transactions.ends {
            let kind = if end.aborted { "abort" } else { "commit" };
            let line = format!("end {} {} {} {kind}", end.xid, end.lsn, end.time);
            lines.insert((4, vec![u64::from(end.xid), end.lsn]), line);
        }
        for point in &changes.restore_points {
            writeln!(points, "point {} {} {}", point.lsn, point.time, point.name).unwrap();
        }
    }
    for ([a, b, c, d], mut numbers) in blocks {
        numbers.sort_unstable();
        numbers.dedup();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some(run) if run.1 + 1 == number => run.1 = number,
                _ => runs.push((number, number)),
            }
        }
        let runs: Vec<String> = runs
            .iter()
            .map(|(first, last)| {
                if first == last {
                    format!("{first}")
                } else {
                    format!("{first}-{last}")
                }
            })
            .collect();
        if !runs.is_empty() {
            lines.insert(
                (0, [a, b, c, d].map(u64::from).to_vec()),
                format!("blocks {a} {b} {c} {d} {}", runs.join(",")),
            );
        }
    }
    for ([a, b, c, d], limit) in limits {
        lines.insert(
            (1, [a, b, c, d].map(u64::from).to_vec()),
            format!("limit {a} {b} {c} {d} {limit}"),
        );
    }
    let mut text = lines
        .into_values()
        .fold(String::new(), |text, line| text + &line + "\n");
    text.push_str(&points);
    text
}

fn maps_keeping(fixture: &Fixture, limit: usize) -> Vec<SegmentMap> {
    let scanned = fixture.segments.iter().map(|(segment, bytes)| {
        let mut scanner = Scanner::new(*segment).keep_fragments(limit);
        scanner.feed(bytes);
        scanner.finish()
    });
    scanned.collect()
}

pub(super) fn maps(fixture: &Fixture) -> Vec<SegmentMap> {
    fixture
        .segments
        .iter()
        .map(|(segment, bytes)| scan(*segment, bytes))
        .collect()
}

#[test]
fn every_version_gives_the_blocks_limits_and_times_that_a_second_decoder_finds() {
    for major in VERSIONS {
        let fixture = fixture(major);
        let maps = maps(&fixture);
        let mut all: Vec<Changes> = Vec::new();
        for (map, next) in maps.iter().zip(maps.iter().skip(1)) {
            let Joined {
                mut changes,
                mut incomplete,
            } = join(map, next).unwrap();
            if incomplete.is_some_and(|(_, doubt)| doubt == Doubt::Opaque) {
                // The long logical message spans the segments.
                let again = maps_keeping(&fixture, 1 << 20);
                Joined { changes, incomplete } = join(&again[0], &again[1]).unwrap();
            }
            assert_eq!(incomplete, None, "PostgreSQL {major}");
            all.push(changes);
        }
        all.extend(maps.iter().map(|map| map.changes.clone()));
        assert_eq!(describe(&all), fixture.expected, "PostgreSQL {major}");
        assert!(
            all.iter().all(|changes| changes.needs_full.is_empty()),
            "PostgreSQL {major}"
        );
        assert_eq!(maps.last().unwrap().exit, Exit::Switch, "PostgreSQL {major}");
        assert!(maps.iter().all(SegmentMap::reaches_end));
    }
}

#[test]
fn pieces_of_any_size_give_the_same_map() {
    for major in VERSIONS {
        let fixture = fixture(major);
        for (segment, bytes) in &fixture.segments {
            let whole = scan(*segment, bytes);
            for piece in [1, 39, 40, 41, 1000, 8191, 8192, 8193, 100_000] {
                assert_eq!(
                    scan_in_pieces(*segment, bytes, piece),
                    whole,
                    "PostgreSQL {major}, {piece} bytes"
                );
            }
        }
    }
}

#[test]
fn an_encoded_map_comes_back_equal_and_small() {
    for major in VERSIONS {
        for map in maps(&fixture(major)) {
            let bytes = map.encode();
            assert_eq!(SegmentMap::decode(&bytes).unwrap(), map, "PostgreSQL {major}");
            let fragments = 2 * super::super::FRAGMENT_LIMIT;
            assert!(bytes.len() < 16 * 1024 + fragments, "{} bytes", bytes.len());
        }
    }
}

#[test]
fn neighbours_of_different_clusters_or_in_the_wrong_order_are_refused() {
    let thirteen = maps(&fixture(13));
    let fourteen = maps(&fixture(14));
    assert!(join(&thirteen[0], &fourteen[1]).is_err());
    assert!(join(&thirteen[1], &thirteen[0]).is_err());
    assert!(join(&thirteen[0], &thirteen[0]).is_err());
}
