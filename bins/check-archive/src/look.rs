//! Finds out how archiving goes: from the server, from pg_wal, from the repositories.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::config::Cluster;
use common::erasure::{self, Found};
use common::error::{Error, Kind, Result, chain};
use common::open::Purpose;
use common::postgres::{ConnectionSettings, SegmentName, SegmentNumber, SegmentSize, Session, SystemId, WalName};
use common::repository::backup::BackupInfo;
use common::repository::reach::{self, Wal};
use common::repository::tombstones::{self, Erasure};
use common::repository::{BackupType, Repository, catalog, dumps, events, wal};

use crate::judge::{self, Gaps, Holds, Server};

/// A segment that was archived so long ago tells as much as one that is ended now.
const RECENT: Duration = Duration::from_secs(300);

/// How often a repository is asked whether it has the segment.
const ROUND: Duration = Duration::from_millis(200);

/// What the server says, and the segment that repositories are asked for.
pub struct Asked {
    /// What it says.
    pub server: Server,
    /// The segment and whose it is.
    pub wanted: Option<(SystemId, SegmentName)>,
}

/// Asks the server; also whether it has what was erased. Of a cluster that is only dumped nothing else is asked: whether it archives, and
/// where to, is not ours.
pub fn server(
    cluster: &Cluster,
    environment: common::config::Environment<'_>,
    erasures: &[Erasure],
    purpose: Purpose,
) -> Asked {
    if purpose != Purpose::Physical {
        let erased = || {
            let settings = cluster.connection(environment)?;
            Ok(erased(
                &mut Session::connect_for_cluster(&settings)?,
                &settings,
                erasures,
            ))
        };
        let found = match erasures {
            [] => Ok(None),
            _ => erased(),
        };
        return Asked {
            server: Server {
                erased: found.unwrap_or_else(|error: Error| Some(Err(chain(&error)))),
                purpose,
                ..Server::default()
            },
            wanted: None,
        };
    }
    let asked = cluster.connection(environment).and_then(|settings| {
        let mut session = Session::connect(&settings)?;
        let mut asked = ask(&mut session)?;
        asked.server.erased = erased(&mut session, &settings, erasures);
        Ok(asked)
    });
    asked.unwrap_or_else(|error| Asked {
        server: Server {
            silent: Some(chain(&error)),
            ..Server::default()
        },
        wanted: None,
    })
}

/// Tenants that were erased and are there.
fn erased(
    session: &mut Session,
    settings: &ConnectionSettings,
    erasures: &[Erasure],
) -> Option<Result<Vec<String>, String>> {
    if erasures.is_empty() {
        return None;
    }
    let connect = |database: &str| Session::connect(&settings.with_database(database));
    let words = |found: Found| format!("{} of database {}", found.schema, found.database);
    let found = erasure::still_there(session, &connect, erasures, &|_| true);
    Some(match found {
        Ok(found) => Ok(found.into_iter().map(words).collect()),
        Err(error) => Err(chain(&error)),
    })
}

fn ask(session: &mut Session) -> Result<Asked> {
    let mut server = Server::default();
    let mode = session.setting("archive_mode")?.unwrap_or_default();
    server.standby = session.in_recovery()? && mode != "always";
    server.off = mode == "off" && !server.standby;
    if server.standby || server.off {
        return Ok(Asked { server, wanted: None });
    }
    let rows = session.query(
        "select last_archived_wal, extract(epoch from clock_timestamp() - last_archived_time)::bigint, last_failed_wal, \
         coalesce(last_failed_time > last_archived_time, last_failed_time is not null) from pg_stat_archiver",
    )?;
    let mut columns = rows.into_iter().next().unwrap_or_default().into_iter();
    let (archived, age, failed, fails) = (
        columns.next().flatten(),
        columns.next().flatten(),
        columns.next().flatten(),
        columns.next().flatten(),
    );
    let age = age
        .and_then(|age| age.parse::<i64>().ok())
        .map(|age| Duration::from_secs(age.max(0).unsigned_abs()));
    if fails.as_deref() == Some("t") {
        server.failing = Some((age, failed.unwrap_or_else(|| "a WAL file".to_owned())));
    }
    server.ready = ready(session);
    let archived = archived.and_then(|name| match WalName::parse(&name) {
        Ok(WalName::Segment(segment)) => Some(segment),
        _ => None,
    });
    let system = session.system_id()?;
    let natural = archived.filter(|_| age.is_some_and(|age| age <= RECENT));
    let segment = match natural {
        Some(segment) => Some(segment),
        // Where archiving fails already, another segment is one more that waits.
        None if server.failing.is_some() || session.in_recovery()? => archived,
        None => end_segment(session)?.or(archived),
    };
    Ok(Asked {
        server,
        wanted: segment.map(|segment| (system, segment)),
    })
}

