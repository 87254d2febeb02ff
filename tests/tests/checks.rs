//! Checks tell a set-up that works from one that does not, as monitoring reads it.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Options, Ran, RepoOptions, Server, Story, each_major, mutilate};

fn begins(ran: &Ran, words: &str) {
    assert!(ran.stdout.starts_with(words), "expected \"{words}\"\n{}", ran.report());
    assert_eq!(ran.stdout.matches('\n').count(), 1, "{}", ran.report());
}

fn archive(story: &Story) -> Ran {
    story.tool("check-archive").args(["--timeout", "10s"]).run()
}

each_major!(archiving_is_well_until_it_fails: 13 15 18);
fn archiving_is_well_until_it_fails(server: &Server) {
    let story = Story::with("check_archive", server, Options::default(), |site| {
        site.repository(RepoOptions::new("local"))
            .repository(RepoOptions::new("nas").line("required = false"))
            .cluster_line("objectives = { rpo = \"1h\" }")
    });
    let cluster = &story.cluster;
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let ran = archive(&story).expect_code(0);
    begins(&ran, "OK - 0 WAL files wait in pg_wal");
    assert!(
        ran.stdout.contains("WAL reaches local") && ran.stdout.contains("'ready'=0;10;60;0"),
        "{}",
        ran.report()
    );
    assert_eq!(story.site.status("check-archive")["fields"]["state"], 0);
    story.backup();
    let segments: Vec<String> = (0..4)
        .map(|n| {
            cluster.sql(&format!("CREATE TABLE t{n} AS SELECT {n} AS n"));
            cluster.switch_wal()
        })
        .collect();
    story.archive_all();
    begins(&archive(&story).expect_code(0), "OK - ");

    story.step("an optional repository is away");
    let nas = &story.site.repos[1];
    let aside = story.scratch.path("nas_aside");
    std::fs::rename(&nas.dir, &aside).unwrap();
    begins(&archive(&story).expect_code(1), "WARNING - ");
    std::fs::rename(&aside, &nas.dir).unwrap();

    story.step("a segment behind the backup is missing");
    let path = story.site.repo().wal(&segments[2]);
    let kept = story.scratch.path("segment");
    std::fs::rename(&path, &kept).unwrap();
    let ran = archive(&story).expect_code(2);
    begins(&ran, "CRITICAL - ");
    ran.expect_said(&format!("local: the newest backup lacks {}", segments[2]));
    std::fs::rename(&kept, &path).unwrap();
    begins(&archive(&story).expect_code(0), "OK - ");

    story.step("the required repository cannot be written");
    mutilate::chmod(&story.site.repo().dir.join("main"), 0o500);
    let wal = story.site.repo().wal_folder();
    let folders = [wal.clone(), wal.parent().unwrap().to_path_buf()];
    folders.iter().for_each(|folder| mutilate::chmod(folder, 0o500));
    cluster.sql("CREATE TABLE more AS SELECT 1 AS n");
    cluster.switch_wal();
    wait_until("archiving fails", PATIENCE, || {
        cluster.query_one("SELECT coalesce(last_failed_time > last_archived_time, false) FROM pg_stat_archiver") == "t"
    });
    let ran = archive(&story).expect_code(2);
    begins(&ran, "CRITICAL - archive_command fails for ");
    let status = story.site.status("check-archive");
    assert_eq!(
        (&status["result"], &status["fields"]["state"]),
        (&"failed".into(), &2.into())
    );
    folders.iter().for_each(|folder| mutilate::chmod(folder, 0o700));
    mutilate::chmod(&story.site.repo().dir.join("main"), 0o700);
    story.archive_all();
    // Statistics may come a moment later.
    wait_until("the check sees it", PATIENCE, || archive(&story).code == Some(0));

    story.step("who may not look is told what was found");
    let state = story.site.state().join("main");
    mutilate::chmod(&story.site.config, 0o644);
    for open in [story.site.config.parent().unwrap(), &story.site.state()] {
        mutilate::chmod(open, 0o755);
    }
    let other = |arguments: &[&str]| {
        let nobody = [
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--",
        ];
        story
            .tool("check-archive")
            .as_root()
            .args(arguments)
            .under(nobody)
            .run()
    };
    let ran = other(&[]).expect_code(0);
    begins(&ran, "OK - ");
    ran.clone().expect_said(" ago)");
    let ran = other(&["--stale", "1ms"]).expect_code(2);
    begins(&ran, "CRITICAL - stale: check-archive last ran ");

    story.step("the configuration cannot be used any more");
    let text = std::fs::read_to_string(&story.site.config).unwrap();
    let broken = text.replacen(
        "[repository.local]\n",
        "[repository.local]\ncredentials_file = \"/nowhere\"\n",
        1,
    );
    assert_ne!(broken, text);
    std::fs::write(
        &story.site.config,
        broken.replacen("url = \"file://", "url = \"s3://bucket", 1),
    )
    .unwrap();
    let ran = archive(&story).expect_code(2);
    begins(&ran, "CRITICAL - ");
    begins(&other(&[]).expect_code(2), "CRITICAL - ");
    std::fs::write(&story.site.config, text).unwrap();
    begins(&archive(&story).expect_code(0), "OK - ");

    story.step("the server's user has to be able to leave it");
    mutilate::chmod(&state, 0o500);
    let ran = archive(&story).expect_code(2);
    begins(&ran, "CRITICAL - ");
    ran.expect_said("cannot be written by the server's user");
    mutilate::chmod(&state, 0o755);

    story.step("archiving is off");
    cluster.conf(&["archive_mode = off"]);
    cluster.restart();
    begins(&archive(&story).expect_code(2), "CRITICAL - archive_mode is off");
}

