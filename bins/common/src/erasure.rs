//! Erased tenants and a server: which of them it still has, and the SQL that erases them again.
//!
//! A schema is known by its OID and that of its database: physical backups bring both back as they were
//! (`pg_namespace.oid`, `pg_database.oid`), and a schema created later under the name of an erased one has another.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::error::Result;
use crate::postgres::{Session, SystemId, sql};
use crate::repository::tombstones::{Erasure, Gone};
use crate::time::UtcTime;
use crate::units::counted;

/// An erased tenant that a server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The database, as it is called there.
    pub database: String,
    /// The schema, as it is called there.
    pub schema: String,
    /// What is known of the erasure.
    pub erasure: Erasure,
}

/// The erased tenants that a server has in those databases that `within` names; `session` asks it for the cluster, `connect` opens a
/// session in a database.
///
/// # Errors
/// What the server says.
pub fn still_there(
    session: &mut Session,
    connect: &dyn Fn(&str) -> Result<Session>,
    erasures: &[Erasure],
    within: &dyn Fn(&str) -> bool,
) -> Result<Vec<Found>> {
    if erasures.is_empty() {
        return Ok(Vec::new());
    }
    let own = of_system(session.system_id()?, erasures);
    if own.is_empty() {
        return Ok(Vec::new());
    }
    let rows = session.query("select oid, datname from pg_database where datallowconn order by datname")?;
    let mut found = Vec::new();
    for row in rows {
        let mut columns = row.into_iter();
        let (Some(Some(oid)), Some(Some(name))) = (columns.next(), columns.next()) else {
            continue;
        };
        let here = in_database(session.number(&oid)?, &name, &own);
        if !here.is_empty() && within(&name) {
            found.extend(in_session(&mut connect(&name)?, &name, &here)?);
        }
    }
    Ok(found)
}

/// Those of one system.
fn of_system(system: SystemId, erasures: &[Erasure]) -> Vec<&Erasure> {
    let system = system.to_string();
    erasures
        .iter()
        .filter(|erasure| erasure.system_identifier == system)
        .collect()
}

/// Those of one database: by its OID, or by its name where that is all that is known.
fn in_database<'a>(oid: u32, name: &str, erasures: &[&'a Erasure]) -> Vec<&'a Erasure> {
    let is_here = |erasure: &&&Erasure| match (erasure.database_oid, &erasure.tenant) {
        (Some(known), _) => known == oid,
        (None, Some(tenant)) => tenant.database == name,
        (None, None) => false,
    };
    erasures.iter().filter(is_here).copied().collect()
}

/// The schemas of the database of this session, by OID.
///
/// # Errors
/// What the server says.
pub fn schemas(session: &mut Session) -> Result<BTreeMap<u32, String>> {
    let mut schemas = BTreeMap::new();
    for row in session.query("select oid, nspname from pg_namespace")? {
        let mut columns = row.into_iter();
        if let (Some(Some(oid)), Some(Some(name))) = (columns.next(), columns.next()) {
            schemas.insert(session.number(&oid)?, name);
        }
    }
    Ok(schemas)
}

fn in_session(session: &mut Session, database: &str, erasures: &[&Erasure]) -> Result<Vec<Found>> {
    let schemas = schemas(session)?;
    let found = |erasure: &&Erasure| {
        let schema = schemas.get(&erasure.schema_oid)?;
        // Only a dump told of it: its OID may be that of something else by now.
        let same = erasure.tenant.as_ref().is_some_and(|tenant| tenant.schema == *schema);
        (erasure.database_oid.is_some() || same).then(|| Found {
            database: database.to_owned(),
            schema: schema.clone(),
            erasure: (*erasure).clone(),
        })
    };
    Ok(erasures.iter().filter_map(found).collect())
}

/// The moment, by the server: what is gone now was gone then. Nothing on a standby, which may be behind.
///
/// # Errors
/// What the server says.
pub fn now(session: &mut Session) -> Result<Option<Gone>> {
    if session.in_recovery()? {
        return Ok(None);
    }
    let timeline = session.current_timeline()?;
    let row = session
        .query("select pg_current_wal_insert_lsn(), (extract(epoch from clock_timestamp()) * 1000000)::bigint")?;
    let mut columns = row.into_iter().flatten().flatten();
    let (Some(lsn), Some(micros)) = (columns.next(), columns.next()) else {
        return Ok(None);
    };
    Ok(Some(Gone {
        timeline: timeline.0,
        lsn: lsn.parse()?,
        time: UtcTime::from_unix_micros(session.number(&micros)?)?,
    }))
}

