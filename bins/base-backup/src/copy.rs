//! Copies files into bundles, with several workers.
//!
//! Promises that memory does not grow with the number of files: workers take items from a sorted queue, each fills
//! a bundle of its own, and what the manifest will say goes into a sorter. The first error stops all workers.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::codec::FRAME_BYTES;
use common::error::{Context, Result};
use common::postgres::relation::relation_file;
use common::postgres::{FoundKind, Lsn};
use common::progress::Progress;
use common::repository::bundle::{Attributes, Placed};
use common::repository::manifest::{Entry, File, Node, Range};
use common::sorter::Sorted;
use common::time::UtcTime;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::bundles::{Bundles, Output};
use crate::damage::Damage;
use crate::earlier::{self, Earlier};
use crate::entries::Entries;
use crate::item::Item;
use crate::pages::{FileCheck, Judge, ReadAt};
use crate::tally::Tally;
use crate::task::Task;
use common::repository::digests::Digests;

/// Damaged pages of one file are listed by at most so many runs.
const LISTED_RUNS: usize = 20;
const TICK: Duration = Duration::from_millis(200);

/// What all workers share.
pub struct Copying<'a> {
    output: &'a Output<'a>,
    pub(crate) judge: Judge<'a>,
    pub(crate) blocks_per_file: u32,
    pub(crate) tally: &'a Tally,
    interrupted: Option<&'a Earlier>,
    pub(crate) digests: Option<&'a Digests<'a>>,
    pub(crate) base_start: Lsn,
    pub(crate) audit: bool,
    queue: Mutex<Sorted>,
    entries: Mutex<Entries>,
    stop: AtomicBool,
}

impl<'a> Copying<'a> {
    /// Prepares to copy the tasks in `queue`; what is written goes to `output`, and what the manifest will say into `entries`.
    pub fn new(
        output: &'a Output<'a>,
        judge: Judge<'a>,
        blocks_per_file: u32,
        tally: &'a Tally,
        queue: Sorted,
        entries: Entries,
    ) -> Self {
        Self {
            output,
            judge,
            blocks_per_file,
            tally,
            interrupted: None,
            digests: None,
            base_start: Lsn::default(),
            audit: false,
            queue: Mutex::new(queue),
            entries: Mutex::new(entries),
            stop: AtomicBool::new(false),
        }
    }

    /// Points at what an interrupted backup has stored, where that is what is read now.
    pub fn with_interrupted(mut self, interrupted: Option<&'a Earlier>) -> Self {
        self.interrupted = interrupted;
        self
    }

    /// Points at what the backup that this one leans on holds, which began at `start`; with `audit` everything is read all the same.
    pub fn with_base(mut self, digests: &'a Digests<'a>, start: Lsn, audit: bool) -> Self {
        (self.digests, self.base_start, self.audit) = (Some(digests), start, audit);
        self
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
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
        let mut bundles = Bundles::new(self.output);
        let mut buffer = vec![0u8; FRAME_BYTES];
        while let Some(task) = self.next()? {
            self.add(&mut bundles, &task, &mut buffer)?;
        }
        if self.is_stopped() {
            return Ok(());
        }
        bundles.close()
    }

