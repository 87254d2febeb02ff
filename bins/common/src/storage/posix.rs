//! A store in a directory: a local disk or a mounted one.
//!
//! An object is written under a staging name in its own directory, synced, measured, given its name by a call
//! that fails if the name is taken ([`crate::durable`] has the means in order), and then the directory is
//! synced. Directories are 0700, objects 0400. A directory is synced into the one above when it is made; a
//! process killed between the two leaves that to the next sync below it, which ext4, xfs and btrfs order
//! after the creation.
//!
//! "Absent" is said only where every directory on the way is there and the next name is not: a root that is
//! missing (not mounted?), a link that leads nowhere, a file in place of a directory and an error are failures.
//! Links are followed on the way to an object, never as an object.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{Exclusive, Key, NO_ROOT_HINT, Space, Stat, Store, Stored, Upload, already_exists, not_found};
use crate::digest::{HashingWriter, Sha256Digest};
use crate::durable::{self, CreateOnly, STAGING_PREFIX, Staged};
use crate::error::{Context, Error, Kind, Result};
use crate::time::UtcTime;

mod walk;

const DIRECTORY_MODE: u32 = 0o700;
const OBJECT_MODE: u32 = 0o400;

/// Small writes are gathered; large ones pass through.
const BUFFER_BYTES: usize = 64 << 10;

/// How often a directory may be deleted under the hands of a creator before that is an error.
const DIRECTORY_ATTEMPTS: u32 = 16;

/// Objects as files below a directory, which must exist; clones are the same store.
#[derive(Clone, Debug)]
pub struct PosixStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// The means of create-only: what was used last, or where to start. 0 stands for not known yet.
    means: AtomicU8,
}

