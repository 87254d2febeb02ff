#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::time::Duration;

use super::*;
use crate::report::WindowReport;
use crate::stats::tests::{at_segment, backup, system, window};

fn at(hours: i64) -> UtcTime {
    UtcTime::from_unix_seconds(1_790_000_000 + hours * 3600).unwrap()
}

fn one_row(windows: Vec<WindowReport>, backups: &[BackupReport]) -> Row {
    let mut rows = rows(&[system(windows)], backups);
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

#[test]
fn backups_stand_at_their_times_and_the_line_ends_with_the_last_wal() {
    let backups = [
        at_segment(backup("a", "full", at(0), 10), 1),
        at_segment(backup("b", "incr", at(30), 10), 3),
        at_segment(backup("c", "diff", at(40), 10), 5),
    ];
    let end = Some(at(59));
    let row = one_row(
        vec![window("a", 9, end), window("b", 9, end), window("c", 9, end)],
        &backups,
    );
    assert_eq!((row.from, row.to), (at(0), at(59)));
    assert!(row.gaps.is_empty());
    let expected = format!("F{}I{}D{}", "=".repeat(29), "=".repeat(9), "=".repeat(19));
    assert_eq!(row.line, expected);
    assert_eq!(row.line.len(), WIDTH);
}

#[test]
fn a_gap_in_wal_is_seen_and_told_with_its_times() {
    let backups = [
        at_segment(backup("a", "full", at(0), 10), 1),
        at_segment(backup("b", "full", at(50), 10), 8),
    ];
    let row = one_row(
        vec![window("a", 4, Some(at(20))), window("b", 12, Some(at(59)))],
        &backups,
    );
    assert_eq!(
        row.gaps,
        [Gap {
            from: at(20),
            to: at(50)
        }]
    );
    let expected = format!("F{}{}F{}", "=".repeat(19), ".".repeat(30), "=".repeat(9));
    assert_eq!(row.line, expected);
}

#[test]
fn wal_that_was_copied_late_hides_no_gap() {
    let mut second = at_segment(backup("b", "full", at(50), 10), 8);
    second.started = at(49);
    let backups = [at_segment(backup("a", "full", at(0), 10), 1), second];
    let copied = Some(at(100));
    let row = one_row(vec![window("a", 4, copied), window("b", 12, copied)], &backups);
    assert_eq!(
        row.gaps,
        [Gap {
            from: at(49),
            to: at(50)
        }]
    );
    assert_eq!(row.to, at(100));
}

#[test]
fn a_time_that_is_not_known_makes_no_gap_where_wal_is_unbroken() {
    let backups = [
        at_segment(backup("a", "full", at(0), 10), 1),
        at_segment(backup("b", "incr", at(10), 10), 3),
    ];
    let row = one_row(vec![window("a", 9, None), window("b", 9, None)], &backups);
    assert!(row.gaps.is_empty());
    assert_eq!(row.to, at(10));
    // A clock of the store that is behind does not end a line before its backup.
    let row = one_row(vec![window("b", 9, Some(at(5)))], &backups);
    assert_eq!((row.from, row.to, row.line.as_str()), (at(10), at(10), "I"));
}

#[test]
fn each_timeline_has_its_row() {
    let backups = [at_segment(backup("a", "full", at(0), 10), 1)];
    let mut second = window("a", 9, Some(at(9)));
    second.timeline = 2;
    let rows = rows(&[system(vec![second, window("a", 4, Some(at(4)))])], &backups);
    let ends: Vec<(u32, UtcTime)> = rows.iter().map(|row| (row.timeline, row.to)).collect();
    assert_eq!(ends, [(1, at(4)), (2, at(9))]);
}

#[test]
fn of_backups_in_one_place_the_full_one_is_shown() {
    let soon = at(0).plus(Duration::from_secs(60));
    let backups = [
        at_segment(backup("a", "full", at(0), 10), 1),
        at_segment(backup("b", "incr", soon, 10), 2),
    ];
    let row = one_row(
        vec![window("a", 9, Some(at(59))), window("b", 9, Some(at(59)))],
        &backups,
    );
    assert!(row.line.starts_with("F="), "{}", row.line);
}

#[test]
fn without_a_good_backup_there_is_no_row() {
    let mut bad = backup("a", "full", at(0), 10);
    bad.good = false;
    assert!(rows(&[system(vec![window("a", 9, Some(at(9)))])], &[bad]).is_empty());
    assert!(rows(&[system(Vec::new())], &[]).is_empty());
    let other = backup("other", "full", at(0), 10);
    assert!(rows(&[system(vec![window("a", 9, Some(at(9)))])], &[other]).is_empty());
}
