//! Incremental and differential backups: what they read, what they store, and that they come back as a full one would.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;

use system_tests::story::label;
use system_tests::{Options, RepoOptions, Server, Story, each_major};

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
