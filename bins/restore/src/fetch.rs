//! Fetches the bytes: ranges in the order in which they are stored, several workers, each range checked by its CRC32C.
//!
//! Promises flat memory whatever the number of files, that each stored block is read once, and that a bundle which one
//! repository cannot give, or gives damaged, is read from the next one. Leaves directories, links and everything after
//! the bytes to [`crate::restore`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use common::digest::crc32c_append;
use common::error::{Context, Error, Kind, Result, chain};
use common::interrupt;
use common::repository::backup::{self, BackupInfo};
use common::repository::digests::{BlockDigests, Digests};
use common::repository::index::BLOCK_BYTES;
use common::repository::manifest::Range;
use common::repository::reader::{self, Bundle};
use common::repository::{Label, Repository};
use common::sorter::Sorted;

use crate::layout::{Layout, Spot};
use crate::piece::{Part, Piece};

/// Read and written in one go, in bytes; a multiple of the codec's frame.
const STEP_BYTES: usize = 1 << 20;
/// A batch ends when it holds this much, in bytes, or this many parts.
const BATCH_BYTES: u64 = 32 << 20;
const BATCH_PARTS: usize = 1000;

/// A document of a backup, or that there is none.
type Document = Option<Arc<BackupInfo>>;

/// Where bundles are read from.
pub struct Sources<'a> {
    /// The labels, by the numbers that pieces carry.
    labels: Vec<Label>,
    /// The repositories to ask, in this order.
    repositories: Vec<&'a Repository>,
    documents: Mutex<BTreeMap<(usize, u32), Document>>,
    /// Bundles that a repository could not give: not asked for again.
    given_up: Mutex<BTreeSet<(usize, u32, u32)>>,
}

impl<'a> Sources<'a> {
    /// Puts the sources together; `repositories` are asked in this order.
    pub fn new(labels: Vec<Label>, repositories: Vec<&'a Repository>) -> Self {
        Self {
            labels,
            repositories,
            documents: Mutex::default(),
            given_up: Mutex::default(),
        }
    }

    fn label(&self, number: u32) -> Result<Label> {
        let label = usize::try_from(number)
            .ok()
            .and_then(|number| self.labels.get(number))
            .copied();
        label.ok_or_else(|| Error::new(Kind::Failed, "a piece belongs to no backup"))
    }

    /// Where a piece lies, as a manifest says it.
    fn range(&self, piece: &Piece) -> Result<Range> {
        Ok(Range {
            label: Some(self.label(piece.label)?),
            bundle: piece.bundle,
            offset: piece.offset,
            file_offset: 0,
            length: piece.length,
            crc32c: piece.crc32c,
        })
    }

