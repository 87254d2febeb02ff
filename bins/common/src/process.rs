//! Other processes, and what this one is: running a program, becoming the data directory's owner, leaving
//! a detached copy of oneself behind.
//!
//! Nothing here reads the environment; what a program needs of it is set on the `Command` by the caller.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, User, initgroups, setgid, setgroups, setsid, setuid};

use crate::error::{Context, Error, Kind, Result, chain};
use crate::units::display_duration;

/// What a program may say before the rest is thrown away.
const CAPTURE_BYTES: usize = 16 << 20;

/// How long output is waited for once the program has ended: a server it left behind may hold the pipe.
const LINGER: Duration = Duration::from_millis(500);

/// Makes a process that root started run as the owner of `path`, with an umask of 0077.
///
/// Returns what to say about it, or `None` if nothing had to change. HOME and the rest of the environment
/// stay. Call it before threads start and before anything is opened: what is open stays open.
///
/// # Errors
/// `Failed` if `path` is not there or the kernel refuses; then do not go on.
pub fn become_owner_of(path: &Path) -> Result<Option<String>> {
    umask(Mode::from_bits_truncate(0o077));
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let found = fs::metadata(path).context(|| format!("find the owner of {}", path.display()));
    let found = found.map_err(|error| error.with_kind(Kind::Failed))?;
    let (owner, group) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    if owner.is_root() {
        return Ok(None);
    }
    let whose = format!("the owner of {}", path.display());
    let failed = |errno: nix::errno::Errno| cannot_become(&owner.to_string(), &whose, errno);
    let name = match User::from_uid(owner).map_err(failed)? {
        Some(user) => become_account(&user).map_err(failed)?,
        // A container may have no entry for its user.
        None => {
            setgroups(&[group]).map_err(failed)?;
            setgid(group).map_err(failed)?;
            setuid(owner).map_err(failed)?;
            owner.to_string()
        }
    };
    Ok(Some(format!("running as {name}, {whose}")))
}

/// Makes a process that root started run as the user `name`, if there is one, with an umask of 0077; otherwise as [`become_owner_of`].
///
/// # Errors
/// `Failed` if the kernel refuses; then do not go on.
pub fn become_user(name: &str) -> Result<Option<String>> {
    umask(Mode::from_bits_truncate(0o077));
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let failed = |errno: nix::errno::Errno| cannot_become(name, "which servers run as", errno);
    let found = User::from_name(name).map_err(failed)?;
    let Some(user) = found.filter(|user| !user.uid.is_root()) else {
        return Ok(None);
    };
    let name = become_account(&user).map_err(failed)?;
    Ok(Some(format!("running as {name}")))
}

fn become_account(user: &User) -> nix::Result<String> {
    let name = CString::new(user.name.as_str()).map_err(|_| nix::errno::Errno::EINVAL)?;
    initgroups(&name, user.gid)?;
    setgid(user.gid)?;
    setuid(user.uid)?;
    Ok(user.name.clone())
}

fn cannot_become(user: &str, whose: &str, errno: nix::errno::Errno) -> Error {
    Error::new(Kind::Failed, format!("become user {user}, {whose}")).because(std::io::Error::from(errno))
}

/// [`become_owner_of`] for a directory that had to be found. Where it was not, root must not go on, for what it left
/// behind nobody else could use; anybody else may, to say and note what is wrong.
///
/// # Errors
/// As [`become_owner_of`]; for root, a copy of why nothing was found.
pub fn become_owner_of_found(found: std::result::Result<&Path, &Error>) -> Result<Option<String>> {
    match found {
        Ok(path) => become_owner_of(path),
        Err(error) if Uid::effective().is_root() => {
            let copy = Error::new(error.kind(), chain(error));
            Err(match error.nearest_hint() {
                Some(hint) => copy.hint(hint),
                None => copy,
            })
        }
        Err(_) => Ok(None),
    }
}

