//! The plan and what became of it, for people and programs.

use std::fmt::Write as _;

use common::error::{Error, Kind, Result, chain};
use common::exit;
use common::job::{Report, Sample};
use common::postgres::{SegmentName, SegmentSize};
use common::repository::wal::Range;
use common::retention::dumps::Verdict;
use common::units::ByteSize;
use serde::Serialize;

use crate::act::Removed;
use crate::plan::Plan;

/// What a run came to: in each repository.
pub struct Ended {
    /// Whether nothing was to be removed.
    pub dry_run: bool,
    /// By name.
    pub repositories: Vec<(String, Outcome)>,
}

/// The plan, and what was removed; or why there is none.
pub type Outcome = Result<(Plan, Option<Removed>)>;

/// A thing that stays or goes. Its JSON form is an interface: docs/retention.md lists the fields.
#[derive(Debug, Serialize, PartialEq)]
struct Thing {
    what: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<u64>,
    stays: bool,
    because: Vec<String>,
}

#[derive(Serialize)]
struct InRepository<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    plan: Vec<Thing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<Numbers<'a>>,
}

#[derive(Serialize)]
struct Numbers<'a> {
    backups: u64,
    segments: u64,
    objects: u64,
    size_bytes: u64,
    refused: &'a [String],
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    dry_run: bool,
    repositories: Vec<InRepository<'a>>,
}

fn things(plan: &Plan) -> Vec<Thing> {
    let mut things = Vec::new();
    for (verdict, info) in &plan.backups {
        things.push(Thing {
            what: "backup",
            name: verdict.label.to_string(),
            size_bytes: Some(info.stored),
            segments: None,
            stays: verdict.is_kept(),
            because: match verdict.is_kept() {
                true => verdict.stays.iter().map(ToString::to_string).collect(),
                false => vec!["no rule keeps it".to_owned()],
            },
        });
    }
    for (label, why) in &plan.unreadable {
        let because = vec![format!("it cannot be read: {why}")];
        things.push(thing("backup", label.to_string(), true, because));
    }
    for (label, bytes, why) in &plan.left {
        let because = match why {
            Some(why) => why.to_string(),
            None => "it was interrupted, and nothing refers to it".to_owned(),
        };
        let mut thing = thing("unfinished", label.to_string(), why.is_some(), vec![because]);
        thing.size_bytes = Some(*bytes);
        things.push(thing);
    }
    for system in &plan.wal {
        for (range, why) in &system.ranges {
            let because = match why {
                Some(why) => why.to_string(),
                None => "no backup that stays needs it".to_owned(),
            };
            let name = format!("{} {}", system.system, names(range, system.size));
            let mut thing = thing("wal", name, why.is_some(), vec![because]);
            thing.segments = Some(range.last.0.saturating_sub(range.first.0) + 1);
            things.push(thing);
        }
        if system.needed.is_nothing() {
            let because = vec!["nothing of this system stays".to_owned()];
            things.push(thing("wal", format!("{} histories", system.system), false, because));
        }
    }
    for (name, verdict) in &plan.dumps {
        let because = match verdict {
            Verdict::Stays(why) => why.clone(),
            Verdict::Goes(why) => (*why).to_owned(),
        };
        things.push(thing("dump", name.clone(), verdict.is_kept(), vec![because]));
    }
    things
}

fn thing(what: &'static str, name: String, stays: bool, because: Vec<String>) -> Thing {
    Thing {
        what,
        name,
        size_bytes: None,
        segments: None,
        stays,
        because,
    }
}

fn names(range: &Range, size: SegmentSize) -> String {
    let name = |number| SegmentName::new(range.timeline, number, size).to_string();
    match range.first == range.last {
        true => name(range.first),
        false => format!("{} to {}", name(range.first), name(range.last)),
    }
}

impl Ended {
    /// 0; 75 if trying again may help; else what the worst failure says.
    pub fn exit_code(&self) -> u8 {
        let failed = self
            .repositories
            .iter()
            .filter_map(|(_, outcome)| outcome.as_ref().err());
        let codes = failed.map(|error| exit::WORK.code_of(error));
        codes.map(|code| (code != 75, code)).max().map_or(0, |(_, code)| code)
    }

