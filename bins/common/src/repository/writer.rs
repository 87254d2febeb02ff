//! Writes one backup or dump into several repositories in one pass: read once, compress once, encrypt and store for each.
//!
//! Promises that a repository that fails does not hold up the others, and that the document that makes it one is written only
//! where every object has been stored. What is in the objects is for the caller.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::codec::{Fanout, SealedWriter};
use crate::error::{Error, Kind, Result, chain};
use crate::repository::backup::{BackupInfo, Intent, ObjectRecord};
use crate::repository::{DumpLabel, Label, Repository, backup, dumps};
use crate::storage::{Key, Upload};

/// Where objects go, below a repository.
#[derive(Debug, Clone, Copy)]
pub enum Folder {
    /// A physical backup's.
    Backup(Label),
    /// A logical dump's.
    Dump(DumpLabel),
}

impl Folder {
    /// The key of all of it.
    ///
    /// # Errors
    /// None that a validated label can cause.
    pub fn root(self, repository: &Repository) -> Result<Key> {
        match self {
            Self::Backup(label) => repository.keys().of_label(label),
            Self::Dump(label) => repository.keys().dumps()?.join(&label.to_string()),
        }
    }

    /// The key of an object.
    ///
    /// # Errors
    /// `Refused` if `name`, which may come from a repository, is no key.
    pub fn key(self, repository: &Repository, name: &str) -> Result<Key> {
        match self {
            Self::Backup(label) => repository.keys().of_backup(label, name),
            Self::Dump(label) => repository.keys().of_dump(label, name),
        }
    }

    /// Whether an object says what is there, rather than being it: file lists, indexes, tables of contents.
    pub fn is_metadata(self, name: &str) -> bool {
        match self {
            Self::Backup(_) => !name.contains(".tar."),
            Self::Dump(_) => name.starts_with(dumps::CONTENTS),
        }
    }

    /// What it is, in a word.
    pub fn what(self) -> &'static str {
        match self {
            Self::Backup(_) => "backup",
            Self::Dump(_) => "dump",
        }
    }
}

/// A backup or a dump being written.
pub struct FolderWriter<'a> {
    folder: Folder,
    targets: Vec<Target<'a>>,
}

struct Target<'a> {
    folder: Folder,
    repository: &'a Repository,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failed: Option<Error>,
    objects: Vec<ObjectRecord>,
}

impl Target<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed_with(&self) -> Option<Kind> {
        self.state().failed.as_ref().map(Error::kind)
    }

    /// Whether every object noted so far still stands with its size.
    fn look_again(&self) -> Result<()> {
        let objects = self.state().objects.clone();
        let store = self.repository.store.as_ref();
        for object in &objects {
            let key = self.folder.key(self.repository, &object.key)?;
            let place = || store.describe(Some(&key));
            match store
                .stat(&key)
                .map_err(|error| error.context(format!("look at {}", place())))?
            {
                Some(stat) if stat.size == object.size => {}
                Some(stat) => {
                    let (now, then) = (stat.size, object.size);
                    return Err(Error::new(
                        Kind::Corrupt,
                        format!("{} has {now} bytes, {then} were stored", place()),
                    ));
                }
                None => return Err(Error::new(Kind::Corrupt, format!("{} was stored and is gone", place()))),
            }
        }
        Ok(())
    }

    /// Remembers the first failure and logs it once; the repository gets nothing more of this backup.
    fn fail(&self, error: Error) {
        let mut state = self.state();
        if state.failed.is_none() {
            let level = if self.repository.required {
                log::Level::Error
            } else {
                log::Level::Warn
            };
            log::log!(
                level,
                "repository \"{}\" leaves this {}: {}{}",
                self.repository.name,
                self.folder.what(),
                chain(&error),
                error
                    .nearest_hint()
                    .map(|hint| format!(" ({hint})"))
                    .unwrap_or_default()
            );
            state.failed = Some(error);
        }
    }
}

