//! The repositories of a run, and one file on its way to them.
//!
//! Whatever touches a repository runs on a thread of its own that nobody joins: a file system that hangs keeps its thread
//! for good, and the others receive the file all the same. Who waits for an answer waits for a limited time, and says so.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use common::codec::Reading;
use common::error::{Error, Kind, Result, chain};
use common::postgres::{SegmentSize, SystemId, WalName};
use common::repository::Repository;
use common::repository::events::{self, KnownSystem};
use common::repository::pins::{Pin, Pins};
use common::repository::wal::kept::KeptMaps;
use common::repository::wal::{self, Put};
use common::time::UtcTime;
use common::units::display_duration;

use crate::content::{self, Compressed};

/// What all files of a run share.
pub struct Run {
    /// Where the files are.
    pub wal_directory: PathBuf,
    /// Whose WAL.
    pub system: SystemId,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// What this host remembers of the repositories.
    pub pins: Pins,
    /// zstd's level.
    pub level: i32,
    /// When the run began.
    pub now: UtcTime,
    /// This host's name, for events.
    pub host: String,
    /// Where maps are kept that this host cannot open in its repositories.
    pub maps: Option<KeptMaps>,
    /// How many threads are with a repository.
    pub busy: AtomicUsize,
}

impl Run {
    /// Whether a thread is still with a repository, perhaps for good: then this process may not be able to end.
    pub fn is_held_up(&self) -> bool {
        self.busy.load(Ordering::SeqCst) > 0
    }

    /// Does something with a repository, on a thread that nobody joins.
    fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        answers: &mpsc::Sender<T>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) {
        self.busy.fetch_add(1, Ordering::SeqCst);
        let (run, answers) = (Arc::clone(self), answers.clone());
        std::thread::spawn(move || {
            let answer = work(&run);
            // In this order: whoever has all answers finds nobody busy.
            run.busy.fetch_sub(1, Ordering::SeqCst);
            let _ = answers.send(answer);
        });
    }
}

/// A repository, and whether it can take anything.
pub struct Target {
    /// The repository.
    pub repository: Repository,
    pin: OnceLock<Result<Pin>>,
    /// The system, until it has been noted that the repository holds WAL of it.
    unnoted: OnceLock<Mutex<Option<KnownSystem>>>,
    silent: AtomicBool,
}

impl Target {
    /// Nothing is known yet.
    pub fn new(repository: Repository) -> Arc<Self> {
        Arc::new(Self {
            repository,
            pin: OnceLock::new(),
            unnoted: OnceLock::new(),
            silent: AtomicBool::new(false),
        })
    }

    /// Which repository it is, once that is known and nothing speaks against it.
    pub fn pin(&self) -> Option<&Pin> {
        self.pin.get()?.as_ref().ok()
    }

    /// Finds out whether it is the right repository. Only the first call asks; others wait for it.
    fn find(&self, run: &Run) -> &Result<Pin> {
        self.pin.get_or_init(|| {
            let repository = &self.repository;
            let pin = repository
                .identity_for_writing()
                .and_then(|_| run.pins.check(repository))
                .and_then(|pin| {
                    let known = events::require_current_system(repository, run.system)?;
                    self.unnoted.get_or_init(|| Mutex::new(Some(known)));
                    Ok(pin)
                });
            pin.map_err(|error| error_with_init_hint(error, repository))
        })
    }

    /// Notes, once, that the repository holds WAL of the system now. Where that fails, the next run does it.
    fn note_first(&self, run: &Run) {
        let unnoted = self.unnoted.get().and_then(|unnoted| unnoted.lock().ok()?.take());
        let Some(known) = unnoted else { return };
        if let Err(error) = wal::note_first(&self.repository, &known, run.now, &run.host) {
            log::warn!(
                "cannot note in repository \"{}\" that it holds WAL: {}",
                self.repository.name,
                chain(&error)
            );
        }
    }

