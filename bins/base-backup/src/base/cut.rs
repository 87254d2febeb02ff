//! Cuts stretches out of a file of an earlier backup.

use common::error::{Error, Kind, Result};
use common::repository::manifest::{File, Range};

use common::repository::digests::BlockDigests;

/// Where the bytes from `from` to `to` of the file lie. Both are multiples of a block, or the file's end.
///
/// # Errors
/// `Corrupt` if the file does not hold them, or a checksum is not known.
pub fn cut(file: &File, digests: &BlockDigests, from: u64, to: u64) -> Result<Vec<Range>> {
    let mut cut = Vec::new();
    let at = file
        .ranges
        .partition_point(|range| range.file_offset + range.length <= from);
    let mut next = from;
    for range in file.ranges.get(at..).unwrap_or_default() {
        if next >= to {
            break;
        }
        let skipped = next.checked_sub(range.file_offset);
        let length = (range.file_offset + range.length).min(to).saturating_sub(next);
        let (Some(skipped), true) = (skipped, length > 0) else {
            break;
        };
        let crc32c = if length == range.length {
            Some(range.crc32c)
        } else {
            digests.crc32c(next, length)
        };
        let unknown = || {
            Error::new(
                Kind::Corrupt,
                "the digests of an earlier backup do not cover a file of it",
            )
        };
        cut.push(Range {
            offset: range.offset + skipped,
            file_offset: next,
            length,
            crc32c: crc32c.ok_or_else(unknown)?,
            ..*range
        });
        next += length;
    }
    if next == to {
        return Ok(cut);
    }
    Err(Error::new(
        Kind::Corrupt,
        format!("the earlier backup does not hold a file's bytes {next} to {to}"),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::digest::crc32c;

    const BLOCK: usize = 8192;

    /// A file of 10 blocks and 100 bytes, in ranges of so many blocks, each 1,000 bytes apart in its bundle.
    fn file(content: &[u8], blocks: &[usize]) -> File {
        let (mut ranges, mut at) = (Vec::new(), 0usize);
        for (number, count) in blocks.iter().enumerate() {
            let end = (at + count * BLOCK).min(content.len());
            ranges.push(Range {
                label: None,
                bundle: number as u32,
                offset: 512 + at as u64 + 1000 * number as u64,
                file_offset: at as u64,
                length: (end - at) as u64,
                crc32c: crc32c(&content[at..end]),
            });
            at = end;
        }
        File {
            size: content.len() as u64,
            crc32c: crc32c(content),
            ranges,
            damaged: Vec::new(),
        }
    }

    #[test]
    fn every_stretch_is_found_with_its_checksum() {
        let content: Vec<u8> = (0..10 * BLOCK + 100).map(|n| (n / 5 % 253) as u8).collect();
        let digests = BlockDigests::of_content(&content);
        for blocks in [&[11][..], &[4, 7], &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], &[3, 5, 3]] {
            let file = file(&content, blocks);
            for from in 0..=11usize {
                for to in from..=11 {
                    let (from, to) = ((from * BLOCK).min(content.len()), (to * BLOCK).min(content.len()));
                    let mut at = from as u64;
                    for range in cut(&file, &digests, from as u64, to as u64).unwrap() {
                        assert_eq!(range.file_offset, at);
                        let bytes = &content[at as usize..(at + range.length) as usize];
                        assert_eq!(range.crc32c, crc32c(bytes));
                        assert_eq!(range.offset, 512 + at + 1000 * u64::from(range.bundle));
                        at += range.length;
                    }
                    assert_eq!(at, to as u64);
                }
            }
        }
    }

    #[test]
    fn what_the_file_does_not_hold_is_an_error() {
        let content = vec![7u8; 3 * BLOCK];
        let digests = BlockDigests::of_content(&content);
        let mut file = file(&content, &[1, 1, 1]);
        assert!(cut(&file, &digests, 0, 4 * BLOCK as u64).is_err());
        file.ranges.remove(1);
        assert!(cut(&file, &digests, 0, 3 * BLOCK as u64).is_err());
    }
}
