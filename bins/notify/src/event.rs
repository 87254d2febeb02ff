//! What is worth telling, given what was told before. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use common::config::{Notify, Topic};
use common::job::{Outcome, Status};
use common::time::UtcTime;
use serde::{Deserialize, Serialize};

/// Another failure of the same job is told after this at the earliest.
const PAUSE: Duration = Duration::from_secs(600);

/// What happened to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It failed.
    Failure,
    /// It succeeds again, after failures that were told.
    Recovery,
    /// It succeeded.
    Success,
}

impl Event {
    /// What somebody subscribes to.
    pub fn topic(self) -> Topic {
        match self {
            Self::Failure => Topic::Failure,
            Self::Recovery => Topic::Recovery,
            Self::Success => Topic::Success,
        }
    }
}

/// What one receiver was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// By job: the failure that stands.
    #[serde(default)]
    pub failures: BTreeMap<String, Failure>,
    /// When messages were sent, in the last hour.
    #[serde(default)]
    pub sent: Vec<UtcTime>,
    /// How many were held back since, for the limit.
    #[serde(default)]
    pub held_back: u64,
}

impl Told {
    /// A failure of this job that did not reach its receiver is told with the next run.
    pub fn forget(&mut self, job: &str) {
        if let Some(failure) = self.failures.get_mut(job) {
            failure.told = failure.told.minus(FOREVER);
        }
    }
}

/// Longer than any repetition waits.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A failure that was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it said.
    pub message: String,
    /// Since when it stands: the end of the first run that failed.
    pub since: UtcTime,
    /// When it was told last.
    pub told: UtcTime,
}

/// Whether a run ended badly; nothing where it ended neither well nor badly.
fn is_bad(outcome: Outcome) -> Option<bool> {
    match outcome {
        Outcome::Ok => Some(false),
        Outcome::Skipped => None,
        Outcome::Failed | Outcome::Temporary | Outcome::Interrupted | Outcome::Misconfigured => Some(true),
    }
}

/// Decides what this receiver is told of a job's last run, and since when; what it was told is brought up to date.
pub fn decide(receiver: &Notify, told: &mut Told, status: &Status, now: UtcTime) -> Option<(Event, Option<UtcTime>)> {
    let wants = |event: Event| receiver.on.contains(&event.topic());
    let before = told.failures.get(&status.tool).cloned();
    match (is_bad(status.result)?, before) {
        (true, before) => {
            let message = status.message.clone().unwrap_or_default();
            let since = before.as_ref().map_or(status.finished, |before| before.since);
            let due = before.as_ref().is_none_or(|before| {
                let age = now.since(before.told);
                age >= receiver.repeat || (before.message != message && age >= PAUSE)
            });
            if !due || !wants(Event::Failure) {
                // A failure that nobody wants to hear of still has an end.
                told.failures.entry(status.tool.clone()).or_insert(Failure {
                    message,
                    since,
                    told: now,
                });
                return None;
            }
            told.failures.insert(
                status.tool.clone(),
                Failure {
                    message,
                    since,
                    told: now,
                },
            );
            Some((Event::Failure, Some(since)))
        }
        (false, Some(before)) => {
            told.failures.remove(&status.tool);
            let event = if wants(Event::Recovery) {
                Event::Recovery
            } else {
                Event::Success
            };
            wants(event).then_some((event, Some(before.since)))
        }
        (false, None) => wants(Event::Success).then_some((Event::Success, None)),
    }
}

