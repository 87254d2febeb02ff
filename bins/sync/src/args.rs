//! What the user may say to pgkeep-sync.

use std::path::PathBuf;

use clap::Parser;
use common::config::cli::{Common, HasCommon, after_help, parse_jobs};
use common::exit;

/// Bring a repository level with another
///
/// Copies what one repository has and the other lacks: events, WAL with its maps, backups with everything they lean on, each
/// verified on the way, a backup's backup.json last; and dumps. Nothing is deleted and nothing replaced; damage is not spread. An interrupted run
/// goes on where it stopped. Where both are encrypted to the same recipients nothing is decrypted.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-sync", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Copy from this repository [default: the first required one]
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,

    /// Copy to this repository [default: every other one]
    #[arg(long, value_name = "NAME")]
    pub to: Option<String>,

    /// Identities that open the source, where the recipients differ [default: its identity_file]
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,

    /// Show what would be copied, and copy nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do nothing unless a repository missed WAL, is new, the last run failed at least ten minutes ago, or none succeeded for a day
    #[arg(long)]
    pub if_needed: bool,

    /// Number of parallel workers [default: jobs of the configuration]
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,

    #[command(flatten)]
    pub common: Common,
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 4] = [
    (
        "Bring every repository level with the first required one",
        "pgkeep-sync",
    ),
    ("From a timer that comes every minute", "pgkeep-sync --if-needed"),
    (
        "Fill a new off-site repository from the local one",
        "pgkeep-sync --from local --to offsite",
    ),
    (
        "Copy into a repository with other recipients",
        "pgkeep-sync --from local --to offsite --identity /etc/pgkeep/identity.txt",
    ),
];