impl PosixStore {
    /// Makes a store in `root` without looking at it: a missing root shows in every operation.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Inner {
            root: root.into(),
            means: AtomicU8::new(0),
        }))
    }

    /// Makes a store that does not try the means of create-only before `means`.
    pub fn starting_with(root: impl Into<PathBuf>, means: CreateOnly) -> Self {
        let store = Self::new(root);
        store.remember(means);
        store
    }

    /// Creates the root and what is missing above it, durably. For `init` only: anybody else who finds no root
    /// has found a disk that is not mounted.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn create_root(&self) -> Result<()> {
        durable::create_dir_all(&self.0.root, DIRECTORY_MODE)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    fn path(&self, key: Option<&Key>) -> PathBuf {
        key.map_or_else(|| self.0.root.clone(), |key| self.0.root.join(key.as_str()))
    }

    fn remember(&self, means: CreateOnly) {
        self.0.means.store(means as u8 + 1, Ordering::Relaxed);
    }

    fn means(&self) -> Option<CreateOnly> {
        match self.0.means.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(CreateOnly::HardLink),
            2 => Some(CreateOnly::RenameNoReplace),
            _ => Some(CreateOnly::OExcl),
        }
    }

    /// Opens a staging file in the directory of `key`, creating that first if it is missing.
    fn stage(&self, key: &Key) -> Result<Staged> {
        let directory = self.path(key.parent().as_ref());
        let mut attempts = 0;
        loop {
            match Staged::create_in(&directory, OBJECT_MODE) {
                // The last object of a directory may be deleted, and the directory with it, at any moment.
                Err(error) if error.kind() == ErrorKind::NotFound && attempts < DIRECTORY_ATTEMPTS => {
                    attempts += 1;
                    self.create_directories(key)?;
                }
                outcome => return outcome.map_err(|error| self.failed(error, "create", Some(key))),
            }
        }
    }

    /// Creates the directories above `key`, never the root.
    fn create_directories(&self, key: &Key) -> Result<()> {
        self.check_root()?;
        let Some(parent) = key.parent() else { return Ok(()) };
        match durable::create_dirs_below(&self.0.root, Path::new(parent.as_str()), DIRECTORY_MODE) {
            // Deleted again in between: the caller comes back. A file in place of a directory shows then.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::AlreadyExists) => Ok(()),
            outcome => outcome,
        }
    }

    /// Gives a staged and synced file its name and makes that durable.
    fn publish(&self, staged: Staged, key: &Key) -> Result<()> {
        let target = self.path(Some(key));
        let means = self.means().unwrap_or(CreateOnly::HardLink);
        match staged.publish_new(&target, means) {
            Ok(means) => self.remember(means),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Its creator may have been killed before this sync, and our caller will rely on it.
                self.sync_directory(key)?;
                return Err(already_exists(self, key));
            }
            Err(error) => return Err(self.failed(error, "create", Some(key))),
        }
        // If this fails the object stays: another writer may have found it, synced it and relied on it by now.
        // Whoever finds it later syncs it as above before calling it there.
        self.sync_directory(key)
    }

    fn sync_directory(&self, key: &Key) -> Result<()> {
        let directory = self.path(key.parent().as_ref());
        durable::sync_names(&directory).map_err(|error| self.failed(error, "sync the directory of", Some(key)))
    }

    /// Makes it durable that `key` is gone, and removes directories that have become empty.
    fn settle_removal(&self, key: &Key) -> Result<()> {
        let mut directory = key.parent();
        loop {
            match durable::sync_names(&self.path(directory.as_ref())) {
                // Whoever deleted the last object beside ours has removed the directory already.
                Err(error) if error.kind() == ErrorKind::NotFound && directory.is_some() => {
                    directory = directory.and_then(|gone| gone.parent());
                }
                outcome => {
                    outcome.map_err(|error| self.failed(error, "sync the directory of", Some(key)))?;
                    self.remove_empty_directories(key);
                    return Ok(());
                }
            }
        }
    }

    /// Makes an error of what the system says, never one that claims presence or absence.
    fn failed(&self, error: io::Error, verb: &str, key: Option<&Key>) -> Error {
        let is_loop = error.raw_os_error() == Some(Errno::ELOOP as i32);
        if (is_loop || error.kind() == ErrorKind::NotFound)
            && let Err(missing) = self.check_root()
        {
            return missing;
        }
        let error = Error::io(error, format!("{verb} {}", self.describe(key)));
        match error.kind() {
            Kind::NotFound | Kind::AlreadyExists => error.with_kind(Kind::Failed),
            _ => error,
        }
    }

    fn check_root(&self) -> Result<()> {
        let root = self.0.root.display();
        let error = match fs::metadata(&self.0.root) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => Error::new(Kind::Failed, format!("repository {root} is not a directory")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Error::new(Kind::Failed, format!("repository directory {root} does not exist"))
            }
            Err(error) => return Err(Error::io(error, format!("look at repository directory {root}"))),
        };
        Err(error.hint(NO_ROOT_HINT))
    }

    /// Makes sure, after ENOENT, that `key` is absent rather than out of reach.
    fn prove_absent(&self, key: &Key) -> Result<()> {
        self.check_root()?;
        let mut path = self.0.root.clone();
        for component in key.components() {
            path.push(component);
            match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(self.failed(error, "look for", Some(key))),
                // A link on the way must lead somewhere.
                Ok(found) if found.is_symlink() => {
                    fs::metadata(&path).map_err(|error| self.failed(error, "follow the way to", Some(key)))?;
                }
                Ok(_) => {}
            }
        }
        // It is there by now. To somebody who asked a moment ago that is no lie.
        Ok(())
    }

    /// Opens the file of an object, and nothing but a file.
    fn open_object(&self, key: &Key) -> Result<File> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(self.path(Some(key)));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.prove_absent(key)?;
                return Err(not_found(self, key));
            }
            Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) && self.is_a_link(key) => {
                return Err(self.no_object(key));
            }
            Err(error) => return Err(self.failed(error, "open", Some(key))),
        };
        let found = file
            .metadata()
            .map_err(|error| self.failed(error, "look at", Some(key)))?;
        match found {
            found if found.is_file() => Ok(file),
            found if found.is_dir() => Err(not_found(self, key)),
            _ => Err(self.no_object(key)),
        }
    }

    /// Whether the name itself is a link. ELOOP says the same of links on the way that lead in a circle.
    fn is_a_link(&self, key: &Key) -> bool {
        fs::symlink_metadata(self.path(Some(key))).is_ok_and(|found| found.is_symlink())
    }

    fn no_object(&self, key: &Key) -> Error {
        let message = format!("{} is not a regular file", self.describe(Some(key)));
        Error::new(Kind::Refused, message).hint("objects are never links, devices or pipes: somebody put it there")
    }

    /// Removes directories that have become empty, from that of `key` upwards.
    fn remove_empty_directories(&self, key: &Key) {
        let mut directory = key.parent();
        while let Some(empty) = directory {
            // It is not empty, or in use, or already gone: all the same.
            if fs::remove_dir(self.path(Some(&empty))).is_err() {
                return;
            }
            directory = empty.parent();
        }
    }

    /// Moves a file to a name that must be free.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match durable::rename_noreplace(from, to) {
            Err(error) if durable::is_unsupported(&error) => {}
            outcome => return outcome,
        }
        match durable::link_new(from, to) {
            Err(error) if durable::is_unsupported(&error) => durable::claim_and_rename(from, to),
            Ok(()) => fs::remove_file(from),
            outcome => outcome,
        }
    }

    /// Finds out by trying which means of create-only the file system has.
    fn probe(&self) -> Result<CreateOnly> {
        let probe = || {
            let target = Staged::create_in(&self.0.root, OBJECT_MODE)?;
            let staged = Staged::create_in(&self.0.root, OBJECT_MODE)?;
            // A name that nobody else can have, removed in any case.
            let mut name = target.path().as_os_str().to_owned();
            name.push("-probe");
            let means = staged.publish_new(Path::new(&name), CreateOnly::HardLink);
            let _ = fs::remove_file(&name);
            means
        };
        probe().map_err(|error| self.failed(error, "write to", None))
    }
}

