//! `pgkeep-sync`: brings a repository level with another.

mod args;
mod backups;
mod copy;
mod dumps;
mod events;
mod need;
mod objects;
mod sync;
mod tally;
mod wal;

use std::process::ExitCode;

use common::codec::Opening;
use common::config::{Cluster, Config, RepositorySettings};
use common::error::{Error, Kind, Result};
use common::exit::{self, Verdict};
use common::job::{Job, Origin, Report, Status};
use common::open;
use common::repository::Repository;
use common::time::UtcTime;

use args::Args;
use need::Need;
use tally::Tally;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let environment = exit::environment;
        let config = args.common.load(&environment)?;
        let cluster = args.common.choose(&config)?;
        open::become_owner(cluster)?;
        let ways = plan(&args, &config);
        if args.if_needed && !is_needed(&config, cluster, ways.as_ref().map_or(&[], |ways| &ways.targets)) {
            return Ok(Tally::default());
        }
        let job = Job::start(config.job(cluster, "sync", Origin::of_this_process()), UtcTime::now());
        let result = ways.and_then(|ways| run(&args, &config, cluster, &ways));
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

/// From where to where.
struct Ways {
    source: String,
    targets: Vec<String>,
}

fn plan(args: &Args, config: &Config) -> Result<Ways> {
    let source = choose(&config.repositories, args.from.as_deref())?;
    if args.to.as_deref() == Some(source.as_str()) {
        return Err(Error::new(
            Kind::Config,
            format!("\"{source}\" is both source and target"),
        ));
    }
    let names = config.repositories.iter().map(|repository| &repository.name);
    let targets: Vec<String> = names
        .filter(|name| **name != source && args.to.as_ref().is_none_or(|to| to == *name))
        .cloned()
        .collect();
    match &args.to {
        _ if !targets.is_empty() => Ok(Ways { source, targets }),
        Some(name) => Err(unknown(&config.repositories, name)),
        None => Err(
            Error::new(Kind::Config, "there is only one repository, and sync needs two")
                .hint("configure a second one: [repository.NAME]"),
        ),
    }
}

/// Whether a run that comes every minute has anything to do; says why not. A status that cannot be read says nothing.
fn is_needed(config: &Config, cluster: &Cluster, targets: &[String]) -> bool {
    let last = Status::read(&Status::path(&config.state_directory, &cluster.name, "sync"));
    let missed = need::missed(&config.state_of(cluster));
    match need::judge(last.ok().flatten().as_ref(), missed, targets, UtcTime::now()) {
        Need::Run(why) => {
            log::debug!("bringing repositories level: {why}");
            true
        }
        Need::Nothing(why) => {
            log::info!("nothing to do: {why}; without --if-needed it is done now");
            false
        }
    }
}

fn run(args: &Args, config: &Config, cluster: &Cluster, ways: &Ways) -> Result<Tally> {
    let mut repositories = open::repositories(config, cluster, &[])?;
    let is_source = |repository: &Repository| repository.name == ways.source;
    if let (Some(file), Some(source)) = (&args.identity, repositories.iter_mut().find(|one| is_source(one))) {
        source.opening = Opening::from_identity_file(file)?;
    }
    let targets: Vec<&Repository> = repositories
        .iter()
        .filter(|repository| ways.targets.contains(&repository.name))
        .collect();
    let Some(source) = repositories.iter().find(|one| is_source(one)) else {
        return Err(unknown(&config.repositories, &ways.source));
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

fn choose(repositories: &[RepositorySettings], name: Option<&str>) -> Result<String> {
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

fn unknown(repositories: &[RepositorySettings], name: &str) -> Error {
    let names: Vec<&str> = repositories.iter().map(|repository| repository.name.as_str()).collect();
    Error::new(Kind::Config, format!("there is no repository \"{name}\""))
        .hint(format!("configured: {}", names.join(", ")))
}
