//! Reads what the report of a period needs besides backups. What cannot be read is part of the result, not the end of it.

use common::error::{Result, chain};
use common::job::history::History;
use common::repository::evidence::{self, Report as Test};
use common::repository::tombstones::{self, Erasure};
use common::repository::{Repository, events};

use crate::report::{Report, Untold};

/// What was read, of all times.
#[derive(Debug, Default)]
pub struct Records {
    /// Restore tests, as often as repositories have them.
    pub tests: Vec<Test>,
    /// Erasures, as often as repositories have them.
    pub erasures: Vec<Erasure>,
    /// The audit record.
    pub history: History,
    /// What could not be read.
    pub untold: Vec<Untold>,
}

/// Reads the repositories again, but for those that the report could not read.
pub fn records(repositories: &[Repository], report: &Report, (history, untold): (History, Vec<Untold>)) -> Records {
    let mut records = Records {
        history,
        untold,
        ..Records::default()
    };
    for repository in repositories {
        let is_away = |one: &&crate::report::RepositoryReport| one.name == repository.name && one.error.is_some();
        if report.repositories.iter().any(|one| is_away(&one)) {
            continue;
        }
        let tests = evidence::reports(repository);
        let tests = records.note(repository, "restore tests", tests);
        records.tests.extend(tests);
        let events = events::read(repository);
        let events = records.note(repository, "erasures", events);
        records.erasures.extend(tombstones::of(repository, &events));
    }
    records
}

impl Records {
    fn note<T>(&mut self, repository: &Repository, what: &str, read: Result<Vec<T>>) -> Vec<T> {
        read.unwrap_or_else(|error| {
            let place = format!("repository {}", repository.name);
            self.untold.push(Untold::part(place, what, chain(&error)));
            Vec::new()
        })
    }
}

/// The audit record, or that it cannot be read.
pub fn history(read: Result<History>, mut untold: Vec<Untold>) -> (History, Vec<Untold>) {
    let history = read.unwrap_or_else(|error| {
        untold.push(Untold::whole("the audit record of this host", chain(&error)));
        History::default()
    });
    (history, untold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::error::{Error, Kind};

    #[test]
    fn an_audit_record_that_cannot_be_read_is_not_an_empty_one() {
        let (known, untold) = history(Err(Error::new(Kind::Failed, "permission denied")), Vec::new());
        assert_eq!(known, History::default());
        assert_eq!(
            untold.first().map(ToString::to_string).unwrap_or_default(),
            "the audit record of this host cannot be read: permission denied"
        );
        assert!(history(Ok(History::default()), Vec::new()).1.is_empty());
    }
}
