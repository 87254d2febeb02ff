//! A repository on another host over SFTP: the account may do nothing else, and sees nothing but its chroot.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use system_tests::story::all;
use system_tests::wait::PATIENCE;
use system_tests::{Cluster, Options, RepoOptions, Scratch, Server, Site, Sshd, Story, Tool};

fn round_trip(name: &str, choose: impl FnOnce(RepoOptions) -> RepoOptions) {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new(name);
    let Some(sshd) = Sshd::need(&scratch) else { return };
    let repository = choose(sshd.repository("nas"));
    let story = Story::within(scratch.clone(), &server, Options::default(), |site| {
        site.repository(repository)
    });
    let cluster = &story.cluster;
    cluster.pgbench_init(2);

    story.step("the check says what the server honours");
    let check = story.tool("init").arg("--check").run();
    for words in [
        "works, exclusive creation by hard link",
        "durability: synced",
        "clock: ",
    ] {
        assert!(
            check.stdout.contains(words),
            "{words:?} is not said\n{}",
            check.report()
        );
    }

    story.step("a backup, and WAL after it");
    let label = story.backup();
    cluster.pgbench_run(2, 50);
    let end = cluster.checksum("postgres");
    story.archive_all();
    story.tool("info").run().expect_code(0).expect_said(&label);

    story.step("restored to the end");
    let restored = story.promoted("end", &[]);
    assert_eq!(restored.checksum("postgres"), end);
    story.chain_over(&restored);

    story.step("objects are nobody else's, and nothing is left under a staging name");
    let repo = story.site.repo();
    assert!(repo.objects().len() > 5);
    for object in repo.objects() {
        let found = fs::metadata(&object).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o400, "{}", object.display());
        assert_eq!(found.nlink(), 1, "{}", object.display());
        let above = fs::metadata(object.parent().unwrap()).unwrap();
        assert_eq!(above.permissions().mode() & 0o7777, 0o700, "{}", object.display());
    }
    assert!(sshd.staging().is_empty(), "{:?}", sshd.staging());
}

#[test]
fn a_cluster_comes_back_over_sftp_in_clear() {
    round_trip("sftp_clear", |repository| repository);
}

#[test]
fn a_cluster_comes_back_over_sftp_encrypted() {
    round_trip("sftp_encrypted", RepoOptions::encrypted);
}

#[test]
fn an_interruption_does_not_cost_the_backup() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("sftp_interrupted");
    let Some(sshd) = Sshd::need(&scratch) else { return };
    let repository = sshd.repository("nas").encrypted();
    let story = Story::within(scratch.clone(), &server, Options::default(), |site| {
        site.repository(repository)
            .set("patience", if all() { "\"15m\"" } else { "\"60s\"" })
    });
    story.cluster.pgbench_init(15);
    let before = story.cluster.checksum("postgres");

    story.step("the server goes in the middle of the copy");
    let mut backup = story.tool("base-backup").args(["--type", "full"]).spawn();
    let begun = || {
        let size = |path: &std::path::PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        assert!(backup.is_running(), "the backup was over too early");
        // WAL is on its way as well.
        let of_bundle = |path: &&std::path::PathBuf| path.to_string_lossy().contains("/data/");
        sshd.staging().iter().filter(of_bundle).map(size).sum::<u64>() > 1 << 20
    };
    system_tests::wait_until("a bundle is on its way", PATIENCE, begun);
    sshd.kill();
    assert_eq!(story.committed(), Vec::<String>::new(), "it was over already");

    // Ten minutes where all is asked for.
    let away = Duration::from_secs(if all() { 600 } else { 10 });
    story.step(&format!("it is back after {} seconds", away.as_secs()));
    let ended = system_tests::wait::holds_within(away, || !backup.is_running());
    assert!(!ended, "{}", backup.wait(PATIENCE).report());
    sshd.start();
    let ran = backup.wait(PATIENCE * 3).expect_code(0).expect_said("going on with");
    assert!(ran.stderr.contains("connection"), "{}", ran.report());
    assert_eq!(story.committed().len(), 1);

    story.step("and the backup is whole");
    story.archive_all();
    let restored = story.promoted("whole", &[]);
    assert_eq!(restored.checksum("postgres"), before);
    assert!(sshd.staging().is_empty(), "{:?}", sshd.staging());
}

#[test]
fn of_two_hosts_that_create_at_once_both_find_one_repository() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("sftp_two");
    let Some(sshd) = Sshd::need(&scratch) else { return };
    let cluster = Cluster::create(&scratch, &server, Options::default());
    for round in 0..5 {
        let sites: Vec<Site> = ["one", "two"]
            .into_iter()
            .map(|host| {
                let site = Site::named(&scratch, &cluster, &format!("{host}{round}"));
                site.repository(sshd.repository(&format!("nas{round}")))
            })
            .collect();
        let tools: Vec<Tool> = sites.iter().map(|site| site.tool("init")).collect();
        let running: Vec<_> = tools.iter().map(Tool::spawn).collect();
        let uuids: Vec<String> = running
            .into_iter()
            .map(|running| {
                let ran = running.wait(PATIENCE).expect_code(0);
                let uuid = ran.stdout.split("UUID ").nth(1).and_then(|rest| rest.split(',').next());
                uuid.unwrap_or_else(|| panic!("no UUID\n{}", ran.report())).to_owned()
            })
            .collect();
        assert_eq!(uuids[0], uuids[1], "in round {round}");
    }
    assert!(sshd.staging().is_empty(), "{:?}", sshd.staging());
}
