//! `pgkeep-archive-get`: PostgreSQL's restore_command. Fetches one WAL file, and the next ones ahead.

mod ahead;
mod answer;
mod args;
mod get;
mod histories;
mod place;
mod spool;

use std::path::Path;
use std::process::ExitCode;

use common::config::Config;
use common::exit;
use common::job::Job;
use common::time::UtcTime;

use crate::answer::Fetched;

fn main() -> ExitCode {
    // PostgreSQL runs restore_command in the data directory; a standby asks again by itself, so there the code is another.
    let standby = Path::new("standby.signal").exists();
    exit::main(exit::fetch(standby), |args: args::Args| {
        let environment = exit::environment;
        let config = Config::load(&args.common.config, &environment)?;
        let cluster = config.cluster(args.common.cluster.as_deref())?;
        if args.prefetch_child {
            ahead::run_child(&config, cluster, &args.name)?;
            return Ok(Fetched::Restored);
        }
        let job = Job::start(config.job_settings(cluster, "archive-get"), UtcTime::now());
        let result = get::run(&config, cluster, &args.name, &args.path, standby);
        job.leave_quick(&result, UtcTime::now());
        result
    })
}
