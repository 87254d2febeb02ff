//! The configuration file as typed values, checked before any work begins.
//!
//! Knows every key, its default, and how to complain about it: with file, line, table, and the nearest known key.
//! Does not look at what the values name (directories, keys, servers); recipients are parsed by the codec. Every
//! key is explained in the example that the packages ship (`packaging/pgkeep.toml`).

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use crate::error::{Error, Kind, Result};
use crate::job::{JobSettings, Origin};
use crate::units::{ByteSize, parse_duration};

pub mod access;
pub mod cli;
mod cluster;
mod dump;
mod expand;
mod location;
mod notify;
mod reader;
mod repository;
mod restore_test;
mod retention;

pub use cluster::{Cluster, Objectives, SSL_MODES};
pub use dump::DumpSettings;
pub use location::Location;
pub use notify::{Channel, Notify, Secret, SmtpTls, Topic};
pub use reader::Environment;
pub use repository::{Encryption, RepositorySettings};
pub use restore_test::{Assertion, Expected, RestoreTest};
pub use retention::{Keep, Retention};

use reader::{Source, Table, nearest};

/// Where the configuration is unless `--config` or `PGKEEP_CONFIG` says otherwise.
pub const DEFAULT_FILE: &str = "/etc/pgkeep/pgkeep.toml";

/// Where jobs leave their traces unless the configuration says otherwise.
pub const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/pgkeep";

/// Keys at the top of the file; a hint tells those who wrote one below a table.
const TOP_KEYS: [&str; 9] = [
    "state_directory",
    "spool_directory",
    "metrics_directory",
    "patience",
    "standby_patience",
    "jobs",
    "compression_level",
    "prefetch_limit",
    "push_batch",
];

