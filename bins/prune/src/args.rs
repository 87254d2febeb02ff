//! What the user may say to pgkeep-prune.

use std::time::Duration;

use clap::{ArgGroup, Parser};
use common::config::cli::{Common, Format, HasCommon, Repositories, after_help, parse_jobs, parse_span};
use common::exit;
use common::repository::Label;

/// Remove what retention no longer keeps, and say why
///
/// Shows for each backup and each range of WAL why it stays or goes, by the retention of its repository, and then does exactly that.
/// Whatever the retention says, the newest good backup stays, with everything that it leans on and the WAL that makes it
/// consistent. What interrupted backups left behind goes when nothing refers to it. What pgkeep does not know is never touched.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-prune", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
#[command(group = ArgGroup::new("marks").args(["keep", "erase_tenant"]))]
pub struct Args {
    /// Show what would go, and remove nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Mark a backup, so that it stays whatever retention says; nothing is removed in this run
    #[arg(long, value_name = "LABEL", requires = "reason", conflicts_with_all = ["unkeep", "renew_locks"])]
    pub keep: Option<Label>,

    /// Why it stays, or on whose demand a tenant is erased
    #[arg(long, value_name = "TEXT", requires = "marks")]
    pub reason: Option<String>,

    /// Take the newest mark of a backup back; nothing is removed in this run
    #[arg(long, value_name = "LABEL", conflicts_with = "renew_locks")]
    pub unkeep: Option<Label>,

    /// Erase a tenant: record it, and remove the dumps that hold only this schema; nothing else is removed in this run
    ///
    /// Restores from backups that hold the tenant then leave the SQL that erases it again, and checks are critical until it is gone.
    #[arg(long, value_name = "SCHEMA", requires_all = ["database", "reason"], conflicts_with_all = ["unkeep", "renew_locks"])]
    pub erase_tenant: Option<String>,

    /// The database that the tenant is in
    #[arg(long, value_name = "DATABASE", requires = "erase_tenant")]
    pub database: Option<String>,

    /// The schema's OID, where several have had its name or it was dropped before
    #[arg(long, value_name = "OID", requires = "erase_tenant")]
    pub schema_oid: Option<u32>,

    /// Renew the object locks of everything that stays, up to lock_horizon from now
    #[arg(long)]
    pub renew_locks: bool,

    /// What interrupted backups left behind goes when nobody has written to it for so long
    #[arg(long, value_name = "AGE", value_parser = parse_span, default_value = "24h")]
    pub garbage_after: Duration,

    /// Number of parallel workers [default: jobs of the configuration]
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,

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

const EXAMPLES: [(&str, &str); 5] = [
    ("See what would go, and why", "pgkeep-prune --dry-run"),
    ("Every night, behind the backup", "pgkeep-prune"),
    (
        "Keep a backup for good",
        "pgkeep-prune --keep 20261120T020000Z-full-3f9a1c --reason 'closing of the books'",
    ),
    ("Keep object locks from running out", "pgkeep-prune --renew-locks"),
    (
        "Erase a tenant",
        "pgkeep-prune --erase-tenant acme --database shop --reason 'request of 2026-11-20'",
    ),
];
