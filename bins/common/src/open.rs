//! The only place that picks a store and a codec: configuration in, repositories out. Also what else depends on a cluster's configuration
//! and repositories alike: whom to run as, and what is kept of it.

use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;

use crate::codec::{Opening, Recipients, Sealing};
use crate::config::{Cluster, Config, Location, RepositorySettings};
use crate::error::{Error, Kind, Result, chain};
use crate::process;
use crate::repository::pins::Pins;
use crate::repository::{ClusterName, Repository, physical};
use crate::retry::Policy;
use crate::storage::Store;
use crate::storage::bucket::BucketStore;
use crate::storage::limited::LimitedStore;
use crate::storage::posix::PosixStore;
use crate::storage::retrying::RetryingStore;
use crate::storage::sftp::{Limits, SftpStore, Target};
use crate::time::UtcTime;

/// Whom servers run as, where no data directory says it.
const POSTGRES: &str = "postgres";

/// Makes a process that root started run as whoever owns what the jobs of this cluster leave, and says so: the owner of the data
/// directory; where that is lost, of what is left of its path; else, as on a host that only dumps or restores, the user postgres.
///
/// # Errors
/// As [`process::become_owner_of`].
pub fn become_owner(cluster: &Cluster) -> Result<()> {
    if !became_owner(cluster)? {
        log::warn!(
            "running as root, for there is neither a data directory nor a user {POSTGRES}: what this run leaves belongs to root"
        );
    }
    Ok(())
}

/// As [`become_owner`], for what starts servers: PostgreSQL does not run as root.
///
/// # Errors
/// `Config` if this is root and stays it; else as [`become_owner`].
pub fn become_postgres(cluster: &Cluster) -> Result<()> {
    became_owner(cluster)?;
    if Uid::effective().is_root() {
        return Err(Error::new(Kind::Config, "PostgreSQL cannot be started as root")
            .hint("run it as the user postgres, or install a server, which brings that user"));
    }
    Ok(())
}

/// Whether this process runs as who it should.
fn became_owner(cluster: &Cluster) -> Result<bool> {
    let say = |said: &Option<String>| said.iter().for_each(|said| log::info!("{said}"));
    if let Some(directory) = &cluster.data_directory {
        let left = directory.ancestors().find(|path| path.exists());
        let said = left.map(process::become_owner_of).transpose()?.flatten();
        say(&said);
        if said.is_some() || directory.is_dir() {
            return Ok(true);
        }
    }
    say(&process::become_user(POSTGRES)?);
    Ok(!Uid::effective().is_root())
}

/// What is kept of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Base backups and WAL: its data directory is configured, or a repository holds some.
    Physical,
    /// Dumps alone: there is no data directory, and no repository holds anything else.
    Dumps,
    /// There is no data directory, and nobody knows what this repository holds.
    NotKnown(Unread),
}

/// A repository that could not be looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Its name in the configuration.
    pub repository: String,
    /// Whether work depends on it.
    pub required: bool,
    /// Why.
    pub why: String,
}

/// Finds out what is kept of a cluster; where no data directory says it, by looking into every configured repository.
///
/// # Errors
/// As for [`repositories`]. One that does not answer within `patience`, or is another one than this host knows, is no error.
pub fn purpose(config: &Config, cluster: &Cluster, patience: Duration) -> Result<Purpose> {
    if cluster.data_directory.is_some() {
        return Ok(Purpose::Physical);
    }
    let pins = Pins::new(&config.state_directory, &ClusterName::parse(&cluster.name)?);
    let mut unread = Vec::new();
    for repository in repositories_within(config, cluster, &[], patience)? {
        let held = pins.compare(&repository).and_then(|_| physical::is_held(&repository));
        match held {
            Ok(true) => return Ok(Purpose::Physical),
            Ok(false) => {}
            Err(error) => unread.push(Unread {
                repository: repository.name.clone(),
                required: repository.required,
                why: chain(&error),
            }),
        }
    }
    // The one that most depends on.
    unread.sort_by_key(|unread| !unread.required);
    Ok(unread.into_iter().next().map_or(Purpose::Dumps, Purpose::NotKnown))
}