each_major!(ages_are_those_of_what_there_is: 15);
fn ages_are_those_of_what_there_is(server: &Server) {
    let programs = server.program("postgres").parent().unwrap().to_path_buf();
    let story = Story::with("check_age", server, Options::default(), |site| {
        site.repository(RepoOptions::new("local").encrypted())
            .cluster_line(&format!("restore_test.bin_directory = \"{}\"", programs.display()))
    });
    let age = |arguments: &[&str]| story.tool("check-age").args(arguments).run();
    begins(&age(&[]).expect_code(2), "CRITICAL - local has no backup");
    let full = story.backup();
    story.cluster.sql("CREATE TABLE t AS SELECT 1 AS n");
    let incr = system_tests::story::label(&story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0));
    begins(
        &age(&[]).expect_code(0),
        &format!("OK - the newest backup in local, {incr}, is "),
    );
    begins(
        &age(&["--what", "full"]).expect_code(0),
        &format!("OK - the newest full backup in local, {full}, is "),
    );
    begins(
        &age(&["--warning", "1ms"]).expect_code(1),
        "WARNING - the newest backup in local",
    );
    let ran = age(&["--warning", "1ms", "--critical", "1ms"]).expect_code(2);
    begins(&ran, "CRITICAL - the newest backup in local");
    assert!(ran.stdout.contains(" | 'age local'="), "{}", ran.report());

    begins(
        &age(&["--what", "restore-test"]).expect_code(2),
        "CRITICAL - local has no restore test",
    );
    story
        .tool("restore-test")
        .args(["--level", "quick"])
        .run()
        .expect_code(0);
    begins(
        &age(&["--what", "restore-test"]).expect_code(0),
        &format!("OK - the newest restore test in local, of {incr}, is "),
    );
    let text = std::fs::read_to_string(&story.site.config).unwrap();
    let asked =
        "restore_test.assert.t = { sql = \"SELECT count(*) FROM t\", at_least = 2 }\nrestore_test.bin_directory";
    system_tests::account::write(
        &story.site.config,
        text.replacen("restore_test.bin_directory", asked, 1),
        0o600,
    );
    story
        .tool("restore-test")
        .args(["--level", "quick"])
        .run()
        .expect_code(1);
    let ran = age(&["--what", "restore-test"]).expect_code(2);
    begins(
        &ran,
        &format!(
            "CRITICAL - the newest restore test in local failed: of {incr}, 1 problem; the last one that passed is "
        ),
    );
    // The answer of who may not look is the same.
    mutilate::chmod(&story.site.repo().dir.join("main"), 0o000);
    let ran = age(&["--what", "restore-test"]).expect_code(2);
    begins(
        &ran,
        "CRITICAL - the newest restore test in the status of this host failed: assertion: t: ",
    );
    begins(
        &age(&["--what", "full"]).expect_code(0),
        "OK - the newest full backup in the status of this host",
    );
    mutilate::chmod(&story.site.repo().dir.join("main"), 0o700);
    // Where the job was not this host's, what a look into the repository has seen is the answer.
    story
        .tool("base-backup")
        .args(["--if-older-than", "20h"])
        .run()
        .expect_code(0);
    age(&[]).expect_code(0);
    mutilate::chmod(&story.site.repo().dir.join("main"), 0o000);
    let ran = age(&[]).expect_code(0);
    begins(&ran, &format!("OK - the newest backup in local, {incr}, is "));
    assert!(ran.stdout.contains(" (seen "), "{}", ran.report());
    mutilate::chmod(&story.site.repo().dir.join("main"), 0o700);
}

