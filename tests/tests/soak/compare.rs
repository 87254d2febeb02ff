//! Compares the relation files of a restored data directory, not started, with those of the server that was backed up, page by page.
//!
//! A page that changed after the backup's start is mended by replay, so it may differ. Any other must carry the same LSN and the same
//! bytes, but for what PostgreSQL writes without WAL: hint bits of tuples and line pointers, the page's flags, its prune hint and checksum,
//! command numbers of rows, what pads rows, what lies in the free space between (`src/backend/access/common/bufmask.c`). Visibility maps have to be equal to the byte: clearing a bit leaves the LSN alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::postgres::Lsn;
use common::postgres::page::page_lsn;
use common::postgres::relation::{Fork, RelationName, relation_name};

const PAGE: usize = 8192;

/// What was compared.
#[derive(Debug, Default)]
pub struct Compared {
    pub files: u64,
    pub pages: u64,
    /// Pages that changed since the backup began.
    pub later: u64,
    pub differences: Vec<String>,
}

/// The relation files below a directory of databases, by their path below it.
fn files(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(root.to_path_buf(), String::new())];
    while let Some((directory, below)) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().into_string().unwrap();
            let below = format!("{below}/{name}");
            match entry.file_type().unwrap().is_dir() {
                true => waiting.push((entry.path(), below)),
                false => _ = found.insert(below, entry.path()),
            }
        }
    }
    found
}

fn fork_of(path: &str) -> Option<Fork> {
    match relation_name(path.rsplit('/').next()?)? {
        RelationName::Permanent { fork, .. } => Some(fork),
        RelationName::Temporary => None,
    }
}

/// Compares what lies below two directories; `start` is where the backup's replay begins, `unlogged` says which relations come back
/// empty.
pub fn compare(live: &Path, restored: &Path, start: Lsn, unlogged: &dyn Fn(&str) -> bool, into: &mut Compared) {
    let (ours, theirs) = (files(live), files(restored));
    for (path, file) in &ours {
        let Some(fork) = fork_of(path).filter(|_| !unlogged(path)) else {
            continue;
        };
        let Some(other) = theirs.get(path) else {
            let bytes = fs::metadata(file).map(|file| file.len()).unwrap_or_default();
            into.differences
                .push(format!("{path} ({bytes} bytes) was not restored"));
            continue;
        };
        into.files += 1;
        let (a, b) = (fs::read(file).unwrap(), fs::read(other).unwrap());
        match fork {
            Fork::Main | Fork::Init => pages(path, &a, &b, start, into),
            // The free space map is advisory, and nothing in it is protected by WAL.
            Fork::FreeSpace => {}
            Fork::Visibility if a == b => into.pages += (a.len() / PAGE) as u64,
            Fork::Visibility => into.differences.push(format!("{path}: the visibility maps differ")),
        }
    }
    for path in theirs.keys().filter(|path| !ours.contains_key(*path)) {
        if fork_of(path).is_some() {
            into.differences.push(format!("{path} is there and should not be"));
        }
    }
}

fn pages(path: &str, live: &[u8], restored: &[u8], start: Lsn, into: &mut Compared) {
    if live.len() != restored.len() {
        let (a, b) = (live.len(), restored.len());
        into.differences
            .push(format!("{path}: {b} bytes were restored, and it has {a}"));
        return;
    }
    for (block, (a, b)) in live.chunks(PAGE).zip(restored.chunks(PAGE)).enumerate() {
        into.pages += 1;
        let (la, lb) = (page_lsn(a).unwrap_or_default(), page_lsn(b).unwrap_or_default());
        if la >= start {
            into.later += 1;
        } else if la != lb {
            into.differences
                .push(format!("{path} block {block}: LSN {lb} was restored, and it has {la}"));
        } else if masked(a) != masked(b) {
            let (a, b) = (masked(a), masked(b));
            let differ = (0..a.len()).filter(|at| a[*at] != b[*at]).take(8);
            let places: Vec<String> = differ
                .map(|at| format!("{at}: {:02x} for {:02x}", b[at], a[at]))
                .collect();
            let special = u16::from_le_bytes([a[16], a[17]]);
            let what = format!("special at {special}, {}", places.join(", "));
            into.differences
                .push(format!("{path} block {block}: the bytes differ at LSN {la}: {what}"));
        }
    }
}

