#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
use super::*;
use crate::report::{SystemReport, WindowReport};
use crate::schema::check_form;
use common::job::history::Run;

pub fn backup(label: &str, kind: &str, stopped: UtcTime, size: u64) -> BackupReport {
    BackupReport {
        label: label.to_owned(),
        kind: kind.to_owned(),
        system_identifier: "1".to_owned(),
        started: stopped,
        stopped,
        duration_seconds: 60.0,
        timeline: 1,
        start_lsn: "0/5000028".to_owned(),
        stop_lsn: "0/5000100".to_owned(),
        wal_first: String::new(),
        wal_last: String::new(),
        size_bytes: size,
        stored_bytes: size / 4,
        files: 1,
        good: true,
        lacks: None,
        damaged_pages: 0,
        damage: Vec::new(),
        damage_unknown: None,
        references: Vec::new(),
        note: None,
    }
}

/// A backup whose WAL begins with this segment and ends with it.
pub fn at_segment(backup: BackupReport, segment: u32) -> BackupReport {
    BackupReport {
        start_lsn: format!("0/{segment:X}000028"),
        stop_lsn: format!("0/{segment:X}000100"),
        ..backup
    }
}

/// What a backup reaches: all before this segment, the last one of which was stored then.
pub fn window(label: &str, end_segment: u32, last_stored: Option<UtcTime>) -> WindowReport {
    WindowReport {
        label: label.to_owned(),
        timeline: 1,
        from_time: UtcTime::UNIX_EPOCH,
        from_lsn: "0/1".to_owned(),
        to_lsn: format!("0/{end_segment:X}000000"),
        last_segment: String::new(),
        last_stored,
        missing: None,
    }
}

pub fn system(windows: Vec<WindowReport>) -> SystemReport {
    SystemReport {
        system_identifier: "1".to_owned(),
        major: 15,
        wal_segments: 3,
        wal_stored_bytes: 7,
        wal_ranges: Vec::new(),
        wal_gaps: Vec::new(),
        windows,
        unrecoverable: Vec::new(),
        unreadable_histories: Vec::new(),
        foreign: Vec::new(),
    }
}

pub fn day(day: i64) -> UtcTime {
    UtcTime::from_unix_seconds(1_790_000_000 + day * 86_400).unwrap()
}

pub fn run(tool: &str, at: i64, result: Outcome) -> Run {
    Run {
        started: day(at),
        finished: day(at),
        tool: tool.to_owned(),
        host: "h".to_owned(),
        result,
        message: (result != Outcome::Ok).then(|| "it broke".to_owned()),
        fields: BTreeMap::new(),
    }
}

pub fn report(backups: Vec<BackupReport>) -> Report {
    Report {
        schema: 1,
        cluster: "main".to_owned(),
        repositories: vec![
            RepositoryReport {
                name: "local".to_owned(),
                backups,
                systems: vec![system(vec![window("new", 6, Some(day(0)))])],
                ..RepositoryReport::default()
            },
            RepositoryReport {
                name: "away".to_owned(),
                error: Some("no answer".to_owned()),
                ..RepositoryReport::default()
            },
        ],
    }
}

fn stats(backups: Vec<BackupReport>, history: &History) -> Stats {
    let report = report(backups);
    Stats::of(&report, history, report.untold(), day(0))
}

fn schema_holds(stats: &Stats) {
    check_form("stats", &serde_json::to_value(stats).unwrap());
}

