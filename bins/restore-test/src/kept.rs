//! What this host keeps of its last tests, to compare the next one with.

use std::fs;
use std::path::{Path, PathBuf};

use common::durable;
use common::error::{Error, Kind, Result};
use common::repository::evidence::Report;
use serde::{Deserialize, Serialize};

use crate::questions::{Answer, Problem, TableRows};

/// So many tests are kept.
const MOST: usize = 100;

/// All that a test found. Stored beside its report, sealed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Details {
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// Tables and their rows.
    pub tables: Vec<TableRows>,
    /// Answers to assertions.
    pub answers: Vec<Answer>,
}

/// A test as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evidence {
    /// What came of it.
    #[serde(flatten)]
    pub report: Report,
    /// All that was found.
    pub details: Details,
}

/// The tests of one cluster that ran on this host.
pub struct Kept(PathBuf);

impl Kept {
    /// Below the cluster's state directory.
    pub fn below(state: &Path) -> Self {
        Self(state.join("evidence"))
    }

    /// Keeps a test; the oldest beyond a hundred go.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&self, evidence: &Evidence) -> Result<PathBuf> {
        durable::create_dir_all(&self.0, 0o700)?;
        let bytes = serde_json::to_vec_pretty(evidence)
            .map_err(|error| Error::new(Kind::Failed, "encode what was found").because(error))?;
        let path = self.0.join(format!("{}.json", evidence.report.started.compact()));
        durable::replace(&path, &bytes, 0o600)?;
        let names = self.names();
        for name in names.iter().take(names.len().saturating_sub(MOST)) {
            let _ = fs::remove_file(self.0.join(name));
        }
        Ok(path)
    }

    /// The newest test that went to the end of WAL and could ask: it has read tables or answers.
    pub fn last(&self) -> Option<Evidence> {
        self.names().iter().rev().find_map(|name| {
            let bytes = fs::read(self.0.join(name)).ok()?;
            let evidence: Evidence = serde_json::from_slice(&bytes).ok()?;
            let asked = !evidence.details.tables.is_empty() || !evidence.details.answers.is_empty();
            (asked && evidence.report.rpo_seconds.is_some()).then_some(evidence)
        })
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.retain(|name| name.ends_with(".json"));
        names.sort();
        names
    }
}
