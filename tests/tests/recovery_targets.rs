//! Recovery ends exactly where it was told to: by time, LSN, transaction, name, at once or never, on every timeline.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, OpenOptions};
use std::io::Write;

use system_tests::cluster::session::rows;
use system_tests::story::{archive_all, put_aside, text, wait_paused};
use system_tests::wait::PATIENCE;
use system_tests::{Cluster, Options, RepoOptions, Server, Site, Stop, Story, each_major, wait_until};

/// A cluster with commit times, and rows 0 (in the backup) to 4 that were committed one after the other behind it.
struct Moments {
    story: Story,
    /// Just after the row was committed.
    after: Vec<String>,
    /// When exactly the row was committed.
    committed: Vec<String>,
    xid: Vec<String>,
    /// Where the commit's record begins.
    lsn: Vec<String>,
}

const TIME: &str = "'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'";

impl Moments {
    fn new(name: &str, server: &Server, set_up: impl FnOnce(Site) -> Site) -> Moments {
        let options = Options {
            conf: vec!["track_commit_timestamp = on".into()],
            ..Options::default()
        };
        let story = Story::with(name, server, options, set_up);
        story
            .cluster
            .sql("CREATE TABLE moments (n int); INSERT INTO moments VALUES (0)");
        story.step("a backup, and four rows behind it");
        story.backup();
        let mut moments = Moments {
            story,
            after: vec![],
            committed: vec![],
            xid: vec![],
            lsn: vec![],
        };
        (1..=4).for_each(|row| moments.add(row));
        moments.story.archive_all();
        moments
    }

    /// Element 0 of each list is row 1.
    fn add(&mut self, row: u32) {
        let mut client = self.story.cluster.client("postgres");
        let mut one = |sql: &str| rows(&mut client, sql).remove(0).remove(0).unwrap();
        one(&format!("BEGIN; INSERT INTO moments VALUES ({row}); SELECT 1"));
        self.xid.push(one("SELECT txid_current()"));
        self.lsn.push(one("SELECT pg_current_wal_insert_lsn()"));
        one("COMMIT; SELECT 1");
        let committed = one(&format!(
            "SELECT to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC', {TIME}) FROM moments WHERE n = {row}"
        ));
        self.committed.push(committed);
        let now = one(&format!("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', {TIME})"));
        self.after.push(now);
        one(&format!("SELECT pg_create_restore_point('row {row}')"));
    }

    /// Restores, starts, and compares the rows once the server has done at the target what it should.
    fn check(&self, name: &str, arguments: &[&str], action: &str, expected: &str) {
        self.story.step(&format!("{arguments:?} and then {action}"));
        let mut arguments = arguments.to_vec();
        if !action.is_empty() {
            arguments.extend(["--target-action", action]);
        }
        let restored = self.story.restored(name, &arguments);
        match action {
            "promote" => {
                restored.start();
                restored.wait_promoted(PATIENCE);
            }
            "shutdown" => {
                restored.start_without_waiting();
                assert!(restored.wait_exit(PATIENCE).success(), "{}", restored.log());
                let path = restored.data().join("postgresql.auto.conf");
                let mut settings = OpenOptions::new().append(true).open(path).unwrap();
                writeln!(settings, "recovery_target_action = 'promote'").unwrap();
                restored.start();
                restored.wait_promoted(PATIENCE);
            }
            _ => {
                restored.start();
                wait_paused(&restored);
                assert_eq!(found(&restored), expected, "{arguments:?}\n{}", restored.log());
                restored.sql("SELECT pg_wal_replay_resume()");
                restored.wait_promoted(PATIENCE);
            }
        }
        assert_eq!(found(&restored), expected, "{arguments:?}\n{}", restored.log());
        restored.sql("INSERT INTO moments VALUES (100)");
        restored.stop(Stop::Immediate);
        fs::remove_dir_all(restored.data()).unwrap();
    }
}

fn found(cluster: &Cluster) -> String {
    cluster.query_one("SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM moments")
}

