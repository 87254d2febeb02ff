//! What a run came to, for people and for the traces it leaves.

use std::collections::BTreeMap;
use std::time::Duration;

use common::exit::Verdict;
use common::job::Report;
use common::repository::backup::BackupInfo;
use common::repository::writer::Outcome;
use common::units::{ByteSize, display_duration};

/// How a run ended, if not by an error.
pub enum Ended {
    /// There was rightly nothing to do, and why.
    Skipped(String),
    /// A backup was made.
    Made(Made),
}

/// A backup that at least one repository has.
#[derive(Debug)]
pub struct Made {
    label: String,
    kind: String,
    damaged_pages: u64,
    files: u64,
    size: u64,
    stored: u64,
    seconds: f64,
    durations: BTreeMap<String, f64>,
    repositories: Vec<InRepository>,
}

/// What became of it in one repository.
#[derive(Debug)]
struct InRepository {
    name: String,
    required: bool,
    stored: bool,
}

impl Made {
    /// Sums up; `info` is one repository's document.
    pub fn new(info: &BackupInfo, outcomes: &[Outcome]) -> Self {
        let one = |outcome: &Outcome| InRepository {
            name: outcome.repository.clone(),
            required: outcome.required,
            stored: outcome.result.is_ok(),
        };
        Self {
            label: info.label.to_string(),
            kind: info.kind.to_string(),
            damaged_pages: info.damaged_pages,
            files: info.files,
            size: info.size,
            stored: info.stored,
            seconds: info.finished.since(info.started).as_secs_f64(),
            durations: info.durations.clone(),
            repositories: outcomes.iter().map(one).collect(),
        }
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
            "{}: {} in {} files, {} stored in {}, {}",
            self.label,
            ByteSize(self.size),
            self.files,
            ByteSize(self.stored),
            places.join(", "),
            display_duration(Duration::from_secs_f64(self.seconds)),
        );
        if let Some(complaint) = self.complaint() {
            text += &format!("; {complaint}");
        }
        text
    }
}

impl Ended {
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
            .field("size_bytes", made.size)
            .field("stored_bytes", made.stored)
            .field("files", made.files)
            .field("damaged_pages", made.damaged_pages);
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
        };
        Made {
            label: "20261120T020000Z-full-3f9a1c".to_owned(),
            kind: "full".to_owned(),
            damaged_pages,
            files: 970,
            size: 22 << 20,
            stored: 3 << 20,
            seconds: 2.5,
            durations: BTreeMap::from([("copy".to_owned(), 1.5)]),
            repositories: vec![
                one("local", true, true),
                one("offsite", true, required_stored),
                one("nas", false, false),
            ],
        }
    }

    #[test]
    fn a_good_backup_is_0_and_one_line_even_if_an_optional_repository_lacks_it() {
        let ended = Ended::Made(made(0, true));
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
        let damaged = Ended::Made(made(3, true));
        assert!(damaged.code() == 1 && damaged.text().contains("3 damaged pages"));
        let missing = Ended::Made(made(0, false));
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
}
