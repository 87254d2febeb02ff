//! Decides what a restore is going to do: looks at the repositories, reads the manifest once, and touches nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use common::error::{Error, Kind, Result};
use common::postgres::SystemId;
use common::repository::backup::{self, BackupInfo};
use common::repository::manifest::{Entry, Node};
use common::repository::pins::Pins;
use common::repository::{Label, Repository, reader};
use common::time::UtcTime;
use common::units::ByteSize;

use crate::archived::Archived;
use crate::args::ArchiveMode;
use crate::describe::describe;
use crate::home::{self, Archiving, Home};
use crate::layout::{Layout, Places, Spot};
use crate::only::Only;
use crate::place;
use crate::plan::{self, Choice};
use crate::settings::Fetcher;
use crate::show::Plan;
use crate::survey::{Survey, survey};
use crate::target::Request;

/// All that was asked for.
pub struct Order {
    /// Which moment.
    pub request: Request,
    /// Where to.
    pub places: Places,
    /// The cluster's name.
    pub cluster: String,
    /// Which repositories this host knows.
    pub pins: Pins,
    /// What else it knows of the cluster.
    pub home: Home,
    /// How the restored server calls for WAL.
    pub fetcher: Fetcher,
    /// A standby's primary.
    pub primary_conninfo: Option<String>,
    /// What was said about archiving.
    pub archive_mode: Option<ArchiveMode>,
    /// Whether it goes to the configured data directory.
    pub own: bool,
    /// Whether the restored server archives as the backup's configuration has it.
    pub archiving: Archiving,
    /// The configured repositories on this host, by name: nothing is restored into them.
    pub keep_out: Vec<(String, PathBuf)>,
    /// Whether to go on where the plan finds too little space.
    pub ignore_space: bool,
    /// Whether to keep what is there and is the same.
    pub delta: bool,
    /// The databases that are wanted, by name; none: all.
    pub only: Vec<String>,
    /// What the reader should know of how the request was understood.
    pub notes: Vec<String>,
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
    /// What was chosen.
    pub choice: Choice,
    /// Where everything goes.
    pub layout: Layout,
    /// Repositories in the order in which they are read; the first holds the manifest.
    pub repositories: Vec<&'a Repository>,
    /// The backup's document in the first of them.
    pub info: BackupInfo,
    /// The backups whose bytes are read, by the numbers that pieces carry.
    pub labels: Vec<Label>,
    /// The databases that come, if not all do.
    pub only: Option<Only>,
    /// How the restored server fetches WAL.
    pub restore_command: String,
}

/// Decides what to do. Nothing is touched.
///
/// # Errors
/// `NotFound`, `Refused`, `Config` with the reason why it cannot be done; what the repositories gave.
pub fn prepare<'a>(order: &Order, repositories: &'a [Repository]) -> Result<Prepared<'a>> {
    order.request.check()?;
    let survey = survey(repositories, &order.pins, &order.request)?;
    for silent in &survey.silent {
        log::warn!("repository \"{}\" does not answer: {}", silent.name, silent.why);
    }
    let maps = Archived {
        sources: &survey.answered,
        system: survey.system.unwrap_or(SystemId(0)),
        size: survey.archive.segment_size,
        jobs: order.jobs,
    };
    let mut choice = plan::decide(&order.request, &survey.archive, &maps, order.now)?;
    let named = order.request.backup.is_some();
    let foreign = home::judge_system(&choice.backup, &order.home, &survey.current, named)?;
    choice.notes.extend(foreign);
    let layout = Layout::new(&order.places, &choice.backup.tablespaces)?;
    let (repositories, info, totals) = read_manifest(&survey, &choice, &layout, &order.only)?;
    let restore_command = order.fetcher.command()?;
    let plan = describe(order, &survey, &choice, &layout, &repositories, &info, &totals)?;
    let plan = Plan {
        restore_command: restore_command.clone(),
        ..plan
    };
    let (labels, only) = (totals.labels.into_iter().collect(), totals.only);
    Ok(Prepared {
        plan,
        choice,
        layout,
        repositories,
        info,
        labels,
        only,
        restore_command,
    })
}

