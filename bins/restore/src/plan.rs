//! Decides which backup leads to the target, along which timeline, with which WAL. Pure.
//!
//! Promises to refuse, with the moments that can be reached, rather than choose a backup from which PostgreSQL would end
//! somewhere else than asked. Leaves the WAL behind the backup to [`crate::route`], the words of a refusal to
//! [`crate::refusal`], reading the archive to [`crate::survey`] and doing it to [`crate::restore`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use common::error::{Error, Kind, Result};
use common::postgres::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};
use common::repository::Label;
use common::repository::backup::BackupInfo;
use common::repository::reach::{self, Stretch, Wal, Walk, before};
use common::repository::wal::StoredTimes;
use common::time::UtcTime;

use crate::branches::Branch;
use crate::maps::{Lookup, Maps, Place, There, Wanted};
use crate::target::{Action, Request, Target, Timeline};

/// What the repositories that answer hold of one system, together.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Committed backups.
    pub backups: Vec<BackupInfo>,
    /// The segments.
    pub wal: Wal,
    /// Every timeline history that could be read.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The size of a segment.
    pub segment_size: SegmentSize,
    /// When the WAL of each timeline was stored.
    pub stored: BTreeMap<TimelineId, StoredTimes>,
    /// Timelines whose history is there and cannot be used.
    pub unusable: BTreeMap<TimelineId, Unusable>,
    /// Backups whose document is there and cannot be used, and why.
    pub damaged: BTreeMap<Label, String>,
    /// Whether some repository did not answer and may hold more.
    pub incomplete: bool,
}

/// A timeline history that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The object, as messages name it.
    pub object: String,
    /// Why.
    pub why: String,
}

/// What will be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// WAL is missing behind the target: the server must not look ahead of what it replays.
    pub gap_behind: bool,
    /// The backup that is restored.
    pub backup: BackupInfo,
    /// The timeline that recovery follows.
    pub timeline: TimelineId,
    /// Whether PostgreSQL's own `latest` is this timeline.
    pub newest: bool,
    /// Where recovery ends; the last record of WAL may stand in for a time that lies behind the last commit.
    pub target: Target,
    /// Whether it ends just before that.
    pub exclusive: bool,
    /// What happens there.
    pub action: Action,
    /// The WAL that is needed and there.
    pub wal: Vec<Stretch>,
    /// Whether recovery goes on to the end of that WAL, however much that is by then.
    pub to_end: bool,
    /// Branches of history that are left out.
    pub branches: Vec<Branch>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Decides.
///
/// # Errors
/// `NotFound` if there is no backup that serves; `Refused` if the target cannot be reached or WAL is missing;
/// `Transient` instead where a repository that did not answer may hold what is missing; `Config` if a timeline or a
/// label does not exist.
pub fn decide(request: &Request, archive: &Archive, maps: &dyn Maps, now: UtcTime) -> Result<Choice> {
    let judge = Judge {
        request,
        archive,
        maps,
        now,
        absent: RefCell::default(),
    };
    judge.check_named()?;
    if archive.backups.is_empty() {
        return Err(judge.no_backup());
    }
    if let Target::Time { time, .. } = &request.target
        && *time > now
    {
        return Err(judge.out_of_reach(format!("{} lies in the future", request.target)));
    }
    let mut first_refusal = None;
    for (history, candidates) in judge.timelines()? {
        match judge.on(&history, &candidates) {
            Ok(Some(mut choice)) => {
                judge.check_histories(choice.timeline)?;
                choice.notes.extend(judge.damage_notes(&choice.backup));
                return Ok(choice);
            }
            Ok(None) => {}
            Err(error) => {
                first_refusal.get_or_insert(error);
                break;
            }
        }
    }
    Err(first_refusal.unwrap_or_else(|| judge.nothing_serves()))
}

