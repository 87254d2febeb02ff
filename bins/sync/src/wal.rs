//! WAL: what the source has and the target lacks, in the order of the source's listing, which is PostgreSQL's.
//!
//! Two listings are walked side by side, so memory does not grow with the archive.

use std::collections::BTreeMap;
use std::thread;

use common::error::{Error, Kind, Result, chain};
use common::postgres::{SegmentSize, SystemId, WalName};
use common::repository::{Repository, events, wal};
use common::retention::wal::Needed;
use common::storage::Key;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::copy::Route;
use crate::sync::How;
use crate::tally::Target;

/// How far a listing runs ahead of the other.
const AHEAD: usize = 4096;

/// An object below `wal/<system>`, as both repositories name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Object {
    /// Folder and name without what encryption adds.
    name: String,
}

/// Copies the WAL of every system that the source knows; where `needed` says what the target's backups need of one, just that.
///
/// # Errors
/// What listing gave. A file that cannot be copied is noted and does not hold up the others.
pub fn copy(route: &Route<'_>, needed: Option<&BTreeMap<String, Needed>>, how: &How<'_>, tally: &Target) -> Result<()> {
    for known in events::systems(route.source)? {
        let size = SegmentSize::new(known.segment_size)?;
        let needed = needed.and_then(|needed| needed.get(&known.system.to_string()));
        copy_system(route, known.system, size, needed, how, tally)?;
    }
    Ok(())
}

fn copy_system(
    route: &Route<'_>,
    system: SystemId,
    size: SegmentSize,
    needed: Option<&Needed>,
    how: &How<'_>,
    tally: &Target,
) -> Result<()> {
    let (ours, from_ours) = bounded(AHEAD);
    let (theirs, from_theirs) = bounded(AHEAD);
    let (queue, work) = bounded(how.jobs.saturating_mul(2).max(2));
    thread::scope(|scope| {
        let source = scope.spawn(move || list(route.source, system, &ours));
        let target = scope.spawn(move || list(route.target, system, &theirs));
        let workers: Vec<_> = (0..how.jobs.max(1))
            .map(|_| {
                let work: Receiver<Object> = work.clone();
                scope.spawn(move || {
                    for object in work {
                        copy_one(route, system, &object, how, tally);
                    }
                })
            })
            .collect();
        drop(work);
        missing(&from_ours, &from_theirs, |object| {
            if is_needed(&object, size, needed) {
                // The workers go on until this end is dropped.
                let _ = queue.send(object);
            }
        });
        drop((queue, from_ours, from_theirs));
        for worker in workers {
            let _ = worker.join();
        }
        let ended = |outcome: thread::Result<Result<()>>| {
            outcome.unwrap_or_else(|_| Err(Error::new(Kind::Failed, "list WAL: the listing's thread ended")))
        };
        // The target's error comes first: where it breaks off, the source's listing is cut short too.
        let target = ended(target.join());
        let source = ended(source.join());
        target.and(source)
    })
}

/// Sends every object of a system's WAL, in order, and `None` where the listing is complete: a listing that broke off must not
/// look like an end. Where nobody takes the rest, it is not needed: the source has come to its end, or the other listing says why not.
fn list(repository: &Repository, system: SystemId, to: &Sender<Option<Object>>) -> Result<()> {
    let folder = repository.keys().wal_of(system)?;
    let mut goes_on = true;
    let listed = repository.store.list(Some(&folder), &mut |key, _| {
        let Some(name) = key.below(Some(&folder)) else {
            return Ok(());
        };
        let name = name.strip_suffix(".age").unwrap_or(name).to_owned();
        goes_on = to.send(Some(Object { name })).is_ok();
        match goes_on {
            true => Ok(()),
            false => Err(Error::new(Kind::Failed, "list WAL: nobody needs the rest")),
        }
    });
    if !goes_on {
        return Ok(());
    }
    listed?;
    let _ = to.send(None);
    Ok(())
}

/// Shows what the first listing has and the second lacks; both are sorted. Ends early where a listing breaks off.
fn missing(ours: &Receiver<Option<Object>>, theirs: &Receiver<Option<Object>>, mut each: impl FnMut(Object)) {
    let Ok(mut other) = theirs.recv() else { return };
    while let Ok(Some(object)) = ours.recv() {
        while other.as_ref().is_some_and(|other| *other < object) {
            let Ok(next) = theirs.recv() else { return };
            other = next;
        }
        if other.as_ref() != Some(&object) {
            each(object);
        }
    }
}

/// Histories always; else what the target's backups need.
fn is_needed(object: &Object, size: SegmentSize, needed: Option<&Needed>) -> bool {
    let (Some(needed), Some(name)) = (needed, object.file()) else {
        return true;
    };
    needed.keeps(&name, size)
}

impl Object {
    fn is_map(&self) -> bool {
        self.name.ends_with(".map.zst")
    }

    /// The file it stands for, or whose map it is.
    fn file(&self) -> Option<WalName> {
        let name = self.name.rsplit('/').next()?;
        let name = name.strip_suffix(".map.zst").or_else(|| name.strip_suffix(".zst"))?;
        WalName::parse(name).ok()
    }

    fn key(&self, repository: &Repository, system: SystemId, file: &WalName) -> Result<Key> {
        let suffix = repository.suffix()?;
        match self.is_map() {
            true => repository.keys().map(system, file, suffix),
            false => repository.keys().wal(system, file, suffix),
        }
    }
}

