//! What a message says, and its form for each channel. Pure.

use common::job::Status;
use common::time::UtcTime;
use common::units::{ByteSize, display_seconds};
use serde::Serialize;

use crate::event::Event;

/// A message. Its fields are those that a template may name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `failure`, `recovery`, `success`, `digest` or `test`.
    pub event: String,
    /// One line.
    pub title: String,
    /// All of it, in lines.
    pub text: String,
    /// The cluster; empty for what is about several.
    pub cluster: String,
    /// The job; empty likewise.
    pub job: String,
    /// The host.
    pub host: String,
    /// When the run ended, in RFC 3339.
    pub time: String,
}

/// What to do where the job itself did not say.
fn advice(job: &str) -> &'static str {
    match job {
        "base-backup" => "the journal of pgkeep-base-backup, pgkeep-init --check, then run it again",
        "archive-push" | "check-archive" => "pgkeep-check-archive says what is wrong; pg_wal grows until it is mended",
        "restore-test" => "docs/restore-test.md says what each finding means; pgkeep-verify what else is wrong",
        "verify" => "pgkeep-verify names the damage, what can still be restored, and how to mend it",
        "prune" => "pgkeep-prune --dry-run; repositories grow until it is mended",
        "sync" => "pgkeep-sync; the second repository falls behind until it is mended",
        "dump" => "the journal of pgkeep-dump, then run it again",
        _ => "the journal of the job on that host",
    }
}

/// Tells of a job.
pub fn of_job(event: Event, since: Option<UtcTime>, status: &Status, held_back: u64) -> Message {
    let (job, cluster, host) = (&status.tool, &status.cluster, &status.host);
    let (name, title) = match event {
        Event::Failure => ("failure", format!("{job} of {cluster} failed on {host}")),
        Event::Recovery => ("recovery", format!("{job} of {cluster} works again on {host}")),
        Event::Success => ("success", format!("{job} of {cluster} succeeded on {host}")),
    };
    let mut lines = Vec::new();
    match event {
        Event::Failure => {
            lines.push(
                status
                    .message
                    .clone()
                    .unwrap_or_else(|| "it did not say why".to_owned()),
            );
            if let Some(since) = since.filter(|since| *since != status.finished) {
                lines.push(format!("since: {}", since.whole_seconds()));
            }
            let last = status
                .last_success
                .map_or_else(|| "never".to_owned(), |time| time.whole_seconds().to_string());
            lines.push(format!("last success: {last}"));
            let hint = status.fields.get("hint").and_then(|hint| hint.as_str());
            lines.push(format!("what to do: {}", hint.unwrap_or_else(|| advice(job))));
        }
        Event::Recovery | Event::Success => {
            if let Some(since) = since {
                let span = status.finished.since(since);
                lines.push(format!(
                    "after failing for {}, since {}",
                    display_seconds(span),
                    since.whole_seconds()
                ));
            }
            lines.extend(facts(status));
        }
    }
    if held_back > 0 {
        lines.push(format!("{held_back} messages before this one were held back"));
    }
    Message {
        event: name.to_owned(),
        title,
        text: lines.join("\n"),
        cluster: cluster.clone(),
        job: job.clone(),
        host: host.clone(),
        time: status.finished.whole_seconds().to_string(),
    }
}

/// What a good run told of itself.
fn facts(status: &Status) -> Vec<String> {
    let took = status.finished.since(status.started);
    let mut facts = vec![format!("took {}", display_seconds(took))];
    if let Some(label) = status.fields.get("label").and_then(|label| label.as_str()) {
        facts.insert(0, label.to_owned());
    }
    let bytes = |name: &str| status.fields.get(name).and_then(|bytes| bytes.as_f64());
    if let Some(size) = bytes("size_bytes") {
        facts.push(format!("{} in size", ByteSize(size as u64)));
    }
    if let Some(stored) = bytes("stored_bytes") {
        facts.push(format!("{} stored", ByteSize(stored as u64)));
    }
    facts
}

/// A message to try a channel out.
pub fn test(host: &str, now: UtcTime) -> Message {
    Message {
        event: "test".to_owned(),
        title: format!("pgkeep on {host} can reach you"),
        text: "This message was asked for with pgkeep-notify --test.".to_owned(),
        cluster: String::new(),
        job: String::new(),
        host: host.to_owned(),
        time: now.whole_seconds().to_string(),
    }
}