    /// The plan, line by line, and what was done.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, outcome) in &self.repositories {
            let Ok((plan, removed)) = outcome else { continue };
            let _ = writeln!(text, "repository \"{name}\"");
            for thing in things(plan) {
                let word = if thing.stays { "stays" } else { "goes " };
                let what = match (thing.what, thing.segments) {
                    ("wal", Some(1)) => format!("WAL {} (1 segment)", thing.name),
                    ("wal", Some(count)) => format!("WAL {} ({count} segments)", thing.name),
                    ("wal", None) => format!("WAL {}", thing.name),
                    ("backup", _) => thing.name,
                    (what, _) => format!("{what} {}", thing.name),
                };
                let size = thing
                    .size_bytes
                    .map(|bytes| format!(" ({})", ByteSize(bytes)))
                    .unwrap_or_default();
                let _ = writeln!(text, "  {word}  {what}{size}: {}", thing.because.join("; "));
            }
            match removed {
                Some(removed) => {
                    let _ = writeln!(
                        text,
                        "  removed {} backups, {} WAL segments, {} in {} objects",
                        removed.backups,
                        removed.segments,
                        ByteSize(removed.bytes),
                        removed.objects
                    );
                    for refused in &removed.refused {
                        let _ = writeln!(text, "  not removed: {refused}");
                    }
                }
                None => {
                    let _ = writeln!(text, "  nothing was removed: this is a dry run");
                }
            }
        }
        text
    }

    /// For programs.
    ///
    /// # Errors
    /// `Failed` if it cannot be encoded.
    pub fn json(&self) -> Result<String> {
        let of = |(name, outcome): &'_ (String, Outcome)| -> (String, Option<String>) {
            (name.clone(), outcome.as_ref().err().map(|error| chain(error)))
        };
        let failed: Vec<(String, Option<String>)> = self.repositories.iter().map(of).collect();
        let mut repositories = Vec::new();
        for ((name, outcome), (_, error)) in self.repositories.iter().zip(failed) {
            let done = outcome.as_ref().ok();
            let removed = done.and_then(|(_, removed)| removed.as_ref());
            repositories.push(InRepository {
                name,
                error,
                plan: done.map(|(plan, _)| things(plan)).unwrap_or_default(),
                removed: removed.map(|removed| Numbers {
                    backups: removed.backups,
                    segments: removed.segments,
                    objects: removed.objects,
                    size_bytes: removed.bytes,
                    refused: &removed.refused,
                }),
            });
        }
        let document = Document {
            schema: 1,
            dry_run: self.dry_run,
            repositories,
        };
        serde_json::to_string_pretty(&document)
            .map(|json| json + "\n")
            .map_err(|error| Error::new(Kind::Failed, "encode the result").because(error))
    }

    /// What the job leaves behind.
    pub fn report(&self) -> Report {
        let failed = self.repositories.iter().find_map(|(name, outcome)| {
            let error = outcome.as_ref().err()?;
            Some(format!("repository \"{name}\": {}", chain(error)))
        });
        let report = match failed {
            None => Report::success(),
            Some(message) => Report::bad(self.exit_code(), message),
        };
        let removed = || {
            self.repositories
                .iter()
                .filter_map(|(_, outcome)| outcome.as_ref().ok()?.1.as_ref())
        };
        let sum = |of: fn(&Removed) -> u64| removed().map(of).sum::<u64>();
        let locked = self.repositories.iter().filter_map(|(name, outcome)| {
            let until = outcome.as_ref().ok()?.1.as_ref()?.locked_until?;
            let help = "until when at least all objects that stay are locked";
            let seconds = until.unix_seconds() as f64;
            Some(Sample::new("pgkeep_locks_until_timestamp_seconds", seconds, help).label("repository", name))
        });
        let report = locked.fold(report, Report::sample);
        report
            .field("backups", sum(|removed| removed.backups))
            .field("wal_segments", sum(|removed| removed.segments))
            .field("size_bytes", sum(|removed| removed.bytes))
            .field("refused", sum(|removed| removed.refused.len() as u64))
    }
}
