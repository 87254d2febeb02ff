//! A bucket that keeps versions: the oldest of each object counts, so neither overwriting nor deleting one takes it away
//! from readers. Only for repositories with `lock_horizon`; looking costs a listing per object.
//!
//! Deleting removes every version, the newest first, so that what the store refuses to give up stays as it was.

use super::s3::{Bucket, Version};
use super::{BucketStore, judge, runtime};
use crate::error::{Error, Kind, Result};
use crate::storage::{Key, Stat, Store};
use crate::time::UtcTime;

/// The versions of one object that matter.
struct Found {
    oldest: Version,
    /// Versions and delete markers that lie over it.
    over: usize,
}

impl BucketStore {
    /// The object's oldest version; `None` only if there surely is none.
    pub(super) fn oldest(&self, bucket: &Bucket, key: &Key) -> Result<Option<Version>> {
        let found = oldest_of(&self.all_versions(bucket, key)?);
        if let Some(Found { over: 1.., oldest }) = &found {
            log::warn!(
                "{} was overwritten or deleted; its oldest version, of {}, is read",
                self.describe(Some(key)),
                oldest.modified
            );
        }
        Ok(found.map(|found| found.oldest))
    }

    /// The versions and delete markers of one object, newest first.
    fn all_versions(&self, bucket: &Bucket, key: &Key) -> Result<Vec<Version>> {
        let name = self.path(Some(key))?.to_string();
        let mut all = Vec::new();
        let mut from = None;
        loop {
            let page = self
                .run("look at", Some(key), bucket.versions(&name, "", from.as_ref()))
                .map_err(super::never_absent)?;
            // What begins with the name and goes on comes after it.
            let is_last = page.found.last().is_none_or(|last| last.key != name);
            all.extend(page.found.into_iter().filter(|version| version.key == name));
            from = page.next.filter(|_| !is_last);
            if from.is_none() {
                return Ok(all);
            }
        }
    }

    /// Shows the oldest version of every object below `prefix`.
    pub(super) fn list_oldest(
        &self,
        bucket: &Bucket,
        prefix: Option<&Key>,
        each: &mut dyn FnMut(Key, Stat) -> Result<()>,
    ) -> Result<()> {
        let below = self.below(prefix)?;
        let mut last: Option<Key> = None;
        let mut show = |oldest: Option<Version>| -> Result<()> {
            let Some(oldest) = oldest else { return Ok(()) };
            let path = object_store::path::Path::parse(&oldest.key).ok();
            let Some(key) = path.and_then(|path| self.key(&path)) else {
                let (name, place) = (&oldest.key, self.describe(None));
                log::warn!("{name:?} in {place} is none of the repository's: ignored");
                return Ok(());
            };
            if last.as_ref() >= Some(&key) {
                let message = format!("list {}: the store does not sort by name", self.describe(prefix));
                return Err(Error::new(Kind::Failed, message));
            }
            last = Some(key.clone());
            each(key, stat_of(&oldest))
        };
        let (mut oldest, mut from): (Option<Version>, _) = (None, None);
        loop {
            let list = bucket.versions(&below, "", from.as_ref());
            let page = self.run("list", prefix, list).map_err(super::never_absent)?;
            for version in page.found {
                if oldest.as_ref().is_some_and(|oldest| oldest.key != version.key) {
                    show(oldest.take())?;
                }
                if !version.is_marker {
                    oldest = Some(version);
                }
            }
            from = page.next;
            if from.is_none() {
                return show(oldest);
            }
        }
    }

    /// Shows the objects below `prefix` over whose oldest version something lies.
    pub(super) fn overlaid(
        &self,
        bucket: &Bucket,
        prefix: Option<&Key>,
        each: &mut dyn FnMut(Key, usize) -> Result<()>,
    ) -> Result<()> {
        let below = self.below(prefix)?;
        let mut versions: Vec<Version> = Vec::new();
        let mut show = |versions: &mut Vec<Version>| -> Result<()> {
            if let Some(Found {
                over: over @ 1..,
                oldest,
            }) = oldest_of(versions)
                && let Ok(path) = object_store::path::Path::parse(&oldest.key)
                && let Some(key) = self.key(&path)
            {
                each(key, over)?;
            }
            versions.clear();
            Ok(())
        };
        let mut from = None;
        loop {
            let list = bucket.versions(&below, "", from.as_ref());
            let mut page = self.run("list", prefix, list).map_err(super::never_absent)?;
            // Some stores list the delete markers of a page behind its versions.
            page.found.sort_by(|a, b| {
                let newest_first = b.modified.cmp(&a.modified).then(b.is_marker.cmp(&a.is_marker));
                a.key.cmp(&b.key).then(newest_first)
            });
            for version in page.found {
                if versions.last().is_some_and(|last| last.key != version.key) {
                    show(&mut versions)?;
                }
                versions.push(version);
            }
            from = page.next;
            if from.is_none() {
                return show(&mut versions);
            }
        }
    }

