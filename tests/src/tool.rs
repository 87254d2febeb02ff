//! Runs a program as its users do: as postgres, with an empty environment, from a place postgres can reach.
//!
//! Promises that a failed expectation shows the command line, how it ended, and both streams. The executables are those
//! that cargo built beside the test; one older than its sources is refused, since it would test something else.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::wait::holds_within;
use crate::{account, scratch};

/// Where programs that are named without a path are found.
pub const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// A program to be run.
#[derive(Debug, Clone)]
pub struct Tool {
    words: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    stdin: Vec<u8>,
    timeout: Duration,
    as_root: bool,
}

/// How a program ended, and what it said and took.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line.
    pub command: String,
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
    /// Time on processors, children included; zero after [`Tool::spawn`].
    pub cpu: Duration,
    /// Peak resident memory of it or a child; zero after [`Tool::spawn`].
    pub max_rss_kib: u64,
}

impl Tool {
    /// One of the project's tools by its short name: `archive-push`.
    pub fn new(name: &str) -> Tool {
        Tool::program(executable(&format!("pgkeep-{name}")))
    }

    /// Any other program.
    pub fn program(program: impl AsRef<OsStr>) -> Tool {
        Tool {
            words: vec![program.as_ref().to_os_string()],
            env: vec![("PATH".into(), PATH.into()), ("LC_ALL".into(), "C.UTF-8".into())],
            cwd: "/".into(),
            stdin: Vec::new(),
            timeout: Duration::from_secs(120),
            as_root: false,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Tool {
        self.words.push(argument.as_ref().to_os_string());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Tool {
        self.words
            .extend(arguments.into_iter().map(|argument| argument.as_ref().to_os_string()));
        self
    }

    /// Sets a variable; besides PATH and LC_ALL there are none.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Tool {
        self.env.push((name.into(), value.as_ref().to_os_string()));
        self
    }

    /// Sets the working directory; `/` if not said.
    pub fn cwd(mut self, directory: &Path) -> Tool {
        self.cwd = directory.to_path_buf();
        self
    }

    /// Gives it something to read; nothing if not said.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Tool {
        self.stdin = bytes.into();
        self
    }

    /// Fails the test if it takes longer; 120 s if not said.
    pub fn timeout(mut self, timeout: Duration) -> Tool {
        self.timeout = timeout;
        self
    }

    /// Runs it as whoever runs the tests, usually root.
    pub fn as_root(mut self) -> Tool {
        self.as_root = true;
        self
    }

    /// Runs it under another program: `["strace", "-o", "/dev/null", "-e", "inject=fsync:error=EIO"]`.
    pub fn under<A: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = A>) -> Tool {
        self.words
            .splice(0..0, words.into_iter().map(|word| word.as_ref().to_os_string()));
        self
    }

    /// The command line, as a person would type it.
    pub fn command_line(&self) -> String {
        let quoted = self.words.iter().map(|word| {
            let word = word.to_string_lossy();
            let plain =
                !word.is_empty() && !word.contains([' ', '\'', '"', '$', '*', '\\', '\n', '(', ')', ';', '&', '|']);
            if plain {
                word.into_owned()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        });
        quoted.collect::<Vec<_>>().join(" ")
    }

    /// Runs it to its end.
    pub fn run(&self) -> Ran {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let result = results_dir().join(RUNS.fetch_add(1, Ordering::Relaxed).to_string());
        // The measuring process cannot write where the tool's account cannot.
        account::write(&result, "", 0o600);
        let mut command = Command::new(executable("measure"));
        command.arg(&result).args(&self.words);
        let mut running = self.start(command);
        let ended = holds_within(self.timeout, || running.child.try_wait().unwrap().is_some());
        if !ended {
            running.kill_group();
            let ran = running.finish();
            panic!("still running after {:?}\n{}", self.timeout, ran.report());
        }
        let mut ran = running.finish();
        let line = fs::read_to_string(&result).unwrap();
        let _ = fs::remove_file(&result);
        let numbers: Vec<i64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
        let [code, signal, elapsed, cpu, max_rss] = numbers[..] else {
            panic!("it did not run\n{}", ran.report())
        };
        ran.signal = i32::try_from(signal).ok().filter(|signal| *signal != 0);
        ran.code = i32::try_from(code).ok().filter(|_| ran.signal.is_none());
        ran.elapsed = Duration::from_micros(elapsed.unsigned_abs());
        ran.cpu = Duration::from_micros(cpu.unsigned_abs());
        ran.max_rss_kib = max_rss.unsigned_abs();
        ran
    }

    /// Starts it and returns at once.
    pub fn spawn(&self) -> Running {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        self.start(command)
    }

    fn start(&self, mut command: Command) -> Running {
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut stdin = tempfile::tempfile().unwrap();
        stdin.write_all(&self.stdin).unwrap();
        stdin.seek(SeekFrom::Start(0)).unwrap();
        command
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.cwd);
        command
            .stdin(Stdio::from(stdin))
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap());
        // A group of its own, so that a timeout ends the measuring process and the tool.
        command.process_group(0);
        if !self.as_root {
            account::run_as(&mut command);
        }
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.command_line()));
        Running {
            child,
            command: self.command_line(),
            stdout,
            stderr,
            start: Instant::now(),
            ended: false,
        }
    }
}

