//! `[cluster.NAME.dump]`: what logical dumps take, and with which programs.

use std::time::Duration;

use super::reader::Table;
use crate::error::Result;
use crate::units::parse_duration;

/// How a cluster is dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpSettings {
    /// Databases to dump; nothing: all that allow connections.
    pub databases: Option<Vec<String>>,
    /// Databases to leave out.
    pub exclude: Vec<String>,
    /// Where pg_dump and its like are; `{major}` stands for the version. Nothing: where packages put them.
    pub bin_directory: Option<String>,
    /// How long pg_dump waits for a lock that somebody else holds.
    pub lock_wait: Duration,
    /// Whether the passwords of roles are dumped, as the server keeps them.
    pub role_passwords: bool,
}

impl Default for DumpSettings {
    fn default() -> Self {
        Self {
            databases: None,
            exclude: Vec::new(),
            bin_directory: None,
            lock_wait: Duration::from_secs(60),
            role_passwords: true,
        }
    }
}

impl DumpSettings {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let default = Self::default();
        let name = |name: &str| Ok(name.to_owned());
        let settings = Self {
            databases: table.list("databases", name)?,
            exclude: table.list("exclude", name)?.unwrap_or_default(),
            bin_directory: table.text("bin_directory")?,
            lock_wait: table.parsed("lock_wait", parse_duration)?.unwrap_or(default.lock_wait),
            role_passwords: table.boolean("role_passwords")?.unwrap_or(default.role_passwords),
        };
        table.finish(&[])?;
        Ok(settings)
    }
}
