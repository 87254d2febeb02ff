//! What a record means beyond its block references: limits, dropped files, times, reasons for a full backup.
//!
//! Layouts: `xact.h` and `xactdesc.c`, `storage_xlog.h`, `dbcommands_xlog.h`, `tablespace.h`, `xlog_internal.h` and
//! `pg_control.h` of versions 13 to 18.

use super::gather::Gather;
use super::record::Header;
use crate::postgres::walmap::{
    FullReason, INIT_FORK, MAIN_FORK, RelationFork, RestorePoint, TimelineSwitch, TransactionEnd, VISIBILITY_FORK,
};

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_SMGR: u8 = 2;
const RM_DBASE: u8 = 4;
const RM_TBLSPC: u8 = 5;
/// RM_LOGICALMSG, the last built-in resource manager of 13 to 18 (`rmgrlist.h`).
pub(super) const LAST_MANAGER: u8 = 21;

/// XLR_SPECIAL_REL_UPDATE: the record changes relation files in ways that block references do not show.
const SPECIAL: u8 = 0x01;
/// WAL_LEVEL_MINIMAL and the highest level there is.
const WAL_LEVELS: (u32, u32) = (0, 2);

const SHUTDOWN_CHECKPOINT: u8 = 0x00;
const SWITCH: u8 = 0x40;
const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;
const OVERWRITE_CONTRECORD: u8 = 0xd0;
const CHECKPOINT_REDO: u8 = 0xe0;

/// Whether the rest of the segment behind this record is padding.
#[inline]
pub(in crate::postgres) fn is_switch(header: &Header) -> bool {
    header.manager == RM_XLOG && header.info & 0xf0 == SWITCH
}

/// For a record that replaces a broken one: where the broken one starts.
pub(in crate::postgres) fn overwritten(header: &Header, main: &[u8]) -> Option<u64> {
    let replaces = header.manager == RM_XLOG && header.info & 0xf0 == OVERWRITE_CONTRECORD;
    if replaces { u64_at(main, 0) } else { None }
}

/// Whether [`apply`] reads this record's main data.
#[inline]
pub(in crate::postgres) fn matters(header: &Header) -> bool {
    header.info & SPECIAL != 0 || matches!(header.manager, RM_XLOG | RM_XACT | RM_SMGR | RM_DBASE | RM_TBLSPC)
}

/// Notes what the record means. `main` is its main data, `None` where it was too long to keep; `end` is its end.
pub(in crate::postgres) fn apply(gather: &mut Gather, header: &Header, main: Option<&[u8]>, end: u64, major: u8) {
    let understood = match (header.manager, main) {
        (RM_XLOG, Some(main)) => apply_xlog(gather, header, main, end, major),
        (RM_XACT, Some(main)) => apply_xact(gather, header, main, end, major),
        (RM_SMGR, Some(main)) => apply_smgr(gather, header, main),
        (RM_DBASE, Some(main)) => apply_dbase(gather, header, main, major),
        (RM_TBLSPC, Some(main)) => apply_tablespace(gather, main),
        // XLOG_FPI records have no main data to speak of; a logical message never matters.
        (RM_XLOG | RM_XACT | RM_SMGR | RM_DBASE | RM_TBLSPC, None) => Err(FullReason::RecordTooLong),
        _ => Ok(false),
    };
    match understood {
        Err(reason) => gather.needs_full(reason, end),
        Ok(false) if header.info & SPECIAL != 0 => gather.needs_full(FullReason::SpecialRecord, end),
        Ok(_) => {}
    }
}

/// `Ok(true)`: recognised. `Ok(false)`: not one whose special changes are known. `Err`: why a full backup is needed.
type Understood = Result<bool, FullReason>;

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    bytes_at(bytes, at).map(i64::from_le_bytes)
}

