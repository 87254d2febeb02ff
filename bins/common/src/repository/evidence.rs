//! What restore tests found (FORMAT.md, section 6): a report in clear, and the details, sealed where the repository is.

use std::io::Write;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::repository::{Label, Nonce, Repository, document};
use crate::time::UtcTime;

const REPORT: &str = "report.json";
const DETAILS: &str = "details.json.zst";

/// How deep a restore test looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Replay, consistency, freshness, assertions.
    Quick,
    /// Besides, amcheck on every index and table, and every row read.
    Standard,
    /// Besides, every row looked up in every index, pg_visibility and pg_checksums.
    Deep,
}

impl std::str::FromStr for Level {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "quick" => Ok(Self::Quick),
            "standard" => Ok(Self::Standard),
            "deep" => Ok(Self::Deep),
            other => {
                let message = format!("there is no level \"{other}\", only quick, standard and deep");
                Err(Error::new(Kind::Config, message))
            }
        }
    }
}

/// What came of a restore test: no names of databases, tables or questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The document's format.
    pub format: u32,
    /// When the test began, by the host's clock.
    pub started: UtcTime,
    /// When it ended.
    pub finished: UtcTime,
    /// Where it ran.
    pub host: String,
    /// The program.
    pub writer: String,
    /// The cluster.
    pub cluster: String,
    /// The backup; nothing if none could be chosen.
    pub label: Option<Label>,
    /// The repository it was read from.
    pub repository: Option<String>,
    /// How deep was looked.
    pub level: Level,
    /// Where recovery ended, in words.
    pub target: Option<String>,
    /// Whether everything was as it should be.
    pub passed: bool,
    /// How much was not.
    pub problems: u64,
    /// From the start of the restore to the first query, in seconds.
    pub rto_seconds: Option<f64>,
    /// From the newest commit that was recovered to the start of the test, in seconds.
    pub rpo_seconds: Option<f64>,
    /// The newest commit that was recovered, by the server's clock.
    pub newest_commit: Option<UtcTime>,
    /// Bytes that were restored.
    pub size_bytes: Option<u64>,
    /// How long each part took, in seconds: `restore`, `replay`, `checks`.
    pub durations: std::collections::BTreeMap<String, f64>,
    /// Tables read.
    pub tables: u64,
    /// Rows read.
    pub rows: u64,
    /// Relations that amcheck looked at.
    pub checked: u64,
    /// The version of the server that was backed up.
    pub backed_up_version: Option<String>,
    /// The version of the server that the backup was tried on.
    pub tested_version: Option<String>,
}

/// Stores the report and the details in a repository.
///
/// # Errors
/// What the store says: who may only read cannot store.
pub fn store<T: Serialize>(repository: &Repository, report: &Report, details: &T, level: i32) -> Result<()> {
    let nonce = Nonce::random()?;
    let keys = repository.keys();
    let bytes = serde_json::to_vec(details)
        .map_err(|error| Error::new(Kind::Failed, "encode what was found").because(error))?;
    let compressed = zstd::encode_all(bytes.as_slice(), level).context(|| "compress what was found")?;
    let name = format!("{DETAILS}{}", repository.suffix()?);
    let key = keys.of_evidence(report.started, nonce, &name)?;
    let mut upload = repository.store.create(&key)?;
    let mut sealed = repository.metadata_sealing.wrap(&mut upload, None)?;
    sealed.write_all(&compressed).context(|| "write what was found")?;
    sealed.finish()?;
    upload
        .finish()
        .context(|| format!("write {}", repository.store.describe(Some(&key))))?;
    // Last: what has a report is whole.
    document::write(
        repository.store.as_ref(),
        &keys.of_evidence(report.started, nonce, REPORT)?,
        report,
    )?;
    Ok(())
}

/// The reports of all tests, oldest first.
///
/// # Errors
/// `Corrupt` if one cannot be read; else what the store says.
pub fn reports(repository: &Repository) -> Result<Vec<Report>> {
    let folder = repository.keys().evidence()?;
    let mut reports = Vec::new();
    for name in repository.store.children(Some(&folder))? {
        let key = folder.join(&name)?.join(REPORT)?;
        match document::read::<Report>(repository.store.as_ref(), &key) {
            Ok(report) => reports.push(report),
            // A test was killed while it wrote.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    reports.sort_by_key(|report| report.started);
    Ok(reports)
}
