#![allow(clippy::unwrap_used)]
use common::postgres::archive::{Archive, Entry};
use common::repository::dumps::{Parts, Scope};
use common::time::UtcTime;

use super::*;

fn named(oid: Option<u32>) -> Named<'static> {
    Named {
        database: "shop",
        schema: "acme",
        oid,
    }
}

fn entry(kind: &str, schema: Option<&str>, name: &str, oid: u32) -> Entry {
    Entry {
        id: 1,
        oid,
        kind: kind.to_owned(),
        schema: schema.map(str::to_owned),
        name: name.to_owned(),
        owner: None,
        needs: Vec::new(),
        data: false,
    }
}

fn database(schemas: &[&str], tables: &[&str], entries: Vec<Entry>) -> Database {
    Database {
        name: "shop".to_owned(),
        object: "1.dump.zst".to_owned(),
        schemas: schemas.iter().map(|name| (*name).to_owned()).collect(),
        tables: tables.iter().map(|name| (*name).to_owned()).collect(),
        extensions: Vec::new(),
        archive: Archive {
            database: "shop".to_owned(),
            server_version: "15".to_owned(),
            dump_version: "15".to_owned(),
            head_bytes: 0,
            size: 0,
            entries,
            blocks: Vec::new(),
        },
    }
}

fn of(databases: Vec<Database>) -> Option<Holder> {
    let time = UtcTime::parse_compact("20261120T020000Z").unwrap();
    let info = DumpInfo {
        format: 1,
        label: "20261120T020000Z-dump-3f9a1c".parse().unwrap(),
        cluster: "main".to_owned(),
        system_identifier: "7".to_owned(),
        major: 15,
        server_version: "15".to_owned(),
        pg_dump: "15".to_owned(),
        pgkeep: "0".to_owned(),
        host: "h".to_owned(),
        started: time,
        finished: time,
        backup: None,
        target: None,
        scope: Scope::Databases,
        parts: Parts::All,
        databases: databases.len() as u64,
        tables: 0,
        globals: false,
        size: 0,
        stored: 0,
        objects: Vec::new(),
        signature: None,
    };
    let contents = Contents { format: 1, databases };
    holder(&info, &contents, named(None))
}

fn acme() -> Vec<Entry> {
    vec![
        entry("SCHEMA", None, "acme", 16400),
        entry("TABLE", Some("acme"), "orders", 16401),
    ]
}

#[test]
fn a_dump_holds_a_tenant_alone_or_with_others() {
    let tenant = of(vec![database(&["acme"], &[], acme())]).unwrap();
    assert!(tenant.alone);
    assert_eq!(tenant.oid, Some(16400));
    let whole = of(vec![database(&[], &[], acme())]).unwrap();
    assert!(!whole.alone, "a whole database is more than its only tenant");
    let mut both = acme();
    both.push(entry("TABLE", Some("other"), "orders", 16500));
    assert!(
        !of(vec![database(&[], &["acme.orders", "other.orders"], both)])
            .unwrap()
            .alone
    );
    let table = vec![entry("TABLE DATA", Some("acme"), "orders", 16401)];
    let table = of(vec![database(&[], &["acme.orders"], table)]).unwrap();
    assert!(table.alone && table.oid.is_none());
    let other = vec![entry("SCHEMA", None, "other", 16500)];
    assert_eq!(of(vec![database(&["other"], &[], other)]), None);
    let mut elsewhere = database(&["acme"], &[], acme());
    elsewhere.name = "depot".to_owned();
    assert_eq!(of(vec![elsewhere]), None);
}

fn seen(system: &str, oid: u32) -> Seen {
    Seen {
        system: system.to_owned(),
        oid,
        place: format!("place {oid}"),
    }
}

fn chosen(oid: Option<u32>, seen: &[Seen]) -> Result<Vec<(String, u32)>> {
    choose(named(oid), seen, "7").map(|chosen| chosen.into_iter().collect())
}

#[test]
fn one_schema_of_each_system_is_meant_or_nobody_knows_which() {
    let pair = |system: &str, oid| (system.to_owned(), oid);
    let same = [seen("7", 1), seen("7", 1), seen("6", 2)];
    assert_eq!(chosen(None, &same).unwrap(), [pair("6", 2), pair("7", 1)]);
    let several = [seen("7", 1), seen("7", 3)];
    let error = chosen(None, &several).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(
        error.to_string().contains("OID 1 (place 1), OID 3 (place 3)"),
        "{error}"
    );
    assert_eq!(chosen(Some(3), &several).unwrap(), [pair("7", 3)]);
    assert_eq!(chosen(None, &[]).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(chosen(Some(9), &[]).unwrap(), [pair("7", 9)], "the user knows it");
}

#[test]
fn a_dump_of_another_schema_of_that_name_stays() {
    let chosen = BTreeMap::from([("7".to_owned(), 16400)]);
    let holder = |oid, system: &str| Holder {
        label: "20261120T020000Z-dump-3f9a1c".parse().unwrap(),
        system: system.to_owned(),
        oid,
        alone: true,
    };
    assert!(is_of(&holder(Some(16400), "7"), &chosen, named(None)));
    assert!(!is_of(&holder(Some(16500), "7"), &chosen, named(None)));
    assert!(!is_of(&holder(Some(16400), "6"), &chosen, named(None)));
    assert!(is_of(&holder(None, "7"), &chosen, named(None)));
    assert!(
        !is_of(&holder(None, "7"), &chosen, named(Some(16400))),
        "it may be of the other one"
    );
}
