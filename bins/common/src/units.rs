//! Sizes and spans of time as people write them: `100MiB`, `1GB`, `5m`, `7d`, `1h30m`.
//!
//! Decimal names are decimal (`1GB` is 1,000,000,000 bytes, unlike PostgreSQL's settings), binary names
//! binary. What would have to be guessed (`5M`, `3` without a unit of time, a calendar month) is refused.
//! [`ByteSize`] and [`Span`] travel through serde as the exact strings that parse back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Kind, Result};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 12] = [
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
];

const BINARY: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

impl ByteSize {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Reads a rate: a size with an optional `/s` behind it.
    ///
    /// # Errors
    /// `Config` for anything else.
    pub fn parse_rate(text: &str) -> Result<Self> {
        text.strip_suffix("/s").unwrap_or(text).parse()
    }

    /// The shortest text that parses back to exactly this size.
    pub fn exact(self) -> String {
        let units = SIZES.iter().rev().filter(|(name, _)| name.ends_with("iB"));
        for (name, factor) in units {
            if self.0 != 0 && self.0.is_multiple_of(*factor) {
                return format!("{}{name}", self.0 / factor);
            }
        }
        self.0.to_string()
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::new(Kind::Config, format!("invalid size \"{text}\""))
                .hint("a whole number and a unit, such as 512KiB, 100MiB or 1GB; a bare number is bytes")
        };
        let (digits, unit) = split_number(text.trim());
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        let unit = unit.trim_start();
        let (_, factor) = SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
        number.checked_mul(*factor).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for ByteSize {
    /// For people: at most four digits, binary units.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut names = BINARY.iter();
        let mut name = names.next().unwrap_or(&"B");
        // 1023.95 would print as 1024.0.
        while value >= 1023.95 {
            let Some(next) = names.next() else { break };
            value /= 1024.0;
            name = next;
        }
        if *name == "B" {
            write!(f, "{} B", self.0)
        } else {
            write!(f, "{value:.1} {name}")
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.exact())
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"100MiB\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A span of time as configured; `Display` and serde are exact to the millisecond and parse back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub Duration);

const MILLISECOND: u64 = 1;
const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

const SPANS: [(&str, u64); 6] = [
    ("w", 7 * DAY),
    ("d", DAY),
    ("h", HOUR),
    ("m", MINUTE),
    ("s", SECOND),
    ("ms", MILLISECOND),
];

/// Reads a span of time: `5m`, `7d`, `20h`, `90s`, `500ms`, `2w`, and sums such as `1h30m`; a day has 24 hours.
///
/// # Errors
/// `Config` for anything else, a number without a unit included (only `0` needs none).
pub fn parse_duration(text: &str) -> Result<Duration> {
    let invalid = || {
        Error::new(Kind::Config, format!("invalid span of time \"{text}\""))
            .hint("a whole number and a unit out of ms, s, m, h, d, w, such as 90s, 5m, 1h30m or 7d")
    };
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total: u64 = 0;
    let mut previous = u64::MAX;
    loop {
        let (digits, tail) = split_number(rest);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        let (_, factor) = SPANS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
        // "30m1h" and "5m5m" are slips of the hand.
        if *factor >= previous {
            return Err(invalid());
        }
        previous = *factor;
        let part = number.checked_mul(*factor).ok_or_else(invalid)?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = tail.trim_start();
        if rest.is_empty() {
            return Ok(Duration::from_millis(total));
        }
    }
}

/// As [`display_duration`], without fractions of a second, which mean nothing in the age of something.
pub fn display_seconds(span: Duration) -> String {
    display_duration(Duration::from_secs(span.as_secs()))
}

/// A span of time for people: at most two units, as `3d4h`, `1m30s`, `2.4s` or `250ms`.
pub fn display_duration(span: Duration) -> String {
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let two = |big: u64, big_name: &str, small: u64, small_name: &str| match (ms % big) / small {
        0 => format!("{}{big_name}", ms / big),
        rest => format!("{}{big_name}{rest}{small_name}", ms / big),
    };
    match ms {
        0 if !span.is_zero() => format!("{:.2}ms", span.as_secs_f64() * 1000.0),
        0 => "0s".to_owned(),
        1..SECOND => format!("{ms}ms"),
        SECOND..10_000 if ms % SECOND >= 100 => format!("{}.{}s", ms / SECOND, ms % SECOND / 100),
        SECOND..MINUTE => format!("{}s", ms / SECOND),
        MINUTE..HOUR => two(MINUTE, "m", SECOND, "s"),
        HOUR..DAY => two(HOUR, "h", MINUTE, "m"),
        _ => two(DAY, "d", HOUR, "h"),
    }
}

/// Splits off the leading digits.
fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

impl FromStr for Span {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_duration(text).map(Self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return f.write_str("0");
        }
        // Weeks are read but not written: "14d" is what people compare.
        for (name, factor) in SPANS.iter().skip(1) {
            if ms >= *factor {
                write!(f, "{}{name}", ms / factor)?;
                ms %= factor;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

/// A number of things, `1 segment` or `2 segments`.
pub fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_written() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("1kB", 1000),
            ("100MiB", 100 << 20),
            ("1 GB", 1_000_000_000),
            ("2TiB", 2 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
        assert_eq!(ByteSize::parse_rate("100MiB/s").unwrap(), ByteSize(100 << 20));
    }

    #[test]
    fn sizes_that_would_be_guesses_are_refused() {
        for text in [
            "",
            "B",
            "-1",
            "1.5GiB",
            "5M",
            "1gb",
            "16777216TiB",
            "1 MiB/s",
            "1MiBx",
            "99999999999999999999",
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap_err().kind(), Kind::Config, "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_to_people_in_binary_units() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1_500_000_000, "1.4 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn spans_are_read_as_written() {
        let cases = [
            ("0", 0),
            ("500ms", 500),
            ("90s", 90_000),
            ("5m", 300_000),
            ("20h", 72_000_000),
            ("7d", 604_800_000),
            ("2w", 1_209_600_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
        ];
        for (text, ms) in cases {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
    }

    #[test]
    fn spans_that_would_be_guesses_are_refused() {
        for text in [
            "",
            "5",
            "m",
            "-5m",
            "5M",
            "1.5h",
            "5m5m",
            "30m1h",
            "5 minutes",
            "1h30",
            "99999999999999999d",
        ] {
            assert_eq!(parse_duration(text).unwrap_err().kind(), Kind::Config, "{text}");
        }
    }

    #[test]
    fn spans_are_shown_to_people_in_two_units_at_most() {
        let cases = [
            (0, "0s"),
            (250, "250ms"),
            (2_450, "2.4s"),
            (2_040, "2s"),
            (30_999, "30s"),
            (90_000, "1m30s"),
            (7_200_000, "2h"),
            (273_600_000, "3d4h"),
        ];
        for (ms, text) in cases {
            assert_eq!(display_duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn serde_uses_the_exact_strings() {
        let size: ByteSize = serde_json::from_str("\"100MiB\"").unwrap();
        assert_eq!(serde_json::to_string(&size).unwrap(), "\"100MiB\"");
        assert_eq!(serde_json::from_str::<ByteSize>("17").unwrap(), ByteSize(17));
        assert!(serde_json::from_str::<ByteSize>("-1").is_err());
        let span: Span = serde_json::from_str("\"90s\"").unwrap();
        assert_eq!(serde_json::to_string(&span).unwrap(), "\"1m30s\"");
    }

    proptest! {
        #[test]
        fn every_size_parses_back(bytes: u64) {
            prop_assert_eq!(ByteSize(bytes).exact().parse::<ByteSize>().unwrap(), ByteSize(bytes));
        }

        #[test]
        fn every_span_parses_back(ms in 0..u64::MAX / 2) {
            let span = Span(Duration::from_millis(ms));
            prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }

        #[test]
        fn odd_text_is_refused_and_never_panics(text: String) {
            let _ = text.parse::<ByteSize>();
            let _ = parse_duration(&text);
        }
    }
}
