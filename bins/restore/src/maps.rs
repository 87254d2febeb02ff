//! What the maps of WAL segments are asked, and what they say together. Pure.
//!
//! Promises that "absent" is said only where every map of the stretch could be read and the segments fit together: what
//! one of them does not know makes the answer unknown, never no. Leaves reading them to [`crate::archived`].

use std::collections::VecDeque;

use common::error::chain;
use common::postgres::walmap::{Changes, Doubt, Exit, Moment, SegmentMap, join};
use common::postgres::{Lsn, SegmentNumber, TimelineId};
use common::time::UtcTime;

use common::repository::reach::Walk;

/// So many restore points are named where one is not found.
const NAMED: usize = 5;
/// So many segments at the end of WAL without a usable map, and the search for the last commit is given up.
const GIVE_UP: u32 = 16;

/// Something that the maps of WAL segments know the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// The end of a transaction.
    Xid(u32),
    /// A named restore point.
    Name(&'a str),
}

/// Where something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The end of the record.
    pub lsn: Lsn,
    /// Its time, if a clock can have shown it.
    pub time: Option<UtcTime>,
}

/// What the maps say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// It was not found, and for this reason may be there all the same.
    Unknown(String),
    /// It is surely not in the WAL that was asked about, which holds this.
    Absent(There),
    /// It is here, in the order of WAL; PostgreSQL stops at the first that it meets.
    At(Vec<Place>),
}

/// What a stretch of WAL holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct There {
    /// How many restore points.
    pub points: u64,
    /// The last few of them.
    pub last_points: VecDeque<(String, Option<UtcTime>)>,
    /// The one whose name comes nearest to the wanted one, and how far it is.
    pub nearest: Option<(usize, String)>,
    /// How many transactions end.
    pub transactions: u64,
    /// The smallest and the largest of their numbers.
    pub xids: Option<(u32, u32)>,
}

/// How the WAL of a walk ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// The time of the last commit or abort that is known: PostgreSQL stops at either.
    pub last_commit: Option<UtcTime>,
    /// The latest time that any record shows.
    pub seen: Option<UtcTime>,
    /// Where the last record begins that lies wholly in the last segment.
    pub last_record: Option<Lsn>,
    /// Where WAL ends within the last segment: nothing, or what an older use of the file left, follows.
    pub end: Option<Lsn>,
    /// Why there may be a later commit; without it, there is none.
    pub unknown: Option<String>,
}

/// Answers from the maps of the segments along a walk.
pub trait Maps {
    /// Looks for a transaction or restore point.
    fn find(&self, wanted: Wanted<'_>, walk: &Walk) -> Lookup;
    /// Looks for the last commit.
    fn ending(&self, walk: &Walk) -> Ending;
    /// The first commit behind `from` in this segment or the few that follow it, if one is known.
    fn first_commit(&self, timeline: TimelineId, segment: SegmentNumber, from: Lsn) -> Option<UtcTime>;
}

/// The time of the first commit or abort behind `from` that a map lists.
pub fn first_commit(map: &SegmentMap, from: Lsn) -> Option<UtcTime> {
    let transactions = &map.changes.transactions;
    let ends = transactions.ends.iter().filter(|end| end.lsn > from.0);
    let first = ends.min_by_key(|end| end.lsn)?;
    place(first.lsn, first.time).time
}

/// The map of a segment, or why there is none.
pub type Read = Result<SegmentMap, String>;

/// A search through the maps of successive segments, one after the other.
pub struct Search<'w> {
    wanted: Wanted<'w>,
    before: Option<SegmentMap>,
    found: Vec<Place>,
    doubts: u64,
    first_doubt: Option<String>,
    there: There,
}

impl<'w> Search<'w> {
    /// Begins.
    pub fn new(wanted: Wanted<'w>) -> Self {
        Self {
            wanted,
            before: None,
            found: Vec::new(),
            doubts: 0,
            first_doubt: None,
            there: There::default(),
        }
    }

    /// Takes the next segment.
    pub fn segment(&mut self, map: Read) {
        let before = self.before.take();
        let map = match map {
            Ok(map) => map,
            Err(why) => return self.doubt(why),
        };
        if let Some(before) = before {
            match join(&before, &map) {
                Ok(joined) => {
                    self.look(&joined.changes);
                    if let Some((lsn, doubt)) = joined.incomplete.filter(|(_, doubt)| self.matters(*doubt)) {
                        self.doubt(not_understood(lsn, doubt));
                    }
                }
                Err(error) => self.doubt(chain(&error)),
            }
        }
        self.look(&map.changes);
        if let Exit::Incomplete { lsn, doubt } = &map.exit {
            self.doubt(not_understood(*lsn, *doubt));
        }
        self.before = Some(map);
    }

    /// The answer.
    pub fn finish(self) -> Lookup {
        if !self.found.is_empty() {
            return Lookup::At(self.found);
        }
        match (self.first_doubt, self.doubts) {
            (None, _) => Lookup::Absent(self.there),
            (Some(why), 1) => Lookup::Unknown(why),
            (Some(why), doubts) => Lookup::Unknown(format!("{why}, and {} more like it", doubts - 1)),
        }
    }

