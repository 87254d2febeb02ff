//! A server under which an older copy of its files was put back, as a snapshot of a virtual machine is: it stays on its timeline, and writes
//! other WAL under names that the archive has already.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use system_tests::cluster::Stop;
use system_tests::scratch::copy_dir;
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Options, Ran, Server, Story, account};

/// Ends so many segments, whether or not anything takes them.
fn segments(story: &Story, count: usize) {
    for _ in 0..count {
        story.cluster.switch_wal();
    }
}

/// The archive holds a backup and so many segments of a future that never was; the server is before it.
fn put_back(name: &str, server: &Server, future: usize) -> Story {
    let story = Story::begin(name, server, Options::default());
    story
        .cluster
        .sql("CREATE TABLE t AS SELECT n, 'before'::text AS word FROM generate_series(1, 20000) n");
    story.backup();
    story.archive_all();

    story.step("a copy is made, and the server goes on to a future that will not be");
    story.cluster.stop(Stop::Fast);
    let aside = story.scratch.path("aside");
    copy_dir(story.cluster.data(), &aside);
    story.cluster.start();
    story.cluster.sql("UPDATE t SET word = 'future'");
    story.archive_all();
    story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
    segments(&story, future);
    story.archive_all();

    story.step("the copy is put back");
    story.cluster.stop(Stop::Fast);
    std::fs::remove_dir_all(story.cluster.data()).unwrap();
    copy_dir(&aside, story.cluster.data());
    story.cluster.start();
    story.cluster.sql("UPDATE t SET word = 'other' WHERE n % 100 = 0");
    story
}

fn is_refused(story: &Story, ran: &Ran) {
    assert_ne!(
        ran.code,
        Some(0),
        "a backup counts whose WAL in the archive is not this server's\n{}",
        ran.report()
    );
    assert_eq!(story.committed().len(), 2, "{}", ran.report());
}

#[test]
fn an_incremental_backup_does_not_lean_on_a_future_that_never_was() {
    let Some(server) = Server::need(15) else { return };
    let story = put_back("put_back_incr", &server, 20);
    // The server's own WAL goes beyond where the backup of that future begins, and not beyond what the archive has.
    segments(&story, 9);
    is_refused(&story, &story.tool("base-backup").args(["--type", "incr"]).run());
}

#[test]
fn a_full_backup_does_not_count_wal_of_a_future_that_never_was() {
    let Some(server) = Server::need(15) else { return };
    let story = put_back("put_back_full", &server, 20);
    is_refused(&story, &story.tool("base-backup").args(["--type", "full"]).run());
}

#[test]
fn nothing_is_stored_behind_wal_of_another_history_and_no_incremental_backup_spans_it() {
    let Some(server) = Server::need(15) else { return };
    let story = put_back("put_back_promoted", &server, 0);
    let stored = story.site.repo().matching("/wal/").len();

    story.step("more segments wait than that future had, and none of them goes behind its end");
    segments(&story, 8);
    let refused = "SELECT failed_count > 2 FROM pg_stat_archiver";
    wait_until("archive-push has refused it", PATIENCE, || {
        story.cluster.query_one(refused) == "t"
    });
    assert_eq!(story.site.repo().matching("/wal/").len(), stored);
    assert_eq!(story.site.repo().matching("-conflict.json").len(), 1, "noted once");

    story.step("somebody makes the archiver skip what is refused, and promotes the server");
    let cluster = &story.cluster;
    cluster.stop(Stop::Fast);
    let status = cluster.data().join("pg_wal/archive_status");
    for entry in std::fs::read_dir(&status).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "ready") {
            std::fs::rename(&path, path.with_extension("done")).unwrap();
        }
    }
    cluster.conf(&["restore_command = 'false'"]);
    account::write(&cluster.data().join("recovery.signal"), "", 0o600);
    cluster.start();
    cluster.wait_promoted(PATIENCE);
    story
        .tool("base-backup")
        .args(["--type", "incr"])
        .run()
        .expect_code(0)
        .expect_said("this is a full backup")
        .expect_said("another server wrote other WAL");
    let end = cluster.checksum("postgres");
    story.archive_all();
    let restored = story.promoted("restored", &[]);
    assert_eq!(restored.checksum("postgres"), end);
    story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
    assert!(story.committed().last().unwrap().contains("-incr-"));
}
