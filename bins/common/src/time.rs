//! Moments in time, always UTC, and the ways this project writes them.
//!
//! The clock is read by `main`, or once where a job starts, and passed on; nothing here reads it except
//! [`UtcTime::now`]. A moment without a zone is refused, never taken for local time: recovery to the wrong
//! hour looks like success.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::units::parse_duration;

/// Seconds from 1970-01-01 to 2000-01-01, where PostgreSQL's timestamps begin (`src/include/datatype/timestamp.h`).
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// A moment, in UTC. `Display` and serde are RFC 3339, with a fraction only where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UtcTime(Timestamp);

impl UtcTime {
    /// 1970-01-01T00:00:00Z.
    pub const UNIX_EPOCH: Self = Self(Timestamp::UNIX_EPOCH);

    /// Reads the clock. Call it from `main` or where a job starts, and pass the result on.
    pub fn now() -> Self {
        Self(Timestamp::now())
    }

    /// The moment as it stands in labels and keys: `20261120T020000Z`. Fractions are cut off.
    pub fn compact(self) -> String {
        self.0.strftime("%Y%m%dT%H%M%SZ").to_string()
    }

    /// Reads what [`compact`](Self::compact) wrote, and nothing else.
    ///
    /// # Errors
    /// `Corrupt`, since such text comes from names in a repository.
    pub fn parse_compact(text: &str) -> Result<Self> {
        let invalid = || Error::new(Kind::Corrupt, format!("invalid time \"{text}\" in a name"));
        // Rewriting it refuses everything that the parser is lenient about.
        DateTime::strptime("%Y%m%dT%H%M%SZ", text)
            .and_then(|civil| civil.to_zoned(TimeZone::UTC))
            .map(|zoned| Self(zoned.timestamp()))
            .ok()
            .filter(|time| time.compact() == text)
            .ok_or_else(invalid)
    }

    /// Reads a time as HTTP's `Date` header has it: `Sat, 21 Nov 2026 09:25:49 GMT` (RFC 9110).
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn parse_http_date(text: &str) -> Result<Self> {
        jiff::fmt::rfc2822::parse(text)
            .map(|zoned| Self(zoned.timestamp()))
            .map_err(|_| Error::new(Kind::Corrupt, format!("invalid time \"{text}\" in an answer")))
    }

    /// Whole seconds since 1970, rounded down.
    pub fn unix_seconds(self) -> i64 {
        self.unix_micros().div_euclid(1_000_000)
    }

    /// Microseconds since 1970.
    pub fn unix_micros(self) -> i64 {
        self.0.as_microsecond()
    }

    /// A moment from microseconds since 1970.
    ///
    /// # Errors
    /// `Corrupt` if it lies beyond the years -9999 to 9999.
    pub fn from_unix_micros(micros: i64) -> Result<Self> {
        Timestamp::from_microsecond(micros)
            .map(Self)
            .map_err(|_| Error::new(Kind::Corrupt, format!("time {micros} us since 1970 is out of range")))
    }

    /// A moment from whole seconds since 1970.
    ///
    /// # Errors
    /// `Corrupt` if it lies beyond the years -9999 to 9999.
    pub fn from_unix_seconds(seconds: i64) -> Result<Self> {
        Timestamp::from_second(seconds)
            .map(Self)
            .map_err(|_| Error::new(Kind::Corrupt, format!("time {seconds} s since 1970 is out of range")))
    }

    /// A moment from seconds and nanoseconds since 1970, as `stat` gives them.
    ///
    /// # Errors
    /// `Corrupt` if it lies beyond the years -9999 to 9999.
    pub fn from_unix(seconds: i64, nanoseconds: i64) -> Result<Self> {
        i32::try_from(nanoseconds)
            .ok()
            .and_then(|nanoseconds| Timestamp::new(seconds, nanoseconds).ok())
            .map(Self)
            .ok_or_else(|| Error::new(Kind::Corrupt, format!("time {seconds} s since 1970 is out of range")))
    }

    /// A moment from PostgreSQL's `TimestampTz`: microseconds since 2000-01-01.
    ///
    /// # Errors
    /// `Corrupt` for `infinity` and for what lies beyond the year 9999.
    pub fn from_pg_micros(micros: i64) -> Result<Self> {
        micros
            .checked_add(POSTGRES_EPOCH_SECONDS * 1_000_000)
            .ok_or_else(|| Error::new(Kind::Corrupt, format!("PostgreSQL time {micros} is out of range")))
            .and_then(Self::from_unix_micros)
    }

