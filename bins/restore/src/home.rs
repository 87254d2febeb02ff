//! Whether what is restored belongs here: the same system as before, and a host that may archive for it. Pure but for
//! [`Home::look`].

use std::collections::BTreeMap;
use std::path::Path;

use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result};
use common::job::Status;
use common::postgres::{ControlFile, SystemId};
use common::repository::backup::BackupInfo;
use common::repository::pins::Pins;
use common::repository::{ClusterName, Repository};

/// What this host knows of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Home {
    /// The system in the configured data directory, if one can be read there.
    pub system: Option<SystemId>,
    /// Whether a server of this cluster has archived or was backed up from here into one of the repositories.
    pub has_archived: bool,
}

impl Home {
    /// Looks around. What cannot be read counts as not there: then archiving stays off, which loses nothing.
    ///
    /// A pin alone proves little, since `archive-get` leaves one wherever a copy recovers.
    ///
    /// # Errors
    /// `Config` if the cluster has no proper name.
    pub fn look(config: &Config, cluster: &Cluster, repositories: &[Repository]) -> Result<Self> {
        let pins = Pins::new(&config.state_directory, &ClusterName::parse(&cluster.name)?);
        let pinned = repositories.iter().any(|one| pins.get(&one.name, &one.url).is_some());
        let succeeded = |tool| {
            let path = Status::path(&config.state_directory, &cluster.name, tool);
            Status::read(&path)
                .ok()
                .flatten()
                .is_some_and(|status| status.last_success.is_some())
        };
        let system = |data: &Path| ControlFile::read(data).ok().map(|control| control.system_id);
        Ok(Self {
            system: cluster.data_directory.as_deref().and_then(system),
            has_archived: pinned && (succeeded("archive-push") || succeeded("base-backup")),
        })
    }
}

/// Whether the restored server archives, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archiving {
    /// As the backup's configuration has it; else it is switched off.
    pub keep: bool,
    /// Why, if nobody asked for it.
    pub why: Option<String>,
}

/// Decides whether the restored server archives. A second server that does takes the archive over with its new timeline,
/// so it must be asked for wherever this may not be the place of the first. `own`: into the configured data directory.
pub fn judge_archiving(asked: Option<bool>, own: bool, standby: bool, home: &Home) -> Archiving {
    let because = |keep: bool, why: &str| Archiving {
        keep,
        why: Some(why.to_owned()),
    };
    match (asked, own) {
        (Some(keep), _) => Archiving { keep, why: None },
        (None, true) if home.has_archived => because(true, "this host has archived for the cluster before"),
        // It begins no timeline of its own, and archives only once the cluster has made it the primary.
        (None, true) if standby => because(true, "a standby at the configured place"),
        (None, true) => because(
            false,
            "this host has never archived for the cluster, and two servers must not; if it takes the place of the one \
             that did: --archive-mode keep",
        ),
        (None, false) => because(
            false,
            "it is not the configured data directory; --archive-mode keep changes that",
        ),
    }
}

/// Notes that the backup is of another system than the one here or in a repository.
///
/// # Errors
/// `Refused` for that, unless the backup was named.
pub fn judge_system(
    backup: &BackupInfo,
    home: &Home,
    current: &BTreeMap<String, SystemId>,
    named: bool,
) -> Result<Vec<String>> {
    let own = backup.system()?;
    let here = home
        .system
        .filter(|here| *here != own)
        .map(|here| format!("the configured data directory holds system identifier {here}"));
    let there = current
        .iter()
        .filter(|(_, system)| **system != own)
        .map(|(name, system)| format!("repository \"{name}\" is continued by system identifier {system}"));
    let differs: Vec<String> = here.into_iter().chain(there).collect();
    if differs.is_empty() || named {
        let note = |differs: String| format!("{differs}, and backup {} is of {own}", backup.label);
        return Ok(differs.into_iter().map(note).collect());
    }
    let message = format!(
        "the newest backup that serves, {}, is of system identifier {own}: {}",
        backup.label,
        differs.join("; ")
    );
    Err(Error::new(Kind::Refused, message).hint(format!(
        "it is another database, from before pg_upgrade or initdb for instance: if you mean it, --backup {}; else take a \
         backup of the present one first",
        backup.label
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn home(system: Option<u64>, has_archived: bool) -> Home {
        Home {
            system: system.map(SystemId),
            has_archived,
        }
    }

    fn backup() -> BackupInfo {
        serde_json::from_str(
            r#"{"format":1,"label":"20261120T020000Z-full-3f9a1c","type":"full","cluster":"main","system_identifier":"7",
            "major":15,"server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,
            "started":"2026-11-20T02:00:00Z","stopped":"2026-11-20T02:01:00Z","finished":"2026-11-20T02:02:00Z",
            "timeline":1,"start_lsn":"0/2000028","stop_lsn":"0/2000138","wal":{"first":"a","last":"b"},
            "segment_size":16777216,"block_size":8192,"data_checksums":false,"tablespaces":[],"base":null,
            "references":[],"reused_from":null,"files":1,"size":1,"stored":1,"durations":{},"damaged_pages":0,
            "good":true,"objects":[],"signature":null}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_copy_on_another_machine_does_not_archive_unless_that_is_asked_for() {
        let keep = |asked, own, standby, archived| judge_archiving(asked, own, standby, &home(None, archived));
        assert!(keep(None, true, false, true).keep);
        assert!(keep(None, true, true, false).keep);
        for elsewhere in [keep(None, true, false, false), keep(None, false, false, true)] {
            assert!(!elsewhere.keep && elsewhere.why.unwrap().contains("--archive-mode keep"));
        }
        assert!(keep(Some(true), false, false, false).keep);
        assert!(!keep(Some(false), true, true, true).keep);
    }

    #[test]
    fn a_backup_of_another_system_is_taken_only_by_name() {
        let current = |id| BTreeMap::from([("local".to_owned(), SystemId(id))]);
        assert!(
            judge_system(&backup(), &home(Some(7), true), &current(7), false)
                .unwrap()
                .is_empty()
        );
        assert!(
            judge_system(&backup(), &home(None, true), &BTreeMap::new(), false)
                .unwrap()
                .is_empty()
        );
        for (here, there) in [(Some(8), 7), (Some(7), 8), (None, 8)] {
            let error = judge_system(&backup(), &home(here, true), &current(there), false).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused);
            assert!(
                error
                    .nearest_hint()
                    .unwrap()
                    .contains("--backup 20261120T020000Z-full-3f9a1c")
            );
            let notes = judge_system(&backup(), &home(here, true), &current(there), true).unwrap();
            assert!(
                notes.len() == 1 && notes[0].contains("system identifier 8"),
                "{notes:?}"
            );
        }
    }
}
