//! The steps of a restore, in order.
//!
//! Promises that PostgreSQL cannot start on what is not whole: pg_control is written under another name, and gets its
//! own only when all else is on disk. Until then [`MARKER`] says what the directory is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

use common::durable;
use common::error::{Context, Error, Kind, Result};
use common::postgres::manifest::manifest_path;
use common::postgres::{Major, ManifestWriter, SystemId, WalRange, recovery};
use common::progress::{self, Progress};
use common::repository::backup::{self, BackupInfo};
use common::repository::manifest::{Entry, Node};
use common::repository::{Label, Repository, reader};
use common::sorter::{Sorted, Sorter};
use common::time::UtcTime;
use common::units::ByteSize;

use crate::archived::Archived;
use crate::fetch::{self, Sources};
use crate::piece::Piece;
use crate::place::{self, CONTROL, CONTROL_TEMPORARY, Layout, MARKER, Places, Spot};
use crate::plan::{self, Choice};
use crate::settings::{self, Fetcher};
use crate::show::{Place, Plan, PlannedBackup, PlannedWal, Space, Unheard};
use crate::survey::{Survey, survey};
use crate::target::{Request, Target};

/// What the list of pieces may take in memory, in bytes; the rest waits on disk.
const SORT_BYTES: usize = 16 << 20;
/// What nobody but this restore needs: left out of PostgreSQL's manifest, and ignored by pg_verifybackup.
const CHANGED: [&[u8]; 3] = [
    b"data/postgresql.auto.conf",
    b"data/recovery.signal",
    b"data/standby.signal",
];

/// All that was asked for.
pub struct Order {
    /// Which moment.
    pub request: Request,
    /// Where to.
    pub places: Places,
    /// The cluster's name.
    pub cluster: String,
    /// Where documents of backups are remembered.
    pub cache: PathBuf,
    /// How the restored server calls for WAL.
    pub fetcher: Fetcher,
    /// A standby's primary.
    pub primary_conninfo: Option<String>,
    /// Whether the restored server archives as the backup's configuration has it.
    pub archiving: bool,
    /// Number of workers.
    pub jobs: usize,
    /// Whether stderr is a terminal.
    pub on_terminal: bool,
    /// The time of the start.
    pub now: UtcTime,
}

/// A restore that has been decided.
pub struct Prepared<'a> {
    /// What will be done, for the reader.
    pub plan: Plan,
    choice: Choice,
    layout: Layout,
    /// Repositories in the order in which they are read; the first holds the manifest.
    repositories: Vec<&'a Repository>,
    info: BackupInfo,
    labels: Vec<Label>,
    restore_command: String,
}

/// Decides what to do. Nothing is touched but the cache.
///
/// # Errors
/// `NotFound`, `Refused`, `Config` with the reason why it cannot be done; what the repositories gave.
pub fn prepare<'a>(order: &Order, repositories: &'a [Repository]) -> Result<Prepared<'a>> {
    order.request.check()?;
    let survey = survey(repositories, &order.cache, &order.request)?;
    for silent in &survey.silent {
        log::warn!("repository \"{}\" does not answer: {}", silent.name, silent.why);
    }
    let maps = Archived {
        sources: &survey.answered,
        system: survey.system.unwrap_or(SystemId(0)),
        size: survey.archive.segment_size,
        jobs: order.jobs,
    };
    let choice = plan::decide(&order.request, &survey.archive, &maps, order.now)?;
    let layout = Layout::new(&order.places, &choice.backup.tablespaces)?;
    let (repositories, info, totals) = read_manifest(&survey, &choice, &layout)?;
    let restore_command = order.fetcher.command()?;
    let plan = describe(
        order,
        &survey,
        &choice,
        &layout,
        &repositories,
        &info,
        &totals,
        &restore_command,
    )?;
    let labels = totals.labels.into_iter().collect();
    Ok(Prepared {
        plan,
        choice,
        layout,
        repositories,
        info,
        labels,
        restore_command,
    })
}

/// What the manifest adds up to.
#[derive(Default)]
struct Totals {
    files: u64,
    bytes: u64,
    left_out: u64,
    by_root: BTreeMap<PathBuf, u64>,
    labels: BTreeSet<Label>,
}

