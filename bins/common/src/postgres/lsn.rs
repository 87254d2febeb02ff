//! Positions in the WAL and the numbers around them, as types that cannot be confused.
//!
//! Knows how PostgreSQL writes them (`src/include/access/xlogdefs.h`, `xlog_internal.h`); arithmetic
//! saturates, so numbers from damaged files cannot overflow. File names are in [`super::names`].

use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

/// A position in the WAL, written `A/3F000028`. In JSON a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position that PostgreSQL takes for "none" (`InvalidXLogRecPtr`).
    pub const INVALID: Lsn = Lsn(0);

    /// Says whether this is a position at all.
    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text
            .split_once('/')
            .and_then(|(high, low)| Some((hex32(high)?, hex32(low)?)));
        let (high, low) = parts.ok_or_else(|| {
            Error::new(
                Kind::Config,
                format!("\"{text}\" is not a WAL position like \"A/3F000028\""),
            )
        })?;
        Ok(Lsn(u64::from(high) << 32 | u64::from(low)))
    }
}

/// Adds bytes; stops at the largest position.
impl Add<u64> for Lsn {
    type Output = Lsn;
    fn add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }
}

/// Bytes from `earlier` to here; 0 if it is not earlier.
impl Sub<Lsn> for Lsn {
    type Output = u64;
    fn sub(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Parses 1 to 8 hexadecimal digits and nothing else.
pub(super) fn hex32(text: &str) -> Option<u32> {
    let plain = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain {
        u32::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

/// A timeline, written as 8 upper-case hexadecimal digits in file names. In JSON a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}", self.0)
    }
}

impl FromStr for TimelineId {
    type Err = Error;

    /// Parses the 8 digits of a file name.
    fn from_str(text: &str) -> Result<Self> {
        let id = if text.len() == 8 { hex32(text) } else { None };
        id.map(TimelineId).ok_or_else(|| {
            Error::new(
                Kind::Config,
                format!("\"{text}\" is not a timeline of 8 hexadecimal digits"),
            )
        })
    }
}

/// The identifier that initdb gave a cluster, written in decimal. In JSON a string: it exceeds 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for SystemId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        let id = if digits { text.parse().ok() } else { None };
        id.map(SystemId)
            .ok_or_else(|| Error::new(Kind::Config, format!("\"{text}\" is not a system identifier")))
    }
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(Lsn);
serde_as_text!(SystemId);

/// The size of a WAL segment: a power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`). In JSON bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// initdb's default, 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// Checks a size in bytes.
    ///
    /// # Errors
    /// `Corrupt` if PostgreSQL allows no such size.
    pub fn new(bytes: u64) -> Result<Self> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(SegmentSize(size)),
            _ => Err(Error::new(
                Kind::Corrupt,
                format!("{bytes} bytes is no WAL segment size"),
            )),
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share one "log" part of their names (`XLogSegmentsPerXLogId`).
    pub fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = Error;
    fn try_from(bytes: u64) -> Result<Self> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> u64 {
        size.bytes()
    }
}

/// The number of a segment, counted from position 0, whatever the timeline. In JSON a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The segment that holds the byte at `lsn`.
    pub fn containing(lsn: Lsn, size: SegmentSize) -> Self {
        SegmentNumber(lsn.0 / size.bytes())
    }

    /// The segment that holds the byte before `lsn`: the last one needed to reach it (`XLByteToPrevSeg`).
    pub fn ending_at(lsn: Lsn, size: SegmentSize) -> Self {
        SegmentNumber(lsn.0.saturating_sub(1) / size.bytes())
    }

    /// The position of the segment's first byte.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0.saturating_mul(size.bytes()))
    }

    /// The segment after this one.
    #[must_use]
    pub fn next(self) -> Self {
        SegmentNumber(self.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_position_reads_as_postgresql_writes_it() {
        assert_eq!("A/3F000028".parse::<Lsn>().unwrap(), Lsn(0xA_3F00_0028));
        assert_eq!("0/0".parse::<Lsn>().unwrap(), Lsn::INVALID);
        assert_eq!(Lsn(0xA_3F00_0028).to_string(), "A/3F000028");
        for wrong in [
            "",
            "/",
            "A",
            "A/",
            "/1",
            "1/2/3",
            "+1/2",
            "123456789/0",
            "0x1/2",
            " 1/2",
            "1/2\n",
        ] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_segment_size_is_what_initdb_accepts() {
        for good in [1_u64 << 20, 16 << 20, 1 << 30] {
            assert_eq!(SegmentSize::new(good).unwrap().bytes(), good);
        }
        for bad in [0, 1, 1 << 19, (16 << 20) + 1, 3 << 20, 1 << 31, u64::MAX] {
            assert!(SegmentSize::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_position_on_a_boundary_ends_the_segment_before() {
        let size = SegmentSize::DEFAULT;
        let boundary = Lsn(2 * size.bytes());
        assert_eq!(SegmentNumber::containing(boundary, size), SegmentNumber(2));
        assert_eq!(SegmentNumber::ending_at(boundary, size), SegmentNumber(1));
        assert_eq!(SegmentNumber(2).start(size), boundary);
        assert_eq!(SegmentNumber(u64::MAX).next().start(size), Lsn(u64::MAX));
    }

    #[test]
    fn numbers_in_json_survive_readers_that_know_only_doubles() {
        let id = SystemId(7_710_397_825_571_279_154);
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"7710397825571279154\"");
        assert_eq!(serde_json::from_str::<SystemId>("\"7710397825571279154\"").unwrap(), id);
        assert_eq!(serde_json::to_string(&Lsn(0x1_0000_0028)).unwrap(), "\"1/28\"");
        assert!("07".parse::<SystemId>().is_err() && "".parse::<SystemId>().is_err());
        assert_eq!(serde_json::to_string(&TimelineId(3)).unwrap(), "3");
    }

    proptest! {
        #[test]
        fn every_position_survives_the_round_trip(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>().unwrap(), Lsn(value));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (text.parse::<Lsn>(), text.parse::<TimelineId>(), text.parse::<SystemId>());
        }
    }
}
