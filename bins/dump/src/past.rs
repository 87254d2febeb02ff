//! A server as it was: a backup, restored into a scratch directory and replayed to a moment.

use std::time::Instant;

use common::config::{Cluster, Config};
use common::durable;
use common::error::{Error, Kind, Result, chain};
use common::lock::FileLock;
use common::postgres::{ConnectionSettings, ControlFile, Major, Programs};
use common::repository::{Label, Repository};
use common::scratch::{self, Restorer, Scratch, ScratchServer, Wanted};
use common::time::{self, UtcTime};
use common::units::display_duration;

use crate::args::Args;

/// A scratch server; dropped, it is ended and its directory removed: the fields go in this order.
pub struct Past {
    server: ScratchServer,
    _directory: Removed,
    _lock: FileLock,
    /// What it was made of.
    pub origin: Origin,
}

/// A backup and a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The backup.
    pub backup: Label,
    /// The moment, in words.
    pub target: String,
}

impl Past {
    /// Restores and starts it. Nothing but the scratch directory is touched.
    ///
    /// # Errors
    /// What pgkeep-restore says; `Config` if no server of that version is installed; what the server says.
    pub fn restore(args: &Args, config: &Config, cluster: &Cluster, repositories: &[Repository]) -> Result<Self> {
        let (began, started) = (Instant::now(), UtcTime::now());
        let state = config.state_of(cluster);
        durable::create_dir_all(&state, 0o755)?;
        let lock = FileLock::try_acquire(&state.join("dump.lock"))?.ok_or_else(|| {
            Error::new(
                Kind::Busy,
                "another dump from a backup of this cluster is running on this host",
            )
        })?;
        let place = scratch::place(cluster, &state, "dump")?;
        scratch::collect(&place)?;
        let settings = &cluster.restore_test;
        let deadline = began + settings.time_limit;
        let restorer = Restorer::new(config, cluster, &args.repositories.names, deadline);
        let time = args.target_time.as_deref();
        let mut wanted = Wanted {
            backup: args.backup,
            time: time.map(|time| time::parse_target(time, started)).transpose()?,
            databases: args.databases.clone(),
        };
        let directory = Removed(Scratch::create(&place, started)?);
        let scratch = &directory.0;
        let data = scratch.data();
        let plan = match restorer.plan(&wanted, &data) {
            // WAL may bring a database that the backup does not have.
            Err(error) if error.kind() == Kind::Config && !wanted.databases.is_empty() => {
                log::info!("the whole cluster is restored: {}", chain(&error));
                wanted.databases.clear();
                restorer.plan(&wanted, &data)?
            }
            plan => plan?,
        };
        let info = plan.info(repositories)?;
        // Before hours of copying.
        let programs = Programs::of_server(settings.bin_directory.as_deref(), Major::try_from(info.major)?)?;
        restorer.restore(&wanted, &data, &scratch.tablespaces(&info), config.jobs)?;
        let control = ControlFile::read(&data)?;
        let limits = (settings, config.jobs, deadline);
        let server = ScratchServer::start(scratch.root(), &data, &programs, &control, limits)?;
        server.wait_ready()?;
        log::info!(
            "{} is restored to {}, after {}",
            info.label,
            plan.target,
            display_duration(began.elapsed())
        );
        Ok(Self {
            server,
            _directory: directory,
            _lock: lock,
            origin: Origin {
                backup: info.label,
                target: plan.target,
            },
        })
    }

    /// How to reach it.
    pub fn connection(&self) -> ConnectionSettings {
        self.server.connection()
    }
}

/// A directory that goes with its owner.
struct Removed(Scratch);

impl Drop for Removed {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            log::warn!("the scratch directory stays until the next run: {}", chain(&error));
        }
    }
}
