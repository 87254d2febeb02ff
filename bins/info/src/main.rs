//! `pgkeep-info`: what is stored, and which moments can be recovered.

mod args;
mod compliance;
mod gather;
mod report;
mod show;
mod stats;
mod timeline;
mod unfinished;

use std::process::ExitCode;

use common::config::cli::FormatName;
use common::error::{Error, Kind, Result};
use common::exit;
use common::job::history;
use common::open;
use common::repository::ClusterName;
use common::repository::pins::Pins;
use common::time::UtcTime;

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
    if let Some(note) = cluster
        .data_directory
        .as_deref()
        .map(common::process::become_owner_of)
        .transpose()?
        .flatten()
    {
        log::info!("{note}");
    }
    let state = config.state_of(cluster);
    let known = gather::Known {
        cache: &state.join("catalog"),
        pins: Pins::new(&config.state_directory, &ClusterName::parse(&cluster.name)?),
        running: Running::look(&state, open::host_name()),
    };
    let repositories = open::repositories(&config, cluster, &args.repositories.names)?;
    let now = UtcTime::now();
    let period = compliance::period(&args.report, now)?;
    let report = gather::report(&cluster.name, &repositories, &known);
    if args.stats {
        let history = history::read(&config.state_directory, &cluster.name)?;
        let stats = stats::Stats::of(&report, &history, now);
        tell(&args, &stats, || stats.text())?;
    } else if let Some(period) = period {
        let history = history::read(&config.state_directory, &cluster.name)?;
        let tests = compliance::tests(&repositories, period);
        let made = compliance::Compliance::of(&report, tests, &history, cluster.objectives, period);
        tell(&args, &made, || made.text())?;
    } else {
        tell(&args, &report, || show::text(&report))?;
    }
    let unread: Vec<&str> = report.unread().collect();
    if unread.is_empty() {
        return Ok(());
    }
    let message = format!("cannot read all of repository {}", unread.join(", "));
    Err(Error::new(Kind::Failed, message).hint("the report says why, beside what could be read"))
}
