//! The manifest: every file of a backup, sorted by path, written and read as a stream (FORMAT.md, section 8.3).
//!
//! Promises flat memory: one group of at most [`GROUP_LINES`] lines at a time, and an index line per group.

use std::io::{Read, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};

use crate::codec::{FRAME_BYTES, FrameReader, FrameTable, FrameWriter};
use crate::digest::{hex, unhex};
use crate::error::{Context, Error, Kind, Result};
use crate::repository::Label;
use crate::time::UtcTime;

/// Entries in one data frame, at most.
const GROUP_LINES: usize = 1000;
/// Ranges on one line, at most; further ones continue on lines of their own.
const LINE_RANGES: usize = 1000;
/// A frame of the manifest holds at most this, in bytes: the codec's own limit for readers.
const FRAME_LIMIT_BYTES: u64 = 1 << 20;

/// One file, directory or link of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name in the backup's namespace: `data/...`, `tablespace/...`, `extra/...`.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// The owner's name, or number where it has none.
    pub owner: String,
    /// The group's name, or number where it has none.
    pub group: String,
    /// When it was last modified.
    pub mtime: UtcTime,
    /// What it is.
    pub node: Node,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A regular file.
    File(File),
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Link(Vec<u8>),
}

/// A regular file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct File {
    /// In bytes.
    pub size: u64,
    /// CRC32C of the whole.
    pub crc32c: u32,
    /// Where the bytes lie, in the file's order, without gaps.
    pub ranges: Vec<Range>,
    /// Pages whose checksum failed: first block and how many.
    pub damaged: Vec<(u32, u32)>,
}

/// A run of a file's bytes in a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The backup that holds it; `None` is the manifest's own.
    pub label: Option<Label>,
    /// The bundle's number.
    pub bundle: u32,
    /// Offset in the bundle's tar stream, in bytes.
    pub offset: u64,
    /// Offset in the file, in bytes.
    pub file_offset: u64,
    /// In bytes.
    pub length: u64,
    /// CRC32C of these bytes.
    pub crc32c: u32,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoded_path: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    more: bool,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime: Option<UtcTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoded_target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32c: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<(String, u32, u64, u64, u64, String)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    damaged: Vec<(u32, u32)>,
}

/// A group of entries in the frame index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Group {
    first: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    encoded: bool,
    count: u64,
    offset: u64,
    length: u64,
    plain: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backup: Option<Label>,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    index: u64,
    entries: u64,
    offset: u64,
}

fn corrupt(why: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, why)
}

fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(hex(bytes))),
    }
}

fn from_text_or_hex(text: Option<String>, encoded: Option<String>) -> Result<Option<Vec<u8>>> {
    match (text, encoded) {
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(encoded)) => Ok(Some(unhex(&encoded).map_err(|error| error.with_kind(Kind::Corrupt))?)),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(corrupt("a manifest line names a path twice")),
    }
}

/// Refuses a name that could lead out of the directory it is restored into.
fn check_path(path: &[u8]) -> Result<()> {
    let bad = path.is_empty()
        || path.contains(&0)
        || path
            .split(|byte| *byte == b'/')
            .any(|part| part.is_empty() || part == b"." || part == b"..");
    if bad {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "the manifest names an unsafe path \"{}\"",
                String::from_utf8_lossy(path)
            ),
        ));
    }
    Ok(())
}

fn line_ranges(ranges: &[Range]) -> Vec<(String, u32, u64, u64, u64, String)> {
    let one = |range: &Range| {
        let label = range.label.map(|label| label.to_string()).unwrap_or_default();
        (
            label,
            range.bundle,
            range.offset,
            range.file_offset,
            range.length,
            format!("{:08x}", range.crc32c),
        )
    };
    ranges.iter().map(one).collect()
}

fn crc(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 16).map_err(|error| corrupt(format!("\"{text}\" is no CRC32C")).because(error))
}

