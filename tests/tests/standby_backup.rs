//! Backups taken on a standby, whose WAL the primary archives.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use system_tests::cluster::Stop;
use system_tests::patroni::Patroni;
use system_tests::story::{archive_all, text};
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Cluster, Options, RepoOptions, Server, Site, Story, Tool, each_major};

/// A primary that archives, and a standby of it on another host, each with its own configuration and one repository.
struct Pair {
    // The standby goes before the primary and the files.
    standby: Cluster,
    host: Site,
    story: Story,
    full: String,
}

impl Pair {
    /// The pair, with a full backup of the primary; these lines are in the standby's configuration.
    fn begin(name: &str, server: &Server, lines: &[&str]) -> Pair {
        let story = Story::begin(name, server, Options::default());
        story.cluster.pgbench_init(3);
        story
            .cluster
            .sql("CREATE TABLE big AS SELECT n, repeat(md5(n::text), 10) AS long FROM generate_series(1, 60000) n");
        let full = story.backup();
        let standby = story.restored(
            "standby",
            &["--standby", "--primary-conninfo", &story.cluster.conninfo()],
        );
        standby.start();
        let mut host = Site::named(&story.scratch, &standby, "standby-host").set("patience", "\"30s\"");
        for line in lines {
            host = host.cluster_line(line);
        }
        let host = host.shared(story.site.repo(), RepoOptions::new("local"));
        Pair {
            standby,
            host,
            story,
            full,
        }
    }

    /// The same, where the standby's configuration says how to reach the primary.
    fn told(name: &str, server: &Server) -> Pair {
        let pair = Pair::begin(name, server, &[]);
        let line = format!("primary = \"{}\"", pair.story.cluster.conninfo());
        let Pair {
            standby,
            host,
            story,
            full,
        } = pair;
        let host = host.cluster_line(&line);
        Pair {
            standby,
            host,
            story,
            full,
        }
    }

