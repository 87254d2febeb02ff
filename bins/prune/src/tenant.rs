//! Which tenant is erased, and which dumps hold it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use common::error::{Error, Kind, Result};
use common::repository::DumpLabel;
use common::repository::dumps::{Contents, Database, DumpInfo};

/// A tenant as the user names it.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The database.
    pub database: &'a str,
    /// The schema.
    pub schema: &'a str,
    /// The schema's OID, where its name is not enough.
    pub oid: Option<u32>,
}

/// A dump that holds a schema of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub label: DumpLabel,
    /// PostgreSQL's system identifier of the server.
    pub system: String,
    /// OID of the schema; nothing in a dump without definitions.
    pub oid: Option<u32>,
    /// Whether it holds nothing else.
    pub alone: bool,
}

/// Where a schema of that name has been seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// PostgreSQL's system identifier.
    pub system: String,
    /// OID of the schema.
    pub oid: u32,
    /// Where, in words.
    pub place: String,
}

/// What a dump has of the tenant, if anything.
pub fn holder(info: &DumpInfo, contents: &Contents, named: Named<'_>) -> Option<Holder> {
    let database = contents
        .databases
        .iter()
        .find(|database| database.name == named.database)?;
    let entries = || database.archive.entries.iter();
    let defined = entries().find(|entry| entry.kind == "SCHEMA" && entry.name == named.schema);
    let schemas = schemas(database);
    if defined.is_none() && !schemas.contains(named.schema) {
        return None;
    }
    let limited = !database.schemas.is_empty() || !database.tables.is_empty();
    Some(Holder {
        label: info.label,
        system: info.system_identifier.clone(),
        oid: defined.map(|entry| entry.oid).filter(|oid| *oid != 0),
        alone: limited && contents.databases.len() == 1 && schemas.iter().all(|schema| *schema == named.schema),
    })
}

/// The schemas that tables of a dump lie in.
fn schemas(database: &Database) -> BTreeSet<&str> {
    let is_table = |kind: &str| matches!(kind, "TABLE" | "TABLE DATA");
    let tables = database.archive.entries.iter().filter(|entry| is_table(&entry.kind));
    let own = database.schemas.iter().map(String::as_str);
    tables.filter_map(|entry| entry.schema.as_deref()).chain(own).collect()
}

/// The OID of the schema in each system that has had it; `current` is the system that runs.
///
/// # Errors
/// `Refused` where several schemas of one system had the name; `NotFound` where none did.
pub fn choose(named: Named<'_>, seen: &[Seen], current: &str) -> Result<BTreeMap<String, u32>> {
    let mut known: BTreeMap<&str, BTreeMap<u32, &str>> = BTreeMap::new();
    for one in seen.iter().filter(|one| named.oid.is_none_or(|oid| oid == one.oid)) {
        let oids = known.entry(&one.system).or_default();
        oids.entry(one.oid).or_insert(&one.place);
    }
    if let Some(oid) = named.oid {
        known.entry(current).or_default().entry(oid).or_insert("--schema-oid");
    }
    let Named { database, schema, .. } = named;
    if known.is_empty() {
        return Err(Error::new(
            Kind::NotFound,
            format!("neither the server nor a dump has a schema \"{schema}\" in database \"{database}\""),
        )
        .hint(
            "names are taken as they are. If it was dropped before: pgkeep-dump --from-backup takes a dump of it that tells its OID \
             and is then erased, or say its OID with --schema-oid",
        ));
    }
    if let Some(several) = known.values().find(|oids| oids.len() > 1) {
        let list: Vec<String> = several
            .iter()
            .map(|(oid, place)| format!("OID {oid} ({place})"))
            .collect();
        let message = format!(
            "several schemas of database \"{database}\" have been called \"{schema}\": {}",
            list.join(", ")
        );
        return Err(Error::new(Kind::Refused, message).hint("say which with --schema-oid; once for each that goes"));
    }
    let only = |(system, oids): (&str, BTreeMap<u32, &str>)| Some((system.to_owned(), *oids.keys().next()?));
    Ok(known.into_iter().filter_map(only).collect())
}

/// Whether a dump holds the chosen schema. One without its OID does if no other has had the name.
pub fn is_of(holder: &Holder, chosen: &BTreeMap<String, u32>, named: Named<'_>) -> bool {
    match (holder.oid, chosen.get(&holder.system)) {
        (Some(oid), Some(chosen)) => oid == *chosen,
        (None, Some(_)) => named.oid.is_none(),
        (_, None) => false,
    }
}

#[cfg(test)]
#[path = "tenant_tests.rs"]
mod tests;
