//! Any store, with patience: what is `Transient` is tried again.
//!
//! A lost answer leaves open whether the effect took place. So a name found taken after a failed attempt of
//! our own counts as ours if the bytes are ours, and an object found gone after a failed move counts as moved
//! if it stands under the new name. A stream that breaks is opened again where it broke. Written bytes are
//! gone, so an upload that breaks is its caller's to repeat; only its last step is looked into.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::{Durability, Exclusive, Key, Space, Stat, Store, Stored, Upload};
use crate::digest::{HashingWriter, Sha256Digest, Xxh3_128, Xxh3Hasher};
use crate::error::{Context, Error, Kind, Result};
use crate::retry::Policy;
use crate::time::UtcTime;

/// A store that asks again.
#[derive(Clone)]
pub struct RetryingStore {
    inner: Arc<dyn Store>,
    policy: Policy,
}

impl RetryingStore {
    /// Puts patience before a store; each operation has all of it.
    pub fn new(inner: Arc<dyn Store>, policy: Policy) -> Self {
        Self { inner, policy }
    }

    fn retry<T>(&self, verb: &str, key: Option<&Key>, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.policy.run(What { store: self, verb, key }, attempt)
    }

    /// Reads an object through both digests.
    fn digest(&self, key: &Key) -> Result<(Stored, Xxh3_128)> {
        let mut reader = self.open(key, 0, None)?;
        let mut out = HashingWriter::new(Quick(Xxh3Hasher::new()));
        io::copy(&mut reader, &mut out).context(|| format!("read back {}", self.describe(Some(key))))?;
        let (quick, size, sha256) = out.finish();
        Ok((Stored { size, sha256 }, quick.0.finish()))
    }
}

/// The sentence of a warning, made only if there is one.
struct What<'a> {
    store: &'a RetryingStore,
    verb: &'a str,
    key: Option<&'a Key>,
}

impl std::fmt::Display for What<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.store.describe(self.key))
    }
}

struct Quick(Xxh3Hasher);

impl Write for Quick {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps a quick digest, so that after an unclear end it can be found out whose object that is.
struct RetryingUpload {
    store: RetryingStore,
    key: Key,
    inner: Box<dyn Upload>,
    size: u64,
    quick: Xxh3Hasher,
}

impl Write for RetryingUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        self.quick.update(bytes.get(..taken).unwrap_or(bytes));
        self.size += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Upload for RetryingUpload {
    fn finish(self: Box<Self>) -> Result<Stored> {
        let Self {
            store,
            key,
            inner,
            size,
            quick,
        } = *self;
        let error = match inner.finish() {
            Err(error) if error.kind() == Kind::Transient => error,
            outcome => return outcome,
        };
        let is_whole = store.stat(&key)?.is_some_and(|stat| stat.size == size);
        if is_whole {
            let (stored, found) = store.digest(&key)?;
            if stored.size == size && found == quick.finish() {
                return Ok(stored);
            }
        }
        Err(error)
    }
}

/// Opens the object again where a stream broke.
struct RetryingReader {
    store: RetryingStore,
    key: Key,
    inner: Option<Box<dyn Read + Send>>,
    position: u64,
    left: Option<u64>,
}

impl RetryingReader {
    fn read_once(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let Self {
            store,
            key,
            inner,
            position,
            left,
        } = self;
        let reader = match inner {
            Some(reader) => reader,
            None => inner.insert(store.inner.open(key, *position, *left)?),
        };
        reader.read(buffer).map_err(|error| {
            *inner = None;
            Error::io(error, format!("read {}", store.describe(Some(key))))
        })
    }
}

impl Read for RetryingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // With nothing wanted or left, opening again could only do harm.
        if buffer.is_empty() || self.left == Some(0) {
            return Ok(0);
        }
        let (store, key) = (self.store.clone(), self.key.clone());
        let read = store.retry("read", Some(&key), || self.read_once(buffer))?;
        self.position += read as u64;
        self.left = self.left.map(|left| left.saturating_sub(read as u64));
        Ok(read)
    }
}

fn stored_as(body: &[u8]) -> Stored {
    Stored {
        size: body.len() as u64,
        sha256: Sha256Digest::of(body),
    }
}

