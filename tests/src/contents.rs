//! What a database holds, as one comparable value: before a backup and after a restore it must be equal.

use std::collections::BTreeMap;

use postgres::Client;

use crate::Cluster;
use crate::cluster::session::rows;

/// Rows and digest of every table, sequence and large object of one database.
///
/// Digests do not depend on the order of rows, so nothing is sorted and a large table costs little memory. Unlogged
/// tables are left out: they come back empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents(pub BTreeMap<String, String>);

/// Settings that decide how a value looks as text.
const SETTINGS: &str =
    "SET extra_float_digits = 1; SET datestyle = 'ISO'; SET timezone = 'UTC'; SET bytea_output = 'hex';
    SET intervalstyle = 'iso_8601'; SET search_path = ''; SET statement_timeout = 0";

const TABLES: &str = "SELECT c.oid::pg_catalog.regclass::text, c.relkind
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence = 'p'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'";

/// The sum of both halves of each row's MD5, over any number of rows.
fn digest_of(table: &str) -> String {
    format!(
        "SELECT count(*) || ' rows ' || coalesce(sum(('x' || substr(h, 1, 16))::bit(64)::bigint::numeric), 0)
            || ' ' || coalesce(sum(('x' || substr(h, 17, 16))::bit(64)::bigint::numeric), 0)
         FROM (SELECT md5(t::text) AS h FROM {table} AS t) AS hashed"
    )
}

impl Contents {
    /// All but the sequences: WAL tells their values up to 32 ahead (`SEQ_LOG_VALS`, `src/backend/commands/sequence.c`), so servers that count
    /// and servers that replay show other ones.
    #[must_use]
    pub fn without_sequences(mut self) -> Contents {
        self.0
            .retain(|_, value| !value.ends_with(" true") && !value.ends_with(" false"));
        self
    }
}

impl Cluster {
    /// Reads all of a database. One snapshot, so it may be taken while others write.
    pub fn checksum(&self, database: &str) -> Contents {
        let mut client = self.client(database);
        client.batch_execute(SETTINGS).unwrap();
        client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .unwrap();
        let mut contents = BTreeMap::new();
        for row in rows(&mut client, TABLES) {
            let [Some(table), Some(kind)] = row.as_slice() else {
                panic!("pg_class without a name: {row:?}")
            };
            let query = match kind.as_str() {
                "S" => format!("SELECT last_value || ' ' || is_called FROM {table}"),
                _ => digest_of(table),
            };
            contents.insert(table.clone(), first(&mut client, &query));
        }
        contents.insert(
            "large objects".into(),
            first(&mut client, &digest_of("pg_catalog.pg_largeobject")),
        );
        Contents(contents)
    }
}

fn first(client: &mut Client, query: &str) -> String {
    rows(client, query)
        .into_iter()
        .flatten()
        .flatten()
        .next()
        .unwrap_or_default()
}
