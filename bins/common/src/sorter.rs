//! Sorting more than fits in memory: pairs of key and value, by key, equal keys in the order they came.
//!
//! Memory is bounded by the limit given, bookkeeping included, plus one pair per run being merged. What does
//! not fit goes to temporary files that have no name, so a killed process leaves none. Never more than a few
//! hundred of them are open: 64 runs are merged into one as soon as there are so many.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result};

/// How many runs are merged at a time.
const FAN_IN: usize = 64;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// Takes pairs in any order.
pub struct Sorter {
    directory: PathBuf,
    memory_limit: usize,
    batch: Batch,
    /// `levels[n]` holds runs of about 64^n batches each; a higher level came earlier than a lower one.
    levels: Vec<Vec<File>>,
}

impl Sorter {
    /// Makes a sorter that keeps about `memory_limit` bytes (at least 64 KiB) and spills into `spill_dir`.
    pub fn new(memory_limit: usize, spill_dir: &Path) -> Self {
        let memory_limit = memory_limit.max(64 << 10);
        Self {
            directory: spill_dir.to_owned(),
            memory_limit,
            batch: Batch::new(memory_limit),
            levels: Vec::new(),
        }
    }

    /// Takes one pair.
    ///
    /// # Errors
    /// Whatever the file system of the spill directory says; `Refused` for a key or value of 4 GiB or more.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if self.batch.push(key, value)? {
            return Ok(());
        }
        self.spill()?;
        if self.batch.push(key, value)? {
            return Ok(());
        }
        // A pair too large for an empty batch is a run by itself.
        let mut run = self.new_run()?;
        write_pair(&mut run, key, value).context(|| self.what())?;
        let run = self.finish_run(run)?;
        self.add_run(run, 0)
    }

    /// Ends the input; the pairs come out in order.
    ///
    /// # Errors
    /// Whatever the file system of the spill directory says.
    pub fn finish(mut self) -> Result<Sorted> {
        if self.levels.is_empty() {
            self.batch.sort();
            return Ok(Sorted(Source::Memory(self.batch, 0)));
        }
        self.spill()?;
        self.batch = Batch::default();
        let levels = std::mem::take(&mut self.levels);
        let mut runs: Vec<File> = levels.into_iter().rev().flatten().collect();
        while runs.len() > FAN_IN {
            // The last ones are the smallest. They stay neighbours, or equal keys would change places.
            let first = runs.len().saturating_sub(FAN_IN).max(FAN_IN - 1);
            let merged = self.merge(runs.split_off(first))?;
            runs.push(merged);
        }
        Ok(Sorted(Source::Runs(Merge::new(runs, self.memory_limit)?)))
    }

    /// Writes the batch out as a run, and empties it.
    fn spill(&mut self) -> Result<()> {
        if self.batch.index.is_empty() {
            return Ok(());
        }
        self.batch.sort();
        let mut run = self.new_run()?;
        for number in 0..self.batch.index.len() {
            let (key, value) = self.batch.pair(number);
            write_pair(&mut run, key, value).context(|| self.what())?;
        }
        self.batch.clear();
        let run = self.finish_run(run)?;
        self.add_run(run, 0)
    }

    fn add_run(&mut self, run: File, level: usize) -> Result<()> {
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Vec::new);
        }
        let Some(runs) = self.levels.get_mut(level) else {
            return Ok(());
        };
        runs.push(run);
        if runs.len() < FAN_IN {
            return Ok(());
        }
        let runs = std::mem::take(runs);
        let merged = self.merge(runs)?;
        self.add_run(merged, level + 1)
    }

    fn merge(&self, runs: Vec<File>) -> Result<File> {
        let mut merge = Merge::new(runs, self.memory_limit / 8)?;
        let mut run = self.new_run()?;
        while let Some((key, value)) = merge.next_pair()? {
            write_pair(&mut run, &key, &value).context(|| self.what())?;
        }
        self.finish_run(run)
    }

    fn new_run(&self) -> Result<BufWriter<File>> {
        let file = tempfile::tempfile_in(&self.directory).context(|| self.what())?;
        Ok(BufWriter::with_capacity(
            (self.memory_limit / 16).clamp(4 << 10, 256 << 10),
            file,
        ))
    }

    fn finish_run(&self, run: BufWriter<File>) -> Result<File> {
        let mut file = run
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .context(|| self.what())?;
        file.rewind().context(|| self.what())?;
        Ok(file)
    }

    fn what(&self) -> String {
        format!("spill to a temporary file in {}", self.directory.display())
    }
}

