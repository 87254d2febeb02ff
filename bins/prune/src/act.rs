//! Removes what the plan lets go, in an order that leaves garbage behind a crash and never a broken backup.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::postgres::{SegmentSize, SystemId, WalName};
use common::repository::backup::{self, BackupInfo};
use common::repository::wal::{mapped_name, stored_name};
use common::repository::{Label, Repository, catalog};
use common::retention::wal::Needed;
use common::storage::Key;
use common::time::UtcTime;

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
    /// Until when at least everything that stays is locked, in a repository with object locks.
    pub locked_until: Option<UtcTime>,
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
    let mut gone: Vec<(&BackupInfo, Folder)> = Vec::new();
    for backup in &removal.backups {
        let is_needed = held.iter().any(|held| held.references.contains(&backup.label));
        let folder = acting.look(&repository.keys().of_label(backup.label)?)?;
        if !is_needed && acting.delete(&folder.first)? == 0 {
            gone.push((backup, folder));
        } else {
            held.push(backup);
        }
    }
    // From here on nobody can choose any of these. Who had chosen one before has said so.
    let begun = begun_since(repository, &removal.seen)?;
    let is_leaned_on = |label: Label| begun.iter().any(|begun| begun.leans_on(label));
    let (back, gone): (Vec<_>, Vec<_>) = gone.into_iter().partition(|(backup, _)| is_leaned_on(backup.label));
    for (backup, folder) in back {
        backup::commit(repository, backup)?;
        log::info!("{} stays: a backup that has just begun leans on it", backup.label);
        acting.take_back(&folder.first);
        held.push(backup);
    }
    for (_, folder) in &gone {
        acting.delete_rest(folder)?;
        acting.removed.backups += 1;
    }
    let lends = |label: Label| is_leaned_on(label) || held.iter().any(|held| held.references.contains(&label));
    for label in removal.garbage.iter().filter(|label| !lends(**label)) {
        acting.folder(&repository.keys().of_label(*label)?)?;
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

/// A backup of which the plan knows nothing.
enum Begun {
    /// It leans on these.
    On(Vec<Label>),
    /// What it leans on cannot be read: on anything.
    Unknown,
}

impl Begun {
    fn leans_on(&self, label: Label) -> bool {
        match self {
            Self::On(labels) => labels.contains(&label),
            Self::Unknown => true,
        }
    }
}

/// Backups that were begun since the plan was made; their intents stay when they are committed.
fn begun_since(repository: &Repository, seen: &BTreeSet<Label>) -> Result<Vec<Begun>> {
    let labels = catalog::labels(repository)?;
    let read = |label: Label| match backup::read_intent(repository, label) {
        Ok(intent) => Ok(Some(Begun::On(intent.leans_on))),
        // Nothing that anybody would commit: an intent comes first.
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Refused) => Ok(Some(Begun::Unknown)),
        Err(error) => Err(error),
    };
    let new = labels.into_iter().filter(|label| !seen.contains(label));
    new.filter_map(|label| read(label).transpose()).collect()
}

/// What lies below one folder, with sizes.
#[derive(Default)]
struct Folder {
    first: Vec<(Key, u64)>,
    rest: Vec<(Key, u64)>,
    last: Vec<(Key, u64)>,
}

struct Acting<'a> {
    repository: &'a Repository,
    jobs: usize,
    removed: Removed,
}

impl Acting<'_> {
    fn look(&self, folder: &Key) -> Result<Folder> {
        let mut found = Folder::default();
        self.repository.store.list(Some(folder), &mut |key, stat| {
            let part = match key.name() {
                name if FIRST.contains(&name) => &mut found.first,
                LAST => &mut found.last,
                _ => &mut found.rest,
            };
            part.push((key, stat.size));
            Ok(())
        })?;
        Ok(found)
    }

    /// Removes all below a folder: first what makes it count, last what says that it was begun.
    fn folder(&mut self, folder: &Key) -> Result<()> {
        let folder = self.look(folder)?;
        // While it counts, nothing of it may be missing.
        if self.delete(&folder.first)? > 0 {
            return Ok(());
        }
        self.delete_rest(&folder)
    }

    fn delete_rest(&mut self, folder: &Folder) -> Result<()> {
        if self.delete(&folder.rest)? == 0 {
            self.delete(&folder.last)?;
        }
        Ok(())
    }

    /// What was deleted and is there again.
    fn take_back(&mut self, objects: &[(Key, u64)]) {
        self.removed.objects -= objects.len() as u64;
        self.removed.bytes -= objects.iter().map(|(_, size)| size).sum::<u64>();
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
