//! A bucket that goes away at every request in turn, and for a while in the middle of the work: afterwards everything is
//! stored once and whole or not at all, and the next run succeeds.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod archive_stand;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use archive_stand::{Archive, Dice, destination, expect_nothing};
use system_tests::s3::{Fault, Rule};
use system_tests::story::{all, label};
use system_tests::wait::PATIENCE;
use system_tests::{
    Bare, Cluster, Options, Ran, RepoOptions, S3, Scratch, Server, Site, Story, Tool, account, wait_until,
};

/// What happens at the n-th request.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// It fails, and all behind it.
    Fails(Fault),
    /// The tool is killed (SIGKILL), and its children with it, while it waits for the answer.
    Kills,
}

const EVENTS: [Event; 4] = [
    Event::Fails(Fault::Reset),
    Event::Fails(Fault::LoseAnswer),
    Event::Fails(Fault::Answer(503, "SlowDown")),
    Event::Kills,
];

impl Event {
    /// Runs the tool so that this happens at its n-th request.
    fn befalls(self, s3: &S3, n: u32, tool: &Tool) -> Ran {
        let fault = match self {
            Event::Fails(fault) => fault,
            Event::Kills => Fault::Hang,
        };
        s3.rule(Rule::new(fault).skip(n - 1));
        if let Event::Fails(_) = self {
            return tool.run();
        }
        let mut running = tool.spawn();
        wait_until("the request is made, or the run is over", PATIENCE, || {
            s3.log().len() >= n as usize || !running.is_running()
        });
        if running.is_running() {
            running.signal(Signal::SIGKILL);
        }
        running.wait(PATIENCE)
    }
}

/// Whether a run ended with one of these codes, or was killed.
fn ended(ran: &Ran, codes: &[i32]) -> bool {
    ran.code.is_none_or(|code| codes.contains(&code))
}

/// Lets the bucket fail, or the tool be killed, at the n-th request, for n = 1, 2, 3, ... until a run has fewer; `after` each
/// without faults; a sample of the long rows unless all are asked for.
fn gone_from_each_request(what: &str, s3: &S3, tool: &dyn Fn() -> Tool, after: &mut dyn FnMut(&Ran, &str)) {
    let mut dice = Dice::new();
    let mut tried = 0;
    for event in EVENTS {
        let mut n = 1;
        loop {
            s3.heal();
            s3.forget();
            let ran = event.befalls(s3, n, &tool());
            let asked = s3.log().len();
            s3.heal();
            assert!(!ran.stderr.contains("panicked"), "{event:?} {n}\n{}", ran.report());
            after(&ran, &format!("{event:?} at request {n}"));
            if asked < n as usize {
                break;
            }
            tried += 1;
            assert!(n < 1000, "requests without end\n{}", ran.report());
            n += if all() {
                1
            } else {
                1 + dice.below(u64::from(n) / 2 + 8) as u32
            };
        }
    }
    println!("{what}: {tried} places tried");
    assert!(tried >= EVENTS.len(), "{what}: no request was ever failed");
}

/// A server with a bucket, and how to get in.
fn bucket(scratch: &Scratch) -> (S3, impl Fn(&S3) -> RepoOptions + use<>) {
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    let repository = move |s3: &S3| RepoOptions::new("offsite").in_s3(s3, "backups", &credentials);
    (s3, repository)
}

/// The site's configuration for tools that come in through another door, with this patience.
fn through(site: &Site, s3: &S3, door: &S3, patience: &str) -> impl Fn(&str) -> Tool + use<> {
    let text = fs::read_to_string(&site.config).unwrap();
    let text = text.replace(&s3.endpoint(), &door.endpoint());
    let lines = text.lines().map(|line| match line.starts_with("patience") {
        true => format!("patience = \"{patience}\""),
        false => line.to_owned(),
    });
    let path = site.dir.join("door.toml");
    account::write(&path, lines.collect::<Vec<_>>().join("\n"), 0o600);
    move |tool| Tool::new(tool).arg("--config").arg(&path)
}

