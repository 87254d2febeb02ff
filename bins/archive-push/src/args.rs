//! What PostgreSQL may say to pgkeep-archive-push.

use std::path::PathBuf;

use clap::Parser;
use common::config::cli::{Common, HasCommon, after_help};
use common::exit;

/// Store one finished WAL file in every repository
///
/// Run by PostgreSQL's archive_command, in the data directory. Success means that every required repository holds
/// the file, durable and checked. In the same run the next WAL files that are ready are stored too, and PostgreSQL's
/// later calls for those return at once. Pushing the same content again succeeds; other content under a name that is
/// taken is refused.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-archive-push", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Path of the WAL file, absolute or relative to the data directory: %p in archive_command
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// Use the repositories and nothing else; how the tool starts the child that a repository may hold up
    #[arg(long, hide = true)]
    pub attempt: bool,

    #[command(flatten)]
    pub common: Common,
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 2] = [
    ("In postgresql.conf", "archive_command = 'pgkeep-archive-push %p'"),
    (
        "Where several clusters are configured",
        "archive_command = 'pgkeep-archive-push --cluster main %p'",
    ),
];
