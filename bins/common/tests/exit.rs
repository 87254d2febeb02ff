//! Exit codes and streams of real processes: this test starts itself as a tool and looks at how it ends.
//!
//! Has a `main` of its own, since the test harness would answer the arguments.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::fs::File;
use std::process::{Command, ExitCode, Output, Stdio};

use common::config::cli::{Common, HasCommon};
use common::error::{Error, Kind, Result};
use common::exit::{self, Verdict};

const CHILD: &str = "EXIT_TEST_CHILD";

#[derive(clap::Parser)]
#[command(name = "pgkeep-sample", version)]
struct Args {
    what: String,
    #[command(flatten)]
    common: Common,
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

struct Code(u8);

impl Verdict for Code {
    fn code(&self) -> u8 {
        self.0
    }
}

fn main() -> ExitCode {
    match std::env::var(CHILD).as_deref() {
        Ok("work") => exit::main(exit::WORK, sample),
        Ok("check") => exit::main(exit::CHECK, sample),
        Ok("fetch") => exit::main(exit::fetch(false), sample),
        Ok("standby") => exit::main(exit::fetch(true), sample),
        _ => {
            tests();
            ExitCode::SUCCESS
        }
    }
}

fn sample(args: Args) -> Result<Code> {
    match args.what.as_str() {
        "panic" => panic!("first line\nsecond line"),
        "panic-in-thread" => {
            let _ = std::thread::spawn(|| panic!("in a thread")).join();
            Ok(Code(0))
        }
        "panic-under-locks" => {
            let _locks = (std::io::stdout().lock(), std::io::stderr().lock());
            panic!("under locks")
        }
        "missing" => Err(Error::new(Kind::NotFound, "not there")
            .hint("look elsewhere")
            .context("cannot read")),
        "later" => Err(Error::new(Kind::Transient, "timed out")),
        "one" => Ok(Code(1)),
        "umask" => {
            let before = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
            exit::print(&format!("{:o}\n", before.bits())).map(|()| Code(0))
        }
        "much" => exit::print(&"line\n".repeat(100_000)).map(|()| Code(0)),
        "log" => {
            log::info!(target: "common::test", "working");
            log::warn!(target: "common::test", "slow");
            Ok(Code(0))
        }
        _ => Ok(Code(0)),
    }
}

fn child(contract: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .env_clear()
        .env(CHILD, contract)
        .args(arguments)
        .stdin(Stdio::null());
    command
}

fn run(contract: &str, arguments: &[&str]) -> (i32, String, String) {
    read(&child(contract, arguments).output().unwrap())
}

fn read(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let code = output
        .status
        .code()
        .unwrap_or_else(|| panic!("ended by a signal: {output:?}"));
    (code, text(&output.stdout), text(&output.stderr))
}

fn tests() {
    let all: [(&str, fn()); 7] = [
        (
            "every_end_has_the_code_of_its_contract",
            every_end_has_the_code_of_its_contract,
        ),
        (
            "an_error_is_said_once_on_stderr_with_its_hint",
            an_error_is_said_once_on_stderr_with_its_hint,
        ),
        ("a_panic_is_one_line", a_panic_is_one_line),
        (
            "a_check_that_cannot_tell_says_so_on_stdout",
            a_check_that_cannot_tell_says_so_on_stdout,
        ),
        (
            "a_reader_who_leaves_early_is_no_failure_and_a_full_disk_is",
            a_reader_who_leaves_early_is_no_failure_and_a_full_disk_is,
        ),
        ("what_a_tool_writes_is_private", what_a_tool_writes_is_private),
        ("messages_follow_verbosity", messages_follow_verbosity),
    ];
    for (name, test) in all {
        test();
        println!("test {name} ... ok");
    }
}

fn every_end_has_the_code_of_its_contract() {
    let table: [(&[&str], [i32; 4]); 10] = [
        (&["fine"], [0, 0, 0, 0]),
        (&["one"], [1, 1, 1, 1]),
        (&["--help"], [0, 0, 0, 0]),
        (&["--version"], [0, 0, 0, 0]),
        (&[], [2, 3, 200, 75]),
        (&["x", "--unknown"], [2, 3, 200, 75]),
        (&["missing"], [1, 3, 200, 75]),
        (&["later"], [75, 3, 200, 75]),
        (&["panic"], [1, 3, 200, 75]),
        (&["panic-in-thread"], [1, 3, 200, 75]),
    ];
    for (arguments, codes) in table {
        for (contract, expected) in ["work", "check", "fetch", "standby"].into_iter().zip(codes) {
            let (code, stdout, stderr) = run(contract, arguments);
            assert_eq!(code, expected, "{contract} {arguments:?}\n{stdout}{stderr}");
        }
    }
    assert_eq!(run("fetch", &["panic-under-locks"]).0, 200);
    let closed = child("fetch", &["panic"])
        .stderr(File::open("/dev/null").unwrap())
        .output()
        .unwrap();
    assert_eq!(read(&closed).0, 200, "with a stderr that takes nothing");
    assert_eq!(exit::fetch_here(), exit::fetch(false), "this directory is no standby");
}

fn an_error_is_said_once_on_stderr_with_its_hint() {
    let (_, stdout, stderr) = run("work", &["missing"]);
    assert_eq!(stderr, "sample: cannot read: not there\nhint: look elsewhere\n");
    assert_eq!(stdout, "");
}

fn a_panic_is_one_line() {
    let (_, stdout, stderr) = run("work", &["panic"]);
    assert!(
        stderr.starts_with("sample: internal error: first line second line at "),
        "{stderr}"
    );
    assert_eq!((stderr.lines().count(), stdout.as_str()), (1, ""));
}

fn a_check_that_cannot_tell_says_so_on_stdout() {
    assert_eq!(run("check", &["missing"]).1, "UNKNOWN - cannot read: not there\n");
    assert_eq!(run("check", &["panic-under-locks"]).1, "UNKNOWN - internal error\n");
    assert_eq!(run("check", &[]).1, "UNKNOWN - wrong usage\n");
}

fn a_reader_who_leaves_early_is_no_failure_and_a_full_disk_is() {
    let mut early = child("work", &["much"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(early.stdout.take());
    let (code, _, stderr) = read(&early.wait_with_output().unwrap());
    assert_eq!((code, stderr.as_str()), (0, ""));

    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, _, stderr) = read(&child("work", &["much"]).stdout(full).output().unwrap());
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.starts_with("sample: cannot write to standard output: "),
        "{stderr}"
    );
}

fn what_a_tool_writes_is_private() {
    assert_eq!(run("work", &["umask"]).1, "77\n");
}

fn messages_follow_verbosity() {
    assert_eq!(run("work", &["log"]).2, "sample: working\nsample: warning: slow\n");
    assert_eq!(run("work", &["log", "-q"]).2, "");
    // A child whose stderr is no longer the journal inherits the variable all the same.
    let elsewhere = child("work", &["log"]).env("JOURNAL_STREAM", "1:1").output().unwrap();
    assert_eq!(read(&elsewhere).2, "sample: working\nsample: warning: slow\n");
    // A pipe whose device and inode the variable names is the journal.
    let file = tempfile::tempfile().unwrap();
    let stat = nix::sys::stat::fstat(&file).unwrap();
    let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
    let mut journal = child("work", &["log"]);
    journal
        .env("JOURNAL_STREAM", stream)
        .stderr(file.try_clone().unwrap())
        .status()
        .unwrap();
    let text = std::io::read_to_string(rewound(file)).unwrap();
    assert_eq!(text, "<6>sample: working\n<4>sample: warning: slow\n");
}

fn rewound(mut file: File) -> File {
    std::io::Seek::rewind(&mut file).unwrap();
    file
}
