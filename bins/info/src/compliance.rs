//! The report of a period: what was backed up, what was tried out, what failed.

use std::fmt::Write;
use std::time::Duration;

use common::config::Objectives;
use common::error::{Error, Kind, Result, chain};
use common::job::Outcome;
use common::job::history::History;
use common::repository::Repository;
use common::repository::evidence::{self, Report as Test};
use common::time::{self, UtcTime};
use common::units::{ByteSize, counted, display_seconds};
use serde::Serialize;

use crate::report::Report;

/// From a moment to before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Period {
    /// This moment counts.
    pub from: UtcTime,
    /// This one does not.
    pub to: UtcTime,
}

/// The report.
#[derive(Debug, Serialize)]
pub struct Compliance {
    /// Grows when a field changes its meaning.
    pub schema: u32,
    /// The cluster.
    pub cluster: String,
    /// The period.
    pub period: Period,
    /// Backups that were made, each once, with the repositories that have it.
    pub backups: Vec<Backup>,
    /// Restore tests, each once.
    pub restore_tests: Vec<Test>,
    /// The recovery point that is aimed at, in seconds.
    pub objective_rpo_seconds: Option<f64>,
    /// The recovery time that is aimed at, in seconds.
    pub objective_rto_seconds: Option<f64>,
    /// The worst recovery point that a test measured, in seconds.
    pub worst_rpo_seconds: Option<f64>,
    /// The worst recovery time that a test measured, in seconds.
    pub worst_rto_seconds: Option<f64>,
    /// Runs on this host that failed.
    pub failures: Vec<Failure>,
    /// Tenants that were erased. This version records none.
    pub erasures: Vec<String>,
    /// What is not in the report, and why.
    pub incomplete: Vec<String>,
}

/// A backup.
#[derive(Debug, Serialize)]
pub struct Backup {
    /// Which.
    pub label: String,
    /// When it was done.
    pub stopped: UtcTime,
    /// How long it took, in seconds.
    pub duration_seconds: f64,
    /// Size of its files in bytes.
    pub size_bytes: u64,
    /// Whether it counts.
    pub good: bool,
    /// Where it is.
    pub repositories: Vec<String>,
}

/// A run that failed.
#[derive(Debug, Serialize)]
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

/// What `--report FROM TO` says.
///
/// # Errors
/// `Config` if one is no time, or there is nothing between them.
pub fn period(words: &[String], now: UtcTime) -> Result<Option<Period>> {
    let [from, to] = words else { return Ok(None) };
    let period = Period {
        from: moment(from, now)?,
        to: moment(to, now)?,
    };
    match period.from < period.to {
        true => Ok(Some(period)),
        false => Err(
            Error::new(Kind::Config, format!("there is nothing between {from} and {to}"))
                .hint("the first is the beginning, the second the end, which does not count"),
        ),
    }
}

