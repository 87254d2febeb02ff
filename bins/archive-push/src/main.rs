//! `pgkeep-archive-push`: PostgreSQL's archive_command. Stores one finished WAL file, and the next ones with it.

mod args;
mod batch;
mod content;
mod marker;
mod push;

use std::process::ExitCode;

use common::config::Config;
use common::exit;
use common::job::Job;
use common::time::UtcTime;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: args::Args| {
        let environment = exit::environment;
        let config = Config::load(&args.common.config, &environment)?;
        let cluster = config.cluster(args.common.cluster.as_deref())?;
        let job = Job::start(config.job_settings(cluster, "archive-push"), UtcTime::now());
        let result = push::run(&config, cluster, &args.path, UtcTime::now());
        job.leave_quick(&result, UtcTime::now());
        result
    })
}
