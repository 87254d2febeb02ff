//! Incremental and differential backups: what they read, what they store, and that they come back as a full one would.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;

use system_tests::story::label;
use system_tests::{Options, RepoOptions, Server, Site, Story, each_major, mutilate};

/// Takes a backup of this type; says its label and what it says of itself.
fn backup(story: &Story, kind: &str, arguments: &[&str]) -> (String, serde_json::Value) {
    let ran = story
        .tool("base-backup")
        .args(["--type", kind, "--format", "json"])
        .args(arguments)
        .run()
        .expect_code(0);
    let mut said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let said = said["backup"].take();
    (said["label"].as_str().unwrap().to_owned(), said)
}

fn document(story: &Story, label: &str) -> serde_json::Value {
    let path = story.site.repo().path(&format!("backup/{label}/backup.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

each_major!(a_chain_reads_what_changed_and_each_link_comes_back: 13 14 15 16 17 18);
fn a_chain_reads_what_changed_and_each_link_comes_back(server: &Server) {
    let story = Story::begin("chain", server, Options::default());
    let cluster = &story.cluster;
    cluster.pgbench_init(5);
    cluster.sql(
        "CREATE TABLE big AS SELECT n, repeat(md5(n::text), 10) AS long FROM generate_series(1, 60000) n; CHECKPOINT",
    );
    let (full, _) = backup(&story, "full", &[]);

    let mut links: Vec<(String, system_tests::contents::Contents)> = Vec::new();
    for round in 1..=4 {
        story.step(&format!("link {round}"));
        cluster.pgbench_run(2, 5);
        cluster.sql(&format!(
            "UPDATE big SET long = long || 'x' WHERE n % 20000 = {round};
             CREATE TABLE fresh_{round} AS SELECT generate_series(1, 1000) AS n;
             DELETE FROM big WHERE n > 60000 - 1000 * {round}"
        ));
        cluster.sql("VACUUM big");
        let expected = cluster.checksum("postgres");
        let (link, said) = backup(&story, "incr", &[]);
        println!("{link}: {} read, {} stored", said["read_bytes"], said["stored_bytes"]);
        assert!(said["read_bytes"].as_u64().unwrap() * 2 < said["size_bytes"].as_u64().unwrap());
        let document = document(&story, &link);
        assert_eq!(document["type"], "incr");
        let base = links.last().map_or(full.as_str(), |(link, _)| link.as_str());
        assert_eq!(document["base"], base);
        links.push((link, expected));
    }
    story.step("a differential one leans on the full one");
    let (diff, _) = backup(&story, "diff", &[]);
    assert_eq!(document(&story, &diff)["base"], full.as_str());
    links.push((diff, cluster.checksum("postgres")));

    story.archive_all();
    for (link, expected) in &links {
        let restored = story.promoted(
            link,
            &["--backup", link, "--target-immediate", "--target-action", "promote"],
        );
        assert_eq!(&restored.checksum("postgres"), expected, "{link}");
    }
}

#[test]
fn with_nothing_changed_nothing_is_read() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("nothing", &server, Options::default());
    story.cluster.pgbench_init(5);
    story.cluster.sql("VACUUM");
    story.cluster.sql("CHECKPOINT");
    backup(&story, "full", &[]);
    backup(&story, "incr", &[]);
    let (_, said) = backup(&story, "incr", &[]);
    println!("{said}");
    let bytes = |name: &str| said[name].as_u64().unwrap();
    // Free space and visibility maps are read whole, three blocks of each relation.
    assert!(bytes("read_bytes") < 6 << 20, "{} bytes read", bytes("read_bytes"));
    assert!(
        bytes("stored_bytes") < 100 << 10,
        "{} bytes stored",
        bytes("stored_bytes")
    );
    assert!(bytes("size_bytes") > 90 << 20);
}

#[test]
fn an_audit_finds_that_wal_names_all_that_changed() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("audit", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local").encrypted())
    });
    story.cluster.pgbench_init(5);
    backup(&story, "full", &[]);
    story.cluster.pgbench_run(2, 50);
    story.cluster.sql("CHECKPOINT");
    let (_, said) = backup(&story, "incr", &["--audit"]);
    println!("{said}");
    assert_eq!(said["audit"]["unnamed_blocks"], 0);
    assert!(said["audit"]["changed_blocks"].as_u64().unwrap() > 10);
}

