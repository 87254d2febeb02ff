//! Repositories that answer nothing at all: file systems whose server is gone hang whoever looks into them, for good.
//! archive-push and archive-get end all the same, say which repository it was, and do what can be done without it.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod archive_stand;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use archive_stand::{Archive, get, push};
use system_tests::mounts::Mounted;
use system_tests::{RepoOptions, Server, account, each_major, mutilate};

/// Every segment waits to be archived again, and no repository has one.
fn all_are_ready(archive: &Archive, data: &Path) {
    for repo in &archive.site.repos {
        mutilate::remove(&repo.path("wal"));
    }
    for name in &archive.segments {
        archive.ready(data, name);
    }
}

each_major!(a_repository_that_hangs_does_not_keep_the_others_from_receiving_everything: 15);
fn a_repository_that_hangs_does_not_keep_the_others_from_receiving_everything(server: &Server) {
    let three = vec![
        RepoOptions::new("first"),
        RepoOptions::new("second"),
        RepoOptions::new("third").encrypted(),
    ];
    let archive = Archive::new(server, three, 3);
    let data = archive.pgdata("primary");
    all_are_ready(&archive, &data);
    let Archive { site, segments, .. } = archive;
    // Shorter than it takes to give up on it, so that waiting for others is seen too.
    let site = site.set("patience", "\"3s\"");
    let [first, second, third] = &site.repos[..] else {
        panic!()
    };
    let Some(hanging) = Mounted::hanging(&first.dir) else {
        return;
    };
    let begun = Instant::now();
    let ran = push(&site, &data, &segments[0])
        .run()
        .expect_code(75)
        .expect_said("repository \"first\"")
        .expect_said("did not answer within ")
        .expect_said("hint: can it be reached?");
    let took = begun.elapsed();
    println!("ended after {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}\n{}", ran.report());
    for repo in [second, third] {
        for name in &segments {
            assert!(repo.has_wal(name), "{name} is not in {}", repo.name);
        }
    }
    assert_eq!(site.status("archive-push")["result"], "temporary");
    // What only the others have is not stored: nobody may take a marker for that.
    push(&site, &data, &segments[1]).run().expect_code(75);
    drop(hanging);
    for name in &segments {
        push(&site, &data, name).run().expect_code(0).expect_quiet();
        assert!(first.has_wal(name), "{name}");
    }
}

each_major!(a_repository_that_hangs_and_is_not_required_fails_nothing: 15);
fn a_repository_that_hangs_and_is_not_required_fails_nothing(server: &Server) {
    let both = vec![
        RepoOptions::new("first"),
        RepoOptions::new("second").line("required = false"),
    ];
    let archive = Archive::new(server, both, 2);
    let data = archive.pgdata("primary");
    all_are_ready(&archive, &data);
    let Archive { site, segments, .. } = archive;
    let site = site.set("patience", "\"3s\"");
    let [first, second] = &site.repos[..] else { panic!() };
    let Some(_hanging) = Mounted::hanging(&second.dir) else {
        return;
    };
    push(&site, &data, &segments[0])
        .run()
        .expect_code(0)
        .expect_said("not stored everywhere")
        .expect_said("repository \"second\"");
    for name in &segments {
        assert!(first.has_wal(name), "{name}");
    }
    assert_eq!(site.status("archive-push")["result"], "ok");
}

each_major!(the_only_repository_hangs_and_archive_push_ends: 15);
fn the_only_repository_hangs_and_archive_push_ends(server: &Server) {
    let archive = Archive::clear(server, 1);
    let data = archive.pgdata("primary");
    all_are_ready(&archive, &data);
    let Archive { site, segments, .. } = archive;
    let site = site.set("patience", "\"2s\"");
    let Some(_hanging) = Mounted::hanging(&site.repo().dir) else {
        return;
    };
    push(&site, &data, &segments[0])
        .timeout(Duration::from_secs(30))
        .run()
        .expect_code(75)
        .expect_said("repository \"local\"")
        .expect_said("did not answer within ");
}