/// A program that was started and may be still at work; dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    stdout: File,
    stderr: File,
    start: Instant,
    ended: bool,
}

impl Running {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is still at work.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.group(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.command));
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Kills it where it stands, and waits until it is gone.
    pub fn kill9(mut self) -> Ran {
        self.child.kill().unwrap();
        self.finish()
    }

    /// Waits for its end.
    pub fn wait(mut self, timeout: Duration) -> Ran {
        if !holds_within(timeout, || self.child.try_wait().unwrap().is_some()) {
            self.kill_group();
            let ran = self.finish();
            panic!("still running after {timeout:?}\n{}", ran.report());
        }
        self.finish()
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process numbers are below 2^22"))
    }

    fn kill_group(&self) {
        // It may have ended meanwhile.
        let _ = killpg(self.group(), Signal::SIGKILL);
    }

    fn finish(&mut self) -> Ran {
        let status: ExitStatus = self.child.wait().unwrap();
        self.ended = true;
        Ran {
            command: self.command.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
            elapsed: self.start.elapsed(),
            cpu: Duration::ZERO,
            max_rss_kib: 0,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.kill_group();
            let _ = self.child.wait();
        }
    }
}

impl Ran {
    /// Fails the test unless it ended with this code.
    pub fn expect_code(self, code: i32) -> Ran {
        assert!(self.code == Some(code), "expected exit code {code}\n{}", self.report());
        self
    }

    /// Fails the test unless stdout or stderr holds these words.
    pub fn expect_said(self, words: &str) -> Ran {
        assert!(
            self.stdout.contains(words) || self.stderr.contains(words),
            "expected the words {words:?}\n{}",
            self.report()
        );
        self
    }

    /// Fails the test unless stderr is empty: no warning, no surprise.
    pub fn expect_quiet(self) -> Ran {
        assert!(self.stderr.is_empty(), "expected no words on stderr\n{}", self.report());
        self
    }

    /// stdout as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON: {error}\n{}", self.report()))
    }

    /// All there is to know, for a failed test.
    pub fn report(&self) -> String {
        let end = match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        let (command, elapsed) = (&self.command, self.elapsed);
        format!(
            "$ {command}\n{end} after {elapsed:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout, self.stderr
        )
    }
}

fn text(file: &File) -> String {
    let mut bytes = Vec::new();
    // The position is shared with the program, which may still write: read through a path of one's own.
    let mut own = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file))).unwrap();
    own.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The directory of the executables that the servers' account can run; commands in configurations name it.
pub fn programs() -> &'static Path {
    static READY: LazyLock<PathBuf> = LazyLock::new(|| {
        let (built, place) = (built_dir(), scratch::programs_dir());
        for entry in fs::read_dir(&built).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if (name.starts_with("pgkeep-") || name == "measure" || name == "pages")
                && !name.contains('.')
                && entry.path().is_file()
            {
                let target = place.join(&name);
                // A fresh clone may lie where postgres cannot look; a link costs nothing, where it is possible.
                fs::hard_link(entry.path(), &target)
                    .or_else(|_| fs::copy(entry.path(), &target).map(drop))
                    .unwrap();
            }
        }
        place.to_path_buf()
    });
    &READY
}

/// Finds an executable of the project, or fails naming the command that builds it.
fn executable(name: &str) -> PathBuf {
    let built = built_dir().join(name);
    assert!(
        built.is_file(),
        "{} is not there: run cargo build --workspace --bins",
        built.display()
    );
    if let Some(newer) = newer_source(&built) {
        panic!(
            "{} is older than {newer}: run cargo build --workspace --bins",
            built.display()
        );
    }
    programs().join(name)
}

/// Where cargo puts executables: the tests are in `deps` below.
fn built_dir() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let above = test.parent().unwrap();
    let above = if above.ends_with("deps") {
        above.parent().unwrap()
    } else {
        above
    };
    above.to_path_buf()
}

/// A source that was changed after the executable was built; cargo lists them all beside it.
fn newer_source(built: &Path) -> Option<String> {
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let sources = fs::read_to_string(built.with_extension("d")).ok()?;
    let built = time(built)?;
    let mut sources = sources.split_once(": ")?.1.split_whitespace();
    sources
        .find(|source| time(Path::new(source)).is_some_and(|changed| changed > built))
        .map(String::from)
}

/// Where the measuring process leaves its results.
fn results_dir() -> &'static Path {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = programs().join("results");
        account::create_dir(&path, 0o700);
        path
    });
    &DIRECTORY
}
