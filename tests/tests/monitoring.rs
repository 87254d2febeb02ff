//! What monitoring reads is what tools write: rules, metrics through node_exporter, checks through a Consul agent.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Options, Scratch, Server, Story, Tool, project, stand};

/// A program of tests/stand/install.sh monitoring.
fn program(name: &str) -> Option<PathBuf> {
    let path = stand::directory().join("monitoring-1/bin").join(name);
    if !path.is_file() {
        stand::skipped(&format!(
            "{name} is not here; tests/stand/install.sh monitoring fetches it"
        ));
        return None;
    }
    Some(path)
}

fn packaging(below: &str) -> PathBuf {
    project("packaging").join(below).canonicalize().unwrap()
}

/// A program that runs until it is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command) -> Daemon {
        Daemon(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn get(port: u16, path: &str) -> Option<String> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let output = Command::new("curl")
        .args(["-fsS", "--max-time", "5", &url])
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn alert_rules_are_sound_and_each_has_its_case() {
    let Some(promtool) = program("promtool") else { return };
    let rules = packaging("prometheus/pgkeep.rules.yml");
    let tests = packaging("prometheus/pgkeep.rules.test.yml");
    Tool::program(&promtool)
        .arg("check")
        .arg("rules")
        .arg(&rules)
        .run()
        .expect_code(0);
    Tool::program(&promtool)
        .args(["test", "rules"])
        .arg("pgkeep.rules.test.yml")
        .cwd(tests.parent().unwrap())
        .run()
        .expect_code(0);
    let (rules, tests) = (fs::read_to_string(rules).unwrap(), fs::read_to_string(tests).unwrap());
    let mut count = 0;
    for line in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(
            tests.contains(&format!("alertname: {line}\n        exp_alerts:\n")),
            "{line} never fires in a test"
        );
        assert!(
            tests.contains(&format!("alertname: {line}\n        exp_alerts: []")),
            "{line} is never silent in a test"
        );
        count += 1;
    }
    assert!(count > 20, "{count}");
    let guide = fs::read_to_string(packaging("../docs/monitoring.md")).unwrap();
    for line in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(
            guide.contains(&format!("`{line}`")),
            "docs/monitoring.md says nothing of {line}"
        );
    }
}

/// Names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("pgkeep_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn what_rules_and_dashboards_ask_for_is_what_jobs_tell_node_exporter() {
    let (Some(promtool), Some(exporter)) = (program("promtool"), program("prometheus-node-exporter")) else {
        return;
    };
    let Some(server) = Server::need(15) else { return };
    let bin = server.program("postgres").parent().unwrap().to_path_buf();
    let story = Story::with("monitoring", &server, Options::default(), |site| {
        site.repository(system_tests::RepoOptions::new("local"))
            .repository(system_tests::RepoOptions::new("second"))
            .cluster_line(&format!("restore_test.bin_directory = \"{}\"", bin.display()))
    });
    story.cluster.sql("CREATE TABLE t AS SELECT 1 AS n");
    story.backup();
    for (tool, arguments) in [
        ("base-backup", &["--type", "incr"][..]),
        ("restore-test", &["--level", "quick"]),
        ("verify", &[]),
        ("prune", &[]),
        ("sync", &["--from", "local", "--to", "second"]),
        ("check-archive", &[]),
    ] {
        story.tool(tool).args(arguments).run().expect_code(0);
    }
    let metrics = story.site.dir.join("metrics");
    let mut written = String::new();
    for file in fs::read_dir(&metrics).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        Tool::program(&promtool)
            .args(["check", "metrics"])
            .stdin(text.clone())
            .run()
            .expect_code(0);
        written += &text;
    }
    let port = free_port();
    let mut command = Command::new(&exporter);
    command
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--collector.disable-defaults");
    command
        .arg("--collector.textfile")
        .arg(format!("--collector.textfile.directory={}", metrics.display()));
    let _exporter = Daemon::start(&mut command);
    wait_until("node_exporter answers", PATIENCE, || get(port, "/metrics").is_some());
    let scraped = get(port, "/metrics").unwrap();
    assert!(scraped.contains("node_textfile_scrape_error 0"), "{scraped}");
    for name in names(&written) {
        assert!(scraped.contains(&name), "{name} is not scraped");
    }
    let told = names(&scraped);
    // Told only where there is enough to compare with, and where objects are locked (tests/bucket_objects.rs).
    let sometimes = [
        "pgkeep_base_backup_duration_ratio",
        "pgkeep_locks_until_timestamp_seconds",
    ];
    for file in ["prometheus/pgkeep.rules.yml", "grafana/pgkeep.json"] {
        for name in names(&fs::read_to_string(packaging(file)).unwrap()) {
            assert!(
                told.contains(&name) || sometimes.contains(&name.as_str()),
                "{file} asks for {name}, which nobody tells"
            );
        }
    }
}

