//! The dumps of a repository, by name.

use crate::error::Result;
use crate::repository::Repository;
use crate::time::UtcTime;

/// A dump, or what is left of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// Its folder's name.
    pub name: String,
    /// When it was begun.
    pub started: UtcTime,
    /// Whether it has a `dump.json`.
    pub complete: bool,
}

/// Lists them, oldest first. What does not carry a dump's name is passed over.
///
/// # Errors
/// What the store says.
pub fn list(repository: &Repository) -> Result<Vec<Dump>> {
    let folder = repository.keys().dumps()?;
    let mut dumps = Vec::new();
    for name in repository.store.children(Some(&folder))? {
        let started = name.split_once("-dump-").map(|(time, _)| UtcTime::parse_compact(time));
        let Some(Ok(started)) = started else { continue };
        let document = folder.join(&name)?.join("dump.json")?;
        dumps.push(Dump {
            complete: repository.store.stat(&document)?.is_some(),
            name,
            started,
        });
    }
    dumps.sort_by(|a, b| (a.started, &a.name).cmp(&(b.started, &b.name)));
    Ok(dumps)
}
