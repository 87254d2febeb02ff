//! One file, directory or link of a backup, and the lines of JSON it is kept as.

use serde::{Deserialize, Serialize};

use super::{corrupt, push_json};
use crate::digest::{hex, unhex};
use crate::error::{Error, Kind, Result};
use crate::repository::Label;
use crate::time::UtcTime;

/// Ranges on one line, at most; further ones continue on lines of their own.
const LINE_RANGES: usize = 1000;

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
pub(super) struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoded_path: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) more: bool,
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

pub(super) fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
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

    pub(super) fn from_line(line: Line) -> Result<Self> {
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

    pub(super) fn extend(&mut self, line: Line) -> Result<()> {
        let path = from_text_or_hex(line.path, line.encoded_path)?;
        match &mut self.node {
            Node::File(file) if line.more && path.as_ref() == Some(&self.path) => {
                file.ranges.extend(parse_ranges(line.ranges)?);
                Ok(())
            }
            _ => Err(corrupt("manifest lines do not belong together")),
        }
    }

    /// Names the backup that holds the ranges which lie in the manifest's own: then the entry means the same elsewhere.
    pub fn name_label(&mut self, own: Label) {
        if let Node::File(file) = &mut self.node {
            for range in &mut file.ranges {
                range.label.get_or_insert(own);
            }
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

pub(super) fn parse_line(line: &[u8]) -> Result<Line> {
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
