//! Page checks while a file is copied.
//!
//! The server writes pages while they are read, so a page that looks bad is read again a few times. What stays bad
//! was torn by a write that never seems to end, or is damaged: it passes only if its LSN lies between the backup's
//! start and the WAL of this moment, because then replay overwrites it with a full image. A page with rubbish where
//! its LSN should be does not pass.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::error::Result;
use common::postgres::page::verify_page;
use common::postgres::{Lsn, PageState};

use crate::damage::Damage;

/// A page that looks bad is read again this often, with growing pauses.
const READ_AGAIN: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// In one file this many chunks may be waited for: a file that is all rubbish must not take days.
const PAUSES_PER_FILE: u32 = 50;

/// Something to read at an offset, as files can.
pub trait ReadAt {
    /// As `pread`.
    ///
    /// # Errors
    /// What the operating system says.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, into, offset)
    }
}

/// Reads until `into` is full or the file ends; says how much that was.
///
/// # Errors
/// What the operating system says, except interruptions.
pub fn read_full(source: &dyn ReadAt, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0usize;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match source.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// What pages of one backup are judged by.
pub struct Judge<'a> {
    /// The size of a page, in bytes.
    pub page_bytes: usize,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// Where replay will start.
    pub start: Lsn,
    /// Asks the server how far its WAL reaches now.
    pub wal_end: &'a (dyn Fn() -> Result<Lsn> + Sync),
}

/// The check of one file.
pub struct FileCheck<'a> {
    judge: &'a Judge<'a>,
    first_block: u32,
    pauses_left: u32,
    damage: Damage,
}

impl<'a> FileCheck<'a> {
    /// Begins the check of a file whose first page is block `first_block` of its relation.
    pub fn new(judge: &'a Judge<'a>, first_block: u32) -> Self {
        Self {
            judge,
            first_block,
            pauses_left: PAUSES_PER_FILE,
            damage: Damage::default(),
        }
    }

    /// Checks the pages in `chunk`, which was read from `source` at `offset`, a multiple of the page size, and
    /// replaces those that read well another time. An incomplete page at the end is not judged.
    ///
    /// # Errors
    /// What reading again gave.
    pub fn chunk(&mut self, source: &dyn ReadAt, offset: u64, chunk: &mut [u8]) -> Result<()> {
        let page_bytes = self.judge.page_bytes;
        let first = u32::try_from(offset / page_bytes.max(1) as u64).unwrap_or(u32::MAX);
        let mut bad: Vec<(u32, Lsn)> = Vec::new();
        for (page, number) in chunk.chunks_exact(page_bytes.max(1)).zip(0u32..) {
            if let Some(lsn) = self.looks_bad(page, first.saturating_add(number)) {
                bad.push((number, lsn));
            }
        }
        if bad.is_empty() {
            return Ok(());
        }
        self.read_again(source, offset, chunk, first, &mut bad)?;
        self.judge_rest(first, &bad)
    }

    /// The LSN that the page claims, if it is bad.
    fn looks_bad(&self, page: &[u8], block: u32) -> Option<Lsn> {
        match verify_page(page, self.first_block.saturating_add(block), self.judge.checksums) {
            PageState::New | PageState::Good => None,
            PageState::Bad { lsn, .. } => Some(lsn),
        }
    }

    /// Reads bad pages another few times; `bad` keeps those that never read well.
    fn read_again(
        &mut self,
        source: &dyn ReadAt,
        offset: u64,
        chunk: &mut [u8],
        first: u32,
        bad: &mut Vec<(u32, Lsn)>,
    ) -> Result<()> {
        let page_bytes = self.judge.page_bytes;
        let rounds = if self.pauses_left == 0 { 1 } else { READ_AGAIN };
        self.pauses_left = self.pauses_left.saturating_sub(1);
        let mut pause = FIRST_PAUSE;
        let mut again = vec![0u8; page_bytes];
        for round in 0..rounds {
            let mut still = Vec::new();
            for (number, _) in bad.iter().copied() {
                let at = number as usize * page_bytes;
                let got = read_full(source, &mut again, offset.saturating_add(at as u64))
                    .map_err(|error| common::error::Error::io(error, "read a page again"))?;
                // The file became shorter: nothing here is needed any more.
                again.get_mut(got..).unwrap_or_default().fill(0);
                match self.looks_bad(&again, first.saturating_add(number)) {
                    Some(lsn) => still.push((number, lsn)),
                    None => chunk
                        .get_mut(at..at + page_bytes)
                        .unwrap_or_default()
                        .copy_from_slice(&again),
                }
            }
            *bad = still;
            if bad.is_empty() || round + 1 == rounds {
                break;
            }
            std::thread::sleep(pause);
            pause *= 4;
        }
        Ok(())
    }