impl Entry {
    /// The entry's lines, each ended by a newline.
    ///
    /// # Errors
    /// `Failed` if it cannot be encoded.
    pub fn to_lines(&self) -> Result<Vec<u8>> {
        let (path, encoded_path) = text_or_hex(&self.path);
        let mut line = Line {
            path,
            encoded_path,
            more: false,
            node: None,
            size: None,
            mode: Some(format!("{:04o}", self.mode)),
            owner: Some(self.owner.clone()),
            group: Some(self.group.clone()),
            mtime: Some(self.mtime),
            target: None,
            encoded_target: None,
            crc32c: None,
            ranges: Vec::new(),
            damaged: Vec::new(),
        };
        let mut rest: &[Range] = &[];
        match &self.node {
            Node::Directory => line.node = Some("dir".to_owned()),
            Node::Link(target) => {
                line.node = Some("link".to_owned());
                (line.target, line.encoded_target) = text_or_hex(target);
            }
            Node::File(file) => {
                line.node = Some("file".to_owned());
                line.size = Some(file.size);
                line.crc32c = Some(format!("{:08x}", file.crc32c));
                line.damaged.clone_from(&file.damaged);
                let (head, tail) = file.ranges.split_at(file.ranges.len().min(LINE_RANGES));
                line.ranges = line_ranges(head);
                rest = tail;
            }
        }
        let mut out = Vec::new();
        push_json(&mut out, &line)?;
        for part in rest.chunks(LINE_RANGES) {
            let (path, encoded_path) = text_or_hex(&self.path);
            let more = Line {
                path,
                encoded_path,
                more: true,
                ranges: line_ranges(part),
                node: None,
                size: None,
                mode: None,
                owner: None,
                group: None,
                mtime: None,
                target: None,
                encoded_target: None,
                crc32c: None,
                damaged: Vec::new(),
            };
            push_json(&mut out, &more)?;
        }
        Ok(out)
    }

    /// Reads an entry from its lines (all of them, as [`Entry::to_lines`] made them).
    ///
    /// # Errors
    /// `Corrupt` if they are no entry; `Refused` if the path is unsafe.
    pub fn from_lines(lines: &[u8]) -> Result<Self> {
        let mut entry: Option<Self> = None;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = parse_line(line)?;
            match &mut entry {
                None => entry = Some(Self::from_line(line)?),
                Some(entry) => entry.extend(line)?,
            }
        }
        entry.ok_or_else(|| corrupt("a manifest entry is empty"))
    }

    fn from_line(line: Line) -> Result<Self> {
        let missing = |what: &str| corrupt(format!("a manifest line lacks \"{what}\""));
        if line.more {
            return Err(corrupt(
                "a manifest line continues an entry that does not stand before it",
            ));
        }
        let path = from_text_or_hex(line.path, line.encoded_path)?.ok_or_else(|| missing("path"))?;
        check_path(&path)?;
        let node = match line.node.as_deref() {
            Some("dir") => Node::Directory,
            Some("link") => {
                Node::Link(from_text_or_hex(line.target, line.encoded_target)?.ok_or_else(|| missing("target"))?)
            }
            Some("file") => Node::File(File {
                size: line.size.ok_or_else(|| missing("size"))?,
                crc32c: crc(&line.crc32c.ok_or_else(|| missing("crc32c"))?)?,
                ranges: parse_ranges(line.ranges)?,
                damaged: line.damaged,
            }),
            _ => return Err(corrupt("a manifest line has no known type")),
        };
        let mode = line.mode.ok_or_else(|| missing("mode"))?;
        let mode = u32::from_str_radix(&mode, 8).map_err(|error| corrupt("a mode is not octal").because(error))?;
        Ok(Self {
            path,
            mode: mode & 0o7777,
            owner: line.owner.unwrap_or_default(),
            group: line.group.unwrap_or_default(),
            mtime: line.mtime.ok_or_else(|| missing("mtime"))?,
            node,
        })
    }

    fn extend(&mut self, line: Line) -> Result<()> {
        let path = from_text_or_hex(line.path, line.encoded_path)?;
        match &mut self.node {
            Node::File(file) if line.more && path.as_ref() == Some(&self.path) => {
                file.ranges.extend(parse_ranges(line.ranges)?);
                Ok(())
            }
            _ => Err(corrupt("manifest lines do not belong together")),
        }
    }

    /// Fails unless a file's ranges cover it from start to end.
    ///
    /// # Errors
    /// `Corrupt` if there is a gap or an overlap.
    pub fn check_ranges(&self) -> Result<()> {
        let Node::File(file) = &self.node else { return Ok(()) };
        let mut at = 0u64;
        for range in &file.ranges {
            if range.file_offset != at || range.length == 0 {
                at = u64::MAX;
                break;
            }
            at = at.saturating_add(range.length);
        }
        if at == file.size {
            return Ok(());
        }
        let path = String::from_utf8_lossy(&self.path);
        Err(corrupt(format!(
            "the manifest's ranges for \"{path}\" do not cover its {} bytes",
            file.size
        )))
    }
}

