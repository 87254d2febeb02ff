//! Follows the words of `docs/recover-by-hand.md`: runs the page's own shell blocks, in order, and compares what comes out.
//!
//! A block is run if its fence says `sh by-hand`; `set` marks the one whose values the reader changes, `time` those for
//! a recovery to a moment in the past. No program of pgkeep is on the path.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use system_tests::cluster::session::rows;
use system_tests::stand::need_program;
use system_tests::{Cluster, Contents, Options, Ran, RepoOptions, Scratch, Server, Site, Stop, Tool};

/// A shell block of the page.
struct Block {
    marks: Vec<String>,
    text: String,
}

impl Block {
    fn is(&self, mark: &str) -> bool {
        self.marks.iter().any(|other| other == mark)
    }
}

fn page() -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/recover-by-hand.md");
    let page = fs::read_to_string(path).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(info), None) => {
                let marks = info.split_whitespace().map(String::from).collect();
                open = Some(Block {
                    marks,
                    text: String::new(),
                });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks.retain(|block| block.is("by-hand"));
    assert!(blocks.len() >= 8, "the page has {} blocks to run", blocks.len());
    blocks
}

/// The page as one script, with the values of this test in place of the page's.
fn script(values: &[(&str, String)], moment: Option<&str>) -> String {
    // A block that fails must end the test, as it ends the reader's patience.
    let mut script = String::from("set -eu\n");
    for block in page() {
        if block.is("set") {
            let names: Vec<&str> = block
                .text
                .lines()
                .filter_map(|line| Some(line.split_once('=')?.0))
                .collect();
            let ours: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ours, "the page sets other variables than this test knows");
            for (name, value) in values {
                script.push_str(&format!("{name}='{value}'\n"));
            }
            continue;
        }
        match (block.is("time"), moment) {
            (true, None) => {}
            (true, Some(moment)) => {
                for line in block.text.lines() {
                    match line.starts_with("moment=") {
                        true => script.push_str(&format!("moment='{moment}'\n")),
                        false => script.push_str(&format!("{line}\n")),
                    }
                }
            }
            (false, _) => script.push_str(&block.text),
        }
    }
    script
}

/// A server with a tablespace, archived and backed up, then changed; stopped, and its tablespace gone.
struct Story {
    scratch: Scratch,
    cluster: Cluster,
    site: Site,
    /// At `moment`, which lies between two changes.
    then: Contents,
    moment: String,
    /// At the end of WAL.
    last: Contents,
}

impl Story {
    fn tell(name: &str, server: &Server, repository: RepoOptions, chain: u32) -> Story {
        let scratch = Scratch::new(name);
        let cluster = Cluster::create(&scratch, server, Options::default());
        let site = Site::new(&scratch, &cluster).repository(repository);
        cluster.start();
        site.tool("init").run().expect_code(0);
        site.archive(&cluster);
        let place = scratch.create_dir("tablespace-before");
        cluster.sql(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", place.display()));
        cluster.sql("CREATE TABLE inside AS SELECT n, repeat('x', 300) AS pad FROM generate_series(1, 20000) AS n");
        cluster.sql(
            "CREATE TABLE outside TABLESPACE elsewhere AS SELECT n, n::text AS t FROM generate_series(1, 20000) AS n",
        );
        site.tool("base-backup").run().expect_code(0);
        for link in 0..chain {
            cluster.sql(&format!(
                "UPDATE inside SET pad = pad || 'y' WHERE n % 997 = {link}; CREATE TABLE more{link} AS SELECT 1 AS n"
            ));
            cluster.sql("DELETE FROM outside WHERE n % 1999 = 0");
            let ran = site.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
            assert!(ran.stdout.contains("-incr-"), "{}", ran.report());
        }
        cluster.sql("INSERT INTO inside SELECT n, 'after the backup' FROM generate_series(1, 100) AS n");
        cluster.sql("UPDATE outside SET t = 'changed' WHERE n % 10 = 0");
        let then = cluster.checksum("postgres");
        let moment = cluster.query_one("SELECT clock_timestamp()");
        cluster.sql("DELETE FROM inside WHERE n % 2 = 0");
        cluster.sql("DROP TABLE outside");
        let last = cluster.checksum("postgres");
        let segment = cluster.switch_wal();
        cluster.wait_archived(&segment);
        cluster.stop(Stop::Fast);
        // Nothing of the old server may be touched: what is not there cannot be.
        fs::rename(&place, scratch.path("tablespace-gone")).unwrap();
        Story {
            scratch,
            cluster,
            site,
            then,
            moment,
            last,
        }
    }

    fn restore_dir(&self) -> PathBuf {
        self.scratch.path("by-hand")
    }

    /// Follows the page; the server it starts is stopped when the result is dropped.
    fn follow(&self, moment: Option<&str>) -> Restored<'_> {
        let repository = self.site.repo();
        let identity = repository.identity.as_ref().map(|path| path.display().to_string());
        let bin = self.cluster.server().bin.display().to_string();
        let values = [
            (
                "repository",
                repository
                    .path("")
                    .display()
                    .to_string()
                    .trim_end_matches('/')
                    .to_owned(),
            ),
            ("restore", self.restore_dir().display().to_string()),
            ("identity", identity.unwrap_or_default()),
            ("pg_bin", bin.clone()),
        ];
        let script = self.scratch.write("page.sh", script(&values, moment), 0o600);
        let restored = Restored { story: self };
        let tool = Tool::program("bash").arg(&script).cwd(self.scratch.dir());
        let ran = tool
            .env("PGHOST", self.cluster.socket_dir())
            .env("PGPORT", self.cluster.port().to_string())
            .env("PGUSER", "postgres")
            .run();
        let log = fs::read_to_string(self.restore_dir().join("log")).unwrap_or_default();
        assert_eq!(ran.code, Some(0), "{}\n{log}", ran.report());
        restored
    }

