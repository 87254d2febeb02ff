//! What may go wrong with a backup: every failure says what failed, on what, why, what to do, and leaves no backup.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use system_tests::mounts::Mounted;
use system_tests::story::{label, newer_format, text};
use system_tests::wait::PATIENCE;
use system_tests::{
    Options, Ran, RepoOptions, Scratch, Server, Site, Stop, Story, Tool, account, mutilate, wait_until,
};

fn begin(name: &str) -> Option<Story> {
    Server::need(15).map(|server| Story::begin(name, &server, Options::default()))
}

/// Runs a backup that must fail with this code, say these words and leave nothing.
fn refused(story: &Story, tool: &Tool, code: i32, words: &[&str]) -> Ran {
    let before = story.committed();
    let ran = tool.run().expect_code(code);
    for words in words {
        assert!(ran.stderr.contains(words), "{words:?} is not said\n{}", ran.report());
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.report());
    assert_eq!(story.committed(), before, "{}", ran.report());
    ran
}

fn config_with(story: &Story, name: &str, from: &str, to: &str) -> Tool {
    let config = fs::read_to_string(&story.site.config).unwrap();
    assert!(config.contains(from), "{from} is not in\n{config}");
    let path = story
        .scratch
        .write(&format!("{name}.toml"), config.replace(from, to), 0o600);
    Tool::new("base-backup").arg("--config").arg(path)
}

#[test]
fn a_configuration_that_is_wrong_is_code_2_and_named() {
    let Some(story) = begin("configuration") else { return };
    let data = text(story.cluster.data());
    let with = |name: &str, from: &str, to: &str| config_with(&story, name, from, to);
    story.step("an unknown key");
    refused(
        &story,
        &with("key", "patience =", "patienze ="),
        2,
        &["patienze", "patience", "key.toml"],
    );
    refused(
        &story,
        &with("table", "port =", "prot ="),
        2,
        &["prot", "port", "cluster.main"],
    );
    story.step("a data directory that is not there, or another one's");
    let missing = format!("{data}-missing");
    refused(
        &story,
        &with("missing", &format!("\"{data}\""), &format!("\"{missing}\"")),
        2,
        &[&missing],
    );
    let other = story.scratch.create_dir("other");
    let ran = with("other", &format!("\"{data}\""), &format!("\"{}\"", other.display()));
    refused(&story, &ran, 2, &[&text(&other)]);
    story.step("names that would be paths");
    refused(
        &story,
        &with("cluster", "[cluster.main]", "[cluster.\"../main\"]"),
        2,
        &["../main"],
    );
    refused(
        &story,
        &with("repository", "[repository.local]", "[repository.\"../../x\"]"),
        2,
        &["../../x"],
    );
    refused(
        &story,
        &story.tool("base-backup").args(["--repository", "../local"]),
        2,
        &["../local", "local"],
    );
    refused(
        &story,
        &story.tool("base-backup").args(["--cluster", "../main"]),
        2,
        &["../main", "main"],
    );
    story.step("a file that cannot be read");
    let config = story.scratch.path("nothing.toml");
    refused(
        &story,
        &Tool::new("base-backup").arg("--config").arg(&config),
        2,
        &["nothing.toml"],
    );
    story.step("words that are none");
    refused(
        &story,
        &story.tool("base-backup").args(["--type", "whole"]),
        2,
        &["whole", "full"],
    );
}

#[test]
fn a_server_that_cannot_be_backed_up_is_named_with_the_reason() {
    let Some(story) = begin("server") else { return };
    story.step("a server that does not run");
    story.cluster.stop(Stop::Fast);
    let socket = text(&story.cluster.socket_dir());
    refused(
        &story,
        &story.tool("base-backup"),
        75,
        &[&socket, &story.cluster.port().to_string()],
    );
    story.step("archive_mode is off");
    story.cluster.conf(&["archive_mode = off"]);
    story.cluster.start();
    refused(
        &story,
        &story.tool("base-backup"),
        2,
        &["archive_mode is off", "archive_mode = on", "pgkeep-archive-push"],
    );
    story.step("no archive_command");
    story.cluster.conf(&["archive_mode = on", "archive_command = ''"]);
    story.cluster.restart();
    refused(&story, &story.tool("base-backup"), 2, &["archive_command is empty"]);
}

