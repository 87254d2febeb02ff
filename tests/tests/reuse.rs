//! An interrupted backup is never continued; what it stored is used by the next one where pages are still the same.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;

use system_tests::story::label;
use system_tests::wait::PATIENCE;
use system_tests::{Options, RepoOptions, Server, Site, Story, Tool, each_major, mutilate, wait_until};

/// Lets archiving stop while a file stands, so that a backup waits for its last WAL.
fn stoppable(story: &Story) -> std::path::PathBuf {
    let flag = story.scratch.path("stop-archiving");
    let push = story.site.archive_command();
    story.cluster.conf(&[format!(
        "archive_command = 'test ! -e \"{}\" && {push}'",
        flag.display()
    )]);
    story.cluster.reload();
    flag
}

/// Begins a backup and kills it when everything is stored but the last WAL; returns its label.
fn killed(story: &Story, flag: &std::path::Path, arguments: &[&str]) -> String {
    let known = story.site.repo().backups();
    let running = story
        .tool("base-backup")
        .args(["--type", "full"])
        .args(arguments)
        .spawn();
    let new = || {
        story
            .site
            .repo()
            .backups()
            .into_iter()
            .find(|label| !known.contains(label))
    };
    wait_until("the backup stores data", PATIENCE, || {
        new().is_some_and(|label| fs::read_dir(story.site.repo().path(&format!("backup/{label}/data"))).is_ok())
    });
    fs::write(flag, "").unwrap();
    wait_until("the backup has stored its manifest", PATIENCE, || {
        new().is_some_and(|label| !story.site.repo().matching(&format!("/{label}/manifest.zst")).is_empty())
    });
    running.kill9();
    fs::remove_file(flag).unwrap();
    new().unwrap()
}

