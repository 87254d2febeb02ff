//! From settings to the library's clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::s3::Bucket;
use super::wire::{Clock, Wire};
use crate::error::{Error, Kind, Result};
use crate::secret;
use crate::time::UtcTime;

/// Where a bucket is and how to get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketSettings {
    /// Whose bucket it is.
    pub service: Service,
    /// The bucket, or Azure's container.
    pub bucket: String,
    /// What every key begins with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// URL of the service; `None`: the provider's own.
    pub endpoint: Option<String>,
    /// A file with authorities to believe besides the system's.
    pub ca_file: Option<PathBuf>,
    /// A file with the credentials; `None`: `environment`, then what the machine is given by its provider.
    pub credentials_file: Option<PathBuf>,
    /// The provider's variables in the environment: name and value.
    pub environment: Vec<(String, Secret)>,
    /// Storage class of what is large and rarely read.
    pub classes: Classes,
}

/// A value that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// The kinds of object store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// Amazon S3, and what speaks its protocol.
    S3 {
        /// The region; `None`: us-east-1.
        region: Option<String>,
        /// The bucket as a part of the host's name rather than of the path; `None`: as is usual for this endpoint.
        virtual_hosted: Option<bool>,
        /// How the store encrypts what it holds; `None`: as the bucket says.
        encryption: Option<ServerSideEncryption>,
        /// New objects cannot be deleted for so long.
        lock: Option<Duration>,
    },
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage, in this account.
    Azure {
        /// The storage account.
        account: String,
    },
}

/// S3's server side encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSideEncryption {
    /// With keys of S3.
    S3,
    /// With a key of the key management service; `None`: its default key.
    Kms(Option<String>),
    /// With a key that is sent along: 32 bytes, in base64, in this file.
    Customer(PathBuf),
}

/// Storage classes; `None`: the bucket's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Classes {
    /// Of the bundles of backups and the archives of dumps.
    pub backup: Option<String>,
    /// Of WAL segments.
    pub wal: Option<String>,
}

/// What a store is asked through.
pub(super) struct Clients {
    /// For everything but creating.
    pub plain: Arc<dyn ObjectStore>,
    /// For creating: new objects may have to be locked.
    pub creating: Arc<dyn ObjectStore>,
    /// The parts of large objects, begun by the client for creating.
    pub begin: Arc<dyn MultipartStore>,
    /// The parts of large objects.
    pub parts: Arc<dyn MultipartStore>,
    /// Where it is S3: for what the library cannot do.
    pub bucket: Option<Bucket>,
    /// `scheme://bucket/prefix`.
    pub url: String,
}

impl BucketSettings {
    /// Whether the connection is encrypted.
    fn is_secure(&self) -> bool {
        !self.endpoint.as_deref().is_some_and(|url| url.starts_with("http://"))
    }

    /// `stall`: how long nothing may move.
    pub(super) fn connect(&self, clock: &Clock, now: UtcTime, stall: Duration) -> Result<Clients> {
        let wire = Wire::new(self.is_secure(), self.ca_file.as_deref(), clock.clone(), stall)?;
        match &self.service {
            Service::S3 { .. } => self.connect_s3(&wire, now),
            Service::Google => self.connect_google(&wire),
            Service::Azure { account } => self.connect_azure(&wire, account),
        }
    }

    /// The place as messages name it.
    fn url(&self, scheme: &str, bucket: &str) -> String {
        match self.prefix.as_str() {
            "" => format!("{scheme}://{bucket}"),
            prefix => format!("{scheme}://{bucket}/{prefix}"),
        }
    }

    fn connect_s3(&self, wire: &Wire, now: UtcTime) -> Result<Clients> {
        let Service::S3 {
            lock,
            region,
            virtual_hosted,
            ..
        } = &self.service
        else {
            return Err(invalid("it is not S3"));
        };
        let plain = Arc::new(self.s3(wire, HeaderMap::new())?);
        let (creating, begin) = match lock {
            None => (Arc::clone(&plain), Arc::clone(&plain)),
            Some(horizon) => {
                let begin = lock_headers(now, *horizon)?;
                let mut creating = begin.clone();
                // A locked object has to come with a checksum, and S3 wants to be told which. Parts bring their own.
                creating.insert(
                    HeaderName::from_static("x-amz-sdk-checksum-algorithm"),
                    HeaderValue::from_static("SHA256"),
                );
                (Arc::new(self.s3(wire, creating)?), Arc::new(self.s3(wire, begin)?))
            }
        };
        let region = region.as_deref().unwrap_or("us-east-1");
        Ok(Clients {
            begin,
            parts: plain.clone(),
            bucket: Some(Bucket {
                client: Arc::clone(&plain),
                wire: wire.clone(),
                url: bucket_url(&self.bucket, self.endpoint.as_deref(), region, *virtual_hosted),
                region: region.to_owned(),
            }),
            plain,
            creating,
            url: self.url("s3", &self.bucket),
        })
    }

