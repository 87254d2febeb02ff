//! A repository is brought level with another: whole, verified, resumable, and never with damage or deletions.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use system_tests::story::label;
use system_tests::wait::PATIENCE;
use system_tests::{Options, Ran, Repo, RepoOptions, Server, Site, Story, Tool, mutilate};

/// A story with the repositories `first` (required) and `second` (not).
fn two(name: &str, server: &Server, first: RepoOptions, second: RepoOptions) -> Story {
    Story::with(name, server, Options::default(), |site: Site| {
        site.repository(first).repository(second.line("required = false"))
    })
}

fn repo<'s>(story: &'s Story, name: &str) -> &'s Repo {
    story.site.repos.iter().find(|repo| repo.name == name).unwrap()
}

fn sync(story: &Story, arguments: &[&str]) -> Ran {
    story.tool("sync").args(arguments).run()
}

/// Takes the second repository away while something is done, as if it were not mounted.
fn without_second(story: &Story, work: impl FnOnce()) {
    let dir = repo(story, "second").dir.clone();
    let aside = dir.with_extension("away");
    fs::rename(&dir, &aside).unwrap();
    work();
    fs::rename(&aside, &dir).unwrap();
}

/// The plain content of every WAL file and bundle, by name without what encryption adds.
fn contents(repo: &Repo) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for part in ["/wal/", "/data/"] {
        for object in repo.matching(part) {
            let name = object.strip_prefix(&repo.dir).unwrap().to_string_lossy().into_owned();
            // What a killed process left half written is no object.
            if name.contains(".staging-") {
                continue;
            }
            let name = name.strip_suffix(".age").unwrap_or(&name).to_owned();
            found.insert(name, plain_digest(repo, &object));
        }
    }
    found
}

fn plain_digest(repo: &Repo, object: &Path) -> String {
    let open = match &repo.identity {
        Some(identity) => format!("age -d -i '{}' '{}' | zstd -dc", identity.display(), object.display()),
        None => format!("zstd -dc '{}'", object.display()),
    };
    let ran = Tool::program("bash")
        .args(["-o", "pipefail", "-c", &format!("{open} | sha256sum")])
        .as_root()
        .run();
    ran.expect_code(0).stdout
}

/// What is written while the second repository is away: WAL, a kept backup, more WAL.
fn written_without_second(story: &Story) -> String {
    story.cluster.pgbench_init(1);
    let mut backup = String::new();
    without_second(story, || {
        story.cluster.pgbench_run(1, 100);
        backup = label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
        story.cluster.pgbench_run(1, 100);
        story.archive_all();
    });
    backup
}

/// Lets the lease of the killed run end, as it does by itself after its term.
fn expire_lease(story: &Story) {
    // Not what the killed run was about to write.
    let hidden = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
    let leases = repo(story, "second").matching("/lease/sync/").into_iter();
    for lease in leases.filter(|path| !hidden(path)) {
        let text = fs::read_to_string(&lease).unwrap();
        let (head, tail) = text.split_once("\"expires\":\"").unwrap();
        let tail = tail.split_once('"').unwrap().1;
        mutilate::remove(&lease);
        let expired = format!("{head}\"expires\":\"2026-01-01T00:00:00Z\"{tail}");
        system_tests::account::write(&lease, expired, 0o400);
    }
}

/// Restores from the second repository alone and compares with the cluster.
fn comes_back_from_second(story: &Story, name: &str) {
    let to = story.scratch.path(name);
    story.restore_to(&to, &["--repository", "second"]).run().expect_code(0);
    let restored = system_tests::Cluster::adopt(&story.scratch, story.cluster.server(), &to);
    restored.start();
    restored.wait_promoted(PATIENCE);
    assert_eq!(restored.checksum("postgres"), story.cluster.checksum("postgres"));
}

