//! A map to bytes, as `WALMAP.md` specifies them.

use super::bytes::{put_signed, put_varint};
use super::{
    Changes, Entry, Exit, FORMAT_VERSION, Moment, RelationChange, SegmentMap, TRANSACTION_LIST_BYTES, TransactionEnd,
    Transactions,
};

/// The first eight bytes of every encoded map.
pub(super) const MAGIC: &[u8; 8] = b"PGKWALM\0";
/// Where the length of the whole map stands.
pub(super) const LENGTH_AT: usize = 12;
/// Length of the part before the first varint.
pub(super) const FIXED_BYTES: usize = 80;

/// A relation has a limit block.
pub(super) const HAS_LIMIT: u8 = 0x04;
/// A relation lies in the same tablespace and database as the one before.
pub(super) const SAME_PLACE: u8 = 0x08;
/// A relation has changed blocks.
pub(super) const HAS_BLOCKS: u8 = 0x10;

impl SegmentMap {
    /// The map as bytes; equal maps give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        let segment = &self.segment;
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.push(segment.major);
        out.push(0);
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&segment.system_identifier.to_le_bytes());
        out.extend_from_slice(&segment.start.to_le_bytes());
        out.extend_from_slice(&segment.size.to_le_bytes());
        out.extend_from_slice(&segment.timeline.to_le_bytes());
        out.extend_from_slice(&self.page_timelines.0.to_le_bytes());
        out.extend_from_slice(&self.page_timelines.1.to_le_bytes());
        out.extend_from_slice(&segment.sha256);
        self.put_ends(&mut out);
        put_changes(&mut out, &self.changes, segment.start);
        // A map holds at most two kept fragments and less than its segment in changes: far below 4 GiB.
        let length = u32::try_from(out.len() + 4).unwrap_or(u32::MAX);
        if let Some(place) = out.get_mut(LENGTH_AT..LENGTH_AT + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    fn put_ends(&self, out: &mut Vec<u8>) {
        match &self.entry {
            Entry::Unknown => out.push(0),
            Entry::Record => out.push(1),
            Entry::Continuation(leading) => {
                out.push(2);
                out.extend_from_slice(&leading.remaining.to_le_bytes());
                put_fragment(out, leading.held, leading.bytes.as_deref());
            }
            Entry::Overwrite { lsn } => {
                out.push(3);
                out.extend_from_slice(&lsn.to_le_bytes());
            }
        }
        match &self.exit {
            Exit::Filled => out.push(0),
            Exit::Trailing(trailing) => {
                out.push(1);
                out.extend_from_slice(&trailing.start.to_le_bytes());
                out.extend_from_slice(&trailing.total.to_le_bytes());
                put_fragment(out, trailing.held, trailing.bytes.as_deref());
            }
            Exit::Through => out.push(2),
            Exit::Switch => out.push(3),
            Exit::Ended { lsn } => {
                out.push(4);
                out.extend_from_slice(&lsn.to_le_bytes());
            }
            Exit::Incomplete { lsn, doubt } => {
                out.push(5);
                out.extend_from_slice(&lsn.to_le_bytes());
                out.push(*doubt as u8);
            }
        }
        put_pair(out, self.first_record.map(|record| (record.start, record.previous)));
        put_pair(out, self.last_record.map(|record| (record.start, record.end)));
    }
}

fn put_fragment(out: &mut Vec<u8>, held: u32, bytes: Option<&[u8]>) {
    out.extend_from_slice(&held.to_le_bytes());
    out.push(u8::from(bytes.is_some()));
    out.extend_from_slice(bytes.unwrap_or_default());
}

fn put_pair(out: &mut Vec<u8>, pair: Option<(u64, u64)>) {
    out.push(u8::from(pair.is_some()));
    if let Some((first, second)) = pair {
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&second.to_le_bytes());
    }
}

