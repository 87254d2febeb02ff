//! Any moment that can be recovered.

use common::error::{Error, Kind, Result};
use common::repository::{Repository, catalog};
use common::time::UtcTime;

use common::scratch::{Plan, Restorer, Wanted};
use std::path::Path;
use std::time::Duration;

/// So often another moment is tried: each is on average half as far from the first backup's end, a year to a tenth of a second.
const TRIES: u32 = 50;

/// Chooses a moment between the first good backup (or that of `wanted`) and now, of which a restore says that it can be reached.
///
/// # Errors
/// `NotFound` if there is no good backup; what the last plan was refused for.
pub fn random(
    repositories: &[Repository],
    restorer: &Restorer,
    wanted: &Wanted,
    to: &Path,
    now: UtcTime,
) -> Result<(Wanted, Plan)> {
    let mut first: Option<UtcTime> = None;
    let mut silent = None;
    for repository in repositories {
        match catalog::read(repository, None) {
            Ok(catalog) => {
                let chosen = |label| wanted.backup.is_none_or(|wanted| wanted == label);
                let ended = catalog
                    .backups
                    .iter()
                    .filter(|info| info.good && chosen(info.label))
                    .map(|info| info.stopped);
                first = first.into_iter().chain(ended).min();
            }
            Err(error) => silent = Some(error),
        }
    }
    let Some(first) = first else {
        return Err(silent.unwrap_or_else(|| Error::new(Kind::NotFound, "there is no good backup")));
    };
    // A moment that is refused lies behind the last commit, or in a gap: the next one is sought before it.
    let mut span = u64::try_from(now.since(first).as_micros()).unwrap_or(u64::MAX).max(1);
    let mut last = None;
    for _ in 0..TRIES {
        let after = below(span)?.max(1);
        let time = first.plus(Duration::from_micros(after));
        let at = Wanted {
            time: Some(time),
            ..wanted.clone()
        };
        match restorer.plan(&at, to) {
            Ok(plan) => {
                log::info!("the moment is {time}");
                return Ok((at, plan));
            }
            Err(error) if matches!(error.kind(), Kind::Transient | Kind::Config) => return Err(error),
            Err(error) => last = Some(error),
        }
        span = after;
    }
    Err(last
        .unwrap_or_else(|| Error::new(Kind::NotFound, "no moment can be recovered"))
        .context(format!("none of {TRIES} moments since {first} can be reached")))
}

/// A random number below `limit`. The small bias of a remainder does not matter here.
fn below(limit: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(Kind::Failed, format!("no random numbers: {error}")))?;
    Ok(u64::from_le_bytes(bytes) % limit.max(1))
}
