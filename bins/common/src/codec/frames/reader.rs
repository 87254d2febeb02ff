//! Reading frames one after the other.

use std::io::{self, BufRead, Read};

use super::frame::{Decoder, Extent, ZSTD_MAGIC, extent, is_skippable, u32_at};
use super::table::{ENTRY_BYTES, FOOTER_BYTES, Frame, TABLE_MAGIC, footer};
use super::{FRAME_OVERHEAD, MAX_FRAME_PLAIN};
use crate::codec::corrupt;
use crate::codec::descriptor::{DESCRIPTOR_FRAME_BYTES, DESCRIPTOR_MAGIC, Descriptor};
use crate::digest::Xxh3Hasher;
use crate::error::{Error, Kind, Result};

/// How much is asked of the source at once.
const INPUT_BYTES: usize = 256 * 1024;

/// Decodes a compressed stream from front to end, holding one frame at a time.
///
/// The table at the end has to be there, agree with what was read, and be the last thing: otherwise a
/// stream that was cut between two frames would pass for a shorter one.
pub struct FrameReader<R> {
    input: Input<R>,
    decoder: Decoder,
    plain: Vec<u8>,
    taken: usize,
    descriptor: Option<Descriptor>,
    seen: Seen,
    excerpt: bool,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Reading,
    Done,
    Failed,
}

/// What the table will have to say, in constant memory: how many frames, and a digest of the entries.
struct Seen {
    frames: u64,
    entries: Xxh3Hasher,
}

impl Seen {
    fn note(&mut self, stored: u64, plain: usize) -> Result<()> {
        let stored = u32::try_from(stored).map_err(|_| corrupt("a skippable frame is longer than a table can say"))?;
        self.frames += 1;
        // A frame's content is at most `MAX_FRAME_PLAIN`.
        self.entries.update(
            &Frame {
                stored,
                plain: plain as u32,
            }
            .encode(),
        );
        Ok(())
    }
}

impl<R: Read> FrameReader<R> {
    /// Reads a whole stream.
    ///
    /// # Errors
    /// `Failed` without memory.
    pub fn new(source: R) -> Result<Self> {
        Ok(Self {
            input: Input::new(source),
            decoder: Decoder::new()?,
            plain: Vec::new(),
            taken: 0,
            descriptor: None,
            seen: Seen {
                frames: 0,
                entries: Xxh3Hasher::new(),
            },
            excerpt: false,
            state: State::Reading,
        })
    }

    /// Reads some whole frames cut out of a stream, without the table behind them.
    ///
    /// # Errors
    /// `Failed` without memory.
    pub fn excerpt(source: R) -> Result<Self> {
        let mut reader = Self::new(source)?;
        reader.excerpt = true;
        Ok(reader)
    }

    /// Goes on to the next frame that has content; `false` after the last one.
    ///
    /// # Errors
    /// `Corrupt` if the stream is damaged; the kind of the source's error. After an error there is no
    /// going on.
    pub fn advance(&mut self) -> Result<bool> {
        match self.state {
            State::Done => return Ok(false),
            State::Failed => return Err(Error::new(Kind::Failed, "reading the stream has failed before")),
            State::Reading => {}
        }
        self.plain.clear();
        self.taken = 0;
        self.state = State::Failed;
        let more = self.find_frame()?;
        self.state = if more { State::Reading } else { State::Done };
        Ok(more)
    }

    /// The content of the current frame.
    pub fn frame(&self) -> &[u8] {
        &self.plain
    }

    /// The descriptor that the stream opened with, known after the first [`FrameReader::advance`].
    pub fn descriptor(&self) -> Option<&Descriptor> {
        self.descriptor.as_ref()
    }

    /// How much of the compressed stream has been used.
    pub fn consumed(&self) -> u64 {
        self.input.consumed
    }

    /// The source.
    pub fn into_inner(self) -> R {
        self.input.source
    }

    fn find_frame(&mut self) -> Result<bool> {
        loop {
            if !self.input.fill(FRAME_OVERHEAD)? {
                return self.end_without_table();
            }
            match u32_at(self.input.available(), 0) {
                Some(ZSTD_MAGIC) => {
                    self.decode_frame()?;
                    if !self.plain.is_empty() {
                        return Ok(true);
                    }
                }
                Some(TABLE_MAGIC) if !self.excerpt => {
                    self.check_table()?;
                    return Ok(false);
                }
                Some(magic) if is_skippable(magic) => self.skip(magic)?,
                _ => {
                    return Err(corrupt(format!(
                        "there is no zstd frame at offset {}",
                        self.input.consumed
                    )));
                }
            }
        }
    }

    fn end_without_table(&self) -> Result<bool> {
        match (self.input.available().len(), self.excerpt) {
            (0, true) => Ok(false),
            (0, false) => Err(corrupt(format!(
                "the stream ends after {} bytes without its frame table: it is truncated",
                self.input.consumed
            ))),
            _ => Err(self.cut_short()),
        }
    }

