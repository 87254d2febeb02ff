//! The steps of a fetch: from the spool if it was fetched ahead, else from the first repository that has it.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::config::{Cluster, Config};
use common::error::{Context, Error, Kind, Result, chain};
use common::exit::Verdict;
use common::open;
use common::postgres::{ControlFile, SegmentName, SegmentSize, SystemId, TimelineHistory, TimelineId, WalName};
use common::repository::pins::{Pin, Pins};
use common::repository::{ClusterName, Repository, wal};
use common::retry::Policy;
use common::units::display_duration;

use crate::answer::{self, Fetched, HistoryFetched, Said};
use crate::checked;
use crate::histories::Histories;
use crate::place::Placing;
use crate::spool::Spool;

/// What every part of one call needs.
pub struct Call {
    /// The data directory, absolute.
    pub data_directory: PathBuf,
    /// Whose WAL.
    pub system: SystemId,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// What this host remembers of the repositories.
    pub pins: Pins,
}

impl Call {
    /// Finds out whose WAL is asked for: that of the data directory the command runs in, else of the configured one.
    ///
    /// # Errors
    /// What reading pg_control gave.
    pub fn find(config: &Config, cluster: &Cluster) -> Result<Self> {
        let here = Path::new(".");
        let found = if here.join("global/pg_control").exists() {
            here
        } else {
            cluster.data_directory()?
        };
        let data_directory = found
            .canonicalize()
            .context(|| format!("find the data directory {}", found.display()))?;
        let cluster = ClusterName::parse(&cluster.name)?;
        let control = ControlFile::read(&data_directory)?;
        Ok(Self {
            system: control.system_id,
            segment_size: control.segment_size,
            pins: Pins::new(&config.state_directory, &cluster),
            data_directory,
            cluster,
        })
    }

    /// The timeline histories that this host has seen.
    pub fn histories(&self, config: &Config) -> Histories {
        Histories::new(&config.state_directory, &self.cluster, self.system)
    }

    /// What this host knows of a timeline without asking: what it has seen in a repository, or what the server itself keeps
    /// in pg_wal.
    pub fn known_history(&self, config: &Config, name: &WalName) -> Option<Vec<u8>> {
        let WalName::History { timeline } = name else {
            return None;
        };
        let of_server = || std::fs::read(self.data_directory.join("pg_wal").join(name.to_string())).ok();
        self.histories(config)
            .get(name)
            .or_else(of_server)
            .filter(|content| TimelineHistory::parse(*timeline, content).is_ok())
    }

    /// The spool, if every repository has been seen before: its UUIDs are part of the spool's identity.
    pub fn spool(&self, config: &Config, only: &[String]) -> Option<Spool> {
        let configured = config.repositories(only).ok()?;
        let pins: Option<Vec<Pin>> = configured
            .iter()
            .map(|repository| self.pins.get(&repository.name, &repository.location.to_string()))
            .collect();
        let pins = pins.filter(|pins| !pins.is_empty())?;
        Some(Spool::new(
            &config.spool_directory,
            self.cluster.as_str(),
            &self.data_directory,
            self.system,
            &pins,
        ))
    }
}

/// What was asked for.
pub struct Request {
    /// The file.
    pub name: WalName,
    /// Where it shall appear.
    pub destination: PathBuf,
    /// The only repositories to ask; none named: all.
    pub only: Vec<String>,
    /// Whether a standby asks, which soon asks again.
    pub standby: bool,
    /// The arguments of this process, for those it starts.
    pub arguments: Vec<OsString>,
}

/// How a call ended.
pub enum Ended {
    /// With an answer of this process.
    Here(Fetched),
    /// With an error that a child of ours has told already.
    Told,
}

/// The first timeline has no ancestors, and PostgreSQL writes no such file (`timeline.c`, `readTimeLineHistory`, 13 to 18).
/// It asks for it all the same while it is promoted, after standby.signal is gone: a repository that is away then must
/// not end the promotion.
const FIRST_HISTORY: WalName = WalName::History {
    timeline: TimelineId(1),
};

