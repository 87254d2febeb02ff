//! What every job leaves behind: a status file, an audit line, metrics.
//!
//! ```text
//! <state>/<cluster>/status/<tool>.json      0644, replaced by every run: what checks and people read
//! <state>/<cluster>/history.jsonl           0600, one line for each run: the audit record
//! <metrics>/pgkeep_<cluster>_<tool>.prom    0644, where that directory exists and may be written
//! ```
//!
//! Promises: a failure never erases when the job last succeeded; "never" is an absent value, not 0; and leaving
//! traces never fails the job: what cannot be written is said once, as a warning. Clock and identity of the
//! process come from the caller. A job that a signal asks to end says so
//! ([`interruptible`]); one that is killed leaves nothing, which checks notice by age.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::durable;
use crate::error::{Context, Error, Kind, Result, chain};
use crate::exit::Contract;
use crate::interrupt::Interrupt;
use crate::time::UtcTime;

pub mod history;
pub mod interruptible;
mod metrics;

pub use metrics::Sample;

/// Who runs a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The host's name.
    pub host: String,
    /// The user's name, or number where it has none.
    pub user: String,
    /// The process.
    pub pid: u32,
}

impl Origin {
    /// Asks the operating system. Call it from `main`, once root has become the owner of the data.
    pub fn of_this_process() -> Self {
        let uid = nix::unistd::geteuid();
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Self {
            host: host.unwrap_or_else(|| "unknown".to_owned()),
            user: name.unwrap_or_else(|| uid.to_string()),
            pid: std::process::id(),
        }
    }
}

/// Where a job leaves its traces, and under which names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSettings {
    /// The state directory of all clusters.
    pub state_directory: PathBuf,
    /// Where node_exporter's textfile collector reads.
    pub metrics_directory: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// The tool as it calls itself: `base-backup`.
    pub tool: &'static str,
    /// Who runs it.
    pub origin: Origin,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It did what it is for.
    Ok,
    /// There was rightly nothing to do, on a replica for instance. Neither success nor failure.
    Skipped,
    /// It failed, or found damage.
    Failed,
    /// Trying again may help.
    Temporary,
    /// A signal ended it.
    Interrupted,
    /// A person has to change the configuration or the call.
    Misconfigured,
}

/// What a run has to tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    outcome: Outcome,
    exit_code: u8,
    message: Option<String>,
    fields: BTreeMap<String, Value>,
    samples: Vec<Sample>,
}

/// The status file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The tool.
    pub tool: String,
    /// The cluster.
    pub cluster: String,
    /// The host it ran on.
    pub host: String,
    /// The user it ran as.
    pub user: String,
    /// Its process.
    pub pid: u32,
    /// When it began.
    pub started: UtcTime,
    /// When it ended.
    pub finished: UtcTime,
    /// How it ended.
    pub result: Outcome,
    /// What went wrong, or why there was nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Its exit code.
    pub exit_code: u8,
    /// When a run last succeeded; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<UtcTime>,
    /// When a run last failed; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<UtcTime>,
    /// What this run told about itself.
    #[serde(default)]
    pub fields: BTreeMap<String, Value>,
    /// What the last successful run told about itself.
    #[serde(default)]
    pub last_success_fields: BTreeMap<String, Value>,
}

/// One line of the audit record.
#[derive(Serialize)]
struct AuditLine<'a> {
    started: UtcTime,
    finished: UtcTime,
    duration_seconds: f64,
    tool: &'a str,
    cluster: &'a str,
    host: &'a str,
    user: &'a str,
    pid: u32,
    result: Outcome,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    fields: &'a BTreeMap<String, Value>,
}

/// A run that has begun.
#[derive(Debug)]
pub struct Job {
    settings: JobSettings,
    started: UtcTime,
}

impl Report {
    fn new(outcome: Outcome, exit_code: u8, message: Option<String>) -> Self {
        Self {
            outcome,
            exit_code,
            message,
            fields: BTreeMap::new(),
            samples: Vec::new(),
        }
    }

    /// The job did what it is for.
    pub fn success() -> Self {
        Self::new(Outcome::Ok, 0, None)
    }

