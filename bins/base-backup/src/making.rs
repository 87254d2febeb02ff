//! One backup, the steps in order. The last one makes it a backup; whoever dies before leaves nothing to be seen.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::leadership::Role;
use common::postgres::{ControlFile, Lsn, SegmentName, Session, StartPoint, StopPoint};
use common::progress::Progress;
use common::repository::backup::{self, BackupInfo, Intent, Tablespace, WalSpan};
use common::repository::lease::{self, Lease};
use common::repository::manifest::{GroupRef, ManifestWriter};
use common::repository::pins::Pins;
use common::repository::wal::kept::KeptMaps;
use common::repository::writer::{Copies, Folder, FolderWriter};
use common::repository::{BackupType, FORMAT, Label, Repository, events, identity};
use common::sorter::Sorter;
use common::time::UtcTime;
use common::units::ByteSize;

use crate::backup::{Chosen, Request, Surroundings};
use crate::bundles::Output;
use crate::copy::{Copying, attributes};
use crate::earlier::Earlier;
use crate::entries::{self, Entries};
use crate::finding::Found;
use crate::item::Item;
use crate::pages::Judge;
use crate::primary::Primary;
use crate::result::{Ended, Made};
use crate::server;
use crate::span;
use crate::tally::Tally;
use common::repository::chain::{Chain, KeptManifest};
use common::repository::digests::Digests;

/// What the manifest may take of the memory while it grows, in bytes; the rest is on disk.
const MANIFEST_MEMORY_BYTES: usize = 8 << 20;
/// The session is asked this often whether it is still there: without it the copy is worth nothing.
const SESSION_CHECK: Duration = Duration::from_secs(30);

/// A backup being made.
pub struct Making<'a> {
    /// What was asked for.
    pub request: &'a Request,
    /// Where it happens.
    pub around: &'a Surroundings<'a>,
    /// The server's data directory.
    pub data_directory: &'a Path,
    /// Its pg_control, as it was at first.
    pub control: ControlFile,
    /// What the server was when the job started.
    pub role: Role,
    /// The primary that it follows, if it is a standby.
    pub primary: Primary<'a>,
    /// The backup's name.
    pub label: Label,
    /// When the job started.
    pub started: UtcTime,
    /// The same, for durations.
    pub began: Instant,
    /// For temporary files.
    pub spill: PathBuf,
    /// The cluster's state directory.
    pub state: PathBuf,
    /// What this host keeps of the last chain.
    pub chain: Chain,
    /// The type, and what it leans on.
    pub chosen: Chosen,
}

/// Writes into the repositories, and into this host's own copy as long as that works.
struct Twice<'a> {
    copies: Copies<'a>,
    kept: Option<KeptManifest>,
}

impl Write for Twice<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.copies.write(bytes)?;
        let own = bytes.get(..count).unwrap_or_default();
        if let Some(Err(error)) = self.kept.as_mut().map(|kept| kept.write_all(own)) {
            log::debug!("the manifest is not kept on this host: {error}");
            self.kept = None;
        }
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.copies.flush()
    }
}

/// What was copied, between start and stop.
struct Copied {
    entries: Entries,
    groups: Vec<GroupRef>,
    reused_from: Option<Label>,
    tally: Tally,
    tablespaces: Vec<Tablespace>,
    start: StartPoint,
    stop: StopPoint,
    durations: BTreeMap<String, f64>,
    session: Session,
}