/// Drops a schema by its OID, whatever it is called; does nothing where there is none.
pub fn statement(schema_oid: u32) -> String {
    format!(
        "do $pgkeep$ declare name text := (select nspname from pg_namespace where oid = {schema_oid}); begin \
         if name is not null then execute format('drop schema %I cascade', name); end if; end $pgkeep$"
    )
}

/// What psql runs on the restored server to erase these tenants again.
pub fn script(erasures: &[Erasure]) -> String {
    let mut text = format!(
        "-- {} erased since the restored moment. After promotion, as a superuser:\n\
         --   pgkeep-dump-restore --apply-erasures\n\
         -- or psql -X -d postgres -f this file. A schema is found by its OID: one created anew under an old name stays.\n\
         \\set ON_ERROR_STOP on\n",
        counted(erasures.len() as u64, "tenant")
    );
    for erasure in erasures {
        let database = match (erasure.database_oid, &erasure.tenant) {
            (Some(oid), _) => format!("oid = {oid}"),
            (None, Some(tenant)) => format!("datname = {}", sql::literal(&tenant.database)),
            (None, None) => {
                let _ = writeln!(text, "\n-- {}: which database it was in is sealed", one_line(erasure));
                continue;
            }
        };
        let _ = write!(
            text,
            "\n-- {}, erased {}\n\
             select count(*) > 0 as pgkeep_there, coalesce(min(datname::text), '') as pgkeep_database from pg_database where {database} \\gset\n\
             \\if :pgkeep_there\n\
             \\connect :\"pgkeep_database\"\n\
             {};\n\
             \\endif\n",
            one_line(erasure),
            erasure.time.whole_seconds(),
            statement(erasure.schema_oid)
        );
    }
    text
}

/// A comment of SQL ends with its line, and a name may hold one.
fn one_line(erasure: &Erasure) -> String {
    erasure.to_string().replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::tombstones::Tenant;

    fn erasure(database_oid: Option<u32>, schema: &str) -> Erasure {
        Erasure {
            time: UtcTime::parse_compact("20261120T020000Z").unwrap(),
            host: "a".to_owned(),
            user: "postgres".to_owned(),
            system_identifier: "7".to_owned(),
            database_oid,
            schema_oid: 16400,
            tenant: Some(Tenant {
                database: "shop".to_owned(),
                schema: schema.to_owned(),
                reason: "asked".to_owned(),
            }),
            gone: Vec::new(),
        }
    }

    #[test]
    fn a_database_is_known_by_its_oid_or_else_by_its_name() {
        let (by_oid, by_name) = (erasure(Some(5), "acme"), erasure(None, "acme"));
        let both = [&by_oid, &by_name];
        assert_eq!(in_database(5, "renamed", &both), [&by_oid]);
        assert_eq!(in_database(6, "shop", &both), [&by_name]);
        assert!(in_database(6, "other", &both).is_empty());
        let sealed = Erasure {
            tenant: None,
            ..by_name.clone()
        };
        assert!(in_database(6, "shop", &[&sealed]).is_empty());
    }

    #[test]
    fn only_tenants_of_this_system_count() {
        let all = [erasure(Some(5), "acme")];
        assert_eq!(of_system(SystemId(7), &all).len(), 1);
        assert!(of_system(SystemId(8), &all).is_empty());
    }

    #[test]
    fn a_name_cannot_break_out_of_the_script() {
        let odd = erasure(Some(5), "a\ndrop database shop;");
        let text = script(&[odd]);
        assert!(!text.contains("\ndrop database"), "{text}");
        assert!(
            text.contains("where oid = 5") && text.contains("where oid = 16400"),
            "{text}"
        );
        let by_name = erasure(None, "acme");
        assert!(script(&[by_name]).contains("where datname = E'shop'"));
    }
}