/// Reads the whole manifest from the first repository that can give it; those that hold the backup come first.
fn read_manifest<'a>(
    survey: &Survey<'a>,
    choice: &Choice,
    layout: &Layout,
) -> Result<(Vec<&'a Repository>, BackupInfo, Totals)> {
    let label = choice.backup.label;
    let holders = survey.holders.get(&label).map(Vec::as_slice).unwrap_or_default();
    let mut first: Option<Error> = None;
    for (at, repository) in holders.iter().enumerate() {
        // The document is the repository's own: sizes of objects differ where encryption does.
        match backup::read(repository, label).and_then(|info| Ok((add_up(repository, &info, layout)?, info))) {
            Ok((totals, info)) => {
                let mut order = vec![*repository];
                order.extend(holders.iter().skip(at + 1));
                order.extend(holders.iter().take(at));
                let known: BTreeSet<&str> = holders.iter().map(|holder| holder.name.as_str()).collect();
                order.extend(
                    survey
                        .answered
                        .iter()
                        .map(|(repository, _)| *repository)
                        .filter(|other| !known.contains(other.name.as_str())),
                );
                return Ok((order, info, totals));
            }
            Err(error) => {
                let error = error.context(format!("read backup {label} from repository \"{}\"", repository.name));
                if first.is_none() && at + 1 == holders.len() {
                    return Err(error);
                }
                log::warn!("{}", common::error::chain(&error));
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("no repository that answers completely holds backup {label}"),
        )
    }))
}

fn add_up(repository: &Repository, info: &BackupInfo, layout: &Layout) -> Result<Totals> {
    let mut totals = Totals::default();
    let roots: Vec<&Path> = layout.roots().into_iter().map(|(_, path)| path).collect();
    reader::open_manifest(repository, info)?.for_each(|entry| {
        let spot = layout.spot(&entry.path)?;
        let Node::File(file) = &entry.node else { return Ok(()) };
        match spot {
            Spot::At(path) => {
                totals.files += 1;
                totals.bytes = totals.bytes.saturating_add(file.size);
                if let Some(root) = roots.iter().find(|root| path.starts_with(root)) {
                    let sum = totals.by_root.entry(root.to_path_buf()).or_default();
                    *sum = sum.saturating_add(file.size);
                }
                totals
                    .labels
                    .extend(file.ranges.iter().map(|range| range.label.unwrap_or(info.label)));
            }
            Spot::Skip if entry.path.starts_with(b"extra/") => {
                totals.left_out = totals.left_out.saturating_add(file.size);
            }
            Spot::Skip => {}
            Spot::Link(..) => return Err(unfit(&entry, "a link")),
        }
        Ok(())
    })?;
    Ok(totals)
}

fn unfit(entry: &Entry, what: &str) -> Error {
    let path = String::from_utf8_lossy(&entry.path);
    Error::new(
        Kind::Refused,
        format!("the manifest has \"{path}\" as something else than {what}"),
    )
}

#[allow(
    clippy::too_many_arguments,
    reason = "puts what was decided into one form, called once"
)]
fn describe(
    order: &Order,
    survey: &Survey<'_>,
    choice: &Choice,
    layout: &Layout,
    repositories: &[&Repository],
    info: &BackupInfo,
    totals: &Totals,
    restore_command: &str,
) -> Result<Plan> {
    let size = survey.archive.segment_size;
    let needs: Vec<(PathBuf, u64)> = totals
        .by_root
        .iter()
        .map(|(path, bytes)| (path.clone(), *bytes))
        .collect();
    let space = |volume: place::Volume| Space {
        path: volume.path.display().to_string(),
        needed_bytes: volume.needed,
        free_bytes: volume.free,
    };
    let holders: BTreeSet<&str> = survey
        .holders
        .get(&info.label)
        .into_iter()
        .flatten()
        .map(|one| one.name.as_str())
        .collect();
    let names = repositories
        .iter()
        .map(|one| one.name.clone())
        .filter(|name| holders.contains(name.as_str()));
    let alone = totals.labels.iter().all(|label| *label == info.label) && totals.left_out == 0;
    let bundles = info
        .objects
        .iter()
        .filter(|object| object.key.contains(".tar.zst"))
        .map(|object| object.size);
    let request = &order.request;
    Ok(Plan {
        schema: 1,
        cluster: order.cluster.clone(),
        to: layout.data.display().to_string(),
        backup: PlannedBackup {
            label: info.label,
            kind: info.kind.to_string(),
            stopped: info.stopped,
            timeline: info.timeline,
            start_lsn: info.start_lsn,
            stop_lsn: info.stop_lsn,
            server_version: info.server_version.clone(),
        },
        repositories: names.collect(),
        silent: survey
            .silent
            .iter()
            .map(|one| Unheard {
                name: one.name.clone(),
                why: one.why.clone(),
            })
            .collect(),
        target: request.target.to_string(),
        target_time: match &request.target {
            Target::Time { time, .. } => Some(*time),
            _ => None,
        },
        exclusive: request.exclusive,
        action: if request.standby {
            "standby".to_owned()
        } else {
            choice.action.to_string()
        },
        action_by_default: request.action.is_none() && choice.target != Target::End,
        timeline: choice.timeline.0,
        wal: PlannedWal {
            stretches: choice
                .wal
                .iter()
                .map(|stretch| plan::stretch_names(stretch, size))
                .collect(),
            bytes: plan::wal_bytes(&choice.wal, size),
            segment_bytes: size,
            to_end: choice.to_end,
        },
        files: totals.files,
        size_bytes: totals.bytes,
        fetch_bytes: alone.then(|| bundles.sum()),
        extra_left_out_bytes: totals.left_out,
        places: layout
            .roots()
            .into_iter()
            .skip(1)
            .map(|(what, path)| Place {
                what,
                path: path.display().to_string(),
            })
            .collect(),
        space: place::volumes(&needs)?.into_iter().map(space).collect(),
        archiving: order.archiving,
        restore_command: restore_command.to_owned(),
        notes: choice.notes.iter().cloned().chain(silence_note(survey)).collect(),
    })
}

