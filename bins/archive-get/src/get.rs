//! The steps of a fetch: from the spool if it was fetched ahead, else from the first repository that has it.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::config::{Cluster, Config};
use common::error::{Context, Error, Kind, Result, chain};
use common::lock::FileLock;
use common::open;
use common::postgres::{ControlFile, SegmentName, SegmentSize, SystemId, WalName};
use common::repository::pins::{Pin, Pins};
use common::repository::{ClusterName, Repository, wal};
use common::retry;

use crate::answer::{self, Fetched, Said};
use crate::histories::Histories;
use crate::place::Placing;
use crate::spool::Spool;

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
        let here = Path::new(".");
        let found = if here.join("global/pg_control").exists() {
            here
        } else {
            cluster.data_directory()?
        };
        let data_directory = found
            .canonicalize()
            .context(|| format!("find the data directory {}", found.display()))?;
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

/// Fetches the WAL file `name` to `destination`.
///
/// # Errors
/// Whenever it could not be found out whether the archive has the file: never to be read as "absent".
pub fn run(
    config: &Config,
    cluster: &Cluster,
    only: &[String],
    name: &str,
    destination: &Path,
    standby: bool,
) -> Result<Fetched> {
    let name = WalName::parse(name)?;
    let call = Call::find(config, cluster)?;
    if let WalName::Segment(segment) = name
        && let Some(spool) = call.spool(config, only)
    {
        let handed = from_spool(&spool, segment, destination, config.standby_patience);
        crate::ahead::start(config, &call, &spool, segment);
        if handed {
            return Ok(Fetched::Restored);
        }
    }
    let patience = if standby {
        config.standby_patience
    } else {
        config.patience
    };
    let repositories = open::repositories(config, cluster, only)?;
    let histories = Histories::new(&config.state_directory, &call.cluster, call.system);
    let destination = destination.to_owned();
    bounded(patience, move || {
        let policy = if standby {
            retry::Policy::once()
        } else {
            retry::Policy::patient(patience)
        };
        policy.run(&format!("fetch {name}"), || {
            attempt(&call, &repositories, &histories, name, &destination)
        })
    })
    .map_err(|error| error.context(format!("cannot fetch WAL {name}")))
}

/// Takes the file from the spool. Whatever goes wrong there, the repositories can still be asked.
fn from_spool(spool: &Spool, segment: SegmentName, destination: &Path, wait: Duration) -> bool {
    let name = segment.to_string();
    let hand_over = || {
        let file = spool.files().into_iter().find(|file| file.name == name)?;
        match file.hand_over(destination) {
            Ok(()) => Some(()),
            Err(error) => {
                log::warn!("cannot use what was fetched ahead: {}", chain(&error));
                None
            }
        }
    };
    if hand_over().is_some() {
        return true;
    }
    // It may be on its way: then its part is locked, and waiting is quicker than fetching it twice.
    let part = spool.part_path(&name);
    if part.exists() {
        let _ = FileLock::acquire(&part, wait);
    }
    hand_over().is_some()
}

/// Runs `work` in a thread and waits for `patience` and a little more: a store that hangs in a system call can not hold
/// up recovery for ever. The thread that is left behind ends with the process.
fn bounded(patience: Duration, work: impl FnOnce() -> Result<Fetched> + Send + 'static) -> Result<Fetched> {
    let (send, receive) = mpsc::channel();
    let begun = Instant::now();
    std::thread::spawn(move || {
        let _ = send.send(work());
    });
    receive
        .recv_timeout(patience.saturating_add(Duration::from_millis(500)))
        .unwrap_or_else(|_| {
            let seconds = begun.elapsed().as_secs();
            Err(Error::new(
                Kind::Transient,
                format!("the repositories did not answer within {seconds} s"),
            ))
        })
}

/// Asks every repository once, in order, until one gives the file.
fn attempt(
    call: &Call,
    repositories: &[Repository],
    histories: &Histories,
    name: WalName,
    destination: &Path,
) -> Result<Fetched> {
    let mut answers = Vec::new();
    for repository in repositories {
        let said = ask(call, repository, &name, destination);
        if let Said::Unknown(error) = &said {
            log::warn!("repository \"{}\": {}", repository.name, chain(error));
        }
        let here = matches!(said, Said::Here);
        if matches!(name, WalName::History { .. }) && !matches!(said, Said::Unknown(_)) {
            histories.refresh(repository, call.system);
        }
        answers.push(said);
        if here {
            break;
        }
    }
    if !matches!(name, WalName::History { .. }) {
        return answer::judge(answers);
    }
    let judged = answer::judge_history(answers);
    if matches!(judged, Ok(Fetched::Restored)) {
        return judged;
    }
    match histories.get(&name) {
        Some(content) => {
            log::warn!("{name} comes from this host's cache");
            let mut placing = Placing::begin(destination)?;
            std::io::Write::write_all(&mut placing, &content).context(|| format!("write {}", destination.display()))?;
            placing.finish()?;
            Ok(Fetched::Restored)
        }
        None => judged,
    }
}

fn ask(call: &Call, repository: &Repository, name: &WalName, destination: &Path) -> Said {
    let fetched = call
        .pins
        .check(repository)
        .and_then(|_| fetch_to(repository, call.system, name, destination));
    match fetched {
        Ok(()) => Said::Here,
        Err(error) if error.kind() == Kind::NotFound => match wal::prove_repository(repository, call.system) {
            Ok(()) => Said::ProvenAbsent,
            Err(error) => Said::Unknown(error),
        },
        Err(error) => Said::Unknown(error),
    }
}

/// Fetches one file; the destination appears only when every byte has been verified.
fn fetch_to(repository: &Repository, system: SystemId, name: &WalName, destination: &Path) -> Result<()> {
    // A failure of the destination says nothing about the archive: it must not look like an absence.
    let mut placing = Placing::begin(destination).map_err(own_fault)?;
    wal::fetch(repository, system, name, &mut placing)?;
    placing.finish().map_err(own_fault)
}

fn own_fault(error: Error) -> Error {
    match error.kind() {
        Kind::Transient => error,
        _ => error.with_kind(Kind::Failed),
    }
}
