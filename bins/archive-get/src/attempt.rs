//! The child whose time is limited: asks the repositories, one after the other, and nothing else.

use std::time::Instant;

use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result, chain};
use common::open;
use common::postgres::WalName;
use common::repository::{Repository, wal};
use common::retry::Policy;

use crate::absence::Search;
use crate::answer::{self, Fetched, HistoryFetched, Said};
use crate::call::{Call, Request};
use crate::checked;
use crate::histories::{self, Histories};
use crate::place::Placing;

/// Asks every repository, in a standby once, else until patience ends. `asking` hears whom, before each.
///
/// # Errors
/// Whenever it could not be found out whether the archive has the file: never to be read as "absent".
pub fn run(config: &Config, cluster: &Cluster, request: &Request, asking: &dyn Fn(&Repository)) -> Result<Fetched> {
    let call = Call::find(config, cluster)?;
    let (policy, patience) = match request.standby {
        true => (Policy::once(), config.standby_patience),
        // What is asked within has patience of its own; both end before the caller's time is over.
        false => (Policy::patient(config.patience / 2), config.patience / 2),
    };
    let repositories = open::repositories_within(config, cluster, &request.only, patience)?;
    let asked = Asked {
        repositories: in_order(repositories, &request.order),
        histories: call.histories(config),
        known: call.known_history(config, &request.name),
        call,
        config,
        request,
        begun: Instant::now(),
    };
    let name = request.name;
    policy
        .run(format!("fetch {name}"), || ask_all(&asked, asking))
        .map_err(|error| error.context(format!("cannot fetch WAL {name}")))
}

/// Those named in `order` first, as they are named.
pub fn in_order(mut repositories: Vec<Repository>, order: &[String]) -> Vec<Repository> {
    let rank = |repository: &Repository| order.iter().position(|name| *name == repository.name);
    repositories.sort_by_key(|repository| rank(repository).unwrap_or(order.len()));
    repositories
}

/// Everything that each round needs.
struct Asked<'a> {
    call: Call,
    config: &'a Config,
    request: &'a Request,
    repositories: Vec<Repository>,
    histories: Histories,
    known: Option<Vec<u8>>,
    begun: Instant,
}

/// Asks every repository once, in order, until one gives the file.
fn ask_all(asked: &Asked<'_>, asking: &dyn Fn(&Repository)) -> Result<Fetched> {
    let (name, destination) = (asked.request.name, asked.request.destination.as_path());
    let is_history = matches!(name, WalName::History { .. });
    let mut answers = Vec::new();
    for repository in &asked.repositories {
        asking(repository);
        let said = ask(asked, repository);
        match &said {
            // The only one's error is the result, and is told once.
            Said::Unknown(error) if asked.repositories.len() > 1 => {
                log::warn!("repository \"{}\": {}", repository.name, chain(error));
            }
            Said::Unknown(_) => {}
            Said::Here | Said::ProvenAbsent if is_history => asked.histories.refresh(repository, asked.call.system),
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
    let known = asked.known.as_deref();
    match (answer::judge_history(answers, known.is_some())?, known) {
        (HistoryFetched::Restored, _) => Ok(Fetched::Restored),
        (HistoryFetched::FromCache, Some(content)) => {
            histories::hand_out(&name, content, destination).map(|()| Fetched::Restored)
        }
        (HistoryFetched::FromCache | HistoryFetched::Absent, _) => Ok(Fetched::Absent),
    }
}

fn ask(asked: &Asked<'_>, repository: &Repository) -> Said {
    let fetched = asked
        .call
        .pins
        .check(repository)
        .and_then(|_| fetch_to(asked, repository));
    match fetched {
        Ok(()) => Said::Here,
        Err(error) if error.kind() == Kind::NotFound => match prove_absent(asked, repository) {
            Ok(()) => Said::ProvenAbsent,
            Err(error) => Said::Unknown(error),
        },
        Err(error) => Said::Unknown(error),
    }
}

/// Shows that the file is not there because it is not in the archive.
fn prove_absent(asked: &Asked<'_>, repository: &Repository) -> Result<()> {
    let known =
        wal::prove_repository(repository, asked.call.system).map_err(|error| no_repository(error, repository))?;
    // Several segments are stored at once: an earlier one may be a moment behind.
    let hole = match asked.begun.elapsed() < asked.config.standby_patience {
        true => Kind::Transient,
        false => Kind::Failed,
    };
    let search = Search {
        repository,
        call: &asked.call,
        config: asked.config,
        hole,
    };
    search.prove_absent(&asked.request.name, known)
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
fn fetch_to(asked: &Asked<'_>, repository: &Repository) -> Result<()> {
    // A failure of the destination says nothing about the archive: it must not look like an absence.
    let mut placing = Placing::begin(&asked.request.destination).map_err(own_fault)?;
    checked::fetch(repository, &asked.call, &asked.request.name, &mut placing)?;
    placing.finish().map_err(own_fault)
}

fn own_fault(error: Error) -> Error {
    match error.kind() {
        Kind::Transient => error,
        _ => error.with_kind(Kind::Failed),
    }
}