fn plain(site: Site) -> Site {
    site.repository(RepoOptions::new("local"))
}

each_major!(recovery_ends_at_a_time_just_behind_or_just_before_a_commit: 15 18);
fn recovery_ends_at_a_time_just_behind_or_just_before_a_commit(server: &Server) {
    let moments = Moments::new("time", server, plain);
    moments.check("between", &["--target-time", &moments.after[1]], "", "0 1 2");
    moments.check("at", &["--target-time", &moments.committed[1]], "promote", "0 1 2");
    moments.check(
        "before",
        &["--target-time", &moments.committed[1], "--target-exclusive"],
        "shutdown",
        "0 1",
    );
    // The same moment, written by somebody further east.
    let east = moments.story.cluster.query_one(&format!(
        "SELECT to_char('{}'::timestamptz AT TIME ZONE 'Asia/Kolkata', 'YYYY-MM-DD HH24:MI:SS.US') || '+05:30'",
        moments.after[0]
    ));
    moments.check("east", &["--target-time", &east], "promote", "0 1");
}

each_major!(recovery_ends_at_an_lsn_with_or_without_its_record: 15 18);
fn recovery_ends_at_an_lsn_with_or_without_its_record(server: &Server) {
    let moments = Moments::new("lsn", server, plain);
    moments.check("with", &["--target-lsn", &moments.lsn[1]], "promote", "0 1 2");
    moments.check(
        "without",
        &["--target-lsn", &moments.lsn[1], "--target-exclusive"],
        "pause",
        "0 1",
    );
}

each_major!(recovery_ends_at_a_transaction_with_or_without_it: 15 18);
fn recovery_ends_at_a_transaction_with_or_without_it(server: &Server) {
    let moments = Moments::new("xid", server, plain);
    moments.check("with", &["--target-xid", &moments.xid[2]], "pause", "0 1 2 3");
    moments.check(
        "without",
        &["--target-xid", &moments.xid[2], "--target-exclusive"],
        "promote",
        "0 1 2",
    );
}

each_major!(recovery_ends_at_a_name_at_once_or_at_the_end: 13 15 18);
fn recovery_ends_at_a_name_at_once_or_at_the_end(server: &Server) {
    let moments = Moments::new("name", server, plain);
    moments.check("name", &["--target-name", "row 3"], "shutdown", "0 1 2 3");
    moments.check("immediate", &["--target-immediate"], "promote", "0");
    let restored = moments.story.promoted("end", &[]);
    assert_eq!(found(&restored), "0 1 2 3 4");
}

/// The plan that a restore would follow, for programs.
fn plan(story: &Story, arguments: &[&str]) -> serde_json::Value {
    let tool = story.restore_to(&story.scratch.path("plan"), &["--dry-run", "--format", "json"]);
    tool.args(arguments).run().expect_code(0).json()
}

/// What a restore says that is refused.
fn refused(story: &Story, arguments: &[&str]) -> String {
    let to = story.scratch.path("refused");
    let ran = story.restore_to(&to, arguments).run().expect_code(1);
    assert!(!to.exists(), "{}", ran.report());
    ran.stderr
}

fn expect(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is not in\n{text}");
    }
}

