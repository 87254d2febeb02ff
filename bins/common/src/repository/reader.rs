//! Opens the streams of a committed backup for reading.

use std::io::Read;
use std::sync::Arc;

use crate::codec::{SeekableFrames, SeekableReader};
use crate::digest::{Sha256, Sha256Digest};
use crate::error::{Error, Kind, Result};
use crate::repository::backup::BackupInfo;
use crate::repository::index::Index;
use crate::repository::manifest::{ManifestReader, Source};
use crate::repository::{Label, Repository, backup};
use crate::storage::{Key, ObjectReader};

/// A bundle, open for reading any of its bytes.
pub type Bundle = SeekableFrames<SeekableReader<ObjectReader>>;

/// Opens the decrypted compressed stream of one object of a backup: `name` without `.age`.
///
/// # Errors
/// `NotFound` if it is surely absent; `Config` without the key; `Corrupt` if it has another size than `backup.json` says.
pub fn open_stream(repository: &Repository, info: &BackupInfo, name: &str) -> Result<SeekableReader<ObjectReader>> {
    let suffix = repository.suffix()?;
    let full = format!("{name}{suffix}");
    let record = info.objects.iter().find(|object| object.key == full).ok_or_else(|| {
        Error::new(
            Kind::Corrupt,
            format!("backup {} does not list its object {full}", info.label),
        )
    })?;
    let key = repository.keys().of_backup(info.label, &full)?;
    open_object(repository, &key, record.size)
}

/// Opens the decrypted compressed stream of an object that must have this size in bytes.
///
/// # Errors
/// As [`open_stream`].
pub fn open_object(repository: &Repository, key: &Key, size: u64) -> Result<SeekableReader<ObjectReader>> {
    let place = repository.store.describe(Some(key));
    let stat = repository
        .store
        .stat(key)?
        .ok_or_else(|| Error::new(Kind::NotFound, format!("{place} is missing")))?;
    if stat.size != size {
        return Err(Error::new(
            Kind::Corrupt,
            format!("{place} has {} bytes, and {size} were stored", stat.size),
        ));
    }
    let reader = ObjectReader::new(Arc::clone(&repository.store), key.clone(), size);
    repository
        .opening
        .open_seekable(reader, !repository.suffix()?.is_empty())
        .map_err(|error| error.context(format!("open {place}")))
}

/// Checks all stored bytes of one object of a backup, `name` without `.age`, against `backup.json`: for objects that carry
/// no checksum of their own.
///
/// # Errors
/// `NotFound` if it is surely absent; `Corrupt` if it is another one than was stored.
pub fn check_object(repository: &Repository, info: &BackupInfo, name: &str) -> Result<()> {
    let full = format!("{name}{}", repository.suffix()?);
    let key = repository.keys().of_backup(info.label, &full)?;
    let Some(record) = info.objects.iter().find(|object| object.key == full) else {
        let message = format!("backup {} does not list its object {full}", info.label);
        return Err(Error::new(Kind::Corrupt, message));
    };
    check_digest(repository, &key, record.sha256)
}

/// Checks all stored bytes of an object against their digest.
///
/// # Errors
/// `Corrupt` if they are others; else what the store says.
pub fn check_digest(repository: &Repository, key: &Key, wanted: Sha256Digest) -> Result<()> {
    let place = repository.store.describe(Some(key));
    let mut stream = repository.store.open(key, 0, None)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let got = stream
            .read(&mut buffer)
            .map_err(|error| Error::io(error, format!("read {place}")))?;
        if got == 0 {
            break;
        }
        digest.update(buffer.get(..got).unwrap_or_default());
    }
    let found = digest.finish();
    if found == wanted {
        return Ok(());
    }
    let message = format!("{place} has SHA-256 {found}, and {wanted} was stored");
    Err(Error::new(Kind::Corrupt, message))
}

/// Opens bundle `number`.
///
/// # Errors
/// As [`open_stream`].
pub fn open_bundle(repository: &Repository, info: &BackupInfo, number: u32) -> Result<Bundle> {
    SeekableFrames::open(open_stream(repository, info, &format!("data/{number}.tar.zst"))?)
}

/// Opens bundle `number` of a backup without `backup.json`: an interrupted one whose bundles a later backup uses.
///
/// # Errors
/// As [`open_stream`]; the size is not checked against anything, so the caller checks what it reads.
pub fn open_unfinished_bundle(repository: &Repository, label: Label, number: u32) -> Result<Bundle> {
    let suffix = repository.suffix()?;
    let key = repository
        .keys()
        .of_backup(label, &format!("data/{number}.tar.zst{suffix}"))?;
    let place = repository.store.describe(Some(&key));
    let stat = repository
        .store
        .stat(&key)?
        .ok_or_else(|| Error::new(Kind::NotFound, format!("{place} is missing")))?;
    let reader = ObjectReader::new(Arc::clone(&repository.store), key, stat.size);
    let opened = repository.opening.open_seekable(reader, !suffix.is_empty());
    opened
        .and_then(SeekableFrames::open)
        .map_err(|error| error.context(format!("open {place}")))
}

/// Reads the index of bundle `number`.
///
/// # Errors
/// As [`open_stream`]; `Corrupt` if it is damaged.
pub fn read_index(repository: &Repository, info: &BackupInfo, number: u32) -> Result<Index> {
    let stream = open_stream(repository, info, &format!("data/{number}.index.zst"))?;
    let mut bytes = Vec::new();
    crate::codec::FrameReader::new(stream)?
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io(error, format!("read the index of bundle {number}")))?;
    Index::decode(&bytes)
}

/// Reads the index of bundle `number` of a backup without `backup.json`.
///
/// # Errors
/// As [`open_unfinished_bundle`]; `Corrupt` if it is damaged.
pub fn read_unfinished_index(repository: &Repository, label: Label, number: u32) -> Result<Index> {
    use std::io::Read;
    let suffix = repository.suffix()?;
    let key = repository
        .keys()
        .of_backup(label, &format!("data/{number}.index.zst{suffix}"))?;
    let stored = crate::storage::read_all(repository.store.as_ref(), &key, u64::MAX)?;
    let opened = repository.opening.open(&stored[..], !suffix.is_empty())?;
    let mut bytes = Vec::new();
    crate::codec::FrameReader::new(opened)?
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io(error, format!("read {}", repository.store.describe(Some(&key)))))?;
    Index::decode(&bytes)
}

/// Opens the manifest; groups of other backups are found in the same repository.
///
/// # Errors
/// As [`open_stream`]; `Corrupt` if it is damaged.
pub fn open_manifest<'a>(repository: &'a Repository, info: &BackupInfo) -> Result<ManifestReader<'a>> {
    let own = open_stream(repository, info, "manifest.zst")?;
    let key = repository
        .keys()
        .of_backup(info.label, &format!("manifest.zst{}", repository.suffix()?))?;
    let place = repository.store.describe(Some(&key));
    let other = move |label: Label| {
        let info = backup::read(repository, label)?;
        let stream = open_stream(repository, &info, "manifest.zst")?;
        Ok(Box::new(stream) as Box<dyn Source + 'a>)
    };
    match ManifestReader::open(Box::new(own), Box::new(other)) {
        Ok(reader) => Ok(reader.at(place)),
        Err(error) => Err(error.context(format!("read {place}"))),
    }
}
