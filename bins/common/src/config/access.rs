//! What a monitoring agent gets to see: the configuration, or, where it may not read that, what jobs have left.

use std::path::{Path, PathBuf};

use super::cli::Common;
use super::{Config, DEFAULT_STATE_DIRECTORY, Environment};
use crate::error::Result;

/// From what a check takes its answer.
#[derive(Debug)]
pub enum Access {
    /// The configuration, and all that it names.
    Full(Box<Config>),
    /// Status files of this cluster below this directory.
    StatusOnly(PathBuf, String),
}

/// Reads the configuration, or finds the status files where this user may not.
///
/// # Errors
/// `Config` if the configuration is wrong, or may not be read and no cluster is named.
pub fn access(common: &Common, environment: Environment<'_>) -> Result<Access> {
    match common.load(environment) {
        Ok(config) => Ok(Access::Full(Box::new(config))),
        Err(error) if error.is_denied() => {
            let state = Path::new(DEFAULT_STATE_DIRECTORY);
            let named = common.cluster_name().map(str::to_owned);
            let cluster = named.or_else(|| only_cluster(state));
            let cluster =
                cluster.ok_or_else(|| error.hint("name the cluster with --cluster, to be told what its jobs left"))?;
            Ok(Access::StatusOnly(state.to_owned(), cluster))
        }
        Err(error) => Err(error),
    }
}

/// The cluster that has a directory there, if it is one.
fn only_cluster(state: &Path) -> Option<String> {
    let mut names = std::fs::read_dir(state)
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join("status").is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok());
    match (names.next(), names.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}
