//! Reads the audit record back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Outcome;
use crate::error::{Context, Kind, Result};
use crate::time::UtcTime;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// When it began.
    pub started: UtcTime,
    /// When it ended.
    pub finished: UtcTime,
    /// The tool, as it calls itself.
    pub tool: String,
    /// The host.
    pub host: String,
    /// How it ended.
    pub result: Outcome,
    /// What went wrong, or why there was nothing to do.
    #[serde(default)]
    pub message: Option<String>,
    /// What it told about itself.
    #[serde(default)]
    pub fields: BTreeMap<String, Value>,
}

/// The record of a cluster on this host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The runs, in the order in which they ended.
    pub runs: Vec<Run>,
    /// Lines that cannot be understood: a crash cut them short, or somebody wrote into the file.
    pub unreadable: u64,
}

/// Reads it; without a record there were no runs.
///
/// # Errors
/// What the file system says.
pub fn read(state_directory: &Path, cluster: &str) -> Result<History> {
    let path = state_directory.join(cluster).join("history.jsonl");
    let reading = || format!("read {}", path.display());
    let file = match File::open(&path).context(reading) {
        Ok(file) => file,
        Err(error) if error.kind() == Kind::NotFound => return Ok(History::default()),
        Err(error) => return Err(error),
    };
    let mut history = History::default();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.context(reading)?;
        match serde_json::from_slice(&line) {
            Ok(run) => history.runs.push(run),
            Err(_) if line.is_empty() => {}
            Err(_) => history.unreadable += 1,
        }
    }
    Ok(history)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::super::{Job, JobSettings, Origin, Report};
    use super::*;

    #[test]
    fn what_jobs_wrote_is_read_and_what_is_broken_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path(), "main").unwrap(), History::default());
        let settings = JobSettings {
            state_directory: directory.path().to_owned(),
            metrics_directory: directory.path().join("none"),
            cluster: "main".to_owned(),
            tool: "verify",
            origin: Origin {
                host: "h".to_owned(),
                user: "u".to_owned(),
                pid: 1,
            },
        };
        let now = UtcTime::from_unix_seconds(1_790_000_000).unwrap();
        Job::start(settings.clone(), now).finish(&Report::success().field("backups", 3), now);
        let path = directory.path().join("main/history.jsonl");
        let text = std::fs::read_to_string(&path).unwrap() + "{\"started\":\n\n";
        std::fs::write(&path, text).unwrap();
        Job::start(settings, now).finish(&Report::bad(1, "damage"), now);
        let history = read(directory.path(), "main").unwrap();
        assert_eq!((history.runs.len(), history.unreadable), (2, 1));
        assert_eq!(
            (history.runs[0].result, history.runs[1].result),
            (Outcome::Ok, Outcome::Failed)
        );
        assert_eq!(history.runs[0].fields["backups"], 3);
    }
}
