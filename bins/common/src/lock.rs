//! Locks among the processes of one machine: flock(2) on a file that stays where it is.
//!
//! The kernel drops a lock with the last descriptor, so a killed job never leaves one that a person must
//! remove. The file is not deleted: whoever waits on a deleted file would hold a lock of its own (the one exception,
//! where that does no harm, is a directory that [`super::leftovers`] collects). It holds the number of the process that
//! locked it last, for messages only.

use std::fs::OpenOptions;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Context, Error, Kind, Result};
use crate::units::display_duration;

/// An exclusive lock, held until dropped.
#[derive(Debug)]
pub struct FileLock {
    file: Flock<std::fs::File>,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock on `path`, creating the file if need be; `None` if somebody holds it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>> {
        let what = || format!("lock {}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).context(what)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => {
                let mut lock = Self {
                    file,
                    path: path.to_owned(),
                };
                lock.note_process().context(what)?;
                Ok(Some(lock))
            }
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(std::io::Error::from(errno)).context(what),
        }
    }

    /// Takes the lock on `path`, waiting at most so long.
    ///
    /// # Errors
    /// `Busy` if it is still held then; whatever the file system says.
    pub fn acquire(path: &Path, wait: Duration) -> Result<Self> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(lock) = Self::try_acquire(path)? {
                return Ok(lock);
            }
            let left = wait.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(busy(path, wait));
            }
            sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// The locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn note_process(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }
}

fn busy(path: &Path, waited: Duration) -> Error {
    let mut text = String::new();
    // Only for the message: whatever goes wrong here, it is busy.
    let holder = std::fs::File::open(path)
        .and_then(|file| file.take(20).read_to_string(&mut text))
        .ok()
        .and_then(|_| text.trim().parse::<u32>().ok())
        .map_or_else(|| "another process".to_owned(), |process| format!("process {process}"));
    let waited = display_duration(waited);
    Error::new(
        Kind::Busy,
        format!("{} is still locked by {holder} after {waited}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn one_holds_it_and_the_next_gets_it_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn waiting_in_vain_is_busy_and_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        let error = FileLock::acquire(held.path(), Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    }

    #[test]
    fn waiting_ends_when_the_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_acquire(&path).unwrap().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| FileLock::acquire(&path, Duration::from_secs(60)));
            drop(held);
            assert!(waiter.join().unwrap().is_ok());
        });
    }

    #[test]
    fn a_directory_that_is_missing_is_an_error_and_not_a_held_lock() {
        let dir = tempfile::tempdir().unwrap();
        assert!(FileLock::try_acquire(&dir.path().join("gone/lock")).is_err());
    }
}