fn apply_xlog(gather: &mut Gather, header: &Header, main: &[u8], end: u64, major: u8) -> Understood {
    let kind = header.info & 0xf0;
    let level_at = match kind {
        SHUTDOWN_CHECKPOINT if major >= 17 => Some(20),
        END_OF_RECOVERY if major >= 17 => Some(16),
        CHECKPOINT_REDO if major >= 17 => Some(0),
        PARAMETER_CHANGE => Some(20),
        _ => None,
    };
    if let Some(at) = level_at {
        let level = u32_at(main, at).ok_or(FullReason::Undecodable)?;
        if level == WAL_LEVELS.0 {
            gather.needs_full(FullReason::MinimalWal, end);
        } else if level > WAL_LEVELS.1 {
            return Err(FullReason::Undecodable);
        }
    }
    if kind == SHUTDOWN_CHECKPOINT || kind == END_OF_RECOVERY {
        // Both hold the new timeline and the one before it at the same place.
        let read = |at| u32_at(main, at).ok_or(FullReason::Undecodable);
        let (to, from) = (read(8)?, read(12)?);
        if from != to {
            gather.timeline_switch(TimelineSwitch { lsn: end, from, to });
        }
    }
    if kind == RESTORE_POINT {
        let time = i64_at(main, 0).ok_or(FullReason::Undecodable)?;
        let raw = main.get(8..).unwrap_or_default();
        let name = raw.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        gather.restore_point(RestorePoint { name, lsn: end, time });
    }
    Ok(false)
}

fn apply_xact(gather: &mut Gather, header: &Header, main: &[u8], end: u64, major: u8) -> Understood {
    let (commit, prepared) = match header.info & 0x70 {
        0x00 => (true, false),
        0x20 => (false, false),
        0x30 => (true, true),
        0x40 => (false, true),
        // PREPARE, ASSIGNMENT, INVALIDATIONS: nothing happens to files yet.
        _ => return Ok(false),
    };
    let parsed = parse_end(main, header.info & 0x80 != 0, commit, major).ok_or(FullReason::Undecodable)?;
    if prepared != parsed.prepared_xid.is_some() {
        return Err(FullReason::Undecodable);
    }
    for relation in parsed.dropped.chunks_exact(12) {
        drop_relation(gather, relation).ok_or(FullReason::Undecodable)?;
    }
    gather.transaction(TransactionEnd {
        xid: parsed.prepared_xid.unwrap_or(header.xid),
        lsn: end,
        time: parsed.time,
        aborted: !commit,
    });
    Ok(true)
}

/// The parts of a commit or abort record that matter here.
struct ParsedEnd<'a> {
    time: i64,
    dropped: &'a [u8],
    prepared_xid: Option<u32>,
}

const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWO_PHASE: u32 = 1 << 4;
const HAS_ORIGIN: u32 = 1 << 5;
const HAS_LOCKS: u32 = 1 << 6;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATISTICS: u32 = 1 << 8;
/// APPLY_FEEDBACK, UPDATE_RELCACHE_FILE, FORCE_SYNC_COMMIT: flags without data.
const COMPLETION_FLAGS: u32 = 0b111 << 29;

/// Follows `ParseCommitRecord` and `ParseAbortRecord`; `None` if the record is not as they expect.
fn parse_end(main: &[u8], has_info: bool, commit: bool, major: u8) -> Option<ParsedEnd<'_>> {
    let time = i64_at(main, 0)?;
    let mut rest = main.get(8..)?;
    let mut parsed = ParsedEnd {
        time,
        dropped: &[],
        prepared_xid: None,
    };
    if !has_info {
        return rest.is_empty().then_some(parsed);
    }
    let info = u32_at(rest, 0)?;
    rest = rest.get(4..)?;
    let mut known = HAS_DATABASE | HAS_SUBTRANSACTIONS | HAS_RELATIONS | HAS_TWO_PHASE | HAS_ORIGIN;
    known |= HAS_INVALIDATIONS | HAS_LOCKS | HAS_GID | COMPLETION_FLAGS;
    if major >= 15 {
        known |= HAS_DROPPED_STATISTICS;
    }
    if info & !known != 0 {
        return None;
    }
    if info & HAS_DATABASE != 0 {
        rest = rest.get(8..)?;
    }
    if info & HAS_SUBTRANSACTIONS != 0 {
        counted(&mut rest, 4)?;
    }
    if info & HAS_RELATIONS != 0 {
        parsed.dropped = counted(&mut rest, 12)?;
    }
    if info & HAS_DROPPED_STATISTICS != 0 {
        // kind, database, object; the object's number has 64 bits since 18.
        counted(&mut rest, if major >= 18 { 16 } else { 12 })?;
    }
    if info & HAS_INVALIDATIONS != 0 && commit {
        counted(&mut rest, 16)?;
    }
    if info & HAS_TWO_PHASE != 0 {
        parsed.prepared_xid = Some(u32_at(rest, 0)?);
        rest = rest.get(4..)?;
        if info & HAS_GID != 0 {
            let length = rest.iter().position(|byte| *byte == 0)?;
            rest = rest.get(length + 1..)?;
        }
    }
    if info & HAS_ORIGIN != 0 {
        rest = rest.get(16..)?;
    }
    rest.is_empty().then_some(parsed)
}