#[test]
fn a_backup_that_has_lost_its_base_counts_for_nothing() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("check_base", &server, Options::default());
    let full = story.backup();
    let incr = system_tests::story::label(&story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0));
    begins(&story.tool("check-age").run().expect_code(0), "OK - ");
    let place = story.site.repo().path("backup").join(&full);
    let aside = story.scratch.path("aside");
    std::fs::rename(&place, &aside).unwrap();
    begins(
        &story.tool("check-age").run().expect_code(2),
        "CRITICAL - local has no backup",
    );
    story
        .tool("info")
        .run()
        .expect_said(&format!("LACKS {full}"))
        .expect_said(&format!("NOT RECOVERABLE: {incr}: backup {full} is missing"));
    let to = story.scratch.path("restored");
    let ran = story.restore_to(&to, &[]).run().expect_code(1);
    ran.expect_said(&format!(
        "backup {incr} cannot be used: it leans on {full}, which no repository has"
    ));
    assert!(!to.exists(), "nothing was begun");
    story.tool("verify").run().expect_code(1).expect_said(&full);
    std::fs::rename(&aside, &place).unwrap();
    begins(&story.tool("check-age").run().expect_code(0), "OK - ");
    story.restore_to(&to, &[]).run().expect_code(0);
}

#[test]
fn statistics_and_the_report_of_a_period() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("stats", &server, Options::default());
    let label = story.backup();
    story.archive_all();
    story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
    story
        .tool("restore-test")
        .args(["--level", "quick"])
        .run()
        .expect_code(0);
    story
        .tool("restore-test")
        .args(["--backup", "20200101T000000Z-full-000000"])
        .run()
        .expect_code(1);

    story.step("statistics");
    let stats = story.tool("info").arg("--stats").run().expect_code(0);
    for wanted in ["100.0 % of 2", "50.0 % of 2", "2 good backups", "F full", "database "] {
        assert!(stats.stdout.contains(wanted), "{wanted}\n{}", stats.report());
    }
    let json = story
        .tool("info")
        .args(["--stats", "--format", "json"])
        .run()
        .expect_code(0)
        .json();
    assert_eq!(
        json["jobs"]["base-backup"]["days_7"],
        serde_json::json!({ "succeeded": 2, "runs": 2 })
    );
    assert_eq!(json["repositories"][0]["backups"], 2);

    story.step("the report of a period");
    let report = story
        .tool("info")
        .args(["--report", "2020-01-01", "2199-01-01"])
        .run()
        .expect_code(0);
    for wanted in [
        label.as_str(),
        "2 backups, 2 of them good",
        "2 restore tests, 1 of them passed",
        "1 failed run",
        "none recorded",
    ] {
        assert!(report.stdout.contains(wanted), "{wanted}\n{}", report.report());
    }
    let past = story
        .tool("info")
        .args(["--report", "2020-01-01", "2020-02-01"])
        .run()
        .expect_code(0);
    assert!(
        past.stdout.contains("0 backups") && past.stdout.contains("0 failed runs"),
        "{}",
        past.report()
    );
    story
        .tool("info")
        .args(["--report", "2020-02-01", "2020-01-01"])
        .run()
        .expect_code(2)
        .expect_said("nothing between");

    story.step("a repository that is away is named");
    let aside = story.scratch.path("aside");
    std::fs::rename(&story.site.repo().dir, &aside).unwrap();
    let away = story
        .tool("info")
        .args(["--report", "2020-01-01", "2199-01-01"])
        .run()
        .expect_code(1);
    assert!(
        away.stdout.contains("**Not complete:** repository local"),
        "{}",
        away.report()
    );
}
