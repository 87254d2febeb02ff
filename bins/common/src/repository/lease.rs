//! Who is at work in a repository, so that two hosts do not do the same job twice (FORMAT.md, section 7).
//!
//! Leases save work; correctness never rests on them: a holder that was suspended beyond its term wakes up beside another one, and
//! both finish right. Whoever creates the next number holds the lease, if the one before was released or has expired by the
//! store's clock, or its owner was a process of this host that is no more; so a killed job's lease never needs a person.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result, chain};
use crate::repository::{ClusterName, FORMAT, Nonce, Repository, document, keys::Keys};
use crate::storage::{Key, Store};
use crate::time::UtcTime;
use crate::units::display_duration;

/// How long a lease holds unless it is renewed. Shorter than the units wait before they try again: after a power cut of the holder
/// the second run finds it free.
pub const TERM: Duration = Duration::from_secs(300);

/// How often it is renewed: twice it may fail.
const RENEWAL: Duration = Duration::from_secs(100);

/// Clocks that are further apart are worth a word; nothing depends on it.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// What one number of a lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseDocument {
    /// The document's format.
    pub format: u32,
    /// Host, process and a nonce.
    pub owner: String,
    /// The job.
    pub job: String,
    /// When the owner took it, by the store's clock.
    pub taken: UtcTime,
    /// When it ends, by the store's clock.
    pub expires: UtcTime,
    /// Whether somebody still works under it.
    pub state: State,
}

impl LeaseDocument {
    /// Whether somebody works under it at this time, by the store's clock.
    pub fn is_held(&self, now: UtcTime) -> bool {
        self.state == State::Held && self.expires > now
    }
}

/// Whether a lease is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is, until it expires.
    Held,
    /// It is not any more.
    Released,
}

/// A lease that this process holds; it renews itself until it is dropped, which releases it.
#[derive(Debug)]
pub struct Lease {
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

/// What stands in a repository, and where.
struct Place {
    store: Arc<dyn Store>,
    cluster: ClusterName,
    job: String,
    name: String,
}

/// Takes the lease of `job` in a repository, for this process of `host`.
///
/// # Errors
/// `Busy` with owner and end if somebody else holds it; else what the store says.
pub fn take(repository: &Repository, job: &str, host: &str) -> Result<Lease> {
    let place = Place {
        store: Arc::clone(&repository.store),
        cluster: repository.cluster.clone(),
        job: job.to_owned(),
        name: repository.name.clone(),
    };
    let owner = format!("{host}:{}:{}", std::process::id(), Nonce::random()?);
    let now = place.store.now()?;
    let apart = now.distance(UtcTime::now());
    if apart > CLOCK_TOLERANCE {
        log::warn!(
            "the clocks of this host and of repository \"{}\" are {} apart",
            repository.name,
            display_duration(apart)
        );
    }
    let number = match place.newest()? {
        None => 1,
        Some((number, held)) => match judge(held.as_ref().filter(|held| !is_gone(&held.owner, host)), now) {
            Verdict::Free => number + 1,
            Verdict::Held(by) => return Err(busy(&place, &by)),
        },
    };
    let taken = LeaseDocument {
        format: FORMAT,
        owner,
        job: job.to_owned(),
        taken: now,
        expires: now.plus(TERM),
        state: State::Held,
    };
    match place.write(number, &taken) {
        Err(error) if error.kind() == Kind::AlreadyExists => {
            let winner = place.newest()?.and_then(|(_, held)| held).unwrap_or(taken);
            return Err(busy(&place, &winner));
        }
        outcome => outcome?,
    }
    place.forget_below(number);
    let (stop, stopped) = mpsc::channel();
    let keeper = std::thread::spawn(move || {
        let mut number = number;
        let mut lease = taken;
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(RENEWAL) {
            match place.renew(number, &lease) {
                Ok((renewed, document)) => (number, lease) = (renewed, document),
                Err(error) => log::warn!(
                    "cannot renew the lease of {} in repository \"{}\", and go on without: {}",
                    place.job,
                    place.name,
                    chain(&error)
                ),
            }
        }
        let released = LeaseDocument {
            state: State::Released,
            ..lease
        };
        if let Err(error) = place.write(number + 1, &released) {
            log::debug!("the lease of {} stays until it expires: {}", place.job, chain(&error));
        }
        place.forget_below(number + 1);
    });
    Ok(Lease {
        stop: Some(stop),
        keeper: Some(keeper),
    })
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            // A keeper that ended early has said so.
            let _ = keeper.join();
        }
    }
}

