//! What info answers on the command line.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use system_tests::{Bare, mutilate};

mod schema;

use schema::check_form;

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    let bare = Bare::new("info_common");
    bare.check_common_answers("info", &[], 2);
    for flag in ["--nonsense", "--report"] {
        bare.tool("info").arg(flag).run().expect_code(2);
    }
    bare.tool("info")
        .args(["--repository", "nobody"])
        .run()
        .expect_code(2)
        .expect_said("\"nobody\"");
}

#[test]
fn no_backup_and_no_repository_are_told_apart() {
    let bare = Bare::new("info_empty");
    let info = || bare.tool("info").run();
    info()
        .expect_code(1)
        .expect_said("cannot be read: ")
        .expect_said("cannot read all of repository local");
    bare.tool("init").run().expect_code(0);
    info()
        .expect_code(0)
        .expect_quiet()
        .expect_said("no backup")
        .expect_said("PostgreSQL 15");
    let main = bare.repository.join("main");
    mutilate::chmod(&main, 0);
    let ran = info().expect_code(1).expect_said("Permission denied");
    assert!(!ran.stdout.contains("no backup"), "{}", ran.report());
    mutilate::chmod(&main, 0o700);
    mutilate::remove(&bare.repository);
    info()
        .expect_code(1)
        .expect_said("does not exist")
        .expect_said("is the file system mounted?");
}

#[test]
fn the_json_has_exactly_the_fields_of_its_schema() {
    let bare = Bare::new("info_json");
    let json = |code| {
        bare.tool("info")
            .args(["--format", "json"])
            .run()
            .expect_code(code)
            .json()
    };
    let unread = json(1);
    assert!(unread["repositories"][0]["error"].is_string());
    check_form("", &unread);
    bare.tool("init").run().expect_code(0);
    let name = bare.history(2, "1\t0/3000000\tno recovery target specified\n");
    bare.tool("archive-push")
        .arg(format!("pg_wal/{name}"))
        .run()
        .expect_code(0);
    // An unreadable backup, so that this part of the schema is seen too.
    let backup = bare.repository.join("main/backup/20261120T020000Z-full-3f9a1c");
    bare.scratch.create_dir("repository/main/backup");
    bare.scratch
        .create_dir("repository/main/backup/20261120T020000Z-full-3f9a1c");
    system_tests::account::write(&backup.join("backup.json"), "rubbish", 0o400);
    let report = json(1);
    check_form("", &report);
    let repository = &report["repositories"][0];
    assert!(
        repository["error"].is_null() && repository["systems"][0]["major"] == 15,
        "{report}"
    );
    assert_eq!(repository["unreadable"][0]["label"], "20261120T020000Z-full-3f9a1c");
}

#[test]
fn a_history_that_cannot_be_read_is_named_and_hides_nothing_else() {
    let bare = Bare::new("info_history");
    bare.tool("init").run().expect_code(0);
    for timeline in [2, 3] {
        let name = bare.history(timeline, "1\t0/3000000\tno recovery target specified\n");
        let push = bare.tool("archive-push").arg(format!("pg_wal/{name}"));
        push.run().expect_code(0);
    }
    let stored: Vec<_> = walk(&bare.repository.join("main/wal"))
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("00000002.history"))
        .collect();
    assert_eq!(stored.len(), 1, "{stored:?}");
    mutilate::flip_middle_bit(&stored[0]);
    let info = |arguments: &[&str]| bare.tool("info").args(arguments).run().expect_code(1);
    info(&[])
        .expect_said("UNREADABLE: the history of timeline 2")
        .expect_said("00000002.history")
        .expect_said("no backup")
        .expect_said("cannot read all of repository local");
    let report = info(&["--format", "json"]).json();
    check_form("", &report);
    let repository = &report["repositories"][0];
    assert!(repository["error"].is_null(), "{report}");
    let unreadable = repository["systems"][0]["unreadable_histories"].as_array().unwrap();
    assert_eq!(unreadable.len(), 1, "{report}");
    assert_eq!(unreadable[0]["timeline"], 2, "{report}");
}

