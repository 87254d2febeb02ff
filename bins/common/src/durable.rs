//! Files that appear whole or not at all, and stay after the power goes.
//!
//! Only this module and `storage/posix.rs` rename or sync. The order is always the same: write under a staging
//! name in the directory of the target, sync the file, give it its name, sync the directory. A name that must
//! be new is given by hard link, which fails if the name is taken; where the file system has none, by
//! renameat2(RENAME_NOREPLACE); where that is missing too, by claiming the name with O_EXCL and renaming over
//! the claim, so that for a moment an empty file can be seen.
//!
//! What is left to callers: removing staging files of killed processes (their names begin with
//! [`STAGING_PREFIX`]). Modes are exact whatever the umask.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::digest::hex;
use crate::error::{Context, Error, Kind, Result};

/// How the names of files begin that are still being written.
pub const STAGING_PREFIX: &str = ".staging-";

/// How a name was given to a file so that a name already taken was an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CreateOnly {
    /// link(2).
    HardLink,
    /// renameat2(2) with RENAME_NOREPLACE.
    RenameNoReplace,
    /// open(2) with O_EXCL, then rename(2) over the empty claim.
    OExcl,
}

/// A file under a staging name; it is removed when dropped without having been published.
#[derive(Debug)]
pub struct Staged {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Staged {
    /// Creates an empty staging file in `directory`.
    ///
    /// # Errors
    /// What open(2) says; `NotFound` if there is no such directory.
    pub fn create_in(directory: &Path, mode: u32) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = directory.join(format!("{STAGING_PREFIX}{}", hex(&random)));
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let staged = Self {
            file,
            path,
            published: false,
        };
        // The umask takes away what others may do, never what the owner may.
        if mode & 0o077 != 0 {
            staged.file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(staged)
    }

    /// Creates an empty staging file in the directory of `target`.
    ///
    /// # Errors
    /// As [`create_in`](Self::create_in).
    pub fn beside(target: &Path, mode: u32) -> io::Result<Self> {
        Self::create_in(directory_of(target), mode)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies for the time being.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the file and makes sure that it is `size` bytes long.
    ///
    /// # Errors
    /// What fsync(2) says, or that the size differs.
    pub fn sync(&self, size: u64) -> io::Result<()> {
        self.file.sync_all()?;
        let found = self.file.metadata()?.len();
        if found == size {
            return Ok(());
        }
        let message = format!("{size} bytes were written and the file has {found}");
        Err(Error::new(Kind::Failed, message).into())
    }

    /// Gives the file the name `target` unless it is taken, trying the means from `first` on.
    ///
    /// Neither the file nor the directory is synced. Says which means it was.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken.
    pub fn publish_new(mut self, target: &Path, first: CreateOnly) -> io::Result<CreateOnly> {
        if first <= CreateOnly::HardLink {
            match link_new(&self.path, target) {
                Err(error) if is_unsupported(&error) => {}
                outcome => return outcome.map(|()| CreateOnly::HardLink),
            }
        }
        if first <= CreateOnly::RenameNoReplace {
            match rename_noreplace(&self.path, target) {
                Err(error) if is_unsupported(&error) => {}
                outcome => {
                    self.published = outcome.is_ok();
                    return outcome.map(|()| CreateOnly::RenameNoReplace);
                }
            }
        }
        claim_and_rename(&self.path, target)?;
        self.published = true;
        Ok(CreateOnly::OExcl)
    }

    /// Gives the file the name `target` in place of what has it. Nothing is synced.
    ///
    /// # Errors
    /// What rename(2) says.
    pub fn publish_over(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be done about a failure here, and nothing depends on it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the file `from` the further name `to` unless it is taken.
///
/// # Errors
/// `AlreadyExists` if it is.
pub fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        // NFS: the answer to a first request may be lost, and its repetition finds our own link.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && is_same_file(from, to) => Ok(()),
        outcome => outcome,
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::symlink_metadata(one), fs::symlink_metadata(other)) {
        (Ok(one), Ok(other)) => one.dev() == other.dev() && one.ino() == other.ino(),
        _ => false,
    }
}

/// Renames `from` to `to` in one step unless that name is taken.
///
/// # Errors
/// `AlreadyExists` if it is; [`is_unsupported`] where the file system cannot do it.
pub fn rename_noreplace(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?)
}

/// Renames `from` over a name that it has claimed before.
///
/// # Errors
/// `AlreadyExists` if the name is taken.
pub fn claim_and_rename(from: &Path, to: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o400).open(to)?;
    fs::rename(from, to).inspect_err(|_| {
        // The claim is ours and empty; if it stays, it is found as an object of the wrong size.
        let _ = fs::remove_file(to);
    })
}

