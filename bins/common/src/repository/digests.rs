//! The digests of pages that earlier backups hold.
//!
//! Indexes are kept as files and read where they are needed: memory grows with the number of files only.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::{Crc32cCombiner, crc32c, crc32c_combine, xxh3_128};
use crate::error::{Context, Error, Kind, Result, chain};
use crate::repository::index::{BLOCK_BYTES, Index};
use crate::repository::manifest::{self, Range};
use crate::repository::{Label, Repository, backup, reader};

use crate::repository::chain::{Chain, is_sound};

/// XXH3-128 in canonical form, then CRC32C, as in an index.
pub const DIGEST_BYTES: usize = 20;
const BLOCK: u64 = BLOCK_BYTES as u64;
/// So many indexes are open at a time; each is a file.
const OPEN: usize = 256;

/// Finds the digests of blocks by where they are stored.
pub struct Digests<'a> {
    chain: &'a Chain,
    repositories: Vec<&'a Repository>,
    open: Mutex<HashMap<(Label, u32), Arc<Opened>>>,
}

struct Opened {
    file: File,
    digests_at: u64,
    /// Offset of the data, size, number of the first digest; by offset.
    members: Vec<(u64, u64, u64)>,
}

impl<'a> Digests<'a> {
    /// Looks in `chain` first, then in the repositories, and keeps there what it found.
    pub fn new(chain: &'a Chain, repositories: Vec<&'a Repository>) -> Self {
        Self {
            chain,
            repositories,
            open: Mutex::default(),
        }
    }

    /// The digests of all blocks of a file of an earlier backup, in order.
    ///
    /// # Errors
    /// Whatever keeps them from being known; then they are not, and nothing else.
    pub fn of(&self, file: &manifest::File) -> Result<BlockDigests> {
        let mut bytes = Vec::with_capacity((file.size.div_ceil(BLOCK) as usize).saturating_mul(DIGEST_BYTES));
        for range in &file.ranges {
            if !range.file_offset.is_multiple_of(BLOCK) {
                return Err(Error::new(Kind::Corrupt, "a range of a file begins within a block"));
            }
            self.append(range, &mut bytes)?;
        }
        Ok(BlockDigests {
            bytes,
            size: file.size,
            combiner: Crc32cCombiner::new(BLOCK),
        })
    }

    /// The digests of the blocks of one range, as if it were a file.
    ///
    /// # Errors
    /// As [`Digests::of`].
    pub fn of_range(&self, range: &Range) -> Result<BlockDigests> {
        let mut bytes = Vec::new();
        self.append(range, &mut bytes)?;
        Ok(BlockDigests {
            bytes,
            size: range.length,
            combiner: Crc32cCombiner::new(BLOCK),
        })
    }

    fn append(&self, range: &Range, into: &mut Vec<u8>) -> Result<()> {
        let label = range
            .label
            .ok_or_else(|| Error::new(Kind::Failed, "a range of an earlier backup names no backup"))?;
        let context = || format!("read digests of bundle {} of {label}", range.bundle);
        let opened = self.opened(label, range.bundle)?;
        let at = opened.members.partition_point(|(offset, ..)| *offset <= range.offset);
        let member = at.checked_sub(1).and_then(|at| opened.members.get(at));
        let fits = |(offset, size, _): &&(u64, u64, u64)| {
            let skipped = range.offset - offset;
            // The last block of a member may be short: then it is the last of the range too.
            skipped.is_multiple_of(BLOCK)
                && skipped.saturating_add(range.length) <= *size
                && (range.length.is_multiple_of(BLOCK) || skipped + range.length == *size)
        };
        let (offset, _, first) = member
            .filter(fits)
            .ok_or_else(|| Error::new(Kind::Corrupt, "the index has no such blocks").context(context()))?;
        let number = first + (range.offset - offset) / BLOCK;
        let blocks = range.length.div_ceil(BLOCK) as usize;
        let from = into.len();
        into.resize(from + blocks * DIGEST_BYTES, 0);
        let place = opened.digests_at + number * DIGEST_BYTES as u64;
        opened
            .file
            .read_exact_at(into.get_mut(from..).unwrap_or_default(), place)
            .context(context)
    }

