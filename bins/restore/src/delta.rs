//! What a restore may keep of what a directory holds already (`--delta`).
//!
//! Promises that only the directory of a cluster of the backup's own system is touched, that no server runs in it, and that nothing is
//! written or removed through a link or a second name of a file. What is kept is found out by the digests of pages, never by times or
//! sizes; that is [`crate::fetch`]'s part.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::error::{Context, Error, Kind, Result};
use common::interrupt;
use common::postgres::{ControlFile, SystemId};
use common::repository::manifest::{Entry, Node};
use common::sorter::{Sorted, Sorter};

use crate::layout::{CONTROL, Layout, MARKER, Root, Spot};
use crate::place::same_place;

/// Where digests wait while the restore runs, in the data directory.
pub const DIGESTS: &str = "pgkeep-restore-digests";
/// What the list of files may take in memory, in bytes.
const SORT_BYTES: usize = 8 << 20;

/// Whether a directory holds anything.
///
/// # Errors
/// What looking gave.
pub fn is_filled(path: &Path) -> Result<bool> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(error, format!("look into {}", path.display()))),
    }
}

/// Refuses a filled directory that is not a part of a cluster of this system, or in which a server runs.
///
/// # Errors
/// `Refused`; what looking gave.
pub fn check(root: Root, path: &Path, layout: &Layout, system: SystemId) -> Result<()> {
    let refused = |why: String, hint: &str| Err(Error::new(Kind::Refused, why).hint(hint));
    let shown = path.display();
    let link = |name: &str| layout.data.join(name);
    match root {
        Root::Data => {
            if path.join("postmaster.pid").exists() {
                return refused(
                    format!("{root} {shown} is in use: it holds postmaster.pid"),
                    "stop that server; if it crashed, make sure that none runs and remove the file",
                );
            }
            check_system(path, system)?;
            let wal = link("pg_wal");
            if layout.wal.is_none() && wal.is_symlink() {
                return refused(
                    format!("{} is a link", wal.display()),
                    "name the directory that it points at: --wal-dir",
                );
            }
            Ok(())
        }
        Root::Wal if same_place(&link("pg_wal"), path) => Ok(()),
        Root::Tablespace(oid) if same_place(&link(&format!("pg_tblspc/{oid}")), path) => Ok(()),
        Root::Wal | Root::Tablespace(_) => refused(
            format!(
                "{root} {shown} is not empty, and no link in {} points at it",
                layout.data.display()
            ),
            "it belongs to another cluster, or to nobody: choose another place",
        ),
        Root::Extra => refused(
            format!("{root} {shown} is not empty"),
            "choose an empty directory with --extra-to",
        ),
    }
}

fn check_system(path: &Path, system: SystemId) -> Result<()> {
    let shown = path.display();
    if path.join(CONTROL).exists() {
        let found = ControlFile::read(path)?.system_id;
        if found == system {
            return Ok(());
        }
        let message = format!("{shown} is the data directory of system {found}, and the backup is of {system}");
        return Err(Error::new(Kind::Refused, message).hint("restore into an empty directory, without --delta"));
    }
    if path.join(MARKER).exists() {
        return Ok(());
    }
    let message = format!("{shown} is not empty, and not a data directory: it has no {CONTROL}");
    Err(Error::new(Kind::Refused, message)
        .hint("restore into an empty directory; --delta is for a directory that a server has used"))
}

/// What there is under a name of the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Directory,
    File,
    Link,
    /// A file that has another name besides, or something special.
    Other,
}

impl Is {
    fn of(path: &Path) -> Result<Self> {
        let found = path
            .symlink_metadata()
            .context(|| format!("look at {}", path.display()))?;
        let kind = found.file_type();
        Ok(if kind.is_dir() {
            Self::Directory
        } else if kind.is_symlink() {
            Self::Link
        } else if kind.is_file() && found.nlink() == 1 {
            Self::File
        } else {
            Self::Other
        })
    }

    fn code(self) -> u8 {
        self as u8
    }

