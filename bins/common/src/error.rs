//! The one error type: a kind that callers branch on, one sentence, perhaps a hint and a cause.
//!
//! `Display` says its own part only; the cause is in `source()`. [`chain`] joins them for the reader,
//! and only [`crate::exit`] prints it. An error is either returned or logged, never both.

use std::fmt;

/// What a caller may do about an error. A kind exists because somebody branches on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The named thing is certainly not there. Never used where this could not be found out.
    NotFound,
    /// Something stands already under the name that was to be created.
    AlreadyExists,
    /// Asking again may help: the only kind that is retried.
    Transient,
    /// The bytes are there and are not what they should be.
    Corrupt,
    /// Doing it would break a promise.
    Refused,
    /// Somebody else holds what is needed.
    Busy,
    /// Usage or configuration: a person has to change something first.
    Config,
    /// Anything else.
    Failed,
}

/// An error: [`Kind`], one sentence without full stop, optional hint, optional cause.
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything in this project that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of `kind` whose sentence is `message` (verb and object, lower case, no full stop).
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    /// Adds what the reader can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Wraps this error as the cause of one with the same kind and another sentence.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            message: message.into(),
            hint: None,
            source: Some(Box::new(self)),
        }
    }

    /// The same error under another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same in one sentence, for a second place that has to say it; causes become text.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self {
            kind: self.kind,
            message: chain(self),
            hint: self.nearest_hint().map(str::to_owned),
            source: None,
        }
    }

    /// What a caller may do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The hint nearest to the reader: this error's own, else the first one among its causes.
    pub fn nearest_hint(&self) -> Option<&str> {
        let mut next: Option<&Error> = Some(self);
        while let Some(error) = next {
            if let Some(hint) = &error.hint {
                return Some(hint);
            }
            next = error
                .source
                .as_deref()
                .and_then(|source| source.downcast_ref::<Error>());
        }
        None
    }

    /// Whether the operating system refused for want of permission, here or in a cause.
    pub fn is_denied(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            let denied = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
            if error.downcast_ref().is_some_and(denied) {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// The kind that an operating system error deserves.
    ///
    /// Interrupted calls, timeouts and unreachable peers are worth another try; a full disk is not
    /// for us to decide and counts as `Transient` too: space may come back before patience ends.
    pub fn kind_of_io(error: &std::io::Error) -> Kind {
        use std::io::ErrorKind as E;
        match error.kind() {
            E::NotFound => Kind::NotFound,
            E::AlreadyExists => Kind::AlreadyExists,
            E::Interrupted
            | E::TimedOut
            | E::WouldBlock
            | E::ConnectionRefused
            | E::ConnectionReset
            | E::ConnectionAborted
            | E::NotConnected
            | E::BrokenPipe
            | E::HostUnreachable
            | E::NetworkUnreachable
            | E::NetworkDown
            | E::StaleNetworkFileHandle
            | E::StorageFull
            | E::QuotaExceeded => Kind::Transient,
            E::UnexpectedEof | E::InvalidData => Kind::Corrupt,
            _ => Kind::Failed,
        }
    }

    /// Makes an error from an operating system error: its kind, this sentence, and itself as the cause.
    pub fn io(error: std::io::Error, message: impl Into<String>) -> Self {
        // An error of ours that travelled through `std::io` keeps its own kind.
        match error.downcast::<Error>() {
            Ok(own) => own.context(message),
            Err(error) => Self::new(Self::kind_of_io(&error), message).because(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, chain(self))?;
        if let Some(hint) = self.nearest_hint() {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// Lets an [`Error`] travel through `Read` and `Write`; [`Error::io`] finds it again.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        std::io::Error::other(error)
    }
}

/// Puts a sentence in front of an error.
pub trait Context<T> {
    /// Wraps the error, if there is one; the sentence is made only then.
    ///
    /// # Errors
    /// The same kind as before, for `std::io::Error` the one of [`Error::kind_of_io`].
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| error.context(message()))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Error::io(error, message()))
    }
}

/// [`chain`], with the nearest hint behind it in brackets: for a line that goes on after an error.
pub fn chain_with_hint(error: &Error) -> String {
    match error.nearest_hint() {
        Some(hint) => format!("{} (hint: {hint})", chain(error)),
        None => chain(error),
    }
}

/// The whole chain of sentences, joined by colons, without hints.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_says_every_part_once_and_finds_the_hint() {
        let cause = Error::new(Kind::Transient, "write s3://b/k").hint("wait");
        let error = cause.context("cannot store WAL 01");
        assert_eq!(chain(&error), "cannot store WAL 01: write s3://b/k");
        assert_eq!(error.nearest_hint(), Some("wait"));
        assert_eq!(error.kind(), Kind::Transient);
    }

    #[test]
    fn an_error_that_travels_through_io_keeps_its_kind() {
        let io: std::io::Error = Error::new(Kind::Corrupt, "digest differs").into();
        let back = Error::io(io, "read object");
        assert_eq!(back.kind(), Kind::Corrupt);
        assert_eq!(chain(&back), "read object: digest differs");
    }
}