each_major!(transactions_and_restore_points_are_looked_up_in_the_maps: 13 15 18);
fn transactions_and_restore_points_are_looked_up_in_the_maps(server: &Server) {
    let mut moments = Moments::new("lookup", server, plain);
    moments.story.step("a second backup, and a row behind it");
    let first = moments.story.committed().remove(0);
    let label = moments.story.backup();
    moments.add(5);
    moments.story.archive_all();

    // Both lie before the newest backup: only the maps tell which one leads there.
    moments.check("xid", &["--target-xid", &moments.xid[1]], "promote", "0 1 2");
    moments.check("name", &["--target-name", "row 3"], "pause", "0 1 2 3");
    let found = plan(&moments.story, &["--target-name", "row 3"]);
    assert_eq!(found["backup"]["label"], first.as_str(), "{found}");
    assert_eq!(found["notes"].as_array().unwrap().len(), 0, "{found}");
    assert_eq!(found["wal"]["to_end"], false, "{found}");

    let next: u64 = moments.xid[4].parse::<u64>().unwrap() + 1000;
    expect(
        &refused(&moments.story, &["--target-xid", &next.to_string()]),
        &[
            &format!("transaction {next} is not in the archived WAL"),
            &format!("to {}", moments.xid[4]),
        ],
    );
    expect(
        &refused(&moments.story, &["--target-name", "rov 3"]),
        &[
            "\"rov 3\" is not in the archived WAL",
            "did you mean \"row 3\"?",
            "\"row 5\" (",
        ],
    );
    expect(
        &refused(&moments.story, &["--target-name", "row 3", "--backup", &label]),
        &["is not in the WAL behind backup", "\"row 5\""],
    );

    moments
        .story
        .step("a name that is used again is reached from the backup behind the first");
    moments.story.cluster.sql("SELECT pg_create_restore_point('row 3')");
    moments.story.archive_all();
    moments.check("again", &["--target-name", "row 3"], "promote", "0 1 2 3 4 5");

    moments
        .story
        .step("a map is missing: it cannot be checked, and the plan says so");
    fs::remove_file(moments.story.site.repos[0].matching(".map.zst").pop().unwrap()).unwrap();
    let unknown = plan(&moments.story, &["--target-name", "rov 3"]);
    expect(
        &unknown["notes"][0].to_string(),
        &["could not be checked", "no repository holds the map of WAL"],
    );
    let known = plan(&moments.story, &["--target-xid", &moments.xid[1]]);
    assert_eq!(
        known["backup"]["label"],
        first.as_str(),
        "what is found stays found: {known}"
    );
}

each_major!(a_time_behind_the_last_commit_ends_with_the_last_record_if_the_archive_covers_it: 15 18);
fn a_time_behind_the_last_commit_ends_with_the_last_record_if_the_archive_covers_it(server: &Server) {
    let mut moments = Moments::new("last_commit", server, plain);
    let clock = format!("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', {TIME})");
    let late = moments.story.cluster.query_one(&clock);
    moments.story.step("nothing in the archive is as late as that");
    expect(
        &refused(&moments.story, &["--target-time", &late]),
        &["the archive covers nothing after", "reachable as of", "(timeline 1)"],
    );

    moments
        .story
        .step("a later restore point shows that the archive covers it");
    moments.story.cluster.sql("SELECT pg_create_restore_point('later')");
    moments.story.archive_all();
    let notes = plan(&moments.story, &["--target-time", &late])["notes"].to_string();
    expect(
        &notes,
        &["nothing was committed after the target", &moments.committed[3]],
    );
    let restored = moments.story.restored("covered", &["--target-time", &late]);

    moments
        .story
        .step("what is committed and archived before the server starts is not replayed");
    moments.add(5);
    moments.story.archive_all();
    restored.start();
    wait_paused(&restored);
    assert_eq!(found(&restored), "0 1 2 3 4", "{}", restored.log());
    drop(restored);
    moments.check(
        "exclusive",
        &["--target-time", &late, "--target-exclusive"],
        "promote",
        "0 1 2 3 4",
    );

    moments.story.step("without maps it goes on and says so");
    for map in moments.story.site.repos[0].matching(".map.zst") {
        fs::remove_file(map).unwrap();
    }
    let notes = plan(&moments.story, &["--target-time", &late])["notes"].to_string();
    expect(
        &notes,
        &["could not be checked whether a transaction was committed after the target"],
    );
}

#[test]
fn every_kind_of_target_works_with_an_encrypted_repository() {
    let Some(server) = Server::need(15) else { return };
    let moments = Moments::new("sealed_targets", &server, |site| {
        site.repository(RepoOptions::new("sealed").encrypted())
    });
    moments.check("time", &["--target-time", &moments.after[1]], "promote", "0 1 2");
    moments.check("lsn", &["--target-lsn", &moments.lsn[1]], "promote", "0 1 2");
    moments.check("xid", &["--target-xid", &moments.xid[2]], "promote", "0 1 2 3");
    moments.check("name", &["--target-name", "row 1"], "promote", "0 1");
    moments.check("immediate", &["--target-immediate"], "promote", "0");
}

