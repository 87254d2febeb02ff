//! Objects that carry a [`Descriptor`]: WAL files, maps, and other content that fits into memory once
//! compressed.
//!
//! Content is compressed once, as a [`CompressedStream`], and sealed for each set of recipients. The
//! digest stands in front and is filled in at the end, since the compressed stream is in memory; where the
//! digest is needed before, a [`Reading`] comes first, and compression makes sure by xxh3-128 that it saw
//! the same bytes. Reading back holds everything against the descriptor: digest, both lengths, and that
//! nothing follows.

use std::io::{self, Read, Write};

use super::corrupt;
use super::descriptor::{ContentKind, Descriptor};
use super::frames::{FRAME_BYTES, FrameReader, FrameWriter};
use super::seal::header::AgeHeader;
use super::seal::{Opening, Sealing};
use crate::digest::{Sha256, Sha256Digest, Xxh3_128, Xxh3Hasher};
use crate::error::{Context, Error, Kind, Result};

/// The largest plain content that [`decode_small`] returns.
pub const SMALL_BYTES: u64 = 64 * 1024 * 1024;

/// Room for all of a compressed stream at once: a buffer that grows is copied, and twice as large while it is.
///
/// A large one gets more than glibc's allocator ever keeps for later (`DEFAULT_MMAP_THRESHOLD_MAX`, 32 MiB), so that it
/// goes back to the system when it is dropped; pages of it that are never touched cost nothing.
fn room_for(length: u64) -> usize {
    const SMALL: u64 = 128 << 10;
    const LARGE: u64 = (32 << 20) + 1;
    const MOST: u64 = (1 << 30) + (16 << 20);
    let room = length.saturating_add(length / 128).saturating_add(1024);
    let room = if room <= SMALL { room } else { room.clamp(LARGE, MOST) };
    usize::try_from(room).unwrap_or_default()
}

/// Length and digests of some content, as a first reading found them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Length in bytes.
    pub length: u64,
    /// What the descriptor will say.
    pub sha256: Sha256Digest,
    /// What the second reading is compared with.
    pub xxh3: Xxh3_128,
}

impl Reading {
    /// Reads `content` to its end.
    ///
    /// # Errors
    /// The kind of the reader's error.
    pub fn of(mut content: impl Read) -> Result<Self> {
        let mut buffer = vec![0; FRAME_BYTES];
        let (mut length, mut sha256, mut xxh3) = (0, Sha256::new(), Xxh3Hasher::new());
        loop {
            let unit = read_unit(&mut content, &mut buffer)?;
            if unit.is_empty() {
                break;
            }
            length += unit.len() as u64;
            sha256.update(unit);
            xxh3.update(unit);
        }
        Ok(Self {
            length,
            sha256: sha256.finish(),
            xxh3: xxh3.finish(),
        })
    }
}

/// Fills `buffer` as far as the content goes.
fn read_unit<'a>(content: &mut impl Read, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match content.read(room) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(error, "read the content")),
        }
    }
    Ok(buffer.get(..filled).unwrap_or_default())
}

/// Content that has been compressed once and can be sealed any number of times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressedStream {
    /// The whole stream: descriptor frame, frames, table. This is the clear object.
    pub bytes: Vec<u8>,
    /// What its descriptor says.
    pub descriptor: Descriptor,
}

impl CompressedStream {
    /// Writes the object that `sealing` makes of it.
    ///
    /// # Errors
    /// The kind of the writer's error.
    pub fn seal<W: Write>(&self, sealing: &Sealing, out: W) -> Result<W> {
        let mut writer = sealing.wrap(out, Some(&self.descriptor))?;
        writer.write_all(&self.bytes).context(|| "write the object")?;
        writer.finish()
    }
}

/// Compresses content in one reading, and says what it read; `expected` is about its length in bytes.
///
/// # Errors
/// `Config` for a level that does not exist; the kind of the reader's error.
pub fn compress_once(
    content: impl Read,
    expected: u64,
    kind: ContentKind,
    level: i32,
) -> Result<(CompressedStream, Reading)> {
    let (mut sha256, mut xxh3) = (Sha256::new(), Xxh3Hasher::new());
    let frames = pack(content, expected, kind, level, &mut |_, unit| {
        sha256.update(unit);
        xxh3.update(unit);
        Ok(())
    })?;
    let reading = Reading {
        length: frames.position(),
        sha256: sha256.finish(),
        xxh3: xxh3.finish(),
    };
    Ok((finish(frames, kind, &reading)?, reading))
}

/// Compresses content that has been read once before, making sure that it is still the same.
///
/// # Errors
/// `Failed` if the content has changed since; the kind of the reader's error.
pub fn compress_stream(content: impl Read, first: &Reading, kind: ContentKind, level: i32) -> Result<CompressedStream> {
    let mut seen = Xxh3Hasher::new();
    let frames = pack(content, first.length, kind, level, &mut |position, unit| {
        if position + unit.len() as u64 > first.length {
            return Err(changed("is longer"));
        }
        seen.update(unit);
        Ok(())
    })?;
    if frames.position() < first.length {
        return Err(changed("is shorter"));
    }
    if seen.finish() != first.xxh3 {
        return Err(changed("differs"));
    }
    finish(frames, kind, first)
}

