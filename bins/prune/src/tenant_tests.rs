#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
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

fn of(databases: Vec<Database>) -> Vec<Dumped> {
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
    dumped(&info, &Contents { format: 1, databases })
}

/// How the first database of a dump holds acme, which has OID 16400.
fn how(databases: Vec<Database>, named: Named<'_>) -> Holds {
    let chosen = BTreeMap::from([("7".to_owned(), 16400)]);
    holds(&of(databases)[0], &chosen, named)
}

fn acme() -> Vec<Entry> {
    vec![
        entry("SCHEMA", None, "acme", 16400),
        entry("TABLE", Some("acme"), "orders", 16401),
    ]
}

#[test]
fn a_dump_holds_a_tenant_alone_or_with_others() {
    let any = named(None);
    assert_eq!(how(vec![database(&["acme"], &[], acme())], any), Holds::Alone);
    let whole = database(&[], &[], acme());
    assert_eq!(
        how(vec![whole], any),
        Holds::WithOthers,
        "a whole database is more than its only tenant"
    );
    let mut both = acme();
    both.push(entry("TABLE", Some("other"), "orders", 16500));
    let tables = database(&[], &["acme.orders", "other.orders"], both);
    assert_eq!(how(vec![tables], any), Holds::WithOthers);
    let other = vec![entry("SCHEMA", None, "other", 16500)];
    assert_eq!(how(vec![database(&["other"], &[], other)], any), Holds::Nothing);
    let two = vec![database(&["acme"], &[], acme()), database(&[], &[], Vec::new())];
    assert_eq!(how(two, any), Holds::WithOthers);
}

#[test]
fn a_dump_without_definitions_is_known_by_its_names_if_those_are_enough() {
    let rows = || vec![entry("TABLE DATA", Some("acme"), "orders", 16401)];
    let table = || vec![database(&[], &["acme.orders"], rows())];
    assert_eq!(how(table(), named(None)), Holds::Alone);
    assert_eq!(
        how(table(), named(Some(16400))),
        Holds::Nothing,
        "it may be of the other one"
    );
}

#[test]
fn a_tenant_or_database_that_was_renamed_since_is_known_by_its_oid() {
    let mut database_renamed = database(&["acme"], &[], acme());
    database_renamed.name = "shop_before".to_owned();
    assert_eq!(how(vec![database_renamed.clone()], named(None)), Holds::Alone);
    let before = vec![
        entry("SCHEMA", None, "acme_before", 16400),
        entry("TABLE", Some("acme_before"), "orders", 16401),
    ];
    assert_eq!(
        how(vec![database(&["acme_before"], &[], before.clone())], named(None)),
        Holds::Alone
    );
    let mut neither = database(&["acme_before"], &[], before);
    neither.name = "depot".to_owned();
    assert_eq!(
        how(vec![neither], named(None)),
        Holds::Nothing,
        "databases of one template have equal OIDs"
    );
    let another = vec![entry("SCHEMA", None, "acme", 16500)];
    assert_eq!(
        how(vec![database(&["acme"], &[], another)], named(None)),
        Holds::Nothing
    );
    let elsewhere = BTreeMap::from([("6".to_owned(), 16400)]);
    let dump = &of(vec![database_renamed])[0];
    assert_eq!(holds(dump, &elsewhere, named(None)), Holds::Nothing, "another system");
}

#[test]
fn dumps_of_that_database_tell_the_oid() {
    let dumps = of(vec![database(&[], &[], acme())]);
    assert_eq!(seen_in_dumps(named(None), &dumps)[0].oid, 16400);
    let mut other = database(&[], &[], acme());
    other.name = "depot".to_owned();
    assert!(seen_in_dumps(named(None), &of(vec![other])).is_empty());
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
    let same = [seen("7", 20001), seen("7", 20001), seen("6", 20002)];
    assert_eq!(chosen(None, &same).unwrap(), [pair("6", 20002), pair("7", 20001)]);
    let several = [seen("7", 20001), seen("7", 20003)];
    let error = chosen(None, &several).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(
        error
            .to_string()
            .contains("OID 20001 (place 20001), OID 20003 (place 20003)"),
        "{error}"
    );
    assert_eq!(chosen(Some(20003), &several).unwrap(), [pair("7", 20003)]);
    assert_eq!(chosen(None, &[]).unwrap_err().kind(), Kind::Config);
    let wrong = chosen(Some(20009), &several).unwrap_err();
    assert!(wrong.to_string().contains("it has OID 20001"), "{wrong}");
    assert_eq!(
        chosen(Some(20009), &[]).unwrap(),
        [pair("7", 20009)],
        "the user knows it"
    );
    let public = [seen("7", 2200)];
    assert_eq!(
        chosen(None, &public).unwrap_err().kind(),
        Kind::Refused,
        "every database has it"
    );
}
