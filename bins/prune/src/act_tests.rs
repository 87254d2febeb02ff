//! Every step may be the last one: what stands then is garbage, and the next run collects it.
#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use common::codec::{Opening, Sealing};
use common::config::Config;
use common::repository::backup::{self, BackupInfo, Intent};
use common::repository::events::{self, What};
use common::repository::{BackupType, ClusterName, Identity, Nonce, catalog, document};
use common::storage::Store;
use common::storage::faulty::{Fault, Faults, FaultyStore, When};
use common::storage::memory::MemoryStore;
use common::time::UtcTime;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::plan::plan;
use crate::survey::survey;

const SIZE: u64 = 16 << 20;

fn repository(store: Arc<dyn Store>) -> Repository {
    let (a, b) = (Sealing::Clear, Sealing::Clear);
    let cluster = ClusterName::parse("main").unwrap();
    Repository::new(
        "a".to_owned(),
        "memory".to_owned(),
        true,
        store,
        a,
        b,
        Opening::none(),
        cluster,
    )
}

fn put(store: &dyn Store, key: &str) {
    store.put_new(&Key::parse(key).unwrap(), b"x").unwrap();
}

/// Three full backups with an incremental each, 10, 6 and 2 days old, WAL 1 to 12, and an interrupted backup of 20 days ago.
fn fill(store: &Arc<dyn Store>) {
    let now = UtcTime::now();
    let repository = repository(Arc::clone(store));
    let cluster = ClusterName::parse("main").unwrap();
    let identity = Identity::new(&cluster, now, false).unwrap();
    document::write(store.as_ref(), &Key::parse("main/repository.json").unwrap(), &identity).unwrap();
    let system = What::System {
        system_identifier: "7".to_owned(),
        major: 15,
        segment_size: SIZE,
        new_history: false,
    };
    events::append(&repository, now, "h", system).unwrap();
    let mut before: Option<Label> = None;
    for (at, days) in [10u64, 9, 6, 5, 2, 1].into_iter().enumerate() {
        let kind = if at % 2 == 0 {
            BackupType::Full
        } else {
            BackupType::Incr
        };
        let started = now.minus(Duration::from_secs(days * 86_400)).whole_seconds();
        let label = Label::new(started, kind, Nonce::random().unwrap());
        let references: Vec<Label> = before.into_iter().filter(|_| kind == BackupType::Incr).collect();
        let segment = 2 * at as u64 + 1;
        let lsn = |offset: u64| common::postgres::Lsn(segment * SIZE + offset);
        let info = serde_json::json!({"format":1,"label":label,"type":kind,"cluster":"main","system_identifier":"7",
            "major":15,"server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,"started":started,
            "stopped":started,"finished":started,"timeline":1,"start_lsn":lsn(40),"stop_lsn":lsn(400),
            "wal":{"first":"a","last":"b"},"segment_size":SIZE,"block_size":8192,"data_checksums":true,"tablespaces":[],
            "base":references.first(),"references":references,"reused_from":null,"files":1,"size":1,"stored":1,
            "durations":{},"damaged_pages":0,"good":true,"objects":[],"signature":null});
        let info: BackupInfo = serde_json::from_value(info).unwrap();
        let intent = Intent {
            format: 1,
            label,
            host: "h".to_owned(),
            pid: 1,
            started,
            system_identifier: "7".to_owned(),
            leans_on: references.clone(),
        };
        backup::write_intent(&repository, &intent).unwrap();
        for object in ["data/1.tar.zst", "data/1.index.zst", "manifest.zst"] {
            put(store.as_ref(), &format!("main/backup/{label}/{object}"));
        }
        backup::commit(&repository, &info).unwrap();
        before = Some(label);
    }
    let left = now.minus(Duration::from_secs(20 * 86_400)).whole_seconds();
    let left = Label::new(left, BackupType::Full, Nonce::random().unwrap());
    put(store.as_ref(), &format!("main/backup/{left}/data/1.tar.zst"));
    for number in 1..=12 {
        for kind in ["zst", "map.zst"] {
            put(
                store.as_ref(),
                &format!("main/wal/7/0000000100000000/0000000100000000{number:08X}.{kind}"),
            );
        }
    }
    put(store.as_ref(), "main/wal/7/history/00000002.history.zst");
    put(store.as_ref(), "main/wal/7/0000000100000000/notes.txt");
    put(
        store.as_ref(),
        "other/wal/7/0000000100000000/000000010000000000000001.zst",
    );
}

