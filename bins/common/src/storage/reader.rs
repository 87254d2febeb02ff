//! Objects as `Read` and `Seek`, and small ones as a whole.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::sync::Arc;

use super::{Key, Store};
use crate::error::{Context, Error, Kind, Result};

/// Reads a whole object of at most `limit` bytes.
///
/// # Errors
/// `Corrupt` if it is larger; `NotFound` only if there surely is none.
pub fn read_all(store: &dyn Store, key: &Key, limit: u64) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    let mut reader = store.open(key, 0, Some(limit.saturating_add(1)))?;
    reader
        .read_to_end(&mut body)
        .context(|| format!("read {}", store.describe(Some(key))))?;
    if body.len() as u64 > limit {
        let message = format!("{} is larger than {limit} bytes", store.describe(Some(key)));
        return Err(Error::new(Kind::Corrupt, message));
    }
    Ok(body)
}

/// How much is asked for after a seek; it doubles while reading goes on from there.
const FIRST_WINDOW: u64 = 256 << 10;
const LARGEST_WINDOW: u64 = 16 << 20;

/// An object of known size as `Read` and `Seek`. A seek costs nothing until something is read; then a range is
/// asked for that is small at first, since whoever seeks may soon seek again.
pub struct ObjectReader {
    store: Arc<dyn Store>,
    key: Key,
    size: u64,
    position: u64,
    window: u64,
    /// A stream that stands at `position`, and what is left of its range.
    open: Option<(Box<dyn Read + Send>, u64)>,
}

impl ObjectReader {
    /// Makes a reader at the beginning of an object; asks the store for nothing yet.
    pub fn new(store: Arc<dyn Store>, key: Key, size: u64) -> Self {
        Self {
            store,
            key,
            size,
            position: 0,
            window: FIRST_WINDOW,
            open: None,
        }
    }

    /// The size of the object.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.position >= self.size {
            return Ok(0);
        }
        let (stream, left) = match &mut self.open {
            Some((stream, left)) if *left > 0 => (stream, left),
            open => {
                let length = self.window.max(buffer.len() as u64).min(self.size - self.position);
                self.window = (self.window * 2).min(LARGEST_WINDOW);
                let stream = self.store.open(&self.key, self.position, Some(length))?;
                let (stream, left) = open.insert((stream, length));
                (stream, left)
            }
        };
        let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let read = stream.read(buffer.get_mut(..wanted).unwrap_or_default())?;
        if read == 0 {
            let message = format!(
                "{} ends at byte {} of {}",
                self.store.describe(Some(&self.key)),
                self.position,
                self.size
            );
            return Err(Error::new(Kind::Corrupt, message).into());
        }
        *left = left.saturating_sub(read as u64);
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for ObjectReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let target = target.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "seek before the beginning"))?;
        if target != self.position {
            self.position = target;
            self.open = None;
            self.window = FIRST_WINDOW;
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::storage::memory::MemoryStore;

    fn store(body: &[u8]) -> (Arc<dyn Store>, Key) {
        let (store, key) = (MemoryStore::new(), Key::parse("k").unwrap());
        store.put_new(&key, body).unwrap();
        (Arc::new(store), key)
    }

    #[test]
    fn an_object_larger_than_the_limit_is_not_read() {
        let (store, key) = store(b"12345");
        assert_eq!(read_all(&*store, &key, 5).unwrap(), b"12345");
        assert_eq!(read_all(&*store, &key, 4).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(read_all(&*store, &key, u64::MAX).unwrap(), b"12345");
    }

    #[test]
    fn reading_and_seeking_give_the_object_s_bytes() {
        let body: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
        let (store, key) = store(&body);
        let mut reader = ObjectReader::new(store, key, body.len() as u64);
        let mut whole = Vec::new();
        reader.read_to_end(&mut whole).unwrap();
        assert!(whole == body);
        for (to, at) in [
            (SeekFrom::Start(1_999_990), 1_999_990),
            (SeekFrom::End(-1_000_000), 1_000_000),
            (SeekFrom::Current(-5), 1_000_005),
        ] {
            reader.seek(to).unwrap();
            let mut piece = [0; 10];
            reader.read_exact(&mut piece).unwrap();
            assert_eq!(piece, body[at..at + 10]);
        }
        reader.seek(SeekFrom::Start(3_000_000)).unwrap();
        assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
        assert!(reader.seek(SeekFrom::Current(-4_000_000)).is_err());
    }

    #[test]
    fn an_object_shorter_than_its_size_is_corrupt() {
        let (store, key) = store(b"12345");
        let mut reader = ObjectReader::new(store, key, 6);
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(Error::io(error, "read").kind(), Kind::Corrupt);
    }
}
