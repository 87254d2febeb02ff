//! `pgkeep-dump`: logical dumps of databases, tenants and tables into every repository.

mod args;
mod ask;
mod dump;
mod locks;
mod made;
mod past;
mod plan;
mod refusal;
mod running;

use std::process::ExitCode;

use common::config::cli::FormatName;
use common::config::{Cluster, Config};
use common::error::{Error, Result};
use common::exit;
use common::job::interruptible::{self, Ending};
use common::job::{Job, Origin};
use common::open;
use common::time::UtcTime;

use args::Args;
use made::Ended;
use past::Past;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let config = args.common.load(&exit::environment)?;
        let cluster = args.common.choose(&config)?;
        plan::check(&args)?;
        match args.from_backup {
            true => open::become_postgres(cluster)?,
            false => open::become_owner(cluster)?,
        }
        let origin = Origin::of_this_process();
        let host = origin.host.clone();
        let job = Job::start(config.job(cluster, "dump", origin), UtcTime::now());
        let ending = interruptible::run(job, exit::WORK, || run(&args, &config, cluster, host), Ended::report)?;
        if let Ending::Done(ended) = &ending {
            match args.format.format {
                FormatName::Json => exit::print(&ended.json()?)?,
                FormatName::Text => exit::print(&ended.text())?,
            }
        }
        Ok::<Ending<Ended>, Error>(ending)
    })
}

fn run(args: &Args, config: &Config, cluster: &Cluster, host: String) -> Result<Ended> {
    let repositories = open::repositories(config, cluster, &args.repositories.names)?;
    let past = match args.from_backup {
        true => Some(Past::restore(args, config, cluster, &repositories)?),
        false => None,
    };
    let dumping = dump::Dumping {
        args,
        config,
        cluster,
        host,
        connection: match &past {
            Some(past) => past.connection(),
            None => cluster.connection(&exit::environment)?,
        },
        origin: past.as_ref().map(|past| past.origin.clone()),
        repositories: &repositories,
    };
    dumping.run()
}
