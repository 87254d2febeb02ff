//! An object on its way to the server, which outlives its connection.
//!
//! A bundle may take many minutes, and a server that restarts, or a line that drops, should not cost the whole backup.
//! So what was written is kept here until the server has synced it: every [`MARK_BYTES`] a sync is asked for, and while
//! two of them are unanswered the writer waits. When the connection breaks, a new one opens the staging file again and
//! gets once more what is not known to be on the disk, even after a power cut there.
//!
//! Between the request for the name and its answer the connection may break too. Then a name that is taken may be taken
//! by us: if what has it is byte for byte ours, it is ours.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use super::session::{Ticket, Trouble};
use super::staged::Staged;
use super::{SftpStore, Verb};
use crate::digest::{Sha256, Sha256Digest};
use crate::error::{Context, Error, Kind, Result};
use crate::storage::{Key, Store, Stored, Upload};

/// How much is kept at most is twice that, and a chunk.
const MARK_BYTES: usize = 8 << 20;
const CHUNK_BYTES: usize = 256 << 10;

pub(super) struct SftpUpload {
    store: SftpStore,
    key: Key,
    /// `None` while there is no connection.
    staged: Option<Staged>,
    path: String,
    sha256: Sha256,
    size: u64,
    /// Bytes before this offset are on the server's disk.
    durable: u64,
    /// What follows them, in order; the last chunk is still being filled.
    kept: VecDeque<Vec<u8>>,
    /// How many of these have been handed to `staged`.
    handed: usize,
    /// Syncs on their way, and the offset up to which each counts.
    marks: VecDeque<(Option<Ticket>, u64)>,
    /// Bytes handed over since the last mark.
    unmarked: usize,
}

impl SftpUpload {
    pub(super) fn new(store: SftpStore, key: Key, staged: Staged) -> Self {
        Self {
            store,
            key,
            path: staged.path().to_owned(),
            staged: Some(staged),
            sha256: Sha256::new(),
            size: 0,
            durable: 0,
            kept: VecDeque::new(),
            handed: 0,
            marks: VecDeque::new(),
            unmarked: 0,
        }
    }

    /// Runs a step, again from what is known to be on the disk where it fails for a time, as long as patience lasts.
    fn with_patience(&mut self, step: impl Fn(&mut Self) -> Result<()>) -> Result<()> {
        let policy = self.store.0.patience;
        let what = format!("store {}", self.store.describe(Some(&self.key)));
        policy.run(what, || {
            let outcome = self.connect().and_then(|()| step(self));
            // Which of the writes on their way failed is not known, so none of them counts.
            if outcome.is_err()
                && let Some(doubtful) = self.staged.take()
            {
                doubtful.leave();
            }
            outcome
        })
    }

    fn failed(&self, trouble: Trouble) -> Error {
        match &self.staged {
            Some(staged) => self
                .store
                .failed(staged.session(), trouble, Verb::Write, Some(&self.key)),
            None => Error::new(Kind::Transient, "there is no connection"),
        }
    }

    /// Goes on with the staging file where it has been let go.
    fn connect(&mut self) -> Result<()> {
        if self.staged.is_some() {
            return Ok(());
        }
        let session = self.store.session()?;
        let again = Staged::open_again(&self.store, &session, self.path.clone(), self.durable);
        let staged = match again {
            Ok(staged) => staged,
            // Nothing of it was on the disk yet, and the server has lost it.
            Err(Trouble::Said(..)) if self.durable == 0 => self.store.stage(&session, &self.key)?,
            Err(trouble) => return Err(self.store.failed(&session, trouble, Verb::GoOn, Some(&self.key))),
        };
        self.path = staged.path().to_owned();
        log::info!(
            "going on with {} at byte {}",
            self.store.describe(Some(&self.key)),
            self.durable
        );
        self.staged = Some(staged);
        (self.handed, self.unmarked) = (0, 0);
        self.marks.clear();
        Ok(())
    }

    /// Hands over what is full, or everything.
    fn hand_over(&mut self, all: bool) -> Result<()> {
        while let Some(chunk) = self.kept.get(self.handed) {
            if !all && chunk.len() < CHUNK_BYTES {
                break;
            }
            let Some(staged) = &mut self.staged else { break };
            let length = chunk.len();
            staged.write(chunk).map_err(|trouble| self.failed(trouble))?;
            self.handed += 1;
            self.unmarked += length;
            if self.unmarked >= MARK_BYTES {
                self.mark()?;
            }
        }
        Ok(())
    }