/// The newest word on the lease of `job`, if there is any; `None` inside for one that cannot be read.
///
/// # Errors
/// What the store says.
pub fn newest(repository: &Repository, job: &str) -> Result<Option<LeaseDocument>> {
    let place = Place {
        store: Arc::clone(&repository.store),
        cluster: repository.cluster.clone(),
        job: job.to_owned(),
        name: repository.name.clone(),
    };
    Ok(place.newest()?.and_then(|(_, document)| document))
}

enum Verdict {
    Free,
    Held(LeaseDocument),
}

/// Whether the newest number leaves the lease to the next one.
fn judge(newest: Option<&LeaseDocument>, now: UtcTime) -> Verdict {
    match newest {
        Some(held) if held.is_held(now) => Verdict::Held(held.clone()),
        // What cannot be read was written by nobody who knew how; work is worth more than a lease.
        _ => Verdict::Free,
    }
}

/// Whether the owner was a process of this host that is no more. Of other hosts only time tells.
fn is_gone(owner: &str, host: &str) -> bool {
    let pid = owner
        .strip_prefix(host)
        .and_then(|rest| rest.strip_prefix(':')?.split(':').next()?.parse().ok());
    pid.is_some_and(|pid: u32| !crate::process::is_alive(pid))
}

fn busy(place: &Place, held: &LeaseDocument) -> Error {
    Error::new(
        Kind::Busy,
        format!(
            "{} is under way in repository \"{}\": {} holds the lease since {}, until {}",
            place.job,
            place.name,
            held.owner,
            held.taken.whole_seconds(),
            held.expires.whole_seconds()
        ),
    )
    .hint("if that process was killed, its lease ends by itself at that time")
}

impl Place {
    fn folder(&self) -> Result<Key> {
        Keys { cluster: &self.cluster }.lease(&self.job)
    }

    /// The numbers there are, in order.
    fn numbers(&self) -> Result<Vec<u64>> {
        let names = self.store.children(Some(&self.folder()?))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The highest number and what it says, if that can be read.
    fn newest(&self) -> Result<Option<(u64, Option<LeaseDocument>)>> {
        let Some(number) = self.numbers()?.last().copied() else {
            return Ok(None);
        };
        match document::read(self.store.as_ref(), &self.key(number)?) {
            Ok(read) => Ok(Some((number, Some(read)))),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => Ok(Some((number, None))),
            Err(error) => Err(error).context(|| format!("read the lease of {}", self.job)),
        }
    }

    fn key(&self, number: u64) -> Result<Key> {
        self.folder()?.join(&format!("{number}.json"))
    }

    fn write(&self, number: u64, document: &LeaseDocument) -> Result<()> {
        document::write(self.store.as_ref(), &self.key(number)?, document).map(|_| ())
    }

    /// Writes the next number for another term.
    fn renew(&self, number: u64, held: &LeaseDocument) -> Result<(u64, LeaseDocument)> {
        let renewed = LeaseDocument {
            expires: self.store.now()?.plus(TERM),
            ..held.clone()
        };
        self.write(number + 1, &renewed)?;
        self.forget_below(number + 1);
        Ok((number + 1, renewed))
    }

    /// Deletes older numbers; they mean nothing any more. A host that may not delete leaves them.
    fn forget_below(&self, number: u64) {
        let forget = || -> Result<()> {
            for older in self.numbers()?.into_iter().filter(|older| *older < number) {
                self.store.delete(&self.key(older)?)?;
            }
            Ok(())
        };
        if let Err(error) = forget() {
            log::debug!("older leases of {} stay: {}", self.job, chain(&error));
        }
    }
}

/// A decimal number without leading zeros, and `.json`.
fn parse_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    let number: u64 = digits.parse().ok()?;
    (number > 0 && number.to_string() == digits).then_some(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::codec::{Opening, Sealing};
    use crate::storage::memory::MemoryStore;

    fn repository(store: &Arc<MemoryStore>) -> Repository {
        Repository::new(
            "local".into(),
            "file:///x".into(),
            true,
            Arc::clone(store) as Arc<dyn Store>,
            Sealing::Clear,
            Sealing::Clear,
            Opening::none(),
            ClusterName::parse("main").unwrap(),
        )
    }

    fn numbers(repository: &Repository) -> Vec<String> {
        let folder = repository.keys().lease("base-backup").unwrap();
        repository.store.children(Some(&folder)).unwrap()
    }

    #[test]
    fn a_second_holder_is_told_who_is_at_work_and_takes_over_when_that_is_done() {
        let repository = repository(&Arc::new(MemoryStore::new()));
        let first = take(&repository, "base-backup", "db1").unwrap();
        let error = take(&repository, "base-backup", "db2").unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains("db1:"), "{error}");
        let other = take(&repository, "sync", "db2").unwrap();
        drop((first, other));
        assert_eq!(
            numbers(&repository),
            ["2.json"],
            "only the newest number counts, and stays"
        );
        drop(take(&repository, "base-backup", "db2").unwrap());
        assert_eq!(
            newest(&repository, "base-backup").unwrap().unwrap().state,
            State::Released
        );
    }