    fn replayed(&self) {
        let end = self.story.cluster.current_lsn();
        let there = || {
            self.standby
                .query_one(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"))
                == "t"
        };
        wait_until("the standby has replayed everything", PATIENCE, there);
    }

    fn backup(&self, kind: &str) -> Tool {
        self.host.tool("base-backup").args(["--type", kind, "--format", "json"])
    }

    fn change(&self, round: u32) {
        self.story.cluster.pgbench_run(2, 5);
        self.story.cluster.sql(&format!(
            "UPDATE big SET long = long || 'x' WHERE n % 20000 = {round};
             CREATE TABLE fresh_{round} AS SELECT generate_series(1, 1000) AS n;
             DELETE FROM big WHERE n > 60000 - 1000 * {round}"
        ));
        self.story.cluster.sql("VACUUM big");
    }
}

/// What a backup says of itself.
fn made(ran: &system_tests::Ran) -> Value {
    let mut said: Value = serde_json::from_str(&ran.stdout).unwrap();
    said["backup"].take()
}

fn label_of(said: &Value) -> String {
    said["label"].as_str().unwrap().to_owned()
}

fn document(story: &Story, label: &str) -> Value {
    let path = story.site.repo().path(&format!("backup/{label}/backup.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

each_major!(a_chain_over_primary_and_standby_comes_back: 13 14 15 16 17 18);
fn a_chain_over_primary_and_standby_comes_back(server: &Server) {
    let pair = Pair::told("over_both", server);
    let story = &pair.story;
    let primary = &story.cluster;
    let mut links = Vec::new();

    story.step("an incremental backup of the standby leans on the primary's full one");
    pair.change(1);
    pair.replayed();
    let expected = primary.checksum("postgres");
    let said = made(&pair.backup("incr").arg("--audit").run().expect_code(0));
    let label = label_of(&said);
    println!("{label}: {} of {} read", said["read_bytes"], said["size_bytes"]);
    let kept = document(story, &label);
    assert_eq!(
        (&kept["role"], &kept["base"]),
        (&"standby".into(), &pair.full.as_str().into())
    );
    assert_eq!(said["audit"]["unnamed_blocks"], 0, "{said}");
    links.push((label.clone(), expected));

    story.step("one of the primary leans on the standby's");
    pair.change(2);
    let expected = primary.checksum("postgres");
    let ran = story
        .tool("base-backup")
        .args(["--type", "incr", "--format", "json"])
        .run()
        .expect_code(0);
    let said = made(&ran);
    let second = label_of(&said);
    assert_eq!(document(story, &second)["base"], label.as_str());
    assert!(
        said["read_bytes"].as_u64().unwrap() * 2 < said["size_bytes"].as_u64().unwrap(),
        "{said}"
    );
    links.push((second.clone(), expected));

    story.step("and one of the standby on that");
    pair.change(3);
    pair.replayed();
    let expected = primary.checksum("postgres");
    let said = made(&pair.backup("incr").run().expect_code(0));
    let third = label_of(&said);
    assert_eq!(document(story, &third)["base"], second.as_str());
    assert!(
        said["read_bytes"].as_u64().unwrap() * 2 < said["size_bytes"].as_u64().unwrap(),
        "{said}"
    );
    links.push((third, expected));

    story.step("a full one of the standby while the primary works");
    let load = primary.pgbench_background(2, 60);
    let said = made(&pair.backup("full").run().expect_code(0));
    let busy = label_of(&said);
    load.stop(primary);
    archive_all(primary);
    let end = primary.checksum("postgres");

    for (link, expected) in &links {
        story.step(&format!("{link} comes back"));
        let restored = story.promoted(
            link,
            &["--backup", link, "--target-immediate", "--target-action", "promote"],
        );
        assert_eq!(&restored.checksum("postgres"), expected, "{link}");
        restored.stop(Stop::Fast);
    }
    story.step("the busy one comes back, at its own end and at the end of WAL");
    let arguments = [
        "--backup",
        busy.as_str(),
        "--target-immediate",
        "--target-action",
        "promote",
    ];
    let restored = story.promoted("consistent", &arguments);
    restored.checksum("postgres");
    restored.stop(Stop::Fast);
    let restored = story.promoted("end", &["--backup", &busy]);
    assert_eq!(restored.checksum("postgres"), end);
}

#[test]
fn the_primary_is_found_by_patroni_and_may_leave_the_work_to_a_standby() {
    let Some(server) = Server::need(15) else { return };
    let patroni = Patroni::clear(false);
    let pair = Pair::begin("by_patroni", &server, &[&format!("patroni = \"{}\"", patroni.url)]);
    let story = &pair.story;
    let (socket, port) = (text(&story.cluster.socket_dir()), story.cluster.port());
    let leader =
        format!(r#"{{"name":"a","role":"leader","state":"running","host":"{socket}","port":{port},"timeline":1}}"#);
    let replica = r#"{"name":"b","role":"replica","state":"streaming","host":"10.0.0.2","port":5432,"lag":0}"#;
    let prefer = |site: &Site| {
        site.tool("base-backup")
            .args(["--only-on", "prefer-standby", "--type", "full"])
    };

    story.step("the primary leaves it to the standby");
    let members = |listed: &str| patroni.set_members(&format!(r#"{{"members":[{listed}],"scope":"c"}}"#));
    members(&format!("{leader},{replica}"));
    let primary = Site::named(&story.scratch, &story.cluster, "primary-host")
        .cluster_line(&format!("patroni = \"{}\"", patroni.url))
        .shared(story.site.repo(), RepoOptions::new("local"));
    patroni.set_leads(true);
    prefer(&primary).run().expect_code(0).expect_said("a standby runs");
    assert_eq!(story.committed().len(), 1);

    story.step("which takes it, and has the leader end the segment");
    patroni.set_leads(false);
    prefer(&pair.host).run().expect_code(0);
    assert_eq!(story.committed().len(), 2);
    pair.host
        .tool("base-backup")
        .args(["--only-on", "primary"])
        .run()
        .expect_code(0)
        .expect_said("this server is a standby");

    story.step("with no standby left the primary takes it");
    members(&leader);
    patroni.set_leads(true);
    prefer(&primary).run().expect_code(0);
    assert_eq!(story.committed().len(), 3);

    story.step("without a leader there is no backup of the standby");
    members(replica);
    patroni.set_leads(false);
    prefer(&pair.host).run().expect_code(75).expect_said("knows no primary");
    assert_eq!(story.committed().len(), 3);
}

#[test]
fn without_a_primary_to_ask_it_waits_so_long_and_says_what_to_do() {
    let Some(server) = Server::need(15) else { return };
    let pair = Pair::begin("unasked", &server, &["archive_wait = \"3s\""]);
    let story = &pair.story;
    story.step("WAL of a primary at rest does not come");
    // The standby's restart point lies in a segment that nobody ends.
    pair.change(1);
    story.cluster.checkpoint();
    pair.replayed();
    pair.backup("full")
        .run()
        .expect_code(1)
        .expect_said("`primary` in the configuration");
    assert_eq!(story.committed().len(), 1);

    story.step("that of one that ends its segments does");
    story.cluster.conf(&["archive_timeout = 1"]);
    story.cluster.reload();
    // PostgreSQL ends a segment in which something was written.
    let load = story.cluster.pgbench_background(1, 120);
    let label = label_of(&made(&pair.backup("full").run().expect_code(0)));
    load.stop(&story.cluster);
    archive_all(&story.cluster);
    let restored = story.promoted("back", &["--backup", &label]);
    assert_eq!(restored.checksum("postgres"), story.cluster.checksum("postgres"));
}

#[test]
fn a_primary_that_is_away_or_anothers_is_named() {
    let Some(server) = Server::need(15) else { return };
    let pair = Pair::told("away", &server);
    let story = &pair.story;

    story.step("another cluster's primary");
    let other = Cluster::started(&story.scratch, &server, Options::default());
    let wrong = Site::named(&story.scratch, &pair.standby, "wrong")
        .cluster_line(&format!("primary = \"{}\"", other.conninfo()))
        .shared(story.site.repo(), RepoOptions::new("local"));
    let backup = |site: &Site| site.tool("base-backup").args(["--type", "full"]).run();
    backup(&wrong).expect_code(2).expect_said("system identifier");

    story.step("the standby itself");
    let itself = Site::named(&story.scratch, &pair.standby, "itself")
        .cluster_line(&format!("primary = \"{}\"", pair.standby.conninfo()))
        .shared(story.site.repo(), RepoOptions::new("local"));
    backup(&itself)
        .expect_code(75)
        .expect_said("in recovery, but a primary is needed");

    story.step("a primary that is down");
    story.cluster.stop(Stop::Fast);
    backup(&pair.host).expect_code(75).expect_said("connect to the primary");
    assert_eq!(story.committed().len(), 1);
}

#[test]
fn a_promotion_ends_the_backup() {
    let Some(server) = Server::need(15) else { return };
    let pair = Pair::told("promoted", &server);
    let story = &pair.story;
    story.cluster.sql(
        "CREATE TABLE noise AS SELECT n, (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 20) m) AS long
         FROM generate_series(1, 150000) n",
    );
    pair.replayed();
    let mut running = pair.backup("full").args(["--jobs", "1"]).spawn();
    wait_until("PostgreSQL's backup has started", PATIENCE, || {
        running.stderr().contains("backup started at")
    });
    running.signal(Signal::SIGSTOP);
    assert!(running.is_running());
    assert!(!running.stderr().contains("backup stopped at"), "{}", running.stderr());
    pair.standby.promote();
    running.signal(Signal::SIGCONT);
    running.wait(PATIENCE).expect_code(75).expect_said("promoted");
    assert_eq!(story.committed().len(), 1);
}

#[test]
fn a_standby_that_lags_behind_the_base_waits_and_then_says_so() {
    let Some(server) = Server::need(15) else { return };
    let pair = Pair::told("lagging", &server);
    let story = &pair.story;
    pair.standby.sql("SELECT pg_wal_replay_pause()");
    pair.change(1);
    let base = story.backup();

    story.step("it does not catch up");
    let impatient = Site::named(&story.scratch, &pair.standby, "impatient")
        .cluster_line(&format!("primary = \"{}\"", story.cluster.conninfo()))
        .cluster_line("archive_wait = \"2s\"")
        .shared(story.site.repo(), RepoOptions::new("local"));
    let ran = impatient.tool("base-backup").args(["--type", "incr"]).run();
    ran.expect_code(75).expect_said(&base).expect_said("lag");

    story.step("it catches up while the backup waits");
    let running = pair.backup("incr").spawn();
    wait_until("the backup has begun", Duration::from_secs(60), || {
        running.stderr().contains(&format!("it leans on {base}"))
    });
    pair.standby.sql("SELECT pg_wal_replay_resume()");
    let said = made(&running.wait(PATIENCE * 2).expect_code(0));
    let label = label_of(&said);
    assert_eq!(document(story, &label)["base"], base.as_str());
    let restored = story.promoted("caught_up", &["--backup", &label]);
    assert_eq!(restored.checksum("postgres"), story.cluster.checksum("postgres"));
}
