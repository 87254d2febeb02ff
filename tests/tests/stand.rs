//! Tests of the harness: what the other tests lean on.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use system_tests::scratch::copy_dir;
use system_tests::stand::debian_program;
use system_tests::wait::PATIENCE;
use system_tests::{Cluster, Options, RepoOptions, Scratch, Server, Site, Stop, Tool, account, each_major, mutilate};

/// Versions differ in what they are created with, so that each way is taken once.
fn options(server: &Server) -> Options {
    Options {
        segment_size_mb: if server.major == 16 { 1 } else { 16 },
        checksums: server.major != 14,
        ..Options::default()
    }
}

each_major!(a_killed_server_comes_back_with_the_same_contents);
fn a_killed_server_comes_back_with_the_same_contents(server: &Server) {
    let scratch = Scratch::new("killed");
    let options = options(server);
    let cluster = Cluster::started(&scratch, server, options.clone());
    assert!(
        cluster
            .query_one("SHOW server_version_num")
            .starts_with(&server.major.to_string())
    );
    assert_eq!(
        cluster.query_one("SHOW wal_segment_size"),
        format!("{}MB", options.segment_size_mb)
    );
    assert_eq!(
        cluster.query_one("SHOW data_checksums"),
        if options.checksums { "on" } else { "off" }
    );

    cluster.sql("CREATE TABLE kept (id int PRIMARY KEY, what text); INSERT INTO kept VALUES (1, NULL), (2, 'two')");
    cluster.pgbench_init(1);
    assert_eq!(cluster.pgbench_run(2, 50), 100);
    let before = cluster.checksum("postgres");
    assert_eq!(
        before.0.len(),
        6,
        "four tables of pgbench, our own, large objects: {before:?}"
    );

    cluster.kill9();
    assert!(!cluster.is_running());
    cluster.start();
    assert!(cluster.log().contains("was not properly shut down"));
    assert_eq!(cluster.checksum("postgres"), before);
    cluster.sql("UPDATE kept SET what = 'one' WHERE id = 1");
    assert_ne!(cluster.checksum("postgres"), before);
}

each_major!(a_copied_data_directory_runs_beside_its_original);
fn a_copied_data_directory_runs_beside_its_original(server: &Server) {
    let scratch = Scratch::new("adopted");
    let cluster = Cluster::started(&scratch, server, options(server));
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n; CREATE SEQUENCE s; SELECT nextval('s')");
    let before = cluster.checksum("postgres");
    cluster.stop(Stop::Fast);
    let copy = scratch.path("copy");
    copy_dir(cluster.data(), &copy);
    cluster.start();

    let adopted = Cluster::adopt(&scratch, server, &copy);
    adopted.start();
    assert_eq!(adopted.checksum("postgres"), before);
    assert_eq!(adopted.system_identifier(), cluster.system_identifier());
    assert_ne!(adopted.port(), cluster.port());
}

each_major!(finished_segments_are_archived_and_read_back: 13 15 18);
fn finished_segments_are_archived_and_read_back(server: &Server) {
    let scratch = Scratch::new("archived");
    let archive = scratch.create_dir("archive");
    let cluster = Cluster::create(&scratch, server, options(server));
    cluster.conf(&[
        "archive_mode = on".into(),
        format!("archive_command = 'cp %p {}/%f'", archive.display()),
    ]);
    cluster.start();
    let names: Vec<String> = (0..3).map(|_| cluster.switch_wal()).collect();
    assert_eq!(
        names.iter().collect::<HashSet<_>>().len(),
        3,
        "each switch finishes another segment: {names:?}"
    );
    for name in &names {
        cluster.wait_archived(name);
        assert!(archive.join(name).is_file());
    }

    cluster.stop(Stop::Immediate);
    cluster.conf(&[
        "archive_mode = off".into(),
        format!("restore_command = 'cp {}/%f %p'", archive.display()),
    ]);
    account::write(&cluster.data().join("standby.signal"), "", 0o600);
    cluster.start();
    assert!(cluster.in_recovery());
    cluster.promote();
    cluster.wait_promoted(PATIENCE);
    cluster.sql("CREATE TABLE after_promotion ()");
}