    #[test]
    fn of_two_that_begin_at_once_one_holds_it() {
        let repository = repository(&Arc::new(MemoryStore::new()));
        let start = std::sync::Barrier::new(4);
        let begin = |host: u8| {
            start.wait();
            take(&repository, "base-backup", &format!("db{host}"))
        };
        let begin = &begin;
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4).map(|host| scope.spawn(move || begin(host))).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        assert!(
            outcomes
                .iter()
                .flat_map(|outcome| outcome.as_ref().err())
                .all(|error| error.kind() == Kind::Busy)
        );
    }

    #[test]
    fn a_killed_holder_s_lease_ends_by_the_store_s_clock() {
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        let held = |expires: UtcTime, state: State| LeaseDocument {
            format: FORMAT,
            owner: "db1:1:3f9a1c".into(),
            job: "base-backup".into(),
            taken: now,
            expires,
            state,
        };
        let is_free = |document: &LeaseDocument| matches!(judge(Some(document), now), Verdict::Free);
        assert!(!is_free(&held(now.plus(Duration::from_secs(1)), State::Held)));
        assert!(is_free(&held(now, State::Held)));
        assert!(is_free(&held(now.plus(TERM), State::Released)));
        assert!(
            matches!(judge(None, now), Verdict::Free),
            "a document that cannot be read"
        );
    }

    #[test]
    fn a_process_of_this_host_that_is_no_more_holds_nothing() {
        let here = std::process::id();
        assert!(!is_gone(&format!("db1:{here}:3f9a1c"), "db1"));
        assert!(is_gone("db1:4294967294:3f9a1c", "db1"), "no process has this number");
        assert!(
            !is_gone("db2:4294967294:3f9a1c", "db1"),
            "another host's processes cannot be seen"
        );
        assert!(!is_gone("db11:4294967294:3f9a1c", "db1"));
        assert!(!is_gone("nonsense", "db1"));
    }

    #[test]
    fn a_document_that_is_none_keeps_nobody_from_working() {
        let repository = repository(&Arc::new(MemoryStore::new()));
        let folder = repository.keys().lease("base-backup").unwrap();
        repository.store.put_new(&folder.join("7.json").unwrap(), b"{").unwrap();
        repository
            .store
            .put_new(&folder.join("007.json").unwrap(), b"{")
            .unwrap();
        let lease = take(&repository, "base-backup", "db1").unwrap();
        assert_eq!(numbers(&repository), ["007.json", "8.json"]);
        drop(lease);
    }

    #[test]
    fn numbers_have_no_leading_zeros() {
        assert_eq!(parse_number("17.json"), Some(17));
        for name in [
            "0.json",
            "017.json",
            "x.json",
            "17",
            "-1.json",
            "+1.json",
            "18446744073709551616.json",
        ] {
            assert_eq!(parse_number(name), None, "{name}");
        }
    }
}
