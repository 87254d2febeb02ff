//! restore-test finds what is wrong with a backup, says nothing of one that is right, and reaches nothing outside.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use system_tests::mounts::Mounted;
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Cluster, Options, Ran, RepoOptions, Scratch, Server, Stop, Story, Tool, each_major, mutilate};

/// A story whose scratch servers are those of `server`, with more settings for its tests.
fn story(name: &str, server: &Server, options: Options, settings: &[&str]) -> Story {
    story_with(name, server, options, settings, RepoOptions::new("local"))
}

fn story_with(name: &str, server: &Server, options: Options, settings: &[&str], repository: RepoOptions) -> Story {
    let scratch = Scratch::new(name);
    // Packages put all of them into one place; here some are unpacked apart.
    let programs = scratch.create_dir("bin");
    for program in ["postgres", "pg_ctl", "pg_checksums"] {
        let path = server.client(program).unwrap_or_else(|| server.program(program));
        std::os::unix::fs::symlink(path, programs.join(program)).unwrap();
    }
    let programs = format!("restore_test.bin_directory = \"{}\"", programs.display());
    Story::within(scratch, server, options, |site| {
        let site = site.repository(repository).cluster_line(&programs);
        settings.iter().fold(site, |site, line| site.cluster_line(line))
    })
}

fn without_checksums() -> Options {
    Options {
        checksums: false,
        ..Options::default()
    }
}

fn test(story: &Story) -> Tool {
    story.tool("restore-test")
}

/// Fails unless a check of this name found something in what has this name.
fn expect_problem(ran: &Ran, check: &str, what: &str, words: &str) {
    let found = ran.json();
    let problems = found["details"]["problems"].as_array().unwrap();
    let is = |problem: &&serde_json::Value| {
        problem["check"] == check
            && problem["what"].as_str().unwrap().contains(what)
            && problem["found"].as_str().unwrap().contains(words)
    };
    assert!(
        problems.iter().any(|problem| is(&problem)),
        "{check} {what} {words}\n{}",
        ran.report()
    );
    assert_eq!(ran.code, Some(1), "{}", ran.report());
}

fn fill(cluster: &Cluster) {
    cluster.sql("CREATE TABLE orders (id int PRIMARY KEY, word text NOT NULL)");
    cluster.sql("INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(1, 5000) n");
    cluster.sql("CREATE INDEX orders_word ON orders (word)");
    cluster.sql("CREATE TABLE long AS SELECT n, repeat(md5(n::text), 200) AS text FROM generate_series(1, 100) n");
    cluster.sql("CREATE DATABASE shop");
}

/// A table in a tablespace.
fn fill_elsewhere(story: &Story) {
    let away = story.scratch.create_dir("away");
    let place = format!("CREATE TABLESPACE away LOCATION '{}'", away.display());
    story.cluster.sql(&place);
    story
        .cluster
        .sql("CREATE TABLE far TABLESPACE away AS SELECT generate_series(1, 1000) AS n");
}

/// Where a relation lies.
fn file(cluster: &Cluster, relation: &str) -> PathBuf {
    let path = cluster.query_one(&format!("SELECT pg_relation_filepath('{relation}')"));
    cluster.data().join(path)
}

/// Changes the files of the stopped server.
fn behind_its_back(cluster: &Cluster, change: impl FnOnce()) {
    cluster.sql("CHECKPOINT");
    cluster.stop(Stop::Fast);
    change();
    cluster.start();
}