/// Ends the current segment and names it; nothing if the role may not.
fn end_segment(session: &mut Session) -> Result<Option<SegmentName>> {
    let end = match session.switch_wal_after_restore_point("pgkeep check") {
        Ok(end) => end,
        Err(error) if error.kind() == Kind::Config => {
            log::info!("no segment is ended: {}", chain(&error));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let size = session.segment_size()?;
    let timeline = session.current_timeline()?;
    Ok(Some(SegmentName::new(
        timeline,
        SegmentNumber::ending_at(end, size),
        size,
    )))
}

/// WAL files that wait, and for how long the oldest has; nothing if the role may not look.
fn ready(session: &mut Session) -> Option<(u64, Option<Duration>)> {
    let rows = session.query(
        "select count(*), extract(epoch from clock_timestamp() - min(modification))::bigint from pg_ls_archive_statusdir() \
         where name like '%.ready'",
    );
    let row = rows
        .inspect_err(|error| log::info!("what waits in pg_wal is not known: {}", chain(error)))
        .ok()?;
    let mut row = row.into_iter().next()?.into_iter();
    let count = row.next()??.parse().ok()?;
    let age = row.next().flatten().and_then(|age| age.parse::<i64>().ok());
    Some((count, age.map(|age| Duration::from_secs(age.max(0).unsigned_abs()))))
}

/// Looks into one repository; it has until `deadline` to have the segment.
pub fn repository(
    repository: &Repository,
    cache: &Path,
    wanted: Option<(SystemId, SegmentName)>,
    (begun, deadline): (Instant, Instant),
) -> judge::Repository {
    let reached = wanted.map(|(system, segment)| reached(repository, system, segment, begun, deadline));
    let (gaps, holds) = match held(repository, cache) {
        Ok((gaps, holds)) => (Ok(gaps), Some(holds)),
        Err(error) => (Err(chain(&error)), None),
    };
    judge::Repository {
        name: repository.name.clone(),
        required: repository.required,
        reached,
        gaps,
        holds,
        undeleted: undeleted(repository),
    }
}

/// Dumps of erased tenants of which something is still there; none where that cannot be read, for then nothing can.
fn undeleted(repository: &Repository) -> Vec<String> {
    let named = events::read(repository).map(|events| tombstones::dumps(&events));
    let named = named.unwrap_or_default();
    let there = match named.is_empty() {
        true => Vec::new(),
        false => dumps::labels(repository).unwrap_or_default(),
    };
    let left = there.iter().filter(|label| named.contains(label));
    left.map(ToString::to_string).collect()
}

fn reached(
    repository: &Repository,
    system: SystemId,
    segment: SegmentName,
    begun: Instant,
    deadline: Instant,
) -> Result<Duration, String> {
    let name = WalName::Segment(segment);
    loop {
        let there = wal::is_there(repository, system, &name);
        match there {
            Ok(true) => return Ok(begun.elapsed()),
            Ok(false) if Instant::now() < deadline => sleep(ROUND),
            Ok(false) => {
                return Err(format!(
                    "{segment} is not there after {}",
                    common::units::display_seconds(begun.elapsed())
                ));
            }
            Err(error) => return Err(chain(&error)),
        }
    }
}

/// What is missing behind each good backup of the system that writes now, and what there is.
fn held(repository: &Repository, cache: &Path) -> Result<(Gaps, Holds)> {
    let mut holds = Holds {
        space: repository
            .store
            .free_space()?
            .map(|space| (space.available, space.total)),
        ..Holds::default()
    };
    let Some(known) = events::systems(repository)?.pop() else {
        return Ok((Gaps::default(), holds));
    };
    let size = SegmentSize::new(known.segment_size)?;
    let identifier = known.system.to_string();
    let catalog = catalog::read(repository, Some(cache))?;
    let own = |info: &&BackupInfo| catalog.counts(info) && info.system_identifier == identifier;
    let mut backups: Vec<&BackupInfo> = catalog.backups.iter().filter(own).collect();
    let list = wal::list(repository, known.system, size)?;
    holds.bytes = list.stored_bytes + backups.iter().map(|info| info.stored).sum::<u64>();
    holds.backups = backups.len() as u64;
    let newest = |full: bool| {
        let wanted = backups.iter().filter(|info| !full || info.kind == BackupType::Full);
        wanted.map(|info| info.stopped.unix_seconds()).max()
    };
    holds.newest = (newest(false), newest(true));
    // Without the key histories cannot be read; then each backup's own timeline stands for all.
    let histories = wal::read_histories(repository, known.system)
        .map(|found| found.known)
        .unwrap_or_default();
    let wal = Wal::union([&list]);
    let missing = |info: &BackupInfo| {
        let own = info.timeline();
        let newest = histories.keys().rev().copied().chain([own]);
        let mut histories = newest.filter_map(|id| {
            reach::history(&histories, id).or_else(|| (id == own).then(|| common::postgres::TimelineHistory::root(own)))
        });
        let history = histories.find(|history| reach::follows(info, history))?;
        match reach::window(info, &history, &wal, size) {
            Ok(window) => window.missing.map(|missing| missing.names(size)),
            Err(missing) => Some(missing.names(size)),
        }
    };
    let newest = backups.pop();
    let gaps = Gaps {
        newest: newest.and_then(missing),
        older: backups.iter().rev().copied().find_map(missing),
    };
    Ok((gaps, holds))
}
