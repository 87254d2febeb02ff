//! A configuration and a data directory without a server, for the tests of command lines: pg_control comes from the
//! fixtures.

use std::fs;
use std::path::PathBuf;

use crate::output::project;
use crate::{Scratch, Tool, account};

/// The system identifier that the fixture names is not important; this is where it lies.
const CONTROL: &[u8] = include_bytes!("../fixtures/pg15/pg_control");

/// One cluster and one repository, neither of which a server has ever used.
#[derive(Debug)]
pub struct Bare {
    /// Holds everything.
    pub scratch: Scratch,
    /// The data directory: pg_control and an empty pg_wal.
    pub data: PathBuf,
    /// Where the repository's URL points; empty.
    pub repository: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// What it says.
    pub text: String,
}

impl Bare {
    /// Writes configuration and directories.
    pub fn new(name: &str) -> Bare {
        let scratch = Scratch::new(name);
        let data = scratch.create_dir("data");
        for below in ["data/global", "data/pg_wal", "state", "spool", "metrics"] {
            scratch.create_dir(below);
        }
        account::write(&data.join("global/pg_control"), CONTROL, 0o600);
        let repository = scratch.create_dir("repository");
        let below = |name: &str| scratch.path(name).display().to_string();
        let text = format!(
            "state_directory = \"{}\"\nspool_directory = \"{}\"\nmetrics_directory = \"{}\"\npatience = \"1s\"\n\n\
             [cluster.main]\ndata_directory = \"{}\"\nhost = \"/nonexistent\"\n\n[repository.local]\nurl = \"file://{}\"\n",
            below("state"),
            below("spool"),
            below("metrics"),
            data.display(),
            repository.display()
        );
        let config = scratch.write("pgkeep.toml", &text, 0o600);
        Bare {
            scratch,
            data,
            repository,
            config,
            text,
        }
    }

    /// Replaces the configuration.
    pub fn configure(&self, text: &str) {
        account::write(&self.config, text, 0o600);
    }

    /// A tool with this configuration, in the data directory.
    pub fn tool(&self, name: &str) -> Tool {
        Tool::new(name).arg("--config").arg(&self.config).cwd(&self.data)
    }

    /// Writes a timeline history file into pg_wal: a WAL file that needs no server.
    pub fn history(&self, timeline: u32, content: &str) -> String {
        let name = format!("{timeline:08X}.history");
        account::write(&self.data.join("pg_wal").join(&name), content, 0o600);
        name
    }

    /// What every tool answers alike: help, version, and complaints about its configuration, all with `code`.
    pub fn check_common_answers(&self, tool: &str, arguments: &[&str], code: i32) {
        let plain = |words: &[&str]| Tool::new(tool).args(words).cwd(&self.data).run();
        let help = plain(&["--help"]).expect_code(0).expect_quiet();
        for words in ["Usage: ", "Exit codes:", "--config", "Examples:"] {
            help.clone().expect_said(words);
        }
        let version = plain(&["--version"]).expect_code(0).expect_quiet();
        assert_eq!(version.stdout, format!("pgkeep-{tool} {}\n", env!("CARGO_PKG_VERSION")));
        plain(&["--frobnicate"]).expect_code(code).expect_said("--frobnicate");

        let run = || self.tool(tool).args(arguments).run();
        self.configure(&self.text.replace("patience", "patiense"));
        run()
            .expect_code(code)
            .expect_said("unknown key \"patiense\"")
            .expect_said("patience");
        self.configure("");
        run().expect_code(code).expect_said("no cluster is configured");
        fs::remove_file(&self.config).unwrap();
        run()
            .expect_code(code)
            .expect_said(&self.config.display().to_string())
            .expect_said("No such file");
        self.configure(&self.text);
        let other = self.tool(tool).args(["--cluster", "man"]).args(arguments).run();
        other.expect_code(code).expect_said("\"man\"").expect_said("main");
    }
}

/// Every key of an object with the JSON type of its value, sorted: to hold documents against a schema by hand.
pub fn keys(value: &serde_json::Value) -> Vec<String> {
    let mut keys: Vec<String> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key.clone())
        .collect();
    keys.sort();
    keys
}

/// A file of the project, by its path from the root.
pub fn project_file(path: &str) -> String {
    fs::read_to_string(project(path)).unwrap()
}
