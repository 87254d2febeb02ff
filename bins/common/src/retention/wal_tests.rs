#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::postgres::Lsn;

const SIZE: u64 = 16 << 20;

/// A backup from segment `first` to `last` on a timeline.
fn backup(timeline: u32, first: u64, last: u64) -> BackupInfo {
    let label = format!("20261120T{:06}Z-full-{:06x}", first, timeline);
    let text = format!(
        r#"{{"format":1,"label":"{label}","type":"full","cluster":"main","system_identifier":"7","major":15,
        "server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,"started":"2026-11-20T00:00:00Z",
        "stopped":"2026-11-20T00:00:00Z","finished":"2026-11-20T00:00:00Z","timeline":{timeline},"start_lsn":"{}",
        "stop_lsn":"{}","wal":{{"first":"a","last":"b"}},"segment_size":{SIZE},"block_size":8192,"data_checksums":true,
        "tablespaces":[],"base":null,"references":[],"reused_from":null,"files":1,"size":1,"stored":1,"durations":{{}},
        "damaged_pages":0,"good":true,"objects":[],"signature":null}}"#,
        Lsn(first * SIZE + 40),
        Lsn(last * SIZE + 300),
    );
    serde_json::from_str(&text).unwrap()
}

fn needed(kept: &[(BackupInfo, bool)]) -> Needed {
    Needed::by(kept.iter().map(|(backup, window)| (backup, *window))).unwrap()
}

/// The segments from 1 to 20 of a timeline that stay.
fn stays(needed: &Needed, timeline: u32) -> Vec<u64> {
    let one = |number: &u64| needed.why(TimelineId(timeline), SegmentNumber(*number)).is_some();
    (1..=20).filter(one).collect()
}

#[test]
fn behind_a_backup_of_the_window_everything_stays_and_before_it_what_makes_others_consistent() {
    let kept = [
        (backup(1, 3, 4), false),
        (backup(1, 9, 9), true),
        (backup(1, 12, 13), true),
    ];
    let needed = needed(&kept);
    assert_eq!(stays(&needed, 1), [3, 4, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
    let cut = needed.cut(&Range {
        timeline: TimelineId(1),
        first: SegmentNumber(1),
        last: SegmentNumber(20),
    });
    let said: Vec<(u64, u64, bool)> = cut
        .iter()
        .map(|(range, why)| (range.first.0, range.last.0, why.is_some()))
        .collect();
    assert_eq!(said, [(1, 2, false), (3, 4, true), (5, 8, false), (9, 20, true)]);
    assert_eq!(cut[1].1, Some(Why::Consistent(kept[0].0.label)));
    assert_eq!(cut[3].1, Some(Why::Window(kept[1].0.label)));
}

#[test]
fn timelines_that_may_descend_from_a_backup_s_stay_and_earlier_ones_go() {
    let needed = needed(&[(backup(2, 9, 9), true), (backup(3, 4, 4), true)]);
    assert_eq!(stays(&needed, 1), [0u64; 0]);
    assert_eq!(stays(&needed, 2), (9..=20).collect::<Vec<_>>());
    // Timeline 3 was begun further back, by a restore.
    assert_eq!(stays(&needed, 3), (4..=20).collect::<Vec<_>>());
    assert_eq!(stays(&needed, 4), (4..=20).collect::<Vec<_>>());
}

#[test]
fn histories_stay_while_anything_of_their_system_does() {
    let size = SegmentSize::new(SIZE).unwrap();
    let keeps = |needed: &Needed, name: &str| needed.keeps(&WalName::parse(name).unwrap(), size);
    let some = needed(&[(backup(1, 3, 4), false)]);
    let none = needed(&[]);
    for name in ["00000002.history", "000000010000000000000001.00000028.backup"] {
        assert!(
            keeps(&some, name) && !keeps(&none, name) && keeps(&Needed::all(), name),
            "{name}"
        );
    }
    assert!(keeps(&some, "000000010000000000000003.partial"));
    assert!(!keeps(&some, "000000010000000000000005.partial"));
    // Beyond the numbers that this segment size has: not this system's.
    assert!(keeps(&none, "0000000100000000FFFFFFFF"));
}

#[test]
fn in_random_histories_every_backup_keeps_its_wal_and_a_window_has_no_hole() {
    let mut seed = 1u64;
    let mut below = |limit: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % limit
    };
    for round in 0..1000 {
        let kept: Vec<(BackupInfo, bool)> = (0..below(6))
            .map(|_| {
                let first = 1 + below(15);
                (backup(1 + below(3) as u32, first, first + below(3)), below(2) == 0)
            })
            .collect();
        let needed = needed(&kept);
        for (backup, window) in &kept {
            let size = SegmentSize::new(SIZE).unwrap();
            let first = SegmentNumber::containing(backup.start_lsn, size).0;
            let last = SegmentNumber::ending_at(backup.stop_lsn, size).0;
            let to = if *window { 20 } else { last };
            for number in first..=to {
                let why = needed.why(backup.timeline(), SegmentNumber(number));
                assert!(why.is_some(), "round {round}: {number} of {}", backup.label);
            }
        }
        for timeline in 1..=4 {
            let range = Range {
                timeline: TimelineId(timeline),
                first: SegmentNumber(1),
                last: SegmentNumber(20),
            };
            let cut = needed.cut(&range);
            let flat: Vec<u64> = cut
                .iter()
                .filter(|(_, why)| why.is_some())
                .flat_map(|(range, _)| range.first.0..=range.last.0)
                .collect();
            assert_eq!(flat, stays(&needed, timeline), "round {round}");
            let count: u64 = cut.iter().map(|(range, _)| range.last.0 - range.first.0 + 1).sum();
            assert_eq!(count, 20, "round {round}");
        }
    }
}