#[test]
fn the_second_repository_serves_files_and_wal_while_the_first_is_gone() {
    let Some(server) = Server::need(15) else { return };
    let moments = Moments::new("two_repositories", &server, |site| {
        site.repository(RepoOptions::new("near"))
            .repository(RepoOptions::new("far").encrypted())
    });
    let (near, aside) = (
        moments.story.site.repos[0].dir.clone(),
        moments.story.scratch.path("aside"),
    );

    moments.story.step("the first is gone before the restore");
    fs::rename(&near, &aside).unwrap();
    let plan = moments
        .story
        .restore_to(&moments.story.scratch.path("plan"), &["--dry-run"])
        .run()
        .expect_code(0);
    assert!(
        plan.stdout.contains("repository near did not answer"),
        "{}",
        plan.report()
    );
    assert!(plan.stdout.contains("--repository far"), "{}", plan.report());
    let alone = ["--target-name", "row 2", "--repository", "far"];
    moments.check("far", &alone, "promote", "0 1 2");

    moments.story.step("the first goes between the restore and the start");
    fs::rename(&aside, &near).unwrap();
    let restored = moments.story.restored("later", &[]);
    fs::rename(&near, &aside).unwrap();
    restored.start_without_waiting();
    assert!(
        !restored.wait_exit(PATIENCE).success(),
        "it opened, and near may hold more WAL\n{}",
        restored.log()
    );
    assert!(restored.log().contains("repository \"near\""), "{}", restored.log());

    moments
        .story
        .step("told to do without the first, recovery goes to the end");
    let restored = moments.story.promoted("far_only", &["--repository", "far"]);
    assert_eq!(found(&restored), "0 1 2 3 4");
    drop(restored);

    moments.story.step("a bundle of the first is damaged: the second helps");
    fs::rename(&aside, &near).unwrap();
    for bundle in moments.story.site.repos[0].matching(".tar.zst") {
        system_tests::mutilate::flip_middle_bit(&bundle);
    }
    moments.check("damaged", &["--target-name", "row 2"], "promote", "0 1 2");
}

/// Restores into the configured data directory, where the server goes on archiving, and starts it.
fn recover_in_place(story: &Story, running: &Cluster, name: &str) -> Cluster {
    let place = put_aside(running, &story.scratch.path(&format!("before {name}")));
    story
        .restore_to(&place, &["--target-name", name, "--target-action", "promote"])
        .run()
        .expect_code(0);
    let restored = Cluster::adopt(&story.scratch, story.cluster.server(), &place);
    restored.start();
    restored.wait_promoted(PATIENCE);
    assert_eq!(
        restored.query_one("SHOW archive_mode"),
        "on",
        "the configured data directory goes on archiving"
    );
    restored
}

fn add(cluster: &Cluster, row: u32) {
    cluster.sql(&format!("INSERT INTO moments VALUES ({row})"));
    cluster.sql(&format!("SELECT pg_create_restore_point('row {row}')"));
}

