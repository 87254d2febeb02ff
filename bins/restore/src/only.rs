//! Which files a restore of single databases leaves empty: those of the others have their size and no content.
//!
//! Templates and whatever else initdb makes (OIDs below `FirstNormalObjectId`, `src/include/access/transam.h`) come whole: recovery may copy
//! a template, and a session needs a database to begin in.

use std::collections::BTreeSet;

use common::error::{Context, Error, Kind, Result};
use common::repository::Repository;
use common::repository::backup::{self, BackupInfo};
use common::repository::manifest::Node;
use common::repository::reader;

use crate::databases;

/// `FirstNormalObjectId`.
const FIRST_NORMAL: u32 = 16384;
/// pg_database is no larger than this, in bytes: a hundred thousand databases.
const MOST_BYTES: u64 = 64 << 20;

/// The databases that come whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Only {
    /// Their names.
    pub names: Vec<String>,
    /// Their OIDs: several for a name that a dead row has, too.
    oids: BTreeSet<u32>,
}

impl Only {
    /// Finds databases by their names in a backup.
    ///
    /// # Errors
    /// `Config` if the backup has none of a name; what reading it gave.
    pub fn named(names: &[String], repository: &Repository, info: &BackupInfo) -> Result<Self> {
        let map = read(repository, info, b"data/global/pg_filenode.map")?;
        let file = databases::file_of_databases(&map).ok_or_else(|| {
            let message = format!(
                "global/pg_filenode.map of backup {} does not name pg_database",
                info.label
            );
            Error::new(Kind::Corrupt, message)
        })?;
        let pages = read(repository, info, format!("data/global/{file}").as_bytes())?;
        let page_bytes = usize::try_from(info.block_size).unwrap_or_default();
        let known = databases::names(&pages, page_bytes);
        let mut oids = BTreeSet::new();
        for name in names {
            let of_name: Vec<u32> = known
                .iter()
                .filter(|(_, known)| known.as_slice() == name.as_bytes())
                .map(|(oid, _)| *oid)
                .collect();
            if of_name.is_empty() {
                let there: BTreeSet<_> = known.values().map(|name| String::from_utf8_lossy(name)).collect();
                let there: Vec<&str> = there.iter().map(AsRef::as_ref).collect();
                let message = format!("backup {} has no database \"{name}\"", info.label);
                return Err(Error::new(Kind::Config, message).hint(format!(
                    "it has: {}. One that was created after the backup comes with a restore of all: leave out --only-database",
                    there.join(", ")
                )));
            }
            oids.extend(of_name);
        }
        Ok(Self {
            names: names.to_vec(),
            oids,
        })
    }

    /// What the marker of the data directory says.
    pub fn text(&self) -> String {
        self.names.iter().map(|name| format!("{name}\n")).collect()
    }

    /// Whether a file of the backup belongs to another database.
    pub fn leaves_out(&self, path: &[u8]) -> bool {
        database_of(path).is_some_and(|oid| oid >= FIRST_NORMAL && !self.oids.contains(&oid))
    }
}

/// The database that a file belongs to: `data/base/<oid>/...` or `tablespace/<oid>/<version>/<oid>/...`.
fn database_of(path: &[u8]) -> Option<u32> {
    let mut parts = path.split(|byte| *byte == b'/');
    let number = match parts.next()? {
        b"data" if parts.next()? == b"base" => parts.next()?,
        b"tablespace" => parts.nth(2)?,
        _ => return None,
    };
    parts.next()?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// A small file of a backup.
fn read(repository: &Repository, info: &BackupInfo, path: &[u8]) -> Result<Vec<u8>> {
    let place = || format!("read {} of backup {}", String::from_utf8_lossy(path), info.label);
    let corrupt = |why: &str| Error::new(Kind::Corrupt, place()).because(why.to_owned());
    let entry = reader::open_manifest(repository, info)?.find(path)?;
    let Some(Node::File(file)) = entry.map(|entry| entry.node) else {
        return Err(corrupt("it is not there"));
    };
    if file.size > MOST_BYTES {
        return Err(corrupt("it is too large"));
    }
    let mut content = vec![0; usize::try_from(file.size).unwrap_or_default()];
    for range in &file.ranges {
        let label = range.label.unwrap_or(info.label);
        let mut bundle = match backup::read(repository, label) {
            Ok(info) => reader::open_bundle(repository, &info, range.bundle),
            Err(error) if error.kind() == Kind::NotFound => {
                reader::open_unfinished_bundle(repository, label, range.bundle)
            }
            Err(error) => Err(error),
        }?;
        let from = usize::try_from(range.file_offset).unwrap_or(usize::MAX);
        let to = from.saturating_add(usize::try_from(range.length).unwrap_or(usize::MAX));
        let into = content
            .get_mut(from..to)
            .ok_or_else(|| corrupt("a part lies behind its end"))?;
        bundle.read_at(range.offset, into).context(place)?;
        if common::digest::crc32c(into) != range.crc32c {
            return Err(corrupt("its checksum is wrong"));
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_databases_are_left_out_wherever_they_lie() {
        let only = Only {
            names: vec!["shop".to_owned()],
            oids: BTreeSet::from([16400]),
        };
        for (path, left_out) in [
            ("data/base/16400/1259", false),
            ("data/base/16500/1259", true),
            ("data/base/16500", false),
            ("data/base/1/1259", false),
            ("data/base/pgsql_tmp/x", false),
            ("data/global/1262", false),
            ("data/pg_xact/0000", false),
            ("tablespace/16999/PG_15_202209061/16500/16501", true),
            ("tablespace/16999/PG_15_202209061/16400/16401", false),
            ("tablespace/16999/PG_15_202209061/16500", false),
            ("extra/base/16500/x", false),
        ] {
            assert_eq!(only.leaves_out(path.as_bytes()), left_out, "{path}");
        }
    }
}