fn stat_of(found: &Metadata) -> Result<Stat> {
    Ok(Stat {
        size: found.len(),
        modified: UtcTime::from_unix(found.mtime(), found.mtime_nsec())?,
    })
}

/// Whether an entry of a directory is none of ours: unfinished files, and those that NFS keeps until closed.
fn is_hidden(name: &str) -> bool {
    name.starts_with(STAGING_PREFIX) || name.starts_with(".nfs")
}

struct PosixUpload {
    store: PosixStore,
    key: Key,
    out: BufWriter<HashingWriter<Staged>>,
}

impl Write for PosixUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Upload for PosixUpload {
    fn finish(self: Box<Self>) -> Result<Stored> {
        let Self { store, key, out } = *self;
        let out = out
            .into_inner()
            .map_err(|error| store.failed(error.into_error(), "write", Some(&key)))?;
        let (staged, size, sha256) = out.finish();
        staged
            .sync(size)
            .map_err(|error| store.failed(error, "sync", Some(&key)))?;
        store.publish(staged, &key)?;
        Ok(Stored { size, sha256 })
    }
}

impl Store for PosixStore {
    fn describe(&self, key: Option<&Key>) -> String {
        self.path(key).display().to_string()
    }

    fn prepare(&self) -> Result<()> {
        self.create_root()
    }

    fn create(&self, key: &Key) -> Result<Box<dyn Upload>> {
        let out = BufWriter::with_capacity(BUFFER_BYTES, HashingWriter::new(self.stage(key)?));
        Ok(Box::new(PosixUpload {
            store: self.clone(),
            key: key.clone(),
            out,
        }))
    }

