//! A store in memory, for tests: with a clock that can be set and objects that can be damaged.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Exclusive, Key, Space, Stat, Store, Stored, Upload, already_exists, not_found};
use crate::digest::Sha256Digest;
use crate::error::Result;
use crate::time::UtcTime;

/// Objects in memory; clones share them.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, (Arc<[u8]>, UtcTime)>,
    clock: Option<UtcTime>,
}

impl State {
    fn now(&self) -> UtcTime {
        self.clock.unwrap_or_else(UtcTime::now)
    }
}

impl MemoryStore {
    /// Makes an empty store that goes by the system's clock.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the store's clock, which then stands still.
    pub fn set_now(&self, now: UtcTime) {
        self.state().clock = Some(now);
    }

    /// Puts bytes under a key whatever is there, as damage or an enemy would.
    pub fn overwrite(&self, key: &Key, body: &[u8]) {
        let mut state = self.state();
        let now = state.now();
        state.objects.insert(key.clone(), (body.into(), now));
    }

    /// Changes the bytes of an object, if it is there, as damage would.
    pub fn damage(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some((body, _)) = self.state().objects.get_mut(key) {
            let mut bytes = body.to_vec();
            change(&mut bytes);
            *body = bytes.into();
        }
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<Key> {
        self.state().objects.keys().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single step, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        let stored = Stored {
            size: body.len() as u64,
            sha256: Sha256Digest::of(body),
        };
        let mut state = self.state();
        if state.objects.contains_key(key) {
            return Err(already_exists(self, key));
        }
        let now = state.now();
        state.objects.insert(key.clone(), (body.into(), now));
        Ok(stored)
    }

    /// The first object below `prefix` after `last`.
    fn next(&self, prefix: Option<&Key>, last: Option<&Key>) -> Option<(Key, Stat)> {
        let state = self.state();
        let start = match (last, prefix) {
            (Some(last), _) => Bound::Excluded(last),
            (None, Some(prefix)) => Bound::Included(prefix),
            (None, None) => Bound::Unbounded,
        };
        let mut found = state.objects.range::<Key, _>((start, Bound::Unbounded));
        let (key, (body, modified)) = match prefix {
            // Below "a/b" comes after "a/b-", and all of it begins with "a/b".
            Some(prefix) => found
                .take_while(|(key, _)| key.as_str().starts_with(prefix.as_str()))
                .find(|(key, _)| key.is_below(prefix))?,
            None => found.next()?,
        };
        Some((
            key.clone(),
            Stat {
                size: body.len() as u64,
                modified: *modified,
            },
        ))
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: Key,
    body: Vec<u8>,
}

impl Write for MemoryUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.body.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for MemoryUpload {
    fn finish(self: Box<Self>) -> Result<Stored> {
        self.store.insert(&self.key, &self.body)
    }
}

impl Store for MemoryStore {
    fn describe(&self, key: Option<&Key>) -> String {
        key.map_or_else(|| "memory:".to_owned(), |key| format!("memory:{key}"))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn Upload>> {
        Ok(Box::new(MemoryUpload {
            store: self.clone(),
            key: key.clone(),
            body: Vec::new(),
        }))
    }

    fn put_new(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        self.insert(key, body)
    }

    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let state = self.state();
        let (body, _) = state.objects.get(key).ok_or_else(|| not_found(self, key))?;
        let mut cursor = Cursor::new(Arc::clone(body));
        cursor.set_position(from);
        Ok(Box::new(cursor.take(length.unwrap_or(u64::MAX))))
    }

    fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        let state = self.state();
        let found = state.objects.get(key);
        Ok(found.map(|(body, modified)| Stat {
            size: body.len() as u64,
            modified: *modified,
        }))
    }

    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, Stat) -> Result<()>) -> Result<()> {
        let mut last = None;
        while let Some((key, stat)) = self.next(prefix, last.as_ref()) {
            last = Some(key.clone());
            each(key, stat)?;
        }
        Ok(())
    }

    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>> {
        let state = self.state();
        let below = state.objects.keys().filter_map(|key| key.below(prefix));
        let mut names: Vec<String> = below
            .filter_map(|rest| rest.split('/').next())
            .map(str::to_owned)
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.state().objects.remove(key);
        Ok(())
    }

    fn move_aside(&self, from: &Key, to: &Key) -> Result<()> {
        let mut state = self.state();
        if !state.objects.contains_key(from) {
            return Err(not_found(self, from));
        }
        if state.objects.contains_key(to) {
            return Err(already_exists(self, to));
        }
        if let Some(object) = state.objects.remove(from) {
            state.objects.insert(to.clone(), object);
        }
        Ok(())
    }

    fn now(&self) -> Result<UtcTime> {
        Ok(self.state().now())
    }

    fn exclusive(&self) -> Exclusive {
        Exclusive::InMemory
    }

    fn free_space(&self) -> Result<Option<Space>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_contract() {
        super::super::contract::check(&|| Box::new(MemoryStore::new()));
    }
}
