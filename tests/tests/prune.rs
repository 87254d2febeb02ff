//! Retention on real repositories: what goes is gone, and what stays comes back.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::time::{SystemTime, UNIX_EPOCH};

use system_tests::story::label;
use system_tests::wait::PATIENCE;
use system_tests::{Options, RepoOptions, Server, Sshd, Story, mutilate, wait_until};

/// Takes a backup, in another second than the one before: labels of one second sort by chance.
fn taken(story: &Story, kind: &str) -> String {
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let begun = second();
    wait_until("the next second has come", PATIENCE, || second() > begun);
    label(&story.tool("base-backup").args(["--type", kind]).run().expect_code(0))
}

fn comes_back(story: &Story, repository: &str, label: &str, expected: &system_tests::Contents) {
    let name = format!("{repository}-{label}");
    let arguments = [
        "--repository",
        repository,
        "--backup",
        label,
        "--target-immediate",
        "--target-action",
        "promote",
    ];
    assert_eq!(
        &story.promoted(&name, &arguments).checksum("postgres"),
        expected,
        "{name}"
    );
}

#[test]
fn what_goes_is_gone_everywhere_and_what_stays_comes_back() {
    let Some(server) = Server::need(15) else { return };
    let scratch = system_tests::Scratch::new("prune");
    let Some(sshd) = Sshd::need(&scratch) else { return };
    let story = Story::within(scratch.clone(), &server, Options::default(), |site| {
        let policy = "retention = { full = 1 }";
        site.repository(RepoOptions::new("local").line(policy))
            .repository(sshd.repository("far").encrypted().line(policy))
    });
    let cluster = &story.cluster;
    cluster.pgbench_init(1);
    let mut backups = Vec::new();
    for kind in ["full", "incr", "full", "incr", "incr"] {
        cluster.pgbench_run(1, 20);
        let expected = cluster.checksum("postgres");
        backups.push((taken(&story, kind), expected));
    }
    story.archive_all();

    story.step("a dry run says what would go and removes nothing");
    let before = story.site.repo().objects().len();
    let ran = story.tool("prune").arg("--dry-run").run().expect_code(0);
    for (at, word) in ["goes ", "goes ", "stays", "stays", "stays"].into_iter().enumerate() {
        let line = format!("  {word}  {}", backups[at].0);
        assert!(ran.stdout.matches(&line).count() == 2, "{line}\n{}", ran.report());
    }
    assert_eq!(story.site.repo().objects().len(), before);

    story.step("the first full backup is marked, so it stays, but not what leans on it");
    let first = backups[0].0.as_str();
    story
        .tool("prune")
        .args(["--keep", first, "--reason", "closing of the books"])
        .run()
        .expect_code(0);
    let ran = story.tool("prune").run().expect_code(0);
    ran.expect_said("kept by hand: closing of the books");
    for repository in &story.site.repos {
        let left = repository.backups();
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(!left.contains(&backups[1].0));
    }
    for (label, expected) in [&backups[0], &backups[2], &backups[4]] {
        for repository in ["local", "far"] {
            comes_back(&story, repository, label, expected);
        }
    }

    story.step("the mark is taken back");
    story.tool("prune").args(["--unkeep", first]).run().expect_code(0);
    story.tool("prune").run().expect_code(0);
    assert_eq!(story.site.repo().backups().len(), 3);
    assert_eq!(story.site.status("prune")["result"], "ok");
    let first_segment = "000000010000000000000001";
    assert!(!story.site.repo().has_wal(first_segment));
    comes_back(&story, "local", &backups[3].0, &backups[3].1);
    story
        .tool("prune")
        .run()
        .expect_code(0)
        .expect_said("removed 0 backups, 0 WAL segments");
}

#[test]
fn a_damaged_backup_json_holds_what_it_may_need_and_interrupted_backups_are_collected() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("prune_left", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local").line("retention = { full = 1 }"))
    });
    story.cluster.pgbench_init(1);
    let first = taken(&story, "full");
    let second = taken(&story, "full");
    let third = taken(&story, "full");
    let document = story.site.repo().path(&format!("backup/{second}/backup.json"));
    mutilate::truncate(&document, 100);
    let ran = story.tool("prune").run().expect_code(0);
    ran.expect_said(&format!("{second}, which cannot be read, may lean on it"));
    assert_eq!(story.site.repo().backups().len(), 3, "{first} stays too");
    mutilate::remove(&document);
    story.step("what has no backup.json is garbage, once nobody has written to it for a while");
    let ran = story.tool("prune").run().expect_code(0);
    ran.expect_said(&format!("stays  unfinished {second}"));
    assert_eq!(story.site.repo().backups().len(), 2);
    story
        .tool("prune")
        .args(["--garbage-after", "1ms"])
        .run()
        .expect_code(0)
        .expect_said(&format!("goes   unfinished {second}"));
    assert_eq!(story.site.repo().backups(), [third]);
}

#[test]
fn sync_brings_back_nothing_that_prune_removed() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("prune_sync", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local"))
            .repository(RepoOptions::new("short").line("retention = { full = 1 }"))
    });
    story.cluster.pgbench_init(1);
    let old = taken(&story, "full");
    story.cluster.pgbench_run(1, 20);
    story.archive_all();
    let new = taken(&story, "full");
    story.tool("prune").args(["--repository", "short"]).run().expect_code(0);
    assert_eq!(story.site.repos[1].backups(), [new.as_str()]);
    let before = story.site.repos[1].objects().len();
    let ran = story
        .tool("sync")
        .args(["--from", "local", "--to", "short", "-v"])
        .run()
        .expect_code(0);
    let ran = ran.expect_said(&format!(
        "backup {old} is not copied: retention there would not keep it"
    ));
    assert!(ran.stdout.contains("copied 0 backups, 0 WAL files"), "{}", ran.report());
    assert_eq!(story.site.repos[1].backups(), [new.as_str()]);
    let left = story.site.repos[1].objects().len();
    assert!(left <= before + 4, "{before} objects became {left}: leases only");
}