impl RetryingStore {
    /// Repeats a put. A name that is taken after an attempt with an unclear end may be taken by that attempt.
    fn put(&self, key: &Key, body: &[u8], put: &dyn Fn() -> Result<Option<Stored>>) -> Result<Option<Stored>> {
        let mut unclear = false;
        let outcome = self.retry("store", Some(key), || {
            let outcome = put();
            unclear |= matches!(&outcome, Err(error) if error.kind() == Kind::Transient);
            outcome
        });
        match outcome {
            Err(error) if unclear && error.kind() == Kind::AlreadyExists => {
                let ours = stored_as(body);
                let is_whole = self.stat(key)?.is_some_and(|stat| stat.size == ours.size);
                if is_whole && self.digest(key)?.0 == ours {
                    Ok(Some(ours))
                } else {
                    Err(error)
                }
            }
            outcome => outcome,
        }
    }
}

impl Store for RetryingStore {
    fn describe(&self, key: Option<&Key>) -> String {
        self.inner.describe(key)
    }

    fn prepare(&self) -> Result<()> {
        self.retry("prepare", None, || self.inner.prepare())
    }

    fn create(&self, key: &Key) -> Result<Box<dyn Upload>> {
        let inner = self.retry("create", Some(key), || self.inner.create(key))?;
        let quick = Xxh3Hasher::new();
        Ok(Box::new(RetryingUpload {
            store: self.clone(),
            key: key.clone(),
            inner,
            size: 0,
            quick,
        }))
    }

    fn put_new(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        let stored = self.put(key, body, &|| self.inner.put_new(key, body).map(Some))?;
        Ok(stored.unwrap_or_else(|| stored_as(body)))
    }

