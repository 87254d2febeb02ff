//! What backups there are. The repository is the truth; the cache only saves reading documents that never change.

use std::path::Path;

use crate::durable;
use crate::error::{Kind, Result, chain};
use crate::repository::backup::BackupInfo;
use crate::repository::{Label, Repository, backup};

/// The backups of one cluster in one repository.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Committed backups, oldest first.
    pub backups: Vec<BackupInfo>,
    /// Labels without `backup.json`: running, or left behind.
    pub unfinished: Vec<Label>,
    /// Labels whose `backup.json` cannot be used, and why.
    pub unreadable: Vec<(Label, String)>,
    /// Names below `backup/` that are no labels.
    pub foreign: Vec<String>,
}

impl Catalog {
    /// The newest backup that counts.
    pub fn newest_good(&self) -> Option<&BackupInfo> {
        self.backups.iter().rev().find(|info| info.good)
    }

    /// The backup named `label`.
    pub fn get(&self, label: Label) -> Option<&BackupInfo> {
        self.backups.iter().find(|info| info.label == label)
    }
}

/// Reads the catalog. `cache`, if given, is a directory that remembers what was read; it heals itself: what the
/// repository does not list is forgotten, what it lists anew is read.
///
/// # Errors
/// `NotFound`, `Refused` and the like if this is not the cluster's repository; else what the store says.
pub fn read(repository: &Repository, cache: Option<&Path>) -> Result<Catalog> {
    let uuid = &repository.identity()?.uuid;
    let cache = cache.map(|directory| directory.join(uuid));
    let mut catalog = Catalog::default();
    let mut seen = Vec::new();
    let folder = repository.keys().backups()?;
    for name in repository.store.children(Some(&folder))? {
        let Ok(label) = name.parse::<Label>() else {
            catalog.foreign.push(name);
            continue;
        };
        let document = repository.keys().of_backup(label, "backup.json")?;
        if repository.store.stat(&document)?.is_none() {
            catalog.unfinished.push(label);
            continue;
        }
        seen.push(format!("{label}.json"));
        if let Some(info) = cache.as_deref().and_then(|directory| from_cache(directory, label)) {
            catalog.backups.push(info);
            continue;
        }
        match backup::read(repository, label) {
            Ok(info) => {
                if let Some(directory) = &cache {
                    to_cache(directory, &info);
                }
                catalog.backups.push(info);
            }
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Refused) => {
                catalog.unreadable.push((label, chain(&error)));
            }
            Err(error) if error.kind() == Kind::NotFound => catalog.unfinished.push(label),
            Err(error) => return Err(error),
        }
    }
    if let Some(directory) = &cache {
        forget_others(directory, &seen);
    }
    catalog.backups.sort_by_key(|info| info.label);
    Ok(catalog)
}

/// Labels without `backup.json`, oldest first: running, or left behind.
///
/// # Errors
/// What the store says.
pub fn unfinished(repository: &Repository) -> Result<Vec<Label>> {
    let folder = repository.keys().backups()?;
    let mut labels = Vec::new();
    for name in repository.store.children(Some(&folder))? {
        let Ok(label) = name.parse::<Label>() else { continue };
        if repository
            .store
            .stat(&repository.keys().of_backup(label, "backup.json")?)?
            .is_none()
        {
            labels.push(label);
        }
    }
    labels.sort_unstable();
    Ok(labels)
}

fn from_cache(directory: &Path, label: Label) -> Option<BackupInfo> {
    let bytes = std::fs::read(directory.join(format!("{label}.json"))).ok()?;
    let info: BackupInfo = serde_json::from_slice(&bytes).ok()?;
    (info.label == label).then_some(info)
}

/// A cache that cannot be written costs time, nothing else.
fn to_cache(directory: &Path, info: &BackupInfo) {
    let Ok(bytes) = serde_json::to_vec(info) else { return };
    let kept = durable::create_dir_all(directory, 0o700)
        .and_then(|()| durable::replace_unsynced(&directory.join(format!("{}.json", info.label)), &bytes, 0o600));
    if let Err(error) = kept {
        log::debug!(
            "cannot remember {} in {}: {}",
            info.label,
            directory.display(),
            chain(&error)
        );
    }
}

fn forget_others(directory: &Path, seen: &[String]) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".json") && !seen.contains(&name) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
