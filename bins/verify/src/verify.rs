//! The check of one repository, the steps in order.

use std::collections::BTreeMap;
use std::path::Path;

use common::error::{Kind, Result, chain};
use common::postgres::{SegmentSize, SystemId, TimelineHistory, TimelineId};
use common::repository::backup::BackupInfo;
use common::repository::reach::{self, Wal};
use common::repository::wal::{self, WalList};
use common::repository::{DumpLabel, Label, Repository, catalog, events};
use common::storage::Key;

use crate::backups::Backups;
use crate::dumps::Dumps;
use crate::finding::{Finding, Findings, Weight, What};
use crate::share::Share;
use crate::wal::{Check, without};

/// What is asked.
pub struct Wanted<'a> {
    /// This backup only.
    pub backup: Option<Label>,
    /// This dump only.
    pub dump: Option<DumpLabel>,
    /// What of the data is read.
    pub share: Option<Share>,
    /// How many files are looked at together.
    pub jobs: usize,
    /// This host's memory of repositories.
    pub cache: &'a Path,
}

/// A backup, and how far recovery from it reaches.
#[derive(Debug, Clone, PartialEq)]
pub struct Restorable {
    /// Which.
    pub label: Label,
    /// Whether all its objects are whole, as far as was looked.
    pub whole: bool,
    /// Whether its pages were whole when it was made.
    pub good: bool,
    /// To where it can be recovered, by timeline; or what keeps it from becoming consistent.
    pub reaches: Result<Vec<(TimelineId, String)>, String>,
}

impl Restorable {
    /// Whether a database can be had from it.
    pub fn is_usable(&self) -> bool {
        self.whole && self.reaches.is_ok()
    }
}

/// What one repository's check came to.
pub struct Verified {
    /// What was found, the heaviest first.
    pub findings: Vec<Finding>,
    /// What could be mended.
    pub bad: Vec<Key>,
    /// Backups, oldest first.
    pub backups: Vec<Restorable>,
    /// Backups, WAL segments and dumps that were looked at.
    pub looked_at: (u64, u64, u64),
}

struct System {
    list: WalList,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    size: SegmentSize,
}

/// Checks a repository.
///
/// # Errors
/// What keeps it from being looked at; damage is no error.
pub fn verify(repository: &Repository, wanted: &Wanted<'_>) -> Result<Verified> {
    let findings = Findings::default();
    let dumps = Dumps {
        repository,
        findings: &findings,
        share: wanted.share,
    };
    if wanted.dump.is_some() {
        let count = dumps.check(wanted.dump)?;
        let (findings, bad) = findings.finish();
        return Ok(Verified {
            looked_at: (0, 0, count),
            findings,
            bad,
            backups: Vec::new(),
        });
    }
    remembered(repository, wanted.cache, &findings)?;
    overlaid(repository, &findings)?;
    let catalog = catalog::read(repository, None)?;
    for (label, why) in &catalog.unreadable {
        let key = repository.keys().of_backup(*label, "backup.json")?;
        let means = "the backup cannot be restored by pgkeep; docs/recover-by-hand.md may help";
        findings.add(Finding::damage(What::Unusable, key.to_string(), why, means), None);
    }
    for name in &catalog.foreign {
        let means = "it is no backup's label: somebody put it there, and nothing reads it";
        let object = format!("{}/{name}", repository.keys().backups()?);
        findings.add(Finding::damage(What::Foreign, object, "it is foreign", means), None);
    }
    if let Some(label) = wanted.backup.filter(|label| catalog.get(*label).is_none()) {
        return Err(common::error::Error::new(
            Kind::NotFound,
            format!("repository \"{}\" has no backup {label}", repository.name),
        )
        .hint("pgkeep-info lists the labels"));
    }
    let (systems, segments) = systems(repository, wanted, &findings)?;
    let checking = Backups {
        repository,
        backups: &catalog.backups,
        unfinished: &catalog.unfinished,
        findings: &findings,
        share: wanted.share,
    };
    let mut backups = Vec::new();
    for info in chosen(&catalog.backups, wanted.backup) {
        let whole = checking.check(info)?;
        let reaches = reaches(info, systems.get(&info.system_identifier), &findings);
        backups.push(Restorable {
            label: info.label,
            whole,
            good: info.good,
            reaches,
        });
    }
    broken_chains(&catalog.backups, &mut backups);
    let count = match wanted.backup {
        Some(_) => 0,
        None => dumps.check(None)?,
    };
    let (findings, bad) = findings.finish();
    Ok(Verified {
        looked_at: (backups.len() as u64, segments, count),
        findings,
        bad,
        backups,
    })
}

/// One backup and all that it leans on, or all.
fn chosen(backups: &[BackupInfo], only: Option<Label>) -> Vec<&BackupInfo> {
    let Some(only) = only else {
        return backups.iter().collect();
    };
    let references: Vec<Label> = backups
        .iter()
        .filter(|info| info.label == only)
        .flat_map(|info| info.references.iter().copied())
        .collect();
    let wanted = |info: &&BackupInfo| info.label == only || references.contains(&info.label);
    backups.iter().filter(wanted).collect()
}

/// A backup that leans on a broken one is broken too.
fn broken_chains(infos: &[BackupInfo], backups: &mut [Restorable]) {
    let broken: Vec<Label> = backups.iter().filter(|one| !one.whole).map(|one| one.label).collect();
    for backup in backups.iter_mut() {
        let info = infos.iter().find(|info| info.label == backup.label);
        let leans = info.is_some_and(|info| info.references.iter().any(|label| broken.contains(label)));
        backup.whole &= !leans;
    }
}

