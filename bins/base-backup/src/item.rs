//! One thing to copy, and the order in which things are copied.
//!
//! Items wait in a sorter, so that memory does not grow with the number of files: each has a key that puts
//! directories first, then links, then files from the largest to the smallest (a large file begun last would be
//! waited for by all), and a binary form.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use common::error::{Error, Kind, Result};
use common::postgres::{Found, FoundKind};
use common::time::UtcTime;

/// One thing to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its name in the backup.
    pub path: Vec<u8>,
    /// Where it is.
    pub source: PathBuf,
    /// What it is.
    pub kind: FoundKind,
    /// The size in bytes when it was found.
    pub size: u64,
    /// The owner's name.
    pub owner: String,
    /// The group's name.
    pub group: String,
    /// Permission bits when it was found.
    pub mode: u32,
    /// When it was last modified then.
    pub mtime: UtcTime,
}

impl From<Found> for Item {
    fn from(found: Found) -> Self {
        Self {
            path: found.path.into_os_string().into_vec(),
            source: found.source,
            kind: found.kind,
            size: found.size,
            owner: found.owner.to_string(),
            group: found.group.to_string(),
            mode: found.mode & 0o7777,
            mtime: UtcTime::try_from(found.modified).unwrap_or(UtcTime::UNIX_EPOCH),
        }
    }
}

impl Item {
    /// What the item sorts by.
    pub fn key(&self) -> Vec<u8> {
        let rank = match self.kind {
            FoundKind::Dir => 0u8,
            FoundKind::Link(_) => 1,
            FoundKind::File => 2,
        };
        let mut key = vec![rank];
        key.extend_from_slice(&(u64::MAX - self.size).to_be_bytes());
        key.extend_from_slice(&self.path);
        key
    }

    /// The binary form.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, target): (u8, &[u8]) = match &self.kind {
            FoundKind::Dir => (0, &[]),
            FoundKind::Link(target) => (1, target.as_os_str().as_bytes()),
            FoundKind::File => (2, &[]),
        };
        let mut out = vec![kind];
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.mtime.timestamp().as_nanosecond().to_le_bytes());
        let source = self.source.as_os_str().as_bytes();
        for part in [&self.path, source, target, self.owner.as_bytes(), self.group.as_bytes()] {
            out.extend_from_slice(&(part.len() as u64).to_le_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// `Failed` if it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).ok_or_else(|| Error::new(Kind::Failed, "the list of files on disk is damaged"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (size, rest) = rest.split_first_chunk::<8>()?;
        let (mode, rest) = rest.split_first_chunk::<4>()?;
        let (mtime, mut rest) = rest.split_first_chunk::<16>()?;
        let mut part = || {
            let (length, tail) = rest.split_first_chunk::<8>()?;
            let (part, tail) = tail.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            rest = tail;
            Some(part.to_vec())
        };
        let (path, source, target, owner, group) = (part()?, part()?, part()?, part()?, part()?);
        let to_path = |bytes| PathBuf::from(OsString::from_vec(bytes));
        Some(Self {
            path,
            source: to_path(source),
            kind: match kind {
                0 => FoundKind::Dir,
                1 => FoundKind::Link(to_path(target)),
                2 => FoundKind::File,
                _ => return None,
            },
            size: u64::from_le_bytes(*size),
            owner: String::from_utf8(owner).ok()?,
            group: String::from_utf8(group).ok()?,
            mode: u32::from_le_bytes(*mode),
            mtime: from_nanoseconds(i128::from_le_bytes(*mtime))?,
        })
    }
}

fn from_nanoseconds(nanoseconds: i128) -> Option<UtcTime> {
    const SECOND: i128 = 1_000_000_000;
    let seconds = i64::try_from(nanoseconds.div_euclid(SECOND)).ok()?;
    let rest = i64::try_from(nanoseconds.rem_euclid(SECOND)).ok()?;
    UtcTime::from_unix(seconds, rest).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn item(path: &[u8], kind: FoundKind, size: u64) -> Item {
        let source = PathBuf::from(OsString::from_vec([b"/srv/", path].concat()));
        Item {
            path: path.to_vec(),
            source,
            kind,
            size,
            owner: "postgres".to_owned(),
            group: "114".to_owned(),
            mode: 0o600,
            mtime: UtcTime::from_unix(1_700_000_000, 123_456_789).unwrap(),
        }
    }

    #[test]
    fn an_item_reads_back_as_it_was_written() {
        let odd = PathBuf::from(OsString::from_vec(b"/srv/\xff".to_vec()));
        for item in [
            item(b"data/\xfe", FoundKind::File, u64::MAX),
            item(b"data/base", FoundKind::Dir, 0),
            item(b"data/pg_tblspc/1", FoundKind::Link(odd), 0),
        ] {
            let bytes = item.encode();
            assert_eq!(Item::decode(&bytes).unwrap(), item);
            for cut in 0..bytes.len() {
                assert!(Item::decode(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn directories_come_first_then_links_then_large_files() {
        let sorted = [
            item(b"z", FoundKind::Dir, 0),
            item(b"y", FoundKind::Link("x".into()), 0),
            item(b"c", FoundKind::File, 1 << 40),
            item(b"d", FoundKind::File, 300),
            item(b"a", FoundKind::File, 2),
            item(b"b", FoundKind::File, 2),
            item(b"0", FoundKind::File, 0),
        ];
        assert!(sorted.is_sorted_by_key(Item::key));
    }
}
