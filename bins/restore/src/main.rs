//! `pgkeep-restore`: a backup, or any moment in its window, into a directory.

mod archived;
mod args;
mod branches;
mod databases;
mod delta;
mod describe;
mod fetch;
mod home;
mod layout;
mod maps;
mod only;
mod piece;
mod place;
mod plan;
mod prepare;
mod refusal;
mod restore;
mod route;
mod settings;
mod show;
mod survey;
mod target;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::config::cli::FormatName;
use common::config::{Cluster, Config, Location, RepositorySettings};
use common::error::{Context, Error, Kind, Result};
use common::exit::{self, Code};
use common::job::interruptible::{self, Ending};
use common::job::{Job, Origin, Report};
use common::open;
use common::process;
use common::repository::pins::Pins;
use common::repository::{ClusterName, Repository};
use common::time::UtcTime;

use crate::args::{ArchiveMode, Args, TargetAction};
use crate::home::Home;
use crate::prepare::{Order, Prepared, prepare};
use crate::target::{Action, Request, Timeline, Wanted};

fn main() -> ExitCode {
    exit::main(exit::WORK, run)
}

fn run(args: Args) -> Result<Code> {
    let now = UtcTime::now();
    let config = args.common.load(&exit::environment)?;
    let cluster = args.common.choose(&config)?;
    open::become_owner(cluster)?;
    let order = order(&args, &config, cluster, now)?;
    if args.dry_run {
        let repositories = open::repositories(&config, cluster, &args.repositories.names)?;
        let order = at_home(order, &config, cluster, &repositories)?;
        let prepared = prepare(&order, &repositories)?;
        exit::print(&shown(&prepared, args.format.format)?)?;
        return prepared.check_destination(&order).map(|()| Code(0));
    }
    let job = Job::start(config.job(cluster, "restore", Origin::of_this_process()), now);
    let ending = interruptible::run(job, exit::WORK, || work(&args, &config, cluster, order), Clone::clone)?;
    Ok(Code(match ending {
        Ending::Done(_) => 0,
        Ending::Interrupted(interrupt) => interrupt.exit_code(),
    }))
}

/// Adds what only shows beside the repositories.
fn at_home(order: Order, config: &Config, cluster: &Cluster, repositories: &[Repository]) -> Result<Order> {
    let home = Home::look(config, cluster, repositories)?;
    let asked = order.archive_mode.map(|mode| mode == ArchiveMode::Keep);
    let archiving = home::judge_archiving(asked, order.own, order.request.standby, &home);
    Ok(Order {
        home,
        archiving,
        ..order
    })
}

fn work(args: &Args, config: &Config, cluster: &Cluster, order: Order) -> Result<Report> {
    let repositories = open::repositories(config, cluster, &args.repositories.names)?;
    let order = &at_home(order, config, cluster, &repositories)?;
    let prepared = prepare(order, &repositories)?;
    shown(&prepared, FormatName::Text)?
        .lines()
        .for_each(|line| log::info!("{line}"));
    prepared.check_destination(order)?;
    prepared.run(order)?;
    let plan = &prepared.plan;
    let took = UtcTime::now().since(order.now);
    log::info!("{}", restore::summary(plan, took));
    if args.format.format == FormatName::Json {
        exit::print(&shown(&prepared, FormatName::Json)?)?;
    }
    Ok(Report::success()
        .field("label", prepared.label().to_string())
        .field("to", plan.to.clone())
        .field("target", plan.target.clone())
        .field("timeline", plan.timeline)
        .field("repository", plan.repositories.first().cloned().unwrap_or_default())
        .field("files", plan.files)
        .field("size_bytes", plan.size_bytes)
        .field("wal_bytes", plan.wal.bytes)
        .field("duration_seconds", took.as_secs_f64()))
}

fn shown(prepared: &Prepared<'_>, format: FormatName) -> Result<String> {
    match format {
        FormatName::Text => Ok(show::text(&prepared.plan)),
        FormatName::Json => serde_json::to_string_pretty(&prepared.plan)
            .map(|json| json + "\n")
            .map_err(|error| Error::new(Kind::Failed, "encode the plan").because(error)),
    }
}

