//! What the user, or Patroni, may say to pgkeep-restore.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, ValueEnum};
use common::config::cli::{Common, Format, HasCommon, Repositories, after_help, parse_jobs};
use common::exit;

/// Restore a backup, or any moment in its window, into a directory
///
/// Shows the plan first: the backup, the WAL needed and present, the target, bytes to fetch and free space. Without a
/// target recovery goes to the end of WAL and promotes. A target without --target-action pauses there, as PostgreSQL
/// does. Recovery settings that the backup carries are cleared, and archiving is off unless the destination is the
/// configured data directory. The directory has to be empty, and no server may run in it.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "pgkeep-restore",
    version,
    after_help = after_help(&EXAMPLES, &exit::WORK),
    group = ArgGroup::new("target").multiple(false),
    group = ArgGroup::new("stops").multiple(true)
)]
pub struct Args {
    /// Directory to restore into
    #[arg(long, value_name = "DIR", required_unless_present = "datadir")]
    pub to: Option<PathBuf>,

    /// Backup to start from [default: the newest good one before the target]
    #[arg(long, value_name = "LABEL")]
    pub backup: Option<String>,

    /// Recover to this time: RFC 3339 with a time zone, or such as now-1h
    #[arg(long, value_name = "TIME", groups = ["target", "stops"], help_heading = "Recovery target")]
    pub target_time: Option<String>,

    /// Recover to this WAL location, such as A/3F000028
    #[arg(long, value_name = "LSN", groups = ["target", "stops"], help_heading = "Recovery target")]
    pub target_lsn: Option<String>,

    /// Recover to this transaction
    #[arg(long, value_name = "XID", groups = ["target", "stops"], help_heading = "Recovery target")]
    pub target_xid: Option<String>,

    /// Recover to the restore point that pg_create_restore_point() gave this name
    #[arg(long, value_name = "NAME", group = "target", help_heading = "Recovery target")]
    pub target_name: Option<String>,

    /// Recover to the moment when the backup is consistent, and no further
    #[arg(long, group = "target", help_heading = "Recovery target")]
    pub target_immediate: bool,

    /// Recover along this timeline: a number, "latest" or "current" [default: latest]
    #[arg(long, value_name = "TIMELINE", help_heading = "Recovery target")]
    pub target_timeline: Option<String>,

    /// Stop just before the target instead of just after it
    #[arg(long, requires = "stops", help_heading = "Recovery target")]
    pub target_exclusive: bool,

    /// What the server does at the target [default: pause]
    #[arg(
        long,
        value_name = "ACTION",
        value_enum,
        requires = "target",
        help_heading = "Recovery target"
    )]
    pub target_action: Option<TargetAction>,

    /// Make a standby: the server goes on with WAL from the archive, and from the primary if it is given
    #[arg(long, conflicts_with_all = ["target", "target_action"])]
    pub standby: bool,

    /// Connection string of the primary that the standby streams from
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    pub primary_conninfo: Option<String>,

    /// Keep what the directory of a stopped server holds, and fetch and write only blocks that differ; what the backup does not have goes
    #[arg(long)]
    pub delta: bool,

    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Go on although the plan finds too little space: for a file system that compresses
    #[arg(long)]
    pub ignore_space: bool,

    /// Put a tablespace elsewhere; OLD is its directory or OID; may be given several times
    #[arg(long = "tablespace", value_name = "OLD=NEW", value_parser = parse_mapping)]
    pub tablespaces: Vec<(String, PathBuf)>,

    /// Put pg_wal into this directory, with a symbolic link in its place
    #[arg(long, value_name = "DIR")]
    pub wal_dir: Option<PathBuf>,

    /// Restore the extra paths (configuration kept outside the data directory) below this directory
    #[arg(long, value_name = "DIR")]
    pub extra_to: Option<PathBuf>,

    /// Whether the restored server archives WAL [default: keep in the configured data directory of a host that has archived, else off]
    #[arg(long, value_name = "MODE", value_enum)]
    pub archive_mode: Option<ArchiveMode>,

    /// Fetch this database only, besides the templates and what all share; may be given several times
    ///
    /// The files of the others have their size and no content. The server is good for a dump of this database and for nothing else, and
    /// pgkeep-base-backup refuses it.
    #[arg(long = "only-database", value_name = "DATABASE", conflicts_with_all = ["standby", "delta"])]
    pub only_databases: Vec<String>,

    /// Number of parallel workers [default: jobs of the configuration]
    #[arg(long, value_name = "N", value_parser = parse_jobs)]
    pub jobs: Option<usize>,

    /// Patroni's name for --to
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with = "to",
        help_heading = "Appended by Patroni"
    )]
    pub datadir: Option<PathBuf>,

    /// Patroni's name of the cluster; accepted and not used
    #[arg(long, value_name = "NAME", help_heading = "Appended by Patroni")]
    pub scope: Option<String>,

    /// Patroni's role of the new member: replica is the same as --standby
    #[arg(long, value_name = "ROLE", help_heading = "Appended by Patroni")]
    pub role: Option<String>,

    /// Patroni's connection string of the primary; accepted and not used, since Patroni configures streaming itself
    #[arg(long, value_name = "CONNINFO", help_heading = "Appended by Patroni")]
    pub connstring: Option<String>,

    /// Patroni's options of the method, which it appends too unless no_params is set (Patroni 4.0.7,
    /// patroni/postgresql/bootstrap.py, create_replica); accepted and not used
    #[arg(long = "keep_data", value_name = "BOOL", help_heading = "Appended by Patroni")]
    pub keep_data: Option<String>,

    /// As keep_data
    #[arg(long = "no_leader", value_name = "BOOL", help_heading = "Appended by Patroni")]
    pub no_leader: Option<String>,

    /// As keep_data
    #[arg(long = "no_params", value_name = "BOOL", help_heading = "Appended by Patroni")]
    pub no_params: Option<String>,

    #[command(flatten)]
    pub repositories: Repositories,

    #[command(flatten)]
    pub format: Format,

    #[command(flatten)]
    pub common: Common,
}