each_major!(after_two_recoveries_each_timeline_can_be_followed: 15 18);
fn after_two_recoveries_each_timeline_can_be_followed(server: &Server) {
    let story = Story::begin("timelines", server, Options::default());
    let first = &story.cluster;
    first.sql("CREATE TABLE moments (n int)");
    story.backup();
    [1, 2].iter().for_each(|row| add(first, *row));
    archive_all(first);

    story.step("back to row 1: timeline 2");
    let second = recover_in_place(&story, first, "row 1");
    [21, 22].iter().for_each(|row| add(&second, *row));
    archive_all(&second);

    story.step("back to row 21: timeline 3");
    let third = recover_in_place(&story, &second, "row 21");
    [31, 32].iter().for_each(|row| add(&third, *row));
    archive_all(&third);
    wait_until("the history of timeline 3 is archived", PATIENCE, || {
        !story.site.repo().matching("00000003.history").is_empty()
    });

    let check = |name: &str, arguments: &[&str], expected: &str, timeline: &str| {
        story.step(&format!("{arguments:?}"));
        let restored = story.promoted(name, arguments);
        assert_eq!(found(&restored), expected, "{arguments:?}\n{}", restored.log());
        // Recovery may not take a number that the archive knows.
        assert_eq!(
            restored.query_one("SELECT timeline_id FROM pg_control_checkpoint()"),
            timeline,
            "{arguments:?}"
        );
        restored.stop(Stop::Immediate);
        fs::remove_dir_all(restored.data()).unwrap();
    };
    check("default", &[], "1 21 31 32", "4");
    check("latest", &["--target-timeline", "latest"], "1 21 31 32", "4");
    check("one", &["--target-timeline", "1"], "1 2", "4");
    check("current", &["--target-timeline", "current"], "1 2", "4");
    check("two", &["--target-timeline", "2"], "1 21 22", "4");
    check(
        "three",
        &[
            "--target-timeline",
            "3",
            "--target-name",
            "row 31",
            "--target-action",
            "promote",
        ],
        "1 21 31",
        "4",
    );
    check(
        "two21",
        &[
            "--target-timeline",
            "2",
            "--target-name",
            "row 21",
            "--target-action",
            "promote",
        ],
        "1 21",
        "4",
    );
    check(
        "two22",
        &[
            "--target-timeline",
            "00000002",
            "--target-name",
            "row 22",
            "--target-action",
            "promote",
        ],
        "1 21 22",
        "4",
    );
    check(
        "one2",
        &[
            "--target-timeline",
            "1",
            "--target-name",
            "row 2",
            "--target-action",
            "promote",
        ],
        "1 2",
        "4",
    );

    story.step("info's windows are what restore accepts, also where WAL is missing");
    let whole = windows_are_what_restore_accepts(&story);
    let timelines: Vec<u64> = whole.iter().map(|(_, timeline)| *timeline).collect();
    assert_eq!(timelines, [1, 2, 3], "{whole:?}");
    let second = whole[1].0.clone();
    let segment = story.site.repo().wal(&second);
    let aside = story.scratch.path("segment");
    fs::rename(&segment, &aside).unwrap();
    let gap = windows_are_what_restore_accepts(&story);
    assert!(gap.iter().all(|(last, _)| *last != second), "{gap:?}");
    fs::rename(&aside, &segment).unwrap();

    story.step("a timeline that is not there is refused");
    let to = story.scratch.path("nine");
    story
        .restore_to(&to, &["--target-timeline", "9"])
        .run()
        .expect_code(2)
        .expect_said("1, 2, 3");
    assert!(!to.exists());

    story.step("a backup on timeline 3 is the one to start from, also for `current`");
    let site = Site::named(&story.scratch, &third, "later").shared(story.site.repo(), RepoOptions::new("local"));
    let label = system_tests::story::label(&site.tool("base-backup").run().expect_code(0));
    add(&third, 33);
    archive_all(&third);
    for name in ["latest", "current"] {
        let to = story.scratch.path(&format!("third {name}"));
        let ran = story.restore_to(&to, &["--target-timeline", name]).run().expect_code(0);
        assert!(ran.stderr.contains(&label), "{}", ran.report());
        let restored = Cluster::adopt(&story.scratch, server, &to);
        restored.start();
        restored.wait_promoted(PATIENCE);
        assert_eq!(found(&restored), "1 21 31 32 33");
    }
}

