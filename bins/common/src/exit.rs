//! How a tool ends: exit codes as data, and the `main` that keeps them.
//!
//! Other programs read these codes. PostgreSQL takes 1 to 125 from `restore_command` for "not there, recovery is
//! complete" and opens the database, while above 125 it stops (`src/backend/access/transam/shell_restore.c`,
//! `src/common/wait_error.c`). So no path out of a tool may bypass its [`Contract`]: not the argument parser
//! (clap's 2), not a panic (Rust's 101). [`main`] is the only caller of `process::exit`, and reads what belongs to
//! the process (arguments, environment, whether stderr is the journal) so that nothing below has to.
//!
//! | | [`WORK`] | [`fetch`]`(false)` | [`fetch`]`(true)`, a standby | [`CHECK`] |
//! |---|---|---|---|---|
//! | done, restored, passing; `--help`, `--version` | 0 | 0 | 0 | 0 |
//! | proven absent | | 1, by [`Verdict`] only | 1, by [`Verdict`] only | |
//! | warning, critical | | | | 1, 2, by [`Verdict`] only |
//! | usage, [`Kind::Config`] | 2 | 200 | 75 | 3 |
//! | [`Kind::Transient`], [`Kind::Busy`] | 75 | 200 | 75 | 3 |
//! | any other error; panic | 1 | 200 | 75 | 3 |
//!
//! SIGPIPE stays ignored, as Rust's runtime leaves it (children get the default back), so a closed pipe is an
//! error value: [`print`] takes it for a reader who has seen enough.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::path::Path;
use std::process::{self, ExitCode};

use clap::error::ErrorKind;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, fstat, umask};

use crate::error::{Error, Kind, Result, chain};
use crate::journal::{self, Loudness, Priority};

/// What a tool's exit codes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contract {
    /// The name in documentation.
    pub name: &'static str,
    usage: u8,
    config: u8,
    temporary: u8,
    other: u8,
    panic: u8,
    /// Whether the caller reads stdout for what went wrong, as monitoring does.
    speaks_on_stdout: bool,
    /// Every code and its meaning, for help texts and man pages.
    pub codes: &'static [(u8, &'static str)],
}

/// Tools that do something: 0 done, 1 failed, 2 usage or configuration, 75 try again.
pub const WORK: Contract = Contract {
    name: "WORK",
    usage: 2,
    config: 2,
    temporary: 75,
    other: 1,
    panic: 1,
    speaks_on_stdout: false,
    codes: &[
        (0, "done"),
        (1, "failed, or damage was found"),
        (
            2,
            "wrong usage or configuration: a person has to change something first",
        ),
        (75, "temporary failure: trying again may help"),
    ],
};

/// Checks for Consul and Nagios: 0 passing, 1 warning, 2 critical, 3 could not tell.
pub const CHECK: Contract = Contract {
    name: "CHECK",
    usage: 3,
    config: 3,
    temporary: 3,
    other: 3,
    panic: 3,
    speaks_on_stdout: true,
    codes: &[
        (0, "passing"),
        (1, "warning"),
        (2, "critical"),
        (3, "could not tell, wrong usage and configuration included"),
    ],
};

/// `archive-get`: 0 restored, 1 proven absent, everything else 200, or 75 in a standby.
///
/// In a standby PostgreSQL asks again by itself, while anything above 125 would take it down.
/// An error never maps to 1: absence is a [`Verdict`], reached only by proof.
pub const fn fetch(standby: bool) -> Contract {
    let unknown = if standby { 75 } else { 200 };
    Contract {
        name: "FETCH",
        usage: unknown,
        config: unknown,
        temporary: unknown,
        other: unknown,
        panic: unknown,
        speaks_on_stdout: false,
        codes: &[
            (0, "restored"),
            (
                1,
                "proven absent: every repository asked said so and proved its identity in the same run",
            ),
            (
                75,
                "in a standby only (standby.signal in the working directory): anything else; PostgreSQL asks again",
            ),
            (
                200,
                "anything else, wrong usage and internal errors included: PostgreSQL stops instead of opening",
            ),
        ],
    }
}

