//! What backups there are. The repository is the truth; the cache only saves reading a document again that, by its size
//! and time in the store's listing, is still the one that was read. Who restores does without it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::{Kind, Result, chain};
use crate::repository::backup::BackupInfo;
use crate::repository::{Label, Repository, backup};
use crate::storage::Stat;
use crate::time::UtcTime;

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
        self.backups.iter().rev().find(|info| self.counts(info))
    }

    /// Whether a backup is good, and all that it leans on is there.
    pub fn counts(&self, info: &BackupInfo) -> bool {
        info.good && self.lacks(info).is_none()
    }

    /// The first label that a backup leans on and that is not there, or cannot be used.
    pub fn lacks(&self, info: &BackupInfo) -> Option<Label> {
        info.references.iter().copied().find(|label| !self.has(*label))
    }

    /// Whether there is something under a label that a backup may lean on: a backup, or what an interrupted one has left.
    pub fn has(&self, label: Label) -> bool {
        self.get(label).is_some() || self.unfinished.contains(&label)
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
        let Some(stat) = repository.store.stat(&document)? else {
            catalog.unfinished.push(label);
            continue;
        };
        seen.push(format!("{label}.json"));
        let known = cache
            .as_deref()
            .and_then(|directory| from_cache(directory, label, stat));
        if let Some(info) = known.filter(|info| backup::check(repository, label, info).is_ok()) {
            catalog.backups.push(info);
            continue;
        }
        match backup::read(repository, label) {
            Ok(info) => {
                if let Some(directory) = &cache {
                    to_cache(directory, &info, stat);
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
    let mut found = Vec::new();
    for label in labels(repository)? {
        let document = repository.keys().of_backup(label, "backup.json")?;
        if repository.store.stat(&document)?.is_none() {
            found.push(label);
        }
    }
    Ok(found)
}

/// Every label there is, oldest first: backups, running ones, and what was left behind.
///
/// # Errors
/// What the store says.
pub fn labels(repository: &Repository) -> Result<Vec<Label>> {
    let names = repository.store.children(Some(&repository.keys().backups()?))?;
    let mut labels: Vec<Label> = names.iter().filter_map(|name| name.parse().ok()).collect();
    labels.sort_unstable();
    Ok(labels)
}

/// A document as it was read, and how the store listed it then.
#[derive(Serialize, Deserialize)]
struct Remembered {
    size: u64,
    modified: UtcTime,
    info: BackupInfo,
}

fn from_cache(directory: &Path, label: Label, stat: Stat) -> Option<BackupInfo> {
    let bytes = std::fs::read(directory.join(format!("{label}.json"))).ok()?;
    let known: Remembered = serde_json::from_slice(&bytes).ok()?;
    (known.info.label == label && known.size == stat.size && known.modified == stat.modified).then_some(known.info)
}

/// A cache that cannot be written costs time, nothing else.
fn to_cache(directory: &Path, info: &BackupInfo, stat: Stat) {
    let known = Remembered {
        size: stat.size,
        modified: stat.modified,
        info: info.clone(),
    };
    let Ok(bytes) = serde_json::to_vec(&known) else { return };
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::codec::{Opening, Sealing};
    use crate::repository::{ClusterName, Identity, document};
    use crate::storage::posix::PosixStore;
    use std::sync::Arc;

    const LABEL: &str = "20261120T020000Z-full-3f9a1c";

    fn info() -> BackupInfo {
        let text = format!(
            r#"{{"format":1,"label":"{LABEL}","type":"full","cluster":"main","system_identifier":"7","major":15,
            "server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,
            "started":"2026-11-20T02:00:00Z","stopped":"2026-11-20T02:01:00Z","finished":"2026-11-20T02:02:00Z",
            "timeline":1,"start_lsn":"0/2000028","stop_lsn":"0/2000138","wal":{{"first":"a","last":"b"}},
            "segment_size":16777216,"block_size":8192,"data_checksums":false,"tablespaces":[],"base":null,
            "references":[],"reused_from":null,"files":1,"size":1,"stored":1,"durations":{{}},"damaged_pages":0,
            "good":true,"objects":[],"signature":null}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_warm_cache_never_overrules_the_repository() {
        let dir = tempfile::tempdir().unwrap();
        let (root, cache) = (dir.path().join("repository"), dir.path().join("cache"));
        std::fs::create_dir(&root).unwrap();
        let cluster = ClusterName::parse("main").unwrap();
        let repository = || {
            let store = Arc::new(PosixStore::new(root.clone()));
            let clear = || Sealing::Clear;
            let (name, url) = ("a".to_owned(), "file:///a".to_owned());
            Repository::new(
                name,
                url,
                true,
                store,
                clear(),
                clear(),
                Opening::none(),
                cluster.clone(),
            )
        };
        let first = repository();
        let identity = Identity::new(&cluster, UtcTime::UNIX_EPOCH, false).unwrap();
        document::write(first.store.as_ref(), &first.keys().identity().unwrap(), &identity).unwrap();
        backup::commit(&first, &info()).unwrap();
        let read = || super::read(&repository(), Some(&cache)).unwrap();
        assert_eq!(read().backups.len(), 1);
        assert_eq!(read().backups.len(), 1);
        let path = root.join(format!("main/backup/{LABEL}/backup.json"));
        let whole = std::fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[20] ^= 1;
        for damaged in [&whole[..whole.len() / 2], changed.as_slice(), b""] {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, damaged).unwrap();
            let catalog = read();
            assert_eq!((catalog.backups.len(), catalog.unreadable.len()), (0, 1));
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(read().backups.len(), 1);
    }
}
