//! Copies files into bundles, with several workers.
//!
//! Promises that memory does not grow with the number of files: workers take items from a sorted queue, each fills
//! a bundle of its own, and what the manifest will say goes into a sorter. The first error stops all workers.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::codec::{FRAME_BYTES, FrameWriter};
use common::error::{Context, Error, Kind, Result};
use common::postgres::FoundKind;
use common::postgres::relation::relation_file;
use common::progress::Progress;
use common::repository::bundle::{Attributes, BundleWriter, Placed};
use common::repository::manifest::{Entry, File, Node, Range};
use common::repository::writer::{BackupWriter, Copies};
use common::sorter::{Sorted, Sorter};
use common::time::UtcTime;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::item::Item;
use crate::pages::{FileCheck, Judge, ReadAt, read_full};
use crate::tally::Tally;

/// A bundle's index is kept in memory, so it takes no more members than this.
const BUNDLE_MEMBERS: u32 = 50_000;
/// Damaged pages of one file are listed by at most so many runs.
const LISTED_RUNS: usize = 20;
const TICK: Duration = Duration::from_millis(200);

/// What all workers share.
pub struct Copying<'a> {
    writer: &'a BackupWriter<'a>,
    level: i32,
    judge: Judge<'a>,
    blocks_per_file: u32,
    tally: &'a Tally,
    queue: Mutex<Sorted>,
    manifest: Mutex<Sorter>,
    last_bundle: AtomicU32,
    stop: AtomicBool,
}

