//! Timeline histories for new keys (FORMAT.md, section 5).
//!
//! What is stored stays sealed to the recipients of its time, and goes with its backup. A timeline's history does not: recovery
//! reads it for as long as a server is on that timeline. So where recipients were added, what was stored before is sealed
//! anew, from the server's own copy or, where there is an identity, from the stored one.

use std::path::Path;

use crate::codec::{CompressedStream, ContentKind, compress_once};
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::{SystemId, TimelineId, WalName};
use crate::repository::{Nonce, Repository, events};
use crate::storage::Key;
use crate::time::UtcTime;

/// What became of the histories that were stored before the newest recipient was added.
#[derive(Debug, Default)]
pub struct Resealed {
    /// The timelines whose history is sealed to all recipients now.
    pub done: Vec<TimelineId>,
    /// The others, and why.
    pub left: Vec<(TimelineId, Error)>,
}

/// Seals them anew; `pg_wal` is where the server keeps its copies. One that cannot be had does not hold up the others.
///
/// # Errors
/// What listing them gave.
pub fn histories(
    repository: &Repository,
    system: SystemId,
    pg_wal: Option<&Path>,
    level: i32,
    now: UtcTime,
) -> Result<Resealed> {
    let mut resealed = Resealed::default();
    if !repository.sealing.is_encrypted() {
        return Ok(resealed);
    }
    let Some(added) = events::recipients_added(repository)? else {
        return Ok(resealed);
    };
    let mut former = Vec::new();
    let folder = repository.keys().histories(system)?;
    repository.store.list(Some(&folder), &mut |key, stat| {
        let text = key.to_string();
        let name = super::stored_name(text.rsplit('/').next().unwrap_or_default());
        if let Some(WalName::History { timeline }) = name
            && stat.modified <= added
        {
            former.push((timeline, key, stat.size));
        }
        Ok(())
    })?;
    for (timeline, key, size) in former {
        let name = WalName::History { timeline };
        let sealed = super::descriptor(repository, &key, size).and_then(|stored| {
            let content = content(repository, system, &name, pg_wal, level)?;
            match super::same_content(&content.descriptor, &stored) {
                true => exchange(repository, &key, &content, now),
                false => Err(Error::new(Kind::Refused, "pg_wal has another history of this name")),
            }
        });
        match sealed {
            Ok(()) => resealed.done.push(timeline),
            Err(error) => resealed.left.push((timeline, error)),
        }
    }
    Ok(resealed)
}

/// The history as the server has it, or as it is stored.
fn content(
    repository: &Repository,
    system: SystemId,
    name: &WalName,
    pg_wal: Option<&Path>,
    level: i32,
) -> Result<CompressedStream> {
    let local = pg_wal.map(|directory| directory.join(name.to_string()));
    let plain = match local.filter(|path| path.is_file()) {
        Some(path) => std::fs::read(&path).context(|| format!("read {}", path.display()))?,
        None => {
            let mut stored = Vec::new();
            super::fetch(repository, system, name, &mut stored)?;
            stored
        }
    };
    compress_once(&plain[..], plain.len() as u64, ContentKind::Wal, level).map(|(content, _)| content)
}