/// A program of ours: beside this executable, which is `own`, else where the packages put it.
pub fn sibling(own: Option<&Path>, name: &str) -> PathBuf {
    let beside = own.and_then(Path::parent).map(|directory| directory.join(name));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| Path::new("/usr/bin").join(name))
}

/// Whether there is a process with this number on this host, whoever it belongs to.
pub fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Runs a program to its end, with nothing on stdin, and returns its status and what it said.
///
/// A program that goes on after `timeout` is killed. Output beyond 16 MiB a stream is dropped.
///
/// # Errors
/// `Config` if there is no such program, `Transient` on timeout. A status other than 0 is no error:
/// see [`expect_success`].
pub fn run(mut command: Command, timeout: Duration) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| cannot_start(error, &name))?;
    let stdout = capture(child.stdout.take());
    let stderr = capture(child.stderr.take());
    match wait(&mut child, timeout).context(|| format!("wait for {name}"))? {
        Some(status) => Ok(Output {
            status,
            stdout: collect(&stdout),
            stderr: collect(&stderr),
        }),
        None => {
            let message = format!("{name} did not end within {}", display_duration(timeout));
            let error = Error::new(Kind::Transient, message);
            Err(match last_lines(&collect(&stderr)) {
                said if said.is_empty() => error,
                said => error.because(said),
            })
        }
    }
}

/// Makes an error of a status other than 0, with the last lines of stderr as its cause.
///
/// # Errors
/// `Failed`, unless the status is 0.
pub fn expect_success(what: &str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let error = Error::new(Kind::Failed, format!("{what} failed ({})", output.status));
    Err(match last_lines(&output.stderr) {
        said if said.is_empty() => error,
        said => error.because(said),
    })
}

/// Passes the lines of a stream on to the log, in a thread of its own; at its end the last `most` of them come.
pub fn follow(
    stream: Option<impl Read + Send + 'static>,
    level: log::Level,
    most: usize,
) -> mpsc::Receiver<Vec<String>> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut last = Vec::new();
        let lines = stream.into_iter().flat_map(|stream| BufReader::new(stream).lines());
        for line in lines.map_while(std::io::Result::ok) {
            log::log!(level, "{line}");
            last.push(line);
            if last.len() > most {
                last.remove(0);
            }
        }
        let _ = send.send(last);
    });
    receive
}

fn cannot_start(error: std::io::Error, name: &str) -> Error {
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let error = Error::io(error, format!("start {name}"));
    if missing {
        return error.with_kind(Kind::Config).hint(format!("is {name} installed?"));
    }
    error
}

/// Reads a stream to its end in a thread of its own, since a full pipe would stop the program.
fn capture(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    let Some(mut stream) = stream else { return receive };
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        let mut taken = 0;
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            taken += read;
            let piece = buffer.get(..read).unwrap_or(&buffer);
            if taken <= CAPTURE_BYTES && send.send(piece.to_vec()).is_err() {
                break;
            }
        }
    });
    receive
}

fn collect(pieces: &mpsc::Receiver<Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match pieces.recv_timeout(LINGER) {
            Ok(piece) => all.extend_from_slice(&piece),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return all,
        }
    }
}

/// Waits for the end of `child`; `None` if it had to be killed.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// The last three lines that say something.
fn last_lines(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.get(lines.len().saturating_sub(3)..).unwrap_or(&lines).join("; ")
}

/// Starts this executable again with `arguments`, in `directory`, without a terminal or streams, and returns
/// its process number at once.
///
/// The child must call [`leave_session`] as its first act. It is the same program even if a package has
/// replaced the file meanwhile.
///
/// # Errors
/// Whatever the kernel says.
pub fn detach_self<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>, directory: &Path) -> Result<u32> {
    let mut command = this_program(arguments);
    command.current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().context(|| "start a process in the background")?;
    Ok(child.id())
}

/// This executable, even if a package has replaced the file meanwhile, under its own name.
fn this_program<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Ok(name) = std::env::current_exe() {
        command.arg0(name);
    }
    command.args(arguments);
    command
}

