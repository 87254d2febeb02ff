//! What a run that could read the repositories has seen there, kept on this host for whoever may not.
//!
//! On a member of a cluster that takes no backups itself nothing else knows how old the newest one is. An answer from here is as old as
//! the look: a backup that was young enough then is said to be so until the next look is due, and after [`STALE`] nothing is said any more.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::durable;
use common::error::{Context, Error, Kind, Result, chain};
use common::time::UtcTime;
use common::units::display_seconds;
use serde::{Deserialize, Serialize};

use crate::args::What;
use crate::judge::{Newest, Place};

/// The timer looks every six hours.
pub const STALE: Duration = Duration::from_secs(8 * 3600);

/// What was there, and when.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    at: UtcTime,
    places: Vec<Place>,
}

fn path(state_directory: &Path, cluster: &str, what: What) -> PathBuf {
    let name = format!("{}.json", what.name().replace(' ', "-"));
    state_directory.join(cluster).join("seen").join(name)
}

/// Keeps what was seen now. That it cannot be kept keeps nobody from his answer.
pub fn keep(state_directory: &Path, cluster: &str, what: What, places: &[Place], at: UtcTime) {
    let path = path(state_directory, cluster, what);
    let seen = Seen {
        at,
        places: places.to_vec(),
    };
    let kept = serde_json::to_vec_pretty(&seen)
        .map_err(|error| Error::new(Kind::Failed, "encode").because(error))
        .and_then(|bytes| {
            if let Some(directory) = path.parent() {
                durable::create_dir_all(directory, 0o755)?;
            }
            durable::replace_unsynced(&path, &bytes, 0o644)
        });
    if let Err(error) = kept {
        log::warn!("what was seen is not kept for others: {}", chain(&error));
    }
}

/// What the last look saw; none if there never was one.
///
/// # Errors
/// `Corrupt` if the file is not what [`keep`] writes; else what the file system says.
pub fn read(state_directory: &Path, cluster: &str, what: What) -> Result<Option<Seen>> {
    let path = path(state_directory, cluster, what);
    let context = || format!("read {}", path.display());
    match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(context),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::new(Kind::Corrupt, context()).because(error)),
    }
}

impl Seen {
    /// The places as they were then, or, when that is too long ago, that nobody knows.
    pub fn places(self, now: UtcTime) -> Vec<Place> {
        let age = now.since(self.at);
        let as_seen = |mut place: Place| {
            place.seen = Some(self.at);
            if age > STALE {
                let why = format!("it was last looked at {} ago", display_seconds(age));
                place.newest = Newest::Silent(why);
            }
            place
        };
        self.places.into_iter().map(as_seen).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_seen_is_told_until_it_is_stale() {
        let directory = tempfile::tempdir().unwrap();
        let then = UtcTime::parse_compact("20261120T000000Z").unwrap();
        let place = Place {
            name: "a".to_owned(),
            required: true,
            newest: Newest::Made(then.minus(Duration::from_secs(22 * 3600)), "L".to_owned()),
            seen: None,
        };
        assert_eq!(read(directory.path(), "main", What::Backup).unwrap(), None);
        keep(
            directory.path(),
            "main",
            What::Backup,
            std::slice::from_ref(&place),
            then,
        );
        let told = |now| {
            read(directory.path(), "main", What::Backup)
                .unwrap()
                .unwrap()
                .places(now)
        };
        let soon = told(then.plus(STALE));
        assert_eq!(soon[0].newest, place.newest);
        assert_eq!(soon[0].seen, Some(then));
        let late = told(then.plus(STALE).plus(Duration::from_secs(1)));
        assert!(
            matches!(&late[0].newest, Newest::Silent(why) if why.contains("8h")),
            "{late:?}"
        );
        assert_eq!(read(directory.path(), "main", What::Full).unwrap(), None);
        fs::write(path(directory.path(), "main", What::Full), "{}").unwrap();
        assert!(read(directory.path(), "main", What::Full).is_err());
    }
}
