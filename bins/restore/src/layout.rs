//! Where everything goes. Pure.
//!
//! Promises that nothing is written through a link that a repository named: links are made last, and every path below
//! goes through directories that this restore made itself. Leaves looking at the places to [`crate::place`].

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use common::error::{Error, Kind, Result};
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
}

fn joined(root: &Path, below: &[u8]) -> PathBuf {
    if below.is_empty() {
        root.to_owned()
    } else {
        root.join(OsStr::from_bytes(below))
    }
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
}
