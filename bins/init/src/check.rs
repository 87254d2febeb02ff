//! `--check`: one line per check, and an exit code that says whether all of them hold.
//!
//! What settings should be is decided by pure functions; trying the repositories out is the only thing that writes, and
//! it takes back what it wrote.

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::codec::{ContentKind, decode_small, encode_small};
use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result, chain};
use common::exit;
use common::open::{self, Purpose};
use common::postgres::{ControlFile, Session};
use common::repository::{Nonce, Repository, events};
use common::storage::{Durability, read_all};
use common::time::UtcTime;
use common::units::{ByteSize, display_duration};

use crate::access::{self, Account};
use crate::archiver;
use crate::args::Args;
use crate::command::{self, Command, Known};
use crate::create;
use crate::system::{self, System};

/// More than this between the host's clock and a store's confuses expiry and retention.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);
/// Less than this part of a file system free is too little.
const FREE_SHARE: f64 = 0.10;
/// Less than this does not even hold a few WAL segments.
const LEAST_FREE: u64 = 64 << 20;

/// What a check found.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: String,
    found: Found,
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Holds(String),
    /// It holds, and should not stay so.
    ForNow(String),
    Fails(String),
}

fn finding(what: impl Into<String>, result: Result<String>) -> Finding {
    judged(what, result.map(Found::Holds))
}

fn judged(what: impl Into<String>, result: Result<Found>) -> Finding {
    let told = |error: Error| match error.nearest_hint() {
        Some(hint) => format!("{}; {hint}", chain(&error)),
        None => chain(&error),
    };
    Finding {
        what: what.into(),
        found: result.unwrap_or_else(|error| Found::Fails(told(error))),
    }
}

/// Runs every check, prints a line for each, and fails if any did.
///
/// # Errors
/// `Failed` with the number of checks that do not hold.
pub fn run(
    config: &Config,
    cluster: &Cluster,
    args: &Args,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<()> {
    let account = Account::of_this_process();
    let mut findings = check_access(config, cluster, &account, environment);
    let system = match &cluster.data_directory {
        Some(directory) => {
            let control = ControlFile::read(directory);
            let system = control.as_ref().map(System::from).map_err(Error::copy);
            let place = |control: ControlFile| {
                format!(
                    "{} holds PostgreSQL {}, system identifier {}",
                    directory.display(),
                    control.major.number(),
                    control.system_id
                )
            };
            findings.push(finding("data directory", control.map(place)));
            findings.extend(check_extra_paths(cluster, &account));
            findings.extend(check_server(config, cluster, directory, &account, environment));
            system
        }
        None => {
            findings.push(finding("data directory", check_only_dumped(config, cluster)));
            findings.extend(check_extra_paths(cluster, &account));
            let system = system::of(cluster, environment);
            let said = system.as_ref().map_err(Error::copy).map(|system| {
                let (major, id) = (system.major.number(), system.id);
                format!("PostgreSQL {major} answers, system identifier {id}")
            });
            findings.push(finding("server", said));
            system
        }
    };
    if !config.repositories.iter().any(|repository| repository.required) {
        let message = "none is required: WAL counts as archived as soon as any one has it";
        let error = wrong(message.to_owned(), "leave out required = false where WAL must arrive");
        findings.push(finding("repositories", Err(error)));
    }
    match open::repositories(config, cluster, &args.repositories.names) {
        Err(error) => findings.push(finding("repositories", Err(error))),
        Ok(repositories) => {
            for repository in &repositories {
                if let Some(directory) = &cluster.data_directory
                    && let Err(error) = create::not_inside(repository, directory)
                {
                    findings.push(finding(format!("repository \"{}\" place", repository.name), Err(error)));
                }
                findings.extend(check_repository(repository, system.as_ref().ok()));
            }
        }
    }
    let failing = |finding: &&Finding| matches!(finding.found, Found::Fails(_));
    let failed = findings.iter().filter(failing).count();
    for Finding { what, found } in &findings {
        let (mark, said) = match found {
            Found::Holds(said) => ("ok  ", said),
            Found::ForNow(said) => ("WARN", said),
            Found::Fails(said) => ("FAIL", said),
        };
        exit::print(&format!("{mark} {what}: {said}\n"))?;
    }
    if failed == 0 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Failed,
        format!("{failed} of {} checks do not hold", findings.len()),
    ))
}