/// Compresses content behind the place of a descriptor; `see` gets each unit and its offset first.
fn pack(
    mut content: impl Read,
    expected: u64,
    kind: ContentKind,
    level: i32,
    see: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<FrameWriter<Vec<u8>>> {
    let mut frames = FrameWriter::new(Vec::with_capacity(room_for(expected)), level)?;
    let unknown = Descriptor {
        kind,
        plain_length: 0,
        stream_length: 0,
        sha256: Sha256Digest([0; 32]),
    };
    frames.lead(&unknown.encode_frame())?;
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let unit = read_unit(&mut content, &mut buffer)?;
        if unit.is_empty() {
            return Ok(frames);
        }
        see(frames.position(), unit)?;
        frames.put(unit)?;
    }
}

/// Ends the stream and fills in its descriptor, which only now is known.
fn finish(frames: FrameWriter<Vec<u8>>, kind: ContentKind, reading: &Reading) -> Result<CompressedStream> {
    let (mut bytes, _) = frames.finish()?;
    let descriptor = Descriptor {
        kind,
        plain_length: reading.length,
        stream_length: bytes.len() as u64,
        sha256: reading.sha256,
    };
    let frame = descriptor.encode_frame();
    if let Some(front) = bytes.get_mut(..frame.len()) {
        front.copy_from_slice(&frame);
    }
    Ok(CompressedStream { bytes, descriptor })
}

fn changed(how: &str) -> Error {
    Error::new(Kind::Failed, format!("the content {how} when read a second time"))
}

/// Compresses and seals content that is in memory.
///
/// # Errors
/// `Config` for a level that does not exist.
pub fn encode_small(plain: &[u8], kind: ContentKind, level: i32, sealing: &Sealing) -> Result<Vec<u8>> {
    let (stream, _) = compress_once(plain, plain.len() as u64, kind, level)?;
    match sealing {
        Sealing::Clear => Ok(stream.bytes),
        Sealing::Age(_) => stream.seal(sealing, Vec::new()),
    }
}

/// Reads a whole object from memory, clear or encrypted, and checks it as [`decode_to`] does.
///
/// # Errors
/// As for [`decode_to`]; `Corrupt` too if the content is larger than [`SMALL_BYTES`].
pub fn decode_small(bytes: &[u8], opening: &Opening) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    let sealed = AgeHeader::begins(bytes);
    decode(bytes, opening, sealed, SMALL_BYTES, &mut plain)?;
    Ok(plain)
}

/// Decodes an object to `out` and checks all of it.
///
/// `out` never gets more than the descriptor's length, but it gets bytes before their digest has been
/// compared: they count only once this returns well.
///
/// # Errors
/// `Corrupt` for anything odd: damage, truncation, bytes behind the end, content or lengths that differ
/// from the descriptor, a descriptor that is missing or not the one of the age header. `Config` without
/// a fitting identity. The kind of the reader's or the writer's error.
pub fn decode_to(source: impl Read, opening: &Opening, sealed: bool, out: &mut dyn Write) -> Result<Descriptor> {
    decode(source, opening, sealed, u64::MAX, out)
}

fn decode(source: impl Read, opening: &Opening, sealed: bool, limit: u64, out: &mut dyn Write) -> Result<Descriptor> {
    let opened = opening.open(source, sealed)?;
    let announced = opened.descriptor().copied();
    if sealed && announced.is_none() {
        return Err(corrupt("the encrypted object carries no descriptor in its header"));
    }
    let mut frames = FrameReader::new(opened)?;
    let mut more = frames.advance()?;
    let descriptor = *frames
        .descriptor()
        .ok_or_else(|| corrupt("the stream does not begin with a descriptor"))?;
    if announced.is_some_and(|announced| announced != descriptor) {
        return Err(corrupt("the descriptor in the age header is not the one in the stream"));
    }
    if descriptor.plain_length > limit {
        return Err(corrupt(format!(
            "the descriptor names {} bytes of content where at most {limit} are expected",
            descriptor.plain_length
        )));
    }
    let (mut length, mut sha256) = (0u64, Sha256::new());
    while more {
        let plain = frames.frame();
        length += plain.len() as u64;
        if length > descriptor.plain_length {
            return Err(corrupt(format!(
                "the content is longer than {} bytes",
                descriptor.plain_length
            )));
        }
        sha256.update(plain);
        out.write_all(plain).context(|| "write the decoded content")?;
        more = frames.advance()?;
    }
    compare("length of the content", &length, &descriptor.plain_length)?;
    compare("length of the stream", &frames.consumed(), &descriptor.stream_length)?;
    compare("SHA-256 of the content", &sha256.finish(), &descriptor.sha256)?;
    Ok(descriptor)
}

fn compare<T: PartialEq + std::fmt::Display>(what: &str, found: &T, expected: &T) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(corrupt(format!(
        "the {what} is {found}, but the descriptor says {expected}"
    )))
}
