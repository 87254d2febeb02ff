//! Finds the branches of history that a plan leaves out, and whether leaving one may lose what nobody gave up. Pure.
//!
//! A branch that ended before the other one began was left on purpose, by a failover or a recovery to an earlier
//! moment: it is a note. One that was still written afterwards is another server's, perhaps the real one's: a restored
//! copy that archived has the higher timeline, and its production goes on with the lower. There no default is right,
//! and the plan is refused until the operator names a timeline. A branch without a record beyond that point is none, and a short one
//! whose commits are all older than the other one is what a crash left, whenever it was stored: a note.

use common::error::{Error, Kind, Result};
use common::postgres::{Lsn, SegmentName, SegmentNumber, TimelineHistory, TimelineId};
use common::repository::backup::BackupInfo;
use common::repository::reach::{Stretch, Walk, before};
use common::repository::wal::StoredTimes;
use common::time::UtcTime;
use serde::Serialize;

use crate::maps::Ending;
use crate::plan::{Judge, history, timelines};
use crate::target::{Target, Timeline};

/// What a primary that lost power had written and nobody had received is not longer than this, and may be archived whenever the host is
/// back: Patroni does so before it rewinds the server. One that lives writes on.
const TAIL_SEGMENTS: u64 = 2;

/// A branch of history beyond the point where it and another one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// Its timeline.
    pub timeline: u32,
    /// Where it and the branch that is followed part.
    pub fork_lsn: Lsn,
    /// When the branch that is followed began, if that is known.
    pub fork_time: Option<UtcTime>,
    /// Its last segment.
    pub last_segment: String,
    /// When that was stored.
    pub stored: Option<UtcTime>,
    /// Its last commit, if the maps know it.
    pub last_commit: Option<UtcTime>,
    /// Whether it was still written after the one that is followed had begun.
    pub alive: bool,
    /// All that in words.
    pub note: String,
}

/// Where two histories part, and the first timeline of `ours` that is new from there on.
fn fork(ours: &TimelineHistory, theirs: &TimelineHistory) -> Option<(Lsn, Option<TimelineId>)> {
    let path = |history: &TimelineHistory| -> Vec<(TimelineId, Option<Lsn>)> {
        let left = history.ancestors().iter();
        let left = left.map(|one| (one.timeline, Some(one.switch_point)));
        left.chain([(history.timeline(), None)]).collect()
    };
    let (ours, theirs) = (path(ours), path(theirs));
    let mut reached = Lsn(0);
    for (at, ((a, a_left), (b, b_left))) in ours.iter().zip(&theirs).enumerate() {
        if a != b {
            return Some((reached, Some(*a)));
        }
        if a_left != b_left {
            let point = [*a_left, *b_left].into_iter().flatten().min()?;
            return Some((point, ours.get(at + 1).map(|(id, _)| *id)));
        }
        reached = (*a_left)?;
    }
    None
}