    /// Asks for a sync; where two are unanswered the first is waited for.
    fn mark(&mut self) -> Result<()> {
        let reached = self.durable
            + self
                .kept
                .iter()
                .take(self.handed)
                .map(|chunk| chunk.len() as u64)
                .sum::<u64>();
        let Some(staged) = &mut self.staged else { return Ok(()) };
        let ticket = staged.send_settle().map_err(|trouble| self.failed(trouble))?;
        self.marks.push_back((ticket, reached));
        self.unmarked = 0;
        if self.marks.len() > 1 || self.marks.front().is_some_and(|(ticket, _)| ticket.is_none()) {
            self.wait_for_mark()?;
        }
        Ok(())
    }

    /// Forgets what the oldest mark has put on the disk.
    fn wait_for_mark(&mut self) -> Result<()> {
        let (Some((ticket, reached)), Some(staged)) = (self.marks.pop_front(), &self.staged) else {
            return Ok(());
        };
        if let Some(ticket) = ticket {
            staged
                .session()
                .wait_done(ticket)
                .map_err(|trouble| self.failed(trouble))?;
        }
        while self.durable < reached {
            let Some(chunk) = self.kept.pop_front() else { break };
            self.durable += chunk.len() as u64;
            self.handed = self.handed.saturating_sub(1);
        }
        Ok(())
    }

    /// Bytes in memory.
    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.iter().map(Vec::len).sum()
    }

    /// Whether the name is taken by just these bytes.
    fn is_ours(&self, sha256: Sha256Digest) -> Result<bool> {
        if self.store.stat(&self.key)?.is_none_or(|stat| stat.size != self.size) {
            return Ok(false);
        }
        let mut reader = self.store.open(&self.key, 0, None)?;
        let (mut found, mut buffer) = (Sha256::new(), vec![0; CHUNK_BYTES]);
        loop {
            let read = reader.read(&mut buffer);
            match read.context(|| format!("read back {}", self.store.describe(Some(&self.key))))? {
                0 => return Ok(found.finish() == sha256),
                read => found.update(buffer.get(..read).unwrap_or_default()),
            }
        }
    }
}

impl Write for SftpUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = match self.kept.back() {
            Some(last) if self.handed < self.kept.len() && last.len() < CHUNK_BYTES => CHUNK_BYTES - last.len(),
            _ => {
                self.kept.push_back(Vec::with_capacity(CHUNK_BYTES));
                CHUNK_BYTES
            }
        };
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or(bytes);
        if let Some(last) = self.kept.back_mut() {
            last.extend_from_slice(taken);
        }
        self.sha256.update(taken);
        self.size += taken.len() as u64;
        if taken.len() == room {
            self.with_patience(|upload| upload.hand_over(false))?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(self.with_patience(|upload| upload.hand_over(true))?)
    }
}

impl Upload for SftpUpload {
    fn finish(mut self: Box<Self>) -> Result<Stored> {
        let size = self.size;
        self.with_patience(|upload| {
            upload.hand_over(true)?;
            let Some(staged) = &mut upload.staged else {
                return Ok(());
            };
            staged.seal(size).map_err(|trouble| upload.failed(trouble))
        })?;
        let sha256 = std::mem::take(&mut self.sha256).finish();
        let stored = Stored { size, sha256 };
        let policy = self.store.0.patience;
        let what = format!("store {}", self.store.describe(Some(&self.key)));
        let mut attempted = false;
        policy.run(what, || {
            let unclear = attempted;
            match self.publish_once(&mut attempted) {
                Err(error) if unclear && error.kind() == Kind::AlreadyExists && self.is_ours(sha256)? => Ok(()),
                outcome => outcome,
            }
        })?;
        Ok(stored)
    }
}

impl Drop for SftpUpload {
    fn drop(&mut self) {
        // What is still open removes itself; what was let go to go on with has nobody else.
        if self.staged.is_none() && !self.path.is_empty() {
            self.store.remove_litter(std::mem::take(&mut self.path));
        }
    }
}

impl SftpUpload {
    /// Gives the sealed file its name, if need be on a new connection.
    fn publish_once(&mut self, attempted: &mut bool) -> Result<()> {
        let staged = match self.staged.take() {
            Some(staged) => staged,
            None => self.open_sealed(*attempted)?,
        };
        match self.store.publish(&staged, &self.key, attempted) {
            Ok(means) => {
                self.path.clear();
                staged.settle(means);
                Ok(())
            }
            Err(error) => {
                // Perhaps for another attempt.
                staged.leave();
                Err(error)
            }
        }
    }

    fn open_sealed(&self, attempted: bool) -> Result<Staged> {
        let session = self.store.session()?;
        let opened = Staged::open_sealed(&self.store, &session, self.path.clone(), self.size);
        opened.map_err(|trouble| {
            // Renamed by an attempt whose answer was lost: then it has the name.
            if attempted
                && super::publish::is_missing(&trouble)
                && let Ok(Some(_)) = self.store.stat(&self.key)
            {
                return crate::storage::already_exists(&self.store, &self.key);
            }
            self.store.failed(&session, trouble, Verb::GoOn, Some(&self.key))
        })
    }
}
