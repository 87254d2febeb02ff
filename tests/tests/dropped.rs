//! While repositories are away nothing is dropped, unless a limit was set; then loudly, and what was dropped is told.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

use system_tests::{Cluster, Options, Ran, RepoOptions, S3, Scratch, Server, Site};

/// A cluster whose segments wait, and its site with a repository in a bucket and one on disk; the test is the archiver.
struct Waiting {
    cluster: Cluster,
    site: Site,
    root: PathBuf,
    server: Option<S3>,
    port: u16,
    segments: Vec<String>,
}

fn waiting(name: &str, limit: &str, segments: usize) -> Option<Waiting> {
    let server = Server::need(15)?;
    let scratch = Scratch::new(name);
    let cluster = Cluster::create(&scratch, &server, Options::default());
    cluster.conf(&["archive_mode = on", "archive_command = 'false'", "autovacuum = off"]);
    let root = scratch.path("s3");
    let bucket = S3::start(&root, "backups");
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    let site = Site::new(&scratch, &cluster)
        .repository(RepoOptions::new("away").in_s3(&bucket, "backups", &credentials))
        .repository(RepoOptions::new("local").line("required = false"))
        .set("push_batch", "1")
        .cluster_line(&format!("wal_drop_limit = \"{limit}\""));
    cluster.start();
    site.tool("init").run().expect_code(0);
    let segments = (0..segments)
        .map(|round| {
            cluster.sql(&format!("CREATE TABLE t{round} (i int)"));
            cluster.switch_wal()
        })
        .collect();
    Some(Waiting {
        cluster,
        site,
        root,
        port: bucket.port,
        server: Some(bucket),
        segments,
    })
}

impl Waiting {
    fn push(&self, name: &str) -> Ran {
        let path = format!("pg_wal/{name}");
        self.site.tool("archive-push").arg(path).cwd(self.cluster.data()).run()
    }

    /// What PostgreSQL does when archive_command has returned 0.
    fn archived(&self, name: &str) {
        fs::remove_file(self.cluster.data().join(format!("pg_wal/archive_status/{name}.ready"))).unwrap();
    }

    fn note(&self) -> PathBuf {
        self.site.state().join("main/dropped-wal.json")
    }
}

#[test]
fn without_a_limit_nothing_is_dropped() {
    let Some(mut waiting) = waiting("dropped_never", "0", 4) else {
        return;
    };
    waiting.server = None;
    for name in &waiting.segments {
        waiting.push(name).expect_code(75);
    }
    assert!(!waiting.note().exists());
    waiting.server = Some(S3::start_on(&waiting.root, waiting.port));
    for name in &waiting.segments {
        waiting.push(name).expect_code(0);
        assert!(
            waiting.site.repos.iter().all(|repo| repo.has_wal(name)),
            "{name} is everywhere"
        );
    }
}

#[test]
fn beyond_the_limit_a_segment_is_dropped_loudly_and_every_repository_is_told() {
    // Three segments of 16 MiB are within it, four are not.
    let Some(mut waiting) = waiting("dropped_told", "60MB", 5) else {
        return;
    };
    let names = waiting.segments.clone();
    waiting.server = None;
    for name in &names[..2] {
        waiting
            .push(name)
            .expect_code(0)
            .expect_said(&format!("WAL {name} IS DROPPED"))
            .expect_said("until the next full backup");
        waiting.archived(name);
    }
    waiting.push(&names[2]).expect_code(75);
    let history = waiting.cluster.data().join("pg_wal/00000002.history");
    system_tests::account::write(&history, "1\t0/3000000\ttest\n", 0o600);
    for name in &names {
        let ready = waiting
            .cluster
            .data()
            .join(format!("pg_wal/archive_status/{name}.ready"));
        system_tests::account::write(&ready, "", 0o600);
    }
    waiting.push("00000002.history").expect_code(75);
    let noted = fs::read_to_string(waiting.note()).unwrap();
    assert!(
        noted.contains(&format!("\"first\":\"{}\",\"last\":\"{}\"", names[0], names[1])),
        "{noted}"
    );

    // Back again: what is offered is stored, and the gap is written down wherever the cluster is kept.
    waiting.server = Some(S3::start_on(&waiting.root, waiting.port));
    waiting.push(&names[2]).expect_code(0);
    assert!(!waiting.note().exists(), "everybody knows");
    for repo in &waiting.site.repos {
        let gaps: Vec<PathBuf> = repo.matching("-gap.json");
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        let event = fs::read_to_string(&gaps[0]).unwrap();
        assert!(event.contains(&names[0]) && event.contains(&names[1]), "{event}");
    }
    waiting.push(&names[3]).expect_code(0);
    assert_eq!(waiting.site.repos[1].matching("-gap.json").len(), 1, "it is told once");
}
