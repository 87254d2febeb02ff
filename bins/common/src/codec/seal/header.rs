//! The header of an age file, read by hand: where it ends, and the descriptor in it.
//!
//! The format is age's (<https://age-encryption.org/v1>): a version line, stanzas (`-> type arguments`
//! and lines of base64, the last one shorter than 64 columns), and `--- ` with the header's MAC. Only
//! the holder of a key can check the MAC, so without one all this is a claim.

use crate::codec::corrupt;
use crate::codec::descriptor::{Descriptor, PAYLOAD_BYTES};
use crate::digest::unhex;
use crate::error::Result;

/// The first line.
const VERSION_LINE: &[u8] = b"age-encryption.org/v1";
/// The type of the stanza that carries a descriptor.
pub(super) const STANZA: &str = "pgkeep1";
/// Columns in a full line of a stanza's body.
const BODY_COLUMNS: usize = 64;
/// Columns of the MAC in base64.
const MAC_COLUMNS: usize = 43;

/// What an age header says in clear.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::codec) struct AgeHeader {
    /// Its length in bytes, up to and including the line of the MAC.
    pub(in crate::codec) length: u64,
    /// The descriptor, if the object carries one.
    pub(in crate::codec) descriptor: Option<Descriptor>,
    /// How many recipients can open it.
    pub(in crate::codec) recipients: usize,
}

impl AgeHeader {
    /// The longest header that is read: more than a hundred recipients.
    pub(in crate::codec) const LIMIT: usize = 16 * 1024;

    /// Whether these are the first bytes of an age file.
    pub(in crate::codec) fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(VERSION_LINE)
    }

    /// Reads the header that `bytes` begin with.
    ///
    /// # Errors
    /// `Corrupt` if it is none, is incomplete, or carries a descriptor that is not one.
    pub(in crate::codec) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut lines = Lines {
            rest: bytes.get(..Self::LIMIT).unwrap_or(bytes),
            taken: 0,
        };
        if lines.next()? != VERSION_LINE {
            return Err(corrupt("the object is not an age file of version 1"));
        }
        let mut header = Self {
            length: 0,
            descriptor: None,
            recipients: 0,
        };
        let mut body_is_open = false;
        loop {
            let line = lines.next()?;
            if body_is_open {
                body_is_open = check_body(line)? == BODY_COLUMNS;
            } else if let Some(stanza) = line.strip_prefix(b"-> ") {
                header.take_stanza(stanza, lines.rest)?;
                body_is_open = true;
            } else if let Some(mac) = line.strip_prefix(b"--- ") {
                if mac.len() != MAC_COLUMNS || !mac.iter().all(|byte| is_base64(*byte)) {
                    return Err(corrupt("the age header ends with something else than its MAC"));
                }
                header.length = lines.taken as u64;
                return Ok(header);
            } else {
                return Err(corrupt("the age header holds a line that is no part of a stanza"));
            }
        }
    }

    fn take_stanza(&mut self, stanza: &[u8], rest: &[u8]) -> Result<()> {
        let mut words = stanza.split(|byte| *byte == b' ');
        let kind = words.next().unwrap_or_default();
        if kind == b"X25519" {
            self.recipients += 1;
        }
        if kind != STANZA.as_bytes() {
            return Ok(());
        }
        let is_not_ours = || corrupt("the descriptor in the age header is damaged");
        let (Some(hex), None) = (words.next(), words.next()) else {
            return Err(is_not_ours());
        };
        if self.descriptor.is_some() || !rest.starts_with(b"\n") || !hex.iter().all(|byte| is_lower_hex(*byte)) {
            return Err(is_not_ours());
        }
        if hex.len() != 2 * PAYLOAD_BYTES {
            return Err(is_not_ours());
        }
        let payload = unhex(std::str::from_utf8(hex).unwrap_or_default())?;
        self.descriptor = Some(Descriptor::decode(&payload)?);
        Ok(())
    }
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/'
}

/// Checks a line of a stanza's body and gives its columns.
fn check_body(line: &[u8]) -> Result<usize> {
    if line.len() > BODY_COLUMNS || !line.iter().all(|byte| is_base64(*byte)) {
        return Err(corrupt("the age header holds a stanza whose body is damaged"));
    }
    Ok(line.len())
}

struct Lines<'a> {
    rest: &'a [u8],
    taken: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a [u8]> {
        let end = self
            .rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| corrupt("the age header is incomplete"))?;
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..).unwrap_or_default();
        self.taken += end + 1;
        Ok(line)
    }
}
