//! What the user, or systemd, may say to pgkeep-notify.

use clap::Parser;
use common::config::cli::{Common, HasCommon, after_help};
use common::exit;

/// Say what happened: Slack, a webhook, mail
///
/// Reads the status file of a job and tells whoever is configured ([notify.NAME]) of a failure, of a recovery, or of a success; the same
/// failure once a day. Called by OnFailure= of the units, after jobs, and by a timer for the digest. Whoever cannot be reached is left out with a
/// warning: a job never fails for want of somebody to tell.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-notify", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Job whose status is told, such as base-backup; may be given several times
    #[arg(long = "job", value_name = "JOB", required_unless_present_any = ["unit", "digest", "test"])]
    pub jobs: Vec<String>,

    /// Unit that has ended, as OnFailure= and OnSuccess= name it: pgkeep-JOB@CLUSTER.service
    #[arg(long, value_name = "UNIT", conflicts_with_all = ["jobs", "cluster"])]
    pub unit: Option<String>,

    /// Tell how all clusters are
    #[arg(long, conflicts_with_all = ["jobs", "unit"])]
    pub digest: bool,

    /// Send a message to everybody who is configured, and fail if one cannot be reached
    #[arg(long, conflicts_with_all = ["jobs", "unit", "digest"])]
    pub test: bool,

    /// Show what would be sent, and to whom, and send nothing
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub common: Common,
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 4] = [
    ("After a backup, well or not", "pgkeep-notify --job base-backup"),
    ("Every morning", "pgkeep-notify --digest"),
    ("Try it", "pgkeep-notify --test"),
    ("See what would be sent", "pgkeep-notify --job base-backup --dry-run"),
];
