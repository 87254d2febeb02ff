//! Programs that look at the project's own files: run in the environment of whoever runs the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A file or directory of the project, by its path from the root.
pub fn project(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(below)
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// What it wrote to stdout, then to stderr.
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
