//! What a run has to tell.

use std::time::Duration;

use common::error::{Error, Kind, Result, chain_with_hint};
use common::exit::Verdict;
use common::job::Report;
use common::repository::dumps::{DumpInfo, Scope};
use common::repository::writer::Outcome;
use common::units::{ByteSize, counted, display_seconds};
use serde::Serialize;

use crate::plan::Unit;

/// How a run ended.
pub enum Ended {
    /// There is nothing to do, and why.
    Skipped(String),
    /// The dumps.
    Made(Vec<Made>),
}

/// One dump.
#[derive(Serialize)]
pub struct Made {
    label: String,
    scope: Scope,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    databases: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    only: Vec<String>,
    tables: u64,
    size_bytes: u64,
    stored_bytes: u64,
    duration_seconds: f64,
    repositories: Vec<String>,
    failed: Vec<Missing>,
}

/// A repository that does not have it.
#[derive(Serialize)]
struct Missing {
    repository: String,
    required: bool,
    why: String,
}

impl Made {
    /// What became of it.
    ///
    /// # Errors
    /// The first failure if no repository has it.
    pub fn of(unit: &Unit, outcomes: Vec<Outcome<DumpInfo>>, took: Duration) -> Result<Self> {
        let (mut info, mut repositories, mut failed, mut errors) = (None, Vec::new(), Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome.result {
                Ok(made) => {
                    repositories.push(outcome.repository);
                    info.get_or_insert(made);
                }
                Err(error) => {
                    failed.push(Missing {
                        repository: outcome.repository,
                        required: outcome.required,
                        why: chain_with_hint(&error),
                    });
                    errors.push(error);
                }
            }
        }
        let Some(info) = info else {
            let none = || Error::new(Kind::Config, "no repository is configured");
            return Err(errors.into_iter().next().unwrap_or_else(none));
        };
        Ok(Self {
            label: info.label.to_string(),
            scope: info.scope,
            databases: unit.databases.clone(),
            tenant: unit.schema.clone(),
            only: unit
                .tables
                .iter()
                .map(|(schema, table)| format!("{schema}.{table}"))
                .collect(),
            tables: info.tables,
            size_bytes: info.size,
            stored_bytes: info.stored,
            duration_seconds: took.as_secs_f64(),
            repositories,
            failed,
        })
    }

    fn what(&self) -> String {
        match (&self.tenant, self.databases.as_slice()) {
            (None, [database]) if !self.only.is_empty() => format!("{} of database {database}", self.only.join(", ")),
            (Some(tenant), [database]) => format!("tenant {tenant} of database {database}"),
            (_, []) => "roles and tablespaces".to_owned(),
            (_, [database]) => format!("database {database}"),
            (_, several) => format!("databases {}", several.join(", ")),
        }
    }
}

impl Ended {
    /// For people.
    pub fn text(&self) -> String {
        let made = match self {
            Self::Skipped(why) => return format!("no dump: {why}\n"),
            Self::Made(made) => made,
        };
        let mut text = String::new();
        for one in made {
            text += &format!(
                "dump {}: {}, {}, {} in {}, stored {} in {}\n",
                one.label,
                one.what(),
                counted(one.tables, "table"),
                ByteSize(one.size_bytes),
                display_seconds(Duration::from_secs_f64(one.duration_seconds)),
                ByteSize(one.stored_bytes),
                one.repositories.join(", ")
            );
            for missing in &one.failed {
                text += &format!("  not in {}: {}\n", missing.repository, missing.why);
            }
        }
        text
    }

    /// For programs.
    ///
    /// # Errors
    /// None that can be caused.
    pub fn json(&self) -> Result<String> {
        let value = match self {
            Self::Skipped(why) => serde_json::json!({ "skipped": why, "dumps": [] }),
            Self::Made(made) => serde_json::json!({ "dumps": made }),
        };
        let text = serde_json::to_string_pretty(&value);
        text.map(|text| text + "\n")
            .map_err(|error| Error::new(Kind::Failed, "encode the result").because(error))
    }

    /// For status, history and metrics.
    pub fn report(&self) -> Report {
        let made = match self {
            Self::Skipped(why) => return Report::skipped(why.as_str()),
            Self::Made(made) => made,
        };
        let missing = made.iter().flat_map(|one| &one.failed).find(|missing| missing.required);
        let report = match missing {
            None => Report::success(),
            Some(missing) => Report::bad(
                1,
                format!("not in repository \"{}\": {}", missing.repository, missing.why),
            ),
        };
        let sum = |of: fn(&Made) -> u64| made.iter().map(of).sum::<u64>();
        let labels: Vec<&str> = made.iter().map(|one| one.label.as_str()).collect();
        report
            .field("label", labels.join(" "))
            .field("size_bytes", sum(|one| one.size_bytes))
            .field("stored_bytes", sum(|one| one.stored_bytes))
            .field("tables", sum(|one| one.tables))
            .field(
                "duration_seconds",
                made.iter().map(|one| one.duration_seconds).sum::<f64>(),
            )
    }
}

impl Verdict for Ended {
    fn code(&self) -> u8 {
        match self {
            Self::Skipped(_) => 0,
            Self::Made(made) => u8::from(made.iter().flat_map(|one| &one.failed).any(|missing| missing.required)),
        }
    }
}
