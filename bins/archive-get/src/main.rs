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

use common::exit;
use common::job::{Job, Origin, Report};
use common::time::UtcTime;

use crate::answer::Fetched;

fn main() -> ExitCode {
    // PostgreSQL runs restore_command in the data directory; a standby asks again by itself, so there the code is another.
    let standby = Path::new("standby.signal").is_file();
    exit::main(exit::fetch(standby), |args: args::Args| {
        let environment = exit::environment;
        if args.prefetch_child {
            // Before anything is opened: the child lives on when PostgreSQL has gone on.
            common::process::leave_session()?;
        }
        let config = args.common.load(&environment)?;
        let cluster = args.common.choose(&config)?;
        if args.prefetch_child {
            ahead::run_child(&config, cluster, &args.repositories.names, &args.file)?;
            return Ok(Fetched::Restored);
        }
        let job = Job::start(
            config.job(cluster, "archive-get", Origin::of_this_process()),
            UtcTime::now(),
        );
        let result = get::run(
            &config,
            cluster,
            &args.repositories.names,
            &args.file,
            &args.path,
            standby,
        );
        let report = match &result {
            Ok(Fetched::Restored) => Report::success(),
            Ok(Fetched::Absent) => Report::skipped(format!("{} is not in the archive", args.file)),
            Err(error) => Report::failure(error, exit::fetch(standby)),
        };
        job.leave_quick(&report, UtcTime::now());
        result
    })
}
