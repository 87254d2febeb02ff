//! Bytes to a map. Everything is checked: what comes out could have been encoded, or it is `Corrupt`.

use super::bytes::{Cursor, corrupt};
use super::encode::{FIXED_BYTES, HAS_BLOCKS, HAS_LIMIT, LENGTH_AT, MAGIC, SAME_PLACE};
use super::{
    BlockRun, Changes, Doubt, Entry, Exit, FORMAT_VERSION, FirstRecord, FullReason, LastRecord, Leading, Moment,
    NeedsFull, RelationChange, RelationFork, RestorePoint, Segment, SegmentMap, TimelineSwitch, Trailing,
    TransactionEnd, Transactions,
};
use crate::error::{Kind, Result};

/// PostgreSQL's InvalidBlockNumber: no block has this number.
const NO_BLOCK: u64 = u32::MAX as u64;

impl SegmentMap {
    /// Reads a map.
    ///
    /// # Errors
    /// `Corrupt` if the bytes are not exactly one map of a version that is known here.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let body = checked_body(bytes)?;
        let mut cursor = Cursor::new(body);
        let (segment, page_timelines) = segment(&mut cursor)?;
        let entry = entry(&mut cursor, &segment)?;
        let exit = exit(&mut cursor, &segment)?;
        let first_record = pair(&mut cursor)?.map(|(start, previous)| FirstRecord { start, previous });
        let last_record = pair(&mut cursor)?.map(|(start, end)| LastRecord { start, end });
        if let Some(record) = &first_record {
            inside(record.start, &segment)?;
        }
        if let Some(record) = &last_record {
            inside(record.start, &segment)?;
            inside(record.end, &segment)?;
        }
        let changes = changes(&mut cursor, &segment)?;
        if !cursor.is_empty() {
            return Err(corrupt("something follows its end"));
        }
        Ok(Self {
            segment,
            page_timelines,
            entry,
            exit,
            first_record,
            last_record,
            changes,
        })
    }
}

/// Magic, version, length and CRC; gives what lies before the CRC.
fn checked_body(bytes: &[u8]) -> Result<&[u8]> {
    let mut head = Cursor::new(bytes);
    if head.take(MAGIC.len())? != MAGIC {
        return Err(corrupt("it has another magic number"));
    }
    let version = head.u16()?;
    if version != FORMAT_VERSION {
        return Err(
            corrupt(&format!("its format version is {version}, known is {FORMAT_VERSION}"))
                .hint("it may have been written by a newer release"),
        );
    }
    let mut length = Cursor::new(bytes.get(LENGTH_AT..).unwrap_or_default());
    if usize::try_from(length.u32()?).ok() != Some(bytes.len()) || bytes.len() < FIXED_BYTES + 4 {
        return Err(corrupt("its length is not the one it names"));
    }
    let (body, sum) = bytes
        .split_at_checked(bytes.len() - 4)
        .ok_or_else(|| corrupt("it ends early"))?;
    if Cursor::new(sum).u32()? != crc32c::crc32c(body) {
        return Err(corrupt("its CRC does not match"));
    }
    Ok(body)
}

fn segment(cursor: &mut Cursor<'_>) -> Result<(Segment, (u32, u32))> {
    cursor.take(MAGIC.len() + 2)?;
    let major = cursor.u8()?;
    if cursor.u8()? != 0 {
        return Err(corrupt("it has unknown flags"));
    }
    cursor.u32()?;
    let system_identifier = cursor.u64()?;
    let start = cursor.u64()?;
    let size = cursor.u32()?;
    let timeline = cursor.u32()?;
    let page_timelines = (cursor.u32()?, cursor.u32()?);
    let sha256 = cursor.digest()?;
    let possible = size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size);
    if !possible || start % u64::from(size) != 0 || start.checked_add(u64::from(size)).is_none() {
        return Err(corrupt("its segment size or start is impossible"));
    }
    let segment = Segment {
        system_identifier,
        timeline,
        start,
        size,
        major,
        sha256,
    };
    Ok((segment, page_timelines))
}

fn inside(lsn: u64, segment: &Segment) -> Result<u64> {
    if lsn < segment.start || lsn > segment.end() {
        return Err(corrupt("a position lies outside its segment"));
    }
    Ok(lsn)
}

fn flag(cursor: &mut Cursor<'_>) -> Result<bool> {
    match cursor.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(corrupt("a flag is neither 0 nor 1")),
    }
}

