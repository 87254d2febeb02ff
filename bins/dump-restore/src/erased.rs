//! Tenants that were erased since a dump was taken: they do not come back with it. Pure.

use common::error::{Error, Kind, Result};
use common::postgres::sql::identifier;
use common::repository::dumps::{Database, DumpInfo, Parts};
use common::repository::tombstones::Erasure;

use crate::select::Wanted;

/// An erased tenant of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased<'a> {
    /// The schema, as the dump calls it.
    pub schema: String,
    /// What is known of the erasure.
    pub erasure: &'a Erasure,
}

/// The erased tenants in a database of a dump: by the OID of the schema; in a dump without definitions by the names.
pub fn in_dump<'a>(info: &DumpInfo, database: &Database, erasures: &'a [Erasure]) -> Vec<Erased<'a>> {
    let own = |erasure: &&Erasure| erasure.system_identifier == info.system_identifier;
    let defined = |erasure: &Erasure| {
        let entries = database.archive.entries.iter();
        let entry = entries
            .filter(|entry| entry.kind == "SCHEMA")
            .find(|entry| entry.oid == erasure.schema_oid)?;
        // Databases made from one template have equal OIDs; a renamed one still has the schema, and a renamed schema its database.
        let same = |names: &common::repository::tombstones::Tenant| {
            names.database == database.name || names.schema == entry.name
        };
        erasure.tenant.as_ref().is_none_or(same).then(|| entry.name.clone())
    };
    let undefined = |erasure: &Erasure| {
        let tenant = erasure
            .tenant
            .as_ref()
            .filter(|tenant| tenant.database == database.name)?;
        let entries = || database.archive.entries.iter();
        let has_definition = entries().any(|entry| entry.kind == "SCHEMA" && entry.name == tenant.schema);
        let holds = entries().any(|entry| entry.schema.as_ref() == Some(&tenant.schema));
        (!has_definition && holds && info.started < erasure.time).then(|| tenant.schema.clone())
    };
    let one = |erasure: &'a Erasure| {
        let schema = defined(erasure).or_else(|| undefined(erasure))?;
        Some(Erased { schema, erasure })
    };
    erasures.iter().filter(own).filter_map(one).collect()
}

/// Refuses what was erased. Of a whole database it is dropped at the end, unless the dump has only rows: then the schema in the
/// database may be another one.
///
/// # Errors
/// `Refused`.
pub fn check(wanted: &Wanted, parts: Parts, erased: &[Erased<'_>]) -> Result<()> {
    let is_wanted = |one: &&Erased<'_>| match wanted {
        Wanted::Whole => parts == Parts::Data,
        Wanted::Tenant(schema) => *schema == one.schema,
        Wanted::Tables(tables) => tables.iter().any(|(schema, _)| *schema == one.schema),
    };
    let Some(one) = erased.iter().find(is_wanted) else {
        return Ok(());
    };
    let Erasure { time, user, tenant, .. } = one.erasure;
    let reason = tenant
        .as_ref()
        .map_or_else(String::new, |tenant| format!(": {}", tenant.reason));
    let message = format!(
        "tenant {} was erased, asked for by {user} at {}{reason}",
        one.schema,
        time.whole_seconds()
    );
    Err(Error::new(Kind::Refused, message)
        .hint("what was erased does not come back; if it was the wrong one, --even-erased restores it"))
}

/// SQL that drops them from a whole database that has been restored.
pub fn sql(erased: &[Erased<'_>]) -> String {
    let one = |one: &Erased<'_>| format!("DROP SCHEMA IF EXISTS {} CASCADE;\n", identifier(&one.schema));
    erased.iter().map(one).collect()
}

/// What becomes of them, for people.
pub fn note(erased: &[Erased<'_>]) -> String {
    let one = |one: &Erased<'_>| format!("tenant {} has been erased since: it is dropped again\n", one.schema);
    erased.iter().map(one).collect()
}

#[cfg(test)]
#[path = "erased_tests.rs"]
mod tests;
