//! What `pgkeep-info` says, as values. The JSON form is an interface: `docs/info.schema.json` describes it.

use std::fmt;

use serde::Serialize;

use common::time::UtcTime;

/// Everything about one cluster.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Grows when a field changes its meaning.
    pub schema: u32,
    /// The cluster.
    pub cluster: String,
    /// Each configured repository.
    pub repositories: Vec<RepositoryReport>,
}

impl Report {
    /// What could not be read of the repositories.
    pub fn untold(&self) -> Vec<Untold> {
        self.repositories.iter().flat_map(RepositoryReport::untold).collect()
    }
}

impl RepositoryReport {
    fn untold(&self) -> Vec<Untold> {
        let place = || format!("repository {}", self.name);
        let part = |what: String, why: &str| Untold::part(place(), what, why);
        let whole = self.error.iter().map(|why| Untold::whole(place(), why));
        let backups = self
            .unreadable
            .iter()
            .map(|one| part(format!("backup {}", one.label), &one.why));
        let histories = self.systems.iter().flat_map(|system| &system.unreadable_histories);
        let histories = histories.map(|one| part(format!("the history of timeline {}", one.timeline), &one.why));
        whole.chain(backups).chain(histories).collect()
    }
}

/// Something that could not be read, so that what is said without it is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Untold {
    /// Where: a repository, or the audit record.
    pub place: String,
    /// What of it; nothing if all of it.
    pub what: Option<String>,
    /// Why.
    pub why: String,
}

impl Untold {
    /// All of a place.
    pub fn whole(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            what: None,
            why: why.into(),
        }
    }

    /// A part of a place.
    pub fn part(place: impl Into<String>, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: Some(what.into()),
            ..Self::whole(place, why)
        }
    }

    /// The places, each once.
    pub fn places(all: &[Self]) -> Vec<&str> {
        let mut places: Vec<&str> = Vec::new();
        for one in all {
            if !places.contains(&one.place.as_str()) {
                places.push(&one.place);
            }
        }
        places
    }
}

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Some(what) => write!(f, "{what} in {} cannot be read: {}", self.place, self.why),
            None => write!(f, "{} cannot be read: {}", self.place, self.why),
        }
    }
}

/// One repository.
#[derive(Debug, Default, Serialize)]
pub struct RepositoryReport {
    /// The name in the configuration.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// Why it could not be read; nothing else is known then.
    pub error: Option<String>,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Whether its streams are encrypted.
    pub encrypted: Option<bool>,
    /// Committed backups, oldest first.
    pub backups: Vec<BackupReport>,
    /// Logical dumps, oldest first.
    pub dumps: Vec<DumpReport>,
    /// Labels without `backup.json`.
    pub unfinished: Vec<Unfinished>,
    /// Backups whose `backup.json` cannot be used.
    pub unreadable: Vec<Unreadable>,
    /// WAL and what it makes recoverable, for each system identifier.
    pub systems: Vec<SystemReport>,
}

/// One logical dump. What is in it only its contents say, which may be encrypted: `pgkeep-dump-restore LABEL --list`.
#[derive(Debug, Serialize)]
pub struct DumpReport {
    /// Its name.
    pub label: String,
    /// `databases`, `tenant`, `tables` or `globals`.
    pub scope: String,
    /// When the job started.
    pub started: UtcTime,
    /// From start to the last object, in seconds.
    pub duration_seconds: f64,
    /// Number of databases.
    pub databases: u64,
    /// Number of tables whose rows are in it.
    pub tables: u64,
    /// Bytes before compression.
    pub size_bytes: u64,
    /// Stored size, in bytes.
    pub stored_bytes: u64,
    /// The server's version.
    pub server_version: String,
}

/// A backup that was begun.
#[derive(Debug, Serialize)]
pub struct Unfinished {
    /// Its name.
    pub label: String,
    /// `running`, `left behind`, or `unknown` on another host than the one that makes it.
    pub state: &'static str,
    /// Where it was begun, if that can be read.
    pub host: Option<String>,
    /// By which process.
    pub pid: Option<u32>,
}

/// A backup that cannot be used.
#[derive(Debug, Serialize)]
pub struct Unreadable {
    /// Which.
    pub label: String,
    /// Why.
    pub why: String,
}

