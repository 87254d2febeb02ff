//! `pgkeep-info`: what is stored, and which moments can be recovered.

mod args;
mod compliance;
mod gather;
mod period;
mod report;
mod show;
mod stats;
mod timeline;
mod unfinished;

#[cfg(test)]
#[path = "../tests/schema/mod.rs"]
mod schema;

use std::process::ExitCode;

use common::config::cli::FormatName;
use common::error::{Error, Kind, Result};
use common::exit;
use common::job::history;
use common::open;
use common::repository::ClusterName;
use common::repository::pins::Pins;
use common::time::UtcTime;

use crate::compliance::{Compliance, read};
use crate::period::Period;
use crate::report::Untold;
use crate::unfinished::Running;

fn main() -> ExitCode {
    exit::main(exit::WORK, run)
}

fn tell<T: serde::Serialize>(args: &args::Args, result: &T, text: impl FnOnce() -> String) -> Result<()> {
    match args.format.format {
        FormatName::Text => exit::print(&text()),
        FormatName::Json => {
            let json = serde_json::to_string_pretty(result)
                .map_err(|error| Error::new(Kind::Failed, "encode the report").because(error))?;
            exit::print(&format!("{json}\n"))
        }
    }
}

fn run(args: args::Args) -> Result<()> {
    let environment = exit::environment;
    let config = args.common.load(&environment)?;
    let cluster = args.common.choose(&config)?;
    open::become_owner(cluster)?;
    let state = config.state_of(cluster);
    let known = gather::Known {
        cache: &state.join("catalog"),
        pins: Pins::new(&config.state_directory, &ClusterName::parse(&cluster.name)?),
        running: Running::look(&state, open::host_name()),
    };
    let repositories = open::repositories(&config, cluster, &args.repositories.names)?;
    let now = UtcTime::now();
    let period = Period::parse(&args.report, now)?;
    let report = gather::report(&cluster.name, &repositories, &known);
    let untold = report.untold();
    let history = |untold| read::history(history::read(&config.state_directory, &cluster.name), untold);
    if args.stats {
        let (history, untold) = history(untold);
        let stats = stats::Stats::of(&report, &history, untold, now);
        tell(&args, &stats, || stats.text())?;
        complete(&stats.incomplete)
    } else if let Some(period) = period {
        let records = read::records(&repositories, &report, history(untold));
        let made = Compliance::of(&report, records, cluster.objectives, period);
        tell(&args, &made, || made.text())?;
        complete(&made.incomplete)
    } else {
        tell(&args, &report, || show::text(&report))?;
        complete(&untold)
    }
}

/// What was shown is all there is, or else a failure.
fn complete(untold: &[Untold]) -> Result<()> {
    match untold {
        [] => Ok(()),
        some => {
            let message = format!("cannot read all of {}", Untold::places(some).join(", "));
            Err(Error::new(Kind::Failed, message).hint("the report says why, beside what could be read"))
        }
    }
}