    fn opened(&self, label: Label, bundle: u32) -> Result<Arc<Opened>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = open.get(&(label, bundle)) {
            return Ok(Arc::clone(opened));
        }
        let opened = Arc::new(self.open_index(label, bundle)?);
        if open.len() >= OPEN {
            open.clear();
        }
        open.insert((label, bundle), Arc::clone(&opened));
        Ok(opened)
    }

    fn open_index(&self, label: Label, bundle: u32) -> Result<Opened> {
        let path = self.chain.index_path(label, bundle);
        let kept = std::fs::read(&path).ok().filter(|bytes| is_sound(bytes));
        let bytes = match kept {
            Some(bytes) => bytes,
            None => {
                let bytes = self.fetch(label, bundle)?;
                self.chain.keep_index(label, bundle, &bytes);
                bytes
            }
        };
        let index = Index::decode(&bytes)?;
        let mut members: Vec<(u64, u64, u64)> = index
            .members
            .iter()
            .map(|member| (member.offset, member.size, member.first_digest))
            .collect();
        members.sort_unstable();
        let digests = (index.digests.len() * DIGEST_BYTES) as u64;
        Ok(Opened {
            file: File::open(&path).context(|| format!("open {}", path.display()))?,
            digests_at: (bytes.len() as u64).saturating_sub(4 + digests),
            members,
        })
    }

    fn fetch(&self, label: Label, bundle: u32) -> Result<Vec<u8>> {
        let mut last = None;
        for repository in &self.repositories {
            let index = match backup::read(repository, label) {
                Ok(info) => reader::read_index(repository, &info, bundle),
                Err(error) if error.kind() == Kind::NotFound => {
                    reader::read_unfinished_index(repository, label, bundle)
                }
                Err(error) => Err(error),
            };
            match index.and_then(|index| index.encode()) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => {
                    log::debug!("repository \"{}\": {}", repository.name, chain(&error));
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::NotFound, format!("no repository has bundle {bundle} of {label}"))))
    }
}

/// The digests of one file's blocks.
#[derive(Debug, Clone)]
pub struct BlockDigests {
    bytes: Vec<u8>,
    size: u64,
    combiner: Crc32cCombiner,
}

impl BlockDigests {
    /// XXH3-128 in canonical form, then CRC32C, of one block of the file.
    pub fn of(&self, block: u64) -> Option<&[u8]> {
        let from = usize::try_from(block).ok()?.checked_mul(DIGEST_BYTES)?;
        self.bytes.get(from..from + DIGEST_BYTES)
    }

    /// Whether block `number` holds just these bytes.
    pub fn holds(&self, number: u64, block: &[u8]) -> bool {
        let known = self.of(number).filter(|_| self.length(number) == block.len() as u64);
        let Some((xxh3, crc)) = known.and_then(|digest| digest.split_at_checked(16)) else {
            return false;
        };
        xxh3 == xxh3_128(block).to_bytes() && crc == crc32c(block).to_le_bytes()
    }

    /// The length of that block, in bytes; the last one may be short.
    pub fn length(&self, block: u64) -> u64 {
        self.size.saturating_sub(block.saturating_mul(BLOCK)).min(BLOCK)
    }

    /// The CRC32C of `length` bytes from `offset` on: a whole number of blocks, or up to the end of the file.
    pub fn crc32c(&self, offset: u64, length: u64) -> Option<u32> {
        let (first, blocks) = (offset / BLOCK, length.div_ceil(BLOCK));
        let mut crc = 0;
        for block in first..first + blocks {
            let own = self.of(block)?.get(16..)?.try_into().ok().map(u32::from_le_bytes)?;
            crc = match self.length(block) {
                BLOCK => self.combiner.combine(crc, own),
                short => crc32c_combine(crc, own, short),
            };
        }
        Some(crc)
    }

    /// Those of a file with this content: for tests, and for what is not stored yet.
    pub fn of_content(content: &[u8]) -> Self {
        let mut bytes = Vec::new();
        for block in content.chunks(BLOCK_BYTES) {
            bytes.extend_from_slice(&xxh3_128(block).to_bytes());
            bytes.extend_from_slice(&crc32c(block).to_le_bytes());
        }
        Self {
            bytes,
            size: content.len() as u64,
            combiner: Crc32cCombiner::new(BLOCK),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_checksum_of_any_run_of_blocks_is_that_of_its_bytes() {
        let content: Vec<u8> = (0..5 * BLOCK_BYTES + 100).map(|n| (n / 3 % 251) as u8).collect();
        let digests = BlockDigests::of_content(&content);
        for from in 0..6u64 {
            for to in from + 1..=6 {
                let (from, to) = (from * BLOCK, (to * BLOCK).min(content.len() as u64));
                let expected = crc32c(&content[from as usize..to as usize]);
                assert_eq!(digests.crc32c(from, to - from), Some(expected), "{from}..{to}");
            }
        }
        assert_eq!(digests.length(5), 100);
        assert_eq!(digests.crc32c(5 * BLOCK, 2 * BLOCK), None, "behind the end");
    }
}
