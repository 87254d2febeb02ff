//! What a test asks a running server.

use std::time::Duration;

use postgres::{Client, NoTls, SimpleQueryMessage};

use super::Cluster;
use crate::wait::{PATIENCE, wait_until};

impl Cluster {
    /// A session of its own, as the superuser.
    pub fn client(&self, database: &str) -> Client {
        self.try_client(database)
            .unwrap_or_else(|error| panic!("connect: {error}\n{}", self.log_end()))
    }

    pub(super) fn try_client(&self, database: &str) -> Result<Client, postgres::Error> {
        let mut config = postgres::Config::new();
        config
            .host_path(self.socket_dir())
            .port(self.port)
            .user("postgres")
            .dbname(database);
        config
            .application_name("test")
            .connect_timeout(Duration::from_secs(10))
            .connect(NoTls)
    }

    /// Runs statements in the database postgres.
    pub fn sql(&self, statements: &str) {
        self.sql_in("postgres", statements);
    }

    /// Runs statements in a database.
    pub fn sql_in(&self, database: &str, statements: &str) {
        let result = self.client(database).batch_execute(statements);
        result.unwrap_or_else(|error| panic!("{statements}: {}", explain(&error)));
    }

    /// The rows of a query in the database postgres, as text.
    pub fn query(&self, query: &str) -> Vec<Vec<Option<String>>> {
        self.query_in("postgres", query)
    }

    /// The rows of a query, as text.
    pub fn query_in(&self, database: &str, query: &str) -> Vec<Vec<Option<String>>> {
        rows(&mut self.client(database), query)
    }

    /// The first column of the only row, in the database postgres; NULL is the empty string.
    pub fn query_one(&self, query: &str) -> String {
        let mut rows = self.query(query);
        assert_eq!(rows.len(), 1, "{query}: not one row");
        let mut row = rows.remove(0);
        row.swap_remove(0).unwrap_or_default()
    }

    /// How another server, or one of PostgreSQL's programs, reaches this one.
    pub fn conninfo(&self) -> String {
        let directory = self.socket_dir();
        format!("host={} port={} user=postgres", directory.display(), self.port())
    }

    /// Where WAL ends, or on a standby how far it is replayed: `0/3000060`.
    pub fn current_lsn(&self) -> String {
        self.query_one(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END",
        )
    }

    /// The cluster's identity, as in its WAL.
    pub fn system_identifier(&self) -> String {
        self.query_one("SELECT system_identifier FROM pg_control_system()")
    }

    /// Finishes the current WAL segment and returns its name. Never does nothing: a record is written first.
    pub fn switch_wal(&self) -> String {
        self.query_one("SELECT pg_logical_emit_message(false, 'test', 'switch')");
        self.query_one("SELECT pg_walfile_name(pg_switch_wal())")
    }

    /// Waits until archive_command has succeeded for a file of pg_wal.
    pub fn wait_archived(&self, name: &str) {
        let status = self.data.join("pg_wal/archive_status");
        let (ready, done) = (
            status.join(format!("{name}.ready")),
            status.join(format!("{name}.done")),
        );
        let what = format!("{name} is archived (see {})", self.log.display());
        // Both marks are gone once the segment has been recycled.
        let recycled = || !ready.exists() && !self.data.join("pg_wal").join(name).exists();
        wait_until(&what, PATIENCE * 2, || done.exists() || recycled());
    }

    /// Writes a checkpoint.
    pub fn checkpoint(&self) {
        self.sql("CHECKPOINT");
    }

    /// Whether the server replays WAL.
    pub fn in_recovery(&self) -> bool {
        self.query_one("SELECT pg_is_in_recovery()") == "t"
    }

    /// Ends recovery and waits until the server takes writes.
    pub fn promote(&self) {
        assert_eq!(
            self.query_one("SELECT pg_promote(true, 60)"),
            "t",
            "promotion failed\n{}",
            self.log_end()
        );
    }

    /// Waits until recovery has ended by itself.
    pub fn wait_promoted(&self, timeout: Duration) {
        wait_until("recovery has ended", timeout, || !self.in_recovery());
    }
}

/// The rows of a query in a session, as text.
pub fn rows(client: &mut Client, query: &str) -> Vec<Vec<Option<String>>> {
    let messages = client
        .simple_query(query)
        .unwrap_or_else(|error| panic!("{query}: {}", explain(&error)));
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|column| row.get(column).map(String::from)).collect()),
        _ => None,
    });
    rows.collect()
}

/// The server's own words; the error alone only says "db error".
fn explain(error: &postgres::Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), ToString::to_string)
}