/// Fetches the WAL file: from the spool, else from the repositories in a child whose time is limited.
///
/// # Errors
/// Whenever it could not be found out whether the archive has the file: never to be read as "absent".
pub fn run(config: &Config, cluster: &Cluster, request: &Request) -> Result<Ended> {
    let begun = Instant::now();
    if request.name == FIRST_HISTORY {
        return Ok(Ended::Here(Fetched::Absent));
    }
    let call = Call::find(config, cluster)?;
    let known = call.known_history(config, &request.name);
    let late = Late::new(config, &call);
    let patience = match request.standby || known.is_some() {
        // A promotion makes several calls, and each would wait anew for what has just not answered.
        true if late.is_fresh() => config.standby_patience.min(AFTER_LATE),
        true => config.standby_patience,
        false => config.patience,
    };
    let WalName::Segment(segment) = request.name else {
        let ended = late.note(limited(request, patience));
        return match (ended, known) {
            (Ok(Ended::Told) | Err(_), Some(content)) => {
                from_cache(&request.name, &content, &request.destination).map(Ended::Here)
            }
            (ended, _) => ended,
        };
    };
    let spool = call.spool(config, &request.only);
    let ahead = |first: Option<SegmentName>| {
        // Once more: the repositories may have been seen for the first time just now.
        if let (Some(first), Some(spool)) = (first, call.spool(config, &request.only)) {
            crate::ahead::start(config, &call, &spool, first, &request.arguments);
        }
    };
    if spool.is_some_and(|spool| from_spool(&spool, segment, &request.destination, config.standby_patience)) {
        ahead(segment.next(call.segment_size));
        return Ok(Ended::Here(Fetched::Restored));
    }
    let ended = late.note(limited(request, patience.saturating_sub(begun.elapsed())));
    match &ended {
        Ok(Ended::Here(Fetched::Restored)) => ahead(segment.next(call.segment_size)),
        // It takes longer than a standby may wait: let it arrive in the background, for the next call.
        Err(error) if error.kind() == Kind::Transient && request.standby => ahead(Some(segment)),
        _ => {}
    }
    ended
}

/// How long the repositories are waited for, at most, soon after they have not answered a standby at all.
const AFTER_LATE: Duration = Duration::from_secs(1);

/// How soon that is.
const LATE_SPAN: Duration = Duration::from_secs(30);

/// Remembers that the repositories did not answer in time. Only the age of the file counts.
struct Late(PathBuf);

impl Late {
    fn new(config: &Config, call: &Call) -> Self {
        let directory = config.state_directory.join(call.cluster.as_str());
        Self(directory.join("archive-get.late"))
    }

    fn is_fresh(&self) -> bool {
        let modified = std::fs::metadata(&self.0).and_then(|found| found.modified()).ok();
        modified.is_some_and(|modified| modified.elapsed().is_ok_and(|age| age < LATE_SPAN))
    }

    /// Takes note of how a call ended. What cannot be noted costs time only.
    fn note(&self, ended: Result<Ended>) -> Result<Ended> {
        match &ended {
            Err(error) if error.kind() == Kind::Transient => {
                let _ = common::durable::replace_unsynced(&self.0, b"", 0o600);
            }
            Ok(_) => {
                let _ = std::fs::remove_file(&self.0);
            }
            Err(_) => {}
        }
        ended
    }
}

