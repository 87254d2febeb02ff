//! What a run came to, for people and for the traces it leaves.

use std::collections::BTreeMap;
use std::time::Duration;

use common::error::{Error, Kind, Result, chain};
use common::exit::Verdict;
use common::job::Report;
use common::postgres::Lsn;
use common::repository::backup::BackupInfo;
use common::repository::writer::Outcome;
use common::repository::{BackupType, Label};
use common::time::UtcTime;
use common::units::{ByteSize, display_duration};
use serde::Serialize;

use crate::tally::{DamagedFile, Tally};

/// So many blocks are named in a message.
const NAMED: usize = 5;

/// How a run ended, if not by an error.
pub enum Ended {
    /// There was rightly nothing to do, and why.
    Skipped(String),
    /// A backup was made.
    Made(Box<Made>),
}

/// A backup that at least one repository has. Its JSON form is an interface: docs/guide.md lists the fields.
#[derive(Debug, Serialize)]
pub struct Made {
    label: String,
    #[serde(rename = "type")]
    kind: String,
    good: bool,
    started: UtcTime,
    stopped: UtcTime,
    timeline: u32,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    files: u64,
    size_bytes: u64,
    stored_bytes: u64,
    duration_seconds: f64,
    durations: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_because: Option<String>,
    read_bytes: u64,
    damaged_pages: u64,
    damage: Vec<Damaged>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<Audit>,
    repositories: Vec<InRepository>,
    #[serde(skip)]
    newest_full: Option<UtcTime>,
    #[serde(skip)]
    duration_ratio: Option<f64>,
}

/// A file with damaged pages.
#[derive(Debug, Serialize)]
struct Damaged {
    path: String,
    blocks: Vec<Blocks>,
}

/// What an audit found.
#[derive(Debug, Serialize)]
struct Audit {
    /// Blocks that changed between the starts of the two backups.
    changed_blocks: u64,
    /// Those that WAL did not name.
    unnamed_blocks: u64,
    /// The first of them.
    unnamed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Blocks {
    first: u32,
    last: u32,
}

/// What became of it in one repository.
#[derive(Debug, Serialize)]
struct InRepository {
    name: String,
    required: bool,
    stored: bool,
    stored_bytes: Option<u64>,
    error: Option<String>,
}

impl Made {
    /// Sums up; `info` is one repository's document. `why_full` says why it is a full backup, where that was not asked for; `audited`
    /// whether everything was read to see whether WAL names what changed.
    pub fn new(
        info: &BackupInfo,
        outcomes: &[Outcome],
        tally: &Tally,
        why_full: Option<String>,
        audited: bool,
    ) -> Self {
        let (unnamed_blocks, unnamed) = tally.untold_blocks();
        let audit = audited.then(|| Audit {
            changed_blocks: Tally::read(&tally.audited),
            unnamed_blocks,
            unnamed,
        });
        let one = |outcome: &Outcome| {
            let result = outcome.result.as_ref();
            InRepository {
                name: outcome.repository.clone(),
                required: outcome.required,
                stored: result.is_ok(),
                stored_bytes: result.ok().map(|info| info.stored),
                error: result.err().map(|error| chain(error)),
            }
        };
        Self {
            label: info.label.to_string(),
            kind: info.kind.to_string(),
            good: info.good,
            started: info.started,
            stopped: info.stopped,
            timeline: info.timeline,
            start_lsn: info.start_lsn,
            stop_lsn: info.stop_lsn,
            files: info.files,
            size_bytes: info.size,
            stored_bytes: info.stored,
            duration_seconds: info.finished.since(info.started).as_secs_f64(),
            durations: info.durations.clone(),
            base: info.base.map(|label| label.to_string()),
            full_because: why_full,
            read_bytes: Tally::read(&tally.read),
            damaged_pages: info.damaged_pages,
            damage: tally.damaged_files().iter().map(Damaged::new).collect(),
            audit,
            repositories: outcomes.iter().map(one).collect(),
            duration_ratio: None,
            newest_full: (info.kind == BackupType::Full && info.good).then_some(info.stopped),
        }
    }

    /// Compares how long it took with the last ones of its type.
    #[must_use]
    pub fn compared(mut self, before: &[Duration]) -> Self {
        self.duration_ratio = ratio(self.duration_seconds, before);
        self
    }

    /// Says when the newest full backup was begun, where this is none.
    #[must_use]
    pub fn after_full(mut self, full: Option<Label>) -> Self {
        self.newest_full = self.newest_full.or(full.map(|label| label.started()));
        self
    }

    /// Required repositories that do not have it.
    fn missing(&self) -> Vec<&str> {
        let missing = |one: &&InRepository| one.required && !one.stored;
        self.repositories
            .iter()
            .filter(missing)
            .map(|one| one.name.as_str())
            .collect()
    }

