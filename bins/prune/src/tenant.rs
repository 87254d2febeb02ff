//! Which tenant is erased, and which dumps hold it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use common::error::{Error, Kind, Result};
use common::repository::DumpLabel;
use common::repository::dumps::{Contents, Database, DumpInfo};

/// `FirstNormalObjectId` (`src/include/access/transam.h`): what initdb makes has smaller OIDs, the same in every database.
const FIRST_NORMAL: u32 = 16384;

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

/// One database of a dump, as far as it tells tenants apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dumped {
    /// The dump.
    pub label: DumpLabel,
    /// PostgreSQL's system identifier of the server.
    pub system: String,
    /// The database's name.
    pub database: String,
    /// Its schemas, with their OIDs where their definitions are in it.
    pub schemas: BTreeMap<String, Option<u32>>,
    /// The only schema that the dump has anything of; nothing if it was not limited to one.
    pub alone: Option<String>,
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

/// What a dump has.
pub fn dumped(info: &DumpInfo, contents: &Contents) -> Vec<Dumped> {
    let one = |database: &Database| {
        let entries = || database.archive.entries.iter();
        let mut schemas: BTreeMap<String, Option<u32>> = BTreeMap::new();
        let is_table = |kind: &str| matches!(kind, "TABLE" | "TABLE DATA");
        for schema in entries()
            .filter(|entry| is_table(&entry.kind))
            .filter_map(|entry| entry.schema.clone())
        {
            schemas.entry(schema).or_default();
        }
        for schema in &database.schemas {
            schemas.entry(schema.clone()).or_default();
        }
        for entry in entries().filter(|entry| entry.kind == "SCHEMA" && entry.oid != 0) {
            schemas.insert(entry.name.clone(), Some(entry.oid));
        }
        let limited = !database.schemas.is_empty() || !database.tables.is_empty();
        let only = match (contents.databases.len(), schemas.len()) {
            (1, 1) if limited => schemas.keys().next().cloned(),
            _ => None,
        };
        Dumped {
            label: info.label,
            system: info.system_identifier.clone(),
            database: database.name.clone(),
            schemas,
            alone: only,
        }
    };
    contents.databases.iter().map(one).collect()
}

/// Where dumps show a schema of that name.
pub fn seen_in_dumps(named: Named<'_>, dumps: &[Dumped]) -> Vec<Seen> {
    let one = |dump: &Dumped| {
        let oid = (*dump.schemas.get(named.schema)?)?;
        (dump.database == named.database).then(|| Seen {
            system: dump.system.clone(),
            oid,
            place: format!("in dump {}", dump.label),
        })
    };
    dumps.iter().filter_map(one).collect()
}

/// The OID of the schema in each system that has had it; `current` is the system that runs.
///
/// # Errors
/// `Refused` where several schemas of one system had the name, or it is one of PostgreSQL's own; `Config` where none did, or none of
/// them with the OID that is given.
pub fn choose(named: Named<'_>, seen: &[Seen], current: &str) -> Result<BTreeMap<String, u32>> {
    let mut known: BTreeMap<&str, BTreeMap<u32, &str>> = BTreeMap::new();
    for one in seen.iter().filter(|one| named.oid.is_none_or(|oid| oid == one.oid)) {
        let oids = known.entry(&one.system).or_default();
        oids.entry(one.oid).or_insert(&one.place);
    }
    let Named { database, schema, .. } = named;
    if let Some(oid) = named.oid.filter(|_| known.is_empty()) {
        // One that was dropped long ago nobody has seen; a digit that is wrong must not pass for that.
        if let Some(other) = seen.first() {
            let message = format!(
                "nobody has seen a schema \"{schema}\" with OID {oid} in database \"{database}\": it has OID {} ({})",
                other.oid, other.place
            );
            return Err(Error::new(Kind::Config, message).hint("without --schema-oid that one is erased"));
        }
        known.entry(current).or_default().insert(oid, "--schema-oid");
    }
    if known.is_empty() {
        return Err(Error::new(
            Kind::Config,
            format!("neither the server nor a dump has a schema \"{schema}\" in database \"{database}\""),
        )
        .hint(
            "names are taken as they are, and psql -l lists the databases. If it was dropped before: pgkeep-dump --from-backup takes a dump of it that tells its OID \
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
    let chosen: BTreeMap<String, u32> = known.into_iter().filter_map(only).collect();
    match chosen.values().find(|oid| **oid < FIRST_NORMAL) {
        Some(oid) => Err(Error::new(
            Kind::Refused,
            format!(
                "schema \"{schema}\" with OID {oid} is PostgreSQL's own: every database has it, so it is no tenant"
            ),
        )
        .hint("move the tenant's tables into a schema of their own, or delete their rows")),
        None => Ok(chosen),
    }
}

/// How a dump holds the chosen tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// It has nothing of it.
    Nothing,
    /// It and nothing else.
    Alone,
    /// Others, too.
    WithOthers,
}

/// Judges one database of a dump. A schema or database that has been renamed since is known by its OID and the other name; one without
/// its OID by its name, if no other schema has had that.
pub fn holds(dump: &Dumped, chosen: &BTreeMap<String, u32>, named: Named<'_>) -> Holds {
    let Some(oid) = chosen.get(&dump.system) else {
        return Holds::Nothing;
    };
    let is_chosen = |(name, found): (&String, &Option<u32>)| {
        let (same_database, same_schema) = (dump.database == named.database, name == named.schema);
        match found {
            Some(found) => found == oid && (same_database || same_schema),
            None => same_database && same_schema && named.oid.is_none(),
        }
    };
    let mut of_tenant = dump.schemas.iter().filter(|schema| is_chosen(*schema));
    match (of_tenant.next(), &dump.alone) {
        (None, _) => Holds::Nothing,
        (Some((name, _)), Some(alone)) if name == alone => Holds::Alone,
        (Some(_), _) => Holds::WithOthers,
    }
}

/// The labels of dumps that hold it alone, and with others.
pub fn holders(
    dumps: &[Dumped],
    chosen: &BTreeMap<String, u32>,
    named: Named<'_>,
) -> (BTreeSet<DumpLabel>, BTreeSet<DumpLabel>) {
    let of = |wanted: Holds| {
        let fits = dumps.iter().filter(|dump| holds(dump, chosen, named) == wanted);
        fits.map(|dump| dump.label).collect()
    };
    (of(Holds::Alone), of(Holds::WithOthers))
}

#[cfg(test)]
#[path = "tenant_tests.rs"]
mod tests;
