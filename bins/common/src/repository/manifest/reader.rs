//! Reads a manifest group by group, or one entry of it.

use std::io::{Read, Seek, SeekFrom};

use super::entry::{Entry, parse_line};
use super::{Group, GroupRef, Tail, corrupt};
use crate::codec::{FrameReader, FrameTable};
use crate::digest::unhex;
use crate::error::{Context, Kind, Result};
use crate::repository::Label;

/// A frame of the manifest holds at most this, in bytes: the codec's own limit for readers.
const FRAME_LIMIT_BYTES: u64 = 1 << 20;

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
    place: Option<String>,
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
            place: None,
        })
    }

    /// Says in messages where the manifest is.
    pub fn at(mut self, place: String) -> Self {
        self.place = Some(place);
        self
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

    /// How many groups of entries there are.
    pub fn groups(&self) -> usize {
        self.index.len()
    }

    /// Reads group `number`, from 0, and says how another manifest refers to it; this one is that of backup `own`, and the
    /// entries' ranges say so.
    ///
    /// # Errors
    /// `Corrupt` or `Refused` if an entry is not sound.
    pub fn read_group_of(&mut self, own: Label, number: usize) -> Result<(Vec<Entry>, GroupRef)> {
        let mut entries = self.group(number)?;
        entries.iter_mut().for_each(|entry| entry.name_label(own));
        let mut group = self
            .index
            .get(number)
            .cloned()
            .ok_or_else(|| corrupt("the manifest has no such group"))?;
        group.backup.get_or_insert(own);
        let path = |entry: Option<&Entry>| entry.map(|entry| entry.path.clone()).unwrap_or_default();
        let (first, last) = (path(entries.first()), path(entries.last()));
        Ok((entries, GroupRef { group, first, last }))
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
        let refers_to = self.index.get(number).and_then(|group| group.backup);
        self.read_group(number).map_err(|error| match (refers_to, &self.place) {
            (Some(label), _) => error.context(format!("read entries of the manifest of {label}")),
            (None, Some(place)) => error.context(format!("read {place}")),
            (None, None) => error,
        })
    }

    fn read_group(&mut self, number: usize) -> Result<Vec<Entry>> {
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
        for entry in &mut entries {
            entry.check_ranges()?;
            if let Some(label) = group.backup {
                entry.name_label(label);
            }
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