    /// What is wrong with it, if anything is.
    fn complaint(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.damaged_pages > 0 {
            parts.push(format!(
                "{} damaged pages were found: the backup does not count as good",
                self.damaged_pages
            ));
        }
        let missing = self.missing();
        if !missing.is_empty() {
            parts.push(format!("it is missing in required repository {}", missing.join(", ")));
        }
        if let Some(audit) = self.audit.as_ref().filter(|audit| audit.unnamed_blocks > 0) {
            parts.push(format!(
                "the audit found {} blocks that changed without WAL naming them: {}; this backup holds them, incremental ones without \
                 --audit may not. Take full backups until the cause is known, and please report it",
                audit.unnamed_blocks,
                audit.unnamed.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ")
            ));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    fn text(&self) -> String {
        let places: Vec<&str> = self
            .repositories
            .iter()
            .filter(|one| one.stored)
            .map(|one| one.name.as_str())
            .collect();
        let mut text = format!(
            "{}: {} in {} files, {}{} stored in {}, {}",
            self.label,
            ByteSize(self.size_bytes),
            self.files,
            self.read_text(),
            ByteSize(self.stored_bytes),
            places.join(", "),
            display_duration(Duration::from_secs_f64(self.duration_seconds)),
        );
        if let Some(why) = &self.full_because {
            text += &format!("; full because {why}");
        }
        if let Some(audit) = self.audit.as_ref().filter(|audit| audit.unnamed_blocks == 0) {
            text += &format!("; audit: all {} changed blocks are named by WAL", audit.changed_blocks);
        }
        if let Some(complaint) = self.complaint() {
            text += &format!("; {complaint}");
        }
        text
    }
}

impl Made {
    /// What an incremental backup did not have to read.
    fn read_text(&self) -> String {
        match &self.base {
            Some(base) => format!("{} read, since {base}; ", ByteSize(self.read_bytes)),
            None => String::new(),
        }
    }
}

/// Shorter ones vary by themselves.
const WORTH_COMPARING: Duration = Duration::from_secs(60);

/// The share of the median that a duration in seconds is; nothing where there is too little to compare with.
fn ratio(seconds: f64, before: &[Duration]) -> Option<f64> {
    let mut before = before.to_vec();
    before.sort();
    let median = before.get(before.len() / 2).filter(|_| before.len() >= 4)?;
    (*median >= WORTH_COMPARING).then(|| seconds / median.as_secs_f64())
}

impl Damaged {
    fn new(file: &DamagedFile) -> Self {
        let blocks = |(first, count): &(u32, u32)| Blocks {
            first: *first,
            last: first.saturating_add(count.saturating_sub(1)),
        };
        Self {
            path: file.path.clone(),
            blocks: file.runs.iter().map(blocks).collect(),
        }
    }
}

/// The result for programs.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    result: &'static str,
    why: Option<&'a str>,
    complaint: Option<String>,
    backup: Option<&'a Made>,
}

impl Ended {
    /// For programs.
    ///
    /// # Errors
    /// `Failed` if it cannot be encoded.
    pub fn json(&self) -> Result<String> {
        let document = match self {
            Self::Skipped(why) => Document {
                schema: 1,
                result: "skipped",
                why: Some(why),
                complaint: None,
                backup: None,
            },
            Self::Made(made) => Document {
                schema: 1,
                result: "made",
                why: None,
                complaint: made.complaint(),
                backup: Some(made),
            },
        };
        serde_json::to_string_pretty(&document)
            .map(|json| json + "\n")
            .map_err(|error| Error::new(Kind::Failed, "encode the result").because(error))
    }

    /// One line for people.
    pub fn text(&self) -> String {
        match self {
            Self::Skipped(why) => format!("no backup: {why}\n"),
            Self::Made(made) => format!("{}\n", made.text()),
        }
    }

