//! How reliable, how large, how fast it grows. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use common::job::Outcome;
use common::job::history::History;
use common::time::UtcTime;
use common::units::{ByteSize, counted};
use serde::Serialize;

use crate::report::{BackupReport, Report, RepositoryReport};
use crate::timeline;

const DAY: Duration = Duration::from_secs(86_400);

/// Statistics of a cluster.
#[derive(Debug, Serialize)]
pub struct Stats {
    /// Grows when a field changes its meaning.
    pub schema: u32,
    /// The cluster.
    pub cluster: String,
    /// By tool: what the audit record of this host says.
    pub jobs: BTreeMap<String, Rates>,
    /// Lines of the audit record that cannot be understood.
    pub unreadable_history_lines: u64,
    /// Each repository that could be read.
    pub repositories: Vec<InRepository>,
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
    /// Stored size of all backups, in bytes.
    pub backups_stored_bytes: u64,
    /// Stored size of all WAL, in bytes.
    pub wal_stored_bytes: u64,
    /// Stored size of all dumps, in bytes.
    pub dumps_stored_bytes: u64,
    /// The backup with the largest stored size.
    pub largest: Option<Largest>,
    /// Stored bytes of the newest full backup for each byte of its files.
    pub compression: Option<f64>,
    /// The newest full backup's files against those of the full backup before, as a factor.
    pub growth_since_last_full: Option<f64>,
    /// The same against the newest full backup that is 30 days older or more.
    pub growth_of_30_days: Option<f64>,
    /// What can be recovered as a line in time: `=` can, `.` cannot.
    pub timeline: Vec<String>,
}

/// A backup and its stored size.
#[derive(Debug, Serialize)]
pub struct Largest {
    /// Which.
    pub label: String,
    /// In bytes.
    pub stored_bytes: u64,
}

impl Stats {
    /// Computes them.
    pub fn of(report: &Report, history: &History, now: UtcTime) -> Self {
        let readable = report
            .repositories
            .iter()
            .filter(|repository| repository.error.is_none());
        Self {
            schema: 1,
            cluster: report.cluster.clone(),
            jobs: rates(history, now),
            unreadable_history_lines: history.unreadable,
            repositories: readable.map(|repository| sizes(repository, now)).collect(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("cluster {}\n\njobs of this host that succeeded\n", self.cluster);
        let mut line = |words: String| {
            let _ = writeln!(text, "{words}");
        };
        line(format!("  {:<16} {:>16} {:>16}", "", "last 7 days", "last 30 days"));
        for (tool, rates) in &self.jobs {
            line(format!(
                "  {tool:<16} {:>16} {:>16}",
                rates.days_7.words(),
                rates.days_30.words()
            ));
        }
        if self.jobs.is_empty() {
            line("  no run in 30 days".to_owned());
        }
        if self.unreadable_history_lines > 0 {
            line(format!(
                "  {} of the audit record cannot be understood",
                counted(self.unreadable_history_lines, "line")
            ));
        }
        for one in &self.repositories {
            line(format!("\nrepository {}", one.name));
            let time =
                |time: Option<UtcTime>| time.map_or_else(|| "none".to_owned(), |time| time.whole_seconds().to_string());
            line(format!(
                "  {} from {} to {}",
                counted(one.backups, "good backup"),
                time(one.oldest),
                time(one.newest)
            ));
            if let Some(bytes) = one.database_bytes {
                line(format!("  database {}", ByteSize(bytes)));
            }
            line(format!(
                "  stored: backups {}, WAL {}, dumps {}",
                ByteSize(one.backups_stored_bytes),
                ByteSize(one.wal_stored_bytes),
                ByteSize(one.dumps_stored_bytes)
            ));
            if let Some(largest) = &one.largest {
                line(format!(
                    "  largest backup {}, {}",
                    largest.label,
                    ByteSize(largest.stored_bytes)
                ));
            }
            if let Some(compression) = one.compression {
                line(format!(
                    "  a full backup takes {:.0} % of its files' size",
                    compression * 100.0
                ));
            }
            for (since, factor) in [
                ("the full backup before", one.growth_since_last_full),
                ("30 days", one.growth_of_30_days),
            ] {
                if let Some(factor) = factor {
                    line(format!("  growth since {since}: {:+.1} %", (factor - 1.0) * 100.0));
                }
            }
            for row in &one.timeline {
                line(format!("  {row}"));
            }
        }
        if self.repositories.iter().any(|one| !one.timeline.is_empty()) {
            line("\nF full, D differential, I incremental backup; = every moment can be recovered, . none".to_owned());
        }
        text
    }
}

impl Rate {
    fn words(self) -> String {
        match self.runs {
            0 => "no run".to_owned(),
            runs => format!("{:.1} % of {runs}", self.succeeded as f64 / runs as f64 * 100.0),
        }
    }

    fn count(&mut self, succeeded: bool) {
        self.runs += 1;
        self.succeeded += u64::from(succeeded);
    }
}

fn rates(history: &History, now: UtcTime) -> BTreeMap<String, Rates> {
    let mut jobs: BTreeMap<String, Rates> = BTreeMap::new();
    for run in &history.runs {
        let age = now.since(run.finished);
        if run.result == Outcome::Skipped || age > 30 * DAY {
            continue;
        }
        let rates = jobs.entry(run.tool.clone()).or_default();
        let succeeded = run.result == Outcome::Ok;
        rates.days_30.count(succeeded);
        if age <= 7 * DAY {
            rates.days_7.count(succeeded);
        }
    }
    jobs
}

fn sizes(repository: &RepositoryReport, now: UtcTime) -> InRepository {
    let mut good: Vec<&BackupReport> = repository.backups.iter().filter(|backup| backup.good).collect();
    good.sort_by_key(|backup| backup.stopped);
    let fulls: Vec<&&BackupReport> = good.iter().filter(|backup| backup.kind == "full").collect();
    let newest_full = fulls.last();
    let against = |older: Option<&&&BackupReport>| {
        let (new, old) = (newest_full?, older?);
        (old.size_bytes > 0).then(|| new.size_bytes as f64 / old.size_bytes as f64)
    };
    let before = fulls.len().checked_sub(2).and_then(|at| fulls.get(at));
    let month = newest_full.and_then(|new| {
        fulls
            .iter()
            .rev()
            .find(|old| new.stopped.since(old.stopped) >= 30 * DAY)
    });
    let largest = repository.backups.iter().max_by_key(|backup| backup.stored_bytes);
    InRepository {
        name: repository.name.clone(),
        backups: good.len() as u64,
        oldest: good.first().map(|backup| backup.stopped),
        newest: good.last().map(|backup| backup.stopped),
        database_bytes: good.last().map(|backup| backup.size_bytes),
        backups_stored_bytes: repository.backups.iter().map(|backup| backup.stored_bytes).sum(),
        wal_stored_bytes: repository.systems.iter().map(|system| system.wal_stored_bytes).sum(),
        dumps_stored_bytes: repository.dumps.iter().map(|dump| dump.stored_bytes).sum(),
        largest: largest.map(|backup| Largest {
            label: backup.label.clone(),
            stored_bytes: backup.stored_bytes,
        }),
        compression: newest_full
            .filter(|full| full.size_bytes > 0)
            .map(|full| full.stored_bytes as f64 / full.size_bytes as f64),
        growth_since_last_full: against(before),
        growth_of_30_days: against(month),
        timeline: timeline::rows(&repository.systems, &repository.backups, now),
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
pub mod tests;
