//! Which databases, schemas and tables a run takes, and what pg_dump is told.

use std::time::Duration;

use common::erasure::Found;
use common::error::{Error, Kind, Result};
use common::postgres::sql::identifier;
use common::repository::dumps::{Parts, Scope};

use crate::args::Args;

/// One dump of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// How much of its databases.
    pub scope: Scope,
    /// Its databases.
    pub databases: Vec<String>,
    /// The schema that it is limited to.
    pub schema: Option<String>,
    /// The tables that it is limited to: schema and name.
    pub tables: Vec<(String, String)>,
    /// Whether roles and tablespaces go with it.
    pub globals: bool,
}

/// Refuses what contradicts itself.
///
/// # Errors
/// `Config`.
pub fn check(args: &Args) -> Result<()> {
    let limited = if args.tenants.is_empty() { "--table" } else { "--tenant" };
    if !(args.tenants.is_empty() && args.tables.is_empty()) && args.databases.len() != 1 {
        return Err(Error::new(
            Kind::Config,
            format!("{limited} needs one --database, which it is in"),
        ));
    }
    args.tables.iter().try_for_each(|table| table_name(table).map(drop))
}

/// The dumps of a run; `all` are the databases that the server has and the configuration wants.
///
/// # Errors
/// `Config` if a database that was asked for is not there, or none is left.
pub fn units(args: &Args, all: &[String]) -> Result<Vec<Unit>> {
    let unit = |scope, databases: Vec<String>| Unit {
        scope,
        databases,
        schema: None,
        tables: Vec::new(),
        globals: false,
    };
    if args.globals {
        return Ok(vec![Unit {
            globals: true,
            ..unit(Scope::Globals, Vec::new())
        }]);
    }
    let databases = if args.databases.is_empty() {
        all.to_vec()
    } else {
        args.databases.clone()
    };
    if databases.is_empty() {
        return Err(Error::new(Kind::Config, "there is no database to dump")
            .hint("the configuration's dump table leaves none: see databases and exclude"));
    }
    if !args.tenants.is_empty() {
        let of_tenant = |schema: &String| Unit {
            schema: Some(schema.clone()),
            ..unit(Scope::Tenant, databases.clone())
        };
        return Ok(args.tenants.iter().map(of_tenant).collect());
    }
    if !args.tables.is_empty() {
        let tables = args
            .tables
            .iter()
            .map(|table| table_name(table))
            .collect::<Result<_>>()?;
        return Ok(vec![Unit {
            tables,
            ..unit(Scope::Tables, databases)
        }]);
    }
    Ok(vec![Unit {
        // A single database or definitions alone are not the cluster.
        globals: args.databases.is_empty() && !args.data_only,
        ..unit(Scope::Databases, databases)
    }])
}

/// Refuses a dump of a tenant that was erased and that the server still has.
///
/// # Errors
/// `Refused`.
pub fn refuse_erased(unit: &Unit, found: &Found) -> Result<()> {
    let Found {
        database,
        schema,
        erasure,
    } = found;
    let asked = format!(
        "tenant {schema} of database {database} was erased, asked for by {} at {}",
        erasure.user,
        erasure.time.whole_seconds()
    );
    let is_asked = unit.schema.as_ref() == Some(schema) || unit.tables.iter().any(|(of, _)| of == schema);
    if is_asked {
        return Err(Error::new(Kind::Refused, asked).hint(format!(
            "what was erased gets no dumps; the server has it still: pgkeep-dump-restore --apply-erasures --into {database}"
        )));
    }
    if unit.schema.is_none() && unit.tables.is_empty() {
        log::warn!("{asked}, and comes into the dump: the server has it still");
    }
    Ok(())
}

/// The databases that a run takes where none is named: those of the configuration, or all that the server lists.
///
/// # Errors
/// `Config` if the configuration names one that is not there.
pub fn wanted(there: &[String], named: Option<&[String]>, exclude: &[String]) -> Result<Vec<String>> {
    if let Some(missing) = named.into_iter().flatten().find(|name| !there.contains(name)) {
        return Err(
            Error::new(Kind::Config, format!("the server has no database \"{missing}\"")).hint(format!(
                "the dump table of the configuration names it; there are: {}",
                there.join(", ")
            )),
        );
    }
    let all = named.unwrap_or(there);
    Ok(all.iter().filter(|name| !exclude.contains(name)).cloned().collect())
}

/// What of a database is taken.
pub fn parts(args: &Args) -> Parts {
    match (args.schema_only, args.data_only) {
        (true, _) => Parts::Schema,
        (_, true) => Parts::Data,
        _ => Parts::All,
    }
}

