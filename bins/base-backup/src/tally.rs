//! What the workers have done so far.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many damaged files are remembered for the result; the manifest names them all.
const MOST_DAMAGED: usize = 1000;
/// So many runs of blocks of one of them.
const MOST_RUNS: usize = 100;

/// A file with damaged pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedFile {
    /// Its path in the backup.
    pub path: String,
    /// Runs of blocks: the first, and how many.
    pub runs: Vec<(u32, u32)>,
}

/// What the workers have done so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Regular files in the backup.
    pub files: AtomicU64,
    /// Their size, in bytes.
    pub bytes: AtomicU64,
    /// Damaged pages in them.
    pub damaged_pages: AtomicU64,
    /// Where the first of them are.
    pub damaged: Mutex<Vec<DamagedFile>>,
}

impl Tally {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    /// Notes damaged pages of one file, whose path in the backup this is.
    pub fn damage(&self, path: &[u8], pages: u64, runs: &[(u32, u32)]) {
        Self::add(&self.damaged_pages, pages);
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.len() < MOST_DAMAGED {
            damaged.push(DamagedFile {
                path: String::from_utf8_lossy(path).into_owned(),
                runs: runs.iter().take(MOST_RUNS).copied().collect(),
            });
        }
    }

    /// The damaged files, by path.
    pub fn damaged_files(&self) -> Vec<DamagedFile> {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        damaged.sort_by(|a, b| a.path.cmp(&b.path));
        damaged
    }

    /// Reads a counter.
    pub fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}