fn nothing_is_left(story: &Story) {
    let place = story.site.state().join("main/restore-test");
    let left: Vec<_> = std::fs::read_dir(&place)
        .map(|entries| entries.flatten().collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

each_major!(a_healthy_backup_passes_at_every_level: 13 14 15 16 17 18);
fn a_healthy_backup_passes_at_every_level(server: &Server) {
    // Not every version's pg_checksums is here.
    let options = Options {
        checksums: server.client("pg_checksums").is_some(),
        ..Options::default()
    };
    let settings = [
        "objectives = { rpo = \"1h\", rto = \"1h\" }",
        "restore_test.freshness = \"1h\"",
        "restore_test.assert.orders = { sql = \"SELECT count(*) FROM orders\", at_least = 5000, may_shrink = \"10 %\" }",
        "restore_test.assert.word = { sql = \"SELECT word FROM orders WHERE id = 1\", equals = \"c4ca4238a0b923820dcc509a6f75849b\" }",
    ];
    let encrypted = RepoOptions::new("local").encrypted();
    let story = story_with("test_healthy", server, options, &settings, encrypted);
    fill(&story.cluster);
    fill_elsewhere(&story);
    let label = story.backup();
    story
        .cluster
        .sql("INSERT INTO orders SELECT n, 'later' FROM generate_series(5001, 6000) n");
    story.archive_all();
    for level in ["quick", "standard", "deep"] {
        let ran = test(&story)
            .args(["--level", level, "--format", "json"])
            .run()
            .expect_code(0);
        let found = ran.json();
        assert_eq!(found["label"], label.as_str());
        assert_eq!((&found["passed"], &found["level"]), (&true.into(), &level.into()));
        let number = |name: &str| {
            found[name]
                .as_f64()
                .unwrap_or_else(|| panic!("{name}\n{}", ran.report()))
        };
        assert!(number("rto_seconds") > 0.0 && number("rpo_seconds") < 3600.0 && number("size_bytes") > 1e7);
        let rows = |table: &str| {
            let tables = found["details"]["tables"].as_array().unwrap();
            tables
                .iter()
                .find(|one| one["table"] == table)
                .map(|one| one["rows"].as_u64().unwrap())
        };
        let expected = if level == "quick" {
            [None; 3]
        } else {
            [Some(6000), Some(1000), Some(100)]
        };
        assert_eq!(
            [rows("public.orders"), rows("public.far"), rows("public.long")],
            expected
        );
        let checked = number("checked");
        assert!(
            if level == "quick" {
                checked == 0.0
            } else {
                checked > 200.0
            },
            "{checked}"
        );
        assert_eq!(found["details"]["answers"][0]["value"], "6000");
    }
    nothing_is_left(&story);
    let repo = story.site.repo();
    assert_eq!(repo.matching("/report.json").len(), 3);
    assert_eq!(repo.matching("/details.json.zst.age").len(), 3);
    let status = story.site.status("restore-test");
    assert_eq!(status["result"], "ok");
    assert!(status["fields"]["rto_seconds"].as_f64().unwrap() > 0.0);
    // Evidence is nothing that verify or prune take for garbage.
    story.tool("verify").run().expect_code(0);

    let ran = test(&story).args(["--target-time", "random", "--level", "quick"]).run();
    ran.expect_code(0).expect_said("passed");
}

each_major!(a_corrupted_page_is_found: 13 15 18);
fn a_corrupted_page_is_found(server: &Server) {
    let story = story("test_heap", server, without_checksums(), &[]);
    fill(&story.cluster);
    let path = file(&story.cluster, "orders");
    // The last rows of a page lie at its beginning's end: headers of tuples, nothing that a page's own header tells.
    behind_its_back(&story.cluster, || {
        mutilate::overwrite(&path, 8192 * 3 + 8192 - 600, &[0xff; 500])
    });
    story.backup();
    let ran = test(&story).args(["--format", "json"]).run();
    let check = if server.major < 14 { "read" } else { "amcheck" };
    expect_problem(&ran, check, "postgres: public.orders", "");
    nothing_is_left(&story);
    test(&story).args(["--level", "quick"]).run().expect_code(0);
}

each_major!(a_corrupted_index_is_found: 14 15 16 17 18);
fn a_corrupted_index_is_found(server: &Server) {
    let story = story("test_index", server, without_checksums(), &[]);
    fill(&story.cluster);
    let path = file(&story.cluster, "orders_word");
    behind_its_back(&story.cluster, || {
        // Two entries of a leaf change places: line pointers 3 and 4 of block 1.
        let bytes = std::fs::read(&path).unwrap();
        let at = 8192 + 24 + 2 * 4;
        let (one, other) = (bytes[at..at + 4].to_vec(), bytes[at + 4..at + 8].to_vec());
        mutilate::overwrite(&path, at as u64, &[other, one].concat());
    });
    story.backup();
    let ran = test(&story).args(["--format", "json"]).run();
    expect_problem(&ran, "amcheck", "postgres: public.orders_word", "order");
}

each_major!(a_stale_block_is_found: 15 18);
fn a_stale_block_is_found(server: &Server) {
    let story = story("test_stale", server, without_checksums(), &[]);
    fill(&story.cluster);
    let path = file(&story.cluster, "orders_pkey");
    story.cluster.sql("DELETE FROM orders WHERE id > 4000");
    story.cluster.sql("VACUUM orders");
    story.cluster.sql("CHECKPOINT");
    let before = std::fs::read(&path).unwrap();
    story
        .cluster
        .sql("INSERT INTO orders SELECT n, md5(n::text) FROM generate_series(4001, 4050) n");
    behind_its_back(&story.cluster, || {
        let now = std::fs::read(&path).unwrap();
        assert_eq!(
            now.len(),
            before.len(),
            "the entries found room in a block that was there"
        );
        let differs = |block: &usize| now[block * 8192..][..8192] != before[block * 8192..][..8192];
        let block = (1..now.len() / 8192).find(differs).unwrap();
        mutilate::overwrite(&path, (block * 8192) as u64, &before[block * 8192..][..8192]);
    });
    story.backup();
    let ran = test(&story).args(["--level", "deep", "--format", "json"]).run();
    expect_problem(
        &ran,
        "amcheck",
        "postgres: public.orders_pkey",
        "lacks matching index tuple",
    );
}

each_major!(what_is_missing_is_found: 15 18);
fn what_is_missing_is_found(server: &Server) {
    let story = story("test_missing", server, Options::default(), &[]);
    fill(&story.cluster);
    fill_elsewhere(&story);
    story.backup();
    let segments: Vec<String> = (0..4)
        .map(|_| {
            story
                .cluster
                .sql("INSERT INTO orders SELECT max(id) + 1, 'more' FROM orders");
            story.cluster.switch_wal()
        })
        .collect();
    story.archive_all();
    test(&story).run().expect_code(0);

    story.step("a segment of WAL is missing");
    let segment = story.site.repo().wal(&segments[1]);
    let aside = story.scratch.path("segment");
    std::fs::rename(&segment, &aside).unwrap();
    let ran = test(&story).args(["--format", "json"]).run();
    assert_eq!(ran.code, Some(1), "{}", ran.report());
    ran.expect_said(&segments[1]);
    std::fs::rename(&aside, &segment).unwrap();
    test(&story).args(["--level", "quick"]).run().expect_code(0);

    story.step("a tablespace has lost its files");
    let path = file(&story.cluster, "far");
    behind_its_back(&story.cluster, || mutilate::remove(&path));
    story.backup();
    let ran = test(&story).args(["--format", "json"]).run();
    expect_problem(&ran, "read", "postgres: public.far", "could not open file");
}

each_major!(what_the_configuration_asks_for_is_judged: 15 18);
fn what_the_configuration_asks_for_is_judged(server: &Server) {
    let story = story(
        "test_asked",
        server,
        Options::default(),
        &[
            "restore_test.assert.orders = { sql = \"SELECT count(*) FROM orders\", at_least = 1 }",
            "restore_test.may_shrink = \"50 %\"",
        ],
    );
    fill(&story.cluster);
    story.backup();
    test(&story).run().expect_code(0);
    story.cluster.sql("TRUNCATE orders");
    story.backup();
    let ran = test(&story).args(["--format", "json"]).run();
    expect_problem(&ran, "assertion", "orders", "at least 1");
    expect_problem(&ran, "rows", "postgres: public.orders", "5000");
    story.cluster.sql("DROP TABLE orders");
    story.backup();
    let ran = test(&story).args(["--format", "json"]).run();
    expect_problem(&ran, "assertion", "orders", "does not exist");
    let status = story.site.status("restore-test");
    assert_eq!(status["result"], "failed");
    assert!(status["message"].as_str().unwrap().contains("orders"), "{status}");
}

each_major!(an_old_backup_and_missed_objectives_are_found: 15 18);
fn an_old_backup_and_missed_objectives_are_found(server: &Server) {
    let story = story(
        "test_old",
        server,
        Options::default(),
        &[
            "restore_test.freshness = \"1ms\"",
            "objectives = { rpo = \"1ms\", rto = \"1ms\" }",
        ],
    );
    fill(&story.cluster);
    story.backup();
    let ran = test(&story).args(["--level", "quick", "--format", "json"]).run();
    expect_problem(&ran, "freshness", "newest commit", "may be");
    expect_problem(&ran, "objective", "rpo", "the objective is");
    expect_problem(&ran, "objective", "rto", "the objective is");
}

each_major!(too_little_room_is_found_before_anything_is_copied: 15 18);
fn too_little_room_is_found_before_anything_is_copied(server: &Server) {
    let place = Scratch::new("test_room_place");
    let directory = place.create_dir("tiny");
    let Some(_tiny) = Mounted::tiny(&directory, 4096) else {
        return;
    };
    let story = story(
        "test_room",
        server,
        Options::default(),
        &[&format!("restore_test.directory = \"{}\"", directory.display())],
    );
    fill(&story.cluster);
    story.backup();
    let ran = test(&story).args(["--format", "json"]).run();
    expect_problem(&ran, "restore", "-full-", "free");
    assert!(
        std::fs::read_dir(directory.join("main")).unwrap().next().is_none(),
        "nothing is left"
    );
}

/// Counts who knocks at a port.
fn visitors(listener: &TcpListener) -> usize {
    listener.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| listener.accept().ok()).count()
}

each_major!(what_was_restored_reaches_nothing_outside: 15 18);
fn what_was_restored_reaches_nothing_outside(server: &Server) {
    let story = story(
        "test_apart",
        server,
        Options {
            conf: vec!["wal_level = logical".into()],
            ..Options::default()
        },
        &[],
    );
    fill(&story.cluster);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let touched = story.scratch.path("touched");
    let cluster = &story.cluster;
    cluster.sql(&format!(
        "CREATE SUBSCRIPTION outside CONNECTION 'host=127.0.0.1 port={port} dbname=x' PUBLICATION p \
         WITH (connect = false, slot_name = 'outside')"
    ));
    cluster.sql("ALTER SUBSCRIPTION outside ENABLE");
    wait_until("the server itself comes", PATIENCE, || visitors(&listener) > 0);
    cluster.sql("ALTER SUBSCRIPTION outside DISABLE");
    cluster.sql(
        "CREATE FUNCTION public.login() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN \
                 COPY (SELECT 1) TO PROGRAM 'touch touched_by_trigger'; END$$",
    );
    cluster.sql("CREATE EVENT TRIGGER outside ON ddl_command_end EXECUTE FUNCTION public.login()");
    cluster.sql("ALTER EVENT TRIGGER outside ENABLE");
    for setting in [
        format!("archive_command = 'touch {}.archive'", touched.display()),
        format!("primary_conninfo = 'host=127.0.0.1 port={port} user=x'"),
        "listen_addresses = '127.0.0.1'".to_owned(),
        "shared_preload_libraries = 'a_library_that_is_not_there'".to_owned(),
        format!("archive_cleanup_command = 'touch {}.cleanup'", touched.display()),
        format!("recovery_end_command = 'touch {}.end'", touched.display()),
        "synchronous_standby_names = 'nobody'".to_owned(),
    ] {
        cluster.sql(&format!("ALTER SYSTEM SET {setting}"));
    }
    // The subscription is on when the backup is taken; the server has no time to notice the settings, for it is not reloaded.
    cluster.sql("SET session_replication_role = replica; ALTER SUBSCRIPTION outside ENABLE");
    story.backup();
    cluster.sql("SET session_replication_role = replica; ALTER SUBSCRIPTION outside DISABLE");
    let before = count_files(&story.scratch.path("touched"));
    wait_until("the server itself is quiet", PATIENCE, || visitors(&listener) == 0);

    test(&story).args(["--level", "deep"]).run().expect_code(0);
    assert_eq!(visitors(&listener), 0, "somebody knocked at the publisher");
    assert_eq!(count_files(&touched), before);
    assert!(!cluster.data().join("touched_by_trigger").exists());

    story.step("the same backup, started as it is, does knock");
    let restored = story.restored("plain", &[]);
    restored.conf(&[
        "shared_preload_libraries = ''",
        "listen_addresses = ''",
        "archive_mode = off",
    ]);
    let auto = restored.data().join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap();
    let text: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("preload") && !line.contains("listen"))
        .collect();
    system_tests::account::write(&auto, text.join("\n") + "\n", 0o600);
    restored.start();
    wait_until("the restored server comes", PATIENCE, || visitors(&listener) > 0);
}

