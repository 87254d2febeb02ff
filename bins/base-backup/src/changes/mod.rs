//! What WAL says has changed since the base backup's start.
//!
//! Everything here fails closed: a block counts as unchanged only where all WAL between the two starts was read, understood, and
//! does not mention it. Where that cannot be said, there is no [`Changed`], and every file is read and compared.
//!
//! Memory is bounded by the distinct blocks, at most 16 KiB for 1 GiB of a relation.

pub mod maps;
pub mod sum;
pub mod summaries;

use std::collections::{BTreeSet, HashMap};

use common::postgres::relation::RelationFile;
use common::postgres::walmap::{Changes, RelationFork};
use roaring::RoaringBitmap;

/// The changes of many segments, added up.
#[derive(Debug, Clone, Default)]
pub struct Changed {
    relations: HashMap<RelationFork, Relation>,
    databases: BTreeSet<(u32, u32)>,
    tablespaces: BTreeSet<u32>,
}

#[derive(Debug, Clone, Default)]
struct Relation {
    blocks: RoaringBitmap,
    limit: Option<u32>,
}

/// What is known of one file of a relation.
#[derive(Debug, Clone, PartialEq)]
pub enum FileChange {
    /// Its database or tablespace was created, copied, moved or dropped: nothing of it may be taken for unchanged.
    Whole(&'static str),
    /// These blocks of the relation changed, and none at or after `limit` may come from an older copy.
    Blocks {
        /// Numbers within the relation, those of other files included.
        blocks: RoaringBitmap,
        /// The limit block.
        limit: Option<u32>,
    },
}

impl Changed {
    /// Adds what the records of one segment say, or the record between two.
    pub fn add(&mut self, changes: &Changes) {
        for change in &changes.relations {
            let relation = self.relations.entry(change.fork).or_default();
            for run in &change.blocks {
                relation.blocks.insert_range(run.first..=run.last);
            }
            // The lowest limit holds; blocks that were noted before it stay.
            relation.limit = match (relation.limit, change.limit) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        self.databases.extend(&changes.databases);
        self.tablespaces.extend(&changes.tablespaces);
    }

    /// What is known of this file, which has `blocks` blocks from `first` on.
    pub fn file(&self, file: &RelationFile, first: u32, blocks: u32) -> FileChange {
        if self.tablespaces.contains(&file.tablespace) {
            return FileChange::Whole("its tablespace was created, moved or dropped");
        }
        if self.databases.contains(&(file.tablespace, file.database)) {
            return FileChange::Whole("its database was created, copied, moved or dropped");
        }
        let fork = RelationFork {
            tablespace: file.tablespace,
            database: file.database,
            relation: file.relation,
            fork: file.fork as u8,
        };
        let Some(relation) = self.relations.get(&fork) else {
            return FileChange::Blocks {
                blocks: RoaringBitmap::new(),
                limit: None,
            };
        };
        let here: RoaringBitmap = relation.blocks.range(first..first.saturating_add(blocks)).collect();
        FileChange::Blocks {
            blocks: here,
            limit: relation.limit,
        }
    }

    /// How many blocks were noted.
    pub fn blocks(&self) -> u64 {
        self.relations.values().map(|relation| relation.blocks.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::postgres::relation::relation_file;
    use common::postgres::walmap::{BlockRun, RelationChange};

    fn change(database: u32, relation: u32, fork: u8, limit: Option<u32>, runs: &[(u32, u32)]) -> RelationChange {
        RelationChange {
            fork: RelationFork {
                tablespace: 1663,
                database,
                relation,
                fork,
            },
            limit,
            blocks: runs
                .iter()
                .map(|(first, last)| BlockRun {
                    first: *first,
                    last: *last,
                })
                .collect(),
        }
    }

    fn changes(relations: Vec<RelationChange>) -> Changes {
        Changes {
            relations,
            ..Changes::default()
        }
    }

    fn asked(changed: &Changed, path: &str, first: u32, blocks: u32) -> FileChange {
        changed.file(&relation_file(path).unwrap(), first, blocks)
    }

    fn blocks(numbers: &[u32], limit: Option<u32>) -> FileChange {
        FileChange::Blocks {
            blocks: numbers.iter().copied().collect(),
            limit,
        }
    }

    #[test]
    fn blocks_of_several_segments_are_united_and_the_lowest_limit_holds() {
        let mut changed = Changed::default();
        changed.add(&changes(vec![change(5, 16384, 0, Some(7), &[(1, 2), (9, 9)])]));
        changed.add(&changes(vec![change(5, 16384, 0, None, &[(2, 3)])]));
        changed.add(&changes(vec![change(5, 16384, 0, Some(4), &[])]));
        changed.add(&changes(vec![change(5, 16384, 0, Some(8), &[])]));
        assert_eq!(
            asked(&changed, "data/base/5/16384", 0, 100),
            blocks(&[1, 2, 3, 9], Some(4))
        );
        assert_eq!(changed.blocks(), 4);
    }

    #[test]
    fn another_database_relation_or_fork_is_another_thing() {
        let mut changed = Changed::default();
        changed.add(&changes(vec![change(5, 16384, 0, None, &[(1, 1)])]));
        for path in ["data/base/6/16384", "data/base/5/16385", "data/base/5/16384_init"] {
            assert_eq!(asked(&changed, path, 0, 100), blocks(&[], None), "{path}");
        }
    }

    #[test]
    fn a_later_file_of_a_relation_gets_its_own_blocks() {
        let mut changed = Changed::default();
        changed.add(&changes(vec![change(
            5,
            16384,
            0,
            None,
            &[(131_071, 131_072), (262_144, 262_144)],
        )]));
        assert_eq!(
            asked(&changed, "data/base/5/16384.1", 131_072, 131_072),
            blocks(&[131_072], None)
        );
        assert_eq!(
            asked(&changed, "data/base/5/16384", 0, 131_072),
            blocks(&[131_071], None)
        );
    }

    #[test]
    fn a_database_or_tablespace_that_came_or_went_is_read_whole() {
        let mut changed = Changed::default();
        changed.add(&Changes {
            databases: vec![(1663, 5)],
            tablespaces: vec![16400],
            ..Changes::default()
        });
        assert!(matches!(asked(&changed, "data/base/5/1", 0, 1), FileChange::Whole(_)));
        assert!(matches!(
            asked(&changed, "tablespace/16400/PG_15_1/9/1", 0, 1),
            FileChange::Whole(_)
        ));
        assert_eq!(asked(&changed, "data/base/6/1", 0, 1), blocks(&[], None));
        assert_eq!(asked(&changed, "data/global/1262", 0, 1), blocks(&[], None));
    }
}