/// [`fetch`] for the working directory, which is the data directory when PostgreSQL asks.
///
/// What cannot be found out counts as "no standby", the careful answer: PostgreSQL stops.
pub fn fetch_here() -> Contract {
    fetch(Path::new("standby.signal").is_file())
}

impl Contract {
    /// The code for an error that ends the tool.
    pub fn code_of(&self, error: &Error) -> u8 {
        match error.kind() {
            Kind::Config => self.config,
            Kind::Transient | Kind::Busy => self.temporary,
            Kind::NotFound | Kind::AlreadyExists | Kind::Corrupt | Kind::Refused | Kind::Failed => self.other,
        }
    }

    /// The code for what the argument parser says; `--help` and `--version` are answers, not errors.
    pub fn code_of_usage(&self, kind: ErrorKind) -> u8 {
        match kind {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
            _ => self.usage,
        }
    }

    /// The code for a panic, in whichever thread.
    pub fn code_of_panic(&self) -> u8 {
        self.panic
    }
}

/// What a tool found out, where success has more than one code.
pub trait Verdict {
    /// The exit code.
    fn code(&self) -> u8;
}

impl Verdict for () {
    fn code(&self) -> u8 {
        0
    }
}

/// An exit code that has been decided, by a child that has told everything for instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u8);

impl Verdict for Code {
    fn code(&self) -> u8 {
        self.0
    }
}

/// Runs a tool: arguments, panic hook, umask, logging, then `work`; says once what went wrong.
///
/// `work` is the tool's own `main`: it may read clock and environment, and passes them down.
pub fn main<A, T>(contract: Contract, work: impl FnOnce(A) -> Result<T>) -> ExitCode
where
    A: clap::Parser + Loudness,
    T: Verdict,
{
    let tool: &'static str = tool_name(A::command().get_name()).leak();
    let voice = Voice {
        tool,
        contract,
        under_journal: stderr_is_journal(),
    };
    voice.take_over_panics();
    // What a tool writes is private unless it says otherwise: status files set their own mode.
    umask(Mode::from_bits_truncate(0o077));
    // A core would hold keys. The hard limit stays: what a tool starts may decide anew.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE) {
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, hard);
    }
    panic_if_asked();
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(error) => return ExitCode::from(voice.refuse(&error)),
    };
    journal::init(tool, args.verbosity(), voice.under_journal);
    // The hook has ended the process already where a panic gets here at all; this is the second net.
    let code = match panic::catch_unwind(AssertUnwindSafe(|| work(args))) {
        Ok(Ok(verdict)) => verdict.code(),
        Ok(Err(error)) => {
            voice.complain(&error);
            contract.code_of(&error)
        }
        Err(_) => contract.panic,
    };
    ExitCode::from(code)
}

/// Writes a result to stdout, as it is.
///
/// A reader who closed the pipe has seen enough: that is success.
///
/// # Errors
/// `Failed` for anything else, a full disk behind a redirection for instance.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Ends the process with a code that has been decided, from a thread that does not return to `main`.
#[allow(clippy::exit)]
pub fn leave(code: u8) -> ! {
    process::exit(i32::from(code))
}

/// Reads one variable of the environment, for `main` to pass down; one that is not UTF-8 counts as unset.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Failed, "cannot write to standard output").because(error))
        }
        _ => Ok(()),
    }
}

/// `pgkeep-archive-push` calls itself `archive-push` in messages.
fn tool_name(command: &str) -> String {
    command.strip_prefix("pgkeep-").unwrap_or(command).to_owned()
}

/// How this process speaks of its own end.
#[derive(Debug, Clone, Copy)]
struct Voice {
    tool: &'static str,
    contract: Contract,
    under_journal: bool,
}

impl Voice {
    /// The final words about an error: the chain, then the hint.
    fn words(&self, error: &Error) -> String {
        let mut text = journal::prefixed(
            Priority::Error,
            &format!("{}: {}", self.tool, chain(error)),
            self.under_journal,
        );
        if let Some(hint) = error.nearest_hint() {
            text += &journal::prefixed(Priority::Notice, &format!("hint: {hint}"), self.under_journal);
        }
        text
    }