/// `SCHEMA.TABLE`, or `TABLE` in public.
fn table_name(text: &str) -> Result<(String, String)> {
    let (schema, table) = text.split_once('.').unwrap_or(("public", text));
    if schema.is_empty() || table.is_empty() {
        return Err(Error::new(
            Kind::Config,
            format!("\"{text}\" is no table: SCHEMA.TABLE is wanted"),
        ));
    }
    Ok((schema.to_owned(), table.to_owned()))
}

/// What pg_dump is told; which database, the environment says.
pub fn arguments(unit: &Unit, parts: Parts, lock_wait: Duration, snapshot: Option<&str>) -> Vec<String> {
    let mut arguments: Vec<String> = ["--format=custom", "--compress=0", "--no-password", "--encoding=UTF8"]
        .map(str::to_owned)
        .to_vec();
    arguments.push(format!("--lock-wait-timeout={}", lock_wait.as_millis()));
    match parts {
        Parts::All => {}
        Parts::Schema => arguments.push("--schema-only".to_owned()),
        Parts::Data => arguments.push("--data-only".to_owned()),
    }
    if let Some(snapshot) = snapshot {
        arguments.push(format!("--snapshot={snapshot}"));
    }
    if unit.schema.is_some() || !unit.tables.is_empty() {
        arguments.push("--strict-names".to_owned());
    }
    arguments.extend(
        unit.schema
            .iter()
            .map(|schema| format!("--schema={}", identifier(schema))),
    );
    let table = |(schema, table): &(String, String)| format!("--table={}.{}", identifier(schema), identifier(table));
    arguments.extend(unit.tables.iter().map(table));
    arguments
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;
    use clap::Parser;

    fn args(line: &str) -> Args {
        Args::parse_from(std::iter::once("pgkeep-dump").chain(line.split_whitespace()))
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn without_words_it_is_everything_and_a_named_database_comes_without_globals() {
        let all = names(&["app", "shop"]);
        let [unit] = &units(&args(""), &all).unwrap()[..] else {
            panic!()
        };
        assert_eq!(
            (unit.scope, unit.globals, unit.databases.len()),
            (Scope::Databases, true, 2)
        );
        let [unit] = &units(&args("--database shop"), &all).unwrap()[..] else {
            panic!()
        };
        assert_eq!(
            (unit.globals, unit.databases.as_slice()),
            (false, &names(&["shop"])[..])
        );
        assert!(units(&args("--globals"), &[]).unwrap()[0].databases.is_empty());
        assert_eq!(units(&args(""), &[]).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn each_tenant_is_a_dump_of_its_own_and_tables_share_one() {
        let tenants = units(&args("--database d --tenant a --tenant b"), &[]).unwrap();
        assert_eq!(
            tenants
                .iter()
                .map(|unit| unit.schema.clone().unwrap())
                .collect::<Vec<_>>(),
            ["a", "b"]
        );
        let tables = units(&args("--database d --table x.y --table z"), &[]).unwrap();
        assert_eq!(
            tables[0].tables,
            [("x".into(), "y".into()), ("public".into(), "z".into())]
        );
        for wrong in [
            "--tenant a",
            "--table t",
            "--database a --database b --tenant c",
            "--database a --table .x",
        ] {
            assert_eq!(check(&args(wrong)).unwrap_err().kind(), Kind::Config, "{wrong}");
        }
    }

    #[test]
    fn what_the_configuration_names_must_be_there() {
        let there = names(&["app", "postgres", "shop"]);
        assert_eq!(
            wanted(&there, None, &names(&["shop"])).unwrap(),
            names(&["app", "postgres"])
        );
        assert_eq!(wanted(&there, Some(&names(&["shop"])), &[]).unwrap(), names(&["shop"]));
        assert!(
            wanted(&there, Some(&names(&["gone"])), &[])
                .unwrap_err()
                .to_string()
                .contains("gone")
        );
    }

    #[test]
    fn names_are_taken_as_they_are() {
        let unit = &units(&args("--database d --tenant we\"ird*"), &[]).unwrap()[0];
        let told = arguments(unit, Parts::Schema, Duration::from_secs(60), Some("0003-1"));
        for wanted in [
            "--schema=\"we\"\"ird*\"",
            "--schema-only",
            "--snapshot=0003-1",
            "--lock-wait-timeout=60000",
            "--strict-names",
        ] {
            assert!(told.iter().any(|one| one == wanted), "{wanted} {told:?}");
        }
    }
}