    fn s3(&self, wire: &Wire, headers: HeaderMap) -> Result<AmazonS3> {
        let Service::S3 {
            region,
            virtual_hosted,
            encryption,
            ..
        } = &self.service
        else {
            return Err(invalid("it is not S3"));
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region(region.as_deref().unwrap_or("us-east-1"))
            .with_client_options(ClientOptions::new().with_default_headers(headers))
            .with_retry(never_again())
            .with_http_connector(wire.clone())
            .with_allow_http(!self.is_secure())
            .with_checksum_algorithm(Checksum::SHA256)
            .with_disable_bulk_delete(true)
            .with_conditional_put(S3ConditionalPut::ETagMatch);
        let is_virtual = virtual_hosted.unwrap_or(self.endpoint.is_none());
        builder = builder.with_virtual_hosted_style_request(is_virtual);
        if let Some(endpoint) = &self.endpoint {
            // The library wants the bucket in the endpoint's name already.
            let endpoint = match endpoint.split_once("://") {
                Some((scheme, host)) if is_virtual => format!("{scheme}://{}.{host}", self.bucket),
                _ => endpoint.clone(),
            };
            builder = builder.with_endpoint(endpoint);
        }
        builder = match encryption {
            None => builder,
            Some(ServerSideEncryption::S3) => {
                builder.with_config(encryption_key("aws_server_side_encryption")?, "AES256")
            }
            Some(ServerSideEncryption::Kms(None)) => {
                builder.with_config(encryption_key("aws_server_side_encryption")?, "aws:kms")
            }
            Some(ServerSideEncryption::Kms(Some(key))) => builder.with_sse_kms_encryption(key),
            Some(ServerSideEncryption::Customer(file)) => {
                builder.with_ssec_encryption(secret::read(file, "the key file")?.trim())
            }
        };
        let pairs = match &self.credentials_file {
            Some(file) => read_credentials(file)?,
            None => self.environment.clone(),
        };
        for (name, value) in pairs {
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value.0);
            }
        }
        builder.build().map_err(|error| cannot(error, "S3"))
    }

    fn connect_google(&self, wire: &Wire) -> Result<Clients> {
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&self.bucket)
            .with_retry(never_again())
            .with_http_connector(wire.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_config(google_key("google_base_url")?, endpoint);
        }
        match &self.credentials_file {
            Some(file) => builder = builder.with_service_account_key(secret::read(file, "credentials_file")?),
            None => {
                for (name, value) in &self.environment {
                    if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
                        builder = builder.with_config(key, value.0.clone());
                    }
                }
            }
        }
        let store = Arc::new(builder.build().map_err(|error| cannot(error, "Google Cloud Storage"))?);
        Ok(Clients {
            plain: store.clone(),
            creating: store.clone(),
            begin: store.clone(),
            parts: store,
            bucket: None,
            url: self.url("gs", &self.bucket),
        })
    }

    fn connect_azure(&self, wire: &Wire, account: &str) -> Result<Clients> {
        let mut builder = MicrosoftAzureBuilder::new()
            .with_account(account)
            .with_container_name(&self.bucket)
            .with_retry(never_again())
            .with_allow_http(!self.is_secure())
            .with_http_connector(wire.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let pairs = match &self.credentials_file {
            Some(file) => read_credentials(file)?,
            None => self.environment.clone(),
        };
        for (name, value) in pairs {
            if let Ok(key) = name.to_ascii_lowercase().parse::<AzureConfigKey>() {
                builder = builder.with_config(key, value.0);
            }
        }
        let store = Arc::new(builder.build().map_err(|error| cannot(error, "Azure Blob Storage"))?);
        Ok(Clients {
            plain: store.clone(),
            creating: store.clone(),
            begin: store.clone(),
            parts: store,
            bucket: None,
            url: self.url("az", &format!("{account}/{}", self.bucket)),
        })
    }
}

