//! Timeline history files, kept on this host: with every repository away a promotion still learns which timelines are taken.

use std::io::Write;
use std::path::{Path, PathBuf};

use common::durable;
use common::error::{Context, Result, chain};
use common::postgres::{SystemId, WalName};
use common::repository::{ClusterName, Repository, wal};

use crate::place::Placing;

/// The cache of one cluster and system.
pub struct Histories {
    directory: PathBuf,
}

impl Histories {
    /// The cache below the state directory.
    pub fn new(state: &Path, cluster: &ClusterName, system: SystemId) -> Self {
        Self {
            directory: state.join(cluster.as_str()).join("histories").join(system.to_string()),
        }
    }

    /// Copies every history that a repository holds; a cache that cannot be kept is only logged.
    pub fn refresh(&self, repository: &Repository, system: SystemId) {
        let kept = wal::histories(repository, system).and_then(|found| {
            for (timeline, content) in found {
                self.keep(&WalName::History { timeline }, &content)?;
            }
            Ok(())
        });
        if let Err(error) = kept {
            log::debug!(
                "cannot keep the timeline histories of \"{}\": {}",
                repository.name,
                chain(&error)
            );
        }
    }

    fn keep(&self, name: &WalName, content: &[u8]) -> Result<()> {
        let path = self.directory.join(name.to_string());
        if std::fs::read(&path).is_ok_and(|known| known == content) {
            return Ok(());
        }
        durable::create_dir_all(&self.directory, 0o700)?;
        durable::replace(&path, content, 0o600)
    }

    /// The cached content of a history.
    pub fn get(&self, name: &WalName) -> Option<Vec<u8>> {
        std::fs::read(self.directory.join(name.to_string())).ok()
    }
}

/// Puts remembered content at its destination, and says so.
///
/// # Errors
/// What the file system says.
pub fn hand_out(name: &WalName, content: &[u8], destination: &Path) -> Result<()> {
    log::warn!("{name} comes from this host's cache: a repository does not answer");
    let mut placing = Placing::begin(destination)?;
    placing
        .write_all(content)
        .context(|| format!("write {}", destination.display()))?;
    placing.finish()
}
