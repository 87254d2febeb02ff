//! What may go wrong with a restore: every failure says what failed, on what, why, what to do, and PostgreSQL cannot
//! start on what is left.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use system_tests::story::{newer_format, text};
use system_tests::wait::PATIENCE;
use system_tests::{Cluster, Options, Ran, RepoOptions, Server, Story, Tool, account, mutilate, wait_until};

/// A story with one backup and archived WAL behind it.
fn begin(name: &str) -> Option<(Story, String)> {
    let server = Server::need(15)?;
    let story = Story::begin(name, &server, Options::default());
    story
        .cluster
        .sql("CREATE TABLE t AS SELECT n, md5(n::text) AS what FROM generate_series(1, 20000) n");
    let label = story.backup();
    story.cluster.sql("INSERT INTO t VALUES (0, 'later')");
    story.archive_all();
    Some((story, label))
}

/// Runs a restore that must fail with this code and say these words; PostgreSQL must not start on what is left.
fn refused(story: &Story, tool: &Tool, to: &Path, code: i32, words: &[&str]) -> Ran {
    let ran = tool.run().expect_code(code);
    for words in words {
        assert!(ran.stderr.contains(words), "{words:?} is not said\n{}", ran.report());
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.report());
    assert!(
        !to.join("global/pg_control").exists(),
        "pg_control is there\n{}",
        ran.report()
    );
    story.step(ran.stderr.lines().last().unwrap_or_default());
    ran
}

/// As [`refused`], before anything is written.
fn refused_untouched(story: &Story, arguments: &[&str], code: i32, words: &[&str]) {
    let to = story.scratch.path("never");
    let ran = refused(story, &story.restore_to(&to, arguments), &to, code, words);
    assert!(!to.exists(), "{} was made\n{}", to.display(), ran.report());
}

#[test]
fn what_was_asked_wrongly_is_refused_and_nothing_is_touched() {
    let Some((story, label)) = begin("asked_wrongly") else {
        return;
    };
    let utc = |sql: &str| {
        story.cluster.query_one(&format!(
            "SELECT to_char(({sql}) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
        ))
    };
    let early = utc("now() - interval '1 day'");
    let future = utc("now() + interval '1 day'");
    let table: [(&[&str], i32, &[&str]); 17] = [
        (
            &["--target-time", "2026-11-20 12:00:00"],
            2,
            &["2026-11-20 12:00:00", "zone"],
        ),
        (&["--target-time", "yesterday"], 2, &["yesterday"]),
        (
            &["--target-time", &early],
            1,
            &["before the end of the first good backup", "reachable", "timeline 1"],
        ),
        (&["--target-time", &future], 1, &["in the future"]),
        (
            &["--target-lsn", "0/1"],
            1,
            &["before the end of the first good backup", "reachable"],
        ),
        (&["--target-lsn", "FF/0"], 1, &["FF/0", "missing"]),
        (&["--target-lsn", "nonsense"], 2, &["nonsense"]),
        (&["--target-xid", "x"], 2, &["\"x\""]),
        (&["--backup", "../../x"], 2, &["../../x"]),
        (
            &["--backup", "20200101T000000Z-full-aaaaaa"],
            1,
            &["20200101T000000Z-full-aaaaaa", "pgkeep-info"],
        ),
        (
            &["--backup", &label, "--target-time", &early],
            1,
            &[&label, "leave --backup out"],
        ),
        (&["--target-timeline", "7"], 2, &["timeline 7", "known timelines: 1"]),
        (&["--repository", "../local"], 2, &["../local", "local"]),
        (&["--cluster", "../main"], 2, &["../main", "main"]),
        (&["--standby", "--target-immediate"], 2, &["--standby"]),
        (&["--target-exclusive"], 2, &["--target"]),
        (
            &["--tablespace", "1=/srv/x"],
            2,
            &["no tablespace \"1\"", "it has none"],
        ),
    ];
    for (arguments, code, words) in table {
        story.step(&format!("{arguments:?}"));
        refused_untouched(&story, arguments, code, words);
    }
    story.step("an unknown key");
    let config = fs::read_to_string(&story.site.config)
        .unwrap()
        .replace("patience =", "patienze =");
    let config = story.scratch.write("wrong.toml", config, 0o600);
    let to = story.scratch.path("never");
    let tool = Tool::new("restore").arg("--config").arg(config).arg("--to").arg(&to);
    refused(&story, &tool, &to, 2, &["patienze", "patience", "wrong.toml"]);
}