fn level_after(name: &str, first: RepoOptions, second: RepoOptions) {
    let Some(server) = Server::need(15) else { return };
    let story = two(name, &server, first, second);
    let backup = written_without_second(&story);
    assert!(repo(&story, "second").backups().is_empty());

    story.step("a dry run says what would be copied and copies nothing");
    sync(&story, &["--dry-run"])
        .expect_code(0)
        .expect_said("would copy 1 backup, ");
    assert!(repo(&story, "second").backups().is_empty());

    story.step("it is brought level");
    sync(&story, &[]).expect_code(0).expect_said("copied 1 backup, ");
    assert_eq!(repo(&story, "second").backups(), [backup]);
    assert_eq!(contents(repo(&story, "first")), contents(repo(&story, "second")));
    sync(&story, &[])
        .expect_code(0)
        .expect_said("copied 0 backups, 0 WAL files, 0 events");
    assert_eq!(story.site.status("sync")["result"], "ok");

    story.step("and a cluster comes back from it alone");
    comes_back_from_second(&story, "back");
}

#[test]
fn a_repository_that_was_away_is_brought_level() {
    level_after("sync_clear", RepoOptions::new("first"), RepoOptions::new("second"));
}

#[test]
fn an_encrypted_copy_is_made_of_a_repository_in_clear() {
    level_after(
        "sync_seal",
        RepoOptions::new("first"),
        RepoOptions::new("second").encrypted(),
    );
}

#[test]
fn a_copy_for_other_recipients_is_made_with_the_identity() {
    let (first, second) = (
        RepoOptions::new("first").encrypted(),
        RepoOptions::new("second").encrypted(),
    );
    level_after("sync_reseal", first, second);
}

#[test]
fn without_the_identity_other_recipients_are_refused_and_the_same_ones_are_not() {
    let Some(server) = Server::need(15) else { return };
    let story = two(
        "sync_keyless",
        &server,
        RepoOptions::new("first").keyless(),
        RepoOptions::new("second").encrypted(),
    );
    written_without_second(&story);
    sync(&story, &[])
        .expect_code(2)
        .expect_said("no identity here opens the first")
        .expect_said("--identity FILE");
    assert!(repo(&story, "second").backups().is_empty());
    let identity = repo(&story, "first").identity.clone().unwrap();
    sync(&story, &["--identity", &identity.display().to_string()]).expect_code(0);
    comes_back_from_second(&story, "back");
}

#[test]
fn a_run_that_was_killed_is_taken_up_again() {
    let Some(server) = Server::need(15) else { return };
    let story = two(
        "sync_killed",
        &server,
        RepoOptions::new("first"),
        RepoOptions::new("second"),
    );
    written_without_second(&story);
    let (first, second) = (contents(repo(&story, "first")), repo(&story, "second").dir.clone());
    let objects = || repo(&story, "second").objects().len();
    let mut kills = 0;
    for more in 1.. {
        let before = objects();
        let mut running = story.tool("sync").args(["--jobs", "1"]).spawn();
        while running.is_running() && objects() < before + more {
            std::thread::yield_now();
        }
        if !running.is_running() {
            running.wait(PATIENCE).expect_code(0);
            break;
        }
        running.kill9();
        kills += 1;
        expire_lease(&story);
        for backup in repo(&story, "second").backups() {
            let document = second.join(format!("main/backup/{backup}/backup.json"));
            assert!(
                !document.exists() || contents(repo(&story, "second")) == first,
                "backup.json comes last"
            );
        }
    }
    // Two at once: the second is told who is at work.
    let lease = repo(&story, "second").path("lease/sync/99.json");
    let held = "{\"format\":1,\"owner\":\"db2:7:3f9a1c\",\"job\":\"sync\",\"taken\":\"2026-01-01T00:00:00Z\",\
                \"expires\":\"2999-01-01T00:00:00Z\",\"state\":\"held\"}";
    system_tests::account::write(&lease, held, 0o400);
    sync(&story, &[])
        .expect_code(75)
        .expect_said("db2:7:3f9a1c holds the lease");
    println!("killed {kills} times");
    assert!(kills > 2, "the tool was killed in the middle");
    assert_eq!(contents(repo(&story, "second")), first);
    comes_back_from_second(&story, "back");
}

