//! Decides whether the WAL behind a backup leads to the target, and how far it is replayed. Pure.
//!
//! Promises that recovery does not end early without a word: a gap on the way is refused by name, and a time behind the
//! last commit becomes the last record that is there, at which PostgreSQL can stop.

use std::collections::BTreeSet;

use common::error::{Error, Kind, Result};
use common::postgres::{Lsn, TimelineHistory};
use common::repository::Label;
use common::repository::backup::BackupInfo;
use common::repository::reach::{Walk, before};
use common::time::UtcTime;

use crate::maps::Ending;
use crate::plan::{Choice, Judge, timelines, usable};
use crate::target::{Action, Target, Timeline};

impl Judge<'_> {
    /// Checks the WAL behind a backup and puts the choice together.
    pub fn finish(
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
        let (mut action, mut exclusive) = (self.request.action, self.request.exclusive);
        let mut to_end = false;
        let walk = match (until, &self.request.target) {
            (Some(lsn), _) => self.walk_to(history, backup, lsn)?,
            (None, Target::Time { time, .. }) => {
                let (walk, instead) = self.walk_to_time(history, backup, *time, &mut notes)?;
                to_end = true;
                if let Some(instead) = instead {
                    exclusive = false;
                    if instead == Target::End {
                        action = Some(Action::Promote);
                    }
                    to_end = instead == Target::End;
                    target = instead;
                }
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
        let branches = self.branches(history, backup, until);
        self.check_branches(history, &branches)?;
        let newest = timelines(self.archive).last() == Some(&history.timeline());
        let aims = target != Target::End;
        let action = action.unwrap_or(if aims { Action::Pause } else { Action::Promote });
        let gap_behind = !to_end && self.walk(history, backup, None).missing.is_some();
        Ok(Choice {
            gap_behind,
            backup: backup.clone(),
            timeline: history.timeline(),
            newest,
            target,
            exclusive,
            action,
            wal: walk.there,
            to_end,
            branches,
            notes,
        })
    }

    /// The WAL from a backup to a position, which the record that ends recovery must reach.
    fn walk_to(&self, history: &TimelineHistory, backup: &BackupInfo, lsn: Lsn) -> Result<Walk> {
        let walk = self.walk(history, backup, Some(lsn.max(before(backup.stop_lsn))));
        match &walk.missing {
            None => Ok(walk),
            Some(missing) => {
                let error = self.gap(missing, format!("{} cannot be reached", self.request.target));
                Err(match error.nearest_hint() {
                    Some(_) => error,
                    None => error.hint(self.reachable()),
                })
            }
        }
    }

    /// The WAL from a backup to a time, and the target that stands in for the time if it lies behind the last commit.
    fn walk_to_time(
        &self,
        history: &TimelineHistory,
        backup: &BackupInfo,
        time: UtcTime,
        notes: &mut Vec<String>,
    ) -> Result<(Walk, Option<Target>)> {
        let walk = self.walk(history, backup, None);
        let ending = self.maps.ending(&walk);
        let covered = self
            .covered(history, backup, &walk)
            .max(ending.seen.unwrap_or(backup.stopped));
        // PostgreSQL stops at the first commit after the target (at it, with --target-exclusive); without one it fails.
        let stops_it = |commit: UtcTime| match self.request.exclusive {
            true => time <= commit,
            false => time < commit,
        };
        if ending.last_commit.is_some_and(stops_it) {
            return Ok((walk, None));
        }
        let gap = walk.missing.as_ref().map(|missing| {
            self.gap(missing, format!("{} cannot be reached", self.request.target))
                .hint(self.reachable())
        });
        match (gap, &ending.unknown) {
            // Without maps the backups show that WAL goes on beyond the target.
            (Some(error), None) => Err(error),
            (Some(error), Some(_)) if time > covered => Err(error),
            (_, Some(why)) => {
                notes.push(format!(
                    "it could not be checked whether a transaction was committed after the target ({why}); if none was, \
                     PostgreSQL stops with an error instead of opening"
                ));
                Ok((walk, None))
            }
            (None, None) if time > covered => Err(self.out_of_reach(format!(
                "{} cannot be reached: the archive covers nothing after {covered}",
                self.request.target
            ))),
            (None, None) => self
                .last_record(backup, &ending, notes)
                .map(|target| (walk, Some(target))),
        }
    }

    /// The latest moment at which a backup whose WAL is there was stopped.
    fn covered(&self, history: &TimelineHistory, backup: &BackupInfo, walk: &Walk) -> UtcTime {
        let size = self.archive.segment_size;
        let end = walk.last().map_or(backup.stop_lsn, |last| last.next().start(size));
        let reached = |other: &&BackupInfo| other.stop_lsn <= end && other.stop_lsn >= backup.stop_lsn;
        usable(self.archive, history)
            .into_iter()
            .filter(reached)
            .map(|other| other.stopped)
            .max()
            .unwrap_or(backup.stopped)
    }

    /// What stands in for a time after the last commit: the last record there is. WAL that is archived meanwhile, with
    /// later commits, is not replayed then.
    fn last_record(&self, backup: &BackupInfo, ending: &Ending, notes: &mut Vec<String>) -> Result<Target> {
        let last = ending.last_commit.map_or_else(
            || "none is behind the backup".to_owned(),
            |commit| format!("the last is of {commit}"),
        );
        // Before the backup's end nothing is consistent.
        if let Some(lsn) = ending.last_record.filter(|lsn| *lsn >= backup.stop_lsn) {
            notes.push(format!(
                "nothing was committed after the target ({last}): recovery ends with the last record of the archived WAL, at {lsn}"
            ));
            return Ok(Target::Lsn(lsn));
        }
        if let Some(action) = self.request.action.filter(|action| *action != Action::Promote) {
            let message = format!(
                "{} lies behind the last commit ({last}), where PostgreSQL cannot {action}",
                self.request.target
            );
            return Err(Error::new(Kind::Refused, message)
                .hint("choose --target-action promote, or a time before the last commit"));
        }
        notes.push(format!(
            "nothing was committed after the target ({last}): all WAL is replayed, and the server is promoted without a pause"
        ));
        Ok(Target::End)
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
}
