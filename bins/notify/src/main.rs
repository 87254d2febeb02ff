//! `pgkeep-notify`: says what happened.

mod args;
mod digest;
mod event;
mod message;
mod send;
mod unit;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use common::config::{Channel, Cluster, Config, Notify, Topic};
use common::error::{Error, Kind, Result, chain, chain_with_hint};
use common::exit;
use common::job::Status;
use common::lock::FileLock;
use common::time::UtcTime;
use common::{durable, open, process};

use args::Args;
use digest::Known;
use event::Told;
use message::Message;
use unit::Unit;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let config = args.common.load(&exit::environment)?;
        if config.notify.is_empty() {
            if args.test {
                return Err(Error::new(
                    Kind::Config,
                    format!("nobody is configured in {}", config.file.display()),
                )
                .hint("add a table such as [notify.ops] with kind = \"slack\" and url_file"));
            }
            match args.digest {
                true => say_that_nobody_hears(&config),
                false => log::debug!("nobody is to be told"),
            }
            return Ok(());
        }
        let unit = args.unit.as_deref().map(Unit::parse).transpose()?;
        let cluster = cluster(&args, &config, unit.as_ref())?;
        drop_root(cluster)?;
        match (cluster, unit) {
            _ if args.test => test(&args, &config),
            (Some(cluster), Some(unit)) => {
                tell_jobs(&args, &config, cluster, std::slice::from_ref(&unit.job), Some(&unit))
            }
            (Some(cluster), None) if !args.digest => tell_jobs(&args, &config, cluster, &args.jobs, None),
            _ => tell_digest(&args, &config),
        }
    })
}

/// The cluster that this is about. A test and a digest are about all: then one of them, if any is configured.
fn cluster<'c>(args: &Args, config: &'c Config, unit: Option<&Unit>) -> Result<Option<&'c Cluster>> {
    match unit {
        Some(unit) => config.cluster(Some(&unit.cluster)).map(Some),
        None if args.test || args.digest => Ok(args.common.choose(config).ok().or(config.clusters.first())),
        None => args.common.choose(config).map(Some),
    }
}

/// Makes root run as the units do: what only root could read must not look as if all were well.
fn drop_root(cluster: Option<&Cluster>) -> Result<()> {
    match cluster {
        Some(cluster) => open::become_owner(cluster),
        None => process::become_user("postgres").map(|said| said.iter().for_each(|said| log::info!("{said}"))),
    }
}

fn test(args: &Args, config: &Config) -> Result<()> {
    let message = message::test(&open::host_name(), UtcTime::now());
    let everybody: Vec<(&Notify, Message)> = config
        .notify
        .iter()
        .map(|receiver| (receiver, message.clone()))
        .collect();
    match deliver(args, &everybody).iter().filter(|reached| !**reached).count() {
        0 => Ok(()),
        failed => Err(Error::new(
            Kind::Failed,
            format!("{failed} of {} were not reached", everybody.len()),
        )),
    }
}

fn tell_digest(args: &Args, config: &Config) -> Result<()> {
    let now = UtcTime::now();
    let known = |cluster: &Cluster| Known {
        cluster: cluster.name.clone(),
        is_physical: cluster.data_directory.is_some(),
        jobs: statuses(&config.state_of(cluster)),
    };
    let all: Vec<Known> = config.clusters.iter().map(known).collect();
    let wants =
        |receiver: &&Notify| receiver.on.contains(&Topic::Digest) && !matches!(receiver.channel, Channel::Heartbeat(_));
    let messages: Vec<(&Notify, Message)> = config
        .notify
        .iter()
        .filter(wants)
        .map(|receiver| {
            let is_his = |known: &&Known| {
                receiver
                    .clusters
                    .as_ref()
                    .is_none_or(|own| own.contains(&known.cluster))
            };
            let known: Vec<Known> = all.iter().filter(is_his).cloned().collect();
            (receiver, digest::digest(&known, &open::host_name(), now))
        })
        .collect();
    if messages.is_empty() {
        say_that_nobody_hears(config);
    }
    deliver(args, &messages);
    Ok(())
}

fn say_that_nobody_hears(config: &Config) {
    log::info!(
        "the digest is told to nobody: no table [notify.NAME] of {} has \"digest\" in its key \"on\"",
        config.file.display()
    );
}

