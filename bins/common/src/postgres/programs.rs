//! PostgreSQL's own programs of one major version: where packages put them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::Major;
use crate::error::{Error, Kind, Result};
use crate::process;

/// The newest major version whose programs are looked for.
const NEWEST: u32 = 25;

/// The directory of programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// The server programs of exactly this version: below `directory`, where `{major}` stands for the version, else where packages
    /// of Debian and of PGDG for RPM systems put them.
    ///
    /// # Errors
    /// `Config` if there is no such server.
    pub fn of_server(directory: Option<&str>, major: Major) -> Result<Self> {
        let number = major.number();
        let places = places(directory, number);
        with(&places, "postgres").ok_or_else(|| {
            let message = format!(
                "PostgreSQL {number}, which the backup needs, is not in {}",
                list(&places)
            );
            Error::new(Kind::Config, message).hint(format!(
                "install postgresql-{number} on this host, or set bin_directory in the cluster's restore_test table"
            ))
        })
    }

    /// The client programs of this version, or of the next newer one that is there: pg_dump reads older servers, and refuses newer
    /// ones (`src/bin/pg_dump/pg_backup_db.c`, `_check_database_version`).
    ///
    /// # Errors
    /// `Config` if there are only older ones.
    pub fn of_client(directory: Option<&str>, major: Major) -> Result<Self> {
        let wanted = major.number();
        let found = (wanted..=NEWEST).find_map(|number| with(&places(directory, number), "pg_dump"));
        found.ok_or_else(|| {
            let older = (10..wanted)
                .rev()
                .find(|number| with(&places(directory, *number), "pg_dump").is_some());
            let older = older.map(|number| format!(", only that of {number}, which cannot dump a newer server"));
            let message = format!(
                "pg_dump of PostgreSQL {wanted} is not in {}{}",
                list(&places(directory, wanted)),
                older.unwrap_or_default()
            );
            Error::new(Kind::Config, message).hint(format!(
                "install postgresql-client-{wanted} on this host, or set bin_directory in the cluster's dump table"
            ))
        })
    }

    /// One of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Fails where one of them is missing; `why` is for the hint.
    ///
    /// # Errors
    /// `Config`.
    pub fn require(&self, name: &str, why: &str) -> Result<()> {
        let path = self.program(name);
        match path.is_file() {
            true => Ok(()),
            false => Err(Error::new(Kind::Config, format!("{} is not there", path.display())).hint(why)),
        }
    }

    /// What `NAME --version` says, such as `postgres (PostgreSQL) 15.18`.
    ///
    /// # Errors
    /// `Failed` if it does not run.
    pub fn version(&self, name: &str) -> Result<String> {
        let mut command = Command::new(self.program(name));
        command.arg("--version");
        let output = process::run(command, Duration::from_secs(30))?;
        process::expect_success(&format!("{name} --version"), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

fn places(directory: Option<&str>, number: u32) -> Vec<String> {
    match directory {
        Some(directory) => vec![directory.replace("{major}", &number.to_string())],
        None => vec![
            format!("/usr/lib/postgresql/{number}/bin"),
            format!("/usr/pgsql-{number}/bin"),
        ],
    }
}

fn with(places: &[String], program: &str) -> Option<Programs> {
    let found = places
        .iter()
        .map(PathBuf::from)
        .find(|place| place.join(program).is_file());
    found.map(|directory| Programs { directory })
}

fn list(places: &[String]) -> String {
    places.join(" or ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with_clients(numbers: &[u32]) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        for number in numbers {
            let place = directory.path().join(number.to_string());
            std::fs::create_dir(&place).unwrap();
            std::fs::write(place.join("pg_dump"), "").unwrap();
        }
        let pattern = format!("{}/{{major}}", directory.path().display());
        (directory, pattern)
    }

    #[test]
    fn the_same_version_is_taken_else_the_next_newer_one() {
        let (_directory, pattern) = with_clients(&[14, 16, 18]);
        let found = |major| Programs::of_client(Some(&pattern), major).map(|found| found.program("pg_dump"));
        let ends = |major, with: &str| assert!(found(major).unwrap().ends_with(with));
        ends(Major::V16, "16/pg_dump");
        ends(Major::V15, "16/pg_dump");
        ends(Major::V17, "18/pg_dump");
    }

    #[test]
    fn older_programs_are_named_and_not_taken() {
        let (_directory, pattern) = with_clients(&[14]);
        let error = Programs::of_client(Some(&pattern), Major::V18).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("only that of 14"), "{error}");
        assert!(error.nearest_hint().unwrap().contains("postgresql-client-18"));
        assert!(
            Programs::of_server(Some(&pattern), Major::V14).is_err(),
            "a client is no server"
        );
    }
}
