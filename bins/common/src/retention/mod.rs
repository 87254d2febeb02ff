//! What a repository's policy keeps, and why. Pure: who knows the backups, the marks and the clock knows the answer.
//!
//! Promises, whatever the policy says: the newest good backup stays, as does everything that what stays leans on; what cannot be
//! read, or is newer than every good backup, stays; without a good backup everything does. Rules are ORed: one reason is enough.

pub mod dumps;
pub mod wal;
mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::{Keep, Retention};
use crate::repository::backup::BackupInfo;
use crate::repository::{BackupType, Label};
use crate::time::UtcTime;

pub use why::{Period, Why};

/// What is known of a cluster's backups in one repository.
pub struct History<'a> {
    /// Backups, oldest first.
    pub backups: &'a [BackupInfo],
    /// Labels whose `backup.json` cannot be read.
    pub unreadable: &'a [Label],
    /// Backups with a mark, and its reason.
    pub marks: &'a BTreeMap<Label, String>,
    /// What backups that may still be running lean on: their label, then what.
    pub running: &'a [(Label, Vec<Label>)],
    /// Whether recovery from a backup can follow the history that is written now; `true` where that is not known.
    pub follows: &'a dyn Fn(&BackupInfo) -> bool,
    /// Whether something that a backup leans on is not there: then it cannot be restored, and counts for nothing.
    pub lacks: &'a dyn Fn(&BackupInfo) -> bool,
}

/// What becomes of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub label: Label,
    /// Why it stays; empty: it goes.
    pub stays: Vec<Why>,
    /// Whether all WAL from its start on stays with it, so that any later moment can be recovered.
    pub window: bool,
}

impl Verdict {
    /// Whether it stays.
    pub fn is_kept(&self) -> bool {
        !self.stays.is_empty()
    }
}

/// Decides about every backup, in order. Without a policy everything stays.
pub fn judge(policy: Option<&Retention>, history: &History<'_>, now: UtcTime) -> Vec<Verdict> {
    let mut judging = Judging {
        history,
        now,
        stays: BTreeMap::new(),
    };
    match policy {
        None => judging.all(&Why::NoPolicy),
        Some(policy) if judging.good().next().is_none() => {
            let _ = policy;
            judging.all(&Why::NoGood);
        }
        Some(policy) => judging.by_policy(policy),
    }
    judging.marks();
    let window = judging.window(policy);
    judging.lean();
    let verdict = |backup: &BackupInfo| Verdict {
        label: backup.label,
        stays: judging.stays.get(&backup.label).cloned().unwrap_or_default(),
        window: window.contains(&backup.label),
    };
    history.backups.iter().map(verdict).collect()
}

struct Judging<'a> {
    history: &'a History<'a>,
    now: UtcTime,
    stays: BTreeMap<Label, Vec<Why>>,
}

