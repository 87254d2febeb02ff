//! `pgkeep-dump-restore`: all of a dump, or one tenant or table out of it.

mod apply;
mod args;
mod erased;
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

use apply::Applying;
use args::Args;
use restore::{Done, Restoring};

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let config = args.common.load(&exit::environment)?;
        let cluster = args.common.choose(&config)?;
        open::become_owner(cluster)?;
        let origin = Origin::of_this_process();
        if args.list || args.dry_run || args.to_sql.is_some() {
            // Nothing happens to the server: no record is left.
            let done = run(&args, &config, cluster, &origin)?;
            exit::print(&done.text)?;
            return Ok(Ending::Done(done));
        }
        let job = Job::start(config.job(cluster, "dump-restore", origin.clone()), UtcTime::now());
        let report = |done: &Done| {
            let report = Report::success().field("size_bytes", done.bytes);
            match args.label {
                Some(label) => report.field("label", label.to_string()),
                None => report,
            }
        };
        let ending = interruptible::run(job, exit::WORK, || run(&args, &config, cluster, &origin), report)?;
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

fn run(args: &Args, config: &Config, cluster: &Cluster, origin: &Origin) -> Result<Done> {
    let repositories = open::repositories(config, cluster, &args.repositories.names)?;
    let Some(label) = args.label else {
        let applying = Applying {
            cluster,
            repositories: &repositories,
            into: args.into.as_deref(),
            dry_run: args.dry_run,
            origin,
        };
        return applying.run();
    };
    let restoring = Restoring {
        args,
        label,
        cluster,
        connection: cluster.connection(&exit::environment)?,
        repositories: &repositories,
    };
    restoring.run()
}
