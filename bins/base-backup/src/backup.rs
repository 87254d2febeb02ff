//! One backup, the steps in order. The last one makes it a backup; whoever dies before leaves nothing to be seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::config::Cluster;
use common::durable;
use common::error::{Error, Kind, Result, chain};
use common::lock::FileLock;
use common::postgres::{
    ConnectionSettings, ControlFile, Lsn, SegmentName, SegmentNumber, Session, StartPoint, StopPoint,
};
use common::progress::Progress;
use common::repository::backup::{BackupInfo, Intent, Tablespace, WalSpan};
use common::repository::manifest::ManifestWriter;
use common::repository::pins::Pins;
use common::repository::writer::BackupWriter;
use common::repository::{BackupType, FORMAT, Label, Nonce, Repository, catalog, events, identity};
use common::sorter::Sorter;
use common::time::UtcTime;

use crate::copy::{Copying, attributes};
use crate::listing::{Listing, list};
use crate::pages::Judge;
use crate::plan::{Decision, Newest, Where, judge_age, judge_role};
use crate::result::{Ended, Made};
use crate::role::{Role, ask_patroni};
use crate::server;
use crate::tally::Tally;
use crate::wait::{Wanted, wait_for};

/// What the manifest may take of the memory while it grows, in bytes; the rest is on disk.
const MANIFEST_MEMORY_BYTES: usize = 8 << 20;
/// The session is asked this often whether it is still there: without it the copy is worth nothing.
const SESSION_CHECK: Duration = Duration::from_secs(30);

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Request {
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
    if let Some(skip) = skip_by_patroni(request, around.cluster)? {
        return Ok(Ended::Skipped(skip));
    }
    let began = Instant::now();
    let mut session = Session::connect(&around.connection)?;
    // Another server's role or age says nothing about this cluster.
    let data_directory = around.cluster.data_directory()?;
    let control = server::control_of(data_directory)?;
    server::check_identity(&mut session, data_directory, &control)?;
    let role = if session.in_recovery()? {
        Role::Standby
    } else {
        Role::Primary
    };
    if let Decision::Skip(why) = judge_role(request.only_on, role)? {
        return Ok(Ended::Skipped(why));
    }
    let state = around.state_directory.join(&around.cluster.name);
    durable::create_dir_all(&state, 0o755)?;
    let _lock = lock(&state)?;
    if let Some(limit) = request.if_older_than {
        let newest = newest_backups(around, &state)?;
        if let Decision::Skip(why) = judge_age(&newest, limit, (around.now)()) {
            return Ok(Ended::Skipped(why));
        }
    }
    server::check_archiving(&mut session)?;
    let started = (around.now)();
    let label = Label::new(started, BackupType::Full, Nonce::random()?);
    let backup = Backup {
        request,
        around,
        data_directory,
        control,
        label,
        started,
        began,
        spill: spill(&state, around),
    };
    backup.make(session)
}

/// Patroni knows of a role before the server itself does; it is asked only where the role decides.
fn skip_by_patroni(request: &Request, cluster: &Cluster) -> Result<Option<String>> {
    match (&cluster.patroni, request.only_on) {
        (None, _) | (_, Where::Any) => Ok(None),
        (Some(url), wanted) => match judge_role(wanted, ask_patroni(url)?)? {
            Decision::Go => Ok(None),
            Decision::Skip(why) => Ok(Some(format!("{why} (says Patroni)"))),
        },
    }
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

/// The newest good backup in each repository that decides about age: the required ones, or all if none is.
fn newest_backups(around: &Surroundings<'_>, state: &Path) -> Result<Vec<Newest>> {
    let any_required = around.repositories.iter().any(|repository| repository.required);
    let cache = state.join("catalog");
    let deciding = around
        .repositories
        .iter()
        .filter(|repository| repository.required || !any_required);
    deciding
        .map(|repository| {
            let catalog = catalog::read(repository, Some(&cache))
                .map_err(|error| error.context(format!("read the catalog of repository \"{}\"", repository.name)))?;
            let newest = catalog.newest_good().map(|info| (info.label.to_string(), info.started));
            Ok(Newest {
                repository: repository.name.clone(),
                backup: newest,
            })
        })
        .collect()
}

struct Backup<'a> {
    request: &'a Request,
    around: &'a Surroundings<'a>,
    data_directory: &'a Path,
    control: ControlFile,
    label: Label,
    started: UtcTime,
    began: Instant,
    spill: PathBuf,
}

