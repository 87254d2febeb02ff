//! Any store, with faults on demand, for tests.
//!
//! Every call of the store and every read, write and finish of its streams is one operation, counted from 1. A
//! test lets the n-th one fail, for n = 1, 2, 3 until the run succeeds, and checks the promise after each. A
//! failure comes `Before` the effect (nothing happened) or `After` it (it happened, and nobody was told): the
//! second is what a network does. After a death every later operation fails and uploads leave behind what a
//! killed process would.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Exclusive, Key, Space, Stat, Store, Stored, Upload};
use crate::error::{Error, Kind, Result};
use crate::time::UtcTime;

/// Whether a failing operation has its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It fails and has done nothing.
    Before,
    /// It is done, and fails all the same.
    After,
}

/// What happens to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this kind.
    Fail(Kind, When),
    /// It and everything later fails: the process was killed, or the store is gone.
    Die(When),
    /// A read gives bytes of which one bit, chosen by the seed, is wrong. Nothing else is affected.
    Flip,
    /// A read says that the object ends here. Nothing else is affected.
    Truncate,
}

/// The plan of faults, shared by a store, its streams and the test.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    plan: BTreeMap<u64, Fault>,
    log: Vec<String>,
    dead: bool,
    short: bool,
    random: u64,
}

impl State {
    /// splitmix64: the same seed gives the same faults.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Faults {
    /// Makes an empty plan; the seed decides what is random.
    pub fn new(seed: u64) -> Self {
        let faults = Self::default();
        faults.state().random = seed;
        faults
    }

    /// Plans a fault for the n-th operation, counted from 1.
    pub fn at(&self, n: u64, fault: Fault) {
        self.state().plan.insert(n, fault);
    }

    /// Lets every read and write take or give only a part of what was asked for.
    pub fn short(&self, short: bool) {
        self.state().short = short;
    }

    /// Ends a death, and forgets faults, operations counted and their log: the process starts again.
    pub fn reset(&self) {
        let mut state = self.state();
        *state = State {
            random: state.random,
            ..State::default()
        };
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.state().log.len() as u64
    }

    /// What they were, in order, for the messages of tests.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// Whether a death has come.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation and says what is to become of it.
    fn begin(&self, operation: String) -> Result<Option<Fault>> {
        let mut state = self.state();
        state.log.push(operation);
        if state.dead {
            return Err(dead());
        }
        let n = state.log.len() as u64;
        let fault = state.plan.remove(&n);
        state.dead = matches!(fault, Some(Fault::Die(_)));
        match fault {
            Some(Fault::Fail(kind, When::Before)) => Err(injected(kind, n)),
            Some(Fault::Die(When::Before)) => Err(dead()),
            fault => Ok(fault),
        }
    }

    fn end(&self, fault: Option<Fault>) -> Result<()> {
        match fault {
            Some(Fault::Fail(kind, _)) => Err(injected(kind, self.operations())),
            Some(Fault::Die(_)) => Err(dead()),
            _ => Ok(()),
        }
    }

    fn around<T>(&self, operation: String, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let fault = self.begin(operation)?;
        let outcome = act();
        // The fault hides how it really went, as a lost answer would.
        self.end(fault)?;
        outcome
    }

    /// How many of `length` bytes a short operation takes; never none.
    fn shortened(&self, length: usize) -> usize {
        let mut state = self.state();
        if !state.short || length < 2 {
            return length;
        }
        1 + usize::try_from(state.random() % length as u64).unwrap_or(0)
    }
}

fn injected(kind: Kind, n: u64) -> Error {
    Error::new(kind, format!("injected fault at operation {n}"))
}

fn dead() -> Error {
    Error::new(Kind::Failed, "injected death")
}

/// A store with faults.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Faults,
}

impl FaultyStore {
    /// Puts faults before a store; the test keeps a clone of the plan.
    pub fn new(inner: Arc<dyn Store>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

struct FaultyUpload {
    inner: Option<Box<dyn Upload>>,
    key: Key,
    faults: Faults,
}

impl Write for FaultyUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(inner) = &mut self.inner else {
            return Err(dead().into());
        };
        let fault = self.faults.begin(format!("write {}", self.key))?;
        let part = bytes.get(..self.faults.shortened(bytes.len())).unwrap_or(bytes);
        let written = inner.write(part);
        self.faults.end(fault)?;
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.as_mut().map_or(Ok(()), |inner| inner.flush())
    }
}

impl Upload for FaultyUpload {
    fn finish(mut self: Box<Self>) -> Result<Stored> {
        let fault = self.faults.begin(format!("finish {}", self.key))?;
        let Some(inner) = self.inner.take() else {
            return Err(dead());
        };
        let outcome = inner.finish();
        self.faults.end(fault)?;
        outcome
    }
}

impl Drop for FaultyUpload {
    fn drop(&mut self) {
        if self.faults.is_dead() {
            // The dead do not clear up.
            std::mem::forget(self.inner.take());
        }
    }
}

struct FaultyReader {
    inner: Box<dyn Read + Send>,
    key: Key,
    faults: Faults,
    ended: bool,
}

