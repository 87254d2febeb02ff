//! WAL: each file as long as it says, and, where data is read, what it says it is.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::postgres::header::SegmentHeader;
use common::postgres::{SegmentName, SegmentNumber, SegmentSize, SystemId, TimelineHistory, TimelineId, WalName};
use common::repository::Repository;
use common::repository::wal::{self, Range, WalList, fetch_map, mapped_name, stored_name};
use common::storage::Key;

use crate::finding::{Finding, Findings, Weight, What};
use crate::share::Share;

/// Bytes of a segment that its header takes (`XLogLongPageHeaderData`).
const HEADER_BYTES: usize = 40;

/// How to check.
pub struct Check<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Takes what is found.
    pub findings: &'a Findings,
    /// What of the data is read.
    pub share: Option<Share>,
    /// How many files are looked at together.
    pub jobs: usize,
}

/// Segments that cannot be used.
pub type Bad = BTreeSet<(TimelineId, SegmentNumber)>;

impl Check<'_> {
    /// Checks every file of a system's WAL, folder by folder, so that memory stays flat. Says which segments cannot be used.
    ///
    /// # Errors
    /// What keeps the repository from being looked at.
    pub fn system(&self, system: SystemId, size: SegmentSize) -> Result<Bad> {
        let root = self.repository.keys().wal_of(system)?;
        let bad = Mutex::new(Bad::new());
        for folder in self.repository.store.children(Some(&root))? {
            let mut objects = Vec::new();
            self.repository
                .store
                .list(Some(&root.join(&folder)?), &mut |key, stat| {
                    objects.push((key, stat.size));
                    Ok(())
                })?;
            self.together(&objects, |key, bytes| {
                if let Some((timeline, number)) = self.file(system, size, key, bytes)? {
                    let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                    bad.insert((timeline, number));
                }
                Ok(())
            })?;
        }
        Ok(bad.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn together(&self, objects: &[(Key, u64)], work: impl Fn(&Key, u64) -> Result<()> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None::<Error>);
        let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        let run = || {
            while let Some((key, size)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                if lock().is_some() || interrupt::caught().is_some() {
                    return;
                }
                if let Err(error) = work(key, *size) {
                    *lock() = Some(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.jobs.clamp(1, objects.len().max(1)) {
                scope.spawn(run);
            }
            run();
        });
        interrupt::check()?;
        failed
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    /// Checks one object; a segment that cannot be used is returned.
    fn file(
        &self,
        system: SystemId,
        size: SegmentSize,
        key: &Key,
        bytes: u64,
    ) -> Result<Option<(TimelineId, SegmentNumber)>> {
        let map = mapped_name(key.name());
        let Some(name) = map.map(WalName::Segment).or_else(|| stored_name(key.name())) else {
            let means = "nothing reads it: somebody put it there";
            self.findings.add(
                Finding::damage(What::Foreign, key.to_string(), "it is foreign", means),
                None,
            );
            return Ok(None);
        };
        let outcome = self.look(system, size, &name, map, key, bytes);
        let error = match outcome {
            Ok(()) => return Ok(None),
            Err(error) => error,
        };
        let (what, kind) = match error.kind() {
            Kind::Transient => return Err(error),
            Kind::Corrupt | Kind::Refused if bytes == 0 => (What::Size, Weight::Damage),
            Kind::Refused => (What::Swapped, Weight::Damage),
            Kind::Corrupt if is_size(&error) => (What::Size, Weight::Damage),
            Kind::Corrupt => (What::Content, Weight::Damage),
            // It went while we looked: a prune.
            Kind::NotFound => return Ok(None),
            _ => (What::Unknown, Weight::Unchecked),
        };
        let means = match (map, &name) {
            (Some(_), _) => "incremental backups read more; recovery does not need it",
            (_, WalName::Segment(_)) => "recovery cannot pass it",
            (_, WalName::History { .. }) => "recovery cannot follow this timeline",
            _ => "it is not needed for recovery",
        };
        let finding = Finding::damage(what, key.to_string(), chain(&error), means).weighing(kind);
        self.findings.add(finding, (kind == Weight::Damage).then_some(key));
        Ok(match (map, name) {
            (None, WalName::Segment(segment)) => segment.number(size).map(|number| (segment.timeline, number)),
            _ => None,
        })
    }

    fn look(
        &self,
        system: SystemId,
        size: SegmentSize,
        name: &WalName,
        map: Option<SegmentName>,
        key: &Key,
        bytes: u64,
    ) -> Result<()> {
        wal::descriptor(self.repository, key, bytes)?;
        if !self.share.is_some_and(|share| share.holds(key)) {
            return Ok(());
        }
        if let Some(segment) = map {
            // A map is compared with its segment, whose own damage is found elsewhere.
            if !self.is_whole(system, name)? {
                return Ok(());
            }
            return match fetch_map(self.repository, system, segment, size) {
                Ok(_) => Ok(()),
                // Its segment is not there, or no key opens it.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Config) => Ok(()),
                Err(error) => Err(error),
            };
        }
        let mut head = Head(Vec::new());
        match wal::fetch(self.repository, system, name, &mut head) {
            Ok(_) => says_its_name(name, system, &head.0),
            Err(error) if error.kind() == Kind::Config => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Check<'_> {
    /// Whether a segment is there, as long as it says.
    fn is_whole(&self, system: SystemId, name: &WalName) -> Result<bool> {
        let key = self.repository.keys().wal(system, name, self.repository.suffix()?)?;
        let Some(stat) = self.repository.store.stat(&key)? else {
            return Ok(false);
        };
        match wal::descriptor(self.repository, &key, stat.size) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_size(error: &Error) -> bool {
    chain(error).contains(" bytes, and its descriptor says ")
}

/// Whether the content is what the name says: a file under another one's name has sound digests.
fn says_its_name(name: &WalName, system: SystemId, head: &[u8]) -> Result<()> {
    match name {
        WalName::Segment(_) | WalName::Partial(_) => SegmentHeader::parse(head)?.agrees_with(name, system),
        WalName::History { timeline } => TimelineHistory::parse(*timeline, head).map(drop),
        WalName::Backup { .. } => Ok(()),
    }
}

/// Keeps the first bytes of what passes; of a history all that matters.
struct Head(Vec<u8>);

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // A history of thousands of timelines is longer than a header.
        let limit = HEADER_BYTES.max(64 << 10);
        let room = limit.saturating_sub(self.0.len()).min(bytes.len());
        self.0.extend_from_slice(bytes.get(..room).unwrap_or_default());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What can be used of a list.
pub fn without(list: &WalList, bad: &Bad) -> WalList {
    let mut good = list.clone();
    good.ranges.clear();
    for range in &list.ranges {
        let mut first = range.first;
        let inside = bad.range((range.timeline, range.first)..=(range.timeline, range.last));
        for (_, number) in inside {
            if first < *number {
                good.ranges.push(Range {
                    timeline: range.timeline,
                    first,
                    last: SegmentNumber(number.0 - 1),
                });
            }
            first = number.next();
        }
        if first <= range.last {
            good.ranges.push(Range { first, ..*range });
        }
    }
    good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bad_cuts_a_range_in_two() {
        let range = |first, last| Range {
            timeline: TimelineId(1),
            first: SegmentNumber(first),
            last: SegmentNumber(last),
        };
        let cut = |bad: &[u64]| {
            let list = WalList {
                ranges: vec![range(3, 8), range(11, 11)],
                ..WalList::default()
            };
            let bad = bad
                .iter()
                .map(|number| (TimelineId(1), SegmentNumber(*number)))
                .collect();
            without(&list, &bad).ranges
        };
        assert_eq!(cut(&[]), [range(3, 8), range(11, 11)]);
        assert_eq!(cut(&[5]), [range(3, 4), range(6, 8), range(11, 11)]);
        assert_eq!(cut(&[3, 4, 8]), [range(5, 7), range(11, 11)]);
        assert_eq!(cut(&[3, 4, 5, 6, 7, 8, 11]), []);
    }
}
