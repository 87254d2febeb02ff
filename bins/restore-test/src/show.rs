//! The result, for people and for programs. Pure.

use std::time::Duration;

use common::error::{Error, Kind, Result};
use common::units::{ByteSize, counted, display_duration};

use crate::kept::Evidence;

/// So many problems are shown; all are kept.
const MOST: usize = 20;

/// A few lines.
pub fn text(evidence: &Evidence) -> String {
    let report = &evidence.report;
    let shown = |seconds: f64| display_duration(Duration::from_secs_f64(seconds.max(0.0)));
    let label = report
        .label
        .map_or_else(|| "no backup".to_owned(), |label| label.to_string());
    let verdict = match report.passed {
        true => "passed".to_owned(),
        false => format!("FAILED, {}", counted(report.problems, "problem")),
    };
    let mut lines = vec![format!("restore test of {label}: {verdict}")];
    let mut row = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
    if let Some(target) = &report.target {
        row("target", target.clone());
    }
    if let (Some(bytes), Some(seconds)) = (report.size_bytes, report.durations.get("restore")) {
        let rate = ByteSize((bytes as f64 / seconds.max(0.001)) as u64);
        row(
            "restored",
            format!("{} in {}, {rate}/s", ByteSize(bytes), shown(*seconds)),
        );
    }
    if let Some(seconds) = report.rto_seconds {
        row("recovery", format!("{} until the first query", shown(seconds)));
    }
    match (report.rpo_seconds, report.newest_commit) {
        (Some(seconds), Some(commit)) => row(
            "newest",
            format!("commit of {commit}, {} before the test", shown(seconds)),
        ),
        (Some(seconds), None) => row(
            "newest",
            format!("the backup's end, {} before the test", shown(seconds)),
        ),
        (None, Some(commit)) => row("newest", format!("commit of {commit}")),
        (None, None) => {}
    }
    if report.tables > 0 || report.checked > 0 {
        row(
            "read",
            format!(
                "{} in {}, {} checked by amcheck",
                counted(report.rows, "row"),
                counted(report.tables, "table"),
                counted(report.checked, "relation")
            ),
        );
    }
    let asked = evidence.details.answers.len() as u64;
    if asked > 0 {
        row("asked", counted(asked, "assertion"));
    }
    for note in evidence.details.notes.iter().take(MOST) {
        lines.push(format!("note: {note}"));
    }
    for problem in evidence.details.problems.iter().take(MOST) {
        lines.push(format!("WRONG {}: {}: {}", problem.check, problem.what, problem.found));
    }
    let more = evidence.details.problems.len().saturating_sub(MOST);
    if more > 0 {
        lines.push(format!("and {more} more; --format json shows all"));
    }
    lines.join("\n") + "\n"
}

/// All of it.
///
/// # Errors
/// None that this content can cause.
pub fn json(evidence: &Evidence) -> Result<String> {
    let text = serde_json::to_string_pretty(evidence);
    text.map(|text| text + "\n")
        .map_err(|error| Error::new(Kind::Failed, "encode the result").because(error))
}
