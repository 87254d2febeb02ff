//! What the user may say to pgkeep-init.

use std::path::PathBuf;

use clap::Parser;
use common::config::cli::{Common, HasCommon, Repositories, after_help};
use common::exit;

/// Create the repositories of a cluster, make keys, check the configuration
///
/// Creates in every configured repository what a cluster needs: its identity, bound to the system identifier that
/// PostgreSQL's pg_control names, or the server where no data_directory is configured. What exists already is checked and left as it is, so init may run again at any
/// time; after a recipient was added it seals the histories of timelines anew, so that they open with the new key, too. It finds out how each store keeps two writers from taking the same name, and says so.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-init", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Write a new age identity to FILE (mode 0600, never overwritten) and print its recipient; do nothing else
    ///
    /// The recipient goes into the configuration of every host that writes. The identity opens the repository:
    /// keep copies of it away from the hosts that are backed up.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["check", "new_history", "replace"])]
    pub generate_key: Option<PathBuf>,

    /// Check configuration, server settings, repositories and keys, and create nothing
    ///
    /// A line for each check: "ok"; "WARN" where it holds and should not stay so, as while two tools archive during a migration; "FAIL"
    /// where it does not hold, which alone makes the exit code 1. Without data_directory the cluster is only dumped, and nothing about WAL is asked.
    #[arg(long, conflicts_with = "new_history")]
    pub check: bool,

    /// Read the configuration, say what it names, and do nothing else
    ///
    /// Neither server nor repository is asked: what manages configurations can try a file before it takes the place of
    /// the old one. A file that cannot be understood ends with code 2.
    #[arg(long, conflicts_with_all = ["check", "new_history", "replace", "generate_key", "lifecycle"])]
    pub check_config: bool,

    /// Record that the cluster has a new system identifier, after pg_upgrade or initdb
    ///
    /// Backups and WAL of the former system identifier stay and can be restored.
    #[arg(long)]
    pub new_history: bool,

    /// Create or accept another repository in place of the one with this UUID, which this host used before
    ///
    /// Without it init refuses where a repository is gone that this host knows: most often its file system is not mounted.
    #[arg(long, value_name = "UUID", conflicts_with = "check")]
    pub replace: Option<String>,

    /// Print the lifecycle rules that the bucket of a repository in S3 should have, by its retention; do nothing else
    ///
    /// They are for `aws s3api put-bucket-lifecycle-configuration`, which replaces all rules of a bucket: with several clusters in one bucket
    /// put their rules together.
    #[arg(long, conflicts_with_all = ["check", "new_history", "replace", "generate_key"])]
    pub lifecycle: bool,

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

const EXAMPLES: [(&str, &str); 4] = [
    ("Make a key", "pgkeep-init --generate-key /root/pgkeep-identity.txt"),
    ("Create the repositories of the only configured cluster", "pgkeep-init"),
    ("Check everything before relying on it", "pgkeep-init --check"),
    (
        "Lifecycle rules for a bucket",
        "pgkeep-init --lifecycle --repository offsite > rules.json",
    ),
];