/// What comes from a process that is watched.
enum Sign {
    Line(String),
    End(std::io::Result<ExitStatus>),
}

/// Runs this executable again with `arguments` and waits at most so long for its end: for work that may hang in the
/// kernel. A process with a thread that hangs there cannot end, and its parent cannot wait for it; so it is killed and
/// left, and the result is `None`.
///
/// `hear` gets each line that the child writes to stdout, and may set another limit, from that moment on.
///
/// # Errors
/// Whatever the kernel says.
pub fn watch_self<A: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = A>,
    limit: Duration,
    hear: &mut dyn FnMut(&str) -> Option<Duration>,
) -> Result<Option<ExitStatus>> {
    watch(this_program(arguments), limit, hear)
}

fn watch(
    mut command: Command,
    limit: Duration,
    hear: &mut dyn FnMut(&str) -> Option<Duration>,
) -> Result<Option<ExitStatus>> {
    command.stdout(Stdio::piped());
    let mut child = command.spawn().context(|| "start a process")?;
    let process = child.id();
    let (send, receive) = mpsc::channel();
    let said = child.stdout.take();
    std::thread::spawn(move || {
        let lines = said.into_iter().flat_map(|said| BufReader::new(said).lines());
        for line in lines.map_while(std::io::Result::ok) {
            let _ = send.send(Sign::Line(line));
        }
        let _ = send.send(Sign::End(child.wait()));
    });
    let (mut since, mut limit) = (Instant::now(), limit);
    loop {
        match receive.recv_timeout(limit.saturating_sub(since.elapsed())) {
            Ok(Sign::Line(line)) => {
                if let Some(another) = hear(&line) {
                    (since, limit) = (Instant::now(), another);
                }
            }
            Ok(Sign::End(status)) => return status.map(Some).context(|| "wait for a process"),
            Err(_) => {
                if let Ok(process) = i32::try_from(process) {
                    // It may have ended just now.
                    let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
                }
                return Ok(None);
            }
        }
    }
}