/// Whether the file system does not know the call, as against refusing it now.
pub fn is_unsupported(error: &io::Error) -> bool {
    let known = [
        Errno::EPERM,
        Errno::EOPNOTSUPP,
        Errno::ENOSYS,
        Errno::EINVAL,
        Errno::EMLINK,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| known.contains(&Errno::from_raw(code)))
}

/// The directory that `path` names an entry of.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates the file `path` with these bytes; it is durable on return.
///
/// # Errors
/// `AlreadyExists` if the name is taken (by something as durable as this would have been).
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || {
        let mut staged = Staged::beside(path, mode)?;
        staged.write_all(bytes)?;
        staged.sync(bytes.len() as u64)?;
        staged.publish_new(path, CreateOnly::HardLink)
    };
    let outcome = write().context(|| format!("create {}", path.display()));
    match outcome {
        Err(error) if error.kind() != Kind::AlreadyExists => Err(error),
        outcome => sync_dir(directory_of(path)).and(outcome.map(drop)),
    }
}

/// Puts these bytes in the file `path`, in place of what it held; it is durable on return.
///
/// # Errors
/// Whatever the file system says; then the old content still stands.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    replace_with(path, bytes, mode, true)?;
    sync_dir(directory_of(path))
}

/// Like [`replace`] without syncing, for what is rewritten all the time and may be lost: status, markers.
///
/// # Errors
/// Whatever the file system says; then the old content still stands.
pub fn replace_unsynced(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    replace_with(path, bytes, mode, false)
}

fn replace_with(path: &Path, bytes: &[u8], mode: u32, sync: bool) -> Result<()> {
    let write = || {
        let mut staged = Staged::beside(path, mode)?;
        staged.write_all(bytes)?;
        if sync {
            staged.sync(bytes.len() as u64)?;
        }
        staged.publish_over(path)
    };
    write().context(|| format!("write {}", path.display()))
}

/// Renames a finished file, in place of what has the name; nothing is synced.
///
/// # Errors
/// Whatever the file system says, `NotFound` if `from` is not there.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).context(|| format!("rename {} to {}", from.display(), to.display()))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_dir(path: &Path) -> Result<()> {
    sync_names(path).context(|| format!("sync directory {}", path.display()))
}

/// [`sync_dir`], with the error as the system says it.
///
/// Some network and FUSE file systems cannot sync a directory and answer EINVAL or EBADF; as in PostgreSQL
/// (`src/common/file_utils.c`, `fsync_fname`) that is no failure, for there is nothing else to be had.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_names(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        Err(error) if [Some(Errno::EINVAL as i32), Some(Errno::EBADF as i32)].contains(&error.raw_os_error()) => Ok(()),
        outcome => outcome,
    }
}

