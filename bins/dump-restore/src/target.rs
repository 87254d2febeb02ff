//! What the database is asked before anything goes into it.

use std::collections::BTreeSet;

use common::error::{Error, Kind, Result};
use common::postgres::Session;
use common::postgres::archive::{Archive, Entry};

use crate::erased::Erased;
use crate::select::{Selection, Wanted};
use common::postgres::sql::{identifier, literal};

/// Entries of what is shared that the database has, by number.
///
/// # Errors
/// What the server says.
pub fn there(session: &mut Session, archive: &Archive, selection: &Selection) -> Result<BTreeSet<i64>> {
    let mut found = BTreeSet::new();
    for entry in archive
        .entries
        .iter()
        .filter(|entry| selection.shared.contains(&entry.id))
    {
        let Some(question) = question(entry) else { continue };
        if session.first(&question)?.is_some() {
            found.insert(entry.id);
        }
    }
    Ok(found)
}

/// SQL that answers with a row if the object is there; nothing where that cannot be asked.
fn question(entry: &Entry) -> Option<String> {
    let name = literal(&entry.name);
    let schema = entry.schema.as_deref().unwrap_or_default();
    let full = format!("{}.{}", identifier(schema), identifier(&entry.name));
    Some(match entry.kind.as_str() {
        "EXTENSION" => format!("select 1 from pg_extension where extname = {name}"),
        "SCHEMA" => format!("select 1 from pg_namespace where nspname = {name}"),
        "TYPE" | "DOMAIN" | "SHELL TYPE" => {
            format!(
                "select 1 from pg_type t join pg_namespace n on n.oid = typnamespace where nspname = {} and typname = {name}",
                literal(schema)
            )
        }
        "TABLE" | "VIEW" | "MATERIALIZED VIEW" | "FOREIGN TABLE" | "SEQUENCE" => {
            format!("select 1 where to_regclass({}) is not null", literal(&full))
        }
        // The name comes with its arguments: f(integer).
        "FUNCTION" | "PROCEDURE" | "AGGREGATE" => {
            let signature = format!("{}.{}", identifier(schema), entry.name);
            format!("select 1 where to_regprocedure({}) is not null", literal(&signature))
        }
        "COLLATION" => {
            format!(
                "select 1 from pg_collation c join pg_namespace n on n.oid = collnamespace where nspname = {} and collname = {name}",
                literal(schema)
            )
        }
        "FOREIGN DATA WRAPPER" => format!("select 1 from pg_foreign_data_wrapper where fdwname = {name}"),
        "SERVER" => format!("select 1 from pg_foreign_server where srvname = {name}"),
        "PROCEDURAL LANGUAGE" => format!("select 1 from pg_language where lanname = {name}"),
        _ => return None,
    })
}

/// Fails where something would be overwritten.
///
/// # Errors
/// `Refused` with the way out.
pub fn check_free(
    session: &mut Session,
    database: &str,
    wanted: &Wanted,
    rename: Option<&str>,
    clean: bool,
) -> Result<()> {
    if clean {
        return Ok(());
    }
    let refused = |what: String, hint: &str| Err(Error::new(Kind::Refused, what).hint(hint));
    match wanted {
        Wanted::Whole => {
            let count = session.first(
                "select count(*) from pg_class c join pg_namespace n on n.oid = relnamespace where nspname !~ '^pg_' \
                 and nspname <> 'information_schema' and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass \
                 and d.objid = c.oid and d.deptype = 'e')",
            )?;
            match count.as_deref() {
                Some("0") => Ok(()),
                count => refused(
                    format!(
                        "database \"{database}\" is not empty: it has {} tables, indexes and the like",
                        count.unwrap_or("some")
                    ),
                    "restore into a new one with --create, or drop what the dump brings first with --clean",
                ),
            }
        }
        Wanted::Tenant(schema) => {
            let name = rename.unwrap_or(schema);
            match session.first(&format!("select 1 from pg_namespace where nspname = {}", literal(name)))? {
                None => Ok(()),
                Some(_) => refused(
                    format!("database \"{database}\" has a schema \"{name}\""),
                    "choose another name with --rename, or drop it first with --clean",
                ),
            }
        }
        Wanted::Tables(tables) => {
            for (schema, table) in tables {
                let full = format!("{}.{}", identifier(schema), identifier(table));
                if session
                    .first(&format!("select 1 where to_regclass({}) is not null", literal(&full)))?
                    .is_some()
                {
                    return refused(
                        format!("database \"{database}\" has a table {schema}.{table}"),
                        "drop it first with --clean",
                    );
                }
            }
            Ok(())
        }
    }
}

/// Fails where the database has a schema under the name of an erased one of the dump: it is another, and would be dropped with that.
///
/// # Errors
/// `Refused`.
pub fn check_anew(session: &mut Session, database: &str, erased: &[Erased<'_>]) -> Result<()> {
    for Erased { schema, .. } in erased {
        let there = session.first(&format!(
            "select 1 from pg_namespace where nspname = {}",
            literal(schema)
        ))?;
        if there.is_some() {
            let message = format!(
                "database \"{database}\" has a schema \"{schema}\", and the one of that name in the dump has been erased since"
            );
            return Err(Error::new(Kind::Refused, message)
                .hint("restore into a new database with --create, or tenant by tenant"));
        }
    }
    Ok(())
}

/// Roles that own something of the selection and that the server lacks.
///
/// # Errors
/// What the server says.
pub fn missing_roles(session: &mut Session, archive: &Archive, chosen: &BTreeSet<i64>) -> Result<Vec<String>> {
    let owners: BTreeSet<&String> = archive
        .entries
        .iter()
        .filter(|entry| chosen.contains(&entry.id))
        .filter_map(|entry| entry.owner.as_ref())
        .collect();
    let rows = session.query("select rolname from pg_roles")?;
    let roles: BTreeSet<String> = rows.into_iter().flatten().flatten().collect();
    Ok(owners
        .into_iter()
        .filter(|owner| !roles.contains(*owner))
        .cloned()
        .collect())
}

/// Functions of a schema whose text or settings mention its old name: that is text, and does not change with the name.
///
/// # Errors
/// What the server says.
pub fn mentions(session: &mut Session, schema: &str, old: &str) -> Result<Vec<String>> {
    let rows = session.query(&format!(
        "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = pronamespace where nspname = {} \
         and (position({} in coalesce(prosrc, '')) > 0 or position({old} in coalesce(array_to_string(proconfig, ' '), '')) > 0) order by 1",
        literal(schema),
        literal(&format!("{old}.")),
        old = literal(old)
    ))?;
    Ok(rows.into_iter().flatten().flatten().collect())
}