#[test]
fn without_a_base_it_is_a_full_one_that_says_why() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("no_base", &server, Options::default());
    let ran = story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
    let ran = ran.expect_said("this is a full backup: there is no earlier backup");
    assert!(label(&ran).contains("-full-"));
    let ran = story.tool("base-backup").run().expect_code(0);
    assert!(label(&ran).contains("-incr-"), "the full one is young");
}

/// A story whose WAL and backups are made by a host that holds public keys only; restores run elsewhere.
fn with_keyless_host(name: &str, server: &Server) -> (Story, Site) {
    let story = Story::with(name, server, Options::default(), |site| {
        site.repository(RepoOptions::new("sealed").encrypted())
    });
    let host = Site::named(&story.scratch, &story.cluster, "host")
        .shared(story.site.repo(), RepoOptions::new("sealed").keyless());
    host.archive(&story.cluster);
    (story, host)
}

fn taken(host: &Site, arguments: &[&str]) -> system_tests::Ran {
    host.tool("base-backup").args(arguments).run().expect_code(0)
}

/// Removes every segment that the server still has and the archive has too, so that only maps can tell what changed.
fn forget_wal(cluster: &system_tests::Cluster) {
    for _ in 0..3 {
        let segment = cluster.switch_wal();
        cluster.wait_archived(&segment);
        cluster.checkpoint();
    }
}

#[test]
fn a_host_without_the_key_goes_by_what_it_has_kept() {
    let Some(server) = Server::need(15) else { return };
    let (story, host) = with_keyless_host("keyless_chain", &server);
    let cluster = &story.cluster;
    cluster.pgbench_init(3);
    taken(&host, &["--type", "full"]);
    let mut links = Vec::new();
    for _ in 0..3 {
        cluster.pgbench_run(2, 20);
        forget_wal(cluster);
        let expected = cluster.checksum("postgres");
        let ran = taken(&host, &["--type", "incr"]);
        let ran = ran.expect_said("changed blocks are named by");
        links.push((label(&ran), expected));
    }
    story.archive_all();
    for (link, expected) in &links {
        assert!(link.contains("-incr-"), "{link}");
        let restored = story.promoted(
            link,
            &["--backup", link, "--target-immediate", "--target-action", "promote"],
        );
        assert_eq!(&restored.checksum("postgres"), expected, "{link}");
    }

    story.step("without its maps it reads everything and compares");
    fs::remove_dir_all(host.state().join("main/maps")).unwrap();
    cluster.pgbench_run(2, 20);
    forget_wal(cluster);
    let ran = taken(&host, &["--type", "incr"]).expect_said("every file is read and compared");
    let compared = label(&ran);
    let expected = cluster.checksum("postgres");
    story.archive_all();
    let restored = story.promoted(
        "compared",
        &[
            "--backup",
            &compared,
            "--target-immediate",
            "--target-action",
            "promote",
        ],
    );
    assert_eq!(restored.checksum("postgres"), expected);

    story.step("without the digests it takes a full backup and says so");
    fs::remove_dir_all(host.state().join("main/chain")).unwrap();
    let ran = taken(&host, &["--type", "incr"]).expect_said("is not kept on this host");
    assert!(label(&ran).contains("-full-"));
    let ran = taken(&host, &[]);
    assert!(label(&ran).contains("-incr-"), "from then on it is kept again");
}

