//! WAL in a repository: stored once, handed out whole, listed as ranges (FORMAT.md, section 5).

pub mod kept;
mod map;
pub mod reseal;

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::codec::{CompressedStream, Descriptor, decode_to, peek};
use crate::digest::Sha256Digest;
use crate::error::{Context, Error, Kind, Result, chain};
use crate::postgres::{SegmentName, SegmentNumber, SegmentSize, SystemId, TimelineHistory, TimelineId, WalName};
use crate::repository::{Nonce, Repository, events};
use crate::storage::Key;
use crate::time::UtcTime;

pub use map::fetch_map;

/// Enough of an object's first bytes to hold an age header with many recipients, or our descriptor frame.
const PEEK_BYTES: u64 = 16 << 10;

/// What became of a file that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// It is stored now.
    Stored,
    /// The same content was there already, whole.
    AlreadyThere,
    /// What was there was damaged: it has been moved to this key, and the content stored.
    Replaced(Key),
}

/// Stores one WAL file, unless the same content is there already.
///
/// After a crash PostgreSQL offers a file again, so an identical copy is success; a different one is never replaced
/// (PostgreSQL documentation, "Continuous Archiving").
///
/// # Errors
/// `Refused` if other content has this name; else what the store says.
pub fn put(
    repository: &Repository,
    system: SystemId,
    name: &WalName,
    content: &CompressedStream,
    now: UtcTime,
    host: &str,
) -> Result<Put> {
    let key = repository.keys().wal(system, name, repository.suffix()?)?;
    let place = || repository.store.describe(Some(&key));
    match create(repository, &key, content) {
        Ok(()) => return Ok(Put::Stored),
        Err(error) if error.kind() == Kind::AlreadyExists => {}
        Err(error) => return Err(error.context(format!("write {}", place()))),
    }
    match examine(repository, &key)? {
        Existing::Whole(found) if same_content(&found, &content.descriptor) => Ok(Put::AlreadyThere),
        Existing::Whole(found) => {
            if let WalName::Segment(segment) = name
                && let Err(error) = note_conflict(repository, system, *segment, now, host)
            {
                log::warn!("cannot note that {name} is disputed: {}", chain(&error));
            }
            let message = format!(
                "{} holds other content: SHA-256 {} is stored, {} was offered",
                place(),
                found.sha256,
                content.descriptor.sha256
            );
            Err(Error::new(Kind::Refused, message).hint(other_content_hint(name)))
        }
        Existing::Damaged(found) => {
            let aside = repository.keys().damaged(now, Nonce::random()?, &key)?;
            log::error!(
                "{} is damaged ({found}); moving it to {aside} and storing the file again",
                place()
            );
            repository
                .store
                .move_aside(&key, &aside)
                .context(|| format!("move {} aside", place()))?;
            create(repository, &key, content).map_err(|error| error.context(format!("write {}", place())))?;
            let what = events::What::Damage {
                key: key.to_string(),
                found,
                moved_to: Some(aside.to_string()),
            };
            events::append(repository, now, host, what)?;
            Ok(Put::Replaced(aside))
        }
    }
}

/// Stores the map of a segment, before the segment itself. A map that stands already stays: maps are only hints to
/// read less, and one that does not fit its segment is never believed.
///
/// # Errors
/// What the store says.
pub fn put_map(repository: &Repository, system: SystemId, name: &WalName, map: &CompressedStream) -> Result<()> {
    let key = repository.keys().map(system, name, repository.suffix()?)?;
    match create_with(repository, &repository.metadata_sealing, &key, map) {
        Err(error) if error.kind() != Kind::AlreadyExists => {
            Err(error.context(format!("write {}", repository.store.describe(Some(&key)))))
        }
        _ => Ok(()),
    }
}

/// Notes once that two histories claim a segment: what was changed by the one whose WAL is not stored cannot be known from WAL.
fn note_conflict(
    repository: &Repository,
    system: SystemId,
    segment: SegmentName,
    now: UtcTime,
    host: &str,
) -> Result<()> {
    if (events::disputed(repository, system)?.iter()).any(|(known, _)| *known == segment) {
        return Ok(());
    }
    let what = events::What::Conflict {
        system_identifier: system.to_string(),
        segment: segment.to_string(),
    };
    events::append(repository, now, host, what)?;
    Ok(())
}

