//! Whether a file that is not in a repository lies behind the end of the archive, or in a hole of it.
//!
//! PostgreSQL opens the database where restore_command says "absent", so one lost directory or object in the middle
//! would cost everything behind it. Absence is therefore proven only if nothing that the repository shows speaks against
//! it. Only names are read: those of the segment's own directory, and those behind it until one counts.
//!
//! A segment before the oldest that is stored is a hole as well: recovery that needs it cannot do without, and a
//! directory that is lost during recovery looks just like that.

use common::config::Config;
use common::error::{Error, Kind, Result};
use common::postgres::{Lsn, SegmentName, TimelineHistory, TimelineId, WalName};
use common::repository::wal::{self, stored_name};
use common::repository::{Repository, events::KnownSystem};
use common::storage::Key;

use crate::call::Call;

/// What is looked at, and for whom.
pub struct Search<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// Whose.
    pub call: &'a Call,
    /// For the histories that this host knows.
    pub config: &'a Config,
    /// The kind of error that a hole is: a segment that is stored before an earlier one may be a moment's matter.
    pub hole: Kind,
}

/// A directory of segments: `wal/<system>/<16 hex>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Shelf {
    timeline: TimelineId,
    log: u32,
}

impl Shelf {
    fn parse(name: &str) -> Option<Self> {
        let first: SegmentName = format!("{name}00000000").parse().ok()?;
        let (timeline, log) = (first.timeline, first.log);
        Some(Self { timeline, log })
    }

    fn of(segment: SegmentName) -> Self {
        let (timeline, log) = (segment.timeline, segment.log);
        Self { timeline, log }
    }

    fn name(self) -> String {
        format!("{}{:08X}", self.timeline, self.log)
    }
}

/// The segment that an object with this name is, is a part of, or marks.
///
/// A map proves nothing: it is stored before its segment, and a server that died in between leaves one. Recovery after that very
/// disaster must find its end.
fn segment_of(name: &str) -> Option<SegmentName> {
    stored_name(name)?.segment()
}

/// The first of the names that proves a segment of the same timeline behind `asked`.
fn first_behind(names: &[String], asked: SegmentName) -> Option<SegmentName> {
    let behind = |segment: &SegmentName| (segment.log, segment.segment) > (asked.log, asked.segment);
    let segments = names.iter().filter_map(|name| segment_of(name));
    segments
        .filter(|segment| segment.timeline == asked.timeline && behind(segment))
        .min()
}

