//! What the user may say to pgkeep-verify.

use clap::Parser;
use common::config::cli::{Common, Format, HasCommon, Repositories, after_help, parse_jobs};
use common::exit;
use common::repository::{DumpLabel, Label};

/// Check what is stored: present, whole, unbroken; mend it from another repository
///
/// Looks whether every object of every backup is there with its size, with all that the backup leans on; whether the WAL from each backup's
/// start to its stop is there, and beyond it without gaps; whether each WAL file is as long as it says; and whether every object of every
/// dump is there. With --read-data it also
/// reads what is stored and compares digests, decrypts and decompresses where the key is at hand, dumps to their end. Names everything that is wrong, and
/// says what can still be restored. Needs neither the server nor, for most of it, a key.
#[derive(Debug, Clone, Parser)]
#[command(name = "pgkeep-verify", version, after_help = after_help(&EXAMPLES, &exit::WORK))]
pub struct Args {
    /// Check this backup only, and what it needs
    #[arg(long, value_name = "LABEL")]
    pub backup: Option<Label>,

    /// Check this dump only
    #[arg(long, value_name = "LABEL", conflicts_with = "backup")]
    pub dump: Option<DumpLabel>,

    /// Read the data as well; with a percentage another share of it in each run, so that everything is read over some runs
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, default_missing_value = "100", require_equals = true,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub read_data: Option<u8>,

    /// Replace what is damaged or missing by the copy of this repository; what is replaced moves to damaged/
    #[arg(long, value_name = "NAME")]
    pub repair_from: Option<String>,

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

const EXAMPLES: [(&str, &str); 4] = [
    ("Every night", "pgkeep-verify"),
    ("Every night, and all data once a month", "pgkeep-verify --read-data=4"),
    (
        "One backup, all of it",
        "pgkeep-verify --backup 20261120T020000Z-full-3f9a1c --read-data",
    ),
    (
        "Mend the local repository from the off-site one",
        "pgkeep-verify --repository local --read-data --repair-from offsite",
    ),
];
