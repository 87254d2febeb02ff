//! What a stored object tells about itself without a key: kind, lengths and digest of its content.
//!
//! The 60 bytes of a [`Descriptor`] open the compressed stream as a skippable zstd frame, which `zstd`
//! passes over. In an encrypted object the same bytes, in hex, are the argument of an extra stanza of
//! the age header, which `age` ignores. [`peek`] reads either from the first bytes of an object.
//!
//! Without the key a descriptor is a claim: it says what to expect, and [`super::decode_to`] holds the
//! content against it. Names and places are left to the repository.

use super::corrupt;
use super::frames::{FRAME_OVERHEAD, TABLE_OVERHEAD};
use super::seal::header::AgeHeader;
use crate::digest::Sha256Digest;
use crate::error::Result;

/// The magic number of the skippable frame that carries a descriptor.
pub(super) const DESCRIPTOR_MAGIC: u32 = 0x184D_2A50;
/// How a descriptor's payload begins.
const SIGNATURE: &[u8; 8] = b"PGKEEP1\0";
/// The length of a descriptor's payload.
pub(super) const PAYLOAD_BYTES: usize = 60;
/// The length of the skippable frame around it.
pub(super) const DESCRIPTOR_FRAME_BYTES: usize = PAYLOAD_BYTES + FRAME_OVERHEAD;

/// How many of an object's first bytes [`peek`] may need; fewer are fine where the object is smaller.
pub const PEEK_BYTES: usize = AgeHeader::LIMIT;

/// What is inside an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentKind {
    /// A file that PostgreSQL wrote into pg_wal: segment, `.partial`, `.backup`, `.history`.
    Wal,
    /// The map of a segment: what it changes.
    Map,
}

impl ContentKind {
    fn number(self) -> u32 {
        match self {
            Self::Wal => 1,
            Self::Map => 2,
        }
    }
}

/// Digest and lengths that travel with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// What is inside.
    pub kind: ContentKind,
    /// Length of the plain content in bytes.
    pub plain_length: u64,
    /// Length of the whole compressed stream, descriptor and frame table included.
    pub stream_length: u64,
    /// SHA-256 of the plain content.
    pub sha256: Sha256Digest,
}

impl Descriptor {
    /// The payload, as the age stanza carries it in hex.
    pub fn encode(&self) -> [u8; PAYLOAD_BYTES] {
        let mut payload = [0; PAYLOAD_BYTES];
        payload[..8].copy_from_slice(SIGNATURE);
        payload[8..12].copy_from_slice(&self.kind.number().to_le_bytes());
        payload[12..20].copy_from_slice(&self.plain_length.to_le_bytes());
        payload[20..28].copy_from_slice(&self.stream_length.to_le_bytes());
        payload[28..].copy_from_slice(&self.sha256.0);
        payload
    }

    /// The payload in its skippable frame, as it opens a compressed stream.
    pub fn encode_frame(&self) -> [u8; DESCRIPTOR_FRAME_BYTES] {
        let mut frame = [0; DESCRIPTOR_FRAME_BYTES];
        frame[..4].copy_from_slice(&DESCRIPTOR_MAGIC.to_le_bytes());
        frame[4..8].copy_from_slice(&(PAYLOAD_BYTES as u32).to_le_bytes());
        frame[8..].copy_from_slice(&self.encode());
        frame
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// `Corrupt` if it is not one, or says what cannot be.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let payload: &[u8; PAYLOAD_BYTES] = payload.try_into().map_err(|_| {
            corrupt(format!(
                "the descriptor has {} bytes instead of {PAYLOAD_BYTES}",
                payload.len()
            ))
        })?;
        let (signature, rest) = payload.split_at(SIGNATURE.len());
        if signature != SIGNATURE {
            return Err(corrupt("the descriptor does not begin with its signature"));
        }
        let (kind, rest) = split_array::<4>(rest)?;
        let (plain_length, rest) = split_array::<8>(rest)?;
        let (stream_length, rest) = split_array::<8>(rest)?;
        let (sha256, _) = split_array::<32>(rest)?;
        let kind = match u32::from_le_bytes(kind) {
            1 => ContentKind::Wal,
            2 => ContentKind::Map,
            other => {
                return Err(corrupt(format!(
                    "the descriptor names an unknown kind of content, {other}"
                )));
            }
        };
        let stream_length = u64::from_le_bytes(stream_length);
        if stream_length < (DESCRIPTOR_FRAME_BYTES + TABLE_OVERHEAD) as u64 {
            return Err(corrupt(format!(
                "the descriptor names a stream of only {stream_length} bytes"
            )));
        }
        Ok(Self {
            kind,
            plain_length: u64::from_le_bytes(plain_length),
            stream_length,
            sha256: Sha256Digest(sha256),
        })
    }
}

