//! The backup that an incremental one leans on, as it lies in this host's chain and in the repositories.

use std::io::BufReader;

use common::error::{Error, Kind, Result, chain};
use common::repository::backup::{self, BackupInfo};
use common::repository::catalog::Catalog;
use common::repository::manifest::{ManifestReader, Source};
use common::repository::{Label, Repository, reader};

use common::repository::chain::Chain;

/// The backups that every one of these catalogs has, with all they lean on; oldest first.
pub fn in_all(catalogs: &[Catalog]) -> Vec<BackupInfo> {
    let Some((first, others)) = catalogs.split_first() else {
        return Vec::new();
    };
    let whole = |catalog: &Catalog, info: &BackupInfo| catalog.lacks(info).is_none();
    let everywhere = |info: &&BackupInfo| {
        whole(first, info)
            && others
                .iter()
                .all(|other| other.get(info.label).is_some() && whole(other, info))
    };
    let mut found: Vec<BackupInfo> = first.backups.iter().filter(everywhere).cloned().collect();
    // Labels of one second sort by chance; the documents know more of the time.
    found.sort_by_key(|info| info.started);
    found
}

/// Says why what a backup holds cannot be known on this host, if so.
///
/// # Errors
/// The reason.
pub fn usable(kept: &Chain, repositories: &[&Repository], info: &BackupInfo) -> Result<(), String> {
    let mut why = None;
    for repository in repositories {
        match open_stored(repository, info.label) {
            Ok(_) => return Ok(()),
            Err(error) => {
                why.get_or_insert(format!("repository \"{}\": {}", repository.name, chain(&error)));
            }
        }
    }
    // Nothing can be opened here but what this host has kept: then all of it must be there.
    let committed = info.references.iter().filter_map(|label| {
        let read = |repository: &&Repository| backup::read(repository, *label).ok();
        repositories.iter().find_map(read)
    });
    let lacks = kept
        .lacks(info)
        .or_else(|| committed.into_iter().find_map(|info| kept.lacks(&info)));
    match lacks {
        None => Ok(()),
        Some(what) => Err(format!(
            "{what} is not kept on this host, and cannot be read from a repository ({})",
            why.unwrap_or_else(|| "none is configured".to_owned())
        )),
    }
}

/// Opens the manifest of a backup: this host's copy, or that of a repository.
///
/// # Errors
/// What kept the last repository's from being read.
pub fn open_manifest<'a>(kept: &'a Chain, repositories: &[&'a Repository], label: Label) -> Result<ManifestReader<'a>> {
    let repositories = repositories.to_vec();
    let open = move |label: Label| -> Result<Box<dyn Source + 'a>> {
        if let Some(file) = kept.manifest(label) {
            return Ok(Box::new(BufReader::new(file)));
        }
        let mut last = Error::new(Kind::NotFound, format!("no repository has the manifest of {label}"));
        for repository in &repositories {
            match open_stored(repository, label) {
                Ok(source) => return Ok(source),
                Err(error) => last = error.context(format!("repository \"{}\"", repository.name)),
            }
        }
        Err(last)
    };
    let own = open(label)?;
    ManifestReader::open(own, Box::new(open)).map_err(|error| error.context(format!("read the manifest of {label}")))
}

/// The manifest of a repository, all of it checked: what is read here goes into another one.
fn open_stored<'a>(repository: &'a Repository, label: Label) -> Result<Box<dyn Source + 'a>> {
    let info = backup::read(repository, label)?;
    reader::check_object(repository, &info, "manifest.zst")?;
    Ok(Box::new(reader::open_stream(repository, &info, "manifest.zst")?))
}
