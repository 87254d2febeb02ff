//! The steps of a push: warm if an earlier run stored the file, else in a child whose time is limited.
//!
//! The child is a process of its own because of repositories that hang: a process with a thread in such a file system
//! cannot end, and PostgreSQL would wait for it. This one looks at no repository.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use common::config::{Cluster, Config};
use common::error::{Context, Error, Kind, Result, chain};
use common::postgres::{ControlFile, WalName};
use common::repository::pins::{Pin, Pins};
use common::repository::wal::kept::KeptMaps;
use common::repository::{ClusterName, Repository};
use common::time::UtcTime;
use common::units::ByteSize;
use common::{exit, leftovers, open, process};

use crate::dropped::{Dropped, may_drop};
use crate::marker::Markers;
use crate::target::Run;
use crate::{content, store};

/// The file that PostgreSQL asks for, and whose it is.
pub struct Asked {
    name: WalName,
    path: PathBuf,
    /// The data directory, absolute.
    pub data_directory: PathBuf,
}

impl Asked {
    /// Finds the data directory that the file at `path` belongs to.
    ///
    /// # Errors
    /// `Config` if `path` is not that of a WAL file, or no data directory can be found.
    pub fn find(path: &Path, cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            name: name_of(path)?,
            path: path.to_owned(),
            data_directory: data_directory_of(wal_directory(path), cluster)?,
        })
    }
}

/// How a call ended.
pub enum Ended {
    /// An earlier run stored the file.
    Warm,
    /// A child has stored it or told why not; its exit code.
    Told(u8),
}

/// Gives a segment up where it cannot be stored now and `wal_drop_limit` says so; says whether it did.
///
/// # Errors
/// What noting it gave; then it is not given up.
fn drop_beyond_limit(config: &Config, cluster: &Cluster, asked: &Asked, control: &ControlFile) -> Result<bool> {
    let size = control.segment_size;
    let waiting = (ready_count(&asked.path) as u64).saturating_mul(size.bytes());
    let limit = cluster.wal_drop_limit;
    if !may_drop(&asked.name, Kind::Transient, waiting, limit) {
        return Ok(false);
    }
    Dropped::of(&config.state_directory, &cluster.name).note(control.system_id, &asked.name, size)?;
    log::error!(
        "WAL {} IS DROPPED: it could not be stored, and {} of WAL wait, more than wal_drop_limit = {limit}. \
         Nothing behind it can be recovered until the next full backup",
        asked.name,
        ByteSize(waiting)
    );
    Ok(true)
}

/// Stores the WAL file, or has a child store it.
///
/// # Errors
/// What reading the file gave; `Failed` if the child was killed.
pub fn run(config: &Config, cluster: &Cluster, asked: &Asked, arguments: &[OsString]) -> Result<Ended> {
    let control = ControlFile::read(&asked.data_directory)?;
    let pins = Pins::new(&config.state_directory, &ClusterName::parse(&cluster.name)?);
    let markers = Markers::new(&config.spool_directory, &cluster.name, &asked.data_directory);
    if is_warm(config, &pins, &markers, asked, &control)? {
        log::debug!("{} was stored by an earlier run", asked.name);
        return Ok(Ended::Warm);
    }
    let name = asked.name;
    let flag = [OsString::from("--attempt")];
    let mut announced = None;
    let status = process::watch_self(flag.iter().chain(arguments), Duration::MAX, &mut |line| {
        announced = line.strip_prefix(HELD_UP).and_then(|code| code.trim().parse().ok());
        announced.map(|_: u8| GRACE)
    })
    .context(|| format!("store {name} in a process of its own"))?;
    match (status.map(|status| status.code().map(u8::try_from)), announced) {
        (Some(Some(Ok(code))), _) | (None, Some(code)) => {
            let is_temporary = code == exit::WORK.code_of(&Error::new(Kind::Transient, ""));
            let is_dropped = is_temporary && drop_beyond_limit(config, cluster, asked, &control)?;
            Ok(Ended::Told(if is_dropped { 0 } else { code }))
        }
        _ => Err(
            Error::new(Kind::Failed, format!("the process that stores WAL {name} was killed"))
                .hint("the file stays in pg_wal and will be offered again"),
        ),
    }
}

