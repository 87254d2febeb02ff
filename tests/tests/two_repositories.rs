//! Two repositories in one pass: nothing is read or compressed twice, and one that is dead does not keep the other from anything.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::time::Duration;

use system_tests::story::label;
use system_tests::{Options, RepoOptions, Server, Site, Story, Tool};

/// A backup into two repositories costs less than this times the CPU of one into one of them.
const DEARER: f64 = 1.3;
const ROUNDS: usize = 3;

#[test]
fn a_backup_into_two_repositories_costs_little_more_than_into_one() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("two_cpu", &server, Options::default(), |site: Site| {
        site.repository(RepoOptions::new("first"))
            .repository(RepoOptions::new("second"))
    });
    story.cluster.pgbench_init(12);
    let cpu = |arguments: &[&str]| -> Duration {
        let ran = story
            .tool("base-backup")
            .args(["--type", "full", "--jobs", "2"])
            .args(arguments)
            .run();
        ran.expect_code(0).cpu
    };
    // The first reads the files into the page cache.
    cpu(&[]);
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (one, both) = (cpu(&["--repository", "first"]), cpu(&[]));
            println!("one {one:?}, both {both:?}");
            both.as_secs_f64() / one.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ROUNDS / 2];
    println!("two repositories cost {median:.2} times the CPU of one");
    assert!(median < DEARER, "{ratios:?}");
}

/// The plain content of every WAL file and backup object, whatever encrypts it.
fn plain(story: &Story, repository: usize) -> Vec<(String, String)> {
    let repo = &story.site.repos[repository];
    let mut found = Vec::new();
    for object in repo.objects() {
        let name = object.strip_prefix(&repo.dir).unwrap().to_string_lossy().into_owned();
        let is_stream = ["/wal/", "/data/", "/manifest."].iter().any(|part| name.contains(part));
        if !is_stream || name.contains(".staging-") {
            continue;
        }
        let open = match &repo.identity {
            Some(identity) => format!("age -d -i '{}' '{}' | zstd -dc", identity.display(), object.display()),
            None => format!("zstd -dc '{}'", object.display()),
        };
        let sum = Tool::program("bash")
            .args(["-o", "pipefail", "-c", &format!("{open} | sha256sum")])
            .as_root()
            .run();
        found.push((
            name.strip_suffix(".age").unwrap_or(&name).to_owned(),
            sum.expect_code(0).stdout,
        ));
    }
    found.sort();
    found
}

/// With the second repository dead, archive-push keeps its word; later both are level.
fn one_dead(name: &str, required: bool) {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with(name, &server, Options::default(), |site: Site| {
        site.repository(RepoOptions::new("first")).repository(
            RepoOptions::new("second")
                .encrypted()
                .line(&format!("required = {required}")),
        )
    });
    story.cluster.pgbench_init(1);
    story.backup();
    let (first, second) = (&story.site.repos[0], &story.site.repos[1]);
    let away = second.dir.with_extension("away");
    fs::rename(&second.dir, &away).unwrap();

    story.step("the second repository is dead");
    story
        .cluster
        .sql("CREATE TABLE meanwhile AS SELECT generate_series(1, 1000) AS n");
    let segment = story.cluster.switch_wal();
    let in_first = || first.has_wal(&segment);
    system_tests::wait_until(
        "the first repository has the segment",
        system_tests::wait::PATIENCE,
        in_first,
    );
    let ready = story
        .cluster
        .data()
        .join(format!("pg_wal/archive_status/{segment}.ready"));
    if required {
        let ran = story
            .tool("archive-push")
            .arg(format!("pg_wal/{segment}"))
            .cwd(story.cluster.data())
            .run();
        assert_ne!(ran.code, Some(0), "not everywhere where it must be\n{}", ran.report());
        assert!(ready.exists(), "PostgreSQL keeps it");
    } else {
        story.cluster.wait_archived(&segment);
        label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
    }

    story.step("it is back, and both are level");
    fs::rename(&away, &second.dir).unwrap();
    if required {
        story.cluster.wait_archived(&segment);
    }
    story.archive_all();
    story.tool("sync").run().expect_code(0);
    let (ours, theirs) = (plain(&story, 0), plain(&story, 1));
    assert!(ours.len() > 5 && ours == theirs, "{ours:#?}\n{theirs:#?}");
}

#[test]
fn a_required_repository_that_is_dead_keeps_wal_and_the_other_has_it() {
    one_dead("two_required", true);
}

#[test]
fn an_optional_repository_that_is_dead_is_brought_level_later() {
    one_dead("two_optional", false);
}

#[test]
fn what_an_optional_repository_missed_comes_with_the_next_wal_or_is_told() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("missed", &server, Options::default(), |site: Site| {
        site.repository(RepoOptions::new("first"))
            .repository(RepoOptions::new("second").line("required = false"))
    });
    let cluster = &story.cluster;
    let (first, second) = (&story.site.repos[0], &story.site.repos[1]);
    let away = second.dir.with_extension("away");
    let notes = story.site.state().join("main/missed/second");
    let noted = || fs::read_dir(&notes).map(Iterator::count).unwrap_or_default();
    let archived = || {
        let segment = cluster.switch_wal();
        cluster.wait_archived(&segment);
        segment
    };

    story.step("segments that only the first repository gets");
    fs::rename(&second.dir, &away).unwrap();
    let missed = [archived(), archived()];
    fs::rename(&away, &second.dir).unwrap();
    assert!(missed.iter().all(|name| first.has_wal(name) && !second.has_wal(name)));
    assert!(noted() >= 2);

    story.step("come with the next one");
    archived();
    let level = || missed.iter().all(|name| second.has_wal(name)) && noted() == 0;
    system_tests::wait_until("the second repository is level", system_tests::wait::PATIENCE, level);

    story.step("those that pg_wal has no longer are told");
    fs::rename(&second.dir, &away).unwrap();
    let gone = archived();
    let file = cluster.data().join("pg_wal").join(&gone);
    system_tests::wait_until("the segment has left pg_wal", system_tests::wait::PATIENCE, || {
        archived();
        cluster.checkpoint();
        !file.exists()
    });
    fs::rename(&away, &second.dir).unwrap();
    let told = || {
        archived();
        cluster.log().contains("pgkeep-sync --to second brings it level")
    };
    system_tests::wait_until("the server's log says what to do", system_tests::wait::PATIENCE, told);

    story.step("and are forgotten once sync has brought them");
    assert!(!second.has_wal(&gone));
    story
        .tool("sync")
        .args(["--from", "first", "--to", "second"])
        .run()
        .expect_code(0);
    assert!(second.has_wal(&gone));
    system_tests::wait_until("nothing is missed any more", system_tests::wait::PATIENCE, || {
        archived();
        noted() == 0
    });
}
