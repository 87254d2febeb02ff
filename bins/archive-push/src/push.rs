//! The steps of a push: warm if an earlier run stored the file, else cold, with the next files in the same run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::codec::{CompressedStream, Reading};
use common::config::{Cluster, Config};
use common::error::{Context, Error, Kind, Result, chain};
use common::open;
use common::postgres::{ControlFile, SegmentSize, SystemId, WalName};
use common::repository::pins::{Pin, Pins};
use common::repository::wal::{self, Put};
use common::repository::{ClusterName, Repository, events};
use common::time::UtcTime;

use crate::marker::Markers;
use crate::{batch, content};

/// Stores the WAL file at `path`.
///
/// # Errors
/// `Refused` if the file is not what its name says, or other content has its name; `Transient` if asking again may help;
/// the first failure among the required repositories, after all of them have been tried.
pub fn run(config: &Config, cluster: &Cluster, path: &Path, host: &str, now: UtcTime) -> Result<()> {
    let name = name_of(path)?;
    let wal_directory = path.parent().unwrap_or(Path::new("")).to_owned();
    let data_directory = data_directory_of(&wal_directory, cluster)?;
    let control = ControlFile::read(&data_directory)?;
    let cluster_name = ClusterName::parse(&cluster.name)?;
    let pins = Pins::new(&config.state_directory, &cluster_name);
    let markers = Markers::new(&config.spool_directory, &cluster.name, &data_directory);
    if is_warm(config, &pins, &markers, path, &name, control.system_id)? {
        log::debug!("{name} was stored by an earlier run");
        return Ok(());
    }

    let repositories = open::repositories(config, cluster, &[])?;
    let targets = repositories
        .iter()
        .map(|repository| Target::find(repository, &pins, control.system_id))
        .collect();
    let push = Push {
        targets,
        wal_directory,
        system: control.system_id,
        segment_size: control.segment_size,
        level: config.compression_level,
        now,
        host: host.to_owned(),
    };
    let ready = ready_files(&push.wal_directory);
    let files = batch::choose(name, ready, config.push_batch);
    push.all(&files, config.jobs, &markers)
        .map_err(|error| error.context(format!("cannot store WAL {name}")))
}

fn name_of(path: &Path) -> Result<WalName> {
    let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    WalName::parse(file_name)
        .map_err(|error| error.hint("call it as archive_command = 'pgkeep-archive-push %p': %p is the file's path"))
}

/// The data directory that the file belongs to: PostgreSQL runs archive_command there and passes `pg_wal/<name>`. A
/// file elsewhere is taken to be of the configured data directory.
fn data_directory_of(wal_directory: &Path, cluster: &Cluster) -> Result<PathBuf> {
    let beside = wal_directory.join("..");
    if beside.join("global/pg_control").exists() {
        return beside
            .canonicalize()
            .context(|| format!("find the data directory of {}", wal_directory.display()));
    }
    let here = Path::new(".");
    let found = if here.join("global/pg_control").exists() {
        here
    } else {
        cluster.data_directory()?
    };
    found
        .canonicalize()
        .context(|| format!("find the data directory {}", found.display()))
}

/// Whether an earlier run stored just this content in just the repositories that are required now.
fn is_warm(
    config: &Config,
    pins: &Pins,
    markers: &Markers,
    path: &Path,
    name: &WalName,
    system: SystemId,
) -> Result<bool> {
    if !markers.stands(name) {
        return Ok(false);
    }
    let required = config.repositories.iter().filter(|repository| repository.required);
    let pins: Option<Vec<Pin>> = required
        .map(|repository| pins.get(&repository.name, &repository.location.to_string()))
        .collect();
    let Some(pins) = pins else { return Ok(false) };
    let mut file = File::open(path).context(|| format!("open {}", path.display()))?;
    let (size, xxh3) = content::quick_digest(&mut file)?;
    let warm = !pins.is_empty() && markers.says_stored(name, system, &pins, (size, xxh3.to_string()));
    markers.forget(name);
    Ok(warm)
}

