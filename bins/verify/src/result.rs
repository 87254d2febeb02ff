//! What a run came to, for people and programs.

use std::fmt::Write as _;

use common::error::{Error, Kind, Result, chain};
use common::exit;
use common::job::Report;
use common::units::counted;
use serde::Serialize;

use crate::finding::{Finding, Weight};
use crate::verify::Verified;

/// What was done about one object that could be mended.
#[derive(Debug, Serialize)]
pub struct Mended {
    /// The object.
    pub object: String,
    /// Whether it is whole now.
    pub mended: bool,
    /// How, or why not.
    pub how: String,
}

/// What a run came to: in each repository.
pub struct Ended {
    /// By name: what was found and mended, or why it could not be looked at.
    pub repositories: Vec<(String, Outcome)>,
}

/// What was found and mended.
pub type Outcome = Result<(Verified, Vec<Mended>)>;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    repositories: Vec<InRepository<'a>>,
}

#[derive(Serialize)]
struct InRepository<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    findings: &'a [Finding],
    mended: &'a [Mended],
    backups: Vec<Backup>,
    wal_segments: u64,
    dumps: u64,
}

#[derive(Serialize)]
struct Backup {
    label: String,
    whole: bool,
    good: bool,
    restorable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reaches: Vec<Reach>,
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
}

#[derive(Serialize)]
struct Reach {
    timeline: u32,
    lsn: String,
}

fn wrong(outcome: &Outcome) -> usize {
    match outcome {
        Ok((verified, mended)) => {
            let heavy = verified.findings.iter().filter(|finding| finding.weight > Weight::Note);
            let is_mended = |finding: &&Finding| mended.iter().any(|one| one.mended && one.object == finding.object);
            heavy.filter(|finding| !is_mended(finding)).count()
        }
        Err(_) => 0,
    }
}

impl Ended {
    /// 0 if all is whole; 1 if anything is wrong; 75 if a repository could not be looked at and trying again may help.
    pub fn exit_code(&self) -> u8 {
        let codes = self.repositories.iter().map(|(_, outcome)| match outcome {
            Ok(_) => u8::from(wrong(outcome) > 0),
            Err(error) => exit::WORK.code_of(error),
        });
        codes
            .map(|code| (code > 0, code != 75, code))
            .max()
            .map_or(0, |(_, _, code)| code)
    }

    /// A line for each finding, and what can still be restored.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, outcome) in &self.repositories {
            let Ok((verified, mended)) = outcome else { continue };
            for finding in &verified.findings {
                let word = match finding.weight {
                    Weight::Damage => "DAMAGE",
                    Weight::Unchecked => "UNCHECKED",
                    Weight::Note => "note",
                };
                let Finding {
                    object, found, means, ..
                } = finding;
                let _ = writeln!(text, "{word}  {object}: {found} ({means})");
            }
            for one in mended {
                let word = if one.mended { "MENDED" } else { "NOT MENDED" };
                let _ = writeln!(text, "{word}  {}: {}", one.object, one.how);
            }
            let (backups, segments, dumps) = verified.looked_at;
            let dumps = match dumps {
                0 => String::new(),
                count => format!(", {}", counted(count, "dump")),
            };
            let usable = verified.backups.iter().filter(|backup| backup.is_usable()).count();
            let _ = match wrong(outcome) {
                0 => writeln!(
                    text,
                    "repository \"{name}\": whole: {backups} backups, {segments} WAL segments{dumps}"
                ),
                count => writeln!(
                    text,
                    "repository \"{name}\": {count} things are wrong; of {backups} backups {usable} can be restored"
                ),
            };
            if wrong(outcome) > 0 {
                for backup in &verified.backups {
                    let _ = match &backup.reaches {
                        Ok(reaches) if backup.whole => {
                            let ends: Vec<String> = reaches
                                .iter()
                                .map(|(timeline, lsn)| format!("{lsn} on timeline {}", timeline.0))
                                .collect();
                            writeln!(text, "  {}  can be restored, up to {}", backup.label, ends.join(", "))
                        }
                        Ok(_) => writeln!(text, "  {}  CANNOT be restored: its data is damaged", backup.label),
                        Err(why) => writeln!(text, "  {}  CANNOT be restored: {why}", backup.label),
                    };
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
        let mut repositories = Vec::new();
        for (name, outcome) in &self.repositories {
            let done = outcome.as_ref().ok();
            repositories.push(InRepository {
                name,
                error: outcome.as_ref().err().map(|error| chain(error)),
                findings: done.map_or(&[], |(verified, _)| &verified.findings),
                mended: done.map_or(&[], |(_, mended)| mended),
                backups: done.map(|(verified, _)| backups(verified)).unwrap_or_default(),
                wal_segments: done.map_or(0, |(verified, _)| verified.looked_at.1),
                dumps: done.map_or(0, |(verified, _)| verified.looked_at.2),
            });
        }
        let document = Document {
            schema: 1,
            repositories,
        };
        serde_json::to_string_pretty(&document)
            .map(|json| json + "\n")
            .map_err(|error| Error::new(Kind::Failed, "encode the result").because(error))
    }

    /// What the job leaves behind.
    pub fn report(&self) -> Report {
        let first = self.repositories.iter().find_map(|(name, outcome)| match outcome {
            Err(error) => Some(format!("repository \"{name}\": {}", chain(error))),
            Ok((verified, _)) if wrong(outcome) > 0 => verified
                .findings
                .first()
                .map(|finding| format!("repository \"{name}\": {}: {}", finding.object, finding.found)),
            Ok(_) => None,
        });
        let report = match (self.exit_code(), first) {
            (0, _) => Report::success(),
            (code, message) => Report::bad(code, message.unwrap_or_else(|| "something is wrong".to_owned())),
        };
        let count: usize = self.repositories.iter().map(|(_, outcome)| wrong(outcome)).sum();
        let backups: u64 = self
            .repositories
            .iter()
            .filter_map(|(_, outcome)| outcome.as_ref().ok())
            .map(|(verified, _)| verified.looked_at.0)
            .sum();
        report.field("findings", count as u64).field("backups", backups)
    }
}

fn backups(verified: &Verified) -> Vec<Backup> {
    let one = |backup: &crate::verify::Restorable| Backup {
        label: backup.label.to_string(),
        whole: backup.whole,
        good: backup.good,
        restorable: backup.is_usable(),
        reaches: backup
            .reaches
            .iter()
            .flatten()
            .map(|(timeline, lsn)| Reach {
                timeline: timeline.0,
                lsn: lsn.clone(),
            })
            .collect(),
        because: backup.reaches.as_ref().err().cloned(),
    };
    verified.backups.iter().map(one).collect()
}
