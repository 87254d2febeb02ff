//! Where everything goes, and whether it may.
//!
//! Promises that nothing is written into a directory that holds anything, nor through a link that a repository named:
//! links are made last, and every path below goes through directories that this restore made itself.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use common::error::{Context, Error, Kind, Result};
use common::repository::backup::Tablespace;

/// A restore that has begun and not ended leaves this file in the data directory.
pub const MARKER: &str = "pgkeep-restore-unfinished";
/// pg_control has this name until everything else is on disk.
pub const CONTROL_TEMPORARY: &str = "global/pg_control.pgkeep-restore";
/// pg_control's own place.
pub const CONTROL: &str = "global/pg_control";

/// What the command line says about places.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The data directory, absolute.
    pub to: PathBuf,
    /// `--tablespace OLD=NEW`, OLD an OID or a path.
    pub tablespaces: Vec<(String, PathBuf)>,
    /// `--wal-dir`, absolute.
    pub wal: Option<PathBuf>,
    /// `--extra-to`, absolute.
    pub extra: Option<PathBuf>,
}

/// Where each part of a backup goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The data directory.
    pub data: PathBuf,
    /// Tablespaces by OID.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// pg_wal, if it shall be a link.
    pub wal: Option<PathBuf>,
    /// Files of extra_paths; without it they stay in the repository.
    pub extra: Option<PathBuf>,
}

/// What becomes of one name of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spot {
    /// It goes here.
    At(PathBuf),
    /// It becomes a link at the first path that points at the second.
    Link(PathBuf, PathBuf),
    /// It is left out.
    Skip,
}

impl Layout {
    /// Decides where the parts of a backup with these tablespaces go. Pure.
    ///
    /// # Errors
    /// `Config` if a mapping names no tablespace of the backup, or two parts share a place.
    pub fn new(places: &Places, tablespaces: &[Tablespace]) -> Result<Self> {
        let mut targets: BTreeMap<u32, PathBuf> = tablespaces
            .iter()
            .map(|one| (one.oid, PathBuf::from(&one.location)))
            .collect();
        for (old, new) in &places.tablespaces {
            let named = |one: &&Tablespace| one.oid.to_string() == *old || Path::new(&one.location) == Path::new(old);
            let found = tablespaces.iter().find(named).ok_or_else(|| {
                let known: Vec<String> = tablespaces
                    .iter()
                    .map(|one| format!("{}={}", one.oid, one.location))
                    .collect();
                let known = if known.is_empty() {
                    "it has none".to_owned()
                } else {
                    format!("it has {}", known.join(", "))
                };
                Error::new(Kind::Config, format!("the backup has no tablespace \"{old}\"")).hint(known)
            })?;
            targets.insert(found.oid, new.clone());
        }
        let plain = |path: &PathBuf| path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        if let Some((oid, path)) = targets.iter().find(|(_, path)| !plain(path)) {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "tablespace {oid} has no absolute path without \"..\": \"{}\"",
                    path.display()
                ),
            )
            .hint(format!("give it one: --tablespace {oid}=/...")));
        }
        let layout = Self {
            data: places.to.clone(),
            tablespaces: targets,
            wal: places.wal.clone(),
            extra: places.extra.clone(),
        };
        layout.check_apart()?;
        Ok(layout)
    }

    /// Every directory that is filled, with what it is.
    pub fn roots(&self) -> Vec<(String, &Path)> {
        let mut roots = vec![("the data directory".to_owned(), self.data.as_path())];
        roots.extend(
            self.tablespaces
                .iter()
                .map(|(oid, path)| (format!("tablespace {oid}"), path.as_path())),
        );
        roots.extend(
            self.wal
                .iter()
                .map(|path| ("the WAL directory".to_owned(), path.as_path())),
        );
        roots.extend(
            self.extra
                .iter()
                .map(|path| ("the directory for extra files".to_owned(), path.as_path())),
        );
        roots
    }

    fn check_apart(&self) -> Result<()> {
        let roots = self.roots();
        for (at, (what, path)) in roots.iter().enumerate() {
            for (other, second) in roots.iter().skip(at + 1) {
                if path.starts_with(second) || second.starts_with(path) {
                    let message = format!(
                        "{what} ({}) and {other} ({}) lie in one another",
                        path.display(),
                        second.display()
                    );
                    return Err(Error::new(Kind::Config, message).hint("give each a directory of its own"));
                }
            }
        }
        Ok(())
    }

    /// Where a name of the manifest goes. Names have been checked by the manifest's reader.
    ///
    /// # Errors
    /// `Corrupt` if the manifest names a tablespace that the backup does not have, or a part that is unknown.
    pub fn spot(&self, name: &[u8]) -> Result<Spot> {
        let text = || String::from_utf8_lossy(name).into_owned();
        let (part, below) = match name.iter().position(|byte| *byte == b'/') {
            Some(at) => (
                name.get(..at).unwrap_or_default(),
                name.get(at + 1..).unwrap_or_default(),
            ),
            None => (name, &[][..]),
        };
        match part {
            b"data" => Ok(self.data_spot(below)),
            b"tablespace" => {
                let mut parts = below.splitn(2, |byte| *byte == b'/');
                let oid = parts
                    .next()
                    .and_then(|oid| std::str::from_utf8(oid).ok())
                    .and_then(|oid| oid.parse().ok());
                let Some(root) = oid.and_then(|oid: u32| self.tablespaces.get(&oid)) else {
                    return Err(Error::new(
                        Kind::Corrupt,
                        format!("the backup has no tablespace for \"{}\"", text()),
                    ));
                };
                Ok(Spot::At(joined(root, parts.next().unwrap_or_default())))
            }
            b"extra" => Ok(match &self.extra {
                Some(root) => Spot::At(joined(root, below)),
                None => Spot::Skip,
            }),
            _ => Err(Error::new(
                Kind::Corrupt,
                format!("the manifest names \"{}\", which belongs nowhere", text()),
            )),
        }
    }

    fn data_spot(&self, below: &[u8]) -> Spot {
        // Links are made from the layout, which a tablespace_map would overrule with the old places; a restored
        // manifest of PostgreSQL's would not describe this restore.
        if matches!(
            below,
            b"tablespace_map" | b"backup_manifest" | b"postmaster.pid" | b"postmaster.opts"
        ) {
            return Spot::Skip;
        }
        if below == CONTROL.as_bytes() {
            return Spot::At(self.data.join(CONTROL_TEMPORARY));
        }
        if let Some(wal) = &self.wal {
            if below == b"pg_wal" {
                return Spot::Link(self.data.join("pg_wal"), wal.clone());
            }
            if let Some(inside) = below.strip_prefix(b"pg_wal/") {
                return Spot::At(joined(wal, inside));
            }
        }
        let oid = below
            .strip_prefix(b"pg_tblspc/")
            .and_then(|oid| std::str::from_utf8(oid).ok());
        if let Some(target) = oid
            .and_then(|oid| oid.parse().ok())
            .and_then(|oid: u32| self.tablespaces.get(&oid))
        {
            return Spot::Link(joined(&self.data, below), target.clone());
        }
        Spot::At(joined(&self.data, below))
    }

    /// Refuses a directory that holds anything or is none.
    ///
    /// # Errors
    /// `Refused`; what looking gave.
    pub fn check_empty(&self) -> Result<()> {
        self.roots()
            .into_iter()
            .try_for_each(|(what, path)| check_empty(&what, path))
    }
}