#[test]
fn damage_is_not_spread_and_the_rest_goes_over() {
    let Some(server) = Server::need(15) else { return };
    let story = two(
        "sync_damage",
        &server,
        RepoOptions::new("first"),
        RepoOptions::new("second"),
    );
    let bad = written_without_second(&story);
    let mut good = String::new();
    without_second(&story, || {
        good = label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
        story.archive_all();
    });
    let first = repo(&story, "first");
    let bundle = first.matching(&format!("/{bad}/data/1.tar")).remove(0);
    mutilate::flip_middle_bit(&bundle);
    let segments: Vec<_> = first
        .matching("/wal/")
        .into_iter()
        .filter(|path| !path.to_string_lossy().contains(".map."))
        .collect();
    let last = segments.last().unwrap();
    mutilate::flip_middle_bit(last);

    sync(&story, &[])
        .expect_code(1)
        .expect_said(&format!("copy backup {bad}"))
        .expect_said("is damaged: its SHA-256 is")
        .expect_said("is damaged and not copied")
        .expect_said("copied 1 backup, ");
    let second = repo(&story, "second");
    let committed = |label: &str| second.path(&format!("backup/{label}/backup.json")).is_file();
    assert!(committed(&good) && !committed(&bad));
    assert!(
        !second
            .matching("/wal/")
            .iter()
            .any(|path| path.file_name() == last.file_name())
    );
    assert_eq!(story.site.status("sync")["result"], "failed");
}

#[test]
fn nothing_is_deleted_or_replaced_and_another_cluster_is_refused() {
    let Some(server) = Server::need(15) else { return };
    let story = two(
        "sync_keep",
        &server,
        RepoOptions::new("first"),
        RepoOptions::new("second"),
    );
    let backup = story.backup();
    story.archive_all();
    let (first, second) = (repo(&story, "first"), repo(&story, "second"));
    let before = contents(second);
    mutilate::remove(&first.path(&format!("backup/{backup}")));
    for segment in first.matching("/wal/") {
        mutilate::remove(&segment);
    }
    sync(&story, &[]).expect_code(0).expect_said("copied 0 backups");
    assert_eq!(contents(second), before);

    story.step("the way back");
    sync(&story, &["--from", "second", "--to", "first"])
        .expect_code(0)
        .expect_said("copied 1 backup");
    assert_eq!(contents(first), before);

    story.step("a repository that keeps WAL for a limited time gets what its backups need");
    let config = fs::read_to_string(&story.site.config).unwrap();
    let (head, tail) = config.split_once("[repository.second]\n").unwrap();
    let windowed = format!("{head}[repository.second]\nretention = {{ full = 2, wal = \"1d\" }}\n{tail}");
    system_tests::account::write(&story.site.config, windowed, 0o600);
    let segment = "000000010000000000000001.zst";
    let gone = second.matching(segment).remove(0);
    mutilate::remove(&gone);
    sync(&story, &[]).expect_code(0).expect_said("0 WAL files");
    system_tests::account::write(&story.site.config, config, 0o600);
    sync(&story, &[]).expect_code(0).expect_said("1 WAL file,");

    story.step("odd calls");
    sync(&story, &["--from", "first", "--to", "first"])
        .expect_code(2)
        .expect_said("both source and target");
    sync(&story, &["--to", "third"])
        .expect_code(2)
        .expect_said("there is no repository \"third\"")
        .expect_said("first, second");

    story.step("another cluster's repository under the same name");
    for event in second.matching("/events/") {
        let text = fs::read_to_string(&event).unwrap();
        let (head, tail) = text.split_once("\"system_identifier\":\"").unwrap();
        let tail = tail.split_once('"').unwrap().1;
        mutilate::remove(&event);
        system_tests::account::write(&event, format!("{head}\"system_identifier\":\"4711\"{tail}"), 0o400);
    }
    sync(&story, &[])
        .expect_code(1)
        .expect_said("another one, 4711")
        .expect_said("two clusters under one name");
}
