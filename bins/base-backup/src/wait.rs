//! Waits until WAL is in the repositories, and says what to look at when it does not come.
//!
//! What is believed is the repository itself: PostgreSQL's own idea of what has been archived is only used for hints.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use common::error::{Error, Kind, Result};
use common::interrupt;
use common::postgres::{SegmentName, SegmentNumber, SegmentSize, SystemId, TimelineId, WalName};
use common::repository::{Repository, wal};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Repositories that a job can do without get this much longer than the others needed.
const OPTIONAL_GRACE: Duration = Duration::from_secs(15);
/// Whoever waits longer is told what for.
const SILENCE: Duration = Duration::from_secs(5);
/// From so many segments on a folder is listed instead of asking for each.
const LIST_FROM: u64 = 5;

/// The WAL to wait for: segments `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Whose.
    pub system: SystemId,
    /// On which timeline.
    pub timeline: TimelineId,
    /// The first segment.
    pub first: SegmentNumber,
    /// The last one.
    pub last: SegmentNumber,
    /// The size of segments.
    pub size: SegmentSize,
}

/// A repository that is being waited for.
struct Waiting<'a> {
    repository: &'a Repository,
    next: SegmentNumber,
    listed: Option<(String, HashSet<String>)>,
    trouble: Option<Error>,
}

