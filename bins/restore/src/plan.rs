//! Decides which backup leads to the target, along which timeline, with which WAL. Pure.
//!
//! Promises to refuse, with the moments that can be reached, rather than choose a backup from which PostgreSQL would end
//! somewhere else than asked. Leaves reading the archive to [`crate::survey`] and doing it to [`crate::restore`].

use std::collections::{BTreeMap, BTreeSet};

use common::error::{Error, Kind, Result};
use common::postgres::{Lsn, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};
use common::repository::Label;
use common::repository::backup::BackupInfo;
use common::time::UtcTime;

use crate::reach::{Missing, Stretch, Wal, Walk};
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
    /// Whether some repository did not answer and may hold more.
    pub incomplete: bool,
}

/// Something that the maps of WAL segments know the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// The end of a transaction.
    Xid(u32),
    /// A named restore point.
    Name(&'a str),
}

/// What the maps say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "archives hold no maps yet: the only answer is Unknown")
)]
pub enum Lookup {
    /// Maps are missing or do not know: nothing follows from it.
    Unknown,
    /// It is surely not in the WAL that was asked about.
    Absent,
    /// The record ends here.
    At(Lsn),
}

/// Answers from the maps of the segments along a walk.
pub trait Maps {
    /// Looks for a transaction or restore point.
    fn find(&self, wanted: Wanted<'_>, walk: &Walk) -> Lookup;
    /// The time of the last commit, if it is known.
    fn last_commit(&self, walk: &Walk) -> Option<UtcTime>;
}

/// Where no maps can be read.
pub struct NoMaps;

impl Maps for NoMaps {
    fn find(&self, _: Wanted<'_>, _: &Walk) -> Lookup {
        Lookup::Unknown
    }

    fn last_commit(&self, _: &Walk) -> Option<UtcTime> {
        None
    }
}

/// What will be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The backup that is restored.
    pub backup: BackupInfo,
    /// The timeline that recovery follows.
    pub timeline: TimelineId,
    /// Whether PostgreSQL's own `latest` is this timeline.
    pub newest: bool,
    /// Where recovery ends; the end of WAL may stand in for a time that lies behind the last commit.
    pub target: Target,
    /// What happens there.
    pub action: Action,
    /// The WAL that is needed and there.
    pub wal: Vec<Stretch>,
    /// Whether recovery goes on to the end of that WAL, however much that is by then.
    pub to_end: bool,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A stretch of time that can be recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The timeline to follow.
    pub timeline: TimelineId,
    /// The first backup's stop.
    pub from: UtcTime,
    /// What the archive provably covers.
    pub to: UtcTime,
    /// Where its WAL ends.
    pub lsn: Lsn,
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
    };
    judge.check_named()?;
    if archive.backups.is_empty() {
        return Err(judge
            .unreachable(Kind::NotFound, "there is no backup".to_owned())
            .hint("pgkeep-base-backup makes one"));
    }
    if let Target::Time { time, .. } = &request.target
        && *time > now
    {
        return Err(judge.out_of_reach(format!("{} lies in the future", request.target)));
    }
    let mut first_refusal = None;
    for (history, candidates) in judge.timelines()? {
        match judge.on(&history, &candidates) {
            Ok(Some(choice)) => return Ok(choice),
            Ok(None) => {}
            Err(error) => {
                first_refusal.get_or_insert(error);
                break;
            }
        }
    }
    Err(first_refusal.unwrap_or_else(|| judge.nothing_serves()))
}

/// The stretches of time that can be recovered, by timeline.
pub fn windows(archive: &Archive) -> Vec<Window> {
    let mut found = Vec::new();
    for id in timelines(archive) {
        let Some(history) = history(archive, id) else { continue };
        let mut open: Option<Window> = None;
        for backup in usable(archive, &history)
            .into_iter()
            .filter(|backup| backup.good && backup.timeline() == id)
        {
            let walk = archive.wal.walk(&history, backup.start_lsn, None, archive.segment_size);
            let Some(end) = whole_until(archive, &walk, backup) else {
                continue;
            };
            match &mut open {
                Some(window) if window.lsn >= end => window.to = window.to.max(backup.stopped),
                _ => {
                    let next = Window {
                        timeline: id,
                        from: backup.stopped,
                        to: backup.stopped,
                        lsn: end,
                    };
                    found.extend(open.replace(next));
                }
            }
        }
        found.extend(open);
    }
    found
}

/// Where the WAL of a walk ends, if it makes the backup consistent.
fn whole_until(archive: &Archive, walk: &Walk, backup: &BackupInfo) -> Option<Lsn> {
    let end = walk.last()?.next().start(archive.segment_size);
    (end >= backup.stop_lsn).then_some(end)
}

