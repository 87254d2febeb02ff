//! Creates the cluster's part of each repository, or makes sure that it is there and this cluster's own.

use std::path::Path;

use common::config::{Cluster, Config, Environment};
use common::error::{Error, Kind, Result, chain_with_hint};
use common::exit;
use common::open;
use common::repository::events::{self, What};
use common::repository::pins::{Pin, Pins};
use common::repository::wal::reseal::{self, Resealed};
use common::repository::{ClusterName, Identity, Repository, document};
use common::storage::{Durability, NO_ROOT_HINT};
use common::time::UtcTime;

use crate::access::{self, Account};
use crate::args::Args;
use crate::system::{self, System};

/// Creates what is missing in every repository; one that fails does not hold up the others.
///
/// # Errors
/// The first failure, also of a repository that is not required; `Refused` where a repository belongs to another cluster.
pub fn run(config: &Config, cluster: &Cluster, args: &Args, environment: Environment<'_>, now: UtcTime) -> Result<()> {
    let system = system::of(cluster, environment)?;
    let name = ClusterName::parse(&cluster.name)?;
    let pins = Pins::new(&config.state_directory, &name);
    let mut failed: Option<Error> = None;
    for repository in &open::repositories(config, cluster, &args.repositories.names)? {
        let apart = cluster.data_directory.as_deref();
        let created = apart
            .map_or(Ok(()), |directory| not_inside(repository, directory))
            .and_then(|()| not_lost(repository, &pins, args.replace.as_deref()))
            .and_then(|()| create(repository, &system, args.new_history, &pins, now))
            .inspect(|_| reseal(repository, &system, apart, config.compression_level, now));
        match created {
            Ok(line) => exit::print(&format!("{line}\n"))?,
            // Somebody is setting it up: what later may be missing must work once.
            Err(error) => {
                let error =
                    let_in(error, repository).context(format!("cannot create repository \"{}\"", repository.name));
                match failed {
                    None => failed = Some(error),
                    Some(_) => log::error!("{}", chain_with_hint(&error)),
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Refuses to make or take another repository in place of one that this host knows.
fn not_lost(repository: &Repository, pins: &Pins, replaced: Option<&str>) -> Result<()> {
    let known = pins.read(&repository.name, &repository.url);
    match &known {
        Ok(Some(pin)) if replaced == Some(pin.uuid.as_str()) => return Ok(()),
        Ok(None) => return Ok(()),
        _ => {}
    }
    let Some(pin) = known? else { return Ok(()) };
    match pins.compare(repository) {
        Err(error) if is_missing(&error) => Err(Error::new(
            Kind::Refused,
            format!(
                "this host knows it with UUID {}, and there is none at {}",
                pin.uuid, repository.url
            ),
        )
        .hint(format!(
            "is its file system mounted, is the url right? if it is gone for good: pgkeep-init --replace {}",
            pin.uuid
        ))),
        outcome => outcome.map(|_| ()),
    }
}

/// Whether there is no repository, or not even the directory for it.
fn is_missing(error: &Error) -> bool {
    error.kind() == Kind::NotFound || error.nearest_hint() == Some(NO_ROOT_HINT)
}

/// Says how root lets this user in, where the directory of a repository could not be made or written in.
fn let_in(error: Error, repository: &Repository) -> Error {
    let Some(root) = repository.url.strip_prefix("file://").map(Path::new) else {
        return error;
    };
    if !error.is_denied() || error.nearest_hint().is_some() || access::may_write(root).is_ok() {
        return error;
    }
    error.hint(Account::of_this_process().install(root))
}

/// Refuses a repository inside the data directory, which would be backed up into itself, and the reverse.
pub fn not_inside(repository: &Repository, data_directory: &Path) -> Result<()> {
    let Some(root) = repository.url.strip_prefix("file://").map(Path::new) else {
        return Ok(());
    };
    // What is not there yet lies where the nearest directory above it does.
    let resolve = |path: &Path| {
        let there = path
            .ancestors()
            .find_map(|above| Some((above, above.canonicalize().ok()?)));
        there.map_or_else(
            || path.to_owned(),
            |(above, real)| real.join(path.strip_prefix(above).unwrap_or(path)),
        )
    };
    let (root, data) = (resolve(root), resolve(data_directory));
    if root.starts_with(&data) || data.starts_with(&root) {
        let message = format!(
            "the repository {} and the data directory {} lie in each other",
            root.display(),
            data.display()
        );
        return Err(
            Error::new(Kind::Config, message).hint("keep backups on another file system, better on another machine")
        );
    }
    Ok(())
}

fn create(repository: &Repository, system: &System, new_history: bool, pins: &Pins, now: UtcTime) -> Result<String> {
    let store = repository.store.as_ref();
    store.prepare()?;
    let what = match repository.identity_for_writing() {
        Ok(_) => "is there",
        Err(error) if error.kind() == Kind::NotFound => {
            let mut identity = Identity::new(&repository.cluster, now, repository.sealing.is_encrypted())?;
            // Found out once, here; later runs rely on it.
            identity.creation = store.exclusive().word().map(str::to_owned);
            match document::write(store, &repository.keys().identity()?, &identity) {
                // Another host was quicker: its identity is the one.
                Err(error) if error.kind() != Kind::AlreadyExists => return Err(error),
                _ => "created",
            }
        }
        Err(error) => return Err(error),
    };
    let identity = repository.identity_for_writing()?;
    let known = events::systems(repository)?;
    let id = system.id;
    if known.last().map(|last| last.system) != Some(id) {
        if !known.is_empty() && !new_history {
            // Says who the repository belongs to, and how to go on.
            events::require_system(repository, id)?;
        }
        let what = What::System {
            system_identifier: id.to_string(),
            major: system.major.number(),
            segment_size: system.segment_size.bytes(),
            new_history: !known.is_empty(),
        };
        events::append(repository, now, &open::host_name(), what)?;
    }
    note_recipients(repository, now)?;
    let uuid = identity.uuid.clone();
    pins.set(&Pin {
        name: repository.name.clone(),
        url: repository.url.clone(),
        uuid: uuid.clone(),
    })?;
    let encryption = if identity.encrypted {
        "encrypted"
    } else {
        "not encrypted"
    };
    // Only what is less than it should be is worth a word.
    let durability = match store.durability() {
        Durability::Synced => String::new(),
        less => format!(", durability: {less}"),
    };
    Ok(format!(
        "repository \"{}\" {what}: {}/{}, UUID {uuid}, system identifier {id}, {encryption}, exclusive creation by \
         {}{durability}",
        repository.name,
        repository.url,
        repository.cluster,
        store.exclusive()
    ))
}

/// Lets a key that was added open the histories of timelines, too. What cannot be had now can be had by another run, on another host.
fn reseal(repository: &Repository, system: &System, data_directory: Option<&Path>, level: i32, now: UtcTime) {
    let pg_wal = data_directory.map(|directory| directory.join("pg_wal"));
    let name = &repository.name;
    let resealed = reseal::histories(repository, system.id, pg_wal.as_deref(), level, now);
    let resealed = resealed.unwrap_or_else(|error| {
        log::warn!(
            "repository \"{name}\": timeline histories were not looked at: {}",
            chain_with_hint(&error)
        );
        Resealed::default()
    });
    for timeline in resealed.done {
        log::info!(
            "repository \"{name}\": the history of timeline {} opens with all recipients now",
            timeline.0
        );
    }
    for (timeline, error) in resealed.left {
        log::warn!(
            "repository \"{name}\": the history of timeline {} opens with former keys alone: {}; run pgkeep-init on a host that \
             has the file in pg_wal, or the identity, before the former key goes",
            timeline.0,
            chain_with_hint(&error)
        );
    }
}

/// Records the public keys in use, when they are others than those recorded last.
fn note_recipients(repository: &Repository, now: UtcTime) -> Result<()> {
    let recipients = repository.sealing.recipients();
    if recipients.is_empty() {
        return Ok(());
    }
    let last = events::read(repository)?
        .into_iter()
        .rev()
        .find_map(|event| match event.what {
            What::Recipients { recipients } => Some(recipients),
            _ => None,
        });
    if last.as_ref() != Some(&recipients) {
        events::append(repository, now, &open::host_name(), What::Recipients { recipients })?;
    }
    Ok(())
}