    /// There was rightly nothing to do; the exit code is 0, and the last success stays what it was.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self::new(Outcome::Skipped, 0, Some(why.into()))
    }

    /// As this report, where the contract has another exit code for it.
    pub fn exit_code(self, exit_code: u8) -> Self {
        Self { exit_code, ..self }
    }

    /// The job ran to its end and found something bad.
    pub fn bad(exit_code: u8, what: impl Into<String>) -> Self {
        Self::new(Outcome::Failed, exit_code, Some(what.into()))
    }

    /// The job ended with this error.
    pub fn failure(error: &Error, contract: Contract) -> Self {
        let outcome = match error.kind() {
            Kind::Transient | Kind::Busy => Outcome::Temporary,
            Kind::Config => Outcome::Misconfigured,
            _ => Outcome::Failed,
        };
        let report = Self::new(outcome, contract.code_of(error), Some(chain(error)));
        match error.nearest_hint() {
            Some(hint) => report.field("hint", hint),
            None => report,
        }
    }

    /// A signal ended the job.
    pub fn interrupted(interrupt: Interrupt) -> Self {
        Self::new(Outcome::Interrupted, interrupt.exit_code(), Some(interrupt.to_string()))
    }

    /// Adds a value to tell. A number becomes the metric `pgkeep_<job>_<name>` too, so its name ends in its unit:
    /// `size_bytes`.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a metric with a name and labels of its own.
    #[must_use]
    pub fn sample(mut self, sample: Sample) -> Self {
        self.samples.push(sample);
        self
    }
}

impl Status {
    /// Where a tool's status file is.
    pub fn path(state_directory: &Path, cluster: &str, tool: &str) -> PathBuf {
        state_directory
            .join(cluster)
            .join("status")
            .join(format!("{tool}.json"))
    }

    /// Reads a status file; `None` if the tool never left one.
    ///
    /// # Errors
    /// `Corrupt` if it is no status; `Failed` and the like if it cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("read status {}", path.display()))?,
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::new(Kind::Corrupt, format!("read status {}", path.display())).because(error))
    }

    /// The status after this run, given the one before.
    fn after(
        settings: &JobSettings,
        started: UtcTime,
        finished: UtcTime,
        report: &Report,
        before: Option<Self>,
    ) -> Self {
        let (mut last_success, mut last_failure, mut last_success_fields) = match before {
            Some(before) => (before.last_success, before.last_failure, before.last_success_fields),
            None => (None, None, BTreeMap::new()),
        };
        match report.outcome {
            Outcome::Ok => {
                last_success = Some(finished);
                last_success_fields.clone_from(&report.fields);
            }
            Outcome::Skipped => {}
            Outcome::Failed | Outcome::Temporary | Outcome::Interrupted | Outcome::Misconfigured => {
                last_failure = Some(finished);
            }
        }
        Self {
            tool: settings.tool.to_owned(),
            cluster: settings.cluster.clone(),
            host: settings.origin.host.clone(),
            user: settings.origin.user.clone(),
            pid: settings.origin.pid,
            started,
            finished,
            result: report.outcome,
            message: report.message.clone(),
            exit_code: report.exit_code,
            last_success,
            last_failure,
            fields: report.fields.clone(),
            last_success_fields,
        }
    }

    fn audit(&self) -> AuditLine<'_> {
        AuditLine {
            started: self.started,
            finished: self.finished,
            duration_seconds: self.finished.since(self.started).as_secs_f64(),
            tool: &self.tool,
            cluster: &self.cluster,
            host: &self.host,
            user: &self.user,
            pid: self.pid,
            result: self.result,
            exit_code: self.exit_code,
            message: self.message.as_deref(),
            fields: &self.fields,
        }
    }
}

/// How the status file is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    Synced,
    Quick,
}

impl Job {
    /// Begins a run; nothing is written yet.
    pub fn start(settings: JobSettings, now: UtcTime) -> Self {
        Self { settings, started: now }
    }

    /// When the run began.
    pub fn started(&self) -> UtcTime {
        self.started
    }

    /// Leaves status, audit line and metrics.
    pub fn finish(self, report: &Report, now: UtcTime) {
        let path = self.status_path();
        let status = Status::after(&self.settings, self.started, now, report, self.status_before(&path));
        let mut troubles = Troubles::default();
        troubles.note(write_status(&path, &status, Care::Synced));
        troubles.note(append_line(&self.history_path(), &status.audit()));
        troubles.note(self.write_metrics(&status, report));
        troubles.warn(self.settings.tool);
    }

