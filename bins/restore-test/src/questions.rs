//! What is asked of a restored cluster: every row, every index, and what the configuration wants to know.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use common::config::Assertion;
use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::postgres::{Major, Session};
use common::repository::evidence::Level;
use serde::{Deserialize, Serialize};

use common::scratch::ScratchServer;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Which check found it: `restore`, `replay`, `read`, `amcheck`, `visibility`, `checksums`, `assertion`, `rows`, `freshness`,
    /// `objective`.
    pub check: String,
    /// Where: a database and a relation, an assertion's name.
    pub what: String,
    /// What is wrong.
    pub found: String,
}

/// The rows of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableRows {
    /// Its database.
    pub database: String,
    /// Its schema and name, quoted where SQL needs it.
    pub table: String,
    /// How many rows were read.
    pub rows: u64,
}

/// The answer to an assertion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The assertion.
    pub name: String,
    /// What came; nothing: no row, or null.
    pub value: Option<String>,
}

/// All that was found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Every table that was read.
    pub tables: Vec<TableRows>,
    /// Relations that amcheck looked at.
    pub checked: u64,
    /// What the reader should know.
    pub notes: Vec<String>,
    /// Whether the server broke down: then nothing more was looked at.
    pub broken: bool,
}

/// One thing to look at, in one database.
enum Item {
    Rows {
        table: String,
        sql: String,
    },
    Check {
        check: &'static str,
        relation: String,
        sql: String,
    },
}

/// Looks at everything that the level asks for.
///
/// # Errors
/// `Transient` if there is no session to be had; what is wrong with the data is no error, and neither is a server that it breaks.
pub fn look(server: &ScratchServer, level: Level, databases: &[String], jobs: usize) -> Result<Found> {
    let mut found = Found::default();
    if level == Level::Quick {
        return Ok(found);
    }
    for database in databases {
        let mut session = prepared(server, database)?;
        let items = match items(&mut session, level) {
            Ok(items) => items,
            Err(error) => {
                found.problems.push(problem("read", database, &error));
                found.broken = is_gone(&mut session);
                if found.broken {
                    break;
                }
                continue;
            }
        };
        drop(session);
        look_at(server, database, &items, jobs, &mut found)?;
        if found.broken {
            break;
        }
    }
    found.problems.sort();
    found.tables.sort();
    Ok(found)
}

