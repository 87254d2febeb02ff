//! What the user may say to pgkeep-info.

use clap::Parser;
use common::config::cli::{Common, Format, HasCommon, Repositories, after_help};
use common::exit;

/// List backups, dumps, WAL ranges and the moments that can be recovered
///
/// Reads the repositories only; needs no server, and no key. A repository that cannot be read is told apart from an
/// empty one.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-info", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Show sizes, durations and growth instead of the list
    #[arg(long, conflicts_with = "report")]
    pub stats: bool,

    /// Report what ran between two times and how it ended: RFC 3339 with a time zone, or such as now-30d
    #[arg(long, num_args = 2, value_names = ["FROM", "TO"])]
    pub report: Option<Vec<String>>,

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

const EXAMPLES: [(&str, &str); 3] = [
    ("What is there, and what can be recovered", "pgkeep-info"),
    ("For a script", "pgkeep-info --format json"),
    ("The last month, for an audit", "pgkeep-info --report now-30d now"),
];