    fn next(&self) -> Result<Option<Task>> {
        if self.is_stopped() {
            return Ok(None);
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.next().map(|pair| Task::decode(&pair?.1)).transpose()
    }

    fn add(&self, bundles: &mut Bundles<'_>, task: &Task, buffer: &mut [u8]) -> Result<()> {
        let item = &task.item;
        let context = || format!("copy {}", item.source.display());
        match &item.kind {
            FoundKind::Dir => {
                let Some(metadata) = present(std::fs::metadata(&item.source)).context(context)? else {
                    return Ok(());
                };
                let attributes = attributes(item, &metadata);
                bundles.for_member(0)?.writer.directory(&item.path, &attributes)?;
                self.note(task, &attributes, Node::Directory)
            }
            FoundKind::Link(target) => {
                use std::os::unix::ffi::OsStrExt;
                let metadata = present(std::fs::symlink_metadata(&item.source)).context(context)?;
                let Some(metadata) = metadata else { return Ok(()) };
                let attributes = attributes(item, &metadata);
                let target = target.as_os_str().as_bytes();
                bundles.for_member(0)?.writer.link(&item.path, target, &attributes)?;
                self.note(task, &attributes, Node::Link(target.to_vec()))
            }
            FoundKind::File => self
                .file(bundles, task, buffer)
                .map_err(|error| error.context(context())),
        }
    }

    fn file(&self, bundles: &mut Bundles<'_>, task: &Task, buffer: &mut [u8]) -> Result<()> {
        let item = &task.item;
        let Some(file) = present(open(&item.source)).context(|| "open it")? else {
            log::debug!("{} has vanished meanwhile", item.source.display());
            return Ok(());
        };
        let metadata = file.metadata().context(|| "look at it")?;
        let attributes = attributes(item, &metadata);
        // Grown and shrunk files are mended by replay, which knows every change since the start.
        let size = metadata.len();
        let mut in_parts = self.since_base(bundles, task, (&file, size), buffer)?;
        if in_parts.is_none()
            && size >= earlier::LEAST_BYTES
            && let Some(interrupted) = self.interrupted
            && let Some(member) = interrupted.member(&item.path)
        {
            in_parts = self.since_interrupted(bundles, item, (&file, size), (interrupted, member), buffer)?;
        }
        let (node, damage) = match in_parts {
            Some(in_parts) => in_parts,
            None => self.whole(bundles, item, (&file, size), &attributes, buffer)?,
        };
        self.tell_damage(item, &damage);
        let node = match node {
            Node::File(file) => Node::File(File {
                damaged: damage.runs().to_vec(),
                ..file
            }),
            other => other,
        };
        self.note(task, &attributes, node)
    }

    fn whole(
        &self,
        bundles: &mut Bundles<'_>,
        item: &Item,
        (file, size): (&std::fs::File, u64),
        attributes: &Attributes,
        buffer: &mut [u8],
    ) -> Result<(Node, Damage)> {
        let relation = std::str::from_utf8(&item.path).ok().and_then(relation_file);
        let mut check =
            relation.map(|relation| FileCheck::new(&self.judge, relation.first_block(self.blocks_per_file)));
        let bundle = bundles.for_member(size)?;
        bundle.writer.begin_file(&item.path, size, attributes)?;
        self.chunks(file, (0, size), buffer, |offset, chunk| {
            if let Some(check) = &mut check {
                check.chunk(file as &dyn ReadAt, offset, chunk)?;
            }
            Tally::add(&self.tally.bytes, chunk.len() as u64);
            Tally::add(&self.tally.read, chunk.len() as u64);
            bundle.writer.data(chunk)
        })?;
        let placed = bundle.writer.end_file()?;
        let damage = check.map(FileCheck::finish).unwrap_or_default();
        Ok((file_node(bundle.number, placed), damage))
    }

    fn tell_damage(&self, item: &Item, damage: &Damage) {
        if damage.pages() > 0 {
            self.tally.damage(&item.path, damage.pages(), damage.runs());
            let (pages, runs) = (damage.pages(), damage.describe(LISTED_RUNS));
            log::error!("{} has {pages} damaged pages: blocks {runs}", item.source.display());
        }
    }

    /// Adds a file whose content is at hand.
    fn content(&self, bundles: &mut Bundles<'_>, path: &[u8], content: &[u8], like: &Attributes) -> Result<()> {
        let bundle = bundles.for_member(content.len() as u64)?;
        bundle.writer.begin_file(path, content.len() as u64, like)?;
        for chunk in content.chunks(FRAME_BYTES) {
            bundle.writer.data(chunk)?;
        }
        let placed = bundle.writer.end_file()?;
        let node = file_node(bundle.number, placed);
        self.note_entry(path, like, node, |_| None)
    }

    /// Writes the last bundle: files whose content is known only after the stop.
    ///
    /// # Errors
    /// What writing gave.
    pub fn last_bundle(&self, members: &[(&str, &[u8])], like: &Attributes) -> Result<()> {
        let mut bundles = Bundles::new(self.output);
        for (path, content) in members {
            self.content(&mut bundles, path.as_bytes(), content, like)?;
            Tally::add(&self.tally.bytes, content.len() as u64);
        }
        bundles.close()
    }

    fn note(&self, task: &Task, attributes: &Attributes, node: Node) -> Result<()> {
        self.note_entry(&task.item.path, attributes, node, |entry| task.same_as_before(entry))
    }

    fn note_entry(
        &self,
        path: &[u8],
        attributes: &Attributes,
        node: Node,
        same: impl FnOnce(&Entry) -> Option<u32>,
    ) -> Result<()> {
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
        self.tally.uses(&entry);
        let same = same(&entry);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(&entry, same)
    }

    /// What the manifest will say, in any order yet.
    pub fn into_entries(self) -> Entries {
        self.entries.into_inner().unwrap_or_else(PoisonError::into_inner)
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

fn file_node(bundle: u32, placed: Placed) -> Node {
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
        damaged: Vec::new(),
    })
}
