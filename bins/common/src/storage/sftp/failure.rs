//! What a server says, as an error for a person.
//!
//! Version 3 has few words for failures: "Failure" is a full disk as well as a name that is taken. So the server is asked
//! what can be asked, and the hint says what is left.

use std::sync::Arc;

use super::SftpStore;
use super::session::{Session, Trouble};
use super::wire::Code;
use crate::error::{Error, Kind};
use crate::storage::{Key, Store};

/// Less than this left, and a write that failed for no other known reason failed for want of room.
const FULL_BYTES: u64 = 1 << 20;

/// What was being done, for messages; some failures are judged by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Write,
    WriteTo,
    GoOn,
    MoveAside,
    Delete,
    Read,
    Open,
    LookAt,
    LookFor,
    Follow,
    List,
    Sweep,
    SyncDirectory,
    AskSpace,
}

impl Verb {
    fn text(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::WriteTo => "write to",
            Self::GoOn => "go on with",
            Self::MoveAside => "move aside",
            Self::Delete => "delete",
            Self::Read => "read",
            Self::Open => "open",
            Self::LookAt => "look at",
            Self::LookFor => "look for",
            Self::Follow => "follow the way to",
            Self::List => "list",
            Self::Sweep => "sweep",
            Self::SyncDirectory => "sync the directory of",
            Self::AskSpace => "look at the file system of",
        }
    }

    fn needs_room(self) -> bool {
        matches!(
            self,
            Self::Create | Self::Write | Self::WriteTo | Self::GoOn | Self::MoveAside
        )
    }
}

impl SftpStore {
    /// Makes an error of what came back, never one that claims presence or absence.
    pub(super) fn failed(&self, session: &Arc<Session>, trouble: Trouble, verb: Verb, key: Option<&Key>) -> Error {
        let what = format!("{} {}", verb.text(), self.describe(key));
        let (code, message) = match trouble {
            Trouble::Ended(error) => {
                let kind = match error.kind() {
                    Kind::NotFound | Kind::AlreadyExists => Kind::Failed,
                    kind => kind,
                };
                return error.with_kind(kind).context(what);
            }
            Trouble::Said(code, message) => (code, message),
        };
        if code == Code::NoSuchFile
            && let Err(missing) = self.check_root(session)
        {
            return missing;
        }
        if code == Code::Failure
            && verb.needs_room()
            && let Some(full) = self.is_full(session)
        {
            return Error::new(Kind::Transient, what)
                .because(full)
                .hint("make room on the server");
        }
        let account = self.0.dial.target.as_ref().and_then(|target| target.user.as_deref());
        let error = Error::new(
            Kind::Failed,
            format!("{what}: the server says \"{message}\" and no more"),
        );
        match code {
            Code::PermissionDenied => error.hint(format!(
                "{} and everything below must belong to {}, and be writable for it",
                self.0.root,
                account.unwrap_or("the account")
            )),
            Code::Failure if verb.needs_room() => {
                error.hint("a quota that is used up, a file system that is read-only, or a disk that fails")
            }
            _ => error,
        }
    }

    /// Says so if the file system has no room.
    fn is_full(&self, session: &Session) -> Option<String> {
        let (space, more_files) = session.space(&self.0.root).ok().flatten()?;
        if space.available >= FULL_BYTES && more_files {
            return None;
        }
        let what = if more_files { "No space left" } else { "No inodes left" };
        Some(format!("{what} on the file system of {}", self.place(&self.0.root)))
    }
}