fn split_array<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8])> {
    match bytes.split_first_chunk::<N>() {
        Some((array, rest)) => Ok((*array, rest)),
        None => Err(corrupt("the descriptor ends too early")),
    }
}

/// What the first bytes of an object tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peek {
    /// The descriptor.
    pub descriptor: Descriptor,
    /// The size that the whole stored object has if nothing of it is missing.
    pub stored_size: u64,
    /// Whether the object is encrypted.
    pub sealed: bool,
}

/// Reads the descriptor from the first bytes of an object, clear or encrypted, without a key.
///
/// [`PEEK_BYTES`] are always enough; usually 600 are.
///
/// # Errors
/// `Corrupt` if these are not the first bytes of an object that carries a descriptor.
pub fn peek(first_bytes: &[u8]) -> Result<Peek> {
    if AgeHeader::begins(first_bytes) {
        return peek_sealed(first_bytes);
    }
    let payload = first_bytes
        .split_first_chunk::<FRAME_OVERHEAD>()
        .filter(|(head, _)| {
            head[..4] == DESCRIPTOR_MAGIC.to_le_bytes() && head[4..] == (PAYLOAD_BYTES as u32).to_le_bytes()
        })
        .and_then(|(_, rest)| rest.get(..PAYLOAD_BYTES))
        .ok_or_else(|| corrupt("the object does not begin with a descriptor"))?;
    let descriptor = Descriptor::decode(payload)?;
    Ok(Peek {
        descriptor,
        stored_size: descriptor.stream_length,
        sealed: false,
    })
}

fn peek_sealed(first_bytes: &[u8]) -> Result<Peek> {
    let header = AgeHeader::parse(first_bytes)?;
    let descriptor = header
        .descriptor
        .ok_or_else(|| corrupt("the encrypted object carries no descriptor in its header"))?;
    let stored_size = super::seal::sealed_size(header.length, descriptor.stream_length)
        .ok_or_else(|| corrupt("the descriptor names a stream that no object could hold"))?;
    Ok(Peek {
        descriptor,
        stored_size,
        sealed: true,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    fn sample() -> Descriptor {
        Descriptor {
            kind: ContentKind::Map,
            plain_length: 0x0102_0304_0506,
            stream_length: 4096,
            sha256: Sha256Digest([7; 32]),
        }
    }

    #[test]
    fn the_payload_has_the_bytes_that_the_format_names() {
        let payload = sample().encode();
        assert_eq!(&payload[..8], b"PGKEEP1\0");
        assert_eq!(payload[8..12], [2, 0, 0, 0]);
        assert_eq!(payload[12..20], [6, 5, 4, 3, 2, 1, 0, 0]);
        assert_eq!(payload[20..28], [0, 16, 0, 0, 0, 0, 0, 0]);
        assert_eq!(payload[28..], [7; 32]);
        assert_eq!(&sample().encode_frame()[..8], &[0x50, 0x2A, 0x4D, 0x18, 60, 0, 0, 0]);
        assert_eq!(Descriptor::decode(&payload).unwrap(), sample());
    }

    #[test]
    fn a_clear_object_is_peeked_from_its_first_68_bytes() {
        let frame = sample().encode_frame();
        let seen = peek(&frame).unwrap();
        assert_eq!(
            (seen.descriptor, seen.stored_size, seen.sealed),
            (sample(), 4096, false)
        );
        for length in 0..frame.len() {
            assert_eq!(peek(&frame[..length]).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn an_unknown_kind_and_an_impossible_length_are_corrupt() {
        let mut payload = sample().encode();
        payload[8] = 9;
        assert!(
            Descriptor::decode(&payload)
                .unwrap_err()
                .to_string()
                .contains("unknown kind")
        );
        let short = Descriptor {
            stream_length: 84,
            ..sample()
        };
        assert_eq!(Descriptor::decode(&short.encode()).unwrap_err().kind(), Kind::Corrupt);
    }

    proptest! {
        #[test]
        fn garbage_is_corrupt_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), age in any::<bool>()) {
            let mut object = if age { b"age-encryption.org/v1\n-> ".to_vec() } else { Vec::new() };
            object.extend(bytes);
            prop_assert_eq!(peek(&object).unwrap_err().kind(), Kind::Corrupt);
        }
    }
}