    fn complain(&self, error: &Error) {
        say(&self.words(error));
        if self.contract.speaks_on_stdout {
            let _ = print(&unknown(&chain(error)));
        }
    }

    /// Answers what the argument parser has to say, and gives the code.
    fn refuse(&self, error: &clap::Error) -> u8 {
        let code = self.contract.code_of_usage(error.kind());
        if code != 0 && self.under_journal {
            let text = format!("{}: {}", self.tool, error.render());
            say(&journal::prefixed(Priority::Error, text.trim_end(), true));
        } else {
            // Nothing can be done about a closed stdout or stderr.
            let _ = error.print();
        }
        if code != 0 && self.contract.speaks_on_stdout {
            let _ = print(&unknown("wrong usage"));
        }
        code
    }

    fn take_over_panics(self) {
        panic::set_hook(Box::new(move |info| self.end_in_panic(info)));
    }

    /// Ends the process with the contract's code, from whichever thread panicked.
    ///
    /// Under `panic = "abort"` the hook runs before the abort, so this holds there too.
    #[allow(clippy::exit)]
    fn end_in_panic(&self, info: &PanicHookInfo<'_>) {
        let place = info
            .location()
            .map(|place| format!(" at {}:{}", place.file(), place.line()));
        let what = payload(info).unwrap_or("unknown cause").replace('\n', " ");
        let text = format!("{}: internal error: {what}{}", self.tool, place.unwrap_or_default());
        say(&journal::prefixed(Priority::Error, &text, self.under_journal));
        if self.contract.speaks_on_stdout {
            // The panic may have come from under the lock of stdout.
            write_raw(io::stdout().as_fd(), unknown("internal error").as_bytes());
        }
        process::exit(i32::from(self.contract.panic));
    }
}

/// What a panic was given to say.
fn payload<'a>(info: &'a PanicHookInfo<'_>) -> Option<&'a str> {
    let any = info.payload();
    any.downcast_ref::<&str>()
        .copied()
        .or_else(|| any.downcast_ref::<String>().map(String::as_str))
}

/// The one line for monitoring when a check could not tell.
fn unknown(text: &str) -> String {
    // Consul cuts output at 4 KiB and Nagios reads the first line.
    let line: String = text
        .chars()
        .map(|c| if c == '\n' || c == '|' { ' ' } else { c })
        .take(900)
        .collect();
    format!("UNKNOWN - {line}\n")
}

/// Writes to stderr without its lock, which a panicking thread may hold.
fn say(text: &str) {
    write_raw(io::stderr().as_fd(), text.as_bytes());
}

fn write_raw(fd: std::os::fd::BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(n) if n > 0 => bytes = bytes.get(n..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            // Nobody is left to tell.
            _ => return,
        }
    }
}

/// Whether systemd's journal reads stderr.
///
/// JOURNAL_STREAM alone does not say so: children whose stderr went elsewhere inherit it, an archive_command under
/// PostgreSQL's logging collector for instance.
fn stderr_is_journal() -> bool {
    let stderr = io::stderr();
    if stderr.is_terminal() {
        return false;
    }
    match (std::env::var("JOURNAL_STREAM"), fstat(stderr.as_fd())) {
        (Ok(stream), Ok(stat)) => is_stream(&stream, stat.st_dev, stat.st_ino),
        _ => false,
    }
}

/// Whether `stream`, written as `device:inode`, names this file (`man 5 systemd.exec`).
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream
        .split_once(':')
        .is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

/// Lets a test build prove the code of a panic: `PGKEEP_PANIC_TEST=main` or `=thread`.
#[cfg(feature = "panic-test")]
#[allow(clippy::panic)]
fn panic_if_asked() {
    match std::env::var("PGKEEP_PANIC_TEST").as_deref() {
        Ok("main") => panic!("panic asked for by the test"),
        Ok("thread") => {
            let _ = std::thread::spawn(|| panic!("panic asked for by the test")).join();
        }
        _ => {}
    }
}

