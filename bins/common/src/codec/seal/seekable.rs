//! Reading any part of a sealed object.

use std::io::{self, Read, Seek, SeekFrom};

use age::stream::StreamReader;

use super::opening::Headed;
use super::{CHUNK_BYTES, NONCE_BYTES, TAG_BYTES};
use crate::codec::corrupt;
use crate::error::{Context, Error, Kind, Result};

/// Reads and seeks in what [`super::Opening::open_seekable`] has opened; positions are those of the
/// decrypted content.
///
/// A seek costs nothing by itself; a read fetches and checks the chunks of 64 KiB that it needs. After
/// an error there is no going on, because age's reader has lost its place then.
pub struct SeekableReader<R>(Inner<R>);

// The large one is the one in use wherever this matters.
#[allow(clippy::large_enum_variant)]
enum Inner<R> {
    Clear(R),
    Sealed(Sealed<R>),
}

struct Sealed<R> {
    reader: StreamReader<Headed<R>>,
    length: u64,
    /// Where the next read is wanted.
    position: u64,
    /// Where age's reader stands; none after an error.
    reached: Option<u64>,
}

impl<R> SeekableReader<R> {
    pub(super) fn clear(source: R) -> Self {
        Self(Inner::Clear(source))
    }
}

impl<R: Read + Seek> SeekableReader<R> {
    /// Takes over from a reader that stands behind a header of `header` bytes in an object of `stored`.
    pub(super) fn sealed(mut reader: StreamReader<Headed<R>>, header: u64, stored: u64) -> Result<Self> {
        let chunk = CHUNK_BYTES + TAG_BYTES;
        let payload = stored
            .checked_sub(header + NONCE_BYTES)
            .filter(|payload| *payload >= TAG_BYTES)
            .ok_or_else(|| corrupt("the encrypted object ends before its first chunk"))?;
        let chunks = payload.div_ceil(chunk);
        let last = payload - (chunks - 1) * chunk;
        if last < TAG_BYTES || (last == TAG_BYTES && chunks > 1) {
            return Err(corrupt("the encrypted object ends inside a chunk"));
        }
        let length = payload - chunks * TAG_BYTES;
        // A short last chunk proves itself to be the last one when it is read. A full one need not be
        // the last: let age look for what tells it apart.
        let mut reached = 0;
        if payload % chunk == 0 {
            reached = reader
                .seek(SeekFrom::End(0))
                .context(|| "read the last encrypted chunk")?;
        }
        Ok(Self(Inner::Sealed(Sealed {
            reader,
            length,
            position: 0,
            reached: Some(reached),
        })))
    }
}

impl<R: Read + Seek> Sealed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let wanted = into.len().min(left);
        if wanted == 0 {
            return Ok(0);
        }
        let Some(reached) = self.reached.take() else {
            return Err(Error::new(Kind::Failed, "reading the encrypted object has failed before").into());
        };
        if reached != self.position {
            self.go_to_position()?;
        }
        let read = self.reader.read(into.get_mut(..wanted).unwrap_or_default())?;
        if read == 0 {
            return Err(corrupt("the encrypted object is shorter than its size says").into());
        }
        self.position += read as u64;
        self.reached = Some(self.position);
        Ok(read)
    }

    /// Moves age's reader. To a chunk's first byte it goes by way of the second, because a seek to the
    /// first makes it read the last chunk of the object besides.
    fn go_to_position(&mut self) -> io::Result<()> {
        if self.position.is_multiple_of(CHUNK_BYTES) {
            self.reader.seek(SeekFrom::Start(self.position + 1))?;
        }
        self.reader.seek(SeekFrom::Start(self.position))?;
        Ok(())
    }

    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

impl<R: Read + Seek> Read for SeekableReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Clear(source) => source.read(into),
            Inner::Sealed(sealed) => sealed.read(into),
        }
    }
}

impl<R: Read + Seek> Seek for SeekableReader<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match &mut self.0 {
            Inner::Clear(source) => source.seek(to),
            Inner::Sealed(sealed) => sealed.seek(to),
        }
    }
}
