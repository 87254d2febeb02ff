//! What goes and what stays, all of it, before anything is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::config::Retention;
use common::error::Result;
use common::postgres::{SegmentSize, SystemId};
use common::repository::Label;
use common::repository::backup::BackupInfo;
use common::repository::wal::Range;
use common::retention::wal::{self, Needed};
use common::retention::{self, History, Verdict};

use crate::garbage;
use crate::survey::{Survey, SystemWal};

/// The plan for one repository.
pub struct Plan {
    /// Backups, in order.
    pub backups: Vec<(Verdict, BackupInfo)>,
    /// Labels that cannot be read: they stay, and why they cannot be read.
    pub unreadable: Vec<(Label, String)>,
    /// What interrupted backups left, with its size in bytes, and why it stays; `None`: it goes.
    pub left: Vec<(Label, u64, Option<garbage::Why>)>,
    /// WAL by system.
    pub wal: Vec<WalPlan>,
    /// Dumps, and what becomes of each.
    pub dumps: Vec<(String, retention::dumps::Verdict)>,
}

/// The plan for one system's WAL.
pub struct WalPlan {
    /// Whose.
    pub system: SystemId,
    /// The size of segments.
    pub size: SegmentSize,
    /// What is needed.
    pub needed: Needed,
    /// The ranges that are there, cut where the answer changes.
    pub ranges: Vec<(Range, Option<wal::Why>)>,
}

/// Decides.
///
/// # Errors
/// `Corrupt` if a backup says something impossible.
pub fn plan(policy: Option<&Retention>, survey: &Survey, garbage_after: Duration) -> Result<Plan> {
    let running: Vec<(Label, Vec<Label>)> = survey
        .left
        .iter()
        .filter(|left| garbage::may_run(left, survey.now, garbage_after))
        .map(|left| (left.label, left.leans_on.clone()))
        .collect();
    let unreadable: Vec<Label> = survey.unreadable.iter().map(|(label, _)| *label).collect();
    let follows = |backup: &BackupInfo| {
        let of = |wal: &&SystemWal| wal.system.to_string() == backup.system_identifier;
        survey.wal.iter().find(of).is_none_or(|wal| wal.follows(backup))
    };
    let history = History {
        backups: &survey.backups,
        unreadable: &unreadable,
        marks: &survey.marks,
        running: &running,
        follows: &follows,
        lacks: &|info| survey.lacking.contains(&info.label),
    };
    let verdicts = retention::judge(policy, &history, survey.now);
    let kept: Vec<(&BackupInfo, bool)> = survey
        .backups
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| verdict.is_kept())
        .map(|(backup, verdict)| (backup, verdict.window))
        .collect();
    let used = used_labels(&kept, &running);
    let mut wal = Vec::new();
    for (at, system) in survey.wal.iter().enumerate() {
        let is_current = at + 1 == survey.wal.len();
        wal.push(plan_wal(
            policy,
            system,
            is_current,
            &kept,
            !unreadable.is_empty(),
            &survey.lacking,
        )?);
    }
    let left = |left: &garbage::Left| {
        let user = used.get(&left.label).copied();
        // What cannot be read may use it.
        let user = user.or_else(|| unreadable.iter().copied().find(|label| *label > left.label));
        let why = garbage::judge(left, user, survey.now, garbage_after);
        (left.label, left.bytes, why)
    };
    let rule = policy.and_then(|policy| policy.dumps);
    let dumps = retention::dumps::judge(rule, &survey.dumps, &survey.erased, survey.now, garbage_after);
    Ok(Plan {
        left: survey.left.iter().map(left).collect(),
        backups: verdicts.into_iter().zip(survey.backups.iter().cloned()).collect(),
        unreadable: survey.unreadable.clone(),
        wal,
        dumps: survey.dumps.iter().map(|dump| dump.name.clone()).zip(dumps).collect(),
    })
}

/// Every label that something needs which stays or runs, and what needs it.
fn used_labels(kept: &[(&BackupInfo, bool)], running: &[(Label, Vec<Label>)]) -> BTreeMap<Label, Label> {
    let by_kept = kept.iter().flat_map(|(backup, _)| {
        let reused = backup.reused_from.into_iter();
        backup
            .references
            .iter()
            .copied()
            .chain(reused)
            .map(|used| (used, backup.label))
    });
    let by_running = running
        .iter()
        .flat_map(|(label, leans_on)| leans_on.iter().map(|used| (*used, *label)));
    by_running.chain(by_kept).collect()
}