#[test]
fn a_repository_is_created_once_wherever_its_creation_fails() {
    let scratch = Scratch::new("requests_init");
    let (s3, _) = bucket(&scratch);
    let bare = Bare::new("requests_init");
    let (place, local) = (
        s3.root.join("backups/offsite"),
        format!("file://{}", bare.repository.display()),
    );
    let bucket = bare.text.replace(&local, "s3://backups/offsite");
    bare.configure(&format!(
        "{}endpoint = \"{}\"\ncredentials_file = \"{}\"\n",
        bucket.replace("patience = \"1s\"", "patience = \"400ms\""),
        s3.endpoint(),
        scratch.path("credentials").display()
    ));
    gone_from_each_request("init", &s3, &|| bare.tool("init"), &mut |ran, when| {
        let said = ran.stdout.contains("created") || ran.code == Some(0);
        let identity = place.join("main/repository.json");
        assert!(
            !said || identity.is_file(),
            "{when}: said to be there\n{}",
            ran.report()
        );
        let before = fs::read(&identity).ok();
        let again = bare.tool("init").run().expect_code(0);
        let created = fs::read(&identity).unwrap();
        assert!(
            before.is_none_or(|before| before == created),
            "{when}: made anew\n{}",
            again.report()
        );
        bare.tool("info").run().expect_code(0);
        fs::remove_dir_all(&place).unwrap();
        for remembered in ["state", "spool"] {
            fs::remove_dir_all(bare.scratch.path(remembered)).unwrap();
            bare.scratch.create_dir(remembered);
        }
    });
}

#[test]
fn a_segment_is_stored_once_and_fetched_whole_wherever_the_bucket_goes_away() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("requests_wal");
    let (s3, repository) = bucket(&scratch);
    let archive = Archive::new(&server, vec![repository(&s3)], 2);
    let (primary, recovery) = (archive.pgdata("primary"), archive.pgdata("recovery"));
    let name = archive.segments[1].clone();
    let tool = through(&archive.site, &s3, &s3, "500ms");
    let forget = || {
        for object in archive.repo().matching(&name) {
            fs::remove_file(object).unwrap();
        }
        let _ = fs::remove_dir_all(archive.site.dir.join("spool/main"));
        archive.ready(&primary, &name);
    };
    forget();
    let push = || tool("archive-push").arg(format!("pg_wal/{name}")).cwd(&primary);
    gone_from_each_request("archive-push", &s3, &push, &mut |ran, when| {
        let stored = archive.repo().matching(&format!("/{name}.zst")).len();
        assert!(
            ran.code != Some(0) || stored == 1,
            "{when}: said to be stored\n{}",
            ran.report()
        );
        assert!(ended(ran, &[0, 75]), "{when}\n{}", ran.report());
        archive.push(&primary, &name).expect_code(0);
        archive.repo().wal(&name);
        archive.expect_whole(&recovery, &name);
        forget();
    });

    archive.push(&primary, &name).expect_code(0);
    let get = || {
        let _ = fs::remove_file(destination(&recovery));
        let tool = tool("archive-get").args([name.as_str(), "pg_wal/RECOVERYXLOG"]);
        tool.cwd(&recovery)
    };
    gone_from_each_request("archive-get", &s3, &get, &mut |ran, when| {
        match ran.code {
            Some(0) => assert!(
                fs::read(destination(&recovery)).unwrap() == archive.content(&name),
                "{when}"
            ),
            Some(200) => expect_nothing(&recovery, ran),
            None => {
                let found = fs::read(destination(&recovery)).ok();
                assert!(found.is_none_or(|found| found == archive.content(&name)), "{when}");
            }
            _ => panic!("{when}\n{}", ran.report()),
        }
        archive.expect_whole(&recovery, &name);
        let _ = fs::remove_dir_all(archive.site.dir.join("spool/main"));
    });
    let absent = archive.absent();
    let get = || {
        let tool = tool("archive-get").args([absent.as_str(), "pg_wal/RECOVERYXLOG"]);
        tool.cwd(&recovery)
    };
    gone_from_each_request("archive-get of what is not there", &s3, &get, &mut |ran, when| {
        assert!(ended(ran, &[1, 200]), "{when}\n{}", ran.report());
        if ran.code.is_none() {
            return;
        }
        let was_sure = !ran.stderr.contains("cannot fetch");
        assert_eq!(ran.code == Some(1), was_sure, "{when}\n{}", ran.report());
    });
}

