#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::collections::BTreeMap;

use common::job::history::History;
use common::repository::evidence::Level;
use common::repository::tombstones::Tenant;

use super::*;
use crate::report::RepositoryReport;
use crate::schema::check_form;
use crate::stats::tests::{backup, day, report, run};

const LABEL: &str = "20261120T020000Z-incr-3f9a1c";

fn period() -> Period {
    Period {
        from: day(-10),
        to: day(0),
    }
}

fn test(at: i64, passed: bool, rto: Option<f64>) -> Test {
    Test {
        format: 1,
        started: day(at),
        finished: day(at),
        host: "h".to_owned(),
        writer: String::new(),
        cluster: "main".to_owned(),
        label: None,
        repository: None,
        level: Level::Standard,
        target: None,
        passed,
        problems: u64::from(!passed),
        rto_seconds: rto,
        rpo_seconds: None,
        newest_commit: None,
        size_bytes: None,
        durations: BTreeMap::from([("restore".to_owned(), 2.5)]),
        tables: 0,
        rows: 0,
        checked: 0,
        backed_up_version: None,
        tested_version: None,
    }
}

fn made(report: &Report, records: Records) -> Compliance {
    let objectives = Objectives {
        rpo: Some(Duration::from_secs(60)),
        rto: Some(Duration::from_secs(100)),
    };
    let made = Compliance::of(report, records, objectives, period());
    check_form("compliance", &serde_json::to_value(&made).unwrap());
    made
}

fn expect(text: &str, wanted: &[&str]) {
    for one in wanted {
        assert!(text.contains(one), "{one}\n{text}");
    }
}

#[test]
fn all_of_the_period_is_in_it_and_nothing_else() {
    let backups = vec![
        backup("before", "full", day(-11), 9),
        backup("in", "diff", day(-10), 9),
        backup("after", "full", day(0), 9),
    ];
    let report = report(backups);
    let records = Records {
        history: History {
            runs: vec![
                run("verify", -20, Outcome::Failed),
                run("verify", -5, Outcome::Failed),
                run("prune", -4, Outcome::Ok),
                run("sync", -3, Outcome::Skipped),
                run("sync", 0, Outcome::Temporary),
            ],
            unreadable: 2,
        },
        tests: vec![
            test(-2, false, Some(120.0)),
            test(-3, true, Some(60.0)),
            test(-3, true, Some(60.0)),
            test(-11, true, Some(999.0)),
        ],
        erasures: Vec::new(),
        untold: report.untold(),
    };
    let made = made(&report, records);
    let labels: Vec<&str> = made.backups.iter().map(|one| one.label.as_str()).collect();
    assert_eq!(labels, ["in"]);
    assert_eq!((made.restore_tests.len(), made.failures.len()), (2, 1));
    expect(
        &made.text(),
        &[
            "**Not complete:** repository away cannot be read: no answer",
            "1 backup, 1 of them good",
            " in (diff), 9 B in 1m, in local\n",
            "2 restore tests, 1 of them passed",
            "no backup (standard) on h: passed, no RPO, RTO 1m",
            "**not passed**, 1 problem",
            "RPO: objective 1m, **not measured**",
            "RTO: objective 1m40s, worst 2m, median 1m30s of 2 tests: **missed**",
            "verify on h: it broke",
            "2 lines of the audit record cannot be understood",
            "none recorded",
        ],
    );
}

#[test]
fn a_period_without_anything_says_so() {
    let mut report = report(Vec::new());
    report.repositories.truncate(1);
    let made = made(&report, Records::default());
    assert!(made.incomplete.is_empty());
    let text = made.text();
    expect(
        &text,
        &[
            "0 backups, 0 of them good",
            "0 restore tests, 0 of them passed",
            "0 failed runs on this host",
            "none recorded",
        ],
    );
    assert!(!text.contains("Not complete") && !text.contains("\n\n\n"), "{text}");
}

#[test]
fn a_backup_is_good_where_it_is_whole_everywhere() {
    let mut damaged = backup("b", "full", day(-1), 9);
    damaged.good = false;
    let mut report = report(vec![backup("b", "full", day(-1), 9)]);
    report.repositories[1] = RepositoryReport {
        name: "away".to_owned(),
        backups: vec![damaged],
        ..RepositoryReport::default()
    };
    let made = made(&report, Records::default());
    assert_eq!(made.backups.len(), 1);
    assert!(!made.backups[0].good);
    expect(
        &made.text(),
        &["1 backup, 0 of them good", "in local, away, **not good** in away"],
    );
}

