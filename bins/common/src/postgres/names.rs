//! The names of files in pg_wal and in an archive.
//!
//! Knows exactly the four kinds that PostgreSQL archives (`IsXLogFileName` and its neighbours in
//! `src/include/access/xlog_internal.h`). A segment's name keeps its two parts as written; what number
//! that is depends on the segment size, which only a segment's header or pg_control can tell.

use super::lsn::{Lsn, SegmentNumber, SegmentSize, TimelineId, hex32};
use crate::error::{Error, Kind, Result};
use std::fmt;
use std::str::FromStr;

/// The name of a segment: timeline, "log" and "segment", 8 hexadecimal digits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline it was written on.
    pub timeline: TimelineId,
    /// The upper half of its position.
    pub log: u32,
    /// Its number within `log`.
    pub segment: u32,
}

impl SegmentName {
    /// The name of segment `number`.
    pub fn new(timeline: TimelineId, number: SegmentNumber, size: SegmentSize) -> Self {
        let per_log = size.segments_per_log();
        // The number of a position below 2^64 has a log below 2^32; beyond, the last name is kept.
        SegmentName {
            timeline,
            log: u32::try_from(number.0 / per_log).unwrap_or(u32::MAX),
            segment: u32::try_from(number.0 % per_log).unwrap_or(u32::MAX),
        }
    }

    /// Its number, or nothing if there is no such segment with this size.
    pub fn number(&self, size: SegmentSize) -> Option<SegmentNumber> {
        let per_log = size.segments_per_log();
        let segment = u64::from(self.segment);
        (segment < per_log).then(|| SegmentNumber(u64::from(self.log) * per_log + segment))
    }

    /// The position of its first byte, or nothing if there is no such segment with this size.
    pub fn start(&self, size: SegmentSize) -> Option<Lsn> {
        self.number(size).map(|number| number.start(size))
    }

    /// The segment after it on the same timeline, or nothing if there is no such segment with this size.
    pub fn next(&self, size: SegmentSize) -> Option<SegmentName> {
        self.number(size)
            .map(|number| Self::new(self.timeline, number.next(), size))
    }

    /// The first 16 digits: the directory of the repository that it lies in.
    pub fn directory(&self) -> String {
        format!("{}{:08X}", self.timeline, self.log)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_segment(text)
            .ok_or_else(|| Error::new(Kind::Config, format!("\"{text}\" is not the name of a WAL segment")))
    }
}

/// The name of a file that PostgreSQL archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// A whole segment.
    Segment(SegmentName),
    /// The last, unfinished segment of a timeline that was left (`.partial`). Never a segment's stand-in.
    Partial(SegmentName),
    /// The mark that a backup started here (`.<offset>.backup`).
    Backup {
        /// The segment that the backup starts in.
        segment: SegmentName,
        /// Where in it.
        offset: u32,
    },
    /// The ancestors of a timeline (`.history`).
    History {
        /// The timeline.
        timeline: TimelineId,
    },
}

impl WalName {
    /// Parses a file name; digits are upper-case, as PostgreSQL writes them.
    ///
    /// # Errors
    /// `Config` if PostgreSQL archives no file of this name.
    pub fn parse(name: &str) -> Result<WalName> {
        parse_name(name).ok_or_else(|| {
            Error::new(Kind::Config, format!("\"{name}\" is not the name of a WAL file"))
                .hint("a name like 0000000100000A3F000000C6 or 00000002.history is expected, without a directory")
        })
    }

    /// The timeline it belongs to.
    pub fn timeline(&self) -> TimelineId {
        match self {
            WalName::Segment(name) | WalName::Partial(name) | WalName::Backup { segment: name, .. } => name.timeline,
            WalName::History { timeline } => *timeline,
        }
    }

    /// The segment it is, is a part of, or marks; nothing for a history.
    pub fn segment(&self) -> Option<SegmentName> {
        match self {
            WalName::Segment(name) | WalName::Partial(name) | WalName::Backup { segment: name, .. } => Some(*name),
            WalName::History { .. } => None,
        }
    }

    /// The segment after it, if this is a whole segment that exists with this size.
    pub fn next(&self, size: SegmentSize) -> Option<WalName> {
        match self {
            WalName::Segment(name) => name.next(size).map(WalName::Segment),
            _ => None,
        }
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalName::Segment(name) => write!(f, "{name}"),
            WalName::Partial(name) => write!(f, "{name}.partial"),
            WalName::Backup { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            WalName::History { timeline } => write!(f, "{timeline}.history"),
        }
    }
}

impl FromStr for WalName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