/// The pairs in order of their keys.
pub struct Sorted(Source);

enum Source {
    Memory(Batch, usize),
    Runs(Merge),
}

impl Iterator for Sorted {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Result<Pair>> {
        match &mut self.0 {
            Source::Memory(batch, number) => (*number < batch.index.len()).then(|| {
                let (key, value) = batch.pair(*number);
                *number += 1;
                Ok((key.to_vec(), value.to_vec()))
            }),
            Source::Runs(merge) => merge.next_pair().transpose(),
        }
    }
}

/// Pairs in memory. Both vectors are allocated once, so nothing grows beyond the limit; pages that are never
/// written take no memory.
#[derive(Default)]
struct Batch {
    /// Pairs as [`write_pair`] writes them.
    bytes: Vec<u8>,
    /// Where each pair begins.
    index: Vec<u32>,
}

impl Batch {
    fn new(memory_limit: usize) -> Self {
        // An eighth is left for writing runs and for merging them.
        let most = usize::try_from(u32::MAX).unwrap_or(usize::MAX);
        Self {
            bytes: Vec::with_capacity((memory_limit / 8 * 5).min(most)),
            index: Vec::with_capacity((memory_limit / 8).min(most) / size_of::<u32>()),
        }
    }

    /// Takes a pair if there is room.
    fn push(&mut self, key: &[u8], value: &[u8]) -> Result<bool> {
        let (key_bytes, value_bytes) = (length(key)?, length(value)?);
        let needed = 8 + key.len() + value.len();
        let Ok(start) = u32::try_from(self.bytes.len()) else {
            return Ok(false);
        };
        if self.index.len() == self.index.capacity() || self.bytes.capacity() - self.bytes.len() < needed {
            return Ok(false);
        }
        self.index.push(start);
        self.bytes.extend_from_slice(&key_bytes);
        self.bytes.extend_from_slice(&value_bytes);
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        Ok(true)
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        // In place, unlike a stable sort; where a pair begins says when it came.
        self.index
            .sort_unstable_by(|a, b| pair_at(bytes, *a).0.cmp(pair_at(bytes, *b).0).then(a.cmp(b)));
    }

    fn pair(&self, number: usize) -> (&[u8], &[u8]) {
        self.index
            .get(number)
            .map_or((&[], &[]), |start| pair_at(&self.bytes, *start))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.index.clear();
    }
}

fn length(bytes: &[u8]) -> Result<[u8; 4]> {
    u32::try_from(bytes.len())
        .map(u32::to_le_bytes)
        .map_err(|_| Error::new(Kind::Refused, format!("cannot sort {} bytes in one piece", bytes.len())))
}

/// The pair that begins at `start`. The bytes are our own and were never elsewhere.
fn pair_at(bytes: &[u8], start: u32) -> (&[u8], &[u8]) {
    let read = || {
        let rest = bytes.get(start as usize..)?;
        let (key_bytes, rest) = rest.split_first_chunk::<4>()?;
        let (value_bytes, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_bytes) as usize)?;
        Some((key, rest.get(..u32::from_le_bytes(*value_bytes) as usize)?))
    };
    read().unwrap_or_default()
}

fn write_pair(out: &mut impl Write, key: &[u8], value: &[u8]) -> std::io::Result<()> {
    out.write_all(&length(key)?)?;
    out.write_all(&length(value)?)?;
    out.write_all(key)?;
    out.write_all(value)
}

fn read_pair(run: &mut impl Read) -> Result<Option<Pair>> {
    let what = || "read back a temporary file";
    let mut header = Vec::with_capacity(8);
    run.by_ref().take(8).read_to_end(&mut header).context(what)?;
    if header.is_empty() {
        return Ok(None);
    }
    let cut = || Error::new(Kind::Corrupt, "a temporary file ends in the middle");
    let (key_bytes, rest) = header.split_first_chunk::<4>().ok_or_else(cut)?;
    let value_bytes = rest.first_chunk::<4>().ok_or_else(cut)?;
    let mut read = |bytes: [u8; 4]| -> Result<Vec<u8>> {
        let bytes = u32::from_le_bytes(bytes) as usize;
        let mut piece = Vec::with_capacity(bytes);
        run.by_ref().take(bytes as u64).read_to_end(&mut piece).context(what)?;
        if piece.len() < bytes { Err(cut()) } else { Ok(piece) }
    };
    Ok(Some((read(*key_bytes)?, read(*value_bytes)?)))
}

