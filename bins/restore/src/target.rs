//! What is asked for: which moment, which timeline, what happens there. Pure.
//!
//! Knows how PostgreSQL understands a recovery target (`src/backend/access/transam/xlogrecovery.c`). Leaves to
//! [`crate::plan`] which backup leads there, and to [`common::postgres::recovery`] how a server is told.

use std::fmt;

use common::error::{Error, Kind, Result};
use common::postgres::{Lsn, TimelineId, recovery};
use common::repository::Label;
use common::time::{UtcTime, parse_target};

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// With the last WAL there is.
    End,
    /// As soon as the backup is consistent.
    Immediate,
    /// At this moment.
    Time {
        /// The moment.
        time: UtcTime,
        /// As it was written, in its own time zone.
        written: String,
    },
    /// At this position.
    Lsn(Lsn),
    /// With this transaction.
    Xid(u32),
    /// At this restore point.
    Name(String),
}

/// Which timeline recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeline {
    /// The newest that goes on from a usable backup.
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Number(TimelineId),
}

/// What happens at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The server stays in recovery and answers queries.
    Pause,
    /// It becomes a primary.
    Promote,
    /// It stops.
    Shutdown,
}

/// All that decides which backup is restored and how far it is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where recovery ends.
    pub target: Target,
    /// Stop just before the target instead of after it.
    pub exclusive: bool,
    /// Which timeline recovery follows.
    pub timeline: Timeline,
    /// What happens at the target, if that was said.
    pub action: Option<Action>,
    /// The backup, if one was named.
    pub backup: Option<Label>,
    /// The server becomes a standby.
    pub standby: bool,
}

/// The target flags as they were given.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// `--target-time`.
    pub time: Option<&'a str>,
    /// `--target-lsn`.
    pub lsn: Option<&'a str>,
    /// `--target-xid`.
    pub xid: Option<&'a str>,
    /// `--target-name`.
    pub name: Option<&'a str>,
    /// `--target-immediate`.
    pub immediate: bool,
}

/// Reads the target; `now` is what `now-1h` counts from.
///
/// # Errors
/// `Config` if it is not understood, or more than one is given.
pub fn parse(wanted: &Wanted<'_>, now: UtcTime) -> Result<Target> {
    let given = [wanted.time, wanted.lsn, wanted.xid, wanted.name]
        .iter()
        .flatten()
        .count();
    if given + usize::from(wanted.immediate) > 1 {
        return Err(Error::new(Kind::Config, "more than one recovery target is given")
            .hint("recovery ends at one point: choose one of the --target flags"));
    }
    if let Some(text) = wanted.time {
        let written = text.trim().to_owned();
        let time = match last_days(&written) {
            Some(stand_in) => stand_in,
            None => parse_target(text, now)?,
        };
        // Nobody means the fraction of the second in which the command was typed.
        let time = match written.starts_with("now") {
            true => time.whole_seconds(),
            false => time,
        };
        return Ok(Target::Time { time, written });
    }
    if let Some(text) = wanted.lsn {
        let lsn: Lsn = text
            .trim()
            .parse()
            .map_err(|error: Error| error.with_kind(Kind::Config))?;
        return if lsn.is_valid() {
            Ok(Target::Lsn(lsn))
        } else {
            Err(wrong("0/0 is no position in WAL"))
        };
    }
    if let Some(text) = wanted.xid {
        return parse_xid(text.trim()).map(Target::Xid);
    }
    if let Some(text) = wanted.name {
        return parse_name(text).map(Target::Name);
    }
    Ok(if wanted.immediate {
        Target::Immediate
    } else {
        Target::End
    })
}

/// The last days of the year 9999 lie beyond what can be computed with, and far in the future like the days before.
fn last_days(text: &str) -> Option<UtcTime> {
    let rest = ["9999-12-30", "9999-12-31"]
        .iter()
        .find_map(|day| text.strip_prefix(day))?;
    format!("9999-12-29{rest}").parse().ok()
}

/// What is to be said of a transaction's number that carries an epoch.
pub fn cut_epoch(text: &str) -> Option<String> {
    let number: u64 = text.trim().parse().ok()?;
    let (epoch, xid) = (number >> 32, number & 0xFFFF_FFFF);
    (epoch > 0).then(|| {
        format!("transaction {number} is {xid} in WAL, which knows the lower 32 bits alone: epoch {epoch} was cut off and is not checked")
    })
}

fn wrong(why: impl Into<String>) -> Error {
    Error::new(Kind::Config, why)
}

/// Transactions are known by their lower 32 bits in WAL; `pg_current_xact_id()` shows 64.
fn parse_xid(text: &str) -> Result<u32> {
    let number: Option<u64> = text
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten();
    let xid = number.and_then(|number| u32::try_from(number & 0xFFFF_FFFF).ok());
    // 0 to 2 are reserved (`src/include/access/transam.h`).
    xid.filter(|xid| *xid >= 3).ok_or_else(|| {
        wrong(format!("\"{text}\" is not a transaction's number"))
            .hint("pg_current_xact_id() shows numbers like 734, from 3 on")
    })
}