impl Making<'_> {
    /// Makes it, the steps in order.
    ///
    /// # Errors
    /// Whatever went wrong; then there is no backup.
    pub fn make(&self, mut session: Session) -> Result<Ended> {
        log::info!("backup {} begins", self.label);
        // An incremental backup is over soon: what an interrupted one has stored is not worth looking for.
        let earlier = match &self.chosen.base {
            Some(base) => {
                log::info!("it leans on {}", base.label);
                None
            }
            None => self.find_earlier(),
        };
        // Two hosts would do the same work twice; that is all, and both backups would be right.
        let mut leases = Vec::new();
        let writer = self.announce(earlier.as_ref(), &mut leases)?;
        self.prove_archiving(&writer, &mut session)?;
        self.await_replay(&mut session)?;
        let mut copied = self.copy(&writer, earlier.as_ref(), session)?;
        let taken = std::mem::replace(&mut copied.entries, Entries::new(Sorter::new(0, &self.spill)));
        self.write_manifest(&writer, taken, &copied)?;
        let waited = Instant::now();
        self.wait_for_wal(&writer, (&copied.start, &copied.stop), &mut copied.session)?;
        writer.look_again()?;
        self.look_again_at(&writer, &copied)?;
        interrupt::check()?;
        copied
            .durations
            .insert("wal".to_owned(), waited.elapsed().as_secs_f64());
        self.commit(writer, &copied)
    }

    /// Takes out repositories that are not this cluster's, and writes the intent into the others.
    fn announce(&self, earlier: Option<&Earlier>, leases: &mut Vec<Lease>) -> Result<FolderWriter<'_>> {
        let intent = Intent {
            format: FORMAT,
            label: self.label,
            host: self.around.host.clone(),
            pid: std::process::id(),
            started: self.started,
            system_identifier: self.control.system_id.to_string(),
            // Its bundles must not be collected while this backup points at them.
            leans_on: self.leans_on(earlier).into_iter().collect(),
        };
        let cluster = common::repository::ClusterName::parse(&self.around.cluster.name)?;
        let pins = Pins::new(self.around.state_directory, &cluster);
        // Nothing of this cluster goes into a repository of another one, not even the intent.
        let leases = RefCell::new(leases);
        let announce = |repository: &Repository| {
            pins.check(repository)?;
            events::require_current_system(repository, self.control.system_id)?;
            self.require_base(repository)?;
            let lease = lease::take(repository, "base-backup", &self.around.host)?;
            leases.borrow_mut().push(lease);
            backup::write_intent(repository, &intent)
        };
        let writer = FolderWriter::begin(Folder::Backup(self.label), self.around.repositories, announce)?;
        writer.check()?;
        Ok(writer)
    }

    /// Every label whose bytes this backup may point at.
    fn leans_on(&self, earlier: Option<&Earlier>) -> BTreeSet<Label> {
        let base = self.chosen.base.as_ref();
        let of_base = base.map(|base| base.references.iter().copied().chain([base.label]));
        let interrupted = earlier.map(|earlier| earlier.label);
        of_base.into_iter().flatten().chain(interrupted).collect()
    }

    /// Fails where a repository lacks the backup that this one leans on.
    fn require_base(&self, repository: &Repository) -> Result<()> {
        let Some(base) = &self.chosen.base else { return Ok(()) };
        let key = repository.keys().of_backup(base.label, "backup.json")?;
        if repository.store.stat(&key)?.is_some() {
            return Ok(());
        }
        let message = format!("it does not have {}, which this backup leans on", base.label);
        Err(Error::new(Kind::Failed, message)
            .hint("pgkeep-sync copies backups from another repository; --type full needs no other backup"))
    }

    /// What an interrupted backup has stored in every repository.
    fn find_earlier(&self) -> Option<Earlier> {
        let system = self.control.system_id.to_string();
        let repositories: Vec<&Repository> = self.around.repositories.iter().collect();
        let earlier = Earlier::find(&repositories, &self.around.host, &system, &self.spill)?;
        log::info!(
            "pages that the interrupted backup {} has stored are not stored again",
            earlier.label
        );
        Some(earlier)
    }

    /// Makes sure that what this backup uses of earlier ones is still there; repositories where it is not are taken out.
    fn look_again_at(&self, writer: &FolderWriter<'_>, copied: &Copied) -> Result<()> {
        let used = copied.tally.used();
        // Interrupted backups lend their bundles without being backups.
        let committed = |label| copied.reused_from != Some(label) && !self.chosen.lent.contains(&label);
        for repository in writer.alive() {
            if let Err(error) = used.check(repository, &committed) {
                writer.give_up(&repository.name, error);
            }
        }
        writer.check()
    }

    /// Start, list, copy, stop, and the members that are known only then.
    fn copy(&self, writer: &FolderWriter<'_>, earlier: Option<&Earlier>, mut session: Session) -> Result<Copied> {
        let mut durations = BTreeMap::new();
        let start = session.start(&format!("pgkeep {}", self.label), true)?;
        log::info!("PostgreSQL's backup started at {}", start.lsn);
        let base = self.chosen.base.as_ref().map(|base| base.start_lsn);
        span::open(&start, self.role == Role::Standby, self.chosen.history.timeline(), base)?;
        durations.insert("start".to_owned(), self.began.elapsed().as_secs_f64());

        let copying_since = Instant::now();
        let changed = self.changed_since_base(writer, &mut session, start.lsn)?;
        let entries = Entries::new(Sorter::new(MANIFEST_MEMORY_BYTES, &self.spill));
        let tally = Tally::default();
        let Found {
            queue,
            entries,
            groups,
            control,
            bytes,
            tablespaces,
        } = self.find(writer, changed.as_ref(), entries, &tally)?;
        drop(changed);
        let session = Mutex::new(session);
        let ask = |question: fn(&mut Session) -> Result<Lsn>| {
            question(&mut session.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let role = self.role;
        let wal_end = || match role {
            Role::Primary => ask(server::wal_end),
            Role::Standby => ask(server::replay_end),
        };
        let judge = Judge {
            page_bytes: self.control.block_size as usize,
            checksums: self.control.data_checksums,
            start: start.lsn,
            wal_end: &wal_end,
        };
        let blocks_per_file = self.control.blocks_per_file;
        let output = Output::new(writer, self.request.level, &self.chain, self.label);
        let digests = Digests::new(&self.chain, writer.alive());
        let mut copying =
            Copying::new(&output, judge, blocks_per_file, &tally, queue, entries).with_interrupted(earlier);
        if let Some(base) = &self.chosen.base {
            copying = copying.with_base(&digests, base.start_lsn, self.request.audit);
        }
        let mut progress = Progress::begin("copied", bytes, self.around.on_terminal, Instant::now());
        let mut checked = Instant::now();
        copying.run(self.request.jobs, &mut progress, || {
            interrupt::check()?;
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
        let stop = self.copy_last(&copying, &control, &start, stop)?;
        log::info!("PostgreSQL's backup stopped at {}", stop.lsn);
        durations.insert("stop".to_owned(), stopping_since.elapsed().as_secs_f64());
        let entries = copying.into_entries();
        let tablespaces = tablespaces
            .into_iter()
            .map(|one| Tablespace {
                oid: one.oid,
                location: one.location.to_string_lossy().into_owned(),
            })
            .collect();
        let session = session.into_inner().unwrap_or_else(PoisonError::into_inner);
        let reused = Tally::read(&tally.reused);
        if reused > 0 {
            log::info!("{} were stored already", ByteSize(reused));
        }
        drop(digests);
        Ok(Copied {
            entries,
            groups,
            reused_from: earlier.map(|earlier| earlier.label).filter(|_| reused > 0),
            tally,
            tablespaces,
            start,
            stop,
            durations,
            session,
        })
    }

    /// backup_label and tablespace_map come from the stop, and pg_control must be newer than everything else.
    fn copy_last(
        &self,
        copying: &Copying<'_>,
        control: &Item,
        start: &StartPoint,
        stop: StopPoint,
    ) -> Result<StopPoint> {
        let (now, bytes) = ControlFile::read_with_bytes(self.data_directory)?;
        if now.system_id != self.control.system_id {
            return Err(Error::new(
                Kind::Failed,
                "the data directory was exchanged while it was copied",
            ));
        }
        let stop = span::close(start, stop, (&now).into())?;
        let metadata = std::fs::metadata(&control.source)
            .map_err(|error| Error::io(error, format!("look at {}", control.source.display())))?;
        let like = attributes(control, &metadata);
        let mut members: Vec<(&str, &[u8])> = vec![("data/backup_label", &stop.backup_label)];
        if let Some(map) = &stop.tablespace_map {
            members.push(("data/tablespace_map", map));
        }
        members.push(("data/global/pg_control", &bytes));
        copying.last_bundle(&members, &like)?;
        Ok(stop)
    }

    fn write_manifest(&self, writer: &FolderWriter<'_>, entries: Entries, copied: &Copied) -> Result<()> {
        let kept = self.chain.keep_manifest(self.label);
        if let Err(error) = &kept {
            log::debug!("the manifest is not kept on this host: {}", chain(error));
        }
        let twice = Twice {
            copies: writer.create("manifest.zst", true)?,
            kept: kept.ok(),
        };
        let mut manifest = ManifestWriter::new(twice, self.request.level)?;
        let tally = &copied.tally;
        entries::write(entries.finish()?, &copied.groups, &mut manifest, |group| {
            if let Some(label) = group.label() {
                tally.uses_manifest(label);
            }
        })?;
        let (twice, plain) = manifest.finish()?;
        twice.copies.finish(plain)?;
        if let Some(kept) = twice.kept
            && let Err(error) = kept.finish()
        {
            log::debug!("the manifest is not kept on this host: {}", chain(&error));
        }
        Ok(())
    }

    fn commit(&self, writer: FolderWriter<'_>, copied: &Copied) -> Result<Ended> {
        let info = self.info(copied)?;
        let outcomes = writer.commit_backup(&info);
        let stored = outcomes.iter().find_map(|outcome| outcome.result.as_ref().ok());
        match stored {
            Some(info) => {
                let newest_full = self.chosen.newest_full;
                let last_chain = info.references.iter().copied().chain([info.label]).chain(newest_full);
                self.chain.retain(&last_chain.collect());
                self.forget_maps(info);
                let made = Made::new(
                    info,
                    &outcomes,
                    &copied.tally,
                    self.chosen.why_full.clone(),
                    self.request.audit && self.chosen.base.is_some(),
                )
                .after_full(newest_full)
                .compared(&self.chosen.durations_before);
                Ok(Ended::Made(Box::new(made)))
            }
            None => {
                let failed = outcomes.into_iter().find_map(|outcome| outcome.result.err());
                Err(failed.unwrap_or_else(|| Error::new(Kind::Config, "no repository is configured")))
            }
        }
    }

    /// Maps from the newest full backup's start on may be asked for; without one, those from this backup's start.
    fn forget_maps(&self, info: &BackupInfo) {
        let from = match info.kind {
            BackupType::Full => info.start_lsn,
            _ => self.chosen.newest_full_start.unwrap_or_default(),
        };
        KeptMaps::new(&self.state).forget_before(from, self.control.segment_size);
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
            kind: self.label.kind(),
            cluster: self.around.cluster.name.clone(),
            system_identifier: self.control.system_id.to_string(),
            major: self.control.major.number(),
            server_version: format!("{}.{}", version_num / 10_000, version_num % 10_000),
            pgkeep: identity::writer().trim_start_matches("pgkeep ").to_owned(),
            host: self.around.host.clone(),
            role: self.role.name().to_owned(),
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
            base: self.chosen.base.as_ref().map(|base| base.label),
            references: copied.tally.used().labels().collect(),
            reused_from: copied.reused_from,
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
