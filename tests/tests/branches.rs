//! Two servers that archived into one repository: neither is followed by default, and none takes the archive over
//! unasked.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;

use system_tests::mutilate::{flip_middle_bit, remove};
use system_tests::story::{archive_all, put_aside};
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Cluster, Options, RepoOptions, Server, Site, Stop, Story, Tool, each_major};

/// The story's configuration as another machine has it: its own state, and its own directory at the configured place.
fn other_machine(story: &Story, data: &str) -> std::path::PathBuf {
    let text = fs::read_to_string(&story.site.config).unwrap();
    let state = story.scratch.create_dir("other-state");
    let text = text
        .replace(story.site.state().to_str().unwrap(), state.to_str().unwrap())
        .replace(story.cluster.data().to_str().unwrap(), &story.place(data));
    story.scratch.write("other.toml", text, 0o600)
}

fn numbers(cluster: &Cluster) -> String {
    cluster.query_one("SELECT string_agg(n::text, ' ' ORDER BY n) FROM numbers")
}

fn begin(name: &str, server: &Server) -> Story {
    let story = Story::begin(name, server, Options::default());
    story
        .cluster
        .sql("CREATE TABLE numbers (n int); INSERT INTO numbers VALUES (0)");
    story.backup();
    story.cluster.sql("INSERT INTO numbers VALUES (1)");
    story.archive_all();
    story
}

each_major!(a_copy_that_archived_never_takes_the_place_of_its_production: 15 18);
fn a_copy_that_archived_never_takes_the_place_of_its_production(server: &Server) {
    let story = begin("taken_over", server);

    story.step("a restore on another machine, into its configured directory, does not archive");
    let config = other_machine(&story, "copy");
    let restore = || {
        Tool::new("restore")
            .arg("--config")
            .arg(&config)
            .arg("--to")
            .arg(story.place("copy"))
    };
    restore()
        .arg("--dry-run")
        .run()
        .expect_code(0)
        .expect_said("--archive-mode keep")
        .expect_said("archiving  off");

    story.step("somebody lets it archive all the same");
    restore().args(["--archive-mode", "keep"]).run().expect_code(0);
    let copy = Cluster::adopt(&story.scratch, server, &story.scratch.path("copy"));
    copy.start();
    copy.wait_promoted(PATIENCE);
    copy.sql("INSERT INTO numbers VALUES (999)");
    archive_all(&copy);
    copy.stop(Stop::Fast);

    story.step("production goes on, and is lost");
    story.cluster.sql("INSERT INTO numbers VALUES (2)");
    story.archive_all();
    let place = put_aside(&story.cluster, &story.scratch.path("lost"));
    for arguments in [&[][..], &["--dry-run"]] {
        story
            .restore_to(&place, arguments)
            .run()
            .expect_code(1)
            .expect_said("was still written after timeline 2 began")
            .expect_said("--target-timeline 1 (WAL up to")
            .expect_said("--target-timeline 2 (WAL up to");
        assert!(!place.exists());
    }

    story.step("the one that is meant is followed, and the other one is shown");
    let ran = story
        .restore_to(&place, &["--target-timeline", "1"])
        .run()
        .expect_code(0);
    ran.expect_said("timeline 2 has WAL beyond")
        .expect_said("as configured in the backup");
    story.cluster.start();
    story.cluster.wait_promoted(PATIENCE);
    assert_eq!(numbers(&story.cluster), "0 1 2");
}

each_major!(a_branch_that_was_given_up_is_shown_and_does_not_stop_a_restore: 15);
fn a_branch_that_was_given_up_is_shown_and_does_not_stop_a_restore(server: &Server) {
    let story = begin("given_up", server);
    let clock = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let before = story.cluster.query_one(clock);
    story.cluster.sql("INSERT INTO numbers VALUES (2)");
    story.archive_all();
    let between = story.cluster.query_one(clock);
    story.cluster.sql("INSERT INTO numbers VALUES (3)");
    story.archive_all();

    story.step("back to before 2, in place");
    let place = put_aside(&story.cluster, &story.scratch.path("old"));
    story
        .restore_to(&place, &["--target-time", &before, "--target-action", "promote"])
        .run()
        .expect_code(0);
    story.cluster.start();
    story.cluster.wait_promoted(PATIENCE);
    story.cluster.sql("INSERT INTO numbers VALUES (4)");
    story.archive_all();

    story.step("a moment that lies on what was given up");
    let plan = |arguments: &[&str]| {
        story
            .restore_to(&story.scratch.path("plan"), arguments)
            .arg("--dry-run")
            .run()
    };
    plan(&["--target-time", &between])
        .expect_code(0)
        .expect_said("timeline 1 has WAL beyond")
        .expect_said("--target-timeline 1 follows it");
    let back = story.promoted(
        "back",
        &[
            "--target-time",
            &between,
            "--target-timeline",
            "1",
            "--target-action",
            "promote",
        ],
    );
    assert_eq!(numbers(&back), "0 1 2");
    let newest = story.promoted("newest", &[]);
    assert_eq!(numbers(&newest), "0 1 4");

    story.step("the history is damaged: no branch is taken for the newest");
    let history = story.site.repo().matching("/00000002.history").remove(0);
    flip_middle_bit(&history);
    plan(&[])
        .expect_code(1)
        .expect_said("timeline 2 may be the newest")
        .expect_said("00000002.history")
        .expect_said("--target-timeline 1 goes on without it");
    plan(&["--target-timeline", "1"])
        .expect_code(0)
        .expect_said("00000002.history");
    story.tool("info").run().expect_code(1).expect_said("recoverable: from");

    story.step("and the same where it is gone");
    remove(&history);
    plan(&[]).expect_code(1).expect_said("timeline 2 may be the newest");
    plan(&["--target-timeline", "1"]).expect_code(0);
}