/// Every timeline that something is known of.
pub fn timelines(archive: &Archive) -> BTreeSet<TimelineId> {
    let of_backups = archive.backups.iter().map(BackupInfo::timeline);
    archive
        .histories
        .keys()
        .copied()
        .chain(archive.wal.timelines())
        .chain(of_backups)
        .collect()
}

/// The history of a timeline, if it can be followed.
pub fn history(archive: &Archive, id: TimelineId) -> Option<TimelineHistory> {
    reach::history(&archive.histories, id)
}

/// Backups from which recovery can follow `history`, oldest first.
pub fn usable<'a>(archive: &'a Archive, history: &TimelineHistory) -> Vec<&'a BackupInfo> {
    let fits = |backup: &&BackupInfo| reach::follows(backup, history);
    let mut found: Vec<&BackupInfo> = archive.backups.iter().filter(fits).collect();
    found.sort_by_key(|backup| (backup.stop_lsn, backup.label));
    found
}

/// All that is judged.
pub struct Judge<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// What there is.
    pub archive: &'a Archive,
    /// What the maps know.
    pub maps: &'a dyn Maps,
    /// The time of asking.
    pub now: UtcTime,
    /// What was found instead of the transaction or restore point, on the newest timeline first.
    pub absent: RefCell<Vec<There>>,
}

