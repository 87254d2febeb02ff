//! One thing to copy, with what was decided about it.

use common::error::{Error, Kind, Result};
use common::repository::manifest::{Entry, File, Node};

use crate::item::Item;
use crate::take::Take;

/// What an earlier backup says of a thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// Its entry; ranges name the backups that hold them.
    pub entry: Entry,
    /// The group of that backup's manifest that the entry is in.
    pub group: u32,
}

/// One thing to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// What it is.
    pub item: Item,
    /// What to do.
    pub take: Take,
    /// What the backup that this one leans on has under the name.
    pub before: Option<Before>,
}

impl Task {
    /// A thing to be stored whole.
    pub fn whole(item: Item) -> Self {
        Self {
            item,
            take: Take::Whole,
            before: None,
        }
    }

    /// The file that the earlier backup has.
    pub fn base(&self) -> Option<&File> {
        match self.before.as_ref().map(|before| &before.entry.node) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    /// The group of the earlier backup's manifest, if it says just what this entry does.
    pub fn same_as_before(&self, entry: &Entry) -> Option<u32> {
        let before = self.before.as_ref().filter(|before| before.entry == *entry);
        before.map(|before| before.group)
    }

    /// The binary form.
    ///
    /// # Errors
    /// `Failed` if the entry cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let before = match &self.before {
            Some(before) => [&before.group.to_le_bytes()[..], &before.entry.to_lines()?].concat(),
            None => Vec::new(),
        };
        let mut out = Vec::new();
        for part in [self.item.encode(), self.take.encode(), before] {
            out.extend_from_slice(&(part.len() as u64).to_le_bytes());
            out.extend_from_slice(&part);
        }
        Ok(out)
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// `Failed` if it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::new(Kind::Failed, "the list of files on disk is damaged");
        let mut rest = bytes;
        let mut part = || {
            let (length, tail) = rest.split_first_chunk::<8>()?;
            let (part, tail) = tail.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            rest = tail;
            Some(part)
        };
        let (Some(item), Some(take), Some(before)) = (part(), part(), part()) else {
            return Err(damaged());
        };
        let before = match before.split_first_chunk::<4>() {
            Some((group, lines)) => Some(Before {
                entry: Entry::from_lines(lines)?,
                group: u32::from_le_bytes(*group),
            }),
            None => None,
        };
        Ok(Self {
            item: Item::decode(item)?,
            take: Take::decode(take).ok_or_else(damaged)?,
            before,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::postgres::FoundKind;
    use common::repository::manifest::Range;
    use common::time::UtcTime;

    #[test]
    fn a_task_reads_back_as_it_was_written() {
        let item = Item {
            path: b"data/base/5/1".to_vec(),
            source: "/srv/base/5/1".into(),
            kind: FoundKind::File,
            size: 16_384,
            owner: "postgres".to_owned(),
            group: "postgres".to_owned(),
            mode: 0o600,
            mtime: UtcTime::UNIX_EPOCH,
        };
        let entry = Entry {
            path: item.path.clone(),
            mode: 0o600,
            owner: "postgres".to_owned(),
            group: "postgres".to_owned(),
            mtime: UtcTime::UNIX_EPOCH,
            node: Node::File(File {
                size: 8192,
                crc32c: 7,
                ranges: vec![Range {
                    label: Some("20261120T020000Z-full-3f9a1c".parse().unwrap()),
                    bundle: 1,
                    offset: 512,
                    file_offset: 0,
                    length: 8192,
                    crc32c: 7,
                }],
                damaged: Vec::new(),
            }),
        };
        let whole = Task::whole(item.clone());
        let since = Task {
            item,
            take: Take::Blocks(crate::take::runs([1].into_iter())),
            before: Some(Before { entry, group: 3 }),
        };
        for task in [whole, since] {
            let bytes = task.encode().unwrap();
            assert_eq!(Task::decode(&bytes).unwrap(), task);
            for cut in 0..bytes.len() {
                assert!(Task::decode(&bytes[..cut]).is_err());
            }
        }
    }
}
