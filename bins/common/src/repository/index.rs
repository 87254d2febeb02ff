//! The index of a bundle: members, frames, and a digest for every block (FORMAT.md, section 8.2).

use crate::codec::{Frame, FrameTable};
use crate::digest::{Xxh3_128, crc32c};
use crate::error::{Error, Kind, Result};

/// The unit that digests are kept for, in bytes: PostgreSQL's page.
pub const BLOCK_BYTES: usize = 8192;

const MAGIC: &[u8; 8] = b"PGKINDX1";
const DIGEST_BYTES: usize = 20;

/// The digests of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDigest {
    /// XXH3-128 of the block as stored.
    pub xxh3: Xxh3_128,
    /// CRC32C of the block as stored.
    pub crc32c: u32,
}

/// Where one member's data lies in the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The member's name in the tar stream.
    pub name: Vec<u8>,
    /// Offset of its data in the tar stream, in bytes.
    pub offset: u64,
    /// Size of its data, in bytes.
    pub size: u64,
    /// The number of its first digest.
    pub first_digest: u64,
}

/// A bundle's index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Index {
    /// Members that have data, in the order of the stream.
    pub members: Vec<Member>,
    /// The bundle's frames.
    pub frames: FrameTable,
    /// One digest per block of each member's data.
    pub digests: Vec<BlockDigest>,
}

impl Index {
    /// The binary form.
    ///
    /// # Errors
    /// `Failed` if a name is longer than 65,535 bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(64 + self.members.len() * 64 + self.digests.len() * DIGEST_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&count(self.members.len())?.to_le_bytes());
        out.extend_from_slice(&count(self.frames.entries().len())?.to_le_bytes());
        out.extend_from_slice(&(self.digests.len() as u64).to_le_bytes());
        for member in &self.members {
            let length = u16::try_from(member.name.len())
                .map_err(|error| Error::new(Kind::Failed, "encode an index: a name is too long").because(error))?;
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&member.name);
            for number in [member.offset, member.size, member.first_digest] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        for frame in self.frames.entries() {
            out.extend_from_slice(&frame.stored.to_le_bytes());
            out.extend_from_slice(&frame.plain.to_le_bytes());
        }
        for digest in &self.digests {
            out.extend_from_slice(&digest.xxh3.to_bytes());
            out.extend_from_slice(&digest.crc32c.to_le_bytes());
        }
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// `Corrupt` if anything is not as FORMAT.md says.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (body, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| corrupt("it is too short"))?;
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(corrupt("its checksum does not match"));
        }
        let mut rest = Cursor(body);
        if rest.take::<8>()? != *MAGIC {
            return Err(corrupt("it begins with something else"));
        }
        let members = rest.u32()?;
        let frames = rest.u32()?;
        let digests = rest.u64()?;
        let mut index = Self::default();
        for _ in 0..members {
            let length = u16::from_le_bytes(rest.take::<2>()?);
            let name = rest.slice(usize::from(length))?.to_vec();
            index.members.push(Member {
                name,
                offset: rest.u64()?,
                size: rest.u64()?,
                first_digest: rest.u64()?,
            });
        }
        let mut entries = Vec::new();
        for _ in 0..frames {
            entries.push(Frame {
                stored: rest.u32()?,
                plain: rest.u32()?,
            });
        }
        index.frames = FrameTable::new(entries).map_err(|error| error.with_kind(Kind::Corrupt))?;
        for _ in 0..digests {
            index.digests.push(BlockDigest {
                xxh3: Xxh3_128::from_bytes(rest.take::<16>()?),
                crc32c: rest.u32()?,
            });
        }
        if rest.0.is_empty() {
            Ok(index)
        } else {
            Err(corrupt("something follows its end"))
        }
    }
}

fn count(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|error| Error::new(Kind::Failed, "encode an index: too many entries").because(error))
}

fn corrupt(why: &str) -> Error {
    Error::new(Kind::Corrupt, format!("this is not a bundle's index: {why}"))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn slice(&mut self, length: usize) -> Result<&'a [u8]> {
        let (head, tail) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| corrupt("it ends early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, tail) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| corrupt("it ends early"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Index {
        Index {
            members: vec![Member {
                name: b"data/base/1/2".to_vec(),
                offset: 512,
                size: 9000,
                first_digest: 0,
            }],
            frames: FrameTable::new(vec![Frame {
                stored: 100,
                plain: 9512,
            }])
            .unwrap(),
            digests: vec![
                BlockDigest {
                    xxh3: Xxh3_128(7),
                    crc32c: 1,
                },
                BlockDigest {
                    xxh3: Xxh3_128(8),
                    crc32c: 2,
                },
            ],
        }
    }

    #[test]
    fn an_index_reads_back_as_it_was_written() {
        assert_eq!(Index::decode(&sample().encode().unwrap()).unwrap(), sample());
        let empty = Index::default();
        assert_eq!(Index::decode(&empty.encode().unwrap()).unwrap(), empty);
    }

    #[test]
    fn absurd_counts_are_corrupt_not_an_allocation() {
        let mut bytes = Vec::from(*MAGIC);
        bytes.extend_from_slice(&[0xff; 16]);
        let crc = crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        assert_eq!(Index::decode(&bytes).unwrap_err().kind(), Kind::Corrupt);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Index::decode(&bytes);
        }

        #[test]
        fn a_flipped_bit_is_noticed(bit in 0usize..8 * 100) {
            let mut bytes = sample().encode().unwrap();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Index::decode(&bytes).is_err());
        }
    }
}