impl<'a> Judging<'a> {
    fn good(&self) -> impl DoubleEndedIterator<Item = &'a BackupInfo> {
        // One from the future says that a clock is wrong; it proves nothing about the others.
        let (now, lacks) = (self.now, self.history.lacks);
        self.history
            .backups
            .iter()
            .filter(move |backup| backup.good && backup.started <= now && !lacks(backup))
    }

    fn full(&self) -> impl DoubleEndedIterator<Item = &'a BackupInfo> {
        self.good().filter(|backup| backup.kind == BackupType::Full)
    }

    fn keep(&mut self, label: Label, why: Why) {
        let reasons = self.stays.entry(label).or_default();
        if !reasons.contains(&why) {
            reasons.push(why);
        }
    }

    fn all(&mut self, why: &Why) {
        for backup in self.history.backups {
            self.keep(backup.label, why.clone());
        }
    }

    fn by_policy(&mut self, policy: &Retention) {
        let Some(newest) = self.good().next_back().map(|backup| backup.label) else {
            return;
        };
        self.keep(newest, Why::Newest);
        for backup in self.history.backups {
            if backup.started > self.now {
                self.keep(backup.label, Why::Future);
            } else if backup.label > newest {
                self.keep(backup.label, Why::NewerThanGood);
            }
        }
        let minimum: Vec<Label> = self.newest_full(policy.minimum);
        for label in minimum {
            self.keep(label, Why::Minimum(policy.minimum));
        }
        self.full_rule(policy.full);
        self.chains(policy);
        for (kind, age) in [(BackupType::Diff, policy.diff), (BackupType::Incr, policy.incremental)] {
            let Some(age) = age else { continue };
            let young = self.young(kind, age);
            for label in young {
                self.keep(label, Why::Young(kind, age));
            }
        }
        for (period, count) in [
            (Period::Week, policy.weekly),
            (Period::Month, policy.monthly),
            (Period::Year, policy.yearly),
        ] {
            self.first_of_each(period, count);
        }
    }

    fn newest_full(&self, count: u32) -> Vec<Label> {
        let newest = self.full().rev().take(count as usize);
        newest.map(|backup| backup.label).collect()
    }

    fn full_rule(&mut self, rule: Option<Keep>) {
        match rule {
            None => {}
            Some(Keep::Count(count)) => {
                for label in self.newest_full(count) {
                    self.keep(label, Why::FullCount(count));
                }
            }
            Some(Keep::Age(age)) => {
                let young = self.young(BackupType::Full, age);
                // The window begins behind the newest full backup that is older than it.
                let older = self.full().rev().find(|backup| self.now.since(backup.started) > age);
                let older = older.map(|backup| backup.label);
                for label in young {
                    self.keep(label, Why::Young(BackupType::Full, age));
                }
                if let Some(label) = older {
                    self.keep(label, Why::BeginsWindow(age));
                }
            }
        }
    }

    fn young(&self, kind: BackupType, age: Duration) -> Vec<Label> {
        let young = |backup: &&BackupInfo| backup.kind == kind && self.now.since(backup.started) <= age;
        self.history
            .backups
            .iter()
            .filter(young)
            .map(|backup| backup.label)
            .collect()
    }

    /// Without a rule of their own, differential and incremental backups stay as long as the full one that they began with.
    fn chains(&mut self, policy: &Retention) {
        for backup in self.history.backups {
            let own = match backup.kind {
                BackupType::Full => continue,
                BackupType::Diff => policy.diff,
                BackupType::Incr => policy.incremental,
            };
            if own.is_some() {
                continue;
            }
            if let Some(full) = self.full_of(backup)
                && self
                    .stays
                    .get(&full)
                    .is_some_and(|reasons| reasons.iter().any(Why::is_of_full))
            {
                self.keep(backup.label, Why::ChainOf(full));
            }
        }
    }

    /// The full backup at the beginning of a chain.
    fn full_of(&self, backup: &BackupInfo) -> Option<Label> {
        let mut at = backup;
        // A chain has no more links than there are backups.
        for _ in 0..self.history.backups.len() {
            if at.kind == BackupType::Full {
                return Some(at.label);
            }
            at = self.get(at.base?)?;
        }
        None
    }

    fn get(&self, label: Label) -> Option<&'a BackupInfo> {
        let backups = self.history.backups;
        let at = backups.binary_search_by_key(&label, |backup| backup.label).ok()?;
        backups.get(at)
    }

    fn first_of_each(&mut self, period: Period, count: u32) {
        if count == 0 {
            return;
        }
        let oldest = period.before(self.now, count - 1);
        let mut seen = BTreeSet::new();
        let full: Vec<(Label, UtcTime)> = self.full().map(|backup| (backup.label, backup.started)).collect();
        for (label, started) in full {
            let name = period.name(started);
            if name >= oldest && seen.insert(name.clone()) {
                self.keep(label, Why::FirstOf(period, name));
            }
        }
    }

    fn marks(&mut self) {
        for (label, reason) in self.history.marks {
            if self.get(*label).is_some() {
                self.keep(*label, Why::Mark(reason.clone()));
            }
        }
        for (running, leans_on) in self.history.running {
            for label in leans_on
                .iter()
                .filter(|label| self.get(**label).is_some())
                .copied()
                .collect::<Vec<_>>()
            {
                self.keep(label, Why::RunningLeansOn(*running));
            }
        }
        // What an unreadable backup leans on is not known: it may be any older one.
        if let Some(newest) = self.history.unreadable.iter().max() {
            for backup in self.history.backups.iter().filter(|backup| backup.label < *newest) {
                self.keep(backup.label, Why::UnreadableMayLeanOn(*newest));
            }
        }
    }

    /// The backups from whose start on all WAL stays. The first of them begins the window, and stays for that.
    fn window(&mut self, policy: Option<&Retention>) -> BTreeSet<Label> {
        let age = match policy.map(|policy| policy.wal) {
            Some(Some(age)) => age,
            // Without a rule for WAL it stays as long as a backup that is kept for its age or number, not for a month or a mark.
            Some(None) => return self.since_first(|reasons| reasons.iter().any(|why| !why.is_for_itself())),
            None => return self.history.backups.iter().map(|backup| backup.label).collect(),
        };
        let begin = self.now.minus(age);
        let mut window = BTreeSet::new();
        for system in self.systems() {
            if let Some(anchor) = self.anchor(&system, begin) {
                self.keep(anchor, Why::WalWindow(age));
                window.insert(anchor);
                let later = self.history.backups.iter().filter(|backup| backup.label > anchor);
                window.extend(
                    later
                        .filter(|backup| backup.system_identifier == system)
                        .map(|backup| backup.label),
                );
            }
        }
        window
    }

    /// All from the first one on whose reasons satisfy `counts`.
    fn since_first(&self, counts: impl Fn(&[Why]) -> bool) -> BTreeSet<Label> {
        let counts = |backup: &&BackupInfo| self.stays.get(&backup.label).is_some_and(|reasons| counts(reasons));
        let first = self.history.backups.iter().find(counts).map(|backup| backup.label);
        let from = |backup: &&BackupInfo| first.is_some_and(|first| backup.label >= first);
        self.history
            .backups
            .iter()
            .filter(from)
            .map(|backup| backup.label)
            .collect()
    }

    fn systems(&self) -> BTreeSet<String> {
        self.good().map(|backup| backup.system_identifier.clone()).collect()
    }

    /// The backup of a system that any moment since `begin` can be recovered from.
    fn anchor(&self, system: &str, begin: UtcTime) -> Option<Label> {
        let of_system = || {
            self.good()
                .filter(|backup| backup.system_identifier == system && (self.history.follows)(backup))
        };
        // Once a later system has a backup from before the window, this one has nothing in it.
        let newest = self.good().rfind(|backup| backup.system_identifier == system)?;
        let superseded = |backup: &&BackupInfo| {
            backup.system_identifier != system && backup.started > newest.started && backup.stopped <= begin
        };
        if self.good().any(|backup| superseded(&backup)) {
            return None;
        }
        let before = of_system().rfind(|backup| backup.stopped <= begin);
        before.or_else(|| of_system().next()).map(|backup| backup.label)
    }

    /// Adds what that which stays leans on.
    fn lean(&mut self) {
        let mut waiting: Vec<Label> = self.stays.keys().copied().collect();
        while let Some(label) = waiting.pop() {
            let Some(backup) = self.get(label) else { continue };
            let needed: BTreeSet<Label> = backup.references.iter().copied().chain(backup.base).collect();
            for needed in needed {
                // The base itself is needed only where bytes of it are used.
                if !backup.references.contains(&needed) || self.get(needed).is_none() {
                    continue;
                }
                if !self.stays.contains_key(&needed) {
                    waiting.push(needed);
                }
                self.keep(needed, Why::LeanedOnBy(label));
            }
        }
    }
}

#[cfg(test)]
mod tests;
