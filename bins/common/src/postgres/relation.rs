//! The names of relation files: which relation, fork and segment a path holds.
//!
//! Knows `src/common/relpath.c` and `parse_filename_for_nontemp_relation`
//! (`src/backend/storage/file/reinit.c`). Paths are those of a backup: `data/base/5/16384_vm.1`,
//! `tablespace/16400/PG_15_202209061/5/16390`.

/// The tablespace that `base` is (`DEFAULTTABLESPACE_OID`).
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// The tablespace that `global` is (`GLOBALTABLESPACE_OID`).
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// The parallel files of a relation (`ForkNumber`, in this order).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The relation itself.
    Main,
    /// The free space map.
    FreeSpace,
    /// The visibility map.
    Visibility,
    /// What an unlogged relation starts from after a crash.
    Init,
}

impl Fork {
    /// What stands in the file name.
    fn suffix(self) -> &'static str {
        match self {
            Fork::Main => "",
            Fork::FreeSpace => "_fsm",
            Fork::Visibility => "_vm",
            Fork::Init => "_init",
        }
    }

    /// The fork of this number in WAL records.
    pub fn from_number(number: u8) -> Option<Fork> {
        [Fork::Main, Fork::FreeSpace, Fork::Visibility, Fork::Init]
            .get(usize::from(number))
            .copied()
    }
}

/// One file of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// The tablespace's OID; [`DEFAULT_TABLESPACE`] and [`GLOBAL_TABLESPACE`] for the two in the data directory.
    pub tablespace: u32,
    /// The database's OID, 0 for shared relations.
    pub database: u32,
    /// The number in the file name (relfilenode).
    pub relation: u32,
    /// Which fork.
    pub fork: Fork,
    /// Which file of the fork, from 0.
    pub segment: u32,
}

impl RelationFile {
    /// The number that the file's first page has in the relation.
    pub fn first_block(&self, blocks_per_file: u32) -> u32 {
        self.segment.saturating_mul(blocks_per_file)
    }

    /// Its path in a backup; `version_directory` is the cluster's directory in tablespaces.
    pub fn path(&self, version_directory: &str) -> String {
        let (database, name) = (self.database, self.file_name());
        match self.tablespace {
            DEFAULT_TABLESPACE => format!("data/base/{database}/{name}"),
            GLOBAL_TABLESPACE => format!("data/global/{name}"),
            oid => format!("tablespace/{oid}/{version_directory}/{database}/{name}"),
        }
    }

    fn file_name(&self) -> String {
        let suffix = self.fork.suffix();
        match self.segment {
            0 => format!("{}{suffix}", self.relation),
            segment => format!("{}{suffix}.{segment}", self.relation),
        }
    }
}

/// What a file name in a database's directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelationName {
    /// A file of a relation.
    Permanent {
        /// relfilenode.
        relation: u32,
        /// Which fork.
        fork: Fork,
        /// Which file of the fork.
        segment: u32,
    },
    /// A file of a temporary relation, `t<backend>_<relation>`.
    Temporary,
}

/// Parses the path of a relation's file in a backup; nothing for temporary relations and everything else.
pub fn relation_file(path: &str) -> Option<RelationFile> {
    let (directory, name) = path.rsplit_once('/')?;
    let (tablespace, database) = parse_directory(directory)?;
    match relation_name(name)? {
        RelationName::Temporary => None,
        RelationName::Permanent {
            relation,
            fork,
            segment,
        } => Some(RelationFile {
            tablespace,
            database,
            relation,
            fork,
            segment,
        }),
    }
}

/// Says whether relations are kept in this directory of a backup.
pub fn holds_relations(directory: &str) -> bool {
    parse_directory(directory).is_some()
}

/// Parses a file name, without its directory.
pub fn relation_name(name: &str) -> Option<RelationName> {
    if let Some(rest) = name.strip_prefix('t') {
        let (backend, rest) = rest.split_once('_')?;
        oid(backend).or_else(|| (backend == "0").then_some(0))?;
        return relation_name(rest)
            .filter(|name| *name != RelationName::Temporary)
            .map(|_| RelationName::Temporary);
    }
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, oid(segment)?),
        None => (name, 0),
    };
    let (relation, fork) = match stem.split_once('_') {
        None => (stem, Fork::Main),
        Some((relation, "fsm")) => (relation, Fork::FreeSpace),
        Some((relation, "vm")) => (relation, Fork::Visibility),
        Some((relation, "init")) => (relation, Fork::Init),
        Some(_) => return None,
    };
    Some(RelationName::Permanent {
        relation: oid(relation)?,
        fork,
        segment,
    })
}

