//! The steps of a restore, in order.
//!
//! Promises that PostgreSQL cannot start on what is not whole: pg_control is written under another name, and gets its
//! own only when all else is on disk. Until then [`MARKER`] says what the directory is. What is to be done has been
//! decided by [`crate::prepare`].

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

use common::durable;
use common::erasure;
use common::error::{Context, Error, Kind, Result};
use common::interrupt;
use common::postgres::datadir::{ERASURES, PARTIAL};
use common::postgres::manifest::manifest_path;
use common::postgres::{BackupLabel, ControlFile, Major, ManifestWriter, WalRange, recovery};
use common::progress::{self, Progress};
use common::repository::chain::Chain;
use common::repository::digests::Digests;
use common::repository::manifest::{Entry, Node};
use common::repository::reader;
use common::sorter::{Sorted, Sorter};
use common::time::UtcTime;
use common::units::ByteSize;

use crate::delta;
use crate::fetch::{self, Sources};
use crate::layout::{CONTROL, CONTROL_TEMPORARY, MARKER, Spot};
use crate::piece::Piece;
use crate::prepare::{Order, Prepared};
use crate::settings;
use crate::show::Plan;

/// What the list of pieces may take in memory, in bytes; the rest waits on disk.
const SORT_BYTES: usize = 16 << 20;
/// What nobody but this restore needs: left out of PostgreSQL's manifest, and ignored by pg_verifybackup.
const CHANGED: [&[u8]; 3] = [
    b"data/postgresql.auto.conf",
    b"data/recovery.signal",
    b"data/standby.signal",
];

