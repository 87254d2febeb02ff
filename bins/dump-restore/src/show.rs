//! What is in a dump, and what a run would do, for people.

use std::collections::BTreeMap;

use common::postgres::archive::Archive;
use common::repository::dumps::{Contents, Database, DumpInfo};
use common::units::{ByteSize, counted};

use crate::select::{Selection, Wanted};

/// The databases of a dump with their schemas; with a tenant, its tables.
pub fn list(info: &DumpInfo, contents: &Contents, tenant: Option<&str>) -> String {
    let past = match (&info.backup, &info.target) {
        (Some(backup), Some(target)) => format!(" (from backup {backup}, {target})"),
        _ => String::new(),
    };
    let mut text = format!(
        "dump {}: {} of {}{past}, PostgreSQL {}, {}\n",
        info.label,
        ByteSize(info.size),
        info.started.whole_seconds(),
        info.server_version,
        if info.globals {
            "with roles and tablespaces"
        } else {
            "without roles and tablespaces"
        }
    );
    for database in &contents.databases {
        let schemas = tables(&database.archive);
        let count: usize = schemas.values().map(Vec::len).sum();
        text += &format!(
            "database {}: {} with {}, {}{}\n",
            database.name,
            counted(schemas.len() as u64, "schema"),
            counted(count as u64, "table"),
            ByteSize(database.archive.size),
            limits(database)
        );
        for (schema, names) in &schemas {
            match tenant {
                None => text += &format!("  {schema}: {}\n", counted(names.len() as u64, "table")),
                Some(wanted) if wanted == *schema => {
                    names.iter().for_each(|name| text += &format!("  {schema}.{name}\n"))
                }
                Some(_) => {}
            }
        }
    }
    text
}

fn limits(database: &Database) -> String {
    let mut all = database.schemas.clone();
    all.extend(database.tables.iter().cloned());
    match all.is_empty() {
        true => String::new(),
        false => format!(", only {}", all.join(", ")),
    }
}

fn tables(archive: &Archive) -> BTreeMap<&str, Vec<&str>> {
    let mut schemas: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in archive.entries.iter().filter(|entry| entry.kind == "TABLE") {
        if let Some(schema) = &entry.schema {
            schemas.entry(schema).or_default().push(&entry.name);
        }
    }
    schemas
}

/// What a run does.
pub fn plan(
    archive: &Archive,
    wanted: &Wanted,
    rename: Option<&str>,
    selection: &Selection,
    bytes: u64,
    into: &str,
) -> String {
    let what = match (wanted, rename) {
        (Wanted::Whole, _) => format!("database {}", archive.database),
        (Wanted::Tenant(schema), None) => format!("tenant {schema}"),
        (Wanted::Tenant(schema), Some(new)) => format!("tenant {schema} as {new}"),
        (Wanted::Tables(tables), _) => {
            let names: Vec<String> = tables
                .iter()
                .map(|(schema, table)| format!("{schema}.{table}"))
                .collect();
            format!("table {}", names.join(", "))
        }
    };
    let chosen = selection.all();
    let tables = archive
        .entries
        .iter()
        .filter(|entry| entry.kind == "TABLE DATA" && chosen.contains(&entry.id))
        .count();
    let mut text = format!(
        "{what} into {into}: {}, rows of {}, reading {} of {}\n",
        counted(chosen.len() as u64, "object"),
        counted(tables as u64, "table"),
        ByteSize(bytes),
        ByteSize(archive.size)
    );
    for entry in archive
        .entries
        .iter()
        .filter(|entry| selection.shared.contains(&entry.id) && entry.kind != "TABLE DATA")
    {
        text += &format!(
            "  it needs {} {}, which comes with it\n",
            entry.kind.to_lowercase(),
            entry.full_name()
        );
    }
    text
}