fn push_json<T: Serialize>(out: &mut Vec<u8>, value: &T) -> Result<()> {
    serde_json::to_writer(&mut *out, value)
        .map_err(|error| Error::new(Kind::Failed, "encode a manifest line").because(error))?;
    out.push(b'\n');
    Ok(())
}

fn parse_line(line: &[u8]) -> Result<Line> {
    serde_json::from_slice(line).map_err(|error| corrupt("a manifest line is damaged").because(error))
}

fn parse_ranges(ranges: Vec<(String, u32, u64, u64, u64, String)>) -> Result<Vec<Range>> {
    let one = |(label, bundle, offset, file_offset, length, digits): (String, u32, u64, u64, u64, String)| {
        let label = if label.is_empty() {
            None
        } else {
            Some(label.parse::<Label>()?)
        };
        Ok(Range {
            label,
            bundle,
            offset,
            file_offset,
            length,
            crc32c: crc(&digits)?,
        })
    };
    ranges.into_iter().map(one).collect()
}

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

/// A source of a compressed stream, decrypted, that can be read anywhere.
pub trait Source: Read + Seek {}
impl<T: Read + Seek> Source for T {}

/// Opens the manifest stream of another backup.
pub type OpenOther<'a> = Box<dyn FnMut(Label) -> Result<Box<dyn Source + 'a>> + 'a>;

/// Reads a manifest group by group.
pub struct ManifestReader<'a> {
    own: Box<dyn Source + 'a>,
    other: Option<(Label, Box<dyn Source + 'a>)>,
    open_other: OpenOther<'a>,
    index: Vec<Group>,
    entries: u64,
}

