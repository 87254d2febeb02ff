//! Why something stays, in words.

use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::repository::{BackupType, Label};
use crate::time::UtcTime;
use crate::units::display_duration;

/// A part of the calendar, by UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// From Monday to Sunday (ISO 8601).
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Period {
    /// The name of the one that holds a moment; names sort by time.
    pub fn name(self, moment: UtcTime) -> String {
        let date = moment.timestamp().to_zoned(TimeZone::UTC).date();
        match self {
            Self::Week => {
                let week = date.iso_week_date();
                format!("{:04}-W{:02}", week.year(), week.week())
            }
            Self::Month => format!("{:04}-{:02}", date.year(), date.month()),
            Self::Year => format!("{:04}", date.year()),
        }
    }

    /// The name of the one that lies `count` before the one that holds a moment.
    pub fn before(self, moment: UtcTime, count: u32) -> String {
        let date = moment.timestamp().to_zoned(TimeZone::UTC).date();
        let count = i64::from(count);
        let span = match self {
            Self::Week => jiff::Span::new().try_weeks(count),
            Self::Month => jiff::Span::new().try_months(count),
            Self::Year => jiff::Span::new().try_years(count),
        };
        // Beyond the calendar's beginning everything counts.
        let first = match self {
            Self::Week => date,
            _ => date.first_of_month(),
        };
        let Ok(earlier) = span.and_then(|span| first.checked_sub(span)) else {
            return String::new();
        };
        earlier
            .to_zoned(TimeZone::UTC)
            .map(|zoned| self.name(UtcTime::from(zoned.timestamp())))
            .unwrap_or_default()
    }
}

/// A reason for a backup to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The repository has no policy.
    NoPolicy,
    /// There is no good backup at all.
    NoGood,
    /// It is the newest good one.
    Newest,
    /// It is newer than every good one.
    NewerThanGood,
    /// Its time lies ahead.
    Future,
    /// `minimum`.
    Minimum(u32),
    /// `full` as a count.
    FullCount(u32),
    /// It is younger than the age in `full`, `diff` or `incremental`.
    Young(BackupType, Duration),
    /// The newest full one that is older than the age in `full`.
    BeginsWindow(Duration),
    /// The full backup that its chain begins with stays.
    ChainOf(Label),
    /// `weekly`, `monthly` or `yearly`, and the name of the week, month or year.
    FirstOf(Period, String),
    /// Any moment of the age in `wal` is recovered from it or from a later one.
    WalWindow(Duration),
    /// It was marked by hand.
    Mark(String),
    /// Another one that stays has bytes in it.
    LeanedOnBy(Label),
    /// A backup that may be running leans on it.
    RunningLeansOn(Label),
    /// A backup that cannot be read may lean on it.
    UnreadableMayLeanOn(Label),
}

impl Why {
    /// Whether incremental backups without a rule of their own stay with a full one for this.
    pub(super) fn is_of_full(&self) -> bool {
        matches!(
            self,
            Self::Newest
                | Self::Minimum(_)
                | Self::FullCount(_)
                | Self::Young(..)
                | Self::BeginsWindow(_)
                | Self::Future
                | Self::NewerThanGood
        )
    }

    /// Whether it keeps a backup for itself, without the WAL behind it.
    pub(super) fn is_for_itself(&self) -> bool {
        matches!(
            self,
            Self::FirstOf(..) | Self::Mark(_) | Self::LeanedOnBy(_) | Self::UnreadableMayLeanOn(_)
        )
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicy => f.write_str("the repository has no retention"),
            Self::NoGood => f.write_str("there is no good backup"),
            Self::Newest => f.write_str("it is the newest good backup"),
            Self::NewerThanGood => f.write_str("it is newer than every good backup"),
            Self::Future => f.write_str("its time lies in the future: a clock is wrong"),
            Self::Minimum(count) => write!(f, "minimum = {count}"),
            Self::FullCount(count) => write!(f, "full = {count}"),
            Self::Young(kind, age) => {
                let rule = match kind {
                    BackupType::Full => "full",
                    BackupType::Diff => "diff",
                    BackupType::Incr => "incremental",
                };
                write!(f, "{rule} = \"{}\"", display_duration(*age))
            }
            Self::BeginsWindow(age) => write!(
                f,
                "full = \"{}\" begins behind it: it is the newest full one that is older",
                display_duration(*age)
            ),
            Self::ChainOf(full) => write!(f, "{full}, which its chain began with, stays"),
            Self::FirstOf(Period::Week, name) => write!(f, "weekly: the first of {name}"),
            Self::FirstOf(Period::Month, name) => write!(f, "monthly: the first of {name}"),
            Self::FirstOf(Period::Year, name) => write!(f, "yearly: the first of {name}"),
            Self::WalWindow(age) => write!(f, "wal = \"{}\" is recovered from it", display_duration(*age)),
            Self::Mark(reason) => write!(f, "kept by hand: {reason}"),
            Self::LeanedOnBy(label) => write!(f, "{label} leans on it"),
            Self::RunningLeansOn(label) => write!(f, "{label}, which may be running, leans on it"),
            Self::UnreadableMayLeanOn(label) => write!(f, "{label}, which cannot be read, may lean on it"),
        }
    }
}
