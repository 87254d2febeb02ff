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

    /// What was remembered of the repository configured as `name` at `url`; nothing if it was another URL, or if that
    /// cannot be read: [`Pins::read`] tells these apart.
    pub fn get(&self, name: &str, url: &str) -> Option<Pin> {
        self.read(name, url).ok().flatten()
    }

    /// What was remembered of the repository configured as `name` at `url`; nothing if it was another URL.
    ///
    /// # Errors
    /// `Failed` if there is something and it cannot be read: then nobody knows which repository this host used.
    pub fn read(&self, name: &str, url: &str) -> Result<Option<Pin>> {
        let file = self.file(name);
        let what = || {
            format!(
                "read what this host knows of repository \"{name}\" from {}",
                file.display()
            )
        };
        let hint =
            "it names the repository that this host used before; if it is lost, remove the file and run pgkeep-init";
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let directory = file.parent().unwrap_or(&file).display();
                let hint =
                    format!("it belongs to the server's user, as all beside it: chown -R that user: {directory}");
                return Err(Error::io(error, what()).with_kind(Kind::Failed).hint(hint));
            }
            Err(error) => return Err(Error::io(error, what()).with_kind(Kind::Failed).hint(hint)),
        };
        let pin: Option<Pin> = serde_json::from_slice(&bytes).ok();
        match pin.filter(|pin| pin.name == name && super::identity::is_uuid(&pin.uuid)) {
            None => Err(Error::new(Kind::Failed, format!("{}: it is damaged", what())).hint(hint)),
            Some(pin) => Ok((pin.url == url).then_some(pin)),
        }
    }

    /// Refuses a repository that is another one than this host knows; remembers nothing.
    ///
    /// # Errors
    /// `Refused` if another repository stood at this URL before; `Failed` if that cannot be known; else as
    /// [`Repository::identity`].
    pub fn compare(&self, repository: &Repository) -> Result<Option<Pin>> {
        let uuid = &repository.identity()?.uuid;
        match self.read(&repository.name, &repository.url)? {
            Some(known) if known.uuid != *uuid => Err(Error::new(
                Kind::Refused,
                format!(
                    "repository \"{}\" has UUID {uuid}, and this host knows it as {}",
                    repository.name, known.uuid
                ),
            )
            .hint(format!(
                "is the right file system mounted? if it was made anew on purpose: pgkeep-init --replace {}",
                known.uuid
            ))),
            known => Ok(known),
        }
    }

    /// Checks a repository against what was remembered, and remembers it if nothing was.
    ///
    /// A memory that cannot be kept costs time, nothing else: it is only logged.
    ///
    /// # Errors
    /// As for [`Pins::compare`].
    pub fn check(&self, repository: &Repository) -> Result<Pin> {
        if let Some(known) = self.compare(repository)? {
            return Ok(known);
        }
        let uuid = &repository.identity()?.uuid;
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