#[test]
fn load_runs_in_the_background_and_can_be_cut_short() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("load");
    let cluster = Cluster::started(&scratch, &server, Options::default());
    cluster.pgbench_init(1);
    let start = cluster.current_lsn();
    let load = cluster.pgbench_background(2, 600);
    let moved = || cluster.query_one(&format!("SELECT pg_current_wal_lsn() > '{start}'")) == "t";
    system_tests::wait_until("load writes WAL", PATIENCE, moved);
    load.stop(&cluster);
    cluster.restart();
    assert!(cluster.pgbench_background(1, 1).wait() > 0);
}

#[test]
fn a_server_that_refuses_to_start_shows_its_log() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("refuses");
    let cluster = Cluster::create(&scratch, &server, Options::default());
    cluster.conf(&["shared_buffers = 'nonsense'"]);
    cluster.start_without_waiting();
    assert!(!cluster.wait_exit(PATIENCE).success());
    assert!(cluster.log().contains("nonsense"));
}

#[test]
fn a_program_runs_as_the_servers_account_in_a_clean_environment() {
    let script = "id -u; env | sort; pwd; cat; echo complaint >&2; exit 7";
    let ran = Tool::program("sh")
        .args(["-c", script])
        .env("PGKEEP_CLUSTER", "c")
        .stdin("read")
        .run()
        .expect_code(7);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_ne!(lines[0], "0", "{}", ran.report());
    // What the shell sets for itself is no business of ours.
    let own = |line: &&&str| {
        !["_=", "PWD=", "OLDPWD=", "SHLVL="]
            .iter()
            .any(|name| line.starts_with(name))
    };
    let environment: Vec<&&str> = lines[1..lines.len() - 2].iter().filter(own).collect();
    assert_eq!(environment.len(), 3, "PATH, LC_ALL, PGKEEP_CLUSTER: {environment:?}");
    assert_eq!(lines[lines.len() - 2..], ["/", "read"]);
    assert_eq!(ran.stderr, "complaint\n");
    assert!(
        ran.max_rss_kib > 100 && ran.max_rss_kib < 50_000,
        "{} KiB",
        ran.max_rss_kib
    );
    assert!(ran.report().contains("$ sh -c '"));
}

#[test]
fn a_signal_is_told_from_an_exit_code() {
    let ran = Tool::program("sh").args(["-c", "kill -KILL $$"]).run();
    assert_eq!((ran.code, ran.signal), (None, Some(9)), "{}", ran.report());
    let mut running = Tool::program("sleep").arg("600").spawn();
    assert!(running.is_running());
    assert_eq!(running.kill9().signal, Some(9));
}

#[test]
#[should_panic(expected = "still running after")]
fn a_program_that_hangs_fails_the_test() {
    Tool::program("sleep")
        .arg("600")
        .timeout(Duration::from_millis(200))
        .run();
}

#[test]
#[should_panic(expected = "expected exit code 0\n$ sh -c 'echo why >&2; exit 3'\nexit code 3")]
fn a_wrong_exit_code_shows_what_was_run() {
    Tool::program("sh")
        .args(["-c", "echo why >&2; exit 3"])
        .run()
        .expect_code(0);
}

#[test]
fn the_peak_memory_of_a_program_is_measured() {
    let small = Tool::program("head")
        .args(["-c", "1000", "/dev/zero"])
        .run()
        .expect_code(0)
        .max_rss_kib;
    // tail keeps everything it has read since the last line end.
    let script = "head -c 60000000 /dev/zero | tail -n 1 | wc -c";
    let large = Tool::program("sh")
        .args(["-c", script])
        .run()
        .expect_code(0)
        .max_rss_kib;
    assert!(small < 20_000 && large > 50_000, "{small} and {large} KiB");
}