/// At the end of WAL, and for a new timeline's number, every repository is asked, and silence may not be taken for a no.
fn silence_note(survey: &Survey<'_>) -> Option<String> {
    let first = survey.silent.first()?;
    let others: Vec<String> = survey
        .answered
        .iter()
        .map(|(repository, _)| format!("--repository {}", repository.name))
        .collect();
    Some(format!(
        "at the end of WAL and before a promotion the server asks repository {} too, and stops without its answer; to do \
         without it, restore with {}",
        first.name,
        others.join(" ")
    ))
}

impl Prepared<'_> {
    /// The backup.
    pub fn label(&self) -> Label {
        self.info.label
    }

    /// Refuses a destination that is not empty; touches nothing.
    ///
    /// # Errors
    /// `Refused`; what looking gave.
    pub fn check_destination(&self) -> Result<()> {
        self.layout.check_empty()
    }

    /// Does it.
    ///
    /// # Errors
    /// Whatever went wrong: PostgreSQL does not start on what is left then.
    pub fn run(&self, order: &Order) -> Result<()> {
        self.begin()?;
        let pieces = self.make_directories()?;
        let done = AtomicU64::new(0);
        let sources = Sources::new(self.labels.clone(), self.repositories.clone());
        let progress = Progress::begin("restored", self.plan.size_bytes, order.on_terminal, Instant::now());
        progress::showing(progress, &done, || {
            fetch::fetch(pieces, &sources, &self.layout, order.jobs, &done)
        })?;
        self.finish_files()?;
        let settings = settings::recovery(
            &self.choice,
            &order.request,
            self.restore_command.clone(),
            order.primary_conninfo.clone(),
            order.archiving,
        );
        settings::write(&self.layout.data, &settings)?;
        self.appear()
    }

    /// Makes the directories that are filled, and leaves the marker: from here on the restore has begun.
    fn begin(&self) -> Result<()> {
        self.layout.check_empty()?;
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
             To try again, empty the directory first.\n",
            self.info.label
        );
        durable::write_new(&self.layout.data.join(MARKER), text.as_bytes(), 0o600).map_err(|error| match error.kind() {
            Kind::AlreadyExists => error
                .with_kind(Kind::Busy)
                .hint("another restore into this directory has just begun"),
            _ => error,
        })
    }

    /// Makes directories and empty files, and sorts what is to be fetched.
    fn make_directories(&self) -> Result<Sorted> {
        let mut sorter = Sorter::new(SORT_BYTES, &self.layout.data);
        self.each_entry(|entry| {
            let Spot::At(path) = self.layout.spot(&entry.path)? else {
                return Ok(());
            };
            match &entry.node {
                Node::Directory => make_directory(&path),
                Node::Link(_) => Ok(()),
                Node::File(file) => {
                    if file.ranges.is_empty() {
                        create_file(&path)?;
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

    fn each_entry(&self, each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        let Some(repository) = self.repositories.first() else {
            return Err(Error::new(Kind::Failed, "no repository holds the backup"));
        };
        reader::open_manifest(repository, &self.info)?.for_each(each)
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
                    let listed = !CHANGED.contains(&entry.path.as_slice());
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