/// The URL of a bucket, in the path or in the host's name.
fn bucket_url(bucket: &str, endpoint: Option<&str>, region: &str, virtual_hosted: Option<bool>) -> String {
    let of_aws = format!("https://s3.{region}.amazonaws.com");
    let is_virtual = virtual_hosted.unwrap_or(endpoint.is_none());
    let endpoint = endpoint.unwrap_or(&of_aws).trim_end_matches('/');
    match endpoint.split_once("://") {
        Some((scheme, host)) if is_virtual => format!("{scheme}://{bucket}.{host}"),
        _ => format!("{endpoint}/{bucket}"),
    }
}

/// Patience has one place, and it is not the library.
fn never_again() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: Duration::ZERO,
    }
}

fn invalid(what: &str) -> Error {
    Error::new(Kind::Config, format!("the bucket's settings do not fit: {what}"))
}

fn cannot(error: object_store::Error, service: &str) -> Error {
    Error::new(Kind::Config, format!("use {service}")).because(error)
}

fn encryption_key(name: &str) -> Result<AmazonS3ConfigKey> {
    name.parse().map_err(|error| cannot(error, "S3"))
}

fn google_key(name: &str) -> Result<GoogleConfigKey> {
    name.parse().map_err(|error| cannot(error, "Google Cloud Storage"))
}

/// The headers that lock a new object (Amazon S3 API Reference, PutObject and CreateMultipartUpload). Compliance mode:
/// in governance mode an account with the right to bypass could delete.
fn lock_headers(now: UtcTime, horizon: Duration) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let until = now.plus(horizon).whole_seconds().to_string();
    let until = HeaderValue::from_str(&until).map_err(|_| invalid("lock_horizon is too far away"))?;
    headers.insert(
        HeaderName::from_static("x-amz-object-lock-mode"),
        HeaderValue::from_static("COMPLIANCE"),
    );
    headers.insert(HeaderName::from_static("x-amz-object-lock-retain-until-date"), until);
    Ok(headers)
}

/// Reads `NAME = value` lines, as AWS's credentials files have them; of several sections the first counts.
fn read_credentials(file: &Path) -> Result<Vec<(String, Secret)>> {
    let pairs = parse_credentials(&secret::read(file, "credentials_file")?);
    if pairs.is_empty() {
        return Err(Error::new(
            Kind::Config,
            format!("credentials_file {} holds no NAME = value", file.display()),
        )
        .hint("for S3: aws_access_key_id = ... and aws_secret_access_key = ..., each on its line"));
    }
    Ok(pairs)
}

fn parse_credentials(text: &str) -> Vec<(String, Secret)> {
    let mut pairs = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') && !pairs.is_empty() {
            break;
        }
        if line.starts_with(['#', ';', '[']) {
            continue;
        }
        if let Some((name, value)) = line.split_once('=') {
            let name = name.trim().trim_start_matches("export ").trim();
            let value = value.trim().trim_matches('"');
            pairs.push((name.to_owned(), Secret(value.to_owned())));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_credentials_file_is_read_as_aws_writes_it_or_as_a_shell_does() {
        let wanted = [("aws_access_key_id", "AK"), ("aws_secret_access_key", "s3=cr/et")];
        for text in [
            "[default]\naws_access_key_id = AK\naws_secret_access_key = s3=cr/et\n\n[other]\naws_access_key_id = no\n",
            "# mine\nexport aws_access_key_id=AK\naws_secret_access_key=\"s3=cr/et\"\n",
        ] {
            let pairs = parse_credentials(text);
            let found: Vec<_> = pairs
                .iter()
                .map(|(name, value)| (name.as_str(), value.0.as_str()))
                .collect();
            assert_eq!(found, wanted);
        }
        assert!(parse_credentials("nothing here\n").is_empty());
    }

    #[test]
    fn a_bucket_is_found_in_the_path_or_in_the_host_s_name() {
        let of = |endpoint, is_virtual| bucket_url("b", endpoint, "eu-west-1", is_virtual);
        assert_eq!(of(None, None), "https://b.s3.eu-west-1.amazonaws.com");
        assert_eq!(of(None, Some(false)), "https://s3.eu-west-1.amazonaws.com/b");
        assert_eq!(of(Some("http://h:9000/"), None), "http://h:9000/b");
        assert_eq!(of(Some("https://h"), Some(true)), "https://b.h");
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", parse_credentials("a=hidden")).contains("hidden"));
    }

    #[test]
    fn a_lock_ends_at_its_horizon() {
        let now = UtcTime::parse_compact("20261121T020000Z").unwrap();
        let headers = lock_headers(now, Duration::from_secs(86400)).unwrap();
        assert_eq!(headers["x-amz-object-lock-retain-until-date"], "2026-11-22T02:00:00Z");
    }
}
