//! Writing frames.

use std::io::{self, Write};

use zstd::zstd_safe::{CCtx, CParameter, compress_bound, get_error_name};

use super::table::{Frame, FrameTable, MAX_FRAMES};
use super::{FRAME_BYTES, MAX_FRAME_STORED};
use crate::error::{Context, Error, Kind, Result};

/// The compression levels that may be asked for.
const LEVELS: std::ops::RangeInclusive<i32> = -100..=19;

/// Cuts what it is given into frames, compresses each, and writes the table at the end.
///
/// As a `Write` it cuts anywhere; [`FrameWriter::put`] keeps what belongs together in one frame. What is
/// dropped without [`FrameWriter::finish`] is an incomplete stream.
pub struct FrameWriter<W: Write> {
    out: W,
    context: CCtx<'static>,
    pending: Vec<u8>,
    packed: Vec<u8>,
    frames: Vec<Frame>,
    position: u64,
    stored: u64,
}

impl<W: Write> FrameWriter<W> {
    /// Writes to `out` at a zstd level from -100 to 19.
    ///
    /// # Errors
    /// `Config` for another level.
    pub fn new(out: W, level: i32) -> Result<Self> {
        if !LEVELS.contains(&level) {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "there is no compression level {level}, only {} to {}",
                    LEVELS.start(),
                    LEVELS.end()
                ),
            ));
        }
        let mut context =
            CCtx::try_create().ok_or_else(|| Error::new(Kind::Failed, "cannot allocate a zstd context"))?;
        context
            .set_parameter(CParameter::CompressionLevel(level))
            .map_err(|code| zstd_failed("set the compression level", code))?;
        Ok(Self {
            out,
            context,
            pending: Vec::with_capacity(FRAME_BYTES),
            packed: Vec::with_capacity(compress_bound(FRAME_BYTES)),
            frames: Vec::new(),
            position: 0,
            stored: 0,
        })
    }

    /// Adds a unit of at most [`FRAME_BYTES`], which no frame boundary will split.
    ///
    /// # Errors
    /// `Failed` for a longer unit; the kind of the writer's error.
    pub fn put(&mut self, unit: &[u8]) -> Result<()> {
        if unit.len() > FRAME_BYTES {
            return Err(Error::new(
                Kind::Failed,
                format!("cannot put {} bytes into a frame of {FRAME_BYTES}", unit.len()),
            ));
        }
        if self.pending.len() + unit.len() > FRAME_BYTES {
            self.cut()?;
        }
        self.position += unit.len() as u64;
        if unit.len() == FRAME_BYTES {
            return self.compress(unit);
        }
        self.pending.extend_from_slice(unit);
        if self.pending.len() == FRAME_BYTES {
            self.cut()?;
        }
        Ok(())
    }

    /// Ends the current frame, if there is anything in it.
    ///
    /// # Errors
    /// The kind of the writer's error.
    pub fn cut(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let result = self.compress(&pending);
        self.pending = pending;
        self.pending.clear();
        result
    }

    /// Plain bytes taken so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes written so far; what is not yet in a frame does not count.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Frames written so far.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Ends the last frame and writes the table.
    ///
    /// # Errors
    /// The kind of the writer's error.
    pub fn finish(mut self) -> Result<(W, FrameTable)> {
        self.cut()?;
        let table = FrameTable::new(self.frames)?;
        self.out
            .write_all(&table.encode())
            .context(|| "write the frame table")?;
        Ok((self.out, table))
    }

    /// Writes a skippable frame as it is and lists it.
    pub(in crate::codec) fn lead(&mut self, skippable: &[u8]) -> Result<()> {
        self.cut()?;
        self.out.write_all(skippable).context(|| "write a frame")?;
        self.list(skippable.len(), 0)
    }

    fn compress(&mut self, plain: &[u8]) -> Result<()> {
        self.context
            .compress2(&mut self.packed, plain)
            .map_err(|code| zstd_failed("compress a frame", code))?;
        self.out.write_all(&self.packed).context(|| "write a frame")?;
        self.list(self.packed.len(), plain.len())
    }

    fn list(&mut self, stored: usize, plain: usize) -> Result<()> {
        if self.frames.len() >= MAX_FRAMES || stored > MAX_FRAME_STORED {
            return Err(Error::new(
                Kind::Failed,
                "the stream has grown beyond what a frame table can hold",
            ));
        }
        self.stored += stored as u64;
        self.frames.push(Frame {
            // Both are below `MAX_FRAME_STORED`.
            stored: stored as u32,
            plain: plain as u32,
        });
        Ok(())
    }
}

fn zstd_failed(what: &str, code: usize) -> Error {
    Error::new(Kind::Failed, format!("{what}: {}", get_error_name(code)))
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = FRAME_BYTES - self.pending.len();
        let taken = bytes.len().min(room);
        let (unit, _) = bytes.split_at(taken);
        self.put(unit)?;
        Ok(taken)
    }

    /// Does not end the frame: that is [`FrameWriter::cut`].
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::codec::frames::table::TABLE_MAGIC;

    fn plain_lengths(table: &FrameTable) -> Vec<u32> {
        table.entries().iter().map(|frame| frame.plain).collect()
    }

    #[test]
    fn a_unit_is_never_split() {
        let mut writer = FrameWriter::new(Vec::new(), 2).unwrap();
        let page = vec![3; 48 * 1024];
        for _ in 0..5 {
            writer.put(&page).unwrap();
        }
        assert_eq!(writer.position(), 5 * 48 * 1024);
        let (_, table) = writer.finish().unwrap();
        assert_eq!(plain_lengths(&table), [96 * 1024, 96 * 1024, 48 * 1024]);
    }

    #[test]
    fn whole_frames_and_cuts_make_the_frames_one_expects() {
        let mut writer = FrameWriter::new(Vec::new(), -1).unwrap();
        writer.put(&[1; 10]).unwrap();
        writer.put(&[2; FRAME_BYTES]).unwrap();
        writer.cut().unwrap();
        writer.put(&[3; 5]).unwrap();
        writer.cut().unwrap();
        writer.put(&[]).unwrap();
        writer.write_all(&[4; FRAME_BYTES + 7]).unwrap();
        let stored = writer.stored();
        let (bytes, table) = writer.finish().unwrap();
        assert_eq!(
            plain_lengths(&table),
            [10, FRAME_BYTES as u32, 5, FRAME_BYTES as u32, 7]
        );
        assert!(stored < table.stored_length());
        let end = bytes.get(table.stored_length() as usize..).unwrap();
        assert_eq!(end[..4], TABLE_MAGIC.to_le_bytes());
        let plain = zstd::stream::decode_all(&bytes[..]).unwrap();
        assert_eq!(plain.len() as u64, table.plain_length());
    }

    #[test]
    fn a_unit_longer_than_a_frame_and_an_unknown_level_are_refused() {
        let mut writer = FrameWriter::new(Vec::new(), 2).unwrap();
        assert_eq!(writer.put(&[0; FRAME_BYTES + 1]).unwrap_err().kind(), Kind::Failed);
        assert_eq!(FrameWriter::new(Vec::new(), 20).err().unwrap().kind(), Kind::Config);
    }

    #[test]
    fn the_writers_own_error_keeps_its_kind() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(Error::new(Kind::Transient, "no space left").into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writer = FrameWriter::new(Full, 2).unwrap();
        assert_eq!(writer.put(&[0; FRAME_BYTES]).unwrap_err().kind(), Kind::Transient);
    }
}
