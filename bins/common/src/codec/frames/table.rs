//! The frame table: where each frame lies, in the stored and in the plain stream.
//!
//! Bytes as in zstd's seekable format, version 0.1.0: entries of two `u32` (stored, plain), a footer of
//! count, descriptor byte 0 and magic number, all in one skippable frame. Tables with checksums are not
//! written here, so they are not read either.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use super::frame::u32_at;
use super::{FRAME_OVERHEAD, MAX_FRAME_PLAIN, MAX_FRAME_STORED};
use crate::codec::corrupt;
use crate::error::{Context, Result};

/// The magic number of the skippable frame around the table.
pub(super) const TABLE_MAGIC: u32 = 0x184D_2A5E;
/// The magic number at the very end.
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Count, descriptor byte, magic number.
pub(super) const FOOTER_BYTES: usize = 9;
/// One entry.
pub(super) const ENTRY_BYTES: usize = 8;
/// More frames than anybody stores: 8 TiB of content.
pub(super) const MAX_FRAMES: usize = 1 << 26;
/// How much of a stream's end is read at once; the table of a bundle of 1 GiB fits.
const TAIL_BYTES: u64 = 66 * 1024;

pub(super) const fn overhead() -> usize {
    FRAME_OVERHEAD + FOOTER_BYTES
}

/// One frame's lengths. A skippable frame has the plain length 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Length in the compressed stream, in bytes.
    pub stored: u32,
    /// Length of its content, in bytes.
    pub plain: u32,
}

impl Frame {
    pub(super) fn encode(self) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        entry[..4].copy_from_slice(&self.stored.to_le_bytes());
        entry[4..].copy_from_slice(&self.plain.to_le_bytes());
        entry
    }
}

/// A frame and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePlace {
    /// Its number, counting from 0, skippable frames included.
    pub index: usize,
    /// Where it begins in the compressed stream.
    pub stored_offset: u64,
    /// Its length there, in bytes.
    pub stored: u32,
    /// Where its content begins in the plain stream.
    pub plain_offset: u64,
    /// The length of its content, in bytes.
    pub plain: u32,
}

/// Where each frame lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrameTable {
    entries: Vec<Frame>,
    /// Offsets at which each entry begins: stored, plain.
    starts: Vec<(u64, u64)>,
    stored_length: u64,
    plain_length: u64,
}