    /// A record that is too long to be kept is no restore point, whose records are short.
    fn matters(&self, doubt: Doubt) -> bool {
        doubt != Doubt::Opaque || matches!(self.wanted, Wanted::Xid(_))
    }

    fn doubt(&mut self, why: String) {
        self.doubts += 1;
        self.first_doubt.get_or_insert(why);
    }

    fn look(&mut self, changes: &Changes) {
        let transactions = &changes.transactions;
        self.there.transactions += transactions.count;
        if let Some((low, high)) = transactions.xids {
            let (least, most) = self.there.xids.unwrap_or((low, high));
            self.there.xids = Some((least.min(low), most.max(high)));
        }
        match self.wanted {
            Wanted::Xid(xid) => {
                let ends = transactions.ends.iter().filter(|end| end.xid == xid);
                let mut places: Vec<Place> = ends.map(|end| place(end.lsn, end.time)).collect();
                places.sort_by_key(|place| place.lsn);
                let range = transactions.xids.is_some_and(|(low, high)| (low..=high).contains(&xid));
                if places.is_empty() && transactions.truncated && range {
                    self.doubt("a segment holds more transactions than its map lists".to_owned());
                }
                self.found.extend(places);
            }
            Wanted::Name(name) => {
                let named = changes.restore_points.iter().filter(|point| point.name == name);
                self.found.extend(named.map(|point| place(point.lsn, point.time)));
            }
        }
        for point in &changes.restore_points {
            self.there
                .note(&point.name, place(point.lsn, point.time).time, self.wanted);
        }
    }
}

impl There {
    fn note(&mut self, name: &str, time: Option<UtcTime>, wanted: Wanted<'_>) {
        self.points += 1;
        if self.last_points.len() == NAMED {
            self.last_points.pop_front();
        }
        self.last_points.push_back((name.to_owned(), time));
        if let Wanted::Name(wanted) = wanted {
            let distance = strsim::osa_distance(&name.to_lowercase(), &wanted.to_lowercase());
            let near = distance <= 1 + wanted.chars().count() / 4;
            if near && self.nearest.as_ref().is_none_or(|(best, _)| distance <= *best) {
                self.nearest = Some((distance, name.to_owned()));
            }
        }
    }
}

/// A search for the last commit, from the last segment backwards.
#[derive(Default)]
pub struct Backwards {
    later: Option<SegmentMap>,
    ending: Ending,
    segments: u32,
    unread: u32,
}

impl Backwards {
    /// Takes the segment before; says whether the one before that is needed.
    ///
    /// One segment more than the one with the last commit is read, since WAL is not quite in the order of time.
    pub fn segment(&mut self, map: Read) -> bool {
        let known = self.ending.last_commit.is_some();
        let later = self.later.take();
        self.segments += 1;
        let map = match map {
            Ok(map) => map,
            Err(why) => {
                self.unread += 1;
                self.doubt(known, why);
                return !known && self.unread < GIVE_UP;
            }
        };
        if self.segments == 1 {
            self.ending.last_record = map.last_record.map(|record| Lsn(record.start));
            if let Exit::Ended { lsn } = map.exit {
                self.ending.end = Some(Lsn(lsn));
            }
        }
        if let Some(later) = later {
            match join(&map, &later) {
                Ok(joined) => {
                    if let Some((lsn, doubt)) = joined.incomplete {
                        self.doubt(known, not_understood(lsn, doubt));
                    }
                    self.look(&joined.changes);
                }
                Err(error) => self.doubt(known, chain(&error)),
            }
        }
        if let Exit::Incomplete { lsn, doubt } = &map.exit {
            self.doubt(known, not_understood(*lsn, *doubt));
        }
        self.look(&map.changes);
        self.later = Some(map);
        !known
    }

    /// The answer.
    pub fn finish(self) -> Ending {
        self.ending
    }

    /// What is not known before a commit that is known does not hide a later one.
    fn doubt(&mut self, known: bool, why: String) {
        if !known {
            self.ending.unknown.get_or_insert(why);
        }
    }

    fn look(&mut self, changes: &Changes) {
        let time = |moment: &Moment| place(moment.lsn, moment.time).time;
        let commit = changes.transactions.latest.as_ref().and_then(time);
        let points = changes.restore_points.iter();
        let point = points.filter_map(|point| place(point.lsn, point.time).time).max();
        let ending = &mut self.ending;
        ending.last_commit = ending.last_commit.max(commit);
        ending.seen = ending.seen.max(commit).max(point);
    }
}

fn place(lsn: u64, time: i64) -> Place {
    Place {
        lsn: Lsn(lsn),
        time: UtcTime::from_pg_micros(time).ok(),
    }
}

fn not_understood(lsn: u64, doubt: Doubt) -> String {
    format!("WAL is not understood from {} on: {}", Lsn(lsn), doubt.describe())
}

#[cfg(test)]
#[path = "maps_tests.rs"]
mod tests;
