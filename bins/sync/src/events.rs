//! Events that hold for every copy of the cluster: what backups are kept, whose WAL it is, what will never come.

use common::error::{Context, Error, Kind, Result};
use common::repository::{Repository, document, events, tombstones};
use common::storage::{Key, read_all};

use crate::tally::Target;

/// Kinds that speak of the cluster. Recipients and damage are each repository's own.
const KINDS: [&str; 5] = ["system", "keep", "unkeep", "gap", SEALED_KIND];
/// The kind of which a part is sealed.
const SEALED_KIND: &str = "tombstone";

/// Larger ones are not ours.
const LIMIT_BYTES: u64 = 1 << 20;

/// Refuses two repositories that do not belong to one cluster, whatever its name.
///
/// # Errors
/// `Refused` if they have no system identifier in common; what reading gave.
pub fn check(source: &Repository, target: &Repository) -> Result<()> {
    let (from, to) = (events::systems(source)?, events::systems(target)?);
    let common = from
        .iter()
        .any(|known| to.iter().any(|other| other.system == known.system));
    if common || from.is_empty() || to.is_empty() {
        return Ok(());
    }
    let of = |known: &[events::KnownSystem]| known.last().map_or_else(String::new, |last| last.system.to_string());
    let message = format!(
        "repository \"{}\" holds system identifier {}, repository \"{}\" another one, {}",
        source.name,
        of(&from),
        target.name,
        of(&to)
    );
    Err(Error::new(Kind::Refused, message)
        .hint("two clusters under one name: give each a name of its own, [cluster.NAME]"))
}

/// Copies the events that the target lacks.
///
/// # Errors
/// What reading and writing gave.
pub fn copy(source: &Repository, target: &Repository, dry_run: bool, tally: &Target) -> Result<()> {
    let folder = source.keys().events()?;
    let there = target.store.children(Some(&folder))?;
    for name in missing(source.store.children(Some(&folder))?, &there) {
        if !dry_run {
            copy_one(source, target, &folder.join(&name)?)?;
        }
        tally.add(|copied| copied.events += 1);
    }
    Ok(())
}

fn copy_one(source: &Repository, target: &Repository, key: &Key) -> Result<()> {
    let written = if kind(key.name()) == Some(SEALED_KIND) {
        // Its names must not lie in clear where all else is sealed, nor be sealed for somebody else.
        let event = document::read(source.store.as_ref(), key)?;
        let event = tombstones::translated(event, source, target)?;
        document::write(target.store.as_ref(), key, &event).map(drop)
    } else {
        let bytes = read_all(source.store.as_ref(), key, LIMIT_BYTES)?;
        let put = target.store.put_new(key, &bytes);
        put.map(drop)
            .context(|| format!("write {}", target.store.describe(Some(key))))
    };
    match written {
        Err(error) if error.kind() == Kind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

/// What the name of an event says.
fn kind(name: &str) -> Option<&str> {
    name.strip_suffix(".json")?.splitn(3, '-').nth(2)
}

/// The names to copy: of a kind that is for all, and not there.
fn missing(names: Vec<String>, there: &[String]) -> Vec<String> {
    let is_for_all = |name: &String| kind(name).is_some_and(|kind| KINDS.contains(&kind));
    let mut names = names;
    names.retain(|name| is_for_all(name) && !there.contains(name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_one_repository_stay_there() {
        let name = |kind: &str| format!("20261120T020000Z-3f9a1c-{kind}.json");
        let all: Vec<String> = ["system", "recipients", "keep", "damage", "unkeep", "gap", "later"]
            .map(name)
            .into();
        let there = [name("keep")];
        assert_eq!(missing(all, &there), ["system", "unkeep", "gap"].map(name));
        assert!(missing(vec!["odd.json".to_owned(), "x".to_owned()], &[]).is_empty());
    }
}