    /// The names directly below `prefix` that have a version which is no delete marker.
    pub(super) fn children_of_all_versions(&self, bucket: &Bucket, prefix: Option<&Key>) -> Result<Vec<String>> {
        let below = self.below(prefix)?;
        let mut names = Vec::new();
        let mut from = None;
        loop {
            let list = bucket.versions(&below, "/", from.as_ref());
            let page = self.run("list", prefix, list).map_err(super::never_absent)?;
            let objects = page.found.iter().filter(|version| !version.is_marker);
            let objects = objects.map(|version| version.key.as_str());
            let directories = page.prefixes.iter().map(|prefix| prefix.trim_end_matches('/'));
            names.extend(objects.chain(directories).filter_map(|name| {
                let path = object_store::path::Path::parse(name).ok()?;
                self.key(&path).map(|key| key.name().to_owned())
            }));
            from = page.next;
            if from.is_none() {
                names.sort_unstable();
                names.dedup();
                return Ok(names);
            }
        }
    }

    /// Deletes an object with all its versions and delete markers.
    pub(super) fn delete_versions(&self, bucket: &Bucket, key: &Key) -> Result<()> {
        for version in self.all_versions(bucket, key)? {
            let deleted = runtime()?.block_on(bucket.delete_version(&version.key, &version.id));
            deleted.map_err(|error| {
                let error = judge::judge(error, format!("delete {}", self.describe(Some(key))));
                if error.kind() != Kind::Failed {
                    return error;
                }
                let locked = runtime().map(|runtime| runtime.block_on(bucket.locked_until(&version.key, &version.id)));
                match locked {
                    Ok(Ok(Some(until))) => error.hint(format!("its object lock ends at {until}")),
                    _ => error.hint("is its object lock still running, or may the account not delete versions?"),
                }
            })?;
        }
        Ok(())
    }

    /// Locks the version that counts until then. A lock in compliance mode can be prolonged and never shortened.
    pub(super) fn lock_until(&self, key: &Key, until: UtcTime) -> Result<()> {
        let Some(bucket) = self.versioned() else {
            let place = self.describe(Some(key));
            return Err(Error::new(
                Kind::Config,
                format!("{place}: nothing is locked without lock_horizon"),
            ));
        };
        let Some(oldest) = self.oldest(bucket, key)? else {
            return Err(crate::storage::not_found(self, key));
        };
        let done = runtime()?.block_on(bucket.retain(&oldest.key, &oldest.id, until));
        done.map_err(|error| {
            let error = judge::judge(error, format!("renew the lock of {}", self.describe(Some(key))));
            match error.kind() {
                Kind::Failed => error.hint("may the account put retention (s3:PutObjectRetention)?"),
                _ => error,
            }
        })
    }

    /// What the names of objects below a key begin with in the bucket.
    pub(super) fn below(&self, prefix: Option<&Key>) -> Result<String> {
        Ok(match self.path(prefix)?.to_string() {
            empty if empty.is_empty() => empty,
            path => path + "/",
        })
    }
}

pub(super) fn stat_of(version: &Version) -> Stat {
    Stat {
        size: version.size,
        modified: version.modified,
    }
}

/// Of versions of one object, newest first.
fn oldest_of(versions: &[Version]) -> Option<Found> {
    let at = versions.iter().rposition(|version| !version.is_marker)?;
    Some(Found {
        oldest: versions.get(at)?.clone(),
        over: at,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn version(id: &str, is_marker: bool) -> Version {
        Version {
            key: "k".into(),
            id: id.into(),
            size: 1,
            modified: UtcTime::UNIX_EPOCH,
            is_marker,
        }
    }

    #[test]
    fn the_oldest_that_is_no_marker_counts() {
        let found = oldest_of(&[version("3", true), version("2", false), version("1", false)]).unwrap();
        assert_eq!((found.oldest.id.as_str(), found.over), ("1", 2));
        // The object did not exist and was deleted, then came into being.
        let found = oldest_of(&[version("2", false), version("1", true)]).unwrap();
        assert_eq!((found.oldest.id.as_str(), found.over), ("2", 0));
        assert!(oldest_of(&[version("1", true)]).is_none());
        assert!(oldest_of(&[]).is_none());
    }
}
