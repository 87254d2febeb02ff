//! Reads what the repositories hold: backups, WAL, histories. One that does not answer is noted, not the end.

use std::collections::{BTreeMap, BTreeSet};

use common::error::{Error, Kind, Result, chain};
use common::postgres::{SegmentSize, SystemId, TimelineHistory, TimelineId};
use common::repository::backup::BackupInfo;
use common::repository::catalog::{self, Catalog};
use common::repository::events;
use common::repository::pins::Pins;
use common::repository::reach::Wal;
use common::repository::wal::{self, StoredTimes, WalList};
use common::repository::{Label, Repository};
use common::time::UtcTime;

use crate::plan::{Archive, Unusable};
use crate::target::{Request, Target};

/// A repository that could not be read, or not wholly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Its name in the configuration.
    pub name: String,
    /// Why.
    pub why: String,
    /// Whether it may hold what is missing elsewhere, and answer another time.
    pub temporary: bool,
}

/// What was found.
pub struct Survey<'a> {
    /// What the repositories hold together of one system, the one whose backup is asked for.
    pub archive: Archive,
    /// Which of them hold a backup, in the order of the configuration.
    pub holders: BTreeMap<Label, Vec<&'a Repository>>,
    /// Those that answered, and the WAL that each lists.
    pub answered: Vec<(&'a Repository, WalList)>,
    /// Whose WAL that is, if there is a backup.
    pub system: Option<SystemId>,
    /// The system that writes into each repository now, by the repository's name.
    pub current: BTreeMap<String, SystemId>,
    /// Those that did not.
    pub silent: Vec<Silent>,
}

/// Reads every repository; nothing is believed but what it says now. One that stands where this host knows another is
/// refused, not left out: its mount is the place where the data should be.
///
/// # Errors
/// `Refused` for a repository that this host does not know; what the first repository gave, if none answers.
pub fn survey<'a>(repositories: &'a [Repository], pins: &Pins, request: &Request) -> Result<Survey<'a>> {
    let mut silent = Silence::default();
    let mut catalogs: Vec<(&Repository, Catalog)> = Vec::new();
    for repository in repositories {
        if let Ok(identity) = repository.identity() {
            let uuid = identity.uuid.clone();
            pins.compare(repository)
                .map_err(|error| error.context(format!("use repository \"{}\" with UUID {uuid}", repository.name)))?;
        }
        match catalog::read(repository, None) {
            Ok(catalog) => catalogs.push((repository, catalog)),
            Err(error) => silent.note(repository, error),
        }
    }
    let (backups, holders) = merge(&catalogs);
    let Some((system, segment_size)) = choose_system(&backups, request)? else {
        let mut survey = silent.finish(repositories.len(), None, Vec::new(), holders, Vec::new())?;
        survey.archive.damaged = damaged(&catalogs);
        return Ok(survey);
    };
    let mut answered = Vec::new();
    for (repository, _) in &catalogs {
        match read_wal(repository, system, segment_size) {
            Ok(found) => answered.push((*repository, found)),
            Err(error) => silent.note(repository, error),
        }
    }
    let identifier = system.to_string();
    let own = backups
        .into_values()
        .filter(|backup| backup.system_identifier == identifier)
        .collect();
    let mut survey = silent.finish(repositories.len(), Some((system, segment_size)), own, holders, answered)?;
    survey.archive.damaged = damaged(&catalogs);
    for (repository, _) in &survey.answered {
        if let Some(last) = events::systems(repository)?.last() {
            survey.current.insert(repository.name.clone(), last.system);
        }
    }
    Ok(survey)
}

/// Backups that no repository can describe.
fn damaged(catalogs: &[(&Repository, Catalog)]) -> BTreeMap<Label, String> {
    let sound = |label: &Label| catalogs.iter().any(|(_, catalog)| catalog.get(*label).is_some());
    catalogs
        .iter()
        .flat_map(|(_, catalog)| &catalog.unreadable)
        .filter(|(label, _)| !sound(label))
        .cloned()
        .collect()
}

/// What one repository has of a system.
struct Found {
    list: WalList,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    unusable: BTreeMap<TimelineId, Unusable>,
}

type Holders<'a> = BTreeMap<Label, Vec<&'a Repository>>;

#[derive(Default)]
struct Silence {
    silent: Vec<Silent>,
    first: Option<Error>,
}

impl Silence {
    fn note(&mut self, repository: &Repository, error: Error) {
        let why = match error.nearest_hint() {
            Some(hint) => format!("{} ({hint})", chain(&error)),
            None => chain(&error),
        };
        // Not mounted, not readable, not whole: it may hold what is missing elsewhere. Only what the configuration lacks
        // does not come by waiting.
        let temporary = error.kind() != Kind::Config;
        self.silent.push(Silent {
            name: repository.name.clone(),
            why,
            temporary,
        });
        self.first.get_or_insert(error);
    }