fn order(args: &Args, config: &Config, cluster: &Cluster, now: UtcTime) -> Result<Order> {
    let to = args
        .destination()
        .ok_or_else(|| Error::new(Kind::Config, "no destination is given"))?;
    let absolute = |path: &Path| {
        let path = std::path::absolute(path).context(|| format!("find {}", path.display()))?;
        // The real place, so that parts that lie in one another are noticed behind links.
        place::real_path(&path).map(|(_, real)| real)
    };
    let to = absolute(to)?;
    let own = cluster
        .data_directory
        .as_deref()
        .is_some_and(|configured| place::same_place(configured, &to));
    let partial = !args.only_databases.is_empty();
    if partial && args.archive_mode == Some(ArchiveMode::Keep) {
        return Err(Error::new(
            Kind::Config,
            "--only-database makes a part of a cluster, which must not archive as the cluster does",
        )
        .hint("leave out --archive-mode keep"));
    }
    if own && partial {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "{} is the data directory of the cluster, and --only-database makes a part of one",
                to.display()
            ),
        )
        .hint("restore it elsewhere with --to, and bring the database over with a dump"));
    }
    let tablespaces = args
        .tablespaces
        .iter()
        .map(|(old, new)| Ok((old.clone(), absolute(new)?)))
        .collect::<Result<_>>()?;
    let executable = std::env::current_exe().ok();
    Ok(Order {
        request: request(args, now)?,
        places: layout::Places {
            to,
            tablespaces,
            wal: args.wal_dir.as_deref().map(absolute).transpose()?,
            extra: args.extra_to.as_deref().map(absolute).transpose()?,
        },
        cluster: cluster.name.clone(),
        pins: Pins::new(&config.state_directory, &ClusterName::parse(&cluster.name)?),
        home: Home::default(),
        fetcher: settings::Fetcher {
            program: process::sibling(executable.as_deref(), "pgkeep-archive-get"),
            config: std::path::absolute(args.common.config_file())
                .unwrap_or_else(|_| PathBuf::from(args.common.config_file())),
            cluster: cluster.name.clone(),
            repositories: args.repositories.names.clone(),
        },
        primary_conninfo: args.primary_conninfo.clone(),
        archive_mode: args.archive_mode,
        own,
        archiving: home::judge_archiving(Some(false), own, false, &Home::default()),
        keep_out: keep_out(config)?,
        ignore_space: args.ignore_space || args.delta,
        delta: args.delta,
        only: args.only_databases.clone(),
        notes: args
            .target_xid
            .as_deref()
            .and_then(target::cut_epoch)
            .into_iter()
            .collect(),
        jobs: args.jobs.unwrap_or(config.jobs),
        on_terminal: std::io::stderr().is_terminal(),
        now,
    })
}

/// Where the configured repositories of this host are, chosen or not.
fn keep_out(config: &Config) -> Result<Vec<(String, PathBuf)>> {
    let local = |repository: &&RepositorySettings| match &repository.location {
        Location::File { root } => Some((repository.name.clone(), root.clone())),
        _ => None,
    };
    Ok(config.repositories(&[])?.iter().filter_map(local).collect())
}

fn request(args: &Args, now: UtcTime) -> Result<Request> {
    let wanted = Wanted {
        time: args.target_time.as_deref(),
        lsn: args.target_lsn.as_deref(),
        xid: args.target_xid.as_deref(),
        name: args.target_name.as_deref(),
        immediate: args.target_immediate,
    };
    let label = |text: &String| text.parse().map_err(|error: Error| error.with_kind(Kind::Config));
    Ok(Request {
        target: target::parse(&wanted, now)?,
        exclusive: args.target_exclusive,
        timeline: args
            .target_timeline
            .as_deref()
            .map_or(Ok(Timeline::Latest), target::parse_timeline)?,
        action: args.target_action.map(|action| match action {
            TargetAction::Pause => Action::Pause,
            TargetAction::Promote => Action::Promote,
            TargetAction::Shutdown => Action::Shutdown,
        }),
        backup: args.backup.as_ref().map(label).transpose()?,
        standby: args.wants_standby(),
    })
}
