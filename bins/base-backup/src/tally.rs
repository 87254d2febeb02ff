//! What the workers have done so far.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use common::repository::Label;
use common::repository::manifest::{Entry, Node};

use crate::base::used::Used;

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
    /// Bytes that were read of them.
    pub read: AtomicU64,
    /// Bytes of them that an interrupted backup had stored.
    pub reused: AtomicU64,
    /// Where the bytes lie that earlier backups hold.
    used: Mutex<Used>,
    /// Blocks that an audit looked at: they changed between the starts of the two backups.
    pub audited: AtomicU64,
    /// Those of them that WAL did not tell about.
    untold: Mutex<(u64, Vec<String>)>,
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

    /// Notes where an entry's bytes lie.
    pub fn uses(&self, entry: &Entry) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).entry(entry);
    }

    /// Counts something that was not looked at, because nothing of it changed.
    pub fn unchanged(&self, entry: &Entry) {
        if let Node::File(file) = &entry.node {
            Self::add(&self.files, 1);
            Self::add(&self.bytes, file.size);
        }
        self.uses(entry);
    }

    /// Notes that an earlier backup's manifest is referred to.
    pub fn uses_manifest(&self, label: Label) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).manifest(label);
    }

    /// What is used of earlier backups.
    pub fn used(&self) -> Used {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a block that changed without WAL telling.
    pub fn untold(&self, what: String) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        untold.0 += 1;
        if untold.1.len() < MOST_RUNS {
            untold.1.push(what);
        }
    }

    /// How many blocks changed without WAL telling, and the first of them.
    pub fn untold_blocks(&self) -> (u64, Vec<String>) {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