impl FrameTable {
    /// Makes a table of frames that follow one another.
    ///
    /// # Errors
    /// `Corrupt` if a frame, or their number, exceeds what is read again.
    pub fn new(entries: Vec<Frame>) -> Result<Self> {
        if entries.len() > MAX_FRAMES {
            return Err(corrupt(format!("the frame table lists {} frames", entries.len())));
        }
        let (mut stored, mut plain) = (0u64, 0u64);
        let mut starts = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let oversized = entry.plain > 0 && entry.stored as usize > MAX_FRAME_STORED;
            if oversized || entry.plain as usize > MAX_FRAME_PLAIN || (entry.stored as usize) < FRAME_OVERHEAD {
                return Err(corrupt(format!(
                    "the frame table gives frame {index} {} bytes for {} of content",
                    entry.stored, entry.plain
                )));
            }
            starts.push((stored, plain));
            stored += u64::from(entry.stored);
            plain += u64::from(entry.plain);
        }
        Ok(Self {
            entries,
            starts,
            stored_length: stored,
            plain_length: plain,
        })
    }

    /// The frames, skippable ones included.
    pub fn entries(&self) -> &[Frame] {
        &self.entries
    }

    /// Length of all frames in the compressed stream, without the table itself.
    pub fn stored_length(&self) -> u64 {
        self.stored_length
    }

    /// Length of the whole content.
    pub fn plain_length(&self) -> u64 {
        self.plain_length
    }

    /// The frames that hold this range of the plain stream, in order; none for an empty range.
    pub fn frames_for(&self, plain: Range<u64>) -> impl Iterator<Item = FramePlace> + '_ {
        let Range { start, end } = plain;
        // The last entry that begins at or before `start`: with equal starts the skippable ones come first.
        let first = self
            .starts
            .partition_point(|(_, begin)| *begin <= start)
            .saturating_sub(1);
        let places = self.entries.iter().zip(&self.starts).enumerate().skip(first);
        places
            .map(|(index, (frame, (stored_offset, plain_offset)))| FramePlace {
                index,
                stored_offset: *stored_offset,
                stored: frame.stored,
                plain_offset: *plain_offset,
                plain: frame.plain,
            })
            .take_while(move |place| place.plain_offset < end)
            .filter(move |place| place.plain > 0 && place.plain_offset + u64::from(place.plain) > start && start < end)
    }

    /// The table as it ends a stream.
    pub fn encode(&self) -> Vec<u8> {
        let content = self.entries.len() * ENTRY_BYTES + FOOTER_BYTES;
        let mut bytes = Vec::with_capacity(content + FRAME_OVERHEAD);
        bytes.extend(TABLE_MAGIC.to_le_bytes());
        // `new` has limited the number of entries, so both numbers fit.
        bytes.extend((content as u32).to_le_bytes());
        for entry in &self.entries {
            bytes.extend(entry.encode());
        }
        bytes.extend(footer(self.entries.len()));
        bytes
    }

    /// Reads a table, given from its first byte to the last.
    ///
    /// # Errors
    /// `Corrupt` if it is not one.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let content = match u32_at(bytes, 0) {
            Some(TABLE_MAGIC) => bytes.get(FRAME_OVERHEAD..).unwrap_or_default(),
            _ => return Err(corrupt("the frame table does not begin as one")),
        };
        if u32_at(bytes, 4).map(|length| length as usize) != Some(content.len()) {
            return Err(corrupt("the frame table's length does not agree with itself"));
        }
        let (entries, end) = content
            .split_last_chunk::<FOOTER_BYTES>()
            .ok_or_else(|| corrupt("the frame table has no footer"))?;
        let count = entries.len() / ENTRY_BYTES;
        if entries.len() % ENTRY_BYTES != 0 || *end != footer(count) {
            return Err(corrupt("the frame table's footer does not agree with its entries"));
        }
        let number = |entry: &[u8], at| u32_at(entry, at).unwrap_or_default();
        Self::new(
            entries
                .chunks_exact(ENTRY_BYTES)
                .map(|entry| Frame {
                    stored: number(entry, 0),
                    plain: number(entry, 4),
                })
                .collect(),
        )
    }

    /// Reads the table from the end of a compressed stream, usually with one read.
    ///
    /// # Errors
    /// `Corrupt` if the stream does not end with a table that accounts for all of it; the kind of the
    /// reader's error.
    pub fn read(stream: &mut (impl Read + Seek)) -> Result<Self> {
        let length = stream
            .seek(SeekFrom::End(0))
            .context(|| "seek to the end of the stream")?;
        let mut tail = read_tail(stream, length, length.min(TAIL_BYTES))?;
        let wanted = tail
            .len()
            .checked_sub(FOOTER_BYTES)
            .and_then(|at| u32_at(&tail, at))
            .map(|count| overhead() as u64 + u64::from(count) * ENTRY_BYTES as u64)
            .filter(|wanted| *wanted <= length && tail.ends_with(&SEEKABLE_MAGIC.to_le_bytes()))
            .ok_or_else(|| corrupt("the stream does not end with a frame table: it is damaged or truncated"))?;
        if wanted > tail.len() as u64 {
            tail = read_tail(stream, length, wanted)?;
        }
        let table = Self::decode(tail.get(tail.len() - wanted as usize..).unwrap_or_default())?;
        if table.stored_length + wanted != length {
            return Err(corrupt(format!(
                "the frame table accounts for {} of {length} bytes",
                table.stored_length + wanted
            )));
        }
        Ok(table)
    }
}

