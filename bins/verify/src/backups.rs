//! Backups: their objects, what they lean on, and whether the manifest agrees.

use std::collections::BTreeSet;

use common::codec::FRAME_BYTES;
use common::digest::{crc32c, xxh3_128};
use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::repository::backup::BackupInfo;
use common::repository::index::BLOCK_BYTES;
use common::repository::manifest::Node;
use common::repository::writer::Folder;
use common::repository::{Label, Repository, reader};
use common::storage::Key;

use crate::finding::{Finding, Findings, What};
use crate::objects::{Objects, RESTORE};
use crate::share::Share;

/// What is known of all labels while backups are checked.
pub struct Backups<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Those that are there, oldest first.
    pub backups: &'a [BackupInfo],
    /// Labels without `backup.json`.
    pub unfinished: &'a [Label],
    /// Takes what is found.
    pub findings: &'a Findings,
    /// What of the data is read.
    pub share: Option<Share>,
}

impl Backups<'_> {
    /// Checks one backup; says whether it is whole, as far as was looked.
    ///
    /// # Errors
    /// What keeps the repository from being looked at.
    pub fn check(&self, info: &BackupInfo) -> Result<bool> {
        interrupt::check()?;
        let objects = Objects {
            repository: self.repository,
            findings: self.findings,
            folder: Folder::Backup(info.label),
        };
        let there = objects.compare(&info.objects, &["intent.json", "backup.json"])?;
        let mut whole = there.len() == info.objects.len();
        whole &= self.leans_on(info)?;
        if whole {
            whole &= self.manifest(info, &objects)?;
        }
        if let Some(share) = self.share {
            whole &= objects.read(&there, share, |name| {
                let bundle = name
                    .strip_prefix("data/")
                    .and_then(|name| name.strip_suffix(".tar.zst")?.parse().ok());
                bundle.map_or(Ok(()), |bundle| self.compare_blocks(info, bundle))
            })?;
        }
        Ok(whole)
    }

    fn key(&self, label: Label, name: &str) -> Result<Key> {
        self.repository.keys().of_backup(label, name)
    }

    /// Whether all that its bytes lie in is there.
    fn leans_on(&self, info: &BackupInfo) -> Result<bool> {
        let mut whole = true;
        for label in &info.references {
            let there = self.backups.iter().any(|other| other.label == *label) || self.unfinished.contains(label);
            if !there {
                let object = format!("backup/{label}");
                let found = format!("{} leans on it, and it is missing", info.label);
                self.findings
                    .add(Finding::damage(What::Missing, object, found, RESTORE), None);
                whole = false;
            }
        }
        Ok(whole)
    }

    /// Reads the manifest, where a key opens it: every bundle that it points at has to be there.
    fn manifest(&self, info: &BackupInfo, objects: &Objects<'_>) -> Result<bool> {
        let key = self.key(info.label, &format!("manifest.zst{}", self.repository.suffix()?))?;
        let mut used: BTreeSet<(Label, u32)> = BTreeSet::new();
        let (mut files, mut bytes) = (0u64, 0u64);
        let read = reader::check_object(self.repository, info, "manifest.zst")
            .and_then(|()| reader::open_manifest(self.repository, info))
            .and_then(|mut manifest| {
                manifest.for_each(|entry| {
                    if let Node::File(file) = &entry.node {
                        files += 1;
                        bytes += file.size;
                        used.extend(
                            file.ranges
                                .iter()
                                .map(|range| (range.label.unwrap_or(info.label), range.bundle)),
                        );
                    }
                    Ok(())
                })
            });
        match read {
            Ok(()) => {}
            // Without the key nobody can say more than that the bytes are those that were stored.
            Err(error) if error.kind() == Kind::Config => return Ok(true),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound | Kind::Refused) => {
                objects.damage(What::Content, &key, chain(&error));
                return Ok(false);
            }
            Err(error) => {
                objects.unchecked(&key, error)?;
                return Ok(true);
            }
        }
        if (files, bytes) != (info.files, info.size) {
            let found = format!(
                "it lists {files} files of {bytes} bytes, and backup.json says {} of {}",
                info.files, info.size
            );
            self.findings
                .add(Finding::damage(What::Unusable, key.to_string(), found, RESTORE), None);
            return Ok(false);
        }
        let mut whole = true;
        for (label, bundle) in used.into_iter().filter(|(label, _)| *label != info.label) {
            let name = format!("data/{bundle}.tar.zst{}", self.repository.suffix()?);
            let key = self.key(label, &name)?;
            let listed = info.references.contains(&label);
            if !listed {
                let found = format!(
                    "the manifest of {} points at it, and references does not name it",
                    info.label
                );
                self.findings
                    .add(Finding::damage(What::Unusable, key.to_string(), found, RESTORE), None);
                whole = false;
            }
            if self.repository.store.stat(&key)?.is_none() {
                let found = format!("it is missing, and {} needs it", info.label);
                objects.damage(What::Missing, &key, found);
                whole = false;
            }
        }
        Ok(whole)
    }

    /// Decrypts and decompresses a bundle, and compares each block with its digests in the index.
    fn compare_blocks(&self, info: &BackupInfo, number: u32) -> Result<()> {
        let index = reader::read_index(self.repository, info, number)?;
        let mut bundle = reader::open_bundle(self.repository, info, number)?;
        let mut buffer = vec![0; FRAME_BYTES];
        for member in &index.members {
            let mut digest = usize::try_from(member.first_digest).unwrap_or(usize::MAX);
            let mut done = 0u64;
            while done < member.size {
                let size = usize::try_from(member.size - done)
                    .unwrap_or(FRAME_BYTES)
                    .min(FRAME_BYTES);
                let chunk = buffer.get_mut(..size).unwrap_or_default();
                bundle.read_at(member.offset + done, chunk)?;
                for block in chunk.chunks(BLOCK_BYTES) {
                    let same = index
                        .digests
                        .get(digest)
                        .is_some_and(|known| known.crc32c == crc32c(block) && known.xxh3 == xxh3_128(block));
                    if !same {
                        let name = String::from_utf8_lossy(&member.name).into_owned();
                        let at = done / BLOCK_BYTES as u64;
                        return Err(Error::new(
                            Kind::Corrupt,
                            format!("the block at {at} of {name} does not have the digest that its index says"),
                        ));
                    }
                    digest += 1;
                }
                done += size as u64;
            }
        }
        Ok(())
    }
}
