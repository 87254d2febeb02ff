//! `pgkeep-dump-restore`: all of a dump, or one tenant or table out of it.

mod args;
mod fetch;
mod restore;
mod running;
mod script;
mod select;
mod show;
mod target;

use std::process::ExitCode;

use common::config::{Cluster, Config};
use common::error::{Error, Result};
use common::exit::{self, Verdict};
use common::job::interruptible::{self, Ending};
use common::job::{Job, Origin, Report};
use common::open;
use common::time::UtcTime;

use args::Args;
use restore::{Done, Restoring};

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let config = args.common.load(&exit::environment)?;
        let cluster = args.common.choose(&config)?;
        open::become_owner(cluster)?;
        if args.list || args.dry_run || args.to_sql.is_some() {
            // Nothing happens to the server: no record is left.
            let done = run(&args, &config, cluster)?;
            exit::print(&done.text)?;
            return Ok(Ending::Done(done));
        }
        let job = Job::start(
            config.job(cluster, "dump-restore", Origin::of_this_process()),
            UtcTime::now(),
        );
        let report = |done: &Done| {
            Report::success()
                .field("label", args.label.to_string())
                .field("size_bytes", done.bytes)
        };
        let ending = interruptible::run(job, exit::WORK, || run(&args, &config, cluster), report)?;
        if let Ending::Done(done) = &ending {
            exit::print(&done.text)?;
        }
        Ok::<Ending<Done>, Error>(ending)
    })
}

impl Verdict for Done {
    fn code(&self) -> u8 {
        0
    }
}

fn run(args: &Args, config: &Config, cluster: &Cluster) -> Result<Done> {
    let repositories = open::repositories(config, cluster, &args.repositories.names)?;
    let restoring = Restoring {
        args,
        cluster,
        connection: cluster.connection(&exit::environment)?,
        repositories: &repositories,
    };
    restoring.run()
}