each_major!(where_maps_are_missing_the_servers_own_summaries_tell: 17 18);
fn where_maps_are_missing_the_servers_own_summaries_tell(server: &Server) {
    let (story, host) = with_keyless_host("summaries", server);
    let cluster = &story.cluster;
    cluster.pgbench_init(3);
    cluster.sql("CREATE TABLE shrinks AS SELECT n, repeat('x', 500) AS b FROM generate_series(1, 20000) n");
    cluster.sql("VACUUM FREEZE shrinks");
    cluster.sql("CREATE DATABASE gone");
    let lose_maps = || {
        forget_wal(cluster);
        fs::remove_dir_all(host.state().join("main/maps")).unwrap();
    };
    taken(&host, &["--type", "full"]);

    story.step("without summaries everything is read");
    cluster.pgbench_run(2, 20);
    lose_maps();
    taken(&host, &["--type", "incr"]).expect_said("summarize_wal is off");

    story.step("with them what they name");
    cluster.sql("ALTER SYSTEM SET summarize_wal = on");
    cluster.reload();
    // Summaries begin with the next checkpoint.
    cluster.sql("CHECKPOINT");
    let base = label(&taken(&host, &["--type", "full"]));
    let mut links = Vec::new();
    for round in 0..3 {
        cluster.pgbench_run(2, 20);
        match round {
            0 => {
                cluster.sql("DELETE FROM shrinks WHERE n > 5000");
                cluster.sql("VACUUM shrinks");
                cluster.sql("INSERT INTO shrinks SELECT n, repeat('y', 500) FROM generate_series(1, 3000) n");
            }
            1 => {
                cluster.sql("DROP DATABASE gone");
                cluster.sql("CREATE DATABASE gone STRATEGY file_copy");
                cluster.sql("DELETE FROM shrinks WHERE n % 50 = 0");
            }
            _ => {
                cluster.sql("TRUNCATE pgbench_history");
                cluster.sql("VACUUM FULL shrinks");
            }
        }
        lose_maps();
        let expected = cluster.checksum("postgres");
        let ran = taken(&host, &["--type", "incr", "--audit"]).expect_said("the server's own summaries of WAL");
        links.push((label(&ran), expected));
    }
    assert!(
        links.iter().all(|(link, _)| link.contains("-incr-")),
        "{base} {links:?}"
    );
    story.archive_all();
    for (link, expected) in &links {
        let arguments = ["--backup", link, "--target-immediate", "--target-action", "promote"];
        let restored = story.promoted(link, &arguments);
        assert_eq!(&restored.checksum("postgres"), expected, "{link}");
        restored.sql("CREATE EXTENSION pg_visibility");
        assert_eq!(
            restored.query_one("SELECT count(*) FROM pg_check_visible('shrinks')"),
            "0"
        );
    }
}

#[test]
fn a_repository_that_lacks_the_base_is_left_out_until_sync_brings_it_level() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("lacking", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local"))
            .repository(RepoOptions::new("second").line("required = false"))
    });
    story.cluster.pgbench_init(2);
    let ran = story
        .tool("base-backup")
        .args(["--type", "full", "--repository", "local"])
        .run();
    let full = label(&ran.expect_code(0));
    let ran = story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
    let ran = ran.expect_said(&format!("it does not have {full}, which this backup leans on"));
    let first = label(&ran);
    assert!(first.contains("-incr-"));
    assert!(
        !story.site.repos[1].backups().contains(&first),
        "nothing was written there"
    );

    story
        .tool("sync")
        .args(["--from", "local", "--to", "second"])
        .run()
        .expect_code(0);
    story.cluster.pgbench_run(1, 20);
    let expected = story.cluster.checksum("postgres");
    let ran = story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
    let second = label(&ran);
    story.archive_all();
    for repository in ["local", "second"] {
        let arguments = [
            "--repository",
            repository,
            "--backup",
            &second,
            "--target-immediate",
            "--target-action",
            "promote",
        ];
        assert_eq!(story.promoted(repository, &arguments).checksum("postgres"), expected);
    }
}