#[test]
fn rates_count_what_had_something_to_do() {
    let history = History {
        runs: vec![
            run("sync", -40, Outcome::Ok),
            run("base-backup", -40, Outcome::Failed),
            run("base-backup", -20, Outcome::Failed),
            run("base-backup", -3, Outcome::Ok),
            run("base-backup", -2, Outcome::Skipped),
            run("base-backup", -1, Outcome::Temporary),
            run("prune", -1, Outcome::Skipped),
            run("verify", -1, Outcome::Interrupted),
        ],
        unreadable: 1,
    };
    let stats = stats(Vec::new(), &history);
    let rates = &stats.jobs["base-backup"];
    assert_eq!((rates.days_7.succeeded, rates.days_7.runs), (1, 2));
    assert_eq!((rates.days_30.succeeded, rates.days_30.runs), (1, 3));
    assert_eq!(stats.jobs["prune"], Rates::default());
    assert_eq!(
        stats.jobs["sync"],
        Rates::default(),
        "what no longer runs is still named"
    );
    let text = stats.text();
    for wanted in [
        "50.0 % of 2",
        "33.3 % of 3",
        "0.0 % of 1",
        "no run",
        "1 line of the audit record cannot",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    schema_holds(&stats);
}

#[test]
fn sizes_and_growth_are_those_of_good_full_backups() {
    let mut bad = backup("bad", "full", day(-1), 999);
    bad.good = false;
    let backups = vec![
        backup("old", "full", day(-40), 100),
        backup("mid", "full", day(-8), 160),
        bad,
        backup("new", "full", day(-2), 200),
        backup("incr", "incr", day(-1), 210),
    ];
    let stats = stats(backups, &History::default());
    assert_eq!(stats.repositories.len(), 1, "what cannot be read has no sizes");
    let one = &stats.repositories[0];
    assert_eq!((one.backups, one.database_bytes), (4, Some(210)));
    let growth = |growth: &Option<Growth>| growth.as_ref().map(|one| (one.label.clone(), one.factor));
    assert_eq!(growth(&one.growth_since_last_full), Some(("mid".to_owned(), 1.25)));
    assert_eq!(growth(&one.growth_of_30_days), Some(("old".to_owned(), 2.0)));
    assert_eq!(
        (
            one.compression,
            one.largest.as_ref().map(|one| (one.size_bytes, one.stored_bytes))
        ),
        (Some(0.25), Some((999, 249)))
    );
    assert_eq!((one.backups_size_bytes, one.backups_stored_bytes), (1669, 416));
    let text = stats.text();
    for wanted in [
        "growth of the newest full backup since the full backup before, of ",
        ": +25.0 %",
        "about 30 days before it, of ",
        ": +100.0 %",
        "4 good backups, the oldest of ",
        "NOT COMPLETE: repository away cannot be read: no answer",
        "recoverable on timeline 1\n    F",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    schema_holds(&stats);
}

#[test]
fn a_month_before_is_neither_a_week_nor_a_year_before() {
    let newest = backup("new", "full", day(0), 200);
    for (age, counts) in [
        (7, false),
        (15, true),
        (30, true),
        (45, true),
        (46, false),
        (365, false),
    ] {
        let old = backup("old", "full", day(-age), 100);
        assert_eq!(of_a_month(&[&old, &newest]).is_some(), counts, "{age}");
    }
    let (near, far) = (
        backup("near", "full", day(-28), 100),
        backup("far", "full", day(-35), 100),
    );
    assert_eq!(of_a_month(&[&far, &near, &newest]).unwrap().label, "near");
    assert_eq!(of_a_month(&[&newest]), None);
    assert_eq!(of_a_month(&[]), None);
}

#[test]
fn with_nothing_there_is_nothing_to_divide_by() {
    let nothing = stats(Vec::new(), &History::default());
    let one = &nothing.repositories[0];
    assert_eq!(
        (one.oldest, &one.growth_of_30_days, one.compression),
        (None, &None, None)
    );
    assert!(one.timelines.is_empty());
    let text = nothing.text();
    assert!(
        text.contains("no run is recorded") && text.contains("no good backup"),
        "{text}"
    );
    schema_holds(&nothing);
    let empty = stats(vec![backup("new", "full", day(-2), 0)], &History::default());
    let one = &empty.repositories[0];
    assert_eq!((one.compression, &one.growth_since_last_full), (None, &None));
    let sizes = [backup("old", "full", day(-9), 0), backup("new", "full", day(-2), 1)];
    assert_eq!(
        stats(sizes.into(), &History::default()).repositories[0].growth_since_last_full,
        None
    );
}

#[test]
fn where_no_backup_is_good_none_is_the_oldest() {
    let mut bad = backup("new", "full", day(-2), 10);
    bad.good = false;
    let stats = stats(vec![bad], &History::default());
    let one = &stats.repositories[0];
    assert_eq!((one.backups, one.newest, one.database_bytes), (0, None, None));
    assert_eq!((one.backups_size_bytes, one.timelines.len()), (10, 0));
    schema_holds(&stats);
}

#[test]
fn more_gaps_than_a_few_are_counted() {
    let labels: Vec<String> = (0..8).map(|number| format!("b{number}")).collect();
    let one =
        |(number, label): (usize, &String)| at_segment(backup(label, "full", day(number as i64), 9), number as u32 * 2);
    let mut report = report(labels.iter().enumerate().map(one).collect());
    let window = |(number, label): (usize, &String)| window(label, number as u32 * 2 + 1, Some(day(number as i64)));
    report.repositories[0].systems = vec![system(labels.iter().enumerate().map(window).collect())];
    let text = Stats::of(&report, &History::default(), Vec::new(), day(9)).text();
    assert_eq!(text.matches("NOT RECOVERABLE: from").count(), 5, "{text}");
    assert!(text.contains("NOT RECOVERABLE: 2 more gaps"), "{text}");
}
