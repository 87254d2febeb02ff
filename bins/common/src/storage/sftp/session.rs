//! One conversation with an SFTP server: a process, the requests on their way, and the answers.
//!
//! Requests are numbered and may be many at once; a thread hands each answer to whoever asked. Nothing waits without
//! end: a server that says nothing for as long as the limits allow is cut off, and everybody who waits then hears that
//! the connection is lost, which is worth another try on a new one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::lock;
use super::opening::{self, Opened, Said};
use super::ssh::{self, Stage, Target};
use super::wire::{self, Code, Reply, Request};
use crate::error::{Context, Error, Kind, Result};
use crate::units::display_duration;

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From starting ssh to the first answer.
    pub connect: Duration,
    /// A server that says nothing for so long while it is asked something has gone.
    pub silence: Duration,
    /// The same while it syncs a file to its disk.
    pub sync: Duration,
}

impl Limits {
    /// For work that has time.
    pub const USUAL: Self = Self {
        connect: Duration::from_secs(15),
        silence: Duration::from_secs(30),
        sync: Duration::from_secs(180),
    };

    /// For a caller who waits no longer than `span`.
    pub fn within(span: Duration) -> Self {
        let usual = Self::USUAL;
        Self {
            connect: usual.connect.min(span),
            silence: usual.silence.min(span),
            sync: usual.sync.min(span),
        }
    }
}

/// An answer to a server that never ends would do the same as none.
const LONGEST: u32 = 10;
/// How long a process may take to end once nothing more is asked of it.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// How to reach a server.
#[derive(Debug, Clone)]
pub(super) struct Dial {
    pub(super) command: Vec<OsString>,
    /// `None`: not over ssh.
    pub(super) target: Option<Target>,
    pub(super) limits: Limits,
}

/// What the server can do besides version 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    pub(super) sync: bool,
    pub(super) hardlink: bool,
    pub(super) posix_rename: bool,
    pub(super) statvfs: bool,
    /// Most bytes that one request reads or writes.
    pub(super) read_bytes: usize,
    pub(super) write_bytes: usize,
}

/// What version 3 promises, and what is asked for where a server allows more.
const PLAIN_BYTES: usize = 32 << 10;
const CHUNK_BYTES: usize = 128 << 10;

/// Why a request did not do what it was sent for.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server says no.
    Said(Code, String),
    /// There is no answer, or none that can be used.
    Ended(Error),
}

/// A conversation. Dropped, it ends the process.
pub(super) struct Session {
    abilities: Abilities,
    limits: Limits,
    target: Option<Target>,
    out: Mutex<UnixStream>,
    last_id: AtomicU32,
    shared: Arc<Shared>,
    child: Mutex<Child>,
}

struct Shared {
    began: Instant,
    /// Milliseconds after `began` when the server was last heard.
    heard: AtomicU64,
    /// Syncs on their way.
    syncing: AtomicU32,
    waiting: Mutex<HashMap<u32, Sender<Reply>>>,
    broken: AtomicBool,
    /// Why it was cut off from this side.
    cut: Mutex<Option<String>>,
    said: Said,
}

/// A request on its way; it may be dropped, and the answer with it.
pub(super) struct Ticket {
    receiver: Receiver<Reply>,
    sent: Instant,
    /// For a sync, until it is answered or nobody waits for it.
    _syncing: Option<Syncing>,
}

/// While one of these is there, the server may take a disk's time to answer.
struct Syncing(Arc<Shared>);

impl Syncing {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.syncing.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        self.0.syncing.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Ends the waiting of everybody.
    fn end(&self) {
        self.broken.store(true, Ordering::Release);
        lock(&self.waiting).clear();
    }

