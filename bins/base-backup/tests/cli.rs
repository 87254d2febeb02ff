//! The command line: exit codes, streams, and what is left behind, as far as no server is needed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A configuration in a directory of its own, with a data directory that no server runs on.
struct Site {
    directory: TempDir,
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Site {
    /// `cluster` are further lines for the cluster's table.
    fn new(cluster: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let site = Self { directory };
        let [data, state, repository] = ["data", "state", "repository"].map(|name| site.path(name));
        for made in [&data, &state, &repository] {
            fs::create_dir(made).unwrap();
        }
        let text = format!(
            "state_directory = {state:?}\nmetrics_directory = \"/nonexistent\"\n[cluster.main]\ndata_directory = {data:?}\n\
             host = {data:?}\n{cluster}\n[repository.local]\nurl = \"file://{}\"\n",
            repository.display()
        );
        fs::write(site.config(), text).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("pgkeep.toml")
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let config = self.config();
        run(&[&["--config", config.to_str().unwrap()], arguments].concat())
    }

    fn status(&self) -> serde_json::Value {
        let path = self.path("state/main/status/base-backup.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }
}

fn run(arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_pgkeep-base-backup"))
        .args(arguments)
        .env_clear()
        // A host without any authority's certificate.
        .env("SSL_CERT_FILE", "/nonexistent")
        .env("SSL_CERT_DIR", "/nonexistent")
        .current_dir(Path::new("/"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Patroni's API, which answers 200 for the path `ok` and 503 for every other.
fn patroni(ok: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let code = if first.starts_with(&format!("GET {ok} ")) {
                200
            } else {
                503
            };
            let answer = format!("HTTP/1.1 {code} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn help_and_version_are_answers() {
    assert!(run(&["--help"]).stdout.contains("Exit codes:"));
    assert_eq!(run(&["--version"]).code, Some(0));
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["--type", "half"],
        &["--jobs", "0"],
        &["--if-older-than", "20"],
        &["x"],
    ] {
        let ran = run(arguments);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty());
    }
}

#[test]
fn an_audit_of_a_full_backup_is_2_and_says_so() {
    let ran = Site::new("").run(&["--type", "full", "--audit"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("nothing for --audit to compare with"), "{ran:?}");
}

#[test]
fn a_configuration_that_is_missing_or_wrong_is_2() {
    assert_eq!(run(&["--config", "/nonexistent/pgkeep.toml"]).code, Some(2));
    let ran = Site::new("prot = 5432").run(&[]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("port"), "the nearest key is named: {ran:?}");
    assert_eq!(Site::new("").run(&["--repository", "nowhere"]).code, Some(2));
    assert_eq!(Site::new("").run(&["--cluster", "nowhere"]).code, Some(2));
}

#[test]
fn a_missing_data_directory_is_2() {
    let site = Site::new("");
    fs::remove_dir(site.path("data")).unwrap();
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("data_directory"), "{ran:?}");
}

#[test]
fn a_server_that_does_not_answer_is_75_and_leaves_a_failure_behind() {
    let site = Site::new("");
    let ran = site.run(&[]);
    assert_eq!(ran.code, Some(75), "{ran:?}");
    assert!(
        ran.stdout.is_empty() && ran.stderr.contains("cannot connect"),
        "{ran:?}"
    );
    let status = site.status();
    assert_eq!(
        (&status["result"], &status["exit_code"]),
        (&"temporary".into(), &75.into())
    );
    assert_eq!(fs::read_dir(site.path("repository")).unwrap().count(), 0);
}

#[test]
fn on_a_replica_only_on_primary_is_0_and_says_why() {
    let site = Site::new(&format!("patroni = \"{}\"", patroni("/replica")));
    let ran = site.run(&["--only-on", "primary"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("this server is a standby"), "{ran:?}");
    assert_eq!(site.status()["result"], "skipped");
}

#[test]
fn quiet_says_nothing_where_nothing_is_wrong() {
    let site = Site::new(&format!("patroni = \"{}\"", patroni("/replica")));
    let ran = site.run(&["-q", "--only-on", "primary"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn an_authority_that_cannot_be_used_is_2_and_named() {
    for (name, content) in [
        ("missing.pem", None),
        ("empty.pem", Some("")),
        ("key.pem", Some("rubbish")),
    ] {
        let site = Site::new(&format!(
            "patroni = \"https://127.0.0.1:1\"\npatroni_ca = \"/tmp/pgkeep-no-such/{name}\""
        ));
        let path = site.path(name);
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let text = fs::read_to_string(site.config()).unwrap();
        let text = text.replace(&format!("/tmp/pgkeep-no-such/{name}"), path.to_str().unwrap());
        fs::write(site.config(), text).unwrap();
        let ran = site.run(&["--only-on", "primary"]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(
            ran.stderr.contains("patroni_ca") && ran.stderr.contains("hint:"),
            "{ran:?}"
        );
    }
    let ran = Site::new("patroni = \"https://127.0.0.1:1\"").run(&["--only-on", "primary"]);
    assert!(ran.stderr.contains("patroni_ca"), "the way out is named: {ran:?}");
}

#[test]
fn a_role_that_cannot_be_found_out_is_never_0() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("http://{closed}"), patroni("/nothing")] {
        let ran = Site::new(&format!("patroni = \"{url}\"")).run(&["--only-on", "primary"]);
        assert_eq!(ran.code, Some(75), "{ran:?}");
        assert!(ran.stderr.contains("Patroni"), "{ran:?}");
    }
}
