//! `[cluster.NAME]`: one PostgreSQL cluster, how to reach it, and what is expected of its backups.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::TOP_KEYS;
use super::reader::{Environment, Table, absolute};
use super::{DumpSettings, RestoreTest};
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::ConnectionSettings;
use crate::postgres::settings::DEFAULT_PORT;
use crate::units::{ByteSize, parse_duration};

/// Values of libpq's `sslmode`.
pub const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// One PostgreSQL cluster.
///
/// Connection values that are `None` come from libpq's environment, password file and defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The name, which is also the directory in every repository.
    pub name: String,
    /// The data directory; [`Cluster::data_directory`] complains where it is needed and missing.
    pub data_directory: Option<PathBuf>,
    /// Host name, address, or directory of the socket.
    pub host: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Role.
    pub user: Option<String>,
    /// Database to connect to.
    pub dbname: Option<String>,
    /// Password file in libpq's format.
    pub passfile: Option<PathBuf>,
    /// One of [`SSL_MODES`].
    pub sslmode: Option<String>,
    /// Certificates of the authorities that the server's certificate is checked against.
    pub sslrootcert: Option<PathBuf>,
    /// Files and directories outside the data directory that belong into every base backup.
    pub extra_paths: Vec<PathBuf>,
    /// What lies below `extra_paths` and stays out.
    pub extra_excludes: Vec<PathBuf>,
    /// Base URL of Patroni's API.
    pub patroni: Option<String>,
    /// Certificates of the authorities that Patroni's API is checked against; without it those of the system.
    pub patroni_ca: Option<PathBuf>,
    /// libpq connection string of the primary, for backups taken on a standby.
    pub primary: Option<String>,
    /// `--type auto` takes a full backup when the last one is older.
    pub full_interval: Duration,
    /// How long a base backup waits for its WAL to reach every required repository.
    pub archive_wait: Duration,
    /// What recovery is expected to achieve.
    pub objectives: Objectives,
    /// WAL waiting in pg_wal beyond this may be dropped; zero: never.
    pub wal_drop_limit: ByteSize,
    /// How backups are tried out.
    pub restore_test: RestoreTest,
    /// How it is dumped.
    pub dump: DumpSettings,
}

/// `objectives = { rpo, rto }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Objectives {
    /// Recovery point objective: how much time may be lost.
    pub rpo: Option<Duration>,
    /// Recovery time objective: how long a restore may take.
    pub rto: Option<Duration>,
}

impl Cluster {
    /// The data directory.
    ///
    /// # Errors
    /// `Config` where the configuration does not say it.
    pub fn data_directory(&self) -> Result<&Path> {
        self.data_directory.as_deref().ok_or_else(|| {
            Error::new(Kind::Config, format!("cluster \"{}\" has no data_directory", self.name))
                .hint(format!("add data_directory = \"/...\" to [cluster.{}]", self.name))
        })
    }

    /// Whether this process runs as the user that owns the data directory, as the server does.
    pub fn is_own(&self) -> bool {
        let found = self.data_directory.as_deref().map(std::fs::metadata);
        found.is_some_and(|found| found.is_ok_and(|found| found.uid() == nix::unistd::geteuid().as_raw()))
    }

    /// The data directory that this process runs in, as PostgreSQL's archive_command and restore_command do; else the
    /// configured one. Absolute, without links.
    ///
    /// # Errors
    /// `Config` if none is configured; else what the file system says.
    pub fn data_directory_here(&self) -> Result<PathBuf> {
        let here = Path::new(".");
        let found = if here.join("global/pg_control").exists() {
            here
        } else {
            self.data_directory()?
        };
        found
            .canonicalize()
            .context(|| format!("find the data directory {}", found.display()))
    }

    /// How to reach the server; libpq's environment fills what is not configured.
    ///
    /// # Errors
    /// `Config` for a value that is impossible.
    pub fn connection(&self, environment: Environment<'_>) -> Result<ConnectionSettings> {
        let settings = ConnectionSettings {
            host: self.host.clone(),
            port: self.port,
            user: self.user.clone(),
            dbname: self.dbname.clone(),
            passfile: self.passfile.clone(),
            sslmode: self.sslmode.as_deref().map(str::parse).transpose()?,
            sslrootcert: self.sslrootcert.clone(),
            ..ConnectionSettings::default()
        };
        settings.with_environment(environment)
    }