#[test]
fn a_broken_archive_command_is_found_before_anything_is_copied() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("archive_command", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local"))
            .cluster_line("archive_wait = \"7s\"")
    });
    story.cluster.conf(&["archive_command = 'echo broken >&2; false'"]);
    story.cluster.reload();
    wait_until("the command is the broken one", PATIENCE, || {
        story.cluster.query_one("SHOW archive_command").contains("broken")
    });
    let failing = story.cluster.switch_wal();
    let failed = format!("SELECT count(*) FROM pg_stat_archiver WHERE last_failed_wal = '{failing}'");
    wait_until("archiving fails", PATIENCE, || story.cluster.query_one(&failed) == "1");
    refused(
        &story,
        &story.tool("base-backup"),
        1,
        &[
            "waiting for WAL segment",
            "has not reached repository \"local\"",
            "archive_command",
            "broken",
            &failing,
        ],
    );
    assert!(story.site.repo().matching(".tar.zst").is_empty());
}

#[test]
fn a_repository_that_is_not_ours_or_not_there_takes_no_backup() {
    let Some(story) = begin("repository") else { return };
    let repo = story.site.repo().clone();
    let identity = repo.path("repository.json");

    story.step("permissions are wrong");
    mutilate::chmod(&repo.dir, 0o000);
    refused(
        &story,
        &story.tool("base-backup"),
        1,
        &[&text(&repo.dir), "Permission denied"],
    );
    mutilate::chmod(&repo.dir, 0o700);

    story.step("the directory is gone");
    let aside = story.scratch.path("aside");
    fs::rename(&repo.dir, &aside).unwrap();
    refused(&story, &story.tool("base-backup"), 1, &[&text(&repo.dir), "mounted"]);
    assert!(!repo.dir.exists(), "the missing mount point is not made up");
    fs::rename(&aside, &repo.dir).unwrap();

    story.step("a newer format");
    let original = fs::read_to_string(&identity).unwrap();
    account::write(&identity, newer_format(&original), 0o400);
    let cause = "no repository is left that can take this backup: repository \"local\": ";
    refused(&story, &story.tool("base-backup"), 1, &["format", "2", cause]);

    story.step("another repository in the same place");
    let scratch = &story.scratch;
    let other = Site::named(scratch, &story.cluster, "other").repository(RepoOptions::new("local"));
    other.tool("init").run().expect_code(0);
    account::write(
        &identity,
        fs::read(other.repo().path("repository.json")).unwrap(),
        0o400,
    );
    refused(&story, &story.tool("base-backup"), 1, &["local", "UUID"]);
    assert!(repo.matching("intent.json").is_empty());

    story.step("put right, it works again");
    account::write(&identity, &original, 0o400);
    story.backup();
}

#[test]
fn another_cluster_s_repository_takes_no_backup() {
    let Some(story) = begin("foreign") else { return };
    let server = story.cluster.server().clone();
    let scratch = Scratch::new("foreign_other");
    let other = system_tests::Cluster::create(&scratch, &server, Options::default());
    let site = Site::new(&scratch, &other)
        .shared(story.site.repo(), RepoOptions::new("local"))
        .cluster_line("archive_wait = \"2s\"");
    site.archive(&other);
    other.start();
    let identifier = other.system_identifier();
    refused(&story, &site.tool("base-backup"), 1, &[&identifier, "\"local\""]);
    assert!(
        story.site.repo().matching("intent.json").is_empty(),
        "something was written into another cluster's repository"
    );
}

#[test]
fn a_backup_killed_at_any_moment_leaves_none_and_the_next_succeeds_at_once() {
    let Some(story) = begin("killed") else { return };
    story.cluster.pgbench_init(5);
    let repo = story.site.repo().clone();
    let moments: [(&str, &dyn Fn() -> bool); 4] = [
        ("it has begun", &|| !repo.matching("intent.json").is_empty()),
        ("it copies", &|| staged(&repo.dir)),
        ("the first bundle is stored", &|| !repo.matching(".tar.zst").is_empty()),
        ("the manifest is stored", &|| !repo.matching("manifest.zst").is_empty()),
    ];
    let mut killed = 0;
    for (title, reached) in moments {
        story.step(title);
        let mut running = story.tool("base-backup").spawn();
        wait_until(title, PATIENCE, || !running.is_running() || reached());
        let ran = running.kill9();
        // Killed behind its last write it is a backup, and a whole one.
        match (ran.signal, story.committed().as_slice()) {
            (Some(9), []) => killed += 1,
            (_, [whole]) => drop(story.restored(&format!("whole {title}"), &["--backup", whole, "--target-immediate"])),
            (_, committed) => panic!("{committed:?}\n{}", ran.report()),
        }
        story.step("nothing is listed as a backup, and the next is not held up");
        let info = story.tool("info").args(["--format", "json"]).run();
        let listed = info.json()["repositories"][0]["backups"].as_array().unwrap().len();
        assert_eq!(listed, story.committed().len(), "{}", info.report());
        let next = story.backup();
        assert!(story.committed().contains(&next));
        for label in repo.backups() {
            fs::remove_dir_all(repo.path(&format!("backup/{label}"))).unwrap();
        }
    }
    // The last moments are short; on a quick machine the backup is through before the kill.
    assert!(killed >= 2, "only {killed} left no backup");
    story.step("the last of them would have been good");
    let end = story.cluster.checksum("postgres");
    story.backup();
    story.archive_all();
    assert_eq!(story.promoted("restored", &[]).checksum("postgres"), end);
}

