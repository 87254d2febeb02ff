//! Walking the directories of a store, one at a time, in the order of the keys.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::{Key, PosixStore, Stat, is_hidden, stat_of};
use crate::durable::STAGING_PREFIX;
use crate::error::{Error, Kind, Result};
use crate::time::UtcTime;

/// A name in a directory of the store; a directory's ends in a slash, so that sorting gives the keys' order:
/// `a-b`, then `a/c`, then `a0`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry(String);

impl Entry {
    fn as_directory(&self) -> Option<&str> {
        self.0.strip_suffix('/')
    }

    pub(super) fn into_name(mut self) -> String {
        if self.0.ends_with('/') {
            self.0.pop();
        }
        self.0
    }
}

/// The entries of one directory, in the order of the keys below them. None where there surely is no directory.
pub(super) fn entries(store: &PosixStore, prefix: Option<&Key>) -> Result<Vec<Entry>> {
    let path = store.path(prefix);
    let failed = |error| store.failed(error, "list", prefix);
    let directory = match (fs::read_dir(&path), prefix) {
        (Ok(directory), _) => directory,
        (Err(error), Some(prefix)) if error.kind() == ErrorKind::NotFound => {
            store.prove_absent(prefix)?;
            return Ok(Vec::new());
        }
        // An object has nothing below it.
        (Err(error), Some(_)) if error.kind() == ErrorKind::NotADirectory && is_file(&path) => return Ok(Vec::new()),
        (Err(error), _) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in directory {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_a_name(name)) else {
            log::warn!("{} is none of the repository's: ignored", entry.path().display());
            continue;
        };
        if is_hidden(name) {
            continue;
        }
        let mut kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() {
            // A directory may lie on another disk; an object may not, and a link that leads nowhere hides some.
            kind = fs::metadata(entry.path()).map_err(failed)?.file_type();
            if !kind.is_dir() {
                let message = format!("{} is a link in place of an object", entry.path().display());
                return Err(Error::new(Kind::Refused, message));
            }
        }
        found.push(Entry(if kind.is_dir() {
            format!("{name}/")
        } else {
            name.to_owned()
        }));
    }
    found.sort_unstable();
    Ok(found)
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

fn is_a_name(name: &str) -> bool {
    is_hidden(name) || Key::parse(name).is_ok()
}

fn below(prefix: Option<&Key>, name: &str) -> Result<Key> {
    prefix.map_or_else(|| Key::parse(name), |prefix| prefix.join(name))
}

/// Shows every object below `prefix`; keeps the entries of the directories on the way in memory, no more.
pub(super) fn list(
    store: &PosixStore,
    prefix: Option<&Key>,
    each: &mut dyn FnMut(Key, Stat) -> Result<()>,
) -> Result<()> {
    for entry in entries(store, prefix)? {
        if let Some(name) = entry.as_directory() {
            // The length of keys bounds the depth, also of links that lead back up.
            list(store, Some(&below(prefix, name)?), each)?;
            continue;
        }
        let key = below(prefix, &entry.0)?;
        match fs::symlink_metadata(store.path(Some(&key))) {
            Ok(found) if found.is_file() => each(key, stat_of(&found)?)?,
            Ok(_) => return Err(store.no_object(&key)),
            // Deleted since the directory was read, unless it is out of reach.
            Err(error) if error.kind() == ErrorKind::NotFound => store.prove_absent(&key)?,
            Err(error) => return Err(store.failed(error, "look at", Some(&key))),
        }
    }
    Ok(())
}

/// Removes staging files last written before a moment.
pub(super) fn sweep(directory: &Path, before: UtcTime) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        // Not one of ours: lost+found at the root of a disk.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(0),
        entries => entries?,
    };
    let mut swept = 0;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            swept += sweep(&entry.path(), before)?;
        } else if kind.is_file()
            && entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(STAGING_PREFIX.as_bytes())
        {
            let stale = entry
                .metadata()
                .is_ok_and(|found| stat_of(&found).is_ok_and(|stat| stat.modified < before));
            if stale && fs::remove_file(entry.path()).is_ok() {
                swept += 1;
            }
        }
    }
    Ok(swept)
}