/// Makes this process its own session, so that signals to its parent's group do not reach it, and closes every
/// descriptor but the first three: PostgreSQL's children inherit some that must not be kept.
///
/// Only as the first act of a process, while it has opened nothing itself.
///
/// # Errors
/// Whatever the kernel says.
pub fn leave_session() -> Result<()> {
    let failed = |errno: nix::errno::Errno| std::io::Error::from(errno);
    setsid().map_err(failed).context(|| "start a session")?;
    for descriptor in open_descriptors()? {
        // The one that the listing used is closed by now.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// The descriptors of this process above the first three.
fn open_descriptors() -> Result<Vec<RawFd>> {
    let list = || {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            let name = entry?.file_name();
            found.extend(
                name.to_str()
                    .and_then(|name| name.parse::<RawFd>().ok())
                    .filter(|fd| *fd > 2),
            );
        }
        Ok(found)
    };
    list().map_err(|error: std::io::Error| Error::io(error, "list open descriptors"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn status_and_both_streams_come_back() {
        let output = run(shell("echo out; echo err >&2; exit 3"), MINUTE).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        let error = expect_success("the script", &output).unwrap_err();
        assert_eq!(crate::error::chain(&error), "the script failed (exit status: 3): err");
    }

    #[test]
    fn more_output_than_a_pipe_holds_does_not_stop_the_program() {
        let output = run(
            shell("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2"),
            MINUTE,
        )
        .unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (1_000_000, 1_000_000));
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let error = run(shell("echo why >&2; exec sleep 600"), Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), Kind::Transient);
        assert!(crate::error::chain(&error).ends_with("200ms: why"), "{error:?}");
    }

    #[test]
    fn a_server_left_behind_that_holds_the_pipe_is_not_waited_for() {
        let output = run(shell("sleep 20 & echo started"), Duration::from_secs(15)).unwrap();
        assert_eq!(output.stdout, b"started\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_a_matter_of_configuration() {
        let error = run(Command::new("/nonexistent/program"), MINUTE).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
    }

    /// Not a test by itself: the child that the tests below start finds its orders in its directory.
    #[test]
    fn orders() {
        let Ok(orders) = fs::read_to_string("orders") else {
            return;
        };
        let report = match orders.as_str() {
            "speak" => {
                // Behind what the harness has said on the same line.
                exit_line("\none\ntwo");
                return;
            }
            "hang" => {
                exit_line("\nhangs");
                std::thread::park_timeout(MINUTE);
                return;
            }
            "leave" => {
                leave_session().unwrap();
                let session = nix::unistd::getsid(None).unwrap();
                // The listing has one of its own.
                format!("{} {}", session, open_descriptors().unwrap().len())
            }
            _ => {
                let said = become_owner_of(Path::new("owned")).unwrap();
                let regained = setuid(Uid::from_raw(0)).is_ok();
                let groups = nix::unistd::getgroups().unwrap();
                fs::write("owned/new", b"").unwrap();
                let mode = fs::metadata("owned/new").unwrap().mode() & 0o777;
                format!("{said:?} {} {groups:?} {regained} {mode:o}", Uid::effective())
            }
        };
        fs::write("owned/report.part", report).unwrap();
        fs::rename("owned/report.part", "owned/report").unwrap();
    }

    const ORDERS: [&str; 3] = ["--exact", "process::tests::orders", "--test-threads=1"];

    #[test]
    fn a_detached_child_has_its_own_session_and_no_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("owned")).unwrap();
        fs::write(dir.path().join("orders"), "leave").unwrap();
        let child = detach_self(ORDERS, dir.path()).unwrap();
        let started = Instant::now();
        let report = loop {
            if let Ok(report) = fs::read_to_string(dir.path().join("owned/report")) {
                break report;
            }
            assert!(started.elapsed() < MINUTE, "the child left no report");
            sleep(Duration::from_millis(5));
        };
        assert_eq!(report, format!("{child} 1"));
    }

    #[allow(clippy::print_stdout)]
    fn exit_line(text: &str) {
        println!("{text}");
    }

    #[test]
    fn a_watched_child_is_heard_and_one_that_goes_on_is_left() {
        // The child is this test program, and has its orders from its directory.
        let watch = |orders: &str, limit: Duration, hear: &mut dyn FnMut(&str) -> Option<Duration>| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("orders"), orders).unwrap();
            let mut command = this_program(ORDERS);
            command.arg("--nocapture").current_dir(dir.path());
            super::watch(command, limit, hear).unwrap()
        };
        let mut heard = Vec::new();
        let ended = watch("speak", MINUTE, &mut |line| {
            heard.push(line.to_owned());
            None
        });
        assert!(ended.unwrap().success());
        assert!(
            heard.iter().any(|line| line == "one") && heard.iter().any(|line| line == "two"),
            "{heard:?}"
        );

        let begun = Instant::now();
        let ended = watch("hang", MINUTE, &mut |line| {
            (line == "hangs").then(|| Duration::from_millis(10))
        });
        assert!(ended.is_none() && begun.elapsed() < MINUTE / 2, "{:?}", begun.elapsed());
    }

    #[test]
    fn root_becomes_the_owner_for_good() {
        if !Uid::effective().is_root() {
            eprintln_skip("only root can become somebody else");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let owned = dir.path().join("owned");
        fs::create_dir(&owned).unwrap();
        fs::write(dir.path().join("orders"), "become").unwrap();
        std::os::unix::fs::chown(&owned, Some(54_321), Some(54_322)).unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(ORDERS).current_dir(dir.path());
        let output = run(command, MINUTE).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let report = fs::read_to_string(owned.join("report")).unwrap();
        assert_eq!(
            report,
            "Some(\"running as 54321, the owner of owned\") 54321 [Gid(54322)] false 600"
        );
    }

    #[allow(clippy::print_stderr)]
    fn eprintln_skip(why: &str) {
        eprintln!("not run: {why}");
    }
}
