//! The header of a WAL page (`src/include/access/xlog_internal.h`).

use crate::postgres::walmap::Doubt;

/// Header of every page.
pub(super) const SHORT_HEADER: usize = 24;
/// Header of a segment's first page.
pub(super) const LONG_HEADER: usize = 40;
/// The sizes that a build of PostgreSQL may choose for WAL pages; 8 KiB unless somebody asked for another.
pub(super) const PAGE_SIZES: std::ops::RangeInclusive<u32> = 1024..=65536;

const FIRST_IS_CONTINUATION: u16 = 0x0001;
const IS_LONG: u16 = 0x0002;
const FIRST_IS_OVERWRITE: u16 = 0x0008;
const KNOWN_FLAGS: u16 = 0x000f;

/// The magic number of a major version's WAL pages.
pub(super) fn magic(major: u8) -> Option<u16> {
    Some(match major {
        13 => 0xd106,
        14 => 0xd10d,
        15 => 0xd110,
        16 => 0xd113,
        17 => 0xd116,
        18 => 0xd118,
        _ => return None,
    })
}

/// What a page header says, once it has been found possible.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageHeader {
    pub(super) timeline: u32,
    pub(super) address: u64,
    /// Bytes of the continued record that were missing at the start of the page; `None` without a continuation.
    pub(super) continues: Option<u32>,
    pub(super) overwrites: bool,
    /// Length of the header.
    pub(super) length: usize,
}

impl PageHeader {
    /// Reads the header; `first` says whether the page is the segment's first.
    pub(super) fn parse(page: &[u8], first: bool, expected_magic: u16) -> Result<Self, Doubt> {
        let raw: &[u8; SHORT_HEADER] = page.first_chunk().ok_or(Doubt::PageHeader)?;
        let [
            m0,
            m1,
            i0,
            i1,
            t0,
            t1,
            t2,
            t3,
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            r0,
            r1,
            r2,
            r3,
            ..,
        ] = *raw;
        if u16::from_le_bytes([m0, m1]) != expected_magic {
            return Err(Doubt::PageMagic);
        }
        let info = u16::from_le_bytes([i0, i1]);
        let continuation = info & FIRST_IS_CONTINUATION != 0;
        let overwrites = info & FIRST_IS_OVERWRITE != 0;
        if info & !KNOWN_FLAGS != 0 || (info & IS_LONG != 0) != first || (continuation && overwrites) {
            return Err(Doubt::PageHeader);
        }
        let remaining = u32::from_le_bytes([r0, r1, r2, r3]);
        if continuation && remaining == 0 {
            return Err(Doubt::PageHeader);
        }
        Ok(Self {
            timeline: u32::from_le_bytes([t0, t1, t2, t3]),
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            continues: continuation.then_some(remaining),
            overwrites,
            length: if first { LONG_HEADER } else { SHORT_HEADER },
        })
    }
}

/// The fields that only a segment's first page has.
#[derive(Debug, Clone, Copy)]
pub(super) struct LongFields {
    pub(super) system_identifier: u64,
    pub(super) segment_size: u32,
    pub(super) page_size: u32,
}

impl LongFields {
    /// Reads them from the first 40 bytes.
    pub(super) fn parse(head: &[u8]) -> Option<Self> {
        let raw: &[u8; LONG_HEADER] = head.first_chunk()?;
        let [.., s0, s1, s2, s3, s4, s5, s6, s7, g0, g1, g2, g3, p0, p1, p2, p3] = *raw;
        Some(Self {
            system_identifier: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            segment_size: u32::from_le_bytes([g0, g1, g2, g3]),
            page_size: u32::from_le_bytes([p0, p1, p2, p3]),
        })
    }

    /// Whether pages may have this size.
    pub(super) fn has_possible_page_size(&self) -> bool {
        self.page_size.is_power_of_two() && PAGE_SIZES.contains(&self.page_size)
    }
}
