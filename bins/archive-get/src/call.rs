//! Whose WAL is asked for, and where this host keeps what it knows and fetched of it.

use std::ffi::OsString;
use std::path::PathBuf;

use common::config::{Cluster, Config};
use common::error::Result;
use common::postgres::{ControlFile, SegmentSize, SystemId, TimelineHistory, WalName};
use common::repository::ClusterName;
use common::repository::pins::{Pin, Pins};

use crate::histories::Histories;
use crate::spool::Spool;

/// What was asked for.
pub struct Request {
    /// The file.
    pub name: WalName,
    /// Where it shall appear.
    pub destination: PathBuf,
    /// The only repositories to ask; none named: all.
    pub only: Vec<String>,
    /// Who is asked first; the others follow as they are configured.
    pub order: Vec<String>,
    /// Whether a standby asks, which soon asks again.
    pub standby: bool,
    /// The arguments of this process, for those it starts.
    pub arguments: Vec<OsString>,
}

/// What every part of one call needs.
pub struct Call {
    /// The data directory, absolute.
    pub data_directory: PathBuf,
    /// Whose WAL.
    pub system: SystemId,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// What this host remembers of the repositories.
    pub pins: Pins,
}

impl Call {
    /// Finds out whose WAL is asked for: that of the data directory the command runs in, else of the configured one.
    ///
    /// # Errors
    /// What reading pg_control gave.
    pub fn find(config: &Config, cluster: &Cluster) -> Result<Self> {
        let data_directory = cluster.data_directory_here()?;
        let cluster = ClusterName::parse(&cluster.name)?;
        let control = ControlFile::read(&data_directory)?;
        Ok(Self {
            system: control.system_id,
            segment_size: control.segment_size,
            pins: Pins::new(&config.state_directory, &cluster),
            data_directory,
            cluster,
        })
    }

    /// The timeline histories that this host has seen.
    pub fn histories(&self, config: &Config) -> Histories {
        Histories::new(&config.state_directory, &self.cluster, self.system)
    }

    /// What this host knows of a timeline without asking: what it has seen in a repository, or what the server itself keeps
    /// in pg_wal.
    pub fn known_history(&self, config: &Config, name: &WalName) -> Option<Vec<u8>> {
        let WalName::History { timeline } = name else {
            return None;
        };
        let of_server = || std::fs::read(self.data_directory.join("pg_wal").join(name.to_string())).ok();
        self.histories(config)
            .get(name)
            .or_else(of_server)
            .filter(|content| TimelineHistory::parse(*timeline, content).is_ok())
    }

    /// The spool, if every repository has been seen before: its UUIDs are part of the spool's identity.
    pub fn spool(&self, config: &Config, only: &[String]) -> Option<Spool> {
        let configured = config.repositories(only).ok()?;
        let pins: Option<Vec<Pin>> = configured
            .iter()
            .map(|repository| self.pins.get(&repository.name, &repository.location.to_string()))
            .collect();
        let pins = pins.filter(|pins| !pins.is_empty())?;
        Some(Spool::new(
            &config.spool_directory,
            self.cluster.as_str(),
            &self.data_directory,
            self.system,
            &pins,
        ))
    }
}
