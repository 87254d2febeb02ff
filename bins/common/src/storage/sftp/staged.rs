//! A file on the server under a staging name: written with many requests on their way, made durable, measured.
//!
//! Memory is bounded by the window of requests. Giving it its name is [`super::publish`]'s.

use std::collections::VecDeque;
use std::sync::Arc;

use super::SftpStore;
use super::publish::Means;
use super::remote::{Answer, Handle};
use super::session::{Session, Ticket, Trouble};
use super::wire;
use crate::digest::hex;
use crate::durable::STAGING_PREFIX;
use crate::error::{Error, Kind};

/// While it is written; a connection that broke may have to open it again.
const STAGING_MODE: u32 = 0o600;
const OBJECT_MODE: u32 = 0o400;

/// Bytes on their way and not answered yet. ssh's own window is as large, so that more would wait here only.
const WINDOW_BYTES: usize = 2 << 20;

/// A staging file. Dropped, it is removed.
pub(super) struct Staged {
    store: SftpStore,
    session: Arc<Session>,
    path: String,
    handle: Handle,
    /// The directory it lies in, where the server opens directories to be synced.
    directory: Option<Handle>,
    sent: u64,
    window: VecDeque<(Ticket, usize)>,
    in_flight: usize,
    keep: bool,
}

impl Staged {
    /// Creates an empty staging file in a directory.
    pub(super) fn create_in(store: &SftpStore, session: &Arc<Session>, directory: &str) -> Answer<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Trouble::Ended(Error::io(error.into(), "ask for random bytes")))?;
        let path = format!("{directory}/{STAGING_PREFIX}{}", hex(&random));
        let flags = wire::FLAG_WRITE | wire::FLAG_CREATE | wire::FLAG_EXCLUSIVE;
        Self::open_with(store, session, path, flags, 0)
    }

    /// Opens a sealed one again, to give it its name: it can only be read by now.
    pub(super) fn open_sealed(store: &SftpStore, session: &Arc<Session>, path: String, size: u64) -> Answer<Self> {
        let staged = Self::open_with(store, session, path, wire::FLAG_READ, size)?;
        // Sealed on a connection that is gone, and synced then; a look costs little.
        match session.wait_attributes(session.send_fstat(&staged.handle)?)?.size {
            Some(found) if found == size => Ok(staged),
            _ => {
                let message = format!("{} has changed since it was written", staged.path);
                Err(Trouble::Ended(Error::new(Kind::Failed, message)))
            }
        }
    }

    /// Opens one of ours again, to go on at an offset.
    pub(super) fn open_again(store: &SftpStore, session: &Arc<Session>, path: String, from: u64) -> Answer<Self> {
        // It may have been sealed.
        let mode = session.send_mode_of(&path, STAGING_MODE)?;
        if let Err(ended @ Trouble::Ended(_)) = session.wait_done(mode) {
            return Err(ended);
        }
        Self::open_with(store, session, path, wire::FLAG_WRITE, from)
    }

    fn open_with(store: &SftpStore, session: &Arc<Session>, path: String, flags: u32, from: u64) -> Answer<Self> {
        let file = session.send_open(&path, flags, STAGING_MODE)?;
        let directory = path.rsplit_once('/').map_or("/", |(directory, _)| directory);
        // In the same breath; it is needed at the end.
        let directory = match store.syncs_names(session) {
            true => Some(session.send_open(directory, wire::FLAG_READ, 0)?),
            false => None,
        };
        let handle = session.wait_handle(file)?;
        let mut staged = Self {
            store: store.clone(),
            session: session.clone(),
            path,
            handle,
            directory: None,
            sent: from,
            window: VecDeque::new(),
            in_flight: 0,
            keep: false,
        };
        if let Some(ticket) = directory {
            staged.directory = match session.wait_handle(ticket) {
                Ok(handle) => Some(handle),
                Err(Trouble::Said(..)) => {
                    store.note_names_unsynced();
                    None
                }
                Err(lost) => return Err(lost),
            };
        }
        Ok(staged)
    }

    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Writes at the end. What the server thinks of it may show in a later call.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Answer<()> {
        for chunk in bytes.chunks(self.session.abilities().write_bytes) {
            while self.in_flight > 0 && self.in_flight + chunk.len() > WINDOW_BYTES {
                self.wait_one()?;
            }
            let ticket = self.session.send_write(&self.handle, self.sent, chunk)?;
            self.window.push_back((ticket, chunk.len()));
            self.in_flight += chunk.len();
            self.sent += chunk.len() as u64;
        }
        Ok(())
    }

    fn wait_one(&mut self) -> Answer<()> {
        if let Some((ticket, length)) = self.window.pop_front() {
            self.in_flight -= length;
            self.session.wait_done(ticket)?;
        }
        Ok(())
    }

    fn wait_all(&mut self) -> Answer<()> {
        while !self.window.is_empty() {
            self.wait_one()?;
        }
        Ok(())
    }

    /// Asks for what was written so far to be put on the disk; the ticket tells when it is. Without one it is only
    /// certain that the server has it: it does not sync.
    ///
    /// The protocol has the server take requests for one file in their order, so the writes need not be waited for.
    pub(super) fn send_settle(&mut self) -> Answer<Option<Ticket>> {
        if self.session.abilities().sync {
            return self.session.send_settle(&self.handle).map(Some);
        }
        self.wait_all().map(|()| None)
    }

    /// Makes the file whole and durable: mode, sync, size. What is not `size` bytes long fails.
    pub(super) fn seal(&mut self, size: u64) -> Answer<()> {
        let mode = self.session.send_mode(&self.handle, OBJECT_MODE)?;
        let settled = match self.session.abilities().sync {
            true => Some(self.session.send_settle(&self.handle)?),
            false => None,
        };
        let measured = self.session.send_fstat(&self.handle)?;
        self.wait_all()?;
        self.session.wait_done(mode)?;
        if let Some(settled) = settled {
            self.session.wait_done(settled)?;
        }
        match self.session.wait_attributes(measured)?.size {
            Some(found) if found == size => Ok(()),
            found => {
                let found = found.map_or("an unknown number".to_owned(), |found| found.to_string());
                let message = format!("{size} bytes were written and the file has {found}");
                Err(Trouble::Ended(Error::new(Kind::Failed, message)))
            }
        }
    }

    /// Makes it durable that the file has its name.
    pub(super) fn settle_names(&self) -> Answer<()> {
        if !self.session.abilities().sync {
            return Ok(());
        }
        let settle = |handle| self.session.wait_done(self.session.send_settle(handle)?);
        match self.directory.as_ref().map(settle) {
            Some(Ok(())) => Ok(()),
            Some(Err(ended @ Trouble::Ended(_))) => Err(ended),
            // Where directories cannot be synced, the file is once more: journals write its names with it.
            said => {
                if said.is_some() {
                    self.store.note_names_unsynced();
                }
                settle(&self.handle)
            }
        }
    }

    /// When it was changed last, by the server's clock.
    pub(super) fn modified(&self) -> Answer<Option<u32>> {
        let ticket = self.session.send_fstat(&self.handle)?;
        Ok(self.session.wait_attributes(ticket)?.modified)
    }

    /// Ends the staging name, once the file has its own.
    pub(super) fn settle(self, means: Means) {
        match means {
            Means::HardLink => drop(self),
            // It was renamed: there is no staging name any more.
            Means::Rename | Means::Claim => self.leave(),
        }
    }

    /// Lets go of it without removing it, to go on with it later.
    pub(super) fn leave(mut self) {
        self.keep = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.session.close(&self.handle);
        if let Some(directory) = &self.directory {
            self.session.close(directory);
        }
        if self.keep {
            return;
        }
        self.store.remove_litter(std::mem::take(&mut self.path));
    }
}
