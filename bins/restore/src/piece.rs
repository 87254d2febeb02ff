//! A run of bytes on its way from a bundle into a file: what it sorts by, its binary form, and its parts. Pure.

use std::sync::{Arc, Mutex, PoisonError};

use common::digest::crc32c_combine;
use common::error::{Error, Kind, Result};
use common::repository::manifest::Range;

/// Longer ranges are fetched in parts of this, so that several workers share a large file. A multiple of the codec's frame.
pub const PART_BYTES: u64 = 32 << 20;

/// A range of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The file's name in the manifest.
    pub path: Vec<u8>,
    /// Which label, as a number that the caller gave it.
    pub label: u32,
    /// The bundle's number.
    pub bundle: u32,
    /// Offset in the bundle's tar stream, in bytes.
    pub offset: u64,
    /// Offset in the file, in bytes.
    pub file_offset: u64,
    /// In bytes.
    pub length: u64,
    /// CRC32C of these bytes.
    pub crc32c: u32,
}

impl Piece {
    /// Makes a piece of a manifest's range.
    pub fn new(path: &[u8], label: u32, range: &Range) -> Self {
        Self {
            path: path.to_vec(),
            label,
            bundle: range.bundle,
            offset: range.offset,
            file_offset: range.file_offset,
            length: range.length,
            crc32c: range.crc32c,
        }
    }

    /// What it sorts by: the order in which the bytes are stored.
    pub fn key(&self) -> [u8; 16] {
        let mut key = [0; 16];
        let parts = [
            &self.label.to_be_bytes()[..],
            &self.bundle.to_be_bytes(),
            &self.offset.to_be_bytes(),
        ];
        for (to, from) in key.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        key
    }

    /// The binary form of what the key does not say.
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(20 + self.path.len());
        value.extend_from_slice(&self.file_offset.to_le_bytes());
        value.extend_from_slice(&self.length.to_le_bytes());
        value.extend_from_slice(&self.crc32c.to_le_bytes());
        value.extend_from_slice(&self.path);
        value
    }

    /// Reads key and value.
    ///
    /// # Errors
    /// `Failed` if they are none.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self> {
        Self::parse(key, value).ok_or_else(|| Error::new(Kind::Failed, "the list of pieces on disk is damaged"))
    }

    fn parse(key: &[u8], value: &[u8]) -> Option<Self> {
        let (label, key) = key.split_first_chunk::<4>()?;
        let (bundle, key) = key.split_first_chunk::<4>()?;
        let (offset, _) = key.split_first_chunk::<8>()?;
        let (file_offset, value) = value.split_first_chunk::<8>()?;
        let (length, value) = value.split_first_chunk::<8>()?;
        let (crc32c, path) = value.split_first_chunk::<4>()?;
        Some(Self {
            path: path.to_vec(),
            label: u32::from_be_bytes(*label),
            bundle: u32::from_be_bytes(*bundle),
            offset: u64::from_be_bytes(*offset),
            file_offset: u64::from_le_bytes(*file_offset),
            length: u64::from_le_bytes(*length),
            crc32c: u32::from_le_bytes(*crc32c),
        })
    }

    /// The parts in which it is fetched: one, or several that remember the whole.
    pub fn parts(self) -> Vec<Part> {
        if self.length <= PART_BYTES {
            return vec![Part {
                piece: self,
                whole: None,
            }];
        }
        let count = self.length.div_ceil(PART_BYTES);
        let whole = Arc::new(Whole {
            piece: self.clone(),
            parts: Mutex::new(vec![None; count as usize]),
        });
        let part = |number: u64| {
            let skip = number * PART_BYTES;
            let piece = Piece {
                offset: self.offset.saturating_add(skip),
                file_offset: self.file_offset.saturating_add(skip),
                length: PART_BYTES.min(self.length - skip),
                ..self.clone()
            };
            Part {
                piece,
                whole: Some((Arc::clone(&whole), number as usize)),
            }
        };
        (0..count).map(part).collect()
    }
}

/// What a worker fetches in one go.
#[derive(Debug, Clone)]
pub struct Part {
    /// What to fetch; its CRC32C counts only where there is no whole.
    pub piece: Piece,
    /// The range it is a part of, and which part.
    pub whole: Option<(Arc<Whole>, usize)>,
}

/// A range that is fetched in parts.
#[derive(Debug)]
pub struct Whole {
    /// The whole range.
    pub piece: Piece,
    parts: Mutex<Vec<Option<u32>>>,
}

impl Whole {
    /// Notes a part's CRC32C; returns the whole's once the last part is there.
    pub fn note(&self, number: usize, crc32c: u32) -> Option<u32> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        *parts.get_mut(number)? = Some(crc32c);
        let all: Option<Vec<u32>> = parts.iter().copied().collect();
        let lengths = (0..).map(|number| PART_BYTES.min(self.piece.length.saturating_sub(number * PART_BYTES)));
        all.map(|all| {
            all.into_iter()
                .zip(lengths)
                .fold(0, |crc, (next, length)| crc32c_combine(crc, next, length))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::digest::crc32c;

    fn piece(label: u32, bundle: u32, offset: u64, length: u64) -> Piece {
        Piece {
            path: b"data/\xff".to_vec(),
            label,
            bundle,
            offset,
            file_offset: 7,
            length,
            crc32c: 9,
        }
    }

    #[test]
    fn a_piece_reads_back_as_it_was_written() {
        let piece = piece(1, 2, 3, 4);
        assert_eq!(Piece::decode(&piece.key(), &piece.value()).unwrap(), piece);
        assert!(Piece::decode(&piece.key(), &[0; 19]).is_err());
    }

    #[test]
    fn pieces_sort_as_their_bytes_are_stored() {
        let sorted = [
            piece(0, 1, 5, 1),
            piece(0, 1, 256, 1),
            piece(0, 2, 0, 1),
            piece(0, 256, 0, 1),
            piece(1, 1, 0, 1),
        ];
        assert!(sorted.is_sorted_by_key(Piece::key));
    }

    #[test]
    fn the_parts_of_a_large_range_give_its_checksum_in_any_order() {
        let content: Vec<u8> = (0..PART_BYTES * 2 + 100).map(|n| (n % 251) as u8).collect();
        let large = Piece {
            crc32c: crc32c(&content),
            ..piece(0, 1, 512, content.len() as u64)
        };
        let parts = large.clone().parts();
        assert_eq!(parts.len(), 3);
        let mut result = None;
        for part in parts.iter().rev() {
            let (whole, number) = part.whole.as_ref().unwrap();
            let from = (part.piece.offset - 512) as usize;
            assert_eq!(part.piece.file_offset, 7 + from as u64);
            assert_eq!(result, None);
            result = whole.note(*number, crc32c(&content[from..from + part.piece.length as usize]));
        }
        assert_eq!(result, Some(large.crc32c));
    }

    #[test]
    fn a_small_range_is_one_part() {
        let parts = piece(0, 1, 0, PART_BYTES).parts();
        assert!(parts.len() == 1 && parts[0].whole.is_none());
    }
}
