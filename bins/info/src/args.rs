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

const EXAMPLES: [(&str, &str); 2] = [
    ("What is there, and what can be recovered", "pgkeep-info"),
    ("For a script", "pgkeep-info --format json"),
];
