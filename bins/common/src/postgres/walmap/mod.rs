//! The map of one WAL segment: which blocks its records change, when its transactions ended.
//!
//! Knows: what a map says ([`SegmentMap`]), its bytes ([`SegmentMap::encode`], [`SegmentMap::decode`]; `WALMAP.md`
//! beside this module specifies them), and how two neighbours fit together ([`join`]).
//! Promises: a map never says "unchanged" about what it does not know. Everything before
//! [`SegmentMap::known_until`] is known, except the record that [`join`] decodes; nothing after it is.
//! Leaves to others: making maps ([`super::walscan`]), the SHA-256 of the segment, deciding what a backup reads.
//!
//! Positions are PostgreSQL's LSNs. The *end* of a record is where the next one may start (aligned to 8 bytes), which
//! is what `pg_current_wal_insert_lsn()` shows after it. Times are microseconds since 2000-01-01 00:00:00 UTC.

mod bytes;
mod decode;
pub(super) mod encode;
mod join;

pub use join::{Joined, join, join_all};

/// The version of the encoding that [`SegmentMap::encode`] writes.
pub const FORMAT_VERSION: u16 = 1;

/// The largest encoded list of transaction ends; beyond it [`Transactions::truncated`] is set.
pub const TRANSACTION_LIST_BYTES: usize = 64 * 1024;

/// Main fork, as PostgreSQL numbers forks (free space map 1, visibility map 2, init fork 3).
pub const MAIN_FORK: u8 = 0;
/// Visibility map fork.
pub const VISIBILITY_FORK: u8 = 2;
/// Init fork of unlogged relations.
pub const INIT_FORK: u8 = 3;

/// Which segment a map describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// System identifier of the cluster.
    pub system_identifier: u64,
    /// Timeline of the file's name; pages may still carry an earlier one.
    pub timeline: u32,
    /// LSN of the first byte.
    pub start: u64,
    /// Size in bytes.
    pub size: u32,
    /// PostgreSQL's major version, 13 to 18.
    pub major: u8,
    /// SHA-256 of the segment; zero until the caller fills it in.
    pub sha256: [u8; 32],
}

impl Segment {
    /// LSN of the first byte after the segment.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.size))
    }
}

/// All that is kept about one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentMap {
    /// The segment described.
    pub segment: Segment,
    /// Timelines in the first and in the last page header read (0 when none was).
    pub page_timelines: (u32, u32),
    /// How the segment begins.
    pub entry: Entry,
    /// How it ends, or where understanding ended.
    pub exit: Exit,
    /// The first record that starts in the segment.
    pub first_record: Option<FirstRecord>,
    /// The last record that lies in the segment completely.
    pub last_record: Option<LastRecord>,
    /// What the records say that start and end in the segment.
    pub changes: Changes,
}

impl SegmentMap {
    /// The LSN up to which the records are known; a record that began in an earlier segment needs [`join`] besides.
    pub fn known_until(&self) -> u64 {
        match &self.exit {
            Exit::Filled | Exit::Through | Exit::Switch => self.segment.end(),
            Exit::Trailing(trailing) => trailing.start,
            Exit::Ended { lsn } | Exit::Incomplete { lsn, .. } => *lsn,
        }
    }

    /// Whether the map knows its segment to the end; records that cross the ends need [`join`].
    pub fn reaches_end(&self) -> bool {
        !matches!(self.exit, Exit::Ended { .. } | Exit::Incomplete { .. })
    }
}

/// How a segment begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Nothing could be read.
    Unknown,
    /// With a record of its own.
    Record,
    /// With the rest of a record that began earlier.
    Continuation(Leading),
    /// With a record that takes the place of a broken one (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`): what the segment
    /// before holds at this LSN is void.
    Overwrite {
        /// Where the void record starts.
        lsn: u64,
    },
}

/// The rest of a record that began in an earlier segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leading {
    /// Bytes of the record that were still missing at the start of this segment.
    pub remaining: u32,
    /// How many of them this segment holds.
    pub held: u32,
    /// Those bytes; `None` (opaque) when there were too many to keep, or not all were read.
    pub bytes: Option<Vec<u8>>,
}

/// The beginning of a record that ends in a later segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailing {
    /// Where the record starts.
    pub start: u64,
    /// Its whole length.
    pub total: u32,
    /// How many of its bytes this segment holds.
    pub held: u32,
    /// Those bytes; `None` (opaque) when there were too many to keep.
    pub bytes: Option<Vec<u8>>,
}