fn begin(name: &str, scratch: &Scratch) -> Option<(S3, Story)> {
    let server = Server::need(15)?;
    let (s3, repository) = bucket(scratch);
    let story = Story::with(name, &server, Options::default(), |site| {
        let site = site.repository(repository(&s3));
        site.cluster_line("archive_wait = \"3s\"")
    });
    story
        .cluster
        .sql("CREATE TABLE t AS SELECT n, md5(n::text) AS what FROM generate_series(1, 20000) n");
    Some((s3, story))
}

#[test]
fn a_backup_is_there_and_whole_or_not_at_all_wherever_the_bucket_goes_away() {
    let scratch = Scratch::new("requests_backup");
    let Some((s3, story)) = begin("requests_backup", &scratch) else {
        return;
    };
    let door = s3.door(0);
    let tool = through(&story.site, &s3, &door, "700ms");
    let repo = story.site.repo().clone();
    let mut unsaid = 0;
    let backup = || tool("base-backup").args(["--type", "full"]);
    gone_from_each_request("base-backup", &door, &backup, &mut |ran, when| {
        let committed = story.committed();
        match (ran.code, committed.as_slice()) {
            (Some(0), [one]) => assert_eq!(*one, label(ran), "{when}"),
            (None | Some(1 | 75), []) => {}
            // Its last write was done, and only the answer was lost: a backup like any other.
            (None | Some(1 | 75), [one]) => {
                unsaid += 1;
                let restored = story.restored(&format!("unsaid{unsaid}"), &["--backup", one, "--target-immediate"]);
                assert!(restored.data().join("global/pg_control").is_file(), "{when}");
            }
            _ => panic!("{when}: {committed:?}\n{}", ran.report()),
        }
        for backup in repo.backups() {
            fs::remove_dir_all(repo.path(&format!("backup/{backup}"))).unwrap();
        }
        // That of a killed run ends by itself, later.
        let _ = fs::remove_dir_all(repo.path("lease"));
    });
    println!("{unsaid} were stored without anybody hearing of it");
    let end = story.cluster.checksum("postgres");
    story.backup();
    story.archive_all();
    assert_eq!(story.promoted("restored", &[]).checksum("postgres"), end);
}

#[test]
fn a_restored_directory_is_whole_or_cannot_be_started_wherever_the_bucket_goes_away() {
    let scratch = Scratch::new("requests_restore");
    let Some((s3, story)) = begin("requests_restore", &scratch) else {
        return;
    };
    story.backup();
    story.archive_all();
    let end = story.cluster.checksum("postgres");
    let tool = through(&story.site, &s3, &s3, "500ms");
    let to = story.scratch.path("restored");
    let restore = || tool("restore").arg("--to").arg(&to);
    gone_from_each_request("restore", &s3, &restore, &mut |ran, when| {
        let is_there = to.join("global/pg_control").exists();
        assert!(
            ran.code.is_none() || (ran.code == Some(0)) == is_there,
            "{when}\n{}",
            ran.report()
        );
        assert!(ended(ran, &[0, 1, 75]), "{when}\n{}", ran.report());
        let _ = fs::remove_dir_all(&to);
    });
    assert_eq!(story.promoted("restored", &[]).checksum("postgres"), end);
}

