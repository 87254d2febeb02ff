//! `pgkeep-init`: creates the repositories of a cluster, makes keys, and checks whether everything is in place.

mod args;
mod check;
mod command;
mod create;
mod key;

use std::process::ExitCode;

use common::error::Result;
use common::exit;
use common::time::UtcTime;

fn main() -> ExitCode {
    exit::main(exit::WORK, run)
}

fn run(args: args::Args) -> Result<()> {
    // A key is made before there is a configuration that could name it.
    if let Some(path) = &args.generate_key {
        return key::generate(path, UtcTime::now());
    }
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
    if args.check {
        return check::run(&config, cluster, &args, &environment);
    }
    create::run(&config, cluster, &args, UtcTime::now())
}