/// What was copied, between start and stop.
struct Copied {
    manifest: Sorter,
    tally: Tally,
    tablespaces: Vec<Tablespace>,
    start: StartPoint,
    stop: StopPoint,
    durations: BTreeMap<String, f64>,
    session: Session,
}

impl Backup<'_> {
    fn make(&self, mut session: Session) -> Result<Ended> {
        log::info!("backup {} begins", self.label);
        let writer = self.announce()?;
        self.prove_archiving(&writer, &mut session)?;
        let mut copied = self.copy(&writer, session)?;
        self.write_manifest(&writer, copied.manifest)?;
        let waited = Instant::now();
        copied.manifest = Sorter::new(0, &self.spill);
        self.wait_for_wal(&writer, &mut copied)?;
        writer.look_again()?;
        copied
            .durations
            .insert("wal".to_owned(), waited.elapsed().as_secs_f64());
        self.commit(writer, &copied)
    }

    /// Writes the intent, and takes out repositories that are not this cluster's.
    fn announce(&self) -> Result<BackupWriter<'_>> {
        let intent = Intent {
            format: FORMAT,
            label: self.label,
            host: self.around.host.clone(),
            pid: std::process::id(),
            started: self.started,
            system_identifier: self.control.system_id.to_string(),
            leans_on: Vec::new(),
        };
        let cluster = common::repository::ClusterName::parse(&self.around.cluster.name)?;
        let pins = Pins::new(self.around.state_directory, &cluster);
        let mut usable = Vec::new();
        for repository in self.around.repositories {
            let checked = pins
                .check(repository)
                .and_then(|_| events::require_system(repository, self.control.system_id));
            usable.push((repository, checked));
        }
        let writer = BackupWriter::begin(self.around.repositories, &intent)?;
        for (repository, checked) in usable {
            if let Err(error) = checked {
                writer.give_up(&repository.name, error);
            }
        }
        writer.check()?;
        Ok(writer)
    }

    /// Makes the server archive a segment and waits for it: what cannot be archived is not worth copying.
    fn prove_archiving(&self, writer: &BackupWriter<'_>, session: &mut Session) -> Result<()> {
        let timeline = server::current_timeline(session)?;
        let end = session.switch_wal_after_restore_point(&format!("pgkeep before {}", self.label))?;
        let size = self.control.segment_size;
        let number = SegmentNumber::ending_at(end, size);
        let wanted = Wanted {
            system: self.control.system_id,
            timeline,
            first: number,
            last: number,
            size,
        };
        let alive = writer.alive();
        let patience = self.around.cluster.archive_wait;
        for (repository, outcome) in alive.iter().zip(wait_for(&alive, &wanted, patience)) {
            match outcome {
                Ok(()) => {}
                // A repository that does not answer leaves; the others still get their backup.
                Err(error) if !repository.required || error.kind() == Kind::Transient => {
                    writer.give_up(&repository.name, error);
                }
                Err(error) => return Err(error.hint(self.archiving_hint(session))),
            }
        }
        writer.check()
    }

    fn archiving_hint(&self, session: &mut Session) -> String {
        server::archiving(session, self.around.state_directory, self.around.cluster).hint()
    }

    /// Start, list, copy, stop, and the members that are known only then.
    fn copy(&self, writer: &BackupWriter<'_>, mut session: Session) -> Result<Copied> {
        let mut durations = BTreeMap::new();
        let start = session.start(&format!("pgkeep {}", self.label), true)?;
        log::info!("PostgreSQL's backup started at {}", start.lsn);
        durations.insert("start".to_owned(), self.began.elapsed().as_secs_f64());

        let copying_since = Instant::now();
        let Listing {
            items,
            control,
            bytes,
            tablespaces,
        } = list(self.data_directory, self.around.cluster, &self.control, &self.spill)?;
        let session = Mutex::new(session);
        let ask = |question: fn(&mut Session) -> Result<Lsn>| {
            question(&mut session.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let wal_end = || ask(server::wal_end);
        let judge = Judge {
            page_bytes: self.control.block_size as usize,
            checksums: self.control.data_checksums,
            start: start.lsn,
            wal_end: &wal_end,
        };
        let tally = Tally::default();
        let manifest = Sorter::new(MANIFEST_MEMORY_BYTES, &self.spill);
        let blocks_per_file = self.control.blocks_per_file;
        let copying = Copying::new(
            writer,
            self.request.level,
            judge,
            blocks_per_file,
            &tally,
            items,
            manifest,
        );
        let mut progress = Progress::begin("copied", bytes, self.around.on_terminal, Instant::now());
        let mut checked = Instant::now();
        copying.run(self.request.jobs, &mut progress, || {
            if checked.elapsed() < SESSION_CHECK {
                return Ok(());
            }
            checked = Instant::now();
            ask(|session| session.check().map(|()| Lsn::default())).map(drop)
        })?;
        progress.end();
        durations.insert("copy".to_owned(), copying_since.elapsed().as_secs_f64());

        let stopping_since = Instant::now();
        let stop = session.lock().unwrap_or_else(PoisonError::into_inner).stop()?;
        self.check_timelines(&start, &stop)?;
        log::info!("PostgreSQL's backup stopped at {}", stop.lsn);
        self.copy_last(&copying, &control, &stop)?;
        durations.insert("stop".to_owned(), stopping_since.elapsed().as_secs_f64());
        let manifest = copying.into_manifest();
        let tablespaces = tablespaces
            .into_iter()
            .map(|one| Tablespace {
                oid: one.oid,
                location: one.location.to_string_lossy().into_owned(),
            })
            .collect();
        let session = session.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Copied {
            manifest,
            tally,
            tablespaces,
            start,
            stop,
            durations,
            session,
        })
    }

    fn check_timelines(&self, start: &StartPoint, stop: &StopPoint) -> Result<()> {
        if stop.in_recovery || start.in_recovery {
            return Err(Error::new(
                Kind::Transient,
                "the server became a standby while it was copied",
            ));
        }
        if stop.lsn < start.lsn {
            let (start, stop) = (start.lsn, stop.lsn);
            return Err(Error::new(
                Kind::Failed,
                format!("the server says that the backup stopped at {stop}, before {start}"),
            ));
        }
        Ok(())
    }

    /// backup_label and tablespace_map come from the stop, and pg_control must be newer than everything else.
    fn copy_last(&self, copying: &Copying<'_>, control: &crate::item::Item, stop: &StopPoint) -> Result<()> {
        let (now, bytes) = ControlFile::read_with_bytes(self.data_directory)?;
        if now.system_id != self.control.system_id {
            return Err(Error::new(
                Kind::Failed,
                "the data directory was exchanged while it was copied",
            ));
        }
        let metadata = std::fs::metadata(&control.source)
            .map_err(|error| Error::io(error, format!("look at {}", control.source.display())))?;
        let like = attributes(control, &metadata);
        let mut members: Vec<(&str, &[u8])> = vec![("data/backup_label", &stop.backup_label)];
        if let Some(map) = &stop.tablespace_map {
            members.push(("data/tablespace_map", map));
        }
        members.push(("data/global/pg_control", &bytes));
        copying.last_bundle(&members, &like)
    }

    fn write_manifest(&self, writer: &BackupWriter<'_>, entries: Sorter) -> Result<()> {
        let copies = writer.create("manifest.zst", true)?;
        let mut manifest = ManifestWriter::new(copies, self.request.level)?;
        for entry in entries.finish()? {
            let (path, lines) = entry?;
            manifest.push(&path, &lines)?;
        }
        let (copies, plain) = manifest.finish()?;
        copies.finish(plain)
    }

    /// Waits until all WAL that the backup needs is in the repositories; those that lack it are taken out.
    fn wait_for_wal(&self, writer: &BackupWriter<'_>, copied: &mut Copied) -> Result<()> {
        let (first, last) = self.wal_span(&copied.start, &copied.stop);
        let size = self.control.segment_size;
        let wanted = Wanted {
            system: self.control.system_id,
            timeline: copied.stop.timeline,
            first,
            last,
            size,
        };
        let alive = writer.alive();
        let mut lacking = None;
        for (repository, outcome) in alive
            .iter()
            .zip(wait_for(&alive, &wanted, self.around.cluster.archive_wait))
        {
            if let Err(error) = outcome {
                lacking = Some(error.kind());
                writer.give_up(&repository.name, error);
            }
        }
        match (writer.check(), lacking) {
            (Err(error), Some(_)) => Err(error.hint(self.archiving_hint(&mut copied.session))),
            (Ok(()), Some(_)) => {
                log::warn!(
                    "about the WAL that is missing: {}",
                    self.archiving_hint(&mut copied.session)
                );
                Ok(())
            }
            (result, None) => result,
        }
    }

    /// The first and last segment that a restore needs.
    fn wal_span(&self, start: &StartPoint, stop: &StopPoint) -> (SegmentNumber, SegmentNumber) {
        let size = self.control.segment_size;
        (
            SegmentNumber::containing(start.lsn, size),
            SegmentNumber::ending_at(stop.lsn, size),
        )
    }

    fn commit(&self, writer: BackupWriter<'_>, copied: &Copied) -> Result<Ended> {
        let info = self.info(copied)?;
        let outcomes = writer.commit(&info);
        let stored = outcomes.iter().find_map(|outcome| outcome.result.as_ref().ok());
        match stored {
            Some(info) => Ok(Ended::Made(Made::new(info, &outcomes, &copied.tally.damaged_files()))),
            None => {
                let failed = outcomes.into_iter().find_map(|outcome| outcome.result.err());
                Err(failed.unwrap_or_else(|| Error::new(Kind::Config, "no repository is configured")))
            }
        }
    }

    fn info(&self, copied: &Copied) -> Result<BackupInfo> {
        let (first, last) = self.wal_span(&copied.start, &copied.stop);
        let (timeline, size) = (copied.stop.timeline, self.control.segment_size);
        let name = |number| SegmentName::new(timeline, number, size).to_string();
        let damaged_pages = Tally::read(&copied.tally.damaged_pages);
        let version_num = copied.session.version_num();
        Ok(BackupInfo {
            format: FORMAT,
            label: self.label,
            kind: BackupType::Full,
            cluster: self.around.cluster.name.clone(),
            system_identifier: self.control.system_id.to_string(),
            major: self.control.major.number(),
            server_version: format!("{}.{}", version_num / 10_000, version_num % 10_000),
            pgkeep: identity::writer().trim_start_matches("pgkeep ").to_owned(),
            host: self.around.host.clone(),
            role: Role::Primary.name().to_owned(),
            note: self.request.note.clone(),
            started: self.started,
            stopped: UtcTime::from_unix_micros(copied.stop.unix_micros)?,
            finished: (self.around.now)(),
            timeline: timeline.0,
            start_lsn: copied.start.lsn,
            stop_lsn: copied.stop.lsn,
            wal: WalSpan {
                first: name(first),
                last: name(last),
            },
            segment_size: size.bytes(),
            block_size: self.control.block_size,
            data_checksums: self.control.data_checksums,
            tablespaces: copied.tablespaces.clone(),
            base: None,
            references: Vec::new(),
            reused_from: None,
            files: Tally::read(&copied.tally.files),
            size: Tally::read(&copied.tally.bytes),
            stored: 0,
            durations: copied.durations.clone(),
            damaged_pages,
            good: damaged_pages == 0,
            objects: Vec::new(),
            signature: None,
        })
    }
}
