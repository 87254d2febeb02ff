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
    let targets: Vec<&Target<'_>> = push.targets.iter().collect();
    let cannot = |error: Error| error.context(format!("cannot store WAL {name}"));
    let stored = push.one(&name, &targets).map_err(cannot)?;
    push.ahead(name, &stored.holders, config, &markers);
    stored.failed.map_or(Ok(()), |error| Err(cannot(error)))
}

/// How many WAL files wait to be archived, that at `path` included.
pub fn ready_count(path: &Path) -> usize {
    let ready = ready_files(path.parent().unwrap_or(Path::new("")));
    ready.iter().filter(|name| name.ends_with(".ready")).count()
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

impl Target<'_> {
    /// Why it cannot take anything, if so.
    fn refusal(&self) -> Option<Error> {
        let error = self.pin.as_ref().err()?;
        let copy = Error::new(error.kind(), chain(error));
        Some(match error.nearest_hint() {
            Some(hint) => copy.hint(hint),
            None => copy,
        })
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

/// Where a file is now.
struct Stored<'t> {
    content: Reading,
    /// The targets that have it; at least one.
    holders: Vec<&'t Target<'t>>,
    /// Why a required one lacks it.
    failed: Option<Error>,
}

impl Push<'_> {
    /// Stores the files that PostgreSQL will ask for next, where `asked` could be stored: what fails for one file fails
    /// for the next, and PostgreSQL will ask for that one too and hear why.
    fn ahead(&self, asked: WalName, targets: &[&Target<'_>], config: &Config, markers: &Markers) {
        let working: Vec<Pin> = targets
            .iter()
            .filter_map(|target| target.pin.as_ref().ok())
            .cloned()
            .collect();
        let is_done = |name: &WalName| markers.covers(name, self.system, &working);
        let ready = ready_files(&self.wal_directory);
        let files = batch::choose(asked, ready, config.push_batch.saturating_sub(1), is_done);
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(name) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                match self.one(name, targets) {
                    Ok(stored) => self.mark(markers, name, &stored),
                    Err(error) => log::debug!("cannot store {name} ahead: {}", chain(&error)),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..config.jobs.min(files.len()) {
                scope.spawn(work);
            }
            work();
        });
    }

    fn mark(&self, markers: &Markers, name: &WalName, stored: &Stored<'_>) {
        let is_required = |target: &&Target<'_>| target.repository.required;
        let required = self.targets.iter().filter(|target| is_required(target)).count();
        let whole = required > 0 && stored.holders.iter().filter(|target| is_required(target)).count() == required;
        let holders = stored.holders.iter().filter(|target| !whole || is_required(target));
        let pins: Vec<Pin> = holders.filter_map(|target| target.pin.as_ref().ok()).cloned().collect();
        if let Err(error) = markers.set(name, self.system, &pins, &stored.content) {
            log::debug!("cannot remember that {name} is stored: {}", chain(&error));
        }
    }

    /// Stores one file in every target.
    ///
    /// # Errors
    /// `Refused` if the file is not what its name says; the gravest failure, if no target has the file in the end.
    fn one<'t>(&self, name: &WalName, targets: &[&'t Target<'t>]) -> Result<Stored<'t>> {
        let mut holders = Vec::new();
        let mut errors: Vec<(&Target<'_>, Error)> = Vec::new();
        let (able, unable): (Vec<&Target<'_>>, Vec<_>) = targets.iter().partition(|target| target.pin.is_ok());
        errors.extend(
            unable
                .into_iter()
                .filter_map(|target| Some((target, target.refusal()?))),
        );
        let mut content = None;
        // With no target left, reading and compressing would be for nothing.
        if !able.is_empty() {
            let path = self.wal_directory.join(name.to_string());
            let mut file = content::open(&path, name, self.system, self.segment_size)?;
            let (compressed, reading) = content::read(&mut file, self.level)?;
            content = Some(reading);
            for target in able {
                match self.put(target, name, &compressed) {
                    Ok(()) => holders.push(target),
                    Err(error) => errors.push((target, error)),
                }
            }
        }
        let failed = sort_out(name, errors);
        match content {
            Some(content) if !holders.is_empty() => Ok(Stored {
                content,
                holders,
                failed,
            }),
            _ => Err(failed.unwrap_or_else(nobody_took_it)),
        }
    }

    fn put(&self, target: &Target<'_>, name: &WalName, compressed: &CompressedStream) -> Result<()> {
        let repository = target.repository;
        let put = wal::put(repository, self.system, name, compressed, self.now, &self.host)
            .map_err(|error| self.with_date(error, repository, name))?;
        match put {
            Put::Stored => log::debug!("stored {name} in \"{}\"", repository.name),
            Put::AlreadyThere => log::debug!("{name} was in \"{}\" already", repository.name),
            Put::Replaced(aside) => log::warn!(
                "{name} was damaged in repository \"{}\" and is stored again; the damaged object is {aside}",
                repository.name
            ),
        }
        Ok(())
    }

    /// Says since when a timeline is taken, where its history is refused.
    fn with_date(&self, error: Error, repository: &Repository, name: &WalName) -> Error {
        let WalName::History { timeline } = name else {
            return error;
        };
        let stored = || {
            let key = repository.keys().wal(self.system, name, repository.suffix()?)?;
            repository.store.stat(&key)
        };
        match stored() {
            Ok(Some(stat)) if error.kind() == Kind::Refused => error.context(format!(
                "timeline {} was taken by another promotion, stored {}",
                timeline.0,
                stat.modified.whole_seconds()
            )),
            _ => error,
        }
    }
}

/// Returns the first failure of a required repository, and tells the others.
fn sort_out(name: &WalName, errors: Vec<(&Target<'_>, Error)>) -> Option<Error> {
    let mut failed = None;
    for (target, error) in errors {
        let repository = target.repository;
        let error = error.context(format!("repository \"{}\"", repository.name));
        if !repository.required {
            log::warn!(
                "{name} is not stored everywhere, though in all required places: {}",
                chain(&error)
            );
        } else if failed.is_none() {
            failed = Some(error);
        } else {
            log::error!("cannot store WAL {name}: {}", chain(&error));
        }
    }
    failed
}

fn nobody_took_it() -> Error {
    Error::new(Kind::Transient, "no repository has taken it")
        .hint("none is required, but a WAL file that is nowhere is lost: see the warnings before this line")
}