/// Without a data directory a cluster is dumped and nothing else, unless a repository knows better.
fn check_only_dumped(config: &Config, cluster: &Cluster) -> Result<String> {
    let configured = cluster.data_directory().err();
    let missing = |message: String| {
        let hint = configured.as_ref().and_then(Error::nearest_hint).unwrap_or_default();
        Err(wrong(message, hint))
    };
    match open::purpose(config, cluster, config.patience)? {
        Purpose::Dumps => {
            Ok("none is configured: this cluster is only dumped, and nothing about WAL is asked".to_owned())
        }
        Purpose::Physical => missing(
            "none is configured, and there are base backups or WAL of this cluster: it is not only dumped".to_owned(),
        ),
        Purpose::NotKnown(unread) => missing(format!(
            "none is configured, and whether this cluster is only dumped is not known: repository \"{}\": {}",
            unread.repository, unread.why
        )),
    }
}

/// What every job needs before it can begin; WAL passes through the spool directory, dumps do not.
fn check_access(
    config: &Config,
    cluster: &Cluster,
    account: &Account,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Vec<Finding> {
    let mut findings = vec![
        finding(
            "configuration",
            access::configuration(&config.file, account, environment),
        ),
        finding("state directory", access::state(config, cluster, account)),
    ];
    if cluster.data_directory.is_some() {
        findings.push(finding("spool directory", access::spool(config, cluster, account)));
    }
    findings
}

fn check_extra_paths(cluster: &Cluster, account: &Account) -> Vec<Finding> {
    let look = |path: &PathBuf| {
        finding(
            format!("extra path {}", path.display()),
            access::extra_path(path, cluster, account),
        )
    };
    cluster.extra_paths.iter().map(look).collect()
}

fn wrong(message: String, hint: &str) -> Error {
    Error::new(Kind::Failed, message).hint(hint)
}

/// Says of a setting's value whether it will do.
type Judge<'a> = &'a dyn Fn(&str) -> Result<Found>;

fn check_server(
    config: &Config,
    cluster: &Cluster,
    data_directory: &Path,
    account: &Account,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Vec<Finding> {
    let archive_command = |value: &str| judge_archive_command(value, config, cluster);
    let judges: [(&str, Judge<'_>); 5] = [
        ("wal_level", &|value| judge_wal_level(value).map(Found::Holds)),
        ("archive_mode", &|value| judge_archive_mode(value).map(Found::Holds)),
        ("archive_command", &archive_command),
        ("archive_timeout", &|value| {
            judge_archive_timeout(value).map(Found::Holds)
        }),
        ("max_wal_senders", &|value| {
            judge_max_wal_senders(value).map(Found::Holds)
        }),
    ];
    let mut session = match cluster
        .connection(environment)
        .and_then(|settings| Session::connect(&settings))
    {
        Ok(session) => session,
        Err(error) => {
            let names: Vec<&str> = judges.iter().map(|(name, _)| *name).collect();
            let error = error.context(format!("not checked: {}", names.join(", ")));
            return vec![finding("server", Err(error))];
        }
    };
    let mut findings = vec![finding(
        "server",
        Ok(format!("PostgreSQL {} answers", session.server_version().number())),
    )];
    // A server that does not know the setting has none.
    let library = session.setting("archive_library").map(Option::unwrap_or_default);
    let library = library.and_then(|library| command::judge_library(&library)).err();
    let command_is_called = library.is_none();
    for (name, judge) in judges
        .iter()
        .filter(|(name, _)| command_is_called || *name != "archive_command")
    {
        findings.push(judged(
            *name,
            setting(&mut session, name).and_then(|value| judge(&value)),
        ));
    }
    findings.extend(library.map(|error| finding("archive_library", Err(error))));
    findings.extend(check_archiver(&mut session, command_is_called, data_directory, account));
    let configured = setting(&mut session, "data_directory").and_then(|theirs| {
        if std::fs::canonicalize(&theirs).ok() == std::fs::canonicalize(data_directory).ok() {
            Ok(theirs)
        } else {
            Err(wrong(
                format!(
                    "the server uses {theirs}, the configuration says {}",
                    data_directory.display()
                ),
                "set data_directory, or host and port, so that both mean one server",
            ))
        }
    });
    findings.push(finding("server's data directory", configured));
    findings
}

fn judge_archive_command(value: &str, config: &Config, cluster: &Cluster) -> Result<Found> {
    let is_file = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.is_file());
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let is_configuration =
        |path: &Path| path == config.file || (real(path).is_some() && real(path) == real(&config.file));
    let known = Known::of(config, &cluster.name, &is_file, &is_configuration);
    Ok(match command::judge(value, &known)? {
        Command::Alone => Found::Holds(value.to_owned()),
        Command::Beside => Found::ForNow(format!(
            "{value} stores WAL and calls something else besides, whose failures hold WAL up, too: right during a migration, not for ever"
        )),
    })
}

/// A failure is no more than said: it may be from before the mend, until PostgreSQL has tried again.
fn check_archiver(
    session: &mut Session,
    command_is_called: bool,
    data_directory: &Path,
    account: &Account,
) -> Option<Finding> {
    let asked = archiver::ask(session).and_then(|failing| {
        let Some(failing) = failing else { return Ok(None) };
        let command = match command_is_called {
            true => session.setting("archive_command")?,
            false => None,
        };
        let said = failing.said(
            command.as_deref().filter(|command| !command.is_empty()),
            &account.user,
            data_directory,
        );
        Ok(Some(Found::ForNow(said)))
    });
    asked.transpose().map(|found| judged("archiver", found))
}

fn setting(session: &mut Session, name: &str) -> Result<String> {
    session.setting(name)?.ok_or_else(|| {
        Error::new(Kind::Failed, format!("the server does not say what {name} is"))
            .hint("grant pg_read_all_settings to the configured user")
    })
}

fn judge_wal_level(value: &str) -> Result<String> {
    match value {
        "replica" | "logical" => Ok(value.to_owned()),
        _ => Err(wrong(
            format!("{value} is too little for a backup"),
            "set wal_level = replica and restart",
        )),
    }
}

fn judge_archive_mode(value: &str) -> Result<String> {
    match value {
        "on" | "always" => Ok(value.to_owned()),
        _ => Err(wrong(
            format!("{value}: no WAL is archived"),
            "set archive_mode = on and restart",
        )),
    }
}

fn judge_archive_timeout(value: &str) -> Result<String> {
    match value {
        "0" => Err(wrong(
            "0: a quiet server archives nothing for as long as it likes".to_owned(),
            "set archive_timeout = 60 and reload; it bounds what a disaster can cost",
        )),
        set => Ok(set.to_owned()),
    }
}

fn judge_max_wal_senders(value: &str) -> Result<String> {
    match value.parse::<u32>() {
        Ok(number) if number > 0 => Ok(value.to_owned()),
        _ => Err(wrong(
            format!("{value}: no standby can follow"),
            "set max_wal_senders = 10 and restart",
        )),
    }
}

fn judge_clock(host: UtcTime, store: UtcTime) -> Result<String> {
    let distance = host.distance(store);
    let said = format!("{} apart", display_duration(distance));
    if distance <= CLOCK_TOLERANCE {
        return Ok(said);
    }
    Err(wrong(
        format!("{said}, more than {}", display_duration(CLOCK_TOLERANCE)),
        "set the clocks right (systemd-timesyncd, chrony) on both sides",
    ))
}

fn judge_space(free: u64, total: u64) -> Result<String> {
    let said = format!("{} of {} free", ByteSize(free), ByteSize(total));
    if total == 0 || (free as f64 / total as f64 >= FREE_SHARE && free >= LEAST_FREE) {
        return Ok(said);
    }
    Err(wrong(said, "enlarge the file system, or shorten retention"))
}

/// A server that does not sync is said and no failure: there may be no other.
fn judge_durability(durability: Durability) -> Result<String> {
    match durability {
        Durability::Unsynced => Ok(format!(
            "{durability}: a power cut there may cost what was stored in the last seconds"
        )),
        Durability::Unknown => Err(wrong(
            "it could not be found out whether the store syncs".to_owned(),
            "see the check before",
        )),
        Durability::Synced | Durability::NamesLater => Ok(durability.to_string()),
    }
}

fn check_repository(repository: &Repository, system: Option<&System>) -> Vec<Finding> {
    let what = |check: &str| format!("repository \"{}\" {check}", repository.name);
    let mut findings = vec![finding(
        what("identity"),
        repository
            .identity_for_writing()
            .map(|identity| format!("UUID {}", identity.uuid))
            .map_err(|error| {
                let missing = error.kind() == Kind::NotFound;
                if missing {
                    error.hint("create it with pgkeep-init")
                } else {
                    error
                }
            }),
    )];
    if findings.iter().any(|finding| matches!(finding.found, Found::Fails(_))) {
        return findings;
    }
    if let Some(system) = system {
        let known = events::require_current_system(repository, system.id);
        findings.push(finding(
            what("system identifier"),
            known.map(|system| system.system.to_string()),
        ));
    }
    findings.push(finding(what("write, read, delete"), try_out(repository)));
    findings.push(finding(
        what("durability"),
        judge_durability(repository.store.durability()),
    ));
    findings.push(finding(what("key"), check_key(repository)));
    findings.push(finding(
        what("clock"),
        repository
            .store
            .now()
            .and_then(|store| judge_clock(UtcTime::now(), store)),
    ));
    let space = repository.store.free_space().and_then(|space| match space {
        Some(space) => judge_space(space.available, space.total),
        None => Ok("not known".to_owned()),
    });
    findings.push(finding(what("space"), space));
    findings
}

/// Writes a lease-like object, reads it back, and deletes it.
fn try_out(repository: &Repository) -> Result<String> {
    let key = repository.keys().probe(Nonce::random()?)?;
    let store = repository.store.as_ref();
    let body = b"pgkeep-init --check\n";
    store.put_new(&key, body)?;
    let read = read_all(store, &key, 1024);
    let again = store.put_new(&key, body);
    let deleted = store.delete(&key);
    if read? != body {
        return Err(Error::new(Kind::Corrupt, "what was read is not what was written"));
    }
    match again {
        Err(error) if error.kind() == Kind::AlreadyExists => {}
        Err(error) => return Err(error),
        Ok(_) => {
            return Err(wrong(
                "an object could be created twice".to_owned(),
                "this store cannot keep WAL safe",
            ));
        }
    }
    deleted?;
    Ok(format!("works, exclusive creation by {}", store.exclusive()))
}

/// Seals a probe with the configured recipients and opens it with the configured identity.
fn check_key(repository: &Repository) -> Result<String> {
    if !repository.sealing.is_encrypted() {
        return Ok("not encrypted".to_owned());
    }
    let recipients = repository.sealing.recipients().len();
    if let Some(why) = repository.opening.why_unusable() {
        return Err(why.copy());
    }
    if !repository.opening.has_identity() {
        return Ok(format!("{recipients} recipients, no identity: this host writes only"));
    }
    let sealed = encode_small(b"probe", ContentKind::Wal, 1, &repository.sealing)?;
    decode_small(&sealed, &repository.opening)
        .map_err(|error| error.hint("the identity_file does not belong to any of the recipients"))?;
    Ok(format!(
        "{recipients} recipients, and the identity opens what they seal"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_that_lose_data_fail_and_name_the_mend() {
        for (judged, mend) in [
            (judge_wal_level("minimal"), "wal_level = replica"),
            (judge_archive_mode("off"), "archive_mode = on"),
            (judge_archive_timeout("0"), "archive_timeout = 60"),
            (judge_max_wal_senders("0"), "max_wal_senders = 10"),
        ] {
            assert!(judged.unwrap_err().nearest_hint().unwrap().contains(mend));
        }
        assert!(judge_wal_level("logical").is_ok());
        assert!(judge_archive_mode("always").is_ok());
        assert!(judge_archive_timeout("60").is_ok());
        assert!(judge_max_wal_senders("10").is_ok());
    }

    #[test]
    fn the_command_is_judged_by_the_configuration_that_is_checked() {
        let file = Path::new("/etc/pgkeep/pgkeep.toml");
        let config = Config::parse(file, "[cluster.main]\n[cluster.two]\n", &|_| None).unwrap();
        let judge = |value| judge_archive_command(value, &config, &config.clusters[0]);
        assert!(judge("pgkeep-archive-push %p").is_err());
        assert!(judge("pgkeep-archive-push --cluster two %p").is_err());
        let own = "pgkeep-archive-push --cluster main %p";
        assert_eq!(judge(own).unwrap(), Found::Holds(own.to_owned()));
    }

    #[test]
    fn a_server_that_does_not_sync_is_said() {
        assert!(
            judge_durability(Durability::Unsynced)
                .unwrap()
                .contains("the server does not sync")
        );
        assert_eq!(judge_durability(Durability::Synced).unwrap(), "synced");
        assert!(judge_durability(Durability::Unknown).is_err());
    }

    #[test]
    fn clocks_may_differ_by_ten_minutes() {
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        assert!(judge_clock(now, now.plus(Duration::from_secs(600))).is_ok());
        assert!(judge_clock(now.plus(Duration::from_secs(601)), now).is_err());
    }

    #[test]
    fn a_file_system_nearly_full_fails() {
        assert!(judge_space(5 << 30, 100 << 30).is_err());
        assert!(judge_space(10 << 30, 100 << 30).is_ok());
        assert!(judge_space(2 << 20, 12 << 20).is_err(), "a fifth of nearly nothing");
        assert!(judge_space(0, 0).is_ok());
    }
}