fn create(repository: &Repository, key: &Key, content: &CompressedStream) -> Result<()> {
    create_with(repository, &repository.sealing, key, content)
}

fn create_with(
    repository: &Repository,
    sealing: &crate::codec::Sealing,
    key: &Key,
    content: &CompressedStream,
) -> Result<()> {
    if !sealing.is_encrypted() {
        // The descriptor has the digest of the content, and nobody asks for that of the object.
        return repository.store.put_undigested(key, &content.bytes);
    }
    let mut upload = repository.store.create(key)?;
    content.seal(sealing, &mut upload)?;
    upload.finish()?;
    Ok(())
}

fn same_content(a: &Descriptor, b: &Descriptor) -> bool {
    a.sha256 == b.sha256 && a.plain_length == b.plain_length
}

fn other_content_hint(name: &WalName) -> String {
    match name {
        WalName::History { .. } => {
            "this timeline was taken by another promotion: if that server is gone, take a new timeline by promoting again \
             after recovery with archive-get; never remove the stored history"
                .to_owned()
        }
        _ => "two servers write into one repository, or a restored server kept archiving: restore with archiving off, or give \
              the copy a cluster name of its own"
            .to_owned(),
    }
}

enum Existing {
    Whole(Descriptor),
    Damaged(String),
}

/// Finds out, without a key, what stands under `key` and whether it is whole by size.
fn examine(repository: &Repository, key: &Key) -> Result<Existing> {
    let store = repository.store.as_ref();
    let Some(stat) = store.stat(key)? else {
        return Err(Error::new(
            Kind::Transient,
            format!("{} vanished", store.describe(Some(key))),
        ));
    };
    match descriptor(repository, key, stat.size) {
        Ok(descriptor) => Ok(Existing::Whole(descriptor)),
        Err(error) if error.kind() == Kind::Corrupt => Ok(Existing::Damaged(crate::error::chain(&error))),
        Err(error) => Err(error),
    }
}

/// The descriptor of the object under `key`, which has `size` bytes: no key needed.
///
/// # Errors
/// `Corrupt` if it has none, or `size` is not the one the descriptor implies.
pub fn descriptor(repository: &Repository, key: &Key, size: u64) -> Result<Descriptor> {
    let mut first = Vec::new();
    repository
        .store
        .open(key, 0, Some(PEEK_BYTES.min(size)))?
        .read_to_end(&mut first)
        .context(|| format!("read {}", repository.store.describe(Some(key))))?;
    let peek = peek(&first)?;
    if peek.stored_size != size {
        return Err(Error::new(
            Kind::Corrupt,
            format!("it has {size} bytes, and its descriptor says {}", peek.stored_size),
        ));
    }
    Ok(peek.descriptor)
}

/// Writes the content of a WAL file to `out`, verified by length and SHA-256.
///
/// # Errors
/// `NotFound` if the store surely has no such object, which alone proves nothing about the archive (see
/// [`prove_repository`]); `Corrupt` if it is damaged; `Config` if there is no key that opens it.
pub fn fetch(repository: &Repository, system: SystemId, name: &WalName, out: &mut dyn Write) -> Result<Descriptor> {
    let suffix = repository.suffix()?;
    let key = repository.keys().wal(system, name, suffix)?;
    let place = || repository.store.describe(Some(&key));
    let stream = repository
        .store
        .open(&key, 0, None)
        .map_err(|error| error.context(format!("open {}", place())))?;
    decode_to(stream, &repository.opening, !suffix.is_empty(), out)
        .map_err(|error| error.context(format!("read {}", place())))
}

/// Whether the repository holds this file.
///
/// # Errors
/// What the store says, except absence.
pub fn is_there(repository: &Repository, system: SystemId, name: &WalName) -> Result<bool> {
    let key = repository.keys().wal(system, name, repository.suffix()?)?;
    Ok(repository.store.stat(&key)?.is_some())
}

