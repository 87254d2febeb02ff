//! `pgkeep-archive-push`: PostgreSQL's archive_command. Stores one finished WAL file, and the next ones with it.

mod args;
mod batch;
mod content;
mod marker;
mod push;

use std::process::ExitCode;

use common::exit;
use common::job::{Job, Origin, Report, Sample};
use common::time::UtcTime;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: args::Args| {
        let environment = exit::environment;
        let config = args.common.load(&environment)?;
        let cluster = args.common.choose(&config)?;
        let origin = Origin::of_this_process();
        let host = origin.host.clone();
        let job = Job::start(config.job(cluster, "archive-push", origin), UtcTime::now());
        let result = push::run(&config, cluster, &args.path, &host, UtcTime::now());
        let report = match &result {
            Ok(()) => Report::success(),
            Err(error) => Report::failure(error, exit::WORK),
        };
        let waiting = Sample::new(
            "pgkeep_wal_ready_segments",
            push::ready_count(&args.path) as f64,
            "WAL files that wait to be archived",
        );
        job.leave_quick(&report.sample(waiting), UtcTime::now());
        result
    })
}
