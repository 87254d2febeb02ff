//! The examples for other homes than Debian with systemd: what runs in them is what the units run, at the same times; programs
//! understand their calls, and those who read the files find nothing wrong with them.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod homes_stand;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::config::Config;
use homes_stand::{Job, Line, cron_jobs, crontab, example, jobs, text, with_second_repository, words, yaml};
use serde_json::Value;
use system_tests::output::{run, said};
use system_tests::{Scratch, Tool, project, stand};

/// Units, the time of their timer, and that time for cron.
const TIMES: [(&str, &str, &str); 8] = [
    ("full-backup", "Sun *-*-* 02:00:00 UTC", "0 2 * * 0"),
    ("base-backup", "Mon..Sat *-*-* 02:00:00 UTC", "0 2 * * 1-6"),
    ("restore-test", "Mon *-*-* 03:00:00 UTC", "0 3 * * 1"),
    ("verify", "Wed *-*-* 04:00:00 UTC", "0 4 * * 3"),
    ("prune", "*-*-* 05:00:00 UTC", "0 5 * * *"),
    ("dump", "*-*-* 01:00:00 UTC", "0 1 * * *"),
    ("check", "*-*-* 00/6:30:00 UTC", "30 */6 * * *"),
    ("digest", "*-*-* 08:00:00 UTC", "0 8 * * *"),
];

/// The homes, and what runs in each; with what is there for a second repository.
fn homes() -> Vec<(&'static str, Vec<Line>)> {
    let of_cron = |below: &str, users: bool| crontab(&with_second_repository(&text(below)), users).0;
    vec![
        ("cron", of_cron("cron/pgkeep", true)),
        ("compose", of_cron("compose/crontab", false)),
        ("kubernetes", cron_jobs().into_iter().map(|(_, line, _)| line).collect()),
    ]
}

