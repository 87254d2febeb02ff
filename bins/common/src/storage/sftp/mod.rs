//! A store on another host, over SFTP through the system's ssh.
//!
//! It promises what the local store promises, by the means of the protocol ([`wire`]): an object is written under a staging
//! name in its own directory, synced (`fsync@openssh.com`), measured, and given its name by a request that fails if the
//! name is taken ([`publish`]). Directories are 0700, objects 0400. An account that may do nothing but SFTP, in a chroot,
//! is enough.
//!
//! Version 3 knows no sync of directories. OpenSSH's server lets a directory be opened as a file and synced, so that is
//! done; where a server refuses, the file is synced once more under its new name, which journaling file systems take to
//! mean the name as well, but no standard says so. A server without `fsync@openssh.com` syncs nothing:
//! [`Store::durability`] tells which it is.
//!
//! "Absent" is said only where every directory on the way is there and the next name is not ([`walk`]).
//!
//! One ssh process serves all threads ([`session`]). It is started when it is first needed and again after it broke; what
//! fails with a connection is `Transient`, and every wait has an end. Uploads go on where they were ([`upload`]); what
//! else was under way is for [`super::retrying`]. What a broken connection left under a staging name is removed on the
//! next one, or by a sweep.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Durability, Exclusive, Key, NO_ROOT_HINT, Space, Stat, Store, Stored, Upload, not_found};
use crate::digest::Sha256Digest;
use crate::error::{Error, Kind, Result, chain};
use crate::retry::Policy;
use crate::time::UtcTime;

mod directories;
mod failure;
mod opening;
mod publish;
mod read;
mod remote;
mod session;
mod ssh;
mod staged;
mod upload;
mod walk;
mod wire;

pub use session::Limits;
pub use ssh::Target;

use failure::Verb;
use publish::is_missing;
use session::{Dial, Session, Trouble};
use staged::Staged;
use walk::prove_absent;
use wire::{Attributes, FileType};

/// How often a directory may be deleted under the hands of a creator before that is an error.
const DIRECTORY_ATTEMPTS: u32 = 16;

/// Objects as files below a directory of another host, which must exist; clones are the same store.
#[derive(Clone)]
pub struct SftpStore(Arc<Inner>);

struct Inner {
    dial: Dial,
    /// What stands before the path in messages: `sftp://user@host:port`.
    host: String,
    root: String,
    /// How long an upload goes on without a connection.
    patience: Policy,
    slot: Mutex<Slot>,
    /// Attempts to connect so far.
    attempts: AtomicU64,
    /// The means of exclusive creation ([`publish::Means`]); 0 stands for not known yet.
    means: AtomicU8,
    names_unsynced: AtomicBool,
    /// Names that we may have claimed by an empty file, when an answer was lost.
    claims: Mutex<HashSet<String>>,
    /// Staging files that a broken connection left.
    litter: Mutex<Vec<String>>,
}