    /// Why it gets nothing, if so.
    fn refusal(&self) -> Option<Error> {
        if self.silent.load(Ordering::Relaxed) {
            return Some(self.silence("has not answered before in this run"));
        }
        let error = self.pin.get()?.as_ref().err()?;
        let copy = Error::new(error.kind(), chain(error));
        Some(match error.nearest_hint() {
            Some(hint) => copy.hint(hint),
            None => copy,
        })
    }

    fn silence(&self, what: &str) -> Error {
        Error::new(Kind::Transient, format!("{} {what}", self.repository.url)).hint(
            "can it be reached? a mounted directory hangs when its server is gone; pgkeep-init --check tries each \
             repository out. The others go on receiving WAL",
        )
    }
}

fn error_with_init_hint(error: Error, repository: &Repository) -> Error {
    if error.kind() == Kind::NotFound {
        return Error::new(Kind::Config, format!("there is no repository at {}", repository.url))
            .because(error)
            .hint("create it once with pgkeep-init; if it exists, is it mounted, and is the url right?");
    }
    error
}

/// Finds out about all targets at once; who does not answer in time is not waited for.
pub fn find_all(run: &Arc<Run>, targets: &[Arc<Target>], limit: Duration) {
    let (send, receive) = mpsc::channel();
    for target in targets {
        let target = Arc::clone(target);
        run.apart(&send, move |run| {
            target.find(run);
        });
    }
    let begun = Instant::now();
    for _ in targets {
        if receive.recv_timeout(limit.saturating_sub(begun.elapsed())).is_err() {
            return;
        }
    }
}

/// A file that is offered to several targets, and what they answer.
pub struct Offer {
    /// What was read of the file; nothing if nobody could take it.
    pub content: Option<Reading>,
    /// The targets, and what came of the file there; nothing yet where an answer is missing.
    outcomes: Vec<(Arc<Target>, Option<Result<Put>>)>,
    answers: mpsc::Receiver<(usize, Result<Put>)>,
    begun: Instant,
}

impl Offer {
    /// Reads and compresses the file once, and begins to store it in each target.
    ///
    /// # Errors
    /// `Refused` if the file is not what its name says; what reading gave.
    pub fn make(run: &Arc<Run>, name: &WalName, targets: &[Arc<Target>]) -> Result<Self> {
        let refused = |target: &Arc<Target>| (Arc::clone(target), target.refusal().map(Err));
        let outcomes: Vec<_> = targets.iter().map(refused).collect();
        let (send, answers) = mpsc::channel();
        let mut content = None;
        // With no target left, reading and compressing would be for nothing.
        if outcomes.iter().any(|(_, outcome)| outcome.is_none()) {
            let path = run.wal_directory.join(name.to_string());
            let (mut file, header) = content::open(&path, name, run.system, run.segment_size)?;
            let (compressed, reading) = content::read(&mut file, name, header.as_ref(), run.level)?;
            content = Some(reading);
            if let (Some(maps), Some(map), WalName::Segment(segment)) = (&run.maps, &compressed.map, name) {
                maps.keep(*segment, map, run.segment_size);
            }
            let compressed = Arc::new(compressed);
            for (at, (target, _)) in outcomes
                .iter()
                .enumerate()
                .filter(|(_, (_, outcome))| outcome.is_none())
            {
                let (target, compressed, name) = (Arc::clone(target), Arc::clone(&compressed), *name);
                run.apart(&send, move |run| {
                    let found = target.find(run).is_ok();
                    let outcome = match target.refusal().filter(|_| !found) {
                        Some(error) => Err(error),
                        None => put(run, &target.repository, &name, &compressed),
                    };
                    if outcome.is_ok() && matches!(name, WalName::Segment(_)) {
                        target.note_first(run);
                    }
                    (at, outcome)
                });
            }
        }
        Ok(Self {
            content,
            outcomes,
            answers,
            begun: Instant::now(),
        })
    }

    /// Waits for answers, at most so long.
    pub fn wait(&mut self, limit: Duration) {
        let begun = Instant::now();
        while self.outcomes.iter().any(|(_, outcome)| outcome.is_none()) {
            let Ok((at, answer)) = self.answers.recv_timeout(limit.saturating_sub(begun.elapsed())) else {
                return;
            };
            if let Some((_, outcome)) = self.outcomes.get_mut(at) {
                *outcome = Some(answer);
            }
        }
    }

