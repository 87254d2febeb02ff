//! Reading any part of a compressed stream, by its table.

use std::io::{Read, Seek, SeekFrom};

use super::MAX_FRAME_STORED;
use super::frame::{Decoder, Extent, ZSTD_MAGIC, extent, u32_at};
use super::table::{FramePlace, FrameTable};
use crate::codec::corrupt;
use crate::error::{Context, Result};

/// Reads ranges of the plain content, fetching only the frames that hold them.
///
/// Neighbouring frames come in with one read of at most about a mebibyte; the frame read last is kept,
/// so page after page of it costs one decoding.
pub struct SeekableFrames<R> {
    source: R,
    table: FrameTable,
    decoder: Decoder,
    /// Where the source stands, as far as that is known.
    position: Option<u64>,
    stored: Vec<u8>,
    /// The frame that was read last and not handed out as a whole.
    kept: Option<usize>,
    plain: Vec<u8>,
}

impl<R: Read + Seek> SeekableFrames<R> {
    /// Opens a compressed stream and reads its table.
    ///
    /// # Errors
    /// `Corrupt` if the table is not there or does not account for the stream; the kind of the source's error.
    pub fn open(mut source: R) -> Result<Self> {
        let table = FrameTable::read(&mut source)?;
        Self::with_table(source, table)
    }

    /// Opens a compressed stream whose table is known already.
    ///
    /// # Errors
    /// `Failed` without memory.
    pub fn with_table(source: R, table: FrameTable) -> Result<Self> {
        Ok(Self {
            source,
            table,
            decoder: Decoder::new()?,
            position: None,
            stored: Vec::new(),
            kept: None,
            plain: Vec::new(),
        })
    }

    /// The table.
    pub fn table(&self) -> &FrameTable {
        &self.table
    }

    /// Fills `into` with the plain content from `offset` on.
    ///
    /// # Errors
    /// `Corrupt` if the content ends before, or a frame is not what the table says; the kind of the
    /// source's error.
    pub fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let length = self.table.plain_length();
        let end = offset
            .checked_add(into.len() as u64)
            .filter(|end| *end <= length)
            .ok_or_else(|| corrupt(format!("cannot read {} bytes at {offset} of {length}", into.len())))?;
        let mut wanted = self
            .table
            .frames_for(offset..end)
            .collect::<Vec<_>>()
            .into_iter()
            .peekable();
        let mut rest = into;
        let mut run = Vec::new();
        while let Some(place) = wanted.next() {
            if self.kept == Some(place.index) {
                rest = copy_part(&self.plain, place, offset, rest)?;
                continue;
            }
            run.push(place);
            let ends = wanted.peek().is_none_or(|next| {
                let length = next.stored_offset + u64::from(next.stored) - run_start(&run);
                let adjoins = next.stored_offset == place.stored_offset + u64::from(place.stored);
                !adjoins || length > MAX_FRAME_STORED as u64 || self.kept == Some(next.index)
            });
            if ends {
                rest = self.read_run(&run, offset, rest)?;
                run.clear();
            }
        }
        Ok(())
    }

    fn read_run<'a>(&mut self, run: &[FramePlace], offset: u64, mut rest: &'a mut [u8]) -> Result<&'a mut [u8]> {
        self.fetch(run)?;
        let start = run_start(run);
        for place in run {
            let at = (place.stored_offset - start) as usize;
            let frame = self.stored.get(at..at + place.stored as usize).unwrap_or_default();
            check(frame, *place)?;
            let plain = place.plain as usize;
            let whole = place.plain_offset >= offset && rest.len() >= plain;
            let decoded = if whole {
                let (into, after) = rest.split_at_mut(plain);
                rest = after;
                self.decoder.decode(frame, plain, into)
            } else {
                self.kept = None;
                self.plain.clear();
                self.plain.reserve(plain);
                self.decoder.decode(frame, plain, &mut self.plain)
            };
            decoded.context(|| format!("decode the frame at offset {}", place.stored_offset))?;
            if !whole {
                self.kept = Some(place.index);
                rest = copy_part(&self.plain, *place, offset, rest)?;
            }
        }
        Ok(rest)
    }

    /// Reads the stored bytes of neighbouring frames.
    fn fetch(&mut self, run: &[FramePlace]) -> Result<()> {
        let reading = || "read frames";
        let start = run_start(run);
        let length: u64 = run.iter().map(|place| u64::from(place.stored)).sum();
        // A run is one frame, which the table has limited, or shorter than `MAX_FRAME_STORED`.
        self.stored.resize(length as usize, 0);
        let position = self.position.take();
        if position != Some(start) {
            self.source.seek(SeekFrom::Start(start)).context(reading)?;
        }
        self.source.read_exact(&mut self.stored).context(reading)?;
        self.position = Some(start + length);
        Ok(())
    }
}

fn run_start(run: &[FramePlace]) -> u64 {
    run.first().map_or(0, |place| place.stored_offset)
}

/// Checks that `frame` is one frame with the lengths of the table.
fn check(frame: &[u8], place: FramePlace) -> Result<()> {
    let expected = Extent::Whole {
        stored: place.stored as usize,
        plain: place.plain as usize,
    };
    if u32_at(frame, 0) == Some(ZSTD_MAGIC) && extent(frame)? == expected {
        return Ok(());
    }
    Err(corrupt(format!(
        "the frame at offset {} is not the one that the table lists",
        place.stored_offset
    )))
}

/// Copies what `rest`, the part of the wanted range that is not yet filled, needs of this frame.
fn copy_part<'a>(plain: &[u8], place: FramePlace, offset: u64, rest: &'a mut [u8]) -> Result<&'a mut [u8]> {
    let skip = offset.saturating_sub(place.plain_offset);
    let part = usize::try_from(skip)
        .ok()
        .and_then(|skip| plain.get(skip..))
        .unwrap_or_default();
    let (part, _) = part.split_at(part.len().min(rest.len()));
    let (into, after) = rest.split_at_mut(part.len());
    into.copy_from_slice(part);
    Ok(after)
}
