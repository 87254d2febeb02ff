//! The objects of a backup or a dump, by several workers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::error::{Context, Error, Kind, Result};
use common::repository::backup::ObjectRecord;
use common::repository::writer::Folder;

use crate::copy::{Route, look_at};
use crate::tally::Target;

/// Copies them, or finds them copied, and returns what the target's document says of them.
///
/// # Errors
/// `Corrupt` if one is damaged; else what the stores say.
pub fn copy(
    route: &Route<'_>,
    folder: Folder,
    objects: &[ObjectRecord],
    jobs: usize,
    tally: &Target,
) -> Result<Vec<ObjectRecord>> {
    let records = Mutex::new(vec![None; objects.len()]);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    let next = AtomicUsize::new(0);
    let work = || {
        while failed.lock().is_ok_and(|failed| failed.is_none()) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(object) = objects.get(at) else { return };
            match one(route, folder, object, tally) {
                Ok(record) => {
                    if let Ok(mut records) = records.lock()
                        && let Some(place) = records.get_mut(at)
                    {
                        *place = Some(record);
                    }
                }
                Err(error) => {
                    if let Ok(mut failed) = failed.lock() {
                        failed.get_or_insert(error);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.min(objects.len()) {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = failed.into_inner().unwrap_or_default() {
        return Err(error);
    }
    let records: Option<Vec<ObjectRecord>> = records.into_inner().unwrap_or_default().into_iter().collect();
    records.ok_or_else(|| Error::new(Kind::Failed, "a worker ended without its object"))
}

/// Copies one object, or finds it copied.
fn one(route: &Route<'_>, folder: Folder, object: &ObjectRecord, tally: &Target) -> Result<ObjectRecord> {
    let is_metadata = folder.is_metadata(&object.key);
    let name = object.key.strip_suffix(".age").unwrap_or(&object.key);
    let name = format!("{name}{}", route.target.suffix()?);
    let from = folder.key(route.source, &object.key)?;
    let to = folder.key(route.target, &name)?;
    let place = || route.target.store.describe(Some(&to));
    let stored = match route.target.store.stat(&to)? {
        // Objects appear whole; of the same bytes the size says enough.
        Some(there) if !route.reseals(is_metadata) && there.size == object.size => {
            return Ok(object.clone());
        }
        Some(_) if route.reseals(is_metadata) => look_at(route.target, &to)?,
        Some(there) => {
            let message = format!(
                "{} has {} bytes, and {} were to be copied",
                place(),
                there.size,
                object.size
            );
            return Err(Error::new(Kind::Refused, message)
                .hint("another program wrote under this label; remove the label's directory in the target if it has no backup.json or dump.json"));
        }
        None => {
            let stored = route
                .digested(&from, &to, is_metadata, object.sha256)
                .context(|| format!("copy {}", object.key))?;
            tally.add(|copied| copied.bytes += stored.size);
            stored
        }
    };
    Ok(ObjectRecord {
        key: name,
        size: stored.size,
        sha256: stored.sha256,
        plain: object.plain,
    })
}