#[test]
fn a_consul_agent_turns_with_the_checks() {
    let Some(consul) = program("consul") else { return };
    let scratch = Scratch::new("consul");
    let definition = fs::read_to_string(packaging("consul/pgkeep.json")).unwrap();
    let config = scratch.create_dir("config");
    // The agent's own view: one script stands for the tools, and says what a file tells it to.
    let told = scratch.path("told");
    let script = scratch.path("check");
    system_tests::account::write(&script, format!("#!/bin/sh\n. {}\n", told.display()), 0o755);
    let mut service: serde_json::Value = serde_json::from_str(&definition).unwrap();
    for check in service["service"]["checks"].as_array_mut().unwrap() {
        let args = check["args"].as_array_mut().unwrap();
        assert!(
            args[0].as_str().unwrap().starts_with("/usr/bin/pgkeep-check-"),
            "{args:?}"
        );
        args[0] = script.to_string_lossy().into_owned().into();
        check["interval"] = "1s".into();
    }
    fs::write(config.join("pgkeep.json"), service.to_string()).unwrap();
    let data = scratch.create_dir("data");
    let ports: Vec<u16> = (0..4).map(|_| free_port()).collect();
    let agent = format!(
        "{{\"data_dir\": \"{}\", \"enable_local_script_checks\": true, \"bind_addr\": \"127.0.0.1\", \"server\": true, \
         \"bootstrap_expect\": 1, \"ports\": {{\"http\": {}, \"dns\": -1, \"server\": {}, \"serf_lan\": {}, \"serf_wan\": {}}}}}",
        data.display(),
        ports[0],
        ports[1],
        ports[2],
        ports[3]
    );
    fs::write(config.join("agent.json"), agent).unwrap();
    let validated = Command::new(&consul).arg("validate").arg(&config).output().unwrap();
    assert!(
        validated.status.success(),
        "{}",
        String::from_utf8_lossy(&validated.stdout)
    );
    let mut command = Command::new(&consul);
    command.arg("agent").arg(format!("-config-dir={}", config.display()));
    let _agent = Daemon::start(&mut command);
    for (line, code, status) in [
        ("OK - all is well | 'age'=1s;2;3;0", 0, "passing"),
        ("WARNING - it is old", 1, "warning"),
        ("CRITICAL - it is too old", 2, "critical"),
        ("UNKNOWN - nobody knows", 3, "critical"),
        ("OK - it is back", 0, "passing"),
    ] {
        system_tests::account::write(&told, format!("echo \"{line}\"; exit {code}\n"), 0o644);
        wait_until(&format!("the checks are {status}"), PATIENCE, || {
            let Some(text) = get(ports[0], "/v1/agent/checks") else {
                return false;
            };
            let checks: serde_json::Value = serde_json::from_str(&text).unwrap();
            let checks: Vec<&serde_json::Value> = checks.as_object().unwrap().values().collect();
            let is = |check: &&serde_json::Value| {
                check["Status"] == status && check["Output"].as_str().unwrap().contains(line)
            };
            checks.len() == 3 && checks.iter().all(is)
        });
    }
    let services = get(ports[0], "/v1/agent/service/pgkeep").unwrap();
    let service: serde_json::Value = serde_json::from_str(&services).unwrap();
    assert_eq!(
        (&service["Port"], &service["Tags"]),
        (&8432.into(), &serde_json::json!(["backup", "postgresql"]))
    );
}