#[test]
fn what_wal_cannot_tell_is_found_by_reading() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("doubt", &server, Options::default());
    let cluster = &story.cluster;
    cluster.pgbench_init(3);
    backup(&story, "full", &[]);

    story.step("maps and segments of the stretch between are gone or damaged");
    cluster.pgbench_run(2, 50);
    let broken = cluster.switch_wal();
    cluster.wait_archived(&broken);
    forget_wal(cluster);
    cluster.checkpoint();
    for object in story.site.repo().matching(&format!("/{broken}.")) {
        mutilate::flip_middle_bit(&object);
    }
    let expected = cluster.checksum("postgres");
    let (label, said) = backup(&story, "incr", &[]);
    let bytes = |name: &str| said[name].as_u64().unwrap();
    assert!(bytes("read_bytes") > bytes("size_bytes") / 2, "everything was read");
    assert!(
        bytes("stored_bytes") < bytes("size_bytes") / 20,
        "what is the same was not stored again"
    );
    story.archive_all();
    let restored = story.promoted(
        &label,
        &["--backup", &label, "--target-immediate", "--target-action", "promote"],
    );
    assert_eq!(restored.checksum("postgres"), expected);
}

#[test]
fn wal_that_was_minimal_in_between_proves_nothing() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("minimal", &server, Options::default());
    let cluster = &story.cluster;
    cluster.pgbench_init(1);
    backup(&story, "full", &[]);
    cluster.conf(&["wal_level = minimal", "max_wal_senders = 0", "archive_mode = off"]);
    cluster.restart();
    // Under minimal WAL a table that is made and filled in one transaction leaves no blocks in WAL.
    cluster.sql("CREATE TABLE silent AS SELECT n, md5(n::text) AS t FROM generate_series(1, 20000) n");
    cluster.conf(&["wal_level = replica", "max_wal_senders = 10", "archive_mode = on"]);
    cluster.restart();
    let expected = cluster.checksum("postgres");
    let ran = story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
    let ran = ran.expect_said("wal_level was minimal");
    let link = label(&ran);
    story.archive_all();
    let restored = story.promoted(
        &link,
        &["--backup", &link, "--target-immediate", "--target-action", "promote"],
    );
    assert_eq!(restored.checksum("postgres"), expected);
}

#[test]
fn an_audit_fails_where_a_page_changed_behind_the_back_of_wal() {
    let Some(server) = Server::need(15) else { return };
    let options = Options {
        checksums: false,
        ..Options::default()
    };
    let story = Story::begin("audit_finds", &server, options);
    let cluster = &story.cluster;
    cluster.sql("CREATE TABLE t AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 1000) n; CHECKPOINT");
    backup(&story, "full", &[]);
    let path = cluster.query_one("SELECT pg_relation_filepath('t')");
    cluster.sql("CREATE TABLE other AS SELECT 1 AS n");
    let lsn = cluster.current_lsn();
    let (high, low) = lsn.split_once('/').unwrap();
    let half = |text: &str| u32::from_str_radix(text, 16).unwrap().to_le_bytes();
    cluster.stop(system_tests::Stop::Fast);
    // A page that somebody wrote, with an LSN between the two backups and no record of it.
    let file = cluster.data().join(&path);
    mutilate::overwrite(&file, 3 * 8192, &[half(high), half(low)].concat());
    mutilate::overwrite(&file, 3 * 8192 + 5000, b"changed");
    cluster.start();
    let ran = story
        .tool("base-backup")
        .args(["--type", "incr", "--audit"])
        .run()
        .expect_code(1);
    let ran = ran.expect_said("1 blocks that changed without WAL naming them");
    let ran = ran.expect_said(&format!("block 3 of data/{path}"));
    let audited = label(&ran);
    story.archive_all();
    let restored = story.restored("restored", &["--backup", &audited, "--target-immediate"]);
    assert_eq!(
        fs::read(restored.data().join(&path)).unwrap(),
        fs::read(&file).unwrap(),
        "this backup holds it"
    );
}
