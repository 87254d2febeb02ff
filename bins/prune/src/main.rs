//! `pgkeep-prune`: removes what retention no longer keeps, and says why.

mod act;
mod args;
mod erase;
mod garbage;
mod locks;
mod mark;
mod plan;
mod show;
mod survey;
mod tenant;

use std::path::PathBuf;
use std::process::ExitCode;

use common::config::cli::FormatName;
use common::config::{Cluster, Config, Retention};
use common::error::{Error, Result, chain, chain_with_hint};
use common::exit::{self, Verdict};
use common::job::interruptible::{self, Ending};
use common::job::{Job, Origin};
use common::open;
use common::repository::{Repository, lease};
use common::time::UtcTime;

use act::{Removed, act};
use args::Args;
use erase::{Erased, Erasing};
use locks::Renewals;
use plan::{Plan, plan};
use show::{Ended, Outcome};
use survey::survey;
use tenant::Named;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let environment = exit::environment;
        let config = args.common.load(&environment)?;
        let cluster = args.common.choose(&config)?;
        open::become_owner(cluster)?;
        let origin = Origin::of_this_process();
        let job = Job::start(config.job(cluster, "prune", origin.clone()), UtcTime::now());
        let work = || Done::of(&args, &config, cluster, &origin);
        if args.dry_run {
            // Who only looks leaves no trace.
            let done = work()?;
            tell(&args, &done)?;
            return Ok(Ending::Done(done));
        }
        let ending = interruptible::run(job, exit::WORK, work, Done::report)?;
        if let Ending::Done(done) = &ending {
            tell(&args, done)?;
        }
        Ok::<Ending<Done>, Error>(ending)
    })
}

/// What a run came to.
enum Done {
    Pruned(Ended),
    Said(String),
    Erased(Erased),
}

impl Done {
    fn of(args: &Args, config: &Config, cluster: &Cluster, origin: &Origin) -> Result<Self> {
        let repositories = open::repositories(config, cluster, &args.repositories.names)?;
        let host = origin.host.as_str();
        let jobs = args.jobs.unwrap_or(config.jobs);
        if let (Some(schema), Some(database)) = (&args.erase_tenant, &args.database) {
            let erasing = Erasing {
                cluster,
                named: Named {
                    database,
                    schema,
                    oid: args.schema_oid,
                },
                reason: args.reason.as_deref().unwrap_or_default(),
                origin,
                dry_run: args.dry_run,
                jobs,
            };
            return erasing.run(&repositories).map(Self::Erased);
        }
        if let Some(label) = args.keep {
            let reason = args.reason.clone().unwrap_or_default();
            return mark::keep(&repositories, label, &reason, host).map(Self::Said);
        }
        if let Some(label) = args.unkeep {
            return mark::unkeep(&repositories, label, host).map(Self::Said);
        }
        let prune = Pruning {
            args,
            host,
            cache: config.state_of(cluster).join("catalog"),
            state: config.state_of(cluster),
            jobs,
        };
        let one = |repository: &Repository| {
            let settings = config
                .repositories
                .iter()
                .find(|settings| settings.name == repository.name);
            let policy = settings.and_then(|settings| settings.retention.as_ref());
            let lock = settings.and_then(|settings| settings.lock_horizon());
            let outcome = prune.repository(repository, policy, lock);
            if let Err(error) = &outcome {
                log::error!("repository \"{}\": {}", repository.name, chain_with_hint(error));
            }
            (repository.name.clone(), outcome)
        };
        Ok(Self::Pruned(Ended {
            dry_run: args.dry_run,
            repositories: repositories.iter().map(one).collect(),
        }))
    }

    fn report(&self) -> common::job::Report {
        match self {
            Self::Pruned(ended) => ended.report(),
            Self::Erased(erased) => erased.report(),
            Self::Said(_) => common::job::Report::success(),
        }
    }
}

impl Verdict for Done {
    fn code(&self) -> u8 {
        match self {
            Self::Pruned(ended) => ended.exit_code(),
            Self::Erased(erased) => erased.code(),
            Self::Said(_) => 0,
        }
    }
}

fn tell(args: &Args, done: &Done) -> Result<()> {
    match (done, args.format.format) {
        (Done::Pruned(ended), FormatName::Json) => exit::print(&ended.json()?),
        (Done::Pruned(ended), FormatName::Text) => exit::print(&ended.text()),
        (Done::Erased(erased), _) => exit::print(&erased.text),
        (Done::Said(text), _) => exit::print(text),
    }
}

struct Pruning<'a> {
    args: &'a Args,
    host: &'a str,
    cache: PathBuf,
    state: PathBuf,
    jobs: usize,
}

impl Pruning<'_> {
    fn repository(
        &self,
        repository: &Repository,
        policy: Option<&Retention>,
        lock: Option<std::time::Duration>,
    ) -> Outcome {
        let look = || -> Result<Plan> {
            let survey = survey(repository, &self.cache, UtcTime::now())?;
            plan(policy, &survey, self.args.garbage_after)
        };
        if self.args.dry_run {
            return Ok((look()?, None));
        }
        let _lease = lease::take(repository, "prune", self.host)?;
        let planned = look()?;
        let mut removed = Removed::default();
        let removal = planned.removal();
        if !removal.is_empty() {
            // A backup may have begun since, and lean on what was to go.
            let removal = removal.both(&look()?.removal());
            removed = act(repository, &removal, self.jobs)?;
        }
        let renewals = Renewals::new(&self.state, &repository.identity()?.uuid);
        if self.args.renew_locks {
            let now = repository.store.now()?;
            locks::renew(repository, &planned, lock, self.jobs)?;
            if lock.is_some() {
                renewals.remember(now)?;
            }
        }
        let oldest = planned.staying().first().map(|label| label.started());
        removed.locked_until = lock.and_then(|horizon| locks::until(renewals.last(), oldest, horizon));
        if let Err(error) = repository.store.sweep(self.args.garbage_after) {
            log::debug!("cannot sweep repository \"{}\": {}", repository.name, chain(&error));
        }
        Ok((planned, Some(removed)))
    }
}
