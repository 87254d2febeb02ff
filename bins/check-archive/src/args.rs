//! What the user, or a monitoring agent, may say to pgkeep-check-archive.

use std::time::Duration;

use clap::Parser;
use common::config::cli::{Common, HasCommon, Repositories, after_help};
use common::exit;
use common::units::parse_duration;

/// Check that WAL reaches every repository, without gaps
///
/// On a primary: takes a segment that was archived a moment ago, or ends the current one, and waits until every required repository
/// has it; looks at pg_stat_archiver and at what waits in pg_wal. Everywhere: looks for gaps from each good backup on. Leaves what it
/// found as a status file; a user who may not read the configuration, as monitoring agents are, gets that answer.
///
/// A cluster without data_directory, of which no repository holds a base backup or WAL, is only dumped: nothing is archived, and that is well.
/// Erased tenants are looked for there, too.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-check-archive", version, after_help = after_help(&EXAMPLES, &exit::CHECK))]
pub struct Args {
    /// How long a segment may take to reach every required repository
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "60s")]
    pub timeout: Duration,

    /// More WAL files waiting in pg_wal are a warning
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub ready_warning: u64,

    /// More WAL files waiting in pg_wal are critical
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub ready_critical: u64,

    /// An answer that a run left longer ago is stale, and critical
    #[arg(long, value_name = "AGE", value_parser = span, default_value = "7h")]
    pub stale: Duration,

    #[command(flatten)]
    pub repositories: Repositories,

    #[command(flatten)]
    pub common: Common,
}

fn span(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| common::error::chain(&error))
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 2] = [
    ("From a timer, as postgres", "pgkeep-check-archive"),
    ("With a slow store", "pgkeep-check-archive --timeout 5m"),
];
