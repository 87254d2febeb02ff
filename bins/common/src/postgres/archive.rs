//! The custom format of pg_dump, read as a stream: the table of contents, and where the data of each entry lies.
//!
//! Facts from `src/bin/pg_dump/pg_backup_archiver.c` (`ReadHead`, `ReadToc`, `ReadInt`, `ReadStr`) and `pg_backup_custom.c`
//! (`_StartData`, `_StartLO`, `_ReadByte`), PostgreSQL 13 to 18: archive versions 1.14 to 1.16. Reading goes to the last byte:
//! `pg_restore --list` looks at the table of contents alone and calls half an archive whole.

use std::collections::BTreeSet;
use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// No string of a table of contents is longer than a field of PostgreSQL can be, in bytes.
const STRING_LIMIT_BYTES: usize = 1 << 30;
/// A table of contents has at most so many entries.
const ENTRY_LIMIT: i64 = 100_000_000;
/// A number takes at most so many bytes.
const NUMBER_LIMIT_BYTES: u8 = 8;

const CUSTOM: u8 = 1;
const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// `K_OFFSET_NO_DATA`.
const NO_DATA: u8 = 3;

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// The database.
    pub database: String,
    /// The server's version.
    pub server_version: String,
    /// pg_dump's version.
    pub dump_version: String,
    /// Length of head and table of contents, in bytes: here the data begins.
    pub head_bytes: u64,
    /// Length of the archive in bytes.
    pub size: u64,
    /// The table of contents, in its order.
    pub entries: Vec<Entry>,
    /// Where data lies, in the order of the archive.
    pub blocks: Vec<Block>,
}

/// An entry of the table of contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, unique in the archive.
    pub id: i64,
    /// The object's number in the database; 0 where it has none.
    pub oid: u32,
    /// What it is: `TABLE`, `TABLE DATA`, `INDEX`.
    pub kind: String,
    /// Its schema, if it lies in one.
    pub schema: Option<String>,
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: Option<String>,
    /// The entries that it needs, by number.
    pub needs: Vec<i64>,
    /// Whether it has data.
    pub data: bool,
}

/// The data of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The entry.
    pub id: i64,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// Reads an archive to its end.
///
/// # Errors
/// `Corrupt` if it is none, ends early, or lacks data that its table of contents promises; else the reader's.
pub fn scan(source: impl Read) -> Result<Archive> {
    let mut reader = Reader::begin(source)?;
    let mut archive = reader.head()?;
    archive.head_bytes = reader.position;
    let mut buffer = vec![0; 128 << 10];
    loop {
        let offset = reader.position;
        let Some(kind) = reader.byte_or_end()? else { break };
        let id = reader.number()?;
        match kind {
            BLOCK_DATA => reader.skip_pieces(&mut buffer)?,
            BLOCK_LARGE_OBJECTS => {
                while reader.number()? != 0 {
                    reader.skip_pieces(&mut buffer)?;
                }
            }
            other => return Err(corrupt(format!("a block of unknown kind {other} at byte {offset}"))),
        }
        archive.blocks.push(Block {
            id,
            offset,
            length: reader.position - offset,
        });
    }
    archive.size = reader.position;
    let mut found: Vec<i64> = archive.blocks.iter().map(|block| block.id).collect();
    found.sort_unstable();
    match archive
        .entries
        .iter()
        .find(|entry| entry.data && found.binary_search(&entry.id).is_err())
    {
        Some(entry) => Err(corrupt(format!(
            "the data of {} {} is missing",
            entry.kind,
            entry.full_name()
        ))),
        None => Ok(archive),
    }
}

impl Archive {
    /// The numbers of these entries, in the order of the table of contents.
    pub fn in_order(&self, chosen: &BTreeSet<i64>) -> Vec<i64> {
        let all = self.entries.iter().map(|entry| entry.id);
        all.filter(|id| chosen.contains(id)).collect()
    }
}

impl Entry {
    /// Schema and name.
    pub fn full_name(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{schema}.{}", self.name),
            None => self.name.clone(),
        }
    }
}

struct Reader<R> {
    source: R,
    position: u64,
    version: (u8, u8),
    number_bytes: u8,
    offset_bytes: u8,
}

impl<R: Read> Reader<R> {
    fn begin(source: R) -> Result<Self> {
        let mut reader = Self {
            source,
            position: 0,
            version: (0, 0),
            number_bytes: 4,
            offset_bytes: 8,
        };
        if reader.bytes::<5>()? != *b"PGDMP" {
            return Err(corrupt("this is no archive of pg_dump in custom format"));
        }
        let [major, minor, _revision, number_bytes, offset_bytes, format] = reader.bytes()?;
        if major != 1 || !(14..=16).contains(&minor) {
            return Err(Error::new(
                Kind::Corrupt,
                format!("the archive has version {major}.{minor}, and 1.14 to 1.16 are known"),
            )
            .hint("it was made by a pg_dump that is newer than this program, or is damaged"));
        }
        if format != CUSTOM
            || !(1..=NUMBER_LIMIT_BYTES).contains(&number_bytes)
            || !(1..=NUMBER_LIMIT_BYTES).contains(&offset_bytes)
        {
            return Err(corrupt("the archive's head makes no sense"));
        }
        Ok(Self {
            version: (major, minor),
            number_bytes,
            offset_bytes,
            ..reader
        })
    }