/// Every timeline that something is known of.
fn timelines(archive: &Archive) -> BTreeSet<TimelineId> {
    let of_backups = archive.backups.iter().map(BackupInfo::timeline);
    archive
        .histories
        .keys()
        .copied()
        .chain(archive.wal.timelines())
        .chain(of_backups)
        .collect()
}

/// The history of a timeline. Only the first needs no file; PostgreSQL refuses to follow another one without.
fn history(archive: &Archive, id: TimelineId) -> Option<TimelineHistory> {
    let known = archive.histories.get(&id).cloned();
    known.or_else(|| (id == TimelineId(1)).then(|| TimelineHistory::root(id)))
}

/// Backups from which recovery can follow `history`, oldest first.
fn usable<'a>(archive: &'a Archive, history: &TimelineHistory) -> Vec<&'a BackupInfo> {
    let fits = |backup: &&BackupInfo| {
        history.contains(backup.timeline(), backup.stop_lsn) && history.contains(backup.timeline(), backup.start_lsn)
    };
    let mut found: Vec<&BackupInfo> = archive.backups.iter().filter(fits).collect();
    found.sort_by_key(|backup| (backup.stop_lsn, backup.label));
    found
}

struct Judge<'a> {
    request: &'a Request,
    archive: &'a Archive,
    maps: &'a dyn Maps,
    now: UtcTime,
}