/// The databases to look at: those asked for, else all that allow connections.
///
/// # Errors
/// As [`Session::query`].
pub fn databases(session: &mut Session, asked: Option<&[String]>) -> Result<Vec<String>> {
    if let Some(asked) = asked {
        return Ok(asked.to_vec());
    }
    let rows = session.query("select datname from pg_catalog.pg_database where datallowconn order by oid")?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

fn look_at(server: &ScratchServer, database: &str, items: &[Item], jobs: usize, found: &mut Found) -> Result<()> {
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new((std::mem::take(found), None::<Error>));
    let lock = || outcome.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || -> Result<()> {
        let mut session = prepared(server, database)?;
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            interrupt::check()?;
            if lock().0.broken {
                break;
            }
            match one(&mut session, database, item) {
                Ok(Seen::Rows(rows)) => lock().0.tables.push(rows),
                Ok(Seen::Checked(problems)) => {
                    let mut held = lock();
                    held.0.checked += 1;
                    held.0.problems.extend(problems);
                }
                Err(error) => {
                    let (check, what) = match item {
                        Item::Rows { table, .. } => ("read", table),
                        Item::Check { check, relation, .. } => (*check, relation),
                    };
                    // Damage can break the server. Where several look at a time, each names what it was at.
                    let gone = is_gone(&mut session);
                    let error = if gone {
                        error.context("the server broke down meanwhile")
                    } else {
                        error
                    };
                    let mut held = lock();
                    held.0.broken |= gone;
                    held.0
                        .problems
                        .push(problem(check, &format!("{database}: {what}"), &error));
                }
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(items.len()).max(1) {
            scope.spawn(|| {
                if let Err(error) = work() {
                    lock().1.get_or_insert(error);
                }
            });
        }
    });
    let (seen, failed) = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    *found = seen;
    // Whoever comes after the breakdown gets no session.
    failed.filter(|_| !found.broken).map_or(Ok(()), Err)
}

enum Seen {
    Rows(TableRows),
    Checked(Vec<Problem>),
}

fn one(session: &mut Session, database: &str, item: &Item) -> Result<Seen> {
    match item {
        Item::Rows { table, sql } => session.execute(sql).map(|rows| {
            Seen::Rows(TableRows {
                database: database.to_owned(),
                table: table.clone(),
                rows,
            })
        }),
        Item::Check { check, relation, sql } => {
            let rows = session.query(sql)?;
            let said = rows.into_iter().filter_map(|row| {
                let words: Vec<String> = row.into_iter().flatten().filter(|word| !word.is_empty()).collect();
                (!words.is_empty()).then(|| words.join(", "))
            });
            let problem = |found| Problem {
                check: (*check).to_owned(),
                what: format!("{database}: {relation}"),
                found,
            };
            Ok(Seen::Checked(said.map(problem).collect()))
        }
    }
}

/// A session in which nothing that was restored decides what runs: no search_path, no triggers of events, no role of its own.
fn prepared(server: &ScratchServer, database: &str) -> Result<Session> {
    let mut session = server.connect(database)?;
    for statement in [
        "set role none",
        "set session_replication_role = replica",
        "set default_transaction_read_only = off",
        "set search_path = pg_catalog",
        "set row_security = on",
        "set lc_messages = 'C'",
    ] {
        session.query(statement)?;
    }
    Ok(session)
}

/// Whether the server is gone, for whatever reason: then an error says nothing about the data.
fn is_gone(session: &mut Session) -> bool {
    session.check().is_err()
}

fn problem(check: &str, what: &str, error: &Error) -> Problem {
    Problem {
        check: check.to_owned(),
        what: what.to_owned(),
        found: chain(error),
    }
}

const TABLES: &str = "select pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) \
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    where c.relkind in ('r', 'm') and c.relpersistence <> 't' and c.relispopulated \
    and (n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_toast' \
         or c.oid = 'pg_catalog.pg_largeobject'::pg_catalog.regclass) \
    order by c.relpages desc, c.oid";

/// Heaps with everything that amcheck and pg_visibility know to look at.
const HEAPS: &str = "select c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) \
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    join pg_catalog.pg_am a on a.oid = c.relam and a.amname = 'heap' \
    where c.relkind in ('r', 'm', 't') and c.relpersistence = 'p' order by c.relpages desc, c.oid";

const INDEXES: &str = "select c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), a.amname \
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    join pg_catalog.pg_am a on a.oid = c.relam join pg_catalog.pg_index i on i.indexrelid = c.oid \
    where c.relkind = 'i' and a.amname in ('btree', 'gin') and c.relpersistence = 'p' and i.indisvalid and i.indisready and i.indislive \
    order by c.relpages desc, c.oid";

fn items(session: &mut Session, level: Level) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for table in session.query(TABLES)?.into_iter().flatten().flatten() {
        // Every row with all that is stored out of line, put into text and thrown away by the server.
        let sql = format!("copy (select * from only {table}) to '/dev/null'");
        items.push(Item::Rows { table, sql });
    }
    let amcheck = extension(session, "amcheck")?;
    let major = session.server_version();
    let deep = level == Level::Deep;
    for row in session.query(INDEXES)? {
        let [Some(oid), Some(relation), Some(method)] = row.as_slice() else {
            continue;
        };
        let sql = match (method.as_str(), deep) {
            ("btree", false) => format!("select {amcheck}.bt_index_check({oid}, false)"),
            ("btree", true) => format!("select {amcheck}.bt_index_parent_check({oid}, true, true)"),
            ("gin", true) if major >= Major::V18 => format!("select {amcheck}.gin_index_check({oid})"),
            _ => continue,
        };
        items.push(Item::Check {
            check: "amcheck",
            relation: relation.clone(),
            sql,
        });
    }
    let visibility = if deep {
        Some(extension(session, "pg_visibility")?)
    } else {
        None
    };
    for row in session.query(HEAPS)? {
        let [Some(oid), Some(relation)] = row.as_slice() else {
            continue;
        };
        let item = |check, sql| Item::Check {
            check,
            relation: relation.clone(),
            sql,
        };
        if major >= Major::V14 {
            let place =
                "'block ' || blkno || coalesce(' offset ' || offnum, '') || coalesce(' attribute ' || attnum, '')";
            items.push(item(
                "amcheck",
                format!("select {place}, msg from {amcheck}.verify_heapam({oid}, check_toast => true) limit 20"),
            ));
        }
        if let Some(schema) = &visibility {
            for (function, words) in [
                ("pg_check_visible", "not all-visible"),
                ("pg_check_frozen", "not all-frozen"),
            ] {
                let sql = format!(
                    "select count(*) || ' rows are {words} though the visibility map says so, the first at ' || (array_agg(t_ctid))[1] \
                     from {schema}.{function}({oid}) having count(*) > 0"
                );
                items.push(item("visibility", sql));
            }
        }
    }
    Ok(items)
}