#[test]
fn a_backup_that_retention_removed_is_known_from_the_audit_record() {
    let mut gone = run("base-backup", -4, Outcome::Ok);
    let fields = [
        ("label", Value::from(LABEL)),
        ("size_bytes", Value::from(9)),
        ("damaged_pages", Value::from(0)),
    ];
    gone.fields = fields.map(|(name, value)| (name.to_owned(), value)).into();
    let mut damaged = gone.clone();
    damaged
        .fields
        .insert("label".to_owned(), Value::from("20261121T020000Z-full-3f9a1c"));
    damaged.fields.insert("damaged_pages".to_owned(), Value::from(3));
    let mut rubbish = gone.clone();
    rubbish.fields.insert("label".to_owned(), Value::from("../etc"));
    let mut restored = gone.clone();
    restored.tool = "restore".to_owned();
    let records = |runs| Records {
        history: History { runs, unreadable: 0 },
        ..Records::default()
    };
    let runs = vec![gone.clone(), damaged, rubbish, restored];
    let text = made(&report(Vec::new()), records(runs)).text();
    expect(
        &text,
        &[
            "2 backups, 1 of them good",
            &format!("{LABEL} (incr), 9 B in 0s, in no repository that was read\n"),
            "in no repository that was read, **not good**",
        ],
    );
    let there = made(&report(vec![backup(LABEL, "incr", day(-4), 7)]), records(vec![gone]));
    assert_eq!(there.backups.len(), 1);
    assert_eq!(
        (there.backups[0].size_bytes, there.backups[0].repositories.len()),
        (7, 1)
    );
}

#[test]
fn worst_and_median_are_those_of_what_was_measured() {
    let of = |objective: Option<u64>, seconds: &[f64]| {
        let one = Measured::of(objective.map(Duration::from_secs), seconds.to_vec());
        (one.worst_seconds, one.median_seconds, one.met)
    };
    assert_eq!(of(None, &[]), (None, None, None));
    assert_eq!(of(Some(5), &[]), (None, None, None));
    assert_eq!(of(None, &[4.0]), (Some(4.0), Some(4.0), None));
    assert_eq!(of(Some(5), &[9.0, 1.0, 2.0]), (Some(9.0), Some(2.0), Some(false)));
    assert_eq!(of(Some(9), &[9.0, 1.0, 2.0, 4.0]), (Some(9.0), Some(3.0), Some(true)));
}

#[test]
fn when_all_failed_all_is_told_on_lines_of_its_own() {
    let mut failed = run("dump", -4, Outcome::Misconfigured);
    failed.message = Some("two\nlines".to_owned());
    let records = Records {
        history: History {
            runs: vec![failed, run("base-backup", -5, Outcome::Interrupted)],
            unreadable: 0,
        },
        tests: vec![test(-2, false, None)],
        ..Records::default()
    };
    let made = made(&report(Vec::new()), records);
    assert_eq!(made.failures[0].tool, "base-backup", "oldest first");
    expect(
        &made.text(),
        &[
            "2 failed runs",
            "dump on h: two lines\n",
            "1 restore test, 0 of them passed",
            "**not passed**, 1 problem, no RPO, no RTO",
        ],
    );
}

#[test]
fn an_erasure_is_told_once_and_in_its_period() {
    let erasure = |at| Erasure {
        time: day(at),
        host: "h".to_owned(),
        user: "postgres".to_owned(),
        system_identifier: "7".to_owned(),
        database_oid: Some(5),
        schema_oid: 16400,
        tenant: Some(Tenant {
            database: "app".to_owned(),
            schema: "acme".to_owned(),
            reason: "asked".to_owned(),
        }),
        gone: Vec::new(),
    };
    let other = Erasure {
        schema_oid: 16500,
        ..erasure(-30)
    };
    let records = Records {
        erasures: vec![erasure(-2), other, erasure(-2)],
        ..Records::default()
    };
    let made = made(&report(Vec::new()), records);
    assert_eq!(made.erasures.len(), 1);
    expect(
        &made.text(),
        &["asked for by postgres on h: acme of database app (OID 16400), not seen to be gone: asked"],
    );
    assert!(!made.text().contains("none recorded"));
}
