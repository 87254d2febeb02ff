//! A server under which an older copy of its files was put back, as a snapshot of a virtual machine is: it stays on its timeline, and writes
//! other WAL under names that the archive has already.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use system_tests::cluster::Stop;
use system_tests::scratch::copy_dir;
use system_tests::{Options, Ran, Server, Story};

/// Ends so many segments, whether or not anything takes them.
fn segments(story: &Story, count: usize) {
    for _ in 0..count {
        story.cluster.switch_wal();
    }
}

/// The archive holds a backup and WAL of a future that never was; the server is before it.
fn put_back(name: &str, server: &Server) -> Story {
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
    segments(&story, 20);
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
    let story = put_back("put_back_incr", &server);
    // The server's own WAL goes beyond where the backup of that future begins, and not beyond what the archive has.
    segments(&story, 9);
    is_refused(&story, &story.tool("base-backup").args(["--type", "incr"]).run());
}

#[test]
fn a_full_backup_does_not_count_wal_of_a_future_that_never_was() {
    let Some(server) = Server::need(15) else { return };
    let story = put_back("put_back_full", &server);
    is_refused(&story, &story.tool("base-backup").args(["--type", "full"]).run());
}