/// Waits until each of `repositories` holds all of `wanted`, at most for `patience`; answers for each in order.
///
/// Those that are required decide how long it takes; the others get a little longer than that.
pub fn wait_for(repositories: &[&Repository], wanted: &Wanted, patience: Duration) -> Vec<Result<()>> {
    let mut waiting: Vec<Waiting<'_>> = repositories
        .iter()
        .map(|repository| Waiting {
            repository,
            next: wanted.first,
            listed: None,
            trouble: None,
        })
        .collect();
    let any_required = repositories.iter().any(|repository| repository.required);
    let began = Instant::now();
    let mut deadline = began + patience;
    let mut required_done = false;
    let mut said = false;
    let mut pause = FIRST_PAUSE;
    loop {
        waiting.iter_mut().for_each(|one| one.look(wanted));
        if waiting.iter().all(|one| one.is_over(wanted)) {
            break;
        }
        let required_over = waiting
            .iter()
            .filter(|one| one.repository.required)
            .all(|one| one.is_over(wanted));
        if any_required && required_over && !required_done {
            required_done = true;
            deadline = deadline.min(Instant::now() + OPTIONAL_GRACE);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || interrupt::caught().is_some() {
            break;
        }
        if !said && began.elapsed() >= SILENCE {
            said = true;
            let late = waiting.iter().filter(|one| !one.is_over(wanted));
            late.for_each(|one| one.tell(wanted, left));
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    waiting.into_iter().map(|one| one.outcome(wanted, patience)).collect()
}

impl Waiting<'_> {
    /// Counts what has come since.
    fn look(&mut self, wanted: &Wanted) {
        self.listed = None;
        if self.is_over(wanted) {
            return;
        }
        self.trouble = None;
        while self.next <= wanted.last {
            match self.is_there(wanted) {
                Ok(true) => self.next = self.next.next(),
                Ok(false) => return,
                Err(error) => {
                    self.trouble = Some(error);
                    return;
                }
            }
        }
    }

    fn is_there(&mut self, wanted: &Wanted) -> Result<bool> {
        let name = SegmentName::new(wanted.timeline, self.next, wanted.size);
        if wanted.last.0.saturating_sub(self.next.0) < LIST_FROM {
            return wal::is_there(self.repository, wanted.system, &WalName::Segment(name));
        }
        let folder = name.directory();
        if self.listed.as_ref().is_none_or(|(listed, _)| *listed != folder) {
            let key = self.repository.keys().wal_of(wanted.system)?.join(&folder)?;
            let names = self.repository.store.children(Some(&key))?;
            self.listed = Some((folder, names.into_iter().collect()));
        }
        let object = format!("{name}.zst{}", self.repository.suffix()?);
        Ok(self.listed.as_ref().is_some_and(|(_, names)| names.contains(&object)))
    }

    /// Says what is being waited for.
    fn tell(&self, wanted: &Wanted, left: Duration) {
        let name = SegmentName::new(wanted.timeline, self.next, wanted.size);
        log::info!(
            "waiting for WAL segment {name} to reach repository \"{}\", for {} at most: does archive_command store into it? \
             pgkeep-check-archive says more",
            self.repository.name,
            common::units::display_seconds(left)
        );
    }

    /// Whether waiting on can change nothing.
    fn is_over(&self, wanted: &Wanted) -> bool {
        self.next > wanted.last
            || self
                .trouble
                .as_ref()
                .is_some_and(|error| error.kind() != Kind::Transient)
    }

    fn outcome(self, wanted: &Wanted, patience: Duration) -> Result<()> {
        if self.next > wanted.last {
            return Ok(());
        }
        let name = SegmentName::new(wanted.timeline, self.next, wanted.size);
        let place = &self.repository.name;
        Err(match self.trouble {
            Some(error) => error.context(format!("look for WAL segment {name} in repository \"{place}\"")),
            None => Error::new(
                Kind::Failed,
                format!(
                    "WAL segment {name} has not reached repository \"{place}\" within {}",
                    common::units::display_duration(patience)
                ),
            ),
        })
    }
}

/// What the server says about archiving, for hints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archiving {
    /// The setting.
    pub archive_command: String,
    /// The setting; PostgreSQL 15 and later.
    pub archive_library: String,
    /// The last file that could not be archived, and when, if that is newer than the last success.
    pub failing: Option<(String, String)>,
    /// What archive-push said when it last failed, if it has not succeeded since.
    pub push_says: Option<String>,
    /// Whether it said that trying again may help.
    pub push_is_temporary: bool,
}

impl Archiving {
    /// What to look at.
    pub fn hint(&self) -> String {
        let mut parts = Vec::new();
        match (self.archive_command.as_str(), self.archive_library.as_str()) {
            ("" | "(disabled)", "") => parts.push("archive_command is empty".to_owned()),
            (command, "") => parts.push(format!("archive_command is \"{command}\"")),
            (_, library) => parts.push(format!("archive_library is \"{library}\", not archive_command")),
        }
        if let Some((name, when)) = &self.failing {
            parts.push(format!("pg_stat_archiver: {name} failed at {when}"));
        }
        match &self.push_says {
            Some(text) => parts.push(format!("archive-push said: {text}")),
            None => parts.push("the server's log has the command's own messages".to_owned()),
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::codec::{Opening, Sealing};
    use common::repository::{ClusterName, Identity, document};
    use common::storage::memory::MemoryStore;
    use common::storage::{Key, Store};
    use common::time::UtcTime;
    use std::sync::Arc;

    fn repository(name: &str, required: bool) -> Repository {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let cluster = ClusterName::parse("main").unwrap();
        let identity = Identity::new(&cluster, UtcTime::UNIX_EPOCH, false).unwrap();
        document::write(store.as_ref(), &Key::parse("main/repository.json").unwrap(), &identity).unwrap();
        let (a, b) = (Sealing::Clear, Sealing::Clear);
        Repository::new(
            name.to_owned(),
            "memory".to_owned(),
            required,
            store,
            a,
            b,
            Opening::none(),
            cluster,
        )
    }

    fn wanted(first: u64, last: u64) -> Wanted {
        Wanted {
            system: SystemId(7),
            timeline: TimelineId(1),
            first: SegmentNumber(first),
            last: SegmentNumber(last),
            size: SegmentSize::new(16 << 20).unwrap(),
        }
    }

    fn put(repository: &Repository, wanted: &Wanted, number: u64) {
        let name = WalName::Segment(SegmentName::new(wanted.timeline, SegmentNumber(number), wanted.size));
        let key = repository.keys().wal(wanted.system, &name, "").unwrap();
        repository.store.put_new(&key, b"x").unwrap();
    }

    #[test]
    fn what_is_there_is_found_over_folders_by_asking_and_by_listing() {
        for (first, last) in [(3, 3), (254, 258), (200, 700)] {
            let repository = repository("a", true);
            let wanted = wanted(first, last);
            (first..=last).for_each(|number| put(&repository, &wanted, number));
            assert!(
                wait_for(&[&repository], &wanted, Duration::ZERO).remove(0).is_ok(),
                "{first}-{last}"
            );
        }
    }

    #[test]
    fn the_first_missing_segment_is_named() {
        for last in [7, 300] {
            let repository = repository("a", true);
            let wanted = wanted(1, last);
            (1..=last)
                .filter(|number| *number != 5)
                .for_each(|number| put(&repository, &wanted, number));
            let error = wait_for(&[&repository], &wanted, Duration::ZERO).remove(0).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("000000010000000000000005 has not reached repository \"a\""),
                "{error}"
            );
        }
    }

    #[test]
    fn a_segment_that_comes_late_is_waited_for() {
        let repository = repository("a", true);
        let wanted = wanted(1, 1);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_for(&[&repository], &wanted, Duration::from_secs(60)).remove(0));
            put(&repository, &wanted, 1);
            assert!(waiter.join().unwrap().is_ok());
        });
    }

    #[test]
    fn one_that_lacks_wal_does_not_spoil_the_others_answer() {
        let (full, empty) = (repository("full", true), repository("empty", true));
        let wanted = wanted(1, 1);
        put(&full, &wanted, 1);
        let outcome = wait_for(&[&empty, &full], &wanted, Duration::from_millis(1));
        assert!(outcome[0].is_err() && outcome[1].is_ok());
    }

    #[test]
    fn the_hint_names_command_failure_and_our_own_words() {
        let archiving = Archiving {
            archive_command: "pgkeep-archive-push %p".to_owned(),
            failing: Some((
                "000000010000000000000005".to_owned(),
                "2026-11-20 02:00:00+00".to_owned(),
            )),
            push_says: Some("cannot store WAL".to_owned()),
            ..Archiving::default()
        };
        let hint = archiving.hint();
        for part in [
            "\"pgkeep-archive-push %p\"",
            "000000010000000000000005 failed",
            "said: cannot store WAL",
        ] {
            assert!(hint.contains(part), "{hint}");
        }
        assert!(Archiving::default().hint().contains("archive_command is empty"));
    }
}