pub(super) fn footer(count: usize) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    // Callers have limited the count.
    footer[..4].copy_from_slice(&(count as u32).to_le_bytes());
    footer[5..].copy_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
    footer
}

fn read_tail(stream: &mut (impl Read + Seek), length: u64, wanted: u64) -> Result<Vec<u8>> {
    let reading = || "read the frame table";
    stream.seek(SeekFrom::Start(length - wanted)).context(reading)?;
    let mut tail = Vec::new();
    stream.take(wanted).read_to_end(&mut tail).context(reading)?;
    if tail.len() as u64 != wanted {
        return Err(corrupt("the stream ends before its frame table does"));
    }
    Ok(tail)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn table(frames: &[(u32, u32)]) -> FrameTable {
        FrameTable::new(frames.iter().map(|&(stored, plain)| Frame { stored, plain }).collect()).unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_the_seekable_format() {
        let bytes = table(&[(68, 0), (300, 1000)]).encode();
        let expected = [
            &[0x5E, 0x2A, 0x4D, 0x18, 25, 0, 0, 0][..],
            &[68, 0, 0, 0, 0, 0, 0, 0],
            &[44, 1, 0, 0, 232, 3, 0, 0],
            &[2, 0, 0, 0, 0, 0xB1, 0xEA, 0x92, 0x8F],
        ]
        .concat();
        assert_eq!(bytes, expected);
        assert_eq!(FrameTable::decode(&bytes).unwrap(), table(&[(68, 0), (300, 1000)]));
    }

    #[test]
    fn a_range_names_exactly_the_frames_that_hold_it() {
        let table = table(&[(68, 0), (10, 100), (20, 100), (16, 0), (30, 50)]);
        let of = |range| table.frames_for(range).map(|place| place.index).collect::<Vec<_>>();
        assert_eq!(of(0..1), [1]);
        assert_eq!(of(99..101), [1, 2]);
        assert_eq!(of(100..200), [2]);
        assert_eq!(of(199..201), [2, 4]);
        assert_eq!(of(0..250), [1, 2, 4]);
        assert_eq!(of(249..9999), [4]);
        assert!(of(50..50).is_empty() && of(250..300).is_empty());
        let place = table.frames_for(200..201).next().unwrap();
        assert_eq!((place.stored_offset, place.plain_offset, place.stored), (114, 200, 30));
    }

    #[test]
    fn an_absurd_count_is_corrupt_and_nothing_is_allocated_for_it() {
        let mut stream = vec![0; 5000];
        stream.extend(footer(u32::MAX as usize));
        let error = FrameTable::read(&mut Cursor::new(stream)).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
    }

    #[test]
    fn a_table_that_does_not_account_for_the_stream_is_corrupt() {
        let mut stream = vec![0; 99];
        stream.extend(table(&[(100, 500)]).encode());
        let error = FrameTable::read(&mut Cursor::new(stream)).unwrap_err();
        assert!(error.to_string().contains("accounts for"), "{error}");
    }

    #[test]
    fn a_long_table_is_read_whole() {
        let long = table(&vec![(8, 3); 20_000]);
        let mut stream = vec![0; 160_000];
        stream.extend(long.encode());
        assert_eq!(FrameTable::read(&mut Cursor::new(stream)).unwrap(), long);
    }

    proptest! {
        #[test]
        fn garbage_and_flipped_bits_never_panic(frames in proptest::collection::vec((8u32..9999, 0u32..9999), 0..40), at in any::<u16>(), bit in 0..8) {
            let original = table(&frames);
            let mut bytes = original.encode();
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= 1u8 << bit;
            match FrameTable::decode(&bytes) {
                Ok(other) => prop_assert_ne!(other, original),
                Err(error) => prop_assert_eq!(error.kind(), Kind::Corrupt),
            }
            bytes.truncate(at);
            prop_assert_eq!(FrameTable::decode(&bytes).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
