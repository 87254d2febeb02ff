//! Whether the server has room for the locks of a dump.
//!
//! pg_dump locks every table in one transaction. The lock table is shared by all sessions and holds
//! `max_locks_per_transaction * (max_connections + max_prepared_transactions)` locks and a little more
//! (`src/backend/storage/lmgr/lock.c`, `NLOCKENTS`); beyond it every session fails with "out of shared memory".

use common::error::{Error, Kind, Result};

/// What the lock table of a server is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// `max_locks_per_transaction`.
    pub per_transaction: u64,
    /// `max_connections + max_prepared_transactions`.
    pub transactions: u64,
}

/// One tenth stays for the others.
const SHARE: (u64, u64) = (9, 10);

/// Refuses a dump of so many tables where the server has no room for their locks.
///
/// # Errors
/// `Config` with the setting to change.
pub fn check(database: &str, tables: u64, room: Room) -> Result<()> {
    let all = room.per_transaction.saturating_mul(room.transactions);
    let ours = all / SHARE.1 * SHARE.0;
    if tables <= ours {
        return Ok(());
    }
    let enough = (tables * SHARE.1 / SHARE.0).div_ceil(room.transactions.max(1)) + 1;
    let message = format!(
        "pg_dump would lock {tables} tables of database \"{database}\", and the server has room for {all} locks of all sessions \
         (max_locks_per_transaction = {})",
        room.per_transaction
    );
    Err(Error::new(Kind::Config, message).hint(format!(
        "set max_locks_per_transaction to {} or more and restart the server; or dump tenants one by one with --tenant",
        enough.next_multiple_of(64)
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ten_thousand_tables_need_more_than_the_default() {
        let default = Room {
            per_transaction: 64,
            transactions: 100,
        };
        check("d", 5760, default).unwrap();
        let error = check("d", 10_000, default).unwrap_err();
        assert!(error.to_string().contains("room for 6400 locks"), "{error}");
        assert!(
            error
                .nearest_hint()
                .unwrap()
                .contains("max_locks_per_transaction to 128"),
            "{error:?}"
        );
        check(
            "d",
            10_000,
            Room {
                per_transaction: 128,
                ..default
            },
        )
        .unwrap();
    }
}
