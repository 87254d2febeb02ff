//! One WAL record: its header, its checksum, its block references, where its main data lies.
//!
//! Layouts: `src/include/access/xlogrecord.h`, decoded as `DecodeXLogRecord` in `xlogreader.c` does, versions 13 to 18.

use crate::postgres::walmap::{Doubt, RelationFork};

/// Length of a record's header; no record is shorter.
pub(in crate::postgres) const HEADER_BYTES: usize = 24;
/// No record is longer (`XLogRecordMaxSize` is 1020 MiB since 16, before that memory allocation set the bound).
pub(in crate::postgres) const LONGEST_RECORD: u32 = 1 << 30;

const BLOCK_ID_MAX: u8 = 32;
const ID_TOP_XID: u8 = 252;
const ID_ORIGIN: u8 = 253;
const ID_LONG_DATA: u8 = 254;
const ID_SHORT_DATA: u8 = 255;

const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const SAME_RELATION: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;

/// PostgreSQL's InvalidBlockNumber.
const NO_BLOCK: u32 = u32::MAX;

/// The header of a record.
#[derive(Debug, Clone, Copy)]
pub(in crate::postgres) struct Header {
    pub(in crate::postgres) total: u32,
    pub(in crate::postgres) xid: u32,
    pub(in crate::postgres) previous: u64,
    pub(in crate::postgres) info: u8,
    pub(in crate::postgres) manager: u8,
    pub(in crate::postgres) checksum: u32,
}

impl Header {
    /// Reads the header from a record's first bytes; `None` if there are fewer than 24.
    #[inline]
    pub(in crate::postgres) fn parse(bytes: &[u8]) -> Option<Self> {
        let raw: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let [
            t0,
            t1,
            t2,
            t3,
            x0,
            x1,
            x2,
            x3,
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            info,
            manager,
            _,
            _,
            c0,
            c1,
            c2,
            c3,
        ] = *raw;
        Some(Self {
            total: u32::from_le_bytes([t0, t1, t2, t3]),
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            previous: u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]),
            info,
            manager,
            checksum: u32::from_le_bytes([c0, c1, c2, c3]),
        })
    }

    /// Whether the resource manager exists in this version; 128 and above belong to extensions, since 15.
    #[inline]
    pub(in crate::postgres) fn has_known_manager(&self, major: u8) -> bool {
        self.manager <= super::effects::LAST_MANAGER || (self.manager >= 128 && major >= 15)
    }
}

/// A record's CRC-32C: over everything behind the header (`body_sum`), then over the header without its last field.
#[inline]
pub(in crate::postgres) fn checksum(body_sum: u32, record: &[u8]) -> u32 {
    let head = record.first_chunk::<20>().map_or(&[][..], |head| &head[..]);
    crc32c::crc32c_append(body_sum, head)
}

/// Reads from the front of a record; `None` where it ends early.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    #[inline]
    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
}

/// Calls `each` for every block reference and gives the range of the main data within the record.
///
/// `record` may be only the first part of a long record (`total` is the whole length), as long as it holds all headers.
///
/// # Errors
/// A [`Doubt`] if a header is unknown, or lengths do not add up; some references may have been given before.
#[inline]
pub(in crate::postgres) fn references(
    record: &[u8],
    total: u32,
    major: u8,
    mut each: impl FnMut(RelationFork, u32),
) -> Result<std::ops::Range<usize>, Doubt> {
    let mut reader = Reader {
        rest: record.get(HEADER_BYTES..).ok_or(Doubt::RecordLength)?,
    };
    let total = total as usize;
    let held = record.len();
    // As in PostgreSQL: headers are read until as many bytes are left as they announce data.
    let (mut announced, mut main) = (0usize, 0usize);
    let mut last_id = None;
    let mut relation = None;
    let left = |reader: &Reader<'_>| total - (held - reader.rest.len());
    while left(&reader) > announced {
        let id = reader.u8().ok_or(Doubt::BlockReference)?;
        match id {
            0..=BLOCK_ID_MAX => {
                if last_id.is_some_and(|last| last >= id) {
                    return Err(Doubt::BlockReference);
                }
                last_id = Some(id);
                let (fork, block, bytes) = reference(&mut reader, major, &mut relation).ok_or(Doubt::BlockReference)?;
                announced += bytes;
                each(fork, block);
            }
            ID_SHORT_DATA => main = usize::from(reader.u8().ok_or(Doubt::BlockReference)?),
            ID_LONG_DATA => main = reader.u32().ok_or(Doubt::BlockReference)? as usize,
            ID_ORIGIN => _ = reader.u16().ok_or(Doubt::BlockReference)?,
            ID_TOP_XID if major >= 14 => _ = reader.u32().ok_or(Doubt::BlockReference)?,
            _ => return Err(Doubt::BlockReference),
        }
        if id >= ID_LONG_DATA {
            announced += main;
            break;
        }
    }
    if left(&reader) != announced || main > total {
        return Err(Doubt::BlockReference);
    }
    Ok(total - main..total)
}

/// One block reference behind its id: the fork, the block, how many bytes of data and image it announces.
#[inline]
fn reference(
    reader: &mut Reader<'_>,
    major: u8,
    relation: &mut Option<(u32, u32, u32)>,
) -> Option<(RelationFork, u32, usize)> {
    let flags = reader.u8()?;
    let data = reader.u16()?;
    if (flags & HAS_DATA != 0) != (data != 0) {
        return None;
    }
    let mut bytes = usize::from(data);
    if flags & HAS_IMAGE != 0 {
        bytes += image(reader, major)?;
    }
    if flags & SAME_RELATION == 0 {
        *relation = Some((reader.u32()?, reader.u32()?, reader.u32()?));
    }
    let (tablespace, database, number) = (*relation)?;
    let block = reader.u32()?;
    let fork = flags & 0x0f;
    if block == NO_BLOCK || fork > 3 || number == 0 {
        return None;
    }
    let fork = RelationFork {
        tablespace,
        database,
        relation: number,
        fork,
    };
    Some((fork, block, bytes))
}

/// The header of a page image; gives the image's length.
#[inline]
fn image(reader: &mut Reader<'_>, major: u8) -> Option<usize> {
    let length = reader.u16()?;
    let _hole_offset = reader.u16()?;
    let info = reader.u8()?;
    // 13 and 14: hole, compressed, apply. Since 15: hole, apply, pglz, lz4, zstd.
    let (compressed, known) = if major < 15 { (0x02, 0x07) } else { (0x1c, 0x1f) };
    if info & !known != 0 {
        return None;
    }
    if info & compressed != 0 && info & IMAGE_HAS_HOLE != 0 {
        reader.u16()?;
    }
    Some(usize::from(length))
}