each_major!(archive_get_names_the_repository_that_is_silent_for_how_long_and_what_to_do: 15);
fn archive_get_names_the_repository_that_is_silent_for_how_long_and_what_to_do(server: &Server) {
    let both = vec![RepoOptions::new("first"), RepoOptions::new("second")];
    let archive = Archive::new(server, both, 1);
    let (recovery, standby) = (archive.pgdata("recovery"), archive.standby("standby"));
    let Archive { site, segments, .. } = archive;
    let site = site.set("patience", "\"2s\"").set("standby_patience", "\"2s\"");
    let [first, second] = &site.repos[..] else { panic!() };
    mutilate::remove(&first.wal(&segments[0]));
    let Some(_hanging) = Mounted::hanging(&second.dir) else {
        return;
    };
    for (data, code) in [(&recovery, 200), (&standby, 75)] {
        get(&site, data, &segments[0])
            .expect_code(code)
            .expect_said(&format!("repository \"second\" at file://{}", second.dir.display()))
            .expect_said("did not answer within ")
            .expect_said("pgkeep-init --check")
            .expect_said("--repository NAME");
    }
}

each_major!(a_silent_repository_does_not_keep_the_next_from_giving_the_file: 15);
fn a_silent_repository_does_not_keep_the_next_from_giving_the_file(server: &Server) {
    let both = vec![RepoOptions::new("first"), RepoOptions::new("second")];
    let archive = Archive::new(server, both, 3);
    let (recovery, standby) = (archive.pgdata("recovery"), archive.standby("standby"));
    let absent = archive.absent();
    let Archive {
        site, segments, plain, ..
    } = archive;
    let site = site.set("patience", "\"60s\"").set("standby_patience", "\"4s\"");
    let Some(_hanging) = Mounted::hanging(&site.repos[0].dir) else {
        return;
    };
    let fetch = |data: &Path, name: &str| {
        let begun = Instant::now();
        let ran = get(&site, data, name).expect_code(0);
        assert!(fs::read(archive_stand::destination(data)).unwrap() == fs::read(plain.join(name)).unwrap());
        (ran, begun.elapsed())
    };
    let silent = site.state().join("main/silent");
    for (data, limit) in [(&standby, 4), (&recovery, 10)] {
        let _ = fs::remove_dir_all(&silent);
        let (ran, took) = fetch(data, &segments[0]);
        println!("the first time {took:?}");
        assert!(took < Duration::from_secs(limit), "{took:?}\n{}", ran.report());
        ran.expect_said("repository \"first\" has not answered for ")
            .expect_said("asking the others first");
        // Soon afterwards nobody waits for it any more.
        for name in &segments[1..] {
            let (ran, took) = fetch(data, name);
            assert!(took < Duration::from_secs(1), "{took:?}\n{}", ran.report());
            ran.expect_quiet();
        }
    }
    // It may have what the other has not.
    let site = site.set("patience", "\"3s\"").set("standby_patience", "\"1s\"");
    for (data, code) in [(&recovery, 200), (&standby, 75)] {
        get(&site, data, &absent)
            .expect_code(code)
            .expect_said("repository \"first\" at file://")
            .expect_said("did not answer within ");
    }
}

/// What of a site belongs to root, the repositories aside.
fn of_root(directory: &Path, found: &mut Vec<String>) {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.metadata().unwrap().uid() == 0 {
            found.push(entry.path().display().to_string());
        }
        if entry.path().is_dir() {
            of_root(&entry.path(), found);
        }
    }
}

