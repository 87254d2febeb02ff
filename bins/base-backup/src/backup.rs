//! Decides whether a backup is made, and which one, before anything is read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::config::Cluster;
use common::durable;
use common::error::{Error, Kind, Result, chain};
use common::leadership::{self, Decision, Role, Where};
use common::lock::FileLock;
use common::postgres::{ConnectionSettings, ControlFile, Lsn, SegmentName, Session, SystemId, TimelineHistory};
use common::repository::backup::BackupInfo;
use common::repository::catalog::{self, Catalog};
use common::repository::{BackupType, Label, Nonce, Repository, events};
use common::time::UtcTime;

use crate::base::choose::{self, Asked, Choice};
use crate::base::lean::{in_all, usable};
use crate::making::Making;
use crate::plan::{Newest, judge_age};
use crate::primary::{NAME_IT, Primary};
use crate::result::Ended;
use crate::server;
use common::repository::chain::Chain;

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Of which type.
    pub kind: Asked,
    /// Whether to read everything and compare with what WAL says.
    pub audit: bool,
    /// On which servers.
    pub only_on: Where,
    /// Only if the newest good backup is older.
    pub if_older_than: Option<Duration>,
    /// The operator's note.
    pub note: Option<String>,
    /// Workers.
    pub jobs: usize,
    /// zstd's level.
    pub level: i32,
}

/// Where it happens.
pub struct Surroundings<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Where the backup goes.
    pub repositories: &'a [Repository],
    /// How to reach the server.
    pub connection: ConnectionSettings,
    /// How to reach the primary, if that was said.
    pub primary: Option<ConnectionSettings>,
    /// The state directory of all clusters.
    pub state_directory: &'a Path,
    /// For temporary files where the state directory takes none.
    pub temporary_directory: PathBuf,
    /// This host.
    pub host: String,
    /// The clock.
    pub now: &'a dyn Fn() -> UtcTime,
    /// Whether somebody watches stderr.
    pub on_terminal: bool,
}

/// Makes a backup, if it is to be made.
///
/// # Errors
/// `Config` if the server or the configuration does not allow it; `Busy` if another one runs; `Transient` if it may
/// succeed the next time; else whatever went wrong. Nothing counts as a backup then.
pub fn run(request: &Request, around: &Surroundings<'_>) -> Result<Ended> {
    if let Decision::Skip(why) = leadership::by_patroni(request.only_on, around.cluster)? {
        return Ok(Ended::Skipped(why));
    }
    let began = Instant::now();
    let mut session = Session::connect(&around.connection)?;
    // Another server's role or age says nothing about this cluster.
    let data_directory = around.cluster.data_directory()?;
    let control = server::control_of(data_directory)?;
    server::check_identity(&mut session, data_directory, &control)?;
    let role = Role::of(session.in_recovery()?);
    if let Decision::Skip(why) = leadership::judge(request.only_on, role, false) {
        return Ok(Ended::Skipped(why));
    }
    let state = around.state_directory.join(&around.cluster.name);
    durable::create_dir_all(&state, 0o755)?;
    let _lock = lock(&state)?;
    let catalogs = match (request.if_older_than, request.kind) {
        (Some(limit), _) => {
            let (newest, catalogs) = newest_backups(deciding_catalogs(around, &state))?;
            if let Decision::Skip(why) = judge_age(&newest, limit, (around.now)()) {
                return Ok(Ended::Skipped(why));
            }
            catalogs
        }
        (None, Asked::Full) => Vec::new(),
        (None, _) => readable(deciding_catalogs(around, &state)),
    };
    let primary = Primary {
        cluster: around.cluster,
        own: &around.connection,
        named: around.primary.as_ref(),
        system: control.system_id,
    };
    match role {
        Role::Primary => server::check_archiving(&mut session)?,
        Role::Standby => match primary.connect()? {
            Some(mut primary) => server::check_archiving(&mut primary)?,
            None => log::warn!("nobody can be asked to archive the WAL that this backup needs: {NAME_IT}"),
        },
    }
    let chosen = choose_base(request, around, &control, (role, &mut session), &catalogs, &state)?;
    let started = (around.now)();
    let label = Label::new(started, chosen.kind, Nonce::random()?);
    let backup = Making {
        request,
        around,
        data_directory,
        control,
        role,
        primary,
        label,
        started,
        began,
        spill: spill(&state, around),
        chain: Chain::new(&state),
        state,
        chosen,
    };
    backup.make(session)
}

/// The type of the backup, and what it leans on.
pub struct Chosen {
    /// The type.
    pub kind: BackupType,
    /// The backup that it leans on.
    pub base: Option<BackupInfo>,
    /// Interrupted backups that lent bundles to the base.
    pub lent: BTreeSet<Label>,
    /// Why it is a full one, where something else was possible.
    pub why_full: Option<String>,
    /// The timelines that the server has come along.
    pub history: TimelineHistory,
    /// The newest full backup, which the next differential one leans on.
    pub newest_full: Option<Label>,
    /// Where that one began.
    pub newest_full_start: Option<Lsn>,
    /// How long the last four good backups of its type took.
    pub durations_before: Vec<Duration>,
}

