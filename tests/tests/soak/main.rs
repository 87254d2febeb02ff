//! Random work, chains of incremental backups, and whether each comes back as the server was.
//!
//! A round takes a full backup, then up to eight links of a chain with random work before each. Right after a link, with nobody writing,
//! the restored files are compared with the server's own, page by page, before anything is replayed: replay would hide a page that was
//! missed. Then the last link is started and asked: contents, indexes against heaps, visibility maps. Some links are audited, some
//! are differential, some are made with maps missing.
//!
//! `PGKEEP_SEED` chooses the rounds; `PGKEEP_SOAK_ROUNDS` (3) how many; `PGKEEP_SOAK_SECONDS` ends them earlier. What fails says its seed:
//! `PGKEEP_SEED=N PGKEEP_SOAK_ROUNDS=1` repeats it.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod compare;
mod hosts;
mod workload;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::postgres::Lsn;
use compare::{Compared, compare};
use hosts::Host;
use system_tests::story::{archive_all, label};
use system_tests::wait::PATIENCE;
use system_tests::{Cluster, Options, RepoOptions, Scratch, Server, Site, Story, Tool, mutilate};
use workload::{Dice, Workload};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_link_of_random_chains_comes_back_as_the_server_was() {
    let first = number("PGKEEP_SEED").unwrap_or(20_261_126);
    let rounds = number("PGKEEP_SOAK_ROUNDS").unwrap_or(3);
    let limit = number("PGKEEP_SOAK_SECONDS").map(Duration::from_secs);
    let (begun, mut links, mut pages, mut done) = (Instant::now(), 0, 0, 0);
    for seed in first..first + rounds {
        if limit.is_some_and(|limit| begun.elapsed() > limit) {
            break;
        }
        let since = Instant::now();
        let Some(round) = round(seed) else { continue };
        done += 1;
        links += round.0;
        pages += round.1;
        println!(
            "round {seed}: {} links, {} pages, {:.1} s",
            round.0,
            round.1,
            since.elapsed().as_secs_f64()
        );
    }
    println!(
        "{done} rounds, {links} links, {pages} pages compared, {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(rounds == 0 || done > 0, "no round was made");
}

/// One round; says how many links were made, and how many pages compared. `None` where the version is not there.
fn round(seed: u64) -> Option<(u64, u64)> {
    let mut dice = Dice::new(seed);
    let server = workload::server(&mut dice)?;
    let options = Options {
        checksums: dice.below(2) == 0,
        segment_size_mb: [1, 16][dice.below(2) as usize],
        conf: vec![
            "max_prepared_transactions = 5".into(),
            format!("wal_log_hints = {}", ["on", "off"][dice.below(2) as usize]),
            "shared_buffers = 16MB".into(),
            "min_wal_size = 32MB".into(),
            // For pg_rewind, and for a standby that starts late.
            "wal_keep_size = 256MB".into(),
        ],
        ..Options::default()
    };
    println!("round {seed}: PostgreSQL {}, {options:?}", server.major);
    let encrypted = dice.below(3) == 0;
    let scratch = Scratch::new(&format!("soak{seed}"));
    let mut work = begin(&scratch, &server, options, encrypted, Dice::new(seed ^ 0x5eed));
    let links = 1 + dice.below(8);
    let mut compared = 0;
    for link in 1..=links {
        let steps = dice.below(12);
        work.steps(steps);
        match dice.below(8) {
            0 => {
                let split = dice.below(2) == 0;
                work.fail_over(split);
            }
            1 => work.raise_standby(),
            _ => {}
        }
        if dice.below(8) == 0 {
            work.done.push("maps are lost".to_owned());
            lose_maps(&work.primary.site, &mut dice);
        }
        let mut arguments = vec!["--type", if dice.below(6) == 0 { "diff" } else { "incr" }];
        if dice.below(3) == 0 {
            arguments.push("--audit");
        }
        let on_standby = dice.below(2) == 0 && work.standby.is_some();
        compared += make_link(&scratch, &mut work, on_standby, &arguments, link == links);
    }
    Some((links, compared))
}

/// A host with work done on it, and a full backup.
fn begin(scratch: &Scratch, server: &Server, options: Options, encrypted: bool, dice: Dice) -> Workload {
    let story = Story::within(scratch.clone(), server, options, |site| {
        let local = RepoOptions::new("local");
        site.repository(if encrypted { local.encrypted() } else { local })
    });
    let Story { cluster, site, .. } = story;
    let space = scratch.path("space");
    let work = Workload::begin(scratch, Host { cluster, site, space }, dice);
    take(&work.primary, &["--type", "full"], &work);
    work
}

/// Takes the next link, compares what comes back with the server it was taken on, and starts it if it is the `last`; says how many pages were
/// compared.
fn make_link(scratch: &Scratch, work: &mut Workload, on_standby: bool, arguments: &[&str], last: bool) -> u64 {
    work.settle();
    let host = work.standby.as_ref().filter(|_| on_standby).unwrap_or(&work.primary);
    let place = if on_standby { "the standby" } else { "the primary" };
    let backup = take(host, arguments, work);
    println!("  {backup} on {place}");
    let compared = check_link(scratch, host, &backup, work);
    if last {
        check_started(scratch, host, &backup, work);
    }
    work.done.push(format!("-- {arguments:?} on {place}: {backup}"));
    compared
}

#[test]
fn a_chain_goes_on_over_failovers_and_a_rewound_primary() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("failovers");
    let options = Options {
        conf: vec!["max_prepared_transactions = 5".into(), "wal_keep_size = 256MB".into()],
        ..Options::default()
    };
    let mut work = begin(&scratch, &server, options, false, Dice::new(1));
    for (split, on_standby) in [(false, false), (true, false), (true, true), (false, false)] {
        work.fail_over(split);
        work.steps(3);
        if on_standby {
            work.raise_standby();
        }
        let last = (split, on_standby) == (true, true);
        make_link(&scratch, &mut work, on_standby, &["--type", "incr", "--audit"], last);
    }
    let site = &work.primary.site;
    let links: Vec<_> = site
        .repo()
        .backups()
        .iter()
        .map(|label| document(site, label))
        .collect();
    assert_eq!(
        links.iter().filter(|link| link["type"] == "incr").count(),
        4,
        "{links:?}"
    );
    let last = links
        .iter()
        .map(|link| link["timeline"].as_u64().unwrap())
        .max()
        .unwrap();
    assert!(last > 4, "timeline {last}");
}