fn parse_directory(directory: &str) -> Option<(u32, u32)> {
    let mut parts = directory.split('/');
    let parsed = match (parts.next()?, parts.next()?) {
        ("data", "global") => (GLOBAL_TABLESPACE, 0),
        ("data", "base") => (DEFAULT_TABLESPACE, oid(parts.next()?)?),
        // A tablespace in place (allow_in_place_tablespaces, 15 and later) is a plain directory here.
        ("data", "pg_tblspc") => parse_tablespace(parts.next()?, &mut parts)?,
        ("tablespace", number) => parse_tablespace(number, &mut parts)?,
        _ => return None,
    };
    parts.next().is_none().then_some(parsed)
}

fn parse_tablespace<'a>(number: &str, rest: &mut impl Iterator<Item = &'a str>) -> Option<(u32, u32)> {
    rest.next()?.strip_prefix("PG_")?;
    Some((oid(number)?, oid(rest.next()?)?))
}

/// A decimal number above 0, without leading zeros.
pub(super) fn oid(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_file_is_found_wherever_it_lies() {
        let file = |tablespace, database, relation, fork, segment| {
            Some(RelationFile {
                tablespace,
                database,
                relation,
                fork,
                segment,
            })
        };
        assert_eq!(relation_file("data/base/5/16384"), file(1663, 5, 16384, Fork::Main, 0));
        assert_eq!(
            relation_file("data/base/5/16384_vm.12"),
            file(1663, 5, 16384, Fork::Visibility, 12)
        );
        assert_eq!(
            relation_file("data/global/1262_fsm"),
            file(1664, 0, 1262, Fork::FreeSpace, 0)
        );
        let path = "tablespace/16400/PG_15_202209061/5/4294967295_init";
        assert_eq!(relation_file(path), file(16400, 5, u32::MAX, Fork::Init, 0));
        assert_eq!(
            relation_file("data/pg_tblspc/16400/PG_15_1/5/7"),
            file(16400, 5, 7, Fork::Main, 0)
        );
    }

    #[test]
    fn everything_else_is_not_a_relation() {
        for path in [
            "",
            "/",
            "data",
            "16384",
            "data/base/16384",
            "data/base/5/PG_VERSION",
            "data/base/5/pg_filenode.map",
            "data/base/5/pg_internal.init",
            "data/base/5/t3_16384",
            "data/base/5/016384",
            "data/base/5/16384_main",
            "data/base/5/16384.0",
            "data/base/5/16384.01",
            "data/base/5/16384_vm_init",
            "data/base/5/4294967296",
            "data/base/5/x/16384",
            "data/base/0/16384",
            "data/pg_wal/16384",
            "data/global/pg_control",
            "blocks/data/base/5/1",
            "data/base/5/16384.1.2",
            "data/base/5/+16384",
            "tablespace/x/PG_15_1/5/1",
            "tablespace/1/5/1",
            "data/global/0",
        ] {
            assert_eq!(relation_file(path), None, "{path}");
        }
    }

    #[test]
    fn temporary_relations_are_recognised() {
        for name in ["t3_16384", "t0_16384", "t12_16384_fsm", "t3_16384.1", "t3_16384_vm.2"] {
            assert_eq!(relation_name(name), Some(RelationName::Temporary), "{name}");
        }
        for name in ["t", "t3", "t_1", "tx_1", "t3_", "t3_x", "tt3_1", "t3_t4_5", "toast"] {
            assert_eq!(relation_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_later_file_starts_at_a_later_block() {
        assert_eq!(
            relation_file("data/base/5/16384.2").unwrap().first_block(131_072),
            262_144
        );
    }

    proptest! {
        #[test]
        fn every_file_survives_the_round_trip(tablespace in 1..u32::MAX, database in 1..u32::MAX, relation in 1..u32::MAX, fork in 0..4_u8, segment: u32) {
            let database = if tablespace == GLOBAL_TABLESPACE { 0 } else { database };
            let file = RelationFile { tablespace, database, relation, fork: Fork::from_number(fork).unwrap(), segment };
            prop_assert_eq!(relation_file(&file.path("PG_15_202209061")), Some(file));
        }

        #[test]
        fn no_text_panics(path in "(data/base/5/)?.*", name in "t?[0-9_.a-z]*") {
            let _ = (relation_file(&path), relation_name(&name));
        }
    }
}