    /// PostgreSQL's `TimestampTz` of this moment: microseconds since 2000-01-01.
    pub fn pg_micros(self) -> i64 {
        // Years -9999 to 9999 in microseconds use less than a tenth of an i64.
        self.unix_micros() - POSTGRES_EPOCH_SECONDS * 1_000_000
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or_default()
    }

    /// How far apart two moments are, whichever came first.
    pub fn distance(self, other: Self) -> Duration {
        self.0.duration_since(other.0).unsigned_abs()
    }

    /// The moment without its fraction of a second.
    #[must_use]
    pub fn whole_seconds(self) -> Self {
        Self(Timestamp::from_second(self.0.as_second()).unwrap_or(self.0))
    }

    /// The moment so much later; the end of time where there is none.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        let later = SignedDuration::try_from(span)
            .ok()
            .and_then(|span| self.0.checked_add(span).ok());
        Self(later.unwrap_or(Timestamp::MAX))
    }

    /// The moment so much earlier; the beginning of time where there is none.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        let earlier = SignedDuration::try_from(span)
            .ok()
            .and_then(|span| self.0.checked_sub(span).ok());
        Self(earlier.unwrap_or(Timestamp::MIN))
    }

    /// The jiff value, for calendars and time zones.
    pub fn timestamp(self) -> Timestamp {
        self.0
    }
}

impl From<Timestamp> for UtcTime {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp)
    }
}

impl TryFrom<SystemTime> for UtcTime {
    type Error = Error;

