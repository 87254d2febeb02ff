//! The URL of a repository.

use std::fmt;
use std::path::PathBuf;

use super::reader::absolute;
use crate::error::{Error, Kind, Result};

/// Where a repository is. Nothing in it is percent-decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `file:///path`
    File {
        /// The absolute directory.
        root: PathBuf,
    },
    /// `s3://bucket/prefix`
    S3 {
        /// The bucket.
        bucket: String,
        /// What every key begins with, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// `gs://bucket/prefix`
    Google {
        /// The bucket.
        bucket: String,
        /// What every key begins with, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// `az://account/container/prefix`
    Azure {
        /// The storage account.
        account: String,
        /// The container.
        container: String,
        /// What every key begins with, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// `sftp://user@host:port/path`
    Sftp {
        /// The user; `None`: as ssh's configuration says.
        user: Option<String>,
        /// Host name or address, or a name in ssh's configuration.
        host: String,
        /// The port; `None`: as ssh's configuration says.
        port: Option<u16>,
        /// The absolute directory on the server.
        root: PathBuf,
    },
}

impl Location {
    /// Reads a URL.
    ///
    /// # Errors
    /// `Config`.
    pub fn parse(url: &str) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(invalid("is not a URL").hint("a local directory is written file:///var/backups/pgkeep"));
        };
        match scheme {
            "file" if rest.starts_with('/') => Ok(Self::File { root: directory(rest)? }),
            "file" => Err(invalid("has a relative path").hint("three slashes: file:///var/backups/pgkeep")),
            "s3" => parse_bucket(rest).map(|(bucket, prefix)| Self::S3 { bucket, prefix }),
            "gs" => parse_bucket(rest).map(|(bucket, prefix)| Self::Google { bucket, prefix }),
            "az" => parse_azure(rest),
            "sftp" => parse_sftp(rest),
            _ => Err(invalid("has an unknown scheme").hint("known are file, s3, sftp, gs and az")),
        }
    }

    /// `file`, `s3`, `gs`, `az` or `sftp`.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::S3 { .. } => "s3",
            Self::Google { .. } => "gs",
            Self::Azure { .. } => "az",
            Self::Sftp { .. } => "sftp",
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { root } => write!(f, "file://{}", root.display()),
            Self::S3 { bucket, prefix } => write_bucket(f, "s3", bucket, prefix),
            Self::Google { bucket, prefix } => write_bucket(f, "gs", bucket, prefix),
            Self::Azure {
                account,
                container,
                prefix,
            } => write_bucket(f, "az", &format!("{account}/{container}"), prefix),
            Self::Sftp { user, host, port, root } => {
                f.write_str("sftp://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(host)?;
                if let Some(port) = port {
                    write!(f, ":{port}")?;
                }
                write!(f, "{}", root.display())
            }
        }
    }
}

fn write_bucket(f: &mut fmt::Formatter<'_>, scheme: &str, bucket: &str, prefix: &str) -> fmt::Result {
    write!(f, "{scheme}://{bucket}")?;
    match prefix {
        "" => Ok(()),
        prefix => write!(f, "/{prefix}"),
    }
}

/// The URL itself is not repeated: it may come from the environment, and the line says where it stands.
fn invalid(what: &str) -> Error {
    Error::new(Kind::Config, format!("the URL {what}"))
}

fn directory(path: &str) -> Result<PathBuf> {
    let root = absolute(path)?;
    if root.parent().is_none() {
        return Err(invalid("names the root directory"));
    }
    Ok(root)
}