/// The body for Slack's incoming webhooks.
pub fn slack(message: &Message) -> String {
    let sign = match message.event.as_str() {
        "failure" => ":red_circle: ",
        "recovery" => ":large_green_circle: ",
        _ => "",
    };
    // Slack reads these three as markup.
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let text = format!("{sign}*{}*\n{}", escaped(&message.title), escaped(&message.text));
    serde_json::json!({ "text": text }).to_string()
}

/// The body for a webhook: all fields, or the template with its `{{name}}` filled in, each as the inside of a JSON string.
pub fn webhook(message: &Message, template: Option<&str>) -> String {
    let fields = serde_json::to_value(message).unwrap_or_default();
    let Some(template) = template else {
        return fields.to_string();
    };
    let mut body = template.to_owned();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let quoted = value.to_string();
        let inside = quoted
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
            .unwrap_or(&quoted);
        body = body.replace(&format!("{{{{{name}}}}}"), inside);
    }
    body
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn status(extra: serde_json::Value) -> Status {
        let mut status = serde_json::json!({"tool":"base-backup","cluster":"main","host":"db1","user":"u","pid":1,
            "started":"2026-11-20T02:00:00Z","finished":"2026-11-20T02:01:30Z","result":"failed","exit_code":1});
        status
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        serde_json::from_value(status).unwrap()
    }

    fn time(text: &str) -> Option<UtcTime> {
        Some(UtcTime::parse_compact(text).unwrap())
    }

    #[test]
    fn a_failure_says_what_where_since_when_and_what_to_do() {
        let failed = status(
            serde_json::json!({"message":"cannot connect: \"refused\"","last_success":"2026-11-19T02:01:00Z",
            "fields":{"hint":"is the server running?"}}),
        );
        let message = of_job(Event::Failure, time("20261120T010000Z"), &failed, 2);
        assert_eq!(message.title, "base-backup of main failed on db1");
        assert_eq!(
            message.text,
            "cannot connect: \"refused\"\nsince: 2026-11-20T01:00:00Z\nlast success: 2026-11-19T02:01:00Z\n\
             what to do: is the server running?\n2 messages before this one were held back"
        );
        let bare = of_job(Event::Failure, None, &status(serde_json::json!({})), 0);
        assert!(
            bare.text
                .starts_with("it did not say why\nlast success: never\nwhat to do: the journal of"),
            "{}",
            bare.text
        );
    }

    #[test]
    fn a_recovery_says_for_how_long_it_was_broken() {
        let good = status(serde_json::json!({"fields":{"label":"L","size_bytes":1048576,"stored_bytes":2048.0}}));
        let message = of_job(Event::Recovery, time("20261120T010000Z"), &good, 0);
        assert_eq!(message.title, "base-backup of main works again on db1");
        assert_eq!(
            message.text,
            "after failing for 1h1m, since 2026-11-20T01:00:00Z\nL\ntook 1m30s\n1.0 MiB in size\n2.0 KiB stored"
        );
    }

    #[test]
    fn bodies_are_json_whatever_a_message_says() {
        let failed = status(serde_json::json!({"message":"a \"b\" <c> \\ \n d & {{title}}"}));
        let message = of_job(Event::Failure, None, &failed, 0);
        let parsed: serde_json::Value = serde_json::from_str(&slack(&message)).unwrap();
        assert!(
            parsed["text"]
                .as_str()
                .unwrap()
                .starts_with(":red_circle: *base-backup of main failed on db1*\na \"b\" &lt;c&gt; \\ ")
        );
        let parsed: serde_json::Value = serde_json::from_str(&webhook(&message, None)).unwrap();
        assert_eq!(
            (&parsed["event"], &parsed["job"]),
            (&"failure".into(), &"base-backup".into())
        );
        let body = webhook(&message, Some("{\"summary\": \"{{cluster}}: {{text}}\", \"n\": 1}"));
        let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(
            parsed["summary"]
                .as_str()
                .unwrap()
                .starts_with("main: a \"b\" <c> \\ \n d & "),
            "{body}"
        );
    }
}
