//! Which repository this is: `repository.json` (FORMAT.md, section 2).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::repository::keys::Keys;
use crate::repository::{ClusterName, FORMAT, document};
use crate::storage::Store;
use crate::time::UtcTime;

/// The content of `repository.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Always `repository`.
    pub pgkeep: String,
    /// The format of everything below.
    pub format: u32,
    /// Random, different for each repository and cluster.
    pub uuid: String,
    /// The cluster, equal to the prefix.
    pub cluster: String,
    /// When it was made.
    pub created: UtcTime,
    /// Whether streams are encrypted.
    pub encrypted: bool,
    /// How the store was found to keep names from being taken twice; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation: Option<String>,
    /// The program that made it.
    pub writer: String,
}

impl Identity {
    /// Makes the identity of a new repository.
    ///
    /// # Errors
    /// `Failed` if the system has no random source.
    pub fn new(cluster: &ClusterName, created: UtcTime, encrypted: bool) -> Result<Self> {
        Ok(Self {
            pgkeep: "repository".to_owned(),
            format: FORMAT,
            uuid: random_uuid()?,
            cluster: cluster.to_string(),
            created,
            encrypted,
            creation: None,
            writer: writer(),
        })
    }
}

/// The program and its version, as documents name it.
pub fn writer() -> String {
    format!("pgkeep {}", env!("CARGO_PKG_VERSION"))
}

/// Reads and checks the identity of the repository in `store` that `cluster` uses.
///
/// # Errors
/// `NotFound` if there is surely no `repository.json`; `Refused` if it is of another cluster or a newer format;
/// `Corrupt` if it is none; else what reading gave.
pub fn read(store: &dyn Store, cluster: &ClusterName) -> Result<Identity> {
    let key = Keys { cluster }.identity()?;
    let identity: Identity = document::read(store, &key).map_err(with_way_out)?;
    let place = store.describe(Some(&key));
    if identity.pgkeep != "repository" || !is_uuid(&identity.uuid) {
        return Err(
            Error::new(Kind::Corrupt, format!("{place} does not describe a pgkeep repository")).hint(DAMAGED_HINT),
        );
    }
    if identity.cluster != cluster.as_str() {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "{place} belongs to cluster \"{}\", not to \"{cluster}\"",
                identity.cluster
            ),
        )
        .hint("was a repository copied, or mounted in the wrong place?"));
    }
    Ok(identity)
}

const DAMAGED_HINT: &str =
    "it never changes: put it back from a copy of the repository; what the repository holds is not touched by that";

/// Adds what a person can do about a repository that cannot be used, where nothing is said yet.
fn with_way_out(error: Error) -> Error {
    if error.nearest_hint().is_some() {
        return error;
    }
    match error.kind() {
        Kind::NotFound => {
            error.hint("is its file system mounted, and its url right? only for a new repository: pgkeep-init")
        }
        Kind::Corrupt => error.hint(DAMAGED_HINT),
        _ if error.is_denied() => error
            .hint("it must belong to the user who runs the server: chown -R postgres: on the repository's directory"),
        _ => error,
    }
}

fn random_uuid() -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(Kind::Failed, "draw random bytes").because(error.to_string()))?;
    let number = u128::from_be_bytes(bytes);
    // RFC 9562, version 4: the version and variant bits are fixed.
    let number = (number & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{number:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    Ok([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
}

/// Whether `text` has the form of a UUID, which makes it safe as a file's name.
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::memory::MemoryStore;

    fn stored(identity: &Identity) -> MemoryStore {
        let store = MemoryStore::new();
        let cluster = ClusterName::parse("main").unwrap();
        document::write(&store, &Keys { cluster: &cluster }.identity().unwrap(), identity).unwrap();
        store
    }

    #[test]
    fn a_uuid_is_random_and_of_version_4() {
        let (a, b) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert!(is_uuid(&a) && is_uuid(&b) && a != b);
        assert_eq!(&a[14..15], "4");
        assert!("89ab".contains(&a[19..20]));
    }

    #[test]
    fn another_clusters_repository_is_refused_and_a_missing_one_is_not_found() {
        let main = ClusterName::parse("main").unwrap();
        let other = ClusterName::parse("other").unwrap();
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        let foreign = stored(&Identity::new(&other, now, false).unwrap());
        assert_eq!(read(&foreign, &main).unwrap_err().kind(), Kind::Refused);
        assert_eq!(read(&MemoryStore::new(), &main).unwrap_err().kind(), Kind::NotFound);
        let own = Identity::new(&main, now, true).unwrap();
        assert_eq!(read(&stored(&own), &main).unwrap(), own);
    }
}
