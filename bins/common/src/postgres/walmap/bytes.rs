//! Little-endian numbers and varints, written to a vector and read from a slice that may hold anything.

use crate::error::{Error, Kind, Result};

/// Appends `value` seven bits at a time, the lowest first; the highest bit says that more follow.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        // Truncation to the low seven bits is meant.
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number so that small magnitudes stay short (0, -1, 1, -2 are 0, 1, 2, 3).
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// The error for a map that is not one.
pub(super) fn corrupt(what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("WAL map is damaged: {what}"))
}

/// Reads from the front of a slice; every read may fail, none panics.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| corrupt("it ends early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or_else(|| corrupt("it ends early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn digest(&mut self) -> Result<[u8; 32]> {
        self.array()
    }

    /// A varint in its shortest form: one value has one encoding.
    pub(super) fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(corrupt("a number is too large"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(corrupt("a number is not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(corrupt("a number is too long"))
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| corrupt("a number is too large"))
    }

    pub(super) fn signed(&mut self) -> Result<i64> {
        let raw = self.varint()?;
        // The two halves of the zigzag: magnitude, then sign.
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// How many entries follow, each of at least `least` bytes: a count that cannot be true is refused before
    /// memory is set aside for it.
    pub(super) fn count(&mut self, least: usize) -> Result<usize> {
        let count = usize::try_from(self.varint()?).map_err(|_| corrupt("a count is too large"))?;
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.rest.len() => Ok(count),
            _ => Err(corrupt("a count is larger than what follows")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_come_back_as_they_went() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut cursor = Cursor::new(&out);
            assert_eq!(cursor.varint().unwrap(), value);
            assert!(cursor.is_empty());
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX, -123_456_789] {
            let mut out = Vec::new();
            put_signed(&mut out, value);
            assert_eq!(Cursor::new(&out).signed().unwrap(), value);
        }
    }

    #[test]
    fn a_number_with_a_second_encoding_is_refused() {
        assert!(Cursor::new(&[0x80, 0x00]).varint().is_err());
        assert!(Cursor::new(&[0xff; 10]).varint().is_err());
        assert!(Cursor::new(&[0xff]).varint().is_err());
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused() {
        assert!(Cursor::new(&[5, 1, 2]).count(1).is_err());
        assert_eq!(Cursor::new(&[2, 1, 2]).count(1).unwrap(), 2);
    }
}
