//! The child that may hang: stores the file in every repository, and the next ones with it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::config::Config;
use common::error::{Error, Kind, Result, chain};
use common::postgres::WalName;
use common::repository::Repository;
use common::repository::pins::Pin;

use crate::batch;
use crate::marker::Markers;
use crate::missed::Missed;
use crate::target::{self, Offer, Run, Target};

/// What others are not kept waiting for longer: a repository that takes more time for one file is waited for while they
/// receive what is ready.
const SOON: Duration = Duration::from_secs(5);

/// How often is looked what has become ready, meanwhile.
const ROUND: Duration = Duration::from_secs(1);

/// Stores the WAL file `asked`, then what is ready.
///
/// # Errors
/// `Refused` if the file is not what its name says, or other content has its name; `Transient` if asking again may help,
/// a repository that is silent included; the first failure among the required repositories, after all have been tried.
pub fn run(
    run: &Arc<Run>,
    config: &Config,
    repositories: Vec<Repository>,
    markers: &Markers,
    (cluster, asked): (&str, WalName),
) -> Result<()> {
    let targets: Vec<Arc<Target>> = repositories.into_iter().map(Target::new).collect();
    let push = Push {
        run,
        targets: &targets,
        config,
        markers,
        missed: Missed::below(&config.state_directory.join(cluster)),
        soon: SOON.min(config.patience),
    };
    let begun = Instant::now();
    target::find_all(run, &targets, push.soon);
    let cannot = |error: Error| error.context(format!("cannot store WAL {asked}"));
    let mut offer = Offer::make(run, &asked, &targets).map_err(cannot)?;
    offer.wait(push.soon);
    while !offer.is_enough() && begun.elapsed() < config.patience {
        push.ahead(asked, offer.is_new(&asked), &offer.holders());
        offer.wait(ROUND);
    }
    offer.give_up();
    let holders = offer.holders();
    push.ahead(asked, offer.is_new(&asked), &holders);
    let optional = holders.iter().filter(|target| !target.repository.required);
    push.missed
        .bring_level(run, &optional.cloned().collect::<Vec<_>>(), push.soon);
    match push.sort_out(&asked, offer) {
        Some(error) => Err(cannot(error)),
        None if holders.is_empty() => Err(cannot(nobody_took_it())),
        None => Ok(()),
    }
}

/// Names in pg_wal/archive_status; none where there is no such directory.
pub fn ready_files(wal_directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(wal_directory.join("archive_status")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

struct Push<'a> {
    run: &'a Arc<Run>,
    targets: &'a [Arc<Target>],
    config: &'a Config,
    markers: &'a Markers,
    missed: Missed,
    soon: Duration,
}

impl Push<'_> {
    /// Stores the files that PostgreSQL will ask for next, where `asked` could be stored: what fails for one file fails
    /// for the next, and PostgreSQL will ask for that one too and hear why.
    ///
    /// Where files are stored already they may be of another history, of a server whose older copy this one is: each is compared
    /// before a later one is stored, so that one timeline never goes on with the WAL of another.
    fn ahead(&self, asked: WalName, mut is_new: bool, holders: &[Arc<Target>]) {
        let working: Vec<Pin> = holders.iter().filter_map(|target| target.pin()).cloned().collect();
        if working.is_empty() {
            return;
        }
        let is_done = |name: &WalName| self.markers.covers(name, self.run.system, &working);
        let ready = ready_files(&self.run.wal_directory);
        let files = batch::choose(asked, ready, self.config.push_batch.saturating_sub(1), is_done);
        let one = |name: &WalName| {
            self.one_ahead(name, holders)
                .inspect_err(|error| log::debug!("cannot store {name} ahead: {}", chain(error)))
        };
        let mut files = files.as_slice();
        while let Some((name, rest)) = files.split_first()
            && !(is_new && matches!(name, WalName::Segment(_)))
        {
            match one(name) {
                Ok(new) => is_new = new,
                Err(_) => return,
            }
            files = rest;
        }
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(name) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let _ = one(name);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.config.jobs.min(files.len()) {
                scope.spawn(work);
            }
            work();
        });
    }

    /// Stores one of them, and remembers where it is; says whether it was nowhere before.
    fn one_ahead(&self, name: &WalName, targets: &[Arc<Target>]) -> Result<bool> {
        let mut offer = Offer::make(self.run, name, targets)?;
        offer.wait(self.soon);
        offer.give_up();
        let is_new = offer.is_new(name);
        let (content, holders) = (offer.content, offer.holders());
        let failed = self.sort_out(name, offer);
        match content {
            Some(content) if !holders.is_empty() => {
                let pins = self.pins_for_marker(&holders);
                self.markers.set(name, self.run.system, &pins, &content)?;
                Ok(is_new)
            }
            _ => Err(failed.unwrap_or_else(nobody_took_it)),
        }
    }

    /// Every required repository; or, if not all of them have the file, those that do.
    fn pins_for_marker(&self, holders: &[Arc<Target>]) -> Vec<Pin> {
        let is_required = |target: &&Arc<Target>| target.repository.required;
        let required = self.targets.iter().filter(is_required).count();
        let whole = required > 0 && holders.iter().filter(is_required).count() == required;
        let named = holders.iter().filter(|target| !whole || is_required(target));
        named.filter_map(|target| target.pin()).cloned().collect()
    }

    /// Returns the first failure of a required repository, tells the others, and notes what a repository missed that work goes on without.
    fn sort_out(&self, name: &WalName, offer: Offer) -> Option<Error> {
        let mut failed = None;
        for (target, error) in offer.into_errors() {
            let repository = &target.repository;
            let error = error.context(format!("repository \"{}\"", repository.name));
            if !repository.required {
                self.missed.note(&repository.name, name);
                log::warn!(
                    "{name} is not stored everywhere, though in all required places: {}",
                    chain(&error)
                );
            } else if failed.is_none() {
                failed = Some(error);
            } else {
                log::error!("cannot store WAL {name}: {}", chain(&error));
            }
        }
        failed
    }
}

fn nobody_took_it() -> Error {
    Error::new(Kind::Transient, "no repository has taken it")
        .hint("none is required, but a WAL file that is nowhere is lost: see the warnings before this line")
}
