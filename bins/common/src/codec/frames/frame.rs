//! One frame: how long it is, and what it holds.
//!
//! zstd itself cannot say of a buffer's beginning whether the frame there is incomplete or damaged, so
//! its header and block headers are walked here (RFC 8878, section 3.1.1); decoding is left to zstd.

use zstd::zstd_safe::{DCtx, WriteBuf, get_error_name};

use super::{MAX_FRAME_PLAIN, MAX_FRAME_STORED};
use crate::codec::corrupt;
use crate::error::{Error, Kind, Result};

/// The magic number of a zstd frame.
pub(super) const ZSTD_MAGIC: u32 = 0xFD2F_B528;

/// The largest block that zstd makes.
const MAX_BLOCK: usize = 128 * 1024;

/// What the first bytes of a frame tell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The frame is there whole.
    Whole { stored: usize, plain: usize },
    /// At least this many bytes are needed to go on.
    Needs(usize),
}

/// Whether this is the magic number of a skippable frame.
pub(super) fn is_skippable(magic: u32) -> bool {
    magic & 0xFFFF_FFF0 == 0x184D_2A50
}

/// The little-endian number at `at`, if it is there.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

/// Walks the zstd frame that `bytes` begins with.
pub(super) fn extent(bytes: &[u8]) -> Result<Extent> {
    let Some((&descriptor, after)) = bytes.get(4..).and_then(<[u8]>::split_first) else {
        return Ok(Extent::Needs(5));
    };
    let single_segment = descriptor & 0x20 != 0;
    if descriptor & 0x08 != 0 {
        return Err(corrupt("a frame's header sets a reserved bit"));
    }
    if descriptor & 0x03 != 0 {
        return Err(corrupt("a frame asks for a dictionary"));
    }
    let window = usize::from(!single_segment);
    let size_bytes = match (descriptor >> 6, single_segment) {
        (0, false) => return Err(corrupt("a frame does not state its content size")),
        (0, true) => 1,
        (1, _) => 2,
        (2, _) => 4,
        _ => 8,
    };
    let Some(size) = after.get(window..window + size_bytes) else {
        return Ok(Extent::Needs(5 + window + size_bytes));
    };
    let plain = little_endian(size) + if size_bytes == 2 { 256 } else { 0 };
    let plain = usize::try_from(plain)
        .ok()
        .filter(|plain| *plain <= MAX_FRAME_PLAIN)
        .ok_or_else(|| {
            corrupt(format!(
                "a frame claims {plain} bytes of content, more than {MAX_FRAME_PLAIN}"
            ))
        })?;

    let mut at = 5 + window + size_bytes;
    loop {
        let Some(&[a, b, c]) = bytes.get(at..).and_then(<[u8]>::first_chunk::<3>) else {
            return Ok(Extent::Needs(at + 3));
        };
        let header = u32::from_le_bytes([a, b, c, 0]);
        let size = (header >> 3) as usize;
        at += 3 + match (header >> 1) & 3 {
            1 => 1,
            3 => return Err(corrupt("a frame holds a block of a reserved type")),
            _ if size > MAX_BLOCK => return Err(corrupt(format!("a frame holds a block of {size} bytes"))),
            _ => size,
        };
        if at > MAX_FRAME_STORED {
            return Err(corrupt(format!("a frame is longer than {MAX_FRAME_STORED} bytes")));
        }
        if header & 1 != 0 {
            break;
        }
    }
    let stored = at + if descriptor & 0x04 != 0 { 4 } else { 0 };
    Ok(if stored <= bytes.len() {
        Extent::Whole { stored, plain }
    } else {
        Extent::Needs(stored)
    })
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Decodes frames, with one context for all of them.
pub(super) struct Decoder {
    context: DCtx<'static>,
}

impl Decoder {
    pub(super) fn new() -> Result<Self> {
        match DCtx::try_create() {
            Some(context) => Ok(Self { context }),
            None => Err(Error::new(Kind::Failed, "cannot allocate a zstd context")),
        }
    }

    /// Decodes one whole frame into `into`, whose capacity is at least `plain`.
    pub(super) fn decode<B: WriteBuf + ?Sized>(&mut self, stored: &[u8], plain: usize, into: &mut B) -> Result<()> {
        let length = self
            .context
            .decompress(into, stored)
            .map_err(|code| corrupt(format!("a frame does not decompress: {}", get_error_name(code))))?;
        if length != plain {
            return Err(corrupt(format!("a frame holds {length} bytes instead of {plain}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::codec::frames::FRAME_BYTES;

    #[test]
    fn the_walk_agrees_with_zstd_about_every_length_and_level() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for length in [0, 1, 255, 256, 65_791, 65_792, FRAME_BYTES, 300_000, MAX_FRAME_PLAIN] {
            for level in [-5, 1, 2, 19] {
                let stored = zstd::bulk::compress(&text[..length], level).unwrap();
                let expected = Extent::Whole {
                    stored: stored.len(),
                    plain: length,
                };
                assert_eq!(extent(&stored).unwrap(), expected);
                for part in [0, 3, 4, 5, 7, 9, 12, stored.len() - 1] {
                    match extent(&stored[..part.min(stored.len() - 1)]).unwrap() {
                        Extent::Needs(more) => assert!(more > part.min(stored.len() - 1) && more <= stored.len()),
                        whole => panic!("{whole:?} from a part of {part}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_frame_above_the_limit_is_refused_before_it_is_read() {
        let stored = zstd::bulk::compress(&vec![0; MAX_FRAME_PLAIN + 1], 1).unwrap();
        let error = extent(&stored[..12]).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("more than 1048576"), "{error}");
    }
}