    fn cut_short(&self) -> Error {
        corrupt(format!(
            "the stream ends inside the frame at offset {}: it is truncated",
            self.input.consumed
        ))
    }

    fn decode_frame(&mut self) -> Result<()> {
        let (stored, plain) = loop {
            match extent(self.input.available())? {
                Extent::Whole { stored, plain } => break (stored, plain),
                Extent::Needs(length) if self.input.fill(length)? => {}
                Extent::Needs(_) => return Err(self.cut_short()),
            }
        };
        self.plain.reserve(plain);
        let frame = self.input.available().get(..stored).unwrap_or_default();
        self.decoder
            .decode(frame, plain, &mut self.plain)
            .map_err(|error| error.context(format!("decode the frame at offset {}", self.input.consumed)))?;
        self.input.consume(stored);
        self.seen.note(stored as u64, plain)
    }

    fn skip(&mut self, magic: u32) -> Result<()> {
        let length = u32_at(self.input.available(), 4).map(u64::from).unwrap_or_default();
        if self.seen.frames == 0
            && magic == DESCRIPTOR_MAGIC
            && length + FRAME_OVERHEAD as u64 == DESCRIPTOR_FRAME_BYTES as u64
            && self.input.fill(DESCRIPTOR_FRAME_BYTES)?
        {
            let frame = self.input.available().get(FRAME_OVERHEAD..DESCRIPTOR_FRAME_BYTES);
            self.descriptor = Some(Descriptor::decode(frame.unwrap_or_default())?);
        }
        self.pass(length + FRAME_OVERHEAD as u64, |_| {})?;
        self.seen.note(length + FRAME_OVERHEAD as u64, 0)
    }

    /// Consumes `length` bytes, however many they are, showing them piece by piece.
    fn pass(&mut self, mut length: u64, mut show: impl FnMut(&[u8])) -> Result<()> {
        while length > 0 {
            if !self.input.fill(1)? {
                return Err(self.cut_short());
            }
            let available = self.input.available();
            let piece = available.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            show(available.get(..piece).unwrap_or_default());
            self.input.consume(piece);
            length -= piece as u64;
        }
        Ok(())
    }

    fn check_table(&mut self) -> Result<()> {
        let disagrees = || corrupt("the frame table does not agree with the frames");
        let length = u32_at(self.input.available(), 4).map(u64::from).unwrap_or_default();
        let entries = self.seen.frames * ENTRY_BYTES as u64;
        if length != entries + FOOTER_BYTES as u64 {
            return Err(disagrees());
        }
        self.input.consume(FRAME_OVERHEAD);
        let mut listed = Xxh3Hasher::new();
        self.pass(entries, |piece| listed.update(piece))?;

        if listed.finish() != self.seen.entries.finish() {
            return Err(disagrees());
        }
        if !self.input.fill(FOOTER_BYTES)? {
            return Err(self.cut_short());
        }
        // The length of the table has shown that the number of frames fits.
        if !self.input.available().starts_with(&footer(self.seen.frames as usize)) {
            return Err(corrupt("the frame table's footer does not agree with its entries"));
        }
        self.input.consume(FOOTER_BYTES);
        if self.input.fill(1)? {
            return Err(corrupt(format!(
                "there are bytes after the end of the stream, at offset {}",
                self.input.consumed
            )));
        }
        Ok(())
    }
}

impl<R: Read> BufRead for FrameReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken >= self.plain.len() {
            self.advance()?;
        }
        Ok(self.plain.get(self.taken..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.taken = self.taken.saturating_add(amount).min(self.plain.len());
    }
}

impl<R: Read> Read for FrameReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let mut available = self.fill_buf()?;
        let length = available.read(into)?;
        self.consume(length);
        Ok(length)
    }
}

/// A window over the source that grows to one frame at most.
struct Input<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    consumed: u64,
}

impl<R: Read> Input<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            consumed: 0,
        }
    }

    fn available(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn consume(&mut self, length: usize) {
        self.start = self.start.saturating_add(length).min(self.end);
        self.consumed += length as u64;
    }

    /// Makes `length` bytes available; `false` if the source ends before.
    ///
    /// Callers ask for one frame at most, and `extent` has limited that one.
    fn fill(&mut self, length: usize) -> Result<bool> {
        debug_assert!(length <= 2 * MAX_FRAME_PLAIN, "frames are limited");
        if self.end - self.start >= length {
            return Ok(true);
        }
        self.make_room(length);
        while self.end - self.start < length {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.source.read(room) {
                Ok(0) => return Ok(false),
                Ok(read) => self.end = self.end.saturating_add(read).min(self.buffer.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(error, "read the compressed stream")),
            }
        }
        Ok(true)
    }

    fn make_room(&mut self, length: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + length > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() < length.max(INPUT_BYTES) {
            self.buffer.resize(length.max(INPUT_BYTES), 0);
        }
    }
}
