//! The child whose time is limited: asks the repositories, one after the other, and nothing else.

use std::path::Path;

use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result, chain};
use common::open;
use common::postgres::WalName;
use common::repository::{Repository, wal};
use common::retry::Policy;

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
    let policy = if request.standby {
        Policy::once()
    } else {
        // What is asked within has patience of its own; both end before the caller's time is over.
        Policy::patient(config.patience / 2)
    };
    let patience = if request.standby {
        config.standby_patience
    } else {
        config.patience / 2
    };
    let repositories = open::repositories_within(config, cluster, &request.only, patience)?;
    let histories = call.histories(config);
    let name = request.name;
    let known = call.known_history(config, &name);
    policy
        .run(format!("fetch {name}"), || {
            ask_all(&call, &repositories, &histories, known.as_deref(), request, asking)
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
    asking: &dyn Fn(&Repository),
) -> Result<Fetched> {
    let (name, destination) = (request.name, request.destination.as_path());
    let is_history = matches!(name, WalName::History { .. });
    let mut answers = Vec::new();
    for repository in repositories {
        asking(repository);
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
        (HistoryFetched::FromCache, Some(content)) => {
            histories::hand_out(&name, content, destination).map(|()| Fetched::Restored)
        }
        (HistoryFetched::FromCache | HistoryFetched::Absent, _) => Ok(Fetched::Absent),
    }
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
