//! What PostgreSQL's archiver says of itself: whether the last file it tried was archived.

use std::path::Path;

use common::error::Result;
use common::postgres::Session;

/// A file that could not be archived, with nothing archived since.
#[derive(Debug, PartialEq, Eq)]
pub struct Failing {
    file: String,
    tried: String,
    archived: Option<String>,
}

/// Asks pg_stat_archiver; nothing if the last file was archived, none was tried, or this server archives nothing.
///
/// # Errors
/// As [`Session::query`].
pub fn ask(session: &mut Session) -> Result<Option<Failing>> {
    let mode = session.setting("archive_mode")?.unwrap_or_default();
    // What stands there then is from before.
    if mode == "off" || (mode == "on" && session.in_recovery()?) {
        return Ok(None);
    }
    let rows = session.query(
        "select last_failed_wal, last_failed_time, last_archived_time from pg_stat_archiver \
         where last_failed_time is not null and last_failed_time > coalesce(last_archived_time, '-infinity')",
    )?;
    Ok(rows.into_iter().next().map(parse_row))
}

fn parse_row(row: Vec<Option<String>>) -> Failing {
    let mut columns = row.into_iter();
    let mut next = || columns.next().flatten();
    Failing {
        file: next().unwrap_or_else(|| "a WAL file".to_owned()),
        tried: next().unwrap_or_else(|| "an unknown time".to_owned()),
        archived: next(),
    }
}

impl Failing {
    /// What to say of it; `command` is archive_command, where it is called, and `user` whom the server runs as.
    pub fn said(&self, command: Option<&str>, user: &str, data_directory: &Path) -> String {
        let Self { file, tried, archived } = self;
        let since = match archived {
            Some(archived) => format!("the last success was at {archived}"),
            None => "none has been archived yet".to_owned(),
        };
        let by_hand = command.map_or_else(String::new, |command| {
            let command = command.replace("%p", &format!("pg_wal/{file}")).replace("%f", file);
            let data = data_directory.display();
            format!(", and so does, as {user} in {data}: {command}")
        });
        format!(
            "{file} could not be archived at {tried}, and {since}; PostgreSQL tries again every minute; the server's log says why{by_hand}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: [Option<&str>; 3]) -> Failing {
        parse_row(columns.map(|column| column.map(str::to_owned)).to_vec())
    }

    #[test]
    fn a_failure_names_the_file_and_what_to_try() {
        let file = "000000010000000000000007";
        let failing = row([Some(file), Some("2026-11-30 05:00:00+00"), None]);
        let said = failing.said(
            Some("/usr/bin/pgkeep-archive-push %p"),
            "postgres",
            Path::new("/srv/data"),
        );
        assert_eq!(
            said,
            "000000010000000000000007 could not be archived at 2026-11-30 05:00:00+00, and none has been archived yet; PostgreSQL tries \
             again every minute; the server's log says why, and so does, as postgres in /srv/data: /usr/bin/pgkeep-archive-push \
             pg_wal/000000010000000000000007"
        );
    }

    #[test]
    fn where_no_command_is_called_none_is_told_to_be_tried() {
        let failing = row([Some("a"), Some("then"), Some("before")]);
        let said = failing.said(None, "postgres", Path::new("/srv/data"));
        assert!(said.contains("the last success was at before"), "{said}");
        assert!(said.ends_with("the server's log says why"), "{said}");
    }
}
