//! How all clusters are, by what their jobs have left on this host. Pure.

use std::time::Duration;

use common::check::State;
use common::job::{Outcome, Status};
use common::time::UtcTime;
use common::units::display_duration;

use crate::message::Message;

/// What is known of one cluster.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its name.
    pub cluster: String,
    /// Whether its data directory is here: else it may be one of which only dumps are made.
    pub is_physical: bool,
    /// The status files of its jobs.
    pub jobs: Vec<Status>,
}

/// Jobs that a digest speaks of, in order, and how old their last success may be.
const JOBS: [(&str, u64); 7] = [
    ("base-backup", 26),
    ("dump", 26),
    ("restore-test", 10 * 24),
    ("check-archive", 8),
    ("verify", 8 * 24),
    ("prune", 8 * 24),
    ("sync", 26),
];

/// How a job's last run ended, for a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    /// A check found something that somebody should look at soon; its unit counts that as success.
    Warning,
    Badly,
}

/// A cluster, summed up.
struct Line {
    good: bool,
    warned: bool,
    /// Up to when it can be recovered.
    to: Option<UtcTime>,
    /// There are dumps of it, and nothing else.
    only_dumped: bool,
    text: String,
}

/// The job whose runs may end with a warning.
const CHECK: &str = "check-archive";

/// Sums up.
pub fn digest(known: &[Known], host: &str, now: UtcTime) -> Message {
    let lines: Vec<Line> = known.iter().map(|one| of_cluster(one, now)).collect();
    Message {
        event: "digest".to_owned(),
        title: format!("pgkeep on {host}: {}", title(&lines, now)),
        text: lines
            .into_iter()
            .map(|line| line.text)
            .collect::<Vec<String>>()
            .join("\n"),
        cluster: String::new(),
        job: String::new(),
        host: host.to_owned(),
        time: now.whole_seconds().to_string(),
    }
}

fn title(lines: &[Line], now: UtcTime) -> String {
    let count = match lines.len() {
        1 => "1 cluster".to_owned(),
        count => format!("{count} clusters"),
    };
    let bad = lines.iter().filter(|line| !line.good).count();
    let warned = lines.iter().filter(|line| line.good && line.warned).count();
    let recoverable = lines.iter().filter(|line| !line.only_dumped);
    let newest = recoverable.map(|line| line.to).min().flatten();
    match (bad, warned, newest) {
        (0, 0, Some(to)) => format!("{count}, all recoverable to {} ago", shown(now.since(to))),
        (0, 0, None) => format!("{count}, all is well"),
        (0, warned, Some(to)) => {
            format!(
                "{count}, all recoverable to {} ago, {warned} with warnings",
                shown(now.since(to))
            )
        }
        (0, warned, None) => format!("{count}, {warned} with warnings"),
        (bad, ..) => format!("{count}, {bad} not well"),
    }
}

fn of_cluster(known: &Known, now: UtcTime) -> Line {
    let job = |name: &str| known.jobs.iter().find(|status| status.tool == name);
    let mut parts = Vec::new();
    // WAL that is archived can be recovered, from the newest backup on.
    let archived = ["archive-push", "check-archive"]
        .iter()
        .filter_map(|name| job(name)?.last_success)
        .max();
    let backed_up = job("base-backup").and_then(|status| status.last_success);
    let to = backed_up.and_then(|backup| archived.map(|archived| archived.max(backup)));
    let only_dumped = !known.is_physical && job("base-backup").is_none() && job("dump").is_some();
    match to {
        Some(to) => parts.push(format!("recoverable to {} ago", shown(now.since(to)))),
        None if backed_up.is_some() => parts.push("nothing is known of WAL here".to_owned()),
        None if only_dumped => {}
        None => parts.push("NO BACKUP was made from this host".to_owned()),
    }
    let mut good = backed_up.is_some() || only_dumped;
    let mut warned = false;
    for (name, hours) in JOBS {
        let Some(status) = job(name) else { continue };
        let (ended, late) = (ended(status), is_late(status, hours, now));
        good &= ended != Ended::Badly && !late;
        warned |= ended == Ended::Warning;
        parts.push(of_job(status, ended, late, now));
    }
    Line {
        good,
        warned,
        to,
        only_dumped,
        text: format!("{}: {}", known.cluster, parts.join("; ")),
    }
}

fn ended(status: &Status) -> Ended {
    let state = status.fields.get("state").and_then(|state| state.as_u64());
    match status.result {
        Outcome::Ok | Outcome::Skipped => Ended::Well,
        Outcome::Failed if status.tool == CHECK && state == Some(State::Warning.code().into()) => Ended::Warning,
        _ => Ended::Badly,
    }
}

/// Whether the last success is too old. A check that ends with a warning has looked.
fn is_late(status: &Status, hours: u64, now: UtcTime) -> bool {
    let last = match ended(status) {
        Ended::Warning => Some(status.finished),
        Ended::Well | Ended::Badly => status.last_success,
    };
    last.is_none_or(|time| now.since(time) > Duration::from_secs(hours * 3600))
}

fn of_job(status: &Status, ended: Ended, late: bool, now: UtcTime) -> String {
    let name = &status.tool;
    let ago = |time: UtcTime| format!("{} ago", shown(now.since(time)));
    let good = status.last_success.map_or_else(|| "never".to_owned(), ago);
    let why = status.message.as_deref().unwrap_or("no reason given");
    match (ended, late) {
        (Ended::Badly, _) => format!("{name} FAILED ({why}), last good {good}"),
        (Ended::Warning, true) => format!("{name} OVERDUE, last a warning ({why}) {}", ago(status.finished)),
        (Ended::Warning, false) => format!("{name} warning ({why}), last good {good}"),
        (Ended::Well, true) => format!("{name} OVERDUE, last good {good}"),
        (Ended::Well, false) => format!("{name} {good}"),
    }
}

