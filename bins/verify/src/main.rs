//! `pgkeep-verify`: checks what is stored, and mends it from another repository.

mod args;
mod backups;
mod dumps;
mod finding;
mod mend;
mod objects;
mod result;
mod share;
mod verify;
mod wal;

use std::process::ExitCode;

use common::config::cli::FormatName;
use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result, chain_with_hint};
use common::exit::{self, Verdict};
use common::job::interruptible::{self, Ending};
use common::job::{Job, Origin};
use common::open;
use common::repository::Repository;
use common::time::UtcTime;

use args::Args;
use mend::Mending;
use result::{Ended, Mended, Outcome};
use share::{Share, Turns};
use verify::{Wanted, verify};

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let environment = exit::environment;
        let config = args.common.load(&environment)?;
        let cluster = args.common.choose(&config)?;
        open::become_owner(cluster)?;
        let origin = Origin::of_this_process();
        let host = origin.host.clone();
        let job = Job::start(config.job(cluster, "verify", origin), UtcTime::now());
        let ending = interruptible::run(job, exit::WORK, || run(&args, &config, cluster, &host), Ended::report)?;
        if let Ending::Done(ended) = &ending {
            match args.format.format {
                FormatName::Json => exit::print(&ended.json()?)?,
                FormatName::Text => exit::print(&ended.text())?,
            }
        }
        Ok::<Ending<Ended>, Error>(ending)
    })
}

impl Verdict for Ended {
    fn code(&self) -> u8 {
        self.exit_code()
    }
}

fn run(args: &Args, config: &Config, cluster: &Cluster, host: &str) -> Result<Ended> {
    let repositories = open::repositories(config, cluster, &args.repositories.names)?;
    let source = source(args, config, cluster)?;
    if let Some(source) = source
        .as_ref()
        .filter(|source| repositories.iter().all(|one| one.name == source.name))
    {
        return Err(Error::new(
            Kind::Config,
            format!("repository \"{}\" cannot be mended from itself", source.name),
        )
        .hint("--repository names what is mended, --repair-from what it is mended from"));
    }
    let state = config.state_directory.join(&cluster.name);
    let one = |repository: &Repository| -> Outcome {
        let identity = repository.identity().map_err(unseen)?;
        // Somebody who has configured a key counts on contents being read.
        if args.read_data.is_some()
            && identity.encrypted
            && let Some(why) = repository.opening.why_unusable()
        {
            return Err(why.copy().context("contents cannot be read"));
        }
        let turns = Turns::new(&state, &identity.uuid);
        let turn = turns.next();
        let wanted = Wanted {
            backup: args.backup,
            dump: args.dump,
            share: args.read_data.map(|percent| Share::new(percent, turn)),
            jobs: args.jobs.unwrap_or(config.jobs),
            cache: &state.join("catalog"),
        };
        let verified = verify(repository, &wanted)?;
        if args.read_data.is_some() && args.backup.is_none() && args.dump.is_none() {
            turns.taken(turn);
        }
        let mut mended = Vec::new();
        if let Some(source) = source.as_ref().filter(|source| source.name != repository.name) {
            let mending = Mending {
                target: repository,
                source,
                level: config.compression_level,
                host,
            };
            for key in &verified.bad {
                let done = mending.mend(key);
                mended.push(Mended {
                    object: key.to_string(),
                    mended: done.is_ok(),
                    how: done.unwrap_or_else(|error| chain_with_hint(&error)),
                });
            }
        }
        Ok((verified, mended))
    };
    let outcome = |repository: &Repository| {
        let outcome = one(repository);
        if let Err(error) = &outcome {
            log::error!(
                "repository \"{}\" cannot be checked: {}",
                repository.name,
                chain_with_hint(error)
            );
        }
        (repository.name.clone(), outcome)
    };
    let mends = |repository: &&Repository| source.as_ref().is_none_or(|source| source.name != repository.name);
    Ok(Ended {
        repositories: repositories.iter().filter(mends).map(outcome).collect(),
    })
}

/// A repository that cannot be seen, as where it is not mounted, is not damaged: another run may see it.
fn unseen(error: Error) -> Error {
    match error.kind() {
        Kind::Failed | Kind::NotFound => error.with_kind(Kind::Transient),
        _ => error,
    }
}

/// The repository that good copies come from.
fn source(args: &Args, config: &Config, cluster: &Cluster) -> Result<Option<Repository>> {
    let Some(name) = &args.repair_from else { return Ok(None) };
    let mut found = open::repositories(config, cluster, std::slice::from_ref(name))?;
    Ok(found.pop())
}