    fn head(&mut self) -> Result<Archive> {
        if self.version >= (1, 15) {
            self.byte()?;
        } else {
            self.number()?;
        }
        // When it was made, as local time.
        for _ in 0..7 {
            self.number()?;
        }
        let mut archive = Archive {
            database: self.string()?.unwrap_or_default(),
            server_version: self.string()?.unwrap_or_default(),
            dump_version: self.string()?.unwrap_or_default(),
            head_bytes: 0,
            size: 0,
            entries: Vec::new(),
            blocks: Vec::new(),
        };
        let count = self.number()?;
        if !(0..=ENTRY_LIMIT).contains(&count) {
            return Err(corrupt(format!("a table of contents of {count} entries")));
        }
        for _ in 0..count {
            let entry = self.entry()?;
            archive.entries.push(entry);
        }
        Ok(archive)
    }

    fn entry(&mut self) -> Result<Entry> {
        let id = self.number()?;
        let _had_dumper = self.number()?;
        let _catalog = self.string()?;
        let oid = self.string()?.and_then(|text| text.parse().ok()).unwrap_or_default();
        let name = self.string()?.unwrap_or_default();
        let kind = self.string()?.unwrap_or_default();
        let _section = self.number()?;
        let _definition = self.string()?;
        let _drop = self.string()?;
        let _copy = self.string()?;
        let schema = self.string()?.filter(|schema| !schema.is_empty());
        let _tablespace = self.string()?;
        let _access_method = self.string()?;
        if self.version >= (1, 16) {
            let _relation_kind = self.number()?;
        }
        let owner = self.string()?.filter(|owner| !owner.is_empty());
        let _with_oids = self.string()?;
        let mut needs = Vec::new();
        while let Some(need) = self.string()? {
            let need = need
                .parse()
                .map_err(|_| corrupt(format!("entry {id} needs \"{need}\"")))?;
            needs.push(need);
        }
        let data = self.byte()? != NO_DATA;
        for _ in 0..self.offset_bytes {
            self.byte()?;
        }
        Ok(Entry {
            id,
            oid,
            kind,
            schema,
            name,
            owner,
            needs,
            data,
        })
    }

    /// Pieces of data, each with its length before it, until one of length 0.
    fn skip_pieces(&mut self, buffer: &mut [u8]) -> Result<()> {
        loop {
            let length = self.number()?;
            let mut left = usize::try_from(length).map_err(|_| corrupt(format!("a piece of {length} bytes")))?;
            if left == 0 {
                return Ok(());
            }
            while left > 0 {
                let most = left.min(buffer.len());
                let room = buffer.get_mut(..most).unwrap_or_default();
                self.fill(room)?;
                left -= most;
            }
        }
    }

    /// A sign and then the number, low byte first.
    fn number(&mut self) -> Result<i64> {
        let sign = self.byte()?;
        let mut value: i64 = 0;
        for at in 0..self.number_bytes {
            let byte = i64::from(self.byte()?);
            value |= byte.checked_shl(u32::from(at) * 8).unwrap_or_default();
        }
        Ok(if sign == 0 { value } else { value.wrapping_neg() })
    }

    fn string(&mut self) -> Result<Option<String>> {
        let length = self.number()?;
        if length < 0 {
            return Ok(None);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > STRING_LIMIT_BYTES {
            return Err(corrupt(format!("a name of {length} bytes")));
        }
        let mut bytes = Vec::new();
        let mut taken = (&mut self.source).take(length as u64);
        taken
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io(error, "read the archive"))?;
        if bytes.len() < length {
            return Err(ended());
        }
        self.position += length as u64;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn byte(&mut self) -> Result<u8> {
        let [byte] = self.bytes()?;
        Ok(byte)
    }

    fn byte_or_end(&mut self) -> Result<Option<u8>> {
        let mut byte = [0];
        loop {
            match self.source.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) => {
                    self.position += 1;
                    let [byte] = byte;
                    return Ok(Some(byte));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(error, "read the archive")),
            }
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<()> {
        match self.source.read_exact(into) {
            Ok(()) => {
                self.position += into.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(ended()),
            Err(error) => Err(Error::io(error, "read the archive")),
        }
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, message.into())
}

fn ended() -> Error {
    corrupt("the archive ends too early")
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