/// Names in pg_wal/archive_status; none where there is no such directory.
fn ready_files(wal_directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(wal_directory.join("archive_status")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// A repository, or why it cannot take anything.
struct Target<'a> {
    repository: &'a Repository,
    pin: Result<Pin>,
}

impl<'a> Target<'a> {
    fn find(repository: &'a Repository, pins: &Pins, system: SystemId) -> Self {
        let pin = repository
            .identity_for_writing()
            .and_then(|_| pins.check(repository))
            .and_then(|pin| events::require_system(repository, system).map(|_| pin));
        Self {
            repository,
            pin: pin.map_err(|error| error_with_init_hint(error, repository)),
        }
    }
}

fn error_with_init_hint(error: Error, repository: &Repository) -> Error {
    if error.kind() == Kind::NotFound {
        return Error::new(Kind::Config, format!("there is no repository at {}", repository.url))
            .because(error)
            .hint("create it once with pgkeep-init; if it exists, is it mounted, and is the url right?");
    }
    error
}

/// One run: what all files of the batch share.
struct Push<'a> {
    targets: Vec<Target<'a>>,
    wal_directory: PathBuf,
    system: SystemId,
    segment_size: SegmentSize,
    level: i32,
    now: UtcTime,
    host: String,
}

impl Push<'_> {
    /// Stores every file of the batch, `jobs` at a time. Only the first one, which PostgreSQL asked for, decides.
    fn all(&self, files: &[WalName], jobs: usize, markers: &Markers) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut asked = None;
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(name) = files.get(at) else { return asked };
                let result = self.one(name);
                if at == 0 {
                    asked = Some(result.map(|_| ()));
                    continue;
                }
                // PostgreSQL will ask for this one too, and hear of any failure then.
                match result {
                    Ok(content) => self.mark(markers, name, &content),
                    Err(error) => log::debug!("cannot store {name} ahead: {}", chain(&error)),
                }
            }
        };
        let results: Vec<Option<Result<()>>> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..jobs.min(files.len())).map(|_| scope.spawn(work)).collect();
            let own = work();
            let joined = others
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|_| Some(Err(died()))));
            joined.chain([own]).collect()
        });
        results.into_iter().flatten().next().unwrap_or_else(|| Err(died()))
    }

    fn mark(&self, markers: &Markers, name: &WalName, content: &Reading) {
        let required: Result<Vec<Pin>, ()> = self
            .targets
            .iter()
            .filter(|target| target.repository.required)
            .map(|target| target.pin.as_ref().map(Clone::clone).map_err(|_| ()))
            .collect();
        let Ok(required) = required else { return };
        if let Err(error) = markers.set(name, self.system, &required, content) {
            log::debug!("cannot remember that {name} is stored: {}", chain(&error));
        }
    }

    /// Stores one file in every repository; the first failure of a required one is the result.
    fn one(&self, name: &WalName) -> Result<Reading> {
        let path = self.wal_directory.join(name.to_string());
        let mut file = content::open(&path, name, self.system, self.segment_size)?;
        let (compressed, reading) = content::read(&mut file, self.level)?;
        let mut failed: Option<Error> = None;
        for target in &self.targets {
            let Err(error) = self.put(target, name, &compressed) else {
                continue;
            };
            let repository = &target.repository.name;
            if target.repository.required {
                let error = error.context(format!("repository \"{repository}\""));
                match &failed {
                    None => failed = Some(error),
                    Some(_) => log::error!("cannot store WAL {name}: {}", chain(&error)),
                }
            } else {
                log::warn!(
                    "repository \"{repository}\", which is not required, misses {name}: {}",
                    chain(&error)
                );
            }
        }
        failed.map_or(Ok(reading), Err)
    }

    fn put(&self, target: &Target<'_>, name: &WalName, compressed: &CompressedStream) -> Result<()> {
        if let Err(error) = &target.pin {
            let copy = Error::new(error.kind(), chain(error));
            return Err(match error.nearest_hint() {
                Some(hint) => copy.hint(hint),
                None => copy,
            });
        }
        match wal::put(target.repository, self.system, name, compressed, self.now, &self.host)? {
            Put::Stored => log::debug!("stored {name} in \"{}\"", target.repository.name),
            Put::AlreadyThere => log::debug!("{name} was in \"{}\" already", target.repository.name),
            Put::Replaced(aside) => log::warn!("{name} was damaged in \"{}\"; see {aside}", target.repository.name),
        }
        Ok(())
    }
}

fn died() -> Error {
    Error::new(Kind::Failed, "a worker ended without a result")
}