    fn note_heard(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    fn last_heard(&self) -> Instant {
        self.began + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }

    fn said(&self) -> Vec<String> {
        lock(&self.said).iter().cloned().collect()
    }
}

impl Session {
    /// Opens a conversation.
    ///
    /// # Errors
    /// As [`opening::open`].
    pub(super) fn connect(dial: &Dial) -> Result<Self> {
        let Opened {
            stream,
            child,
            said,
            extensions,
        } = opening::open(dial)?;
        let shared = Arc::new(Shared {
            began: Instant::now(),
            heard: AtomicU64::new(0),
            syncing: AtomicU32::new(0),
            waiting: Mutex::default(),
            broken: AtomicBool::new(false),
            cut: Mutex::default(),
            said,
        });
        let has = |name: &str| extensions.iter().any(|(found, _)| found == name);
        let reading = stream.try_clone().context(|| "share a connection")?;
        let mut session = Self {
            abilities: Abilities {
                sync: has("fsync@openssh.com"),
                hardlink: has("hardlink@openssh.com"),
                posix_rename: has("posix-rename@openssh.com"),
                statvfs: has("statvfs@openssh.com"),
                read_bytes: PLAIN_BYTES,
                write_bytes: PLAIN_BYTES,
            },
            limits: dial.limits,
            target: dial.target.clone(),
            out: Mutex::new(stream),
            last_id: AtomicU32::new(0),
            shared,
            child: Mutex::new(child),
        };
        let shared = session.shared.clone();
        std::thread::spawn(move || {
            let outcome = receive(reading, &shared);
            if let Err(error) = outcome {
                lock(&shared.cut).get_or_insert(error.to_string());
            }
            shared.end();
        });
        if has("limits@openssh.com") {
            session.ask_limits()?;
        }
        Ok(session)
    }

    fn ask_limits(&mut self) -> Result<()> {
        match self.ask(Request::extended("limits@openssh.com")) {
            Ok(Reply::Extended(limits)) => {
                // Whole packet, read, write, handles; 0 says nothing.
                let chunk = |at: usize| match limits.get(at) {
                    Some(0) | None => PLAIN_BYTES,
                    Some(limit) => usize::try_from(*limit).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES),
                };
                self.abilities.read_bytes = chunk(1);
                self.abilities.write_bytes = chunk(2);
                Ok(())
            }
            Err(Trouble::Ended(error)) => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Whether nothing can be asked here any more.
    pub(super) fn is_broken(&self) -> bool {
        self.shared.is_broken()
    }

    /// Sends a request; the answer is waited for with [`wait`](Self::wait), or never.
    pub(super) fn send(&self, request: Request) -> Result<Ticket, Trouble> {
        self.send_as(request, false)
    }

    /// As [`send`](Self::send), for what may take a disk's time.
    pub(super) fn send_sync(&self, request: Request) -> Result<Ticket, Trouble> {
        self.send_as(request, true)
    }

    fn send_as(&self, request: Request, is_sync: bool) -> Result<Ticket, Trouble> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let (sender, receiver) = bounded(1);
        lock(&self.shared.waiting).insert(id, sender);
        // After the insertion: whoever ends the waiting sees either this entry or is seen here.
        if self.is_broken() {
            return Err(Trouble::Ended(self.lost()));
        }
        let ticket = Ticket {
            receiver,
            sent: Instant::now(),
            _syncing: is_sync.then(|| Syncing::begin(&self.shared)),
        };
        match self.write(&request.numbered(id)) {
            Ok(()) => Ok(ticket),
            Err(why) => {
                self.cut(&why);
                Err(Trouble::Ended(self.lost()))
            }
        }
    }

    /// Sends a request whose answer nobody needs.
    pub(super) fn send_and_forget(&self, request: Request) {
        // If it does not arrive, the connection is lost, and others will say so.
        let _ = self.send(request);
    }