fn joined(root: &Path, below: &[u8]) -> PathBuf {
    if below.is_empty() {
        root.to_owned()
    } else {
        root.join(OsStr::from_bytes(below))
    }
}

fn check_empty(what: &str, path: &Path) -> Result<()> {
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

    fn tablespaces() -> Vec<Tablespace> {
        vec![
            Tablespace {
                oid: 16400,
                location: "/srv/ts one".into(),
            },
            Tablespace {
                oid: 16401,
                location: "/srv/two".into(),
            },
        ]
    }

    fn places(mappings: &[&str]) -> Places {
        let split = |text: &&str| {
            text.split_once('=')
                .map(|(old, new)| (old.to_owned(), new.into()))
                .unwrap()
        };
        let tablespaces = mappings.iter().map(split).collect();
        Places {
            to: "/pg".into(),
            tablespaces,
            ..Places::default()
        }
    }

    fn layout() -> Layout {
        let places = Places {
            wal: Some("/wal".into()),
            extra: Some("/extra".into()),
            ..places(&["16401=/new"])
        };
        Layout::new(&places, &tablespaces()).unwrap()
    }

    #[test]
    fn a_tablespace_is_mapped_by_oid_or_by_path_and_else_goes_where_it_was() {
        for mapping in ["16400=/new", "/srv/ts one=/new"] {
            let layout = Layout::new(&places(&[mapping]), &tablespaces()).unwrap();
            assert_eq!(
                layout.tablespaces,
                [(16400, "/new".into()), (16401, "/srv/two".into())].into(),
                "{mapping}"
            );
        }
    }

    #[test]
    fn an_unknown_tablespace_or_a_shared_place_is_refused() {
        for mapping in [
            "16402=/new",
            "/srv/three=/new",
            "16400=/srv/two",
            "16400=/pg/ts",
            "16400=/pg",
            "16400=/srv",
            "16400=new",
            "16400=/a/../b",
        ] {
            let error = Layout::new(&places(&[mapping]), &tablespaces()).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{mapping}");
        }
    }

    #[test]
    fn every_name_has_its_place() {
        let at = |path: &str| Spot::At(path.into());
        let table = [
            ("data", at("/pg")),
            ("data/base/5/1259", at("/pg/base/5/1259")),
            ("data/global/pg_control", at("/pg/global/pg_control.pgkeep-restore")),
            ("data/tablespace_map", Spot::Skip),
            ("data/pg_wal", Spot::Link("/pg/pg_wal".into(), "/wal".into())),
            ("data/pg_wal/archive_status", at("/wal/archive_status")),
            ("data/pg_tblspc", at("/pg/pg_tblspc")),
            (
                "data/pg_tblspc/16401",
                Spot::Link("/pg/pg_tblspc/16401".into(), "/new".into()),
            ),
            ("tablespace/16401", at("/new")),
            (
                "tablespace/16400/PG_15_202209061/5/1",
                at("/srv/ts one/PG_15_202209061/5/1"),
            ),
            ("extra/etc/postgresql", at("/extra/etc/postgresql")),
        ];
        for (name, expected) in table {
            assert_eq!(layout().spot(name.as_bytes()).unwrap(), expected, "{name}");
        }
        for name in ["tablespace/9/x", "tablespace", "other/x", ""] {
            assert_eq!(
                layout().spot(name.as_bytes()).unwrap_err().kind(),
                Kind::Corrupt,
                "{name}"
            );
        }
        let plain = Layout::new(&places(&[]), &tablespaces()).unwrap();
        assert_eq!(plain.spot(b"extra/etc/x").unwrap(), Spot::Skip);
        assert_eq!(plain.spot(b"data/pg_wal").unwrap(), at("/pg/pg_wal"));
    }

    #[test]
    fn a_directory_that_holds_anything_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let check = || check_empty("the data directory", &path);
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
            check_empty("x", &dir.path().join("file")).unwrap_err().kind(),
            Kind::Refused
        );
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert_eq!(
            check_empty("x", &dir.path().join("link")).unwrap_err().kind(),
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