    fn put_new(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        self.put_undigested(key, body)?;
        Ok(Stored {
            size: body.len() as u64,
            sha256: Sha256Digest::of(body),
        })
    }

    fn put_undigested(&self, key: &Key, body: &[u8]) -> Result<()> {
        let mut staged = self.stage(key)?;
        staged
            .write_all(body)
            .map_err(|error| self.failed(error, "write", Some(key)))?;
        staged
            .sync(body.len() as u64)
            .map_err(|error| self.failed(error, "sync", Some(key)))?;
        self.publish(staged, key)
    }

    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let mut file = self.open_object(key)?;
        if from > 0 {
            file.seek(SeekFrom::Start(from))
                .map_err(|error| self.failed(error, "seek in", Some(key)))?;
        }
        Ok(match length {
            Some(length) => Box::new(file.take(length)),
            None => Box::new(file),
        })
    }

    fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        match fs::symlink_metadata(self.path(Some(key))) {
            Ok(found) if found.is_file() => stat_of(&found).map(Some),
            Ok(found) if found.is_dir() => Ok(None),
            Ok(_) => Err(self.no_object(key)),
            Err(error) if error.kind() == ErrorKind::NotFound => self.prove_absent(key).map(|()| None),
            Err(error) => Err(self.failed(error, "look at", Some(key))),
        }
    }

    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, Stat) -> Result<()>) -> Result<()> {
        walk::list(self, prefix, each)
    }

    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>> {
        let entries = walk::entries(self, prefix)?;
        let mut names: Vec<String> = entries.into_iter().map(walk::Entry::into_name).collect();
        names.sort();
        Ok(names)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        match fs::remove_file(self.path(Some(key))) {
            Ok(()) => self.settle_removal(key),
            Err(error) if error.kind() == ErrorKind::NotFound => self.prove_absent(key),
            Err(error) if error.kind() == ErrorKind::IsADirectory => Ok(()),
            Err(error) => Err(self.failed(error, "delete", Some(key))),
        }
    }

    fn move_aside(&self, from: &Key, to: &Key) -> Result<()> {
        drop(self.open_object(from)?);
        self.create_directories(to)?;
        match self.rename_new(&self.path(Some(from)), &self.path(Some(to))) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(already_exists(self, to)),
            outcome => outcome.map_err(|error| self.failed(error, "move aside", Some(from)))?,
        }
        // The new name first: what is found under both is not lost.
        self.sync_directory(to)?;
        self.settle_removal(from)
    }

    fn now(&self) -> Result<UtcTime> {
        let touch = || Staged::create_in(&self.0.root, OBJECT_MODE)?.file().metadata();
        let found = touch().map_err(|error| self.failed(error, "write to", None))?;
        Ok(stat_of(&found)?.modified)
    }

    fn exclusive(&self) -> Exclusive {
        let means = self
            .means()
            .or_else(|| self.probe().inspect(|means| self.remember(*means)).ok());
        match means {
            Some(CreateOnly::HardLink) => Exclusive::HardLink,
            Some(CreateOnly::RenameNoReplace) => Exclusive::RenameNoReplace,
            Some(CreateOnly::OExcl) => Exclusive::OExcl,
            None => Exclusive::Unknown,
        }
    }

    fn free_space(&self) -> Result<Option<Space>> {
        self.check_root()?;
        let found = nix::sys::statvfs::statvfs(&self.0.root).map_err(io::Error::from);
        let found = found.map_err(|error| self.failed(error, "look at the file system of", None))?;
        let unit = found.fragment_size();
        Ok(Some(Space {
            total: found.blocks().saturating_mul(unit),
            available: found.blocks_available().saturating_mul(unit),
        }))
    }

    fn sweep(&self, age: Duration) -> Result<u64> {
        let before = self.now()?.minus(age);
        walk::sweep(&self.0.root, before).context(|| format!("sweep {}", self.describe(None)))
    }
}

#[cfg(test)]
mod tests;