    /// Leaves status and metrics, unsynced, at most once a second, and no audit line: for the archive tools,
    /// of which PostgreSQL may run hundreds in that time.
    ///
    /// A run whose result is another than the last one's is always written, so a success does not hide a failure
    /// nor the other way round. Fields of runs that were left out are lost: they say what the last noted run did,
    /// and cannot be counters.
    pub fn leave_quick(self, report: &Report, now: UtcTime) {
        let path = self.status_path();
        let young = is_young(&path, now);
        let before = self.status_before(&path);
        if young && before.as_ref().is_some_and(|before| before.result == report.outcome) {
            return;
        }
        let status = Status::after(&self.settings, self.started, now, report, before);
        let mut troubles = Troubles::default();
        troubles.note(write_status(&path, &status, Care::Quick));
        troubles.note(self.write_metrics(&status, report));
        troubles.warn(self.settings.tool);
    }

    fn status_path(&self) -> PathBuf {
        Status::path(
            &self.settings.state_directory,
            &self.settings.cluster,
            self.settings.tool,
        )
    }

    fn history_path(&self) -> PathBuf {
        self.settings
            .state_directory
            .join(&self.settings.cluster)
            .join("history.jsonl")
    }

    /// The previous status; one that cannot be read is as good as none, and is about to be replaced.
    fn status_before(&self, path: &Path) -> Option<Status> {
        Status::read(path).unwrap_or_else(|error| {
            log::debug!("the previous status is lost: {}", chain(&error));
            None
        })
    }

    /// Writes metrics; silently not where nobody prepared the directory.
    fn write_metrics(&self, status: &Status, report: &Report) -> Result<()> {
        let directory = &self.settings.metrics_directory;
        if !directory.is_dir() || nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK).is_err() {
            return Ok(());
        }
        let path = directory.join(format!("pgkeep_{}_{}.prom", self.settings.cluster, self.settings.tool));
        durable::replace_unsynced(&path, metrics::render(status, &report.samples).as_bytes(), 0o644)
    }
}

/// What went wrong while leaving traces; said once and never fatal.
#[derive(Default)]
struct Troubles(Vec<Error>);

impl Troubles {
    fn note(&mut self, result: Result<()>) {
        self.0.extend(result.err());
    }

    fn warn(self, tool: &str) {
        let texts: Vec<String> = self.0.iter().map(|error| chain(error)).collect();
        if !texts.is_empty() {
            log::warn!(
                "the {tool} job itself is not affected, but it cannot leave its traces: {}",
                texts.join("; ")
            );
        }
    }
}

fn write_status(path: &Path, status: &Status, care: Care) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(status)
        .map_err(|error| Error::new(Kind::Failed, "write the status").because(error))?;
    bytes.push(b'\n');
    let write = || match care {
        Care::Synced => durable::replace(path, &bytes, 0o644),
        Care::Quick => durable::replace_unsynced(path, &bytes, 0o644),
    };
    match (write(), path.parent()) {
        // The usual case pays nothing for the first one's directories.
        (Err(error), Some(directory)) if error.kind() == Kind::NotFound => {
            durable::create_dir_all(directory, 0o755)?;
            let_through(directory)?;
            write()
        }
        (Ok(()), Some(directory)) if care == Care::Synced => let_through(directory),
        (result, _) => result,
    }
}

/// Lets everybody come to the status files. What is private has a directory of its own below the cluster's; whatever made the first of
/// those, before there was a status, kept the cluster's to itself too.
fn let_through(directory: &Path) -> Result<()> {
    let Some(cluster) = directory.parent() else {
        return Ok(());
    };
    let context = || format!("let others through {}", cluster.display());
    let mode = fs::metadata(cluster).context(context)?.permissions().mode();
    if mode & 0o777 == 0o700 {
        fs::set_permissions(cluster, Permissions::from_mode(0o755)).context(context)?;
    }
    Ok(())
}

/// Appends one line with one write, so that jobs that end at the same moment do not mix theirs.
fn append_line(path: &Path, line: &AuditLine<'_>) -> Result<()> {
    let context = || format!("append to {}", path.display());
    let mut bytes = serde_json::to_vec(line).map_err(|error| Error::new(Kind::Failed, context()).because(error))?;
    bytes.push(b'\n');
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .context(context)?;
    // A line that a crash cut short must not swallow this one.
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0)).context(context)? > 0 {
        file.seek(SeekFrom::End(-1)).context(context)?;
        file.read_exact(&mut last).context(context)?;
    }
    if last != [b'\n'] {
        bytes.insert(0, b'\n');
    }
    file.write_all(&bytes).context(context)
}

/// Whether the file was written less than a second ago; a time in the future says that the clock was set back.
fn is_young(path: &Path, now: UtcTime) -> bool {
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    modified
        .and_then(|time| UtcTime::try_from(time).ok())
        .is_some_and(|time| time <= now && now.since(time) < Duration::from_secs(1))
}

#[cfg(test)]
mod tests;
