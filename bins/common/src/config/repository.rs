//! `[repository.NAME]`: where copies go, who can open them, how long they stay.

use std::path::PathBuf;
use std::time::Duration;

use super::TOP_KEYS;
use super::cluster::http_url;
use super::location::Location;
use super::reader::Table;
use super::retention::Retention;
use crate::error::{Error, Kind, Result};
use crate::units::{ByteSize, parse_duration};

/// One repository as configured; `open` makes a repository of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositorySettings {
    /// The name by which flags and messages speak of it.
    pub name: String,
    /// Where it is.
    pub location: Location,
    /// Whether work fails when this repository does.
    pub required: bool,
    /// What prune keeps; `None`: everything.
    pub retention: Option<Retention>,
    /// `None`: stored in clear.
    pub encryption: Option<Encryption>,
    /// Most bytes per second in each direction.
    pub bandwidth: Option<ByteSize>,
    /// S3: URL of the service; `None`: AWS.
    pub endpoint: Option<String>,
    /// S3: region.
    pub region: Option<String>,
    /// S3: file with the access key; `None`: environment, instance role or web identity.
    pub credentials_file: Option<PathBuf>,
    /// S3: storage classes.
    pub storage_class: StorageClasses,
    /// S3: object lock this far ahead.
    pub lock_horizon: Option<Duration>,
    /// SFTP: private key.
    pub ssh_key: Option<PathBuf>,
}

/// `encryption = { ... }`: age recipients as written; the codec parses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// Who can open the data.
    pub recipients: Vec<String>,
    /// Who can open file lists and block maps; the same as `recipients` unless configured.
    pub metadata_recipients: Vec<String>,
    /// File with the identities of this host, if it may open anything.
    pub identity_file: Option<PathBuf>,
}

/// `storage_class = { backup, wal }`; `None`: the bucket's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StorageClasses {
    /// For backups and dumps.
    pub backup: Option<String>,
    /// For WAL.
    pub wal: Option<String>,
}

const S3_KEYS: [&str; 5] = [
    "endpoint",
    "region",
    "credentials_file",
    "storage_class",
    "lock_horizon",
];
const SFTP_KEYS: [&str; 1] = ["ssh_key"];

impl RepositorySettings {
    pub(super) fn read(name: String, mut table: Table<'_>) -> Result<Self> {
        let location = table.parsed("url", Location::parse)?;
        if let Some(location) = &location {
            check_scheme(&mut table, location)?;
        }
        let required = table.boolean("required")?.unwrap_or(true);
        let retention = table.table("retention")?.map(Retention::read).transpose()?;
        let encryption = table.table("encryption")?.map(Encryption::read).transpose()?;
        let bandwidth = table.parsed("bandwidth", rate)?;
        let endpoint = table.parsed("endpoint", http_url)?;
        let region = table.text("region")?;
        let credentials_file = table.path("credentials_file")?;
        let storage_class = table
            .table("storage_class")?
            .map(StorageClasses::read)
            .transpose()?
            .unwrap_or_default();
        let lock_horizon = table.parsed("lock_horizon", parse_duration)?;
        let ssh_key = table.path("ssh_key")?;
        let without_url = table
            .error("\"url\" is missing")
            .hint("for example url = \"file:///var/backups/pgkeep\"");
        // A misspelt "url" is better called unknown than missing.
        table.finish(&TOP_KEYS)?;
        Ok(Self {
            name,
            location: location.ok_or(without_url)?,
            required,
            retention,
            encryption,
            bandwidth,
            endpoint,
            region,
            credentials_file,
            storage_class,
            lock_horizon,
            ssh_key,
        })
    }
}

/// Refuses keys that would silently do nothing at this kind of store.
fn check_scheme(table: &mut Table<'_>, location: &Location) -> Result<()> {
    let foreign: [(&[&'static str], &str); 2] = [(&S3_KEYS, "s3"), (&SFTP_KEYS, "sftp")];
    for (keys, scheme) in foreign.iter().filter(|(_, scheme)| *scheme != location.scheme()) {
        if let Some(value) = keys.iter().find_map(|key| table.value(key)) {
            return Err(value.error(format!(
                "is for {scheme}:// only, and this repository is {}://",
                location.scheme()
            )));
        }
    }
    Ok(())
}

impl Encryption {
    fn read(mut table: Table<'_>) -> Result<Self> {
        let text = |text: &str| Ok(text.trim().to_owned());
        let recipients = table.list("recipients", text)?.unwrap_or_default();
        let metadata_recipients = table
            .list("metadata_recipients", text)?
            .unwrap_or_else(|| recipients.clone());
        let identity_file = table.path("identity_file")?;
        let nobody = recipients.is_empty() || metadata_recipients.is_empty();
        // Without this an empty list would mean: stored in clear.
        let without = table
            .error("\"recipients\" is missing or empty")
            .hint("pgkeep-init --generate-key FILE makes a key and prints its recipient");
        table.finish(&[])?;
        if nobody {
            return Err(without);
        }
        Ok(Self {
            recipients,
            metadata_recipients,
            identity_file,
        })
    }
}

impl StorageClasses {
    fn read(mut table: Table<'_>) -> Result<Self> {
        let classes = Self {
            backup: table.text("backup")?,
            wal: table.text("wal")?,
        };
        table.finish(&[])?;
        Ok(classes)
    }
}

fn rate(text: &str) -> Result<ByteSize> {
    match ByteSize::parse_rate(text)? {
        ByteSize(0) => Err(Error::new(Kind::Config, "a bandwidth of nothing").hint("leave it out for no limit")),
        rate => Ok(rate),
    }
}