    /// How to reach the primary, if `primary` says so; what it leaves out is as for this cluster's own server.
    ///
    /// # Errors
    /// `Config` for a value that is impossible.
    pub fn primary_connection(&self, environment: Environment<'_>) -> Result<Option<ConnectionSettings>> {
        let Some(primary) = &self.primary else { return Ok(None) };
        let named = ConnectionSettings::parse(primary)?;
        let own = self.connection(environment)?;
        Ok(Some(ConnectionSettings {
            host: named.host,
            port: named.port.or(Some(DEFAULT_PORT)),
            user: named.user.or(own.user),
            dbname: named.dbname.or(own.dbname),
            password: named.password.or(own.password),
            passfile: named.passfile.or(own.passfile),
            sslmode: named.sslmode.or(own.sslmode),
            sslrootcert: named.sslrootcert.or(own.sslrootcert),
            connect_timeout: named.connect_timeout.or(own.connect_timeout),
            options: named.options.or(own.options),
            primary_only: true,
            home: own.home,
        }))
    }

    pub(super) fn read(name: String, mut table: Table<'_>) -> Result<Self> {
        let (extra_paths, extra_excludes) = extra(&mut table)?;
        let cluster = Self {
            name,
            data_directory: table.path("data_directory")?,
            host: table.text("host")?,
            port: table
                .whole("port", 1..=65535)?
                .and_then(|port| u16::try_from(port).ok()),
            user: table.text("user")?,
            dbname: table.text("dbname")?,
            passfile: table.path("passfile")?,
            sslmode: table.parsed("sslmode", sslmode)?,
            sslrootcert: table.path("sslrootcert")?,
            extra_paths,
            extra_excludes,
            patroni: table.parsed("patroni", http_url)?,
            patroni_ca: table.path("patroni_ca")?,
            primary: table.parsed("primary", conninfo)?,
            full_interval: table
                .parsed("full_interval", parse_duration)?
                .unwrap_or(Duration::from_secs(7 * 86_400)),
            archive_wait: table
                .parsed("archive_wait", parse_duration)?
                .unwrap_or(Duration::from_secs(600)),
            objectives: table
                .table("objectives")?
                .map(objectives)
                .transpose()?
                .unwrap_or_default(),
            wal_drop_limit: table.parsed("wal_drop_limit", |text| text.parse())?.unwrap_or_default(),
            restore_test: (table.table("restore_test")?)
                .map(RestoreTest::read)
                .transpose()?
                .unwrap_or_default(),
            dump: (table.table("dump")?)
                .map(DumpSettings::read)
                .transpose()?
                .unwrap_or_default(),
        };
        table.finish(&TOP_KEYS)?;
        Ok(cluster)
    }
}

fn extra(table: &mut Table<'_>) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let paths = table.list("extra_paths", absolute)?.unwrap_or_default();
    let below = |text: &str| {
        let path = absolute(text)?;
        if paths.iter().any(|extra| path.starts_with(extra) && path != *extra) {
            return Ok(path);
        }
        Err(Error::new(
            Kind::Config,
            format!("path \"{text}\" lies below none of extra_paths"),
        ))
    };
    let excludes = table.list("extra_excludes", below)?.unwrap_or_default();
    Ok((paths, excludes))
}

fn objectives(mut table: Table<'_>) -> Result<Objectives> {
    let objectives = Objectives {
        rpo: table.parsed("rpo", parse_duration)?,
        rto: table.parsed("rto", parse_duration)?,
    };
    table.finish(&[])?;
    Ok(objectives)
}

fn sslmode(text: &str) -> Result<String> {
    if SSL_MODES.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(Error::new(Kind::Config, format!("invalid sslmode \"{text}\""))
        .hint(format!("one of {}", SSL_MODES.join(", "))))
}

/// A connection string that says where.
fn conninfo(text: &str) -> Result<String> {
    match ConnectionSettings::parse(text)?.host {
        Some(_) => Ok(text.to_owned()),
        None => Err(Error::new(Kind::Config, "no host is named").hint("for example \"host=10.0.0.1 user=postgres\"")),
    }
}

pub(super) fn http_url(text: &str) -> Result<String> {
    let host = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .unwrap_or_default();
    if host.is_empty() || host.starts_with('/') || text.contains(char::is_whitespace) {
        return Err(Error::new(Kind::Config, "not an http:// or https:// URL"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}
