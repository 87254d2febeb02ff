//! Digests and checksums, and the hexadecimal text they travel as.
//!
//! SHA-256 decides whether two contents are the same; xxh3-128 only finds out quickly where to look, and
//! CRC32C is what PostgreSQL's `backup_manifest` wants. All of them run on whatever the processor offers.
//!
//! SHA-256 is *ring*'s, which rustls brings in anyway. With SHA extensions it is as fast as the sha2 crate; without them
//! ring has assembly for AVX and SSSE3 where sha2 falls back to portable code, and every byte of WAL and of what is
//! stored passes through here. sha2 is the reference that the tests compare it with.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Kind, Result};

/// Lower-case hexadecimal text of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    bytes
        .iter()
        // A nibble is below 16.
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .collect()
}

/// The bytes behind hexadecimal text, of either case.
///
/// # Errors
/// `Corrupt` if it is not an even number of hexadecimal digits.
pub fn unhex(text: &str) -> Result<Vec<u8>> {
    let invalid = || Error::new(Kind::Corrupt, format!("invalid hexadecimal text \"{text}\""));
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return Err(invalid());
    };
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(invalid)
}

/// A SHA-256 digest; text and serde are 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Digest(pub [u8; 32]);

impl Sha256Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_ring(&ring::digest::digest(&ring::digest::SHA256, bytes))
    }

    fn from_ring(digest: &ring::digest::Digest) -> Self {
        Self(digest.as_ref().try_into().expect("a SHA-256 has 32 bytes"))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = unhex(text)?;
        <[u8; 32]>::try_from(bytes)
            .map(Self)
            .map_err(|_| Error::new(Kind::Corrupt, format!("\"{text}\" is not a SHA-256 digest")))
    }
}

impl Serialize for Sha256Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Computes a SHA-256 of bytes that come in pieces.
#[derive(Clone)]
pub struct Sha256(ring::digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }
}

impl Sha256 {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken in.
    pub fn finish(self) -> Sha256Digest {
        Sha256Digest::from_ring(&self.0.finish())
    }
}

/// An xxh3-128 digest: quick, and no defence against somebody who chooses the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xxh3_128(pub u128);

impl Xxh3_128 {
    /// The sixteen bytes, big-endian, as xxHash's canonical form has them.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The digest from its canonical sixteen bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for Xxh3_128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Xxh3_128 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = unhex(text)?;
        <[u8; 16]>::try_from(bytes)
            .map(Self::from_bytes)
            .map_err(|_| Error::new(Kind::Corrupt, format!("\"{text}\" is not an xxh3-128 digest")))
    }
}

impl Serialize for Xxh3_128 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Xxh3_128 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The xxh3-128 digest of `bytes`.
pub fn xxh3_128(bytes: &[u8]) -> Xxh3_128 {
    Xxh3_128(xxhash_rust::xxh3::xxh3_128(bytes))
}

/// Computes an xxh3-128 of bytes that come in pieces.
#[derive(Clone, Default)]
pub struct Xxh3Hasher(xxhash_rust::xxh3::Xxh3Default);

impl Xxh3Hasher {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes taken in.
    pub fn finish(&self) -> Xxh3_128 {
        Xxh3_128(self.0.digest128())
    }
}

/// The CRC32C (Castagnoli) of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// The CRC32C of what `crc` covers, followed by `bytes`.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// The CRC32C of two stretches, from that of each and the length of the second: under a microsecond, so it may be done
/// for each page.
pub fn crc32c_combine(first: u32, second: u32, second_bytes: u64) -> u32 {
    multiply(shift(second_bytes), first) ^ second
}

/// Combines the CRC32C of many stretches of one length, several times as quickly as [`crc32c_combine`].
#[derive(Debug, Clone, Copy)]
pub struct Crc32cCombiner(u32);

impl Crc32cCombiner {
    /// For second stretches of `bytes` bytes.
    pub fn new(bytes: u64) -> Self {
        Self(shift(bytes))
    }

    /// As [`crc32c_combine`], where the second stretch has that length.
    pub fn combine(self, first: u32, second: u32) -> u32 {
        multiply(self.0, first) ^ second
    }
}

/// What appending `bytes` bytes multiplies a CRC32C by: x^8n; 8 is 2^3.
fn shift(bytes: u64) -> u32 {
    (POWERS.iter().skip(3).zip(0..u64::BITS))
        .filter(|(_, bit)| bytes >> bit & 1 == 1)
        .fold(ONE, |product, (power, _)| multiply(product, *power))
}

