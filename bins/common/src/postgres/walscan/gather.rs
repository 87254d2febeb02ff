//! Gathers what records say while memory stays bounded by what there is to say, and sorts it at the end.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::postgres::walmap::encode::fit_ends;
use crate::postgres::walmap::{
    BlockRun, Changes, FullReason, Moment, NeedsFull, RelationChange, RelationFork, RestorePoint, TimelineSwitch,
    TransactionEnd, Transactions,
};

/// More ends than this never fit an encoded list (an entry has at least three bytes).
const MOST_ENDS: usize = crate::postgres::walmap::TRANSACTION_LIST_BYTES / 3;
/// Lists of blocks are sorted and freed of duplicates when they reach this length, then at twice what is left.
const FIRST_COMPACTION: usize = 4096;

/// Multiplies and folds: the keys are counters that no stranger chooses.
#[derive(Default)]
pub(super) struct FoldHasher(u64);

impl Hasher for FoldHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

struct Gathered {
    fork: RelationFork,
    limit: Option<u32>,
    blocks: Vec<u32>,
    compact_at: usize,
}

impl Gathered {
    #[inline]
    fn add(&mut self, block: u32) {
        if self.blocks.last() == Some(&block) {
            return;
        }
        if self.blocks.len() >= self.compact_at {
            self.blocks.sort_unstable();
            self.blocks.dedup();
            self.compact_at = FIRST_COMPACTION.max(self.blocks.len() * 2);
        }
        self.blocks.push(block);
    }

    fn finish(mut self) -> RelationChange {
        self.blocks.sort_unstable();
        let mut blocks: Vec<BlockRun> = Vec::new();
        for block in self.blocks {
            match blocks.last_mut() {
                Some(run) if block <= run.last.saturating_add(1) => run.last = block.max(run.last),
                _ => blocks.push(BlockRun {
                    first: block,
                    last: block,
                }),
            }
        }
        RelationChange {
            fork: self.fork,
            limit: self.limit,
            blocks,
        }
    }
}

/// What records said so far.
#[derive(Default)]
pub(in crate::postgres) struct Gather {
    places: HashMap<RelationFork, usize, BuildHasherDefault<FoldHasher>>,
    relations: Vec<Gathered>,
    /// The relation of the last block: the next one is often the same.
    latest: usize,
    databases: Vec<(u32, u32)>,
    tablespaces: Vec<u32>,
    needs_full: Vec<NeedsFull>,
    transactions: Transactions,
    restore_points: Vec<RestorePoint>,
    timeline_switches: Vec<TimelineSwitch>,
}

impl Gather {
    #[inline]
    fn entry(&mut self, fork: RelationFork) -> Option<&mut Gathered> {
        if self
            .relations
            .get(self.latest)
            .is_none_or(|gathered| gathered.fork != fork)
        {
            let relations = &mut self.relations;
            self.latest = *self.places.entry(fork).or_insert_with(|| {
                relations.push(Gathered {
                    fork,
                    limit: None,
                    blocks: Vec::new(),
                    compact_at: FIRST_COMPACTION,
                });
                relations.len() - 1
            });
        }
        self.relations.get_mut(self.latest)
    }

    /// A record changes this block.
    #[inline]
    pub(in crate::postgres) fn block(&mut self, fork: RelationFork, block: u32) {
        if let Some(entry) = self.entry(fork) {
            entry.add(block);
        }
    }

    /// No block at or after `limit` may come from an older copy.
    pub(super) fn limit(&mut self, fork: RelationFork, limit: u32) {
        if let Some(entry) = self.entry(fork) {
            entry.limit = Some(entry.limit.map_or(limit, |known| known.min(limit)));
        }
    }

    /// A whole database changes.
    pub(super) fn database(&mut self, tablespace: u32, database: u32) {
        self.databases.push((tablespace, database));
    }

    /// A whole tablespace changes.
    pub(super) fn tablespace(&mut self, tablespace: u32) {
        self.tablespaces.push(tablespace);
    }

    /// The next backup must be a full one; the first position per reason is kept.
    pub(super) fn needs_full(&mut self, reason: FullReason, lsn: u64) {
        if self.needs_full.iter().all(|need| need.reason != reason) {
            self.needs_full.push(NeedsFull { reason, lsn });
        }
    }

    /// A transaction ends.
    pub(super) fn transaction(&mut self, end: TransactionEnd) {
        let moment = Moment {
            time: end.time,
            lsn: end.lsn,
        };
        let known = &mut self.transactions;
        known.count += 1;
        known.first.get_or_insert(moment);
        known.last = Some(moment);
        if known.latest.is_none_or(|latest| moment.time > latest.time) {
            known.latest = Some(moment);
        }
        let (least, most) = known.xids.unwrap_or((end.xid, end.xid));
        known.xids = Some((least.min(end.xid), most.max(end.xid)));
        if known.ends.len() < MOST_ENDS {
            known.ends.push(end);
        } else {
            known.truncated = true;
        }
    }

    /// A restore point is named.
    pub(super) fn restore_point(&mut self, point: RestorePoint) {
        self.restore_points.push(point);
    }

    /// A timeline begins.
    pub(super) fn timeline_switch(&mut self, switch: TimelineSwitch) {
        self.timeline_switches.push(switch);
    }

    /// All that was gathered, sorted; `start` is the segment's first LSN.
    pub(in crate::postgres) fn finish(self, start: u64) -> Changes {
        let mut relations: Vec<_> = self.relations.into_iter().map(Gathered::finish).collect();
        relations.sort_unstable_by_key(|change| change.fork);
        let (mut databases, mut tablespaces, mut needs_full) = (self.databases, self.tablespaces, self.needs_full);
        databases.sort_unstable();
        databases.dedup();
        tablespaces.sort_unstable();
        tablespaces.dedup();
        needs_full.sort_unstable();
        let mut transactions = self.transactions;
        let base = transactions.first.map_or(0, |first| first.time);
        transactions.truncated |= fit_ends(&mut transactions.ends, start, base);
        Changes {
            relations,
            databases,
            tablespaces,
            needs_full,
            transactions,
            restore_points: self.restore_points,
            timeline_switches: self.timeline_switches,
        }
    }
}
