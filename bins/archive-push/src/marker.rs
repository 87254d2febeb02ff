//! Remembers what a run stored beyond what it was asked for, so that the call for it returns at once.
//!
//! A marker is believed only for the same required repositories, the same cluster, and content with the same digests:
//! recycled names, a restored cluster at the same path and a repository made anew never count as stored. Markers are not
//! synced: one that is lost costs a second push, which finds the file stored.
//!
//! While a required repository fails, a marker names those that do have the file. Nobody takes that for "stored"; it only
//! lets the next run go on behind it, so that the others still receive everything.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use common::codec::Reading;
use common::digest::{Sha256Digest, xxh3_128};
use common::durable;
use common::error::{Error, Kind, Result};
use common::postgres::{SystemId, WalName};
use common::repository::pins::Pin;

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// Every required repository; or, if not all of them have the file, those that do. Sorted by name.
    repositories: Vec<Pin>,
    system_identifier: String,
    name: String,
    size: u64,
    sha256: Sha256Digest,
    xxh3: String,
}

/// The markers of one data directory.
pub struct Markers {
    directory: PathBuf,
}

impl Markers {
    /// The markers for the data directory at `data_directory`, an absolute path.
    pub fn new(spool: &Path, cluster: &str, data_directory: &Path) -> Self {
        let place = format!("{}", xxh3_128(data_directory.as_os_str().as_encoded_bytes()));
        Self {
            directory: spool.join(cluster).join("push").join(place),
        }
    }

    fn file(&self, name: &WalName) -> PathBuf {
        self.directory.join(name.to_string())
    }

    /// Whether a marker stands for this name, whatever it says: only then is the file worth reading for it.
    pub fn stands(&self, name: &WalName) -> bool {
        self.file(name).exists()
    }

    fn read(&self, name: &WalName, system: SystemId) -> Option<Marker> {
        let bytes = std::fs::read(self.file(name)).ok()?;
        let marker: Marker = serde_json::from_slice(&bytes).ok()?;
        (marker.system_identifier == system.to_string() && marker.name == name.to_string()).then_some(marker)
    }

    /// Whether an earlier run stored exactly this content in exactly these repositories.
    pub fn says_stored(&self, name: &WalName, system: SystemId, required: &[Pin], content: (u64, String)) -> bool {
        self.read(name, system)
            .is_some_and(|marker| marker.repositories == sorted(required) && (marker.size, marker.xxh3) == content)
    }

    /// Whether an earlier run stored a file of this name at least in these repositories; its content was not compared.
    pub fn covers(&self, name: &WalName, system: SystemId, repositories: &[Pin]) -> bool {
        self.read(name, system)
            .is_some_and(|marker| repositories.iter().all(|pin| marker.repositories.contains(pin)))
    }

    /// Notes that `name` is stored in every repository of `holders`.
    ///
    /// # Errors
    /// What the spool directory says; the file is stored all the same.
    pub fn set(&self, name: &WalName, system: SystemId, holders: &[Pin], content: &Reading) -> Result<()> {
        let marker = Marker {
            repositories: sorted(holders),
            system_identifier: system.to_string(),
            name: name.to_string(),
            size: content.length,
            sha256: content.sha256,
            xxh3: content.xxh3.to_string(),
        };
        let bytes =
            serde_json::to_vec(&marker).map_err(|error| Error::new(Kind::Failed, "encode a marker").because(error))?;
        durable::create_dir_all(&self.directory, 0o700)?;
        durable::replace_unsynced(&self.file(name), &bytes, 0o600)
    }

    /// Forgets `name`, after it has been used or found wrong.
    pub fn forget(&self, name: &WalName) {
        let _ = std::fs::remove_file(self.file(name));
    }
}

fn sorted(pins: &[Pin]) -> Vec<Pin> {
    let mut pins = pins.to_vec();
    pins.sort();
    pins
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::digest::{Xxh3_128, hex};

    fn pin(name: &str, uuid: u8) -> Pin {
        let hex = hex(&[uuid; 16]);
        let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        Pin {
            name: name.into(),
            url: format!("file:///{name}"),
            uuid,
        }
    }

    #[test]
    fn a_marker_is_believed_only_if_everything_is_the_same() {
        let spool = tempfile::tempdir().unwrap();
        let markers = Markers::new(spool.path(), "main", Path::new("/srv/data"));
        let name = WalName::parse("000000010000000000000004").unwrap();
        let digests = Reading {
            length: 16,
            sha256: Sha256Digest([1; 32]),
            xxh3: Xxh3_128(5),
        };
        let content = (16, digests.xxh3.to_string());
        let required = [pin("b", 2), pin("a", 1)];
        assert!(!markers.says_stored(&name, SystemId(7), &required, content.clone()));
        markers.set(&name, SystemId(7), &required, &digests).unwrap();
        assert!(markers.stands(&name));

        let same = [pin("a", 1), pin("b", 2)];
        assert!(markers.says_stored(&name, SystemId(7), &same, content.clone()));
        assert!(
            !markers.says_stored(&name, SystemId(8), &same, content.clone()),
            "another cluster"
        );
        assert!(
            !markers.says_stored(&name, SystemId(7), &same[..1], content.clone()),
            "fewer repositories"
        );
        assert!(
            !markers.says_stored(&name, SystemId(7), &[pin("a", 1), pin("b", 3)], content.clone()),
            "made anew"
        );
        assert!(
            !markers.says_stored(&name, SystemId(7), &same, (17, content.1.clone())),
            "another size"
        );
        let other = Xxh3_128(6).to_string();
        assert!(
            !markers.says_stored(&name, SystemId(7), &same, (16, other)),
            "other content"
        );
        assert!(markers.covers(&name, SystemId(7), &same[..1]) && markers.covers(&name, SystemId(7), &same));
        assert!(!markers.covers(&name, SystemId(8), &same) && !markers.covers(&name, SystemId(7), &[pin("c", 4)]));
        let elsewhere = Markers::new(spool.path(), "main", Path::new("/srv/other"));
        assert!(!elsewhere.stands(&name), "another data directory");
        markers.forget(&name);
        assert!(!markers.stands(&name));
    }
}
