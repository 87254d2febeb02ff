//! Renews the object locks of what stays.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::durable;
use common::error::{Error, Kind, Result};
use common::interrupt;
use common::postgres::WalName;
use common::repository::Repository;
use common::repository::wal::{mapped_name, stored_name};
use common::storage::{Key, Stat};
use common::time::UtcTime;

use crate::plan::Plan;

/// What was stored within this part of the horizon is locked for nearly as long already.
const FRESH: u32 = 8;

/// When the locks of a repository were last renewed, remembered by this host.
pub struct Renewals(PathBuf);

impl Renewals {
    /// Below the state directory of a cluster.
    pub fn new(state: &Path, uuid: &str) -> Self {
        Self(state.join("prune").join(format!("{uuid}.renewed")))
    }

    /// The time; nothing where this host never did it.
    pub fn last(&self) -> Option<UtcTime> {
        let text = std::fs::read_to_string(&self.0).ok()?;
        UtcTime::parse_compact(text.trim()).ok()
    }

    /// Remembers it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remember(&self, now: UtcTime) -> Result<()> {
        if let Some(directory) = self.0.parent() {
            durable::create_dir_all(directory, 0o755)?;
        }
        durable::replace_unsynced(&self.0, format!("{}\n", now.compact()).as_bytes(), 0o644)
    }
}

/// Until when at least everything that stays is locked: each object is locked for `horizon` when it is written, and again with each
/// renewal. Nothing where nothing stays.
pub fn until(last: Option<UtcTime>, oldest: Option<UtcTime>, horizon: Duration) -> Option<UtcTime> {
    let oldest = oldest?;
    // A renewal leaves out what was stored so shortly before.
    let last = last.map(|last| last.minus(horizon / FRESH));
    Some(last.map_or(oldest, |last| last.max(oldest)).plus(horizon))
}

/// Renews all locks of a repository up to `horizon` from now; says how many.
///
/// # Errors
/// `Config` where the repository has no `lock_horizon`; else the first failure of the store.
pub fn renew(repository: &Repository, plan: &Plan, horizon: Option<Duration>, jobs: usize) -> Result<u64> {
    let Some(horizon) = horizon else {
        log::debug!(
            "repository \"{}\" has no lock_horizon: nothing is locked there",
            repository.name
        );
        return Ok(0);
    };
    let now = repository.store.now()?;
    let mut renewed = 0;
    let staying = plan.staying();
    for label in plan
        .left
        .iter()
        .filter(|(.., why)| why.is_some())
        .map(|(label, ..)| *label)
        .chain(staying)
    {
        let folder = repository.keys().of_label(label)?;
        renewed += renew_below(repository, &folder, now, horizon, jobs, &|_| true)?;
    }
    for (name, _) in plan.dumps.iter().filter(|(_, verdict)| verdict.is_kept()) {
        let folder = repository.keys().dumps()?.join(name)?;
        renewed += renew_below(repository, &folder, now, horizon, jobs, &|_| true)?;
    }
    renewed += renew_below(repository, &repository.keys().events()?, now, horizon, jobs, &|_| true)?;
    renewed += one(repository, &repository.keys().identity()?, now.plus(horizon)).map(|()| 1)?;
    for system in &plan.wal {
        let root = repository.keys().wal_of(system.system)?;
        for folder in repository.store.children(Some(&root))? {
            let stays = |key: &Key| {
                let map = mapped_name(key.name()).map(WalName::Segment);
                let name = map.or_else(|| stored_name(key.name()));
                name.is_some_and(|name| system.needed.keeps(&name, system.size))
            };
            renewed += renew_below(repository, &root.join(&folder)?, now, horizon, jobs, &stays)?;
        }
    }
    log::info!(
        "repository \"{}\": {renewed} object locks were renewed",
        repository.name
    );
    Ok(renewed)
}

fn one(repository: &Repository, key: &Key, until: UtcTime) -> Result<()> {
    repository
        .store
        .renew_lock(key, until)
        .map_err(|error| error.context(format!("renew the lock of {}", repository.store.describe(Some(key)))))
}

fn is_due(stat: Stat, now: UtcTime, horizon: Duration) -> bool {
    now.since(stat.modified) > horizon / FRESH
}

fn renew_below(
    repository: &Repository,
    folder: &Key,
    now: UtcTime,
    horizon: Duration,
    jobs: usize,
    stays: &(dyn Fn(&Key) -> bool + Sync),
) -> Result<u64> {
    let mut keys = Vec::new();
    repository.store.list(Some(folder), &mut |key, stat| {
        if is_due(stat, now, horizon) && stays(&key) {
            keys.push(key);
        }
        Ok(())
    })?;
    let (next, renewed) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failed = Mutex::new(None::<Error>);
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || {
        while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
            if lock().is_some() || interrupt::caught().is_some() {
                return;
            }
            match one(repository, key, now.plus(horizon)) {
                Ok(()) => {
                    renewed.fetch_add(1, Ordering::Relaxed);
                }
                // Removed meanwhile, by the run itself.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => *lock() = Some(error),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.clamp(1, keys.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    interrupt::check()?;
    failed
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .map_or(Ok(renewed.into_inner()), Err)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn locks_last_from_the_oldest_object_or_the_last_renewal() {
        let at = |hours: i64| UtcTime::from_unix_seconds(1_790_000_000 + hours * 3600).unwrap();
        let day = Duration::from_secs(86_400);
        assert_eq!(until(None, None, day), None);
        assert_eq!(until(Some(at(5)), None, day), None);
        assert_eq!(until(None, Some(at(0)), day), Some(at(24)));
        assert_eq!(until(Some(at(10)), Some(at(0)), day), Some(at(31)));
        assert_eq!(
            until(Some(at(0)), Some(at(10)), day),
            Some(at(34)),
            "all that stays is younger"
        );
    }

    #[test]
    fn a_renewal_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let renewals = Renewals::new(directory.path(), "uuid");
        assert_eq!(renewals.last(), None);
        let now = UtcTime::from_unix_seconds(1_790_000_000).unwrap();
        renewals.remember(now).unwrap();
        assert_eq!(renewals.last(), Some(now));
    }

    #[test]
    fn what_was_just_stored_needs_no_renewal() {
        let now = UtcTime::parse_compact("20261120T120000Z").unwrap();
        let day = Duration::from_secs(86_400);
        let stored = |ago: u32| Stat {
            size: 1,
            modified: now.minus(day * ago),
        };
        let horizon = day * 16;
        assert!(!is_due(stored(0), now, horizon) && !is_due(stored(2), now, horizon));
        assert!(is_due(stored(3), now, horizon) && is_due(stored(400), now, horizon));
    }
}