impl Read for FaultyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        let fault = self.faults.begin(format!("read {}", self.key))?;
        let length = self.faults.shortened(buffer.len());
        let part = buffer.get_mut(..length).unwrap_or_default();
        let read = self.inner.read(part)?;
        self.faults.end(fault)?;
        match fault {
            Some(Fault::Truncate) => {
                self.ended = true;
                return Ok(0);
            }
            Some(Fault::Flip) if read > 0 => {
                let random = self.faults.state().random();
                let place = usize::try_from((random >> 3) % read as u64).unwrap_or(0);
                if let Some(byte) = part.get_mut(place) {
                    *byte ^= 1 << (random & 7);
                }
            }
            _ => {}
        }
        Ok(read)
    }
}

impl Store for FaultyStore {
    fn describe(&self, key: Option<&Key>) -> String {
        self.inner.describe(key)
    }

    fn create(&self, key: &Key) -> Result<Box<dyn Upload>> {
        let inner = self.faults.around(format!("create {key}"), || self.inner.create(key))?;
        Ok(Box::new(FaultyUpload {
            inner: Some(inner),
            key: key.clone(),
            faults: self.faults.clone(),
        }))
    }

    fn put_new(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        self.faults
            .around(format!("put_new {key}"), || self.inner.put_new(key, body))
    }

    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let inner = self
            .faults
            .around(format!("open {key}"), || self.inner.open(key, from, length))?;
        Ok(Box::new(FaultyReader {
            inner,
            key: key.clone(),
            faults: self.faults.clone(),
            ended: false,
        }))
    }

    fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        self.faults.around(format!("stat {key}"), || self.inner.stat(key))
    }

    /// The call is one operation, and so is every object shown: a listing may break in the middle.
    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, Stat) -> Result<()>) -> Result<()> {
        let fault = self.faults.begin(format!("list {}", self.describe(prefix)))?;
        let outcome = self.inner.list(prefix, &mut |key, stat| {
            let fault = self.faults.begin(format!("list at {key}"))?;
            each(key, stat)?;
            self.faults.end(fault)
        });
        self.faults.end(fault)?;
        outcome
    }

    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>> {
        self.faults.around(format!("children {}", self.describe(prefix)), || {
            self.inner.children(prefix)
        })
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.faults.around(format!("delete {key}"), || self.inner.delete(key))
    }

    fn renew_lock(&self, key: &Key, until: UtcTime) -> Result<()> {
        self.faults
            .around(format!("renew_lock {key}"), || self.inner.renew_lock(key, until))
    }

    fn move_aside(&self, from: &Key, to: &Key) -> Result<()> {
        self.faults
            .around(format!("move_aside {from}"), || self.inner.move_aside(from, to))
    }

    fn now(&self) -> Result<UtcTime> {
        self.faults.around("now".to_owned(), || self.inner.now())
    }

    fn exclusive(&self) -> Exclusive {
        self.inner.exclusive()
    }

    fn free_space(&self) -> Result<Option<Space>> {
        self.faults.around("free_space".to_owned(), || self.inner.free_space())
    }

    fn sweep(&self, age: Duration) -> Result<u64> {
        self.faults.around("sweep".to_owned(), || self.inner.sweep(age))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::storage::posix::PosixStore;
    use crate::storage::{contract, read_all};

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    fn faulty() -> (MemoryStore, Faults, FaultyStore) {
        let (memory, faults) = (MemoryStore::new(), Faults::new(7));
        let store = FaultyStore::new(Arc::new(memory.clone()), faults.clone());
        (memory, faults, store)
    }

    #[test]
    fn without_faults_it_keeps_the_contract_also_in_short_pieces() {
        contract::check(&|| {
            let faults = Faults::new(1);
            faults.short(true);
            Box::new(FaultyStore::new(Arc::new(MemoryStore::new()), faults))
        });
    }

    #[test]
    fn before_means_no_effect_and_after_means_an_effect() {
        for (when, there) in [(When::Before, false), (When::After, true)] {
            let (memory, faults, store) = faulty();
            faults.at(1, Fault::Fail(Kind::Transient, when));
            assert_eq!(store.put_new(&key("a"), b"x").unwrap_err().kind(), Kind::Transient);
            assert_eq!(!memory.keys().is_empty(), there, "{when:?}");
            assert_eq!(faults.log(), ["put_new a"]);
        }
    }

    #[test]
    fn after_a_death_everything_fails_until_the_reset() {
        let (_, faults, store) = faulty();
        faults.at(1, Fault::Die(When::After));
        assert!(store.put_new(&key("a"), b"x").is_err());
        assert!(store.stat(&key("a")).is_err());
        assert!(store.list(None, &mut |_, _| Ok(())).is_err());
        faults.reset();
        assert!(store.stat(&key("a")).unwrap().is_some());
    }

    #[test]
    fn a_killed_upload_leaves_a_staging_file_that_nobody_sees() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::new(0);
        let store = FaultyStore::new(Arc::new(PosixStore::new(dir.path())), faults.clone());
        faults.at(2, Fault::Die(When::After));
        let mut upload = store.create(&key("a")).unwrap();
        assert!(upload.write_all(b"x").is_err());
        drop(upload);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        faults.reset();
        assert!(store.children(None).unwrap().is_empty());
    }

    #[test]
    fn reads_can_be_cut_and_spoiled() {
        let (memory, faults, store) = faulty();
        memory.put_new(&key("a"), &[0; 100]).unwrap();
        faults.at(2, Fault::Flip);
        let spoiled = read_all(&store, &key("a"), 1000).unwrap();
        assert_eq!(spoiled.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        faults.reset();
        faults.at(2, Fault::Truncate);
        assert!(read_all(&store, &key("a"), 1000).unwrap().is_empty());
    }
}