fn fragment(cursor: &mut Cursor<'_>, segment: &Segment) -> Result<(u32, Option<Vec<u8>>)> {
    let held = cursor.u32()?;
    if held > segment.size {
        return Err(corrupt("a fragment is larger than its segment"));
    }
    let length = usize::try_from(held).map_err(|_| corrupt("a fragment is too large"))?;
    let bytes = if flag(cursor)? {
        Some(cursor.take(length)?.to_vec())
    } else {
        None
    };
    Ok((held, bytes))
}

fn entry(cursor: &mut Cursor<'_>, segment: &Segment) -> Result<Entry> {
    Ok(match cursor.u8()? {
        0 => Entry::Unknown,
        1 => Entry::Record,
        2 => {
            let remaining = cursor.u32()?;
            let (held, bytes) = fragment(cursor, segment)?;
            if held > remaining {
                return Err(corrupt("a continuation holds more than was missing"));
            }
            Entry::Continuation(Leading { remaining, held, bytes })
        }
        3 => Entry::Overwrite { lsn: cursor.u64()? },
        _ => return Err(corrupt("it begins in an unknown way")),
    })
}

fn exit(cursor: &mut Cursor<'_>, segment: &Segment) -> Result<Exit> {
    Ok(match cursor.u8()? {
        0 => Exit::Filled,
        1 => {
            let start = inside(cursor.u64()?, segment)?;
            let total = cursor.u32()?;
            let (held, bytes) = fragment(cursor, segment)?;
            if held >= total {
                return Err(corrupt("a record that is whole counts as begun"));
            }
            Exit::Trailing(Trailing {
                start,
                total,
                held,
                bytes,
            })
        }
        2 => Exit::Through,
        3 => Exit::Switch,
        4 => Exit::Ended {
            lsn: inside(cursor.u64()?, segment)?,
        },
        5 => {
            let lsn = inside(cursor.u64()?, segment)?;
            let number = cursor.u8()?;
            let known = Doubt::ALL.into_iter().find(|doubt| *doubt as u8 == number);
            let doubt = known.ok_or_else(|| corrupt("it is incomplete for an unknown reason"))?;
            Exit::Incomplete { lsn, doubt }
        }
        _ => return Err(corrupt("it ends in an unknown way")),
    })
}

fn pair(cursor: &mut Cursor<'_>) -> Result<Option<(u64, u64)>> {
    Ok(if flag(cursor)? {
        Some((cursor.u64()?, cursor.u64()?))
    } else {
        None
    })
}

fn changes(cursor: &mut Cursor<'_>, segment: &Segment) -> Result<Changes> {
    let mut changes = Changes::default();
    for _ in 0..cursor.count(2)? {
        let previous = changes.relations.last().map(|change: &RelationChange| change.fork);
        let change = relation(cursor, previous)?;
        changes.relations.push(change);
    }
    for _ in 0..cursor.count(2)? {
        changes.databases.push((cursor.varint_u32()?, cursor.varint_u32()?));
    }
    for _ in 0..cursor.count(1)? {
        changes.tablespaces.push(cursor.varint_u32()?);
    }
    for _ in 0..cursor.count(9)? {
        let number = cursor.u8()?;
        let known = FullReason::ALL.into_iter().find(|reason| *reason as u8 == number);
        let reason = known.ok_or_else(|| corrupt("it asks for a full backup for an unknown reason"))?;
        let lsn = inside(cursor.u64()?, segment)?;
        changes.needs_full.push(NeedsFull { reason, lsn });
    }
    if !changes.databases.is_sorted_by(|a, b| a < b)
        || !changes.tablespaces.is_sorted_by(|a, b| a < b)
        || !changes.needs_full.is_sorted_by(|a, b| a.reason < b.reason)
    {
        return Err(corrupt("a list is not sorted"));
    }
    changes.transactions = transactions(cursor, segment)?;
    for _ in 0..cursor.count(17)? {
        changes.restore_points.push(restore_point(cursor, segment)?);
    }
    for _ in 0..cursor.count(16)? {
        changes.timeline_switches.push(TimelineSwitch {
            lsn: inside(cursor.u64()?, segment)?,
            from: cursor.u32()?,
            to: cursor.u32()?,
        });
    }
    if !changes.restore_points.is_sorted_by(|a, b| a.lsn < b.lsn)
        || !changes.timeline_switches.is_sorted_by(|a, b| a.lsn < b.lsn)
    {
        return Err(corrupt("a list is not sorted"));
    }
    Ok(changes)
}