/// PostgreSQL refuses names of 64 bytes and more (`MAXFNAMELEN`, `check_recovery_target_name`).
fn parse_name(text: &str) -> Result<String> {
    if text.is_empty() || text.len() >= 64 || text.contains('\0') {
        return Err(wrong(format!("\"{text}\" cannot be the name of a restore point")).hint("it has 1 to 63 bytes"));
    }
    Ok(text.to_owned())
}

/// Reads `--target-timeline`: `latest`, `current`, a decimal number, or 8 hexadecimal digits as in WAL file names.
///
/// # Errors
/// `Config` if it is none of these.
pub fn parse_timeline(text: &str) -> Result<Timeline> {
    let number = |id: Option<u32>| id.filter(|id| *id > 0).map(TimelineId).map(Timeline::Number);
    let all = |test: fn(&u8) -> bool| text.bytes().all(|byte| test(&byte));
    let read = match text {
        "latest" => Some(Timeline::Latest),
        "current" => Some(Timeline::Current),
        _ if text.len() == 8 && all(u8::is_ascii_hexdigit) => number(u32::from_str_radix(text, 16).ok()),
        _ if all(u8::is_ascii_digit) => number(text.parse().ok()),
        _ => None,
    };
    read.ok_or_else(|| {
        wrong(format!("\"{text}\" is not a timeline")).hint("latest, current, or a number such as 3 (or 00000003)")
    })
}

impl Target {
    /// As PostgreSQL is told.
    pub fn for_recovery(&self) -> recovery::Target {
        match self {
            Self::End => recovery::Target::EndOfWal,
            Self::Immediate => recovery::Target::Immediate,
            Self::Time { time, .. } => recovery::Target::Time(for_postgresql(*time)),
            Self::Lsn(lsn) => recovery::Target::Lsn(*lsn),
            Self::Xid(xid) => recovery::Target::Xid(xid.to_string()),
            Self::Name(name) => recovery::Target::Name(name.clone()),
        }
    }
}

/// PostgreSQL reads this setting before it knows the names of time zones, `Z` included: the zone must be a number
/// (`check_recovery_target_time`, 15.18: "invalid value" for a `Z`).
fn for_postgresql(time: UtcTime) -> String {
    let text = time.to_string();
    let plain = text.strip_suffix('Z').unwrap_or(&text).replace('T', " ");
    format!("{plain}+00")
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("the end of WAL"),
            Self::Immediate => f.write_str("the first consistent moment of the backup"),
            Self::Time { time, written } if *written == time.to_string() => write!(f, "time {time}"),
            Self::Time { time, written } => write!(f, "time {written} ({time})"),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point \"{name}\""),
        }
    }
}

impl Action {
    /// As PostgreSQL is told.
    pub fn for_recovery(self) -> recovery::TargetAction {
        match self {
            Self::Pause => recovery::TargetAction::Pause,
            Self::Promote => recovery::TargetAction::Promote,
            Self::Shutdown => recovery::TargetAction::Shutdown,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        })
    }
}