impl<'a> Copying<'a> {
    /// Prepares to copy the items in `queue`; what is written goes through `writer`, compressed at `level`.
    pub fn new(
        writer: &'a BackupWriter<'a>,
        level: i32,
        judge: Judge<'a>,
        blocks_per_file: u32,
        tally: &'a Tally,
        queue: Sorted,
        manifest: Sorter,
    ) -> Self {
        Self {
            writer,
            level,
            judge,
            blocks_per_file,
            tally,
            queue: Mutex::new(queue),
            manifest: Mutex::new(manifest),
            last_bundle: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// Copies everything with `jobs` workers. `tick` is called a few times a second; its error stops the work too.
    ///
    /// # Errors
    /// The first one of any worker.
    pub fn run(&self, jobs: usize, progress: &mut Progress, mut tick: impl FnMut() -> Result<()>) -> Result<()> {
        std::thread::scope(|scope| {
            let (sender, receiver) = crossbeam_channel::unbounded();
            for _ in 0..jobs.max(1) {
                let sender = sender.clone();
                scope.spawn(move || sender.send(self.work()));
            }
            drop(sender);
            let mut outcome = Ok(());
            loop {
                let step = match receiver.recv_timeout(TICK) {
                    Ok(result) => result,
                    Err(crossbeam_channel::RecvTimeoutError::Timeout) => tick(),
                    Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return outcome,
                };
                progress.show(Tally::read(&self.tally.bytes), Instant::now());
                if let Err(error) = step {
                    self.stop.store(true, Ordering::Relaxed);
                    outcome = outcome.and(Err(error));
                }
            }
        })
    }

    fn work(&self) -> Result<()> {
        let mut bundles = Bundles {
            copying: self,
            open: None,
        };
        let mut buffer = vec![0u8; FRAME_BYTES];
        while let Some(item) = self.next()? {
            self.add(&mut bundles, &item, &mut buffer)?;
        }
        if self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        bundles.close()
    }

    fn next(&self) -> Result<Option<Item>> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.next().map(|pair| Item::decode(&pair?.1)).transpose()
    }

    fn add(&self, bundles: &mut Bundles<'_>, item: &Item, buffer: &mut [u8]) -> Result<()> {
        let context = || format!("copy {}", item.source.display());
        match &item.kind {
            FoundKind::Dir => {
                let Some(metadata) = present(std::fs::metadata(&item.source)).context(context)? else {
                    return Ok(());
                };
                let attributes = attributes(item, &metadata);
                bundles.for_member(0)?.writer.directory(&item.path, &attributes)?;
                self.note(item, &attributes, Node::Directory)
            }
            FoundKind::Link(target) => {
                use std::os::unix::ffi::OsStrExt;
                let metadata = present(std::fs::symlink_metadata(&item.source)).context(context)?;
                let Some(metadata) = metadata else { return Ok(()) };
                let attributes = attributes(item, &metadata);
                let target = target.as_os_str().as_bytes();
                bundles.for_member(0)?.writer.link(&item.path, target, &attributes)?;
                self.note(item, &attributes, Node::Link(target.to_vec()))
            }
            FoundKind::File => self
                .file(bundles, item, buffer)
                .map_err(|error| error.context(context())),
        }
    }

    fn file(&self, bundles: &mut Bundles<'_>, item: &Item, buffer: &mut [u8]) -> Result<()> {
        let Some(file) = present(open(&item.source)).context(|| "open it")? else {
            log::debug!("{} has vanished meanwhile", item.source.display());
            return Ok(());
        };
        let metadata = file.metadata().context(|| "look at it")?;
        let attributes = attributes(item, &metadata);
        let relation = std::str::from_utf8(&item.path).ok().and_then(relation_file);
        let mut check =
            relation.map(|relation| FileCheck::new(&self.judge, relation.first_block(self.blocks_per_file)));
        // Grown and shrunk files are mended by replay, which knows every change since the start.
        let size = metadata.len();
        let bundle = bundles.for_member(size)?;
        bundle.writer.begin_file(&item.path, size, &attributes)?;
        let mut offset = 0u64;
        while offset < size {
            let length = usize::try_from(size - offset).unwrap_or(FRAME_BYTES).min(buffer.len());
            let chunk = buffer.get_mut(..length).unwrap_or_default();
            let got = read_full(&file, chunk, offset).context(|| format!("read it at {offset}"))?;
            chunk.get_mut(got..).unwrap_or_default().fill(0);
            if let Some(check) = &mut check {
                check.chunk(&file as &dyn ReadAt, offset, chunk)?;
            }
            bundle.writer.data(chunk)?;
            offset += length as u64;
            Tally::add(&self.tally.bytes, length as u64);
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Failed, "stopped because of another error"));
            }
        }
        let placed = bundle.writer.end_file()?;
        let damage = check.map(FileCheck::finish).unwrap_or_default();
        if damage.pages() > 0 {
            self.tally.damage(&item.path, damage.pages(), damage.runs());
            let (pages, runs) = (damage.pages(), damage.describe(LISTED_RUNS));
            log::error!("{} has {pages} damaged pages: blocks {runs}", item.source.display());
        }
        let bundle = bundle.number;
        self.note(item, &attributes, file_node(bundle, placed, damage.runs().to_vec()))
    }

    /// Adds a file whose content is at hand.
    fn content(&self, bundles: &mut Bundles<'_>, path: &[u8], content: &[u8], like: &Attributes) -> Result<()> {
        let bundle = bundles.for_member(content.len() as u64)?;
        bundle.writer.begin_file(path, content.len() as u64, like)?;
        for chunk in content.chunks(FRAME_BYTES) {
            bundle.writer.data(chunk)?;
        }
        let placed = bundle.writer.end_file()?;
        let node = file_node(bundle.number, placed, Vec::new());
        self.note_entry(path, like, node)
    }

    /// Writes the last bundle: files whose content is known only after the stop.
    ///
    /// # Errors
    /// What writing gave.
    pub fn last_bundle(&self, members: &[(&str, &[u8])], like: &Attributes) -> Result<()> {
        let mut bundles = Bundles {
            copying: self,
            open: None,
        };
        for (path, content) in members {
            self.content(&mut bundles, path.as_bytes(), content, like)?;
            Tally::add(&self.tally.bytes, content.len() as u64);
        }
        bundles.close()
    }

    fn note(&self, item: &Item, attributes: &Attributes, node: Node) -> Result<()> {
        self.note_entry(&item.path, attributes, node)
    }

    fn note_entry(&self, path: &[u8], attributes: &Attributes, node: Node) -> Result<()> {
        if matches!(node, Node::File(_)) {
            Tally::add(&self.tally.files, 1);
        }
        let entry = Entry {
            path: path.to_vec(),
            mode: attributes.mode,
            owner: attributes.owner.clone(),
            group: attributes.group.clone(),
            mtime: attributes.mtime,
            node,
        };
        let lines = entry.to_lines()?;
        self.manifest().push(path, &lines)
    }

    fn manifest(&self) -> MutexGuard<'_, Sorter> {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the manifest will say, in any order yet.
    pub fn into_manifest(self) -> Sorter {
        self.manifest.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bundle that one worker is filling.
struct Bundles<'a> {
    copying: &'a Copying<'a>,
    open: Option<OpenBundle<'a>>,
}

