#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::exit::WORK;

/// A job's surroundings in a directory of its own.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("metrics")).unwrap();
        Self { root }
    }

    fn job(&self, now: UtcTime) -> Job {
        let settings = JobSettings {
            state_directory: self.root.path().join("state"),
            metrics_directory: self.root.path().join("metrics"),
            cluster: "main".to_owned(),
            tool: "base-backup",
            origin: Origin {
                host: "db1".to_owned(),
                user: "postgres".to_owned(),
                pid: 42,
            },
        };
        Job::start(settings, now)
    }

    fn status_path(&self) -> PathBuf {
        Status::path(&self.root.path().join("state"), "main", "base-backup")
    }

    fn status(&self) -> Status {
        Status::read(&self.status_path()).unwrap().unwrap()
    }

    fn history(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.root.path().join("state/main/history.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn metrics(&self) -> String {
        fs::read_to_string(self.root.path().join("metrics/pgkeep_main_base-backup.prom")).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.root.path().join(path)).unwrap().permissions().mode() & 0o7777
    }
}

fn at(text: &str) -> UtcTime {
    text.parse().unwrap()
}

fn failure() -> Report {
    Report::failure(&Error::new(Kind::Failed, "disk broke").context("cannot write"), WORK)
}

#[test]
fn a_success_leaves_status_history_and_metrics() {
    let place = Place::new();
    let (start, end) = (at("2026-11-20T02:00:00Z"), at("2026-11-20T02:10:00.5Z"));
    let repository =
        Sample::new("pgkeep_repository_bytes", 5e9, "Bytes in the repository.").label("repository", "a\"b");
    let report = Report::success()
        .field("size_bytes", 123_456_789_012_u64)
        .field("label", "x")
        .sample(repository);
    place.job(start).finish(&report, end);

    let status = place.status();
    assert_eq!((status.result, status.exit_code, status.pid), (Outcome::Ok, 0, 42));
    assert_eq!((status.started, status.finished), (start, end));
    assert_eq!((status.last_success, status.last_failure), (Some(end), None));
    assert_eq!(status.fields["label"], "x");

    let history = place.history();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0]["user"], "postgres");
    assert_eq!(history[0]["duration_seconds"], 600.5);
    assert_eq!(history[0]["fields"]["size_bytes"], 123_456_789_012_u64);

    let metrics = place.metrics();
    for line in [
        "pgkeep_base_backup_success{cluster=\"main\"} 1\n",
        "pgkeep_base_backup_duration_seconds{cluster=\"main\"} 600.5\n",
        "pgkeep_base_backup_last_success_timestamp_seconds{cluster=\"main\"} 1795140600\n",
        "pgkeep_base_backup_size_bytes{cluster=\"main\"} 123456789012\n",
        "# TYPE pgkeep_repository_bytes gauge\n",
        "pgkeep_repository_bytes{cluster=\"main\",repository=\"a\\\"b\"} 5000000000\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
}

#[test]
fn others_may_read_the_status_and_only_the_owner_the_history() {
    let place = Place::new();
    place
        .job(UtcTime::UNIX_EPOCH)
        .finish(&Report::success(), UtcTime::UNIX_EPOCH);
    assert_eq!(place.mode("state/main"), 0o755);
    assert_eq!(place.mode("state/main/status"), 0o755);
    assert_eq!(place.mode("state/main/status/base-backup.json"), 0o644);
    assert_eq!(place.mode("state/main/history.jsonl"), 0o600);
    assert_eq!(place.mode("metrics/pgkeep_main_base-backup.prom"), 0o644);
}

#[test]
fn a_later_failure_does_not_erase_the_last_success() {
    let place = Place::new();
    let (good, bad) = (at("2026-11-20T02:00:00Z"), at("2026-11-21T02:00:00Z"));
    place.job(good).finish(&Report::success().field("size_bytes", 7), good);
    place.job(bad).finish(&failure(), bad);

    let status = place.status();
    assert_eq!((status.result, status.exit_code), (Outcome::Failed, 1));
    assert_eq!((status.last_success, status.last_failure), (Some(good), Some(bad)));
    assert_eq!(status.message.as_deref(), Some("cannot write: disk broke"));
    let metrics = place.metrics();
    assert!(
        metrics.contains("pgkeep_base_backup_success{cluster=\"main\"} 0\n"),
        "{metrics}"
    );
    assert!(metrics.contains(&format!(
        "last_success_timestamp_seconds{{cluster=\"main\"}} {}\n",
        good.unix_seconds()
    )));
    assert!(
        metrics.contains("pgkeep_base_backup_size_bytes{cluster=\"main\"} 7\n"),
        "{metrics}"
    );
    assert_eq!(place.history().len(), 2);
}

#[test]
fn never_is_an_absent_sample() {
    let place = Place::new();
    place.job(UtcTime::UNIX_EPOCH).finish(&failure(), UtcTime::UNIX_EPOCH);
    assert!(!place.metrics().contains("last_success"), "{}", place.metrics());
    assert!(
        !fs::read_to_string(place.status_path())
            .unwrap()
            .contains("\"last_success\":")
    );
}

