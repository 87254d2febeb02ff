//! The steps, in the order in which nothing ever points at what is not there: events, WAL, backups whole and oldest first, dumps.

use std::path::Path;

use common::config::Retention;
use common::durable;
use common::error::{Error, Result};
use common::repository::backup::BackupInfo;
use common::repository::{Repository, catalog, lease};
use common::time::UtcTime;

use crate::copy::Route;
use crate::tally::{Tally, Target};
use crate::{backups, dumps, events, wal};

/// What the user asked for.
pub struct How<'a> {
    /// Workers.
    pub jobs: usize,
    /// Only count.
    pub dry_run: bool,
    /// Where objects wait until they are verified.
    pub spool: &'a Path,
    /// The retention of repositories that have one: what it would not keep stays behind.
    pub policies: Vec<(String, Retention)>,
    /// Now, by this host's clock.
    pub now: UtcTime,
}

/// Brings each target level; one that fails does not hold up the others.
pub fn run(source: &Repository, targets: &[&Repository], how: &How<'_>) -> Tally {
    let mut tally = Tally::default();
    for target in targets {
        let ended = Target::default();
        if let Err(error) = level(source, target, how, &ended) {
            ended.fail(&in_pair(error, source, target));
        }
        let (copied, failed) = ended.ended();
        tally.targets.push((target.name.clone(), copied, failed));
    }
    tally
}

fn in_pair(error: Error, source: &Repository, target: &Repository) -> Error {
    error.context(format!(
        "cannot bring repository \"{}\" level with \"{}\"",
        target.name, source.name
    ))
}

fn level(source: &Repository, target: &Repository, how: &How<'_>, tally: &Target) -> Result<()> {
    durable::create_dir_all(how.spool, 0o700)?;
    let route = Route::new(source, target, how.spool)?;
    events::check(source, target)?;
    // A second run into the same repository would do the same work.
    let _lease = match how.dry_run {
        true => None,
        false => Some(lease::take(target, "sync", &common::open::host_name())?),
    };
    events::copy(source, target, how.dry_run, tally)?;
    let ours = catalog::read(source, None)?;
    let theirs = catalog::read(target, None)?;
    let policy = how
        .policies
        .iter()
        .find(|(name, _)| *name == target.name)
        .map(|(_, policy)| policy);
    let written = common::repository::events::read(target)?;
    let marks = common::repository::events::marks(written.into_iter().map(|event| event.what));
    let kept = backups::kept(&ours, &theirs, policy, &marks, how.now);
    let writing = |info: &BackupInfo| backups::may_be_written(target, info, how.now);
    let plan = backups::plan(&ours, &theirs, writing, &kept)?;
    for (label, why) in &plan.skipped {
        log::info!("backup {label} is not copied: {why}");
    }
    // A backup is worth nothing without its WAL, and WAL something without a backup: it goes first.
    let needed = policy.is_some().then_some(&plan.needed);
    wal::copy(&route, needed, how, tally)?;
    for info in plan.copied {
        match backups::copy(&route, info, how, tally) {
            Ok(()) => tally.add(|copied| copied.backups += 1),
            Err(error) => tally.fail(&in_pair(
                error.context(format!("copy backup {}", info.label)),
                source,
                target,
            )),
        }
    }
    dumps::copy(&route, policy, how, tally)
}
