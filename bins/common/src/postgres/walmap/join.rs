//! Joins the maps of neighbouring segments: whether one follows the other, and what the record between them says.

use super::{Changes, Doubt, Entry, Exit, Leading, SegmentMap, Trailing};
use crate::error::{Error, Kind, Result};
use crate::postgres::walscan::{Gather, HEADER_BYTES, Header, LONGEST_RECORD, checksum, decode};

/// What lies between two segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// What the record says that spans them; empty if none does.
    pub changes: Changes,
    /// Why nothing is known from this LSN on, if the segments do not fit together: then they prove nothing about what
    /// follows the LSN. [`Doubt::Opaque`] asks for another scan of the segments with a larger limit.
    pub incomplete: Option<(u64, Doubt)>,
}

impl Joined {
    fn doubt(lsn: u64, doubt: Doubt) -> Self {
        Self {
            changes: Changes::default(),
            incomplete: Some((lsn, doubt)),
        }
    }
}

/// Joins two neighbours: checks that `next` goes on where `previous` ends, and decodes the record that spans them.
///
/// # Errors
/// `Refused` if they are maps of different clusters or versions, or not neighbours: that is a mistake of the caller.
/// A gap or damage is no error but [`Joined::incomplete`].
pub fn join(previous: &SegmentMap, next: &SegmentMap) -> Result<Joined> {
    join_all(&[previous, next])
}

/// Joins two or more neighbours where one record starts in the first, passes through all between, and ends in the last.
///
/// The fragments of such records are usually not kept: scan the segments again with
/// [`Scanner::keep_fragments`](crate::postgres::walscan::Scanner::keep_fragments).
///
/// # Errors
/// As [`join`].
pub fn join_all(maps: &[&SegmentMap]) -> Result<Joined> {
    let ([first, .., last], true) = (maps, maps.is_sorted_by(|a, b| follows(a, b))) else {
        return Err(Error::new(
            Kind::Refused,
            "cannot join WAL maps: they are not neighbours of one cluster and history",
        ));
    };
    let boundary = first.known_until();
    if !first.reaches_end() {
        return Ok(Joined::doubt(boundary, Doubt::Gap));
    }
    let spanning = match (&first.exit, &last.entry) {
        // An overwrite replaces the record that this segment has begun, and only that one.
        (Exit::Trailing(trailing), Entry::Overwrite { lsn }) if *lsn == trailing.start && maps.len() == 2 => None,
        (Exit::Trailing(trailing), Entry::Continuation(leading)) => Some((trailing, leading)),
        (Exit::Filled | Exit::Switch, Entry::Record) if maps.len() == 2 => None,
        (Exit::Through, _) => return Ok(Joined::doubt(boundary, Doubt::Opaque)),
        (_, Entry::Unknown) => return Ok(Joined::doubt(boundary, Doubt::Gap)),
        _ => return Ok(Joined::doubt(boundary, Doubt::Continuation)),
    };
    let (changes, before) = match spanning {
        Some((trailing, leading)) => match span(maps, first, trailing, leading) {
            Ok(changes) => (changes, Some(trailing.start)),
            Err(doubt) => return Ok(Joined::doubt(boundary, doubt)),
        },
        None => (Changes::default(), first.last_record.map(|record| record.start)),
    };
    // The next segment's first record points back to the last one before it, or something lies between them that is
    // not here: a switch of history, a reset, another cluster's past.
    let linked = match (&last.first_record, before) {
        (Some(record), Some(before)) => record.previous == before,
        (Some(_), None) => false,
        // Nothing begins in the next segment, or too little of it to tell: the next join looks at it.
        (None, _) => true,
    };
    if !linked {
        let lsn = last.first_record.map_or(boundary, |record| record.start);
        return Ok(Joined {
            changes,
            incomplete: Some((lsn, Doubt::PreviousLink)),
        });
    }
    Ok(Joined {
        changes,
        incomplete: None,
    })
}

fn follows(previous: &SegmentMap, next: &SegmentMap) -> bool {
    let (a, b) = (&previous.segment, &next.segment);
    a.system_identifier == b.system_identifier
        && a.major == b.major
        && a.size == b.size
        && a.end() == b.start
        && a.timeline <= b.timeline
}

/// Puts the spanning record together and decodes it.
fn span(maps: &[&SegmentMap], first: &SegmentMap, trailing: &Trailing, leading: &Leading) -> Result<Changes, Doubt> {
    let between = maps.get(1..maps.len().saturating_sub(1)).unwrap_or_default();
    let mut missing = trailing.total.saturating_sub(trailing.held);
    let mut opaque = trailing.bytes.is_none();
    let mut bytes = trailing.bytes.clone().unwrap_or_default();
    let through = between.iter().map(|map| match (&map.entry, &map.exit) {
        (Entry::Continuation(leading), Exit::Through) => Some(leading),
        _ => None,
    });
    for fragment in through.chain([Some(leading)]) {
        let fragment = fragment.ok_or(Doubt::Continuation)?;
        if fragment.remaining != missing {
            return Err(Doubt::Continuation);
        }
        missing -= fragment.held.min(missing);
        match &fragment.bytes {
            Some(held) if !opaque => bytes.extend_from_slice(held),
            Some(_) => {}
            None => opaque = true,
        }
    }
    if missing > 0 {
        // It passes through the last segment as well, or is torn there.
        let passes = maps.last().is_some_and(|map| map.exit == Exit::Through);
        return Err(if passes { Doubt::Opaque } else { Doubt::Gap });
    }
    if opaque {
        return Err(Doubt::Opaque);
    }
    decode_span(first, trailing, &bytes, maps)
}

fn decode_span(first: &SegmentMap, trailing: &Trailing, bytes: &[u8], maps: &[&SegmentMap]) -> Result<Changes, Doubt> {
    let header = Header::parse(bytes).ok_or(Doubt::RecordLength)?;
    let length = header.total as usize;
    if header.total != trailing.total || length != bytes.len() || header.total > LONGEST_RECORD {
        return Err(Doubt::RecordLength);
    }
    let body = bytes.get(HEADER_BYTES..).unwrap_or_default();
    if checksum(crc32c::crc32c(body), bytes) != header.checksum {
        return Err(Doubt::RecordChecksum);
    }
    // Where it is the first record of its segment, the join before this one has compared the link.
    let linked = match (&first.last_record, &first.first_record) {
        (Some(record), _) => header.previous == record.start,
        (None, Some(record)) => record.start == trailing.start && record.previous == header.previous,
        (None, None) => false,
    };
    if !linked {
        return Err(Doubt::PreviousLink);
    }
    let mut gather = Gather::default();
    let end = maps.last().map_or(trailing.start, |map| end_of_leading(map));
    decode(&mut gather, &header, bytes, end, first.segment.major)?;
    Ok(gather.finish(first.segment.start))
}

/// Where the record that leads into the segment ends.
fn end_of_leading(map: &SegmentMap) -> u64 {
    match &map.first_record {
        Some(record) => record.start,
        None => map.known_until(),
    }
}
