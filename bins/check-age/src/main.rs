//! `pgkeep-check-age`: is the newest backup, full backup, restore test or dump young enough.

mod args;
mod judge;
mod look;

use std::process::ExitCode;

use common::check::Line;
use common::config::access::{Access, access};
use common::error::{Error, Kind, Result};
use common::exit;
use common::open;
use common::time::UtcTime;

use args::Args;
use judge::{Newest, Place, judge};

fn main() -> ExitCode {
    exit::main(exit::CHECK, |args: Args| {
        let line = check(&args)?;
        exit::print(&line.text())?;
        Ok(line)
    })
}

fn check(args: &Args) -> Result<Line> {
    let (warning, critical) = args.what.limits();
    let limits = (args.warning.unwrap_or(warning), args.critical.unwrap_or(critical));
    if limits.0 > limits.1 {
        return Err(Error::new(Kind::Config, "--warning is longer than --critical"));
    }
    Ok(judge(args.what.name(), &places(args)?, UtcTime::now(), limits))
}

fn places(args: &Args) -> Result<Vec<Place>> {
    let config = match access(&args.common, &exit::environment)? {
        Access::Full(config) => config,
        Access::StatusOnly(state, cluster) => return Ok(vec![look::status(&state, &cluster, args.what)]),
    };
    let cluster = args.common.choose(&config)?;
    // As root it would not have the keys and known hosts of the jobs.
    open::become_owner(cluster)?;
    let places = look::repositories(&config, cluster, &args.repositories.names, args.what)?;
    // A repository that does not answer is not known by what a job left on this host; one that this user may not read is.
    if places.iter().all(|place| matches!(place.newest, Newest::Denied(_))) {
        let status = look::status(&config.state_directory, &cluster.name, args.what);
        if !matches!(status.newest, Newest::Silent(_)) {
            return Ok(vec![status]);
        }
    }
    Ok(places)
}