    /// The traces it leaves.
    pub fn report(&self) -> Report {
        let made = match self {
            Self::Skipped(why) => return Report::skipped(why.as_str()),
            Self::Made(made) => made,
        };
        let mut report = match made.complaint() {
            Some(complaint) => Report::bad(self.code(), format!("{}: {complaint}", made.label)),
            None => Report::success(),
        };
        report = report
            .field("label", made.label.as_str())
            .field("type", made.kind.as_str())
            .field("size_bytes", made.size_bytes)
            .field("stored_bytes", made.stored_bytes)
            .field("files", made.files)
            .field("damaged_pages", made.damaged_pages);
        if let Some(ratio) = made.duration_ratio {
            report = report.field("duration_ratio", ratio);
        }
        if let Some(full) = made.newest_full {
            // So that age can be told where nobody may read a repository.
            report = report.field("newest_full_timestamp_seconds", full.unix_seconds());
        }
        for (phase, seconds) in &made.durations {
            report = report.field(&format!("{phase}_seconds"), *seconds);
        }
        report
    }
}

impl Verdict for Ended {
    fn code(&self) -> u8 {
        match self {
            Self::Skipped(_) => 0,
            Self::Made(made) => u8::from(made.complaint().is_some()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn made(damaged_pages: u64, required_stored: bool) -> Made {
        let one = |name: &str, required, stored| InRepository {
            name: name.to_owned(),
            required,
            stored,
            stored_bytes: stored.then_some(3 << 20),
            error: (!stored).then(|| "disk full".to_owned()),
        };
        let file = DamagedFile {
            path: "data/base/5/16384".to_owned(),
            runs: vec![(0, 1), (7, u32::try_from(damaged_pages.max(1)).unwrap() - 1)],
        };
        Made {
            label: "20261120T020000Z-full-3f9a1c".to_owned(),
            kind: "full".to_owned(),
            good: damaged_pages == 0,
            started: UtcTime::parse_compact("20261120T020000Z").unwrap(),
            stopped: UtcTime::parse_compact("20261120T020002Z").unwrap(),
            timeline: 1,
            start_lsn: Lsn(0x200_0028),
            stop_lsn: Lsn(0x200_0138),
            base: None,
            full_because: None,
            read_bytes: 0,
            audit: None,
            damaged_pages,
            damage: (damaged_pages > 0).then(|| Damaged::new(&file)).into_iter().collect(),
            files: 970,
            size_bytes: 22 << 20,
            stored_bytes: 3 << 20,
            duration_seconds: 2.5,
            durations: BTreeMap::from([("copy".to_owned(), 1.5)]),
            repositories: vec![
                one("local", true, true),
                one("offsite", true, required_stored),
                one("nas", false, false),
            ],
            newest_full: None,
            duration_ratio: None,
        }
    }

    #[test]
    fn a_good_backup_is_0_and_one_line_even_if_an_optional_repository_lacks_it() {
        let ended = Ended::Made(Box::new(made(0, true)));
        assert_eq!(ended.code(), 0);
        let text = ended.text();
        assert!(
            text.starts_with("20261120T020000Z-full-3f9a1c: 22") && text.contains("in local, offsite, "),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn damage_and_a_missing_required_copy_are_1_and_said() {
        let damaged = Ended::Made(Box::new(made(3, true)));
        assert!(damaged.code() == 1 && damaged.text().contains("3 damaged pages"));
        let missing = Ended::Made(Box::new(made(0, false)));
        assert!(missing.code() == 1 && missing.text().contains("missing in required repository offsite"));
    }

    #[test]
    fn nothing_to_do_is_0_and_says_why() {
        let ended = Ended::Skipped("this server is a standby".to_owned());
        assert_eq!(
            (ended.code(), ended.text().as_str()),
            (0, "no backup: this server is a standby\n")
        );
    }

    #[test]
    fn a_program_reads_sizes_places_and_damage_and_why_nothing_was_done() {
        let read = |ended: &Ended| serde_json::from_str::<serde_json::Value>(&ended.json().unwrap()).unwrap();
        let json = read(&Ended::Made(Box::new(made(3, false))));
        assert_eq!((&json["schema"], &json["result"]), (&1.into(), &"made".into()));
        assert!(json["complaint"].as_str().unwrap().contains("3 damaged pages") && json["why"].is_null());
        let backup = &json["backup"];
        assert_eq!(backup["type"], "full");
        assert_eq!(backup["size_bytes"], 22 << 20);
        assert_eq!(backup["durations"]["copy"], 1.5);
        assert_eq!(backup["start_lsn"], "0/2000028");
        let damage = serde_json::json!([{
            "path": "data/base/5/16384",
            "blocks": [{"first": 0, "last": 0}, {"first": 7, "last": 8}],
        }]);
        assert_eq!(backup["damage"], damage);
        let offsite = serde_json::json!({
            "name": "offsite", "required": true, "stored": false, "stored_bytes": null, "error": "disk full",
        });
        assert_eq!(backup["repositories"][1], offsite);
        let skipped = read(&Ended::Skipped("this server is a standby".to_owned()));
        assert_eq!(
            (&skipped["result"], &skipped["why"], skipped["backup"].is_null()),
            (&"skipped".into(), &"this server is a standby".into(), true)
        );
    }

    #[test]
    fn a_duration_is_compared_with_the_median_of_the_last_four_if_those_were_long() {
        let before = |seconds: &[u64]| -> Vec<Duration> {
            seconds.iter().map(|seconds| Duration::from_secs(*seconds)).collect()
        };
        assert_eq!(ratio(60.0, &before(&[100, 900, 120, 110])), Some(0.5));
        assert_eq!(ratio(60.0, &before(&[100, 120, 110])), None);
        assert_eq!(ratio(1.0, &before(&[4, 4, 59, 59])), None);
    }
}