    /// Writes a packet. Another one's answers must arrive meanwhile, or the connection is given up.
    fn write(&self, packet: &[u8]) -> Result<(), String> {
        let mut out = lock(&self.out);
        let mut rest = packet;
        let began = Instant::now();
        while !rest.is_empty() {
            if self.is_broken() {
                return Err("it is broken".to_owned());
            }
            match out.write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The timeout of the stream: a short one, so that answers heard meanwhile count.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    let since = began.max(self.shared.last_heard());
                    if since.elapsed() > self.patience() {
                        return Err(self.silent());
                    }
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// How long the server may be silent now.
    fn patience(&self) -> Duration {
        match self.shared.syncing.load(Ordering::Relaxed) {
            0 => self.limits.silence,
            _ => self.limits.sync,
        }
    }

    fn silent(&self) -> String {
        format!("no answer within {}", display_duration(self.patience()))
    }

    /// Waits for the answer to a request.
    pub(super) fn wait(&self, ticket: Ticket) -> Result<Reply, Trouble> {
        let outcome = loop {
            let patience = self.patience();
            let due = ticket.sent.max(self.shared.last_heard()) + patience;
            // Others keep the conversation alive, but this answer has been lost.
            let due = due.min(ticket.sent + patience * LONGEST);
            match ticket.receiver.recv_deadline(due) {
                Ok(reply) => break Ok(reply),
                Err(RecvTimeoutError::Disconnected) => break Err(Trouble::Ended(self.lost())),
                Err(RecvTimeoutError::Timeout) => {
                    let since = ticket.sent.max(self.shared.last_heard());
                    if since.elapsed() >= patience || ticket.sent.elapsed() >= patience * LONGEST {
                        self.cut(&self.silent());
                        break Err(Trouble::Ended(self.lost()));
                    }
                }
            }
        };
        drop(ticket);
        match outcome? {
            Reply::Status(Code::Ok, _) => Ok(Reply::Status(Code::Ok, String::new())),
            Reply::Status(code, message) => Err(Trouble::Said(code, message)),
            reply => Ok(reply),
        }
    }

    /// Sends a request and waits for its answer.
    pub(super) fn ask(&self, request: Request) -> Result<Reply, Trouble> {
        self.wait(self.send(request)?)
    }

    /// Gives the connection up.
    fn cut(&self, why: &str) {
        lock(&self.shared.cut).get_or_insert(why.to_owned());
        self.shared.end();
        // ssh may hang as its server does.
        let _ = lock(&self.child).kill();
    }

    /// Why there is no answer.
    fn lost(&self) -> Error {
        // A moment for what ssh says at its end.
        ended_within(&mut lock(&self.child), Duration::from_millis(200));
        let error = ssh::judge(self.target.as_ref(), &self.shared.said(), Stage::Working);
        match &*lock(&self.shared.cut) {
            Some(why) => error.because(why.clone()),
            None => error,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // OpenSSH's server forgets what it has not begun when it sees the end, so the last answers are waited for.
        let began = Instant::now();
        while !self.is_broken() && !lock(&self.shared.waiting).is_empty() && began.elapsed() < FAREWELL {
            sleep(Duration::from_millis(1));
        }
        self.shared.broken.store(true, Ordering::Release);
        let _ = lock(&self.out).shutdown(Shutdown::Write);
        let mut child = lock(&self.child);
        if !ended_within(&mut child, FAREWELL) {
            let _ = child.kill();
            ended_within(&mut child, FAREWELL);
        }
    }
}

/// Whether the process ends in time; then it has been waited for.
pub(super) fn ended_within(child: &mut Child, span: Duration) -> bool {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(None) if began.elapsed() < span => sleep(pause),
            Ok(None) => return false,
            _ => return true,
        }
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Hands out answers until the server ends.
fn receive(stream: UnixStream, shared: &Shared) -> Result<()> {
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let mut head = [0; 4];
    loop {
        match stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(Error::io(error, "read an answer")),
        }
        let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
        if length > wire::REPLY_BYTES {
            return Err(Error::new(Kind::Transient, format!("an answer of {length} bytes")));
        }
        let mut packet = Vec::with_capacity(length);
        let read = stream.by_ref().take(length as u64).read_to_end(&mut packet);
        if read.context(|| "read an answer")? < length {
            return Ok(());
        }
        shared.note_heard();
        let (id, reply) = wire::parse_reply(packet)?;
        let asker = lock(&shared.waiting).remove(&id);
        if let Some(asker) = asker {
            // Whoever asked may have lost interest.
            let _ = asker.send(reply);
        }
    }
}
