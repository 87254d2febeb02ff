//! Puts a file at its destination whole or not at all.
//!
//! The bytes go to a file beside the destination, whose name is fixed: what a killed run left there, the next one
//! overwrites. PostgreSQL itself syncs a restored segment before it keeps it (`xlogarchive.c`,
//! `KeepFileRestoredFromArchive`, 13 to 18), so nothing is synced here.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use common::durable;
use common::error::{Context, Result};

/// A destination that is being filled.
pub struct Placing {
    part: PathBuf,
    destination: PathBuf,
    file: File,
}

fn part_of(destination: &Path) -> PathBuf {
    let mut name = OsString::from(destination.file_name().unwrap_or_default());
    name.push(".pgkeep-part");
    destination.with_file_name(name)
}

impl Placing {
    /// Begins to fill `destination`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(destination: &Path) -> Result<Self> {
        let part = part_of(destination);
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
        })
    }

    /// Lets the whole file appear.
    ///
    /// # Errors
    /// What the file system says; the destination is untouched then.
    pub fn finish(mut self) -> Result<()> {
        self.file.flush().context(|| format!("write {}", self.part.display()))?;
        durable::rename(&self.part, &self.destination)
    }
}

impl Write for Placing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Placing {
    fn drop(&mut self) {
        // After `finish` it is gone already; after a failure half a file is of no use to anybody.
        let _ = std::fs::remove_file(&self.part);
    }
}