impl Judge<'_> {
    /// The branches beyond which a plan along `ours` leads, those that are left by another one left out.
    pub fn branches(&self, ours: &TimelineHistory, backup: &BackupInfo, until: Option<Lsn>) -> Vec<Branch> {
        let others: Vec<TimelineHistory> = timelines(self.archive)
            .into_iter()
            .filter(|id| *id != ours.timeline())
            .filter_map(|id| history(self.archive, id))
            .collect();
        let goes_on = |id: TimelineId, last: SegmentNumber| {
            others.iter().any(|other| {
                let left = other.switch_point(id);
                left.is_some_and(|left| SegmentNumber::containing(left, self.archive.segment_size) >= last)
                    && fork(ours, other).is_some_and(|(point, _)| left.is_some_and(|left| left > point))
            })
        };
        others
            .iter()
            .filter_map(|theirs| {
                let (point, new) = fork(ours, theirs)?;
                let own = theirs.begin(theirs.timeline())?.max(point);
                let first = SegmentNumber::containing(own, self.archive.segment_size);
                let last = self.archive.wal.last(theirs.timeline()).filter(|last| *last >= first)?;
                if goes_on(theirs.timeline(), last) || !self.leads_beyond(point, ours, backup, until) {
                    return None;
                }
                let first = self.archive.wal.first_from(theirs.timeline(), first)?;
                let stretch = Stretch {
                    timeline: theirs.timeline(),
                    first,
                    last,
                };
                let ending = self.maps.ending(&Walk {
                    there: vec![stretch],
                    missing: None,
                });
                // A primary that was shut down and followed the next one archives the segment that holds the point when it leads
                // again, perhaps much later; its WAL ends where the other timeline begins.
                if ending.end.is_some_and(|end| end <= point) {
                    return None;
                }
                Some(self.branch(ours.timeline(), (point, new), stretch, &ending))
            })
            .collect()
    }

    fn branch(
        &self,
        ours: TimelineId,
        (point, new): (Lsn, Option<TimelineId>),
        stretch: Stretch,
        ending: &Ending,
    ) -> Branch {
        let stored = |id| self.archive.stored.get(&id).copied().unwrap_or_default();
        let theirs: StoredTimes = stored(stretch.timeline);
        let written = theirs.last.map(|(_, time)| time);
        let began = new.map(|id| (stored(id), self.first_commit(id, point)));
        // Times of one clock are compared: the store's with the store's, the servers' with the servers'.
        let (stored_first, first_commit) = began.map_or((None, None), |(ours, commit)| (first_stored(ours), commit));
        let later = |a: Option<UtcTime>, b: Option<UtcTime>| a.zip(b).is_some_and(|(a, b)| a > b);
        let commits = later(ending.last_commit, first_commit.or(stored_first));
        let stored_late = later(written, stored_first);
        let is_tail = ending.unknown.is_none() && stretch.last.0 - stretch.first.0 < TAIL_SEGMENTS;
        let mut branch = Branch {
            timeline: stretch.timeline.0,
            fork_lsn: point,
            fork_time: first_commit.or(stored_first),
            last_segment: SegmentName::new(stretch.timeline, stretch.last, self.archive.segment_size).to_string(),
            stored: written,
            last_commit: ending.last_commit,
            alive: commits || (stored_late && !is_tail),
            note: String::new(),
        };
        branch.note = self.note(ours, &branch);
        branch
    }

    /// The first commit of a timeline, if the maps of its first segments know one.
    fn first_commit(&self, id: TimelineId, from: Lsn) -> Option<UtcTime> {
        let number = SegmentNumber::containing(from, self.archive.segment_size);
        let first = self.archive.wal.first_from(id, number)?;
        self.maps.first_commit(id, first, from)
    }

    /// Whether a plan leads to, or may lead to, what lies beyond a point where branches part.
    fn leads_beyond(&self, point: Lsn, ours: &TimelineHistory, backup: &BackupInfo, until: Option<Lsn>) -> bool {
        if backup.stop_lsn > point {
            return true;
        }
        match (until, &self.request.target) {
            (Some(lsn), _) => lsn >= point,
            (None, Target::Time { time, .. }) => {
                // Recovery ends before the point if something was committed before it and after the target.
                let mut walk = self.walk(ours, backup, Some(before(point)));
                // The segment that holds the point holds what follows it, too.
                if let Some(last) = walk.there.pop().filter(|last| last.first < last.last) {
                    let last_number = SegmentNumber(last.last.0.saturating_sub(1));
                    walk.there.push(Stretch {
                        last: last_number,
                        ..last
                    });
                }
                let ending = self.maps.ending(&walk);
                ending.last_commit.is_none_or(|commit| commit <= *time)
            }
            _ => true,
        }
    }

    /// Refuses a choice that nobody made, where a branch that would be left out was still alive.
    pub fn check_branches(&self, ours: &TimelineHistory, branches: &[Branch]) -> Result<()> {
        let alive: Vec<&Branch> = branches.iter().filter(|branch| branch.alive).collect();
        let Some(first) = alive.first() else { return Ok(()) };
        if self.request.timeline != Timeline::Latest {
            return Ok(());
        }
        let (own, other) = (ours.timeline().0, first.timeline);
        let message = format!(
            "timelines {own} and {other} part at {}, and timeline {other} was still written after timeline {own} began: \
             its WAL beyond that would be left out",
            first.fork_lsn
        );
        let mut choices = vec![format!(
            "--target-timeline {own} ({}, and leaves the others out)",
            self.newest(ours.timeline())
        )];
        choices.extend(
            alive
                .iter()
                .map(|branch| format!("--target-timeline {} ({})", branch.timeline, newest(branch))),
        );
        Err(Error::new(Kind::Refused, message).hint(format!(
            "two servers archived at the same time, a restored copy and its production for instance: say whose data you \
             want, {}",
            choices.join(" or ")
        )))
    }

    fn newest(&self, id: TimelineId) -> String {
        let stored = self.archive.stored.get(&id).and_then(|times| times.last);
        let Some(last) = self.archive.wal.last(id) else {
            return "no WAL of its own".to_owned();
        };
        let walk = Walk {
            there: vec![Stretch {
                timeline: id,
                first: last,
                last,
            }],
            missing: None,
        };
        described(
            &SegmentName::new(id, last, self.archive.segment_size).to_string(),
            stored.map(|(_, time)| time),
            self.maps.ending(&walk).last_commit,
        )
    }

    /// What the reader should know of a branch that is left out.
    fn note(&self, ours: TimelineId, branch: &Branch) -> String {
        let own = ours.0;
        let time = branch
            .fork_time
            .map_or_else(String::new, |time| format!(", about {}", time.whole_seconds()));
        let Branch { timeline, fork_lsn, .. } = branch;
        format!(
            "timeline {timeline} has WAL beyond {fork_lsn}{time}, where it and timeline {own} part ({}); this plan leaves \
             that out, and --target-timeline {timeline} follows it (newest on timeline {own}: {})",
            newest(branch),
            self.newest(ours)
        )
    }
}

fn first_stored(times: StoredTimes) -> Option<UtcTime> {
    let first = times.first.map(|(_, time)| time);
    match (times.history, first) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn newest(branch: &Branch) -> String {
    described(&branch.last_segment, branch.stored, branch.last_commit)
}

fn described(segment: &str, stored: Option<UtcTime>, commit: Option<UtcTime>) -> String {
    let stored = stored.map_or_else(String::new, |time| format!(" stored {}", time.whole_seconds()));
    let commit = commit.map_or_else(String::new, |time| format!(", last commit {}", time.whole_seconds()));
    format!("WAL up to {segment}{stored}{commit}")
}

#[cfg(test)]
#[path = "branches_tests.rs"]
mod tests;