/// What the server does when it has reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TargetAction {
    /// Wait, readable, for pg_wal_replay_resume()
    Pause,
    /// Become a primary on a new timeline
    Promote,
    /// Stop the server
    Shutdown,
}

/// Whether the restored server archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArchiveMode {
    /// As the backup's configuration has it
    Keep,
    /// Not: archive_mode = off
    Off,
}

impl Args {
    /// The directory to restore into, under either of its names; the parser makes sure that one is given.
    pub fn destination(&self) -> Option<&PathBuf> {
        self.to.as_ref().or(self.datadir.as_ref())
    }

    /// Whether to make a standby, asked for by the operator or by Patroni.
    pub fn wants_standby(&self) -> bool {
        self.standby || self.role.as_deref() == Some("replica")
    }
}

impl HasCommon for Args {
    fn common(&self) -> &Common {
        &self.common
    }
}

/// Reads `OLD=NEW`, where NEW is an absolute path, so that OLD ends before a `=/`.
fn parse_mapping(text: &str) -> Result<(String, PathBuf), String> {
    let usage = "write OLD=NEW, where NEW is an absolute path";
    let oid = text
        .split_once('=')
        .filter(|(old, _)| old.bytes().all(|byte| byte.is_ascii_digit()));
    let mut places = text.match_indices("=/");
    let (old, new) = match (oid, places.next(), places.next()) {
        (Some((old, new)), ..) => (old, new),
        (None, Some((at, _)), None) => (
            text.get(..at).unwrap_or_default(),
            text.get(at + 1..).unwrap_or_default(),
        ),
        (None, Some(_), Some(_)) => {
            return Err("it is not clear where OLD ends: name the tablespace by its OID, 16400=/new/dir".to_owned());
        }
        (None, None, _) => return Err(usage.to_owned()),
    };
    if old.is_empty() || !new.starts_with('/') {
        return Err(usage.to_owned());
    }
    Ok((old.to_owned(), PathBuf::from(new)))
}

const EXAMPLES: [(&str, &str); 4] = [
    (
        "Everything, up to the last WAL",
        "pgkeep-restore --to /var/lib/postgresql/15/main",
    ),
    (
        "Just before an accident, beside the running server",
        "pgkeep-restore --to /srv/rescue --target-time 2026-11-20T13:59:00+01:00",
    ),
    (
        "See the plan",
        "pgkeep-restore --to /srv/rescue --target-time now-1h --dry-run",
    ),
    (
        "A standby that follows a primary",
        "pgkeep-restore --to /var/lib/postgresql/15/main --standby --primary-conninfo 'host=10.0.0.1 user=replicator'",
    ),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mapping_is_cut_before_the_new_absolute_path() {
        for (text, old, new) in [
            ("16400=/new", "16400", "/new"),
            ("16400=/new=/x", "16400", "/new=/x"),
            ("/srv/a=/new", "/srv/a", "/new"),
            ("/srv/a=b=/new", "/srv/a=b", "/new"),
            ("/srv/a=/new=b", "/srv/a", "/new=b"),
        ] {
            assert_eq!(
                parse_mapping(text).unwrap(),
                (old.to_owned(), PathBuf::from(new)),
                "{text}"
            );
        }
        for text in ["", "=/new", "/srv/a", "/srv/a=new", "16400=new"] {
            assert!(parse_mapping(text).is_err(), "{text}");
        }
        assert!(parse_mapping("/srv/a=/b=/new").unwrap_err().contains("OID"));
    }
}