/// A configuration is a page of text; what is larger is another file.
const MOST_BYTES: u64 = 1 << 20;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from, for messages.
    pub file: PathBuf,
    /// Where jobs leave status, history and caches, a directory for each cluster.
    pub state_directory: PathBuf,
    /// Where archive-get puts WAL that it fetched ahead.
    pub spool_directory: PathBuf,
    /// Where node_exporter's textfile collector reads.
    pub metrics_directory: PathBuf,
    /// How long temporary failures are retried.
    pub patience: Duration,
    /// The same for archive-get in a standby, which must not keep PostgreSQL waiting.
    pub standby_patience: Duration,
    /// How many workers long jobs use.
    pub jobs: usize,
    /// zstd's level.
    pub compression_level: i32,
    /// How many bytes archive-get may keep fetched ahead; zero: fetches nothing ahead.
    pub prefetch_limit: ByteSize,
    /// Most WAL files that one run of archive-push stores.
    pub push_batch: usize,
    /// The clusters, in the order of the file.
    pub clusters: Vec<Cluster>,
    /// The repositories, in the order of the file. All of them serve every cluster.
    pub repositories: Vec<RepositorySettings>,
    /// Who is told of failures, in the order of the file.
    pub notify: Vec<Notify>,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// `Config`, whatever is wrong: a person has to change something.
    pub fn load(file: &Path, environment: Environment<'_>) -> Result<Self> {
        let text = read_file(file)?;
        Self::parse(file, &text, environment)
    }

    /// Checks the text of a file; `file` is for messages.
    ///
    /// # Errors
    /// `Config`.
    pub fn parse(file: &Path, text: &str, environment: Environment<'_>) -> Result<Self> {
        let source = Source {
            file,
            text,
            environment,
        };
        let parsed = DeTable::parse(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            source.error(offset, error.message().replace('\n', ", "))
        })?;
        Self::read(&source, Table::new(&source, String::new(), 0, parsed.get_ref()))
    }

    fn read(source: &Source<'_>, mut table: Table<'_>) -> Result<Self> {
        let seconds = Duration::from_secs;
        let whole = |number: Option<i64>, default| {
            number
                .and_then(|number| usize::try_from(number).ok())
                .unwrap_or(default)
        };
        let mut config = Self {
            file: source.file.to_owned(),
            state_directory: table
                .path("state_directory")?
                .unwrap_or_else(|| DEFAULT_STATE_DIRECTORY.into()),
            spool_directory: table
                .path("spool_directory")?
                .unwrap_or_else(|| "/var/spool/pgkeep".into()),
            metrics_directory: (table.path("metrics_directory")?)
                .unwrap_or_else(|| "/var/lib/prometheus/node-exporter".into()),
            patience: table.parsed("patience", parse_duration)?.unwrap_or(seconds(300)),
            standby_patience: table.parsed("standby_patience", parse_duration)?.unwrap_or(seconds(5)),
            jobs: whole(table.whole("jobs", 1..=256)?, 2),
            compression_level: (table.whole("compression_level", -7..=19)?)
                .and_then(|level| i32::try_from(level).ok())
                .unwrap_or(2),
            prefetch_limit: table
                .parsed("prefetch_limit", |text| text.parse())?
                .unwrap_or(ByteSize(256 << 20)),
            push_batch: whole(table.whole("push_batch", 1..=1024)?, 16),
            clusters: Vec::new(),
            repositories: Vec::new(),
            notify: Vec::new(),
        };
        let clusters = table.named_tables("cluster")?;
        let repositories = table.named_tables("repository")?;
        let notify = table.named_tables("notify")?;
        table.finish(&[])?;
        for (name, table) in clusters {
            config.clusters.push(Cluster::read(name, table)?);
        }
        for (name, table) in repositories {
            let error = table.error("the same url as in another repository");
            let settings = RepositorySettings::read(name, table)?;
            if config
                .repositories
                .iter()
                .any(|other| other.location == settings.location)
            {
                return Err(error.hint("two names for one place would count as two copies"));
            }
            config.repositories.push(settings);
        }
        for (name, table) in notify {
            config.notify.push(Notify::read(name, table)?);
        }
        Ok(config)
    }

    /// The cluster asked for, or the only one.
    ///
    /// # Errors
    /// `Config` if there is none, if it is unknown, or if the choice is open.
    pub fn cluster(&self, name: Option<&str>) -> Result<&Cluster> {
        let names: Vec<&str> = self.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        let file = self.file.display();
        let Some(name) = name else {
            return match self.clusters.as_slice() {
                [only] => Ok(only),
                [] => Err(Error::new(Kind::Config, format!("no cluster is configured in {file}"))
                    .hint("add a table such as [cluster.main]")),
                _ => Err(Error::new(
                    Kind::Config,
                    format!("several clusters are configured: {}", names.join(", ")),
                )
                .hint("choose one with --cluster or PGKEEP_CLUSTER")),
            };
        };
        self.clusters
            .iter()
            .find(|cluster| cluster.name == name)
            .ok_or_else(|| unknown("cluster", name, &names, &self.file))
    }

    /// The repositories named, or all of them, in the order of the file.
    ///
    /// # Errors
    /// `Config` if there is none, or a name is unknown.
    pub fn repositories(&self, only: &[String]) -> Result<Vec<&RepositorySettings>> {
        if self.repositories.is_empty() {
            let message = format!("no repository is configured in {}", self.file.display());
            return Err(Error::new(Kind::Config, message).hint("add a table such as [repository.local] with a \"url\""));
        }
        let names: Vec<&str> = self
            .repositories
            .iter()
            .map(|repository| repository.name.as_str())
            .collect();
        if let Some(name) = only.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(unknown("repository", name, &names, &self.file));
        }
        let wanted = |repository: &&RepositorySettings| only.is_empty() || only.contains(&repository.name);
        Ok(self.repositories.iter().filter(wanted).collect())
    }

    /// Where this cluster's status, history and caches are.
    pub fn state_of(&self, cluster: &Cluster) -> PathBuf {
        self.state_directory.join(&cluster.name)
    }

    /// Whether this process may leave something in the state directory of a cluster: a check that may not only answers.
    pub fn may_leave(&self, cluster: &Cluster) -> bool {
        let (state, all) = (self.state_of(cluster), &self.state_directory);
        [state.as_path(), all.as_path()]
            .into_iter()
            .find(|directory| directory.is_dir())
            .is_some_and(|directory| nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK).is_ok())
    }

    /// What [`crate::job::Job`] needs to know.
    pub fn job(&self, cluster: &Cluster, tool: &'static str, origin: Origin) -> JobSettings {
        JobSettings {
            state_directory: self.state_directory.clone(),
            metrics_directory: self.metrics_directory.clone(),
            cluster: cluster.name.clone(),
            tool,
            origin,
        }
    }
}

fn unknown(what: &str, name: &str, names: &[&str], file: &Path) -> Error {
    let error = Error::new(
        Kind::Config,
        format!("no {what} \"{name}\" is configured in {}", file.display()),
    );
    if names.is_empty() {
        return error.hint(format!("none is; add a table such as [{what}.{name}]"));
    }
    let configured = format!("configured: {}", names.join(", "));
    match nearest(name, names) {
        Some(meant) => error.hint(format!("did you mean \"{meant}\"? {configured}")),
        None => error.hint(configured),
    }
}

fn read_file(file: &Path) -> Result<String> {
    let failed = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "name it with --config or PGKEEP_CONFIG; the package brings an example",
            std::io::ErrorKind::PermissionDenied => {
                "it belongs to the user whose data directory is backed up, mode 0640"
            }
            _ => "name it with --config or PGKEEP_CONFIG",
        };
        let message = format!("cannot read configuration {}", file.display());
        Error::new(Kind::Config, message).because(error).hint(hint)
    };
    let mut opened = File::open(file).map_err(failed)?;
    let mode = opened.metadata().map_err(failed)?.mode();
    if mode & 0o002 != 0 {
        let message = format!("configuration {} can be written by everybody", file.display());
        return Err(Error::new(Kind::Config, message).hint(format!("chmod o-w {}", file.display())));
    }
    let mut text = String::new();
    (&mut opened)
        .take(MOST_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(Error::new(
            Kind::Config,
            format!("configuration {} is larger than 1 MiB", file.display()),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