/// How a child begins to say that it cannot end, before its exit code.
const HELD_UP: &str = "held up ";

/// What a child says that cannot end: the exit code it would give.
pub fn held_up(code: u8) -> String {
    format!("{HELD_UP}{code}\n")
}

/// How long such a child may still take to say what went wrong.
const GRACE: Duration = Duration::from_millis(500);

/// The child: stores the file in the repositories. Says besides whether the process can end.
///
/// # Errors
/// As [`store::run`].
pub fn attempt(config: &Config, cluster: &Cluster, asked: &Asked, host: &str) -> (Result<()>, bool) {
    let prepared = || {
        let control = ControlFile::read(&asked.data_directory)?;
        let repositories = open::repositories_within(config, cluster, &[], config.patience)?;
        let keyless = |repository: &Repository| repository.sealing.is_encrypted() && !repository.opening.has_identity();
        let state = config.state_directory.join(&cluster.name);
        let run = Run {
            wal_directory: wal_directory(&asked.path).to_owned(),
            system: control.system_id,
            segment_size: control.segment_size,
            pins: Pins::new(&config.state_directory, &ClusterName::parse(&cluster.name)?),
            level: config.compression_level,
            now: UtcTime::now(),
            host: host.to_owned(),
            maps: repositories.iter().any(keyless).then(|| KeptMaps::new(&state)),
            busy: AtomicUsize::new(0),
        };
        Ok((Arc::new(run), repositories))
    };
    match prepared() {
        Ok((run, repositories)) => {
            let markers = Markers::new(&config.spool_directory, &cluster.name, &asked.data_directory);
            let result = store::run(&run, config, repositories, &markers, (&cluster.name, asked.name));
            tell_of_gaps(config, cluster, &result, host);
            // Where archive-get's own child, which nobody waits for, may never run.
            leftovers::collect(
                &config.spool_directory.join(&cluster.name),
                &["get", "push"],
                SystemTime::now(),
            );
            (result, run.is_held_up())
        }
        Err(error) => (Err(error), false),
    }
}

/// Where WAL can be stored again, the repositories hear what was dropped meanwhile.
fn tell_of_gaps(config: &Config, cluster: &Cluster, result: &Result<()>, host: &str) {
    let dropped = Dropped::of(&config.state_directory, &cluster.name);
    if result.is_err() || !dropped.is_any() {
        return;
    }
    match open::repositories(config, cluster, &[]) {
        Ok(repositories) => dropped.tell(&repositories, UtcTime::now(), host),
        Err(error) => log::debug!("{}", chain(&error)),
    }
}

/// How many WAL files wait to be archived, that at `path` included.
pub fn ready_count(path: &Path) -> usize {
    let ready = store::ready_files(wal_directory(path));
    ready.iter().filter(|name| name.ends_with(".ready")).count()
}

fn name_of(path: &Path) -> Result<WalName> {
    let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    WalName::parse(file_name)
        .map_err(|error| error.hint("call it as archive_command = 'pgkeep-archive-push %p': %p is the file's path"))
}

fn wal_directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
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
    cluster.data_directory_here()
}

/// Whether an earlier run stored just this content in just the repositories that are required now.
fn is_warm(config: &Config, pins: &Pins, markers: &Markers, asked: &Asked, control: &ControlFile) -> Result<bool> {
    let (name, path) = (&asked.name, &asked.path);
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
    let warm = !pins.is_empty() && markers.says_stored(name, control.system_id, &pins, (size, xxh3.to_string()));
    markers.forget(name);
    Ok(warm)
}
