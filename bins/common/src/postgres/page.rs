//! Pages of relations: their checksum, and whether one is what PostgreSQL would accept.
//!
//! Knows `PageHeaderData` (`src/include/storage/bufpage.h`), the checksum of
//! `src/include/storage/checksum_impl.h` and the rules of `PageIsVerified` (`src/backend/storage/page/bufpage.c`).
//! Whether a bad page was only torn by a concurrent write is for the reader to find out, by reading again.

use super::lsn::Lsn;
use super::{bytes_at, u16_at};
use std::fmt;

const LANES: usize = 32;
const ROW_BYTES: usize = LANES * 4;
const FNV_PRIME: u32 = 16_777_619;
const PAGE_HEADER_BYTES: u16 = 24;
const VALID_FLAGS: u16 = 0x0007;

/// `checksumBaseOffsets`.
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageDamage {
    /// The checksum is not that of the content.
    Checksum {
        /// What the page says.
        stored: u16,
        /// What it should say.
        computed: u16,
    },
    /// The header cannot be right.
    Header,
    /// It should be empty, but is not.
    NotZero,
    /// It is not as long as a page.
    Length,
}

impl fmt::Display for PageDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageDamage::Checksum { stored, computed } => {
                write!(f, "page says checksum {stored:04X}, its content has {computed:04X}")
            }
            PageDamage::Header => f.write_str("page header is impossible"),
            PageDamage::NotZero => f.write_str("page is marked new but is not empty"),
            PageDamage::Length => f.write_str("page is incomplete"),
        }
    }
}

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// All zeros: allocated, not yet used.
    New,
    /// As it should be.
    Good,
    /// PostgreSQL would refuse it.
    Bad {
        /// Why.
        damage: PageDamage,
        /// What stands where its LSN should; may be nonsense.
        lsn: Lsn,
    },
}

/// The checksum that `page` should carry as block `block` of its relation; the stored one does not count.
///
/// `block` counts from the relation's first file, not from the segment's. A page is a multiple of 128
/// bytes long; a rest is ignored.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = BASE_OFFSETS;
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        // pd_checksum does not take part in its own computation.
        if let Some(field) = first.get_mut(8..10) {
            field.fill(0);
        }
        add_row(&mut sums, &first);
        for row in rest {
            add_row(&mut sums, row);
        }
    }
    let folded = sums.into_iter().map(|sum| mix(mix(sum))).fold(0, |all, sum| all ^ sum) ^ block;
    // Never 0. The remainder is below 65535, so nothing is cut off.
    (folded % 65_535 + 1) as u16
}

/// One round with 32 values; a loop of fixed length without branches, so that it becomes vector instructions.
#[inline(always)]
fn add_row(sums: &mut [u32; LANES], row: &[u8; ROW_BYTES]) {
    let (words, _) = row.as_chunks::<4>();
    let Some(words) = words.first_chunk::<LANES>() else {
        return;
    };
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = mix(*sum ^ u32::from_le_bytes(*word));
    }
}

#[inline(always)]
fn mix(value: u32) -> u32 {
    value.wrapping_mul(FNV_PRIME) ^ (value >> 17)
}

/// The position of the last change to a page; nothing if there are too few bytes.
pub fn page_lsn(page: &[u8]) -> Option<Lsn> {
    let (high, low) = (bytes_at::<4>(page, 0)?, bytes_at::<4>(page, 4)?);
    Some(Lsn(
        u64::from(u32::from_le_bytes(high)) << 32 | u64::from(u32::from_le_bytes(low))
    ))
}

/// Judges a page as PostgreSQL does when it reads it; `checksums` is the cluster's setting.
pub fn verify_page(page: &[u8], block: u32, checksums: bool) -> PageState {
    let Some(header) = Header::parse(page) else {
        return PageState::Bad {
            damage: PageDamage::Length,
            lsn: page_lsn(page).unwrap_or_default(),
        };
    };
    let bad = |damage| PageState::Bad {
        damage,
        lsn: header.lsn,
    };
    if header.upper == 0 {
        let empty = page.iter().all(|byte| *byte == 0);
        return if empty {
            PageState::New
        } else {
            bad(PageDamage::NotZero)
        };
    }
    if checksums {
        let computed = checksum(page, block);
        if computed != header.checksum {
            return bad(PageDamage::Checksum {
                stored: header.checksum,
                computed,
            });
        }
    }
    if header.is_sane(page.len()) {
        PageState::Good
    } else {
        bad(PageDamage::Header)
    }
}

struct Header {
    lsn: Lsn,
    checksum: u16,
    flags: u16,
    lower: u16,
    upper: u16,
    special: u16,
}

