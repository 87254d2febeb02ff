//! `pgkeep-archive-get`: PostgreSQL's restore_command. Fetches one WAL file, and the next ones ahead.
//!
//! The same executable runs as its own child in two ways: with a limited time, to ask the repositories, and detached,
//! to fetch ahead.

mod absence;
mod ahead;
mod answer;
mod args;
mod attempt;
mod call;
mod checked;
mod get;
mod histories;
mod limited;
mod place;
mod spool;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use common::error::Result;
use common::exit::{self, Code, Verdict};
use common::job::{Job, Origin, Report};
use common::postgres::WalName;
use common::process;
use common::repository::Repository;
use common::time::UtcTime;

use crate::answer::Fetched;
use crate::call::Request;
use crate::get::Ended;
use crate::limited::ToParent;

fn main() -> ExitCode {
    // PostgreSQL runs restore_command in the data directory; a standby asks again by itself, so there the code is another.
    let standby = Path::new("standby.signal").is_file();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    exit::main(exit::fetch(standby), |args: args::Args| run(args, standby, arguments))
}

fn run(args: args::Args, standby: bool, arguments: Vec<OsString>) -> Result<Code> {
    let environment = exit::environment;
    if args.prefetch_from.is_some() {
        // Before anything is opened: the child lives on when PostgreSQL has gone on.
        process::leave_session()?;
    }
    let config = args.common.load(&environment)?;
    let cluster = args.common.choose(&config)?;
    // Before anything is touched: what root left behind, the server could not use.
    let owned = cluster.data_directory_here();
    if let Some(note) = process::become_owner_of_found(owned.as_deref())? {
        log::info!("{note}");
    }
    if let Some(first) = &args.prefetch_from {
        ahead::run_child(&config, cluster, &args.repositories.names, &args.first, first)?;
        return Ok(Code(0));
    }
    let started = UtcTime::now();
    let request = WalName::parse(&args.file).map(|name| Request {
        name,
        destination: args.path,
        only: args.repositories.names,
        order: args.first,
        standby,
        arguments,
    });
    let leave = |report: &Report| {
        let job = Job::start(config.job(cluster, "archive-get", Origin::of_this_process()), started);
        job.leave_quick(report, UtcTime::now());
    };
    if args.attempt {
        // For the parent, which says who is silent when this process cannot.
        let asking = |repository: &Repository| {
            let _ = exit::print(&format!("{}\n", repository.name));
        };
        let result = request.and_then(|request| attempt::run(&config, cluster, &request, &asking));
        // What goes well the parent tells.
        if let Err(error) = &result {
            leave(&Report::failure(error, exit::fetch(standby)));
        }
        return result.map(|fetched| Code(ToParent(fetched).code()));
    }
    let result = request.and_then(|request| get::run(&config, cluster, &request));
    match &result {
        Ok(Ended::Here(Fetched::Restored)) => leave(&Report::success()),
        Ok(Ended::Here(Fetched::Absent)) => {
            let report = Report::skipped(format!("{} is not in the archive", args.file));
            leave(&report.exit_code(Fetched::Absent.code()));
        }
        Ok(Ended::Told) => {}
        Err(error) => leave(&Report::failure(error, exit::fetch(standby))),
    }
    result.map(|ended| match ended {
        Ended::Here(fetched) => Code(fetched.code()),
        Ended::Told => Code(exit::fetch(standby).code_of_panic()),
    })
}
