//! The server that is backed up: whether it is the one that the configuration means, and what it says of itself.

use std::path::Path;

use common::config::Cluster;
use common::error::{Error, Kind, Result, chain};
use common::job::{Outcome, Status};
use common::postgres::datadir::PARTIAL;
use common::postgres::{ControlFile, Lsn, Session, SystemId, TimelineHistory, TimelineId, WalName};
use common::repository::{Repository, wal};

use crate::wait::Archiving;

/// Reads pg_control of the configured data directory.
///
/// # Errors
/// `Config` if there is none; else what reading gave.
pub fn control_of(data_directory: &Path) -> Result<ControlFile> {
    if let Ok(only) = std::fs::read_to_string(data_directory.join(PARTIAL)) {
        let only = only.lines().collect::<Vec<_>>().join(", ");
        let message = format!("{} holds only database {only} of a cluster", data_directory.display());
        return Err(Error::new(Kind::Refused, message).hint(
            "it was restored with --only-database, and a backup of it would lack the others: dump the database",
        ));
    }
    ControlFile::read(data_directory).map_err(|error| match error.kind() {
        Kind::NotFound => error
            .with_kind(Kind::Config)
            .context(format!(
                "data_directory {} is not PostgreSQL's",
                data_directory.display()
            ))
            .hint("set data_directory to what \"show data_directory\" says on the server"),
        _ => error,
    })
}

/// Fails unless the session's server runs on this very data directory.
///
/// # Errors
/// `Config` if it is another one, or if the role may not know; else what asking gave.
pub fn check_identity(session: &mut Session, data_directory: &Path, control: &ControlFile) -> Result<()> {
    let place = session.describe().to_owned();
    let theirs = session.setting("data_directory").map_err(|error| {
        error
            .context(format!("find out which data directory server {place} runs on"))
            .hint("GRANT pg_read_all_settings to the role")
    })?;
    let theirs = theirs.unwrap_or_default();
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if real(Path::new(&theirs)) != real(data_directory) {
        return Err(Error::new(
            Kind::Config,
            format!(
                "server {place} runs on {theirs}, and data_directory is {}",
                data_directory.display()
            ),
        )
        .hint("make host, port and data_directory of the cluster's configuration mean the same server"));
    }
    let system = session.system_id()?;
    if system != control.system_id {
        return Err(Error::new(
            Kind::Config,
            format!(
                "server {place} has system identifier {system}, and {} has {}",
                data_directory.display(),
                control.system_id
            ),
        )
        .hint("was the data directory exchanged under a running server?"));
    }
    Ok(())
}

/// Fails at once where no WAL can ever be archived.
///
/// # Errors
/// `Config` if archive_mode is off or there is no command.
pub fn check_archiving(session: &mut Session) -> Result<()> {
    let mode = session.setting("archive_mode")?.unwrap_or_default();
    let wrong = if mode == "off" {
        "archive_mode is off".to_owned()
    } else {
        let archiving = settings(session)?;
        if !matches!(archiving.archive_command.as_str(), "" | "(disabled)") || !archiving.archive_library.is_empty() {
            return Ok(());
        }
        "archive_command is empty".to_owned()
    };
    Err(Error::new(
        Kind::Config,
        format!("{wrong}, and a backup without its WAL cannot be restored"),
    )
    .hint("set archive_mode = on and archive_command = 'pgkeep-archive-push %p', and restart the server"))
}

fn settings(session: &mut Session) -> Result<Archiving> {
    Ok(Archiving {
        archive_command: session.setting("archive_command")?.unwrap_or_default(),
        archive_library: session.setting("archive_library")?.unwrap_or_default(),
        ..Archiving::default()
    })
}