/// The Castagnoli polynomial, the coefficient of x^0 in the highest bit, that of x^32 left out.
const CASTAGNOLI: u32 = 0x82F6_3B78;
const ONE: u32 = 1 << 31;

/// x^(2^n) modulo the polynomial.
const POWERS: [u32; 67] = {
    let mut powers = [ONE >> 1; 67];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
};

/// The product of two polynomials modulo the polynomial.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit > 0 {
        if a & bit > 0 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ CASTAGNOLI } else { b >> 1 };
        bit >>= 1;
    }
    product
}

/// Counts and digests (SHA-256) what passes through to `W`.
pub struct HashingWriter<W> {
    inner: W,
    bytes: u64,
    sha256: Sha256,
}

impl<W> HashingWriter<W> {
    /// Starts with an empty count over `inner`.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            bytes: 0,
            sha256: Sha256::new(),
        }
    }

    /// Bytes that `inner` has taken so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The writer behind.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// The writer behind; what is written to it directly is not counted.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Gives back the writer, the count and the digest.
    pub fn finish(self) -> (W, u64, Sha256Digest) {
        (self.inner, self.bytes, self.sha256.finish())
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(bytes)?;
        // A writer that claims more than it was given has broken `Write`; then everything counts.
        self.sha256.update(bytes.get(..taken).unwrap_or(bytes));
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_digests_come_out() {
        assert_eq!(
            Sha256Digest::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(xxh3_128(b"").to_string(), "99aa06d3014798d86001c324468d497f");
    }

    #[test]
    fn odd_text_is_no_digest() {
        for text in ["", "0", "0g", "ba78", "ä", &"0".repeat(63), &"0".repeat(66)] {
            assert_eq!(
                text.parse::<Sha256Digest>().unwrap_err().kind(),
                Kind::Corrupt,
                "{text}"
            );
        }
    }

    #[test]
    fn serde_uses_hexadecimal_text() {
        let digest = Sha256Digest::of(b"");
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{digest}\""));
        assert_eq!(serde_json::from_str::<Sha256Digest>(&json).unwrap(), digest);
        let quick = xxh3_128(b"x");
        assert_eq!(
            serde_json::from_str::<Xxh3_128>(&serde_json::to_string(&quick).unwrap()).unwrap(),
            quick
        );
    }

    #[test]
    fn a_hashing_writer_counts_what_was_taken_not_what_was_offered() {
        let mut room = [0u8; 4];
        let mut writer = HashingWriter::new(&mut room[..]);
        assert_eq!(writer.write(b"abcdef").unwrap(), 4);
        let (_, bytes, digest) = writer.finish();
        assert_eq!((bytes, digest), (4, Sha256Digest::of(b"abcd")));
    }

    proptest! {
        #[test]
        fn hex_goes_there_and_back(bytes: Vec<u8>) {
            prop_assert_eq!(unhex(&hex(&bytes)).unwrap(), bytes);
        }

        #[test]
        fn pieces_give_the_digest_of_the_whole(a: Vec<u8>, b: Vec<u8>) {
            let whole = [a.clone(), b.clone()].concat();
            let (mut sha256, mut quick) = (Sha256::new(), Xxh3Hasher::new());
            for piece in [&a, &b] {
                sha256.update(piece);
                quick.update(piece);
            }
            let reference = <sha2::Sha256 as sha2::Digest>::digest(&whole);
            prop_assert_eq!(Sha256Digest::of(&whole), Sha256Digest(reference.into()));
            prop_assert_eq!(sha256.finish(), Sha256Digest::of(&whole));
            prop_assert_eq!(quick.finish(), xxh3_128(&whole));
            prop_assert_eq!(crc32c_append(crc32c(&a), &b), crc32c(&whole));
            prop_assert_eq!(crc32c_combine(crc32c(&a), crc32c(&b), b.len() as u64), crc32c(&whole));
        }

        #[test]
        fn combining_agrees_with_the_crate_at_any_length(a: u32, b: u32, length: u64) {
            let length = length >> 1;
            prop_assert_eq!(crc32c_combine(a, b, length), ::crc32c::crc32c_combine(a, b, length as usize));
        }
    }
}
