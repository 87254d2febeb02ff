//! Memory stays flat whatever the cluster's size: many relations, many files, many bytes.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::time::Duration;

use system_tests::story::{all, label};
use system_tests::wait::PATIENCE;
use system_tests::{Cluster, Options, Ran, Server, Story, account};

/// What a tool may take for a cluster of any size.
const MOST_KIB: u64 = 96 << 10;
const LONG: Duration = Duration::from_secs(1800);

fn within_memory(what: &str, ran: &Ran) {
    println!(
        "{what}: {:.1} s, {:.1} s on processors, {} MiB at most\n{}{}",
        ran.elapsed.as_secs_f64(),
        ran.cpu.as_secs_f64(),
        ran.max_rss_kib >> 10,
        ran.stdout,
        ran.stderr
    );
    assert!(
        ran.max_rss_kib > 1000 && ran.max_rss_kib < MOST_KIB,
        "{what}: {} KiB\n{}",
        ran.max_rss_kib,
        ran.report()
    );
}

/// Backs up, restores, compares.
fn round_trip(story: &Story) -> (Cluster, String) {
    story.step("the backup");
    let ran = story.tool("base-backup").timeout(LONG).run().expect_code(0);
    within_memory("base-backup", &ran);
    let label = label(&ran);
    story.archive_all();
    story.step("the restore");
    let to = story.scratch.path("restored");
    let ran = story.restore_to(&to, &[]).timeout(LONG).run().expect_code(0);
    within_memory("restore", &ran);
    let restored = Cluster::adopt(&story.scratch, story.cluster.server(), &to);
    restored.start();
    restored.wait_promoted(PATIENCE);
    (restored, label)
}

/// Creates tables of one row each, a few hundred per transaction, so that the locks suffice.
fn create_relations(cluster: &Cluster, count: u32) {
    cluster.sql(
        "CREATE PROCEDURE fill(first int, last int) LANGUAGE plpgsql AS $$
         BEGIN
           FOR n IN first..last LOOP
             EXECUTE format('CREATE TABLE t_%s AS SELECT %s AS n', n, n);
             IF n % 500 = 0 THEN COMMIT; END IF;
           END LOOP;
         END $$",
    );
    cluster.sql(&format!("CALL fill(1, {count})"));
}

#[test]
fn twenty_thousand_relations_come_back_within_96_mib() {
    let Some(server) = Server::need(15) else { return };
    // Reading them all in one transaction takes a lock each.
    let options = Options {
        conf: vec!["max_locks_per_transaction = 1000".into()],
        ..Options::default()
    };
    let story = Story::begin("relations", &server, options);
    story.step("20,000 relations");
    create_relations(&story.cluster, 20_000);
    let end = story.cluster.checksum("postgres");
    let (restored, _) = round_trip(&story);
    assert_eq!(restored.checksum("postgres"), end);
}

#[test]
fn a_hundred_thousand_files_come_back_within_96_mib() {
    let Some(server) = Server::need(15) else { return };
    if !all() {
        return system_tests::stand::skipped("takes minutes; PGKEEP_ALL=1 runs it");
    }
    let story = Story::begin("files", &server, Options::default());
    story.step("100,000 files");
    let database = story
        .cluster
        .query_one("SELECT oid FROM pg_database WHERE datname = 'postgres'");
    let directory = story.cluster.data().join("base").join(database);
    // As PostgreSQL leaves them: relations that no catalog knows any more, of one page each.
    for number in 0..100_000u32 {
        account::write(&directory.join((1_000_000 + number).to_string()), [0u8; 8192], 0o600);
    }
    let (restored, _) = round_trip(&story);
    let directory = restored
        .data()
        .join(directory.strip_prefix(story.cluster.data()).unwrap());
    assert!(fs::read_dir(directory).unwrap().count() > 100_000);
}

#[test]
fn five_gigabytes_come_back_within_96_mib() {
    let Some(server) = Server::need(15) else { return };
    if !all() {
        return system_tests::stand::skipped("takes minutes; PGKEEP_ALL=1 runs it");
    }
    let story = Story::begin("gigabytes", &server, Options::default());
    story.step("5 GB of rows that do not compress, whose WAL nobody needs");
    story.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/true'");
    story.cluster.reload();
    story
        .cluster
        .sql("CREATE TABLE big (n int, noise bytea); ALTER TABLE big ALTER noise SET STORAGE PLAIN");
    for _ in 0..5 {
        story.cluster.sql(
            "INSERT INTO big SELECT n, pg_read_binary_file('/dev/urandom', 0, 3840) FROM generate_series(1, 260000) n",
        );
    }
    story.cluster.sql("ALTER SYSTEM RESET archive_command");
    story.cluster.reload();
    story.cluster.checkpoint();
    let counted = "SELECT sum(hashint4(n)) || ' ' || sum(hashtext(noise::text)::bigint) FROM big";
    let before = story.cluster.query_one(counted);
    let (restored, _) = round_trip(&story);
    assert_eq!(restored.query_one(counted), before);
}
