//! `pgkeep-base-backup`: takes a physical backup of a running server into every repository.

mod archived;
mod args;
mod backup;
mod base;
mod bundles;
mod changes;
mod copy;
mod damage;
mod earlier;
mod entries;
mod finding;
mod item;
mod listing;
mod making;
mod merge;
mod pages;
mod parts;
mod plan;
mod primary;
mod result;
mod same;
mod server;
mod span;
mod take;
mod tally;
mod task;
mod wait;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use common::config::cli::FormatName;
use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result, chain};
use common::exit::{self, Verdict};
use common::job::interruptible::{self, Ending};
use common::job::{Job, Origin};
use common::journal::Loudness;
use common::repository::Repository;
use common::time::UtcTime;
use common::{open, process};

use args::{Args, BackupType};
use backup::{Request, Surroundings};
use base::choose::Asked;
use result::Ended;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        check_args(&args)?;
        let environment = exit::environment;
        let config = args.common.load(&environment)?;
        let cluster = args.common.choose(&config)?;
        become_owner(cluster.data_directory()?)?;
        let origin = Origin::of_this_process();
        let host = origin.host.clone();
        let job = Job::start(config.job(cluster, "base-backup", origin), UtcTime::now());
        let ending = interruptible::run(job, exit::WORK, || work(&args, &config, cluster, host), Ended::report)?;
        if let Ending::Done(ended) = &ending {
            tell(&args, ended)?;
        }
        Ok(ending)
    })
}

/// Says what became of it: on stdout, unless nothing but errors is wanted.
fn tell(args: &Args, ended: &Ended) -> Result<()> {
    match args.format.format {
        FormatName::Json => exit::print(&ended.json()?),
        FormatName::Text if !args.verbosity().quiet => exit::print(&ended.text()),
        FormatName::Text => {
            if ended.code() != 0 {
                log::error!("{}", ended.text().trim_end());
            }
            Ok(())
        }
    }
}

/// Refuses what contradicts itself, before anything is touched.
fn check_args(args: &Args) -> Result<()> {
    if args.audit && args.kind == BackupType::Full {
        return Err(Error::new(
            Kind::Config,
            "a full backup reads everything: there is nothing for --audit to compare with",
        )
        .hint("leave out --type full, or --audit"));
    }
    Ok(())
}

fn become_owner(data_directory: &Path) -> Result<()> {
    if !data_directory.is_dir() {
        return Err(Error::new(
            Kind::Config,
            format!("data_directory {} is no directory", data_directory.display()),
        )
        .hint("the server and this program must run on the same host, and see the same path"));
    }
    if let Some(said) = process::become_owner_of(data_directory)? {
        log::info!("{said}");
    }
    Ok(())
}

fn work(args: &Args, config: &Config, cluster: &Cluster, host: String) -> Result<Ended> {
    let repositories = open::repositories(config, cluster, &args.repositories.names)?;
    let request = Request {
        kind: match args.kind {
            BackupType::Auto => Asked::Auto,
            BackupType::Full => Asked::Full,
            BackupType::Diff => Asked::Diff,
            BackupType::Incr => Asked::Incr,
        },
        audit: args.audit,
        only_on: args.only_on,
        if_older_than: args.if_older_than,
        note: args.note.clone(),
        jobs: args.jobs.unwrap_or(config.jobs),
        level: config.compression_level,
    };
    let around = Surroundings {
        cluster,
        repositories: &repositories,
        connection: cluster.connection(&exit::environment)?,
        primary: cluster.primary_connection(&exit::environment)?,
        state_directory: &config.state_directory,
        temporary_directory: std::env::temp_dir(),
        host,
        now: &UtcTime::now,
        on_terminal: std::io::stderr().is_terminal() && !args.verbosity().quiet,
    };
    let ended = backup::run(&request, &around)?;
    if matches!(ended, Ended::Made(_)) {
        sweep(&repositories);
    }
    Ok(ended)
}

/// What was not written to for so long, its writer has abandoned.
const ABANDONED: Duration = Duration::from_secs(86_400);

/// Removes what killed processes left half written. The backup is there in any case.
fn sweep(repositories: &[Repository]) {
    for repository in repositories {
        match repository.store.sweep(ABANDONED) {
            Ok(0) => {}
            Ok(count) => log::info!(
                "removed {count} abandoned files from repository \"{}\"",
                repository.name
            ),
            Err(error) => log::debug!("cannot sweep repository \"{}\": {}", repository.name, chain(&error)),
        }
    }
}
