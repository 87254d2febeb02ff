//! Remembers which WAL files a repository missed that work goes on without, and brings it level as far as pg_wal still has them.
//!
//! A note is an empty file named like the WAL file, in a directory named like the repository. It is written where storing failed, and removed
//! where the repository is found to have the file. A lost note costs nothing: sync compares what is stored.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::durable;
use common::error::{Result, chain};
use common::postgres::WalName;
use common::repository::wal;

use crate::target::{Offer, Run, Target};

/// So many files are looked after in one run: PostgreSQL waits for it, and there will be another.
const PER_RUN: usize = 16;

/// The notes of one cluster.
pub struct Missed {
    directory: PathBuf,
}

impl Missed {
    /// The notes below the state directory of the cluster.
    pub fn below(state: &Path) -> Self {
        Self {
            directory: state.join("missed"),
        }
    }

    fn of(&self, repository: &str) -> PathBuf {
        self.directory.join(repository)
    }

    /// Notes that `repository` did not get `name`. Where that fails, only sync will find out.
    pub fn note(&self, repository: &str, name: &WalName) {
        let directory = self.of(repository);
        let noted = durable::create_dir_all(&directory, 0o700)
            .and_then(|()| durable::replace_unsynced(&directory.join(name.to_string()), b"", 0o600));
        if let Err(error) = noted {
            log::debug!("cannot note that \"{repository}\" missed {name}: {}", chain(&error));
        }
    }

    /// What `repository` missed, oldest first.
    pub fn list(&self, repository: &str) -> Vec<WalName> {
        let entries = std::fs::read_dir(self.of(repository)).into_iter().flatten().flatten();
        let name = |entry: std::fs::DirEntry| WalName::parse(&entry.file_name().into_string().ok()?).ok();
        let mut names: Vec<WalName> = entries.filter_map(name).collect();
        names.sort_by_cached_key(ToString::to_string);
        names
    }

    fn forget(&self, repository: &str, name: &WalName) {
        let _ = std::fs::remove_file(self.of(repository).join(name.to_string()));
    }

    /// Gives each of `targets`, which answer again, what it missed and pg_wal still has; says what it has not.
    pub fn bring_level(&self, run: &Arc<Run>, targets: &[Arc<Target>], patience: std::time::Duration) {
        for target in targets {
            let name = &target.repository.name;
            let missed = self.list(name);
            let mut gone = 0;
            for file in missed.iter().take(PER_RUN) {
                match self.give(run, target, file, patience) {
                    Ok(true) => {
                        log::info!("repository \"{name}\" has {file} now, which it missed");
                        self.forget(name, file);
                    }
                    Ok(false) => gone += 1,
                    Err(error) => {
                        log::debug!("repository \"{name}\" still misses {file}: {}", chain(&error));
                        break;
                    }
                }
            }
            if gone > 0 {
                let count = missed.len();
                log::warn!(
                    "repository \"{name}\" misses {count} WAL files, and pg_wal does not have all of them any more: \
                     pgkeep-sync --to {name} brings it level"
                );
            }
        }
    }

    /// Whether the repository has the file now.
    fn give(
        &self,
        run: &Arc<Run>,
        target: &Arc<Target>,
        file: &WalName,
        patience: std::time::Duration,
    ) -> Result<bool> {
        if wal::is_there(&target.repository, run.system, file)? {
            return Ok(true);
        }
        if !run.wal_directory.join(file.to_string()).is_file() {
            return Ok(false);
        }
        let mut offer = Offer::make(run, file, std::slice::from_ref(target))?;
        offer.wait(patience);
        offer.give_up();
        match offer.into_errors().next() {
            Some((_, error)) => Err(error),
            None => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_noted_is_listed_by_repository_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let missed = Missed::below(directory.path());
        let names = ["000000010000000000000003", "000000010000000000000002"].map(|name| WalName::parse(name).unwrap());
        for name in &names {
            missed.note("nas", name);
            missed.note("nas", name);
        }
        assert_eq!(missed.list("nas"), [names[1], names[0]]);
        assert!(missed.list("s3").is_empty());
        missed.forget("nas", &names[1]);
        assert_eq!(missed.list("nas"), [names[0]]);
    }
}