/// Splits `bucket/prefix`.
fn parse_bucket(rest: &str) -> Result<(String, String)> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if bucket.is_empty() || !bucket.bytes().all(allowed) {
        return Err(
            invalid("has no valid bucket").hint("s3://BUCKET/PREFIX; the service's address goes into \"endpoint\"")
        );
    }
    let prefix = prefix.trim_end_matches('/');
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control);
    if !prefix.is_empty() && !prefix.split('/').all(plain) {
        return Err(invalid("has an invalid prefix"));
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

fn parse_azure(rest: &str) -> Result<Location> {
    let hint = "az://ACCOUNT/CONTAINER/PREFIX";
    let (account, rest) = rest
        .split_once('/')
        .filter(|(account, _)| !account.is_empty() && account.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        .ok_or_else(|| invalid("has no valid account and container").hint(hint))?;
    let (container, prefix) = parse_bucket(rest).map_err(|error| error.hint(hint))?;
    Ok(Location::Azure {
        account: account.to_owned(),
        container,
        prefix,
    })
}

fn parse_sftp(rest: &str) -> Result<Location> {
    let Some((authority, path)) = rest.split_once('/') else {
        return Err(invalid("has no path").hint("sftp://USER@HOST/DIRECTORY"));
    };
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, authority),
    };
    if user.is_some_and(|user| user.contains(':')) {
        return Err(invalid("holds a password").hint("use a key: ssh_key = \"/etc/pgkeep/id_ed25519\""));
    }
    let (host, port) = split_port(address)?;
    // ssh takes what begins with a dash for an option.
    let word = |text: &str| {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/@\"'`$;&|<>\\".contains(c);
        !text.is_empty() && !text.starts_with('-') && !text.contains(odd)
    };
    if !word(host) || user.is_some_and(|user| !word(user)) {
        return Err(invalid("has no valid user or host").hint("sftp://USER@HOST/DIRECTORY"));
    }
    Ok(Location::Sftp {
        user: user.map(str::to_owned),
        host: host.to_owned(),
        port,
        root: directory(&format!("/{path}"))?,
    })
}

/// Splits `host:port`; an IPv6 address stands in brackets, which stay.
fn split_port(address: &str) -> Result<(&str, Option<u16>)> {
    let end = address.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = address.get(end..).and_then(|rest| rest.rfind(':')).map(|at| end + at) else {
        return Ok((address, None));
    };
    let (host, port) = address.split_at(colon);
    let port = port.trim_start_matches(':').parse().ok().filter(|port| *port != 0);
    match port {
        Some(port) if !host.contains(':') || host.ends_with(']') => Ok((host, Some(port))),
        _ => Err(invalid("has an invalid port")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_are_read_and_written_back() {
        for url in [
            "file:///var/backups/pgkeep",
            "file:///var/with space",
            "s3://company-backups/postgres",
            "s3://company-backups",
            "s3://b/a/b",
            "gs://company-backups/postgres",
            "az://account/container",
            "az://account/container/a/b",
            "sftp://rcadmin@192.168.1.246/home/rcadmin/postgres-backups",
            "sftp://nas/volume",
            "sftp://a@nas:2222/volume",
            "sftp://a@[fe80::1]:22/volume",
            "sftp://[fe80::1]/volume",
        ] {
            assert_eq!(Location::parse(url).unwrap().to_string(), url);
        }
        assert_eq!(
            Location::parse("file:///a//b/").unwrap(),
            Location::parse("file:///a/b").unwrap()
        );
        assert_eq!(
            Location::parse("s3://b/p/").unwrap(),
            Location::parse("s3://b/p").unwrap()
        );
    }

    #[test]
    fn urls_that_mean_something_else_are_refused() {
        for url in [
            "",
            "/var/backups",
            "file://var/backups",
            "file:/var/backups",
            "file:///",
            "file:///a/../b",
            "s3://",
            "s3:///prefix",
            "s3://b//p",
            "s3://b/../p",
            "sftp://host",
            "sftp://host/",
            "sftp://user:secret@host/x",
            "sftp://-oProxyCommand=x/y",
            "sftp://-l@host/y",
            "sftp://host:0/x",
            "sftp://host:99999/x",
            "sftp://fe80::1/x",
            "http://x/y",
            "gs:///y",
            "az://account",
            "az:///container/x",
            "az://a.b/container",
        ] {
            let error = Location::parse(url).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{url}");
            assert!(!format!("{error:?}").contains("secret"));
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_back(rest in "[a-z@:/.\\[\\]0-9-]{0,30}", scheme in "(file|s3|gs|az|sftp)") {
            if let Ok(location) = Location::parse(&format!("{scheme}://{rest}")) {
                prop_assert_eq!(Location::parse(&location.to_string()).unwrap(), location);
            }
        }
    }
}