/// A date is its beginning in UTC.
fn moment(text: &str, now: UtcTime) -> Result<UtcTime> {
    let is_date = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let whole = if is_date {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    time::parse_target(&whole, now).map_err(|error| error.context(format!("--report {text}")).with_kind(Kind::Config))
}

/// Restore tests of the period, by repository; or why they cannot be read.
pub fn tests(repositories: &[Repository], period: Period) -> Vec<(String, Result<Vec<Test>>)> {
    let within = |test: &Test| period.holds(test.started);
    let of = |repository: &Repository| {
        let reports = evidence::reports(repository);
        reports.map(|reports| reports.into_iter().filter(within).collect())
    };
    repositories
        .iter()
        .map(|repository| (repository.name.clone(), of(repository)))
        .collect()
}

impl Period {
    fn holds(self, time: UtcTime) -> bool {
        self.from <= time && time < self.to
    }
}

impl Compliance {
    /// Puts it together.
    pub fn of(
        report: &Report,
        tests: Vec<(String, Result<Vec<Test>>)>,
        history: &History,
        objectives: Objectives,
        period: Period,
    ) -> Self {
        let mut incomplete = Vec::new();
        let mut backups: Vec<Backup> = Vec::new();
        for repository in &report.repositories {
            if let Some(error) = &repository.error {
                incomplete.push(format!("repository {} cannot be read: {error}", repository.name));
            }
            for backup in repository.backups.iter().filter(|backup| period.holds(backup.stopped)) {
                match backups.iter_mut().find(|known| known.label == backup.label) {
                    Some(known) => known.repositories.push(repository.name.clone()),
                    None => backups.push(Backup {
                        label: backup.label.clone(),
                        stopped: backup.stopped,
                        duration_seconds: backup.duration_seconds,
                        size_bytes: backup.size_bytes,
                        good: backup.good,
                        repositories: vec![repository.name.clone()],
                    }),
                }
            }
        }
        backups.sort_by_key(|backup| backup.stopped);
        let mut restore_tests: Vec<Test> = Vec::new();
        for (name, found) in tests {
            match found {
                Ok(found) => restore_tests.extend(found),
                Err(error)
                    if incomplete
                        .iter()
                        .any(|known| known.starts_with(&format!("repository {name} "))) =>
                {
                    log::debug!("{}", chain(&error));
                }
                Err(error) => incomplete.push(format!(
                    "restore tests in repository {name} cannot be read: {}",
                    chain(&error)
                )),
            }
        }
        restore_tests.sort_by(|a, b| (a.started, &a.host).cmp(&(b.started, &b.host)));
        // Each repository has its own copy.
        restore_tests.dedup_by(|a, b| a.started == b.started && a.host == b.host);
        if history.unreadable > 0 {
            incomplete.push(format!(
                "{} of the audit record cannot be understood",
                counted(history.unreadable, "line")
            ));
        }
        let failed = |outcome: Outcome| !matches!(outcome, Outcome::Ok | Outcome::Skipped);
        let failures = history
            .runs
            .iter()
            .filter(|run| period.holds(run.finished) && failed(run.result));
        let worst = |of: fn(&Test) -> Option<f64>| restore_tests.iter().filter_map(of).reduce(f64::max);
        let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
        Self {
            schema: 1,
            cluster: report.cluster.clone(),
            period,
            objective_rpo_seconds: seconds(objectives.rpo),
            objective_rto_seconds: seconds(objectives.rto),
            worst_rpo_seconds: worst(|test| test.rpo_seconds),
            worst_rto_seconds: worst(|test| test.rto_seconds),
            failures: failures
                .map(|run| Failure {
                    finished: run.finished,
                    tool: run.tool.clone(),
                    host: run.host.clone(),
                    message: run.message.clone().unwrap_or_default(),
                })
                .collect(),
            backups,
            restore_tests,
            erasures: Vec::new(),
            incomplete,
        }
    }

    /// For people and for filing: Markdown.
    pub fn text(&self) -> String {
        let mut text = format!(
            "# Backups of cluster {}\n\nFrom {} to {} (not included).\n",
            self.cluster,
            self.period.from.whole_seconds(),
            self.period.to.whole_seconds()
        );
        let mut line = |words: String| {
            let _ = writeln!(text, "{words}");
        };
        for one in &self.incomplete {
            line(format!("\n**Not complete:** {one}"));
        }
        let good = self.backups.iter().filter(|backup| backup.good).count() as u64;
        line(format!(
            "\n## Backups\n\n{}, {good} of them good\n",
            counted(self.backups.len() as u64, "backup")
        ));
        for one in &self.backups {
            line(format!(
                "- {} {}, {} in {}, in {}{}",
                one.stopped.whole_seconds(),
                one.label,
                ByteSize(one.size_bytes),
                span(one.duration_seconds),
                one.repositories.join(", "),
                if one.good { "" } else { ", **not good**" }
            ));
        }
        let passed = self.restore_tests.iter().filter(|test| test.passed).count();
        line(format!(
            "\n## Restore tests\n\n{}, {passed} of them passed\n",
            counted(self.restore_tests.len() as u64, "restore test")
        ));
        for test in &self.restore_tests {
            let label = test
                .label
                .map_or_else(|| "no backup".to_owned(), |label| label.to_string());
            let result = if test.passed {
                "passed".to_owned()
            } else {
                format!("**{}**", counted(test.problems, "problem"))
            };
            let measured = |name: &str, seconds: Option<f64>| {
                seconds.map_or_else(String::new, |seconds| format!(", {name} {}", span(seconds)))
            };
            line(format!(
                "- {} {label} on {}: {result}{}{}",
                test.started.whole_seconds(),
                test.host,
                measured("RPO", test.rpo_seconds),
                measured("RTO", test.rto_seconds)
            ));
        }
        line("\n## Objectives\n".to_owned());
        line(objective("RPO", self.objective_rpo_seconds, self.worst_rpo_seconds));
        line(objective("RTO", self.objective_rto_seconds, self.worst_rto_seconds));
        line(format!(
            "\n## Failures\n\n{} on this host\n",
            counted(self.failures.len() as u64, "failed run")
        ));
        for one in &self.failures {
            line(format!(
                "- {} {} on {}: {}",
                one.finished.whole_seconds(),
                one.tool,
                one.host,
                one.message
            ));
        }
        line("\n## Erasures\n".to_owned());
        match self.erasures.as_slice() {
            [] => line("none recorded".to_owned()),
            all => all.iter().for_each(|one| line(format!("- {one}"))),
        }
        text
    }
}

fn objective(name: &str, aim: Option<f64>, worst: Option<f64>) -> String {
    match (aim, worst) {
        (None, None) => format!("- {name}: no objective, not measured"),
        (None, Some(worst)) => format!("- {name}: no objective; worst {}", span(worst)),
        (Some(aim), None) => format!("- {name}: objective {}, **not measured**", span(aim)),
        (Some(aim), Some(worst)) => {
            let verdict = if worst <= aim { "met" } else { "**missed**" };
            format!("- {name}: objective {}, worst {}: {verdict}", span(aim), span(worst))
        }
    }
}

fn span(seconds: f64) -> String {
    display_seconds(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::stats::tests::{backup, day, report, run};
    use common::repository::evidence::Level;

    fn test(at: i64, passed: bool, rto: f64) -> Test {
        Test {
            format: 1,
            started: day(at),
            finished: day(at),
            host: "h".to_owned(),
            writer: String::new(),
            cluster: "main".to_owned(),
            label: None,
            repository: None,
            level: Level::Quick,
            target: None,
            passed,
            problems: u64::from(!passed),
            rto_seconds: Some(rto),
            rpo_seconds: None,
            newest_commit: None,
            size_bytes: None,
            durations: std::collections::BTreeMap::new(),
            tables: 0,
            rows: 0,
            checked: 0,
            backed_up_version: None,
            tested_version: None,
        }
    }

    fn words(words: [&str; 2]) -> Vec<String> {
        words.map(str::to_owned).to_vec()
    }

    #[test]
    fn a_period_has_a_beginning_before_its_end() {
        let of = |from, to| period(&words([from, to]), day(0));
        let month = of("2026-11-01", "2026-12-01").unwrap().unwrap();
        assert_eq!(month.to.since(month.from), Duration::from_secs(30 * 86_400));
        assert!(month.holds(month.from) && !month.holds(month.to));
        assert_eq!(period(&[], day(0)).unwrap(), None);
        for (from, to) in [
            ("2026-12-01", "2026-11-01"),
            ("2026-11-01", "2026-11-01"),
            ("2026-11-31", "2026-12-31"),
            ("soon", "2026-11-01"),
        ] {
            assert_eq!(of(from, to).unwrap_err().kind(), Kind::Config, "{from} {to}");
        }
    }

    #[test]
    fn all_of_the_period_is_in_it_and_nothing_else() {
        let period = Period {
            from: day(-10),
            to: day(0),
        };
        let backups = vec![
            backup("before", "full", day(-11), 9),
            backup("in", "full", day(-10), 9),
            backup("after", "full", day(0), 9),
        ];
        let history = History {
            runs: vec![
                run("verify", -20, Outcome::Failed),
                run("verify", -5, Outcome::Failed),
                run("prune", -4, Outcome::Ok),
            ],
            unreadable: 0,
        };
        let tests = vec![
            (
                "local".to_owned(),
                Ok(vec![test(-3, true, 60.0), test(-2, false, 120.0)]),
            ),
            ("away".to_owned(), Err(Error::new(Kind::Transient, "no answer"))),
            ("third".to_owned(), Ok(vec![test(-3, true, 60.0)])),
        ];
        let objectives = Objectives {
            rpo: Some(Duration::from_secs(60)),
            rto: Some(Duration::from_secs(100)),
        };
        let made = Compliance::of(&report(backups), tests, &history, objectives, period);
        assert_eq!(
            made.backups.iter().map(|one| one.label.as_str()).collect::<Vec<_>>(),
            ["in"]
        );
        assert_eq!((made.restore_tests.len(), made.failures.len()), (2, 1));
        assert_eq!(made.incomplete.len(), 1, "said once: {:?}", made.incomplete);
        let text = made.text();
        for wanted in [
            "**Not complete:** repository away",
            "1 backup, 1 of them good",
            "2 restore tests, 1 of them passed",
            "RPO: objective 1m, **not measured**",
            "**missed**",
            "verify on h: it broke",
            "none recorded",
        ] {
            assert!(text.contains(wanted), "{wanted}\n{text}");
        }
    }
}
