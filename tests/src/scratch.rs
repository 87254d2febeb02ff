//! Scratch directories that the account of the servers can reach.
//!
//! Below PGKEEP_SCRATCH or /var/tmp/pgkeep-tests, named `<process>.<number>.<test>`. Promises that they go when the test
//! is over, unless it failed or PGKEEP_KEEP=1 is set; what a killed test process left is removed, and its servers
//! ended, by the next one.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::account;

/// Where a directory that was kept on purpose says so.
const KEPT: &str = ".kept";

/// A directory of one test, owned by the servers' account; clones are the same directory, removed with the last.
#[derive(Debug, Clone)]
pub struct Scratch(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    clusters: AtomicU32,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);
static BASE: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = env::var_os("PGKEEP_SCRATCH").map_or_else(|| PathBuf::from("/var/tmp/pgkeep-tests"), PathBuf::from);
    if !base.is_dir() {
        fs::create_dir_all(&base).unwrap_or_else(|error| panic!("create {}: {error}", base.display()));
        fs::set_permissions(&base, Permissions::from_mode(0o755)).unwrap();
    }
    sweep(&base);
    base
});

impl Scratch {
    /// Creates a directory; `name` only helps to recognise it.
    pub fn new(name: &str) -> Scratch {
        // Sockets live below, and their paths may not exceed 107 bytes.
        let name: String = name
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
            .take(32)
            .collect();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = BASE.join(format!("{}.{number}.{name}", process::id()));
        account::create_dir(&path, 0o755);
        Scratch(Arc::new(Directory {
            path,
            clusters: AtomicU32::new(0),
        }))
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.0.path
    }

    /// A path below the directory; nothing is created.
    pub fn path(&self, below: &str) -> PathBuf {
        self.0.path.join(below)
    }

    /// Creates a directory (0700) below, if it is not there.
    pub fn create_dir(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        if !path.is_dir() {
            account::create_dir(&path, 0o700);
        }
        path
    }

    /// Writes a file below.
    pub fn write(&self, below: &str, bytes: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.path(below);
        account::write(&path, bytes, mode);
        path
    }

    /// 1, 2, 3, ...: numbers the clusters that live here.
    pub(crate) fn next_cluster(&self) -> u32 {
        self.0.clusters.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking() || env::var("PGKEEP_KEEP").is_ok_and(|keep| keep == "1") {
            // Best effort: without the mark the next test process removes the directory.
            let _ = fs::write(self.path.join(KEPT), "");
            crate::stand::tell(&format!("kept: {}", self.path.display()));
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            crate::stand::tell(&format!("left behind: {}: {error}", self.path.display()));
        }
    }
}

/// Copies a directory with owners, modes, times and links, as a snapshot does; `to` is new.
pub fn copy_dir(from: &Path, to: &Path) {
    let copy = crate::Tool::program("cp").arg("-a").arg(from).arg(to).as_root();
    copy.run().expect_code(0);
}

/// A directory of this process where the servers' account can run programs; the next test process removes it.
pub(crate) fn programs_dir() -> &'static Path {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = BASE.join(format!("{}.programs", process::id()));
        account::create_dir(&path, 0o755);
        path
    });
    &DIRECTORY
}

/// Removes what test processes that are gone left behind.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .and_then(|name| name.split('.').next()?.parse::<u32>().ok())
        else {
            continue;
        };
        let path = entry.path();
        if Path::new(&format!("/proc/{pid}")).exists() || path.join(KEPT).exists() {
            continue;
        }
        end_servers(&path, 4);
        // Another process may be sweeping too.
        let _ = fs::remove_dir_all(&path);
    }
}

/// Kills servers whose data directory lies below `directory`, at most `depth` levels down.
fn end_servers(directory: &Path, depth: u32) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && depth > 0 {
            end_servers(&entry.path(), depth - 1);
        } else if entry.file_name() == "postmaster.pid" {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let pid = text
                .lines()
                .next()
                .and_then(|line| line.parse::<i32>().ok())
                .filter(|pid| *pid > 1);
            // The number may belong to another program by now; a server works in its data directory.
            if let Some(pid) = pid
                && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_goes_with_its_last_owner() {
        let first = Scratch::new("goes");
        let (path, second) = (first.dir().to_path_buf(), first.clone());
        drop(first);
        assert!(path.is_dir());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_failed_test_keeps_its_scratch_directory() {
        let path = std::thread::spawn(|| {
            let scratch = Scratch::new("kept");
            let path = scratch.dir().to_path_buf();
            std::panic::catch_unwind(move || {
                let _owner = scratch;
                panic!("as a failing test does");
            })
            .unwrap_err();
            path
        })
        .join()
        .unwrap();
        assert!(path.join(KEPT).exists());
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn what_a_dead_test_process_left_is_removed() {
        let base = tempfile::tempdir().unwrap();
        // No process has a number that high.
        let (gone, kept) = (base.path().join("4194305.0.gone"), base.path().join("4194305.1.kept"));
        let alive = base.path().join(format!("{}.0.alive", process::id()));
        for directory in [&gone, &kept, &alive] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(kept.join(KEPT), "").unwrap();
        sweep(base.path());
        assert_eq!((gone.exists(), kept.exists(), alive.exists()), (false, true, true));
    }
}