/// Whether one more message may go out now; says how many were held back before it.
pub fn may_send(receiver: &Notify, told: &mut Told, now: UtcTime) -> Option<u64> {
    told.sent.retain(|time| now.since(*time) < Duration::from_secs(3600));
    if told.sent.len() >= receiver.limit {
        told.held_back += 1;
        return None;
    }
    told.sent.push(now);
    Some(std::mem::take(&mut told.held_back))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::config::{Channel, Secret};

    fn receiver(on: &[Topic]) -> Notify {
        Notify {
            name: "ops".to_owned(),
            channel: Channel::Slack(Secret::Here("http://x".to_owned())),
            on: on.to_vec(),
            jobs: None,
            clusters: None,
            repeat: Duration::from_secs(86_400),
            limit: 3,
        }
    }

    fn at(minutes: u64) -> UtcTime {
        UtcTime::parse_compact("20261120T000000Z")
            .unwrap()
            .plus(Duration::from_secs(60 * minutes))
    }

    fn status(result: &str, message: &str, minutes: u64) -> Status {
        let time = at(minutes);
        serde_json::from_value(
            serde_json::json!({"tool":"base-backup","cluster":"main","host":"h","user":"u","pid":1,"started":time,
            "finished":time,"result":result,"message":message,"exit_code":1}),
        )
        .unwrap()
    }

    #[test]
    fn a_failure_is_told_once_a_day_and_a_recovery_once() {
        let receiver = receiver(&[Topic::Failure, Topic::Recovery]);
        let mut told = Told::default();
        let mut run = |result: &str, message: &str, minutes: u64| {
            decide(&receiver, &mut told, &status(result, message, minutes), at(minutes))
        };
        assert_eq!(run("ok", "", 0), None);
        assert_eq!(run("failed", "disk", 1), Some((Event::Failure, Some(at(1)))));
        assert_eq!(run("failed", "disk", 30), None, "the same");
        assert_eq!(run("skipped", "replica", 31), None, "neither well nor badly");
        assert_eq!(
            run("temporary", "network", 32),
            Some((Event::Failure, Some(at(1)))),
            "another reason"
        );
        assert_eq!(run("failed", "disk", 33), None, "too soon for yet another");
        assert_eq!(
            run("temporary", "network", 32 + 1440),
            Some((Event::Failure, Some(at(1)))),
            "a day later"
        );
        assert_eq!(run("ok", "", 1500), Some((Event::Recovery, Some(at(1)))));
        assert_eq!(run("ok", "", 1501), None);
        assert_eq!(run("failed", "disk", 1502), Some((Event::Failure, Some(at(1502)))));
    }

    #[test]
    fn a_failure_that_reached_nobody_is_told_with_the_next_run() {
        let receiver = receiver(&[Topic::Failure]);
        let mut told = Told::default();
        let failed =
            |told: &mut Told, minutes| decide(&receiver, told, &status("failed", "disk", minutes), at(minutes));
        assert!(failed(&mut told, 1).is_some());
        told.forget("base-backup");
        assert_eq!(failed(&mut told, 2), Some((Event::Failure, Some(at(1)))));
        assert_eq!(failed(&mut told, 3), None);
    }

    #[test]
    fn each_is_told_what_it_wants_to_hear() {
        let all = [("failed", 0), ("ok", 10), ("ok", 20)];
        for (on, heard) in [
            (&[Topic::Success][..], &[Event::Success, Event::Success][..]),
            (&[Topic::Failure], &[Event::Failure]),
            (&[Topic::Recovery], &[Event::Recovery]),
            (&[Topic::Recovery, Topic::Success], &[Event::Recovery, Event::Success]),
            (&[Topic::Digest], &[]),
        ] {
            let mut told = Told::default();
            let receiver = receiver(on);
            let run = |(result, minutes): &(&str, u64)| {
                decide(&receiver, &mut told, &status(result, "x", *minutes), at(*minutes))
            };
            let events: Vec<Event> = all.iter().filter_map(run).map(|(event, _)| event).collect();
            assert_eq!(events, heard, "{on:?}");
        }
    }

    #[test]
    fn beyond_the_limit_messages_are_held_back_and_counted() {
        let receiver = receiver(&[Topic::Failure]);
        let mut told = Told::default();
        let mut send = |minutes| may_send(&receiver, &mut told, at(minutes));
        assert_eq!([send(0), send(1), send(2)], [Some(0); 3]);
        assert_eq!([send(3), send(59)], [None; 2]);
        assert_eq!(send(60), Some(2));
    }
}
