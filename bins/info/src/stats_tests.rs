#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
use super::*;
use crate::report::{SystemReport, WindowReport};
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

pub fn window(label: &str, missing: Option<&str>) -> WindowReport {
    WindowReport {
        label: label.to_owned(),
        timeline: 1,
        from_time: UtcTime::UNIX_EPOCH,
        from_lsn: "0/1".to_owned(),
        to_lsn: "0/2000000".to_owned(),
        last_segment: String::new(),
        missing: missing.map(str::to_owned),
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
                systems: vec![system(vec![window("new", None)])],
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

#[test]
fn rates_count_what_had_something_to_do() {
    let history = History {
        runs: vec![
            run("base-backup", -40, Outcome::Failed),
            run("base-backup", -20, Outcome::Failed),
            run("base-backup", -3, Outcome::Ok),
            run("base-backup", -2, Outcome::Skipped),
            run("base-backup", -1, Outcome::Temporary),
        ],
        unreadable: 1,
    };
    let stats = Stats::of(&report(Vec::new()), &history, day(0));
    let rates = &stats.jobs["base-backup"];
    assert_eq!((rates.days_7.succeeded, rates.days_7.runs), (1, 2));
    assert_eq!((rates.days_30.succeeded, rates.days_30.runs), (1, 3));
    let text = stats.text();
    assert!(text.contains("50.0 % of 2") && text.contains("33.3 % of 3"), "{text}");
    assert!(text.contains("1 line of the audit record cannot"), "{text}");
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
    let stats = Stats::of(&report(backups), &History::default(), day(0));
    assert_eq!(stats.repositories.len(), 1, "what cannot be read has no sizes");
    let one = &stats.repositories[0];
    assert_eq!((one.backups, one.database_bytes), (4, Some(210)));
    assert_eq!(
        (one.growth_since_last_full, one.growth_of_30_days),
        (Some(1.25), Some(2.0))
    );
    assert_eq!(
        (one.compression, one.largest.as_ref().map(|one| one.stored_bytes)),
        (Some(0.25), Some(249))
    );
    assert!(
        stats.text().contains("growth since 30 days: +100.0 %"),
        "{}",
        stats.text()
    );
}

#[test]
fn with_nothing_there_is_nothing_to_divide_by() {
    let stats = Stats::of(&report(Vec::new()), &History::default(), day(0));
    let one = &stats.repositories[0];
    assert_eq!((one.oldest, one.growth_of_30_days, one.compression), (None, None, None));
    assert!(
        stats.text().contains("no run in 30 days") && stats.text().contains("0 good backups"),
        "{}",
        stats.text()
    );
    let one = Stats::of(
        &report(vec![backup("new", "full", day(-2), 0)]),
        &History::default(),
        day(0),
    );
    assert_eq!(one.repositories[0].compression, None);
}
