//! Reads an archive, or the parts of it that are wanted, out of a repository.

use std::collections::BTreeSet;
use std::io::Write;

use common::codec::{SeekableFrames, SeekableReader};
use common::error::{Context, Result};
use common::interrupt;
use common::postgres::archive::Archive;
use common::repository::Repository;
use common::repository::dumps::{self, DumpInfo};
use common::storage::ObjectReader;

use crate::select::Wanted;

/// What is read in one piece, in bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// An archive in a repository.
pub struct Source {
    frames: SeekableFrames<SeekableReader<ObjectReader>>,
}

impl Source {
    /// Opens it.
    ///
    /// # Errors
    /// As [`dumps::open`].
    pub fn open(repository: &Repository, info: &DumpInfo, object: &str) -> Result<Self> {
        Ok(Self {
            frames: SeekableFrames::open(dumps::open(repository, info, object)?)?,
        })
    }

    /// Length of all of it in bytes.
    pub fn length(&self) -> u64 {
        self.frames.table().plain_length()
    }

    /// Writes these parts, each from a byte to before another.
    ///
    /// # Errors
    /// What reading gave; `Corrupt` where it is damaged; the writer's own error comes back as the inner one.
    pub fn copy(&mut self, parts: &[(u64, u64)], out: &mut impl Write) -> Result<std::io::Result<()>> {
        let mut buffer = Vec::new();
        for (from, to) in parts {
            let mut at = *from;
            while at < *to {
                interrupt::check()?;
                let length = (to - at).min(PIECE_BYTES);
                buffer.resize(usize::try_from(length).unwrap_or_default(), 0);
                self.frames.read_at(at, &mut buffer).context(|| "read the dump")?;
                if let Err(error) = out.write_all(&buffer) {
                    return Ok(Err(error));
                }
                at += length;
            }
        }
        Ok(Ok(()))
    }
}

/// The parts of an archive that hold what is wanted.
pub fn parts_of(archive: &Archive, wanted: &Wanted, chosen: &BTreeSet<i64>) -> Vec<(u64, u64)> {
    match wanted {
        Wanted::Whole => vec![(0, archive.size)],
        Wanted::Tenant(_) | Wanted::Tables(_) => parts(archive, chosen),
    }
}

/// The parts of an archive that hold these entries: its head, and their data. pg_restore reads it as a stream and passes over data that
/// is not asked for, so it does not miss the rest.
fn parts(archive: &Archive, chosen: &BTreeSet<i64>) -> Vec<(u64, u64)> {
    let mut parts = vec![(0, archive.head_bytes)];
    for block in archive.blocks.iter().filter(|block| chosen.contains(&block.id)) {
        let end = block.offset + block.length;
        match parts.last_mut() {
            Some((_, last)) if *last == block.offset => *last = end,
            _ => parts.push((block.offset, end)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::postgres::archive::Block;

    #[test]
    fn neighbours_are_read_as_one() {
        let block = |id, offset, length| Block { id, offset, length };
        let archive = Archive {
            database: String::new(),
            server_version: String::new(),
            dump_version: String::new(),
            head_bytes: 100,
            size: 190,
            entries: Vec::new(),
            blocks: vec![
                block(1, 100, 10),
                block(2, 110, 30),
                block(3, 140, 20),
                block(4, 160, 30),
            ],
        };
        let of = |chosen: &[i64]| parts(&archive, &chosen.iter().copied().collect());
        assert_eq!(of(&[]), [(0, 100)]);
        assert_eq!(of(&[1, 2, 4]), [(0, 140), (160, 190)]);
        assert_eq!(of(&[3]), [(0, 100), (140, 160)]);
    }
}