    fn put_undigested(&self, key: &Key, body: &[u8]) -> Result<()> {
        self.put(key, body, &|| self.inner.put_undigested(key, body).map(|()| None))
            .map(|_| ())
    }

    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let inner = Some(self.retry("read", Some(key), || self.inner.open(key, from, length))?);
        Ok(Box::new(RetryingReader {
            store: self.clone(),
            key: key.clone(),
            inner,
            position: from,
            left: length,
        }))
    }

    fn renew_lock(&self, key: &Key, until: UtcTime) -> Result<()> {
        self.retry("renew the lock of", Some(key), || self.inner.renew_lock(key, until))
    }

    fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        self.retry("look at", Some(key), || self.inner.stat(key))
    }

    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, Stat) -> Result<()>) -> Result<()> {
        let mut last: Option<Key> = None;
        // The visitor's error is its own, whatever its kind.
        let mut refused = None;
        let outcome = self.retry("list", prefix, || {
            let outcome = self.inner.list(prefix, &mut |key, stat| {
                if last.as_ref() >= Some(&key) {
                    return Ok(());
                }
                last = Some(key.clone());
                each(key, stat).map_err(|error| {
                    refused = Some(error);
                    Error::new(Kind::Failed, "stopped by the visitor")
                })
            });
            if refused.is_some() { Ok(()) } else { outcome }
        });
        refused.map_or(outcome, Err)
    }

    fn list_overlaid(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, usize) -> Result<()>) -> Result<()> {
        self.retry("list", prefix, || self.inner.list_overlaid(prefix, each))
    }

    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>> {
        self.retry("list", prefix, || self.inner.children(prefix))
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.retry("delete", Some(key), || self.inner.delete(key))
    }

    fn move_aside(&self, from: &Key, to: &Key) -> Result<()> {
        let mut unclear = false;
        let outcome = self.retry("move aside", Some(from), || {
            let outcome = self.inner.move_aside(from, to);
            unclear |= matches!(&outcome, Err(error) if error.kind() == Kind::Transient);
            outcome
        });
        match outcome {
            Err(error) if unclear && matches!(error.kind(), Kind::NotFound | Kind::AlreadyExists) => {
                let moved = self.stat(from)?.is_none() && self.stat(to)?.is_some();
                if moved { Ok(()) } else { Err(error) }
            }
            outcome => outcome,
        }
    }

    fn now(&self) -> Result<UtcTime> {
        self.retry("ask the clock of", None, || self.inner.now())
    }

    fn trust(&self, exclusive: Exclusive) {
        self.inner.trust(exclusive);
    }

    fn exclusive(&self) -> Exclusive {
        self.inner.exclusive()
    }

    fn durability(&self) -> Durability {
        self.inner.durability()
    }

    fn free_space(&self) -> Result<Option<Space>> {
        self.retry("ask the size of", None, || self.inner.free_space())
    }

    fn sweep(&self, age: Duration) -> Result<u64> {
        // What stays is swept the next time: nobody should wait for it.
        self.inner.sweep(age)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::storage::faulty::{Fault, Faults, FaultyStore, When};
    use crate::storage::memory::MemoryStore;
    use crate::storage::{contract, read_all};

    const LOST: Fault = Fault::Fail(Kind::Transient, When::After);

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    fn quick_policy() -> Policy {
        let delay = Duration::from_millis(1);
        Policy {
            patience: Duration::from_secs(60),
            first_delay: delay,
            max_delay: delay,
        }
    }

    fn retrying() -> (MemoryStore, Faults, RetryingStore) {
        let (memory, faults) = (MemoryStore::new(), Faults::new(3));
        let faulty = FaultyStore::new(Arc::new(memory.clone()), faults.clone());
        (memory, faults, RetryingStore::new(Arc::new(faulty), quick_policy()))
    }

    #[test]
    fn it_keeps_the_contract() {
        contract::check(&|| Box::new(retrying().2));
    }

    #[test]
    fn one_transient_fault_anywhere_is_not_noticed() {
        let body: Vec<u8> = (0..200u8).collect();
        for when in [When::Before, When::After] {
            // Until a run has fewer operations than that.
            for n in 1.. {
                let (memory, faults, store) = retrying();
                faults.short(true);
                faults.at(n, Fault::Fail(Kind::Transient, when));
                store.put_new(&key("a/x"), &body).unwrap();
                assert!(
                    read_all(&store, &key("a/x"), 1000).unwrap() == body,
                    "{when:?} {n}: {:?}",
                    faults.log()
                );
                store.put_new(&key("a/y"), b"y").unwrap();
                let mut seen = Vec::new();
                store
                    .list(None, &mut |key, _| {
                        seen.push(key);
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(seen, [key("a/x"), key("a/y")], "{when:?} {n}: {:?}", faults.log());
                store.move_aside(&key("a/x"), &key("b/x")).unwrap();
                store.delete(&key("a/y")).unwrap();
                assert_eq!(store.children(None).unwrap(), ["b"]);
                assert_eq!(memory.keys(), [key("b/x")], "{when:?} {n}: {:?}", faults.log());
                if n > faults.operations() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_lost_answer_does_not_make_another_s_object_ours() {
        for other in [&b"abd"[..], b"abcd"] {
            let (memory, faults, store) = retrying();
            memory.put_new(&key("a"), other).unwrap();
            faults.at(1, LOST);
            assert_eq!(
                store.put_new(&key("a"), b"abc").unwrap_err().kind(),
                Kind::AlreadyExists
            );
        }
    }

    #[test]
    fn an_identical_object_of_somebody_else_still_exists_already() {
        let (memory, _, store) = retrying();
        memory.put_new(&key("a"), b"abc").unwrap();
        assert_eq!(
            store.put_new(&key("a"), b"abc").unwrap_err().kind(),
            Kind::AlreadyExists
        );
    }

    #[test]
    fn an_upload_whose_last_answer_is_lost_is_looked_into() {
        for (when, succeeds) in [(When::Before, false), (When::After, true)] {
            let (_, faults, store) = retrying();
            faults.at(3, Fault::Fail(Kind::Transient, when));
            let mut upload = store.create(&key("a")).unwrap();
            upload.write_all(b"abc").unwrap();
            let outcome = upload.finish();
            assert_eq!(outcome.is_ok(), succeeds, "{when:?}: {outcome:?}");
            if let Ok(stored) = outcome {
                assert_eq!(
                    stored,
                    Stored {
                        size: 3,
                        sha256: Sha256Digest::of(b"abc")
                    }
                );
            }
        }
    }

    #[test]
    fn what_is_not_transient_is_not_tried_again() {
        let (_, faults, store) = retrying();
        faults.at(1, Fault::Fail(Kind::Failed, When::Before));
        assert_eq!(store.stat(&key("a")).unwrap_err().kind(), Kind::Failed);
        assert_eq!(faults.operations(), 1);
    }

    #[test]
    fn patience_ends() {
        let (memory, faults) = (MemoryStore::new(), Faults::new(3));
        let faulty = FaultyStore::new(Arc::new(memory), faults.clone());
        let store = RetryingStore::new(Arc::new(faulty), Policy::once());
        faults.at(1, LOST);
        assert_eq!(store.stat(&key("a")).unwrap_err().kind(), Kind::Transient);
    }
}
