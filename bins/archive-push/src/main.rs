//! `pgkeep-archive-push`: PostgreSQL's archive_command. Stores one finished WAL file, and the next ones with it.
//!
//! The same executable runs as its own child, to use repositories that may hang.

mod args;
mod batch;
mod content;
mod dropped;
mod marker;
mod missed;
mod push;
mod store;
mod target;

use std::ffi::OsString;
use std::process::ExitCode;

use common::error::Result;
use common::exit::{self, Code};
use common::job::{Job, Origin, Report, Sample};
use common::time::UtcTime;
use common::{open, process};

use crate::push::{Asked, Ended};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    exit::main(exit::WORK, |args: args::Args| run(&args, &arguments))
}

fn run(args: &args::Args, arguments: &[OsString]) -> Result<Code> {
    let started = UtcTime::now();
    let environment = exit::environment;
    let config = args.common.load(&environment)?;
    let cluster = args.common.choose(&config)?;
    let asked = Asked::find(&args.path, cluster);
    // Before anything is touched: what root left behind, the server could not use.
    let owned = asked.as_ref().map(|asked| asked.data_directory.as_path());
    if let Some(note) = process::become_owner_of_found(owned)? {
        log::info!("{note}");
    }
    let leave = |result: &Result<()>| {
        let report = match result {
            Ok(()) => Report::success(),
            Err(error) => Report::failure(error, exit::WORK),
        };
        let waiting = Sample::new(
            "pgkeep_wal_ready_segments",
            push::ready_count(&args.path) as f64,
            "WAL files that wait to be archived",
        );
        let job = Job::start(config.job(cluster, "archive-push", Origin::of_this_process()), started);
        job.leave_quick(&report.sample(waiting), UtcTime::now());
    };
    if args.attempt {
        let (result, held_up) = match asked {
            Ok(asked) => push::attempt(&config, cluster, &asked, &open::host_name()),
            Err(error) => (Err(error), false),
        };
        leave(&result);
        if held_up {
            // The parent will not wait for the end of this process.
            let code = result.as_ref().map_or_else(|error| exit::WORK.code_of(error), |()| 0);
            exit::print(&push::held_up(code))?;
        }
        return result.map(|()| Code(0));
    }
    match asked.and_then(|asked| push::run(&config, cluster, &asked, arguments)) {
        Ok(Ended::Told(code)) => Ok(Code(code)),
        ended => {
            let result = ended.map(drop);
            leave(&result);
            result.map(|()| Code(0))
        }
    }
}