fn parse_name(name: &str) -> Option<WalName> {
    let mut parts = name.split('.');
    let first = parts.next()?;
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => parse_segment(first).map(WalName::Segment),
        (Some("partial"), None, _) => parse_segment(first).map(WalName::Partial),
        (Some("history"), None, _) => hex8(first).map(|id| WalName::History {
            timeline: TimelineId(id),
        }),
        (Some(offset), Some("backup"), None) => Some(WalName::Backup {
            segment: parse_segment(first)?,
            offset: hex8(offset)?,
        }),
        _ => None,
    }
}

fn parse_segment(text: &str) -> Option<SegmentName> {
    if text.len() != 24 {
        return None;
    }
    Some(SegmentName {
        timeline: TimelineId(hex8(text.get(..8)?)?),
        log: hex8(text.get(8..16)?)?,
        segment: hex8(text.get(16..)?)?,
    })
}

/// Exactly 8 upper-case hexadecimal digits.
fn hex8(text: &str) -> Option<u32> {
    let strict = text.len() == 8 && !text.bytes().any(|byte| byte.is_ascii_lowercase());
    if strict { hex32(text) } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    const SIZES: [u64; 3] = [1 << 20, 16 << 20, 1 << 30];

    #[test]
    fn each_kind_of_name_is_told_apart() {
        let segment: SegmentName = "0000000100000A3F000000C6".parse().unwrap();
        assert_eq!(
            (segment.timeline, segment.log, segment.segment),
            (TimelineId(1), 0xA3F, 0xC6)
        );
        assert_eq!(
            WalName::parse("0000000100000A3F000000C6").unwrap(),
            WalName::Segment(segment)
        );
        assert_eq!(
            WalName::parse("0000000100000A3F000000C6.partial").unwrap(),
            WalName::Partial(segment)
        );
        let backup = WalName::Backup { segment, offset: 0x28 };
        assert_eq!(
            WalName::parse("0000000100000A3F000000C6.00000028.backup").unwrap(),
            backup
        );
        assert_eq!(
            WalName::parse("0000000A.history").unwrap(),
            WalName::History {
                timeline: TimelineId(10)
            }
        );
        assert_eq!(segment.directory(), "0000000100000A3F");
    }

    #[test]
    fn anything_else_is_refused() {
        for name in [
            "",
            ".",
            "..",
            "RECOVERYXLOG",
            "0000000a.history",
            "0000000100000a3f000000c6",
            "0000000100000A3F000000C",
            "0000000100000A3F000000C6.",
            "0000000100000A3F000000C6.backup",
            "0000000100000A3F000000C6.28.backup",
            "0000000100000A3F000000C6.00000028.backup.x",
            "0000000100000A3F000000C6.partial.",
            "../00000001.history",
            "/0000000100000A3F000000C6",
            "+000000100000A3F000000C6",
            "0000000100000A3F000000C6.history",
            "ä000000A.history",
        ] {
            assert!(WalName::parse(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_segment_after_the_last_of_a_log_opens_the_next_log() {
        let size = SegmentSize::DEFAULT;
        let next = |name: &str| WalName::parse(name).unwrap().next(size).map(|name| name.to_string());
        assert_eq!(
            next("0000000100000A3F000000FF").as_deref(),
            Some("0000000100000A4000000000")
        );
        assert_eq!(
            next("0000000100000A3F000000C6").as_deref(),
            Some("0000000100000A3F000000C7")
        );
        assert_eq!(next("0000000100000A3F00000100"), None);
        assert_eq!(next("00000001.history"), None);
    }

    proptest! {
        #[test]
        fn every_name_survives_the_round_trip(timeline: u32, log: u32, segment: u32, offset: u32) {
            let segment = SegmentName { timeline: TimelineId(timeline), log, segment };
            for name in [
                WalName::Segment(segment), WalName::Partial(segment), WalName::Backup { segment, offset },
                WalName::History { timeline: TimelineId(timeline) },
            ] {
                prop_assert_eq!(WalName::parse(&name.to_string()).unwrap(), name);
            }
        }

        #[test]
        fn number_and_name_agree(position: u64, size in proptest::sample::select(&SIZES[..])) {
            let size = SegmentSize::new(size).unwrap();
            let number = SegmentNumber::containing(Lsn(position), size);
            let name = SegmentName::new(TimelineId(7), number, size);
            prop_assert_eq!(name.number(size), Some(number));
            prop_assert_eq!(name.start(size), Some(Lsn(position / size.bytes() * size.bytes())));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = WalName::parse(&text);
        }
    }
}
