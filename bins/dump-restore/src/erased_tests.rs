#![allow(clippy::unwrap_used)]
use common::postgres::archive::{Archive, Entry};
use common::repository::dumps::Scope;
use common::repository::tombstones::Tenant;
use common::time::UtcTime;

use super::*;

fn at(hour: u32) -> UtcTime {
    UtcTime::parse_compact(&format!("20261120T{hour:02}0000Z")).unwrap()
}

fn erasure(schema_oid: u32, names: Option<(&str, &str)>) -> Erasure {
    Erasure {
        time: at(9),
        host: "db1".to_owned(),
        user: "postgres".to_owned(),
        system_identifier: "7".to_owned(),
        database_oid: Some(5),
        schema_oid,
        tenant: names.map(|(database, schema)| Tenant {
            database: database.to_owned(),
            schema: schema.to_owned(),
            reason: "asked".to_owned(),
        }),
        gone: Vec::new(),
    }
}

/// A dump of database shop, begun at 3 o'clock, with the table orders of schema acme.
fn found(definitions: bool, system: &str, erasure: &Erasure) -> Vec<String> {
    let entry = |kind: &str, schema: Option<&str>, name: &str, oid| Entry {
        id: 1,
        oid,
        kind: kind.to_owned(),
        schema: schema.map(str::to_owned),
        name: name.to_owned(),
        owner: None,
        needs: Vec::new(),
        data: false,
    };
    let mut entries = vec![entry("TABLE DATA", Some("acme"), "orders", 16401)];
    if definitions {
        entries.push(entry("SCHEMA", None, "acme", 16400));
    }
    let database = Database {
        name: "shop".to_owned(),
        object: "1.dump.zst".to_owned(),
        schemas: Vec::new(),
        tables: Vec::new(),
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
    };
    let info = DumpInfo {
        format: 1,
        label: "20261120T030000Z-dump-3f9a1c".parse().unwrap(),
        cluster: "main".to_owned(),
        system_identifier: system.to_owned(),
        major: 15,
        server_version: "15".to_owned(),
        pg_dump: "15".to_owned(),
        pgkeep: "0".to_owned(),
        host: "h".to_owned(),
        started: at(3),
        finished: at(3),
        backup: None,
        target: None,
        scope: Scope::Databases,
        parts: Parts::All,
        databases: 1,
        tables: 1,
        globals: false,
        size: 0,
        stored: 0,
        objects: Vec::new(),
        signature: None,
    };
    let erasures = std::slice::from_ref(erasure);
    let found = in_dump(&info, &database, erasures);
    found.into_iter().map(|one| one.schema).collect()
}

#[test]
fn a_tenant_is_known_by_its_oid_in_its_system() {
    let shop = Some(("shop", "acme"));
    assert_eq!(found(true, "7", &erasure(16400, shop)), ["acme"]);
    assert_eq!(
        found(true, "7", &erasure(16400, None)),
        ["acme"],
        "sealed names do not hide it"
    );
    assert_eq!(found(true, "7", &erasure(16400, Some(("shop", "renamed")))), ["acme"]);
    assert!(found(true, "7", &erasure(16400, Some(("depot", "other")))).is_empty());
    assert!(
        found(true, "7", &erasure(16500, shop)).is_empty(),
        "another one of that name"
    );
    assert!(found(true, "8", &erasure(16400, shop)).is_empty(), "another system");
}

#[test]
fn without_definitions_names_decide_for_older_dumps() {
    let shop = Some(("shop", "acme"));
    assert_eq!(found(false, "7", &erasure(16400, shop)), ["acme"]);
    assert!(found(false, "7", &erasure(16400, None)).is_empty());
    let before = Erasure {
        time: at(2),
        ..erasure(16400, shop)
    };
    assert!(found(false, "7", &before).is_empty(), "the dump is of a later one");
}

#[test]
fn what_was_erased_is_refused_and_goes_from_a_whole_database() {
    let erasure = erasure(16400, Some(("shop", "acme")));
    let erased = [Erased {
        schema: "acme".to_owned(),
        erasure: &erasure,
    }];
    let tables = |schema: &str| Wanted::Tables([(schema.to_owned(), "orders".to_owned())].into());
    for (wanted, refused) in [
        (Wanted::Tenant("acme".to_owned()), true),
        (Wanted::Tenant("other".to_owned()), false),
        (tables("acme"), true),
        (tables("other"), false),
        (Wanted::Whole, false),
    ] {
        assert_eq!(check(&wanted, Parts::All, &erased).is_err(), refused, "{wanted:?}");
    }
    assert!(check(&Wanted::Whole, Parts::Data, &erased).is_err());
    assert!(check(&Wanted::Whole, Parts::Data, &[]).is_ok());
    assert_eq!(sql(&erased), "DROP SCHEMA IF EXISTS \"acme\" CASCADE;\n");
}