/// The status files of all jobs of a cluster; one that cannot be read is left out.
fn statuses(state: &Path) -> Vec<Status> {
    let entries = std::fs::read_dir(state.join("status")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Status::read(&entry.path()).ok().flatten())
        .collect()
}

fn tell_jobs(args: &Args, config: &Config, cluster: &Cluster, jobs: &[String], unit: Option<&Unit>) -> Result<()> {
    let now = UtcTime::now();
    let state = config.state_of(cluster);
    durable::create_dir_all(&state, 0o755)?;
    // Jobs end at the same time; each is told once.
    let _lock = FileLock::acquire(&state.join("notify.lock"), std::time::Duration::from_secs(60))?;
    let memory = state.join("notify.json");
    let mut told = recall(&memory);
    let mut messages = Vec::new();
    for job in jobs {
        let left = Status::read(&Status::path(&config.state_directory, &cluster.name, job))?;
        let status = match unit {
            Some(unit) => unit::judge(left, unit, unit::failure(&exit::environment), &open::host_name(), now),
            None => left,
        };
        let Some(status) = status else {
            log::warn!("{job} of cluster {} has left no status on this host", cluster.name);
            continue;
        };
        for receiver in config
            .notify
            .iter()
            .filter(|receiver| concerns(receiver, &cluster.name, job))
        {
            let told: &mut Told = told.entry(receiver.name.clone()).or_default();
            let Some((event, since)) = event::decide(receiver, told, &status, now) else {
                continue;
            };
            match event::may_send(receiver, told, now) {
                Some(held_back) => messages.push((receiver, message::of_job(event, since, &status, held_back))),
                None => log::warn!("\"{}\" has been told enough for this hour", receiver.name),
            }
        }
    }
    let keep = |told: &BTreeMap<String, Told>| {
        if !args.dry_run
            && let Err(error) = remember(&memory, told)
        {
            log::warn!("what was told cannot be kept: {}", chain(&error));
        }
    };
    // Before anything is sent: whoever hangs must not be told again and again.
    keep(&told);
    let reached = deliver(args, &messages);
    if reached.contains(&false) {
        for ((receiver, message), _) in messages.iter().zip(&reached).filter(|(_, reached)| !**reached) {
            told.entry(receiver.name.clone()).or_default().forget(&message.job);
        }
        keep(&told);
    }
    Ok(())
}

fn concerns(receiver: &Notify, cluster: &str, job: &str) -> bool {
    let names = |wanted: &Option<Vec<String>>, name: &str| {
        wanted
            .as_ref()
            .is_none_or(|wanted| wanted.iter().any(|wanted| wanted == name))
    };
    names(&receiver.clusters, cluster) && names(&receiver.jobs, job)
}

/// By receiver. What cannot be read is forgotten: rather told twice than never.
fn recall(path: &Path) -> BTreeMap<String, Told> {
    let bytes = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn remember(path: &Path, told: &BTreeMap<String, Told>) -> Result<()> {
    let bytes =
        serde_json::to_vec(told).map_err(|error| Error::new(Kind::Failed, "encode what was told").because(error))?;
    durable::replace(path, &bytes, 0o600)
}

/// Sends all at a time; says who was reached.
fn deliver(args: &Args, messages: &[(&Notify, Message)]) -> Vec<bool> {
    if args.dry_run {
        for (receiver, message) in messages {
            let shown = format!("to {}: {}\n{}\n\n", receiver.name, message.title, message.text);
            if let Err(error) = exit::print(&shown) {
                log::warn!("{}", chain(&error));
            }
        }
        return vec![true; messages.len()];
    }
    let one = |(receiver, message): &(&Notify, Message)| match send::send(&receiver.channel, message) {
        Ok(()) => {
            log::info!("told \"{}\": {}", receiver.name, message.title);
            true
        }
        Err(error) => {
            log::warn!("\"{}\" cannot be told: {}", receiver.name, chain_with_hint(&error));
            false
        }
    };
    std::thread::scope(|scope| {
        let sending: Vec<_> = messages
            .iter()
            .map(|message| scope.spawn(move || one(message)))
            .collect();
        sending
            .into_iter()
            .map(|thread| thread.join().unwrap_or(false))
            .collect()
    })
}