/// The objects of a repository below one of its folders, by path.
fn stored(dir: &Path, below: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.join("main").join(below)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() {
                folders.push(path);
            } else if name != "intent.json" {
                let key = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                found.insert(key, fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn a_repository_is_level_or_can_be_made_so_wherever_the_bucket_goes_away() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("requests_sync");
    let (s3, repository) = bucket(&scratch);
    let story = Story::begin("requests_sync", &server, Options::default());
    story
        .cluster
        .sql("CREATE TABLE t AS SELECT n, md5(n::text) AS what FROM generate_series(1, 2000) n");
    let backup = story.backup();
    story.archive_all();
    let local = story.site.repo().clone();
    let site = Site::named(&story.scratch, &story.cluster, "both")
        .shared(&local, RepoOptions::new("local"))
        .repository(repository(&s3));
    site.tool("init").run().expect_code(0);
    let target = s3.root.join("backups/offsite");
    let tool = through(&site, &s3, &s3, "400ms");
    let sync = || tool("sync");
    let parts = ["wal", "backup"];
    gone_from_each_request("sync", &s3, &sync, &mut |ran, when| {
        let level = || {
            parts
                .iter()
                .all(|part| stored(&local.dir, part) == stored(&target, part))
        };
        let committed = target.join(format!("main/backup/{backup}/backup.json")).is_file();
        let whole = stored(&local.dir, "backup") == stored(&target, "backup");
        assert!(
            !committed || whole,
            "{when}: backup.json does not come last\n{}",
            ran.report()
        );
        assert!(
            ran.code != Some(0) || level(),
            "{when}: said to be level\n{}",
            ran.report()
        );
        assert!(ended(ran, &[0, 1, 75]), "{when}\n{}", ran.report());
        if ran.code.is_none() {
            let _ = fs::remove_dir_all(target.join("main/lease"));
        }
        let again = site.tool("sync").run().expect_code(0);
        assert!(level(), "{when}: not level after another run\n{}", again.report());
        for part in ["wal", "backup", "lease"] {
            let _ = fs::remove_dir_all(target.join("main").join(part));
        }
    });
}

/// How long the server is away: ten seconds, or ten minutes where all is asked for.
fn away() -> Duration {
    Duration::from_secs(if all() { 600 } else { 10 })
}

/// Waits until `part` has been asked for in vain, takes the server away, and lets it come back on the same port.
fn goes_away(s3: &S3, door: S3, part: &str) -> S3 {
    wait_until(&format!("{part} is asked for"), PATIENCE, || {
        door.log().iter().any(|line| line.contains(part))
    });
    let port = door.port;
    drop(door);
    let gone = Instant::now();
    wait_until("the server was away long enough", away() * 2, || {
        gone.elapsed() >= away()
    });
    s3.door(port)
}

#[test]
fn a_server_that_is_away_is_waited_for_in_backup_restore_and_recovery() {
    let scratch = Scratch::new("requests_away");
    let Some((s3, story)) = begin("requests_away", &scratch) else {
        return;
    };
    let mut door = s3.door(0);
    let tool = through(&story.site, &s3, &door, if all() { "15m" } else { "60s" });

    story.step("in the middle of a backup");
    door.rule(Rule::new(Fault::Reset).method("PUT").part("/data/"));
    let running = tool("base-backup").args(["--type", "full"]).spawn();
    door = goes_away(&s3, door, "/data/");
    let ran = running.wait(PATIENCE).expect_code(0).expect_said("trying again");
    assert_eq!(story.committed(), [label(&ran)]);
    story.cluster.sql("INSERT INTO t VALUES (0, 'later')");
    story.archive_all();
    let end = story.cluster.checksum("postgres");

    story.step("in the middle of a restore");
    door.rule(Rule::new(Fault::Reset).method("GET").part("/data/"));
    let to = story.scratch.path("restored");
    let running = tool("restore").arg("--to").arg(&to).spawn();
    door = goes_away(&s3, door, "/data/");
    running.wait(PATIENCE).expect_code(0).expect_said("trying again");

    story.step("in the middle of a recovery");
    door.rule(Rule::new(Fault::Reset).method("GET").part("/wal/"));
    let restored = adopt(&story, &to);
    restored.start_without_waiting();
    let _door = goes_away(&s3, door, "/wal/");
    restored.wait_ready(PATIENCE);
    restored.wait_promoted(PATIENCE);
    assert_eq!(restored.checksum("postgres"), end);
}

fn adopt(story: &Story, to: &Path) -> Cluster {
    Cluster::adopt(&story.scratch, story.cluster.server(), to)
}