/// Puts the content in the place of what stands under `key`, which moves to `damaged/`.
fn exchange(repository: &Repository, key: &Key, content: &CompressedStream, now: UtcTime) -> Result<()> {
    let aside = repository.keys().damaged(now, Nonce::random()?, key)?;
    let store = repository.store.as_ref();
    store
        .move_aside(key, &aside)
        .context(|| format!("move {} aside", store.describe(Some(key))))?;
    super::create(repository, key, content).map_err(|error| {
        // The former one is better than none.
        let back = store.move_aside(&aside, key);
        let error = error.context(format!("write {}", store.describe(Some(key))));
        match back {
            Ok(()) => error,
            Err(_) => error.hint(format!("the former one is {}", store.describe(Some(&aside)))),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::*;
    use crate::codec::{Opening, Recipients, Sealing, generate_identity};
    use crate::repository::events::What;
    use crate::repository::wal::put;
    use crate::repository::{ClusterName, Identity, document};
    use crate::storage::memory::MemoryStore;

    const SYSTEM: SystemId = SystemId(7);
    const NAME: WalName = WalName::History {
        timeline: TimelineId(2),
    };
    const HISTORY: &[u8] = b"1\t0/5000100\tno recovery target specified\n";

    fn now() -> UtcTime {
        UtcTime::parse_compact("20261120T020000Z").unwrap()
    }

    /// Keys with their identity files, and one store.
    struct Place {
        dir: tempfile::TempDir,
        store: Arc<MemoryStore>,
        keys: [String; 2],
    }

    impl Place {
        /// A repository with the history of timeline 2, sealed to the first key; the second one was added since.
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let keys = [0, 1].map(|number| {
                let (identity, recipient) = generate_identity();
                let file = dir.path().join(number.to_string());
                fs::write(&file, identity).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
                recipient
            });
            let store = Arc::new(MemoryStore::new());
            let place = Place { dir, store, keys };
            place.begin();
            let first = place.host(&[0], None);
            let (content, _) = compress_once(HISTORY, 50, ContentKind::Wal, 2).unwrap();
            put(&first, SYSTEM, &NAME, &content, now(), "h").unwrap();
            place.uses(1, &[0]);
            place.uses(2, &[0, 1]);
            place
        }

        fn begin(&self) {
            let identity = Identity::new(&ClusterName::parse("main").unwrap(), now(), true).unwrap();
            let key = self.host(&[0], None).keys().identity().unwrap();
            document::write(self.store.as_ref(), &key, &identity).unwrap();
        }

        /// The repository as a host has it that seals to these keys and holds this one.
        fn host(&self, sealed_to: &[usize], held: Option<usize>) -> Repository {
            let recipients: Vec<String> = sealed_to.iter().map(|key| self.keys[*key].clone()).collect();
            let sealing = || Sealing::Age(Recipients::parse(&recipients).unwrap());
            let opening = held.map_or_else(Opening::none, |key| {
                Opening::from_identity_file(&self.dir.path().join(key.to_string())).unwrap()
            });
            let cluster = ClusterName::parse("main").unwrap();
            let (name, url) = ("local".to_owned(), "memory:".to_owned());
            Repository::new(
                name,
                url,
                true,
                self.store.clone(),
                sealing(),
                sealing(),
                opening,
                cluster,
            )
        }

        /// Records that these keys are in use from a day on.
        fn uses(&self, day: u32, keys: &[usize]) {
            let host = self.host(keys, None);
            let recipients = host.sealing.recipients();
            let time = UtcTime::parse_compact(&format!("2026112{day}T020000Z")).unwrap();
            events::append(&host, time, "h", What::Recipients { recipients }).unwrap();
        }

        fn reads(&self, key: usize) -> bool {
            let mut read = Vec::new();
            let fetched = super::super::fetch(&self.host(&[1], Some(key)), SYSTEM, &NAME, &mut read);
            fetched.is_ok() && read == HISTORY
        }
    }

    #[test]
    fn a_history_opens_with_a_key_that_was_added() {
        for keyless in [false, true] {
            let place = Place::new();
            assert!(place.reads(0) && !place.reads(1));
            let pg_wal = place.dir.path().join("pg_wal");
            fs::create_dir(&pg_wal).unwrap();
            let held = match keyless {
                true => fs::write(pg_wal.join(NAME.to_string()), HISTORY)
                    .map(|()| None)
                    .unwrap(),
                false => Some(0),
            };
            let resealed = histories(&place.host(&[0, 1], held), SYSTEM, Some(&pg_wal), 2, now()).unwrap();
            assert_eq!((resealed.done, resealed.left.len()), (vec![TimelineId(2)], 0));
            assert!(place.reads(0) && place.reads(1));
        }
    }

    #[test]
    fn what_cannot_be_had_or_is_another_history_stays() {
        let place = Place::new();
        let keyless = place.host(&[0, 1], None);
        let left = |pg_wal: Option<&Path>| {
            let resealed = histories(&keyless, SYSTEM, pg_wal, 2, now()).unwrap();
            assert!(resealed.done.is_empty());
            resealed.left[0].1.kind()
        };
        assert_eq!(left(None), Kind::Config);
        fs::write(place.dir.path().join(NAME.to_string()), "1\t0/6000100\tx\n").unwrap();
        assert_eq!(left(Some(place.dir.path())), Kind::Refused);
        assert!(place.reads(0));
    }

    #[test]
    fn without_a_new_key_nothing_is_touched() {
        let mut place = Place::new();
        place.store = Arc::new(MemoryStore::new());
        place.begin();
        let host = place.host(&[0, 1], Some(0));
        let (content, _) = compress_once(HISTORY, 50, ContentKind::Wal, 2).unwrap();
        put(&host, SYSTEM, &NAME, &content, now(), "h").unwrap();
        for (day, keys) in [(1, &[0, 1][..]), (2, &[0])] {
            place.uses(day, keys);
            assert!(histories(&host, SYSTEM, None, 2, now()).unwrap().done.is_empty());
        }
    }
}