    /// Runs the command of the page that fetches WAL, as PostgreSQL does: in the data directory.
    fn fetch(&self, name: &str) -> Ran {
        let data = self.restore_dir().join("data");
        Tool::program(self.restore_dir().join("fetch-wal"))
            .args([name, "pg_wal/FETCHED"])
            .cwd(&data)
            .run()
    }
}

/// A server that the page started.
struct Restored<'a> {
    story: &'a Story,
}

impl Restored<'_> {
    /// The restored server has the old one's port and socket, so the old one's handle reaches it.
    fn contents(&self) -> Contents {
        self.story.cluster.checksum("postgres")
    }

    fn query(&self, query: &str) -> String {
        let mut client = self.story.cluster.client("postgres");
        rows(&mut client, query).remove(0).remove(0).unwrap_or_default()
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let data = self.story.restore_dir().join("data");
        if data.join("postmaster.pid").exists() {
            let stop = Tool::program(self.story.cluster.server().program("pg_ctl"));
            let _ = stop.arg("-D").arg(&data).args(["stop", "-w", "-m", "immediate"]).run();
        }
    }
}

fn tools_are_here() -> Option<Server> {
    for program in ["age", "zstd", "tar", "bash"] {
        need_program(program)?;
    }
    Server::need(15)
}

