//! The period of a report. Pure.

use common::error::{Error, Kind, Result};
use common::time::{self, UtcTime};
use serde::Serialize;

/// From a moment to before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Period {
    /// This moment counts.
    pub from: UtcTime,
    /// This one does not.
    pub to: UtcTime,
}

impl Period {
    /// What `--report FROM TO` says; nothing without words.
    ///
    /// # Errors
    /// `Config` if one is no time, or there is nothing between them.
    pub fn parse(words: &[String], now: UtcTime) -> Result<Option<Self>> {
        let [from, to] = words else { return Ok(None) };
        let period = Self {
            from: moment("FROM", from, now)?,
            to: moment("TO", to, now)?,
        };
        match period.from < period.to {
            true => Ok(Some(period)),
            false => Err(
                Error::new(Kind::Config, format!("there is nothing between {from} and {to}"))
                    .hint("the first is the beginning, the second the end, which does not count"),
            ),
        }
    }

    /// Whether this moment is in it.
    pub fn holds(self, time: UtcTime) -> bool {
        self.from <= time && time < self.to
    }
}

/// A date is its beginning in UTC.
fn moment(name: &str, text: &str, now: UtcTime) -> Result<UtcTime> {
    let is_date = text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    let whole = match is_date {
        true => format!("{text}T00:00:00Z"),
        false => text.to_owned(),
    };
    time::parse_target(&whole, now).map_err(|error| {
        let message = format!("{name} of --report is no date and no time: \"{text}\"");
        let hint = error.nearest_hint().unwrap_or_default().to_owned();
        let refused = Error::new(Kind::Config, message).because(error);
        match is_date {
            true => refused.hint("write a date of the calendar, such as 2026-11-01, or a time with its zone"),
            false => refused.hint(hint),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stats::tests::day;

    fn of(from: &str, to: &str) -> Result<Option<Period>> {
        Period::parse(&[from.to_owned(), to.to_owned()], day(0))
    }

    #[test]
    fn a_period_has_a_beginning_which_counts_and_an_end_which_does_not() {
        let month = of("2026-11-01", "2026-12-01").unwrap().unwrap();
        assert_eq!(month.from.to_string(), "2026-11-01T00:00:00Z");
        assert_eq!(month.to.to_string(), "2026-12-01T00:00:00Z");
        assert!(month.holds(month.from) && !month.holds(month.to));
        let hour = of("2026-11-01T01:00:00+01:00", "2026-11-01T01:00:00Z")
            .unwrap()
            .unwrap();
        assert_eq!(hour.from, month.from);
        assert_eq!(Period::parse(&[], day(0)).unwrap(), None);
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        for (from, to, named) in [
            ("2026-12-01", "2026-11-01", "nothing between 2026-12-01 and 2026-11-01"),
            ("2026-11-01", "2026-11-01", "nothing between"),
            (
                "2026-11-31",
                "2026-12-31",
                "FROM of --report is no date and no time: \"2026-11-31\"",
            ),
            ("----------", "2026-12-31", "\"----------\""),
            ("soon", "2026-11-01", "FROM of --report"),
            ("2026-11-01", "", "TO of --report"),
            ("2026-11-01", "2026-12-01T10:00:00", "TO of --report"),
        ] {
            let error = of(from, to).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{from} {to}");
            assert!(error.to_string().contains(named), "{error}");
            assert!(error.nearest_hint().is_some_and(|hint| !hint.is_empty()), "{from} {to}");
        }
    }
}