fn document(story: &Story, repository: usize, label: &str) -> serde_json::Value {
    let path = story.site.repos[repository].path(&format!("backup/{label}/backup.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn used_again(name: &str, server: &Server, set_up: impl FnOnce(Site) -> Site) {
    let story = Story::with(name, server, Options::default(), set_up);
    let cluster = &story.cluster;
    cluster.pgbench_init(8);
    cluster.sql(
        "CREATE TABLE still AS SELECT n, repeat(md5(n::text), 20) AS long FROM generate_series(1, 60000) n; CHECKPOINT",
    );
    let flag = stoppable(&story);

    story.step("a backup is killed when all but its last WAL is stored");
    let first = killed(&story, &flag, &[]);

    story.step("pages change, some files grow, some shrink, some vanish");
    cluster.pgbench_run(2, 10);
    cluster.sql(
        "UPDATE still SET long = long || 'x' WHERE n % 9000 = 0;
         DROP TABLE pgbench_history;
         CREATE TABLE fresh AS SELECT generate_series(1, 5000) AS n;
         CHECKPOINT",
    );

    story.step("the next backup reads everything anew and stores what differs");
    let ran = story
        .tool("base-backup")
        .args(["--type", "full", "-v"])
        .run()
        .expect_code(0);
    let ran = ran.expect_said(&format!("pages that the interrupted backup {first} has stored"));
    let second = label(&ran);
    for repository in 0..story.site.repos.len() {
        let document = document(&story, repository, &second);
        assert_eq!(document["reused_from"], first.as_str());
        assert_eq!(document["references"][0], first.as_str());
        let bytes = |label: &str| -> u64 {
            let objects = story.site.repos[repository].matching(&format!("/{label}/data/"));
            objects.iter().map(|object| fs::metadata(object).unwrap().len()).sum()
        };
        let (before, after) = (bytes(&first), bytes(&second));
        println!("stored {before} bytes at first, {after} by the next one");
        assert!(after * 2 < before, "less than half was stored again");
    }

    story.step("and comes back whole");
    story.archive_all();
    let expected = cluster.checksum("postgres");
    for repository in &story.site.repos {
        let name = format!("back-{}", repository.name);
        let restored = story.promoted(&name, &["--repository", &repository.name, "--backup", &second]);
        assert_eq!(restored.checksum("postgres"), expected);
        restored.sql("CREATE EXTENSION amcheck");
        restored.sql(
            "SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam
             WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence <> 't'",
        );
    }
    let at_once = story.restored(
        "at-once",
        &["--backup", &second, "--target-immediate", "--target-action", "promote"],
    );
    if server.major == 15 {
        let verify = system_tests::stand::debian_program("pg_verifybackup");
        Tool::program(verify).arg("-n").arg(at_once.data()).run().expect_code(0);
    }

    story.step("a backup that used another one is not used itself, and what is gone is not used");
    mutilate::remove(&story.site.repos[0].path(&format!("backup/{first}")));
    let third = label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
    assert!(document(&story, 0, &third)["reused_from"].is_null());
}

each_major!(what_an_interrupted_backup_stored_is_used_where_pages_are_the_same: 13 15 18);
fn what_an_interrupted_backup_stored_is_used_where_pages_are_the_same(server: &Server) {
    used_again("reuse", server, |site| site.repository(RepoOptions::new("local")));
}

#[test]
fn it_is_used_in_every_repository_or_in_none() {
    let Some(server) = Server::need(15) else { return };
    used_again("reuse_two", &server, |site| {
        site.repository(RepoOptions::new("local"))
            .repository(RepoOptions::new("sealed").encrypted())
    });
}

#[test]
fn another_host_s_and_a_keyless_host_s_interrupted_backups_are_left_alone() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("reuse_not", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local").keyless())
    });
    story.cluster.pgbench_init(2);
    let flag = stoppable(&story);
    killed(&story, &flag, &[]);
    let next = label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
    assert!(
        document(&story, 0, &next)["reused_from"].is_null(),
        "no key opens the indexes here"
    );

    let story = Story::begin("reuse_host", &server, Options::default());
    story.cluster.pgbench_init(2);
    let flag = stoppable(&story);
    let first = killed(&story, &flag, &[]);
    let intent = story.site.repo().path(&format!("backup/{first}/intent.json"));
    let text = fs::read_to_string(&intent).unwrap();
    let (head, tail) = text.split_once("\"host\":\"").unwrap();
    let tail = tail.split_once('"').unwrap().1;
    mutilate::remove(&intent);
    system_tests::account::write(&intent, format!("{head}\"host\":\"another\"{tail}"), 0o400);
    let next = label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
    assert!(
        document(&story, 0, &next)["reused_from"].is_null(),
        "it may still run there"
    );
}

#[test]
fn two_hosts_do_not_back_up_one_cluster_at_once() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("lease", &server, Options::default());
    let lease = |until: &str| {
        format!(
            "{{\"format\":1,\"owner\":\"db2:7:3f9a1c\",\"job\":\"base-backup\",\"taken\":\"2026-01-01T00:00:00Z\",\
             \"expires\":\"{until}\",\"state\":\"held\"}}"
        )
    };
    let path = story.site.repo().path("lease/base-backup/7.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    for directory in path.ancestors().skip(1).take(2) {
        system_tests::account::give(directory);
    }
    system_tests::account::write(&path, lease("2999-01-01T00:00:00Z"), 0o400);
    let backup = story.tool("base-backup").args(["--type", "full"]);
    backup
        .run()
        .expect_code(75)
        .expect_said("db2:7:3f9a1c holds the lease")
        .expect_said("ends by itself");
    assert!(story.site.repo().backups().is_empty(), "nothing was begun");

    story.step("a lease that nobody renewed ends by itself");
    mutilate::remove(&path);
    system_tests::account::write(&path, lease("2026-01-01T00:15:00Z"), 0o400);
    label(&backup.run().expect_code(0));
    let left = story.site.repo().matching("/lease/base-backup/");
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(fs::read_to_string(&left[0]).unwrap().contains("\"released\""));
}
