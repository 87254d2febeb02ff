//! What the user may say to pgkeep-restore-test.

use clap::Parser;
use common::config::cli::{Common, Format, HasCommon, Repositories, after_help, parse_jobs};
use common::exit;
use common::repository::Label;
use common::repository::evidence::Level;

/// Restore a backup into a scratch server, replay, ask it questions, and keep the evidence
///
/// Takes the newest good backup, or the one that is named, restores it below a scratch directory, and starts a PostgreSQL of the same
/// version on it that nobody can reach: a private socket, no archiving, no replication, no subscriptions, no background jobs, and
/// nothing of the configuration that was restored. It replays WAL to the end or to the target, answers what the level and the
/// configuration ask, stops, and goes. What was found is kept in every repository and on this host. The running server is
/// never touched, and need not be there.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-restore-test", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Backup to test [default: the newest good one]
    #[arg(long, value_name = "LABEL")]
    pub backup: Option<Label>,

    /// Recover to this time (RFC 3339 with a time zone, or such as now-1h), or to a "random" moment that can be recovered
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,

    /// How deep to look: quick, standard (amcheck, every row read) or deep (every row in every index) [default: level of the configuration]
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    pub level: Option<Level>,

    /// Leave the server running for a look around, and say how to reach and remove it
    #[arg(long)]
    pub keep: bool,

    /// Number of parallel workers [default: jobs of the configuration]
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,

    #[command(flatten)]
    pub repositories: Repositories,

    #[command(flatten)]
    pub format: Format,

    #[command(flatten)]
    pub common: Common,
}

fn parse_level(text: &str) -> Result<Level, String> {
    text.parse()
        .map_err(|error: common::error::Error| common::error::chain(&error))
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 4] = [
    ("Every week", "pgkeep-restore-test"),
    (
        "Any moment of the window, all of it",
        "pgkeep-restore-test --target-time random --level deep",
    ),
    (
        "One backup, quickly",
        "pgkeep-restore-test --backup 20261120T020000Z-full-3f9a1c --level quick",
    ),
    ("Look around", "pgkeep-restore-test --level quick --keep"),
];
