//! Finds what there is to copy and puts it in order.

use std::path::{Path, PathBuf};

use common::config::Cluster;
use common::error::{Error, Kind, Result};
use common::postgres::datadir::{self, Found, Tablespace};
use common::postgres::{ControlFile, FoundKind};
use common::sorter::{Sorted, Sorter};

use crate::item::Item;

/// What the list of files may take of the memory, in bytes; the rest is on disk.
const MEMORY_BYTES: usize = 8 << 20;
/// Copied last, for the restored server reads it first.
const CONTROL: &[u8] = b"data/global/pg_control";

/// What there is to copy.
pub struct Listing {
    /// Everything but pg_control, in the order that was asked for.
    pub items: Sorted,
    /// pg_control itself.
    pub control: Item,
    /// Size of all files when they were found, in bytes.
    pub bytes: u64,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
}

/// Lists the data directory, its tablespaces and the extra paths, sorted by `key`.
///
/// # Errors
/// `Config` if an extra path cannot be read; else what walking gave.
pub fn list(
    data_directory: &Path,
    cluster: &Cluster,
    control: &ControlFile,
    spill: &Path,
    key: &dyn Fn(&Item) -> Vec<u8>,
) -> Result<Listing> {
    let mut sorter = Sorter::new(MEMORY_BYTES, spill);
    let mut bytes = 0u64;
    let mut control_item = None;
    let tablespaces = datadir::tablespaces(data_directory)?;
    let mut add = |found: Found| {
        let item = Item::from(found);
        if item.path == CONTROL {
            control_item = Some(item);
            return Ok(());
        }
        if item.kind == FoundKind::File {
            bytes = bytes.saturating_add(item.size);
        }
        sorter.push(&key(&item), &item.encode())
    };
    datadir::walk(data_directory, &tablespaces, &control.tablespace_directory(), &mut add)?;
    let excludes = &cluster.extra_excludes;
    for path in outermost(&cluster.extra_paths, excludes) {
        let excluded = |path: &Path| excludes.iter().any(|exclude| exclude == path);
        datadir::walk_extra(path, &excluded, &mut add).map_err(|error| {
            let kind = if error.kind() == Kind::NotFound {
                Kind::Config
            } else {
                error.kind()
            };
            error
                .with_kind(kind)
                .context(format!("list extra path {}", path.display()))
                .hint("extra_excludes leaves out what is not needed or may not be read")
        })?;
    }
    let control = control_item.ok_or_else(|| {
        Error::new(
            Kind::Corrupt,
            format!("{} has no global/pg_control", data_directory.display()),
        )
    })?;
    Ok(Listing {
        items: sorter.finish()?,
        control,
        bytes,
        tablespaces,
    })
}

/// The paths that no other one covers: nothing may be in a backup twice.
fn outermost<'a>(paths: &'a [PathBuf], excludes: &[PathBuf]) -> Vec<&'a PathBuf> {
    let covered = |at: usize, path: &PathBuf| {
        paths.iter().enumerate().any(|(other_at, other)| {
            let above = path.starts_with(other) && (path != other || other_at < at);
            let cut_off = excludes
                .iter()
                .any(|exclude| exclude.starts_with(other) && path.starts_with(exclude));
            above && !cut_off
        })
    };
    paths
        .iter()
        .enumerate()
        .filter(|(at, path)| !covered(*at, path))
        .map(|(_, path)| path)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Vec<PathBuf> {
        texts.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_path_below_another_or_named_twice_is_taken_once() {
        let given = paths(&["/etc/a/b", "/etc/a", "/etc/a", "/etc/ab"]);
        assert_eq!(
            outermost(&given, &[]),
            [&PathBuf::from("/etc/a"), &PathBuf::from("/etc/ab")]
        );
    }

    #[test]
    fn a_path_below_an_exclude_of_another_stays() {
        let given = paths(&["/etc/a", "/etc/a/b/c"]);
        assert_eq!(outermost(&given, &paths(&["/etc/a/b"])).len(), 2);
    }
}