fn context(work: &Workload) -> String {
    work.done.join("\n")
}

/// Takes a backup, which must be good; says its label.
fn take(host: &Host, arguments: &[&str], work: &Workload) -> String {
    let ran = host.site.tool("base-backup").args(arguments).run();
    assert!(ran.code == Some(0), "{}\n{}", ran.report(), context(work));
    label(&ran)
}

/// Damages or removes some of the maps that are stored: a backup has to read more, and be right.
fn lose_maps(site: &Site, dice: &mut Dice) {
    for map in site.repo().matching(".map.zst") {
        match dice.below(4) {
            0 => mutilate::remove(&map),
            1 => mutilate::flip_middle_bit(&map),
            _ => {}
        }
    }
}

/// What a backup says of itself.
fn document(site: &Site, backup: &str) -> serde_json::Value {
    let bytes = fs::read(site.repo().path(&format!("backup/{backup}/backup.json"))).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// A restore to the backup's own end, along its timeline: a primary that wrote on after a failover has left another branch.
fn restore_into(host: &Host, document: &serde_json::Value, to: &Path, to_space: &Path) -> Tool {
    let mapped = host.mapped(to_space);
    let (backup, timeline) = (document["label"].as_str().unwrap(), document["timeline"].to_string());
    let tool = host.site.tool("restore").arg("--to").arg(to);
    tool.args([
        "--backup",
        backup,
        "--target-immediate",
        "--target-timeline",
        &timeline,
        "--tablespace",
        &mapped,
    ])
}

/// Restores a link without starting it, and compares its files with the server's.
fn check_link(scratch: &Scratch, host: &Host, backup: &str, work: &Workload) -> u64 {
    host.cluster.checkpoint();
    let space = &host.space;
    let (to, to_space) = (
        scratch.path(&format!("r-{backup}")),
        scratch.path(&format!("s-{backup}")),
    );
    let document = document(&host.site, backup);
    let ran = restore_into(host, &document, &to, &to_space).run();
    assert!(ran.code == Some(0), "{}\n{}", ran.report(), context(work));
    let start: Lsn = document["start_lsn"].as_str().unwrap().parse().unwrap();
    let unlogged = unlogged(&host.cluster);
    let is_unlogged = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let number: String = name.chars().take_while(char::is_ascii_digit).collect();
        !name.contains("_init") && unlogged.contains(&number)
    };
    let mut compared = Compared::default();
    for below in ["base", "global"] {
        compare(
            &host.cluster.data().join(below),
            &to.join(below),
            start,
            &is_unlogged,
            &mut compared,
        );
    }
    compare(space, &to_space, start, &is_unlogged, &mut compared);
    assert!(
        compared.differences.is_empty(),
        "{backup}, of {} pages:\n{}\n{}",
        compared.pages,
        compared.differences.join("\n"),
        context(work)
    );
    assert!(
        compared.later * 10 < compared.pages,
        "{} of {} pages changed since",
        compared.later,
        compared.pages
    );
    fs::remove_dir_all(&to).unwrap();
    fs::remove_dir_all(&to_space).unwrap();
    compared.pages
}

