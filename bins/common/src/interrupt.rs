//! SIGTERM, SIGINT and SIGHUP of long work: they are caught and asked for, so that it ends at a place of its own choice.
//!
//! The signals are blocked in every thread and taken by one that waits for them, so nothing runs inside a handler. Work
//! that does not end in time, because it waits for a server or a disk, is ended by a last resort; so does a second
//! signal. Programs started meanwhile would inherit the blocked signals: who calls [`watch`] starts none.

use std::fmt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::error::{Error, Kind, Result};

/// How long work has to end by itself.
const GRACE: Duration = Duration::from_secs(10);

static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// A signal that asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupt(Signal);

impl Interrupt {
    /// 128 and the signal's number, as shells show it.
    pub fn exit_code(self) -> u8 {
        u8::try_from(128 + self.0 as i32).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted by {}", self.0.as_str())
    }
}

/// Catches the signals from now on. Call it before there is a second thread, and once.
///
/// # Errors
/// `Failed` if the system refuses.
pub fn watch(last_resort: impl FnOnce(Interrupt) + Send + 'static) -> Result<()> {
    let failed = |errno: nix::errno::Errno| Error::new(Kind::Failed, "watch for signals").because(errno);
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .into_iter()
        .for_each(|signal| set.add(signal));
    set.thread_block().map_err(failed)?;
    let (sender, receiver) = channel();
    let wait = move || {
        while let Ok(signal) = set.wait() {
            let first = CAUGHT.compare_exchange(0, signal as i32, Ordering::SeqCst, Ordering::SeqCst);
            if first.is_ok() {
                log::warn!("{}: ending", Interrupt(signal));
            }
            if sender.send(Interrupt(signal)).is_err() {
                return;
            }
        }
    };
    let end = move || {
        let Ok(first) = receiver.recv() else { return };
        match receiver.recv_timeout(GRACE) {
            Ok(_) | Err(RecvTimeoutError::Timeout) => last_resort(first),
            Err(RecvTimeoutError::Disconnected) => {}
        }
    };
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        thread.map(drop).map_err(|error| Error::io(error, "watch for signals"))
    };
    spawn("signals", Box::new(wait))?;
    spawn("last resort", Box::new(end))
}

/// The signal that was caught, if one was.
pub fn caught() -> Option<Interrupt> {
    Signal::try_from(CAUGHT.load(Ordering::SeqCst)).ok().map(Interrupt)
}

/// Fails once a signal has been caught.
///
/// # Errors
/// `Failed`.
pub fn check() -> Result<()> {
    match caught() {
        None => Ok(()),
        Some(interrupt) => Err(Error::new(Kind::Failed, interrupt.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_process_ends_as_shells_expect() {
        assert_eq!(Interrupt(Signal::SIGTERM).exit_code(), 143);
        assert_eq!(Interrupt(Signal::SIGINT).exit_code(), 130);
        assert_eq!(Interrupt(Signal::SIGTERM).to_string(), "interrupted by SIGTERM");
    }
}
