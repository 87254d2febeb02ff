//! The hosts of one cluster: a server, its configuration, and where its tablespace lies.

use std::path::{Path, PathBuf};

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
        let conninfo = self.cluster.conninfo();
        let mapped = self.mapped(&space);
        let timeline = self.timeline();
        let follow = [
            "--standby",
            "--primary-conninfo",
            &conninfo,
            "--target-timeline",
            &timeline,
        ];
        let arguments = ["--tablespace", &mapped, "--archive-mode", "keep"];
        self.site
            .tool("restore")
            .arg("--to")
            .arg(&data)
            .args(follow)
            .args(arguments)
            .run()
            .expect_code(0);
        let host = self.enlist(scratch, number, &data, space);
        host.cluster.start();
        host
    }

    /// Whether the stand has what it takes: the program of the server's version, and changes of hint bits in WAL.
    pub fn can_be_rewound(&self) -> bool {
        let logged = "SELECT current_setting('data_checksums') = 'on' OR current_setting('wal_log_hints') = 'on'";
        self.cluster.server().program("pg_rewind").is_file() && self.cluster.query_one(logged) == "t"
    }

    /// This host again, after it was rewound to `primary`, which it follows now.
    pub fn rewound(self, primary: &Host, scratch: &Scratch, number: u64) -> Host {
        self.cluster.stop(Stop::Fast);
        let source = format!("{} dbname=postgres", primary.cluster.conninfo());
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
            .conf(&[format!("primary_conninfo = '{}'", primary.cluster.conninfo())]);
        host.cluster.start();
        host
    }

    /// Makes a standby the primary. The settings of its recovery would be in the way of the next one, and pg_rewind copies them.
    pub fn promote(&self) {
        self.cluster.promote();
        account::write(&self.cluster.data().join("postgresql.auto.conf"), "", 0o600);
    }

    /// A host with this data directory that shares this one's repository.
    fn enlist(&self, scratch: &Scratch, number: u64, data: &Path, space: PathBuf) -> Host {
        let cluster = Cluster::adopt(scratch, self.cluster.server(), data);
        let site = Site::named(scratch, &cluster, &format!("site{number}"))
            .set("patience", "\"30s\"")
            .cluster_line(&format!("primary = \"{}\"", self.cluster.conninfo()))
            .shared(self.site.repo(), RepoOptions::new("local"));
        site.archive(&cluster);
        cluster.conf(&[format!("restore_command = '{}'", site.restore_command())]);
        Host { cluster, site, space }
    }

    /// Puts the tablespace elsewhere in a restore; by its number, since each host has it in another place.
    pub fn mapped(&self, to: &Path) -> String {
        let number = self
            .cluster
            .query_one("SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
        format!("{number}={}", to.display())
    }

    /// The timeline that this primary writes.
    fn timeline(&self) -> String {
        let name = self
            .cluster
            .query_one("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        u32::from_str_radix(&name[..8], 16).unwrap().to_string()
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