struct OpenBundle<'a> {
    number: u32,
    members: u32,
    writer: BundleWriter<Copies<'a>>,
}

impl<'a> Bundles<'a> {
    /// The bundle that takes a member of `size` bytes, a new one if the current one is full.
    fn for_member(&mut self, size: u64) -> Result<&mut OpenBundle<'a>> {
        let full = |bundle: &OpenBundle<'_>| bundle.members >= BUNDLE_MEMBERS || !bundle.writer.has_room(size);
        if self.open.as_ref().is_some_and(full) {
            self.close()?;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        let open = self.open.insert(open);
        open.members += 1;
        Ok(open)
    }

    fn begin(&self) -> Result<OpenBundle<'a>> {
        let number = self.copying.last_bundle.fetch_add(1, Ordering::Relaxed) + 1;
        let copies = self.copying.writer.create(&format!("data/{number}.tar.zst"), false)?;
        let writer = BundleWriter::new(copies, self.copying.level)?;
        Ok(OpenBundle {
            number,
            members: 0,
            writer,
        })
    }

    /// Makes the open bundle durable, then its index.
    fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let (copies, index, plain) = open.writer.finish()?;
        copies.finish(plain)?;
        let bytes = index.encode()?;
        drop(index);
        let copies = self
            .copying
            .writer
            .create(&format!("data/{}.index.zst", open.number), true)?;
        let mut frames = FrameWriter::new(copies, self.copying.level)?;
        frames.write_all(&bytes).context(|| "write an index")?;
        let (copies, _) = frames.finish()?;
        copies.finish(bytes.len() as u64)
    }
}

fn open(path: &Path) -> std::io::Result<std::fs::File> {
    let file = std::fs::File::open(path)?;
    // Advice only: where it is not taken, reading is slower.
    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
    Ok(file)
}

/// What vanished is no error: replay knows of it.
fn present<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the backup says of a thing besides its content, as of now.
pub fn attributes(item: &Item, metadata: &std::fs::Metadata) -> Attributes {
    let modified = metadata.modified().ok().and_then(|time| UtcTime::try_from(time).ok());
    Attributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        owner: item.owner.clone(),
        group: item.group.clone(),
        mtime: modified.unwrap_or(UtcTime::UNIX_EPOCH),
    }
}

fn file_node(bundle: u32, placed: Placed, damaged: Vec<(u32, u32)>) -> Node {
    let range = Range {
        label: None,
        bundle,
        offset: placed.offset,
        file_offset: 0,
        length: placed.length,
        crc32c: placed.crc32c,
    };
    let ranges = if placed.length > 0 { vec![range] } else { Vec::new() };
    Node::File(File {
        size: placed.length,
        crc32c: placed.crc32c,
        ranges,
        damaged,
    })
}