fn policy() -> common::config::Retention {
    let text = "[cluster.main]\n[repository.a]\nurl = \"file:///a\"\nretention = { full = 1 }\n";
    let config = Config::parse(Path::new("test.toml"), text, &|_| None).unwrap();
    config.repositories[0].retention.clone().unwrap()
}

/// One run, as the program makes it; `garbage_after` nothing, for all was written a moment ago.
fn run(store: &Arc<dyn Store>, cache: &Path) -> Result<Removed> {
    let repository = repository(Arc::clone(store));
    let look = || {
        plan(
            Some(&policy()),
            &survey(&repository, cache, UtcTime::now())?,
            Duration::ZERO,
        )
    };
    let removal = look()?.removal().both(&look()?.removal());
    act(&repository, &removal, 1)
}

fn keys(store: &dyn Store) -> Vec<String> {
    let mut keys = Vec::new();
    store
        .list(None, &mut |key, _| {
            keys.push(key.to_string());
            Ok(())
        })
        .unwrap();
    keys
}

/// What has to hold whatever happened: every backup that counts is whole, with all it leans on and its WAL.
fn is_sound(store: &Arc<dyn Store>) {
    let repository = repository(Arc::clone(store));
    let catalog = catalog::read(&repository, None).unwrap();
    let keys = keys(store.as_ref());
    let there = |key: String| assert!(keys.contains(&key), "{key} is missing");
    assert!(catalog.newest_good().is_some());
    for info in &catalog.backups {
        for object in ["data/1.tar.zst", "data/1.index.zst", "manifest.zst"] {
            there(format!("main/backup/{}/{object}", info.label));
        }
        for needed in &info.references {
            assert!(catalog.get(*needed).is_some(), "{} has lost {needed}", info.label);
        }
        let number = info.start_lsn.0 / SIZE;
        there(format!("main/wal/7/0000000100000000/0000000100000000{number:08X}.zst"));
    }
}

#[test]
fn what_goes_is_gone_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    fill(&store);
    let removed = run(&store, dir.path()).unwrap();
    assert_eq!(
        (removed.backups, removed.segments, removed.refused.len()),
        (4, 8, 0),
        "{removed:?}"
    );
    is_sound(&store);
    let keys = keys(store.as_ref());
    let of = |part: &str| keys.iter().filter(|key| key.contains(part)).count();
    assert_eq!(of("/backup.json"), 2);
    assert_eq!(of("main/backup/"), 10, "{keys:#?}");
    assert_eq!(of(".map.zst"), 4);
    for stays in ["history/00000002.history.zst", "notes.txt", "other/wal/7/"] {
        assert_eq!(of(stays), 1, "{stays}");
    }
    assert_eq!(
        run(&store, dir.path()).unwrap(),
        Removed::default(),
        "nothing is left to do"
    );
}

/// The removal of two looks, and the backup of which the last to go is, whom another one may still choose.
fn looked_twice(repository: &Repository, cache: &Path) -> Removal {
    let look = || {
        let survey = survey(repository, cache, UtcTime::now()).unwrap();
        plan(Some(&policy()), &survey, Duration::from_secs(3600))
            .unwrap()
            .removal()
    };
    look().both(&look())
}

#[test]
fn a_backup_that_begins_after_the_last_look_keeps_what_it_leans_on() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    fill(&store);
    let repository = repository(Arc::clone(&store));
    let removal = looked_twice(&repository, dir.path());
    // Here time passes: what goes before is deleted from a store that is far away.
    let leaned_on = removal.backups.last().unwrap();
    let before = backup::read(&repository, leaned_on.label).unwrap();
    let started = UtcTime::now().whole_seconds();
    let intent = Intent {
        format: 1,
        label: Label::new(started, BackupType::Incr, Nonce::random().unwrap()),
        host: "h".to_owned(),
        pid: 1,
        started,
        system_identifier: "7".to_owned(),
        leans_on: vec![leaned_on.label],
    };
    backup::write_intent(&repository, &intent).unwrap();
    let removed = act(&repository, &removal, 1).unwrap();
    assert_eq!(removed.backups, removal.backups.len() as u64 - 1);
    let catalog = catalog::read(&repository, None).unwrap();
    assert_eq!(
        catalog.get(leaned_on.label),
        Some(&before),
        "a running backup leans on {}",
        leaned_on.label
    );
    is_sound(&store);
}

