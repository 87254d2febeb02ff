//! `pgkeep-check-age`: is the newest backup, full backup, restore test or dump young enough.

mod args;
mod judge;
mod look;
mod seen;

use std::process::ExitCode;

use common::check::Line;
use common::config::access::{Access, access};
use common::error::{Error, Kind, Result};
use common::exit;
use common::open;
use common::time::UtcTime;

use args::{Args, What};
use judge::{Newest, Place, judge};

fn main() -> ExitCode {
    exit::main(exit::CHECK, |args: Args| {
        let line = check(&args)?;
        exit::print(&line.text())?;
        Ok(line)
    })
}

fn check(args: &Args) -> Result<Line> {
    let (what, places) = look_at(args)?;
    let (warning, critical) = what.limits();
    let limits = (args.warning.unwrap_or(warning), args.critical.unwrap_or(critical));
    if limits.0 > limits.1 {
        return Err(Error::new(Kind::Config, "--warning is longer than --critical"));
    }
    Ok(judge(what.name(), &places, UtcTime::now(), limits))
}

/// What is looked at, and what is there.
fn look_at(args: &Args) -> Result<(What, Vec<Place>)> {
    let config = match access(&args.common, &exit::environment)? {
        Access::Full(config) => config,
        Access::StatusOnly(state, cluster) => {
            let what = args.what.unwrap_or(What::Backup);
            return Ok((what, look::status(&state, &cluster, what, UtcTime::now())));
        }
    };
    let cluster = args.common.choose(&config)?;
    // As root it would not have the keys and known hosts of the jobs.
    open::become_owner(cluster)?;
    let (what, unread) = match args.what {
        Some(what) => (what, None),
        None => look::what(&config, cluster)?,
    };
    let mut places = look::repositories(&config, cluster, &args.repositories.names, what)?;
    // A repository that does not answer is not known by what a job left on this host; one that this user may not read is.
    if places.iter().all(|place| matches!(place.newest, Newest::Denied(_))) {
        let status = look::status(&config.state_directory, &cluster.name, what, UtcTime::now());
        if !status.iter().any(|place| matches!(place.newest, Newest::Silent(_))) {
            places = status;
        }
    } else if config.may_leave(cluster) && args.repositories.names.is_empty() {
        seen::keep(&config.state_directory, &cluster.name, what, &places, UtcTime::now());
    }
    if let Some(unread) = unread {
        // It may hold backups, so that looking at dumps is not enough.
        places.retain(|place| place.name != unread.name);
        places.push(unread);
    }
    Ok((what, places))
}
