//! One database out of a physical backup: the others are not fetched, and what comes out is not taken for a cluster.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use system_tests::wait::PATIENCE;
use system_tests::{Options, RepoOptions, Server, Site, Story, each_major};

each_major!(only_the_database_that_is_wanted_is_fetched);

fn only_the_database_that_is_wanted_is_fetched(server: &Server) {
    let story = Story::begin("only-database", server, Options::default());
    let cluster = &story.cluster;
    let place = story.scratch.create_dir("space");
    cluster.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", place.display()));
    for name in ["shop", "depot"] {
        cluster.sql(&format!("CREATE DATABASE {name}"));
        cluster.sql_in(
            name,
            "CREATE TABLE rows (n int PRIMARY KEY, word text); ALTER TABLE rows SET (fillfactor = 50);
             INSERT INTO rows SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 30000) n;
             CREATE TABLE away TABLESPACE apart AS SELECT n, repeat(md5(n::text), 20) AS word FROM generate_series(1, 10000) n",
        );
    }
    story.backup();

    story.step("WAL goes on for both, and not every page of the one that is left out is in it whole");
    cluster.conf(&["full_page_writes = off"]);
    cluster.reload();
    cluster.checkpoint();
    for name in ["shop", "depot"] {
        cluster.sql_in(
            name,
            "UPDATE rows SET word = 'new' WHERE n % 7 = 0; DELETE FROM away WHERE n % 3 = 0; CREATE TABLE late AS SELECT 1 AS n",
        );
    }
    cluster.sql("CREATE DATABASE copied TEMPLATE shop");
    let expected = cluster.checksum("shop");
    story.archive_all();

    let whole = story.restored(
        "whole",
        &[
            "--tablespace",
            &format!("{}={}", place.display(), story.place("ts_whole")),
        ],
    );
    let mapping = format!("{}={}", place.display(), story.place("ts"));
    let arguments = ["--only-database", "shop", "--tablespace", &mapping];
    let part = story.restored("part", &arguments);
    let (all, some) = (used(whole.data()), used(part.data()));
    println!("{all} bytes restored whole, {some} with one database");
    assert!(some + (30 << 20) < all, "{some} {all}");
    let (all, some) = (used(&story.scratch.path("ts_whole")), used(&story.scratch.path("ts")));
    assert!(some + (5 << 20) < all, "{some} {all}");

    story.step("it is recovered to the end");
    part.start();
    part.wait_promoted(PATIENCE);
    assert_eq!(part.checksum("shop"), expected);
    assert_eq!(
        part.query_in("shop", "SELECT count(*) FROM late"),
        [[Some("1".to_owned())]]
    );

    story.step("it is no cluster");
    let site = Site::named(&story.scratch, &part, "part_site").shared(story.site.repo(), RepoOptions::new("local"));
    site.tool("base-backup")
        .run()
        .expect_code(1)
        .expect_said("holds only database shop of a cluster");
    assert_eq!(part.query_one("SHOW archive_mode"), "off");
    let missing = story.restore_to(&story.scratch.path("typo"), &["--only-database", "shoop"]);
    let ran = missing.arg("--dry-run").run().expect_code(2);
    assert!(
        ran.stderr.contains("has no database \"shoop\"") && ran.stderr.contains("depot"),
        "{}",
        ran.report()
    );
    let own = story.restore_to(cluster.data(), &["--only-database", "shop"]).run();
    own.expect_code(1).expect_said("is the data directory of the cluster");
}

/// What a directory takes on disk, in bytes, without WAL.
fn used(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    let one = |entry: std::fs::DirEntry| {
        let found = entry.path().symlink_metadata().unwrap();
        match found.is_dir() {
            true if entry.file_name() == "pg_wal" => 0,
            true => used(&entry.path()),
            false => found.blocks() * 512,
        }
    };
    entries.map(one).sum()
}
