//! What the workers have done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the workers have done so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Regular files in the backup.
    pub files: AtomicU64,
    /// Their size, in bytes.
    pub bytes: AtomicU64,
    /// Damaged pages in them.
    pub damaged_pages: AtomicU64,
}

impl Tally {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    /// Reads a counter.
    pub fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}