#[cfg(not(feature = "panic-test"))]
fn panic_if_asked() {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const KINDS: [Kind; 8] = [
        Kind::NotFound,
        Kind::AlreadyExists,
        Kind::Transient,
        Kind::Corrupt,
        Kind::Refused,
        Kind::Busy,
        Kind::Config,
        Kind::Failed,
    ];

    fn codes(contract: Contract) -> Vec<u8> {
        KINDS
            .iter()
            .map(|kind| contract.code_of(&Error::new(*kind, "x")))
            .collect()
    }

    #[test]
    fn work_tells_configuration_and_temporary_from_failure() {
        assert_eq!(codes(WORK), [1, 1, 75, 1, 1, 75, 2, 1]);
        assert_eq!(WORK.code_of_panic(), 1);
        assert_eq!(WORK.code_of_usage(ErrorKind::UnknownArgument), 2);
    }

    #[test]
    fn no_error_of_a_fetch_says_absent() {
        assert_eq!(codes(fetch(false)), [200; 8]);
        assert_eq!(codes(fetch(true)), [75; 8]);
        for (standby, code) in [(false, 200), (true, 75)] {
            assert_eq!(fetch(standby).code_of_panic(), code);
            for kind in [
                ErrorKind::UnknownArgument,
                ErrorKind::MissingRequiredArgument,
                ErrorKind::InvalidUtf8,
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            ] {
                assert_eq!(fetch(standby).code_of_usage(kind), code, "{kind:?}");
            }
        }
    }

    #[test]
    fn a_check_that_fails_could_not_tell() {
        assert_eq!(codes(CHECK), [3; 8]);
        assert_eq!(CHECK.code_of_panic(), 3);
        assert_eq!(CHECK.code_of_usage(ErrorKind::InvalidValue), 3);
    }

    #[test]
    fn help_and_version_are_success_under_every_contract() {
        for contract in [WORK, CHECK, fetch(false), fetch(true)] {
            assert_eq!(contract.code_of_usage(ErrorKind::DisplayHelp), 0);
            assert_eq!(contract.code_of_usage(ErrorKind::DisplayVersion), 0);
        }
    }

    #[test]
    fn every_code_a_contract_can_give_is_in_its_table() {
        for contract in [WORK, CHECK, fetch(false), fetch(true)] {
            let mut given = codes(contract);
            given.extend([contract.panic, contract.usage, 0]);
            for code in given {
                assert!(
                    contract.codes.iter().any(|(listed, _)| *listed == code),
                    "{} {code}",
                    contract.name
                );
            }
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is_not_temporary() {
        assert!(written(Err(io::Error::from(io::ErrorKind::BrokenPipe))).is_ok());
        let full = written(Err(io::Error::from(io::ErrorKind::StorageFull))).unwrap_err();
        assert_eq!(full.kind(), Kind::Failed);
    }

    #[test]
    fn the_last_words_are_the_chain_and_the_hint() {
        let voice = |under_journal| Voice {
            tool: "archive-push",
            contract: WORK,
            under_journal,
        };
        let error = Error::new(Kind::Failed, "timed out")
            .hint("it will be offered again")
            .context("cannot store WAL");
        assert_eq!(
            voice(false).words(&error),
            "archive-push: cannot store WAL: timed out\nhint: it will be offered again\n"
        );
        assert_eq!(
            voice(true).words(&error),
            "<3>archive-push: cannot store WAL: timed out\n<5>hint: it will be offered again\n"
        );
    }

    #[test]
    fn monitoring_gets_one_short_line() {
        let text = unknown(&format!("a\nb|{}", "ü".repeat(4000)));
        assert!(text.starts_with("UNKNOWN - a b "));
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.len() < 4096);
    }

    #[test]
    fn only_the_journals_own_stream_counts() {
        assert!(is_stream("9:1234", 9, 1234));
        for other in ["9:1235", "8:1234", "", "9", "9:", "x:y"] {
            assert!(!is_stream(other, 9, 1234), "{other}");
        }
    }

    #[test]
    fn messages_name_the_tool_without_the_family() {
        assert_eq!(tool_name("pgkeep-archive-push"), "archive-push");
        assert_eq!(tool_name("pages"), "pages");
    }
}