#[test]
fn jobs_in_the_database_do_not_run() {
    let Some(server) = Server::need(15) else { return };
    if !server.program("../lib/pg_cron.so").is_file() {
        return system_tests::stand::skipped("pg_cron is not here; tests/stand/install.sh servers installs it");
    }
    let settings = [
        "restore_test.assert.jobs = { sql = \"SELECT count(*) FROM cron.job\", equals = \"1\" }",
        "restore_test.assert.workers = { sql = \"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_cron%'\", equals = \"0\" }",
    ];
    let story = story("test_cron", &server, Options::default(), &settings);
    let cluster = &story.cluster;
    cluster.conf(&["shared_preload_libraries = 'pg_cron'"]);
    cluster.restart();
    cluster.sql("CREATE EXTENSION pg_cron");
    cluster.query("SELECT cron.schedule('* * * * *', 'SELECT 1')");
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'pg_cron%'";
    wait_until("the server itself has its worker", PATIENCE, || {
        cluster.query_one(workers) == "1"
    });
    story.backup();
    test(&story).args(["--level", "standard"]).run().expect_code(0);
}

/// How many files begin with this path.
fn count_files(path: &Path) -> usize {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let entries = std::fs::read_dir(path.parent().unwrap()).unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&name))
        .count()
}

#[test]
fn whoever_kills_it_leaves_nothing_that_the_next_run_does_not_remove() {
    let Some(server) = Server::need(15) else { return };
    let story = story(
        "test_killed",
        &server,
        Options::default(),
        &["restore_test.assert.slow = { sql = \"SELECT count(*), pg_sleep(600) FROM orders\", at_least = 1 }"],
    );
    fill(&story.cluster);
    story.backup();
    let place = story.site.state().join("main/restore-test");
    let servers = || -> Vec<PathBuf> {
        let runs = std::fs::read_dir(&place).into_iter().flatten().flatten();
        runs.map(|run| run.path().join("data/postmaster.pid"))
            .filter(|path| path.exists())
            .collect()
    };
    let is_asking = |path: &Path| {
        let log = path.parent().unwrap().parent().unwrap().join("server.log");
        std::fs::read_to_string(log).is_ok_and(|log| log.contains("database system is ready to accept connections"))
    };
    let mut old = Vec::new();
    for signal in [nix::sys::signal::Signal::SIGKILL, nix::sys::signal::Signal::SIGTERM] {
        let running = test(&story).args(["--level", "quick"]).spawn();
        let new = || servers().into_iter().find(|path| !old.contains(path));
        let is_asking = || new().is_some_and(|path| is_asking(&path));
        wait_until("it asks", PATIENCE, is_asking);
        let path = new().unwrap();
        let pid = std::fs::read_to_string(&path).unwrap();
        let pid = pid.lines().next().unwrap().to_owned();
        let alive = || Path::new("/proc").join(&pid).exists();
        running.signal(signal);
        let ran = running.wait(PATIENCE);
        if signal == nix::sys::signal::Signal::SIGTERM {
            ran.expect_code(143);
            assert!(!alive(), "the server has ended");
            nothing_is_left(&story);
        } else {
            assert!(alive(), "the server was left behind");
        }
        old.push(path);
    }
    let again = story.site.config.clone();
    let text = std::fs::read_to_string(&again).unwrap().replace("pg_sleep(600)", "1");
    system_tests::account::write(&again, text, 0o600);
    test(&story).args(["--level", "quick"]).run().expect_code(0);
    nothing_is_left(&story);
}

