//! Dumps: their objects, and with --read-data every archive to its end.
//!
//! `pg_restore --list` looks at the table of contents alone: it calls an archive whole that ends in the middle.

use std::cell::OnceCell;
use std::io::Read;

use common::codec::FrameReader;
use common::error::{Context, Error, Kind, Result, chain};
use common::interrupt;
use common::postgres::archive;
use common::repository::dumps::{self, Contents, DOCUMENT, DumpInfo};
use common::repository::writer::Folder;
use common::repository::{DumpLabel, Repository};

use crate::finding::{Finding, Findings, What};
use crate::objects::{Objects, RESTORE};
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

impl Dumps<'_> {
    /// Checks the dumps, or one of them; returns how many.
    ///
    /// # Errors
    /// `NotFound` if the one that is asked for is not there; what keeps the repository from being looked at.
    pub fn check(&self, only: Option<DumpLabel>) -> Result<u64> {
        let labels = match only {
            Some(label) => vec![label],
            None => dumps::labels(self.repository)?,
        };
        let mut count = 0;
        for label in labels {
            interrupt::check()?;
            match dumps::document(self.repository, label)? {
                Some(Ok(info)) => self.one(&info)?,
                Some(Err(error)) => {
                    let key = self.repository.keys().of_dump(label, DOCUMENT)?;
                    let finding = Finding::damage(What::Unusable, key.to_string(), chain(&error), RESTORE);
                    self.findings.add(finding, None);
                }
                None => continue,
            }
            count += 1;
        }
        match only.filter(|_| count == 0) {
            None => Ok(count),
            Some(label) => {
                let message = format!("repository \"{}\" has no dump {label}", self.repository.name);
                Err(Error::new(Kind::NotFound, message).hint("pgkeep-info lists the labels"))
            }
        }
    }

    fn one(&self, info: &DumpInfo) -> Result<()> {
        let objects = Objects {
            repository: self.repository,
            findings: self.findings,
            folder: Folder::Dump(info.label),
        };
        let there = objects.compare(&info.objects, &[DOCUMENT])?;
        let Some(share) = self.share else { return Ok(()) };
        // Read when the first archive is, for all of them.
        let contents = OnceCell::new();
        objects
            .read(&there, share, |name| self.open(info, name, &contents))
            .map(drop)
    }

    /// Reads what is in an object to its end.
    fn open(&self, info: &DumpInfo, name: &str, contents: &OnceCell<Contents>) -> Result<()> {
        let mut stream = FrameReader::new(dumps::open(self.repository, info, name)?)?;
        if !name.contains(".dump.") {
            let read = std::io::copy(&mut stream, &mut std::io::sink());
            return read.map(drop).context(|| format!("read {name}"));
        }
        let found = archive::scan(std::io::BufReader::new(&mut stream))?;
        // What follows the last block, the frames' own check included.
        stream.read(&mut [0]).context(|| format!("read {name}"))?;
        let contents = match contents.get() {
            Some(contents) => contents,
            None => {
                let read = dumps::contents(self.repository, info)?;
                contents.get_or_init(|| read)
            }
        };
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