/// One backup.
#[derive(Debug, Serialize)]
pub struct BackupReport {
    /// Its name.
    pub label: String,
    /// `full`, `diff` or `incr`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whose.
    pub system_identifier: String,
    /// When the job started.
    pub started: UtcTime,
    /// The earliest moment it can be recovered to.
    pub stopped: UtcTime,
    /// From start to the last object, in seconds.
    pub duration_seconds: f64,
    /// The timeline it was taken on.
    pub timeline: u32,
    /// Replay starts here.
    pub start_lsn: String,
    /// Replay must reach this.
    pub stop_lsn: String,
    /// The first WAL segment it needs.
    pub wal_first: String,
    /// The last WAL segment it needs to be consistent.
    pub wal_last: String,
    /// Sum of file sizes, in bytes.
    pub size_bytes: u64,
    /// Stored size, in bytes.
    pub stored_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Whether it counts.
    pub good: bool,
    /// A backup that it leans on and that is not there: it cannot be restored from this repository.
    pub lacks: Option<String>,
    /// Pages whose checksum failed.
    pub damaged_pages: u64,
    /// Where they are.
    pub damage: Vec<DamagedFile>,
    /// Why that cannot be said.
    pub damage_unknown: Option<String>,
    /// Backups whose bytes it needs.
    pub references: Vec<String>,
    /// The operator's note.
    pub note: Option<String>,
}

/// A file of a backup with damaged pages.
#[derive(Debug, Serialize)]
pub struct DamagedFile {
    /// Its path in the backup.
    pub path: String,
    /// The damaged blocks; where there are very many, good ones between them are listed too.
    pub blocks: Vec<Blocks>,
}

/// Blocks of a file that follow one another.
#[derive(Debug, Serialize)]
pub struct Blocks {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

/// One system identifier.
#[derive(Debug, Serialize)]
pub struct SystemReport {
    /// PostgreSQL's system identifier.
    pub system_identifier: String,
    /// PostgreSQL's major version.
    pub major: u32,
    /// Number of stored segments.
    pub wal_segments: u64,
    /// Stored size of all WAL, in bytes.
    pub wal_stored_bytes: u64,
    /// Unbroken runs of segments.
    pub wal_ranges: Vec<WalRange>,
    /// What is missing between two runs of one timeline.
    pub wal_gaps: Vec<WalRange>,
    /// What can be recovered.
    pub windows: Vec<WindowReport>,
    /// Backups that cannot be recovered for want of WAL.
    pub unrecoverable: Vec<Unrecoverable>,
    /// Timeline histories that are there and cannot be used: what lies beyond those promotions is not known.
    pub unreadable_histories: Vec<UnreadableHistory>,
    /// Names that are none of ours.
    pub foreign: Vec<String>,
}

/// Segments that follow one another.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct WalRange {
    /// Whose.
    pub timeline: u32,
    /// The first.
    pub first: String,
    /// The last.
    pub last: String,
    /// How many.
    pub segments: u64,
}

/// What one backup reaches on one timeline.
#[derive(Debug, Serialize)]
pub struct WindowReport {
    /// The backup it starts from.
    pub label: String,
    /// The timeline recovery ends on.
    pub timeline: u32,
    /// The earliest moment, by the server's clock.
    pub from_time: UtcTime,
    /// The earliest position.
    pub from_lsn: String,
    /// Behind the last segment without a gap: the first position that is not reached.
    pub to_lsn: String,
    /// That segment.
    pub last_segment: String,
    /// When it was stored, by the store's clock: what it holds is no younger. Nothing if the store does not say.
    #[serde(skip)]
    pub last_stored: Option<UtcTime>,
    /// What is missing behind it, if WAL of this history follows.
    pub missing: Option<String>,
}

/// A timeline history that cannot be used.
#[derive(Debug, Serialize)]
pub struct UnreadableHistory {
    /// The timeline.
    pub timeline: u32,
    /// Why.
    pub why: String,
}

/// A backup without its WAL.
#[derive(Debug, Serialize)]
pub struct Unrecoverable {
    /// Which.
    pub label: String,
    /// The first file that is missing, or the backup, in words.
    pub missing: String,
    /// Whether that is a file of WAL.
    #[serde(skip)]
    pub is_wal: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_with_its_place() {
        let unreadable = Unreadable {
            label: "x".to_owned(),
            why: "rubbish".to_owned(),
        };
        let of = |name: &str, error: Option<&str>, unreadable| RepositoryReport {
            name: name.to_owned(),
            error: error.map(str::to_owned),
            unreadable,
            ..RepositoryReport::default()
        };
        let report = Report {
            schema: 1,
            cluster: "main".to_owned(),
            repositories: vec![
                of("away", Some("no answer"), Vec::new()),
                of("local", None, vec![unreadable]),
                of("whole", None, Vec::new()),
            ],
        };
        let mut untold = report.untold();
        untold.push(Untold::part("repository local", "restore tests", "denied"));
        let words: Vec<String> = untold.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "repository away cannot be read: no answer",
                "backup x in repository local cannot be read: rubbish",
                "restore tests in repository local cannot be read: denied",
            ]
        );
        assert_eq!(Untold::places(&untold), ["repository away", "repository local"]);
    }
}