/// A page without what is written without WAL.
fn masked(page: &[u8]) -> Vec<u8> {
    let mut page = page.to_vec();
    let word = |page: &[u8], at: usize| {
        page.get(at..at + 2)
            .map(|two| u16::from_le_bytes([two[0], two[1]]) as usize)
    };
    let (Some(lower), Some(special)) = (word(&page, 12), word(&page, 16)) else {
        return page;
    };
    if page.len() < PAGE || !(24..=PAGE).contains(&lower) || special > PAGE {
        return page;
    }
    // pd_checksum, pd_flags, pd_prune_xid.
    page[8..12].fill(0);
    page[20..24].fill(0);
    let is_heap = special == PAGE;
    // What lies between the line pointers and the rows is nobody's: replay of a full image clears it, the server that made the page did not
    // (mask_unused_space; a page of GIN may not say where its free space begins). Chains go over servers.
    if let Some(upper) =
        word(&page, 14).filter(|upper| lower <= *upper && *upper <= special && (lower > 24 || PAGE - special != 8))
    {
        page[lower..upper].fill(0);
    }
    // The pages that SP-GiST last used stand in its metapage without WAL (SpGistUpdateMetaPage, src/backend/access/spgist/spgutils.c).
    if page[PAGE - 2..] == [0x82, 0xff] && page[special] & 1 == 1 {
        page[28..92].fill(0);
    }
    // A page that was deleted from an index keeps what stood on it where it was deleted, and replay makes it anew (bt_mask, gin_mask,
    // gist_mask). The number at the end tells the kinds apart (GIST_PAGE_ID, HASHO_PAGE_ID, SPGIST_PAGE_ID; a B-tree's is smaller).
    let flags = |at: usize| word(&page, special + at).unwrap_or_default();
    let deleted = match (PAGE - special, flags(14)) {
        (16, 0..=0xff7f) => flags(12) & 1 << 2 != 0,
        (16, 0xff81) => flags(12) & 1 << 1 != 0,
        (8, _) => flags(6) & 1 << 2 != 0,
        _ => false,
    };
    if deleted {
        page[12..].fill(0);
        return page;
    }
    // WAL tells a sequence's value ahead of time, so the server that counts and one that replays show another one (SEQ_LOG_VALS and
    // SEQ_MAGIC, src/backend/commands/sequence.c).
    if special == PAGE - 8 && page[special..special + 4] == [0x17, 0x17, 0, 0] {
        page[lower..].fill(0);
    }
    if !is_heap {
        // Flags of the index's own, such as "has garbage", stand here.
        page[special..].fill(0);
    }
    for at in (24..lower.saturating_sub(3)).step_by(4) {
        let item = u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let (offset, flags, length) = (item as usize & 0x7fff, item >> 15 & 3, (item >> 17) as usize);
        if !is_heap {
            // A line pointer of an index is marked dead without WAL; its place and length stay.
            let kept = item & !(3 << 15);
            page[at..at + 4].copy_from_slice(&kept.to_le_bytes());
        } else if flags == 1 && length >= 23 && offset + length <= PAGE {
            // t_infomask: whether xmin and xmax are known to have committed or not, and whether t_cid is a combined one.
            let infomask = offset + 20;
            page[infomask + 1] &= !0x0f;
            page[infomask] &= !0x20;
            // t_cid matters to the transaction that wrote it alone, and what pads a row to nobody: replay sets neither.
            page[offset + 8..offset + 12].fill(0);
            page[offset + length..(offset + length).next_multiple_of(8)].fill(0);
        }
    }
    page
}

#[test]
fn a_missing_change_a_hint_and_a_lost_bit_of_a_visibility_map_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (live, restored) = (dir.path().join("a"), dir.path().join("b"));
    let mut page = vec![0u8; PAGE];
    page[4..8].copy_from_slice(&0x100u32.to_le_bytes());
    page[12..14].copy_from_slice(&28u16.to_le_bytes());
    page[14..16].copy_from_slice(&8000u16.to_le_bytes());
    page[16..18].copy_from_slice(&8192u16.to_le_bytes());
    page[24..28].copy_from_slice(&(8000u32 | 1 << 15 | 100 << 17).to_le_bytes());
    let differences = |name: &str, change: &dyn Fn(&mut Vec<u8>), start: u64| {
        let mut changed = page.clone();
        change(&mut changed);
        for (root, bytes) in [(&live, &changed), (&restored, &page)] {
            fs::create_dir_all(root.join("5")).unwrap();
            fs::write(root.join("5").join(name), bytes).unwrap();
        }
        let mut compared = Compared::default();
        compare(&live, &restored, Lsn(start), &|_| false, &mut compared);
        for root in [&live, &restored] {
            fs::remove_dir_all(root).unwrap();
        }
        compared.differences.len()
    };
    assert_eq!(differences("1", &|_| {}, 0x1000), 0);
    assert_eq!(differences("1", &|page| page[8000 + 21] |= 1, 0x1000), 0, "a hint bit");
    assert_eq!(
        differences("1", &|page| page[8000 + 50] |= 1, 0x1000),
        1,
        "a byte of a row"
    );
    assert_eq!(differences("1", &|page| page[4] = 8, 0x1000), 1, "another LSN");
    assert_eq!(
        differences("1", &|page| page[4] = 8, 0x100),
        0,
        "changed since the start"
    );
    assert_eq!(differences("1", &|page| page.truncate(100), 0x1000), 1);
    assert_eq!(
        differences("1_vm", &|page| page[100] |= 1, 0x1000),
        1,
        "a bit of a visibility map"
    );
    assert_eq!(differences("1_fsm", &|page| page[100] |= 1, 0x1000), 0);
}