/// How a segment ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The last record ends where the segment does.
    Filled,
    /// A record begins that a later segment ends.
    Trailing(Trailing),
    /// A record passes through: it began earlier and ends later.
    Through,
    /// The last record switches to the next segment; what follows it is padding.
    Switch,
    /// Zeros or old pages follow the last record: normal for `.partial` files and the end of a timeline.
    Ended {
        /// Where the next record would have started.
        lsn: u64,
    },
    /// From here on nothing is known.
    Incomplete {
        /// The first position that could not be understood.
        lsn: u64,
        /// Why.
        doubt: Doubt,
    },
}

/// Why a segment, or a record that spans two, could not be understood. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Doubt {
    /// A page header has another magic number than this major version writes.
    PageMagic = 1,
    /// A page header has unknown or impossible flags, or sizes that are not the segment's.
    PageHeader = 2,
    /// A page carries another address than its place.
    PageAddress = 3,
    /// A page belongs to a later timeline than the file, or an earlier one than the page before.
    PageTimeline = 4,
    /// The segment belongs to another cluster.
    SystemIdentifier = 5,
    /// A continuation is missing, unexpected or of the wrong length.
    Continuation = 6,
    /// A record has an impossible length.
    RecordLength = 7,
    /// A record fails its CRC.
    RecordChecksum = 8,
    /// A record does not point back to the one before it.
    PreviousLink = 9,
    /// A record belongs to a resource manager that this version does not have.
    ResourceManager = 10,
    /// A block reference or data header is unknown or impossible.
    BlockReference = 11,
    /// Something follows the end of WAL that should not be there.
    AfterEnd = 12,
    /// The file is shorter than a segment.
    Short = 13,
    /// The file is longer than a segment.
    Long = 14,
    /// The major version is not one of 13 to 18.
    Version = 15,
    /// Joining: the segments are not neighbours of one history.
    NotAdjacent = 16,
    /// Joining: the spanning record was not kept; scan the segments again with a larger limit.
    Opaque = 17,
    /// Joining: one of the segments ends early or is not understood where the other one begins.
    Gap = 18,
}

impl Doubt {
    const ALL: [Doubt; 18] = [
        Doubt::PageMagic,
        Doubt::PageHeader,
        Doubt::PageAddress,
        Doubt::PageTimeline,
        Doubt::SystemIdentifier,
        Doubt::Continuation,
        Doubt::RecordLength,
        Doubt::RecordChecksum,
        Doubt::PreviousLink,
        Doubt::ResourceManager,
        Doubt::BlockReference,
        Doubt::AfterEnd,
        Doubt::Short,
        Doubt::Long,
        Doubt::Version,
        Doubt::NotAdjacent,
        Doubt::Opaque,
        Doubt::Gap,
    ];

    /// The doubt in words, for a message that begins "not understood from 0/3000028 on: ".
    pub fn describe(self) -> &'static str {
        match self {
            Doubt::PageMagic => "a page has the magic number of another version",
            Doubt::PageHeader => "a page header is impossible",
            Doubt::PageAddress => "a page carries another address",
            Doubt::PageTimeline => "a page belongs to another timeline",
            Doubt::SystemIdentifier => "the segment belongs to another cluster",
            Doubt::Continuation => "the continuation of a record is missing or does not fit",
            Doubt::RecordLength => "a record has an impossible length",
            Doubt::RecordChecksum => "a record fails its checksum",
            Doubt::PreviousLink => "a record does not follow the one before it",
            Doubt::ResourceManager => "a record belongs to an unknown resource manager",
            Doubt::BlockReference => "a record has an unknown or impossible block reference",
            Doubt::AfterEnd => "something follows the end of WAL",
            Doubt::Short => "the file is shorter than a segment",
            Doubt::Long => "the file is longer than a segment",
            Doubt::Version => "the version of PostgreSQL is not supported",
            Doubt::NotAdjacent => "the segments are not neighbours",
            Doubt::Opaque => "a record that spans segments was too long to be kept",
            Doubt::Gap => "the segment before or after is not whole",
        }
    }
}

/// The first record that starts in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstRecord {
    /// Where it starts.
    pub start: u64,
    /// Where it says that the record before it starts.
    pub previous: u64,
}