#[test]
fn a_run_with_rightly_nothing_to_do_is_no_success_and_no_failure() {
    let place = Place::new();
    let (good, later) = (at("2026-11-20T02:00:00Z"), at("2026-11-21T02:00:00Z"));
    place.job(good).finish(&Report::success(), good);
    place
        .job(later)
        .finish(&Report::skipped("this host is a replica"), later);
    let status = place.status();
    assert_eq!((status.result, status.exit_code), (Outcome::Skipped, 0));
    assert_eq!((status.last_success, status.last_failure), (Some(good), None));
    assert!(
        place
            .metrics()
            .contains("pgkeep_base_backup_success{cluster=\"main\"} 1\n")
    );
}

#[test]
fn the_kind_of_an_error_decides_how_a_run_ended() {
    let cases = [
        (Kind::Transient, Outcome::Temporary, 75),
        (Kind::Busy, Outcome::Temporary, 75),
        (Kind::Config, Outcome::Misconfigured, 2),
        (Kind::Corrupt, Outcome::Failed, 1),
    ];
    for (kind, outcome, code) in cases {
        let report = Report::failure(&Error::new(kind, "x"), WORK);
        assert_eq!((report.outcome, report.exit_code), (outcome, code), "{kind:?}");
    }
}

#[test]
fn a_line_that_a_crash_cut_short_does_not_swallow_the_next() {
    let place = Place::new();
    fs::create_dir_all(place.root.path().join("state/main")).unwrap();
    let history = place.root.path().join("state/main/history.jsonl");
    fs::write(&history, "{\"tool\":\"pru").unwrap();
    place
        .job(UtcTime::UNIX_EPOCH)
        .finish(&Report::success(), UtcTime::UNIX_EPOCH);
    let text = fs::read_to_string(history).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["tool"], "base-backup");
}

#[test]
fn a_damaged_status_is_replaced() {
    let place = Place::new();
    place
        .job(UtcTime::UNIX_EPOCH)
        .finish(&Report::success(), UtcTime::UNIX_EPOCH);
    fs::write(place.status_path(), "").unwrap();
    assert_eq!(Status::read(&place.status_path()).unwrap_err().kind(), Kind::Corrupt);
    place.job(UtcTime::UNIX_EPOCH).finish(&failure(), UtcTime::UNIX_EPOCH);
    assert_eq!(place.status().last_success, None);
}

#[test]
fn failing_to_leave_traces_does_not_fail_the_job() {
    let place = Place::new();
    fs::write(place.root.path().join("state"), "in the way").unwrap();
    place
        .job(UtcTime::UNIX_EPOCH)
        .finish(&Report::success(), UtcTime::UNIX_EPOCH);
    place
        .job(UtcTime::UNIX_EPOCH)
        .leave_quick(&Report::success(), UtcTime::UNIX_EPOCH);
    assert!(place.metrics().contains("_success"), "what can be written still is");
}

#[test]
fn metrics_are_left_only_where_their_directory_is_prepared() {
    let place = Place::new();
    fs::remove_dir(place.root.path().join("metrics")).unwrap();
    place
        .job(UtcTime::UNIX_EPOCH)
        .finish(&Report::success(), UtcTime::UNIX_EPOCH);
    assert!(!place.root.path().join("metrics").exists());
    assert!(place.status_path().exists());
}

#[test]
fn quick_traces_are_left_once_a_second_and_without_audit_line() {
    let place = Place::new();
    let quick = |report: Report, now| place.job(now).leave_quick(&report, now);
    quick(Report::success().field("n", 1), UtcTime::now());
    let written = UtcTime::try_from(fs::metadata(place.status_path()).unwrap().modified().unwrap()).unwrap();
    let after = |ms| written.plus(Duration::from_millis(ms));

    quick(Report::success().field("n", 2), after(500));
    assert_eq!(place.status().fields["n"], 1, "within the same second");
    quick(Report::success().field("n", 3), after(1000));
    assert_eq!(place.status().fields["n"], 3, "a second later");
    quick(Report::success().field("n", 4), written.minus(Duration::from_secs(60)));
    assert_eq!(place.status().fields["n"], 4, "after the clock was set back");
    assert!(!place.root.path().join("state/main/history.jsonl").exists());
}

#[test]
fn a_quick_failure_is_not_hidden_by_the_success_just_before_it() {
    let place = Place::new();
    let now = UtcTime::now();
    place.job(now).leave_quick(&Report::success(), now);
    let written = UtcTime::try_from(fs::metadata(place.status_path()).unwrap().modified().unwrap()).unwrap();
    let soon = written.plus(Duration::from_millis(1));
    place.job(soon).leave_quick(&failure(), soon);
    let status = place.status();
    assert_eq!((status.result, status.last_success), (Outcome::Failed, Some(now)));
}

#[test]
fn a_field_with_a_name_of_its_own_kind_cannot_spoil_the_metrics() {
    let place = Place::new();
    let report = Report::success()
        .field("bad name", 1)
        .field("success", 9)
        .field("seconds", 3);
    place.job(UtcTime::UNIX_EPOCH).finish(&report, UtcTime::UNIX_EPOCH);
    let metrics = place.metrics();
    assert!(!metrics.contains("bad name") && !metrics.contains(" 9\n"), "{metrics}");
    assert!(
        metrics.contains("pgkeep_base_backup_seconds{cluster=\"main\"} 3\n"),
        "{metrics}"
    );
}
