//! What this host remembers of the repositories it uses: which UUID stood at which URL.
//!
//! With it a program can tell, without asking the store, which repository a name meant when it was last seen, and it
//! notices when another one stands in its place.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::{Error, Kind, Result, chain};
use crate::repository::{ClusterName, Repository};

/// A repository as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pin {
    /// The name in the configuration.
    pub name: String,
    /// The URL at that time.
    pub url: String,
    /// The repository's UUID.
    pub uuid: String,
}

/// The pins of one cluster on this host.
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The pins below the state directory.
    pub fn new(state_directory: &Path, cluster: &ClusterName) -> Self {
        Self {
            directory: state_directory.join(cluster.as_str()).join("repository"),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// What was remembered of the repository configured as `name` at `url`; nothing if it was another URL.
    pub fn get(&self, name: &str, url: &str) -> Option<Pin> {
        let bytes = std::fs::read(self.file(name)).ok()?;
        let pin: Pin = serde_json::from_slice(&bytes).ok()?;
        (pin.name == name && pin.url == url && super::identity::is_uuid(&pin.uuid)).then_some(pin)
    }

    /// Checks a repository against what was remembered, and remembers it if nothing was.
    ///
    /// A memory that cannot be kept costs time, nothing else: it is only logged.
    ///
    /// # Errors
    /// `Refused` if another repository stood at this URL before; else as [`Repository::identity`].
    pub fn check(&self, repository: &Repository) -> Result<Pin> {
        let uuid = &repository.identity()?.uuid;
        if let Some(known) = self.get(&repository.name, &repository.url) {
            if known.uuid != *uuid {
                return Err(Error::new(
                    Kind::Refused,
                    format!(
                        "repository \"{}\" has UUID {uuid}, and this host knows it as {}",
                        repository.name, known.uuid
                    ),
                )
                .hint("is the right file system mounted? if the repository was made anew on purpose, run pgkeep-init on this host"));
            }
            return Ok(known);
        }
        let pin = Pin {
            name: repository.name.clone(),
            url: repository.url.clone(),
            uuid: uuid.clone(),
        };
        if let Err(error) = self.set(&pin) {
            log::debug!("cannot remember repository \"{}\": {}", repository.name, chain(&error));
        }
        Ok(pin)
    }

    /// Remembers a repository, whatever was known before.
    ///
    /// # Errors
    /// What the state directory says.
    pub fn set(&self, pin: &Pin) -> Result<()> {
        let bytes = serde_json::to_vec(pin).map_err(|error| Error::new(Kind::Failed, "encode a pin").because(error))?;
        durable::create_dir_all(&self.directory, 0o700)?;
        durable::replace(&self.file(&pin.name), &bytes, 0o600)
    }
}
