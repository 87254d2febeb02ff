//! The steps of a fetch: from the spool if it was fetched ahead, else from the first repository that has it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::config::{Cluster, Config};
use common::error::{Context, Error, Kind, Result, chain};
use common::exit::Verdict;
use common::postgres::{SegmentName, TimelineId, WalName};
use common::process;
use common::units::display_duration;

use crate::ahead;
use crate::answer::Fetched;
use crate::call::{Call, Request};
use crate::histories;
use crate::spool::Spool;

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
        let ended = late.note(limited(config, request, patience));
        return match (ended, known) {
            (Ok(Ended::Told) | Err(_), Some(content)) => {
                histories::hand_out(&request.name, &content, &request.destination)?;
                Ok(Ended::Here(Fetched::Restored))
            }
            (ended, _) => ended,
        };
    };
    let spool = call.spool(config, &request.only);
    let go_on = |first: Option<SegmentName>| {
        // Once more: the repositories may have been seen for the first time just now.
        if let (Some(first), Some(spool)) = (first, call.spool(config, &request.only)) {
            ahead::start(config, &call, &spool, first, &request.arguments);
        }
    };
    if spool.is_some_and(|spool| from_spool(&spool, segment, &request.destination, config.standby_patience)) {
        go_on(segment.next(call.segment_size));
        return Ok(Ended::Here(Fetched::Restored));
    }
    let ended = late.note(limited(config, request, patience.saturating_sub(begun.elapsed())));
    match &ended {
        Ok(Ended::Here(Fetched::Restored)) => go_on(segment.next(call.segment_size)),
        // It takes longer than a standby may wait: let it arrive in the background, for the next call.
        Err(error) if error.kind() == Kind::Transient && request.standby => go_on(Some(segment)),
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
fn limited(config: &Config, request: &Request, patience: Duration) -> Result<Ended> {
    let name = request.name;
    let flag = [OsString::from("--attempt")];
    let mut asked: Option<(String, Instant)> = None;
    // The child's own patience ends a little earlier; then it can say what went wrong.
    let limit = patience.saturating_add(GRACE);
    let status = process::watch_self(flag.iter().chain(&request.arguments), limit, &mut |repository| {
        asked = Some((repository.to_owned(), Instant::now()));
        None
    })
    .context(|| format!("fetch {name} in a process of its own"))?;
    let Some(status) = status else {
        return Err(silent(config, &name, patience, asked));
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

/// Says which repository is silent, since when, and what can be done: a person may read it at night.
fn silent(config: &Config, name: &WalName, patience: Duration, asked: Option<(String, Instant)>) -> Error {
    let failed = |what: String, waited: Duration| {
        // Fractions of a second only tell how long it takes to notice.
        let waited = if waited.as_secs() > 0 {
            Duration::from_secs(waited.as_secs())
        } else {
            waited
        };
        let message = format!(
            "cannot fetch WAL {name}: {what} did not answer within {}",
            display_duration(waited)
        );
        Error::new(Kind::Transient, message)
    };
    let Some((repository, since)) = asked else {
        return failed("the process that asks the repositories".to_owned(), patience)
            .hint("is a local file system out of order, or the machine overloaded?");
    };
    let place = config.repositories.iter().find(|settings| settings.name == repository);
    let place = place
        .map(|settings| format!(" at {}", settings.location))
        .unwrap_or_default();
    let mut hint =
        "can it be reached? a mounted directory hangs when its server is gone; pgkeep-init --check tries each \
                    repository out"
            .to_owned();
    if config.repositories.len() > 1 {
        hint += "; one that is lost can be left out by naming the others in restore_command: --repository NAME";
    }
    failed(
        format!("repository \"{repository}\"{place}"),
        since.elapsed().min(patience),
    )
    .hint(hint)
}
