//! The objects of a backup or a dump: whether those that its document lists are there, and no others.

use std::collections::{BTreeMap, BTreeSet};

use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::repository::backup::ObjectRecord;
use common::repository::writer::Folder;
use common::repository::{Repository, reader};
use common::storage::Key;

use crate::finding::{Finding, Findings, Weight, What};
use crate::share::Share;

/// What damage to one means.
pub const RESTORE: &str = "it cannot be restored from this repository";

/// A folder that is checked.
#[derive(Clone, Copy)]
pub struct Objects<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Takes what is found.
    pub findings: &'a Findings,
    /// Where they are.
    pub folder: Folder,
}

impl Objects<'_> {
    /// The key of one.
    ///
    /// # Errors
    /// `Refused` if `name` is no key.
    pub fn key(&self, name: &str) -> Result<Key> {
        self.folder.key(self.repository, name)
    }

    /// Adds damage, which a good copy of the object mends.
    pub fn damage(&self, what: What, key: &Key, found: String) {
        let finding = Finding::damage(what, key.to_string(), found, RESTORE);
        self.findings.add(finding, Some(key));
    }

    /// Adds that an object could not be looked at.
    ///
    /// # Errors
    /// The error itself, if it is temporary.
    pub fn unchecked(&self, key: &Key, error: Error) -> Result<()> {
        if error.kind() == Kind::Transient {
            return Err(error);
        }
        let means = "nobody knows whether it is whole";
        let finding = Finding::damage(What::Unknown, key.to_string(), chain(&error), means);
        self.findings.add(finding.weighing(Weight::Unchecked), None);
        Ok(())
    }

    /// Compares what is there with what is listed and with `documents`, which are there besides; returns those that are there with
    /// their size.
    ///
    /// # Errors
    /// What the store says.
    pub fn compare<'o>(&self, listed: &'o [ObjectRecord], documents: &[&str]) -> Result<Vec<&'o ObjectRecord>> {
        let there = self.there()?;
        let mut known: BTreeSet<&str> = documents.iter().copied().collect();
        let mut whole = Vec::new();
        for object in listed {
            known.insert(&object.key);
            let key = self.key(&object.key)?;
            match there.get(&object.key) {
                Some(size) if *size == object.size => whole.push(object),
                Some(0) => self.damage(What::Size, &key, "it is empty".to_owned()),
                Some(size) => {
                    let found = format!("it has {size} bytes, and {} were stored", object.size);
                    self.damage(What::Size, &key, found);
                }
                None => self.damage(What::Missing, &key, "it is missing".to_owned()),
            }
        }
        for name in there.keys().filter(|name| !known.contains(name.as_str())) {
            let means = format!(
                "no {} lists it: somebody put it there, and nothing reads it",
                self.folder.what()
            );
            let finding = Finding::damage(What::Foreign, self.key(name)?.to_string(), "it is foreign", means);
            self.findings.add(finding, None);
        }
        Ok(whole)
    }

    /// Reads those that are in this run's share: their stored bytes, and with `look`, which gets the name without `.age`, what is in
    /// them. Says whether all are whole, as far as could be looked.
    ///
    /// # Errors
    /// What the store says, if it is temporary.
    pub fn read(&self, objects: &[&ObjectRecord], share: Share, look: impl Fn(&str) -> Result<()>) -> Result<bool> {
        let suffix = self.repository.suffix()?;
        let mut whole = true;
        for object in objects {
            let key = self.key(&object.key)?;
            if !share.holds(&key) {
                continue;
            }
            interrupt::check()?;
            let name = object.key.strip_suffix(suffix).unwrap_or(&object.key);
            let read = reader::check_digest(self.repository, &key, object.sha256).and_then(|()| look(name));
            match read {
                Ok(()) => {}
                // Without the key the stored bytes are all that can be looked at.
                Err(error) if error.kind() == Kind::Config => {}
                Err(error) if error.kind() == Kind::Corrupt => {
                    self.damage(What::Content, &key, chain(&error));
                    whole = false;
                }
                Err(error) => self.unchecked(&key, error)?,
            }
        }
        Ok(whole)
    }

    /// What is there, and how large.
    fn there(&self) -> Result<BTreeMap<String, u64>> {
        let root = self.folder.root(self.repository)?;
        let prefix = format!("{root}/");
        let mut there = BTreeMap::new();
        self.repository.store.list(Some(&root), &mut |key, stat| {
            let text = key.to_string();
            there.insert(text.strip_prefix(&prefix).unwrap_or(&text).to_owned(), stat.size);
            Ok(())
        })?;
        Ok(there)
    }
}
