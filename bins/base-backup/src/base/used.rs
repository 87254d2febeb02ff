//! What a backup uses of earlier ones: it is looked at again before the backup counts.

use std::collections::{BTreeMap, BTreeSet};

use common::error::{Error, Kind, Result};
use common::repository::manifest::{Entry, Node};
use common::repository::{Label, Repository};

/// Bundles of earlier backups, by their labels. A label without a bundle lends entries of its manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used(BTreeMap<Label, BTreeSet<u32>>);

impl Used {
    /// Notes a bundle.
    pub fn bundle(&mut self, label: Label, bundle: u32) {
        self.0.entry(label).or_default().insert(bundle);
    }

    /// Notes a manifest.
    pub fn manifest(&mut self, label: Label) {
        self.0.entry(label).or_default();
    }

    /// Notes where an entry's bytes lie.
    pub fn entry(&mut self, entry: &Entry) {
        let Node::File(file) = &entry.node else { return };
        for range in &file.ranges {
            if let Some(label) = range.label {
                self.bundle(label, range.bundle);
            }
        }
    }

    /// All labels, oldest first.
    pub fn labels(&self) -> impl Iterator<Item = Label> {
        self.0.keys().copied()
    }

    /// Fails unless all of it is in the repository. `committed` says whether a label has to be a backup that counts.
    ///
    /// # Errors
    /// `Failed` if something has gone; else what the store says.
    pub fn check(&self, repository: &Repository, committed: &dyn Fn(Label) -> bool) -> Result<()> {
        let suffix = repository.suffix()?;
        for (label, bundles) in &self.0 {
            let gone = |what: &str| {
                Err(Error::new(
                    Kind::Failed,
                    format!("{what} of {label}, which this backup leans on, has gone"),
                ))
            };
            let exists = |name: &str| -> Result<bool> {
                let key = repository.keys().of_backup(*label, name)?;
                Ok(repository.store.stat(&key)?.is_some())
            };
            if committed(*label) {
                if !exists("backup.json")? {
                    return gone("backup.json");
                }
                if !exists(&format!("manifest.zst{suffix}"))? {
                    return gone("the manifest");
                }
            }
            if bundles.is_empty() {
                continue;
            }
            let folder = repository.keys().of_backup(*label, "data")?;
            let names: BTreeSet<String> = repository.store.children(Some(&folder))?.into_iter().collect();
            for bundle in bundles {
                for kind in ["tar", "index"] {
                    if !names.contains(&format!("{bundle}.{kind}.zst{suffix}")) {
                        return gone(&format!("data/{bundle}.{kind}.zst{suffix}"));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::codec::{Opening, Sealing};
    use common::repository::{ClusterName, Identity, document};
    use common::storage::memory::MemoryStore;
    use common::storage::{Key, Store};
    use common::time::UtcTime;
    use std::sync::Arc;

    const LABEL: &str = "20261120T020000Z-full-3f9a1c";
    const OBJECTS: [&str; 4] = ["backup.json", "manifest.zst", "data/3.tar.zst", "data/3.index.zst"];

    fn repository(missing: &str) -> Repository {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let cluster = ClusterName::parse("main").unwrap();
        let identity = Identity::new(&cluster, UtcTime::UNIX_EPOCH, false).unwrap();
        document::write(store.as_ref(), &Key::parse("main/repository.json").unwrap(), &identity).unwrap();
        for name in OBJECTS.iter().filter(|name| **name != missing) {
            let key = Key::parse(&format!("main/backup/{LABEL}/{name}")).unwrap();
            store.put_new(&key, b"x").unwrap();
        }
        let (a, b, name) = (Sealing::Clear, Sealing::Clear, "a".to_owned());
        let url = "memory".to_owned();
        Repository::new(name, url, true, store, a, b, Opening::none(), cluster)
    }

    #[test]
    fn each_object_that_has_gone_is_noticed() {
        let label: Label = LABEL.parse().unwrap();
        let mut used = Used::default();
        used.bundle(label, 3);
        used.check(&repository(""), &|_| true).unwrap();
        for name in OBJECTS {
            let error = used.check(&repository(name), &|_| true).unwrap_err();
            assert!(error.to_string().contains(LABEL), "{name}: {error}");
        }
        used.check(&repository("backup.json"), &|_| false).unwrap();
        used.bundle(label, 4);
        assert!(used.check(&repository(""), &|_| true).is_err());
    }
}
