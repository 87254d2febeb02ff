//! Reading an object with several requests on their way.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use super::remote::Handle;
use super::session::{Session, Ticket};
use super::wire::Data;
use super::{SftpStore, Verb};
use crate::error::{Error, Kind};
use crate::storage::Key;

/// Requests on their way at first, and at most: whoever reads a little pays for little.
const FIRST_WINDOW: usize = 2;
const LARGEST_WINDOW: usize = 16;

/// A range of an object.
pub(super) struct SftpReader {
    store: SftpStore,
    session: Arc<Session>,
    key: Key,
    handle: Handle,
    /// What is asked for next, and where the range ends.
    next: u64,
    end: u64,
    window: usize,
    coming: VecDeque<Piece>,
    current: Option<(Data, usize)>,
}

struct Piece {
    ticket: Ticket,
    from: u64,
    length: usize,
}

impl SftpReader {
    pub(super) fn new(store: SftpStore, session: Arc<Session>, key: Key, handle: Handle, from: u64, end: u64) -> Self {
        Self {
            store,
            session,
            key,
            handle,
            next: from,
            end,
            window: FIRST_WINDOW,
            coming: VecDeque::new(),
            current: None,
        }
    }

    fn ask(&self, from: u64, length: usize) -> Result<Piece, Error> {
        let ticket = self.session.send_read(&self.handle, from, length);
        let ticket =
            ticket.map_err(|trouble| self.store.failed(&self.session, trouble, Verb::Read, Some(&self.key)))?;
        Ok(Piece { ticket, from, length })
    }

    fn ask_ahead(&mut self) -> Result<(), Error> {
        while self.coming.len() < self.window && self.next < self.end {
            let left = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
            let piece = self.ask(self.next, left.min(self.session.abilities().read_bytes))?;
            self.next += piece.length as u64;
            self.coming.push_back(piece);
        }
        Ok(())
    }

    /// Takes the next piece; `false` at the end.
    fn advance(&mut self) -> Result<bool, Error> {
        self.ask_ahead()?;
        let Some(piece) = self.coming.pop_front() else {
            return Ok(false);
        };
        let came = self.session.wait_read(piece.ticket);
        let came = came.map_err(|trouble| self.store.failed(&self.session, trouble, Verb::Read, Some(&self.key)))?;
        // Cut meanwhile: whoever knows the size will notice.
        let Some(data) = came else {
            self.end = self.next;
            self.coming.clear();
            return Ok(false);
        };
        let length = data.bytes().len();
        if length == 0 || length > piece.length {
            let message = format!("the server gave {length} bytes where {} were asked for", piece.length);
            return Err(Error::new(Kind::Transient, message));
        }
        if length < piece.length {
            let rest = self.ask(piece.from + length as u64, piece.length - length)?;
            self.coming.push_front(rest);
        }
        self.window = (self.window * 2).min(LARGEST_WINDOW);
        self.current = Some((data, 0));
        Ok(true)
    }
}

impl Read for SftpReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some((data, at)) = &mut self.current {
                let rest = data.bytes().get(*at..).unwrap_or_default();
                if !rest.is_empty() {
                    let length = rest.len().min(buffer.len());
                    let (Some(into), Some(from)) = (buffer.get_mut(..length), rest.get(..length)) else {
                        return Ok(0);
                    };
                    into.copy_from_slice(from);
                    *at += length;
                    return Ok(length);
                }
            }
            self.current = None;
            if !self.advance()? {
                return Ok(0);
            }
        }
    }
}

impl Drop for SftpReader {
    fn drop(&mut self) {
        self.session.close(&self.handle);
    }
}