#[test]
fn where_an_intent_cannot_be_read_that_came_after_the_last_look_no_backup_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    fill(&store);
    let repository = repository(Arc::clone(&store));
    let removal = looked_twice(&repository, dir.path());
    let label = Label::new(UtcTime::now(), BackupType::Incr, Nonce::random().unwrap());
    put(store.as_ref(), &format!("main/backup/{label}/intent.json"));
    let removed = act(&repository, &removal, 1).unwrap();
    assert_eq!((removed.backups, removed.segments), (0, 4), "{removed:?}");
    assert_eq!(catalog::read(&repository, None).unwrap().backups.len(), 6);
    is_sound(&store);
}

#[test]
fn after_a_crash_at_any_step_all_that_counts_is_whole_and_the_next_run_ends_the_work() {
    let whole: Arc<dyn Store> = Arc::new(MemoryStore::new());
    fill(&whole);
    let dir = tempfile::tempdir().unwrap();
    run(&whole, dir.path()).unwrap();
    let wanted = keys(whole.as_ref()).len();
    let mut steps = 0;
    for at in 1.. {
        let inner: Arc<dyn Store> = Arc::new(MemoryStore::new());
        fill(&inner);
        let faults = Faults::default();
        let when = if at % 2 == 0 { When::Before } else { When::After };
        faults.at(at, Fault::Die(when));
        let faulty: Arc<dyn Store> = Arc::new(FaultyStore::new(Arc::clone(&inner), faults));
        let outcome = run(&faulty, dir.path());
        is_sound(&inner);
        if outcome.is_ok() {
            break;
        }
        steps = at;
        run(&inner, dir.path()).unwrap();
        is_sound(&inner);
        assert_eq!(keys(inner.as_ref()).len(), wanted, "step {at}");
    }
    assert!(steps > 60, "only {steps} steps");
}

#[test]
fn what_the_store_refuses_to_delete_is_told_and_holds_up_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    fill(&store);
    let oldest = catalog::read(&repository(Arc::clone(&store)), None).unwrap().backups[0].label;
    let locked: Arc<dyn Store> = Arc::new(Locked {
        inner: Arc::clone(&store),
        part: format!("{oldest}/backup.json"),
    });
    let removed = run(&locked, dir.path()).unwrap();
    assert_eq!((removed.backups, removed.refused.len()), (3, 1), "{removed:?}");
    is_sound(&store);
    let locked: Arc<dyn Store> = Arc::new(Locked {
        inner: Arc::clone(&store),
        part: format!("{oldest}/data/1.tar.zst"),
    });
    let removed = run(&locked, dir.path()).unwrap();
    assert_eq!((removed.backups, removed.refused.len()), (1, 1), "{removed:?}");
    assert!(
        keys(store.as_ref()).contains(&format!("main/backup/{oldest}/intent.json")),
        "it is still garbage"
    );
    is_sound(&store);
    run(&store, dir.path()).unwrap();
    assert!(!keys(store.as_ref()).iter().any(|key| key.contains(&oldest.to_string())));
}

/// A store that will not give up what has this in its name.
struct Locked {
    inner: Arc<dyn Store>,
    part: String,
}

impl Store for Locked {
    fn describe(&self, key: Option<&Key>) -> String {
        self.inner.describe(key)
    }

    fn create(&self, key: &Key) -> Result<Box<dyn common::storage::Upload>> {
        self.inner.create(key)
    }

    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn std::io::Read + Send>> {
        self.inner.open(key, from, length)
    }

    fn stat(&self, key: &Key) -> Result<Option<common::storage::Stat>> {
        self.inner.stat(key)
    }

    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, common::storage::Stat) -> Result<()>) -> Result<()> {
        self.inner.list(prefix, each)
    }

    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>> {
        self.inner.children(prefix)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        if key.to_string().contains(&self.part) {
            return Err(Error::new(Kind::Failed, format!("delete {key}: it is locked")));
        }
        self.inner.delete(key)
    }

    fn move_aside(&self, from: &Key, to: &Key) -> Result<()> {
        self.inner.move_aside(from, to)
    }

    fn now(&self) -> Result<UtcTime> {
        self.inner.now()
    }

    fn exclusive(&self) -> common::storage::Exclusive {
        self.inner.exclusive()
    }

    fn free_space(&self) -> Result<Option<common::storage::Space>> {
        self.inner.free_space()
    }
}
