//! Backups: their objects, what they lean on, and whether the manifest agrees.

use std::collections::{BTreeMap, BTreeSet};

use common::codec::FRAME_BYTES;
use common::digest::{crc32c, xxh3_128};
use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::repository::backup::BackupInfo;
use common::repository::index::BLOCK_BYTES;
use common::repository::manifest::Node;
use common::repository::{Label, Repository, reader};
use common::storage::Key;

use crate::finding::{Finding, Findings, Weight, What};
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

const RESTORE: &str = "it cannot be restored from this repository";

impl Backups<'_> {
    /// Checks one backup; says whether it is whole, as far as was looked.
    ///
    /// # Errors
    /// What keeps the repository from being looked at.
    pub fn check(&self, info: &BackupInfo) -> Result<bool> {
        interrupt::check()?;
        let there = self.objects(info.label)?;
        let mut whole = self.compare(info, &there)?;
        whole &= self.leans_on(info)?;
        if whole {
            whole &= self.manifest(info)?;
        }
        if let Some(share) = self.share {
            whole &= self.read(info, &there, share)?;
        }
        Ok(whole)
    }

    /// The objects of a label and their sizes.
    fn objects(&self, label: Label) -> Result<BTreeMap<String, u64>> {
        let folder = self.repository.keys().of_label(label)?;
        let prefix = format!("{folder}/");
        let mut there = BTreeMap::new();
        self.repository.store.list(Some(&folder), &mut |key, stat| {
            let text = key.to_string();
            there.insert(text.strip_prefix(&prefix).unwrap_or(&text).to_owned(), stat.size);
            Ok(())
        })?;
        Ok(there)
    }

    fn key(&self, label: Label, name: &str) -> Result<Key> {
        self.repository.keys().of_backup(label, name)
    }

    fn damage(&self, what: What, key: &Key, found: String, mendable: bool) {
        let finding = Finding::damage(what, key.to_string(), found, RESTORE);
        self.findings.add(finding, mendable.then_some(key));
    }

    /// Compares what is there with what `backup.json` lists.
    fn compare(&self, info: &BackupInfo, there: &BTreeMap<String, u64>) -> Result<bool> {
        let mut whole = true;
        let mut known: BTreeSet<&str> = BTreeSet::from(["intent.json", "backup.json"]);
        for object in &info.objects {
            known.insert(&object.key);
            let key = self.key(info.label, &object.key)?;
            match there.get(&object.key) {
                Some(size) if *size == object.size => continue,
                Some(0) => self.damage(What::Size, &key, "it is empty".to_owned(), true),
                Some(size) => {
                    let found = format!("it has {size} bytes, and {} were stored", object.size);
                    self.damage(What::Size, &key, found, true);
                }
                None => self.damage(What::Missing, &key, "it is missing".to_owned(), true),
            }
            whole = false;
        }
        for name in there.keys().filter(|name| !known.contains(name.as_str())) {
            let key = self.key(info.label, name)?;
            let means = "no backup lists it: somebody put it there, and nothing reads it";
            self.findings.add(
                Finding::damage(What::Foreign, key.to_string(), "it is foreign", means),
                None,
            );
        }
        Ok(whole)
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
    fn manifest(&self, info: &BackupInfo) -> Result<bool> {
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
                self.damage(What::Content, &key, chain(&error), true);
                return Ok(false);
            }
            Err(error) => return self.unchecked(&key, error),
        }
        if (files, bytes) != (info.files, info.size) {
            let found = format!(
                "it lists {files} files of {bytes} bytes, and backup.json says {} of {}",
                info.files, info.size
            );
            self.damage(What::Unusable, &key, found, false);
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
                self.damage(What::Unusable, &key, found, false);
                whole = false;
            }
            if self.repository.store.stat(&key)?.is_none() {
                let found = format!("it is missing, and {} needs it", info.label);
                self.damage(What::Missing, &key, found, true);
                whole = false;
            }
        }
        Ok(whole)
    }

    /// An object that could not be looked at; a store that went away ends the run.
    fn unchecked(&self, key: &Key, error: Error) -> Result<bool> {
        if error.kind() == Kind::Transient {
            return Err(error);
        }
        let means = "nobody knows whether it is whole";
        let finding = Finding::damage(What::Unknown, key.to_string(), chain(&error), means);
        self.findings.add(finding.weighing(Weight::Unchecked), None);
        Ok(true)
    }

    /// Reads the objects that are in this run's share and compares them.
    fn read(&self, info: &BackupInfo, there: &BTreeMap<String, u64>, share: Share) -> Result<bool> {
        let suffix = self.repository.suffix()?;
        let mut whole = true;
        for object in info
            .objects
            .iter()
            .filter(|object| there.get(&object.key) == Some(&object.size))
        {
            let key = self.key(info.label, &object.key)?;
            if !share.holds(&key) {
                continue;
            }
            interrupt::check()?;
            let name = object.key.strip_suffix(suffix).unwrap_or(&object.key);
            let bundle = name
                .strip_prefix("data/")
                .and_then(|name| name.strip_suffix(".tar.zst")?.parse().ok());
            let read = reader::check_object(self.repository, info, name).and_then(|()| match bundle {
                Some(bundle) => self.compare_blocks(info, bundle),
                None => Ok(()),
            });
            match read {
                Ok(()) => {}
                Err(error) if error.kind() == Kind::Config => {}
                Err(error) if error.kind() == Kind::Corrupt => {
                    self.damage(What::Content, &key, chain(&error), true);
                    whole = false;
                }
                Err(error) => whole &= self.unchecked(&key, error)?,
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
