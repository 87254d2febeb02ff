//! Arguments that several tools share, so that a flag has one name, one meaning and one help text.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, ValueEnum};

use super::{Cluster, Config, DEFAULT_FILE, Environment};
use crate::error::Result;
use crate::exit::Contract;
use crate::journal::{Loudness, Verbosity};

/// What every tool accepts.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Configuration file
    #[arg(
        long = "config",
        value_name = "FILE",
        env = "PGKEEP_CONFIG",
        hide_env_values = true,
        default_value = DEFAULT_FILE,
        value_parser = OsStringValueParser::new().map(PathBuf::from)
    )]
    config: PathBuf,

    /// Cluster to work for, as named in the configuration; not needed when only one is configured
    #[arg(
        long = "cluster",
        value_name = "NAME",
        env = "PGKEEP_CLUSTER",
        hide_env_values = true
    )]
    cluster: Option<String>,

    /// Say more on standard error; twice for very much more
    #[arg(short = 'v', long, action = ArgAction::Count)]
    verbose: u8,

    /// Say nothing but errors
    #[arg(short = 'q', long, conflicts_with = "verbose")]
    quiet: bool,
}

impl Common {
    /// Reads the configuration.
    ///
    /// # Errors
    /// `Config`.
    pub fn load(&self, environment: Environment<'_>) -> Result<Config> {
        Config::load(self.config_file(), environment)
    }

    /// The cluster asked for, or the only one.
    ///
    /// # Errors
    /// `Config`.
    pub fn choose<'c>(&self, config: &'c Config) -> Result<&'c Cluster> {
        config.cluster(self.cluster_name())
    }

    /// The configuration file; an empty PGKEEP_CONFIG counts as unset.
    pub fn config_file(&self) -> &std::path::Path {
        match self.config.as_os_str().is_empty() {
            true => std::path::Path::new(DEFAULT_FILE),
            false => &self.config,
        }
    }

    /// The cluster asked for; an empty PGKEEP_CLUSTER counts as unset.
    pub fn cluster_name(&self) -> Option<&str> {
        self.cluster.as_deref().filter(|name| !name.is_empty())
    }
}

/// Implemented by every tool's arguments, so that [`crate::exit::main`] can set up logging.
pub trait HasCommon {
    /// The shared arguments.
    fn common(&self) -> &Common;
}

impl<T: HasCommon> Loudness for T {
    fn verbosity(&self) -> Verbosity {
        let common = self.common();
        Verbosity {
            verbose: common.verbose,
            quiet: common.quiet,
        }
    }
}

/// For tools where a choice of repositories makes sense.
#[derive(Debug, Clone, Default, Args)]
pub struct Repositories {
    /// Use this repository only; may be given several times [default: all that are configured]
    #[arg(long = "repository", value_name = "NAME")]
    pub names: Vec<String>,
}

/// For tools with a result to read.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Format {
    /// Form of the result on standard output
    #[arg(long = "format", value_name = "FORMAT", value_enum, default_value_t)]
    pub format: FormatName,
}

/// How a result is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// For people; may change between versions
    #[default]
    Text,
    /// For programs
    Json,
}

/// The end of a help text: examples, then the exit codes as the contract has them.
///
/// The man pages make a section of each heading.
pub fn after_help(examples: &[(&str, &str)], contract: &Contract) -> String {
    let mut text = String::from("Examples:\n");
    for (what, command) in examples {
        text += &format!("  {what}:\n    {command}\n");
    }
    text += "\nExit codes:\n";
    for (code, meaning) in contract.codes {
        text += &format!("  {code:>3}  {meaning}\n");
    }
    text
}

/// Reads a number of workers.
///
/// # Errors
/// A sentence for clap.
pub fn parse_jobs(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|jobs| (1..=256).contains(jobs))
        .ok_or_else(|| "a whole number from 1 to 256".to_owned())
}

/// Reads a span of time for clap, its hint included.
///
/// # Errors
/// A sentence for clap.
pub fn parse_span(text: &str) -> Result<std::time::Duration, String> {
    crate::units::parse_duration(text).map_err(|error| error.nearest_hint().unwrap_or("a span of time").to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::exit;
    use clap::Parser;

    #[derive(Debug, Parser)]
    #[command(name = "pgkeep-sample", version = "0.1.0")]
    struct Sample {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        repositories: Repositories,
        #[command(flatten)]
        format: Format,
    }

    impl HasCommon for Sample {
        fn common(&self) -> &Common {
            &self.common
        }
    }

    fn sample(args: &[&str]) -> Sample {
        Sample::try_parse_from([&["pgkeep-sample"], args].concat()).unwrap()
    }

    #[test]
    fn flags_are_read() {
        let args = sample(&[
            "--config",
            "/c.toml",
            "--cluster",
            "main",
            "-vv",
            "--repository=a",
            "--repository",
            "b",
        ]);
        assert_eq!(args.common.config_file(), std::path::Path::new("/c.toml"));
        assert_eq!(args.common.cluster_name(), Some("main"));
        assert_eq!(args.verbosity().verbose, 2);
        assert_eq!(args.repositories.names, ["a", "b"]);
        assert_eq!(args.format.format, FormatName::Text);
        assert_eq!(sample(&["--format", "json"]).format.format, FormatName::Json);
        assert!(sample(&["-q"]).verbosity().quiet);
    }

    #[test]
    fn loud_and_quiet_exclude_each_other() {
        assert!(Sample::try_parse_from(["pgkeep-sample", "-q", "-v"]).is_err());
    }

    #[test]
    fn an_empty_name_counts_as_none() {
        let args = sample(&["--cluster", "", "--config", ""]);
        assert_eq!(args.common.cluster_name(), None);
        assert_eq!(args.common.config_file(), std::path::Path::new(DEFAULT_FILE));
    }

    #[test]
    fn the_version_names_tool_and_number() {
        let error = Sample::try_parse_from(["pgkeep-sample", "--version"]).unwrap_err();
        assert_eq!(error.to_string(), "pgkeep-sample 0.1.0\n");
    }

    #[test]
    fn the_end_of_help_lists_every_code() {
        let text = after_help(&[("Back up", "pgkeep-base-backup")], &exit::WORK);
        assert!(
            text.starts_with("Examples:\n  Back up:\n    pgkeep-base-backup\n"),
            "{text}"
        );
        for (code, meaning) in exit::WORK.codes {
            assert!(text.contains(&format!("{code:>3}  {meaning}\n")), "{code}");
        }
    }

    #[test]
    fn numbers_of_workers_and_spans_are_checked() {
        assert_eq!(parse_jobs("4"), Ok(4));
        for text in ["0", "257", "-1", "x", ""] {
            assert!(parse_jobs(text).is_err(), "{text}");
        }
        assert_eq!(parse_span("20h"), Ok(std::time::Duration::from_secs(72_000)));
        assert!(parse_span("20").unwrap_err().contains("unit"));
    }
}