#[test]
fn a_destination_that_is_taken_or_closed_is_refused() {
    let Some((story, _)) = begin("destination") else { return };
    let restore = |to: &Path| story.restore_to(to, &[]);
    story.step("a running server's data directory");
    let ran = restore(story.cluster.data()).run().expect_code(1);
    assert!(
        ran.stderr.contains("in use") && ran.stderr.contains(&text(story.cluster.data())),
        "{}",
        ran.report()
    );
    story.cluster.sql("SELECT 1");
    story.step("a stopped one's");
    story.cluster.stop(system_tests::Stop::Fast);
    let ran = restore(story.cluster.data()).run().expect_code(1);
    assert!(ran.stderr.contains("not empty"), "{}", ran.report());
    story.cluster.start();
    story.step("a directory that holds something");
    let full = story.scratch.create_dir("full");
    account::write(&full.join("mine"), "precious", 0o600);
    refused(&story, &restore(&full), &full, 1, &["not empty", "mine", &text(&full)]);
    assert_eq!(fs::read(full.join("mine")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    story.step("no directory");
    let file = story.scratch.write("file", "", 0o600);
    refused(&story, &restore(&file), &file, 1, &["is not a directory", &text(&file)]);
    refused(
        &story,
        &restore(&file.join("below")),
        &file.join("below"),
        1,
        &[&text(&file)],
    );
    story.step("a directory that may not be written");
    let closed = story.scratch.create_dir("closed");
    mutilate::chmod(&closed, 0o500);
    let below = closed.join("data");
    refused(
        &story,
        &restore(&below),
        &below,
        1,
        &["ermission denied", &text(&below), "postgres"],
    );
    assert!(!below.exists());
    mutilate::chmod(&closed, 0o700);
    story.step("the WAL directory and the directory for extra files");
    for flag in ["--wal-dir", "--extra-to"] {
        let to = story.scratch.path("to");
        refused(
            &story,
            &restore(&to).arg(flag).arg(&full),
            &to,
            1,
            &["not empty", "mine"],
        );
        assert!(!to.exists());
    }
}

#[test]
fn a_repository_that_is_not_there_or_too_new_is_said_and_nothing_is_touched() {
    let Some((story, _)) = begin("repository") else { return };
    let repo = story.site.repo().clone();
    story.step("permissions");
    mutilate::chmod(&repo.dir, 0o000);
    refused_untouched(&story, &[], 1, &["Permission denied", &text(&repo.dir)]);
    mutilate::chmod(&repo.dir, 0o700);
    story.step("gone");
    let aside = story.scratch.path("aside");
    fs::rename(&repo.dir, &aside).unwrap();
    refused_untouched(&story, &[], 1, &["mounted", &text(&repo.dir)]);
    fs::rename(&aside, &repo.dir).unwrap();
    story.step("a newer format of the repository");
    let identity = repo.path("repository.json");
    let original = fs::read_to_string(&identity).unwrap();
    account::write(&identity, newer_format(&original), 0o400);
    refused_untouched(&story, &[], 1, &["format", "2", "local"]);
    account::write(&identity, &original, 0o400);
}

#[test]
fn a_backup_of_a_newer_format_is_passed_over_or_refused_by_name() {
    let Some((story, label)) = begin("newer_backup") else {
        return;
    };
    let second = story.backup();
    let document = story.site.repo().path(&format!("backup/{second}/backup.json"));
    let original = fs::read_to_string(&document).unwrap();
    account::write(&document, newer_format(&original), 0o400);
    let ran = story
        .restore_to(&story.scratch.path("never"), &["--dry-run"])
        .run()
        .expect_code(0);
    assert!(
        ran.stdout.contains(&label) && ran.stderr.contains(&second),
        "{}",
        ran.report()
    );
    refused_untouched(&story, &["--backup", &second], 1, &[&second, "format"]);
}

/// The only object of the repository whose path holds `part`.
fn object(story: &Story, part: &str) -> PathBuf {
    let mut found = story.site.repo().matching(part);
    assert_eq!(found.len(), 1, "{part}: {found:?}");
    found.remove(0)
}

#[test]
fn a_damaged_or_missing_object_stops_the_restore_and_is_named() {
    let Some((story, label)) = begin("objects") else { return };
    type Damage = (&'static str, fn(&Path));
    let damage: [Damage; 4] = [
        ("a bit turned around", mutilate::flip_middle_bit),
        ("the last byte cut", mutilate::cut_last_byte),
        ("empty", mutilate::empty),
        ("missing", mutilate::remove),
    ];
    let to = story.scratch.path("to");
    for part in ["manifest.zst", "/data/1.tar.zst"] {
        let path = object(&story, part);
        let bytes = fs::read(&path).unwrap();
        for (title, damage) in damage {
            story.step(&format!("{part}: {title}"));
            // The bundle's frame table at its end is not what a restore of everything reads.
            if part.contains("tar") && title.contains("last byte") {
                continue;
            }
            damage(&path);
            let ran = refused(&story, &story.restore_to(&to, &[]), &to, 1, &[&label]);
            let name = if part.contains("tar") {
                "1.tar.zst"
            } else {
                "manifest.zst"
            };
            assert!(ran.stderr.contains(name), "{name} is not named\n{}", ran.report());
            assert!(ran.stderr.contains("repository \"local\""), "{}", ran.report());
            if part.contains("tar") {
                assert!(ran.stderr.contains("or restore an earlier backup"), "{}", ran.report());
            }
            mutilate_back(&path, &bytes);
            if to.exists() {
                assert!(to.join("pgkeep-restore-unfinished").is_file());
                story.step("what is left says what it is, and a second attempt says how to begin again");
                let again = story
                    .restore_to(&to, &[])
                    .run()
                    .expect_code(1)
                    .expect_said("an earlier restore");
                assert!(again.stderr.contains("-mindepth 1 -delete"), "{}", again.report());
                fs::remove_dir_all(&to).unwrap();
            }
        }
    }
    story.step("backup.json damaged: the backup cannot be used, and that is said");
    let document = story.site.repo().path(&format!("backup/{label}/backup.json"));
    let bytes = fs::read(&document).unwrap();
    mutilate::empty(&document);
    // What was remembered of it does not count as the document.
    let _ = fs::remove_dir_all(story.site.state().join("main/catalog"));
    refused_untouched(&story, &[], 1, &[&label]);
    mutilate_back(&document, &bytes);
    story.step("all put back: it comes back");
    let end = story.cluster.checksum("postgres");
    assert_eq!(story.promoted("restored", &[]).checksum("postgres"), end);
}

fn mutilate_back(path: &Path, bytes: &[u8]) {
    account::write(path, bytes, 0o400);
}

#[test]
fn a_restore_killed_midway_leaves_nothing_that_starts() {
    let Some((story, _)) = begin("killed") else { return };
    story.cluster.pgbench_init(5);
    let label = story.backup();
    story.archive_all();
    let to = story.scratch.path("to");
    let mut killed = 0;
    for (title, below) in [
        ("begun", "pgkeep-restore-unfinished"),
        ("copying", "base"),
        ("ending", "backup_manifest"),
    ] {
        story.step(title);
        let mut running = story.restore_to(&to, &["--backup", &label]).spawn();
        wait_until(title, PATIENCE, || !running.is_running() || to.join(below).exists());
        let ran = running.kill9();
        if ran.signal == Some(9) {
            killed += 1;
            assert!(
                to.join("pgkeep-restore-unfinished").exists() != to.join("global/pg_control").exists(),
                "{title}"
            );
            let left = Cluster::adopt(&story.scratch, story.cluster.server(), &to);
            if !to.join("global/pg_control").exists() {
                left.start_without_waiting();
                assert!(!left.wait_exit(PATIENCE).success(), "{}", left.log());
                story
                    .restore_to(&to, &[])
                    .run()
                    .expect_code(1)
                    .expect_said("-mindepth 1 -delete");
            }
        }
        fs::remove_dir_all(&to).unwrap();
    }
    // The end is a short moment; on a quick machine the restore is through before the kill.
    assert!(killed >= 2, "only {killed} were killed");
}

#[test]
fn a_gap_in_the_wal_is_refused_and_named_and_a_target_before_it_works() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("gap", &server, Options::default());
    story.cluster.sql("CREATE TABLE t (n int)");
    story.backup();
    story
        .cluster
        .sql("INSERT INTO t VALUES (1); SELECT pg_create_restore_point('before the gap')");
    let before = story.cluster.current_lsn();
    story.archive_all();
    story.cluster.sql("INSERT INTO t VALUES (2)");
    let segment = story.cluster.switch_wal();
    story.cluster.wait_archived(&segment);
    story.cluster.sql("INSERT INTO t VALUES (3)");
    let behind = story.cluster.current_lsn();
    story.archive_all();
    fs::remove_file(story.site.repo().wal(&segment)).unwrap();

    refused_untouched(&story, &[], 1, &[&segment, "missing", "target before"]);
    refused_untouched(&story, &["--target-lsn", &behind], 1, &[&segment, "missing"]);
    refused_untouched(&story, &["--standby"], 1, &[&segment, "missing"]);
    let restored = story.promoted("before", &["--target-lsn", &before, "--target-action", "promote"]);
    assert_eq!(restored.query_one("SELECT string_agg(n::text, ' ') FROM t"), "1");

    story.step("a segment that the backup itself needs");
    let label = story.backup();
    let document = fs::read_to_string(story.site.repo().path(&format!("backup/{label}/backup.json"))).unwrap();
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let first = document["wal"]["first"].as_str().unwrap();
    fs::remove_file(story.site.repo().wal(first)).unwrap();
    refused_untouched(&story, &["--backup", &label], 1, &[first, &label, "consistent"]);
}

#[test]
fn wal_that_goes_after_the_plan_stops_the_server_instead_of_opening_it() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("gap_later", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local"))
    });
    story.cluster.sql("CREATE TABLE t (n int)");
    story.backup();
    story.cluster.sql("INSERT INTO t VALUES (1)");
    let segment = story.cluster.switch_wal();
    story.cluster.wait_archived(&segment);
    let restored = story.restored("restored", &[]);
    mutilate::flip_middle_bit(&story.site.repo().wal(&segment));
    restored.start_without_waiting();
    assert!(
        !restored.wait_exit(PATIENCE).success(),
        "it opened without the row\n{}",
        restored.log()
    );
    assert!(restored.log().contains(&segment), "{}", restored.log());
}
