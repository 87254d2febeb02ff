//! Lets a child ask the repositories, for a limited time, and asks on where one is silent.
//!
//! A process of its own, because a file system that hangs (a mounted one without its server) can keep a process from
//! ending, whatever its other threads do; and while restore_command runs a standby can neither stream nor be promoted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::config::Config;
use common::durable;
use common::error::{Context, Error, Kind, Result};
use common::exit::Verdict;
use common::postgres::WalName;
use common::process;
use common::repository::ClusterName;
use common::units::display_duration;

use crate::answer::Fetched;
use crate::call::Request;
use crate::get::Ended;

/// How a child says "absent": no accident ends a process with this code.
const CHILD_ABSENT: u8 = 42;

/// The answer of [`crate::attempt`], as an exit code that only the parent reads.
pub struct ToParent(pub Fetched);

impl Verdict for ToParent {
    fn code(&self) -> u8 {
        match self.0 {
            Fetched::Restored => 0,
            Fetched::Absent => CHILD_ABSENT,
        }
    }
}

/// How much longer than its patience a child may take: it can say best what went wrong.
const GRACE: Duration = Duration::from_millis(500);

/// How long a repository that was silent is asked last.
const SILENT_SPAN: Duration = Duration::from_secs(30);

/// Whom this host has found silent: a file per repository, of which only the age counts.
pub struct Silence {
    directory: PathBuf,
}

impl Silence {
    /// What is remembered for a cluster.
    pub fn new(state: &Path, cluster: &ClusterName) -> Self {
        let directory = state.join(cluster.as_str()).join("silent");
        Self { directory }
    }

    fn is_silent(&self, name: &str) -> bool {
        let modified = std::fs::metadata(self.directory.join(name)).and_then(|found| found.modified());
        modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < SILENT_SPAN))
    }

    /// What cannot be noted costs time only.
    fn note(&self, name: &str) {
        let _ = durable::create_dir_all(&self.directory, 0o700)
            .and_then(|()| durable::replace_unsynced(&self.directory.join(name), b"", 0o600));
    }

    /// In which order to ask: as configured, but those last that were silent a moment ago.
    pub fn order(&self, config: &Config, only: &[String]) -> Vec<String> {
        let configured = config.repositories(only).unwrap_or_default();
        let mut names: Vec<String> = configured.iter().map(|settings| settings.name.clone()).collect();
        names.sort_by_key(|name| self.is_silent(name));
        names
    }
}

/// How the children hear the order.
pub fn flags(order: &[String]) -> impl Iterator<Item = OsString> {
    order.iter().map(|name| OsString::from(format!("--first={name}")))
}

/// How long to wait for one repository before the others are asked; nothing: as long as there is time.
///
/// In recovery it may be slow and yet the only one that has the file: it is asked again, after the others.
fn share(others: usize, left: Duration, standby: bool, standby_patience: Duration) -> Option<Duration> {
    match (others, standby) {
        (0, _) => None,
        (_, true) => Some(left / 2),
        (_, false) => Some((left / 2).min(standby_patience)),
    }
}

/// Lets a child ask the repositories, and gives up when `patience` is over.
///
/// # Errors
/// `Transient` if one is silent and no other has given the file.
pub fn run(config: &Config, silence: &Silence, request: &Request, patience: Duration) -> Result<Ended> {
    let begun = Instant::now();
    let mut order = silence.order(config, &request.only);
    let mut passed_over: Vec<String> = Vec::new();
    loop {
        let left = || patience.saturating_sub(begun.elapsed());
        let mut waiting = Waiting::default();
        let flag = [OsString::from("--attempt")].into_iter().chain(flags(&order));
        let status = process::watch_self(
            flag.chain(request.arguments.iter().cloned()),
            left().saturating_add(GRACE),
            &mut |repository| {
                let behind = order.iter().skip_while(|name| *name != repository).skip(1);
                let others = behind.filter(|name| !passed_over.contains(name)).count();
                let share = share(others, left(), request.standby, config.standby_patience);
                waiting = Waiting {
                    asked: Some((repository.to_owned(), Instant::now())),
                    may_pass_over: share.is_some(),
                };
                Some(share.unwrap_or_else(|| left().saturating_add(GRACE)))
            },
        )
        .context(|| format!("fetch {} in a process of its own", request.name))?;
        let Some(status) = status else {
            let Some((repository, since)) = waiting.asked else {
                return Err(nobody(&request.name, patience));
            };
            silence.note(&repository);
            if !waiting.may_pass_over {
                return Err(silent(
                    config,
                    &request.name,
                    &repository,
                    since.elapsed().min(patience),
                ));
            }
            let waited = display_duration(whole_seconds(since.elapsed()));
            log::warn!("repository \"{repository}\" has not answered for {waited}: asking the others first");
            order.retain(|name| *name != repository);
            order.push(repository.clone());
            passed_over.push(repository);
            continue;
        };
        return match status.code().map(u8::try_from) {
            Some(Ok(0)) => Ok(Ended::Here(Fetched::Restored)),
            Some(Ok(CHILD_ABSENT)) => Ok(Ended::Here(Fetched::Absent)),
            Some(_) => Ok(Ended::Told),
            None => Err(Error::new(
                Kind::Failed,
                format!("the process that fetches {} was killed ({status})", request.name),
            )),
        };
    }
}

/// Whom a child waits for.
#[derive(Default)]
struct Waiting {
    asked: Option<(String, Instant)>,
    /// Whether others have not had their turn.
    may_pass_over: bool,
}

/// Fractions of a second only tell how long it takes to notice.
fn whole_seconds(span: Duration) -> Duration {
    match span.as_secs() {
        0 => span,
        seconds => Duration::from_secs(seconds),
    }
}

fn failed(name: &WalName, what: &str, waited: Duration) -> Error {
    let waited = display_duration(whole_seconds(waited));
    let message = format!("cannot fetch WAL {name}: {what} did not answer within {waited}");
    Error::new(Kind::Transient, message)
}

fn nobody(name: &WalName, patience: Duration) -> Error {
    failed(name, "the process that asks the repositories", patience)
        .hint("is a local file system out of order, or the machine overloaded?")
}

/// Says which repository is silent, since when, and what can be done: a person may read it at night.
fn silent(config: &Config, name: &WalName, repository: &str, waited: Duration) -> Error {
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
    failed(name, &format!("repository \"{repository}\"{place}"), waited).hint(hint)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn whoever_has_others_behind_it_gets_a_part_of_the_time_and_the_last_gets_all() {
        let seconds = Duration::from_secs;
        assert_eq!(share(0, seconds(5), true, seconds(5)), None);
        assert_eq!(share(0, seconds(300), false, seconds(5)), None);
        assert_eq!(share(1, seconds(4), true, seconds(5)), Some(seconds(2)));
        assert_eq!(share(2, seconds(300), false, seconds(5)), Some(seconds(5)));
        assert_eq!(share(2, seconds(6), false, seconds(5)), Some(seconds(3)));
    }

    #[test]
    fn silence_is_remembered_for_a_while() {
        let state = tempfile::tempdir().unwrap();
        let silence = Silence::new(state.path(), &ClusterName::parse("main").unwrap());
        assert!(!silence.is_silent("first"));
        silence.note("first");
        assert!(silence.is_silent("first") && !silence.is_silent("second"));
        let file = std::fs::File::open(state.path().join("main/silent/first")).unwrap();
        file.set_modified(std::time::SystemTime::now() - SILENT_SPAN).unwrap();
        assert!(!silence.is_silent("first"));
    }
}
