//! What was found.

use std::sync::{Mutex, PoisonError};

use common::storage::Key;
use serde::Serialize;

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Worth knowing; nothing is lost.
    Note,
    /// It could not be looked at, so nobody knows.
    Unchecked,
    /// Something is damaged or missing.
    Damage,
}

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It should be there and is not.
    Missing,
    /// It has another size than was stored.
    Size,
    /// Its bytes are others than were stored.
    Content,
    /// It is another object than its name says.
    Swapped,
    /// It describes something else, or nothing that can be understood.
    Unusable,
    /// WAL that is missing between what is there.
    Gap,
    /// It is no object that this program knows.
    Foreign,
    /// It is newer, or cannot be read here.
    Unknown,
    /// It was overwritten or deleted, and its oldest version still counts.
    Shadowed,
    /// This host's memory of the repository was out of date.
    Stale,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// The kind.
    pub what: What,
    /// The object's key, or what it is about.
    pub object: String,
    /// What was found.
    pub found: String,
    /// What it means, or what to do.
    pub means: String,
}

impl Finding {
    /// Something damaged or missing.
    pub fn damage(what: What, object: impl Into<String>, found: impl Into<String>, means: impl Into<String>) -> Self {
        Self {
            weight: Weight::Damage,
            what,
            object: object.into(),
            found: found.into(),
            means: means.into(),
        }
    }

    /// With another weight.
    #[must_use]
    pub fn weighing(self, weight: Weight) -> Self {
        Self { weight, ..self }
    }
}

/// Findings of one repository, and what to mend; gathered by several workers.
#[derive(Debug, Default)]
pub struct Findings(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    findings: Vec<Finding>,
    bad: Vec<Key>,
}

impl Findings {
    /// Adds one; with the object's key where a good copy of it could mend it.
    pub fn add(&self, finding: Finding, mendable: Option<&Key>) {
        let mut gathered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gathered.findings.push(finding);
        gathered.bad.extend(mendable.cloned());
    }

    /// All of them, the heaviest first, and the keys that could be mended.
    pub fn finish(self) -> (Vec<Finding>, Vec<Key>) {
        let mut gathered = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        gathered
            .findings
            .sort_by(|a, b| b.weight.cmp(&a.weight).then_with(|| a.cmp(b)));
        gathered.findings.dedup();
        gathered.bad.sort();
        gathered.bad.dedup();
        (gathered.findings, gathered.bad)
    }
}
