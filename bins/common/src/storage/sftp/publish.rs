//! Giving a staged file its name, so that of two creators one fails.
//!
//! `hardlink@openssh.com` is link(2) and refuses a name that is taken, with a bare "Failure", so the name is looked at to
//! tell why. A server without it is tried out: the rename of version 3 should refuse a taken name (OpenSSH's does), but
//! others replace. Where the file system has no links, OpenSSH's rename only looks before it leaps. There, and where
//! renames replace, the name is claimed by an exclusive open, which is atomic, and the claim renamed over; a reader may
//! see the empty claim for a moment.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::remote::Answer;
use super::session::{Session, Trouble};
use super::staged::Staged;
use super::wire::Code;
use super::{SftpStore, Verb, lock};
use crate::error::{Error, Kind, Result};
use crate::storage::{Exclusive, Key, already_exists};

const CLAIM_MODE: u32 = 0o400;

/// How a name is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// Link, then remove the staging name.
    HardLink = 1,
    /// The rename of version 3, found to refuse a name that is taken.
    Rename = 2,
    /// An exclusive open, then a rename over it.
    Claim = 3,
}

impl Means {
    pub(super) fn exclusive(self) -> Exclusive {
        match self {
            Self::HardLink => Exclusive::HardLink,
            Self::Rename => Exclusive::RenameNoReplace,
            Self::Claim => Exclusive::OExcl,
        }
    }
}

/// How giving a name went.
enum Given {
    Done,
    Taken,
}

impl SftpStore {
    fn means(&self) -> Option<Means> {
        match self.0.means.load(Ordering::Relaxed) {
            1 => Some(Means::HardLink),
            2 => Some(Means::Rename),
            3 => Some(Means::Claim),
            _ => None,
        }
    }

    fn remember(&self, means: Means) {
        self.0.means.store(means as u8, Ordering::Relaxed);
    }

    /// Gives a sealed file the name of `key` and makes that durable. `attempted` tells whether that may have happened
    /// even if the answer is lost.
    pub(super) fn publish(&self, staged: &Staged, key: &Key, attempted: &mut bool) -> Result<Means> {
        let session = staged.session();
        let failed = |trouble| self.failed(session, trouble, Verb::Create, Some(key));
        *attempted = true;
        let (given, means) = self
            .give(session, staged.path(), &self.path(Some(key)))
            .map_err(failed)?;
        // Of a name that is taken, too: its creator may have died before this, and our caller will rely on it.
        staged.settle_names().map_err(failed)?;
        match given {
            Given::Done => Ok(means),
            Given::Taken => Err(already_exists(self, key)),
        }
    }

    /// Gives an object another name that must be free.
    pub(super) fn give_other_name(&self, session: &Arc<Session>, from: &Key, to: &Key) -> Result<()> {
        let (old, new) = (self.path(Some(from)), self.path(Some(to)));
        let failed = |trouble| self.failed(session, trouble, Verb::MoveAside, Some(from));
        match self.give(session, &old, &new).map_err(failed)? {
            (Given::Taken, _) => Err(already_exists(self, to)),
            (Given::Done, means) => {
                // The new name first: what is found under both is not lost.
                self.settle_directory(session, &self.path(to.parent().as_ref()))
                    .map_err(failed)?;
                if means == Means::HardLink {
                    session.remove(&old).map_err(failed)?;
                }
                Ok(())
            }
        }
    }

    fn give(&self, session: &Arc<Session>, from: &str, to: &str) -> Answer<(Given, Means)> {
        let means = match self.means() {
            Some(means) => means,
            // The usual case needs no trial.
            None if session.abilities().hardlink => Means::HardLink,
            None => self.find_means(session, directory_of(from))?,
        };
        match self.give_by(session, means, from, to) {
            Ok(given) => {
                self.remember(means);
                Ok((given, means))
            }
            Err(Trouble::Said(code, message)) if self.means().is_none() => {
                let found = self.find_means(session, directory_of(from))?;
                self.remember(found);
                if found == means {
                    return Err(Trouble::Said(code, message));
                }
                self.give_by(session, found, from, to).map(|given| (given, found))
            }
            Err(trouble) => Err(trouble),
        }
    }

