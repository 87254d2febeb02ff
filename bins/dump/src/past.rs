//! A server as it was: a backup, restored into a scratch directory and replayed to a moment.

use std::path::Path;
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

/// A scratch server; dropped, it is ended and its directory removed.
pub struct Past {
    server: Option<ScratchServer>,
    scratch: Option<Scratch>,
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
        let file = std::path::absolute(args.common.config_file()).unwrap_or_else(|_| config.file.clone());
        let restorer = Restorer::new(&file, &cluster.name, &args.repositories.names, deadline);
        let time = args.target_time.as_deref();
        let wanted = Wanted {
            backup: args.backup,
            time: time.map(|time| time::parse_target(time, started)).transpose()?,
        };
        let mut past = Self {
            server: None,
            scratch: None,
            _lock: lock,
            origin: Origin {
                backup: Label::new(
                    started,
                    common::repository::BackupType::Full,
                    common::repository::Nonce::random()?,
                ),
                target: String::new(),
            },
        };
        let scratch = past.scratch.insert(Scratch::create(&place, started)?);
        let (root, data) = (scratch.root().to_owned(), scratch.data());
        let plan = restorer.plan(&wanted, &data)?;
        let info = plan.info(repositories)?;
        past.origin = Origin {
            backup: info.label,
            target: plan.target.clone(),
        };
        // Before hours of copying.
        let programs = Programs::of_server(settings.bin_directory.as_deref(), Major::try_from(info.major)?)?;
        let tablespace = |oid: u32| root.join("tablespaces").join(oid.to_string());
        let tablespaces: Vec<_> = info
            .tablespaces
            .iter()
            .map(|one| (one.oid, tablespace(one.oid)))
            .collect();
        restorer.restore(&wanted, &data, &tablespaces, config.jobs)?;
        past.start(&root, &data, &programs, (cluster, config.jobs, deadline))?;
        log::info!(
            "{} is restored to {}, after {}",
            info.label,
            plan.target,
            display_duration(began.elapsed())
        );
        Ok(past)
    }

    fn start(
        &mut self,
        root: &Path,
        data: &Path,
        programs: &Programs,
        limits: (&Cluster, usize, Instant),
    ) -> Result<()> {
        let control = ControlFile::read(data)?;
        let (cluster, jobs, deadline) = limits;
        let server = ScratchServer::start(root, data, programs, &control, (&cluster.restore_test, jobs, deadline))?;
        server.wait_ready()?;
        self.server = Some(server);
        Ok(())
    }

    /// How to reach it.
    ///
    /// # Errors
    /// None once it runs.
    pub fn connection(&self) -> Result<ConnectionSettings> {
        let server = self.server.as_ref();
        server
            .map(ScratchServer::connection)
            .ok_or_else(|| Error::new(Kind::Failed, "the scratch server does not run"))
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        drop(self.server.take());
        if let Some(Err(error)) = self.scratch.take().map(|scratch| scratch.remove()) {
            log::warn!("the scratch directory stays until the next run: {}", chain(&error));
        }
    }
}