impl<'a> ManifestReader<'a> {
    /// Opens a manifest: reads its tail and its frame index.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged; else what reading gave.
    pub fn open(mut own: Box<dyn Source + 'a>, open_other: OpenOther<'a>) -> Result<Self> {
        let table = FrameTable::read(&mut own)?;
        let mut end = 0u64;
        let mut tail_at = None;
        for frame in table.entries() {
            tail_at = Some((end, u64::from(frame.stored)));
            end = end.saturating_add(u64::from(frame.stored));
        }
        let (offset, length) = tail_at.ok_or_else(|| corrupt("the manifest is empty"))?;
        let tail: Tail = serde_json::from_slice(read_part(&mut own, offset, length)?.trim_ascii_end())
            .map_err(|error| corrupt("the manifest's last line is damaged").because(error))?;
        let index_length = offset
            .checked_sub(tail.offset)
            .ok_or_else(|| corrupt("the manifest's index lies behind its end"))?;
        let mut index = Vec::new();
        for line in read_part(&mut own, tail.offset, index_length)?.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                index.push(
                    serde_json::from_slice(line)
                        .map_err(|error| corrupt("the manifest's frame index is damaged").because(error))?,
                );
            }
        }
        let counted: u64 = index
            .iter()
            .fold(0, |sum: u64, group: &Group| sum.saturating_add(group.count));
        if index.len() as u64 != tail.index || counted != tail.entries {
            return Err(corrupt("the manifest's frame index does not match its last line"));
        }
        Ok(Self {
            own,
            other: None,
            open_other,
            index,
            entries: tail.entries,
        })
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Hands every entry to `each`, in order of path.
    ///
    /// # Errors
    /// `Corrupt` or `Refused` if an entry is not sound or out of order; else what `each` gave.
    pub fn for_each(&mut self, mut each: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        let mut last: Vec<u8> = Vec::new();
        for number in 0..self.index.len() {
            for entry in self.group(number)? {
                if !last.is_empty() && entry.path <= last {
                    return Err(corrupt("the manifest is not sorted"));
                }
                last.clone_from(&entry.path);
                each(entry)?;
            }
        }
        Ok(())
    }

    /// Finds one entry, with one read more than the index.
    ///
    /// # Errors
    /// `Corrupt` if the group that may hold it is damaged.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        let mut number = None;
        for (at, group) in self.index.iter().enumerate() {
            if group_first(group)?.as_slice() > path {
                break;
            }
            number = Some(at);
        }
        let Some(number) = number else { return Ok(None) };
        Ok(self.group(number)?.into_iter().find(|entry| entry.path == path))
    }

    fn group(&mut self, number: usize) -> Result<Vec<Entry>> {
        let group = self
            .index
            .get(number)
            .ok_or_else(|| corrupt("the manifest has no such group"))?
            .clone();
        let source = match group.backup {
            None => &mut self.own,
            Some(label) => {
                if self.other.as_ref().is_none_or(|(open, _)| *open != label) {
                    self.other = Some((label, (self.open_other)(label)?));
                }
                match &mut self.other {
                    Some((_, source)) => source,
                    None => return Err(corrupt("the manifest refers to no backup")),
                }
            }
        };
        let bytes = read_part(source, group.offset, group.length)?;
        if bytes.len() as u64 != group.plain {
            return Err(corrupt(
                "a group of the manifest has another length than its index says",
            ));
        }
        let mut entries: Vec<Entry> = Vec::new();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = parse_line(line)?;
            match entries.last_mut() {
                Some(entry) if line.more => entry.extend(line)?,
                _ => entries.push(Entry::from_line(line)?),
            }
        }
        for entry in &entries {
            entry.check_ranges()?;
        }
        if entries.len() as u64 != group.count
            || entries.first().map(|first| &first.path) != Some(&group_first(&group)?)
        {
            return Err(corrupt("a group of the manifest does not hold what its index says"));
        }
        Ok(entries)
    }
}

fn group_first(group: &Group) -> Result<Vec<u8>> {
    if group.encoded {
        unhex(&group.first).map_err(|error| error.with_kind(Kind::Corrupt))
    } else {
        Ok(group.first.clone().into_bytes())
    }
}