/// Collects what helps to find out why WAL does not come; what cannot be asked is left out.
pub fn archiving(session: &mut Session, state_directory: &Path, cluster: &Cluster) -> Archiving {
    let mut archiving = settings(session).unwrap_or_else(|error| {
        log::debug!("cannot ask about archiving: {}", chain(&error));
        Archiving::default()
    });
    let sql = "select last_failed_wal, last_failed_time from pg_stat_archiver \
               where last_failed_time > coalesce(last_archived_time, '-infinity')";
    let row = session
        .query(sql)
        .unwrap_or_default()
        .into_iter()
        .next()
        .unwrap_or_default();
    if let [Some(name), Some(when)] = row.as_slice() {
        archiving.failing = Some((name.clone(), when.clone()));
    }
    let status = Status::read(&Status::path(state_directory, &cluster.name, "archive-push"))
        .ok()
        .flatten();
    let failed = status.filter(|status| !matches!(status.result, Outcome::Ok | Outcome::Skipped));
    archiving.push_is_temporary = failed
        .as_ref()
        .is_some_and(|status| status.result == Outcome::Temporary);
    archiving.push_says = failed.and_then(|status| status.message);
    archiving
}

/// How far a primary's WAL reaches now: no page on disk is newer.
///
/// # Errors
/// As the session's.
pub fn wal_end(session: &mut Session) -> Result<Lsn> {
    lsn(session, "select pg_current_wal_insert_lsn()")
}

/// The same on a standby. Before it writes a page it notes in pg_control that recovery must reach the record being replayed
/// (`UpdateMinRecoveryPoint`, `src/backend/access/transam/xlog.c`), which `pg_last_wal_replay_lsn` counts only afterwards.
///
/// # Errors
/// As the session's.
pub fn replay_end(session: &mut Session) -> Result<Lsn> {
    let sql = "select greatest(pg_last_wal_replay_lsn(), min_recovery_end_lsn) from pg_control_recovery()";
    lsn(session, sql)
}

/// How far a standby has replayed.
///
/// # Errors
/// As the session's.
pub fn replayed(session: &mut Session) -> Result<Lsn> {
    lsn(session, "select pg_last_wal_replay_lsn()")
}

fn lsn(session: &mut Session, sql: &str) -> Result<Lsn> {
    one(session, sql)?
        .parse()
        .map_err(|error: Error| error.with_kind(Kind::Failed))
}

/// The timeline that a standby follows, as its pg_control knows it: that of its last restart point or of what it has
/// written since.
///
/// # Errors
/// As the session's.
pub fn followed_timeline(session: &mut Session) -> Result<TimelineId> {
    let sql =
        "select greatest(timeline_id, min_recovery_end_timeline) from pg_control_checkpoint(), pg_control_recovery()";
    let said = one(session, sql)?;
    let number = said.parse().map_err(|_| {
        let message = format!("the server says \"{said}\" for a timeline");
        Error::new(Kind::Failed, message)
    });
    number.map(TimelineId)
}

/// The timelines that led to `timeline`: by the server's own history file, or else by that of a repository.
///
/// # Errors
/// What kept it from being read; nothing of it can be guessed.
pub fn history(
    data_directory: &Path,
    timeline: TimelineId,
    repositories: &[&Repository],
    system: SystemId,
) -> Result<TimelineHistory> {
    if timeline == TimelineId(1) {
        return Ok(TimelineHistory::root(timeline));
    }
    let name = WalName::History { timeline };
    let path = data_directory.join("pg_wal").join(name.to_string());
    let mut last = match std::fs::read(&path) {
        Ok(bytes) => return TimelineHistory::parse(timeline, &bytes),
        Err(error) => Error::io(error, format!("read {}", path.display())),
    };
    for repository in repositories {
        let mut bytes = Vec::new();
        match wal::fetch(repository, system, &name, &mut bytes) {
            Ok(_) => return TimelineHistory::parse(timeline, &bytes),
            Err(error) => last = error.context(format!("repository \"{}\"", repository.name)),
        }
    }
    Err(last.context(format!("find the history of timeline {timeline}")))
}

fn one(session: &mut Session, sql: &str) -> Result<String> {
    session
        .first(sql)?
        .ok_or_else(|| Error::new(Kind::Failed, format!("the server answers nothing to \"{sql}\"")))
}