/// The last complete record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRecord {
    /// Where it starts.
    pub start: u64,
    /// Where the next one may start.
    pub end: u64,
}

/// What records say, gathered; everything is sorted, so that equal contents are equal bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changed blocks and limit blocks, sorted by relation and fork.
    pub relations: Vec<RelationChange>,
    /// Databases that were created, copied or dropped, as (tablespace, database): read them whole.
    pub databases: Vec<(u32, u32)>,
    /// Tablespaces that were created or dropped: read them whole.
    pub tablespaces: Vec<u32>,
    /// Why the next backup must be a full one: each reason with the first record that gave it.
    pub needs_full: Vec<NeedsFull>,
    /// Commits and aborts.
    pub transactions: Transactions,
    /// Named restore points, in order.
    pub restore_points: Vec<RestorePoint>,
    /// Timelines that begin here, in order.
    pub timeline_switches: Vec<TimelineSwitch>,
}

/// Names one fork of one relation. Ordered by tablespace, database, relation, fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFork {
    /// Tablespace.
    pub tablespace: u32,
    /// Database; 0 for shared relations.
    pub database: u32,
    /// Relation file number (relfilenode), which names the file.
    pub relation: u32,
    /// Fork, 0 to 3.
    pub fork: u8,
}

/// What happened to one fork of one relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationChange {
    /// The fork.
    pub fork: RelationFork,
    /// No block at or after this one may come from an older copy.
    pub limit: Option<u32>,
    /// Changed blocks, ascending, without overlap, never touching.
    pub blocks: Vec<BlockRun>,
}

impl RelationChange {
    /// The changed blocks one by one.
    pub fn block_numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.iter().flat_map(|run| run.first..=run.last)
    }
}

/// Adjacent changed blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRun {
    /// The first block.
    pub first: u32,
    /// The last block, inclusive.
    pub last: u32,
}

/// Why the next backup must be a full one. The numbers are part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FullReason {
    /// A record says that it changes files in a way of its own, and is not one of the known ones.
    SpecialRecord = 1,
    /// `wal_level` was minimal: changes may have skipped WAL.
    MinimalWal = 2,
    /// The state of data checksums changed. No record says so up to version 18; reserved for later versions.
    ChecksumState = 3,
    /// A known kind of record holds something unknown.
    Undecodable = 4,
    /// A record that matters was too long to be kept.
    RecordTooLong = 5,
}

impl FullReason {
    const ALL: [FullReason; 5] = [
        FullReason::SpecialRecord,
        FullReason::MinimalWal,
        FullReason::ChecksumState,
        FullReason::Undecodable,
        FullReason::RecordTooLong,
    ];
}

/// A reason for a full backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeedsFull {
    /// Why.
    pub reason: FullReason,
    /// End of the first record that gave this reason.
    pub lsn: u64,
}

/// Commits and aborts of top-level transactions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transactions {
    /// How many there were.
    pub count: u64,
    /// The first one in WAL order.
    pub first: Option<Moment>,
    /// The last one in WAL order.
    pub last: Option<Moment>,
    /// The one with the latest time, the earliest among equals: WAL order is not quite the order of time.
    pub latest: Option<Moment>,
    /// Smallest and largest xid seen, compared as numbers (they wrap around at 2^32).
    pub xids: Option<(u32, u32)>,
    /// The transactions themselves, sorted by xid, then by position.
    pub ends: Vec<TransactionEnd>,
    /// Whether `ends` lacks the later ones because they do not fit [`TRANSACTION_LIST_BYTES`].
    pub truncated: bool,
}

/// A commit or abort: its time, and where its record ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds since 2000-01-01 00:00:00 UTC.
    pub time: i64,
    /// End of the record.
    pub lsn: u64,
}

/// The end of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Its xid (for a prepared transaction the one it was prepared under).
    pub xid: u32,
    /// End of the record.
    pub lsn: u64,
    /// Microseconds since 2000-01-01 00:00:00 UTC.
    pub time: i64,
    /// Whether it was rolled back.
    pub aborted: bool,
}

/// A named restore point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint {
    /// Its name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// End of the record.
    pub lsn: u64,
    /// Microseconds since 2000-01-01 00:00:00 UTC.
    pub time: i64,
}

/// The beginning of a timeline (the record that ends recovery).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// End of the record.
    pub lsn: u64,
    /// The timeline it comes from.
    pub from: u32,
    /// The timeline that begins.
    pub to: u32,
}
