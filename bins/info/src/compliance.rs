//! The report of a period: what was backed up, what was tried out, what failed. Pure, but for [`read`].

use std::collections::BTreeMap;
use std::time::Duration;

use common::config::Objectives;
use common::job::Outcome;
use common::job::history::Run;
use common::repository::Label;
use common::repository::evidence::Report as Test;
use common::repository::tombstones::{self, Erasure};
use common::time::UtcTime;
use serde::Serialize;
use serde_json::Value;

use crate::period::Period;
use crate::report::{Report, Untold};

pub mod read;
mod text;

use read::Records;

/// The tool whose runs make backups, as it calls itself.
const BASE_BACKUP: &str = "base-backup";

/// The report.
#[derive(Debug, Serialize)]
pub struct Compliance {
    /// Grows when a field changes its meaning.
    pub schema: u32,
    /// The cluster.
    pub cluster: String,
    /// The period.
    pub period: Period,
    /// Backups that were made, each once, oldest first.
    pub backups: Vec<Backup>,
    /// Restore tests, each once, oldest first.
    pub restore_tests: Vec<Test>,
    /// How much time would have been lost.
    pub rpo: Measured,
    /// How long restores took.
    pub rto: Measured,
    /// Runs on this host that failed, oldest first.
    pub failures: Vec<Failure>,
    /// Tenants that were erased, each once, oldest first.
    pub erasures: Vec<Erasure>,
    /// Lines of the audit record that cannot be understood, of this period or another.
    pub unreadable_history_lines: u64,
    /// What is missing here, since it could not be read.
    pub incomplete: Vec<Untold>,
}

/// A backup.
#[derive(Debug, PartialEq, Serialize)]
pub struct Backup {
    /// Which.
    pub label: String,
    /// `full`, `diff` or `incr`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it was done.
    pub stopped: UtcTime,
    /// From start to the last object, in seconds.
    pub duration_seconds: f64,
    /// Size of its files in bytes.
    pub size_bytes: u64,
    /// Whether it counts wherever it is.
    pub good: bool,
    /// Where it is; nowhere if only the audit record of this host knows it still.
    pub repositories: Vec<String>,
    /// Those of them in which it does not count.
    pub not_good_in: Vec<String>,
}

/// An objective and what restore tests measured, in seconds.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// What is aimed at.
    pub objective_seconds: Option<f64>,
    /// The worst.
    pub worst_seconds: Option<f64>,
    /// The median; between the two in the middle where their number is even.
    pub median_seconds: Option<f64>,
    /// How many tests measured it.
    pub tests: u64,
    /// Whether the worst is within the objective; nothing if one of them is not known.
    pub met: Option<bool>,
}

/// A run that failed.
#[derive(Debug, PartialEq, Serialize)]
pub struct Failure {
    /// When it ended.
    pub finished: UtcTime,
    /// Which tool.
    pub tool: String,
    /// Where.
    pub host: String,
    /// Why.
    pub message: String,
}

impl Compliance {
    /// Puts it together.
    pub fn of(report: &Report, records: Records, objectives: Objectives, period: Period) -> Self {
        let restore_tests = tests(records.tests, period);
        let measured = |objective: Option<Duration>, of: fn(&Test) -> Option<f64>| {
            Measured::of(objective, restore_tests.iter().filter_map(of).collect())
        };
        Self {
            schema: 1,
            cluster: report.cluster.clone(),
            period,
            backups: backups(report, &records.history.runs, period),
            rpo: measured(objectives.rpo, |test| test.rpo_seconds),
            rto: measured(objectives.rto, |test| test.rto_seconds),
            failures: failures(&records.history.runs, period),
            erasures: erasures(records.erasures, period),
            restore_tests,
            unreadable_history_lines: records.history.unreadable,
            incomplete: records.untold,
        }
    }
}

impl Measured {
    fn of(objective: Option<Duration>, mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let objective_seconds = objective.map(|objective| objective.as_secs_f64());
        let worst_seconds = seconds.last().copied();
        Self {
            objective_seconds,
            worst_seconds,
            median_seconds: median(&seconds),
            tests: seconds.len() as u64,
            met: worst_seconds
                .zip(objective_seconds)
                .map(|(worst, objective)| worst <= objective),
        }
    }
}

/// The middle of sorted numbers.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        0 => Some((sorted.get(sorted.len() / 2 - 1)? + upper) / 2.0),
        _ => Some(*upper),
    }
}

/// The backups of repositories, and those that retention has removed since, as far as this host made them.
fn backups(report: &Report, runs: &[Run], period: Period) -> Vec<Backup> {
    let mut found: BTreeMap<&str, Backup> = BTreeMap::new();
    for repository in &report.repositories {
        for backup in &repository.backups {
            let entry = found.entry(&backup.label).or_insert_with(|| Backup {
                label: backup.label.clone(),
                kind: backup.kind.clone(),
                stopped: backup.stopped,
                duration_seconds: backup.duration_seconds,
                size_bytes: backup.size_bytes,
                good: true,
                repositories: Vec::new(),
                not_good_in: Vec::new(),
            });
            entry.repositories.push(repository.name.clone());
            if !backup.good {
                entry.good = false;
                entry.not_good_in.push(repository.name.clone());
            }
        }
    }
    for (label, backup) in runs.iter().filter_map(made) {
        found.entry(label).or_insert(backup);
    }
    let mut backups: Vec<Backup> = found.into_values().collect();
    backups.retain(|backup| period.holds(backup.stopped));
    backups.sort_by_key(|backup| backup.stopped);
    backups
}

/// The backup that a run made.
fn made(run: &Run) -> Option<(&str, Backup)> {
    if run.tool != BASE_BACKUP {
        return None;
    }
    let label = run.fields.get("label")?.as_str()?;
    let kind = label.parse::<Label>().ok()?.kind();
    let number = |name: &str| run.fields.get(name).and_then(Value::as_u64);
    let backup = Backup {
        label: label.to_owned(),
        kind: kind.to_string(),
        stopped: run.finished,
        duration_seconds: run.finished.since(run.started).as_secs_f64(),
        size_bytes: number("size_bytes").unwrap_or_default(),
        good: number("damaged_pages") == Some(0),
        repositories: Vec::new(),
        not_good_in: Vec::new(),
    };
    Some((label, backup))
}

/// Each repository has its own copy of a test.
fn tests(mut tests: Vec<Test>, period: Period) -> Vec<Test> {
    tests.retain(|test| period.holds(test.started));
    tests.sort_by(|a, b| (a.started, &a.host).cmp(&(b.started, &b.host)));
    tests.dedup_by(|a, b| a.started == b.started && a.host == b.host);
    tests
}

fn failures(runs: &[Run], period: Period) -> Vec<Failure> {
    let failed = |run: &&Run| !matches!(run.result, Outcome::Ok | Outcome::Skipped);
    let mut failures: Vec<Failure> = runs
        .iter()
        .filter(failed)
        .filter(|run| period.holds(run.finished))
        .map(|run| Failure {
            finished: run.finished,
            tool: run.tool.clone(),
            host: run.host.clone(),
            message: run.message.clone().unwrap_or_default(),
        })
        .collect();
    failures.sort_by_key(|failure| failure.finished);
    failures
}

/// Events are copied from repository to repository.
fn erasures(erasures: Vec<Erasure>, period: Period) -> Vec<Erasure> {
    let mut erasures = tombstones::merged(erasures);
    erasures.retain(|one| period.holds(one.time));
    erasures
}

#[cfg(test)]
#[path = "compliance_tests.rs"]
mod unit_tests;