    fn finish<'a>(
        self,
        repositories: usize,
        system: Option<(SystemId, SegmentSize)>,
        backups: Vec<BackupInfo>,
        holders: Holders<'a>,
        found: Vec<(&'a Repository, Found)>,
    ) -> Result<Survey<'a>> {
        if let Some(error) = self.first.filter(|_| self.silent.len() >= repositories) {
            return Err(error);
        }
        let mut histories = BTreeMap::new();
        let mut unusable = BTreeMap::new();
        let mut stored: BTreeMap<TimelineId, StoredTimes> = BTreeMap::new();
        for (_, one) in &found {
            for (id, history) in &one.histories {
                histories.entry(*id).or_insert_with(|| history.clone());
            }
            for (id, times) in &one.list.stored {
                let known = stored.entry(*id).or_default();
                *known = known.union(*times);
            }
            unusable.extend(one.unusable.clone());
        }
        let wal = Wal::union(found.iter().map(|(_, one)| &one.list));
        let of_backups = backups.iter().map(BackupInfo::timeline);
        let without = wal.timelines().chain(of_backups).filter(|id| *id != TimelineId(1));
        for id in without {
            unusable.entry(id).or_insert_with(|| Unusable {
                object: format!("{:08X}.history", id.0),
                why: "its history file is not in the archive".to_owned(),
            });
        }
        unusable.retain(|id, _| !histories.contains_key(id));
        let archive = Archive {
            backups,
            wal,
            histories,
            stored,
            unusable,
            damaged: BTreeMap::new(),
            segment_size: system.map_or(SegmentSize::DEFAULT, |(_, size)| size),
            incomplete: self.silent.iter().any(|silent| silent.temporary),
        };
        let answered: Vec<(&Repository, WalList)> = found
            .into_iter()
            .map(|(repository, one)| (repository, one.list))
            .collect();
        let names: BTreeSet<&str> = answered
            .iter()
            .map(|(repository, _)| repository.name.as_str())
            .collect();
        let heard = |(label, mut holders): (Label, Vec<&'a Repository>)| {
            holders.retain(|repository| names.contains(repository.name.as_str()));
            (label, holders)
        };
        let holders = holders.into_iter().map(heard).collect();
        Ok(Survey {
            archive,
            holders,
            answered,
            system: system.map(|(system, _)| system),
            current: BTreeMap::new(),
            silent: self.silent,
        })
    }
}

fn merge<'a>(catalogs: &[(&'a Repository, Catalog)]) -> (BTreeMap<Label, BackupInfo>, Holders<'a>) {
    let mut backups = BTreeMap::new();
    let mut holders: Holders<'a> = BTreeMap::new();
    for (repository, catalog) in catalogs {
        for (label, why) in &catalog.unreadable {
            log::warn!(
                "repository \"{}\": backup {label} cannot be used: {why}",
                repository.name
            );
        }
        for backup in &catalog.backups {
            backups.entry(backup.label).or_insert_with(|| backup.clone());
            holders.entry(backup.label).or_default().push(*repository);
        }
    }
    // A backup that leans on what nobody has cannot be restored: an older one may be.
    let has = |label: Label| catalogs.iter().any(|(_, catalog)| catalog.has(label));
    let lacking = |backup: &BackupInfo| backup.references.iter().copied().find(|label| !has(*label));
    backups.retain(|label, backup| match lacking(backup) {
        None => true,
        Some(lost) => {
            log::warn!("backup {label} cannot be used: it leans on {lost}, which no repository has");
            false
        }
    });
    (backups, holders)
}

/// The system of the backup that is named, of the newest before the target time, or of the newest there is.
fn choose_system(backups: &BTreeMap<Label, BackupInfo>, request: &Request) -> Result<Option<(SystemId, SegmentSize)>> {
    let until = |time: Option<UtcTime>| {
        let fits = |backup: &&BackupInfo| backup.good && time.is_none_or(|time| backup.stopped <= time);
        backups.values().filter(fits).max_by_key(|backup| backup.stopped)
    };
    let time = match &request.target {
        Target::Time { time, .. } => Some(*time),
        _ => None,
    };
    let named = request.backup.and_then(|label| backups.get(&label));
    let chosen = named
        .or_else(|| until(time))
        .or_else(|| until(None))
        .or_else(|| backups.values().next_back());
    chosen
        .map(|backup| Ok((backup.system()?, backup.wal_segment_size()?)))
        .transpose()
}

fn read_wal(repository: &Repository, system: SystemId, size: SegmentSize) -> Result<Found> {
    if repository.identity()?.encrypted && !repository.opening.has_identity() {
        if let Some(why) = repository.opening.why_unusable() {
            return Err(why
                .copy()
                .context(format!("repository \"{}\" is encrypted", repository.name)));
        }
        return Err(Error::new(
            Kind::Config,
            format!(
                "repository \"{}\" is encrypted, and no identity is configured for it",
                repository.name
            ),
        )
        .hint(format!(
            "set identity_file in encryption of [repository.{}] to the file with the secret key",
            repository.name
        )));
    }
    let list = wal::list(repository, system, size)?;
    let found = wal::read_histories(repository, system)?;
    let mut unusable = BTreeMap::new();
    for one in found.unreadable {
        // Asking again may help: until then this repository is silent.
        if one.error.kind() == Kind::Transient {
            return Err(one.error);
        }
        let why = chain(&one.error);
        log::warn!("the history of timeline {} cannot be used: {why}", one.timeline.0);
        unusable.insert(
            one.timeline,
            Unusable {
                object: one.object,
                why,
            },
        );
    }
    Ok(Found {
        list,
        histories: found.known,
        unusable,
    })
}
