//! Looks at the places that are to be filled: whether they are empty, which are one, how much room there is.
//!
//! Promises that nothing is written into a directory that holds anything.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::error::{Context, Error, Kind, Result};

use nix::unistd::AccessFlags;

use common::postgres::SystemId;

use crate::delta;
use crate::layout::{Layout, MARKER, Root};

/// Refuses a layout that must not or cannot be filled: a directory that holds something, lies in a server's or a
/// repository's, or may not be written by this user. `keep_out`: the configured repositories, by name. With `delta` a cluster of that
/// system may be there already.
///
/// # Errors
/// `Refused`; what looking gave.
pub fn check(layout: &Layout, keep_out: &[(String, PathBuf)], delta: Option<SystemId>) -> Result<()> {
    for (root, path) in layout.roots() {
        check_outside(root, path, keep_out)?;
        match delta {
            Some(system) if delta::is_filled(path)? => delta::check(root, path, layout, system)?,
            _ => check_empty(root, path)?,
        }
        check_writable(root, path)?;
    }
    Ok(())
}

/// Refuses a place inside of what is somebody else's as a whole.
fn check_outside(root: Root, path: &Path, keep_out: &[(String, PathBuf)]) -> Result<()> {
    let (_, real) = real_path(path)?;
    let refused = |inside: String| {
        let message = format!("{root} {} lies inside {inside}", path.display());
        Err(Error::new(Kind::Refused, message).hint(format!("choose a place outside of it with {}", root.flag())))
    };
    for (name, repository) in keep_out {
        let repository = real_path(repository).map_or_else(|_| repository.clone(), |(_, real)| real);
        if real.starts_with(&repository) {
            return refused(format!("repository \"{name}\" ({})", repository.display()));
        }
    }
    for above in real.ancestors().skip(1) {
        let shown = above.display();
        if above.join("PG_VERSION").is_file() && above.join("global").is_dir() {
            return refused(format!("the data directory {shown}"));
        }
        if above.join("repository.json").is_file() && above.join("wal").is_dir() {
            return refused(format!("a repository ({shown})"));
        }
        if above.file_name().is_some_and(is_tablespace_version) {
            return refused(format!("a tablespace ({shown})"));
        }
    }
    Ok(())
}

/// Whether this is the name of what a server makes in a tablespace's directory: `PG_15_202209061`.
fn is_tablespace_version(name: &OsStr) -> bool {
    let parts: Option<Vec<&str>> = name.to_str().map(|name| name.split('_').collect());
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    matches!(parts.as_deref(), Some(["PG", major, catalog]) if number(major) && number(catalog))
}

/// Refuses a place that this user may not fill.
fn check_writable(root: Root, path: &Path) -> Result<()> {
    let user = nix::unistd::geteuid();
    let name = nix::unistd::User::from_uid(user).ok().flatten();
    let name = name.map_or_else(|| format!("user {user}"), |user| user.name);
    let (existing, whole) = real_path(path)?;
    let metadata = existing
        .metadata()
        .context(|| format!("look at {}", existing.display()))?;
    let shown = existing.display();
    if !metadata.is_dir() {
        return Err(Error::new(Kind::Refused, format!("{root}: {shown} is not a directory")));
    }
    // PostgreSQL starts only on a directory of its own.
    if existing == whole && metadata.uid() != user.as_raw() {
        let message = format!("{root} {shown} belongs to another user than {name}");
        return Err(Error::new(Kind::Refused, message).hint(format!("chown {name}: {shown}; chmod 700 {shown}")));
    }
    let needed = AccessFlags::W_OK | AccessFlags::X_OK;
    match nix::unistd::eaccess(&existing, needed) {
        Ok(()) => Ok(()),
        Err(error) => Err(Error::new(
            Kind::Refused,
            format!(
                "{root} {} cannot be made: {name} may not write into {shown}",
                path.display()
            ),
        )
        .because(io::Error::from(error))
        .hint(format!("as root: install -d -o {name} -m 700 {}", path.display()))),
    }
}

fn check_empty(root: Root, path: &Path) -> Result<()> {
    let what = root;
    let shown = path.display();
    let mut entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match path.symlink_metadata() {
                Ok(_) => Err(
                    Error::new(Kind::Refused, format!("{what} {shown} is a link that leads nowhere"))
                        .hint(format!("remove the link, or choose another place with {}", root.flag())),
                ),
                Err(_) => Ok(()),
            };
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(Error::new(Kind::Refused, format!("{what} {shown} is not a directory"))
                .hint(format!("choose another place with {}", root.flag())));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Error::io(error, format!("look into {shown}"))
                .with_kind(Kind::Refused)
                .hint(format!(
                    "it must belong to the user who restores; else choose another place with {}",
                    root.flag()
                )));
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
    } else if let Root::Tablespace(_) = root {
        // Never "empty it": this is where the running original keeps its own.
        let whose = if std::iter::once(Ok(first))
            .chain(entries)
            .flatten()
            .any(|entry| is_tablespace_version(&entry.file_name()))
        {
            " (it holds a server's files: it is the original's own, which may be running)"
        } else {
            ""
        };
        format!("restore it beside, with {}{whose}", root.flag())
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
        let check = || check_empty(Root::Data, &path);
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
            check_empty(Root::Wal, &dir.path().join("file")).unwrap_err().kind(),
            Kind::Refused
        );
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert_eq!(
            check_empty(Root::Wal, &dir.path().join("link")).unwrap_err().kind(),
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

    #[test]
    fn a_tablespace_of_the_original_is_never_to_be_emptied() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("PG_15_202209061")).unwrap();
        let error = check_empty(Root::Tablespace(16385), dir.path()).unwrap_err();
        let hint = error.nearest_hint().unwrap();
        assert!(
            hint.contains("--tablespace 16385=/new/dir") && hint.contains("original"),
            "{hint}"
        );
        assert!(!hint.contains("empty"), "{hint}");
    }

    #[test]
    fn a_place_inside_a_servers_or_a_repositorys_directory_is_refused_behind_links_too() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [
            "live/global",
            "live/base",
            "repo/main/wal",
            "ts/PG_15_202209061",
            "free",
        ] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::write(at("live/PG_VERSION"), "15").unwrap();
        std::fs::write(at("repo/main/repository.json"), "{}").unwrap();
        std::os::unix::fs::symlink(at("live/base"), at("link")).unwrap();
        let configured = [("local".to_owned(), at("configured"))];
        let judged = |name: &str| check_outside(Root::Data, &at(name), &configured);
        for inside in [
            "live/x",
            "live/base/x/y",
            "link/x",
            "repo/main/x",
            "repo/main/backup/x",
            "ts/PG_15_202209061/5",
            "configured",
            "configured/x",
        ] {
            assert_eq!(judged(inside).unwrap_err().kind(), Kind::Refused, "{inside}");
        }
        for outside in ["free", "free/x", "live", "live2", "configured2"] {
            judged(outside).unwrap();
        }
    }

    #[test]
    fn a_place_that_this_user_may_not_fill_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        check_writable(Root::Data, &dir.path().join("a/b")).unwrap();
        check_writable(Root::Data, dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = check_writable(Root::Data, &dir.path().join("file")).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(dir.path(), Some(nix::unistd::Uid::from_raw(65534)), None).unwrap();
            let error = check_writable(Root::Data, dir.path()).unwrap_err();
            assert!(error.nearest_hint().unwrap().contains("chown"), "{error:?}");
        }
    }
}
