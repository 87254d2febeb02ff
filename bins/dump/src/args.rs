//! What the user may say to pgkeep-dump.

use std::time::Duration;

use clap::Parser;
use common::config::cli::{Common, Format, HasCommon, Repositories, after_help};
use common::exit;
use common::leadership::Where;
use common::repository::Label;
use common::units::parse_duration;

/// Store logical dumps of databases, schemas or tables in every repository
///
/// Runs pg_dump in its custom format, reads what it writes to the end with pg_restore while it is stored, compressed and encrypted, in
/// all repositories in one pass, and lists the dump only then. Without --database it takes the databases of the configuration, else all
/// that allow connections, each with one snapshot, and with them roles and tablespaces. Each tenant (schema) becomes a dump of its
/// own, all of the same snapshot. The server may run anywhere that can be reached. With --from-backup the dump is taken
/// from a physical backup and WAL, as of any moment that they reach: the running server is not touched.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-dump", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Database to dump (repeatable) [default: databases of the configuration, else all]
    #[arg(long = "database", value_name = "NAME")]
    pub databases: Vec<String>,

    /// Only this schema of the database, as a dump of its own (repeatable)
    #[arg(long = "tenant", value_name = "SCHEMA", conflicts_with = "tables")]
    pub tenants: Vec<String>,

    /// Only this table of the database, as SCHEMA.TABLE (repeatable)
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,

    /// Definitions only, no rows
    #[arg(long, conflicts_with = "data_only")]
    pub schema_only: bool,

    /// Rows only, no definitions
    #[arg(long)]
    pub data_only: bool,

    /// Only roles and tablespaces
    #[arg(long, conflicts_with_all = ["databases", "tenants", "tables", "schema_only", "data_only"])]
    pub globals: bool,

    /// Take it from a physical backup, restored into a scratch server for that, instead of the running server
    #[arg(long, conflicts_with_all = ["globals", "if_older_than"])]
    pub from_backup: bool,

    /// The backup to take it from [default: the newest good one before the time]
    #[arg(long, value_name = "LABEL", requires = "from_backup")]
    pub backup: Option<Label>,

    /// The moment to take it at (RFC 3339 with a time zone, or such as now-1h) [default: the end of WAL]
    #[arg(long, value_name = "TIME", requires = "from_backup")]
    pub target_time: Option<String>,

    /// Run only on a server in this role; elsewhere do nothing, say why, and exit 0
    #[arg(
        long,
        value_name = "ROLE",
        value_enum,
        default_value_t,
        conflicts_with = "from_backup"
    )]
    pub only_on: Where,

    /// Do nothing if a dump of whole databases younger than this exists, such as 20h
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub if_older_than: Option<Duration>,

    /// Compression level of zstd [default: compression_level of the configuration]
    #[arg(long, value_name = "LEVEL", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=19))]
    pub compression_level: Option<i32>,

    #[command(flatten)]
    pub repositories: Repositories,

    #[command(flatten)]
    pub format: Format,

    #[command(flatten)]
    pub common: Common,
}

fn parse_age(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| common::error::chain(&error))
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

const EXAMPLES: [(&str, &str); 6] = [
    ("Every day, all databases, roles and tablespaces", "pgkeep-dump"),
    (
        "On every member of a Patroni cluster, where only one works",
        "pgkeep-dump --only-on prefer-standby --if-older-than 20h",
    ),
    (
        "One database, without rows",
        "pgkeep-dump --database shop --schema-only",
    ),
    (
        "Two tenants, each as a dump of its own",
        "pgkeep-dump --database shop --tenant acme --tenant globex",
    ),
    (
        "One tenant as it was ten minutes ago",
        "pgkeep-dump --database shop --tenant acme --from-backup --target-time now-10m",
    ),
    (
        "One table, before something risky",
        "pgkeep-dump --database shop --table public.orders",
    ),
];
