//! Reads what the repositories hold: backups, WAL, histories. One that does not answer is noted, not the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::error::{Error, Kind, Result, chain};
use common::postgres::{SegmentSize, SystemId, TimelineHistory};
use common::repository::backup::BackupInfo;
use common::repository::catalog::{self, Catalog};
use common::repository::reach::Wal;
use common::repository::wal::{self, WalList};
use common::repository::{Label, Repository};
use common::time::UtcTime;

use crate::plan::Archive;
use crate::target::{Request, Target};

/// A repository that could not be read, or not wholly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Its name in the configuration.
    pub name: String,
    /// Why.
    pub why: String,
    /// Whether asking again may help.
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
    /// Those that did not.
    pub silent: Vec<Silent>,
}

/// Reads every repository; `cache` remembers documents that never change.
///
/// # Errors
/// What the first repository gave, if none answers; `Corrupt` if a backup's document is not sound.
pub fn survey<'a>(repositories: &'a [Repository], cache: &Path, request: &Request) -> Result<Survey<'a>> {
    let mut silent = Silence::default();
    let mut catalogs: Vec<(&Repository, Catalog)> = Vec::new();
    for repository in repositories {
        match catalog::read(repository, Some(cache)) {
            Ok(catalog) => catalogs.push((repository, catalog)),
            Err(error) => silent.note(repository, error),
        }
    }
    let (backups, holders) = merge(&catalogs);
    let Some((system, segment_size)) = choose_system(&backups, request)? else {
        return silent.finish(repositories.len(), None, Vec::new(), holders, Vec::new());
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
    silent.finish(repositories.len(), Some((system, segment_size)), own, holders, answered)
}

type Found = (WalList, BTreeMap<common::postgres::TimelineId, TimelineHistory>);
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
        let temporary = error.kind() == Kind::Transient;
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
        for (_, (_, known)) in &found {
            for (id, history) in known {
                histories.entry(*id).or_insert_with(|| history.clone());
            }
        }
        let archive = Archive {
            backups,
            wal: Wal::union(found.iter().map(|(_, (list, _))| list)),
            histories,
            segment_size: system.map_or(SegmentSize::DEFAULT, |(_, size)| size),
            incomplete: self.silent.iter().any(|silent| silent.temporary),
        };
        let answered: Vec<(&Repository, WalList)> = found
            .into_iter()
            .map(|(repository, (list, _))| (repository, list))
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
    let histories = wal::read_histories(repository, system)?;
    // Without it a wrong branch might be taken for the newest: another repository has to serve.
    match histories.unreadable.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok((list, histories.known)),
    }
}
