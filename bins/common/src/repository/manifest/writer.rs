//! Writes a manifest, group by group.

use std::io::Write;

use super::entry::text_or_hex;
use super::{Group, GroupRef, Tail, push_json};
use crate::codec::{FRAME_BYTES, FrameWriter};
use crate::error::{Error, Kind, Result};

/// Entries in one group, at most.
const GROUP_LINES: usize = 1000;

/// Writes a manifest. Entries come sorted by path.
pub struct ManifestWriter<W: Write> {
    frames: FrameWriter<W>,
    group: Vec<u8>,
    group_first: Vec<u8>,
    group_count: u64,
    last: Vec<u8>,
    index: Vec<Group>,
    entries: u64,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins a manifest in `out`, compressed at `level`.
    ///
    /// # Errors
    /// As the frame writer's.
    pub fn new(out: W, level: i32) -> Result<Self> {
        Ok(Self {
            frames: FrameWriter::new(out, level)?,
            group: Vec::new(),
            group_first: Vec::new(),
            group_count: 0,
            last: Vec::new(),
            index: Vec::new(),
            entries: 0,
        })
    }

    /// Adds the lines of the next entry, which has `path`.
    ///
    /// # Errors
    /// `Failed` if the path is not greater than the one before; else what writing gave.
    pub fn push(&mut self, path: &[u8], lines: &[u8]) -> Result<()> {
        if self.entries > 0 && path <= self.last.as_slice() {
            let path = String::from_utf8_lossy(path);
            return Err(Error::new(
                Kind::Failed,
                format!("write the manifest: \"{path}\" comes out of order"),
            ));
        }
        let full = self.group_count as usize >= GROUP_LINES || self.group.len() + lines.len() > FRAME_BYTES;
        if full {
            self.end_group()?;
        }
        if self.group_count == 0 {
            self.group_first = path.to_vec();
        }
        self.group.extend_from_slice(lines);
        self.group_count += 1;
        self.entries += 1;
        self.last = path.to_vec();
        Ok(())
    }

    /// Adds a group of another backup's manifest, unchanged, whose entries follow all those before.
    ///
    /// # Errors
    /// `Failed` if its first path is not greater than the last one before it; else what writing gave.
    pub fn refer(&mut self, group: &GroupRef) -> Result<()> {
        self.end_group()?;
        if self.entries > 0 && group.first <= self.last {
            let path = String::from_utf8_lossy(&group.first);
            return Err(Error::new(
                Kind::Failed,
                format!("write the manifest: the group of \"{path}\" comes out of order"),
            ));
        }
        self.entries += group.group.count;
        self.last.clone_from(&group.last);
        self.index.push(group.group.clone());
        Ok(())
    }

    fn end_group(&mut self) -> Result<()> {
        if self.group_count == 0 {
            return Ok(());
        }
        let offset = self.frames.stored();
        // An entry with very many ranges makes a group of several frames; no line is split.
        let mut frame = 0..0;
        for line in self.group.split_inclusive(|byte| *byte == b'\n') {
            if frame.len() + line.len() > FRAME_BYTES && !frame.is_empty() {
                self.frames.put(self.group.get(frame.clone()).unwrap_or_default())?;
                self.frames.cut()?;
                frame.start = frame.end;
            }
            frame.end += line.len();
        }
        self.frames.put(self.group.get(frame).unwrap_or_default())?;
        self.frames.cut()?;
        let (first, encoded) = match text_or_hex(&self.group_first) {
            (Some(text), _) => (text, false),
            (None, encoded) => (encoded.unwrap_or_default(), true),
        };
        self.index.push(Group {
            first,
            encoded,
            count: self.group_count,
            offset,
            length: self.frames.stored() - offset,
            plain: self.group.len() as u64,
            backup: None,
        });
        self.group.clear();
        self.group_count = 0;
        Ok(())
    }

    /// Writes the frame index and hands back the output and the number of plain bytes.
    ///
    /// # Errors
    /// What writing gave.
    pub fn finish(mut self) -> Result<(W, u64)> {
        self.end_group()?;
        let offset = self.frames.stored();
        for group in &self.index {
            let mut line = Vec::new();
            push_json(&mut line, group)?;
            self.frames.put(&line)?;
        }
        self.frames.cut()?;
        let mut line = Vec::new();
        push_json(
            &mut line,
            &Tail {
                index: self.index.len() as u64,
                entries: self.entries,
                offset,
            },
        )?;
        self.frames.put(&line)?;
        let plain = self.frames.position();
        let (out, _) = self.frames.finish()?;
        Ok((out, plain))
    }
}