    fn give_by(&self, session: &Session, means: Means, from: &str, to: &str) -> Answer<Given> {
        let outcome = match means {
            Means::HardLink => session.link(from, to),
            Means::Rename => session.plain_rename(from, to),
            Means::Claim => {
                let outcome = self.claim(session, to).and_then(|()| {
                    replace(session, from, to).inspect_err(|trouble| {
                        if matches!(trouble, Trouble::Said(..)) {
                            session.remove_and_forget(to);
                        }
                    })
                });
                if matches!(outcome, Err(Trouble::Ended(_))) {
                    lock(&self.0.claims).insert(to.to_owned());
                }
                outcome
            }
        };
        match outcome {
            Ok(()) => Ok(Given::Done),
            Err(Trouble::Said(code, message)) => match session.lstat(to) {
                Ok(_) => Ok(Given::Taken),
                Err(Trouble::Said(..)) => Err(Trouble::Said(code, message)),
                Err(lost) => Err(lost),
            },
            Err(lost) => Err(lost),
        }
    }

    /// Claims a name by an empty file. One that an attempt of ours with a lost answer may have left is taken over, by one
    /// of our threads; should somebody else have claimed it at that very moment, both go on, which only a server that
    /// can do no better allows.
    fn claim(&self, session: &Session, to: &str) -> Answer<()> {
        let left = lock(&self.0.claims).remove(to);
        match session.create(to, CLAIM_MODE) {
            Ok(claim) => {
                session.close(&claim);
                Ok(())
            }
            Err(Trouble::Said(..)) if left && session.lstat(to)?.size == Some(0) => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    /// Finds out by trying what the server honours; leaves nothing behind.
    fn find_means(&self, session: &Arc<Session>, directory: &str) -> Answer<Means> {
        let first = Staged::create_in(self, session, directory)?;
        let second = Staged::create_in(self, session, directory)?;
        // A name that nobody else can have.
        let free = format!("{}-probe", first.path());
        let found = try_out(session, first.path(), second.path(), &free);
        session.remove_and_forget(&free);
        found
    }

    /// As [`find_means`](Self::find_means), in the root.
    pub(super) fn probe(&self) -> Result<Means> {
        let session = self.session()?;
        let found = self.find_means(&session, &self.0.root);
        let found = found.map_err(|trouble| self.failed(&session, trouble, Verb::WriteTo, None))?;
        self.remember(found);
        Ok(found)
    }
}

fn directory_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("/", |(directory, _)| directory)
}

fn replace(session: &Session, from: &str, to: &str) -> Answer<()> {
    match session.abilities().posix_rename {
        true => session.replacing_rename(from, to),
        // Found by trial to replace.
        false => session.plain_rename(from, to),
    }
}

/// Whether something was done; "no" of the server is an answer.
fn is_done(outcome: Answer<()>) -> Answer<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Trouble::Said(..)) => Ok(false),
        Err(lost) => Err(lost),
    }
}

fn try_out(session: &Session, first: &str, second: &str, free: &str) -> Answer<Means> {
    let abilities = session.abilities();
    if abilities.hardlink {
        if is_done(session.link(first, free))? && !is_done(session.link(second, free))? {
            return Ok(Means::HardLink);
        }
    } else {
        let replaces = is_done(session.plain_rename(first, second))?;
        let renames = replaces || is_done(session.plain_rename(first, free))?;
        match (replaces, renames) {
            (false, true) => return Ok(Means::Rename),
            (true, _) => return Ok(Means::Claim),
            (false, false) => {}
        }
    }
    if abilities.posix_rename && is_done(session.replacing_rename(first, second))? {
        return Ok(Means::Claim);
    }
    Err(Trouble::Ended(
        Error::new(Kind::Failed, "the server can neither link files nor rename them")
            .hint("the account needs the requests hardlink or rename (see -P and -p of internal-sftp in sshd_config)"),
    ))
}

/// Whether the server said that there is no such file.
pub(super) fn is_missing(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Said(Code::NoSuchFile, _))
}
