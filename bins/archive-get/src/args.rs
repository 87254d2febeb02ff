//! What PostgreSQL may say to pgkeep-archive-get.

use std::path::PathBuf;

use clap::Parser;
use common::config::cli::{Common, HasCommon, Repositories, after_help};
use common::exit;

/// Fetch one WAL file from the repositories
///
/// Run by PostgreSQL's restore_command, in the data directory. PostgreSQL ends recovery and opens the database on any
/// exit code from 1 to 125, so 1 is given only where every repository proved that the file is absent. The destination
/// appears whole and verified, or not at all. The next WAL files are fetched ahead in the background.
///
/// In a standby (standby.signal in the working directory) 75 takes the place of 200 after one bounded attempt, since
/// PostgreSQL asks again by itself and can stream or be promoted meanwhile.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-archive-get", version, after_help = after_help(&EXAMPLES, &exit::fetch(false)))]
pub struct Args {
    /// Name of the WAL file: %f in restore_command
    #[arg(value_name = "FILE")]
    pub file: String,

    /// Where to put it, absolute or relative to the data directory: %p in restore_command
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// Fetch ahead from this segment on, into the spool; how the tool starts its own detached child
    #[arg(long, hide = true, value_name = "SEGMENT")]
    pub prefetch_from: Option<String>,

    /// Ask the repositories and nothing else; how the tool starts the child whose time is limited
    #[arg(long, hide = true, conflicts_with = "prefetch_from")]
    pub attempt: bool,

    /// Ask these repositories before the others; how the tool tells its children who was silent
    #[arg(long, hide = true, value_name = "NAME")]
    pub first: Vec<String>,

    #[command(flatten)]
    pub repositories: Repositories,

    #[command(flatten)]
    pub common: Common,
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 2] = [
    ("In postgresql.conf", "restore_command = 'pgkeep-archive-get %f %p'"),
    (
        "Where several clusters are configured",
        "restore_command = 'pgkeep-archive-get --cluster main %f %p'",
    ),
];
