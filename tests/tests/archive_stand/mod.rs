//! What the tests of archive-push and archive-get share: a repository with WAL of a real server, and a directory that is
//! enough of a data directory to run the tools in.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use common::digest::crc32c;
use system_tests::{Cluster, Options, Ran, Repo, RepoOptions, Scratch, Server, Site, Stop, Tool, account};

/// A repository that holds WAL, whose server is stopped.
pub struct Archive {
    pub scratch: Scratch,
    pub cluster: Cluster,
    pub site: Site,
    /// Stored segments, oldest first.
    pub segments: Vec<String>,
    /// Where their plain copies are.
    pub plain: PathBuf,
}

impl Archive {
    /// Archives `count` segments of 1 MiB. Nothing is fetched ahead unless the site says so.
    pub fn new(server: &Server, repositories: Vec<RepoOptions>, count: usize) -> Archive {
        let scratch = Scratch::new("archive");
        let options = Options {
            segment_size_mb: 1,
            // The segments stay where they are until they have been read.
            conf: vec!["wal_keep_size = 512MB".into()],
            ..Options::default()
        };
        let cluster = Cluster::create(&scratch, server, options);
        let mut site = Site::new(&scratch, &cluster).set("prefetch_limit", "\"0\"");
        for repository in repositories {
            site = site.repository(repository);
        }
        site.tool("init").run().expect_code(0);
        cluster.start();
        let plain = scratch.create_dir("plain");
        let mut segments = Vec::new();
        for round in 0..count {
            cluster.sql(&format!(
                "CREATE TABLE t{round} AS SELECT md5(n::text) FROM generate_series(1, 6000) AS n"
            ));
            segments.push(cluster.switch_wal());
        }
        cluster.stop(Stop::Fast);
        // Writing may have filled segments between those switched.
        let (first, last) = (segments[0].clone(), segments[count - 1].clone());
        let mut all: Vec<String> = fs::read_dir(cluster.data().join("pg_wal"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name.len() == 24 && *name >= first && *name <= last)
            .collect();
        all.sort();
        let archive = Archive {
            scratch,
            cluster,
            site,
            segments: all,
            plain,
        };
        for name in &archive.segments {
            let path = archive.cluster.data().join("pg_wal").join(name);
            account::write(&archive.plain.join(name), fs::read(&path).unwrap(), 0o600);
            archive.push(archive.cluster.data(), name).expect_code(0).expect_quiet();
        }
        archive
    }

    /// [`Archive::new`] with one repository in clear.
    pub fn clear(server: &Server, count: usize) -> Archive {
        Archive::new(server, vec![RepoOptions::new("local")], count)
    }

    pub fn repo(&self) -> &Repo {
        self.site.repo()
    }

    /// What a segment holds.
    pub fn content(&self, name: &str) -> Vec<u8> {
        fs::read(self.plain.join(name)).unwrap()
    }

    /// The name of a segment that was never written.
    pub fn absent(&self) -> String {
        format!("{}000000F0", &self.segments[0][..16])
    }

    /// A directory that the tools take for the cluster's data directory.
    pub fn pgdata(&self, name: &str) -> PathBuf {
        let data = self.scratch.create_dir(name);
        for below in ["global", "pg_wal", "pg_wal/archive_status"] {
            self.scratch.create_dir(&format!("{name}/{below}"));
        }
        let control = fs::read(self.cluster.data().join("global/pg_control")).unwrap();
        account::write(&data.join("global/pg_control"), control, 0o600);
        data
    }

    /// The same, as a standby's.
    pub fn standby(&self, name: &str) -> PathBuf {
        let data = self.pgdata(name);
        account::write(&data.join("standby.signal"), "", 0o600);
        data
    }

    /// Runs archive-get as PostgreSQL does, to the destination pg_wal/RECOVERYXLOG.
    pub fn get(&self, data: &Path, name: &str) -> Ran {
        get(&self.site, data, name)
    }

    /// Runs archive-push as PostgreSQL does.
    pub fn push(&self, data: &Path, name: &str) -> Ran {
        push(&self.site, data, name).run()
    }

    /// Puts a stored segment back into a data directory, as if it were to be archived.
    pub fn ready(&self, data: &Path, name: &str) {
        account::write(&data.join("pg_wal").join(name), self.content(name), 0o600);
        account::write(&data.join(format!("pg_wal/archive_status/{name}.ready")), "", 0o600);
    }

    /// Fetches a segment and fails the test unless it arrives as it was.
    pub fn expect_whole(&self, data: &Path, name: &str) -> Ran {
        let ran = self.get(data, name).expect_code(0);
        assert!(
            fs::read(destination(data)).unwrap() == self.content(name),
            "{name} is not what was stored\n{}",
            ran.report()
        );
        ran
    }
}

/// A call of archive-get; the destination is removed first, as PostgreSQL does.
pub fn get_tool(site: &Site, data: &Path, name: &str) -> Tool {
    let _ = fs::remove_file(destination(data));
    site.tool("archive-get").args([name, "pg_wal/RECOVERYXLOG"]).cwd(data)
}

pub fn get(site: &Site, data: &Path, name: &str) -> Ran {
    get_tool(site, data, name).run()
}

pub fn push(site: &Site, data: &Path, name: &str) -> Tool {
    site.tool("archive-push").arg(format!("pg_wal/{name}")).cwd(data)
}

pub fn destination(data: &Path) -> PathBuf {
    data.join("pg_wal/RECOVERYXLOG")
}

/// Fails the test unless nothing stands where archive-get was to put the file, not even half of it.
pub fn expect_nothing(data: &Path, ran: &Ran) {
    let left: Vec<String> = fs::read_dir(data.join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("RECOVERYXLOG"))
        .collect();
    assert!(left.is_empty(), "{left:?} was left behind\n{}", ran.report());
}

/// Gives a copy of pg_control another system identifier.
pub fn change_system(data: &Path, major: u32, system: u64) {
    let path = data.join("global/pg_control");
    let mut bytes = fs::read(&path).unwrap();
    let crc_at = if major >= 18 { 292 } else { 288 };
    bytes[..8].copy_from_slice(&system.to_le_bytes());
    let crc = crc32c(&bytes[..crc_at]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    account::write(&path, bytes, 0o600);
}

/// Numbers that a seed decides: the same again for the same PGKEEP_SEED.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Dice {
        let seed = std::env::var("PGKEEP_SEED").ok().and_then(|seed| seed.parse().ok());
        Dice(seed.unwrap_or(1))
    }

    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Segments of 16 MiB made for one cluster: the header of a real one, then bytes that cannot be compressed.
pub fn incompressible(real: &[u8], number: u64, dice: &mut Dice) -> Vec<u8> {
    let size = real.len();
    let mut bytes = real[..64].to_vec();
    bytes[8..16].copy_from_slice(&(number * size as u64).to_le_bytes());
    while bytes.len() < size {
        bytes.extend_from_slice(&dice.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
