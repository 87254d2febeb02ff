//! Puts a file at its destination whole or not at all.
//!
//! The bytes go to a file beside the destination that no other process writes to: the server that asked may have been
//! killed and another one started, while an older run is still at work. What killed runs left is removed by the next.
//! PostgreSQL itself syncs a restored segment before it keeps it (`xlogarchive.c`, `KeepFileRestoredFromArchive`,
//! 13 to 18), so nothing is synced here.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use common::durable;
use common::error::{Context, Error, Result};

/// How the name of an unfinished file goes on after the destination's; the number of its process follows.
const PART: &str = ".pgkeep-part-";

/// A destination that is being filled.
pub struct Placing {
    part: PathBuf,
    destination: PathBuf,
    file: File,
    finished: bool,
}

impl Placing {
    /// Begins to fill `destination`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(destination: &Path) -> Result<Self> {
        remove_stale_parts(destination);
        let part = part_of(destination, std::process::id());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .context(|| format!("create {}", part.display()))?;
        Ok(Self {
            part,
            destination: destination.to_owned(),
            file,
            finished: false,
        })
    }

    /// Lets the whole file appear.
    ///
    /// # Errors
    /// What the file system says; the destination is untouched then.
    pub fn finish(mut self) -> Result<()> {
        durable::rename(&self.part, &self.destination)?;
        self.finished = true;
        Ok(())
    }
}

impl Write for Placing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // The reader of the archive knows only that its output failed, not where that is.
        let written = self.file.write(bytes);
        written.map_err(|error| Error::io(error, format!("write {}", self.part.display())).into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Placing {
    fn drop(&mut self) {
        if !self.finished {
            // Half a file is of no use to anybody.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

fn part_of(destination: &Path, process: u32) -> PathBuf {
    let mut name = OsString::from(destination.file_name().unwrap_or_default());
    name.push(format!("{PART}{process}"));
    destination.with_file_name(name)
}

/// Removes the parts of processes that are gone. Best effort: what stays only takes room.
fn remove_stale_parts(destination: &Path) {
    let directory = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.split_once(PART)?.1.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_destination_appears_at_the_end_and_dead_processes_parts_go() {
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("RECOVERYXLOG");
        // No process has a number that high.
        let dead = part_of(&destination, 4_194_305);
        let alive = part_of(&destination, 1);
        std::fs::write(&dead, b"half").unwrap();
        std::fs::write(&alive, b"half").unwrap();
        let mut placing = Placing::begin(&destination).unwrap();
        placing.write_all(b"whole").unwrap();
        assert!(!dead.exists() && alive.exists() && !destination.exists());
        placing.finish().unwrap();
        assert_eq!(std::fs::read(&destination).unwrap(), b"whole");

        let mut dropped = Placing::begin(&destination).unwrap();
        dropped.write_all(b"other").unwrap();
        drop(dropped);
        assert_eq!(std::fs::read(&destination).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
