#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use super::*;
use crate::codec::seal::tests::key;
use crate::codec::{Opening, Sealing};
use crate::postgres::TimelineId;
use crate::repository::keys::Keys;
use crate::repository::{ClusterName, Identity, document};
use crate::storage::memory::MemoryStore;

fn at(seconds: i64) -> UtcTime {
    UtcTime::from_unix_seconds(1_790_000_000 + seconds).unwrap()
}

fn tenant() -> Tenant {
    Tenant {
        database: "shop".to_owned(),
        schema: "acme".to_owned(),
        reason: "asked".to_owned(),
    }
}

fn erasure(seconds: i64) -> Erasure {
    Erasure {
        time: at(seconds),
        host: "db1".to_owned(),
        user: "postgres".to_owned(),
        system_identifier: "7".to_owned(),
        database_oid: Some(5),
        schema_oid: 16400,
        tenant: Some(tenant()),
        gone: Vec::new(),
    }
}

fn gone(timeline: u32, lsn: u64, seconds: i64) -> Gone {
    Gone {
        timeline,
        lsn: Lsn(lsn),
        time: at(seconds),
    }
}

fn repository(name: &str, key: Option<(Sealing, Opening)>) -> Repository {
    let (sealing, opening) = key.unwrap_or((Sealing::Clear, Opening::none()));
    let store = Arc::new(MemoryStore::new());
    let cluster = ClusterName::parse("main").unwrap();
    let identity = Identity::new(&cluster, at(0), sealing.is_encrypted()).unwrap();
    let document_key = Keys { cluster: &cluster }.identity().unwrap();
    document::write(store.as_ref(), &document_key, &identity).unwrap();
    let (data, metadata) = (sealing.clone(), sealing);
    Repository::new(
        name.into(),
        "memory:".into(),
        true,
        store,
        data,
        metadata,
        opening,
        cluster,
    )
}

fn text_of(repository: &Repository) -> String {
    let event = events::read(repository).unwrap().pop().unwrap();
    serde_json::to_string(&event).unwrap()
}

#[test]
fn names_are_sealed_where_the_repository_is_and_open_with_its_key() {
    let clear = repository("clear", None);
    let sealed = repository("sealed", Some(key()));
    for one in [&clear, &sealed] {
        append(one, &erasure(0), &tenant(), None, Vec::new()).unwrap();
        assert_eq!(read(one).unwrap(), [erasure(0)]);
    }
    assert!(text_of(&clear).contains("acme"));
    let text = text_of(&sealed);
    assert!(
        !text.contains("acme") && !text.contains("shop") && !text.contains("asked"),
        "{text}"
    );
    assert!(text.contains("16400"), "{text}");
}

#[test]
fn without_the_key_an_erasure_is_known_by_its_number() {
    let sealed = repository("sealed", Some(key()));
    append(&sealed, &erasure(0), &tenant(), None, Vec::new()).unwrap();
    let event = events::read(&sealed).unwrap();
    let keyless = repository("keyless", None);
    let known = of(&keyless, &event);
    assert_eq!(known.first().unwrap().tenant, None);
    assert_eq!(
        known.first().unwrap().to_string(),
        "OID 16400 of the database with OID 5 (its name is sealed)"
    );
}

#[test]
fn names_are_sealed_anew_for_another_repository() {
    let clear = repository("clear", None);
    let sealed = repository("sealed", Some(key()));
    append(&clear, &erasure(0), &tenant(), None, Vec::new()).unwrap();
    let event = events::read(&clear).unwrap().pop().unwrap();
    let moved = translated(event.clone(), &clear, &sealed).unwrap();
    assert!(!serde_json::to_string(&moved).unwrap().contains("acme"));
    assert_eq!(of(&sealed, std::slice::from_ref(&moved)), [erasure(0)]);
    assert_eq!(translated(moved.clone(), &sealed, &clear).unwrap(), event);
    // Who has no key passes on what he got.
    let keyless = repository("keyless", None);
    assert_eq!(translated(moved.clone(), &keyless, &sealed).unwrap(), moved);
}

#[test]
fn each_tenant_is_one_erasure() {
    let (one, two) = (gone(1, 500, 60), gone(2, 400, 90));
    let again = Erasure {
        gone: vec![two, one],
        ..erasure(60)
    };
    let sealed = Erasure {
        tenant: None,
        ..erasure(0)
    };
    let other = Erasure {
        schema_oid: 16500,
        ..erasure(30)
    };
    let known = merged([again, sealed, other.clone()]);
    let first = Erasure {
        gone: vec![one, two],
        ..erasure(0)
    };
    assert_eq!(known, [first, other]);
}

#[test]
fn a_recovery_has_passed_an_erasure_only_along_its_own_history() {
    let root = TimelineHistory::root(TimelineId(1));
    // Timeline 2 left timeline 1 at 0/190 (400).
    let branch = TimelineHistory::parse(TimelineId(2), b"1\t0/190\tno recovery target specified\n").unwrap();
    let with = |gone: &[Gone]| Erasure {
        gone: gone.to_vec(),
        ..erasure(0)
    };
    let lsn = |at| Reached::Lsn(Lsn(at));
    let before_the_fork = with(&[gone(1, 300, 60)]);
    assert!(before_the_fork.is_past(&root, lsn(300)) && before_the_fork.is_past(&branch, lsn(300)));
    assert!(!before_the_fork.is_past(&root, lsn(299)));
    assert!(before_the_fork.is_past(&root, Reached::Time(at(60))));
    assert!(!before_the_fork.is_past(&root, Reached::Time(at(59))));
    let behind_the_fork = with(&[gone(1, 500, 60)]);
    assert!(behind_the_fork.is_past(&root, lsn(900)) && !behind_the_fork.is_past(&branch, lsn(900)));
    assert!(!behind_the_fork.is_past(&branch, Reached::Time(at(900))));
    assert!(!with(&[]).is_past(&root, lsn(900)));
    let on_both = with(&[gone(1, 500, 60), gone(2, 450, 90)]);
    assert!(on_both.is_past(&root, lsn(500)) && on_both.is_past(&branch, lsn(450)));
    assert!(!on_both.is_past(&branch, lsn(449)));
}