#[test]
fn what_is_kept_can_be_looked_at() {
    let Some(server) = Server::need(15) else { return };
    let story = story("test_kept", &server, Options::default(), &[]);
    fill(&story.cluster);
    story.backup();
    let ran = test(&story).args(["--level", "quick", "--keep"]).run().expect_code(0);
    let line = ran
        .stderr
        .lines()
        .find(|line| line.contains("psql -h "))
        .unwrap()
        .to_owned();
    let sockets = line.split("psql -h ").nth(1).unwrap().split(' ').next().unwrap();
    let answer = Tool::program(system_tests::stand::debian_program("psql"))
        .args(["-h", sockets, "-U", "postgres", "-Atc", "SELECT count(*) FROM orders"])
        .run()
        .expect_code(0);
    assert_eq!(answer.stdout.trim(), "5000");
    // The next run leaves it alone.
    test(&story).args(["--level", "quick"]).run().expect_code(0);
    let command = line.split("when you are done: ").nth(1).unwrap();
    Tool::program(PathBuf::from("/bin/sh"))
        .args(["-c", command])
        .run()
        .expect_code(0);
    nothing_is_left(&story);
}

#[test]
fn mistakes_of_the_configuration_are_named() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("test_mistakes", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local"))
            .cluster_line("restore_test.bin_directory = \"/nowhere/{major}/bin\"")
    });
    let ran = test(&story).run();
    ran.expect_code(1).expect_said("there is no");
    story.backup();
    test(&story)
        .run()
        .expect_code(2)
        .expect_said("PostgreSQL 15, which the backup needs, is not in /nowhere/15/bin")
        .expect_said("bin_directory");
    nothing_is_left(&story);
    test(&story)
        .args(["--level", "thorough"])
        .run()
        .expect_code(2)
        .expect_said("only quick, standard and deep");
}
