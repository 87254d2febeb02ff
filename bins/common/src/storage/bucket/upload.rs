//! An object on its way into a bucket: small ones in one request, large ones in parts, some of which are under way while
//! the next is filled.
//!
//! A part is kept until the store has it, so a failed part is sent again. A multipart upload has no create-only mode: its
//! names are unique by their label, and that the name is free is looked at before it is completed. What a killed process
//! leaves behind is invisible; a lifecycle rule of the bucket removes it (docs/s3.md).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::thread::JoinHandle;

use bytes::Bytes;
use object_store::PutPayload;
use object_store::multipart::PartId;

use super::BucketStore;
use crate::digest::Sha256;
use crate::error::{Error, Kind, Result};
use crate::storage::{Key, Store, Stored, Upload, already_exists};

/// The first parts: the least that S3 takes.
const PART_BYTES: usize = 5 << 20;

/// How many parts are under way while one is filled.
const IN_FLIGHT: usize = 2;

/// The most parts of an upload (Amazon S3 User Guide, "Multipart upload limits").
const MAX_PARTS: usize = 10_000;

/// The size of part `n`, counted from 0: small for what is usual, larger later, so that 10,000 parts hold 380 GB.
fn part_bytes(n: usize) -> usize {
    match n {
        0..1000 => PART_BYTES,
        1000..5000 => 16 << 20,
        _ => 64 << 20,
    }
}

/// The parts of one upload.
struct Parts {
    id: String,
    begun: usize,
    under_way: VecDeque<JoinHandle<Result<PartId>>>,
    done: Vec<PartId>,
}

/// What is being written.
pub(super) struct BucketUpload {
    store: BucketStore,
    key: Key,
    buffer: Vec<u8>,
    sha256: Sha256,
    size: u64,
    parts: Option<Parts>,
}

impl BucketUpload {
    pub fn new(store: BucketStore, key: Key) -> Self {
        Self {
            store,
            key,
            buffer: Vec::new(),
            sha256: Sha256::new(),
            size: 0,
            parts: None,
        }
    }

    /// Sends what is in the buffer as the next part.
    fn send(&mut self) -> Result<()> {
        let parts = match &mut self.parts {
            Some(parts) => parts,
            None => {
                let id = self.store.begin_parts(&self.key)?;
                self.parts.insert(Parts {
                    id,
                    begun: 0,
                    under_way: VecDeque::new(),
                    done: Vec::new(),
                })
            }
        };
        if parts.begun >= MAX_PARTS {
            let message = format!(
                "store {}: it is too large for one object",
                self.store.describe(Some(&self.key))
            );
            return Err(Error::new(Kind::Failed, message));
        }
        if parts.under_way.len() >= IN_FLIGHT {
            parts.settle_one()?;
        }
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        let (store, key, id, number) = (self.store.clone(), self.key.clone(), parts.id.clone(), parts.begun);
        parts.begun += 1;
        parts.under_way.push_back(std::thread::spawn(move || {
            store.put_part(&key, &id, number, PutPayload::from_bytes(body))
        }));
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<usize> {
        let full = part_bytes(self.parts.as_ref().map_or(0, |parts| parts.begun));
        // Only when more comes: an object that just fills the buffer is put in one request.
        if self.buffer.len() >= full {
            self.send()?;
        }
        if self.buffer.capacity() == 0 {
            // Only address space until it is written to.
            self.buffer.reserve_exact(full);
        }
        let room = full.saturating_sub(self.buffer.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.buffer.extend_from_slice(taken);
        self.sha256.update(taken);
        self.size += taken.len() as u64;
        Ok(taken.len())
    }
}

impl Parts {
    /// Waits for the oldest part.
    fn settle_one(&mut self) -> Result<()> {
        let Some(part) = self.under_way.pop_front() else {
            return Ok(());
        };
        let part = part
            .join()
            .map_err(|_| Error::new(Kind::Failed, "store a part: its thread ended"))?;
        self.done.push(part?);
        Ok(())
    }
}

impl Write for BucketUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        Ok(self.take(bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for BucketUpload {
    fn finish(mut self: Box<Self>) -> Result<Stored> {
        let sha256 = std::mem::take(&mut self.sha256).finish();
        let stored = Stored {
            size: self.size,
            sha256,
        };
        if self.parts.is_none() {
            let body = Bytes::from(std::mem::take(&mut self.buffer));
            self.store.put_patiently(&self.key, &body, stored)?;
            return Ok(stored);
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        while let Some(parts) = self.parts.as_mut().filter(|parts| !parts.under_way.is_empty()) {
            parts.settle_one()?;
        }
        if self.store.stat(&self.key)?.is_some() {
            return Err(already_exists(&self.store, &self.key));
        }
        if let Some(parts) = &mut self.parts {
            let done = std::mem::take(&mut parts.done);
            self.store.complete_parts(&self.key, &parts.id, done, self.size)?;
        }
        self.parts = None;
        Ok(stored)
    }
}

impl Drop for BucketUpload {
    fn drop(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            while !parts.under_way.is_empty() {
                // Whatever became of it: it is thrown away.
                let _ = parts.settle_one();
            }
            self.store.abort_parts(&self.key, &parts.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_hold_what_a_dump_may_have() {
        let total: usize = (0..MAX_PARTS).map(part_bytes).sum();
        assert!(total > 350 << 30, "{total}");
        assert!(part_bytes(0) >= 5 << 20, "S3 refuses less");
    }
}
