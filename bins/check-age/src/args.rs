//! What the user, or a monitoring agent, may say to pgkeep-check-age.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use common::config::cli::{Common, HasCommon, Repositories, after_help};
use common::exit;
use common::units::parse_duration;

/// Check that the newest backup, full backup, restore test or dump is young enough
///
/// Looks into every repository; one that is not required counts as a warning at most. Tells "there is none", "cannot read the
/// repository" and "too old" apart. A user who may read neither configuration nor repository, as monitoring agents are, gets the answer
/// from the status files that jobs leave.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-check-age", version, after_help = after_help(&EXAMPLES, &exit::CHECK))]
pub struct Args {
    /// What to look at [default: backup; dump where the cluster is only dumped]
    ///
    /// It is only dumped if no data_directory is configured, and no repository holds a base backup or WAL of it.
    #[arg(long, value_name = "WHAT", value_enum)]
    pub what: Option<What>,

    /// Older than this is a warning [default: 24h; full 8d, restore-test 8d]
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub warning: Option<Duration>,

    /// Older than this is critical [default: 26h; full 9d, restore-test 10d]
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub critical: Option<Duration>,

    #[command(flatten)]
    pub repositories: Repositories,

    #[command(flatten)]
    pub common: Common,
}

/// What has an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// The newest good backup, of any type
    Backup,
    /// The newest good full backup
    Full,
    /// The newest restore test that passed
    RestoreTest,
    /// The newest dump
    Dump,
}

impl What {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Full => "full backup",
            Self::RestoreTest => "restore test",
            Self::Dump => "dump",
        }
    }

    /// The tool that makes it.
    pub fn tool(self) -> &'static str {
        match self {
            Self::Backup | Self::Full => "base-backup",
            Self::RestoreTest => "restore-test",
            Self::Dump => "dump",
        }
    }

    /// What is too old, and much too old, if nobody says otherwise.
    pub fn limits(self) -> (Duration, Duration) {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        match self {
            Self::Backup | Self::Dump => (hours(24), hours(26)),
            Self::Full => (hours(8 * 24), hours(9 * 24)),
            Self::RestoreTest => (hours(8 * 24), hours(10 * 24)),
        }
    }
}

fn age(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| common::error::chain(&error))
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 3] = [
    ("A daily backup", "pgkeep-check-age --warning 24h --critical 26h"),
    ("A weekly restore test", "pgkeep-check-age --what restore-test"),
    (
        "The repository elsewhere",
        "pgkeep-check-age --repository offsite --warning 26h --critical 50h",
    ),
];