    fn try_from(time: SystemTime) -> Result<Self> {
        Timestamp::try_from(time)
            .map(Self)
            .map_err(|error| Error::new(Kind::Corrupt, "time is out of range").because(error))
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for UtcTime {
    type Err = Error;

    /// RFC 3339; a zone is needed.
    fn from_str(text: &str) -> Result<Self> {
        parse_absolute(text)
    }
}

/// Reads a moment as an operator gives it: RFC 3339 with a zone (`2026-11-20T03:00:00+01:00`, `...Z`,
/// also with a space for the `T`), `now`, or `now-1h`. A zone may be added by name (`...[Europe/Rome]`) where jiff
/// finds a time zone database.
///
/// # Errors
/// `Config`; where only the zone is missing, the hint says how to add it.
pub fn parse_target(text: &str, now: UtcTime) -> Result<UtcTime> {
    let text = text.trim();
    match text.strip_prefix("now") {
        Some("") => Ok(now),
        Some(offset) => match offset.trim_start().strip_prefix('-') {
            Some(span) => Ok(now.minus(parse_duration(span)?)),
            None => Err(invalid(text)),
        },
        None => parse_absolute(text),
    }
}

fn parse_absolute(text: &str) -> Result<UtcTime> {
    // jiff lets a timestamp carry a zone's name without looking whether the two agree, and lets a civil time
    // carry what it then ignores.
    if text.contains('[') {
        let zoned = text.parse::<Zoned>().map_err(|error| invalid(text).because(error))?;
        return Ok(UtcTime(zoned.timestamp()));
    }
    match text.parse::<Timestamp>() {
        Ok(timestamp) => Ok(UtcTime(timestamp)),
        Err(_) if is_without_zone(text) => Err(without_zone(text)),
        Err(error) => Err(invalid(text).because(error)),
    }
}

/// Whether `text` is a date or a date and time with nothing behind.
fn is_without_zone(text: &str) -> bool {
    let clock = text.split_once(['T', 't', ' ']).map_or("", |(_, clock)| clock);
    text.parse::<DateTime>().is_ok() && !clock.contains(['+', '-', 'Z', 'z'])
}

fn invalid(text: &str) -> Error {
    Error::new(Kind::Config, format!("invalid time \"{text}\"")).hint("write 2026-11-20T03:00:00+01:00, or now-1h")
}

fn without_zone(text: &str) -> Error {
    let date_only = !text.contains(':');
    let example = if date_only {
        format!("{text}T00:00:00Z")
    } else {
        format!("{text}Z")
    };
    Error::new(Kind::Config, format!("time \"{text}\" has no time zone")).hint(format!(
        "for UTC write {example}; else end it with an offset such as +01:00"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> UtcTime {
        text.parse().unwrap()
    }

    #[test]
    fn the_compact_form_reads_back() {
        let time = at("2026-11-20T02:00:00Z");
        assert_eq!(time.compact(), "20261120T020000Z");
        assert_eq!(UtcTime::parse_compact("20261120T020000Z").unwrap(), time);
    }

    #[test]
    fn a_compact_form_that_differs_in_any_way_is_refused() {
        for text in [
            "",
            "20261120T020000",
            "20261120T020000z",
            "20261120T250000Z",
            "20261320T020000Z",
            "20261120T020060Z",
            " 20261120T020000Z",
            "20261120T020000Z ",
            "2026112T0020000Z",
            "+2026120T020000Z",
            "2026112\u{0660}T020000Z",
        ] {
            assert_eq!(
                UtcTime::parse_compact(text).unwrap_err().kind(),
                Kind::Corrupt,
                "{text}"
            );
        }
    }

    #[test]
    fn a_target_needs_a_zone() {
        let now = at("2026-11-20T12:00:00Z");
        for text in ["2026-11-20T02:00:00", "2026-11-20 02:00", "2026-11-20"] {
            let error = parse_target(text, now).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains("no time zone"), "{error}");
            assert!(error.nearest_hint().unwrap().contains('Z'), "{error:?}");
        }
    }

    #[test]
    fn targets_are_read_with_offset_zone_name_and_relative_to_now() {
        let now = at("2026-11-20T12:00:00Z");
        let expected = at("2026-11-20T02:00:00Z");
        for text in [
            "2026-11-20T02:00:00Z",
            "2026-11-20T03:00:00+01:00",
            "2026-11-20 03:00:00+01",
            "2026-11-20T02:00:00+00:00[+00:00]",
            "now-10h",
            "now - 10h",
        ] {
            assert_eq!(parse_target(text, now).unwrap(), expected, "{text}");
        }
        assert_eq!(parse_target("now", now).unwrap(), now);
        for text in [
            "",
            "yesterday",
            "now+1h",
            "nowadays",
            "now-1",
            "2026-02-30T00:00:00Z",
            "2026-11-20T02:00:00+99:00",
            "2026-11-20T02:00:00[No/Where]",
        ] {
            let error = parse_target(text, now).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{text}");
            assert!(error.to_string().contains("invalid"), "{error}");
        }
    }

    #[test]
    fn postgresql_counts_from_the_year_2000() {
        assert_eq!(UtcTime::from_pg_micros(0).unwrap(), at("2000-01-01T00:00:00Z"));
        assert_eq!(UtcTime::from_pg_micros(-1).unwrap(), at("1999-12-31T23:59:59.999999Z"));
        assert_eq!(UtcTime::from_pg_micros(i64::MAX).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(UtcTime::from_pg_micros(i64::MIN).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn serde_writes_a_fraction_only_where_there_is_one() {
        let whole = at("2026-11-20T02:00:00Z");
        assert_eq!(serde_json::to_string(&whole).unwrap(), "\"2026-11-20T02:00:00Z\"");
        let fraction: UtcTime = serde_json::from_str("\"2026-11-20T02:00:00.25Z\"").unwrap();
        assert_eq!(fraction.since(whole), Duration::from_millis(250));
        assert_eq!(fraction.unix_seconds(), whole.unix_seconds());
    }

    #[test]
    fn distances_do_not_wrap() {
        let (early, late) = (at("2026-11-20T02:00:00Z"), at("2026-11-20T03:00:00Z"));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early.distance(late), Duration::from_secs(3600));
        assert_eq!(late.minus(Duration::from_secs(3600)), early);
        assert_eq!(early.plus(Duration::MAX).timestamp(), Timestamp::MAX);
        assert_eq!(early.minus(Duration::MAX).timestamp(), Timestamp::MIN);
    }

    proptest! {
        #[test]
        fn postgresql_times_go_there_and_back(micros in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
            prop_assert_eq!(UtcTime::from_pg_micros(micros).unwrap().pg_micros(), micros);
        }

        #[test]
        fn odd_text_never_panics(text: String) {
            let _ = parse_target(&text, UtcTime::UNIX_EPOCH);
            let _ = UtcTime::parse_compact(&text);
        }
    }
}