    /// A backup's document; nothing if the repository has its objects without one, as an interrupted backup leaves them.
    fn document(&self, at: usize, number: u32) -> Result<Document> {
        if let Some(known) = lock(&self.documents).get(&(at, number)) {
            return Ok(known.clone());
        }
        let Some(repository) = self.repositories.get(at) else {
            return Ok(None);
        };
        let read = match backup::read(repository, self.label(number)?) {
            Ok(info) => Some(Arc::new(info)),
            Err(error) if error.kind() == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        lock(&self.documents).insert((at, number), read.clone());
        Ok(read)
    }

    fn open(&self, at: usize, label: u32, bundle: u32) -> Result<Bundle> {
        let Some(repository) = self.repositories.get(at) else {
            return Err(Error::new(Kind::Failed, "there is no such repository"));
        };
        match self.document(at, label)? {
            Some(info) => reader::open_bundle(repository, &info, bundle),
            None => reader::open_unfinished_bundle(repository, self.label(label)?, bundle),
        }
    }

    /// The repository and the object that hold a bundle, as messages name them.
    fn place(&self, (at, label, bundle): (usize, u32, u32)) -> String {
        let Some(repository) = self.repositories.get(at) else {
            return format!("bundle {bundle}");
        };
        let key = self.label(label).and_then(|label| {
            let name = format!("data/{bundle}.tar.zst{}", repository.suffix()?);
            repository.keys().of_backup(label, &name)
        });
        let object = repository.store.describe(key.as_ref().ok());
        format!("read {object} of repository \"{}\"", repository.name)
    }

    fn give_up(&self, at: usize, label: u32, bundle: u32, error: &Error) {
        if lock(&self.given_up).insert((at, label, bundle))
            && let (Some(repository), Ok(name)) = (self.repositories.get(at), self.label(label))
        {
            let name = format!("bundle {bundle} of {name}");
            log::warn!(
                "repository \"{}\" cannot give {name}: {}",
                repository.name,
                chain(error)
            );
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fetches every piece; `done` counts bytes as they are written. With `same` only blocks that differ from what is there.
///
/// # Errors
/// `Corrupt`, `NotFound` and the like if no repository has a bundle whole; else what writing gave.
pub fn fetch(
    pieces: Sorted,
    sources: &Sources<'_>,
    layout: &Layout,
    (jobs, same): (usize, Same<'_>),
    done: &AtomicU64,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let (sender, receiver) = bounded::<Vec<Part>>(jobs);
    let fail = |error: Error| {
        stop.store(true, Ordering::Relaxed);
        lock(&failed).get_or_insert(error);
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let receiver = receiver.clone();
            let (fail, stop) = (&fail, &stop);
            scope.spawn(move || {
                let mut worker = Worker {
                    sources,
                    layout,
                    open: None,
                    buffer: vec![0; STEP_BYTES],
                    done,
                    same,
                };
                if let Err(error) = worker.work(&receiver, stop) {
                    fail(error);
                }
            });
        }
        drop(receiver);
        if let Err(error) = hand_out(pieces, &sender, &stop) {
            fail(error);
        }
        drop(sender);
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Cuts the pieces into batches of one bundle each.
fn hand_out(pieces: Sorted, sender: &Sender<Vec<Part>>, stop: &AtomicBool) -> Result<()> {
    let mut batch: Vec<Part> = Vec::new();
    let mut bytes = 0u64;
    for entry in pieces {
        let (key, value) = entry?;
        for part in Piece::decode(&key, &value)?.parts() {
            let other = batch
                .first()
                .is_some_and(|first| (first.piece.label, first.piece.bundle) != (part.piece.label, part.piece.bundle));
            let full = bytes.saturating_add(part.piece.length) > BATCH_BYTES || batch.len() >= BATCH_PARTS;
            if !batch.is_empty() && (other || full) {
                // Sending fails only once every worker has ended, which the first failure explains.
                if stop.load(Ordering::Relaxed) || sender.send(std::mem::take(&mut batch)).is_err() {
                    return Ok(());
                }
                bytes = 0;
            }
            bytes = bytes.saturating_add(part.piece.length);
            batch.push(part);
        }
    }
    if !batch.is_empty() {
        let _ = sender.send(batch);
    }
    Ok(())
}

struct Worker<'a> {
    sources: &'a Sources<'a>,
    layout: &'a Layout,
    open: Option<(usize, u32, u32, Bundle)>,
    buffer: Vec<u8>,
    done: &'a AtomicU64,
    same: Same<'a>,
}

/// The digests by which blocks are known that are there already, and a counter of their bytes.
pub type Same<'a> = Option<(&'a Digests<'a>, &'a AtomicU64)>;

/// Where a failure came from: another repository helps against one of reading only.
enum Trouble {
    Reading(Error),
    Writing(Error),
}

impl Worker<'_> {
    fn work(&mut self, batches: &Receiver<Vec<Part>>, stop: &AtomicBool) -> Result<()> {
        for batch in batches {
            for part in batch {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                interrupt::check()?;
                self.part(&part)?;
            }
        }
        Ok(())
    }

    fn part(&mut self, part: &Part) -> Result<()> {
        let expected = part.whole.is_none().then_some(part.piece.crc32c);
        let crc32c = self.fetch(&part.piece, expected)?;
        self.done.fetch_add(part.piece.length, Ordering::Relaxed);
        let Some((whole, number)) = &part.whole else {
            return Ok(());
        };
        match whole.note(*number, crc32c) {
            Some(crc32c) if crc32c != whole.piece.crc32c => {
                // Some part is damaged in the repository it came from: fetch all of it until one gives it whole.
                log::warn!("{} is damaged; fetching it again", describe(&whole.piece));
                self.fetch(&whole.piece, Some(whole.piece.crc32c)).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Fetches a piece from the first repository that gives it whole; returns its CRC32C.
    fn fetch(&mut self, piece: &Piece, expected: Option<u32>) -> Result<u32> {
        let path = match self.layout.spot(&piece.path)? {
            Spot::At(path) => path,
            Spot::Link(..) | Spot::Skip => {
                return Err(Error::new(Kind::Failed, format!("{} has no place", describe(piece))));
            }
        };
        let file = OpenOptions::new()
            .write(true)
            .read(self.same.is_some())
            .create(true)
            .mode(0o600)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .context(|| format!("write {}", path.display()))?;
        let mut first: Option<Error> = None;
        for at in 0..self.sources.repositories.len() {
            if lock(&self.sources.given_up).contains(&(at, piece.label, piece.bundle)) {
                continue;
            }
            match self.copy(at, piece, &file, expected) {
                Ok(crc32c) => return Ok(crc32c),
                Err(Trouble::Writing(error)) => return Err(error.context(format!("write {}", path.display()))),
                Err(Trouble::Reading(error)) => {
                    self.open = None;
                    let error = error.context(self.sources.place((at, piece.label, piece.bundle)));
                    self.sources.give_up(at, piece.label, piece.bundle, &error);
                    // A damaged copy says more than an absent one.
                    if first.as_ref().is_none_or(|first| first.kind() == Kind::NotFound) {
                        first = Some(error);
                    }
                }
            }
        }
        let label = self.sources.label(piece.label)?;
        let message = format!("read bundle {} of {label} for {}", piece.bundle, describe(piece));
        Err(match first {
            Some(error) if error.kind() == Kind::Config => error.context(message),
            Some(error) => error
                .context(message)
                .hint(
                    "no repository that was asked has it whole: ask one that was left out (--repository NAME), or restore an \
                     earlier backup (--backup LABEL; pgkeep-info lists them), from which the WAL leads to the same target",
                ),
            None => Error::new(Kind::Corrupt, format!("{message}: no repository has it whole")),
        })
    }

    fn copy(&mut self, at: usize, piece: &Piece, file: &File, expected: Option<u32>) -> Result<u32, Trouble> {
        if let Some((digests, kept)) = self.same {
            let range = self.sources.range(piece).map_err(Trouble::Reading)?;
            match digests.of_range(&range) {
                Ok(digests) => {
                    let crc32c = self.copy_differing((at, piece), file, &digests, kept)?;
                    return self.compare(piece, expected, crc32c);
                }
                // All of it is fetched then.
                Err(error) => log::debug!("{}: {}", describe(piece), chain(&error)),
            }
        }
        let bundle = opened(&mut self.open, self.sources, (at, piece.label, piece.bundle)).map_err(Trouble::Reading)?;
        let mut crc32c = 0;
        let mut taken = 0u64;
        while taken < piece.length {
            // Steps end where the codec's frames are likely to, counted from the start of the stream.
            let position = piece.offset.saturating_add(taken);
            let step = STEP_BYTES as u64 - position % STEP_BYTES as u64;
            let step = usize::try_from(step.min(piece.length - taken)).unwrap_or(STEP_BYTES);
            let buffer = self.buffer.get_mut(..step).unwrap_or_default();
            bundle.read_at(position, buffer).map_err(Trouble::Reading)?;
            crc32c = crc32c_append(crc32c, buffer);
            file.write_all_at(buffer, piece.file_offset.saturating_add(taken))
                .map_err(|error| Trouble::Writing(Error::io(error, format!("write {step} bytes"))))?;
            taken += step as u64;
        }
        self.compare(piece, expected, crc32c)
    }

    /// Reads what is there, and fetches the blocks of it that differ; returns the CRC32C of the whole.
    fn copy_differing(
        &mut self,
        (at, piece): (usize, &Piece),
        file: &File,
        digests: &BlockDigests,
        kept: &AtomicU64,
    ) -> Result<u32, Trouble> {
        let writing = |error| Trouble::Writing(Error::io(error, "compare what is there"));
        let mut crc32c = 0;
        let mut taken = 0u64;
        while taken < piece.length {
            let step = usize::try_from((piece.length - taken).min(STEP_BYTES as u64)).unwrap_or(STEP_BYTES);
            let mut here = std::mem::take(&mut self.buffer);
            let outcome = (|| {
                let chunk = here.get_mut(..step).unwrap_or_default();
                chunk.fill(0);
                read_up_to(file, chunk, piece.file_offset + taken).map_err(writing)?;
                let first = taken / BLOCK_BYTES as u64;
                let same: Vec<bool> = (first..)
                    .zip(chunk.chunks(BLOCK_BYTES))
                    .map(|(number, block)| digests.holds(number, block))
                    .collect();
                for (from, to) in differing(&same) {
                    let (from, to) = (from * BLOCK_BYTES, (to * BLOCK_BYTES).min(step));
                    let part = chunk.get_mut(from..to).unwrap_or_default();
                    let bundle = opened(&mut self.open, self.sources, (at, piece.label, piece.bundle));
                    let position = piece.offset + taken + from as u64;
                    bundle
                        .and_then(|bundle| bundle.read_at(position, part))
                        .map_err(Trouble::Reading)?;
                    file.write_all_at(part, piece.file_offset + taken + from as u64)
                        .map_err(|error| Trouble::Writing(Error::io(error, format!("write {} bytes", part.len()))))?;
                }
                let blocks = same.iter().filter(|same| **same).count() * BLOCK_BYTES;
                kept.fetch_add(blocks.min(step) as u64, Ordering::Relaxed);
                crc32c = crc32c_append(crc32c, chunk);
                Ok(())
            })();
            self.buffer = here;
            outcome?;
            taken += step as u64;
        }
        Ok(crc32c)
    }

    fn compare(&self, piece: &Piece, expected: Option<u32>, crc32c: u32) -> Result<u32, Trouble> {
        match expected {
            Some(expected) if expected != crc32c => Err(Trouble::Reading(Error::new(
                Kind::Corrupt,
                format!(
                    "{} has CRC32C {crc32c:08x}, and the manifest says {expected:08x}",
                    describe(piece)
                ),
            ))),
            _ => Ok(crc32c),
        }
    }
}

/// Runs of blocks that differ, first and behind the last; gaps of a frame or less are fetched with them.
fn differing(same: &[bool]) -> Vec<(usize, usize)> {
    const GAP: usize = common::codec::FRAME_BYTES / BLOCK_BYTES;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for at in (0..same.len()).filter(|at| same.get(*at) == Some(&false)) {
        match runs.last_mut() {
            Some((_, end)) if at <= *end + GAP => *end = at + 1,
            _ => runs.push((at, at + 1)),
        }
    }
    runs
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, into: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut done = 0usize;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The bundle, from where it was read last if it is the same one.
fn opened<'b>(
    open: &'b mut Option<(usize, u32, u32, Bundle)>,
    sources: &Sources<'_>,
    wanted: (usize, u32, u32),
) -> Result<&'b mut Bundle> {
    let (at, label, number) = wanted;
    let same = open.as_ref().is_some_and(|(a, l, n, _)| (*a, *l, *n) == wanted);
    if !same {
        *open = Some((at, label, number, sources.open(at, label, number)?));
    }
    match open {
        Some((.., bundle)) => Ok(bundle),
        None => Err(Error::new(Kind::Failed, "no bundle is open")),
    }
}

fn describe(piece: &Piece) -> String {
    format!(
        "{} bytes at {} of \"{}\"",
        piece.length,
        piece.file_offset,
        String::from_utf8_lossy(&piece.path)
    )
}