/// SHA-256 of the plain content of a stored file; no key is needed.
///
/// # Errors
/// `NotFound` if there is none; `Corrupt` if it is damaged; else what the store says.
pub fn stored_digest(repository: &Repository, system: SystemId, name: &WalName) -> Result<Sha256Digest> {
    let key = repository.keys().wal(system, name, repository.suffix()?)?;
    let place = || repository.store.describe(Some(&key));
    let stat = repository.store.stat(&key)?;
    let stat = stat.ok_or_else(|| Error::new(Kind::NotFound, format!("{} does not exist", place())))?;
    descriptor(repository, &key, stat.size)
        .map(|descriptor| descriptor.sha256)
        .map_err(|error| error.context(format!("read {}", place())))
}

/// Notes that WAL of this system has been stored, where that is not noted yet: what shows none of it afterwards has lost it.
///
/// # Errors
/// What the store says; the next writer may try again.
pub fn note_first(repository: &Repository, known: &events::KnownSystem, now: UtcTime, host: &str) -> Result<()> {
    if known.held_wal {
        return Ok(());
    }
    let what = events::What::Wal {
        system_identifier: known.system.to_string(),
    };
    events::append(repository, now, host, what).map(drop)
}

/// Shows that an absence can mean something: this is the cluster's own repository, readable now, and it knows the system.
///
/// # Errors
/// Whatever is in the way; nothing that may be read as "absent".
pub fn prove_repository(repository: &Repository, system: SystemId) -> Result<events::KnownSystem> {
    // Read anew, not from memory: the store may have gone away since.
    let identity = super::identity::read(repository.store.as_ref(), &repository.cluster)?;
    if identity.uuid != repository.identity()?.uuid {
        return Err(Error::new(
            Kind::Refused,
            format!("repository \"{}\" was exchanged meanwhile", repository.name),
        ));
    }
    events::require_system(repository, system)
}

/// Segments that follow one another without a gap, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Whose.
    pub timeline: TimelineId,
    /// The first segment.
    pub first: SegmentNumber,
    /// The last segment.
    pub last: SegmentNumber,
}

/// What WAL of one system a repository holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WalList {
    /// Unbroken ranges in order of timeline and position; what lies between two of one timeline is missing.
    pub ranges: Vec<Range>,
    /// Segments whose map is there, in the same form.
    pub maps: Vec<Range>,
    /// Timelines whose history file is there.
    pub histories: Vec<TimelineId>,
    /// When what is there of each timeline was stored.
    pub stored: BTreeMap<TimelineId, StoredTimes>,
    /// How many segments.
    pub segments: u64,
    /// Stored size of all of it, in bytes.
    pub stored_bytes: u64,
    /// Names below `wal/` that are none of ours.
    pub foreign: Vec<String>,
}

/// When WAL of one timeline was stored, by the store's clock: how long a server wrote on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredTimes {
    /// Its history file, which is archived right after the promotion that began it.
    pub history: Option<UtcTime>,
    /// Its first segment.
    pub first: Option<(SegmentNumber, UtcTime)>,
    /// Its last segment.
    pub last: Option<(SegmentNumber, UtcTime)>,
}

impl StoredTimes {
    /// What two repositories say together; of what both have, the earlier time: the other was copied.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        let both = |a: Option<(SegmentNumber, UtcTime)>, b: Option<(SegmentNumber, UtcTime)>, last: bool| match (a, b) {
            (Some(a), Some(b)) if a.0 == b.0 => Some((a.0, a.1.min(b.1))),
            (Some(a), Some(b)) => Some(if (a.0 > b.0) == last { a } else { b }),
            (a, b) => a.or(b),
        };
        Self {
            history: match (self.history, other.history) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
            first: both(self.first, other.first, false),
            last: both(self.last, other.last, true),
        }
    }

    fn segment(&mut self, number: SegmentNumber, stored: UtcTime) {
        self.first.get_or_insert((number, stored));
        self.last = Some((number, stored));
    }
}

impl WalList {
    /// Whether the map of this segment is there.
    pub fn has_map(&self, timeline: TimelineId, number: SegmentNumber) -> bool {
        let at = self
            .maps
            .partition_point(|range| (range.timeline, range.last) < (timeline, number));
        self.maps
            .get(at)
            .is_some_and(|range| range.timeline == timeline && range.first <= number)
    }
}

