//! Removes what the plan lets go, in an order that leaves garbage behind a crash and never a broken backup.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::postgres::{SegmentSize, SystemId, WalName};
use common::repository::backup::BackupInfo;
use common::repository::wal::{mapped_name, stored_name};
use common::repository::{Label, Repository};
use common::retention::wal::Needed;
use common::storage::Key;

use crate::plan::Removal;

/// What makes a backup one, or a dump: it goes first.
const FIRST: [&str; 2] = ["backup.json", "dump.json"];
/// What says that something was begun: it goes last, so that a later run knows what it finds.
const LAST: &str = "intent.json";

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Backups.
    pub backups: u64,
    /// WAL segments.
    pub segments: u64,
    /// Objects, all kinds.
    pub objects: u64,
    /// Their stored size, in bytes.
    pub bytes: u64,
    /// What the store refused to delete, and why.
    pub refused: Vec<String>,
}

/// Removes; `jobs` deletions run at a time.
///
/// # Errors
/// `Transient` if the store went away, else what looking gave. What the store refuses to delete is no error.
pub fn act(repository: &Repository, removal: &Removal, jobs: usize) -> Result<Removed> {
    let mut acting = Acting {
        repository,
        jobs: jobs.max(1),
        removed: Removed::default(),
    };
    // What the store does not give up counts on, and needs what it needed.
    let mut held: Vec<&BackupInfo> = Vec::new();
    for backup in &removal.backups {
        let is_needed = held.iter().any(|held| held.references.contains(&backup.label));
        if !is_needed && acting.backup(backup.label)? {
            acting.removed.backups += 1;
        } else {
            held.push(backup);
        }
    }
    let lends = |label: &&Label| !held.iter().any(|held| held.references.contains(label));
    for label in removal.garbage.iter().filter(lends) {
        acting.folder(&repository.keys().backups()?.join(&label.to_string())?)?;
    }
    for name in &removal.dumps {
        acting.folder(&repository.keys().dumps()?.join(name)?)?;
    }
    for (system, size, needed) in &removal.wal {
        let identifier = system.to_string();
        let held = held.iter().filter(|backup| backup.system_identifier == identifier);
        let mut needed = needed.clone();
        needed.push(Needed::by(held.map(|backup| (*backup, false)))?);
        acting.wal(*system, *size, &needed)?;
    }
    Ok(acting.removed)
}

struct Acting<'a> {
    repository: &'a Repository,
    jobs: usize,
    removed: Removed,
}

impl Acting<'_> {
    /// Removes a backup; says whether it is none any more.
    fn backup(&mut self, label: Label) -> Result<bool> {
        let folder = self.repository.keys().backups()?.join(&label.to_string())?;
        self.folder(&folder)
    }

    /// Removes all below a folder: first what makes it count, last what says that it was begun.
    fn folder(&mut self, folder: &Key) -> Result<bool> {
        let mut objects: Vec<(Key, u64)> = Vec::new();
        self.repository.store.list(Some(folder), &mut |key, stat| {
            objects.push((key, stat.size));
            Ok(())
        })?;
        let (first, rest): (Vec<_>, Vec<_>) = objects.into_iter().partition(|(key, _)| FIRST.contains(&key.name()));
        let (last, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(key, _)| key.name() == LAST);
        // While it counts, nothing of it may be missing.
        if self.delete(&first)? > 0 {
            return Ok(false);
        }
        if self.delete(&rest)? == 0 {
            self.delete(&last)?;
        }
        Ok(true)
    }

    /// Removes WAL folder by folder, so that memory stays flat; the oldest first.
    fn wal(&mut self, system: SystemId, size: SegmentSize, needed: &[Needed]) -> Result<()> {
        let root = self.repository.keys().wal_of(system)?;
        let goes = |name: &WalName| !needed.iter().any(|needed| needed.keeps(name, size));
        for folder in self.repository.store.children(Some(&root))? {
            let mut objects = Vec::new();
            let mut segments = 0;
            self.repository
                .store
                .list(Some(&root.join(&folder)?), &mut |key, stat| {
                    let map = mapped_name(key.name()).map(WalName::Segment);
                    let is_map = map.is_some();
                    // What has no name that we know stays.
                    if let Some(name) = map.or_else(|| stored_name(key.name()))
                        && goes(&name)
                    {
                        segments += u64::from(!is_map && matches!(name, WalName::Segment(_)));
                        objects.push((key, stat.size));
                    }
                    Ok(())
                })?;
            let refused = self.delete(&objects)?;
            self.removed.segments += segments.min((objects.len() as u64).saturating_sub(refused));
        }
        Ok(())
    }

    /// Deletes objects; says how many the store refused to.
    fn delete(&mut self, objects: &[(Key, u64)]) -> Result<u64> {
        interrupt::check()?;
        let next = AtomicUsize::new(0);
        let outcome = Mutex::new((Removed::default(), None::<Error>));
        let lock = || outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let store = self.repository.store.as_ref();
        let work = || {
            while let Some((key, size)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                if lock().1.is_some() || interrupt::caught().is_some() {
                    return;
                }
                match store.delete(key) {
                    Ok(()) => {
                        let removed = &mut lock().0;
                        removed.objects += 1;
                        removed.bytes += size;
                    }
                    Err(error) if error.kind() == Kind::Transient => lock().1 = Some(error),
                    Err(error) => {
                        let hint = error
                            .nearest_hint()
                            .map(|hint| format!(" ({hint})"))
                            .unwrap_or_default();
                        lock().0.refused.push(format!("{}{hint}", chain(&error)));
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.jobs.min(objects.len().max(1)) {
                scope.spawn(work);
            }
            work();
        });
        let (removed, failed) = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
        let refused = removed.refused.len() as u64;
        self.removed.objects += removed.objects;
        self.removed.bytes += removed.bytes;
        self.removed.refused.extend(removed.refused);
        interrupt::check()?;
        failed.map_or(Ok(refused), Err)
    }
}

#[cfg(test)]
#[path = "act_tests.rs"]
mod tests;
