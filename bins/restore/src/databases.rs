//! The names of databases as files of a backup have them. Pure.
//!
//! Facts from `src/include/catalog/pg_database.h` (PostgreSQL 13 to 18: `oid` and `datname` come first, both of fixed width),
//! `src/backend/utils/cache/relmapper.c` (`RelMapFile`), `src/include/storage/bufpage.h`, `itemid.h` and
//! `src/include/access/htup_details.h`. The files are as the backup caught them, before WAL: rows that are dead count too, so more
//! databases may be found than there are, never fewer than were there when the backup began.

use std::collections::BTreeMap;

/// `DatabaseRelationId`.
const PG_DATABASE: u32 = 1262;
/// `RELMAPPER_FILEMAGIC`.
const MAP_MAGIC: u32 = 0x0059_2717;
/// `NAMEDATALEN`.
const NAME_BYTES: usize = 64;
/// `SizeOfPageHeaderData`: line pointers come next.
const PAGE_HEADER_BYTES: usize = 24;
/// Where `pd_lower` lies: the end of the line pointers.
const LOWER_AT: usize = 12;
/// Where `t_hoff` lies in a tuple: the offset of its columns.
const COLUMNS_AT: usize = 22;

/// The file of pg_database in `global`, as pg_filenode.map names it.
pub fn file_of_databases(map: &[u8]) -> Option<u32> {
    if word(map, 0)? != MAP_MAGIC {
        return None;
    }
    let count = usize::try_from(word(map, 4)?).ok()?;
    (0..count.min(map.len() / 8))
        .map(|number| 8 + 8 * number)
        .find(|at| word(map, *at) == Some(PG_DATABASE))
        .and_then(|at| word(map, at + 4))
}

/// The databases of the file of pg_database: OIDs and names.
pub fn names(file: &[u8], page_bytes: usize) -> BTreeMap<u32, Vec<u8>> {
    file.chunks_exact(page_bytes.max(PAGE_HEADER_BYTES))
        .flat_map(rows)
        .collect()
}

fn rows(page: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let lower = half_word(page, LOWER_AT).map_or(0, usize::from).min(page.len());
    (PAGE_HEADER_BYTES..lower)
        .step_by(4)
        .filter_map(|at| row(page, word(page, at)?))
        .collect()
}

/// A line pointer has the offset in its lowest 15 bits and the length in its highest; without a length nothing is stored.
fn row(page: &[u8], pointer: u32) -> Option<(u32, Vec<u8>)> {
    let (offset, length) = (pointer & 0x7fff, pointer >> 17);
    let tuple = page.get(usize::try_from(offset).ok()?..)?;
    let tuple = tuple.get(..usize::try_from(length).ok()?)?;
    let columns = tuple.get(usize::from(*tuple.get(COLUMNS_AT)?)..)?;
    let name = columns.get(4..4 + NAME_BYTES)?;
    let name = name.split(|byte| *byte == 0).next()?;
    (!name.is_empty()).then(|| (word(columns, 0).unwrap_or_default(), name.to_vec()))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

fn half_word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn map(entries: &[(u32, u32)]) -> Vec<u8> {
        let mut bytes = MAP_MAGIC.to_le_bytes().to_vec();
        bytes.extend(u32::try_from(entries.len()).unwrap().to_le_bytes());
        for (relation, file) in entries {
            bytes.extend(relation.to_le_bytes());
            bytes.extend(file.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_map_names_the_file() {
        assert_eq!(file_of_databases(&map(&[(1260, 7), (1262, 16999)])), Some(16999));
        assert_eq!(file_of_databases(&map(&[(1260, 7)])), None);
        let mut other = map(&[(1262, 5)]);
        other[0] ^= 1;
        assert_eq!(file_of_databases(&other), None);
        assert_eq!(file_of_databases(&[]), None);
        let mut huge = map(&[(1260, 7)]);
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(file_of_databases(&huge), None);
    }

    /// A page with these rows, as PostgreSQL lays them out: columns behind a header of 32 bytes.
    fn page(databases: &[(u32, &str)]) -> Vec<u8> {
        let mut page = vec![0; 8192];
        let mut upper = page.len();
        for (number, (oid, name)) in databases.iter().enumerate() {
            let mut tuple = vec![0; 32 + 4 + NAME_BYTES + 20];
            tuple[COLUMNS_AT] = 32;
            tuple[32..36].copy_from_slice(&oid.to_le_bytes());
            tuple[36..36 + name.len()].copy_from_slice(name.as_bytes());
            upper -= tuple.len();
            page[upper..upper + tuple.len()].copy_from_slice(&tuple);
            let pointer = upper as u32 | 1 << 15 | (tuple.len() as u32) << 17;
            let at = PAGE_HEADER_BYTES + 4 * number;
            page[at..at + 4].copy_from_slice(&pointer.to_le_bytes());
        }
        let lower = (PAGE_HEADER_BYTES + 4 * databases.len()) as u16;
        page[LOWER_AT..LOWER_AT + 2].copy_from_slice(&lower.to_le_bytes());
        page
    }

    #[test]
    fn every_page_gives_its_databases() {
        let mut file = page(&[(1, "template1"), (16384, "shop")]);
        file.extend(page(&[(5, "postgres")]));
        let found = names(&file, 8192);
        let shown: Vec<(u32, String)> = found
            .into_iter()
            .map(|(oid, name)| (oid, String::from_utf8(name).unwrap()))
            .collect();
        let expected = [(1, "template1"), (5, "postgres"), (16384, "shop")];
        assert_eq!(shown, expected.map(|(oid, name)| (oid, name.to_owned())));
    }

    #[test]
    fn no_damaged_page_is_read_beyond_its_end() {
        let whole = page(&[(16384, "shop")]);
        assert!(names(&vec![0xff; 8192], 8192).is_empty());
        assert!(names(&whole[..8000], 8192).is_empty());
        for at in 0..64 {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                assert!(names(&damaged, 8192).len() <= 0xffff / 4);
            }
        }
    }
}
