//! Dumps that cannot be made: what is said, and that nothing half made is listed.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod dump_stand;

use std::path::Path;

use dump_stand::{dump, dump_with, fill, listed, nothing_listed, story, story_in};
use system_tests::account;
use system_tests::mounts::Mounted;
use system_tests::scratch::copy_dir;
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Options, RepoOptions, Scratch, Server, Story};

#[test]
fn what_goes_wrong_is_said_and_leaves_no_half_dump() {
    let Some(server) = Server::need(15) else { return };
    let Some(story) = story("dump-wrong", &server) else {
        return;
    };
    let cluster = &story.cluster;
    fill(cluster);
    nothing_listed(&story, dump(&story, &["--database", "gone"]).run(), 2, "does not exist");

    story.step("a role without permission");
    cluster.sql("CREATE ROLE weak LOGIN");
    let weak = || {
        let text = std::fs::read_to_string(&story.site.config)
            .unwrap()
            .replace("user = \"postgres\"", "user = \"weak\"");
        assert!(text.contains("\"weak\""), "{text}");
        let config = story.scratch.write("weak.toml", text, 0o600);
        dump_with(&config).run()
    };
    nothing_listed(&story, weak(), 2, "permission denied");
    assert!(weak().stderr.contains("pg_read_all_data"));

    story.step("a wrong password");
    cluster.sql("ALTER ROLE weak PASSWORD 'right'");
    let access = cluster.data().join("pg_hba.conf");
    let before = std::fs::read_to_string(&access).unwrap();
    account::write(&access, format!("local all weak scram-sha-256\n{before}"), 0o600);
    cluster.reload();
    let passwords = story.scratch.write("passwords", "*:*:*:weak:wrong\n", 0o600);
    let text = std::fs::read_to_string(&story.site.config).unwrap();
    let weak = format!("user = \"weak\"\npassfile = \"{}\"", passwords.display());
    let config = story
        .scratch
        .write("wrong.toml", text.replace("user = \"postgres\"", &weak), 0o600);
    let refused = || dump_with(&config).run();
    wait_until("the server has read pg_hba.conf", PATIENCE, || {
        refused().stderr.contains("password authentication failed")
    });
    let ran = refused();
    assert!(
        !ran.stderr.contains("wrong\n") && ran.stderr.contains("passfile"),
        "{}",
        ran.report()
    );
    nothing_listed(&story, ran, 2, "password authentication failed");

    story.step("a server that ends the session in the middle");
    let mut blocker = cluster.client("shop");
    blocker
        .batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let running = dump(&story, &["--database", "shop"]).spawn();
    let waits = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgkeep-dump' AND wait_event_type = 'Lock'";
    wait_until("pg_dump waits for the lock", PATIENCE, || {
        !cluster.query(waits).is_empty()
    });
    cluster.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgkeep-dump'");
    nothing_listed(&story, running.wait(PATIENCE), 75, "terminating connection");

    story.step("a kill, and then a good one");
    let running = dump(&story, &["--database", "shop"]).spawn();
    wait_until("pg_dump waits for the lock", PATIENCE, || {
        !cluster.query(waits).is_empty()
    });
    running.kill9();
    wait_until("pg_dump has gone", PATIENCE, || cluster.query(waits).is_empty());
    assert_eq!(listed(&story), 0);
    blocker.batch_execute("ROLLBACK").unwrap();
    dump(&story, &["--database", "shop"]).run().expect_code(0);
    assert_eq!(listed(&story), 1);
}

#[test]
fn a_lock_that_is_held_too_long_is_temporary() {
    let Some(server) = Server::need(15) else { return };
    let Some(story) = story("dump-lock", &server) else {
        return;
    };
    fill(&story.cluster);
    let text = std::fs::read_to_string(&story.site.config).unwrap();
    let text = text.replace("dump.lock_wait = \"5s\"", "dump.lock_wait = \"1s\"");
    let config = story.scratch.write("short.toml", text, 0o600);
    let mut blocker = story.cluster.client("shop");
    blocker
        .batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let ran = dump_with(&config).run();
    nothing_listed(&story, ran, 75, "lock_wait");
}

#[test]
fn an_older_pg_dump_is_refused_by_name() {
    let (Some(server), Some(older)) = (Server::need(18), Server::need(15)) else {
        return;
    };
    let scratch = Scratch::new("dump-older");
    let programs = older
        .client("pg_dump")
        .and_then(|path| path.parent().map(Path::to_owned))
        .unwrap();
    std::os::unix::fs::symlink(programs, scratch.create_dir("clients").join("15")).unwrap();
    let line = format!(
        "dump.bin_directory = \"{}/{{major}}\"",
        scratch.path("clients").display()
    );
    let story = Story::within(scratch, &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local")).cluster_line(&line)
    });
    let ran = dump(&story, &[]).run();
    assert!(
        ran.stderr.contains("only that of 15") && ran.stderr.contains("postgresql-client-18"),
        "{}",
        ran.report()
    );
    nothing_listed(&story, ran, 2, "cannot dump a newer server");
}

#[test]
fn a_full_repository_ends_the_dump_and_the_other_one_has_it() {
    let Some(server) = Server::need(15) else { return };
    let Some(story) = story_in(
        "dump-full",
        &server,
        vec![RepoOptions::new("local"), RepoOptions::new("second")],
    ) else {
        return;
    };
    fill(&story.cluster);
    story.cluster.sql_in(
        "shop",
        "CREATE TABLE noise AS SELECT gen_random_uuid() FROM generate_series(1, 800000)",
    );
    let small = &story.site.repos[1].dir;
    std::fs::rename(small, small.with_extension("aside")).unwrap();
    std::fs::create_dir(small).unwrap();
    let Some(_disk) = Mounted::tiny(small, 8 << 10) else {
        return;
    };
    account::create_dir(&small.join("main"), 0o700);
    for name in ["repository.json", "events"] {
        copy_dir(
            &small.with_extension("aside").join("main").join(name),
            &small.join("main").join(name),
        );
    }
    let ran = dump(&story, &["--database", "shop"]).run().expect_code(1);
    let one = &ran.json()["dumps"][0];
    assert_eq!(one["repositories"], serde_json::json!(["local"]));
    assert!(
        one["failed"][0]["why"].as_str().unwrap().contains("No space left"),
        "{}",
        ran.report()
    );
    assert_eq!(listed(&story), 1);
    assert_eq!(story.site.status("dump")["result"], "failed");
}