impl Header {
    fn parse(page: &[u8]) -> Option<Header> {
        if page.is_empty() || !page.len().is_multiple_of(ROW_BYTES) {
            return None;
        }
        Some(Header {
            lsn: page_lsn(page)?,
            checksum: u16_at(page, 8)?,
            flags: u16_at(page, 10)?,
            lower: u16_at(page, 12)?,
            upper: u16_at(page, 14)?,
            special: u16_at(page, 16)?,
        })
    }

    fn is_sane(&self, page_bytes: usize) -> bool {
        self.flags & !VALID_FLAGS == 0
            && self.lower >= PAGE_HEADER_BYTES
            && self.lower <= self.upper
            && self.upper <= self.special
            && usize::from(self.special) <= page_bytes
            && self.special.is_multiple_of(8)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::postgres::{Major, fixtures};
    use proptest::prelude::*;

    fn golden(major: Major) -> Vec<u8> {
        fixtures::read(major, "heap_block_3")
    }

    #[test]
    fn a_page_of_every_version_is_good_in_its_place() {
        for major in Major::ALL {
            let page = golden(major);
            assert_eq!(verify_page(&page, 3, true), PageState::Good, "{major}");
            let said = fixtures::expected(major)["page"]["lsn"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(page_lsn(&page), Some(said));
        }
    }

    #[test]
    fn a_page_in_another_place_is_bad() {
        let page = golden(Major::V15);
        assert!(matches!(
            verify_page(&page, 4, true),
            PageState::Bad {
                damage: PageDamage::Checksum { .. },
                ..
            }
        ));
        assert_eq!(verify_page(&page, 4, false), PageState::Good);
    }

    #[test]
    fn a_flipped_bit_is_noticed_as_well_as_sixteen_bits_can() {
        let golden = golden(Major::V18);
        let missed = (0..golden.len()).filter(|at| {
            let mut page = golden.clone();
            page[*at] ^= 0x01;
            verify_page(&page, 3, true) == PageState::Good
        });
        // 8192 of 65535 possible values: an eighth of a miss is expected.
        assert!(missed.count() < 3);
    }

    #[test]
    fn an_empty_page_is_new_and_one_with_a_stray_byte_is_not() {
        let mut page = vec![0; 8192];
        assert_eq!(verify_page(&page, 7, true), PageState::New);
        page[5000] = 1;
        let bad = PageState::Bad {
            damage: PageDamage::NotZero,
            lsn: Lsn::INVALID,
        };
        assert_eq!(verify_page(&page, 7, true), bad);
        assert_eq!(verify_page(&page, 7, false), bad);
    }

    #[test]
    fn an_impossible_header_is_noticed_without_checksums() {
        let mut page = golden(Major::V15);
        page[12..14].copy_from_slice(&9000_u16.to_le_bytes());
        assert!(matches!(
            verify_page(&page, 3, false),
            PageState::Bad {
                damage: PageDamage::Header,
                ..
            }
        ));
    }

    #[test]
    fn a_stump_of_a_page_is_incomplete() {
        let page = golden(Major::V15);
        for length in [0, 7, 24, 127, 8191] {
            assert!(matches!(
                verify_page(&page[..length], 3, true),
                PageState::Bad {
                    damage: PageDamage::Length,
                    ..
                }
            ));
        }
    }

    /// The checksum as its header file words it, one value after the other.
    fn slow_checksum(page: &[u8], block: u32) -> u16 {
        let mut page = page.to_vec();
        page[8..10].fill(0);
        let mut sums = BASE_OFFSETS;
        let round = |sum: u32, value: u32| (sum ^ value).wrapping_mul(FNV_PRIME) ^ ((sum ^ value) >> 17);
        for (at, word) in page.chunks(4).enumerate() {
            sums[at % 32] = round(sums[at % 32], u32::from_le_bytes(word.try_into().unwrap()));
        }
        let folded = sums.iter().fold(0, |all, sum| all ^ round(round(*sum, 0), 0)) ^ block;
        u16::try_from((folded % 65535) + 1).unwrap()
    }

    proptest! {
        #[test]
        fn the_fast_checksum_is_the_slow_one(page in proptest::collection::vec(any::<u8>(), 1024), block: u32) {
            prop_assert_eq!(checksum(&page, block), slow_checksum(&page, block));
        }

        #[test]
        fn no_bytes_panic(page in proptest::collection::vec(any::<u8>(), 0..300), block: u32, checksums: bool) {
            let _ = verify_page(&page, block, checksums);
            let _ = checksum(&page, block);
        }
    }
}