impl Request {
    /// Refuses what does not fit together.
    ///
    /// # Errors
    /// `Config`.
    pub fn check(&self) -> Result<()> {
        let aims = !matches!(self.target, Target::End);
        if self.exclusive && !matches!(self.target, Target::Time { .. } | Target::Lsn(_) | Target::Xid(_)) {
            return Err(
                wrong("--target-exclusive needs --target-time, --target-lsn or --target-xid")
                    .hint("only of these PostgreSQL can stop just before"),
            );
        }
        if self.action.is_some_and(|action| action != Action::Promote) && !aims {
            return Err(wrong("--target-action pause and shutdown need a target")
                .hint("without a target the server replays all WAL and is promoted"));
        }
        if self.standby && aims {
            return Err(wrong("--standby and a target exclude each other")
                .hint("a standby follows its primary without end; restore a target without --standby"));
        }
        if self.standby && self.action.is_some() {
            return Err(wrong("--standby and --target-action exclude each other"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn now() -> UtcTime {
        UtcTime::parse_compact("20261120T120000Z").unwrap()
    }

    fn time(text: &str) -> Result<Target> {
        parse(
            &Wanted {
                time: Some(text),
                ..Wanted::default()
            },
            now(),
        )
    }

    fn request(target: Target) -> Request {
        Request {
            target,
            exclusive: false,
            timeline: Timeline::Latest,
            action: None,
            backup: None,
            standby: false,
        }
    }

    #[test]
    fn a_time_keeps_its_zone_for_the_reader_and_is_absolute_for_postgresql() {
        let target = time("2026-11-20T12:30:00+01:00").unwrap();
        assert_eq!(
            target.to_string(),
            "time 2026-11-20T12:30:00+01:00 (2026-11-20T11:30:00Z)"
        );
        assert_eq!(
            target.for_recovery(),
            recovery::Target::Time("2026-11-20 11:30:00+00".into())
        );
        let late = "2026-11-20T12:00:00.75Z".parse().unwrap();
        let wanted = Wanted {
            time: Some("now-1h"),
            ..Wanted::default()
        };
        let target = parse(&wanted, late).unwrap();
        assert_eq!(target.to_string(), "time now-1h (2026-11-20T11:00:00Z)");
        assert_eq!(
            target.for_recovery(),
            recovery::Target::Time("2026-11-20 11:00:00+00".into())
        );
    }

    #[test]
    fn a_time_without_a_zone_is_refused() {
        for text in ["2026-11-20 12:30:00", "2026-11-20T12:30:00", "12:30", "", "yesterday"] {
            assert_eq!(time(text).unwrap_err().kind(), Kind::Config, "{text}");
        }
    }

    #[test]
    fn the_last_days_of_the_calendar_lie_in_the_future_like_all_the_others() {
        for text in [
            "9999-12-31T23:59:59Z",
            "9999-12-30 23:00:00+00",
            "9999-12-31T00:00:00-12:00",
        ] {
            let Target::Time { time, written } = time(text).unwrap() else {
                panic!("{text}")
            };
            assert!(time > now() && written == text);
        }
        assert_eq!(time("9999-12-31T23:59:59").unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn two_targets_are_refused() {
        let wanted = Wanted {
            xid: Some("734"),
            immediate: true,
            ..Wanted::default()
        };
        assert_eq!(parse(&wanted, now()).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn a_transaction_is_known_by_its_lower_32_bits() {
        let xid = |text| {
            parse(
                &Wanted {
                    xid: Some(text),
                    ..Wanted::default()
                },
                now(),
            )
        };
        assert_eq!(xid("734").unwrap(), Target::Xid(734));
        assert_eq!(xid("4294968030").unwrap(), Target::Xid(734));
        assert_eq!(cut_epoch("734"), None);
        let said = cut_epoch("12345678901234").unwrap();
        assert!(said.contains("1942892530") && said.contains("epoch 2874"), "{said}");
        for text in ["", "0", "2", "-1", "+5", "0x10", "99999999999999999999", "4294967296"] {
            assert_eq!(xid(text).unwrap_err().kind(), Kind::Config, "{text}");
        }
    }

    #[test]
    fn lsn_name_and_the_rest_are_read() {
        let lsn = |text| {
            parse(
                &Wanted {
                    lsn: Some(text),
                    ..Wanted::default()
                },
                now(),
            )
        };
        assert_eq!(lsn("A/3F000028").unwrap(), Target::Lsn(Lsn(0xA_3F00_0028)));
        assert!(lsn("0/0").is_err() && lsn("A").is_err());
        let name = |text| {
            parse(
                &Wanted {
                    name: Some(text),
                    ..Wanted::default()
                },
                now(),
            )
        };
        assert_eq!(
            name("before it's done").unwrap(),
            Target::Name("before it's done".into())
        );
        assert!(name("").is_err() && name(&"x".repeat(64)).is_err());
        assert_eq!(parse(&Wanted::default(), now()).unwrap(), Target::End);
        assert_eq!(
            parse(
                &Wanted {
                    immediate: true,
                    ..Wanted::default()
                },
                now()
            )
            .unwrap(),
            Target::Immediate
        );
    }

    #[test]
    fn a_timeline_is_a_word_a_number_or_the_digits_of_a_file_name() {
        let number = |id| Timeline::Number(TimelineId(id));
        assert_eq!(parse_timeline("latest").unwrap(), Timeline::Latest);
        assert_eq!(parse_timeline("current").unwrap(), Timeline::Current);
        assert_eq!(parse_timeline("3").unwrap(), number(3));
        assert_eq!(parse_timeline("0000000A").unwrap(), number(10));
        for text in ["", "0", "newest", "-1", "A", "00000000", "4294967296"] {
            assert_eq!(parse_timeline(text).unwrap_err().kind(), Kind::Config, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let end = request(Target::End);
        let lsn = request(Target::Lsn(Lsn(1)));
        for bad in [
            Request {
                exclusive: true,
                ..end.clone()
            },
            Request {
                exclusive: true,
                ..request(Target::Immediate)
            },
            Request {
                exclusive: true,
                ..request(Target::Name("x".into()))
            },
            Request {
                action: Some(Action::Pause),
                ..end.clone()
            },
            Request {
                action: Some(Action::Shutdown),
                ..end.clone()
            },
            Request {
                standby: true,
                ..lsn.clone()
            },
            Request {
                standby: true,
                action: Some(Action::Promote),
                ..end.clone()
            },
        ] {
            assert_eq!(bad.check().unwrap_err().kind(), Kind::Config, "{bad:?}");
        }
        for good in [
            Request {
                action: Some(Action::Promote),
                ..end.clone()
            },
            Request { standby: true, ..end },
            Request {
                exclusive: true,
                action: Some(Action::Shutdown),
                ..lsn
            },
        ] {
            good.check().unwrap();
        }
    }
}
