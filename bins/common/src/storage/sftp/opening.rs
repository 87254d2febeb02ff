//! Opening a conversation: the process is started, says hello, or says why not.
//!
//! Bounded in time. What the process says on stderr is kept for as long as it lives: it explains every failure.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::lock;
use super::session::{Dial, FAREWELL, ended_within};
use super::ssh::{self, Stage};
use super::wire;
use crate::error::{Context, Error, Kind, Result};
use crate::units::display_duration;

/// Lines of the process that are kept, and their length.
const SAID_LINES: usize = 40;
const SAID_BYTES: u64 = 500;
/// How soon after a session that was closed at once another is tried.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// A write that gets nowhere returns so often, to be judged.
const WRITE_TICK: Duration = Duration::from_millis(500);

/// The last lines of a process.
pub(super) type Said = Arc<Mutex<VecDeque<String>>>;

/// A server that has said hello.
pub(super) struct Opened {
    pub(super) stream: UnixStream,
    pub(super) child: Child,
    pub(super) said: Said,
    /// Its extensions, with their versions.
    pub(super) extensions: Vec<(String, String)>,
}

/// Starts the process and waits for its first answer.
///
/// A server that is going down and one whose set-up is wrong (a chroot that others may write to) both let in and then
/// close; the second does so again a moment later.
///
/// # Errors
/// `Transient` if another attempt may help, which an unknown reason is taken for.
pub(super) fn open(dial: &Dial) -> Result<Opened> {
    match open_once(dial, Stage::Opening) {
        Err(unreached) if unreached.after_login => {
            sleep(AGAIN_AFTER.min(dial.limits.connect / 4));
            open_once(dial, Stage::OpeningAgain)
        }
        outcome => outcome,
    }
    .map_err(|unreached| unreached.error)
}

fn open_once(dial: &Dial, stage: Stage) -> Result<Opened, Unreached> {
    let began = Instant::now();
    let (mut stream, child, said) = start(dial)?;
    match greet(&mut stream, began, dial.limits.connect) {
        Ok(extensions) => Ok(Opened {
            stream,
            child,
            said,
            extensions,
        }),
        Err(failure) => Err(cannot_open(failure, dial, child, &said, stage)),
    }
}

/// Starts the process on one end of a pair of sockets, which, unlike a pipe, can be written to with a timeout.
fn start(dial: &Dial) -> Result<(UnixStream, Child, Said)> {
    let (ours, theirs) = UnixStream::pair().context(|| "make a pair of sockets")?;
    let input: OwnedFd = theirs.try_clone().context(|| "share a socket")?.into();
    let output: OwnedFd = theirs.into();
    let mut words = dial.command.iter();
    let program = words.next().cloned().unwrap_or_default();
    let mut command = Command::new(&program);
    command
        .args(words)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output));
    let spawned = command.stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| {
        let missing = error.kind() == ErrorKind::NotFound;
        let error = Error::io(error, format!("start {}", program.to_string_lossy()));
        match missing {
            true => error
                .with_kind(Kind::Config)
                .hint("is it installed? the package is openssh-client"),
            false => error,
        }
    })?;
    let said = Said::default();
    if let Some(stderr) = child.stderr.take() {
        let said = said.clone();
        std::thread::spawn(move || listen(stderr, &said));
    }
    Ok((ours, child, said))
}

/// Keeps the last lines that a process says.
fn listen(stderr: impl Read, said: &Mutex<VecDeque<String>>) {
    let mut stderr = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match stderr.by_ref().take(SAID_BYTES).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            _ => return,
        }
        let line: String = String::from_utf8_lossy(&line)
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        log::debug!("ssh: {line}");
        if !line.trim().is_empty() {
            let mut said = lock(said);
            said.push_back(line);
            if said.len() > SAID_LINES {
                said.pop_front();
            }
        }
    }
}

/// Why SFTP did not begin.
enum Unopened {
    Late,
    Ended,
    NoSftp(Error),
}

/// Says hello and reads the answer: the server's extensions.
fn greet(
    stream: &mut UnixStream,
    began: Instant,
    limit: Duration,
) -> std::result::Result<Vec<(String, String)>, Unopened> {
    // Who is gone already may have said why.
    let _ = stream.write_all(&wire::init());
    let mut head = [0; 4];
    read_by(stream, &mut head, began, limit)?;
    let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if length > wire::REPLY_BYTES {
        let text = String::from_utf8_lossy(&head).into_owned();
        let error = Error::new(Kind::Failed, format!("the server begins with {text:?} instead of SFTP"));
        return Err(Unopened::NoSftp(error));
    }
    let mut packet = vec![0; length];
    read_by(stream, &mut packet, began, limit)?;
    let extensions = wire::parse_version(&packet).map_err(Unopened::NoSftp)?;
    let settled = stream
        .set_read_timeout(None)
        .and_then(|()| stream.set_write_timeout(Some(WRITE_TICK)));
    settled.map_err(|_| Unopened::Ended)?;
    Ok(extensions)
}

fn read_by(
    stream: &mut UnixStream,
    buffer: &mut [u8],
    began: Instant,
    limit: Duration,
) -> std::result::Result<(), Unopened> {
    let mut filled = 0;
    while filled < buffer.len() {
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Unopened::Late);
        }
        stream.set_read_timeout(Some(left)).map_err(|_| Unopened::Ended)?;
        match stream.read(buffer.get_mut(filled..).unwrap_or_default()) {
            Ok(0) => return Err(Unopened::Ended),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return Err(Unopened::Ended),
        }
    }
    Ok(())
}

/// Why there is no conversation.
struct Unreached {
    error: Error,
    /// Whether the server had let us in.
    after_login: bool,
}

impl From<Error> for Unreached {
    fn from(error: Error) -> Self {
        Self {
            error,
            after_login: false,
        }
    }
}

fn cannot_open(failure: Unopened, dial: &Dial, mut child: Child, said: &Said, stage: Stage) -> Unreached {
    let ended = matches!(failure, Unopened::Ended) && ended_within(&mut child, FAREWELL);
    if !ended {
        let _ = child.kill();
        ended_within(&mut child, FAREWELL);
    }
    // Its last words may still be on their way through the other thread, which ends with them.
    let began = Instant::now();
    while Arc::strong_count(said) > 1 && began.elapsed() < FAREWELL / 4 {
        sleep(Duration::from_millis(2));
    }
    let said: Vec<String> = lock(said).iter().cloned().collect();
    let judged = ssh::judge(dial.target.as_ref(), &said, stage);
    match failure {
        Unopened::Ended => Unreached {
            after_login: judged.kind() == Kind::Transient && ssh::let_in(&said),
            error: judged,
        },
        Unopened::Late => {
            let host = dial
                .target
                .as_ref()
                .map_or("the SFTP server", |target| target.host.as_str());
            let limit = display_duration(dial.limits.connect);
            Error::new(
                Kind::Transient,
                format!("cannot connect to {host}: no answer within {limit}"),
            )
            .hint("is the host up and not overloaded, and no firewall in between?")
            .into()
        }
        Unopened::NoSftp(error) => error
            .context("cannot begin SFTP")
            .with_kind(Kind::Failed)
            .hint(
                "the account's shell must say nothing when it is not interactive (look into its .bashrc); an account \
                 with ForceCommand internal-sftp has no shell",
            )
            .into(),
    }
}
