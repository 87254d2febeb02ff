//! `pgkeep-sync`: brings a repository level with another.

mod args;
mod backups;
mod copy;
mod dumps;
mod events;
mod objects;
mod sync;
mod tally;
mod wal;

use std::process::ExitCode;

use common::codec::Opening;
use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result};
use common::exit::{self, Verdict};
use common::job::{Job, Origin, Report};
use common::open;
use common::repository::Repository;
use common::time::UtcTime;

use args::Args;
use tally::Tally;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let environment = exit::environment;
        let config = args.common.load(&environment)?;
        let cluster = args.common.choose(&config)?;
        open::become_owner(cluster)?;
        let job = Job::start(config.job(cluster, "sync", Origin::of_this_process()), UtcTime::now());
        let result = run(&args, &config, cluster);
        let report = match &result {
            Ok(tally) => tally.report(),
            Err(error) => Report::failure(error, exit::WORK),
        };
        if !args.dry_run {
            job.finish(&report, UtcTime::now());
        }
        let tally = result?;
        exit::print(&tally.text(args.dry_run))?;
        Ok::<Tally, Error>(tally)
    })
}

impl Verdict for Tally {
    fn code(&self) -> u8 {
        self.exit_code()
    }
}

fn run(args: &Args, config: &Config, cluster: &Cluster) -> Result<Tally> {
    let mut repositories = open::repositories(config, cluster, &[])?;
    let from = choose(&repositories, args.from.as_deref())?;
    if args.to.as_deref() == Some(from.as_str()) {
        return Err(Error::new(
            Kind::Config,
            format!("\"{from}\" is both source and target"),
        ));
    }
    if let (Some(file), Some(source)) = (&args.identity, repositories.iter_mut().find(|other| other.name == from)) {
        source.opening = Opening::from_identity_file(file)?;
    }
    let (source, others): (Vec<&Repository>, Vec<&Repository>) =
        repositories.iter().partition(|repository| repository.name == from);
    let targets: Vec<&Repository> = others
        .into_iter()
        .filter(|repository| args.to.as_ref().is_none_or(|to| *to == repository.name))
        .collect();
    let Some(source) = source.first().filter(|_| !targets.is_empty()) else {
        return Err(match &args.to {
            Some(name) => unknown(&repositories, name),
            None => Error::new(Kind::Config, "there is only one repository, and sync needs two")
                .hint("configure a second one: [repository.NAME]"),
        });
    };
    let how = sync::How {
        jobs: args.jobs.unwrap_or(config.jobs),
        dry_run: args.dry_run,
        spool: &config.spool_directory,
        policies: config
            .repositories
            .iter()
            .filter_map(|repository| Some((repository.name.clone(), repository.retention.clone()?)))
            .collect(),
        now: UtcTime::now(),
    };
    Ok(sync::run(source, &targets, &how))
}

fn choose(repositories: &[Repository], name: Option<&str>) -> Result<String> {
    let found = match name {
        Some(name) => repositories.iter().find(|repository| repository.name == name),
        None => repositories
            .iter()
            .find(|repository| repository.required)
            .or(repositories.first()),
    };
    match (found, name) {
        (Some(found), _) => Ok(found.name.clone()),
        (None, Some(name)) => Err(unknown(repositories, name)),
        (None, None) => {
            Err(Error::new(Kind::Config, "no repository is configured").hint("add a table [repository.NAME]"))
        }
    }
}

fn unknown(repositories: &[Repository], name: &str) -> Error {
    let names: Vec<&str> = repositories.iter().map(|repository| repository.name.as_str()).collect();
    Error::new(Kind::Config, format!("there is no repository \"{name}\""))
        .hint(format!("configured: {}", names.join(", ")))
}
