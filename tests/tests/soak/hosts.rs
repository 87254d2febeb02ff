//! The hosts of one cluster: a server, its configuration, and where its tablespace lies.

use std::path::{Path, PathBuf};

use system_tests::story::text;
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Cluster, RepoOptions, Scratch, Site, Stop, Tool, account};

/// One host.
#[derive(Debug)]
pub struct Host {
    // The server goes before its files.
    pub cluster: Cluster,
    pub site: Site,
    pub space: PathBuf,
}

impl Host {
    /// A standby of this host, made from the newest backup; it streams.
    pub fn standby(&self, scratch: &Scratch, number: u64) -> Host {
        let (data, space) = (
            scratch.path(&format!("host{number}")),
            scratch.path(&format!("space{number}")),
        );
        let conninfo = self.conninfo();
        let mapped = format!("{}={}", self.space.display(), space.display());
        let arguments = ["--standby", "--primary-conninfo", &conninfo, "--tablespace", &mapped];
        self.site
            .tool("restore")
            .arg("--to")
            .arg(&data)
            .args(arguments)
            .run()
            .expect_code(0);
        let host = self.enlist(scratch, number, &data, space);
        host.cluster.start();
        host
    }

    /// This host again, after it was rewound to `primary`, which it follows now.
    pub fn rewound(self, primary: &Host, scratch: &Scratch, number: u64) -> Host {
        self.cluster.stop(Stop::Fast);
        let source = format!("{} dbname=postgres", primary.conninfo());
        let (data, space) = (self.cluster.data().to_path_buf(), self.space.clone());
        Tool::program(self.cluster.server().program("pg_rewind"))
            .arg("--target-pgdata")
            .arg(&data)
            .args(["--source-server", &source])
            .run()
            .expect_code(0);
        account::write(&data.join("standby.signal"), "", 0o600);
        let host = primary.enlist(scratch, number, &data, space);
        host.cluster
            .conf(&[format!("primary_conninfo = '{}'", primary.conninfo())]);
        host.cluster.start();
        host
    }

    /// A host with this data directory that shares this one's repository.
    fn enlist(&self, scratch: &Scratch, number: u64, data: &Path, space: PathBuf) -> Host {
        let cluster = Cluster::adopt(scratch, self.cluster.server(), data);
        let site = Site::named(scratch, &cluster, &format!("site{number}"))
            .set("patience", "\"30s\"")
            .cluster_line(&format!("primary = \"{}\"", self.conninfo()))
            .shared(self.site.repo(), RepoOptions::new("local"));
        site.archive(&cluster);
        cluster.conf(&[format!("restore_command = '{}'", site.restore_command())]);
        Host { cluster, site, space }
    }

    fn conninfo(&self) -> String {
        let cluster = &self.cluster;
        format!(
            "host={} port={} user=postgres",
            text(&cluster.socket_dir()),
            cluster.port()
        )
    }

    /// Waits until this standby has replayed everything that the primary has written.
    pub fn catch_up(&self, primary: &Cluster) {
        let end = primary.current_lsn();
        let there = || {
            self.cluster
                .query_one(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"))
                == "t"
        };
        wait_until("the standby has replayed everything", PATIENCE, there);
    }
}
