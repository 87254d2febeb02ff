//! What pg_dump, pg_dumpall and pg_restore mean when they fail.

use std::process::ExitStatus;

use common::error::{Error, Kind};

/// Words of theirs, the kind they deserve, and what to do.
const WORDS: [(&str, Kind, &str); 12] = [
    (
        "permission denied",
        Kind::Config,
        "grant the role what it lacks (PostgreSQL 14 and later: GRANT pg_read_all_data TO it), or leave the table out",
    ),
    (
        "row-level security",
        Kind::Config,
        "the role needs BYPASSRLS, or the dump would lack rows",
    ),
    (
        "out of shared memory",
        Kind::Config,
        "set max_locks_per_transaction higher and restart the server",
    ),
    (
        "server version mismatch",
        Kind::Config,
        "install the client programs of the server's version",
    ),
    (
        "authentication failed",
        Kind::Config,
        "see pg_hba.conf, and the password file (passfile, ~/.pgpass with mode 0600)",
    ),
    (
        "no password supplied",
        Kind::Config,
        "add the role to the password file (passfile, ~/.pgpass with mode 0600)",
    ),
    ("does not exist", Kind::Config, "see what is there with psql"),
    (
        "no matching",
        Kind::Config,
        "see what is there with psql; names are taken as they are, in lower case too",
    ),
    (
        "due to statement timeout",
        Kind::Transient,
        "somebody holds a lock on a table: try again, or raise lock_wait in the dump table",
    ),
    (
        "the connection",
        Kind::Transient,
        "the connection was lost: see the server's log, then try again",
    ),
    (
        "terminating connection",
        Kind::Transient,
        "the server ended the connection: see its log, then try again",
    ),
    ("connection to server", Kind::Transient, "is the server running?"),
];

/// The error for a program that failed, with its last words.
pub fn of(program: &str, database: &str, status: ExitStatus, words: String) -> Error {
    let known = WORDS.iter().find(|(word, ..)| words.contains(word));
    let kind = known.map_or(Kind::Failed, |(_, kind, _)| *kind);
    let error = Error::new(kind, format!("{program} of database \"{database}\" failed ({status})"));
    let error = if words.is_empty() { error } else { error.because(words) };
    match known {
        Some((.., hint)) => error.hint(*hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn each_refusal_has_its_kind_and_its_way_out() {
        for (said, kind, hint) in [
            (
                "pg_dump: error: query failed: ERROR:  permission denied for table secret",
                Kind::Config,
                "pg_read_all_data",
            ),
            (
                "pg_dump: error: query failed: ERROR:  out of shared memory",
                Kind::Config,
                "max_locks",
            ),
            (
                "pg_dump: error: aborting because of server version mismatch",
                Kind::Config,
                "client programs",
            ),
            (
                "pg_dump: error: connection to server at \"x\" failed: FATAL:  database \"y\" does not exist",
                Kind::Config,
                "psql",
            ),
            (
                "pg_dump: error: Error message from server: server closed the connection unexpectedly",
                Kind::Transient,
                "log",
            ),
            (
                "pg_dump: error: query failed: ERROR:  canceling statement due to statement timeout",
                Kind::Transient,
                "lock_wait",
            ),
        ] {
            let error = of("pg_dump", "y", ExitStatus::from_raw(256), said.to_owned());
            assert_eq!(error.kind(), kind, "{said}");
            assert!(error.nearest_hint().unwrap().contains(hint), "{said}: {error:?}");
        }
        let other = of("pg_dump", "y", ExitStatus::from_raw(9), String::new());
        assert_eq!((other.kind(), other.nearest_hint()), (Kind::Failed, None));
    }
}
