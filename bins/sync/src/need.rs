//! Whether there is anything to do, for a timer that comes every minute. Pure but for [`missed`].

use std::path::Path;
use std::time::Duration;

use common::job::{Outcome, Status};
use common::time::UtcTime;
use common::units::display_duration;

/// A whole pass looks at everything so long after the last good one.
const PASS: Duration = Duration::from_secs(24 * 3600);

/// A run that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(600);

/// The field of the status file that names the repositories which a run was to bring level.
pub const TARGETS: &str = "targets";

/// Whether a run is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// It is, and why.
    Run(String),
    /// It is not, and why.
    Nothing(String),
}

/// Decides by what the last run left, by whether archive-push noted that a repository missed WAL, and by the repositories that a
/// run would bring level. What lies in the future was written by a clock that was wrong, and counts for nothing.
pub fn judge(last: Option<&Status>, missed: bool, targets: &[String], now: UtcTime) -> Need {
    if missed {
        return Need::Run("a repository missed WAL".to_owned());
    }
    let Some(last) = last else {
        return Need::Run("no run has left a status here".to_owned());
    };
    let young = |time: UtcTime, limit: Duration| Some(now.since(time)).filter(|age| time <= now && *age < limit);
    if !matches!(last.result, Outcome::Ok | Outcome::Skipped) {
        return match young(last.finished, AGAIN) {
            Some(age) => Need::Nothing(format!(
                "the last run failed {} ago ({}), and is tried again after {}",
                shown(age),
                last.message.as_deref().unwrap_or("no reason given"),
                shown(AGAIN)
            )),
            None => Need::Run("the last run failed".to_owned()),
        };
    }
    if let Some(new) = targets.iter().find(|name| !was_level(last, name)) {
        return Need::Run(format!("no run has brought repository \"{new}\" level yet"));
    }
    match last.last_success.and_then(|time| young(time, PASS)) {
        Some(age) => Need::Nothing(format!(
            "the last run succeeded {} ago, no repository has missed WAL since, and everything is looked at once in {}",
            shown(age),
            shown(PASS)
        )),
        None => Need::Run("the last success is too old".to_owned()),
    }
}

/// Whether the last good run was to bring this repository level.
fn was_level(last: &Status, name: &str) -> bool {
    let names = last.last_success_fields.get(TARGETS).and_then(|names| names.as_array());
    names.is_some_and(|names| names.iter().any(|other| other.as_str() == Some(name)))
}

fn shown(span: Duration) -> String {
    display_duration(Duration::from_secs(span.as_secs()))
}

/// Whether archive-push noted, below the state of a cluster, that a repository missed WAL.
pub fn missed(state: &Path) -> bool {
    let below = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    below(&state.join("missed")).any(|repository| below(&repository.path()).next().is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn now() -> UtcTime {
        UtcTime::parse_compact("20261120T120000Z").unwrap()
    }

    /// A run that ended so many minutes ago, with its last success.
    fn last(result: &str, minutes: u64, success: u64) -> Status {
        let ago = |minutes: u64| now().minus(Duration::from_secs(60 * minutes));
        serde_json::from_value(
            serde_json::json!({"tool":"sync","cluster":"c","host":"h","user":"u","pid":1,"started":ago(minutes),
            "finished":ago(minutes),"result":result,"message":"why","exit_code":0,"last_success":ago(success),
            "last_success_fields":{"targets":["b"]}}),
        )
        .unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn runs(last: Option<&Status>, missed: bool, targets: &[&str]) -> bool {
        matches!(judge(last, missed, &names(targets), now()), Need::Run(_))
    }

    #[test]
    fn a_failure_is_tried_again_after_ten_minutes_however_young_it_and_the_last_success_are() {
        for result in ["failed", "temporary", "misconfigured", "interrupted"] {
            assert!(!runs(Some(&last(result, 9, 60)), false, &["b"]), "{result}");
            assert!(runs(Some(&last(result, 10, 60)), false, &["b"]), "{result}");
            assert!(
                !runs(Some(&last(result, 9, 3000)), false, &["b", "new"]),
                "{result}: not each minute"
            );
        }
    }

    #[test]
    fn after_a_success_there_is_nothing_to_do_for_a_day() {
        assert!(!runs(Some(&last("ok", 1439, 1439)), false, &["b"]));
        assert!(runs(Some(&last("ok", 1440, 1440)), false, &["b"]));
        assert!(runs(None, false, &["b"]));
    }

    #[test]
    fn missed_wal_and_a_new_repository_do_not_wait() {
        let good = last("ok", 1, 1);
        assert!(runs(Some(&good), true, &["b"]));
        assert!(runs(Some(&last("failed", 1, 60)), true, &["b"]));
        assert_eq!(
            judge(Some(&good), false, &names(&["b", "c"]), now()),
            Need::Run("no run has brought repository \"c\" level yet".to_owned())
        );
        let older = Status {
            last_success_fields: std::collections::BTreeMap::new(),
            ..good
        };
        assert!(runs(Some(&older), false, &["b"]), "it does not say what it did");
    }

    #[test]
    fn a_clock_that_was_wrong_holds_nothing_up() {
        let tomorrow = now().plus(Duration::from_secs(86_400));
        for result in ["ok", "failed"] {
            let mut ahead = last(result, 0, 0);
            (ahead.finished, ahead.last_success) = (tomorrow, Some(tomorrow));
            assert!(runs(Some(&ahead), false, &["b"]), "{result}");
        }
    }

    #[test]
    fn why_there_is_nothing_to_do_is_said() {
        let said = |last: Status| match judge(Some(&last), false, &names(&["b"]), now()) {
            Need::Nothing(why) => why,
            Need::Run(why) => format!("it runs: {why}"),
        };
        assert_eq!(
            said(last("failed", 3, 60)),
            "the last run failed 3m ago (why), and is tried again after 10m"
        );
        assert!(said(last("ok", 60, 60)).starts_with("the last run succeeded 1h ago, no repository has missed WAL"));
    }

    #[test]
    fn notes_of_missed_wal_are_found_and_empty_directories_are_none() {
        let state = tempfile::tempdir().unwrap();
        assert!(!missed(state.path()));
        let repository = state.path().join("missed/nas");
        std::fs::create_dir_all(&repository).unwrap();
        assert!(!missed(state.path()));
        std::fs::write(repository.join("000000010000000000000007"), "").unwrap();
        assert!(missed(state.path()));
    }
}