/// Takes the file from the spool. Whatever goes wrong there, the repositories can still be asked.
fn from_spool(spool: &Spool, segment: SegmentName, destination: &Path, wait: Duration) -> bool {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        // In this order: what was on its way a moment ago is there now, or is not coming.
        let coming = spool.part_path(segment).exists() && spool.is_being_filled();
        if let Some(file) = spool.find(segment) {
            return match file.hand_over(destination) {
                Ok(()) => true,
                Err(error) => {
                    log::warn!("cannot use what was fetched ahead: {}", chain(&error));
                    false
                }
            };
        }
        if !coming || begun.elapsed() >= wait {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// How a child says "absent": no accident ends a process with this code.
const CHILD_ABSENT: u8 = 42;

/// The answer of [`attempt`], as an exit code that only the parent reads.
pub struct ToParent(pub Fetched);

impl Verdict for ToParent {
    fn code(&self) -> u8 {
        match self.0 {
            Fetched::Restored => 0,
            Fetched::Absent => CHILD_ABSENT,
        }
    }
}

/// Lets a child ask the repositories, and gives up when `patience` is over.
///
/// A process of its own, because a file system that hangs (a mounted one without its server) can keep a process from
/// ending, whatever its other threads do; and while restore_command runs a standby can neither stream nor be promoted.
fn limited(request: &Request, patience: Duration) -> Result<Ended> {
    let name = request.name;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--attempt").args(&request.arguments);
    let mut child = command.spawn().context(|| format!("start a process to fetch {name}"))?;
    let (send, receive) = mpsc::channel();
    let process = child.id();
    std::thread::spawn(move || send.send(child.wait()));
    // The child's own patience ends a little earlier; then it can say what went wrong.
    let status = match receive.recv_timeout(patience.saturating_add(GRACE)) {
        Ok(status) => status.context(|| format!("wait for the process that fetches {name}"))?,
        Err(_) => {
            kill(process);
            return Err(Error::new(
                Kind::Transient,
                format!(
                    "cannot fetch WAL {name}: the repositories did not answer within {}",
                    display_duration(patience)
                ),
            )
            .hint("a file system that hangs? pgkeep-init --check tries each repository out"));
        }
    };
    match status.code().map(u8::try_from) {
        Some(Ok(0)) => Ok(Ended::Here(Fetched::Restored)),
        Some(Ok(CHILD_ABSENT)) => Ok(Ended::Here(Fetched::Absent)),
        Some(_) => Ok(Ended::Told),
        None => Err(Error::new(
            Kind::Failed,
            format!("the process that fetches {name} was killed ({status})"),
        )),
    }
}

/// How much longer than its patience a child may take.
const GRACE: Duration = Duration::from_millis(500);

/// Ends a child that hangs. Nobody waits for it: it may be stuck in the kernel.
fn kill(process: u32) {
    if let Ok(process) = i32::try_from(process) {
        // It may have ended just now.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGKILL);
    }
}

/// The child: asks every repository, in a standby once, else until patience ends.
///
/// # Errors
/// As [`run`].
pub fn attempt(config: &Config, cluster: &Cluster, request: &Request) -> Result<Fetched> {
    let call = Call::find(config, cluster)?;
    let (policy, repositories) = if request.standby {
        let span = config.standby_patience;
        let repositories = open::repositories_within(config, cluster, &request.only, span)?;
        (Policy::once(), repositories)
    } else {
        let repositories = open::repositories(config, cluster, &request.only)?;
        (Policy::patient(config.patience), repositories)
    };
    let histories = call.histories(config);
    let name = request.name;
    let known = call.known_history(config, &name);
    policy
        .run(format!("fetch {name}"), || {
            ask_all(&call, &repositories, &histories, known.as_deref(), request)
        })
        .map_err(|error| error.context(format!("cannot fetch WAL {name}")))
}

/// Asks every repository once, in order, until one gives the file.
fn ask_all(
    call: &Call,
    repositories: &[Repository],
    histories: &Histories,
    known: Option<&[u8]>,
    request: &Request,
) -> Result<Fetched> {
    let (name, destination) = (request.name, request.destination.as_path());
    let is_history = matches!(name, WalName::History { .. });
    let mut answers = Vec::new();
    for repository in repositories {
        let said = ask(call, repository, &name, destination);
        match &said {
            // The only one's error is the result, and is told once.
            Said::Unknown(error) if repositories.len() > 1 => {
                log::warn!("repository \"{}\": {}", repository.name, chain(error));
            }
            Said::Unknown(_) => {}
            Said::Here | Said::ProvenAbsent if is_history => histories.refresh(repository, call.system),
            Said::Here | Said::ProvenAbsent => {}
        }
        let here = matches!(said, Said::Here);
        answers.push(said);
        if here {
            break;
        }
    }
    if !is_history {
        return answer::judge(answers);
    }
    match (answer::judge_history(answers, known.is_some())?, known) {
        (HistoryFetched::Restored, _) => Ok(Fetched::Restored),
        (HistoryFetched::FromCache, Some(content)) => from_cache(&name, content, destination),
        (HistoryFetched::FromCache | HistoryFetched::Absent, _) => Ok(Fetched::Absent),
    }
}

fn from_cache(name: &WalName, content: &[u8], destination: &Path) -> Result<Fetched> {
    log::warn!("{name} comes from this host's cache: a repository does not answer");
    let mut placing = Placing::begin(destination)?;
    placing
        .write_all(content)
        .context(|| format!("write {}", destination.display()))?;
    placing.finish()?;
    Ok(Fetched::Restored)
}

fn ask(call: &Call, repository: &Repository, name: &WalName, destination: &Path) -> Said {
    let fetched = call
        .pins
        .check(repository)
        .and_then(|_| fetch_to(repository, call, name, destination));
    match fetched {
        Ok(()) => Said::Here,
        Err(error) if error.kind() == Kind::NotFound => match wal::prove_repository(repository, call.system) {
            Ok(()) => Said::ProvenAbsent,
            Err(error) => Said::Unknown(no_repository(error, repository)),
        },
        Err(error) => Said::Unknown(error),
    }
}

/// "Not found" about the repository itself, in words that nobody takes for the file's absence.
fn no_repository(error: Error, repository: &Repository) -> Error {
    if error.kind() != Kind::NotFound {
        return error;
    }
    Error::new(
        Kind::Failed,
        format!("there is no repository of this cluster at {}", repository.url),
    )
    .because(error)
    .hint("is the file system mounted, and is the url right? nothing was found out about the WAL")
}

/// Fetches one file; the destination appears only when every byte has been verified.
fn fetch_to(repository: &Repository, call: &Call, name: &WalName, destination: &Path) -> Result<()> {
    // A failure of the destination says nothing about the archive: it must not look like an absence.
    let mut placing = Placing::begin(destination).map_err(own_fault)?;
    checked::fetch(repository, call, name, &mut placing)?;
    placing.finish().map_err(own_fault)
}

fn own_fault(error: Error) -> Error {
    match error.kind() {
        Kind::Transient => error,
        _ => error.with_kind(Kind::Failed),
    }
}
