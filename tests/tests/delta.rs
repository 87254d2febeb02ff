//! A restore over what is there: what is the same is kept, what differs is fetched, what the backup does not have goes.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use system_tests::story::label;
use system_tests::{Cluster, Options, RepoOptions, Scratch, Server, Stop, Story, account, mutilate};

/// Every file below a directory, but what belongs to one recovery only.
fn files(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            match path.is_dir() && !path.is_symlink() {
                true => waiting.push(path),
                false if path.is_symlink() => found.push((
                    name,
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                )),
                false => found.push((name, fs::read(&path).unwrap())),
            }
        }
    }
    found.sort();
    found
}

fn over_what_is_there(name: &str, choose: impl FnOnce(RepoOptions) -> RepoOptions) {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with(name, &server, Options::default(), |site| {
        site.repository(choose(RepoOptions::new("local")))
    });
    let cluster = &story.cluster;
    let space = story.scratch.path("space");
    account::create_dir(&space, 0o700);
    cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    cluster.pgbench_init(5);
    cluster.sql("CREATE TABLE outside TABLESPACE space AS SELECT generate_series(1, 20000) AS n");
    label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
    cluster.pgbench_run(1, 50);
    let expected = cluster.checksum("postgres");
    let backup = label(&story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0));
    story.archive_all();

    story.step("the server goes on, then somebody damages its directory");
    cluster.pgbench_run(1, 50);
    cluster.sql("CREATE TABLE later AS SELECT 1; DROP TABLE pgbench_history; INSERT INTO outside SELECT 0; CHECKPOINT");
    cluster.stop(Stop::Fast);
    let data = cluster.data();
    account::write(&data.join("base/stranger"), "x", 0o600);
    fs::remove_file(data.join("global/1262")).unwrap();
    let large = data
        .join("base/5")
        .read_dir()
        .unwrap()
        .flatten()
        .max_by_key(|file| file.metadata().unwrap().len());
    let large = large.unwrap().path();
    mutilate::overwrite(&large, 3 * 8192 + 100, b"damaged");
    mutilate::truncate(&data.join("base/5/1259"), 8192);
    let outside = story.scratch.path("precious");
    account::write(&outside, "precious", 0o600);
    fs::remove_file(data.join("base/5/PG_VERSION")).unwrap();
    std::os::unix::fs::symlink(&outside, data.join("base/5/PG_VERSION")).unwrap();

    let to = data.to_str().unwrap().to_owned();
    let arguments = [
        "--backup",
        &backup,
        "--target-immediate",
        "--target-action",
        "promote",
        "--archive-mode",
        "off",
    ];
    let restore = |more: &[&str]| {
        story
            .tool("restore")
            .args(["--to", &to])
            .args(arguments)
            .args(more)
            .run()
    };
    restore(&[]).expect_code(1).expect_said("not empty");
    let ran = restore(&["--delta"]).expect_code(0);
    println!("{}", ran.stderr);
    let said = ran
        .stderr
        .lines()
        .find(|line| line.contains("were there already"))
        .unwrap();
    assert!(said.contains("MiB were there already"), "{said}");

    story.step("it is what a restore into an empty directory makes");
    let (fresh, fresh_space) = (story.scratch.path("fresh"), story.scratch.path("fresh-space"));
    let mapping = format!("{}={}", space.display(), fresh_space.display());
    let ran = story
        .restore_to(&fresh, &arguments)
        .args(["--tablespace", &mapping])
        .run();
    ran.expect_code(0);
    let (mut there, mut wanted) = (files(data), files(&fresh));
    for list in [&mut there, &mut wanted] {
        list.retain(|(name, _)| !name.starts_with("pg_tblspc/") && name != "tablespace_map");
    }
    let names = |list: &[(String, Vec<u8>)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&there), names(&wanted));
    for ((name, a), (_, b)) in there.iter().zip(&wanted) {
        assert!(a == b, "{name} differs");
    }
    assert_eq!(files(&space), files(&fresh_space));
    assert_eq!(
        fs::read(&outside).unwrap(),
        b"precious",
        "nothing was written through a link"
    );

    let restored = Cluster::adopt(&story.scratch, cluster.server(), data);
    restored.start();
    restored.wait_promoted(system_tests::wait::PATIENCE);
    assert_eq!(restored.checksum("postgres"), expected);

    story.step("a running server's directory is refused, and so is another cluster's");
    restore(&["--delta"]).expect_code(1).expect_said("in use");
    restored.stop(Stop::Fast);
    let other = Cluster::create(&Scratch::new("delta_other"), &server, Options::default());
    let other = other.data().to_str().unwrap().to_owned();
    story
        .tool("restore")
        .args(["--to", &other, "--backup", &backup, "--delta", "--tablespace", &mapping])
        .run()
        .expect_code(1)
        .expect_said("is the data directory of system");
}

#[test]
fn what_is_the_same_is_kept_and_all_else_is_as_in_a_fresh_restore() {
    over_what_is_there("delta_clear", |repository| repository);
}

#[test]
fn an_encrypted_repository_serves_as_well() {
    over_what_is_there("delta_sealed", RepoOptions::encrypted);
}

#[test]
fn a_killed_one_starts_no_server_and_is_run_again() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("delta_killed", &server, Options::default());
    story.cluster.pgbench_init(5);
    let expected = story.cluster.checksum("postgres");
    let backup = story.backup();
    story.archive_all();
    story.cluster.pgbench_run(1, 100);
    story.cluster.stop(Stop::Fast);
    let data = story.cluster.data();
    let arguments = [
        "--backup",
        &backup,
        "--target-immediate",
        "--target-action",
        "promote",
        "--delta",
        "--archive-mode",
        "off",
    ];
    let restore = || story.tool("restore").arg("--to").arg(data).args(arguments);
    // Killed as soon as it has begun: pg_control is gone before anything is changed.
    let running = restore().spawn();
    system_tests::wait_until("the restore has begun or ended", system_tests::wait::PATIENCE, || {
        !data.join("global/pg_control").exists() || data.join("recovery.signal").exists()
    });
    running.kill9();
    if !data.join("recovery.signal").exists() {
        assert!(data.join("pgkeep-restore-unfinished").exists());
        assert!(!data.join("global/pg_control").exists());
    }
    restore().run().expect_code(0);
    assert!(!data.join("pgkeep-restore-unfinished").exists() && !data.join("pgkeep-restore-digests").exists());
    let restored = Cluster::adopt(&story.scratch, story.cluster.server(), data);
    restored.start();
    restored.wait_promoted(system_tests::wait::PATIENCE);
    assert_eq!(restored.checksum("postgres"), expected);
}

/// In every cluster pg_multixact/members/0000 is a page of zeros.
#[test]
fn a_file_that_is_missing_comes_back_whole_even_where_it_ends_in_zeros() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::begin("delta_zeros", &server, Options::default());
    story
        .cluster
        .sql("CREATE TABLE kept AS SELECT generate_series(1, 20000) AS n");
    story.backup();
    let expected = story.cluster.checksum("postgres");
    story.archive_all();
    let fresh = story.promoted("fresh", &["--delta"]);
    assert_eq!(fresh.checksum("postgres"), expected);
    let zeros = fs::read(fresh.data().join("pg_multixact/members/0000")).unwrap();
    assert!(!zeros.is_empty() && zeros.iter().all(|byte| *byte == 0));
}