fn copy_one(route: &Route<'_>, system: SystemId, object: &Object, how: &How<'_>, tally: &Target) {
    let Some(file) = object.file() else {
        log::warn!(
            "{} below wal/{system} in repository \"{}\" is none of ours: ignored",
            object.name,
            route.source.name
        );
        return;
    };
    let copied = || -> Result<u64> {
        let (from, to) = (
            object.key(route.source, system, &file)?,
            object.key(route.target, system, &file)?,
        );
        if how.dry_run {
            return Ok(0);
        }
        match route.described(&from, &to, object.is_map()) {
            Err(error) if error.kind() == Kind::AlreadyExists => same(route, &from, &to),
            outcome => outcome.map(|stored| stored.size),
        }
    };
    match copied() {
        Ok(bytes) => tally.add(|copied| {
            copied.bytes += bytes;
            copied.wal += u64::from(!object.is_map());
        }),
        // Without its map a segment is whole; whoever needs the map reads more.
        Err(error) if object.is_map() => log::warn!("the map of {file} is not copied: {}", chain(&error)),
        Err(error) => tally.fail(&error.context(format!("copy {file}"))),
    }
}

/// Somebody else stored it meanwhile: fine, if it is the same.
fn same(route: &Route<'_>, from: &Key, to: &Key) -> Result<u64> {
    let descriptor = |repository: &Repository, key: &Key| {
        let size = repository.store.stat(key)?.map_or(0, |stat| stat.size);
        wal::descriptor(repository, key, size)
    };
    let (ours, theirs) = (descriptor(route.source, from)?, descriptor(route.target, to)?);
    if ours.sha256 == theirs.sha256 {
        return Ok(0);
    }
    let message = format!(
        "repositories \"{}\" and \"{}\" hold other content under this name: SHA-256 {} and {}",
        route.source.name, route.target.name, ours.sha256, theirs.sha256
    );
    Err(Error::new(Kind::Refused, message).hint("two servers archived under one cluster's name"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn object(name: &str) -> Object {
        Object { name: name.to_owned() }
    }

    #[test]
    fn a_listing_whose_rest_nobody_needs_has_not_failed() {
        use common::codec::{Opening, Sealing};
        use common::repository::ClusterName;
        use common::storage::Store;
        use common::storage::memory::MemoryStore;
        let store = std::sync::Arc::new(MemoryStore::new());
        for number in 1..9 {
            let key = format!("main/wal/7/0000000100000000/00000001000000000000000{number}.zst");
            store.put_new(&Key::parse(&key).unwrap(), b"x").unwrap();
        }
        let (name, url) = ("a".to_owned(), "memory".to_owned());
        let (data, metadata) = (Sealing::Clear, Sealing::Clear);
        let cluster = ClusterName::parse("main").unwrap();
        let repository = Repository::new(name, url, true, store, data, metadata, Opening::none(), cluster);
        let (send, receive) = bounded(1);
        drop(receive);
        list(&repository, SystemId(7), &send).unwrap();
        let (send, receive) = bounded(16);
        list(&repository, SystemId(7), &send).unwrap();
        drop(send);
        let all: Vec<Option<Object>> = receive.iter().collect();
        assert_eq!((all.len(), all.last()), (9, Some(&None)));
    }

    #[test]
    fn only_what_a_backup_needs_and_every_history_goes_over() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let text = r#"{"format":1,"label":"20261101T020000Z-full-aaaaaa","type":"full","cluster":"main","system_identifier":"7",
            "major":15,"server_version":"15.1","pgkeep":"0.1.0","host":"db1","role":"primary","note":null,
            "started":"2026-11-01T02:00:00Z","stopped":"2026-11-01T02:01:00Z","finished":"2026-11-01T02:02:00Z","timeline":1,
            "start_lsn":"0/5000028","stop_lsn":"0/5000138","wal":{"first":"a","last":"b"},"segment_size":16777216,
            "block_size":8192,"data_checksums":true,"tablespaces":[],"base":null,"references":[],"reused_from":null,"files":1,
            "size":1,"stored":1,"durations":{},"damaged_pages":0,"good":true,"objects":[],"signature":null}"#;
        let backup = serde_json::from_str(text).unwrap();
        let kept = Needed::by([(&backup, true)].into_iter()).unwrap();
        let needed = |name: &str| is_needed(&object(name), size, Some(&kept));
        assert!(!needed("0000000100000000/000000010000000000000004.zst"));
        assert!(!needed("0000000100000000/000000010000000000000004.map.zst"));
        assert!(needed("0000000200000000/000000020000000000000004.00000028.backup.zst"));
        assert!(needed("0000000100000000/000000010000000000000005.zst"));
        assert!(needed("0000000200000001/000000020000000100000000.partial.zst"));
        assert!(needed("history/00000002.history.zst"));
        assert!(is_needed(
            &object("0000000100000000/000000010000000000000001.zst"),
            size,
            None
        ));
    }

    #[test]
    fn a_listing_that_breaks_off_ends_the_comparison() {
        let (ours, from_ours) = bounded(4);
        let (theirs, from_theirs) = bounded(4);
        for name in ["a", "b"] {
            ours.send(Some(object(name))).unwrap();
        }
        ours.send(None).unwrap();
        theirs.send(Some(object("0"))).unwrap();
        drop(theirs);
        missing(&from_ours, &from_theirs, |object| panic!("{object:?} may be there"));
    }

    proptest! {
        #[test]
        fn what_is_missing_is_the_difference(ours in proptest::collection::btree_set("[a-c]{1,3}", 0..20), theirs in proptest::collection::btree_set("[a-c]{1,3}", 0..20)) {
            let send = |names: &std::collections::BTreeSet<String>| {
                let (to, from) = bounded(names.len() + 1);
                for name in names {
                    to.send(Some(object(name))).unwrap();
                }
                to.send(None).unwrap();
                from
            };
            let mut found = Vec::new();
            missing(&send(&ours), &send(&theirs), |object| found.push(object.name));
            let wanted: Vec<String> = ours.difference(&theirs).cloned().collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