/// What the manifest adds up to.
#[derive(Default)]
pub struct Totals {
    /// Number of files.
    pub files: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Size of extra files that are left out, in bytes.
    pub left_out: u64,
    /// What goes into each directory that is filled, in bytes.
    pub by_root: BTreeMap<PathBuf, u64>,
    /// The backups whose bytes are read.
    pub labels: BTreeSet<Label>,
    /// The databases that come, if not all do.
    pub only: Option<Only>,
}

/// Reads the whole manifest from the first repository that can give it; those that hold the backup come first.
fn read_manifest<'a>(
    survey: &Survey<'a>,
    choice: &Choice,
    layout: &Layout,
    only: &[String],
) -> Result<(Vec<&'a Repository>, BackupInfo, Totals)> {
    let label = choice.backup.label;
    let holders = survey.holders.get(&label).map(Vec::as_slice).unwrap_or_default();
    let mut first: Option<Error> = None;
    for (at, repository) in holders.iter().enumerate() {
        // The document is the repository's own: sizes of objects differ where encryption does.
        let read = backup::read(repository, label).and_then(|info| {
            // Its frames carry no checksum, and everything else is found through it.
            reader::check_object(repository, &info, "manifest.zst")?;
            let only = match only {
                [] => None,
                names => Some(Only::named(names, repository, &info)?),
            };
            Ok((add_up(repository, &info, layout, only)?, info))
        });
        match read {
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
                    return Err(older_instead(survey, label, error));
                }
                log::warn!("{}", common::error::chain(&error));
                first.get_or_insert(error);
            }
        }
    }
    let error = first.unwrap_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("no repository that answers completely holds backup {label}"),
        )
    });
    Err(older_instead(survey, label, error))
}

/// Names the way out where a backup is damaged.
fn older_instead(survey: &Survey<'_>, label: Label, error: Error) -> Error {
    if !matches!(error.kind(), Kind::Corrupt | Kind::NotFound) {
        return error;
    }
    let older = survey
        .archive
        .backups
        .iter()
        .filter(|other| other.good && other.label < label);
    let older = older.max_by_key(|other| other.label);
    error.hint(match older {
        Some(older) => format!("an older backup may serve: --backup {}", older.label),
        None => "another repository may hold it whole; there is no older good backup".to_owned(),
    })
}

fn add_up(repository: &Repository, info: &BackupInfo, layout: &Layout, only: Option<Only>) -> Result<Totals> {
    let mut totals = Totals::default();
    let roots: Vec<&Path> = layout.roots().into_iter().map(|(_, path)| path).collect();
    reader::open_manifest(repository, info)?.for_each(|entry| {
        let spot = layout.spot(&entry.path)?;
        let Node::File(file) = &entry.node else { return Ok(()) };
        match spot {
            Spot::At(path) => {
                totals.files += 1;
                if only.as_ref().is_some_and(|only| only.leaves_out(&entry.path)) {
                    return Ok(());
                }
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
    Ok(Totals { only, ..totals })
}

fn unfit(entry: &Entry, what: &str) -> Error {
    let path = String::from_utf8_lossy(&entry.path);
    Error::new(
        Kind::Refused,
        format!("the manifest has \"{path}\" as something else than {what}"),
    )
}

impl Prepared<'_> {
    /// The backup.
    pub fn label(&self) -> Label {
        self.info.label
    }

    /// Refuses a destination that cannot or must not be filled; touches nothing.
    ///
    /// # Errors
    /// `Refused`; what looking gave.
    pub fn check_destination(&self, order: &Order) -> Result<()> {
        let system = if order.delta { Some(self.info.system()?) } else { None };
        place::check(&self.layout, &order.keep_out, system)?;
        let short = |space: &&crate::show::Space| space.free_bytes < space.needed_bytes;
        match self.plan.space.iter().find(short) {
            Some(space) if !order.ignore_space => Err(Error::new(
                Kind::Refused,
                format!(
                    "the file system of {} is too small: {} needed, {} free",
                    space.path,
                    ByteSize(space.needed_bytes),
                    ByteSize(space.free_bytes)
                ),
            )
            .hint(
                "choose another destination, or put parts elsewhere with --tablespace and --wal-dir; where the file system \
                 compresses, --ignore-space",
            )),
            _ => Ok(()),
        }
    }
}
