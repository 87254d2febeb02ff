//! Whether a repository holds anything physical of a cluster: base backups or WAL.

use crate::error::Result;
use crate::repository::{Repository, events};

/// Whether base backups or WAL of the cluster are there, whole or begun, or should be: WAL that was stored once counts though none is left.
///
/// # Errors
/// As [`Repository::identity`]: a place without `repository.json` proves nothing; else what the store says.
pub fn is_held(repository: &Repository) -> Result<bool> {
    repository.identity()?;
    let keys = repository.keys();
    for folder in [keys.backups()?, keys.wal_root()?] {
        if !repository.store.children(Some(&folder))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(events::systems(repository)?.iter().any(|system| system.held_wal))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::codec::{Opening, Sealing};
    use crate::error::Kind;
    use crate::postgres::SystemId;
    use crate::repository::events::What;
    use crate::repository::{ClusterName, Identity, document};
    use crate::storage::memory::MemoryStore;
    use crate::time::UtcTime;

    fn repository() -> Repository {
        let cluster = ClusterName::parse("main").unwrap();
        let store = std::sync::Arc::new(MemoryStore::new());
        let (name, url) = ("local".into(), "memory:".into());
        let (clear, metadata) = (Sealing::Clear, Sealing::Clear);
        Repository::new(name, url, true, store, clear, metadata, Opening::none(), cluster)
    }

    fn created() -> Repository {
        let made = repository();
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        let identity = Identity::new(&made.cluster, now, false).unwrap();
        document::write(made.store.as_ref(), &made.keys().identity().unwrap(), &identity).unwrap();
        let system = What::System {
            system_identifier: "7".to_owned(),
            major: 15,
            segment_size: 1 << 24,
            new_history: false,
        };
        events::append(&made, now, "h", system).unwrap();
        made
    }

    #[test]
    fn a_place_that_is_no_repository_proves_nothing() {
        assert_eq!(is_held(&repository()).unwrap_err().kind(), Kind::NotFound);
        assert!(!is_held(&created()).unwrap());
    }

    #[test]
    fn what_was_begun_and_what_was_stored_once_count() {
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        type Put = fn(&Repository) -> crate::storage::Key;
        let objects: [Put; 2] = [
            |made| {
                let label = "20261120T020000Z-full-3f9a1c".parse().unwrap();
                made.keys().of_backup(label, "intent.json").unwrap()
            },
            |made| {
                let histories = made.keys().histories(SystemId(7)).unwrap();
                histories.join("00000002.history.zst").unwrap()
            },
        ];
        for object in objects {
            let made = created();
            made.store.put_new(&object(&made), b"x").unwrap();
            assert!(is_held(&made).unwrap());
        }
        let made = created();
        let wal = What::Wal {
            system_identifier: "7".to_owned(),
        };
        events::append(&made, now, "h", wal).unwrap();
        assert!(is_held(&made).unwrap());
    }
}
