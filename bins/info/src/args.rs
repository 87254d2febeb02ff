//! What the user may say to pgkeep-info.

use clap::Parser;
use common::config::cli::{Common, Format, HasCommon, Repositories, after_help};
use common::exit;

/// List backups, dumps, WAL ranges and the moments that can be recovered
///
/// Reads the repositories; needs no server, and no key. What it remembers of backups in the state directory saves reading
/// documents that have not changed since. A repository that cannot be read, or that is another one than this host knows,
/// is told apart from an empty one.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-info", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Show statistics: success rates of 7 and 30 days, sizes, growth, and what can be recovered as lines in time
    #[arg(long)]
    pub stats: bool,

    /// Write the report of a period: backups, restore tests, RPO and RTO, failures, erasures
    ///
    /// FROM and TO are dates (2026-11-01, beginning in UTC) or times with a zone (2026-11-01T00:00:00+01:00). FROM counts,
    /// TO does not.
    #[arg(long, value_names = ["FROM", "TO"], num_args = 2, conflicts_with = "stats")]
    pub report: Vec<String>,

    #[command(flatten)]
    pub repositories: Repositories,

    #[command(flatten)]
    pub format: Format,

    #[command(flatten)]
    pub common: Common,
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 4] = [
    ("What is there, and what can be recovered", "pgkeep-info"),
    ("For a script", "pgkeep-info --format json"),
    ("How reliable, how large, how fast it grows", "pgkeep-info --stats"),
    ("The report of a month", "pgkeep-info --report 2026-11-01 2026-12-01"),
];
