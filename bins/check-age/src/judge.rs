//! What ages mean. Pure.

use std::time::Duration;

use common::check::{Line, Perf, State, above};
use common::time::UtcTime;
use common::units::{display_duration, display_seconds};
use serde::{Deserialize, Serialize};

/// A clock that is so much ahead is wrong.
const TOLERANCE: Duration = Duration::from_secs(600);

/// What was found in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The repository, or where else it was looked.
    pub name: String,
    /// Whether work depends on it.
    pub required: bool,
    /// What is there.
    pub newest: Newest,
    /// When it was looked, where that was not just now: ages are those of then.
    #[serde(skip)]
    pub seen: Option<UtcTime>,
}

/// The newest one of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Newest {
    /// Made then, and its name.
    Made(UtcTime, String),
    /// One came after the newest good one, and failed.
    Failed(Option<UtcTime>, String),
    /// There is none.
    Never,
    /// Nobody could find out.
    Silent(String),
    /// This user may not look.
    Denied(String),
}

/// Judges each place.
pub fn judge(what: &str, places: &[Place], now: UtcTime, (warning, critical): (Duration, Duration)) -> Line {
    let mut line = Line::default();
    for place in places {
        let then = place.seen.unwrap_or(now);
        let (state, mut words) = one(what, place, then, (warning, critical));
        if place.seen.is_some() {
            words += &format!(" (seen {} ago)", display_seconds(now.since(then)));
        }
        line.add(state.unless_optional(place.required), words);
        if let Newest::Made(time, _) | Newest::Failed(Some(time), _) = &place.newest {
            let limits = (warning.as_secs_f64(), critical.as_secs_f64());
            line.perf(Perf::seconds(&format!("age {}", place.name), then.since(*time)).limits(limits.0, limits.1));
        }
    }
    line
}

fn one(what: &str, place: &Place, now: UtcTime, limits: (Duration, Duration)) -> (State, String) {
    let name = &place.name;
    match &place.newest {
        Newest::Silent(why) | Newest::Denied(why) => (State::Unknown, format!("{name} cannot be read: {why}")),
        Newest::Never => (State::Critical, format!("{name} has no {what}")),
        Newest::Failed(time, why) => {
            let before = time.map_or_else(
                || "none ever passed".to_owned(),
                |time| format!("the last one that passed is {} old", display_duration(now.since(time))),
            );
            (
                State::Critical,
                format!("the newest {what} in {name} failed: {why}; {before}"),
            )
        }
        Newest::Made(time, label) if time.since(now) > TOLERANCE => {
            let ahead = display_duration(time.since(now));
            (
                State::Warning,
                format!("the newest {what} in {name}, {label}, comes from the future by {ahead}: a clock is wrong"),
            )
        }
        Newest::Made(time, label) => {
            let age = now.since(*time);
            let shown = display_seconds(age);
            let words = format!("the newest {what} in {name}, {label}, is {shown} old");
            (above(age, limits.0, limits.1), words)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> UtcTime {
        UtcTime::parse_compact("20261120T120000Z").unwrap()
    }

    fn place(name: &str, required: bool, newest: Newest) -> Place {
        Place {
            name: name.to_owned(),
            required,
            newest,
            seen: None,
        }
    }

    fn ago(seconds: u64) -> Newest {
        Newest::Made(now().minus(Duration::from_secs(seconds)), "L".to_owned())
    }

    #[test]
    fn every_state_by_table() {
        let limits = (24 * HOUR, 26 * HOUR);
        let ahead = |seconds| Newest::Made(now().plus(Duration::from_secs(seconds)), "L".to_owned());
        for (newest, required, code, words) in [
            (
                ago(60),
                true,
                0,
                "OK - the newest backup in a, L, is 1m old | 'age a'=60s;86400;93600;0\n",
            ),
            (ago(86_400), true, 0, "OK - "),
            (ago(86_401), true, 1, "WARNING - the newest backup in a, L, is 1d old"),
            (ago(93_600), true, 1, "WARNING - "),
            (ago(93_601), true, 2, "CRITICAL - "),
            (ago(93_601), false, 1, "WARNING - "),
            (ahead(600), true, 0, "OK - "),
            (
                ahead(601),
                true,
                1,
                "WARNING - the newest backup in a, L, comes from the future",
            ),
            (Newest::Never, true, 2, "CRITICAL - a has no backup\n"),
            (Newest::Never, false, 1, "WARNING - a has no backup\n"),
            (
                Newest::Silent("x".to_owned()),
                true,
                3,
                "UNKNOWN - a cannot be read: x\n",
            ),
            (
                Newest::Denied("x".to_owned()),
                true,
                3,
                "UNKNOWN - a cannot be read: x\n",
            ),
            (
                Newest::Silent("x".to_owned()),
                false,
                1,
                "WARNING - a cannot be read: x\n",
            ),
            (
                Newest::Failed(None, "x".to_owned()),
                true,
                2,
                "CRITICAL - the newest backup in a failed: x; none ever passed",
            ),
        ] {
            let line = judge("backup", &[place("a", required, newest.clone())], now(), limits);
            assert_eq!(line.state().code(), code, "{newest:?}");
            assert!(line.text().starts_with(words), "{newest:?}: {}", line.text());
        }
    }

    #[test]
    fn an_age_is_that_of_the_moment_when_it_was_seen() {
        let limits = (24 * HOUR, 26 * HOUR);
        let mut seen = place("a", true, ago(90_000));
        assert_eq!(
            judge("backup", std::slice::from_ref(&seen), now(), limits)
                .state()
                .code(),
            1
        );
        seen.seen = Some(now().minus(2 * HOUR));
        let text = judge("backup", &[seen], now(), limits).text();
        assert!(
            text.starts_with("OK - the newest backup in a, L, is 23h old (seen 2h ago) | 'age a'=82800s"),
            "{text}"
        );
    }

    #[test]
    fn the_worst_place_decides() {
        let limits = (24 * HOUR, 26 * HOUR);
        let places = [
            place("a", true, ago(60)),
            place("b", true, ago(100_000)),
            place("c", false, Newest::Never),
        ];
        let text = judge("backup", &places, now(), limits).text();
        assert!(
            text.starts_with("CRITICAL - the newest backup in b, L, is 1d3h old; c has no backup | 'age a'=60s"),
            "{text}"
        );
        assert!(text.contains("'age b'=100000s;86400;93600;0"));
    }
}