/// That no repository is left: `Transient` if asking again may help one of them, with the first failure as the cause.
fn nobody_left<'t, 'r: 't>(targets: impl Iterator<Item = &'t Target<'r>>, message: &str) -> Error {
    let (mut kind, mut cause) = (None, None);
    for target in targets {
        let state = target.state();
        let Some(error) = &state.failed else { continue };
        if kind.is_none() || error.kind() == Kind::Transient {
            kind = Some(error.kind());
        }
        cause.get_or_insert_with(|| {
            let first = Error::new(
                error.kind(),
                format!("repository \"{}\": {}", target.repository.name, chain(error)),
            );
            match error.nearest_hint() {
                Some(hint) => first.hint(hint),
                None => first,
            }
        });
    }
    let error = Error::new(kind.unwrap_or(Kind::Failed), message);
    match cause {
        Some(cause) => error.because(cause),
        None => error,
    }
}

/// What became of it in one repository.
pub struct Outcome<T = BackupInfo> {
    /// The repository's name.
    pub repository: String,
    /// Whether the job fails with it.
    pub required: bool,
    /// The committed document, or why there is none.
    pub result: Result<T>,
}

impl<'a> FolderWriter<'a> {
    /// Announces a backup in every repository.
    ///
    /// # Errors
    /// The kind of the first failure, if no repository could be written.
    pub fn begin_backup(repositories: &'a [Repository], intent: &Intent) -> Result<Self> {
        Self::begin(Folder::Backup(intent.label), repositories, |repository| {
            backup::write_intent(repository, intent)
        })
    }

    /// Begins in every repository that `announce` accepts; nothing is written into the others.
    ///
    /// # Errors
    /// As [`FolderWriter::begin_backup`].
    pub fn begin(
        folder: Folder,
        repositories: &'a [Repository],
        announce: impl Fn(&Repository) -> Result<()>,
    ) -> Result<Self> {
        let target = |repository| Target {
            folder,
            repository,
            state: Mutex::default(),
        };
        let writer = Self {
            folder,
            targets: repositories.iter().map(target).collect(),
        };
        for target in &writer.targets {
            let begun = target.repository.identity_for_writing();
            if let Err(error) = begun.and_then(|_| announce(target.repository)) {
                target.fail(error);
            }
        }
        writer.check()?;
        Ok(writer)
    }

    /// Fails unless a repository still takes part, with the first failure as the cause. Each failure has been logged, and
    /// stays where it is: a repository that failed never comes back, whoever else asks meanwhile.
    ///
    /// # Errors
    /// `Transient` if that holds for one of the failures, else the kind of the first.
    pub fn check(&self) -> Result<()> {
        if self.targets.is_empty() {
            return Err(Error::new(Kind::Config, "no repository is configured"));
        }
        if self.targets.iter().any(|target| target.failed_with().is_none()) {
            return Ok(());
        }
        let message = format!("no repository is left that can take this {}", self.folder.what());
        Err(nobody_left(self.targets.iter(), &message))
    }