/// Opens the repositories of `cluster`: all, or those named in `only`. Nothing is read from them yet.
///
/// # Errors
/// `Config` if a name is unknown, a key cannot be used, or a URL needs a store that this version lacks.
pub fn repositories(config: &Config, cluster: &Cluster, only: &[String]) -> Result<Vec<Repository>> {
    open_all(config, cluster, only, Policy::patient(config.patience), Limits::USUAL)
}

/// As [`repositories`], where whatever is asked of a store ends, with the reason, before a caller who waits for
/// `patience` gives up on it without knowing one.
///
/// # Errors
/// As for [`repositories`].
pub fn repositories_within(
    config: &Config,
    cluster: &Cluster,
    only: &[String],
    patience: Duration,
) -> Result<Vec<Repository>> {
    open_all(
        config,
        cluster,
        only,
        Policy::patient(patience * 3 / 4),
        Limits::within(patience / 2),
    )
}

fn open_all(
    config: &Config,
    cluster: &Cluster,
    only: &[String],
    policy: Policy,
    limits: Limits,
) -> Result<Vec<Repository>> {
    config
        .repositories(only)?
        .into_iter()
        .map(|repository| open(repository, cluster, policy, limits))
        .collect()
}

fn open(repository: &RepositorySettings, cluster: &Cluster, policy: Policy, limits: Limits) -> Result<Repository> {
    let in_table = |error: Error| error.context(format!("use [repository.{}]", repository.name));
    let store: Arc<dyn Store> = match (&repository.location, &repository.bucket) {
        (Location::File { root }, _) => limited(repository, Arc::new(PosixStore::new(root.clone()))),
        (Location::Sftp { .. }, _) => sftp_store(repository, policy, limits).map_err(in_table)?,
        (_, Some(bucket)) => {
            let store = BucketStore::new(bucket, policy, UtcTime::now()).map_err(in_table)?;
            // What is sent again counts again.
            Arc::new(RetryingStore::new(limited(repository, Arc::new(store)), policy))
        }
        (other, None) => {
            return Err(in_table(
                Error::new(Kind::Config, format!("this version has no store for {other}"))
                    .hint("use a url that begins with file:///, s3://, sftp://, gs:// or az://"),
            ));
        }
    };
    let (data, metadata) = match &repository.encryption {
        None => (Sealing::Clear, Sealing::Clear),
        Some(encryption) => {
            // Metadata is readable by everybody who reads data, and by the metadata recipients besides.
            let mut metadata = encryption.recipients.clone();
            metadata.extend(encryption.metadata_recipients.iter().cloned());
            metadata.sort();
            metadata.dedup();
            (
                sealing(&encryption.recipients).map_err(in_table)?,
                sealing(&metadata).map_err(in_table)?,
            )
        }
    };
    let opening = match repository
        .encryption
        .as_ref()
        .and_then(|encryption| encryption.identity_file.as_ref())
    {
        // Storing needs recipients only: a host whose identity is missing must not stop archiving.
        Some(path) => Opening::from_identity_file(path).unwrap_or_else(|error| Opening::unusable(in_table(error))),
        None => Opening::none(),
    };
    Ok(Repository::new(
        repository.name.clone(),
        repository.location.to_string(),
        repository.required,
        store,
        data,
        metadata,
        opening,
        ClusterName::parse(&cluster.name)?,
    ))
}

fn limited(repository: &RepositorySettings, store: Arc<dyn Store>) -> Arc<dyn Store> {
    match repository.bandwidth {
        Some(rate) => Arc::new(LimitedStore::new(store, rate)),
        None => store,
    }
}

fn sftp_store(settings: &RepositorySettings, policy: Policy, limits: Limits) -> Result<Arc<dyn Store>> {
    let Location::Sftp { user, host, port, root } = &settings.location else {
        return Err(Error::new(Kind::Config, "this is no SFTP repository"));
    };
    let target = Target {
        user: user.clone(),
        host: host.clone(),
        port: *port,
        key: settings.ssh_key.clone(),
    };
    let store = SftpStore::new(target, &root.to_string_lossy(), limits, policy);
    Ok(Arc::new(RetryingStore::new(limited(settings, Arc::new(store)), policy)))
}

fn sealing(recipients: &[String]) -> Result<Sealing> {
    if recipients.is_empty() {
        Ok(Sealing::Clear)
    } else {
        Ok(Sealing::Age(Recipients::parse(recipients)?))
    }
}

/// This host's name, for documents and messages.
pub fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}