/// The schema of an extension, which is created if it is not there.
fn extension(session: &mut Session, name: &str) -> Result<String> {
    let create = session.query(&format!("create extension if not exists {name} schema pg_catalog"));
    let create = create.or_else(|_| session.query(&format!("create extension if not exists {name} schema public")));
    create.map_err(|error| {
        error
            .context(format!("cannot check without the extension {name}"))
            .hint("install the package with PostgreSQL's additional modules (postgresql-contrib), or use --level quick")
    })?;
    session.query(&format!("alter extension {name} update"))?;
    let schema = session.first(&format!(
        "select pg_catalog.quote_ident(n.nspname) from pg_catalog.pg_extension e \
         join pg_catalog.pg_namespace n on n.oid = e.extnamespace where e.extname = '{name}'"
    ))?;
    schema.ok_or_else(|| Error::new(Kind::Failed, format!("the extension {name} is not there")))
}

/// Asks what the configuration wants to know.
///
/// # Errors
/// `Failed` if the server is gone; a question that cannot be answered is a problem.
pub fn ask(server: &ScratchServer, assertion: &Assertion) -> Result<Result<Answer, Problem>> {
    let asked = (|| {
        let mut session = server.connect(&assertion.database)?;
        session.query("set default_transaction_read_only = on")?;
        session.first(&assertion.sql)
    })();
    match asked {
        Ok(value) => Ok(Ok(Answer {
            name: assertion.name.clone(),
            value,
        })),
        Err(error) => {
            // Where the database is missing the server still answers.
            server.connect("template1").map_err(|_| error.copy())?;
            Ok(Err(problem("assertion", &assertion.name, &error)))
        }
    }
}

/// Versions of collations that are not what indexes were built with: amcheck's findings may come from that, not from the backup.
///
/// # Errors
/// As [`Session::query`].
pub fn collations(session: &mut Session) -> Result<Vec<String>> {
    let mut statements = vec![
        "select 'collation ' || collname || ': ' || collversion || ' then, ' || pg_catalog.pg_collation_actual_version(oid) || ' here' \
         from pg_catalog.pg_collation where collversion <> pg_catalog.pg_collation_actual_version(oid)",
    ];
    if session.server_version() >= Major::V15 {
        statements.push(
            "select 'database ' || datname || ': ' || datcollversion || ' then, ' || \
             pg_catalog.pg_database_collation_actual_version(oid) || ' here' from pg_catalog.pg_database \
             where datcollversion <> pg_catalog.pg_database_collation_actual_version(oid)",
        );
    }
    let mut found = Vec::new();
    for statement in statements {
        found.extend(session.query(statement)?.into_iter().flatten().flatten());
    }
    Ok(found)
}