/// The files of relations that come back empty: unlogged tables, and their indexes and TOAST tables.
fn unlogged(cluster: &Cluster) -> Vec<String> {
    let rows = cluster.query("SELECT pg_relation_filenode(oid)::text FROM pg_class WHERE relpersistence = 'u'");
    rows.into_iter().flatten().flatten().collect()
}

/// Starts a restored link and asks it.
fn check_started(scratch: &Scratch, host: &Host, backup: &str, work: &Workload) {
    let databases = "SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'template1' ORDER BY 1";
    let databases: Vec<String> = work
        .primary
        .cluster
        .query(databases)
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    // Sequences are no part of it where a chain goes over servers.
    let moved = work.standby.is_some() || work.done.iter().any(|step| step.contains("promoted"));
    let contents = |cluster: &Cluster, name: &str| match moved {
        true => cluster.checksum(name).without_sequences(),
        false => cluster.checksum(name),
    };
    let expected: Vec<_> = databases.iter().map(|name| contents(&host.cluster, name)).collect();
    archive_all(&work.primary.cluster);
    let (to, to_space) = (scratch.path("started"), scratch.path("started-space"));
    restore_into(host, &document(&host.site, backup), &to, &to_space)
        .args(["--target-action", "promote"])
        .run()
        .expect_code(0);
    let restored = Cluster::adopt(scratch, host.cluster.server(), &to);
    restored.start();
    restored.wait_promoted(PATIENCE);
    for (name, expected) in databases.iter().zip(&expected) {
        assert_eq!(
            &contents(&restored, name),
            expected,
            "{backup}, database {name}\n{}",
            context(work)
        );
    }
    restored.sql("CREATE EXTENSION amcheck; CREATE EXTENSION pg_visibility");
    let indexes = restored.query(
        "SELECT c.oid::regclass::text, bt_index_check(c.oid, true)::text FROM pg_class c
         JOIN pg_am a ON a.oid = c.relam JOIN pg_index i ON i.indexrelid = c.oid
         WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' AND i.indisvalid",
    );
    assert!(indexes.len() > 50);
    let wrong = restored.query(
        "SELECT c.oid::regclass::text, (SELECT count(*) FROM pg_check_visible(c.oid))::text,
                (SELECT count(*) FROM pg_check_frozen(c.oid))::text
         FROM pg_class c WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'",
    );
    for row in &wrong {
        let counts = [row[1].as_deref(), row[2].as_deref()];
        assert_eq!(
            counts,
            [Some("0"), Some("0")],
            "visibility of {row:?}\n{}",
            context(work)
        );
    }
}
