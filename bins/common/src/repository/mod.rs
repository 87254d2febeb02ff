//! The on-disk promise: what a repository holds, as `FORMAT.md` specifies it.
//!
//! Knows keys, documents and streams, and in which order they are written. Leaves transport to
//! [`crate::storage`], compression and encryption to [`crate::codec`], and every policy to the tools.
#![doc = include_str!("../../FORMAT.md")]

pub mod backup;
pub mod bundle;
pub mod catalog;
pub mod chain;
pub mod digests;
pub mod document;
pub mod dumps;
pub mod events;
pub mod evidence;
pub mod identity;
pub mod index;
pub mod keys;
pub mod lease;
pub mod manifest;
pub mod physical;
pub mod pins;
pub mod reach;
pub mod reader;
pub mod tombstones;
pub mod wal;
pub mod writer;

use std::sync::{Arc, OnceLock};

use crate::codec::{Opening, Sealing};
use crate::error::{Error, Kind, Result};
use crate::storage::{Exclusive, Store};

pub use identity::{Identity, writer as written_by};
pub use keys::{BackupType, ClusterName, DumpLabel, Label, Nonce};

/// The newest repository format this program writes and reads.
pub const FORMAT: u32 = 1;

/// One cluster's part of one repository, and how to read and write it.
pub struct Repository {
    /// The name in the configuration, for messages.
    pub name: String,
    /// The configured URL, for messages and for noticing that a name now means another place.
    pub url: String,
    /// Whether a job fails when this repository does.
    pub required: bool,
    /// The transport.
    pub store: Arc<dyn Store>,
    /// How new data and WAL are encrypted.
    pub sealing: Sealing,
    /// How new manifests, indexes and maps are encrypted.
    pub metadata_sealing: Sealing,
    /// The keys at hand for reading.
    pub opening: Opening,
    /// The cluster, which is also the prefix of every key.
    pub cluster: ClusterName,
    identity: OnceLock<Identity>,
}

impl Repository {
    /// Puts a repository together; nothing is read yet.
    #[allow(
        clippy::too_many_arguments,
        reason = "the one constructor, called once, each part of another type"
    )]
    pub fn new(
        name: String,
        url: String,
        required: bool,
        store: Arc<dyn Store>,
        sealing: Sealing,
        metadata_sealing: Sealing,
        opening: Opening,
        cluster: ClusterName,
    ) -> Self {
        Self {
            name,
            url,
            required,
            store,
            sealing,
            metadata_sealing,
            opening,
            cluster,
            identity: OnceLock::new(),
        }
    }

    /// What `repository.json` says, read at the first call and checked: format, cluster, encryption.
    ///
    /// # Errors
    /// `NotFound` if there is surely no `repository.json`; `Refused` if it belongs to another cluster or a newer format;
    /// `Config` if the configuration encrypts and the repository does not, or the reverse; else what reading gave.
    pub fn identity(&self) -> Result<&Identity> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity);
        }
        let read = identity::read(self.store.as_ref(), &self.cluster)
            .map_err(|error| error.context(format!("read repository \"{}\"", self.name)))?;
        if let Some(creation) = &read.creation {
            self.store.trust(Exclusive::from_word(creation));
        }
        Ok(self.identity.get_or_init(|| read))
    }

    /// As [`Repository::identity`], and refuses where the configured recipients do not fit what is stored.
    ///
    /// # Errors
    /// As [`Repository::identity`]; `Config` if recipients are configured for a repository in clear, or none for an encrypted one.
    pub fn identity_for_writing(&self) -> Result<&Identity> {
        let identity = self.identity()?;
        match (identity.encrypted, self.sealing.is_encrypted()) {
            (true, false) => Err(Error::new(
                Kind::Config,
                format!(
                    "repository \"{}\" is encrypted, and no recipients are configured for it",
                    self.name
                ),
            )
            .hint(format!(
                "set encryption = {{ recipients = [\"age1...\"] }} in [repository.{}]",
                self.name
            ))),
            (false, true) => Err(Error::new(
                Kind::Config,
                format!(
                    "repository \"{}\" is not encrypted, and recipients are configured for it",
                    self.name
                ),
            )
            .hint(
                "a repository is encrypted from its first byte or not at all: choose another url for the encrypted one",
            )),
            _ => Ok(identity),
        }
    }

    /// How the names of this repository's streams end: `.age` if it is encrypted.
    ///
    /// # Errors
    /// As [`Repository::identity`].
    pub fn suffix(&self) -> Result<&'static str> {
        Ok(if self.identity()?.encrypted { ".age" } else { "" })
    }

    /// Keys below this cluster.
    pub fn keys(&self) -> keys::Keys<'_> {
        keys::Keys { cluster: &self.cluster }
    }
}