impl Prepared<'_> {
    /// Does it.
    ///
    /// # Errors
    /// Whatever went wrong: PostgreSQL does not start on what is left then.
    pub fn run(&self, order: &Order) -> Result<()> {
        self.begin(order)?;
        if order.delta {
            let removed = delta::clear(&self.layout, self.info.major, |each| self.each_entry(each))?;
            log::debug!("{removed} files and directories that the backup does not have were removed");
        }
        let pieces = self.make_directories(order.delta)?;
        let done = AtomicU64::new(0);
        let kept = AtomicU64::new(0);
        let digests_in = Chain::new(&self.layout.data.join(delta::DIGESTS));
        let digests = Digests::new(&digests_in, self.repositories.clone());
        let same = order.delta.then_some((&digests, &kept));
        let sources = Sources::new(self.labels.clone(), self.repositories.clone());
        let progress = Progress::begin("restored", self.plan.size_bytes, order.on_terminal, Instant::now());
        progress::showing(progress, &done, || {
            fetch::fetch(pieces, &sources, &self.layout, (order.jobs, same), &done)
        })?;
        if order.delta {
            let all = self.plan.size_bytes;
            let kept = kept.into_inner();
            log::info!(
                "{} were there already, {} were fetched",
                ByteSize(kept),
                ByteSize(all.saturating_sub(kept))
            );
            let directory = self.layout.data.join(delta::DIGESTS);
            match std::fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(error, format!("remove {}", directory.display())));
                }
                _ => {}
            }
        }
        self.finish_files()?;
        let settings = settings::recovery(
            &self.choice,
            &order.request,
            self.restore_command.clone(),
            order.primary_conninfo.clone(),
            order.archiving.keep,
            self.only.is_some(),
        );
        settings::write(&self.layout.data, &settings)?;
        self.leave_erasures()?;
        if let Some(only) = &self.only {
            durable::replace_unsynced(&self.layout.data.join(PARTIAL), only.text().as_bytes(), 0o600)?;
        }
        self.appear()
    }

    fn leaves_out(&self, path: &[u8]) -> bool {
        self.only.as_ref().is_some_and(|only| only.leaves_out(path))
    }

    /// Leaves the SQL that erases tenants again.
    fn leave_erasures(&self) -> Result<()> {
        let erasures = &self.plan.erasures;
        if erasures.is_empty() {
            return Ok(());
        }
        let path = self.layout.data.join(ERASURES);
        durable::replace_unsynced(&path, erasure::script(erasures).as_bytes(), 0o600)
    }

    /// Makes the directories that are filled, and leaves the marker: from here on the restore has begun.
    fn begin(&self, order: &Order) -> Result<()> {
        self.check_destination(order)?;
        for (what, path) in self.layout.roots() {
            durable::create_dir_all(path, 0o700).map_err(|error| {
                let error = error.context(format!("make {what}"));
                let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
                let user = user.map_or_else(|| "this user".to_owned(), |user| user.name);
                error.hint(format!(
                    "{user} must be able to write there: install -d -o {user} -m 700 {}",
                    path.display()
                ))
            })?;
        }
        let text = format!(
            "A pgkeep restore of {} into this directory has begun and not ended. PostgreSQL cannot start on it.\n\
             To try again, empty the directory first, or use --delta.\n",
            self.info.label
        );
        let marker = self.layout.data.join(MARKER);
        if order.delta {
            durable::replace(&marker, text.as_bytes(), 0o600)?;
            return self.remove_control();
        }
        durable::write_new(&marker, text.as_bytes(), 0o600).map_err(|error| match error.kind() {
            Kind::AlreadyExists => error
                .with_kind(Kind::Busy)
                .hint("another restore into this directory has just begun"),
            _ => error,
        })
    }

    /// What is there must not be started any more, before the first change.
    fn remove_control(&self) -> Result<()> {
        let control = self.layout.data.join(CONTROL);
        match std::fs::remove_file(&control) {
            Ok(()) => control.parent().map_or(Ok(()), durable::sync_dir),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(error, format!("remove {}", control.display()))),
        }
    }

    /// Makes directories and empty files, and sorts what is to be fetched.
    fn make_directories(&self, delta: bool) -> Result<Sorted> {
        let mut sorter = Sorter::new(SORT_BYTES, &self.layout.data);
        self.each_entry(|entry| {
            let Spot::At(path) = self.layout.spot(&entry.path)? else {
                return Ok(());
            };
            match &entry.node {
                Node::Directory => make_directory(&path),
                Node::Link(_) => Ok(()),
                Node::File(file) if self.leaves_out(&entry.path) => {
                    create_file(&path)?;
                    fit_file(&path, file.size)
                }
                Node::File(file) => {
                    let is_there = delta && path.is_file();
                    if !is_there && (delta || file.ranges.is_empty()) {
                        create_file(&path)?;
                    }
                    if delta {
                        // What ends in zeros is there as far as its digests say, and nothing would be written.
                        fit_file(&path, file.size)?;
                    }
                    if entry.path.starts_with(b"extra/") {
                        // Only what lies below extra_paths has directories of its own in the backup.
                        path.parent().map_or(Ok(()), make_directories)?;
                    }
                    for range in &file.ranges {
                        let label = range.label.unwrap_or(self.info.label);
                        let number = self.labels.iter().position(|known| *known == label);
                        let number = number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
                            Error::new(
                                Kind::Corrupt,
                                format!("the manifest changed: it names {label} only now"),
                            )
                        })?;
                        let piece = Piece::new(&entry.path, number, range);
                        sorter.push(&piece.key(), &piece.value())?;
                    }
                    Ok(())
                }
            }
        })?;
        sorter.finish()
    }

    fn each_entry(&self, mut each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        let Some(repository) = self.repositories.first() else {
            return Err(Error::new(Kind::Failed, "no repository holds the backup"));
        };
        reader::open_manifest(repository, &self.info)?.for_each(|entry| {
            interrupt::check()?;
            each(entry)
        })
    }

    /// Checks sizes, sets modes and times, makes links, and writes PostgreSQL's own manifest.
    fn finish_files(&self) -> Result<()> {
        let major = Major::new(self.info.major)?;
        let path = self.layout.data.join("backup_manifest");
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let out = BufWriter::new(file.context(|| format!("write {}", path.display()))?);
        let mut manifest = ManifestWriter::new(out, major, self.info.system()?)?;
        let mut modes: Vec<(PathBuf, u32)> = Vec::new();
        let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
        self.each_entry(|entry| {
            let at = match self.layout.spot(&entry.path)? {
                Spot::At(path) => path,
                Spot::Link(path, target) => {
                    links.push((path, target));
                    return Ok(());
                }
                Spot::Skip => return Ok(()),
            };
            match &entry.node {
                Node::Directory => {
                    if entry.mode != 0o700 {
                        modes.push((at, entry.mode));
                    }
                }
                Node::Link(target) => links.push((at, PathBuf::from(bytes_path(target)))),
                Node::File(file) => {
                    finish_file(&at, &entry, file.size)?;
                    let listed = !CHANGED.contains(&entry.path.as_slice()) && !self.leaves_out(&entry.path);
                    if let Some(name) = manifest_path(&PathBuf::from(bytes_path(&entry.path))).filter(|_| listed) {
                        manifest.file(&name, file.size, system_time(entry.mtime), file.crc32c)?;
                    }
                }
            }
            Ok(())
        })?;
        // Links come last, so that nothing was written through them.
        for (path, target) in &links {
            make_link(path, target)?;
        }
        for (path, mode) in &modes {
            std::fs::set_permissions(path, Permissions::from_mode(*mode))
                .context(|| format!("set the mode of {}", path.display()))?;
        }
        let range = WalRange {
            timeline: self.info.timeline(),
            start: self.info.start_lsn,
            end: self.info.stop_lsn,
        };
        let mut out = manifest.finish(&[range])?;
        out.flush().context(|| format!("write {}", path.display()))
    }

    /// Compares what was restored with what `backup.json` says of it.
    fn check_content(&self, control: &Path) -> Result<()> {
        let (info, read) = (&self.info, |path: &Path| {
            std::fs::read(path).context(|| format!("read {}", path.display()))
        });
        let differs = |what: String| {
            let label = info.label;
            Err(Error::new(
                Kind::Corrupt,
                format!("{what}, and backup.json of {label} says otherwise"),
            )
            .hint(
                "the backup is damaged: another repository may hold it whole, or an older one serves, --backup LABEL",
            ))
        };
        let found =
            ControlFile::parse(&read(control)?).map_err(|error| error.context("read the restored pg_control"))?;
        if found.system_id != info.system()? || found.major.number() != info.major {
            let (system, major) = (found.system_id, found.major.number());
            return differs(format!(
                "the restored pg_control is of PostgreSQL {major}, system identifier {system}"
            ));
        }
        let label = self.layout.data.join("backup_label");
        if label.is_file() {
            let found = BackupLabel::parse(&read(&label)?)?;
            if (found.start_lsn, found.start_timeline) != (info.start_lsn, info.timeline()) {
                let (timeline, lsn) = (found.start_timeline.0, found.start_lsn);
                return differs(format!(
                    "the restored backup_label begins at {lsn} on timeline {timeline}"
                ));
            }
        }
        Ok(())
    }

    /// Makes everything durable, then pg_control appear: only now PostgreSQL can start.
    fn appear(&self) -> Result<()> {
        let data = &self.layout.data;
        let (temporary, control) = (data.join(CONTROL_TEMPORARY), data.join(CONTROL));
        if !temporary.is_file() {
            return Err(Error::new(
                Kind::Corrupt,
                format!("backup {} holds no pg_control", self.info.label),
            ));
        }
        self.check_content(&temporary)?;
        interrupt::check()?;
        for (_, path) in self.layout.roots() {
            durable::sync_tree_fs(path)?;
        }
        let marker = data.join(MARKER);
        std::fs::remove_file(&marker).context(|| format!("remove {}", marker.display()))?;
        durable::sync_dir(data)?;
        durable::rename(&temporary, &control)
    }
}

