//! `pgkeep-info`: what is stored, and which moments can be recovered.

mod args;
mod gather;
mod report;
mod show;
mod unfinished;

use std::process::ExitCode;

use common::config::cli::FormatName;
use common::error::{Error, Kind, Result};
use common::exit;
use common::open;
use common::repository::ClusterName;
use common::repository::pins::Pins;

use crate::unfinished::Running;

fn main() -> ExitCode {
    exit::main(exit::WORK, run)
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
    let report = gather::report(&cluster.name, &repositories, &known);
    match args.format.format {
        FormatName::Text => exit::print(&show::text(&report))?,
        FormatName::Json => {
            let json = serde_json::to_string_pretty(&report)
                .map_err(|error| Error::new(Kind::Failed, "encode the report").because(error))?;
            exit::print(&format!("{json}\n"))?;
        }
    }
    let unread: Vec<&str> = report.unread().collect();
    if unread.is_empty() {
        return Ok(());
    }
    let message = format!("cannot read all of repository {}", unread.join(", "));
    Err(Error::new(Kind::Failed, message).hint("the report says why, beside what could be read"))
}
