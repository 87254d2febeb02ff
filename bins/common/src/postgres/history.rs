//! Timeline histories: where each timeline left its parent.
//!
//! Knows the format and rules of `readTimeLineHistory` (`src/backend/access/transam/timeline.c`). A
//! position belongs to a history if the timeline is in it and was not yet left there.

use super::lsn::{Lsn, SegmentNumber, SegmentSize, TimelineId, hex32};
use crate::error::{Error, Kind, Result};

/// A timeline that was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// Which one.
    pub timeline: TimelineId,
    /// Where the next one begins; WAL of this one beyond it is not part of the history.
    pub switch_point: Lsn,
    /// What PostgreSQL says about why, for people.
    pub reason: String,
}

/// A timeline and those it descends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    ancestors: Vec<Ancestor>,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors, such as 1: it has no file.
    pub fn root(timeline: TimelineId) -> Self {
        TimelineHistory {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// Parses the history file of `timeline`.
    ///
    /// # Errors
    /// `Corrupt` if PostgreSQL would refuse it, or if switch points go backwards.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes);
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for line in text
            .lines()
            .map(str::trim_start)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let wrong = |why: &str| {
                Error::new(
                    Kind::Corrupt,
                    format!("history of timeline {timeline}: line \"{line}\" {why}"),
                )
            };
            let ancestor = parse_line(line).ok_or_else(|| wrong("is not understood"))?;
            if let Some(before) = ancestors.last() {
                if ancestor.timeline <= before.timeline {
                    return Err(wrong("does not follow a smaller timeline"));
                }
                if ancestor.switch_point < before.switch_point {
                    return Err(wrong("goes backwards"));
                }
            }
            if ancestor.timeline >= timeline {
                return Err(wrong("is not an ancestor"));
            }
            ancestors.push(ancestor);
        }
        Ok(TimelineHistory { timeline, ancestors })
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// Those it descends from, oldest first.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// Where `timeline` was left, if it is an ancestor.
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.ancestors
            .iter()
            .find(|ancestor| ancestor.timeline == timeline)
            .map(|ancestor| ancestor.switch_point)
    }

    /// Where `timeline` begins: 0 for the oldest; nothing if it is not in this history.
    pub fn begin(&self, timeline: TimelineId) -> Option<Lsn> {
        self.spans().find(|(id, ..)| *id == timeline).map(|(_, begin, _)| begin)
    }

    /// Says whether WAL that was written up to `lsn` on `timeline` is part of this history.
    ///
    /// So a backup that stopped at `lsn` on `timeline` can be recovered along it.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.spans()
            .any(|(id, begin, end)| id == timeline && begin <= lsn && end.is_none_or(|end| lsn <= end))
    }

    /// The timeline that the byte at `lsn` was written on.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let left_later = self.ancestors.iter().find(|ancestor| lsn < ancestor.switch_point);
        left_later.map_or(self.timeline, |ancestor| ancestor.timeline)
    }

    /// The timelines whose segment `number` may serve recovery along this history, best first.
    ///
    /// PostgreSQL asks in this order too (`XLogFileReadAnyTLI`): the segment in which a timeline begins
    /// is taken from the newer one, which has the older one's bytes in front.
    pub fn candidates(&self, number: SegmentNumber, size: SegmentSize) -> Vec<TimelineId> {
        let mut found: Vec<TimelineId> = self
            .spans()
            .filter(|(_, begin, _)| SegmentNumber::containing(*begin, size) <= number)
            .map(|(timeline, ..)| timeline)
            .collect();
        found.reverse();
        found
    }

    /// Each timeline with its begin and its end, oldest first.
    fn spans(&self) -> impl Iterator<Item = (TimelineId, Lsn, Option<Lsn>)> {
        let begins = std::iter::once(Lsn(0)).chain(self.ancestors.iter().map(|ancestor| ancestor.switch_point));
        let rest = self
            .ancestors
            .iter()
            .map(|ancestor| (ancestor.timeline, Some(ancestor.switch_point)));
        let all = rest.chain(std::iter::once((self.timeline, None)));
        begins.zip(all).map(|(begin, (timeline, end))| (timeline, begin, end))
    }
}

