//! PostgreSQL itself with archive-get as its restore_command: it must not open a database that lacks WAL, and a standby
//! must stay useful while the repository is away.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use system_tests::mounts::Mounted;
use system_tests::scratch::copy_dir;
use system_tests::wait::PATIENCE;
use system_tests::{Cluster, Options, Scratch, Server, Site, Stop, account, each_major, mutilate, wait_until};

/// A copy of a stopped cluster, and a repository with the WAL that it wrote afterwards: rounds of rows 1 to 4.
struct Story {
    scratch: Scratch,
    server: Server,
    site: Site,
    base: PathBuf,
    segments: Vec<String>,
}

const ROUNDS: usize = 4;
const OPENED: &str = "database system is ready to accept connections";

impl Story {
    fn new(server: &Server) -> Story {
        let scratch = Scratch::new("recovery");
        let options = Options {
            segment_size_mb: 1,
            ..Options::default()
        };
        let cluster = Cluster::create(&scratch, server, options);
        let site = Site::with_repository(&scratch, &cluster);
        site.tool("init").run().expect_code(0);
        site.archive(&cluster);
        cluster.start();
        cluster.sql("CREATE TABLE rounds (round int)");
        cluster.switch_wal();
        cluster.stop(Stop::Fast);
        let base = scratch.path("base");
        copy_dir(cluster.data(), &base);
        cluster.start();
        let mut segments = Vec::new();
        for round in 1..=ROUNDS {
            cluster.sql(&format!("INSERT INTO rounds VALUES ({round})"));
            segments.push(cluster.switch_wal());
        }
        cluster.wait_archived(segments.last().unwrap());
        cluster.stop(Stop::Immediate);
        Story {
            scratch,
            server: server.clone(),
            site,
            base,
            segments,
        }
    }

    /// A fresh copy that is about to recover from the repository.
    fn copy(&self, name: &str, standby: bool) -> Cluster {
        let data = self.scratch.path(name);
        copy_dir(&self.base, &data);
        let cluster = Cluster::adopt(&self.scratch, &self.server, &data);
        cluster.conf(&["archive_mode = off", "wal_retrieve_retry_interval = 100ms"]);
        self.site.recover(&cluster, standby);
        cluster
    }
}

fn rounds(cluster: &Cluster) -> String {
    cluster.query_one("SELECT count(*) FROM rounds")
}

each_major!(recovery_never_ends_before_the_archive_does: 15 18);
fn recovery_never_ends_before_the_archive_does(server: &Server) {
    let story = Story::new(server);
    let whole = story.copy("whole", false);
    whole.start_without_waiting();
    whole.wait_ready(PATIENCE);
    whole.wait_promoted(PATIENCE);
    assert_eq!(rounds(&whole), ROUNDS.to_string());
    whole.stop(Stop::Fast);

    let dir = story.site.repo().dir.clone();
    let aside = story.scratch.path("aside");
    let object = story.site.repo().wal(&story.segments[2]);
    let config = fs::read_to_string(&story.site.config).unwrap();
    let spool = story.site.dir.join("spool");
    let stops = |name: &str, words: &str| {
        // What was fetched ahead before would hide the failure.
        fs::remove_dir_all(&spool).unwrap();
        account::create_dir(&spool, 0o700);
        let cluster = story.copy(name, false);
        cluster.start_without_waiting();
        assert!(!cluster.wait_exit(PATIENCE).success());
        let log = cluster.log();
        assert!(log.contains(words), "{name}: no {words:?} in\n{log}");
        assert!(log.contains("FATAL"), "{name}\n{log}");
        assert!(
            !log.contains(OPENED) && !log.contains("archive recovery complete"),
            "{name}\n{log}"
        );
        cluster
    };
    mutilate::flip_middle_bit(&object);
    let corrupt = stops("corrupt", &story.segments[2]);
    mutilate::flip_middle_bit(&object);
    mutilate::chmod(&dir, 0);
    stops("unreadable", "Permission denied");
    mutilate::chmod(&dir, 0o700);
    fs::rename(&dir, &aside).unwrap();
    stops("unmounted", "does not exist");
    account::create_dir(&dir, 0o700);
    stops("empty", "there is no repository of this cluster");
    fs::remove_dir(&dir).unwrap();
    fs::rename(&aside, &dir).unwrap();
    account::write(&story.site.config, config.replace("patience", "patients"), 0o600);
    stops("misconfigured", "patience");
    account::write(&story.site.config, &config, 0o600);

    // The one that stopped goes on where it stopped, once the archive is mended.
    corrupt.start_without_waiting();
    corrupt.wait_ready(PATIENCE);
    corrupt.wait_promoted(PATIENCE);
    assert_eq!(rounds(&corrupt), ROUNDS.to_string());
}

