//! What a run came to.

use std::fmt::Write as _;
use std::sync::Mutex;

use common::error::{Error, Kind, chain};
use common::exit;
use common::job::Report;
use common::units::ByteSize;

/// What was copied into one repository.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Events.
    pub events: u64,
    /// WAL files, without maps.
    pub wal: u64,
    /// Backups.
    pub backups: u64,
    /// Dumps.
    pub dumps: u64,
    /// Stored bytes of all that.
    pub bytes: u64,
}

/// The run of one target; the parts of it work in parallel.
#[derive(Debug, Default)]
pub struct Target {
    copied: Mutex<Copied>,
    failed: Mutex<Failures>,
}

impl Target {
    /// Adds what was copied.
    pub fn add(&self, change: impl FnOnce(&mut Copied)) {
        change(&mut lock(&self.copied));
    }

    /// Notes a failure, which does not hold up the rest.
    pub fn fail(&self, error: &Error) {
        let mut text = chain(error);
        if let Some(hint) = error.nearest_hint() {
            let _ = write!(text, " (hint: {hint})");
        }
        log::error!("{text}");
        lock(&self.failed).push((error.kind(), text));
    }

    /// What was copied, and how often something failed.
    pub fn ended(self) -> (Copied, Failures) {
        let into = |poisoned: std::sync::PoisonError<_>| poisoned.into_inner();
        let failed = self
            .failed
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        (self.copied.into_inner().unwrap_or_else(into), failed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Failures: their kinds, and what is to be said of them.
pub type Failures = Vec<(Kind, String)>;

/// All targets of a run.
#[derive(Debug, Default)]
pub struct Tally {
    /// By name: what was copied there, and what failed.
    pub targets: Vec<(String, Copied, Failures)>,
}

impl Tally {
    /// 0; 75 if all that failed may succeed later; else the worst.
    pub fn exit_code(&self) -> u8 {
        let kinds = self
            .targets
            .iter()
            .flat_map(|(_, _, failed)| failed.iter().map(|(kind, _)| *kind));
        let codes = kinds.map(|kind| exit::WORK.code_of(&Error::new(kind, "")));
        // What needs a person outweighs what passes by itself.
        codes.map(|code| (code != 75, code)).max().map_or(0, |(_, code)| code)
    }

    /// A line for each target.
    pub fn text(&self, dry_run: bool) -> String {
        let mut text = String::new();
        for (name, copied, failed) in &self.targets {
            let verb = if dry_run { "would copy" } else { "copied" };
            let _ = write!(
                text,
                "repository \"{name}\": {verb} {}, {}, {}",
                counted(copied.backups, "backup"),
                counted(copied.wal, "WAL file"),
                counted(copied.events, "event"),
            );
            if copied.dumps > 0 {
                let _ = write!(text, ", {}", counted(copied.dumps, "dump"));
            }
            if !dry_run {
                let _ = write!(text, ", {}", ByteSize(copied.bytes));
            }
            if !failed.is_empty() {
                let _ = write!(text, "; {} failed", counted(failed.len() as u64, "item"));
            }
            text.push('\n');
        }
        text
    }

    /// What the job leaves behind.
    pub fn report(&self) -> Report {
        let failed: Vec<&str> = self
            .targets
            .iter()
            .flat_map(|(_, _, failed)| failed.iter().map(|(_, text)| text.as_str()))
            .collect();
        let report = match failed.first() {
            None => Report::success(),
            Some(first) => Report::bad(
                self.exit_code(),
                format!("{first} ({} failed)", counted(failed.len() as u64, "item")),
            ),
        };
        let sum = |of: fn(&Copied) -> u64| self.targets.iter().map(|(_, copied, _)| of(copied)).sum::<u64>();
        let names: Vec<&str> = self.targets.iter().map(|(name, ..)| name.as_str()).collect();
        report
            .field(crate::need::TARGETS, names)
            .field("size_bytes", sum(|copied| copied.bytes))
            .field("wal_files", sum(|copied| copied.wal))
            .field("backups", sum(|copied| copied.backups))
            .field("dumps", sum(|copied| copied.dumps))
    }
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(kinds: &[Kind]) -> Tally {
        let failed = kinds.iter().map(|kind| (*kind, "it failed".to_owned())).collect();
        Tally {
            targets: vec![("b".to_owned(), Copied::default(), failed)],
        }
    }

    #[test]
    fn what_needs_a_person_outweighs_what_passes_by_itself() {
        assert_eq!(tally(&[]).exit_code(), 0);
        assert_eq!(tally(&[Kind::Transient]).exit_code(), 75);
        assert_eq!(tally(&[Kind::Transient, Kind::Corrupt]).exit_code(), 1);
        assert_eq!(tally(&[Kind::Corrupt, Kind::Transient, Kind::Config]).exit_code(), 2);
    }

    #[test]
    fn one_of_a_kind_has_no_plural() {
        let text = tally(&[Kind::Corrupt]).text(false);
        assert_eq!(
            text,
            "repository \"b\": copied 0 backups, 0 WAL files, 0 events, 0 B; 1 item failed\n"
        );
    }
}