/// A key, the number of its run (so that equal keys keep their order), and the value.
type Head = (Vec<u8>, usize, Vec<u8>);

/// Several sorted runs read as one.
struct Merge {
    runs: Vec<BufReader<File>>,
    /// The next pair of each run, the smallest on top.
    heads: BinaryHeap<Reverse<Head>>,
}

impl Merge {
    fn new(runs: Vec<File>, memory: usize) -> Result<Self> {
        let buffer = (memory / (runs.len() + 1)).clamp(1 << 10, 256 << 10);
        let runs = runs
            .into_iter()
            .map(|run| BufReader::with_capacity(buffer, run))
            .collect();
        let mut merge = Self {
            runs,
            heads: BinaryHeap::new(),
        };
        for number in 0..merge.runs.len() {
            merge.refill(number)?;
        }
        Ok(merge)
    }

    fn refill(&mut self, number: usize) -> Result<()> {
        let Some(run) = self.runs.get_mut(number) else {
            return Ok(());
        };
        if let Some((key, value)) = read_pair(run)? {
            self.heads.push(Reverse((key, number, value)));
        }
        Ok(())
    }

    fn next_pair(&mut self) -> Result<Option<Pair>> {
        let Some(Reverse((key, number, value))) = self.heads.pop() else {
            return Ok(None);
        };
        self.refill(number)?;
        Ok(Some((key, value)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn sort(limit: usize, pairs: &[Pair]) -> Vec<Pair> {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(limit, dir.path());
        for (key, value) in pairs {
            sorter.push(key, value).unwrap();
        }
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "a temporary file has a name"
        );
        sorter.finish().unwrap().collect::<Result<_>>().unwrap()
    }

    fn sorted(pairs: &[Pair]) -> Vec<Pair> {
        let mut expected = pairs.to_vec();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        expected
    }

    #[test]
    fn nothing_in_is_nothing_out() {
        assert!(sort(0, &[]).is_empty());
    }

    #[test]
    fn many_runs_are_merged_in_passes_and_equal_keys_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(0, dir.path());
        let mut pairs = Vec::new();
        // Until even the last merge needs a pass of its own.
        while sorter.levels.iter().map(Vec::len).sum::<usize>() <= FAN_IN {
            let number = pairs.len() as u32;
            let key = (number.wrapping_mul(2_654_435_761) % 5_000).to_be_bytes().to_vec();
            let value = [&number.to_le_bytes()[..], &[0; 800]].concat();
            sorter.push(&key, &value).unwrap();
            pairs.push((key, value));
        }
        assert!(sorter.levels.len() >= 2);
        let found: Vec<Pair> = sorter.finish().unwrap().collect::<Result<_>>().unwrap();
        assert!(found == sorted(&pairs));
    }

    #[test]
    fn a_pair_larger_than_the_limit_is_sorted_too() {
        let large = (vec![5; 300_000], vec![7; 300_000]);
        let pairs = [(vec![9], vec![]), large, (vec![1], vec![2])];
        assert!(sort(0, &pairs) == sorted(&pairs));
    }

    #[test]
    fn a_batch_never_grows_beyond_what_it_was_given() {
        let mut batch = Batch::new(1 << 20);
        let given = (batch.bytes.capacity(), batch.index.capacity());
        while batch.push(b"", b"").unwrap() {}
        assert_eq!((batch.bytes.capacity(), batch.index.capacity()), given);
        assert!(given.0 + given.1 * 4 <= 1 << 20);
    }

    #[test]
    fn a_spill_directory_that_is_missing_is_an_error() {
        let mut sorter = Sorter::new(0, Path::new("/nonexistent"));
        let outcome = (0..100_000u32).try_for_each(|n| sorter.push(&n.to_le_bytes(), b""));
        assert!(outcome.is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn it_agrees_with_the_standard_sort(
            pairs in prop::collection::vec(
                (prop::collection::vec(0u8..3, 0..4), prop::collection::vec(any::<u8>(), 0..2_000)), 0..300)
        ) {
            prop_assert!(sort(0, &pairs) == sorted(&pairs));
        }
    }
}
