//! A story about backup and restore, told in titled steps: a cluster that archives, its site, what is done with them.
//!
//! Knows the order in which things must happen before there can be a backup. Promises that a failed story shows the
//! titles of the steps before the failure. Leaves what is to be expected to the tests.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cluster::Stop;
use crate::site::Site;
use crate::tool::{Ran, Tool};
use crate::wait::{PATIENCE, wait_until};
use crate::{Cluster, Options, RepoOptions, Scratch, Server};

/// A running cluster that archives into its repositories.
#[derive(Debug)]
pub struct Story {
    // The order of the fields is the order in which they go: the server before its files.
    /// The cluster.
    pub cluster: Cluster,
    /// Its configuration.
    pub site: Site,
    /// Where everything is.
    pub scratch: Scratch,
    start: Instant,
}

impl Story {
    /// A story with the repository `local`, in clear.
    pub fn begin(name: &str, server: &Server, options: Options) -> Story {
        Story::with(name, server, options, |site| site.repository(RepoOptions::new("local")))
    }

    /// A story with repositories and settings of one's own.
    pub fn with(name: &str, server: &Server, options: Options, set_up: impl FnOnce(Site) -> Site) -> Story {
        Story::within(Scratch::new(name), server, options, set_up)
    }

    /// As [`Story::with`], in a directory where something is already.
    pub fn within(scratch: Scratch, server: &Server, options: Options, set_up: impl FnOnce(Site) -> Site) -> Story {
        let start = Instant::now();
        let cluster = Cluster::create(&scratch, server, options);
        // Recoveries end where the test says, not at a record that the server wrote for itself meanwhile.
        cluster.conf(&["autovacuum = off"]);
        // Time enough for a large segment on a busy machine.
        let site = set_up(Site::new(&scratch, &cluster).set("patience", "\"30s\""));
        site.archive(&cluster);
        cluster.start();
        site.tool("init").run().expect_code(0);
        let story = Story {
            cluster,
            site,
            scratch,
            start,
        };
        story.step("a cluster archives into a new repository");
        story
    }

    /// Begins a step. Shown if the test fails.
    pub fn step(&self, title: &str) {
        println!("[{:6.2} s] {title}", self.start.elapsed().as_secs_f64());
    }

    /// A tool with the story's configuration.
    pub fn tool(&self, name: &str) -> Tool {
        self.site.tool(name)
    }

    /// Takes a good full backup and returns its label.
    pub fn backup(&self) -> String {
        label(&self.tool("base-backup").args(["--type", "full"]).run().expect_code(0))
    }

    /// Finishes the current segment and waits until it, and so all before it, is archived.
    pub fn archive_all(&self) {
        archive_all(&self.cluster);
    }

    /// Runs a restore that must succeed and returns what came of it, not started.
    pub fn restored(&self, name: &str, arguments: &[&str]) -> Cluster {
        let to = self.scratch.path(name);
        self.restore_to(&to, arguments).run().expect_code(0);
        Cluster::adopt(&self.scratch, self.cluster.server(), &to)
    }

    /// A restore into a directory, not run.
    pub fn restore_to(&self, to: &Path, arguments: &[&str]) -> Tool {
        self.tool("restore").arg("--to").arg(to).args(arguments)
    }

    /// Restores, starts, and waits until recovery has ended with a promotion.
    pub fn promoted(&self, name: &str, arguments: &[&str]) -> Cluster {
        let restored = self.restored(name, arguments);
        restored.start();
        restored.wait_promoted(PATIENCE);
        restored
    }

    /// Two incremental backups on top of the last one; the last comes back, over what `kept` holds of an earlier restore, and everything that is
    /// stored is read and found whole. `kept` is stopped.
    pub fn chain_over(&self, kept: &Cluster) {
        let mut link = String::new();
        for round in 0..2 {
            self.step(&format!("incremental backup {round}"));
            self.cluster.pgbench_run(2, 20);
            self.cluster.sql(&format!(
                "CREATE TABLE link_{round} AS SELECT generate_series(1, 5000) AS n"
            ));
            let ran = self.tool("base-backup").args(["--type", "incr"]).run().expect_code(0);
            ran.clone().expect_said("changed blocks are named by");
            link = label(&ran);
        }
        let expected = self.cluster.checksum("postgres");
        self.archive_all();

        self.step("restored over what is there");
        kept.stop(Stop::Fast);
        let arguments = ["--delta", "--backup", &link];
        let ran = self.restore_to(kept.data(), &arguments).run().expect_code(0);
        ran.expect_said("were there already");
        kept.start();
        kept.wait_promoted(PATIENCE);
        assert_eq!(kept.checksum("postgres"), expected);

        self.step("everything that is stored is read and found whole");
        self.tool("verify").arg("--read-data").run().expect_code(0);
    }

    /// The committed backups of the first repository.
    pub fn committed(&self) -> Vec<String> {
        let repo = self.site.repo();
        let committed = |label: &String| repo.path(&format!("backup/{label}/backup.json")).is_file();
        repo.backups().into_iter().filter(committed).collect()
    }

    /// A path of the scratch directory, as an argument.
    pub fn place(&self, below: &str) -> String {
        text(&self.scratch.path(below))
    }
}

/// Finishes the current segment of a cluster and waits until it is archived.
pub fn archive_all(cluster: &Cluster) {
    let segment = cluster.switch_wal();
    cluster.wait_archived(&segment);
}

/// The label that base-backup says first.
pub fn label(ran: &Ran) -> String {
    let label = ran.stdout.split(':').next().unwrap_or_default();
    let typed = ["-full-", "-diff-", "-incr-"].iter().any(|kind| label.contains(kind));
    assert!(typed, "no label is said\n{}", ran.report());
    label.to_owned()
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.to_str()
        .unwrap_or_else(|| panic!("{}: not UTF-8", path.display()))
        .to_owned()
}

/// Stops a cluster and moves its directory aside; its old place, which is returned, is free for a restore.
pub fn put_aside(cluster: &Cluster, aside: &Path) -> PathBuf {
    if cluster.is_running() {
        cluster.stop(Stop::Fast);
    }
    let place = cluster.data().to_path_buf();
    std::fs::rename(&place, aside).unwrap_or_else(|error| panic!("move {}: {error}", place.display()));
    place
}

/// Waits until recovery has paused at its target.
pub fn wait_paused(cluster: &Cluster) {
    let paused = || cluster.in_recovery() && cluster.query_one("SELECT pg_is_wal_replay_paused()") == "t";
    wait_until("recovery has paused at its target", PATIENCE, paused);
}

/// A document of the repository as a later pgkeep may write it: in format 2.
pub fn newer_format(document: &str) -> String {
    let newer = document.replace("\"format\":1", "\"format\":2");
    assert_ne!(document, newer, "{document}");
    newer
}

/// Whether the heavy variants run: `PGKEEP_ALL=1`.
pub fn all() -> bool {
    std::env::var("PGKEEP_ALL").is_ok_and(|all| all == "1")
}