/// Creates a directory with `mode`, and those above that are missing with 0755: what is private keeps itself so, and
/// does not close what lies beside it. Each name is durable on return.
///
/// # Errors
/// Whatever the file system says.
pub fn create_dir_all(path: &Path, mode: u32) -> Result<()> {
    let mut base = path;
    while !base.is_dir() {
        match base.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => base = parent,
            _ => {
                base = Path::new(".");
                break;
            }
        }
    }
    let below = path.strip_prefix(base).unwrap_or(path);
    if let Some(above) = below.parent() {
        create_dirs_below(base, above, 0o755)?;
    }
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !below.as_os_str().is_empty() => (parent, name),
        _ => return Ok(()),
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    create_dirs_below(parent, Path::new(name), mode)
}

/// Creates the directories of the relative path `below` in the directory `base`, which must exist.
///
/// # Errors
/// Whatever the file system says.
pub fn create_dirs_below(base: &Path, below: &Path, mode: u32) -> Result<()> {
    let mut path = base.to_owned();
    for component in below.components() {
        let parent = path.clone();
        path.push(component);
        if !matches!(component, Component::Normal(_)) {
            continue;
        }
        if create_dir(&path, mode).context(|| format!("create directory {}", path.display()))? {
            sync_dir(&parent)?;
        }
    }
    Ok(())
}

/// Creates one directory; says whether it was missing.
fn create_dir(path: &Path, mode: u32) -> io::Result<bool> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) if mode & 0o077 != 0 => fs::set_permissions(path, Permissions::from_mode(mode)).map(|()| true),
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Syncs the whole file system that holds `path`: cheaper than file by file after a restore.
///
/// # Errors
/// Whatever the file system says; since Linux 5.8 also that an earlier write was lost.
pub fn sync_tree_fs(path: &Path) -> Result<()> {
    let sync = || Ok(nix::unistd::syncfs(File::open(path)?)?);
    sync().map_err(|error: io::Error| Error::io(error, format!("sync the file system of {}", path.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_has_its_mode_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_new(&path, b"one", 0o644).unwrap();
        let error = write_new(&path, b"two", 0o644).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn every_means_of_naming_refuses_a_taken_name_and_leaves_nothing_behind() {
        for means in [CreateOnly::HardLink, CreateOnly::RenameNoReplace, CreateOnly::OExcl] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            let stage = |bytes: &[u8]| {
                let mut staged = Staged::beside(&path, 0o400).unwrap();
                staged.write_all(bytes).unwrap();
                staged.publish_new(&path, means)
            };
            assert_eq!(stage(b"one").unwrap(), means);
            assert_eq!(stage(b"two").unwrap_err().kind(), ErrorKind::AlreadyExists, "{means:?}");
            assert_eq!(fs::read(&path).unwrap(), b"one");
            assert_eq!(names(dir.path()), ["f"], "{means:?}");
        }
    }

    #[test]
    fn replacing_changes_content_and_mode_and_leaves_no_staging_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        replace(&path, b"one", 0o600).unwrap();
        replace_unsynced(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn a_file_that_is_shorter_than_what_was_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut staged = Staged::create_in(dir.path(), 0o600).unwrap();
        staged.write_all(b"abc").unwrap();
        assert!(staged.sync(3).is_ok());
        assert!(staged.sync(4).is_err());
    }

    #[test]
    fn missing_directories_are_created_with_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_dir_all(&path, 0o755).unwrap();
        create_dir_all(&path, 0o700).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a/b")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
        let private = dir.path().join("d/e/f");
        create_dir_all(&private, 0o700).unwrap();
        assert_eq!(fs::metadata(dir.path().join("d/e")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(&private).unwrap().mode() & 0o7777, 0o700);
        create_dir_all(dir.path(), 0o700).unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        assert!(create_dir_all(&dir.path().join("file/x"), 0o700).is_err());
    }

    #[test]
    fn a_missing_base_directory_is_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("gone");
        assert!(create_dirs_below(&base, Path::new("a"), 0o700).is_err());
        assert!(!base.exists());
    }

    #[test]
    fn the_file_system_of_a_directory_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        sync_tree_fs(dir.path()).unwrap();
        assert!(sync_tree_fs(&dir.path().join("gone")).is_err());
    }
}