    /// Whether there is nothing to wait for any more: every required target has answered, and somebody has the file, or
    /// nobody is left who could.
    pub fn is_enough(&self) -> bool {
        let open = |required_only: bool| {
            (self.outcomes.iter())
                .any(|(target, outcome)| outcome.is_none() && (target.repository.required || !required_only))
        };
        !open(true) && (!open(false) || !self.holders().is_empty())
    }

    /// Stops waiting: who has not answered by now gets nothing more in this run.
    pub fn give_up(&mut self) {
        let waited = self.begun.elapsed();
        for (target, outcome) in &mut self.outcomes {
            if outcome.is_none() {
                target.silent.store(true, Ordering::Relaxed);
                let what = format!("did not answer within {}", display_duration(whole_seconds(waited)));
                *outcome = Some(Err(target.silence(&what)));
            }
        }
    }

    /// The targets that have the file.
    pub fn holders(&self) -> Vec<Arc<Target>> {
        let stored = |(target, outcome): &(Arc<Target>, Option<Result<Put>>)| {
            matches!(outcome, Some(Ok(_))).then(|| Arc::clone(target))
        };
        self.outcomes.iter().filter_map(stored).collect()
    }

    /// Whether it is a segment that was nowhere before: then neither are those that follow it.
    pub fn is_new(&self, name: &WalName) -> bool {
        let is_segment = matches!(name, WalName::Segment(_));
        let was_there = |put: &Put| matches!(put, Put::AlreadyThere | Put::Replaced(_));
        let refused = |error: &Error| error.kind() == Kind::Refused;
        is_segment
            && !self.outcomes.iter().any(|(_, outcome)| match outcome {
                Some(Ok(put)) => was_there(put),
                Some(Err(error)) => refused(error),
                None => false,
            })
    }

    /// What went wrong, in the order of the configuration.
    pub fn into_errors(self) -> impl Iterator<Item = (Arc<Target>, Error)> {
        let failed = |(target, outcome): (Arc<Target>, Option<Result<Put>>)| Some((target, outcome?.err()?));
        self.outcomes.into_iter().filter_map(failed)
    }
}

/// Fractions of a second only tell how long it takes to notice.
fn whole_seconds(span: Duration) -> Duration {
    match span.as_secs() {
        0 => span,
        seconds => Duration::from_secs(seconds),
    }
}

/// Stores a file in one repository, its map first: where the segment is, nobody need wait for the map.
fn put(run: &Run, repository: &Repository, name: &WalName, compressed: &Compressed) -> Result<Put> {
    if let Some(map) = &compressed.map
        && let Err(error) = wal::put_map(repository, run.system, name, map)
    {
        // Whoever misses it reads more.
        log::debug!("the map of {name} is not in \"{}\": {}", repository.name, chain(&error));
    }
    let put = wal::put(repository, run.system, name, &compressed.stream, run.now, &run.host)
        .map_err(|error| with_date(error, run, repository, name))?;
    match &put {
        Put::Stored => log::debug!("stored {name} in \"{}\"", repository.name),
        Put::AlreadyThere => log::debug!("{name} was in \"{}\" already", repository.name),
        Put::Replaced(aside) => log::warn!(
            "{name} was damaged in repository \"{}\" and is stored again; the damaged object is {aside}",
            repository.name
        ),
    }
    Ok(put)
}

/// Says since when a timeline is taken, where its history is refused.
fn with_date(error: Error, run: &Run, repository: &Repository, name: &WalName) -> Error {
    let WalName::History { timeline } = name else {
        return error;
    };
    let stored = || {
        let key = repository.keys().wal(run.system, name, repository.suffix()?)?;
        repository.store.stat(&key)
    };
    match stored() {
        Ok(Some(stat)) if error.kind() == Kind::Refused => error.context(format!(
            "timeline {} was taken by another promotion, stored {}",
            timeline.0,
            stat.modified.whole_seconds()
        )),
        _ => error,
    }
}