impl Judge<'_> {
    fn check_named(&self) -> Result<()> {
        let Some(label) = self.request.backup else {
            return Ok(());
        };
        if self.archive.backups.iter().any(|backup| backup.label == label) {
            return Ok(());
        }
        if let Some(why) = self.archive.damaged.get(&label) {
            let error = Error::new(Kind::Corrupt, format!("backup {label} cannot be used: {why}"));
            return Err(error.hint("without --backup the newest one that can be used is taken"));
        }
        Err(self
            .unreachable(Kind::NotFound, format!("there is no backup {label}"))
            .hint("pgkeep-info lists them"))
    }

    /// The timelines to try, in order, each with the backups that may be taken there, oldest first.
    fn timelines(&self) -> Result<Vec<(TimelineHistory, Vec<&BackupInfo>)>> {
        let named = |backup: &&BackupInfo| self.request.backup.is_none_or(|label| label == backup.label);
        let with_backups = |history: TimelineHistory| {
            let backups = usable(self.archive, &history).into_iter().filter(named).collect();
            (history, backups)
        };
        Ok(match self.request.timeline {
            Timeline::Latest => timelines(self.archive)
                .into_iter()
                .rev()
                .filter_map(|id| history(self.archive, id))
                .map(with_backups)
                .collect(),
            Timeline::Number(id) => {
                let history = history(self.archive, id).ok_or_else(|| self.no_such_timeline(id))?;
                vec![with_backups(history)]
            }
            Timeline::Current => self.current(named),
        })
    }

    /// Each backup on its own timeline, the newest first.
    fn current(&self, named: impl Fn(&&BackupInfo) -> bool) -> Vec<(TimelineHistory, Vec<&BackupInfo>)> {
        let mut backups: Vec<&BackupInfo> = self.archive.backups.iter().filter(named).collect();
        backups.sort_by_key(|backup| (backup.stopped, backup.label));
        let own = |backup| Some((history(self.archive, BackupInfo::timeline(backup))?, vec![backup]));
        backups.into_iter().rev().filter_map(own).collect()
    }

    fn no_such_timeline(&self, id: TimelineId) -> Error {
        if let Some(unusable) = self.archive.unusable.get(&id) {
            return self.unusable_history(Kind::Corrupt, format!("timeline {} cannot be followed", id.0), unusable);
        }
        let known: Vec<String> = timelines(self.archive).iter().map(|id| id.0.to_string()).collect();
        let error = self.unreachable(Kind::Config, format!("timeline {} is not in the archive", id.0));
        error.hint(format!("known timelines: {}", known.join(", ")))
    }

    /// Chooses on one timeline; `None` if no backup there serves.
    fn on(&self, history: &TimelineHistory, candidates: &[&BackupInfo]) -> Result<Option<Choice>> {
        let mut notes = Vec::new();
        // A damaged backup never counts, unless it is asked for by name.
        let counts = |backup: &&&BackupInfo| backup.good || self.request.backup.is_some();
        let counting = || candidates.iter().filter(counts).copied();
        let mut until = None;
        let picked = match &self.request.target {
            Target::End => counting().last(),
            Target::Immediate => {
                let picked = counting().last();
                until = picked.map(|backup| before(backup.stop_lsn));
                picked
            }
            Target::Time { time, .. } => counting().rfind(|backup| backup.stopped <= *time),
            Target::Lsn(lsn) => {
                until = Some(*lsn);
                counting().rfind(|backup| backup.stop_lsn <= *lsn)
            }
            Target::Xid(xid) => {
                let (picked, end) = self.at_record(history, counting(), Wanted::Xid(*xid), &mut notes);
                until = end;
                picked
            }
            Target::Name(name) => {
                let (picked, end) = self.at_record(history, counting(), Wanted::Name(name), &mut notes);
                until = end;
                picked
            }
        };
        let Some(backup) = picked else { return Ok(None) };
        if !backup.good {
            notes.push(format!(
                "backup {} holds {} damaged pages and counts as no backup; it is taken because it was named",
                backup.label, backup.damaged_pages
            ));
        }
        self.finish(history, backup, until, notes).map(Some)
    }

    /// The backup to take for a record that the maps know, and the last byte that recovery needs then.
    fn at_record<'b>(
        &self,
        history: &TimelineHistory,
        candidates: impl DoubleEndedIterator<Item = &'b BackupInfo>,
        wanted: Wanted<'_>,
        notes: &mut Vec<String>,
    ) -> (Option<&'b BackupInfo>, Option<Lsn>) {
        let candidates: Vec<&BackupInfo> = candidates.collect();
        let Some(oldest) = candidates.first() else {
            return (None, None);
        };
        match self.maps.find(wanted, &self.walk(history, oldest, None)) {
            Lookup::Absent(there) => {
                self.absent.borrow_mut().push(there);
                (None, None)
            }
            Lookup::Unknown(why) => {
                notes.push(self.not_known(&why));
                (candidates.last().copied(), None)
            }
            Lookup::At(places) => {
                let picked = candidates.iter().rev().find_map(|backup| {
                    let place = stops_at(backup, &places)?;
                    Some((*backup, place))
                });
                let Some((backup, place)) = picked else {
                    return (None, None);
                };
                notes.extend(self.ambiguous(&places, place));
                (Some(backup), Some(before(place.lsn)))
            }
        }
    }

    /// The WAL along a history from a backup on.
    pub fn walk(&self, history: &TimelineHistory, backup: &BackupInfo, to: Option<Lsn>) -> Walk {
        self.archive
            .wal
            .walk(history, backup.start_lsn, to, self.archive.segment_size)
    }
}

/// Where PostgreSQL stops from this backup on: at the first place behind its start, which must not lie before its end.
fn stops_at(backup: &BackupInfo, places: &[Place]) -> Option<Place> {
    let first = places.iter().find(|place| place.lsn > backup.start_lsn)?;
    (first.lsn >= backup.stop_lsn).then_some(*first)
}

/// How many bytes of WAL a plan replays at most.
pub fn wal_bytes(stretches: &[Stretch], size: SegmentSize) -> u64 {
    let segments = |one: &Stretch| (one.last.0 - one.first.0).saturating_add(1);
    stretches
        .iter()
        .map(segments)
        .fold(0u64, u64::saturating_add)
        .saturating_mul(size.bytes())
}

/// The name of a stretch's ends.
pub fn stretch_names(stretch: &Stretch, size: SegmentSize) -> String {
    let name = |number: SegmentNumber| common::postgres::SegmentName::new(stretch.timeline, number, size).to_string();
    match stretch.first == stretch.last {
        true => name(stretch.first),
        false => format!("{} to {}", name(stretch.first), name(stretch.last)),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
