//! Messages about the work: to stderr, one line each, for a person or for the journal.
//!
//! Knows levels and line shapes. Decides nothing about the environment: [`crate::exit::main`] finds out
//! whether stderr is the journal and says so. Results never pass through here, they go to stdout.

use std::io::Write;

use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Metadata, Record};

/// How much a tool says, as `-v` and `-q` ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verbosity {
    /// How often `-v` was given.
    pub verbose: u8,
    /// Whether `-q` was given: errors only.
    pub quiet: bool,
}

/// What [`crate::exit::main`] needs from every tool's arguments before it can say anything.
pub trait Loudness {
    /// How much the tool shall say.
    fn verbosity(&self) -> Verbosity;
}

impl Verbosity {
    /// The most detailed level of this project's own messages.
    pub fn own(self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Error,
            (false, 0) => LevelFilter::Info,
            (false, 1) => LevelFilter::Debug,
            (false, _) => LevelFilter::Trace,
        }
    }

    /// The most detailed level of messages that libraries write; they talk to programmers, so it is lower.
    pub fn foreign(self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Error,
            (false, 0 | 1) => LevelFilter::Warn,
            (false, _) => LevelFilter::Debug,
        }
    }

    fn allows(self, metadata: &Metadata<'_>) -> bool {
        let own = is_own(metadata.target());
        metadata.level() <= if own { self.own() } else { self.foreign() }
    }
}

/// Sends `log`'s messages to stderr, each line beginning with the tool's name.
///
/// `under_journal` puts `<3>` and the like in front of each line, from which the journal takes the priority.
/// A second call changes nothing.
pub fn init(tool: &'static str, verbosity: Verbosity, under_journal: bool) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(verbosity.own().max(verbosity.foreign()));
    builder.format(move |out: &mut Formatter, record: &Record<'_>| {
        if !verbosity.allows(record.metadata()) {
            return Ok(());
        }
        let text = line(tool, record.level(), &record.args().to_string(), under_journal);
        out.write_all(text.as_bytes())
    });
    // Only a second call can fail, and the first one's settings are then the right ones.
    let _ = builder.try_init();
}

/// One message as it is written, newline included; every line of a longer one is complete in itself.
pub fn line(tool: &str, level: Level, message: &str, under_journal: bool) -> String {
    let word = match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info | Level::Debug | Level::Trace => "",
    };
    let priority = match level {
        Level::Error => Priority::Error,
        Level::Warn => Priority::Warning,
        Level::Info => Priority::Info,
        Level::Debug | Level::Trace => Priority::Debug,
    };
    prefixed(priority, &format!("{tool}: {word}{message}"), under_journal)
}

/// The journal's priorities that are used here (`man 3 sd-daemon`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// `<3>`
    Error,
    /// `<4>`
    Warning,
    /// `<5>`
    Notice,
    /// `<6>`
    Info,
    /// `<7>`
    Debug,
}

impl Priority {
    fn prefix(self) -> &'static str {
        match self {
            Self::Error => "<3>",
            Self::Warning => "<4>",
            Self::Notice => "<5>",
            Self::Info => "<6>",
            Self::Debug => "<7>",
        }
    }
}

/// Ends every line of `text` with a newline and, for the journal, begins it with the priority.
pub fn prefixed(priority: Priority, text: &str, under_journal: bool) -> String {
    let prefix = if under_journal { priority.prefix() } else { "" };
    let mut all = String::with_capacity(text.len() + 8);
    for line in text.lines() {
        all.push_str(prefix);
        all.push_str(line);
        all.push('\n');
    }
    all
}

fn is_own(target: &str) -> bool {
    let krate = target.split("::").next().unwrap_or(target);
    krate == "common" || krate.starts_with("pgkeep_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verbose: u8, quiet: bool) -> Verbosity {
        Verbosity { verbose, quiet }
    }

    #[test]
    fn verbosity_chooses_the_level() {
        let cases = [
            (asked(0, false), LevelFilter::Info),
            (asked(1, false), LevelFilter::Debug),
            (asked(2, false), LevelFilter::Trace),
            (asked(9, false), LevelFilter::Trace),
            (asked(0, true), LevelFilter::Error),
            (asked(3, true), LevelFilter::Error),
        ];
        for (verbosity, level) in cases {
            assert_eq!(verbosity.own(), level, "{verbosity:?}");
        }
    }

    #[test]
    fn libraries_say_less_than_the_tool() {
        let debug_of = |target| Metadata::builder().level(Level::Debug).target(target).build();
        let verbosity = asked(1, false);
        assert!(verbosity.allows(&debug_of("common::storage::posix")));
        assert!(verbosity.allows(&debug_of("pgkeep_base_backup::copy")));
        assert!(!verbosity.allows(&debug_of("rustls::client")));
        assert!(!verbosity.allows(&debug_of("commonplace")));
        assert!(asked(2, false).allows(&debug_of("rustls::client")));
    }

    #[test]
    fn warnings_and_errors_carry_their_word() {
        assert_eq!(line("prune", Level::Info, "done", false), "prune: done\n");
        assert_eq!(line("prune", Level::Warn, "slow", false), "prune: warning: slow\n");
        assert_eq!(line("prune", Level::Error, "bad", false), "prune: error: bad\n");
    }

    #[test]
    fn every_line_in_the_journal_carries_its_priority() {
        assert_eq!(line("prune", Level::Warn, "a\nb", true), "<4>prune: warning: a\n<4>b\n");
        assert_eq!(line("prune", Level::Trace, "a", true), "<7>prune: a\n");
        assert_eq!(prefixed(Priority::Notice, "hint: wait", true), "<5>hint: wait\n");
    }
}