/// Waits until a standby has replayed everything that its primary has written.
fn replayed(standby: &Cluster, primary: &Cluster) {
    let end = primary.current_lsn();
    let query = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    wait_until("the standby has replayed everything", PATIENCE, || {
        standby.query_one(&query) == "t"
    });
}

/// A standby of the story's cluster on another host, which archives into the same repository when it leads.
fn beside(story: &Story) -> (Cluster, Site) {
    let primary = story.cluster.conninfo();
    let standby = ["--standby", "--archive-mode", "keep", "--primary-conninfo", &primary];
    let standby = story.restored("standby", &standby);
    let host = Site::named(&story.scratch, &standby, "standby-host").set("patience", "\"30s\"");
    let host = host.shared(story.site.repo(), RepoOptions::new("local"));
    host.archive(&standby);
    standby.start();
    // Who is not connected does not get the last record of a shutdown.
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    wait_until("the standby streams", PATIENCE, || {
        story.cluster.query_one(streams) == "1"
    });
    replayed(&standby, &story.cluster);
    (standby, host)
}

each_major!(what_a_crashed_primary_had_left_is_shown_and_does_not_stop_a_restore: 15 18);
fn what_a_crashed_primary_had_left_is_shown_and_does_not_stop_a_restore(server: &Server) {
    let story = begin("crashed", server);
    let first = story.committed().remove(0);
    let (standby, _host) = beside(&story);

    story.step("the primary loses power with a commit that its standby never saw");
    standby.stop(Stop::Fast);
    story.cluster.sql("INSERT INTO numbers VALUES (777)");
    story.cluster.kill9();
    standby.start();
    standby.promote();
    standby.wait_promoted(PATIENCE);
    standby.sql("INSERT INTO numbers VALUES (2)");
    archive_all(&standby);

    story.step("it is back, and what it had left is archived, as Patroni does before it rewinds it");
    story.cluster.conf(&["archive_command = 'false'"]);
    story.cluster.start();
    let last = story.cluster.query_one("SELECT pg_walfile_name(pg_current_wal_lsn())");
    story.cluster.stop(Stop::Fast);
    let left = story.cluster.data().join("pg_wal").join(&last);
    story.tool("archive-push").arg(&left).run().expect_code(0);

    story.step("recovery follows the standby, and shows what it leaves");
    let plan = story.restore_to(&story.scratch.path("plan"), &["--backup", &first, "--dry-run"]);
    plan.run().expect_code(0).expect_said("timeline 1 has WAL beyond");
    let back = story.promoted("back", &["--backup", &first]);
    assert_eq!(numbers(&back), "0 1 2");
    let lost = story.promoted("lost", &["--backup", &first, "--target-timeline", "1"]);
    assert_eq!(numbers(&lost), "0 1 777");
}

each_major!(a_primary_that_leads_again_left_no_branch: 15 18);
fn a_primary_that_leads_again_left_no_branch(server: &Server) {
    let story = begin("leads_again", server);
    let first = story.committed().remove(0);

    story.step("the primary is shut down, and its standby takes over");
    let (standby, _host) = beside(&story);
    story.cluster.stop(Stop::Fast);
    standby.promote();
    standby.wait_promoted(PATIENCE);
    standby.sql("INSERT INTO numbers VALUES (2)");
    archive_all(&standby);

    story.step("it follows, and leads again");
    story
        .cluster
        .conf(&[format!("primary_conninfo = '{}'", standby.conninfo())]);
    story.site.recover(&story.cluster, true);
    story.cluster.start();
    replayed(&story.cluster, &standby);
    standby.stop(Stop::Fast);
    story.cluster.promote();
    story.cluster.wait_promoted(PATIENCE);
    story.cluster.sql("INSERT INTO numbers VALUES (3)");
    story.archive_all();

    story.step("and archives the last segment that it wrote when it led first");
    let history = fs::read_to_string(story.cluster.data().join("pg_wal/00000002.history")).unwrap();
    let left = history.split('\t').nth(1).unwrap().split('/').nth(1).unwrap();
    let number = u64::from_str_radix(left, 16).unwrap() >> 24;
    let last = format!("0000000100000000{number:08X}");
    wait_until("it is archived", PATIENCE, || {
        story.cluster.checkpoint();
        story.site.repo().has_wal(&last)
    });

    story.step("recovery goes through all timelines, and nobody is asked");
    let back = story.promoted("back", &["--backup", &first]);
    assert_eq!(numbers(&back), "0 1 2 3");
}
