//! What the user may say to pgkeep-dump-restore.

use std::path::PathBuf;

use clap::Parser;
use common::config::cli::{Common, HasCommon, Repositories, after_help, parse_jobs};
use common::exit;
use common::repository::DumpLabel;

/// Restore all of a dump, or one tenant or table out of it, also under another name
///
/// A tenant (schema) or table comes in one transaction, with the extensions and shared objects that it needs and the database lacks; of
/// the dump only the parts that hold it are read. A whole database goes into an empty one. Nothing is overwritten unless
/// --clean says so.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-dump-restore", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// The dump, as pgkeep-info lists it
    #[arg(value_name = "LABEL", required_unless_present = "apply_erasures")]
    pub label: Option<DumpLabel>,

    /// Database to restore into
    #[arg(long, value_name = "DATABASE", conflicts_with_all = ["list", "to_sql"])]
    pub into: Option<String>,

    /// The database of the dump [default: the only one, else that of the same name]
    #[arg(long, value_name = "DATABASE")]
    pub database: Option<String>,

    /// Only this schema
    #[arg(long, value_name = "SCHEMA", conflicts_with = "tables")]
    pub tenant: Option<String>,

    /// Restore the schema under this name, beside the one that is there
    #[arg(long, value_name = "NEW", conflicts_with_all = ["tables", "clean"])]
    pub rename: Option<String>,

    /// Only this table, as SCHEMA.TABLE (repeatable)
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,

    /// Show what is in the dump
    #[arg(long)]
    pub list: bool,

    /// Drop what is there first
    #[arg(long)]
    pub clean: bool,

    /// Create the database first
    #[arg(long, requires = "into", conflicts_with = "clean")]
    pub create: bool,

    /// Write SQL into a new file instead, "-" for stdout
    #[arg(long, value_name = "FILE", conflicts_with = "create")]
    pub to_sql: Option<PathBuf>,

    /// Write the SQL of roles and tablespaces (with --to-sql)
    #[arg(long, requires = "to_sql", conflicts_with_all = ["tenant", "tables", "rename", "clean", "database"])]
    pub globals: bool,

    /// Everything belongs to the role that restores
    #[arg(long)]
    pub no_owner: bool,

    /// Restore no GRANTs
    #[arg(long)]
    pub no_privileges: bool,

    /// Restore a tenant although it has been erased
    #[arg(long)]
    pub even_erased: bool,

    /// Erase again what a restored server has of erased tenants, after its promotion; --into: in this database alone
    #[arg(long, conflicts_with_all = [
        "label", "database", "tenant", "tables", "rename", "list", "clean", "create", "to_sql", "no_owner", "no_privileges", "even_erased",
    ])]
    pub apply_erasures: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Number of parallel sessions for a whole database; more than one need room for the dump in TMPDIR
    #[arg(long, value_name = "N", value_parser = parse_jobs, default_value = "1")]
    pub jobs: usize,

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

const EXAMPLES: [(&str, &str); 6] = [
    (
        "What is in it",
        "pgkeep-dump-restore 20261120T020000Z-dump-3f9a1c --list",
    ),
    (
        "A whole database, new",
        "pgkeep-dump-restore 20261120T020000Z-dump-3f9a1c --database shop --into shop_new --create",
    ),
    (
        "One tenant back, beside the one that is there",
        "pgkeep-dump-restore 20261120T020000Z-dump-3f9a1c --into shop --tenant acme --rename acme_old",
    ),
    (
        "One tenant back, in place of the one that is there",
        "pgkeep-dump-restore 20261120T020000Z-dump-3f9a1c --into shop --tenant acme --clean",
    ),
    (
        "One table as SQL",
        "pgkeep-dump-restore 20261120T020000Z-dump-3f9a1c --table public.orders --to-sql orders.sql",
    ),
    (
        "On a restored server, erased tenants go again",
        "pgkeep-dump-restore --apply-erasures",
    ),
];