fn shown(span: Duration) -> String {
    let seconds = span.as_secs();
    // Minutes are enough for what is older than one.
    display_duration(Duration::from_secs(if seconds >= 60 {
        seconds / 60 * 60
    } else {
        seconds
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn now() -> UtcTime {
        UtcTime::parse_compact("20261120T120000Z").unwrap()
    }

    fn status(tool: &str, result: &str, minutes: u64) -> Status {
        let time = now().minus(Duration::from_secs(minutes * 60));
        serde_json::from_value(
            serde_json::json!({"tool":tool,"cluster":"c","host":"h","user":"u","pid":1,"started":time,"finished":now(),
            "result":result,"message":"why","exit_code":0,"last_success":time}),
        )
        .unwrap()
    }

    fn known(cluster: &str, jobs: Vec<Status>) -> Known {
        Known {
            cluster: cluster.to_owned(),
            is_physical: true,
            jobs,
        }
    }

    #[test]
    fn the_worst_cluster_decides_to_when_all_can_be_recovered() {
        let all = [
            known(
                "a",
                vec![status("base-backup", "ok", 600), status("archive-push", "ok", 2)],
            ),
            known(
                "b",
                vec![
                    status("base-backup", "skipped", 300),
                    status("archive-push", "ok", 7),
                    status("restore-test", "ok", 1440),
                ],
            ),
        ];
        let message = digest(&all, "h", now());
        assert_eq!(message.title, "pgkeep on h: 2 clusters, all recoverable to 7m ago");
        assert_eq!(
            message.text,
            "a: recoverable to 2m ago; base-backup 10h ago\nb: recoverable to 7m ago; base-backup 5h ago; restore-test 1d ago"
        );
    }

    #[test]
    fn what_is_not_well_is_said() {
        let all = [
            known(
                "a",
                vec![status("base-backup", "failed", 600), status("archive-push", "ok", 2)],
            ),
            known("b", Vec::new()),
            known(
                "c",
                vec![status("base-backup", "ok", 27 * 60), status("archive-push", "ok", 1)],
            ),
        ];
        let message = digest(&all, "h", now());
        assert_eq!(message.title, "pgkeep on h: 3 clusters, 3 not well");
        for words in [
            "a: recoverable to 2m ago; base-backup FAILED (why), last good 10h ago",
            "b: NO BACKUP",
            "c: recoverable to 1m ago; base-backup OVERDUE",
        ] {
            assert!(message.text.contains(words), "{}", message.text);
        }
    }

    #[test]
    fn a_warning_of_the_check_is_no_failure_and_is_said() {
        let warning = |minutes: u64| Status {
            finished: now().minus(Duration::from_secs(minutes * 60)),
            fields: [("state".to_owned(), 1.into())].into(),
            ..status("check-archive", "failed", 60 * 24)
        };
        let backup = status("base-backup", "ok", 600);
        let pushed = status("archive-push", "ok", 2);
        let of = |check: Status| digest(&[known("a", vec![backup.clone(), pushed.clone(), check])], "h", now());
        let message = of(warning(60));
        assert_eq!(
            message.title,
            "pgkeep on h: 1 cluster, all recoverable to 2m ago, 1 with warnings"
        );
        assert!(
            message
                .text
                .ends_with("; check-archive warning (why), last good 1d ago"),
            "{}",
            message.text
        );
        let late = of(warning(9 * 60));
        assert_eq!(late.title, "pgkeep on h: 1 cluster, 1 not well");
        assert!(
            late.text.contains("check-archive OVERDUE, last a warning (why) 9h ago"),
            "{}",
            late.text
        );
        let critical = Status {
            fields: [("state".to_owned(), 2.into())].into(),
            ..warning(60)
        };
        let critical = of(critical);
        assert_eq!(critical.title, "pgkeep on h: 1 cluster, 1 not well");
        assert!(
            critical.text.contains("check-archive FAILED (why)"),
            "{}",
            critical.text
        );
    }

    #[test]
    fn dumps_are_spoken_of_and_a_cluster_that_is_only_dumped_lacks_no_backup() {
        let dumped = |is_physical: bool, dump: Status| Known {
            is_physical,
            ..known("d", vec![dump])
        };
        let of = |known: Known| digest(&[known], "h", now());
        let good = of(dumped(false, status("dump", "ok", 300)));
        assert_eq!(
            (good.title.as_str(), good.text.as_str()),
            ("pgkeep on h: 1 cluster, all is well", "d: dump 5h ago")
        );
        let failed = of(dumped(false, status("dump", "failed", 300)));
        assert_eq!(failed.title, "pgkeep on h: 1 cluster, 1 not well");
        assert_eq!(failed.text, "d: dump FAILED (why), last good 5h ago");
        let old = of(dumped(false, status("dump", "ok", 27 * 60)));
        assert!(old.text.contains("dump OVERDUE"), "{}", old.text);
        let physical = of(dumped(true, status("dump", "ok", 300)));
        assert_eq!(
            physical.text, "d: NO BACKUP was made from this host; dump 5h ago",
            "dumps take the place of no backup where there is a data directory"
        );
        let both = [
            dumped(false, status("dump", "ok", 300)),
            known(
                "a",
                vec![status("base-backup", "ok", 600), status("archive-push", "ok", 2)],
            ),
        ];
        assert_eq!(
            digest(&both, "h", now()).title,
            "pgkeep on h: 2 clusters, all recoverable to 2m ago"
        );
    }
}
