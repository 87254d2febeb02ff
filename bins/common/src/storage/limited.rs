//! Any store, at a limited rate: so many bytes a second, both directions and all threads together.
//!
//! Bytes are counted where they are handed over; what a store keeps back to send it in large parts goes out in bursts of
//! that size. Nothing is counted but content: names, listings and answers are small.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Exclusive, Key, Space, Stat, Store, Stored, Upload};
use crate::error::Result;
use crate::time::UtcTime;
use crate::units::ByteSize;

/// Nobody moves more than this between two looks at the clock.
const PIECE_BYTES: usize = 64 << 10;

/// What was not used for so long may be caught up on.
const BURST: Duration = Duration::from_millis(100);

/// When the next byte may go; clones share it.
#[derive(Debug, Clone)]
struct Pace {
    bytes_per_second: u64,
    free_at: Arc<Mutex<Instant>>,
}

impl Pace {
    fn new(rate: ByteSize, now: Instant) -> Self {
        Self {
            bytes_per_second: rate.bytes().max(1),
            free_at: Arc::new(Mutex::new(now)),
        }
    }

    /// Takes the turn of so many bytes and says how long it is until then.
    fn book(&self, bytes: usize, now: Instant) -> Duration {
        let span = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let end = (*free_at).max(earliest) + span;
        *free_at = end;
        end.saturating_duration_since(now)
    }

    fn wait(&self, bytes: usize) {
        let pause = self.book(bytes, Instant::now());
        if !pause.is_zero() {
            sleep(pause);
        }
    }
}

/// A store that takes its time.
#[derive(Clone)]
pub struct LimitedStore {
    inner: Arc<dyn Store>,
    pace: Pace,
}

impl LimitedStore {
    /// Lets at most `rate` bytes a second through.
    pub fn new(inner: Arc<dyn Store>, rate: ByteSize) -> Self {
        Self {
            inner,
            pace: Pace::new(rate, Instant::now()),
        }
    }
}

/// A reader or an upload, at the store's pace.
struct Paced<T> {
    inner: T,
    pace: Pace,
}

impl Read for Paced<Box<dyn Read + Send>> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(PIECE_BYTES);
        let read = self.inner.read(buffer.get_mut(..length).unwrap_or_default())?;
        self.pace.wait(read);
        Ok(read)
    }
}

impl Write for Paced<Box<dyn Upload>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..PIECE_BYTES).unwrap_or(bytes);
        let taken = self.inner.write(piece)?;
        self.pace.wait(taken);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Upload for Paced<Box<dyn Upload>> {
    fn finish(self: Box<Self>) -> Result<Stored> {
        self.inner.finish()
    }
}

impl Store for LimitedStore {
    fn describe(&self, key: Option<&Key>) -> String {
        self.inner.describe(key)
    }

    fn prepare(&self) -> Result<()> {
        self.inner.prepare()
    }

    fn create(&self, key: &Key) -> Result<Box<dyn Upload>> {
        let (inner, pace) = (self.inner.create(key)?, self.pace.clone());
        Ok(Box::new(Paced { inner, pace }))
    }

    fn put_new(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        self.pace.wait(body.len());
        self.inner.put_new(key, body)
    }

    fn put_undigested(&self, key: &Key, body: &[u8]) -> Result<()> {
        self.pace.wait(body.len());
        self.inner.put_undigested(key, body)
    }

    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let (inner, pace) = (self.inner.open(key, from, length)?, self.pace.clone());
        Ok(Box::new(Paced { inner, pace }))
    }

    fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        self.inner.stat(key)
    }

    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, Stat) -> Result<()>) -> Result<()> {
        self.inner.list(prefix, each)
    }

    fn list_overlaid(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, usize) -> Result<()>) -> Result<()> {
        self.inner.list_overlaid(prefix, each)
    }

    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>> {
        self.inner.children(prefix)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key)
    }

    fn renew_lock(&self, key: &Key, until: UtcTime) -> Result<()> {
        self.inner.renew_lock(key, until)
    }

    fn move_aside(&self, from: &Key, to: &Key) -> Result<()> {
        self.inner.move_aside(from, to)
    }

    fn now(&self) -> Result<UtcTime> {
        self.inner.now()
    }

    fn trust(&self, exclusive: Exclusive) {
        self.inner.trust(exclusive);
    }

    fn exclusive(&self) -> Exclusive {
        self.inner.exclusive()
    }

    fn free_space(&self) -> Result<Option<Space>> {
        self.inner.free_space()
    }

    fn sweep(&self, age: Duration) -> Result<u64> {
        self.inner.sweep(age)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::memory::MemoryStore;
    use crate::storage::{contract, read_all};

    #[test]
    fn it_keeps_the_contract() {
        contract::check(&|| Box::new(LimitedStore::new(Arc::new(MemoryStore::new()), ByteSize(1 << 30))));
    }

    #[test]
    fn turns_follow_each_other_whoever_takes_them() {
        let now = Instant::now();
        let pace = Pace::new(ByteSize(1000), now);
        let other = pace.clone();
        let second = Duration::from_secs(1);
        assert_eq!(pace.book(1000, now), second);
        assert_eq!(other.book(500, now), second * 3 / 2);
        assert_eq!(pace.book(500, now), second * 2);
        let later = now + second * 10;
        assert_eq!(
            other.book(100, later),
            Duration::ZERO,
            "what was not used is lost but for a burst"
        );
        assert_eq!(other.book(1000, later), second);
    }

    /// Several threads write, then read, a megabyte each; how long that takes.
    fn traffic(rate: u64) -> Duration {
        let store = LimitedStore::new(Arc::new(MemoryStore::new()), ByteSize(rate));
        let start = Instant::now();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    let key = Key::parse(&format!("a/{n}")).unwrap();
                    let body = vec![n; 1 << 20];
                    let mut upload = store.create(&key).unwrap();
                    upload.write_all(&body).unwrap();
                    upload.finish().unwrap();
                    assert!(read_all(store, &key, 2 << 20).unwrap() == body);
                });
            }
        });
        start.elapsed()
    }

    #[test]
    fn the_rate_holds_for_all_threads_and_both_directions_together() {
        // 8 MiB in all: 1 s and 0.25 s, less the burst. Alone, each of the eight transfers would be far quicker.
        let (slow, quick) = (traffic(8 << 20), traffic(32 << 20));
        assert!(slow >= Duration::from_millis(880), "{slow:?}");
        assert!(quick >= Duration::from_millis(130), "{quick:?}");
        assert!(slow > quick * 3 / 2, "{slow:?} against {quick:?}");
    }
}
