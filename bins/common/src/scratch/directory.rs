//! The directory of a run: made, removed, and found again where a run was killed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Cluster;
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::process;
use crate::repository::Nonce;
use crate::repository::backup::{BackupInfo, Tablespace};
use crate::time::UtcTime;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What every directory of a run is called; nothing else is ever removed.
const PREFIX: &str = "run-";

/// A directory for one run.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
}

impl Scratch {
    /// Makes one below `place`, which is made too.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(place: &Path, now: UtcTime) -> Result<Self> {
        durable::create_dir_all(place, 0o700)?;
        let root = place.join(format!("{PREFIX}{}-{}", now.compact(), Nonce::random()?));
        durable::create_dir_all(&root, 0o700)?;
        Ok(Self { root })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the backup is restored.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Where the tablespaces of a backup are restored, by OID.
    pub fn tablespaces(&self, info: &BackupInfo) -> Vec<(u32, PathBuf)> {
        let place = self.root.join("tablespaces");
        let one = |tablespace: &Tablespace| (tablespace.oid, place.join(tablespace.oid.to_string()));
        info.tablespaces.iter().map(one).collect()
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.root).context(|| format!("remove {}", self.root.display()))
    }
}

/// Removes what runs that were killed left below `place`, their servers first. Only the holder of the lock may: no run is under way.
/// What was kept on purpose stays.
///
/// # Errors
/// What the file system says.
pub fn collect(place: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(place) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let root = entry.path();
        let is_run = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !is_run || root.join(KEPT).exists() {
            continue;
        }
        stop_left_behind(&root.join("data"))?;
        log::info!("removing {}, which an earlier run left behind", root.display());
        Scratch { root }.remove()?;
    }
    Ok(())
}

/// Marks a directory that stays.
const KEPT: &str = "kept";

/// Keeps the directory for a look around.
///
/// # Errors
/// What the file system says.
pub fn keep(scratch: &Scratch) -> Result<()> {
    durable::replace(&scratch.root.join(KEPT), b"", 0o600)
}

/// Ends the server of a data directory: the process that its postmaster.pid names, if it runs there.
fn stop_left_behind(data: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else {
        return Ok(());
    };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else {
        return Ok(());
    };
    let own = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    if !own {
        return Ok(());
    }
    log::info!("ending the server that an earlier run left behind, process {pid}");
    let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
    let ended = || u32::try_from(pid).is_ok_and(|pid| !process::is_alive(pid));
    for _ in 0..200 {
        if ended() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Err(
        Error::new(Kind::Failed, format!("the server in {} does not end", data.display()))
            .hint(format!("end process {pid} and remove the directory above it")),
    )
}

/// Below which directory those of a cluster lie that are made for `purpose`: restore-test, dump.
///
/// # Errors
/// `Config` if that is inside the data directory.
pub fn place(cluster: &Cluster, state: &Path, purpose: &str) -> Result<PathBuf> {
    let place = match &cluster.restore_test.directory {
        Some(directory) if purpose == "restore-test" => directory.join(&cluster.name),
        Some(directory) => directory.join(format!("{}.{purpose}", cluster.name)),
        None => state.join(purpose),
    };
    match cluster.data_directory.as_deref().filter(|data| place.starts_with(data)) {
        None => Ok(place),
        Some(data) => Err(Error::new(
            Kind::Config,
            format!("{} lies in the data directory {}", place.display(), data.display()),
        )
        .hint(
            "set directory in the cluster's restore_test table to a place of its own, with room for the whole cluster",
        )),
    }
}
