//! `[repository.NAME]`: where copies go, who can open them, how long they stay.

use std::path::PathBuf;

use super::TOP_KEYS;
use super::cluster::http_url;
use super::location::Location;
use super::reader::Table;
use super::retention::Retention;
use crate::error::{Error, Kind, Result};
use crate::storage::bucket::{BucketSettings, Classes, Secret, ServerSideEncryption, Service};
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
    /// How to get into the bucket, where it is one.
    pub bucket: Option<BucketSettings>,
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

/// What is for buckets, and for whose.
const BUCKET_KEYS: [(&str, &[&str]); 9] = [
    ("endpoint", &["s3", "gs", "az"]),
    ("ca_file", &["s3", "gs", "az"]),
    ("credentials_file", &["s3", "gs", "az"]),
    ("storage_class", &["s3"]),
    ("region", &["s3"]),
    ("url_style", &["s3"]),
    ("server_side_encryption", &["s3"]),
    ("lock_horizon", &["s3"]),
    ("ssh_key", &["sftp"]),
];

/// Variables that hold credentials, by the names that the providers' own tools use.
const VARIABLES: [&str; 17] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
];

impl RepositorySettings {
    /// For how long a new object is locked, where objects are.
    pub fn lock_horizon(&self) -> Option<std::time::Duration> {
        match self.bucket.as_ref()?.service {
            Service::S3 { lock, .. } => lock,
            _ => None,
        }
    }

    pub(super) fn read(name: String, mut table: Table<'_>) -> Result<Self> {
        let location = table.parsed("url", Location::parse)?;
        if let Some(location) = &location {
            check_scheme(&mut table, location)?;
        }
        let required = table.boolean("required")?.unwrap_or(true);
        let retention = table.table("retention")?.map(Retention::read).transpose()?;
        let encryption = table.table("encryption")?.map(Encryption::read).transpose()?;
        let bandwidth = table.parsed("bandwidth", rate)?;
        let bucket = match &location {
            Some(location) => read_bucket(&mut table, location)?,
            None => None,
        };
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
            bucket,
            ssh_key,
        })
    }
}

/// Refuses keys that would silently do nothing at this kind of store.
fn check_scheme(table: &mut Table<'_>, location: &Location) -> Result<()> {
    for (key, schemes) in BUCKET_KEYS {
        if schemes.contains(&location.scheme()) {
            continue;
        }
        if let Some(value) = table.value(key) {
            let schemes: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
            return Err(value.error(format!(
                "is for {} only, and this repository is {}://",
                schemes.join(", "),
                location.scheme()
            )));
        }
    }
    Ok(())
}

/// Reads how to get into a bucket.
fn read_bucket(table: &mut Table<'_>, location: &Location) -> Result<Option<BucketSettings>> {
    let (service, bucket, prefix) = match location {
        Location::S3 { bucket, prefix } => (read_s3(table)?, bucket, prefix),
        Location::Google { bucket, prefix } => (Service::Google, bucket, prefix),
        Location::Azure {
            account,
            container,
            prefix,
        } => {
            let account = account.clone();
            (Service::Azure { account }, container, prefix)
        }
        Location::File { .. } | Location::Sftp { .. } => return Ok(None),
    };
    let classes = table.table("storage_class")?.map(read_classes).transpose()?;
    Ok(Some(BucketSettings {
        service,
        bucket: bucket.clone(),
        prefix: prefix.clone(),
        endpoint: table.parsed("endpoint", http_url)?,
        ca_file: table.path("ca_file")?,
        credentials_file: table.path("credentials_file")?,
        environment: VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), Secret(table.variable(name)?))))
            .collect(),
        classes: classes.unwrap_or_default(),
    }))
}

fn read_s3(table: &mut Table<'_>) -> Result<Service> {
    let style = |text: &str| match text {
        "path" => Ok(false),
        "virtual" => Ok(true),
        _ => Err(Error::new(Kind::Config, format!("unknown style \"{text}\"")).hint("path or virtual")),
    };
    Ok(Service::S3 {
        region: table.text("region")?,
        virtual_hosted: table.parsed("url_style", style)?,
        encryption: table
            .table("server_side_encryption")?
            .map(read_server_side_encryption)
            .transpose()?,
        lock: table.parsed("lock_horizon", parse_duration)?,
    })
}

fn read_server_side_encryption(mut table: Table<'_>) -> Result<ServerSideEncryption> {
    let kind = table.text("type")?.unwrap_or_default();
    let kms_key = table.text("kms_key")?;
    let key_file = table.path("key_file")?;
    let error = table
        .error("does not say how to encrypt")
        .hint("type = \"AES256\"; type = \"aws:kms\", perhaps with kms_key; type = \"customer\" with key_file");
    table.finish(&[])?;
    match (kind.as_str(), kms_key, key_file) {
        ("AES256", None, None) => Ok(ServerSideEncryption::S3),
        ("aws:kms", key, None) => Ok(ServerSideEncryption::Kms(key)),
        ("customer", None, Some(file)) => Ok(ServerSideEncryption::Customer(file)),
        _ => Err(error),
    }
}

fn read_classes(mut table: Table<'_>) -> Result<Classes> {
    let classes = Classes {
        backup: table.text("backup")?,
        wal: table.text("wal")?,
    };
    table.finish(&[])?;
    Ok(classes)
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

fn rate(text: &str) -> Result<ByteSize> {
    match ByteSize::parse_rate(text)? {
        ByteSize(0) => Err(Error::new(Kind::Config, "a bandwidth of nothing").hint("leave it out for no limit")),
        rate => Ok(rate),
    }
}
