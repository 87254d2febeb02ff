//! The report of a period for people and for filing: Markdown. Pure.

use std::time::Duration;

use common::repository::evidence::{Level, Report as Test};
use common::repository::tombstones::Erasure;
use common::units::{ByteSize, counted, display_duration};

use super::{Backup, Compliance, Failure, Measured};

impl Compliance {
    /// The report as Markdown, ended by a newline.
    pub fn text(&self) -> String {
        let mut lines = vec![
            format!("# Backups of cluster {}\n", self.cluster),
            format!(
                "From {} to {} (not included).",
                self.period.from.whole_seconds(),
                self.period.to.whole_seconds()
            ),
        ];
        for one in &self.incomplete {
            lines.push(format!("\n**Not complete:** {}", one_line(&one.to_string())));
        }
        let good = self.backups.iter().filter(|backup| backup.good).count();
        let backups = counted(self.backups.len() as u64, "backup");
        lines.push(format!("\n## Backups\n\n{backups}, {good} of them good\n"));
        lines.extend(self.backups.iter().map(backup));
        let passed = self.restore_tests.iter().filter(|test| test.passed).count();
        let tests = counted(self.restore_tests.len() as u64, "restore test");
        lines.push(format!("\n## Restore tests\n\n{tests}, {passed} of them passed\n"));
        lines.extend(self.restore_tests.iter().map(test));
        lines.push("\n## Objectives\n".to_owned());
        lines.push(objective("RPO", &self.rpo));
        lines.push(objective("RTO", &self.rto));
        let failures = counted(self.failures.len() as u64, "failed run");
        lines.push(format!("\n## Failures\n\n{failures} on this host\n"));
        lines.extend(self.failures.iter().map(failure));
        if self.unreadable_history_lines > 0 {
            let unreadable = counted(self.unreadable_history_lines, "line");
            lines.push(format!(
                "- {unreadable} of the audit record cannot be understood and may tell of more"
            ));
        }
        lines.push("\n## Erasures\n".to_owned());
        match self.erasures.as_slice() {
            [] => lines.push("none recorded".to_owned()),
            all => lines.extend(all.iter().map(erasure)),
        }
        // A list without entries leaves no two empty lines.
        lines.join("\n").replace("\n\n\n", "\n\n") + "\n"
    }
}

fn erasure(one: &Erasure) -> String {
    let reason = one.tenant.as_ref();
    let reason = reason.map_or_else(String::new, |tenant| format!(": {}", tenant.reason));
    let gone = match one.gone.first() {
        Some(gone) => format!("gone at {}, {}", gone.lsn, gone.time.whole_seconds()),
        None => "not seen to be gone".to_owned(),
    };
    let asked = format!("{} asked for by {} on {}", one.time.whole_seconds(), one.user, one.host);
    format!("- {}", one_line(&format!("{asked}: {one}, {gone}{reason}")))
}

fn backup(one: &Backup) -> String {
    let place = match one.repositories.is_empty() {
        true => "in no repository that was read".to_owned(),
        false => format!("in {}", one.repositories.join(", ")),
    };
    let verdict = match (one.good, one.not_good_in.is_empty()) {
        (true, _) => String::new(),
        (false, true) => ", **not good**".to_owned(),
        (false, false) => format!(", **not good** in {}", one.not_good_in.join(", ")),
    };
    format!(
        "- {} {} ({}), {} in {}, {place}{verdict}",
        one.stopped.whole_seconds(),
        one.label,
        one.kind,
        ByteSize(one.size_bytes),
        span(one.duration_seconds),
    )
}

fn test(one: &Test) -> String {
    let label = one
        .label
        .map_or_else(|| "no backup".to_owned(), |label| label.to_string());
    let level = match one.level {
        Level::Quick => "quick",
        Level::Standard => "standard",
        Level::Deep => "deep",
    };
    let result = match one.passed {
        true => "passed".to_owned(),
        false => format!("**not passed**, {}", counted(one.problems, "problem")),
    };
    let measured = |name: &str, seconds: Option<f64>| {
        seconds.map_or_else(
            || format!(", no {name}"),
            |seconds| format!(", {name} {}", span(seconds)),
        )
    };
    format!(
        "- {} {label} ({level}) on {}: {result}{}{}",
        one.started.whole_seconds(),
        one.host,
        measured("RPO", one.rpo_seconds),
        measured("RTO", one.rto_seconds)
    )
}

fn objective(name: &str, one: &Measured) -> String {
    let aim = one
        .objective_seconds
        .map_or_else(|| "no objective".to_owned(), |aim| format!("objective {}", span(aim)));
    let measured = match (one.worst_seconds, one.median_seconds) {
        (Some(worst), Some(median)) => format!(
            "worst {}, median {} of {}",
            span(worst),
            span(median),
            counted(one.tests, "test")
        ),
        _ => "**not measured**".to_owned(),
    };
    let verdict = match one.met {
        Some(true) => ": met",
        Some(false) => ": **missed**",
        None => "",
    };
    format!("- {name}: {aim}, {measured}{verdict}")
}

fn failure(one: &Failure) -> String {
    format!(
        "- {} {} on {}: {}",
        one.finished.whole_seconds(),
        one.tool,
        one.host,
        one_line(&one.message)
    )
}

/// A message as one line: a list's entry ends with its line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn span(seconds: f64) -> String {
    display_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}