/// Takes a count and that many items of `size` bytes.
fn counted<'a>(rest: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let count = i32::from_le_bytes(bytes_at(rest, 0)?);
    let length = usize::try_from(count).ok()?.checked_mul(size)?;
    let (items, after) = rest.get(4..)?.split_at_checked(length)?;
    *rest = after;
    Some(items)
}

/// A RelFileNode or RelFileLocator: tablespace, database, relation.
fn relation_at(bytes: &[u8], at: usize, fork: u8) -> Option<RelationFork> {
    let fork = RelationFork {
        tablespace: u32_at(bytes, at)?,
        database: u32_at(bytes, at + 4)?,
        relation: u32_at(bytes, at + 8)?,
        fork,
    };
    (fork.relation != 0 && fork.fork <= 3).then_some(fork)
}

fn drop_relation(gather: &mut Gather, relation: &[u8]) -> Option<()> {
    for fork in [MAIN_FORK, VISIBILITY_FORK, INIT_FORK] {
        gather.limit(relation_at(relation, 0, fork)?, 0);
    }
    Some(())
}

fn apply_smgr(gather: &mut Gather, header: &Header, main: &[u8]) -> Understood {
    let applied = match header.info & 0xf0 {
        0x10 => smgr_create(gather, main),
        0x20 => smgr_truncate(gather, main),
        _ => return Ok(false),
    };
    applied.map(|()| true).ok_or(FullReason::Undecodable)
}

fn smgr_create(gather: &mut Gather, main: &[u8]) -> Option<()> {
    let fork = u8::try_from(u32_at(main, 12)?).ok()?;
    gather.limit(relation_at(main, 0, fork)?, 0);
    Some(())
}

fn smgr_truncate(gather: &mut Gather, main: &[u8]) -> Option<()> {
    let block = u32_at(main, 0)?;
    let flags = u32_at(main, 16)?;
    // Heap, visibility map, free space map.
    if flags & !0x7 != 0 {
        return None;
    }
    if flags & 0x1 != 0 {
        gather.limit(relation_at(main, 4, MAIN_FORK)?, block);
    }
    if flags & 0x2 != 0 {
        // The map's own length would have to be computed; it is copied whole anyway.
        gather.limit(relation_at(main, 4, VISIBILITY_FORK)?, 0);
    }
    Some(())
}

fn apply_dbase(gather: &mut Gather, header: &Header, main: &[u8], major: u8) -> Understood {
    // 13 and 14: CREATE, DROP. Since 15: CREATE_FILE_COPY, CREATE_WAL_LOG, DROP.
    let (create, drop): (&[u8], u8) = if major < 15 {
        (&[0x00], 0x10)
    } else {
        (&[0x00, 0x10], 0x20)
    };
    let kind = header.info & 0xf0;
    let read = |at| u32_at(main, at).ok_or(FullReason::Undecodable);
    let database = read(0)?;
    if create.contains(&kind) {
        gather.database(read(4)?, database);
    } else if kind == drop {
        let mut rest = main.get(4..).unwrap_or_default();
        let tablespaces = counted(&mut rest, 4).ok_or(FullReason::Undecodable)?;
        for tablespace in tablespaces.chunks_exact(4) {
            gather.database(u32_at(tablespace, 0).ok_or(FullReason::Undecodable)?, database);
        }
    } else {
        return Err(FullReason::SpecialRecord);
    }
    Ok(true)
}

/// Both records, CREATE and DROP, begin with the tablespace.
fn apply_tablespace(gather: &mut Gather, main: &[u8]) -> Understood {
    gather.tablespace(u32_at(main, 0).ok_or(FullReason::Undecodable)?);
    Ok(true)
}
