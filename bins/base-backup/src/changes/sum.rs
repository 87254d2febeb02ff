//! Adds up the maps of one stretch of WAL, or says why they prove nothing.

use std::ops::RangeInclusive;

use common::error::chain;
use common::postgres::walmap::{Changes, Doubt, FullReason, SegmentMap, join};
use common::postgres::{Lsn, SegmentNumber};

use super::Changed;

/// Where maps come from.
pub trait Maps {
    /// The map of a segment along this server's history.
    ///
    /// # Errors
    /// Why there is none.
    fn map(&mut self, number: SegmentNumber) -> Result<SegmentMap, String>;

    /// The map again, made anew with the fragments of records that cross the segment's ends, however long they are.
    ///
    /// # Errors
    /// Why that cannot be done.
    fn scan_whole(&mut self, number: SegmentNumber) -> Result<SegmentMap, String>;
}

/// Why maps do not say what changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// A map is missing. Something else may know.
    Missing(String),
    /// What is known of the WAL says that nothing may be concluded from it.
    Told(String),
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(why) | Self::Told(why) => to.write_str(why),
        }
    }
}

impl From<String> for Unknown {
    fn from(why: String) -> Self {
        Self::Told(why)
    }
}

/// Adds up what all records in these segments say, of which the last need be known only up to `to`.
///
/// # Errors
/// Why it is not known what they say: a gap, damage, something not understood, or a record after which nothing is certain.
pub fn add_up(maps: &mut dyn Maps, numbers: RangeInclusive<SegmentNumber>, to: Lsn) -> Result<Changed, Unknown> {
    let (first, last) = (numbers.start().0, numbers.end().0);
    let mut changed = Changed::default();
    let mut before: Option<SegmentMap> = None;
    for number in (first..=last).map(SegmentNumber) {
        let map = maps.map(number).map_err(Unknown::Missing)?;
        if let Some(before) = before {
            take(&mut changed, &between(maps, &before, &map, number, to)?)?;
        }
        let known = map.known_until();
        if number.0 < last && !map.reaches_end() || number.0 == last && known < to.0 {
            return Err(Unknown::Told(match &map.exit {
                common::postgres::walmap::Exit::Incomplete { lsn, doubt } => not_understood(*lsn, *doubt),
                _ => format!("WAL ends at {}", Lsn(known)),
            }));
        }
        take(&mut changed, &map.changes)?;
        before = Some(map);
    }
    match before {
        Some(_) => Ok(changed),
        None => Err(Unknown::Told("there is no WAL between the two backups".to_owned())),
    }
}

/// What the record between two segments says.
fn between(
    maps: &mut dyn Maps,
    before: &SegmentMap,
    map: &SegmentMap,
    number: SegmentNumber,
    to: Lsn,
) -> Result<Changes, String> {
    let mut joined = join(before, map).map_err(|error| chain(&error))?;
    if let Some((_, Doubt::Opaque)) = joined.incomplete {
        let before = maps.scan_whole(SegmentNumber(number.0.saturating_sub(1)))?;
        let map = maps.scan_whole(number)?;
        joined = join(&before, &map).map_err(|error| chain(&error))?;
    }
    match joined.incomplete {
        // What begins at or after the end of the stretch is replayed anyway.
        Some((lsn, doubt)) if lsn < to.0 => Err(not_understood(lsn, doubt)),
        _ => Ok(joined.changes),
    }
}

fn take(changed: &mut Changed, changes: &Changes) -> Result<(), String> {
    // Only the first record of each kind is named, so one before the stretch may hide one that is in it.
    if let Some(reason) = changes.needs_full.first() {
        let why = describe(reason.reason);
        return Err(format!("before {} {why}", Lsn(reason.lsn)));
    }
    changed.add(changes);
    Ok(())
}

fn describe(reason: FullReason) -> &'static str {
    match reason {
        FullReason::SpecialRecord => "a record changed files in a way of its own",
        FullReason::MinimalWal => "wal_level was minimal, so changes may be missing in WAL",
        FullReason::ChecksumState => "the state of data checksums changed",
        FullReason::Undecodable => "a record holds something unknown",
        FullReason::RecordTooLong => "a record that matters was too long to be kept",
    }
}

fn not_understood(lsn: u64, doubt: Doubt) -> String {
    format!("WAL is not understood from {} on: {}", Lsn(lsn), doubt.describe())
}

#[cfg(test)]
#[path = "sum_tests.rs"]
mod tests;