    /// Begins an object, `name` without `.age`: `data/1.tar.zst`. Metadata is encrypted to `metadata_recipients` as well.
    ///
    /// # Errors
    /// The kind of the first failure, if no repository is left.
    pub fn create(&self, name: &str, metadata: bool) -> Result<Copies<'_>> {
        let mut writers = Vec::new();
        let mut targets = Vec::new();
        for target in &self.targets {
            if target.failed_with().is_some() {
                continue;
            }
            match self.open(target.repository, name, metadata) {
                Ok(writer) => {
                    writers.push(Ok(writer));
                    targets.push(target);
                }
                Err(error) => target.fail(error),
            }
        }
        self.check()?;
        Ok(Copies {
            name: name.to_owned(),
            fanout: Fanout::new(writers),
            targets,
        })
    }

    fn open(&self, repository: &Repository, name: &str, metadata: bool) -> Result<SealedWriter<Box<dyn Upload>>> {
        let key = self
            .folder
            .key(repository, &format!("{name}{}", repository.suffix()?))?;
        let upload = repository
            .store
            .create(&key)
            .map_err(|error| error.context(format!("create {}", repository.store.describe(Some(&key)))))?;
        let sealing = if metadata {
            &repository.metadata_sealing
        } else {
            &repository.sealing
        };
        sealing.wrap(upload, None)
    }

    /// The repositories that still take part.
    pub fn alive(&self) -> Vec<&'a Repository> {
        self.targets
            .iter()
            .filter(|target| target.failed_with().is_none())
            .map(|target| target.repository)
            .collect()
    }

    /// Takes a repository out: something this backup needs is missing there.
    pub fn give_up(&self, repository: &str, error: Error) {
        if let Some(target) = self.targets.iter().find(|target| target.repository.name == repository) {
            target.fail(error);
        }
    }

    /// Looks again whether everything that was stored is still there; repositories where it is not are taken out.
    ///
    /// # Errors
    /// The kind of the first failure, if no repository is left.
    pub fn look_again(&self) -> Result<()> {
        for target in self.targets.iter().filter(|target| target.failed_with().is_none()) {
            if let Err(error) = target.look_again() {
                target.fail(error);
            }
        }
        self.check()
    }

    /// Writes `backup.json` wherever everything has been stored. `info` is complete but for `objects` and `stored`.
    pub fn commit_backup(self, info: &BackupInfo) -> Vec<Outcome> {
        self.commit(|repository, objects, stored| {
            let info = BackupInfo {
                objects,
                stored,
                ..info.clone()
            };
            backup::commit(repository, &info).map(|()| info)
        })
    }

    /// Lets `document` write what makes it whole wherever everything has been stored: it gets the objects in the order of their
    /// names, and their stored bytes.
    pub fn commit<T>(self, document: impl Fn(&Repository, Vec<ObjectRecord>, u64) -> Result<T>) -> Vec<Outcome<T>> {
        let commit_one = |target: Target<'_>| {
            let state = target.state.into_inner().unwrap_or_else(PoisonError::into_inner);
            let result = match state.failed {
                Some(error) => Err(error),
                None => {
                    let mut objects = state.objects;
                    objects.sort_by(|a, b| a.key.cmp(&b.key));
                    let stored = objects.iter().map(|object| object.size).sum();
                    document(target.repository, objects, stored)
                }
            };
            Outcome {
                repository: target.repository.name.clone(),
                required: target.repository.required,
                result,
            }
        };
        self.targets.into_iter().map(commit_one).collect()
    }
}

/// One object on its way into every repository that still takes part.
pub struct Copies<'a> {
    name: String,
    fanout: Fanout<SealedWriter<Box<dyn Upload>>>,
    targets: Vec<&'a Target<'a>>,
}

impl Write for Copies<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.fanout.write(bytes).map_err(|error| self.placed(error))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.fanout.flush().map_err(|error| self.placed(error))
    }
}

impl Copies<'_> {
    /// Says where it was that nobody took the object any more.
    fn placed(&self, error: std::io::Error) -> std::io::Error {
        let place = |target: &&Target<'_>| {
            let repository = target.repository;
            format!(
                "repository \"{}\" ({})",
                repository.name,
                repository.store.describe(None)
            )
        };
        let places: Vec<String> = self.targets.iter().map(place).collect();
        Error::io(error, format!("store {} in {}", self.name, places.join(", "))).into()
    }

    /// Makes the object durable in each repository and notes it; `plain` is the length of its content in bytes.
    ///
    /// # Errors
    /// If no repository has it: `Transient` if that holds for one of the failures, else the kind of the first.
    pub fn finish(self, plain: u64) -> Result<()> {
        let mut stored = 0usize;
        for (target, writer) in self.targets.iter().zip(self.fanout.finish()) {
            let finished = writer.and_then(SealedWriter::finish).and_then(|upload| upload.finish());
            match (finished, target.repository.suffix()) {
                (Ok(object), Ok(suffix)) => {
                    stored += 1;
                    target.state().objects.push(ObjectRecord {
                        key: format!("{}{suffix}", self.name),
                        size: object.size,
                        sha256: object.sha256,
                        plain,
                    });
                }
                (Err(error), _) | (_, Err(error)) => target.fail(error.context(format!("store {}", self.name))),
            }
        }
        if stored > 0 {
            Ok(())
        } else {
            let message = format!("store {}: no repository took it", self.name);
            Err(nobody_left(self.targets.iter().copied(), &message))
        }
    }
}
