//! The manifest: every file of a backup, sorted by path, written and read as a stream (FORMAT.md, section 8.3).
//!
//! Promises flat memory: one group of entries at a time, and an index line per group.

mod entry;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::repository::Label;

pub use entry::{Entry, File, Node, Range};
pub use reader::{ManifestReader, OpenOther, Source};
pub use writer::ManifestWriter;

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

/// A group of entries of a backup's manifest, for another manifest to refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRef {
    group: Group,
    first: Vec<u8>,
    last: Vec<u8>,
}

impl GroupRef {
    /// How many entries it has.
    pub fn count(&self) -> u64 {
        self.group.count
    }

    /// The backup whose manifest holds it.
    pub fn label(&self) -> Option<Label> {
        self.group.backup
    }

    /// The path of its last entry.
    pub fn last(&self) -> &[u8] {
        &self.last
    }
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

fn push_json<T: Serialize>(out: &mut Vec<u8>, value: &T) -> Result<()> {
    serde_json::to_writer(&mut *out, value)
        .map_err(|error| Error::new(Kind::Failed, "encode a manifest line").because(error))?;
    out.push(b'\n');
    Ok(())
}
