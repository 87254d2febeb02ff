//! Directories on the server: made, synced, removed.

use std::sync::Arc;

use super::publish::is_missing;
use super::session::{Session, Trouble};
use super::wire::{self, Code, FileType};
use super::{DIRECTORY_ATTEMPTS, SftpStore, Verb};
use crate::error::{Error, Kind, Result};
use crate::storage::Key;

const DIRECTORY_MODE: u32 = 0o700;

impl SftpStore {
    /// Creates the root and what is missing above it, durably. For `init` only: anybody else who finds no root has found
    /// a disk that is not mounted.
    pub(super) fn create_root(&self, session: &Arc<Session>) -> Result<()> {
        let mut path = String::new();
        for component in self.0.root.trim_start_matches('/').split('/') {
            let above = if path.is_empty() { "/".to_owned() } else { path.clone() };
            path = format!("{path}/{component}");
            self.create_directory(session, &above, &path)?;
        }
        Ok(())
    }

    /// Creates the directories above `key`, never the root.
    pub(super) fn create_directories(&self, session: &Arc<Session>, key: &Key) -> Result<()> {
        self.check_root(session)?;
        let Some(parent) = key.parent() else { return Ok(()) };
        let mut path = self.path(None);
        for component in parent.components() {
            let above = path.clone();
            path = format!("{path}/{component}");
            if !self.create_directory(session, &above, &path)? {
                // Deleted again in between: the caller comes back.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Creates a directory, durably, unless it is there; `false` if what it should stand in is gone.
    fn create_directory(&self, session: &Arc<Session>, above: &str, path: &str) -> Result<bool> {
        let failed = |trouble| {
            let error = self.failed(session, trouble, Verb::Create, None);
            error.context(format!("create directory {}", self.place(path)))
        };
        let mut attempts = 0;
        loop {
            match session.stat(path) {
                Ok(found) if found.file_type() == FileType::Directory && attempts == 0 => return Ok(true),
                // Another one was quicker, and may not have settled it yet.
                Ok(found) if found.file_type() == FileType::Directory => break,
                Ok(_) => {
                    let message = format!("{} is not a directory", self.place(path));
                    return Err(Error::new(Kind::Failed, message));
                }
                Err(trouble) if is_missing(&trouble) => {}
                Err(trouble) => return Err(failed(trouble)),
            }
            match session.make_directory(path, DIRECTORY_MODE) {
                Ok(()) => break,
                Err(trouble) if is_missing(&trouble) => return Ok(false),
                // A name that is taken fails like anything else does, and the directory may be gone again before it is
                // looked at.
                Err(Trouble::Said(..)) if attempts < DIRECTORY_ATTEMPTS => attempts += 1,
                Err(trouble) => return Err(failed(trouble)),
            }
        }
        let settled = self.settle_directory(session, above).map_err(failed)?;
        Ok(settled.is_some())
    }

    /// Makes it durable which names a directory has. `None` where there is no such directory any more.
    pub(super) fn settle_directory(&self, session: &Session, directory: &str) -> Result<Option<()>, Trouble> {
        if !self.syncs_names(session) {
            return Ok(Some(()));
        }
        let handle = match session.open(directory, wire::FLAG_READ) {
            Ok(handle) => handle,
            Err(Trouble::Said(Code::NoSuchFile, _)) => return Ok(None),
            Err(Trouble::Said(..)) => {
                self.note_names_unsynced();
                return Ok(Some(()));
            }
            Err(lost) => return Err(lost),
        };
        let settled = session
            .send_settle(&handle)
            .and_then(|ticket| session.wait_done(ticket));
        session.close(&handle);
        match settled {
            Err(Trouble::Said(..)) => {
                self.note_names_unsynced();
                Ok(Some(()))
            }
            outcome => outcome.map(Some),
        }
    }

    /// Makes it durable that `key` is gone, and removes directories that have become empty.
    pub(super) fn settle_removal(&self, session: &Arc<Session>, key: &Key) -> Result<()> {
        let mut directory = key.parent();
        loop {
            let settled = self.settle_directory(session, &self.path(directory.as_ref()));
            let settled = settled.map_err(|trouble| self.failed(session, trouble, Verb::SyncDirectory, Some(key)))?;
            match (settled, &directory) {
                // Whoever deleted the last object beside ours has removed the directory already.
                (None, Some(gone)) => directory = gone.parent(),
                _ => break,
            }
        }
        let mut directory = key.parent();
        while let Some(empty) = directory {
            // It is not empty, or in use, or already gone: all the same.
            if session.remove_directory(&self.path(Some(&empty))).is_err() {
                break;
            }
            directory = empty.parent();
        }
        Ok(())
    }
}