/// Each window that info shows ends exactly where restore begins to refuse.
fn windows_are_what_restore_accepts(story: &Story) -> Vec<(String, u64)> {
    let info = story
        .tool("info")
        .args(["--format", "json"])
        .run()
        .expect_code(0)
        .json();
    let windows = info["repositories"][0]["systems"][0]["windows"].clone();
    let mut found = Vec::new();
    for window in windows.as_array().unwrap() {
        let word = |name: &str| window[name].as_str().unwrap().to_owned();
        let timeline = window["timeline"].as_u64().unwrap();
        let restore = |lsn: &str, code| {
            let arguments = ["--backup", &word("label"), "--target-timeline", &timeline.to_string()];
            let tool = story.restore_to(&story.scratch.path("window"), &arguments);
            tool.args(["--target-lsn", lsn, "--dry-run"]).run().expect_code(code);
        };
        let (high, low) = word("to_lsn")
            .split_once('/')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let last = format!("{high}/{:X}", u64::from_str_radix(&low, 16).unwrap() - 1);
        restore(&word("from_lsn"), 0);
        restore(&last, 0);
        restore(&word("to_lsn"), 1);
        found.push((word("last_segment"), timeline));
    }
    found
}

each_major!(a_standby_from_a_backup_follows_the_archive_and_can_be_promoted: 13 15 18);
fn a_standby_from_a_backup_follows_the_archive_and_can_be_promoted(server: &Server) {
    let story = Story::begin("standby", server, Options::default());
    story.cluster.sql("CREATE TABLE moments (n int)");
    story.backup();
    add(&story.cluster, 1);
    story.archive_all();
    let standby = story.restored("standby", &["--standby"]);
    assert!(standby.data().join("standby.signal").is_file());
    standby.start();
    wait_until("row 1 is replayed", PATIENCE, || found(&standby) == "1");
    story.step("WAL that is archived later is followed");
    for row in [2, 3] {
        add(&story.cluster, row);
        story.archive_all();
        let expected = (1..=row).map(|row| row.to_string()).collect::<Vec<_>>().join(" ");
        wait_until("the new row is replayed", PATIENCE, || found(&standby) == expected);
        assert!(standby.in_recovery());
    }
    standby.promote();
    assert_eq!(found(&standby), "1 2 3");
    standby.sql("INSERT INTO moments VALUES (4)");
}

#[test]
fn a_standby_streams_from_the_primary_it_is_told() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("streaming", &server, Options::default());
    story.cluster.sql("CREATE TABLE moments (n int)");
    story.backup();
    let socket = text(&story.cluster.socket_dir());
    let primary = format!(
        "host={socket} port={} user=postgres application_name='it\\'s mine'",
        story.cluster.port()
    );
    let standby = story.restored("standby", &["--standby", "--primary-conninfo", &primary]);
    standby.start();
    add(&story.cluster, 1);
    // The row is in no archived segment.
    wait_until("row 1 is streamed", PATIENCE, || found(&standby) == "1");
    assert_eq!(
        story
            .cluster
            .query_one("SELECT application_name FROM pg_stat_replication"),
        "it's mine",
        "quotes and backslashes arrive as they were given"
    );
}

#[test]
fn settings_of_an_earlier_recovery_do_not_survive() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("inherited", &server, Options::default());
    story.cluster.sql("CREATE TABLE moments (n int)");
    for setting in [
        "restore_command = 'false'",
        "recovery_target_xid = '3'",
        "recovery_target_action = 'shutdown'",
        "recovery_end_command = 'false'",
        "archive_cleanup_command = 'false'",
        "primary_conninfo = 'host=nowhere'",
        "work_mem = '7MB'",
    ] {
        story.cluster.sql(&format!("ALTER SYSTEM SET {setting}"));
    }
    story
        .cluster
        .conf(&["recovery_target_name = 'old'", "recovery_target_timeline = '7'"]);
    story.backup();
    add(&story.cluster, 1);
    story.archive_all();
    let restored = story.promoted("restored", &["--target-name", "row 1", "--target-action", "promote"]);
    assert_eq!(found(&restored), "1");
    assert_eq!(restored.query_one("SHOW work_mem"), "7MB");
    assert_eq!(restored.query_one("SHOW primary_conninfo"), "");
    story.step("and without a target either");
    assert_eq!(found(&story.promoted("end", &[])), "1");
}