/// Adds a segment that comes behind all the others.
fn add(ranges: &mut Vec<Range>, timeline: TimelineId, number: SegmentNumber) {
    if let Some(last) = ranges.last_mut()
        && last.timeline == timeline
        && last.last.0.checked_add(1) == Some(number.0)
    {
        last.last = number;
        return;
    }
    ranges.push(Range {
        timeline,
        first: number,
        last: number,
    });
}

/// Lists the WAL of one system, in one pass and flat memory.
///
/// # Errors
/// What the store says.
pub fn list(repository: &Repository, system: SystemId, size: SegmentSize) -> Result<WalList> {
    let folder = repository.keys().wal_of(system)?;
    let mut found = WalList::default();
    repository.store.list(Some(&folder), &mut |key, stat| {
        found.stored_bytes += stat.size;
        let text = key.to_string();
        let name = text.rsplit('/').next().unwrap_or_default();
        if let Some(name) = mapped_name(name) {
            if let Some(number) = name.number(size) {
                add(&mut found.maps, name.timeline, number);
            }
            return Ok(());
        }
        match stored_name(name) {
            Some(WalName::Segment(segment)) => match segment.number(size) {
                Some(number) => {
                    found.segments += 1;
                    found
                        .stored
                        .entry(segment.timeline)
                        .or_default()
                        .segment(number, stat.modified);
                    add(&mut found.ranges, segment.timeline, number);
                }
                None => found.foreign.push(text),
            },
            Some(WalName::History { timeline }) => {
                found.histories.push(timeline);
                found.stored.entry(timeline).or_default().history = Some(stat.modified);
            }
            Some(_) => {}
            None => found.foreign.push(text),
        }
        Ok(())
    })?;
    Ok(found)
}

/// The file that an object's last name component stands for.
pub fn stored_name(name: &str) -> Option<WalName> {
    let name = name.strip_suffix(".age").unwrap_or(name);
    WalName::parse(name.strip_suffix(".zst")?).ok()
}

/// The segment whose map an object with this last name component is.
pub fn mapped_name(name: &str) -> Option<SegmentName> {
    let name = name.strip_suffix(".age").unwrap_or(name);
    match WalName::parse(name.strip_suffix(".map.zst")?).ok()? {
        WalName::Segment(segment) => Some(segment),
        _ => None,
    }
}

/// Reads every timeline history file of a system.
///
/// # Errors
/// As [`fetch`].
pub fn histories(repository: &Repository, system: SystemId) -> Result<BTreeMap<TimelineId, Vec<u8>>> {
    let folder = repository.keys().histories(system)?;
    let mut found = BTreeMap::new();
    for name in repository.store.children(Some(&folder))? {
        if let Some(name @ WalName::History { timeline }) = stored_name(&name) {
            let mut content = Vec::new();
            fetch(repository, system, &name, &mut content)?;
            found.insert(timeline, content);
        }
    }
    Ok(found)
}

/// Timeline histories, as far as they can be read.
#[derive(Debug, Default)]
pub struct Histories {
    /// Those that could be read.
    pub known: BTreeMap<TimelineId, TimelineHistory>,
    /// Those that are there and cannot be used: the object as messages name it, and why.
    pub unreadable: Vec<UnusableHistory>,
}

/// A timeline history that is there and cannot be used.
#[derive(Debug)]
pub struct UnusableHistory {
    /// The timeline.
    pub timeline: TimelineId,
    /// The object, as messages name it.
    pub object: String,
    /// Why.
    pub error: Error,
}

/// Reads every timeline history of a system; one that cannot be read does not hide the others.
///
/// # Errors
/// What listing them gave.
pub fn read_histories(repository: &Repository, system: SystemId) -> Result<Histories> {
    let folder = repository.keys().histories(system)?;
    let mut found = Histories::default();
    for name in repository.store.children(Some(&folder))? {
        let Some(name @ WalName::History { timeline }) = stored_name(&name) else {
            continue;
        };
        let mut content = Vec::new();
        let history =
            fetch(repository, system, &name, &mut content).and_then(|_| TimelineHistory::parse(timeline, &content));
        match history {
            Ok(history) => {
                found.known.insert(timeline, history);
            }
            Err(error) => found.unreadable.push(UnusableHistory {
                timeline,
                object: repository
                    .store
                    .describe(Some(&repository.keys().wal(system, &name, repository.suffix()?)?)),
                error,
            }),
        }
    }
    Ok(found)
}