#[test]
fn a_site_s_files_belong_to_the_servers_account_and_hold_what_was_asked_for() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("site");
    let cluster = Cluster::create(&scratch, &server, Options::default());
    let owner = fs::metadata(cluster.data()).unwrap().uid();
    let optional = RepoOptions::new("second").encrypted().line("required = false");
    let site = Site::with_repository(&scratch, &cluster)
        .repository(optional)
        .set("jobs", "1");

    let text = fs::read_to_string(&site.config).unwrap();
    for expected in [
        "jobs = 1\n",
        "[repository.local]\n",
        "required = false\n",
        "recipients = [\"age1",
        "identity_file",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    for path in [&site.config, &site.repo().dir, &site.repos[1].dir, &site.state()] {
        assert_eq!(fs::metadata(path).unwrap().uid(), owner, "{}", path.display());
    }
    let keyless = Site::named(&scratch, &cluster, "other").shared(&site.repos[1], RepoOptions::new("second").keyless());
    let text = fs::read_to_string(&keyless.config).unwrap();
    assert!(text.contains("recipients") && !text.contains("identity_file"), "{text}");
    assert!(site.repo().objects().is_empty());
    assert!(site.archive_command().contains("pgkeep-archive-push\" --config \""));
}

#[test]
fn the_project_s_tools_run_where_postgres_can_reach_them() {
    Tool::new("archive-push").arg("--version").run().expect_code(0);
}

#[test]
fn damage_is_seen_by_the_server_s_own_checker() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("damage");
    let cluster = Cluster::started(&scratch, &server, Options::default());
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let file = cluster
        .data()
        .join(cluster.query_one("SELECT pg_relation_filepath('t')"));
    cluster.stop(Stop::Fast);
    let check = Tool::program(debian_program("pg_checksums"))
        .arg("--check")
        .arg("-D")
        .arg(cluster.data());
    check.run().expect_code(0);
    mutilate::flip_middle_bit(&file);
    check.run().expect_code(1).expect_said("checksum verification failed");
}

each_major!(client_programs_work_with_the_server_of_their_version: 15 17 18);
fn client_programs_work_with_the_server_of_their_version(server: &Server) {
    let names = ["pg_dump", "pg_restore", "pg_waldump", "pg_amcheck", "pg_checksums"];
    let mut found = Vec::new();
    for name in names {
        let Some(program) = server.need_client(name) else {
            return;
        };
        found.push(program);
    }
    let [dump, restore, waldump, amcheck, checksums] = &found[..] else {
        panic!("{found:?}")
    };
    let scratch = Scratch::new("clients");
    let cluster = Cluster::started(&scratch, server, Options::default());
    cluster.sql("CREATE TABLE t AS SELECT n, md5(n::text) AS what FROM generate_series(1, 1000) n");
    cluster.sql("CREATE INDEX ON t (n)");
    let before = cluster.checksum("postgres");
    let connected = |program: &PathBuf| {
        Tool::program(program).arg("-h").arg(cluster.socket_dir()).args([
            "-p",
            &cluster.port().to_string(),
            "-U",
            "postgres",
        ])
    };

    let archive = scratch.path("dump");
    connected(dump)
        .args(["-Fc", "-d", "postgres", "-f"])
        .arg(&archive)
        .run()
        .expect_code(0);
    cluster.sql("CREATE DATABASE copy");
    connected(restore)
        .args(["-d", "copy"])
        .arg(&archive)
        .run()
        .expect_code(0);
    assert_eq!(cluster.checksum("copy"), before);

    cluster.sql("CREATE EXTENSION amcheck");
    connected(amcheck)
        .args(["-d", "postgres", "--heapallindexed"])
        .run()
        .expect_code(0)
        .expect_quiet();
    let segment = cluster.query_one("SELECT pg_walfile_name(pg_current_wal_lsn())");
    cluster.stop(Stop::Fast);
    Tool::program(waldump)
        .args(["-n", "3"])
        .arg(cluster.data().join("pg_wal").join(segment))
        .run()
        .expect_code(0)
        .expect_said("rmgr: ");
    Tool::program(checksums)
        .arg("--check")
        .arg("-D")
        .arg(cluster.data())
        .run()
        .expect_code(0)
        .expect_said("Bad checksums:  0");
}