fn unit(name: &str, kind: &str) -> String {
    let instance = if name == "digest" { "" } else { "@" };
    let path = project(&format!("packaging/systemd/pgkeep-{name}{instance}.{kind}"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a unit calls, without what says for which cluster, and how loudly.
fn calls_of_unit(name: &str) -> Vec<Vec<String>> {
    let unit = unit(name, "service");
    // One asks a shell whether its timer has started it.
    let starts = unit
        .lines()
        .filter(|line| line.starts_with("ExecStart="))
        .filter_map(|line| line.split("/usr/bin/").nth(1));
    starts
        .map(|start| {
            let said = start.split_whitespace().map(|word| word.trim_matches(['\'', '"']));
            let ours = said.filter(|word| !word.starts_with('$') && !["--cluster", "%i"].contains(word));
            bare(ours.map(str::to_owned))
        })
        .collect()
}

fn bare(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let loud = words
        .into_iter()
        .filter(|word| !["--quiet", "-q"].contains(&word.as_str()));
    loud.collect()
}

#[test]
fn jobs_run_when_the_timers_say_and_as_the_units_say() {
    for (name, calendar, _) in TIMES {
        let timer = unit(name, "timer");
        assert!(timer.contains(&format!("\nOnCalendar={calendar}\n")), "{name}: {timer}");
    }
    for (home, lines) in homes() {
        let mut seen = BTreeSet::new();
        for line in &lines {
            let chain = jobs(&line.command);
            for (number, job) in chain.iter().enumerate() {
                let name = match &job.name {
                    Some(name) => name.as_str(),
                    // The one that is told, not telling.
                    None => "digest",
                };
                let calls: Vec<Vec<String>> = job.calls.iter().cloned().map(bare).collect();
                assert_eq!(calls, calls_of_unit(name), "{home}: {}", line.command);
                let time = TIMES.iter().find(|(of, ..)| *of == name).map(|(.., cron)| *cron);
                if number == 0 && name != "sync" {
                    assert_eq!(Some(line.schedule.as_str()), time, "{home}: {name}");
                    assert!(seen.insert(name.to_owned()), "{home}: {name} twice");
                }
            }
            let backup = chain[0].name.as_deref().is_some_and(|name| name.ends_with("-backup"));
            if backup && home != "kubernetes" {
                assert_eq!(chain[1].name.as_deref(), Some("prune"), "{home}: {}", line.command);
                assert!(
                    line.command.contains(" && run-pgkeep prune "),
                    "{home}: {}",
                    line.command
                );
            }
        }
        let missing: Vec<&str> = TIMES
            .map(|(name, ..)| name)
            .into_iter()
            .filter(|name| !seen.contains(*name))
            .collect();
        // A pod forgets what others told.
        assert_eq!(
            missing,
            if home == "kubernetes" { vec!["digest"] } else { vec![] },
            "{home}"
        );
        let sync: Vec<&str> = lines
            .iter()
            .filter(|line| jobs(&line.command)[0].name.as_deref() == Some("sync"))
            .map(|line| line.schedule.as_str())
            .collect();
        let wanted = if home == "kubernetes" {
            vec![]
        } else {
            vec!["* * * * *", "17 6 * * *"]
        };
        assert_eq!(sync, wanted, "{home}");
    }
}

#[test]
fn every_call_is_one_that_its_program_understands() {
    let mut calls: BTreeSet<Vec<String>> = BTreeSet::new();
    for (_, lines) in homes() {
        calls.extend(
            lines
                .iter()
                .flat_map(|line| jobs(&line.command))
                .flat_map(|job| job.calls),
        );
    }
    for manifest in yaml("kubernetes/restore.yaml") {
        let container = &manifest["spec"]["template"]["spec"]["containers"][0];
        calls.insert([words(&container["command"]), words(&container["args"])].concat());
    }
    let sql = text("compose/archive.sql") + &text("kubernetes/configmap.yaml");
    let archiving = sql
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ALTER SYSTEM SET archive_command = "));
    calls.extend(archiving.flat_map(jobs).flat_map(|job| job.calls));
    assert!(calls.len() >= 12, "{calls:?}");
    for call in calls {
        let name = call[0].strip_prefix("pgkeep-").unwrap();
        let ran = Tool::new(name)
            .args(&call[1..])
            .env("PGKEEP_CONFIG", "/nonexistent/pgkeep.toml")
            .env("PGKEEP_CLUSTER", "main")
            .run();
        // Its arguments were understood when it goes on to its configuration.
        let ran = ran.expect_said("/nonexistent/pgkeep.toml");
        assert!(ran.code.is_some_and(|code| code != 0), "{}", ran.report());
    }
}

#[test]
fn the_configurations_can_be_read_where_they_are_used() {
    let recipient = fs::read_to_string(project("tests/fixtures/format-1/recipient.txt")).unwrap();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let compose = &yaml("compose/docker-compose.yml")[0];
    let of_compose = compose["services"]["scheduler"]["environment"].as_object().unwrap();
    let config_maps = yaml("kubernetes/configmap.yaml");
    for (name, value) in of_compose.iter().chain(config_maps[0]["data"].as_object().unwrap()) {
        known.insert(name.clone(), value.as_str().unwrap().to_owned());
    }
    known.insert("PGKEEP_RECIPIENT".into(), recipient.trim().to_owned());
    let environment = |name: &str| known.get(name).cloned();
    let with_bucket = |name: &str| match name {
        "PGKEEP_BUCKET" => Some("company-backups".to_owned()),
        name => environment(name),
    };
    let of_compose = text("compose/pgkeep.toml");
    let both = with_second_repository(&of_compose);
    let kubernetes = &config_maps[1]["data"];
    for (text, repositories) in [
        (of_compose.as_str(), 1),
        (both.as_str(), 2),
        (kubernetes["pgkeep.toml"].as_str().unwrap(), 1),
        (kubernetes["restore.toml"].as_str().unwrap(), 1),
    ] {
        let config = Config::parse(Path::new("pgkeep.toml"), text, &with_bucket);
        let config = config.unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!((config.clusters.len(), config.repositories.len()), (1, repositories));
        assert_eq!(config.clusters[0].name, known["PGKEEP_CLUSTER"]);
    }
    // What writes opens nothing, and the two differ in nothing else that matters.
    let [writes, reads] = ["pgkeep.toml", "restore.toml"].map(|name| kubernetes[name].as_str().unwrap());
    assert!(!writes.contains("identity_file") && reads.contains("identity_file"));
    let common = |text: &str| {
        text.replace(", identity_file = \"/etc/pgkeep/identity/identity.txt\"", "")
            .lines()
            .filter(|line| !line.starts_with("restore_test") && !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(common(writes), common(reads));
}

/// A program of `tests/stand/install.sh homes`.
fn program(name: &str) -> Option<PathBuf> {
    let path = stand::directory().join("homes-1/bin").join(name);
    path.is_file().then_some(path)
}

#[test]
fn compose_finds_nothing_wrong() {
    let docker = || {
        let found = Command::new("docker").args(["compose", "version"]).output();
        found.is_ok_and(|output| output.status.success()).then(|| {
            let mut command = Command::new("docker");
            command.arg("compose");
            command
        })
    };
    let Some(mut command) = program("docker-compose").map(Command::new).or_else(docker) else {
        return stand::skipped(
            "neither docker compose nor docker-compose is here; tests/stand/install.sh homes fetches it",
        );
    };
    let file = example("compose/docker-compose.yml");
    command.arg("-f").arg(&file).args(["config", "--format", "json"]);
    let refused = run(command.env_remove("PGKEEP_RECIPIENT"));
    assert!(
        !refused.status.success() && said(&refused).contains("PGKEEP_RECIPIENT"),
        "{}",
        said(&refused)
    );
    let read = run(command.env("PGKEEP_RECIPIENT", "age1x"));
    assert!(read.status.success() && read.stderr.is_empty(), "{}", said(&read));
    let read: Value = serde_json::from_slice(&read.stdout).unwrap();
    let services = &read["services"];
    let source = |service: &str, target: &str| {
        let volumes = services[service]["volumes"].as_array().unwrap();
        let volume = volumes
            .iter()
            .find(|volume| volume["target"] == target)
            .unwrap()
            .clone();
        (volume["source"].clone(), volume["read_only"] == true)
    };
    for (target, read_only) in [
        ("/var/lib/postgresql/data", true),
        ("/var/run/postgresql", false),
        ("/var/lib/pgkeep", false),
        ("/var/backups/pgkeep", false),
        ("/etc/pgkeep/pgkeep.toml", true),
    ] {
        let (of_server, of_jobs) = (source("postgres", target), source("scheduler", target));
        assert_eq!((&of_server.0, of_jobs.1), (&of_jobs.0, read_only), "{target}");
    }
    let jobs = &services["scheduler"];
    assert_eq!((&jobs["user"], &jobs["read_only"]), (&"999:999".into(), &true.into()));
    assert_eq!(words(&jobs["cap_drop"]), ["ALL"]);
    assert_eq!(jobs["environment"]["TZ"], "UTC");
}

/// Pods by the name of what makes them.
fn pods() -> Vec<(String, Value)> {
    let mut pods: Vec<(String, Value)> = cron_jobs().into_iter().map(|(name, _, pod)| (name, pod)).collect();
    for below in ["kubernetes/postgres.yaml", "kubernetes/restore.yaml"] {
        for manifest in yaml(below) {
            let pod = &manifest["spec"]["template"]["spec"];
            if pod.is_object() {
                pods.push((below.to_owned(), pod.clone()));
            }
        }
    }
    pods
}

#[test]
fn pods_have_no_privileges_and_all_that_they_name() {
    let secrets: BTreeSet<&str> = BTreeSet::from([
        "postgres",
        "backup-s3",
        "backup-s3-prune",
        "backup-notify",
        "backup-identity",
        "recovery-identity",
    ]);
    let readme = text("kubernetes/README.md");
    for secret in &secrets {
        assert!(
            readme.contains(&format!("kubectl create secret generic {secret} ")),
            "{secret}"
        );
    }
    let pods = pods();
    assert_eq!(pods.len(), 9);
    for (name, pod) in &pods {
        let (of_pod, container) = (&pod["securityContext"], &pod["containers"][0]);
        let of_container = &container["securityContext"];
        assert_eq!(of_pod["runAsNonRoot"], true, "{name}");
        assert_eq!(
            (&of_pod["runAsUser"], &of_pod["fsGroup"]),
            (&999.into(), &999.into()),
            "{name}"
        );
        assert_eq!(of_pod["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(of_container["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(of_container["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(words(&of_container["capabilities"]["drop"]), ["ALL"], "{name}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
        let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut volumes: BTreeSet<String> = BTreeSet::new();
        for volume in array(&pod["volumes"]) {
            volumes.insert(volume["name"].as_str().unwrap().to_owned());
            if let Some(secret) = volume["secret"]["secretName"].as_str() {
                assert!(secrets.contains(secret), "{name}: {secret}");
                // What pgkeep takes from root, and from nobody else.
                assert_eq!(volume["secret"]["defaultMode"], 0o440, "{name}: {secret}");
            }
        }
        if name.ends_with("postgres.yaml") {
            volumes.extend(["data".to_owned(), "state".to_owned()]);
        }
        let mounts = array(&container["volumeMounts"]);
        let mounted: BTreeSet<String> = mounts
            .iter()
            .map(|mount| mount["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(mounted, volumes, "{name}");
        let places: BTreeSet<&str> = mounts
            .iter()
            .map(|mount| mount["mountPath"].as_str().unwrap())
            .collect();
        let reads = places.contains("/var/lib/postgresql/data") && name.starts_with("pgkeep-");
        let data = mounts.iter().find(|mount| mount["name"] == "data");
        assert!(!reads || data.is_some_and(|mount| mount["readOnly"] == true), "{name}");
        assert_eq!(
            reads,
            pod["affinity"]["podAffinity"].is_object(),
            "{name}: who reads the files is where they are"
        );
        // Each file that a configuration names lies below a volume.
        let environment = array(&container["env"]);
        let config = environment.iter().find(|one| one["name"] == "PGKEEP_CONFIG").unwrap();
        let restores = config["value"] == "/etc/pgkeep/config/restore.toml";
        let identity = places.contains("/etc/pgkeep/identity");
        assert!(!restores || identity, "{name}: it reads with an identity");
        assert!(
            restores || !identity || name.ends_with("postgres.yaml"),
            "{name}: it needs no identity"
        );
    }
    for manifest in yaml("kubernetes/cronjobs.yaml") {
        let (spec, job) = (&manifest["spec"], &manifest["spec"]["jobTemplate"]["spec"]);
        let name = &manifest["metadata"]["name"];
        assert_eq!(
            (&spec["concurrencyPolicy"], &spec["timeZone"]),
            (&"Forbid".into(), &"Etc/UTC".into()),
            "{name}"
        );
        assert!(
            job["backoffLimit"].is_u64() && job["activeDeadlineSeconds"].is_u64(),
            "{name}"
        );
        assert_eq!(
            job["template"]["spec"]["restartPolicy"], "Never",
            "{name}: podFailurePolicy wants it"
        );
        assert_eq!(
            job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"],
            serde_json::json!([1, 2]),
            "{name}"
        );
    }
}

#[test]
fn manifests_fit_the_schema_of_kubernetes() {
    let Some(python) = program("python") else {
        return stand::skipped("kubernetes-validate is not here; tests/stand/install.sh homes fetches it");
    };
    let files = ["configmap", "postgres", "cronjobs", "restore"];
    let manifests: Vec<Value> = files
        .iter()
        .flat_map(|name| yaml(&format!("kubernetes/{name}.yaml")))
        .collect();
    assert!(manifests.len() >= 12, "{}", manifests.len());
    let script = "import json, sys, kubernetes_validate as k\n\
        for m in json.load(sys.stdin):\n for v in ('1.31', '1.37'):\n  k.validate(m, v, strict=True)\n";
    let mut child = Command::new(python)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &manifests).unwrap();
    let looked = child.wait_with_output().unwrap();
    assert!(looked.status.success(), "{}", said(&looked));
}

/// What `Dockerfile.dockerignore` lets through is enough for cargo, and all that is copied is there.
#[test]
fn the_image_is_built_from_what_is_sent() {
    let scratch = Scratch::new("image");
    let context = scratch.create_dir("context");
    let ignore = text("image/Dockerfile.dockerignore");
    let sent: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignore.lines().any(|line| line == "*") && sent.len() > 4, "{ignore}");
    for below in &sent {
        let to = context.join(below);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let copied = run(Command::new("cp").arg("-r").arg(project(below)).arg(&to));
        assert!(copied.status.success(), "{}", said(&copied));
    }
    let read = run(Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args([
            "--filter-platform",
            &format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
        ])
        .current_dir(&context));
    assert!(read.status.success(), "{}", said(&read));
    let read: Value = serde_json::from_slice(&read.stdout).unwrap();
    let members = read["workspace_default_members"].as_array().unwrap();
    let tools = fs::read_dir(project("bins")).unwrap().flatten();
    let tools = tools.filter(|entry| entry.path().join("Cargo.toml").is_file()).count();
    assert_eq!(members.len(), tools, "every tool is built");

    let dockerfile = text("image/Dockerfile");
    let copied = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY --chmod=755 "));
    for line in copied {
        let from = line.split(' ').next().unwrap();
        assert!(sent.contains(&from) && context.join(from).is_file(), "{line}");
    }
    // No magic, no secret: what runs is what is said.
    assert!(
        !dockerfile.contains("ENTRYPOINT") && !dockerfile.contains("\nENV "),
        "{dockerfile}"
    );
    let stages: Vec<&str> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("FROM "))
        .collect();
    assert!(stages.iter().all(|stage| !stage.contains(":latest")), "{stages:?}");
}

#[test]
fn jobs_are_found_in_a_command() {
    let job = |name: Option<&str>, calls: &[&[&str]]| Job {
        name: name.map(str::to_owned),
        calls: calls
            .iter()
            .map(|call| call.iter().map(ToString::to_string).collect())
            .collect(),
    };
    assert_eq!(
        jobs("run-pgkeep a pgkeep-x --y z && run-pgkeep b pgkeep-v 2>&1 w"),
        [
            job(Some("a"), &[&["pgkeep-x", "--y", "z"]]),
            job(Some("b"), &[&["pgkeep-v"]])
        ]
    );
    assert_eq!(
        jobs("run-pgkeep c bash -c 'pgkeep-x || exit 2; pgkeep-y'"),
        [job(Some("c"), &[&["pgkeep-x"], &["pgkeep-y"]])]
    );
    assert_eq!(jobs("pgkeep-n --digest"), [job(None, &[&["pgkeep-n", "--digest"]])]);
}
