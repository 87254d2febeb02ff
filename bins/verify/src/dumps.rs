//! Dumps: their objects, and with --read-data every archive to its end.
//!
//! `pg_restore --list` looks at the table of contents alone: it calls an archive whole that ends in the middle.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use common::codec::FrameReader;
use common::error::{Context, Error, Kind, Result, chain};
use common::interrupt;
use common::postgres::archive;
use common::repository::dumps::{self, Contents, DOCUMENT, Dump, DumpInfo};
use common::repository::{DumpLabel, Repository, reader};
use common::storage::Key;

use crate::finding::{Finding, Findings, Weight, What};
use crate::share::Share;

/// What dumps are checked with.
pub struct Dumps<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Takes what is found.
    pub findings: &'a Findings,
    /// What of the data is read.
    pub share: Option<Share>,
}

const RESTORE: &str = "it cannot be restored from this repository";

impl Dumps<'_> {
    /// Checks the dumps, or one of them; returns how many.
    ///
    /// # Errors
    /// `NotFound` if the one that is asked for is not there; what keeps the repository from being looked at.
    pub fn check(&self, only: Option<DumpLabel>) -> Result<u64> {
        let wanted = only.map(|label| label.to_string());
        let complete: Vec<Dump> = dumps::list(self.repository)?
            .into_iter()
            .filter(|dump| dump.complete && wanted.as_ref().is_none_or(|wanted| *wanted == dump.name))
            .collect();
        if let Some(label) = only.filter(|_| complete.is_empty()) {
            let message = format!("repository \"{}\" has no dump {label}", self.repository.name);
            return Err(Error::new(Kind::NotFound, message).hint("pgkeep-info lists the labels"));
        }
        for dump in &complete {
            interrupt::check()?;
            let label: DumpLabel = dump.name.parse()?;
            match dumps::read(self.repository, label) {
                Ok(info) => self.one(&info)?,
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Refused) => {
                    let key = self.repository.keys().of_dump(label, DOCUMENT)?;
                    let finding = Finding::damage(What::Unusable, key.to_string(), chain(&error), RESTORE);
                    self.findings.add(finding, None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(complete.len() as u64)
    }

    fn one(&self, info: &DumpInfo) -> Result<()> {
        let folder = self.repository.keys().dumps()?.join(&info.label.to_string())?;
        let prefix = format!("{folder}/");
        let mut there = BTreeMap::new();
        self.repository.store.list(Some(&folder), &mut |key, stat| {
            let text = key.to_string();
            there.insert(text.strip_prefix(&prefix).unwrap_or(&text).to_owned(), stat.size);
            Ok(())
        })?;
        let mut known = BTreeSet::from([DOCUMENT]);
        for object in &info.objects {
            known.insert(&object.key);
            let key = self.repository.keys().of_dump(info.label, &object.key)?;
            match there.get(&object.key) {
                Some(size) if *size == object.size => self.read(info, &key, &object.key)?,
                Some(size) => {
                    let found = format!("it has {size} bytes, and {} were stored", object.size);
                    self.damage(What::Size, &key, found);
                }
                None => self.damage(What::Missing, &key, "it is missing".to_owned()),
            }
        }
        for name in there.keys().filter(|name| !known.contains(name.as_str())) {
            let key = self.repository.keys().of_dump(info.label, name)?;
            let means = "no dump lists it: somebody put it there, and nothing reads it";
            let finding = Finding::damage(What::Foreign, key.to_string(), "it is foreign", means);
            self.findings.add(finding, None);
        }
        Ok(())
    }

    fn damage(&self, what: What, key: &Key, found: String) {
        let finding = Finding::damage(what, key.to_string(), found, RESTORE);
        self.findings.add(finding, Some(key));
    }

    /// Reads an object that is in this run's share: its stored bytes, and where the key is at hand what is in them.
    fn read(&self, info: &DumpInfo, key: &Key, name: &str) -> Result<()> {
        if !self.share.is_some_and(|share| share.holds(key)) {
            return Ok(());
        }
        let plain = name.strip_suffix(self.repository.suffix()?).unwrap_or(name);
        let record = info.objects.iter().find(|object| object.key == name);
        let stored = record.map_or(Ok(()), |record| {
            reader::check_digest(self.repository, key, record.sha256)
        });
        match stored.and_then(|()| self.open(info, plain)) {
            // Without the key the stored bytes are all that can be looked at.
            Err(error) if error.kind() == Kind::Config => Ok(()),
            Ok(()) => Ok(()),
            Err(error) if error.kind() == Kind::Transient => Err(error),
            Err(error) if error.kind() == Kind::Corrupt => {
                self.damage(What::Content, key, chain(&error));
                Ok(())
            }
            Err(error) => {
                let means = "nobody knows whether it is whole";
                let finding = Finding::damage(What::Unknown, key.to_string(), chain(&error), means);
                self.findings.add(finding.weighing(Weight::Unchecked), None);
                Ok(())
            }
        }
    }

    fn open(&self, info: &DumpInfo, name: &str) -> Result<()> {
        let mut stream = FrameReader::new(dumps::open(self.repository, info, name)?)?;
        if !name.contains(".dump.") {
            let read = std::io::copy(&mut stream, &mut std::io::sink());
            return read.map(drop).context(|| format!("read {name}"));
        }
        let found = archive::scan(std::io::BufReader::new(&mut stream))?;
        // What follows the last block, the frames' own check included.
        stream.read(&mut [0]).context(|| format!("read {name}"))?;
        let contents: Contents = dumps::contents(self.repository, info)?;
        let listed = contents.databases.iter().find(|database| database.object == name);
        match listed.is_some_and(|listed| listed.archive == found) {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Corrupt,
                "the archive is another one than the dump's contents describe",
            )),
        }
    }
}