fn bytes_path(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn system_time(time: UtcTime) -> SystemTime {
    let micros = time.unix_micros();
    let span = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 {
        SystemTime::UNIX_EPOCH - span
    } else {
        SystemTime::UNIX_EPOCH + span
    }
}

fn make_directory(path: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make_directories(path),
        other => other.context(|| format!("make directory {}", path.display())),
    }
}

fn make_directories(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.context(|| format!("make directory {}", path.display()))
}

fn create_file(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
        make_directories(parent)?;
    }
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map(drop).context(|| format!("write {}", path.display()))
}

/// Gives a file that is there the size it will have, and lets it be written.
fn fit_file(path: &Path, size: u64) -> Result<()> {
    let doing = || format!("write {}", path.display());
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).context(doing)?;
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path);
    file.and_then(|file| file.set_len(size)).context(doing)
}

/// Sets mode and time of a file whose bytes are all there.
fn finish_file(path: &Path, entry: &Entry, size: u64) -> Result<()> {
    let open = || {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(path)
    };
    let doing = || format!("finish {}", path.display());
    let file: File = open().context(doing)?;
    let found = file.metadata().context(doing)?.len();
    if found != size {
        return Err(Error::new(
            Kind::Corrupt,
            format!("{} has {found} bytes, and the manifest says {size}", path.display()),
        ));
    }
    file.set_modified(system_time(entry.mtime)).context(doing)?;
    if entry.mode != 0o600 {
        file.set_permissions(Permissions::from_mode(entry.mode))
            .context(doing)?;
    }
    Ok(())
}

fn make_link(path: &Path, target: &Path) -> Result<()> {
    // pg_wal may be a directory in the manifest and a link here; its own directory was never made then.
    if path.is_symlink() {
        std::fs::remove_file(path).context(|| format!("remove link {}", path.display()))?;
    }
    std::os::unix::fs::symlink(target, path).context(|| format!("link {} to {}", path.display(), target.display()))
}

/// One line about what was done.
pub fn summary(plan: &Plan, took: Duration) -> String {
    let rate = ByteSize((plan.size_bytes as f64 / took.as_secs_f64().max(0.001)) as u64);
    let signal = if plan.action == "standby" {
        recovery::STANDBY_SIGNAL
    } else {
        recovery::RECOVERY_SIGNAL
    };
    format!(
        "restored {} files, {}, into {} in {:.1} s ({rate}/s); starting the server begins recovery ({signal} is there)",
        plan.files,
        ByteSize(plan.size_bytes),
        plan.to,
        took.as_secs_f64()
    )
}
