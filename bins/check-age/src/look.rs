//! Where ages come from: repositories, or what jobs on this host have left.

use std::path::Path;
use std::time::Duration;

use common::config::{Cluster, Config};
use common::error::{Result, chain};
use common::job::{Outcome, Status};
use common::open::{self, Purpose};
use common::repository::{BackupType, Repository, catalog, dumps, evidence};
use common::time::UtcTime;

use crate::args::What;
use crate::judge::{Newest, Place};
use crate::seen;

/// Monitoring does not wait longer for a store.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is looked at where nobody says it: backups, or dumps where the cluster is only dumped. Also a repository that might know better and
/// cannot be read.
///
/// # Errors
/// As for [`open::purpose`].
pub fn what(config: &Config, cluster: &Cluster) -> Result<(What, Option<Place>)> {
    Ok(match open::purpose(config, cluster, config.patience.min(PATIENCE))? {
        Purpose::Physical => (What::Backup, None),
        Purpose::Dumps => (What::Dump, None),
        Purpose::NotKnown(unread) => {
            let place = Place {
                name: unread.repository,
                required: unread.required,
                newest: Newest::Silent(unread.why),
                seen: None,
            };
            (What::Dump, Some(place))
        }
    })
}

/// Looks into every repository.
///
/// # Errors
/// `Config` if a name is unknown or a store cannot be used at all.
pub fn repositories(config: &Config, cluster: &Cluster, only: &[String], what: What) -> Result<Vec<Place>> {
    let repositories = open::repositories_within(config, cluster, only, config.patience.min(PATIENCE))?;
    let cache = config.state_of(cluster).join("catalog");
    let place = |repository: &Repository| Place {
        name: repository.name.clone(),
        required: repository.required,
        newest: newest(repository, &cache, what).unwrap_or_else(|error| match error.is_denied() {
            true => Newest::Denied(chain(&error)),
            false => Newest::Silent(chain(&error)),
        }),
        seen: None,
    };
    Ok(repositories.iter().map(place).collect())
}

fn newest(repository: &Repository, cache: &Path, what: What) -> Result<Newest> {
    repository.identity()?;
    match what {
        What::Backup | What::Full => {
            let catalog = catalog::read(repository, Some(cache))?;
            let wanted = catalog
                .backups
                .iter()
                .filter(|info| catalog.counts(info) && (what == What::Backup || info.kind == BackupType::Full));
            let newest = wanted.max_by_key(|info| info.stopped);
            Ok(newest.map_or(Newest::Never, |info| Newest::Made(info.stopped, info.label.to_string())))
        }
        What::RestoreTest => {
            let reports = evidence::reports(repository)?;
            let passed = reports.iter().rfind(|report| report.passed);
            let label = |report: &evidence::Report| {
                report
                    .label
                    .map_or_else(|| "no backup".to_owned(), |label| format!("of {label}"))
            };
            Ok(match reports.last() {
                None => Newest::Never,
                Some(last) if last.passed => Newest::Made(last.finished, label(last)),
                Some(last) => {
                    let problems = common::units::counted(last.problems, "problem");
                    Newest::Failed(
                        passed.map(|report| report.finished),
                        format!("{}, {problems}", label(last)),
                    )
                }
            })
        }
        What::Dump => {
            let newest = dumps::newest_of_databases(repository)?;
            Ok(newest.map_or(Newest::Never, |dump| Newest::Made(dump.started, dump.label.to_string())))
        }
    }
}

/// What is known on this host, for whoever may not read a repository: what the job has left or, where it ran elsewhere, what a run that
/// may read the repositories has seen in them.
pub fn status(state_directory: &Path, cluster: &str, what: What, now: UtcTime) -> Vec<Place> {
    let path = Status::path(state_directory, cluster, what.tool());
    let own = |newest| {
        vec![Place {
            name: "the status of this host".to_owned(),
            required: true,
            newest,
            seen: None,
        }]
    };
    let left = match Status::read(&path) {
        Err(error) => return own(Newest::Silent(chain(&error))),
        Ok(left) => left,
    };
    // Who was not the one to do it knows nothing by himself.
    if left.as_ref().is_none_or(|left| left.result == Outcome::Skipped) {
        match seen::read(state_directory, cluster, what) {
            Err(error) => return own(Newest::Silent(chain(&error))),
            Ok(Some(seen)) => return seen.places(now),
            Ok(None) => {}
        }
    }
    own(left.map_or_else(
        || {
            Newest::Silent(format!(
                "{} is not there: {} never ran on this host",
                path.display(),
                what.tool()
            ))
        },
        |left| of_status(&left, what),
    ))
}

fn of_status(status: &Status, what: What) -> Newest {
    let label = |time: UtcTime| {
        let label = status.last_success_fields.get("label").and_then(|label| label.as_str());
        label.map_or_else(|| format!("of {}", time.whole_seconds()), str::to_owned)
    };
    let full = || {
        let fields = [&status.fields, &status.last_success_fields];
        let seconds = fields
            .iter()
            .find_map(|fields| fields.get("newest_full_timestamp_seconds")?.as_i64())?;
        UtcTime::from_unix_seconds(seconds).ok()
    };
    match what {
        What::Full => full().map_or(Newest::Never, |time| {
            Newest::Made(time, format!("of {}", time.whole_seconds()))
        }),
        // What was found wrong with a backup does not go away by waiting.
        What::RestoreTest if status.result == Outcome::Failed => {
            Newest::Failed(status.last_success, status.message.clone().unwrap_or_default())
        }
        _ => status
            .last_success
            .map_or(Newest::Never, |time| Newest::Made(time, label(time))),
    }
}
