//! What processes that are gone left behind in directories of our own, below one directory for each of their kind: the
//! spools of data directories that no longer exist, of repositories that were made anew.
//!
//! Nothing there is needed: what is removed by mistake is fetched or compared again. So age alone decides, and a directory
//! whose lock is held stays. What cannot be removed stays too, until the next time.
//!
//! A directory's lock goes with it. Whoever opened that file a moment before then holds a lock that keeps nobody out: its
//! directory is gone or somebody's again, and two may write the same segment there, which is checked before it is used.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::durable;
use crate::lock::FileLock;

/// The name of the file whose lock keeps a directory.
pub const LOCK_NAME: &str = "lock";

/// How often is looked, at most.
const EVERY: Duration = Duration::from_secs(3600);

/// What was last touched longer ago than this is unused.
const UNUSED: Duration = Duration::from_secs(86_400);

/// Removes the unused directories below `<place>/<kind>` for each kind, at most once an hour; gives how many it were.
pub fn collect(place: &Path, kinds: &[&str], now: SystemTime) -> usize {
    let noted = place.join("collected");
    if is_younger(&noted, EVERY, now) || !place.is_dir() {
        return 0;
    }
    if let Err(error) = durable::replace_unsynced(&noted, b"", 0o600) {
        log::debug!("cannot note that leftovers are collected: {error}");
        return 0;
    }
    let removed = kinds.iter().map(|kind| remove_unused(&place.join(kind), now)).sum();
    if removed > 0 {
        log::info!("removed {removed} unused directories below {}", place.display());
    }
    removed
}

fn remove_unused(parent: &Path, now: SystemTime) -> usize {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.filter(|entry| remove_if_unused(&entry.path(), now)).count()
}

fn remove_if_unused(directory: &Path, now: SystemTime) -> bool {
    let files: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    if is_younger(directory, UNUSED, now) || files.iter().any(|file| is_younger(file, UNUSED, now)) {
        return false;
    }
    let path = directory.join(LOCK_NAME);
    let lock = path.exists().then(|| FileLock::try_acquire(&path));
    if let Some(Ok(None) | Err(_)) = lock {
        return false;
    }
    // Directories inside are none of ours: then the last step fails, and all stays that is not.
    for file in &files {
        let _ = fs::remove_file(file);
    }
    fs::remove_dir(directory).is_ok()
}

/// Whether it was changed less than `age` ago; a time in the future says that the clock was set back.
fn is_younger(path: &Path, age: Duration, now: SystemTime) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|found| found.modified());
    modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|passed| passed < age))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn names(place: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(place)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_nobody_has_used_for_a_day_goes_and_what_is_locked_stays() {
        let place = tempfile::tempdir().unwrap();
        let (get, push) = (place.path().join("get"), place.path().join("push"));
        for name in ["held", "old", "strange"] {
            fs::create_dir_all(get.join(name)).unwrap();
            fs::write(get.join(name).join("000000010000000000000001-ab"), b"x").unwrap();
            fs::write(get.join(name).join(LOCK_NAME), b"").unwrap();
        }
        fs::create_dir_all(push.join("empty")).unwrap();
        fs::create_dir(get.join("strange/directory")).unwrap();
        let kinds = ["get", "push", "missing"];
        let now = SystemTime::now();
        assert_eq!(collect(place.path(), &kinds, now), 0, "all of it is young");

        let held = FileLock::try_acquire(&get.join("held").join(LOCK_NAME))
            .unwrap()
            .unwrap();
        let later = now + DAY + DAY;
        assert_eq!(collect(place.path(), &kinds, later), 2);
        assert_eq!(
            (names(&get), names(&push)),
            (vec!["held".into(), "strange".into()], vec![])
        );
        assert_eq!(names(&get.join("held")).len(), 2);

        // The note is of now, by the file system's clock.
        drop(held);
        assert_eq!(
            collect(place.path(), &kinds, SystemTime::now()),
            0,
            "at most once an hour"
        );
        assert_eq!(collect(place.path(), &kinds, later), 1);
        assert_eq!(names(&get), ["strange"]);
    }
}
