//! Renews the object locks of what stays.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::error::{Error, Kind, Result};
use common::interrupt;
use common::postgres::WalName;
use common::repository::Repository;
use common::repository::wal::{mapped_name, stored_name};
use common::storage::{Key, Stat};
use common::time::UtcTime;

use crate::plan::Plan;

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

/// What was stored a moment ago is locked for nearly as long already.
fn is_due(stat: Stat, now: UtcTime, horizon: Duration) -> bool {
    now.since(stat.modified) > horizon / 8
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
