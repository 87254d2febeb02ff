//! How reliable, how large, how fast it grows. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use common::job::Outcome;
use common::job::history::History;
use common::time::UtcTime;
use serde::Serialize;

use crate::report::{BackupReport, Report, RepositoryReport, Untold};
use crate::timeline::{self, Row};

mod text;

const DAY: Duration = Duration::from_secs(86_400);
/// A full backup counts as one of a month before if it is at most so much older or younger than that.
const ABOUT_A_MONTH: Duration = Duration::from_secs(15 * 86_400);

/// Statistics of a cluster.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// Grows when a field changes its meaning.
    pub schema: u32,
    /// The cluster.
    pub cluster: String,
    /// By tool: what the audit record of this host says. A tool that has not run for 30 days has no runs here.
    pub jobs: BTreeMap<String, Rates>,
    /// Lines of the audit record that cannot be understood.
    pub unreadable_history_lines: u64,
    /// Each repository that could be read.
    pub repositories: Vec<InRepository>,
    /// What is missing here, since it could not be read.
    pub incomplete: Vec<Untold>,
}

/// How often a job succeeded.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rates {
    /// In the last 7 days.
    pub days_7: Rate,
    /// In the last 30 days.
    pub days_30: Rate,
}

/// Runs that succeeded, of those that had something to do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// That succeeded.
    pub succeeded: u64,
    /// All.
    pub runs: u64,
}

/// Sizes in one repository.
#[derive(Debug, Serialize)]
pub struct InRepository {
    /// Its name.
    pub name: String,
    /// Number of good backups.
    pub backups: u64,
    /// The oldest good backup.
    pub oldest: Option<UtcTime>,
    /// The newest good backup.
    pub newest: Option<UtcTime>,
    /// Files of the newest good backup: the size of the database, in bytes.
    pub database_bytes: Option<u64>,
    /// Files of all backups, good or not, in bytes: what restoring each of them would write.
    pub backups_size_bytes: u64,
    /// Stored size of all backups, in bytes.
    pub backups_stored_bytes: u64,
    /// Stored size of all WAL, in bytes.
    pub wal_stored_bytes: u64,
    /// Stored size of all dumps, in bytes.
    pub dumps_stored_bytes: u64,
    /// The backup with the largest stored size.
    pub largest: Option<Largest>,
    /// Stored bytes of the newest good full backup for each byte of its files.
    pub compression: Option<f64>,
    /// The newest good full backup against the one before.
    pub growth_since_last_full: Option<Growth>,
    /// The same against the one that is nearest to 30 days older, if one is 15 to 45 days older.
    pub growth_of_30_days: Option<Growth>,
    /// What can be recovered, for each timeline.
    pub timelines: Vec<Row>,
}

/// A backup and its sizes.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Largest {
    /// Which.
    pub label: String,
    /// Its files, in bytes.
    pub size_bytes: u64,
    /// What is stored, in bytes.
    pub stored_bytes: u64,
}

/// How the files of a full backup have grown.
#[derive(Debug, PartialEq, Serialize)]
pub struct Growth {
    /// The older backup.
    pub label: String,
    /// When it was taken.
    pub stopped: UtcTime,
    /// Its files, in bytes.
    pub size_bytes: u64,
    /// The newer size divided by this one.
    pub factor: f64,
}

impl Stats {
    /// Computes them.
    pub fn of(report: &Report, history: &History, incomplete: Vec<Untold>, now: UtcTime) -> Self {
        let readable = report
            .repositories
            .iter()
            .filter(|repository| repository.error.is_none());
        Self {
            schema: 1,
            cluster: report.cluster.clone(),
            jobs: rates(history, now),
            unreadable_history_lines: history.unreadable,
            repositories: readable.map(sizes).collect(),
            incomplete,
        }
    }
}

impl Rate {
    fn count(&mut self, succeeded: bool) {
        self.runs += 1;
        self.succeeded += u64::from(succeeded);
    }
}

fn rates(history: &History, now: UtcTime) -> BTreeMap<String, Rates> {
    let mut jobs: BTreeMap<String, Rates> = BTreeMap::new();
    for run in &history.runs {
        let rates = jobs.entry(run.tool.clone()).or_default();
        let age = now.since(run.finished);
        if run.result == Outcome::Skipped || age > 30 * DAY {
            continue;
        }
        let succeeded = run.result == Outcome::Ok;
        rates.days_30.count(succeeded);
        if age <= 7 * DAY {
            rates.days_7.count(succeeded);
        }
    }
    jobs
}

fn sizes(repository: &RepositoryReport) -> InRepository {
    let mut good: Vec<&BackupReport> = repository.backups.iter().filter(|backup| backup.good).collect();
    good.sort_by_key(|backup| backup.stopped);
    let fulls: Vec<&BackupReport> = good.iter().copied().filter(|backup| backup.kind == "full").collect();
    let newest_full = fulls.last();
    let largest = repository.backups.iter().max_by_key(|backup| backup.stored_bytes);
    InRepository {
        name: repository.name.clone(),
        backups: good.len() as u64,
        oldest: good.first().map(|backup| backup.stopped),
        newest: good.last().map(|backup| backup.stopped),
        database_bytes: good.last().map(|backup| backup.size_bytes),
        backups_size_bytes: repository.backups.iter().map(|backup| backup.size_bytes).sum(),
        backups_stored_bytes: repository.backups.iter().map(|backup| backup.stored_bytes).sum(),
        wal_stored_bytes: repository.systems.iter().map(|system| system.wal_stored_bytes).sum(),
        dumps_stored_bytes: repository.dumps.iter().map(|dump| dump.stored_bytes).sum(),
        largest: largest.map(|backup| Largest {
            label: backup.label.clone(),
            size_bytes: backup.size_bytes,
            stored_bytes: backup.stored_bytes,
        }),
        compression: newest_full
            .filter(|full| full.size_bytes > 0)
            .map(|full| full.stored_bytes as f64 / full.size_bytes as f64),
        growth_since_last_full: since_last(&fulls),
        growth_of_30_days: of_a_month(&fulls),
        timelines: timeline::rows(&repository.systems, &repository.backups),
    }
}

fn since_last(fulls: &[&BackupReport]) -> Option<Growth> {
    let [.., before, newest] = fulls else { return None };
    growth(before, newest)
}

fn of_a_month(fulls: &[&BackupReport]) -> Option<Growth> {
    let (newest, older) = fulls.split_last()?;
    let month_before = newest.stopped.minus(30 * DAY);
    let distance = |backup: &&&BackupReport| month_before.distance(backup.stopped);
    let nearest = older.iter().min_by_key(distance)?;
    if distance(&nearest) > ABOUT_A_MONTH {
        return None;
    }
    growth(nearest, newest)
}

/// From one to the other; nothing if the older one has no size to compare with.
fn growth(older: &BackupReport, newer: &BackupReport) -> Option<Growth> {
    (older.size_bytes > 0).then(|| Growth {
        label: older.label.clone(),
        stopped: older.stopped,
        size_bytes: older.size_bytes,
        factor: newer.size_bytes as f64 / older.size_bytes as f64,
    })
}

#[cfg(test)]
#[path = "stats_tests.rs"]
pub mod tests;