/// The connection, or why the last attempt made none.
#[derive(Default)]
struct Slot {
    session: Option<Arc<Session>>,
    failed: Option<(Kind, String, Option<String>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SftpStore {
    /// Makes a store in `root` on a host without connecting: a host that is away shows in every operation. An upload
    /// whose connection breaks goes on for as long as `patience`.
    pub fn new(target: Target, root: &str, limits: Limits, patience: Policy) -> Self {
        let user = target.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = target.port.map(|port| format!(":{port}")).unwrap_or_default();
        let host = format!("sftp://{user}{}{port}", target.host);
        let command = ssh::command(&target, limits.connect, limits.silence);
        let dial = Dial {
            command,
            target: Some(target),
            limits,
        };
        Self::over(dial, host, root, patience)
    }

    fn over(dial: Dial, host: String, root: &str, patience: Policy) -> Self {
        Self(Arc::new(Inner {
            dial,
            host,
            root: root.trim_end_matches('/').to_owned(),
            patience,
            slot: Mutex::default(),
            attempts: AtomicU64::new(0),
            means: AtomicU8::new(0),
            names_unsynced: AtomicBool::new(false),
            claims: Mutex::default(),
            litter: Mutex::default(),
        }))
    }

    fn path(&self, key: Option<&Key>) -> String {
        let root = &self.0.root;
        key.map_or_else(|| root.clone(), |key| format!("{root}/{key}"))
    }

    /// A path as messages name it.
    fn place(&self, path: &str) -> String {
        format!("{}{path}", self.0.host)
    }

    /// The connection, a new one if there is none. Who waited while another tried in vain gets the same answer.
    fn session(&self) -> Result<Arc<Session>> {
        let seen = self.0.attempts.load(Ordering::Acquire);
        let mut slot = lock(&self.0.slot);
        match &slot.session {
            Some(session) if !session.is_broken() => return Ok(session.clone()),
            _ => slot.session = None,
        }
        if self.0.attempts.load(Ordering::Acquire) != seen
            && let Some((kind, message, hint)) = &slot.failed
        {
            let error = Error::new(*kind, message.clone());
            return Err(match hint {
                Some(hint) => error.hint(hint.clone()),
                None => error,
            });
        }
        self.0.attempts.fetch_add(1, Ordering::AcqRel);
        match Session::connect(&self.0.dial) {
            Ok(session) => {
                for path in lock(&self.0.litter).drain(..) {
                    session.remove_and_forget(&path);
                }
                slot.failed = None;
                Ok(slot.session.insert(Arc::new(session)).clone())
            }
            Err(error) => {
                let hint = error.nearest_hint().map(str::to_owned);
                slot.failed = Some((error.kind(), chain(&error), hint));
                Err(error)
            }
        }
    }

    /// Removes a staging file, now or on the next connection. Nobody waits for that.
    fn remove_litter(&self, path: String) {
        // Not waiting for the slot: somebody may be connecting.
        let session = self.0.slot.try_lock().ok().and_then(|slot| slot.session.clone());
        match session.filter(|session| !session.is_broken()) {
            Some(session) => session.remove_and_forget(&path),
            None => lock(&self.0.litter).push(path),
        }
    }

    /// Whether the server may be asked to sync a directory.
    fn syncs_names(&self, session: &Session) -> bool {
        session.abilities().sync && !self.0.names_unsynced.load(Ordering::Relaxed)
    }

    fn note_names_unsynced(&self) {
        self.0.names_unsynced.store(true, Ordering::Relaxed);
    }

    fn check_root(&self, session: &Session) -> Result<()> {
        let root = self.place(&self.0.root);
        let error = match session.stat(&self.0.root) {
            Ok(found) if found.file_type() == FileType::Directory => return Ok(()),
            Ok(_) => Error::new(Kind::Failed, format!("repository {root} is not a directory")),
            Err(trouble) if is_missing(&trouble) => {
                Error::new(Kind::Failed, format!("repository directory {root} does not exist"))
            }
            Err(Trouble::Said(_, message)) => {
                let message = format!("look at repository directory {root}: the server says \"{message}\"");
                return Err(Error::new(Kind::Failed, message));
            }
            Err(Trouble::Ended(error)) => return Err(error.context(format!("look at repository directory {root}"))),
        };
        Err(error.hint(NO_ROOT_HINT))
    }

    /// Opens a staging file in the directory of `key`, creating that first if it is missing.
    fn stage(&self, session: &Arc<Session>, key: &Key) -> Result<Staged> {
        let directory = self.path(key.parent().as_ref());
        let mut attempts = 0;
        loop {
            match Staged::create_in(self, session, &directory) {
                // The last object of a directory may be deleted, and the directory with it, at any moment.
                Err(trouble) if is_missing(&trouble) && attempts < DIRECTORY_ATTEMPTS => {
                    attempts += 1;
                    self.create_directories(session, key)?;
                }
                outcome => return outcome.map_err(|trouble| self.failed(session, trouble, Verb::Create, Some(key))),
            }
        }
    }

    fn no_object(&self, key: &Key) -> Error {
        let message = format!("{} is not a regular file", self.describe(Some(key)));
        Error::new(Kind::Refused, message).hint("objects are never links, devices or pipes: somebody put it there")
    }

    /// Looks at an object, and nothing but an object; `None` only if there surely is none.
    fn look(&self, session: &Arc<Session>, key: &Key) -> Result<Option<Attributes>> {
        match session.lstat(&self.path(Some(key))) {
            Ok(found) => match found.file_type() {
                FileType::File => Ok(Some(found)),
                FileType::Directory => Ok(None),
                FileType::Link | FileType::Other => Err(self.no_object(key)),
            },
            Err(trouble) if is_missing(&trouble) => prove_absent(self, session, key).map(|()| None),
            Err(trouble) => Err(self.failed(session, trouble, Verb::LookAt, Some(key))),
        }
    }
}

fn stat_of(found: &Attributes) -> Result<Stat> {
    let (Some(size), Some(modified)) = (found.size, found.modified) else {
        return Err(Error::new(
            Kind::Failed,
            "the server does not say size and time of a file",
        ));
    };
    Ok(Stat {
        size,
        modified: UtcTime::from_unix_seconds(i64::from(modified))?,
    })
}

impl Store for SftpStore {
    fn describe(&self, key: Option<&Key>) -> String {
        self.place(&self.path(key))
    }

    fn prepare(&self) -> Result<()> {
        self.create_root(&self.session()?)
    }

    fn create(&self, key: &Key) -> Result<Box<dyn Upload>> {
        let session = self.session()?;
        let staged = self.stage(&session, key)?;
        Ok(Box::new(upload::SftpUpload::new(self.clone(), key.clone(), staged)))
    }

    fn put_new(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        self.put_undigested(key, body)?;
        Ok(Stored {
            size: body.len() as u64,
            sha256: Sha256Digest::of(body),
        })
    }

    fn put_undigested(&self, key: &Key, body: &[u8]) -> Result<()> {
        let session = self.session()?;
        let mut staged = self.stage(&session, key)?;
        let written = staged.write(body).and_then(|()| staged.seal(body.len() as u64));
        written.map_err(|trouble| self.failed(&session, trouble, Verb::Write, Some(key)))?;
        let means = self.publish(&staged, key, &mut false)?;
        staged.settle(means);
        Ok(())
    }

    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let session = self.session()?;
        // First, because the server would follow a link, and hang on a pipe.
        let Some(found) = self.look(&session, key)? else {
            return Err(not_found(self, key));
        };
        let size = stat_of(&found)?.size;
        let end = length.map_or(size, |length| from.saturating_add(length).min(size));
        if from >= end {
            return Ok(Box::new(io::empty()));
        }
        match session.open(&self.path(Some(key)), wire::FLAG_READ) {
            Ok(handle) => {
                let reader = read::SftpReader::new(self.clone(), session, key.clone(), handle, from, end);
                Ok(Box::new(reader))
            }
            Err(trouble) if is_missing(&trouble) => {
                prove_absent(self, &session, key)?;
                Err(not_found(self, key))
            }
            Err(trouble) => Err(self.failed(&session, trouble, Verb::Open, Some(key))),
        }
    }

    fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        let found = self.look(&self.session()?, key)?;
        found.as_ref().map(stat_of).transpose()
    }

    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, Stat) -> Result<()>) -> Result<()> {
        walk::list(self, &self.session()?, prefix, each)
    }

    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>> {
        let entries = walk::entries(self, &self.session()?, prefix)?;
        let mut names: Vec<String> = entries.into_iter().map(walk::Entry::into_name).collect();
        names.sort();
        Ok(names)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let session = self.session()?;
        let path = self.path(Some(key));
        match session.remove(&path) {
            Ok(()) => self.settle_removal(&session, key),
            Err(trouble) if is_missing(&trouble) => prove_absent(self, &session, key),
            Err(trouble) => match session.lstat(&path) {
                Ok(found) if found.file_type() == FileType::Directory => Ok(()),
                _ => Err(self.failed(&session, trouble, Verb::Delete, Some(key))),
            },
        }
    }

    fn move_aside(&self, from: &Key, to: &Key) -> Result<()> {
        let session = self.session()?;
        if self.look(&session, from)?.is_none() {
            return Err(not_found(self, from));
        }
        self.create_directories(&session, to)?;
        self.give_other_name(&session, from, to)?;
        self.settle_removal(&session, from)
    }

    fn now(&self) -> Result<UtcTime> {
        let session = self.session()?;
        let touched = Staged::create_in(self, &session, &self.0.root).and_then(|staged| staged.modified());
        let modified = touched.map_err(|trouble| self.failed(&session, trouble, Verb::WriteTo, None))?;
        match modified {
            Some(modified) => UtcTime::from_unix_seconds(i64::from(modified)),
            None => Err(Error::new(
                Kind::Failed,
                "the server does not say when a file was changed",
            )),
        }
    }

    fn exclusive(&self) -> Exclusive {
        self.probe().map_or(Exclusive::Unknown, publish::Means::exclusive)
    }

    fn durability(&self) -> Durability {
        let Ok(session) = self.session() else {
            return Durability::Unknown;
        };
        if !session.abilities().sync {
            return Durability::Unsynced;
        }
        match self.settle_directory(&session, &self.0.root) {
            Ok(Some(())) if self.syncs_names(&session) => Durability::Synced,
            Ok(Some(())) => Durability::NamesLater,
            _ => Durability::Unknown,
        }
    }

    fn free_space(&self) -> Result<Option<Space>> {
        let session = self.session()?;
        self.check_root(&session)?;
        let found = session.space(&self.0.root);
        let found = found.map_err(|trouble| self.failed(&session, trouble, Verb::AskSpace, None))?;
        Ok(found.map(|(space, _)| space))
    }

    fn sweep(&self, age: Duration) -> Result<u64> {
        let before = self.now()?.minus(age);
        walk::sweep(self, &self.session()?, &self.0.root, before)
    }
}

#[cfg(test)]
mod tests;