impl Search<'_> {
    /// Shows that nothing speaks against the absence of `name`, which the store does not have.
    ///
    /// # Errors
    /// What speaks against it, or keeps us from looking; never to be read as "absent".
    pub fn prove_absent(&self, name: &WalName, known: KnownSystem) -> Result<()> {
        let shelves = self.shelves()?;
        match name {
            WalName::Segment(segment) => self.prove_segment_absent(*segment, &shelves)?,
            WalName::History { timeline } => self.prove_history_absent(*timeline, &shelves)?,
            // PostgreSQL asks for none of these.
            WalName::Partial(_) | WalName::Backup { .. } => {}
        }
        if known.held_wal && !self.shows_any(&shelves)? {
            let folder = self.repository.keys().wal_of(self.call.system)?;
            let place = self.repository.store.describe(Some(&folder));
            let message = format!(
                "repository \"{}\" has held WAL of this cluster, and {place} shows none",
                self.repository.name
            );
            return Err(Error::new(self.hole, message).hint(
                "is wal/ or a directory in it a file system of its own that is not mounted, or was it moved away? nothing \
                 was found out about the WAL",
            ));
        }
        Ok(())
    }

    fn prove_segment_absent(&self, asked: SegmentName, shelves: &[Shelf]) -> Result<()> {
        let here = self.beside(asked, shelves)?;
        let own = WalName::Segment(asked);
        if here.iter().any(|name| stored_name(name) == Some(own)) {
            return Err(self.something_else(&own)?);
        }
        let later = match self.later(asked, &here, shelves)? {
            Some(later) if self.began_by_then(asked) => Some(later),
            _ => self.later_elsewhere(asked, shelves)?,
        };
        match later {
            Some(later) => Err(self.gap(asked, later)),
            None => Ok(()),
        }
    }

    /// The next segment of the same timeline.
    fn later(&self, asked: SegmentName, here: &[String], shelves: &[Shelf]) -> Result<Option<SegmentName>> {
        if let Some(later) = first_behind(here, asked) {
            return Ok(Some(later));
        }
        for shelf in shelves {
            if shelf.timeline == asked.timeline && shelf.log > asked.log {
                let later = first_behind(&self.names(*shelf)?, asked);
                if later.is_some() {
                    return Ok(later);
                }
            }
        }
        Ok(None)
    }

    /// Whether the timeline was there at this segment: before, it has none, and nobody need miss it.
    fn began_by_then(&self, asked: SegmentName) -> bool {
        let begin = (self.history(asked.timeline).ok()).and_then(|history| history.begin(asked.timeline));
        // What is not known does not excuse a hole.
        begin.zip(self.end(asked)).is_none_or(|(begin, end)| begin < end)
    }

    /// The position behind a segment.
    fn end(&self, segment: SegmentName) -> Option<Lsn> {
        let size = self.call.segment_size;
        segment.next(size).and_then(|next| next.start(size))
    }

    /// The first segment of a timeline that descends from the asked one behind the whole of this segment.
    fn later_elsewhere(&self, asked: SegmentName, shelves: &[Shelf]) -> Result<Option<SegmentName>> {
        let Some(end) = self.end(asked) else { return Ok(None) };
        let mut younger: Vec<TimelineId> = shelves.iter().map(|shelf| shelf.timeline).collect();
        younger.dedup();
        younger.retain(|timeline| *timeline > asked.timeline);
        for timeline in younger.into_iter().rev() {
            let there = SegmentName { timeline, ..asked };
            let Some(later) = self.later(there, &self.beside(there, shelves)?, shelves)? else {
                continue;
            };
            let history = self.history(timeline)?;
            let (begin, left) = (history.begin(asked.timeline), history.switch_point(asked.timeline));
            // Where the asked timeline was left within this segment, a whole one need never have been.
            if begin.is_some_and(|begin| begin < end) && left.is_some_and(|left| end <= left) {
                return Ok(Some(later));
            }
        }
        Ok(None)
    }

    fn prove_history_absent(&self, timeline: TimelineId, shelves: &[Shelf]) -> Result<()> {
        for shelf in shelves.iter().filter(|shelf| shelf.timeline == timeline) {
            if let Some(segment) = self.names(*shelf)?.iter().find_map(|name| segment_of(name)) {
                let message = format!(
                    "repository \"{}\" holds WAL of timeline {}, such as {segment}, and not its history",
                    self.repository.name, timeline.0
                );
                return Err(Error::new(self.hole, message).hint(
                    "PostgreSQL would take the timeline for one that never was: put the history back, from another \
                     repository or the pg_wal of a server that has it",
                ));
            }
        }
        Ok(())
    }

    /// The history of a timeline: as this host knows it, else as the repository has it.
    fn history(&self, timeline: TimelineId) -> Result<TimelineHistory> {
        if timeline == TimelineId(1) {
            return Ok(TimelineHistory::root(timeline));
        }
        let name = WalName::History { timeline };
        if let Some(known) = self.call.known_history(self.config, &name) {
            return TimelineHistory::parse(timeline, &known);
        }
        let mut content = Vec::new();
        wal::fetch(self.repository, self.call.system, &name, &mut content)
            .and_then(|_| TimelineHistory::parse(timeline, &content))
            .map_err(|error| match error.kind() {
                // It is not the file that was asked for.
                Kind::NotFound => error.with_kind(Kind::Failed),
                _ => error,
            })
            .map_err(|error| error.context(format!("find out which WAL timeline {} goes back to", timeline.0)))
    }

    /// The directories of segments, in the order of their names.
    fn shelves(&self) -> Result<Vec<Shelf>> {
        let folder = self.repository.keys().wal_of(self.call.system)?;
        let names = self.repository.store.children(Some(&folder))?;
        let mut shelves: Vec<Shelf> = names.iter().filter_map(|name| Shelf::parse(name)).collect();
        shelves.sort_unstable();
        Ok(shelves)
    }

    /// What is in a segment's directory.
    fn beside(&self, segment: SegmentName, shelves: &[Shelf]) -> Result<Vec<String>> {
        match shelves.contains(&Shelf::of(segment)) {
            true => self.names(Shelf::of(segment)),
            false => Ok(Vec::new()),
        }
    }

    fn names(&self, shelf: Shelf) -> Result<Vec<String>> {
        let folder: Key = self.repository.keys().wal_of(self.call.system)?.join(&shelf.name())?;
        self.repository.store.children(Some(&folder))
    }

    fn shows_any(&self, shelves: &[Shelf]) -> Result<bool> {
        for shelf in shelves.iter().rev() {
            if self.names(*shelf)?.iter().any(|name| segment_of(name).is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Its name is there, though it was not a moment ago.
    fn something_else(&self, name: &WalName) -> Result<Error> {
        let repository = self.repository;
        let key = repository.keys().wal(self.call.system, name, repository.suffix()?)?;
        let place = repository.store.describe(Some(&key));
        Ok(match repository.store.stat(&key)? {
            Some(_) => Error::new(Kind::Transient, format!("{place} has appeared just now")),
            None => Error::new(Kind::Refused, format!("what has the name {place} is no object"))
                .hint("somebody put it there: objects are files. If the segment is lost, see whether another repository has it"),
        })
    }

    fn gap(&self, asked: SegmentName, later: SegmentName) -> Error {
        let name = &self.repository.name;
        let message =
            format!("repository \"{name}\" has a gap: {later} is there, and {asked}, which lies before, is not");
        Error::new(self.hole, message).hint(
            "it is not the end of the WAL, so recovery must not end here: is a file system missing? put the file back, or \
             push it again from a pg_wal that has it; else recover to a moment before it (pgkeep-info shows each GAP)",
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn behind(names: &[&str]) -> Option<String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let asked = "000000020000000100000004".parse().unwrap();
        first_behind(&names, asked).map(|found| found.to_string())
    }

    #[test]
    fn a_later_file_of_the_timeline_counts_in_whatever_form() {
        for name in [
            "000000020000000100000005.zst",
            "000000020000000100000005.zst.age",
            "000000020000000100000005.partial.zst",
            "000000020000000100000005.00000028.backup.zst",
        ] {
            let found = behind(&["000000020000000100000003.zst", name]);
            assert_eq!(found.as_deref(), Some("000000020000000100000005"), "{name}");
        }
        assert_eq!(
            behind(&["000000020000000200000000.zst", "000000020000000100000009.zst"]).as_deref(),
            Some("000000020000000100000009")
        );
    }

    #[test]
    fn what_lies_before_or_at_the_segment_or_elsewhere_does_not() {
        let names = [
            "000000020000000100000003.zst",
            "000000020000000100000004.partial.zst",
            "000000020000000100000004.map.zst",
            "000000020000000100000005.map.zst",
            "000000020000000100000004.00000028.backup.zst",
            "000000010000000100000005.zst",
            "000000020000000100000005",
            "README",
        ];
        assert_eq!(behind(&names), None);
    }

    #[test]
    fn only_the_names_of_segment_directories_are_shelves() {
        let shelf = Shelf::parse("0000000200000A3F").unwrap();
        assert_eq!((shelf.timeline, shelf.log), (TimelineId(2), 0xA3F));
        assert_eq!(shelf.name(), "0000000200000A3F");
        for name in ["history", "stream", "0000000200000a3f", "0000000200000A3", ""] {
            assert_eq!(Shelf::parse(name), None, "{name}");
        }
    }
}