fn put_changes(out: &mut Vec<u8>, changes: &Changes, start: u64) {
    put_varint(out, changes.relations.len() as u64);
    let mut place = None;
    for change in &changes.relations {
        put_relation(out, change, place);
        place = Some((change.fork.tablespace, change.fork.database));
    }
    put_varint(out, changes.databases.len() as u64);
    for (tablespace, database) in &changes.databases {
        put_varint(out, u64::from(*tablespace));
        put_varint(out, u64::from(*database));
    }
    put_varint(out, changes.tablespaces.len() as u64);
    for tablespace in &changes.tablespaces {
        put_varint(out, u64::from(*tablespace));
    }
    put_varint(out, changes.needs_full.len() as u64);
    for need in &changes.needs_full {
        out.push(need.reason as u8);
        out.extend_from_slice(&need.lsn.to_le_bytes());
    }
    put_transactions(out, &changes.transactions, start);
    put_varint(out, changes.restore_points.len() as u64);
    for point in &changes.restore_points {
        put_varint(out, point.name.len() as u64);
        out.extend_from_slice(point.name.as_bytes());
        out.extend_from_slice(&point.lsn.to_le_bytes());
        out.extend_from_slice(&point.time.to_le_bytes());
    }
    put_varint(out, changes.timeline_switches.len() as u64);
    for switch in &changes.timeline_switches {
        out.extend_from_slice(&switch.lsn.to_le_bytes());
        out.extend_from_slice(&switch.from.to_le_bytes());
        out.extend_from_slice(&switch.to.to_le_bytes());
    }
}

fn put_relation(out: &mut Vec<u8>, change: &RelationChange, previous_place: Option<(u32, u32)>) {
    let fork = change.fork;
    let same_place = previous_place == Some((fork.tablespace, fork.database));
    let mut flags = fork.fork & 0x03;
    flags |= if change.limit.is_some() { HAS_LIMIT } else { 0 };
    flags |= if same_place { SAME_PLACE } else { 0 };
    flags |= if change.blocks.is_empty() { 0 } else { HAS_BLOCKS };
    out.push(flags);
    if !same_place {
        put_varint(out, u64::from(fork.tablespace));
        put_varint(out, u64::from(fork.database));
    }
    put_varint(out, u64::from(fork.relation));
    if let Some(limit) = change.limit {
        put_varint(out, u64::from(limit));
    }
    if !change.blocks.is_empty() {
        put_varint(out, change.blocks.len() as u64);
        let mut free = 0u64;
        for run in &change.blocks {
            let gap = u64::from(run.first).saturating_sub(free);
            put_varint(out, gap << 1 | u64::from(run.last > run.first));
            if run.last > run.first {
                put_varint(out, u64::from(run.last - run.first) - 1);
            }
            // The block after a run is not changed, or it would belong to the run.
            free = u64::from(run.last) + 2;
        }
    }
}

fn put_moment(out: &mut Vec<u8>, moment: Option<Moment>) {
    let Moment { time, lsn } = moment.unwrap_or(Moment { time: 0, lsn: 0 });
    out.extend_from_slice(&time.to_le_bytes());
    out.extend_from_slice(&lsn.to_le_bytes());
}

fn put_transactions(out: &mut Vec<u8>, transactions: &Transactions, start: u64) {
    put_varint(out, transactions.count);
    if transactions.count == 0 {
        return;
    }
    put_moment(out, transactions.first);
    put_moment(out, transactions.last);
    put_moment(out, transactions.latest);
    let (least, greatest) = transactions.xids.unwrap_or_default();
    out.extend_from_slice(&least.to_le_bytes());
    out.extend_from_slice(&greatest.to_le_bytes());
    out.push(u8::from(transactions.truncated));
    put_varint(out, transactions.ends.len() as u64);
    let base = transactions.first.map_or(0, |moment| moment.time);
    put_ends(out, &transactions.ends, start, base);
}

fn put_ends(out: &mut Vec<u8>, ends: &[TransactionEnd], start: u64, base: i64) {
    let (mut xid, mut time) = (0u32, base);
    for end in ends {
        put_varint(out, u64::from(end.xid.wrapping_sub(xid)));
        put_varint(out, (end.lsn.saturating_sub(start) / 8) << 1 | u64::from(end.aborted));
        put_signed(out, end.time.wrapping_sub(time));
        (xid, time) = (end.xid, end.time);
    }
}

/// Sorts the ends, which come in WAL order, and drops the later ones until the list fits; says whether it dropped any.
pub(in crate::postgres) fn fit_ends(ends: &mut Vec<TransactionEnd>, start: u64, base: i64) -> bool {
    let mut bytes = Vec::with_capacity(TRANSACTION_LIST_BYTES);
    let mut truncated = false;
    loop {
        let mut sorted = ends.clone();
        sorted.sort_unstable_by_key(|end| (end.xid, end.lsn));
        bytes.clear();
        put_ends(&mut bytes, &sorted, start, base);
        if bytes.len() <= TRANSACTION_LIST_BYTES {
            *ends = sorted;
            return truncated;
        }
        truncated = true;
        // Shrinks by a fiftieth more than the average entry asks for, so a few rounds are enough.
        let keep = ends.len() * TRANSACTION_LIST_BYTES / bytes.len();
        ends.truncate(keep - keep / 50);
    }
}