fn relation(cursor: &mut Cursor<'_>, previous: Option<RelationFork>) -> Result<RelationChange> {
    let flags = cursor.u8()?;
    if flags & !(0x03 | HAS_LIMIT | SAME_PLACE | HAS_BLOCKS) != 0 || flags & (HAS_LIMIT | HAS_BLOCKS) == 0 {
        return Err(corrupt("a relation has unknown flags"));
    }
    let place = previous.map(|fork| (fork.tablespace, fork.database));
    let (tablespace, database) = if flags & SAME_PLACE != 0 {
        place.ok_or_else(|| corrupt("the first relation refers to one before it"))?
    } else {
        let new = (cursor.varint_u32()?, cursor.varint_u32()?);
        if place == Some(new) {
            return Err(corrupt("a relation repeats its place"));
        }
        new
    };
    let fork = RelationFork {
        tablespace,
        database,
        relation: cursor.varint_u32()?,
        fork: flags & 0x03,
    };
    if previous.is_some_and(|previous| previous >= fork) {
        return Err(corrupt("relations are not sorted"));
    }
    let limit = if flags & HAS_LIMIT != 0 {
        Some(cursor.varint_u32()?)
    } else {
        None
    };
    let blocks = if flags & HAS_BLOCKS != 0 {
        runs(cursor)?
    } else {
        Vec::new()
    };
    Ok(RelationChange { fork, limit, blocks })
}

fn runs(cursor: &mut Cursor<'_>) -> Result<Vec<BlockRun>> {
    let count = cursor.count(1)?;
    if count == 0 {
        return Err(corrupt("a relation has an empty list of blocks"));
    }
    let mut runs = Vec::with_capacity(count);
    let mut free = 0u64;
    for _ in 0..count {
        let word = cursor.varint()?;
        let first = free.saturating_add(word >> 1);
        let longer = if word & 1 != 0 {
            cursor.varint()?.saturating_add(1)
        } else {
            0
        };
        let last = first.saturating_add(longer);
        if last >= NO_BLOCK {
            return Err(corrupt("a block number is too large"));
        }
        // Both are below NO_BLOCK, so nothing is cut off.
        runs.push(BlockRun {
            first: first as u32,
            last: last as u32,
        });
        free = last + 2;
    }
    Ok(runs)
}

fn moment(cursor: &mut Cursor<'_>, segment: &Segment) -> Result<Option<Moment>> {
    let time = i64::from_le_bytes(cursor.u64()?.to_le_bytes());
    let lsn = inside(cursor.u64()?, segment)?;
    Ok(Some(Moment { time, lsn }))
}

fn transactions(cursor: &mut Cursor<'_>, segment: &Segment) -> Result<Transactions> {
    let count = cursor.varint()?;
    if count == 0 {
        return Ok(Transactions::default());
    }
    let mut transactions = Transactions {
        count,
        first: moment(cursor, segment)?,
        last: moment(cursor, segment)?,
        latest: moment(cursor, segment)?,
        xids: Some((cursor.u32()?, cursor.u32()?)),
        truncated: flag(cursor)?,
        ends: Vec::new(),
    };
    let listed = cursor.count(3)?;
    if (listed as u64 == count) == transactions.truncated || listed as u64 > count {
        return Err(corrupt("its list of transactions has the wrong length"));
    }
    let (mut xid, mut time) = (0u32, transactions.first.map_or(0, |first| first.time));
    transactions.ends.reserve(listed);
    for _ in 0..listed {
        xid = xid
            .checked_add(cursor.varint_u32()?)
            .ok_or_else(|| corrupt("its transactions are not sorted"))?;
        let word = cursor.varint()?;
        let lsn = inside(segment.start.saturating_add((word >> 1).saturating_mul(8)), segment)?;
        time = time.wrapping_add(cursor.signed()?);
        let aborted = word & 1 != 0;
        transactions.ends.push(TransactionEnd {
            xid,
            lsn,
            time,
            aborted,
        });
    }
    let within = |xid: u32| {
        transactions
            .xids
            .is_some_and(|(least, most)| (least..=most).contains(&xid))
    };
    let sorted = transactions.ends.is_sorted_by(|a, b| (a.xid, a.lsn) < (b.xid, b.lsn));
    if !sorted || !transactions.ends.iter().all(|end| within(end.xid)) {
        return Err(corrupt("its transactions are not sorted"));
    }
    Ok(transactions)
}

fn restore_point(cursor: &mut Cursor<'_>, segment: &Segment) -> Result<RestorePoint> {
    let length = cursor.count(1)?;
    let name = std::str::from_utf8(cursor.take(length)?)
        .map_err(|error| {
            crate::error::Error::new(Kind::Corrupt, "WAL map is damaged: a name is not text").because(error)
        })?
        .to_owned();
    let lsn = inside(cursor.u64()?, segment)?;
    let time = i64::from_le_bytes(cursor.u64()?.to_le_bytes());
    Ok(RestorePoint { name, lsn, time })
}
