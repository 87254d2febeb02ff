//! Reads the maps that the repositories hold, several at once and a handful at a time. A map that cannot be read is an
//! answer ("unknown"), no error.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::error::chain;
use common::postgres::{SegmentName, SegmentNumber, SegmentSize, SystemId, TimelineId};
use common::repository::Repository;
use common::repository::reach::{Stretch, Walk};
use common::repository::wal::{self, WalList};

use crate::maps::{Backwards, Ending, Lookup, Maps, Read, Search, Wanted};

/// So many maps for each worker are in memory at once.
const AHEAD: usize = 4;

/// The maps of one system in the repositories that answer.
pub struct Archived<'a> {
    /// The repositories, in the order in which they are asked, and what they list.
    pub sources: &'a [(&'a Repository, WalList)],
    /// Whose WAL.
    pub system: SystemId,
    /// The size of a segment.
    pub size: SegmentSize,
    /// Number of workers.
    pub jobs: usize,
}

impl Maps for Archived<'_> {
    fn find(&self, wanted: Wanted<'_>, walk: &Walk) -> Lookup {
        let mut search = Search::new(wanted);
        let mut segments = forwards(&walk.there);
        loop {
            let some: Vec<_> = segments.by_ref().take(self.jobs.max(1) * AHEAD).collect();
            if some.is_empty() {
                return search.finish();
            }
            self.read(&some).into_iter().for_each(|map| search.segment(map));
        }
    }

    fn ending(&self, walk: &Walk) -> Ending {
        let mut search = Backwards::default();
        let mut segments = walk.there.iter().rev().flat_map(backwards);
        // The last one or two usually know: more are read at once only where they do not.
        let mut count = 2;
        loop {
            let some: Vec<_> = segments.by_ref().take(count).collect();
            let enough = self.read(&some).into_iter().any(|map| !search.segment(map));
            if enough || some.is_empty() {
                return search.finish();
            }
            count = self.jobs.max(1) * AHEAD;
        }
    }
}

type Segment = (TimelineId, SegmentNumber);

fn forwards(stretches: &[Stretch]) -> impl Iterator<Item = Segment> {
    stretches
        .iter()
        .flat_map(|one| (one.first.0..=one.last.0).map(|number| (one.timeline, SegmentNumber(number))))
}

fn backwards(one: &Stretch) -> impl Iterator<Item = Segment> + use<> {
    let timeline = one.timeline;
    (one.first.0..=one.last.0)
        .rev()
        .map(move |number| (timeline, SegmentNumber(number)))
}

impl Archived<'_> {
    /// The maps of these segments, in their order.
    fn read(&self, segments: &[Segment]) -> Vec<Read> {
        let workers = self.jobs.clamp(1, segments.len().max(1));
        if workers == 1 {
            return segments.iter().map(|segment| self.read_one(*segment)).collect();
        }
        let next = AtomicUsize::new(0);
        let found: Vec<Mutex<Option<Read>>> = segments.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((segment, slot)) = {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        segments.get(at).zip(found.get(at))
                    } {
                        let read = self.read_one(*segment);
                        *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(read);
                    }
                });
            }
        });
        found
            .into_iter()
            .map(|slot| {
                let read = slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                read.unwrap_or_else(|| Err("a map was not read".to_owned()))
            })
            .collect()
    }

    /// The map of one segment from the first repository that has a sound one, without what nobody asks for here.
    fn read_one(&self, (timeline, number): Segment) -> Read {
        let name = SegmentName::new(timeline, number, self.size);
        let mut why = None;
        for (repository, list) in self.sources {
            if !list.has_map(timeline, number) {
                continue;
            }
            match wal::fetch_map(repository, self.system, name, self.size) {
                Ok(mut map) => {
                    map.changes.relations = Vec::new();
                    map.changes.databases = Vec::new();
                    map.changes.tablespaces = Vec::new();
                    return Ok(map);
                }
                Err(error) => {
                    why.get_or_insert(chain(&error));
                }
            }
        }
        Err(why.unwrap_or_else(|| format!("no repository holds the map of WAL {name}")))
    }
}
