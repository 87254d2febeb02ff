//! Which WAL stays: decided for any segment from the backups that stay.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::Result;
use crate::postgres::{SegmentName, SegmentNumber, SegmentSize, TimelineId, WalName};
use crate::repository::Label;
use crate::repository::backup::BackupInfo;
use crate::repository::wal::Range;

/// Why a segment stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// There is no good backup that could say what is needed.
    Unknown,
    /// Any moment from this backup on can be recovered.
    Window(Label),
    /// It makes this backup consistent.
    Consistent(Label),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("nothing says what is not needed: no retention, no good backup of this system, or one that cannot be read"),
            Self::Window(label) => write!(f, "any moment since {label} can be recovered"),
            Self::Consistent(label) => write!(f, "it makes {label} consistent"),
        }
    }
}

/// What is needed of one system's WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// Everything stays.
    all: bool,
    /// From these segments on everything stays, on the backup's timeline and those that may descend from it.
    from: Vec<(TimelineId, SegmentNumber, Label)>,
    /// These stay by themselves.
    spans: Vec<(TimelineId, SegmentNumber, SegmentNumber, Label)>,
}

impl Needed {
    /// Everything stays.
    pub fn all() -> Self {
        Self {
            all: true,
            from: Vec::new(),
            spans: Vec::new(),
        }
    }

    /// What the backups of one system that stay need; each with whether all WAL behind its start stays with it.
    ///
    /// # Errors
    /// `Corrupt` if a backup says something impossible.
    pub fn by<'a>(kept: impl Iterator<Item = (&'a BackupInfo, bool)>) -> Result<Self> {
        let mut needed = Self {
            all: false,
            from: Vec::new(),
            spans: Vec::new(),
        };
        for (backup, window) in kept {
            let size = backup.wal_segment_size()?;
            let first = SegmentNumber::containing(backup.start_lsn, size);
            let last = SegmentNumber::ending_at(backup.stop_lsn, size).max(first);
            let timeline = backup.timeline();
            needed.spans.push((timeline, first, last, backup.label));
            if window {
                needed.from.push((timeline, first, backup.label));
            }
        }
        Ok(needed)
    }

    /// Whether nothing of the system is needed, its histories neither.
    pub fn is_nothing(&self) -> bool {
        !self.all && self.from.is_empty() && self.spans.is_empty()
    }

    /// Why a segment stays; `None`: it goes.
    pub fn why(&self, timeline: TimelineId, number: SegmentNumber) -> Option<Why> {
        if self.all {
            return Some(Why::Unknown);
        }
        // A timeline that may descend from the backup's has a higher number.
        let window = self
            .from
            .iter()
            .find(|(from, first, _)| *from <= timeline && *first <= number);
        let span = || {
            let holds = |(at, first, last, _): &&(TimelineId, SegmentNumber, SegmentNumber, Label)| {
                *at == timeline && (*first..=*last).contains(&number)
            };
            self.spans.iter().find(holds).map(|(.., label)| Why::Consistent(*label))
        };
        window.map(|(.., label)| Why::Window(*label)).or_else(span)
    }

    /// Cuts a range of segments where the answer changes.
    pub fn cut(&self, range: &Range) -> Vec<(Range, Option<Why>)> {
        let mut cuts: BTreeMap<u64, ()> = BTreeMap::from([(range.first.0, ())]);
        let points = self.from.iter().map(|(_, first, _)| first.0);
        let ends = self.spans.iter().flat_map(|(_, first, last, _)| [first.0, last.0 + 1]);
        for point in points
            .chain(ends)
            .filter(|at| (range.first.0..=range.last.0).contains(at))
        {
            cuts.insert(point, ());
        }
        let mut cut: Vec<(Range, Option<Why>)> = Vec::new();
        let starts: Vec<u64> = cuts.into_keys().collect();
        for (at, start) in starts.iter().enumerate() {
            let last = starts.get(at + 1).map_or(range.last.0, |next| next - 1);
            let why = self.why(range.timeline, SegmentNumber(*start));
            match cut.last_mut() {
                Some((before, same)) if *same == why => before.last = SegmentNumber(last),
                _ => cut.push((
                    Range {
                        timeline: range.timeline,
                        first: SegmentNumber(*start),
                        last: SegmentNumber(last),
                    },
                    why,
                )),
            }
        }
        cut
    }

    /// Whether a WAL file stays. Histories and backup history files stay while anything of their system does.
    pub fn keeps(&self, name: &WalName, size: SegmentSize) -> bool {
        let of = |segment: &SegmentName| match segment.number(size) {
            Some(number) => self.why(segment.timeline, number).is_some(),
            // It is none of this system's segments: not ours to judge.
            None => true,
        };
        match name {
            WalName::Segment(segment) | WalName::Partial(segment) => of(segment),
            _ => !self.is_nothing(),
        }
    }
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