#[test]
fn a_repository_that_is_another_one_than_this_host_knows_is_a_problem() {
    let bare = Bare::new("info_uuid");
    bare.tool("init").run().expect_code(0);
    let path = bare.repository.join("main/repository.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let uuid = serde_json::from_str::<Value>(&text).unwrap()["uuid"]
        .as_str()
        .unwrap()
        .to_owned();
    mutilate::remove(&path);
    let other = text.replace(&uuid, "0d6c2d1e-0000-4000-8000-000000000000");
    system_tests::account::write(&path, other, 0o400);
    bare.tool("info")
        .run()
        .expect_code(1)
        .expect_said("this host knows it as")
        .expect_said(&uuid);
    let damaged = "rubbish";
    mutilate::remove(&path);
    system_tests::account::write(&path, damaged, 0o400);
    bare.tool("info")
        .run()
        .expect_code(1)
        .expect_said("put it back from a copy");
}

#[test]
fn a_backup_that_was_left_behind_is_told_from_one_that_runs() {
    let bare = Bare::new("info_unfinished");
    bare.tool("init").run().expect_code(0);
    let label = "20261120T020000Z-full-3f9a1c";
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let intent = |host: &str| {
        format!(
            "{{\"format\":1,\"label\":\"{label}\",\"host\":\"{}\",\"pid\":1,\"started\":\"2026-11-20T02:00:00Z\",\
             \"system_identifier\":\"7\",\"leans_on\":[]}}\n",
            host.trim()
        )
    };
    bare.scratch.create_dir("repository/main/backup");
    let backup = bare.scratch.create_dir(&format!("repository/main/backup/{label}"));
    for (host, words) in [
        (host.as_str(), "(left behind, begun by process 1"),
        ("elsewhere", "running or left behind"),
    ] {
        let path = backup.join("intent.json");
        if path.exists() {
            mutilate::remove(&path);
        }
        system_tests::account::write(&path, intent(host), 0o400);
        bare.tool("info").run().expect_code(0).expect_said(words);
    }
    let report = bare.tool("info").args(["--format", "json"]).run().expect_code(0).json();
    check_form("", &report);
}

const LABEL: &str = "20261120T020000Z-full-3f9a1c";

#[test]
fn statistics_and_a_report_say_what_they_could_not_read() {
    let bare = Bare::new("info_statistics");
    let info = |words: &[&str], code| bare.tool("info").args(words).run().expect_code(code);
    let period = ["--report", "2026-11-01", "2026-12-01"];
    info(&["--stats"], 1)
        .expect_said("no run is recorded")
        .expect_said("NOT COMPLETE: repository local cannot be read: ");
    info(&period, 1)
        .expect_said("**Not complete:** repository local cannot be read: ")
        .expect_said("0 backups, 0 of them good")
        .expect_said("cannot read all of repository local");
    bare.tool("init").run().expect_code(0);
    info(&["--stats"], 0).expect_quiet().expect_said("no good backup");
    info(&period, 0).expect_quiet().expect_said("none recorded");

    let line = |tool: &str, more: &str| {
        format!(
            "{{\"started\":\"2026-11-20T02:00:00Z\",\"finished\":\"2026-11-20T02:10:00Z\",\"tool\":\"{tool}\",\
             \"host\":\"db1\",{more}}}\n"
        )
    };
    let record = line("verify", "\"result\":\"failed\",\"message\":\"damage\\nfound\"")
        + "rubbish\n"
        + &line(
            "base-backup",
            &format!("\"result\":\"ok\",\"fields\":{{\"label\":\"{LABEL}\",\"size_bytes\":1000,\"damaged_pages\":0}}"),
        );
    let history = bare.scratch.path("state/main/history.jsonl");
    system_tests::account::write(&history, record, 0o600);
    info(&["--stats"], 0)
        .expect_said("1 line of the audit record cannot be understood")
        .expect_said("base-backup");
    info(&period, 0)
        .expect_said(&format!(
            "{LABEL} (full), 1000 B in 10m, in no repository that was read"
        ))
        .expect_said("verify on db1: damage found")
        .expect_said("1 line of the audit record");
    check_form("stats", &info(&["--stats", "--format", "json"], 0).json());
    let words = [&period[..], &["--format", "json"]].concat();
    check_form("compliance", &info(&words, 0).json());

    let event = bare
        .repository
        .join("main/events/20261120T020000Z-3f9a1c-tombstone.json");
    let tombstone = "{\"format\":1,\"kind\":\"tombstone\",\"time\":\"2026-11-20T02:00:00Z\",\"host\":\"db1\",\
                     \"writer\":\"pgkeep\",\"system_identifier\":\"7\",\"database_oid\":5,\"schema_oid\":16400,\
                     \"tenant\":{\"database\":\"app\",\"schema\":\"acme\",\"reason\":\"asked\"},\"user\":\"postgres\",\
                     \"gone\":{\"timeline\":1,\"lsn\":\"0/5000000\",\"time\":\"2026-11-20T02:00:00Z\"},\"dumps\":[]}";
    system_tests::account::write(&event, tombstone, 0o400);
    info(&period, 0).expect_said("acme of database app (OID 16400), gone at 0/5000000");
    check_form("compliance", &info(&words, 0).json());
    bare.scratch.create_dir("repository/main/evidence");
    let evidence = bare
        .scratch
        .create_dir("repository/main/evidence/20261120T020000Z-3f9a1c");
    system_tests::account::write(&evidence.join("report.json"), "rubbish", 0o400);
    info(&period, 1)
        .expect_said("**Not complete:** restore tests in repository local cannot be read: ")
        .expect_said("acme of database app (OID 16400), gone at 0/5000000")
        .expect_said("cannot read all of repository local");
}

#[test]
fn a_period_that_is_none_is_refused() {
    let bare = Bare::new("info_period");
    for (from, to, named) in [
        (
            "2026-11-31",
            "2026-12-01",
            "FROM of --report is no date and no time: \"2026-11-31\"",
        ),
        (
            "2026-11-01",
            "later",
            "TO of --report is no date and no time: \"later\"",
        ),
        ("2026-11-01", "2026-12-01T10:00:00", "no time zone"),
        ("2026-12-01", "2026-11-01", "nothing between 2026-12-01 and 2026-11-01"),
    ] {
        let ran = bare.tool("info").args(["--report", from, to]).run();
        let ran = ran.expect_code(2).expect_said(named);
        assert_eq!(ran.stdout, "", "{}", ran.report());
    }
    bare.tool("info").args(["--report", "2026-11-01"]).run().expect_code(2);
    let both = ["--stats", "--report", "2026-11-01", "2026-12-01"];
    bare.tool("info").args(both).run().expect_code(2);
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(path),
        }
    }
    found
}