#[test]
fn a_backup_that_a_signal_ends_says_so_and_leaves_no_backup() {
    let Some(story) = begin("signalled") else { return };
    story.cluster.pgbench_init(5);
    let repo = story.site.repo().clone();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        story.step(signal.as_str());
        let mut running = story.tool("base-backup").spawn();
        wait_until("it copies", PATIENCE, || {
            !running.is_running() || staged(&repo.path("backup"))
        });
        running.signal(signal);
        let ran = running.wait(PATIENCE).expect_code(code);
        ran.expect_said(&format!("interrupted by {}", signal.as_str()));
        assert_eq!(story.committed(), Vec::<String>::new());
        assert!(!staged(&repo.path("backup")), "half-written files are left");
        let status = story.site.status("base-backup");
        assert_eq!(
            (&status["result"], &status["exit_code"]),
            (&"interrupted".into(), &code.into())
        );
        let audit = fs::read_to_string(story.site.state().join("main/history.jsonl")).unwrap();
        assert!(audit.lines().last().unwrap().contains("\"interrupted\""), "{audit}");
        let backups = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%base-backup%'";
        wait_until("its session is gone", PATIENCE, || {
            story.cluster.query_one(backups) == "0"
        });
    }
    story.step("the next is not held up, and quiet says nothing");
    let ran = story.tool("base-backup").arg("-q").run().expect_code(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    assert_eq!(story.committed().len(), 1);
    let listed = story.tool("info").run().expect_code(0);
    listed.expect_said("(left behind, begun by process");
}

fn staged(directory: &Path) -> bool {
    let found = fs::read_dir(directory).into_iter().flatten().flatten();
    found.into_iter().any(|entry| {
        entry.file_name().to_string_lossy().starts_with(".staging")
            || entry.file_type().is_ok_and(|kind| kind.is_dir()) && staged(&entry.path())
    })
}