each_major!(started_as_root_every_tool_becomes_the_owner_and_says_so: 15);
fn started_as_root_every_tool_becomes_the_owner_and_says_so(server: &Server) {
    if !account::is_root() {
        system_tests::stand::skipped("only root can become somebody else");
        return;
    }
    let archive = Archive::clear(server, 3);
    let data = archive.pgdata("primary");
    all_are_ready(&archive, &data);
    let Archive {
        site,
        segments,
        cluster,
        scratch,
        ..
    } = archive;
    let site = site.set("prefetch_limit", "\"100MiB\"");
    let expect = |tool: system_tests::Tool, code: i32| {
        let ran = tool
            .as_root()
            .arg("-v")
            .run()
            .expect_code(code)
            .expect_said("running as ");
        let mut left = Vec::new();
        of_root(&site.dir, &mut left);
        of_root(&data, &mut left);
        assert!(left.is_empty(), "{left:?}\n{}", ran.report());
    };
    expect(push(&site, &data, &segments[0]), 0);
    // Warm.
    expect(push(&site, &data, &segments[1]), 0);
    expect(push(&site, &data, "000000010000000000000099"), 1);
    expect(archive_stand::get_tool(&site, &data, &segments[0]), 0);
    expect(archive_stand::get_tool(&site, &data, "0000000100000000000000F0"), 1);
    expect(site.tool("info"), 0);
    expect(site.tool("init"), 0);
    expect(site.tool("init").arg("--check"), 1);
    expect(site.tool("base-backup").args(["--type", "full"]), 75);
    let restored = scratch.create_dir("restored");
    expect(site.tool("restore").arg("--to").arg(&restored), 1);

    // Where no data directory is found root does not even leave a status.
    let text = fs::read_to_string(&site.config).unwrap();
    let owner = format!("data_directory = \"{}\"", cluster.data().display());
    assert!(text.contains(&owner), "{text}");
    account::write(
        &site.config,
        text.replace(&owner, "data_directory = \"/nonexistent\""),
        0o600,
    );
    let status = site.state().join("main/status");
    fs::remove_dir_all(&status).unwrap();
    let elsewhere = scratch.create_dir("elsewhere");
    push(&site, &elsewhere, &segments[0]).as_root().run().expect_code(1);
    let ran = archive_stand::get_tool(&site, &elsewhere, &segments[0]).as_root().run();
    ran.expect_code(200);
    assert!(!status.exists());
}

#[test]
fn started_as_root_without_a_data_directory_every_tool_becomes_postgres_and_says_so() {
    if !account::is_root() {
        system_tests::stand::skipped("only root can become somebody else");
        return;
    }
    let bare = system_tests::Bare::new("root_elsewhere");
    let second = bare.scratch.create_dir("second");
    let text = format!(
        "{}\n[repository.second]\nurl = \"file://{}\"\n",
        bare.text,
        second.display()
    );
    bare.configure(&text);
    bare.tool("init").run().expect_code(0);
    let configured = format!("data_directory = \"{}\"\n", bare.data.display());
    assert!(text.contains(&configured), "{text}");
    let restored = bare.scratch.path("restored").display().to_string();
    let label = "20200101T000000Z-dump-000000";
    // It is not configured, or not there and nothing of its path is anybody's.
    for (instead, archived) in [("", 0), ("data_directory = \"/nonexistent/data\"\n", 3)] {
        bare.configure(&text.replace(&configured, instead));
        for (tool, arguments, code) in [
            ("info", &["-v"][..], 0),
            ("info", &["--stats"], 0),
            ("verify", &["--read-data"], 0),
            ("sync", &[], 0),
            ("prune", &["--dry-run"], 0),
            ("prune", &[], 0),
            ("check-age", &["-v"], 2),
            ("check-archive", &["-v"], archived),
            ("restore", &["--to", &restored], 1),
            ("restore-test", &[], 1),
            ("dump-restore", &[label, "--list"], 1),
            ("dump", &[], 75),
        ] {
            let ran = bare.tool(tool).args(arguments).as_root().run().expect_code(code);
            let ran = ran.expect_said("running as postgres");
            let mut left = Vec::new();
            of_root(&bare.scratch.path(""), &mut left);
            assert!(left.is_empty(), "{left:?}\n{}", ran.report());
        }
    }
}
