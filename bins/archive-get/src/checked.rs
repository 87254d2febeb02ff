//! Fetches a file and holds it against its name.
//!
//! The digest in an object proves that its content is what was stored, not that it was stored under this name: two
//! exchanged objects are both whole. To PostgreSQL a segment of another position looks like the end of WAL.

use std::io::Write;

use common::error::{Error, Kind, Result};
use common::postgres::header::HEADER_BYTES;
use common::postgres::{SegmentHeader, WalName};
use common::repository::{Repository, wal};

use crate::call::Call;

/// Writes the content of a WAL file to `out`; only once this returns well do the bytes count.
///
/// # Errors
/// As [`wal::fetch`]; `Corrupt` if the content is not that of a file of this name.
pub fn fetch(repository: &Repository, call: &Call, name: &WalName, out: &mut dyn Write) -> Result<()> {
    let mut head = Head {
        out,
        bytes: Vec::with_capacity(HEADER_BYTES),
    };
    let descriptor = wal::fetch(repository, call.system, name, &mut head)?;
    if !matches!(name, WalName::Segment(_)) {
        return Ok(());
    }
    let wrong = |error: Error| {
        error
            .with_kind(Kind::Corrupt)
            .context(format!("check {name} of repository \"{}\"", repository.name))
    };
    let size = call.segment_size.bytes();
    if descriptor.plain_length != size {
        let length = descriptor.plain_length;
        let message = format!("it has {length} bytes, and a segment of this cluster has {size}");
        return Err(wrong(Error::new(Kind::Corrupt, message)));
    }
    SegmentHeader::parse(&head.bytes)
        .and_then(|header| header.agrees_with(name, call.system))
        .map_err(wrong)
}

/// Passes everything on and keeps the first bytes.
struct Head<'a> {
    out: &'a mut dyn Write,
    bytes: Vec<u8>,
}

impl Write for Head<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        let room = HEADER_BYTES.saturating_sub(self.bytes.len()).min(count);
        self.bytes.extend_from_slice(bytes.get(..room).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
