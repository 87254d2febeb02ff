//! What the user may say to pgkeep-base-backup.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use common::config::cli::{Common, Format, HasCommon, Repositories, after_help, parse_jobs, parse_span};
use common::exit;
use common::leadership::Where;

/// Take a base backup: a full one, or what changed since an earlier one
///
/// Copies the data directory, its tablespaces and the configured extra paths of a running server into every
/// repository, checks page checksums on the way, and waits until the repositories hold all WAL that the backup needs.
/// Only then is it committed: an interrupted backup does not exist, and the next run starts anew. Incremental and differential
/// backups read and store just the blocks that WAL names as changed; where WAL cannot tell, they read everything and store what
/// differs. Each can be restored like a full one, without replaying a chain.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-base-backup", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Type of the backup
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t)]
    pub kind: BackupType,

    /// Run only on a server in this role; elsewhere do nothing, say why, and exit 0
    #[arg(long, value_name = "ROLE", value_enum, default_value_t)]
    pub only_on: Where,

    /// Do nothing and exit 0 if the newest good backup is younger than this; given twice, the last value counts
    // A unit's flags are followed by those of whoever calls it by hand or by playbook.
    #[arg(long, value_name = "AGE", value_parser = parse_span, overrides_with = "if_older_than")]
    pub if_older_than: Option<Duration>,

    /// A note to keep with the backup
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,

    /// Number of parallel workers [default: jobs of the configuration]
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,

    /// Read every block of an incremental backup, also where WAL says that it did not change, and fail if WAL was wrong
    #[arg(long)]
    pub audit: bool,

    #[command(flatten)]
    pub repositories: Repositories,

    #[command(flatten)]
    pub format: Format,

    #[command(flatten)]
    pub common: Common,
}

/// Which kind of backup to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum BackupType {
    /// Full if the last one is as old as full_interval or cannot be leaned on, else incremental
    #[default]
    Auto,
    /// Everything
    Full,
    /// What changed since the last full backup
    Diff,
    /// What changed since the last backup of any type
    Incr,
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 4] = [
    ("Every night, full once a week", "pgkeep-base-backup"),
    (
        "On every member of a Patroni cluster, where only the primary works",
        "pgkeep-base-backup --only-on primary",
    ),
    (
        "On every member, where a standby works and the primary only if there is none",
        "pgkeep-base-backup --only-on prefer-standby --if-older-than 20h",
    ),
    (
        "Before an upgrade",
        "pgkeep-base-backup --type full --note 'before 15.20'",
    ),
];
