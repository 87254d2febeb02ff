//! Looks at the places that are to be filled: whether they are empty, which are one, how much room there is.
//!
//! Promises that nothing is written into a directory that holds anything.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::error::{Context, Error, Kind, Result};

use crate::layout::{Layout, MARKER};

/// Refuses a layout of which any directory holds something or is none.
///
/// # Errors
/// `Refused`; what looking gave.
pub fn check_empty(layout: &Layout) -> Result<()> {
    let roots = layout.roots();
    roots.into_iter().try_for_each(|(what, path)| check_one(&what, path))
}

fn check_one(what: &str, path: &Path) -> Result<()> {
    let shown = path.display();
    let mut entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match path.symlink_metadata() {
                Ok(_) => Err(Error::new(
                    Kind::Refused,
                    format!("{what} {shown} is a link that leads nowhere"),
                )),
                Err(_) => Ok(()),
            };
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(Error::new(Kind::Refused, format!("{what} {shown} is not a directory")));
        }
        Err(error) => return Err(Error::io(error, format!("look into {shown}"))),
    };
    let Some(first) = entries.next().transpose().context(|| format!("look into {shown}"))? else {
        return Ok(());
    };
    let name = first.file_name();
    if path.join("postmaster.pid").exists() {
        return Err(Error::new(
            Kind::Refused,
            format!("{what} {shown} is in use: it holds postmaster.pid"),
        )
        .hint("stop that server, then empty the directory or restore into another one"));
    }
    let error = Error::new(
        Kind::Refused,
        format!("{what} {shown} is not empty: it holds \"{}\"", name.display()),
    );
    Err(error.hint(if path.join(MARKER).exists() {
        format!("an earlier restore into it did not end; empty it and try again: find {shown} -mindepth 1 -delete")
    } else if name == "lost+found" {
        "it is a mount point: restore into a directory below it".to_owned()
    } else {
        "empty it, or restore into another directory".to_owned()
    }))
}

/// The nearest directory that exists, and the path as it really is, links resolved.
///
/// # Errors
/// What looking gave.
pub fn real_path(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let mut missing = PathBuf::new();
    for ancestor in path.ancestors() {
        match ancestor.canonicalize() {
            Ok(found) => {
                let whole = if missing.as_os_str().is_empty() {
                    found.clone()
                } else {
                    found.join(&missing)
                };
                return Ok((found, whole));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = ancestor.file_name().unwrap_or_default();
                let rest = std::mem::take(&mut missing);
                missing = if rest.as_os_str().is_empty() {
                    name.into()
                } else {
                    Path::new(name).join(rest)
                };
            }
            Err(error) => return Err(Error::io(error, format!("look at {}", ancestor.display()))),
        }
    }
    Err(Error::new(
        Kind::Config,
        format!("\"{}\" is not an absolute path", path.display()),
    ))
}

/// Whether both name the same directory, existing or not.
pub fn same_place(a: &Path, b: &Path) -> bool {
    match (real_path(a), real_path(b)) {
        (Ok((_, a)), Ok((_, b))) => a == b,
        _ => a == b,
    }
}

/// A file system that is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// A directory on it.
    pub path: PathBuf,
    /// What goes there, in bytes.
    pub needed: u64,
    /// What is free, in bytes.
    pub free: u64,
}

/// Sums up what each file system must take.
///
/// # Errors
/// What looking gave.
pub fn volumes(needs: &[(PathBuf, u64)]) -> Result<Vec<Volume>> {
    let mut found: Vec<(u64, Volume)> = Vec::new();
    for (path, needed) in needs {
        let (existing, _) = real_path(path)?;
        let device = existing
            .metadata()
            .context(|| format!("look at {}", existing.display()))?
            .dev();
        if let Some((_, volume)) = found.iter_mut().find(|(other, _)| *other == device) {
            volume.needed = volume.needed.saturating_add(*needed);
            continue;
        }
        let statistics = nix::sys::statvfs::statvfs(&existing)
            .map_err(io::Error::from)
            .context(|| format!("ask for free space at {}", existing.display()))?;
        let free = statistics.blocks_available().saturating_mul(statistics.fragment_size());
        found.push((
            device,
            Volume {
                path: path.clone(),
                needed: *needed,
                free,
            },
        ));
    }
    Ok(found.into_iter().map(|(_, volume)| volume).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_directory_that_holds_anything_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let check = || check_one("the data directory", &path);
        check().unwrap();
        std::fs::create_dir(&path).unwrap();
        check().unwrap();
        for (name, hint) in [
            ("x", "empty it"),
            (MARKER, "did not end"),
            ("postmaster.pid", "stop that server"),
        ] {
            std::fs::write(path.join(name), "").unwrap();
            let error = check().unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            assert!(error.nearest_hint().unwrap().contains(hint), "{error:?}");
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(
            check_one("x", &dir.path().join("file")).unwrap_err().kind(),
            Kind::Refused
        );
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert_eq!(
            check_one("x", &dir.path().join("link")).unwrap_err().kind(),
            Kind::Refused
        );
    }

    #[test]
    fn a_place_is_the_same_through_links_and_before_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        assert!(same_place(&dir.path().join("real/a/b"), &dir.path().join("link/a/b")));
        assert!(!same_place(&dir.path().join("real/a"), &dir.path().join("link/b")));
    }

    #[test]
    fn one_file_system_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let found = volumes(&[(dir.path().join("a"), 5), (dir.path().join("b/c"), 7)]).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].needed, 12);
        assert!(found[0].free > 0);
    }
}
