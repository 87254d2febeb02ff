//! Runs pgkeep-restore, as a person would.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::config::{Cluster, Config};
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::process;
use crate::repository::backup::{self, BackupInfo};
use crate::repository::{Label, Repository};
use crate::time::UtcTime;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

const ROUND: Duration = Duration::from_millis(20);

/// So many lines of what it said last are kept.
const LAST_LINES: usize = 6;

/// What is the same in each call.
#[derive(Debug, Clone)]
pub struct Restorer {
    program: PathBuf,
    arguments: Vec<String>,
    deadline: Instant,
}

/// What is restored.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The backup.
    pub backup: Option<Label>,
    /// The moment.
    pub time: Option<UtcTime>,
    /// Only these databases; none: all.
    pub databases: Vec<String>,
}

/// What has to be known of the plan of a restore (`pgkeep-restore --format json`).
#[derive(Debug, Clone, Deserialize)]
pub struct Plan {
    /// The backup.
    pub backup: PlannedBackup,
    /// Where it comes from.
    pub repositories: Vec<String>,
    /// The target in words.
    pub target: String,
    /// Bytes of its files.
    pub size_bytes: u64,
}

/// The backup of a plan.
#[derive(Debug, Clone, Deserialize)]
pub struct PlannedBackup {
    /// Its label.
    pub label: Label,
    /// PostgreSQL's version.
    pub server_version: String,
}

impl Plan {
    /// The backup's own document, from a repository that has it.
    ///
    /// # Errors
    /// Those of the last repository that was asked.
    pub fn info(&self, repositories: &[Repository]) -> Result<BackupInfo> {
        let mut last = Error::new(Kind::NotFound, format!("no repository has {}", self.backup.label));
        let named = |repository: &&Repository| self.repositories.contains(&repository.name);
        for repository in repositories.iter().filter(named) {
            match backup::read(repository, self.backup.label) {
                Ok(info) => return Ok(info),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Restorer {
    /// The pgkeep-restore that belongs to this program: beside it, else where packages put it.
    pub fn new(config: &Config, cluster: &Cluster, repositories: &[String], deadline: Instant) -> Self {
        let file = std::path::absolute(&config.file).unwrap_or_else(|_| config.file.clone());
        let mut arguments = vec![
            "--config".to_owned(),
            file.to_string_lossy().into_owned(),
            "--cluster".to_owned(),
            cluster.name.clone(),
        ];
        for name in repositories {
            arguments.extend(["--repository".to_owned(), name.clone()]);
        }
        Self {
            program: process::sibling(std::env::current_exe().ok().as_deref(), "pgkeep-restore"),
            arguments,
            deadline,
        }
    }

    /// The plan; nothing is written.
    ///
    /// # Errors
    /// `Failed` or `Transient` with what pgkeep-restore said.
    pub fn plan(&self, wanted: &Wanted, to: &Path) -> Result<Plan> {
        let mut command = self.command(wanted, to);
        command.args(["--dry-run", "--ignore-space", "--format", "json", "--quiet"]);
        // The places of tablespaces are not chosen yet and may be taken: a plan is all that is wanted.
        let (said, ended) = self.run(command, log::Level::Debug)?;
        let parsed = serde_json::from_str(&said);
        parsed.map_err(|error| match ended {
            Err(refused) => refused,
            Ok(()) => Error::new(Kind::Failed, "read the plan of pgkeep-restore").because(error),
        })
    }

    /// Restores; each tablespace goes where `tablespaces` says, by OID.
    ///
    /// # Errors
    /// As [`Restorer::plan`].
    pub fn restore(&self, wanted: &Wanted, to: &Path, tablespaces: &[(u32, PathBuf)], jobs: usize) -> Result<()> {
        let mut command = self.command(wanted, to);
        command.args(["--jobs", &jobs.to_string(), "--archive-mode", "off"]);
        for (oid, place) in tablespaces {
            command.arg("--tablespace").arg(format!("{oid}={}", place.display()));
        }
        self.run(command, log::Level::Info)?.1
    }

    fn command(&self, wanted: &Wanted, to: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg("--to").arg(to);
        if let Some(label) = wanted.backup {
            command.args(["--backup", &label.to_string()]);
        }
        for database in &wanted.databases {
            command.args(["--only-database", database]);
        }
        if let Some(time) = wanted.time {
            command.args(["--target-time", &time.to_string(), "--target-action", "promote"]);
        }
        command
    }

    /// What it wrote to stdout, and whether it succeeded.
    fn run(&self, mut command: Command, level: log::Level) -> Result<(String, Result<()>)> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .context(|| format!("start {}", self.program.display()))
            .map_err(|error| error.hint("pgkeep-restore has to lie beside this program or in /usr/bin"))?;
        let (out, lines) = (
            gather(child.stdout.take()),
            process::follow(child.stderr.take(), level, LAST_LINES),
        );
        let status = self.wait(&mut child)?;
        let said = lines.recv().unwrap_or_default();
        let result = match status.success() {
            true => Ok(()),
            false => Err(refusal(status, &said)),
        };
        Ok((out.recv().unwrap_or_default(), result))
    }

    /// Waits; a signal or the end of time is passed on.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        loop {
            if let Some(status) = child.try_wait().context(|| "wait for pgkeep-restore")? {
                interrupt::check()?;
                return Ok(status);
            }
            let late = Instant::now() >= self.deadline;
            if late || interrupt::caught().is_some() {
                if let Ok(pid) = i32::try_from(child.id()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
                child.wait().context(|| "wait for pgkeep-restore")?;
                interrupt::check()?;
                return Err(Error::new(Kind::Failed, "restoring did not end within time_limit"));
            }
            sleep(ROUND);
        }
    }
}

fn gather(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut all = String::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_string(&mut all);
        }
        let _ = send.send(all);
    });
    receive
}

/// The last words of a program of ours: `restore: what: why`, then perhaps `hint: ...`.
fn refusal(status: ExitStatus, said: &[String]) -> Error {
    let kind = match status.code() {
        Some(2) => Kind::Config,
        Some(75) => Kind::Transient,
        _ => Kind::Failed,
    };
    let hint = said.iter().rev().find_map(|line| line.strip_prefix("hint: "));
    let why = said.iter().rev().find(|line| !line.starts_with("hint: "));
    let why = why.map_or_else(
        || format!("pgkeep-restore ended with {status}"),
        |line| line.strip_prefix("restore: ").unwrap_or(line).to_owned(),
    );
    let error = Error::new(kind, format!("cannot restore: {why}"));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
