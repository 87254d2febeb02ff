//! What the repositories' answers add up to. Pure.
//!
//! PostgreSQL ends recovery and opens the database when restore_command says "not there" (`xlogarchive.c`,
//! `RestoreArchivedFile`, 13 to 18), so "absent" needs proof from every repository, and everything else is an error.

use common::error::{Error, Kind};
use common::exit::Verdict;

/// The answer to PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// The file stands at its destination.
    Restored,
    /// Every repository proved that it does not have the file.
    Absent,
}

impl Verdict for Fetched {
    fn code(&self) -> u8 {
        match self {
            Self::Restored => 0,
            Self::Absent => 1,
        }
    }
}

/// What one repository said.
#[derive(Debug)]
pub enum Said {
    /// It gave the file.
    Here,
    /// It does not have the file, and proved that it is the cluster's own repository.
    ProvenAbsent,
    /// It could not be found out.
    Unknown(Error),
}

/// Adds up the answers of all repositories, in the configuration's order.
///
/// # Errors
/// The gravest failure, if the file was not given and not every repository proved its absence: one that may pass
/// (`Transient`) before one that needs a person, for asking again may settle it.
pub fn judge(answers: Vec<Said>) -> Result<Fetched, Error> {
    let mut unknown: Option<Error> = None;
    let mut asked = false;
    for answer in answers {
        asked = true;
        match answer {
            Said::Here => return Ok(Fetched::Restored),
            Said::ProvenAbsent => {}
            Said::Unknown(error) => {
                let better = error.kind() == Kind::Transient
                    && unknown.as_ref().is_some_and(|known| known.kind() != Kind::Transient);
                if unknown.is_none() || better {
                    unknown = Some(error);
                }
            }
        }
    }
    match unknown {
        Some(error) => Err(error),
        None if asked => Ok(Fetched::Absent),
        None => Err(Error::new(Kind::Config, "no repository is configured")),
    }
}

/// As [`judge`], for a timeline history file: PostgreSQL asks for histories to choose a timeline, and a promotion must
/// not wait for the last repository. So any repository that responds may answer, but where one did not, `cached` (what
/// this host has seen before) goes before another's "absent": better a timeline left out than one taken twice.
///
/// # Errors
/// The gravest failure, if none responded and nothing is cached.
pub fn judge_history(answers: Vec<Said>, cached: bool) -> Result<HistoryFetched, Error> {
    let responded = answers.iter().any(|answer| !matches!(answer, Said::Unknown(_)));
    match judge(answers) {
        Ok(Fetched::Restored) => Ok(HistoryFetched::Restored),
        Ok(Fetched::Absent) => Ok(HistoryFetched::Absent),
        Err(_) if cached => Ok(HistoryFetched::FromCache),
        Err(_) if responded => Ok(HistoryFetched::Absent),
        Err(error) => Err(error),
    }
}

/// Where a history comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryFetched {
    /// From a repository; it stands at its destination.
    Restored,
    /// Whoever responded does not have it.
    Absent,
    /// From what this host remembers.
    FromCache,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn unknown(kind: Kind) -> Said {
        Said::Unknown(Error::new(kind, "x"))
    }

    #[test]
    fn absent_needs_proof_from_every_repository() {
        assert_eq!(
            judge(vec![Said::ProvenAbsent, Said::ProvenAbsent]).unwrap(),
            Fetched::Absent
        );
        for kind in [
            Kind::NotFound,
            Kind::Transient,
            Kind::Corrupt,
            Kind::Config,
            Kind::Failed,
            Kind::Refused,
        ] {
            assert_eq!(judge(vec![Said::ProvenAbsent, unknown(kind)]).unwrap_err().kind(), kind);
            assert_eq!(judge(vec![unknown(kind), Said::ProvenAbsent]).unwrap_err().kind(), kind);
        }
        assert_eq!(judge(vec![]).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn one_repository_that_has_it_is_enough() {
        assert_eq!(
            judge(vec![unknown(Kind::Corrupt), Said::Here]).unwrap(),
            Fetched::Restored
        );
    }

    #[test]
    fn what_may_pass_is_named_before_what_needs_a_person() {
        assert_eq!(
            judge(vec![unknown(Kind::Config), unknown(Kind::Transient)])
                .unwrap_err()
                .kind(),
            Kind::Transient
        );
    }

    #[test]
    fn a_history_is_answered_by_whoever_responds_and_else_from_the_cache() {
        let partly = || vec![unknown(Kind::Failed), Said::ProvenAbsent];
        assert_eq!(judge_history(partly(), false).unwrap(), HistoryFetched::Absent);
        assert_eq!(judge_history(partly(), true).unwrap(), HistoryFetched::FromCache);
        assert_eq!(
            judge_history(vec![unknown(Kind::Failed), Said::Here], true).unwrap(),
            HistoryFetched::Restored
        );
        // All have answered: what is remembered beyond that is of a repository's former life.
        assert_eq!(
            judge_history(vec![Said::ProvenAbsent], true).unwrap(),
            HistoryFetched::Absent
        );
        assert!(judge_history(vec![unknown(Kind::Failed)], false).is_err());
        assert_eq!(
            judge_history(vec![unknown(Kind::Failed)], true).unwrap(),
            HistoryFetched::FromCache
        );
    }
}