fn plan_wal(
    policy: Option<&Retention>,
    system: &SystemWal,
    is_current: bool,
    kept: &[(&BackupInfo, bool)],
    any_unreadable: bool,
    lacking: &BTreeSet<Label>,
) -> Result<WalPlan> {
    let identifier = system.system.to_string();
    let own: Vec<(&BackupInfo, bool)> = kept
        .iter()
        .filter(|(backup, _)| backup.system_identifier == identifier)
        .copied()
        .collect();
    let good = own
        .iter()
        .any(|(backup, _)| backup.good && !lacking.contains(&backup.label));
    // What nothing is known about stays: without a policy, before the first good backup, beside a backup that cannot be read.
    let needed = if policy.is_none() || any_unreadable || (is_current && !good) {
        Needed::all()
    } else {
        Needed::by(own.into_iter())?
    };
    Ok(WalPlan {
        system: system.system,
        size: system.size,
        ranges: system.list.ranges.iter().flat_map(|range| needed.cut(range)).collect(),
        needed,
    })
}

/// What goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Removal {
    /// Backups, the newest first: what leans on others goes before them.
    pub backups: Vec<BackupInfo>,
    /// What interrupted backups left.
    pub garbage: Vec<Label>,
    /// Dumps.
    pub dumps: Vec<String>,
    /// By system: a WAL file goes if none of these needs it.
    pub wal: Vec<(SystemId, SegmentSize, Vec<Needed>)>,
    /// Every label that this was decided by: another one has begun since.
    pub seen: BTreeSet<Label>,
}

impl Plan {
    /// What goes by this plan.
    pub fn removal(&self) -> Removal {
        let backups = self.backups.iter().filter(|(verdict, _)| !verdict.is_kept());
        let garbage = self.left.iter().filter(|(.., why)| why.is_none());
        let dumps = self.dumps.iter().filter(|(_, verdict)| !verdict.is_kept());
        let goes = |plan: &&WalPlan| plan.needed.is_nothing() || plan.ranges.iter().any(|(_, why)| why.is_none());
        let wal = self.wal.iter().filter(goes);
        Removal {
            backups: backups.map(|(_, info)| info.clone()).rev().collect(),
            garbage: garbage.map(|(label, ..)| *label).collect(),
            dumps: dumps.map(|(name, _)| name.clone()).collect(),
            wal: wal
                .map(|plan| (plan.system, plan.size, vec![plan.needed.clone()]))
                .collect(),
            seen: self.labels().collect(),
        }
    }

    /// Every label that it knows.
    fn labels(&self) -> impl Iterator<Item = Label> {
        let backups = self.backups.iter().map(|(verdict, _)| verdict.label);
        let unreadable = self.unreadable.iter().map(|(label, _)| *label);
        backups
            .chain(unreadable)
            .chain(self.left.iter().map(|(label, ..)| *label))
    }

    /// Labels of backups that stay.
    pub fn staying(&self) -> BTreeSet<Label> {
        let staying = self.backups.iter().filter(|(verdict, _)| verdict.is_kept());
        staying.map(|(verdict, _)| verdict.label).collect()
    }
}

impl Removal {
    /// Whether nothing goes.
    pub fn is_empty(&self) -> bool {
        self.backups.is_empty() && self.garbage.is_empty() && self.dumps.is_empty() && self.wal.is_empty()
    }

    /// What goes by this and by a later look: a backup that began in between may need the rest.
    #[must_use]
    pub fn both(mut self, later: &Self) -> Self {
        let goes = |info: &BackupInfo| later.backups.iter().any(|other| other.label == info.label);
        self.backups.retain(goes);
        self.garbage.retain(|label| later.garbage.contains(label));
        self.dumps.retain(|name| later.dumps.contains(name));
        self.wal.retain_mut(|(system, _, needed)| {
            let same = later.wal.iter().find(|(other, ..)| other == system);
            needed.extend(same.into_iter().flat_map(|(.., more)| more.iter().cloned()));
            same.is_some()
        });
        self.seen.clone_from(&later.seen);
        self
    }
}
