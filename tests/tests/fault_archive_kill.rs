//! archive-push and archive-get killed at the n-th system call of each kind that changes something, for n = 1, 2, 3
//! until a run gets through: what is left must be whole or nothing, and the next run must succeed.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod archive_stand;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use archive_stand::{Archive, Dice, destination, get_tool, push};
use system_tests::stand::need_program;
use system_tests::story::all;
use system_tests::{Ran, RepoOptions, Server, Tool, account, each_major, mutilate};

/// What the tools do to file systems; a call that does not occur gets through at once.
const CALLS: [&str; 11] = [
    "openat",
    "write",
    "fsync",
    "link",
    "linkat",
    "rename",
    "renameat2",
    "unlink",
    "mkdir",
    "ftruncate",
    "close",
];

/// Runs `tool` killed at one call after the other, `after` each; a sample of the long rows unless all are asked for.
fn killed_at_each_call(tool: &dyn Fn() -> Tool, calls: &[&str], after: &mut dyn FnMut(&Ran, &str)) {
    let mut dice = Dice::new();
    let mut killed = 0;
    for call in calls {
        let mut n = 1;
        loop {
            let inject = format!("inject={call}:signal=KILL:when={n}");
            let trace = format!("trace={call}");
            let ran = tool()
                .under(["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject])
                .run();
            after(&ran, &format!("{call} {n}"));
            if ran.code == Some(0) {
                break;
            }
            killed += 1;
            assert!(n < 500, "{call} is called without end\n{}", ran.report());
            n += if all() { 1 } else { 1 + dice.below(n / 3 + 2) };
        }
    }
    println!("killed {killed} times");
    assert!(
        killed >= calls.len(),
        "killed {killed} times only: does strace reach the tool?"
    );
}

each_major!(archive_get_killed_anywhere_leaves_the_whole_file_or_none: 15);
fn archive_get_killed_anywhere_leaves_the_whole_file_or_none(server: &Server) {
    if need_program("strace").is_none() {
        return;
    }
    let archive = Archive::new(server, vec![RepoOptions::new("local").encrypted()], 3);
    let data = archive.pgdata("recovery");
    let site = archive.site;
    let (name, next) = (archive.segments[0].as_str(), archive.segments[1].as_str());
    let content = |name: &str| fs::read(archive.plain.join(name)).unwrap();
    // With one worker, so that the n-th call is the same one every time.
    let site = site.set("jobs", "1");
    let mut check = |ran: &Ran, at: &str| {
        let there = fs::read(destination(&data)).ok();
        assert!(
            there.is_none_or(|there| there == content(name)),
            "half a file after {at}\n{}",
            ran.report()
        );
        assert!(ran.code != Some(1), "{at}\n{}", ran.report());
    };
    killed_at_each_call(&|| get_tool(&site, &data, name), &CALLS, &mut check);

    // The same with a child that fetches ahead: whatever it leaves in the spool, the next calls give what was stored.
    let site = site.set("prefetch_limit", "\"20MiB\"");
    let spool = site.dir.join("spool/main/get");
    let fresh = || {
        let _ = fs::remove_dir_all(&spool);
        get_tool(&site, &data, name)
    };
    killed_at_each_call(&fresh, &["write", "rename", "ftruncate", "mkdir"], &mut |ran, at| {
        check(ran, at);
        for name in [name, next] {
            let again = get_tool(&site, &data, name).run().expect_code(0);
            assert!(
                fs::read(destination(&data)).unwrap() == content(name),
                "{at}\n{}",
                again.report()
            );
        }
    });
    let left: Vec<_> = fs::read_dir(data.join("pg_wal"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

each_major!(archive_push_killed_anywhere_and_retried_loses_and_doubles_nothing: 15);
fn archive_push_killed_anywhere_and_retried_loses_and_doubles_nothing(server: &Server) {
    if need_program("strace").is_none() {
        return;
    }
    let both = vec![RepoOptions::new("first"), RepoOptions::new("second").encrypted()];
    let archive = Archive::new(server, both, 2);
    let data = archive.pgdata("primary");
    let site = archive.site;
    let site = site.set("jobs", "1");
    let segments = &archive.segments;
    let content = |name: &str| fs::read(archive.plain.join(name)).unwrap();
    for name in segments {
        account::write(&data.join("pg_wal").join(name), content(name), 0o600);
        account::write(&data.join(format!("pg_wal/archive_status/{name}.ready")), "", 0o600);
    }
    let empty = || {
        for repo in &site.repos {
            let _ = fs::remove_dir_all(repo.path("wal"));
        }
        let _ = fs::remove_dir_all(site.dir.join("spool/main"));
    };
    let verify = |at: &str| {
        for name in segments {
            push(&site, &data, name).run().expect_code(0);
            for repo in &site.repos {
                // Exactly one object, and it opens.
                repo.wal(name);
                let got = get_tool(&site, &data, name)
                    .args(["--repository", &repo.name])
                    .run()
                    .expect_code(0);
                assert!(
                    fs::read(destination(&data)).unwrap() == content(name),
                    "{at}\n{}",
                    got.report()
                );
            }
        }
        for repo in &site.repos {
            let names: BTreeSet<_> = repo.matching("/damaged/").into_iter().collect();
            assert!(names.is_empty(), "a crash is no damage: {at} {names:?}");
        }
    };
    let first = || {
        empty();
        push(&site, &data, &segments[0])
    };
    killed_at_each_call(&first, &CALLS, &mut |_, at| verify(at));

    // Replacing a damaged object.
    let damaged = || {
        for repo in &site.repos {
            let object = repo.wal(&segments[0]);
            mutilate::cut_last_byte(&object);
            let _ = fs::remove_dir_all(repo.path("damaged"));
        }
        push(&site, &data, &segments[0])
    };
    killed_at_each_call(
        &damaged,
        &["rename", "renameat2", "link", "unlink", "fsync"],
        &mut |_, at| {
            for repo in &site.repos {
                let _ = fs::remove_dir_all(repo.path("damaged"));
            }
            // The object may be gone for the moment: PostgreSQL still has it.
            push(&site, &data, &segments[0]).run().expect_code(0);
            for repo in &site.repos {
                let _ = fs::remove_dir_all(repo.path("damaged"));
            }
            verify(at);
        },
    );
}

each_major!(a_panic_never_looks_like_an_answer: 15);
fn a_panic_never_looks_like_an_answer(server: &Server) {
    let archive = Archive::clear(server, 1);
    let name = &archive.segments[0];
    let Some(programs) = panicking_tools(&archive) else {
        return;
    };
    for (data, code) in [(archive.pgdata("recovery"), 200), (archive.standby("standby"), 75)] {
        for place in ["main", "thread"] {
            let tool = |tool: &str| {
                Tool::program(programs.join(tool))
                    .env("PGKEEP_PANIC_TEST", place)
                    .arg("--config")
                    .arg(&archive.site.config)
                    .cwd(&data)
            };
            let ran = tool("pgkeep-archive-get")
                .args([name.as_str(), "pg_wal/RECOVERYXLOG"])
                .run();
            ran.expect_code(code).expect_said("internal error");
            let ran = tool("pgkeep-archive-push").arg(format!("pg_wal/{name}")).run();
            ran.expect_code(1).expect_said("internal error");
        }
    }
}

/// The two tools with the feature that makes them panic when asked to, built beside the others; only where every variant
/// is asked for, since it takes a minute. (The codes themselves are proved by `bins/common/tests/exit.rs` on every run.)
fn panicking_tools(archive: &Archive) -> Option<std::path::PathBuf> {
    if !all() {
        system_tests::stand::skipped("tools that panic are built with PGKEEP_ALL=1 only (make test-faults)");
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = root.join("target/panic-test");
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let built = std::process::Command::new(cargo)
        .current_dir(root)
        .args(["build", "--locked", "--features", "panic-test"])
        .args(["-p", "pgkeep-archive-get", "-p", "pgkeep-archive-push", "--target-dir"])
        .arg(&target)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let programs = archive.scratch.create_dir("programs");
    for tool in ["pgkeep-archive-get", "pgkeep-archive-push"] {
        let bytes = fs::read(target.join("debug").join(tool)).unwrap();
        account::write(&programs.join(tool), bytes, 0o700);
    }
    Some(programs)
}
