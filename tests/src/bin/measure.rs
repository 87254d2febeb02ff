//! Runs a program and writes down how it ended and what it took: `measure RESULT_FILE PROGRAM [ARGUMENT]...`.
//!
//! A process of its own, because a child's peak memory counts from that of the process it was started from: here two
//! megabytes, in a test many more.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(result), Some(program)) = (arguments.next(), arguments.next()) else {
        return ExitCode::from(2);
    };
    let start = Instant::now();
    let Ok(status) = Command::new(program).args(arguments).status() else {
        return ExitCode::from(127);
    };
    let elapsed = start.elapsed();
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else {
        return ExitCode::from(1);
    };
    let cpu = duration(usage.user_time()) + duration(usage.system_time());
    let line = format!(
        "{} {} {} {} {}",
        status.code().unwrap_or(-1),
        status.signal().unwrap_or(0),
        elapsed.as_micros(),
        cpu.as_micros(),
        usage.max_rss()
    );
    if std::fs::write(result, line).is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn duration(time: TimeVal) -> Duration {
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    Duration::from_secs(part(time.tv_sec())) + Duration::from_micros(part(time.tv_usec()))
}