fn to_the_end(name: &str, repository: RepoOptions, chain: u32) {
    let Some(server) = tools_are_here() else { return };
    let story = Story::tell(name, &server, repository, chain);
    let restored = story.follow(None);
    assert_eq!(restored.contents(), story.last);
    assert_eq!(restored.query("SHOW archive_mode"), "off");
    assert_eq!(restored.query("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    assert!(
        !story.scratch.path("tablespace-before").exists(),
        "the old tablespace came back"
    );
}

fn to_a_moment(name: &str, repository: RepoOptions, chain: u32) {
    let Some(server) = tools_are_here() else { return };
    let story = Story::tell(name, &server, repository, chain);
    let restored = story.follow(Some(&story.moment));
    assert_eq!(restored.contents(), story.then);
    let oid = restored.query("SELECT oid FROM pg_tablespace WHERE spcname = 'elsewhere'");
    assert_eq!(
        restored.query(&format!("SELECT pg_tablespace_location({oid})")),
        story.restore_dir().join("tablespace").join(&oid).display().to_string()
    );
}

#[test]
fn the_page_recovers_a_clear_repository_to_the_end_of_wal() {
    to_the_end("by_hand_clear", RepoOptions::new("local"), 0);
}

#[test]
fn the_page_recovers_an_encrypted_repository_to_the_end_of_wal() {
    to_the_end("by_hand_encrypted", RepoOptions::new("local").encrypted(), 0);
}

#[test]
fn the_page_recovers_a_clear_repository_to_a_moment_in_the_past() {
    to_a_moment("by_hand_clear_time", RepoOptions::new("local"), 2);
}

#[test]
fn the_page_recovers_an_encrypted_repository_to_a_moment_in_the_past() {
    to_a_moment("by_hand_encrypted_time", RepoOptions::new("local").encrypted(), 0);
}

#[test]
fn the_page_recovers_from_the_last_link_of_a_chain() {
    to_the_end("by_hand_chain", RepoOptions::new("local"), 3);
}

#[test]
fn the_page_recovers_from_an_encrypted_chain() {
    to_the_end("by_hand_sealed_chain", RepoOptions::new("local").encrypted(), 2);
}

#[test]
fn the_pages_command_says_absent_only_of_what_it_knows_to_be_absent() {
    let Some(server) = tools_are_here() else { return };
    for options in [RepoOptions::new("local"), RepoOptions::new("local").encrypted()] {
        let story = Story::tell("by_hand_fetch", &server, options, 0);
        drop(story.follow(None));
        absent_or_unknown(&story);
    }
}

fn absent_or_unknown(story: &Story) {
    let repository = story.site.repo();
    let fetched = story.restore_dir().join("data/pg_wal/FETCHED");
    let backup = fs::read_to_string(repository.matching("/backup.json").remove(0)).unwrap();
    let backup: serde_json::Value = serde_json::from_str(&backup).unwrap();
    let name = backup["wal"]["last"].as_str().unwrap();
    let absent = [
        "0000000100000000000000FE",
        "0000000100000ABC00000001",
        "00000009.history",
    ];

    story.fetch(name).expect_code(0);
    assert_eq!(fs::metadata(&fetched).unwrap().len(), 16 << 20);
    fs::remove_file(&fetched).unwrap();
    absent.iter().for_each(|name| drop(story.fetch(name).expect_code(1)));

    let unknown = |why: &str| {
        for name in absent.iter().copied().chain([name]) {
            let ran = story.fetch(name);
            assert_eq!(ran.code, Some(200), "{why}\n{}", ran.report());
        }
        assert!(!fetched.exists(), "{why}");
    };
    let away = story.scratch.path("away");
    fs::rename(&repository.dir, &away).unwrap();
    unknown("the repository is not there");
    system_tests::account::create_dir(&repository.dir, 0o700);
    unknown("an empty mount point");
    fs::remove_dir(&repository.dir).unwrap();
    fs::rename(&away, &repository.dir).unwrap();

    let wal = repository.path("wal");
    fs::rename(&wal, &away).unwrap();
    unknown("the WAL is not there");
    fs::rename(&away, &wal).unwrap();
    let system = fs::read_dir(&wal).unwrap().next().unwrap().unwrap().path();
    fs::rename(&system, &away).unwrap();
    system_tests::account::create_dir(&system, 0o700);
    unknown("an empty mount point in place of the WAL");
    fs::remove_dir(&system).unwrap();
    fs::rename(&away, &system).unwrap();

    let object = repository.wal(name);
    let later = object.with_file_name("0000000100000000000000EE.zst");
    fs::rename(&object, &away).unwrap();
    system_tests::account::write(&later, "", 0o400);
    let ran = story.fetch(name).expect_code(200).expect_said("a gap: ");
    assert!(!fetched.exists(), "{}", ran.report());
    fs::remove_file(&later).unwrap();
    fs::rename(&away, &object).unwrap();
    let whole = fs::read(&object).unwrap();
    // Beginning, digest, middle, and cut off.
    let mut damaged: Vec<Vec<u8>> = [0, 40, whole.len() / 2]
        .iter()
        .map(|at| {
            let mut bytes = whole.clone();
            bytes[*at] ^= 0x10;
            bytes
        })
        .collect();
    damaged.extend([0, 68, whole.len() / 2].map(|length| whole[..length].to_vec()));
    for bytes in damaged {
        fs::remove_file(&object).unwrap();
        system_tests::account::write(&object, bytes, 0o400);
        let ran = story.fetch(name);
        assert_eq!(ran.code, Some(200), "{}", ran.report());
        assert!(!fetched.exists());
    }
    fs::remove_file(&object).unwrap();
    system_tests::account::write(&object, &whole, 0o400);
    story.fetch(name).expect_code(0);
    let left = fs::read_dir(story.restore_dir().join("data/pg_wal")).unwrap().flatten();
    let left: Vec<_> = left
        .filter(|entry| entry.file_name().to_string_lossy().contains(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_blocks_of_the_page_pass_shellcheck() {
    if need_program("shellcheck").is_none() {
        return;
    }
    let scratch = Scratch::new("by_hand_shellcheck");
    let blocks: String = page().iter().map(|block| block.text.as_str()).collect();
    let path = scratch.write("page.sh", format!("#!/bin/bash\n{blocks}"), 0o600);
    Tool::program("shellcheck")
        .args(["-S", "warning"])
        .arg(path)
        .run()
        .expect_code(0);
}