fn choose_base(
    request: &Request,
    around: &Surroundings<'_>,
    control: &ControlFile,
    (role, session): (Role, &mut Session),
    catalogs: &[Catalog],
    state: &Path,
) -> Result<Chosen> {
    let backups = &in_all(catalogs);
    let repositories: Vec<&Repository> = around.repositories.iter().collect();
    let timeline = match role {
        Role::Primary => session.current_timeline()?,
        Role::Standby => server::followed_timeline(session)?,
    };
    let history = match request.kind {
        Asked::Full => TimelineHistory::root(timeline),
        _ => server::history(
            around.cluster.data_directory()?,
            timeline,
            &repositories,
            control.system_id,
        )?,
    };
    let cluster = choose::Cluster {
        system_identifier: control.system_id.to_string(),
        major: control.major.number(),
        block_size: control.block_size,
        data_checksums: control.data_checksums,
        history,
        disputed: match request.kind {
            Asked::Full => Vec::new(),
            _ => disputed(&repositories, control.system_id),
        },
    };
    let chain = Chain::new(state);
    let can_be_read = |info: &BackupInfo| usable(&chain, &repositories, info);
    let interval = around.cluster.full_interval;
    let choice = choose::choose(request.kind, backups, &cluster, (around.now)(), interval, &can_be_read);
    let full = |info: &&BackupInfo| info.kind == BackupType::Full && info.good;
    let newest_full = backups.iter().rev().find(full);
    let (newest_full, newest_full_start) = newest_full.map(|info| (info.label, info.start_lsn)).unzip();
    let (kind, base, why_full) = match choice {
        Choice::Full(why) => (BackupType::Full, None, why),
        Choice::Since(kind, label) => (kind, backups.iter().find(|info| info.label == label).cloned(), None),
    };
    let is_backup = |label: &Label| catalogs.iter().any(|catalog| catalog.get(*label).is_some());
    let references = base.iter().flat_map(|base| base.references.iter().copied());
    let lent = references.filter(|label| !is_backup(label)).collect();
    if let Some(why) = &why_full {
        let level = if request.kind == Asked::Auto {
            log::Level::Info
        } else {
            log::Level::Warn
        };
        log::log!(level, "this is a full backup: {why}");
    }
    let alike = backups.iter().rev().filter(|info| info.kind == kind && info.good);
    Ok(Chosen {
        durations_before: alike.take(4).map(|info| info.finished.since(info.started)).collect(),
        kind,
        base,
        why_full,
        history: cluster.history,
        newest_full,
        newest_full_start,
        lent,
    })
}

/// Segments that two histories claim, by what any repository knows: one that is away has its own way of failing.
fn disputed(repositories: &[&Repository], system: SystemId) -> Vec<(SegmentName, UtcTime)> {
    let read = |repository: &&Repository| {
        events::disputed(repository, system).unwrap_or_else(|error| {
            // Whoever takes part is asked again, and says so.
            log::debug!(
                "cannot read the events of repository \"{}\": {}",
                repository.name,
                chain(&error)
            );
            Vec::new()
        })
    };
    repositories.iter().flat_map(read).collect()
}

fn lock(state: &Path) -> Result<FileLock> {
    FileLock::try_acquire(&state.join("base-backup.lock"))?.ok_or_else(|| {
        Error::new(
            Kind::Busy,
            "another base backup of this cluster is running on this host",
        )
    })
}

/// A directory for temporary files.
fn spill(state: &Path, around: &Surroundings<'_>) -> PathBuf {
    let own = state.join("tmp");
    match durable::create_dir_all(&own, 0o700) {
        Ok(()) => own,
        Err(error) => {
            let other = &around.temporary_directory;
            log::debug!("{}; temporary files go to {}", chain(&error), other.display());
            other.clone()
        }
    }
}

/// The catalogs of the repositories that decide, by name: the required ones, or all if none is.
fn deciding_catalogs(around: &Surroundings<'_>, state: &Path) -> Vec<(String, Result<Catalog>)> {
    let any_required = around.repositories.iter().any(|repository| repository.required);
    let cache = state.join("catalog");
    let deciding = around
        .repositories
        .iter()
        .filter(|repository| repository.required || !any_required);
    deciding
        .map(|repository| {
            let catalog = catalog::read(repository, Some(&cache))
                .map_err(|error| error.context(format!("read the catalog of repository \"{}\"", repository.name)));
            (repository.name.clone(), catalog)
        })
        .collect()
}

/// The newest good backup in each of them.
///
/// # Errors
/// That a catalog could not be read: its repository may have none.
fn newest_backups(catalogs: Vec<(String, Result<Catalog>)>) -> Result<(Vec<Newest>, Vec<Catalog>)> {
    let (mut newest, mut read) = (Vec::new(), Vec::new());
    for (repository, catalog) in catalogs {
        let catalog = catalog?;
        let backup = catalog.newest_good().map(|info| (info.label.to_string(), info.started));
        newest.push(Newest { repository, backup });
        read.push(catalog);
    }
    Ok((newest, read))
}

/// Those that could be read: a repository that is away keeps nobody from a backup into the others.
fn readable(catalogs: Vec<(String, Result<Catalog>)>) -> Vec<Catalog> {
    let read = |(_, catalog): (String, Result<Catalog>)| match catalog {
        Ok(catalog) => Some(catalog),
        Err(error) => {
            log::warn!("{}", chain(&error));
            None
        }
    };
    catalogs.into_iter().filter_map(read).collect()
}
