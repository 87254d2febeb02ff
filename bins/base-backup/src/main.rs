//! `pgkeep-base-backup`: takes a physical backup of a running server into every repository.

mod args;
mod backup;
mod copy;
mod damage;
mod item;
mod listing;
mod pages;
mod plan;
mod result;
mod role;
mod server;
mod tally;
mod wait;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use common::config::cli::FormatName;
use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result, chain};
use common::exit;
use common::job::{Job, Origin, Report};
use common::journal::Loudness;
use common::repository::Repository;
use common::time::UtcTime;
use common::{open, process};

use args::{Args, BackupType, Role};
use backup::{Request, Surroundings};
use plan::Where;
use result::Ended;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        check_built(&args)?;
        let environment = exit::environment;
        let config = args.common.load(&environment)?;
        let cluster = args.common.choose(&config)?;
        become_owner(cluster.data_directory()?)?;
        let origin = Origin::of_this_process();
        let host = origin.host.clone();
        let job = Job::start(config.job(cluster, "base-backup", origin), UtcTime::now());
        let result = work(&args, &config, cluster, host);
        let report = match &result {
            Ok(ended) => ended.report(),
            Err(error) => Report::failure(error, exit::WORK),
        };
        job.finish(&report, UtcTime::now());
        let ended = result?;
        match args.format.format {
            FormatName::Text => exit::print(&ended.text())?,
            FormatName::Json => exit::print(&ended.json()?)?,
        }
        Ok(ended)
    })
}

/// Refuses what this version cannot do yet, before anything is touched.
fn check_built(args: &Args) -> Result<()> {
    let refuse = |what: &str| {
        Err(
            Error::new(Kind::Config, format!("this version takes full backups only, {what}"))
                .hint("use --type full, or --type auto, which is full for now"),
        )
    };
    match args.kind {
        BackupType::Incr => refuse("no incremental ones"),
        BackupType::Diff => refuse("no differential ones"),
        BackupType::Auto | BackupType::Full if args.audit => refuse("so there is nothing for --audit to compare with"),
        BackupType::Auto | BackupType::Full => Ok(()),
    }
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
        only_on: match args.only_on {
            Role::Any => Where::Any,
            Role::Primary => Where::Primary,
            Role::Standby => Where::Standby,
            Role::PreferStandby => Where::PreferStandby,
        },
        if_older_than: args.if_older_than,
        note: args.note.clone(),
        jobs: args.jobs.unwrap_or(config.jobs),
        level: config.compression_level,
    };
    let around = Surroundings {
        cluster,
        repositories: &repositories,
        connection: cluster.connection(&exit::environment)?,
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
