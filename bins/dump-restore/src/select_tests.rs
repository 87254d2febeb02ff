#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;

fn entry(id: i64, kind: &str, schema: &str, name: &str, needs: &[i64]) -> Entry {
    Entry {
        id,
        oid: 0,
        kind: kind.to_owned(),
        schema: (!schema.is_empty()).then(|| schema.to_owned()),
        name: name.to_owned(),
        owner: None,
        needs: needs.to_vec(),
        data: kind == "TABLE DATA",
    }
}

/// Two tenants, an extension, a type and a table that both use, and a publication.
fn archive() -> Archive {
    Archive {
        database: "shop".into(),
        server_version: String::new(),
        dump_version: String::new(),
        head_bytes: 0,
        size: 0,
        entries: vec![
            entry(1, "SCHEMA", "", "a", &[]),
            entry(2, "ACL", "", "SCHEMA a", &[1]),
            entry(3, "SCHEMA", "", "b", &[]),
            entry(4, "EXTENSION", "", "citext", &[]),
            entry(5, "TYPE", "public", "mood", &[]),
            entry(6, "TABLE", "public", "country", &[]),
            entry(7, "TABLE DATA", "public", "country", &[6]),
            entry(8, "CONSTRAINT", "public", "country country_pkey", &[6]),
            entry(9, "TABLE", "a", "orders", &[1, 4, 5]),
            entry(10, "TABLE DATA", "a", "orders", &[9]),
            entry(11, "SEQUENCE", "a", "orders_id_seq", &[1]),
            entry(12, "SEQUENCE OWNED BY", "a", "orders_id_seq", &[11, 9]),
            entry(13, "DEFAULT", "a", "orders id", &[11, 9]),
            entry(14, "SEQUENCE SET", "a", "orders_id_seq", &[11]),
            entry(15, "CONSTRAINT", "a", "orders orders_pkey", &[9]),
            entry(16, "FK CONSTRAINT", "a", "orders orders_country", &[8, 6, 9]),
            entry(17, "TABLE", "a", "lines", &[1]),
            entry(18, "FK CONSTRAINT", "a", "lines lines_orders", &[15, 9, 17]),
            entry(19, "TABLE", "b", "orders", &[3]),
            entry(20, "PUBLICATION TABLE", "a", "p orders", &[9]),
            entry(21, "INDEX", "public", "country_name", &[6]),
        ],
        blocks: Vec::new(),
    }
}

fn chosen(wanted: &Wanted) -> (Vec<i64>, Vec<i64>) {
    let selection = select(&archive(), wanted).unwrap();
    (
        selection.own.into_iter().collect(),
        selection.shared.into_iter().collect(),
    )
}

#[test]
fn a_tenant_comes_with_what_it_needs_and_without_the_others() {
    let (own, shared) = chosen(&Wanted::Tenant("a".into()));
    assert_eq!(own, [1, 2, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]);
    assert_eq!(shared, [4, 5, 6, 7, 8], "its rows too, for the foreign key");
}

#[test]
fn a_table_comes_with_its_parts_and_not_with_those_that_point_at_it() {
    let (own, shared) = chosen(&Wanted::Tables(vec![("a".into(), "orders".into())]));
    assert_eq!(own, [9, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(shared, [1, 4, 5, 6, 7, 8]);
}

#[test]
fn what_the_database_has_stays_with_its_rows_and_keys() {
    let archive = archive();
    let selection = select(&archive, &Wanted::Tenant("a".into())).unwrap();
    let left = without(&selection, &archive, &BTreeSet::from([4, 6]));
    assert_eq!(left.shared, BTreeSet::from([5]));
    assert_eq!(left.own, selection.own);
}

#[test]
fn partitions_come_with_their_table_and_not_the_reverse() {
    let mut archive = archive();
    archive.entries.extend([
        entry(30, "TABLE", "a", "log", &[1]),
        entry(31, "TABLE", "a", "log_1", &[1]),
        entry(32, "TABLE ATTACH", "a", "log_1", &[30, 31]),
        entry(33, "TABLE DATA", "a", "log_1", &[31]),
    ]);
    let own = |name: &str| {
        select(&archive, &Wanted::Tables(vec![("a".into(), name.into())]))
            .unwrap()
            .own
    };
    assert_eq!(own("log"), BTreeSet::from([30, 31, 32, 33]));
    assert_eq!(own("log_1"), BTreeSet::from([31, 33]));
}

#[test]
fn what_is_not_there_is_named() {
    assert!(
        select(&archive(), &Wanted::Tenant("c".into()))
            .unwrap_err()
            .contains("\"c\"")
    );
    let table = Wanted::Tables(vec![("b".into(), "lines".into())]);
    assert!(select(&archive(), &table).unwrap_err().contains("b.lines"));
}
