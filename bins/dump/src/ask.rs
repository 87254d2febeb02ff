//! What the server is asked before a dump.

use common::error::{Error, Kind, Result};
use common::postgres::Session;
use common::postgres::sql::{identifier, literal};

use crate::locks::Room;

/// Databases that allow connections, by name, without templates.
///
/// # Errors
/// What the server says.
pub fn databases(session: &mut Session) -> Result<Vec<String>> {
    let rows =
        session.query("select datname from pg_database where datallowconn and not datistemplate order by datname")?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

/// The size of the database of this session in bytes.
///
/// # Errors
/// What the server says.
pub fn size(session: &mut Session) -> Result<u64> {
    number(session, "select pg_database_size(current_database())")
}

/// The tables that pg_dump will lock.
///
/// # Errors
/// What the server says.
pub fn tables(session: &mut Session) -> Result<u64> {
    number(
        session,
        "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where relkind in ('r', 'p') \
         and nspname <> 'information_schema' and nspname !~ '^pg_'",
    )
}

/// The server's room for locks.
///
/// # Errors
/// What the server says.
pub fn room(session: &mut Session) -> Result<Room> {
    let mut setting = |name: &str| number(session, &format!("select current_setting('{name}')"));
    Ok(Room {
        per_transaction: setting("max_locks_per_transaction")?,
        transactions: setting("max_connections")? + setting("max_prepared_transactions")?,
    })
}

/// Opens a transaction whose snapshot others may use as long as the session lives.
///
/// # Errors
/// What the server says.
pub fn snapshot(session: &mut Session) -> Result<String> {
    session.execute("begin transaction isolation level repeatable read, read only")?;
    session.value("select pg_export_snapshot()")
}

/// Fails where the database has no such schema.
///
/// # Errors
/// `Config`.
pub fn require_schema(session: &mut Session, database: &str, schema: &str) -> Result<()> {
    let sql = format!("select 1 from pg_namespace where nspname = {}", literal(schema));
    match session.first(&sql)? {
        Some(_) => Ok(()),
        None => Err(Error::new(
            Kind::Config,
            format!("database \"{database}\" has no schema \"{schema}\""),
        )
        .hint("names are taken as they are: see \\dn in psql")),
    }
}

/// Extensions that objects of a schema need: of columns, defaults, indexes, functions and types.
///
/// # Errors
/// What the server says.
pub fn extensions(session: &mut Session, schema: &str) -> Result<Vec<String>> {
    let sql = format!(
        "select distinct e.extname from pg_depend m \
         join pg_extension e on m.refclassid = 'pg_extension'::regclass and m.refobjid = e.oid and m.deptype = 'e' \
         join pg_depend d on d.refclassid = m.classid and d.refobjid = m.objid and d.deptype <> 'e' \
         left join pg_attrdef a on d.classid = 'pg_attrdef'::regclass and a.oid = d.objid \
         left join pg_class c on c.oid = case when d.classid = 'pg_class'::regclass then d.objid else a.adrelid end \
         left join pg_proc p on d.classid = 'pg_proc'::regclass and p.oid = d.objid \
         left join pg_type t on d.classid = 'pg_type'::regclass and t.oid = d.objid \
         where coalesce(c.relnamespace, p.pronamespace, t.typnamespace) = {}::regnamespace and e.extname <> 'plpgsql' order by 1",
        literal(&identifier(schema))
    );
    Ok(session.query(&sql)?.into_iter().flatten().flatten().collect())
}

/// Whether the role may read the passwords of roles.
///
/// # Errors
/// What the server says.
pub fn sees_passwords(session: &mut Session) -> Result<bool> {
    Ok(session.value("select has_table_privilege('pg_catalog.pg_authid', 'select')")? == "t")
}

fn number(session: &mut Session, sql: &str) -> Result<u64> {
    let text = session.value(sql)?;
    session.number(&text)
}
