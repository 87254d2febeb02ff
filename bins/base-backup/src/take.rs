//! What of a file is read and stored, where an earlier backup holds it too.
//!
//! The rules come from PostgreSQL's sources and from the mistakes of others (each names its own). In doubt more is read, never less:
//! [`Take::Compare`] reads all of a file and stores what differs, so it is right whatever WAL says.

use common::postgres::relation::{Fork, RelationFile};
use common::repository::index::BLOCK_BYTES;
use common::repository::manifest::File;

use crate::changes::{Changed, FileChange};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// A file of which more than so many percent changed is stored whole.
const WHOLE_PERCENT: u64 = 90;

/// Adjacent blocks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// The first one, counted from the file's start.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What to do with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Take {
    /// Nothing of it changed: the earlier backup's bytes are its bytes.
    Same,
    /// Read all of it and store what differs.
    Compare,
    /// Read and store these blocks; the others are the earlier backup's.
    Blocks(Vec<Blocks>),
    /// Read and store all of it.
    Whole,
}

/// Decides about a file of `size` bytes. `relation` says which file of which relation it is, if it is one; `base` what the earlier
/// backup holds under its name; `changed` what WAL says, if that is known; relations are cut into files of `blocks_per_file` blocks.
pub fn take(
    relation: Option<&RelationFile>,
    size: u64,
    base: Option<&File>,
    changed: Option<&Changed>,
    blocks_per_file: u32,
) -> Take {
    let Some(base) = base else { return Take::Whole };
    let (Some(relation), Some(changed)) = (relation, changed) else {
        // Not a relation, such as pg_xact or pg_filenode.map: WAL does not name what changes in it.
        return Take::Compare;
    };
    // Clearing a bit of the visibility map writes no block reference, and WAL does not speak of the free space map.
    if relation.fork != Fork::Main {
        return Take::Compare;
    }
    let whole_blocks = |size: u64| size.is_multiple_of(BLOCK) && size / BLOCK <= u64::from(blocks_per_file);
    if !whole_blocks(size) || !whole_blocks(base.size) || !base.damaged.is_empty() {
        return Take::Compare;
    }
    // Both fit, since a file has no more blocks than that.
    let (blocks, base_blocks) = ((size / BLOCK) as u32, (base.size / BLOCK) as u32);
    let first = relation.first_block(blocks_per_file);
    match changed.file(relation, first, blocks) {
        FileChange::Whole(_) => Take::Compare,
        FileChange::Blocks { limit: Some(limit), .. } if limit <= first => Take::Whole,
        // It became shorter, and no record says so.
        FileChange::Blocks { limit: None, .. } if blocks < base_blocks => Take::Compare,
        FileChange::Blocks {
            blocks: mut read,
            limit,
        } => {
            // None at or behind the limit may come from the base, and the base has none behind its end.
            let from = limit.map_or(base_blocks, |limit| base_blocks.min(limit - first));
            if from < blocks {
                read.insert_range(first + from..first + blocks);
            }
            by_share(&read, first, blocks, base_blocks)
        }
    }
}

fn by_share(read: &roaring::RoaringBitmap, first: u32, blocks: u32, base_blocks: u32) -> Take {
    if read.is_empty() {
        return match blocks == base_blocks {
            true => Take::Same,
            // Cut off behind what is still there.
            false => Take::Blocks(Vec::new()),
        };
    }
    if read.len() * 100 > u64::from(blocks) * WHOLE_PERCENT {
        return Take::Whole;
    }
    Take::Blocks(runs(read.iter().map(|block| block - first)))
}

/// Puts ascending block numbers together.
pub fn runs(blocks: impl Iterator<Item = u32>) -> Vec<Blocks> {
    let mut runs: Vec<Blocks> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.first + run.count == block => run.count += 1,
            _ => runs.push(Blocks { first: block, count: 1 }),
        }
    }
    runs
}

impl Take {
    /// The binary form.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Take::Same => vec![0],
            Take::Compare => vec![1],
            Take::Whole => vec![2],
            Take::Blocks(runs) => {
                let mut out = vec![3];
                for run in runs {
                    out.extend_from_slice(&run.first.to_le_bytes());
                    out.extend_from_slice(&run.count.to_le_bytes());
                }
                out
            }
        }
    }

    /// Reads the binary form; `None` if it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match (kind, rest) {
            (0, []) => Take::Same,
            (1, []) => Take::Compare,
            (2, []) => Take::Whole,
            (3, rest) => {
                let (pairs, []) = rest.as_chunks::<8>() else {
                    return None;
                };
                let pair = |pair: &[u8; 8]| {
                    let (first, count) = pair.split_first_chunk::<4>()?;
                    Some(Blocks {
                        first: u32::from_le_bytes(*first),
                        count: u32::from_le_bytes(count.try_into().ok()?),
                    })
                };
                Take::Blocks(pairs.iter().map(pair).collect::<Option<_>>()?)
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
#[path = "take_tests.rs"]
mod tests;