each_major!(a_standby_waits_for_its_repository_and_goes_on: 15 18);
fn a_standby_waits_for_its_repository_and_goes_on(server: &Server) {
    let story = Story::new(server);
    let dir = story.site.repo().dir.clone();
    let aside = story.scratch.path("aside");
    let object = story.site.repo().wal(&story.segments[2]);
    let config = fs::read_to_string(&story.site.config).unwrap();
    let spool = story.site.dir.join("spool");
    let configure = |text: &str| account::write(&story.site.config, text, 0o600);
    type Turn<'a> = &'a dyn Fn();
    let failures: [(&str, &str, Turn<'_>, Turn<'_>); 4] = [
        ("unreadable", "Permission denied", &|| mutilate::chmod(&dir, 0), &|| {
            mutilate::chmod(&dir, 0o700)
        }),
        (
            "unmounted",
            "does not exist",
            &|| fs::rename(&dir, &aside).unwrap(),
            &|| fs::rename(&aside, &dir).unwrap(),
        ),
        (
            "corrupt",
            &story.segments[2],
            &|| mutilate::flip_middle_bit(&object),
            &|| mutilate::flip_middle_bit(&object),
        ),
        (
            "misconfigured",
            "unknown key \"patients\"",
            &|| configure(&config.replace("patience", "patients")),
            &|| configure(&config),
        ),
    ];
    for (name, words, break_it, mend_it) in failures {
        // What was fetched ahead before would hide the failure.
        fs::remove_dir_all(&spool).unwrap();
        account::create_dir(&spool, 0o700);
        break_it();
        let standby = story.copy(name, true);
        standby.start_without_waiting();
        let complaint = |line: &&str| line.starts_with("archive-get: ") && line.contains(words);
        wait_until("the standby asks again and again", PATIENCE, || {
            standby.log().lines().filter(complaint).count() > 5
        });
        assert!(
            standby.is_running() && !standby.log().contains(OPENED),
            "{name}\n{}",
            standby.log()
        );
        mend_it();
        standby.wait_ready(PATIENCE);
        wait_until("the standby has all rounds", PATIENCE, || {
            rounds(&standby) == ROUNDS.to_string()
        });
        assert!(standby.in_recovery(), "{name}\n{}", standby.log());
        if name != "unreadable" {
            continue;
        }
        break_it();
        let start = Instant::now();
        standby.promote();
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        standby.sql("INSERT INTO rounds VALUES (0)");
        mend_it();
    }
}

each_major!(a_standby_whose_repository_hangs_can_be_promoted: 15 18);
fn a_standby_whose_repository_hangs_can_be_promoted(server: &Server) {
    let mut story = Story::new(server);
    // As it is unless configured otherwise.
    story.site = story.site.set("standby_patience", "\"5s\"");
    let standby = story.copy("standby", true);
    standby.start_without_waiting();
    standby.wait_ready(PATIENCE);
    wait_until("the standby has all rounds", PATIENCE, || {
        rounds(&standby) == ROUNDS.to_string()
    });
    let Some(hanging) = Mounted::hanging(&story.site.repo().dir) else {
        return;
    };
    wait_until("the standby has met the hanging repository", PATIENCE, || {
        standby.log().contains("did not answer within ")
    });
    let start = Instant::now();
    standby.promote();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}\n{}", standby.log());
    println!("promoted in {took:?}");
    standby.sql("INSERT INTO rounds VALUES (0)");
    drop(hanging);
}

each_major!(a_timeline_that_was_taken_is_not_taken_again_while_the_repository_is_away: 15);
fn a_timeline_that_was_taken_is_not_taken_again_while_the_repository_is_away(server: &Server) {
    let story = Story::new(server);
    let first = story.copy("first", true);
    first.conf(&[
        "archive_mode = on".to_string(),
        format!("archive_command = '{}'", story.site.archive_command()),
    ]);
    first.start_without_waiting();
    first.wait_ready(PATIENCE);
    let second = story.copy("second", true);
    second.conf(&["recovery_target_timeline = 'current'"]);
    second.start_without_waiting();
    second.wait_ready(PATIENCE);
    for cluster in [&first, &second] {
        wait_until("both have all rounds", PATIENCE, || {
            rounds(cluster) == ROUNDS.to_string()
        });
    }
    first.promote();
    first.wait_archived("00000002.history");
    let cached = |name: &str| {
        let mut found = Vec::new();
        let directory = story.site.state().join("main/histories");
        for system in fs::read_dir(directory).into_iter().flatten().flatten() {
            found.push(system.path().join(name));
        }
        found.iter().any(|path| path.exists())
    };
    second.stop(Stop::Fast);
    second.conf(&["recovery_target_timeline = 'latest'"]);
    // Anybody who asks for a history keeps them all.
    let ran = story
        .site
        .tool("archive-get")
        .args(["00000002.history", "probe"])
        .cwd(second.data())
        .run();
    ran.expect_code(0);
    fs::remove_file(second.data().join("probe")).unwrap();
    assert!(cached("00000002.history"));
    second.conf(&["recovery_target_timeline = 'current'"]);

    let dir = &story.site.repo().dir;
    mutilate::chmod(dir, 0);
    second.start_without_waiting();
    second.wait_ready(PATIENCE);
    second.promote();
    assert_eq!(
        second.query_one("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"),
        "00000003"
    );
    mutilate::chmod(dir, 0o700);
}
