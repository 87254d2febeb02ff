//! Says why a target is not reached, and what is instead. Pure.

use common::error::{Error, Kind};
use common::postgres::{Lsn, TimelineId};
use common::repository::Label;
use common::repository::reach::{self, Missing};
use common::time::UtcTime;

use crate::maps::{Maps, Place, There};
use crate::plan::{Archive, Judge, history, timelines, usable};
use crate::target::{Target, Timeline};

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

/// The stretches of time that can be recovered, by timeline.
pub fn windows(archive: &Archive, maps: &dyn Maps) -> Vec<Window> {
    let (wal, size) = (&archive.wal, archive.segment_size);
    let mut found = Vec::new();
    for id in timelines(archive) {
        let Some(history) = history(archive, id) else { continue };
        let mut open: Option<Window> = None;
        for backup in usable(archive, &history).into_iter().filter(|backup| backup.good) {
            let Ok(reached) = reach::window(backup, &history, wal, size) else {
                continue;
            };
            // A timeline that a backup follows no further than one before it needs no window of its own.
            if backup.timeline() != id
                && history
                    .switch_point(backup.timeline())
                    .is_some_and(|left| reached.to_lsn <= left)
            {
                continue;
            }
            match &mut open {
                Some(window) if window.lsn >= reached.to_lsn => window.to = window.to.max(backup.stopped),
                _ => {
                    let seen = maps.ending(&wal.walk(&history, backup.start_lsn, None, size)).seen;
                    let next = Window {
                        timeline: id,
                        from: backup.stopped,
                        to: seen.map_or(backup.stopped, |seen| seen.max(backup.stopped)),
                        lsn: reached.to_lsn,
                    };
                    found.extend(open.replace(next));
                }
            }
        }
        found.extend(open);
    }
    found
}

impl Judge<'_> {
    pub fn gap(&self, missing: &Missing, what: String) -> Error {
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

    pub fn nothing_serves(&self) -> Error {
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
            Target::Xid(_) | Target::Name(_) => self.not_there(format!(
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
        let target = &self.request.target;
        if matches!(target, Target::Xid(_) | Target::Name(_)) {
            return self.not_there(format!("{target} is not in the WAL behind backup {label}"));
        }
        self.out_of_reach(format!(
            "backup {label} is of timeline {timeline} up to {lsn}, which is no part of the history{of_timeline}"
        ))
    }

    /// A transaction or restore point that was looked for: says what there is.
    fn not_there(&self, message: String) -> Error {
        let found = self.absent.borrow();
        let best = found
            .iter()
            .filter(|there| there.nearest.is_some())
            .min_by_key(|there| there.nearest.as_ref().map(|(distance, _)| *distance));
        match best.or(found.first()) {
            Some(there) => self.unreachable(Kind::Refused, message).hint(self.what_is_there(there)),
            None => self.out_of_reach(message),
        }
    }

    fn what_is_there(&self, there: &There) -> String {
        if let Target::Xid(_) = self.request.target {
            return match there.xids {
                Some((low, high)) if low <= high => format!(
                    "{} transactions end in that WAL, with numbers from {low} to {high}; what is archived later is not known yet",
                    there.transactions
                ),
                _ => "no transaction ends in that WAL".to_owned(),
            };
        }
        let meant = there.nearest.as_ref();
        let meant = meant.map_or_else(String::new, |(_, name)| format!("did you mean \"{name}\"? "));
        let time = |time: &Option<UtcTime>| time.map_or_else(|| "no time".to_owned(), |time| time.to_string());
        let one = |(name, at): &(String, Option<UtcTime>)| format!("\"{name}\" ({})", time(at));
        let named: Vec<String> = there.last_points.iter().map(one).collect();
        let named = named.join(", ");
        match there.points {
            0 => format!("{meant}there is no restore point at all in that WAL"),
            count if count > there.last_points.len() as u64 => {
                format!("{meant}there are {count} restore points; the last: {named}")
            }
            _ => format!("{meant}restore points: {named}"),
        }
    }

    /// That a record was not found, and the plan goes on.
    pub fn not_known(&self, why: &str) -> String {
        let which = if self.request.backup.is_some() {
            "the named"
        } else {
            "the newest"
        };
        format!(
            "it could not be checked where {} lies ({why}); {which} backup is taken, and PostgreSQL stops with an error if \
             the target is not found behind it (then name an earlier one with --backup)",
            self.request.target
        )
    }

    /// That a record is there more than once.
    pub fn ambiguous(&self, places: &[Place], chosen: Place) -> Option<String> {
        let one = |place: &Place| match place.time {
            Some(time) => format!("{} ({time})", place.lsn),
            None => place.lsn.to_string(),
        };
        let all: Vec<String> = places.iter().map(one).collect();
        (places.len() > 1).then(|| {
            format!(
                "{} is in WAL {} times, at {}; recovery ends at {}. Any other is reached with --target-lsn and \
                 --target-exclusive",
                self.request.target,
                places.len(),
                all.join(", "),
                one(&chosen)
            )
        })
    }

    pub fn out_of_reach(&self, message: String) -> Error {
        self.unreachable(Kind::Refused, message).hint(self.reachable())
    }

    /// An error that is temporary where a repository that did not answer may hold what is missing.
    pub fn unreachable(&self, kind: Kind, message: String) -> Error {
        if self.archive.incomplete && kind != Kind::Config {
            let cause = Error::new(Kind::Transient, "a repository that did not answer may hold it");
            return Error::new(Kind::Transient, message).because(cause);
        }
        Error::new(kind, message)
    }

    pub fn reachable(&self) -> String {
        let found = windows(self.archive, self.maps);
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