/// In a bucket that keeps versions the oldest counts; somebody who overwrites or deletes is worth a look.
fn overlaid(repository: &Repository, findings: &Findings) -> Result<()> {
    let root = Key::parse(repository.cluster.as_str())?;
    repository.store.list_overlaid(Some(&root), &mut |key, over| {
        // Leases are deleted and written as they please.
        if key.to_string().contains("/lease/") {
            return Ok(());
        }
        let finding = Finding::damage(
            What::Shadowed,
            key.to_string(),
            format!("{over} later versions or delete markers lie over it"),
            "its oldest version still counts; find out who overwrote or deleted it",
        );
        findings.add(finding, None);
        Ok(())
    })
}

/// Compares what this host remembers with what is there; the memory heals itself.
fn remembered(repository: &Repository, cache: &Path, findings: &Findings) -> Result<()> {
    let directory = cache.join(&repository.identity()?.uuid);
    let Ok(entries) = std::fs::read_dir(&directory) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(Ok(label)) = name.strip_suffix(".json").map(str::parse::<Label>) else {
            continue;
        };
        let key = repository.keys().of_backup(label, "backup.json")?;
        if repository.store.stat(&key)?.is_none() {
            let finding = Finding::damage(
                What::Stale,
                key.to_string(),
                "this host remembers it, and it is gone",
                "if retention did not remove it, somebody else did",
            );
            findings.add(finding.weighing(Weight::Note), None);
        }
    }
    // Reading it with the memory makes it forget.
    catalog::read(repository, Some(cache)).map(drop)
}

/// Checks the WAL of every system that events name.
fn systems(
    repository: &Repository,
    wanted: &Wanted<'_>,
    findings: &Findings,
) -> Result<(BTreeMap<String, System>, u64)> {
    let check = Check {
        repository,
        findings,
        share: wanted.share,
        jobs: wanted.jobs.max(8),
    };
    let mut systems = BTreeMap::new();
    let mut segments = 0;
    let known = events::systems(repository)?;
    for system in &known {
        let size = SegmentSize::new(system.segment_size).map_err(|error| error.with_kind(Kind::Corrupt))?;
        let list = wal::list(repository, system.system, size)?;
        segments += list.segments;
        let bad = check.system(system.system, size)?;
        let read = wal::read_histories(repository, system.system)?;
        for history in &read.unreadable {
            // Damage was found above; here it is said what it hides.
            if history.error.kind() == Kind::Config {
                let finding = Finding::damage(
                    What::Unknown,
                    history.object.clone(),
                    chain(&history.error),
                    "without the key nobody can say which timelines lead where",
                );
                findings.add(finding.weighing(Weight::Note), None);
            }
        }
        systems.insert(
            system.system.to_string(),
            System {
                list: without(&list, &bad),
                histories: read.known,
                size,
            },
        );
    }
    foreign_systems(
        repository,
        &known.iter().map(|known| known.system).collect::<Vec<_>>(),
        findings,
    )?;
    Ok((systems, segments))
}

fn foreign_systems(repository: &Repository, known: &[SystemId], findings: &Findings) -> Result<()> {
    let root = repository.keys().wal_root()?;
    for name in repository.store.children(Some(&root))? {
        if !known.iter().any(|system| system.to_string() == name) {
            let means = "no event names this system: pgkeep-init --new-history records a new one";
            findings.add(
                Finding::damage(What::Foreign, format!("{root}/{name}"), "it is foreign", means),
                None,
            );
        }
    }
    Ok(())
}

/// How far recovery from a backup reaches, along every timeline that it can follow.
fn reaches(
    info: &BackupInfo,
    system: Option<&System>,
    findings: &Findings,
) -> Result<Vec<(TimelineId, String)>, String> {
    let Some(system) = system else {
        return Err(format!("no event names its system {}", info.system_identifier));
    };
    let wal = Wal::union([&system.list]);
    let ids: Vec<TimelineId> = system.histories.keys().copied().chain([info.timeline()]).collect();
    let mut reaches: BTreeMap<TimelineId, String> = BTreeMap::new();
    let mut why = None;
    for id in ids {
        let history = reach::history(&system.histories, id).filter(|history| reach::follows(info, history));
        // Its own timeline's history may be unreadable; it leads at least along itself.
        let own = || (id == info.timeline()).then(|| TimelineHistory::root(id));
        let Some(history) = history.or_else(own) else { continue };
        match reach::window(info, &history, &wal, system.size) {
            Ok(window) => {
                if let Some(missing) = &window.missing {
                    let names = missing.names(system.size);
                    let means = format!("recovery from earlier backups ends at {}", window.to_lsn);
                    findings.add(Finding::damage(What::Gap, names, "it is missing", means), None);
                }
                reaches.insert(id, window.to_lsn.to_string());
            }
            Err(missing) => {
                let names = missing.names(system.size);
                let means = format!("{} cannot become consistent", info.label);
                findings.add(Finding::damage(What::Gap, names.clone(), "it is missing", means), None);
                why.get_or_insert(format!("WAL {names} is missing, so it cannot become consistent"));
            }
        }
    }
    match (reaches.is_empty(), why) {
        (true, Some(why)) => Err(why),
        (true, None) => Err("no timeline leads from it".to_owned()),
        (false, _) => Ok(reaches.into_iter().collect()),
    }
}
