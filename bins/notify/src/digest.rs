//! How all clusters are, by what their jobs have left on this host. Pure.

use std::time::Duration;

use common::job::{Outcome, Status};
use common::time::UtcTime;
use common::units::display_duration;

use crate::message::Message;

/// What is known of one cluster.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its name.
    pub cluster: String,
    /// The status files of its jobs.
    pub jobs: Vec<Status>,
}

/// Jobs that a digest speaks of, in order, and how old their last success may be.
const JOBS: [(&str, u64); 6] = [
    ("base-backup", 26),
    ("restore-test", 10 * 24),
    ("check-archive", 8),
    ("verify", 8 * 24),
    ("prune", 8 * 24),
    ("sync", 26),
];

/// Sums up.
pub fn digest(known: &[Known], host: &str, now: UtcTime) -> Message {
    let lines: Vec<(bool, Option<UtcTime>, String)> = known.iter().map(|one| of_cluster(one, now)).collect();
    let bad = lines.iter().filter(|(good, ..)| !good).count();
    let count = match known.len() {
        1 => "1 cluster".to_owned(),
        count => format!("{count} clusters"),
    };
    let newest = lines.iter().map(|(_, to, _)| *to).min().flatten();
    let title = match (bad, newest) {
        (0, Some(to)) => format!("{count}, all recoverable to {} ago", shown(now.since(to))),
        (0, None) => format!("{count}, all is well"),
        (bad, _) => format!("{count}, {bad} not well"),
    };
    let text: Vec<String> = lines.into_iter().map(|(_, _, text)| text).collect();
    Message {
        event: "digest".to_owned(),
        title: format!("pgkeep on {host}: {title}"),
        text: text.join("\n"),
        cluster: String::new(),
        job: String::new(),
        host: host.to_owned(),
        time: now.whole_seconds().to_string(),
    }
}

/// Whether it is well, up to when it can be recovered, and a line.
fn of_cluster(known: &Known, now: UtcTime) -> (bool, Option<UtcTime>, String) {
    let job = |name: &str| known.jobs.iter().find(|status| status.tool == name);
    let mut good = true;
    let mut parts = Vec::new();
    // WAL that is archived can be recovered, from the newest backup on.
    let archived = ["archive-push", "check-archive"]
        .iter()
        .filter_map(|name| job(name)?.last_success)
        .max();
    let backed_up = job("base-backup").and_then(|status| status.last_success);
    let to = backed_up.and_then(|backup| archived.map(|archived| archived.max(backup)));
    match to {
        Some(to) => parts.push(format!("recoverable to {} ago", shown(now.since(to)))),
        None if backed_up.is_some() => parts.push("nothing is known of WAL here".to_owned()),
        None => {
            good = false;
            parts.push("NO BACKUP was made from this host".to_owned());
        }
    }
    for (name, hours) in JOBS {
        let Some(status) = job(name) else { continue };
        let failed = !matches!(status.result, Outcome::Ok | Outcome::Skipped);
        let age = status.last_success.map(|time| now.since(time));
        let late = age.is_none_or(|age| age > Duration::from_secs(hours * 3600));
        good &= !failed && !late;
        let age = age.map_or_else(|| "never".to_owned(), |age| format!("{} ago", shown(age)));
        parts.push(match (failed, late) {
            (true, _) => format!(
                "{name} FAILED ({}), last good {age}",
                status.message.as_deref().unwrap_or("no reason given")
            ),
            (false, true) => format!("{name} OVERDUE, last good {age}"),
            (false, false) => format!("{name} {age}"),
        });
    }
    (good, to, format!("{}: {}", known.cluster, parts.join("; ")))
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
}