    fn judge_rest(&mut self, first: u32, bad: &[(u32, Lsn)]) -> Result<()> {
        let mut wal_end = None;
        for (number, lsn) in bad {
            let torn = *lsn >= self.judge.start && {
                let end = match wal_end {
                    Some(end) => end,
                    None => *wal_end.insert((self.judge.wal_end)()?),
                };
                *lsn <= end
            };
            if !torn {
                self.damage.add(first.saturating_add(*number));
            }
        }
        Ok(())
    }

    /// What was found.
    pub fn finish(self) -> Damage {
        self.damage
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::postgres::page::checksum;
    use std::cell::Cell;

    const PAGE: usize = 8192;

    fn page(block: u32, lsn: u64) -> Vec<u8> {
        let mut page = vec![0u8; PAGE];
        page[0..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[12..14].copy_from_slice(&24u16.to_le_bytes());
        page[14..16].copy_from_slice(&8192u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192u16.to_le_bytes());
        page[18..20].copy_from_slice(&8196u16.to_le_bytes());
        page[4000] = 7;
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn torn(block: u32, lsn: u64) -> Vec<u8> {
        let mut page = page(block, lsn);
        page[5000] ^= 1;
        page
    }

    /// Gives the bytes of `later` from the n-th read on, those of `first` before.
    struct Changing {
        first: Vec<u8>,
        later: Vec<u8>,
        reads_until_later: Cell<u32>,
    }

    impl ReadAt for Changing {
        fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
            let left = self.reads_until_later.get();
            self.reads_until_later.set(left.saturating_sub(1));
            let bytes = if left == 0 { &self.later } else { &self.first };
            let from = bytes.get(offset as usize..).unwrap_or_default();
            let count = from.len().min(into.len());
            into[..count].copy_from_slice(&from[..count]);
            Ok(count)
        }
    }

    fn check(first: Vec<u8>, later: Vec<u8>, reads: u32, first_block: u32) -> (Vec<u8>, Damage) {
        let wal_end = || Ok(Lsn(0x5000));
        let judge = Judge {
            page_bytes: PAGE,
            checksums: true,
            start: Lsn(0x4000),
            wal_end: &wal_end,
        };
        let mut check = FileCheck::new(&judge, first_block);
        let mut chunk = first.clone();
        let source = Changing {
            first,
            later,
            reads_until_later: Cell::new(reads),
        };
        check.chunk(&source, 0, &mut chunk).unwrap();
        (chunk, check.finish())
    }

    #[test]
    fn a_page_that_reads_well_the_second_time_is_taken_from_there() {
        let bytes = [page(0, 0x100), torn(1, 0x100)].concat();
        let good = [page(0, 0x100), page(1, 0x4100)].concat();
        for reads in [0, 1, 3] {
            let (chunk, damage) = check(bytes.clone(), good.clone(), reads, 0);
            assert!(chunk == good && damage.pages() == 0, "good from read {reads} on");
        }
    }

    #[test]
    fn a_page_that_stays_bad_passes_only_with_an_lsn_of_this_backup() {
        for (lsn, pages) in [
            (0x100, 1),
            (0x3fff, 1),
            (0x4000, 0),
            (0x5000, 0),
            (0x5001, 1),
            (u64::MAX, 1),
        ] {
            let bytes = [page(0, 0x100), torn(1, lsn), page(2, 0x100)].concat();
            let (_, damage) = check(bytes.clone(), bytes, 0, 0);
            assert_eq!(damage.pages(), pages, "LSN {lsn:x}");
            assert_eq!(damage.runs().len() as u64, pages);
        }
    }

    #[test]
    fn damage_is_named_by_the_block_of_the_file_and_checked_by_that_of_the_relation() {
        let bytes = [page(131_072, 1), torn(131_073, 1)].concat();
        let (_, damage) = check(bytes.clone(), bytes, 0, 131_072);
        assert_eq!(damage.runs(), [(1, 1)]);
    }

    #[test]
    fn new_pages_and_an_incomplete_last_one_are_no_damage() {
        let bytes = [vec![0; PAGE], page(1, 1), vec![9; 100]].concat();
        let (_, damage) = check(bytes.clone(), bytes, 0, 0);
        assert_eq!(damage.pages(), 0);
    }

    #[test]
    fn a_bad_page_that_is_cut_off_meanwhile_becomes_empty() {
        let (chunk, damage) = check(torn(0, 1), Vec::new(), 0, 0);
        assert_eq!(damage.pages(), 0);
        assert_eq!(chunk, vec![0; PAGE]);
    }
}