impl Judge<'_> {
    fn check_named(&self) -> Result<()> {
        let Some(label) = self.request.backup else {
            return Ok(());
        };
        if self.archive.backups.iter().any(|backup| backup.label == label) {
            return Ok(());
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
        let Some(oldest) = counting().next() else {
            return Ok(None);
        };
        let mut until = None;
        let picked = match &self.request.target {
            Target::End => counting().last(),
            Target::Immediate => {
                let picked = counting().last();
                until = picked.map(|backup| backup.stop_lsn);
                picked
            }
            Target::Time { time, .. } => counting().rfind(|backup| backup.stopped <= *time),
            Target::Lsn(lsn) => {
                until = Some(*lsn);
                counting().rfind(|backup| backup.stop_lsn <= *lsn)
            }
            Target::Xid(xid) => match self.look_up(history, oldest, Wanted::Xid(*xid), &mut notes) {
                Lookup::Absent => None,
                Lookup::Unknown => counting().last(),
                Lookup::At(lsn) => {
                    until = Some(before(lsn));
                    counting().rfind(|backup| backup.stop_lsn <= lsn)
                }
            },
            Target::Name(name) => match self.look_up(history, oldest, Wanted::Name(name), &mut notes) {
                Lookup::Absent => None,
                Lookup::Unknown => counting().last(),
                Lookup::At(lsn) => {
                    until = Some(before(lsn));
                    counting().rfind(|backup| backup.stop_lsn <= lsn)
                }
            },
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

    fn look_up(
        &self,
        history: &TimelineHistory,
        oldest: &BackupInfo,
        wanted: Wanted<'_>,
        notes: &mut Vec<String>,
    ) -> Lookup {
        let walk = self.walk(history, oldest, None);
        let found = self.maps.find(wanted, &walk);
        if found == Lookup::Unknown {
            let which = if self.request.backup.is_some() {
                "the named"
            } else {
                "the newest"
            };
            notes.push(format!(
                "it is not known where {} lies; {which} backup is taken, and PostgreSQL stops with an error if the target is \
                 not found behind it (then name an earlier one with --backup)",
                self.request.target
            ));
        }
        found
    }

    fn walk(&self, history: &TimelineHistory, backup: &BackupInfo, to: Option<Lsn>) -> Walk {
        self.archive
            .wal
            .walk(history, backup.start_lsn, to, self.archive.segment_size)
    }

    /// Checks the WAL behind a backup and puts the choice together.
    fn finish(
        &self,
        history: &TimelineHistory,
        backup: &BackupInfo,
        until: Option<Lsn>,
        mut notes: Vec<String>,
    ) -> Result<Choice> {
        let consistent = self.walk(history, backup, Some(before(backup.stop_lsn)));
        if let Some(missing) = consistent.missing {
            return Err(self.gap(&missing, format!("backup {} cannot become consistent", backup.label)).hint(
                "an earlier backup does not help unless the target lies before this one; pgkeep-info shows the gaps",
            ));
        }
        let mut target = self.request.target.clone();
        let mut action = self.request.action;
        let mut to_end = false;
        let walk = match (until, &self.request.target) {
            (Some(lsn), _) => self.walk_to(history, backup, lsn)?,
            (None, Target::Time { time, .. }) => {
                let (walk, instead) = self.walk_to_time(history, backup, *time, &mut notes)?;
                if instead {
                    target = Target::End;
                    action = Some(Action::Promote);
                }
                to_end = true;
                walk
            }
            (None, Target::Xid(_) | Target::Name(_)) => {
                let walk = self.walk(history, backup, None);
                if let Some(missing) = &walk.missing {
                    let names = missing.names(self.archive.segment_size);
                    notes.push(format!("WAL is missing: {names}; the target must lie before that"));
                }
                to_end = true;
                walk
            }
            (None, _) => {
                let walk = self.walk(history, backup, None);
                if let Some(missing) = &walk.missing {
                    return Err(self.gap(missing, "the end of WAL cannot be reached".to_owned()).hint(format!(
                        "recovery would end at the gap and open the database without what follows: to accept that, name a \
                         target before {}",
                        missing.number.start(self.archive.segment_size)
                    )));
                }
                to_end = true;
                walk
            }
        };
        self.passed_over(history, backup, &mut notes);
        let newest = timelines(self.archive).last() == Some(&history.timeline());
        let aims = target != Target::End;
        let action = action.unwrap_or(if aims { Action::Pause } else { Action::Promote });
        Ok(Choice {
            backup: backup.clone(),
            timeline: history.timeline(),
            newest,
            target,
            action,
            wal: walk.there,
            to_end,
            notes,
        })
    }

    /// The WAL from a backup to a position, which the record that ends recovery must reach.
    fn walk_to(&self, history: &TimelineHistory, backup: &BackupInfo, lsn: Lsn) -> Result<Walk> {
        let walk = self.walk(history, backup, Some(lsn.max(before(backup.stop_lsn))));
        match &walk.missing {
            None => Ok(walk),
            Some(missing) => Err(self.gap(missing, format!("{} cannot be reached", self.request.target))),
        }
    }

    /// The WAL from a backup to a time, and whether the end of WAL stands in for that time.
    fn walk_to_time(
        &self,
        history: &TimelineHistory,
        backup: &BackupInfo,
        time: UtcTime,
        notes: &mut Vec<String>,
    ) -> Result<(Walk, bool)> {
        let walk = self.walk(history, backup, None);
        let end = whole_until(self.archive, &walk, backup).unwrap_or(backup.stop_lsn);
        let reached = |other: &&BackupInfo| other.stop_lsn <= end && other.stop_lsn >= backup.stop_lsn;
        let on_history = usable(self.archive, history);
        let last_stop = on_history
            .into_iter()
            .filter(reached)
            .map(|other| other.stopped)
            .max()
            .unwrap_or(backup.stopped);
        let last_commit = self.maps.last_commit(&walk);
        let covered = last_commit.map_or(last_stop, |commit| commit.max(last_stop));
        if time > covered {
            if let Some(missing) = &walk.missing {
                return Err(self
                    .gap(missing, format!("{} cannot be reached", self.request.target))
                    .hint(self.reachable()));
            }
            if last_commit.is_some() {
                let covered = format!("the archive covers nothing after {covered}");
                return Err(self.out_of_reach(format!("{} cannot be reached: {covered}", self.request.target)));
            }
            notes.push(format!(
                "it is not known when the last transaction in the archive was committed (at or after {covered}); if that was \
                 before the target, PostgreSQL stops with an error instead of opening"
            ));
            return Ok((walk, false));
        }
        // PostgreSQL stops at the first commit after the target (at it, with --target-exclusive); without one it fails.
        let behind = last_commit.is_some_and(|commit| {
            if self.request.exclusive {
                time > commit
            } else {
                time >= commit
            }
        });
        if !behind {
            return Ok((walk, false));
        }
        if let Some(missing) = &walk.missing {
            return Err(self
                .gap(missing, format!("{} cannot be reached", self.request.target))
                .hint(self.reachable()));
        }
        if let Some(action) = self.request.action.filter(|action| *action != Action::Promote) {
            let last = last_commit.unwrap_or(covered);
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "{} lies behind the last commit ({last}), where PostgreSQL cannot {action}",
                    self.request.target
                ),
            )
            .hint("choose --target-action promote, or a time before the last commit"));
        }
        notes.push(
            "nothing was committed after the target: all WAL is replayed, and the server is promoted without a pause"
                .to_owned(),
        );
        Ok((walk, true))
    }

    /// Says that a newer backup was passed over because its timeline is another branch.
    fn passed_over(&self, history: &TimelineHistory, backup: &BackupInfo, notes: &mut Vec<String>) {
        let usable: BTreeSet<Label> = usable(self.archive, history)
            .iter()
            .map(|backup| backup.label)
            .collect();
        let newer =
            |other: &&BackupInfo| other.good && other.stopped > backup.stopped && !usable.contains(&other.label);
        let Some(other) = self
            .archive
            .backups
            .iter()
            .filter(newer)
            .max_by_key(|other| other.stopped)
        else {
            return;
        };
        let meant = match &self.request.target {
            Target::Time { time, .. } => other.stopped <= *time,
            Target::End | Target::Immediate => true,
            _ => false,
        };
        if meant && self.request.backup.is_none() && self.request.timeline == Timeline::Latest {
            notes.push(format!(
                "backup {} is newer, but timeline {} does not go on from it; to follow its branch use --target-timeline {}",
                other.label,
                history.timeline().0,
                other.timeline
            ));
        }
    }

    fn gap(&self, missing: &Missing, what: String) -> Error {
        let names = missing.names(self.archive.segment_size);
        let message = match missing.branch {
            Some(branch) => format!(
                "{what}: WAL {names} is missing, the first of timeline {} after it left timeline {}, whose own WAL would be \
                 replayed instead",
                missing.timeline.0, branch.0
            ),
            None => format!("{what}: WAL {names} is missing"),
        };
        let error = self.unreachable(Kind::Refused, message);
        match missing.branch {
            Some(branch) => error.hint(format!("--target-timeline {} follows the older timeline", branch.0)),
            None => error,
        }
    }

    fn nothing_serves(&self) -> Error {
        let target = &self.request.target;
        let of_timeline = match self.request.timeline {
            Timeline::Number(id) => format!(" on timeline {}", id.0),
            _ => String::new(),
        };
        if let Some(label) = self.request.backup {
            return self.named_does_not_serve(label, &of_timeline);
        }
        if !self.archive.backups.iter().any(|backup| backup.good) {
            return self
                .unreachable(
                    Kind::NotFound,
                    "there is no good backup: every one holds damaged pages".to_owned(),
                )
                .hint("one of them can be restored by name with --backup");
        }
        match target {
            Target::End | Target::Immediate => self.out_of_reach(format!("there is no good backup{of_timeline}")),
            Target::Xid(_) | Target::Name(_) => self.out_of_reach(format!(
                "{target} is not in the archived WAL{of_timeline} behind any good backup"
            )),
            _ => self.out_of_reach(format!(
                "{target} lies before the end of the first good backup{of_timeline}"
            )),
        }
    }

    fn named_does_not_serve(&self, label: Label, of_timeline: &str) -> Error {
        let Some(backup) = self.archive.backups.iter().find(|backup| backup.label == label) else {
            return self.unreachable(Kind::NotFound, format!("there is no backup {label}"));
        };
        let (stopped, lsn, timeline) = (backup.stopped, backup.stop_lsn, backup.timeline);
        let early = match &self.request.target {
            Target::Time { time, .. } => *time < stopped,
            Target::Lsn(target) => *target < lsn,
            _ => false,
        };
        if early {
            let message = format!(
                "{} lies before the end of backup {label} ({stopped}, {lsn})",
                self.request.target
            );
            return self
                .unreachable(Kind::Refused, message)
                .hint("leave --backup out to have the right one chosen");
        }
        let message = match self.request.target {
            Target::Xid(_) | Target::Name(_) => {
                format!("{} is not in the WAL behind backup {label}", self.request.target)
            }
            _ => format!(
                "backup {label} is of timeline {timeline} up to {lsn}, which is no part of the history{of_timeline}"
            ),
        };
        self.out_of_reach(message)
    }

    fn out_of_reach(&self, message: String) -> Error {
        self.unreachable(Kind::Refused, message).hint(self.reachable())
    }

    /// An error that is temporary where a repository that did not answer may hold what is missing.
    fn unreachable(&self, kind: Kind, message: String) -> Error {
        if self.archive.incomplete && kind != Kind::Config {
            let cause = Error::new(Kind::Transient, "a repository that did not answer may hold it");
            return Error::new(Kind::Transient, message).because(cause);
        }
        Error::new(kind, message)
    }

    fn reachable(&self) -> String {
        let found = windows(self.archive);
        if found.is_empty() {
            return "nothing can be recovered to a moment: no good backup has its WAL".to_owned();
        }
        let one = |window: &Window| {
            let Window {
                timeline,
                from,
                to,
                lsn,
            } = window;
            let to = if *to == *from {
                String::new()
            } else {
                format!(" to {to}")
            };
            format!("{from}{to} and on to LSN {lsn} (timeline {})", timeline.0)
        };
        format!(
            "reachable as of {}: from {}",
            self.now,
            found.iter().map(one).collect::<Vec<_>>().join("; from ")
        )
    }
}

/// The last byte before a position.
fn before(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.saturating_sub(1))
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