/// Reads and decompresses the frames that lie in `length` bytes from `offset` on.
fn read_part(source: &mut (impl Read + Seek + ?Sized), offset: u64, length: u64) -> Result<Vec<u8>> {
    // Entries with very many ranges make groups of several frames; beyond this nothing is ours.
    if length > 64 * FRAME_LIMIT_BYTES {
        return Err(corrupt("a part of the manifest is impossibly long"));
    }
    source.seek(SeekFrom::Start(offset)).context(|| "read the manifest")?;
    let mut plain = Vec::new();
    FrameReader::excerpt((&mut *source).take(length))?
        .read_to_end(&mut plain)
        .context(|| "read the manifest")?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::io::Cursor;

    fn entry(path: &[u8], ranges: usize) -> Entry {
        let ranges: Vec<Range> = (0..ranges as u64)
            .map(|n| Range {
                label: None,
                bundle: 1,
                offset: 512 + n * 8192,
                file_offset: n * 8192,
                length: 8192,
                crc32c: n as u32,
            })
            .collect();
        Entry {
            path: path.to_vec(),
            mode: 0o600,
            owner: "postgres".to_owned(),
            group: "postgres".to_owned(),
            mtime: UtcTime::UNIX_EPOCH,
            node: Node::File(File {
                size: ranges.len() as u64 * 8192,
                crc32c: 7,
                ranges,
                damaged: vec![(3, 1)],
            }),
        }
    }

    fn write(entries: &[Entry]) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), 2).unwrap();
        for entry in entries {
            writer.push(&entry.path, &entry.to_lines().unwrap()).unwrap();
        }
        writer.finish().unwrap().0
    }

    fn open(bytes: &[u8]) -> Result<ManifestReader<'_>> {
        ManifestReader::open(
            Box::new(Cursor::new(bytes)),
            Box::new(|_| panic!("no other backup is referred to")),
        )
    }

    fn read(bytes: &[u8]) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        open(bytes)?.for_each(|entry| {
            entries.push(entry);
            Ok(())
        })?;
        Ok(entries)
    }

    #[test]
    fn entries_read_back_in_order_whatever_their_number_and_names() {
        let mut entries: Vec<Entry> = (0..2500)
            .map(|n| entry(format!("data/base/5/{n:06}").as_bytes(), n % 4))
            .collect();
        entries.push(entry(b"data/odd \xff name", 1));
        entries.push(Entry {
            node: Node::Link(b"/srv/\xfe".to_vec()),
            ..entry(b"data/z", 0)
        });
        let bytes = write(&entries);
        assert_eq!(read(&bytes).unwrap(), entries);
        let mut reader = open(&bytes).unwrap();
        assert_eq!(reader.entries(), 2502);
        assert_eq!(reader.find(b"data/base/5/001999").unwrap().as_ref(), entries.get(1999));
        assert_eq!(reader.find(b"data/base/5/x").unwrap(), None);
        assert_eq!(reader.find(b"a").unwrap(), None);
    }

    #[test]
    fn a_file_of_very_many_ranges_continues_on_further_lines() {
        let entries = [entry(b"data/a", 3), entry(b"data/b", 40_000), entry(b"data/c", 1)];
        assert_eq!(read(&write(&entries)).unwrap(), entries);
    }

    #[test]
    fn an_empty_manifest_is_possible() {
        assert!(read(&write(&[])).unwrap().is_empty());
    }

    #[test]
    fn entries_out_of_order_are_not_written() {
        let mut writer = ManifestWriter::new(Vec::new(), 2).unwrap();
        writer.push(b"b", b"{}\n").unwrap();
        assert!(writer.push(b"a", b"{}\n").is_err());
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        for path in [
            &b"../etc/passwd"[..],
            b"data/../../x",
            b"/etc/passwd",
            b"data//x",
            b"data/./x",
            b"",
            b"data/\0",
        ] {
            let lines = Entry {
                path: path.to_vec(),
                ..entry(b"x", 1)
            }
            .to_lines()
            .unwrap();
            assert_eq!(Entry::from_lines(&lines).unwrap_err().kind(), Kind::Refused);
        }
    }

    #[test]
    fn gaps_and_overlaps_in_a_file_are_corrupt() {
        let mut gap = entry(b"data/a", 3);
        let Node::File(file) = &mut gap.node else {
            panic!("a file")
        };
        file.ranges.remove(1);
        assert_eq!(read(&write(&[gap])).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn damage_never_panics_and_never_changes_an_entry_silently() {
        let entries: Vec<Entry> = (0..40).map(|n| entry(format!("data/{n:02}").as_bytes(), 2)).collect();
        let bytes = write(&entries);
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