#[test]
fn a_full_disk_ends_the_backup_says_so_and_leaves_none() {
    let Some(server) = Server::need(15) else { return };
    let mut disk = None;
    let story = Story::with("full_disk", &server, Options::default(), |site| {
        let site = site
            .repository(RepoOptions::new("local"))
            .cluster_line("archive_wait = \"5s\"");
        disk = Mounted::tiny(&site.repo().dir, 10 << 10);
        site
    });
    let Some(disk) = disk else { return };
    // Rows that do not compress; their WAL would fill the disk first.
    story.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/true'");
    story.cluster.reload();
    story.cluster.sql(
        "CREATE TABLE t AS SELECT decode(string_agg(md5(random()::text), ''), 'hex') AS noise
         FROM generate_series(1, 500000) n GROUP BY n % 1000",
    );
    story.archive_all();
    story.cluster.sql("ALTER SYSTEM RESET archive_command");
    story.cluster.reload();
    let ours = || story.cluster.query_one("SHOW archive_command").contains("archive-push");
    wait_until("the command is ours again", PATIENCE, ours);

    story.step("no room for WAL: it does not come, and another time it may");
    let filler = story.site.repo().dir.join("filler");
    account::write(&filler, "", 0o600);
    let mut file = fs::OpenOptions::new().append(true).open(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    file.set_len(file.metadata().unwrap().len() - (64 << 10)).unwrap();
    drop(file);
    story.cluster.sql("CREATE TABLE more AS SELECT decode(string_agg(md5(random()::text), ''), 'hex') FROM generate_series(1, 100000) n GROUP BY n % 1000");
    story.cluster.switch_wal();
    wait_until("archive-push found no room", PATIENCE, || {
        let path = story.site.state().join("main/status/archive-push.json");
        fs::read_to_string(path).is_ok_and(|text| text.contains("No space left"))
    });
    refused(
        &story,
        &story.tool("base-backup"),
        75,
        &["has not reached repository \"local\"", "No space left on device"],
    );
    mutilate::remove(&filler);
    story.cluster.sql("DROP TABLE more");
    let ran = refused(&story, &story.tool("base-backup"), 75, &["No space left on device"]);
    ran.expect_said(&text(&story.site.repo().dir));

    story.step("with room again the next backup is good");
    disk.resize(200 << 10);
    let end = story.cluster.checksum("postgres");
    story.backup();
    story.archive_all();
    assert_eq!(story.promoted("restored", &[]).checksum("postgres"), end);
}

#[test]
fn damaged_pages_are_named_by_file_and_block_and_the_backup_does_not_count() {
    let Some(story) = begin("damaged") else { return };
    story
        .cluster
        .sql("CREATE TABLE t AS SELECT n, repeat('x', 500) AS filler FROM generate_series(1, 5000) n; CHECKPOINT");
    let good = story.backup();
    let path = story.cluster.query_one("SELECT pg_relation_filepath('t')");
    let file = story.cluster.data().join(&path);

    story.step("pages 0 and 7 are overwritten with rubbish, page 100 loses a bit");
    let rubbish: Vec<u8> = (0..8192u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let heap = fs::OpenOptions::new().write(true).open(&file).unwrap();
    heap.write_all_at(&rubbish, 0).unwrap();
    heap.write_all_at(&rubbish, 7 * 8192).unwrap();
    mutilate::flip_bit(&file, 100 * 8192 + 4000, 2);

    let ran = story.tool("base-backup").args(["--type", "full"]).run().expect_code(1);
    let damaged = label(&ran);
    for words in [path.as_str(), "0, 7, 100", "3 damaged pages"] {
        assert!(
            ran.stderr.contains(words) || ran.stdout.contains(words),
            "{words:?} is not said\n{}",
            ran.report()
        );
    }
    assert_eq!(story.site.status("base-backup")["exit_code"], 1);

    story.step("a program reads the same");
    let json = story
        .tool("base-backup")
        .args(["--type", "full", "--format", "json"])
        .run()
        .expect_code(1)
        .json();
    assert_eq!(json["backup"]["damaged_pages"], 3, "{json}");
    assert_eq!(json["backup"]["damage"][0]["path"], format!("data/{path}"), "{json}");
    assert_eq!(json["backup"]["repositories"][0]["stored"], true, "{json}");
    assert!(
        json["complaint"].as_str().unwrap().contains("3 damaged pages"),
        "{json}"
    );

    story.step("info lists it as damaged");
    let info = story.tool("info").args(["--format", "json"]).run();
    let backups = info.json()["repositories"][0]["backups"].clone();
    let of = |label: &str| {
        backups
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["label"] == label)
            .cloned()
            .unwrap()
    };
    assert_eq!(
        (of(&good)["good"].as_bool(), of(&damaged)["good"].as_bool()),
        (Some(true), Some(false))
    );
    assert_eq!(of(&damaged)["damaged_pages"], 3);
    let damage = serde_json::json!([{
        "path": format!("data/{path}"),
        "blocks": [{"first": 0, "last": 0}, {"first": 7, "last": 7}, {"first": 100, "last": 100}],
    }]);
    assert_eq!(of(&damaged)["damage"], damage);
    assert_eq!(of(&good)["damage"], serde_json::json!([]));
    let listed = format!("DAMAGED: {damaged}: data/{path}: blocks 0, 7, 100");
    story.tool("info").run().expect_code(0).expect_said(&listed);

    story.step("restore passes over it, unless it is named");
    story.archive_all();
    let chosen = story
        .restore_to(&story.scratch.path("never"), &["--dry-run"])
        .run()
        .expect_code(0);
    assert!(
        chosen.stdout.contains(&good) && !chosen.stdout.contains(&format!("backup     {damaged}")),
        "{}",
        chosen.report()
    );
    let named = story
        .restore_to(&story.scratch.path("named"), &["--backup", &damaged])
        .run()
        .expect_code(0);
    assert!(named.stderr.contains("3 damaged pages"), "{}", named.report());
}

#[test]
fn two_backups_of_one_cluster_do_not_run_at_the_same_time() {
    let Some(story) = begin("two") else { return };
    story.cluster.pgbench_init(3);
    let mut running = story.tool("base-backup").spawn();
    wait_until("the first has begun", PATIENCE, || {
        !story.site.repo().matching("intent.json").is_empty()
    });
    running.signal(Signal::SIGSTOP);
    let second = story.tool("base-backup").timeout(Duration::from_secs(60)).run();
    running.signal(Signal::SIGCONT);
    assert!(running.is_running());
    second.expect_code(75).expect_said("another base backup");
    running.wait(PATIENCE).expect_code(0);
    assert_eq!(story.committed().len(), 1);
}
