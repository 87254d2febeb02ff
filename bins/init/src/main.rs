//! `pgkeep-init`: creates the repositories of a cluster, makes keys, and checks whether everything is in place.

mod access;
mod archiver;
mod args;
mod check;
mod command;
mod create;
mod key;
mod lifecycle;
mod system;

use std::process::ExitCode;

use common::config::{Cluster, Config, Location};
use common::error::{Error, Kind, Result};
use common::exit;
use common::open;
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
    if args.check_config {
        return exit::print(&named(&config));
    }
    let cluster = args.common.choose(&config)?;
    if args.lifecycle {
        return print_rules(&config, cluster, &args);
    }
    open::become_owner(cluster)?;
    if args.check {
        return check::run(&config, cluster, &args, &environment);
    }
    create::run(&config, cluster, &args, &environment, UtcTime::now())
}

/// What a configuration names, in one line.
fn named(config: &Config) -> String {
    let list = |names: Vec<&str>| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    format!(
        "clusters: {}; repositories: {}\n",
        list(config.clusters.iter().map(|cluster| cluster.name.as_str()).collect()),
        list(
            config
                .repositories
                .iter()
                .map(|repository| repository.name.as_str())
                .collect()
        ),
    )
}

/// The rules go to stdout, what there is to say about them to stderr.
fn print_rules(config: &Config, cluster: &Cluster, args: &args::Args) -> Result<()> {
    let chosen = config.repositories(&args.repositories.names)?;
    let in_s3: Vec<_> = (chosen.iter())
        .filter(|repository| matches!(repository.location, Location::S3 { .. }))
        .collect();
    let repository = match (in_s3.as_slice(), chosen.as_slice()) {
        ([one], _) => one,
        ([], [one, ..]) => one,
        (several, _) => {
            let names: Vec<&str> = several.iter().map(|repository| repository.name.as_str()).collect();
            let message = format!("several repositories are in buckets: {}", names.join(", "));
            return Err(Error::new(Kind::Config, message).hint("choose one with --repository"));
        }
    };
    let rules = lifecycle::rules(repository, &cluster.name, cluster.full_interval)?;
    log::info!("repository \"{}\": {}", repository.name, rules.said);
    exit::print(&format!("{:#}\n", rules.document))
}