/// `<timeline, decimal> <position> <reason>`, as sscanf("%u\t%X/%X") takes it: any white space will do.
fn parse_line(line: &str) -> Option<Ancestor> {
    let (number, rest) = line.split_once(|c: char| c.is_ascii_whitespace())?;
    let rest = rest.trim_start();
    let (position, reason) = rest.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((rest, ""));
    let (high, low) = position.split_once('/')?;
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Ancestor {
        timeline: TimelineId(number.parse().ok()?),
        switch_point: Lsn(u64::from(hex32(high)?) << 32 | u64::from(hex32(low)?)),
        reason: reason.trim().to_string(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::postgres::{Major, fixtures};
    use proptest::prelude::*;

    fn history(text: &str) -> Result<TimelineHistory> {
        TimelineHistory::parse(TimelineId(9), text.as_bytes())
    }

    #[test]
    fn the_history_of_every_version_is_understood() {
        for major in Major::ALL {
            let history = TimelineHistory::parse(TimelineId(3), &fixtures::read(major, "00000003.history")).unwrap();
            let ids: Vec<u32> = history.ancestors().iter().map(|ancestor| ancestor.timeline.0).collect();
            assert_eq!(ids, [1, 2], "{major}");
            assert_eq!(history.ancestors()[0].reason, "no recovery target specified");
            assert!(history.switch_point(TimelineId(1)).unwrap() < history.switch_point(TimelineId(2)).unwrap());
        }
    }

    #[test]
    fn a_position_after_the_switch_is_not_part_of_the_history() {
        let history = history("1\t0/3000000\tx\n\n# comment\n  4 0/5000000\n").unwrap();
        assert!(history.contains(TimelineId(1), Lsn(0x300_0000)));
        assert!(!history.contains(TimelineId(1), Lsn(0x300_0001)));
        assert!(history.contains(TimelineId(4), Lsn(0x400_0000)));
        assert!(!history.contains(TimelineId(4), Lsn(0x200_0000)));
        assert!(!history.contains(TimelineId(2), Lsn(0x400_0000)));
        assert!(history.contains(TimelineId(9), Lsn(u64::MAX)));
        assert_eq!(history.timeline_at(Lsn(0x2FF_FFFF)), TimelineId(1));
        assert_eq!(history.timeline_at(Lsn(0x300_0000)), TimelineId(4));
        assert_eq!(history.timeline_at(Lsn(0x500_0000)), TimelineId(9));
        assert_eq!(history.begin(TimelineId(4)), Some(Lsn(0x300_0000)));
    }

    #[test]
    fn the_segment_of_a_switch_is_asked_of_the_newer_timeline_first() {
        let history = history("1\t0/3000100\tx\n4\t0/3000200\ty\n").unwrap();
        let asked = |number| -> Vec<u32> {
            history
                .candidates(SegmentNumber(number), SegmentSize::DEFAULT)
                .iter()
                .map(|id| id.0)
                .collect()
        };
        assert_eq!(asked(2), [1]);
        assert_eq!(asked(3), [9, 4, 1]);
        assert_eq!(asked(4), [9, 4, 1]);
    }

    #[test]
    fn a_history_that_postgresql_refuses_is_corrupt() {
        for text in [
            "1",
            "x\t0/1\t",
            "1\t0\t",
            "2\t0/1\t\n1\t0/2\t",
            "9\t0/1\t",
            "1\t0/2\tx\n2\t0/1\tx",
            "-1\t0/1\tx",
        ] {
            assert_eq!(history(text).unwrap_err().kind(), Kind::Corrupt, "{text}");
        }
        assert_eq!(history("").unwrap(), TimelineHistory::root(TimelineId(9)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "([0-9]{1,3}\t[0-9A-F]{1,9}/[0-9A-F]{0,9}\tx?\n){0,4}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                if let Ok(history) = TimelineHistory::parse(TimelineId(9), bytes) {
                    let _ = history.candidates(SegmentNumber(3), SegmentSize::DEFAULT);
                    prop_assert!(history.contains(TimelineId(9), Lsn(u64::MAX)));
                }
            }
        }
    }
}