    /// Whether what the manifest says may stay in its place.
    fn serves(code: u8, entry: &Entry, spot: &Spot) -> bool {
        match (spot, &entry.node) {
            (Spot::Skip, _) => false,
            (Spot::Link(..), _) | (_, Node::Link(_)) => code == Self::Link.code(),
            (_, Node::Directory) => code == Self::Directory.code(),
            (_, Node::File(_)) => code == Self::File.code(),
        }
    }
}

/// Everything that is there, by its name in the manifest.
fn list(layout: &Layout, major: u32) -> Result<Sorted> {
    let mut sorter = Sorter::new(SORT_BYTES, &layout.data);
    let mut waiting: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let version = format!("PG_{major}_");
    for (root, path) in layout.roots() {
        match root {
            Root::Data => waiting.push((path.to_owned(), b"data".to_vec())),
            // The directories of other versions are other clusters'.
            Root::Tablespace(oid) => {
                for (name, found) in children(path)? {
                    if name.starts_with(version.as_bytes()) {
                        let below = [format!("tablespace/{oid}/").as_bytes(), &name].concat();
                        sorter.push(&below, &value(&found)?)?;
                        if Is::of(&found)? == Is::Directory {
                            waiting.push((found, below));
                        }
                    }
                }
            }
            Root::Wal => waiting.push((path.to_owned(), b"data/pg_wal".to_vec())),
            Root::Extra => {}
        }
    }
    while let Some((directory, below)) = waiting.pop() {
        interrupt::check()?;
        for (name, found) in children(&directory)? {
            let below = [&below[..], b"/", &name].concat();
            if below == [b"data/", MARKER.as_bytes()].concat() {
                continue;
            }
            sorter.push(&below, &value(&found)?)?;
            if Is::of(&found)? == Is::Directory {
                waiting.push((found, below));
            }
        }
    }
    sorter.finish()
}

fn value(path: &Path) -> Result<Vec<u8>> {
    Ok([&[Is::of(path)?.code()][..], path.as_os_str().as_bytes()].concat())
}

fn children(directory: &Path) -> Result<Vec<(Vec<u8>, PathBuf)>> {
    let doing = || format!("look into {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(doing)?,
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry.context(doing)?;
        children.push((entry.file_name().as_bytes().to_vec(), entry.path()));
    }
    Ok(children)
}

/// Removes everything that the backup does not have, or has as something else. pg_control is gone already.
///
/// # Errors
/// What reading the manifest or removing gave.
pub fn clear(
    layout: &Layout,
    major: u32,
    each_entry: impl FnOnce(&mut dyn FnMut(Entry) -> Result<()>) -> Result<()>,
) -> Result<u64> {
    let mut there = list(layout, major)?.peekable();
    let mut directories: Vec<PathBuf> = Vec::new();
    let mut removed = 0u64;
    let mut remove = |value: &[u8]| -> Result<()> {
        let (code, path) = value.split_first().unwrap_or((&0, &[]));
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
        removed += 1;
        if *code == Is::Directory.code() {
            directories.push(path);
            return Ok(());
        }
        std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))
    };
    let mut take_before = |until: Option<&[u8]>, entry: Option<(&Entry, &Spot)>| -> Result<()> {
        while let Some(next) = there.next_if(|next| {
            next.as_ref()
                .map_or(true, |(name, _)| until.is_none_or(|until| name.as_slice() <= until))
        }) {
            let (name, value) = next?;
            let same = until.is_some_and(|until| name == until);
            let serves =
                same && entry.is_some_and(|(entry, spot)| Is::serves(value.first().copied().unwrap_or(0), entry, spot));
            if !serves {
                remove(&value)?;
            }
        }
        Ok(())
    };
    each_entry(&mut |entry: Entry| {
        let spot = layout.spot(&entry.path)?;
        take_before(Some(&entry.path), Some((&entry, &spot)))
    })?;
    take_before(None, None)?;
    // What lay in them came behind them in the list, and is gone.
    for directory in directories.iter().rev() {
        std::fs::remove_dir(directory).context(|| format!("remove {}", directory.display()))?;
    }
    Ok(removed)
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
