//! The examples for other homes, run: the command lines of crontabs and CronJobs against a real server, with the configurations
//! and settings that stand beside them. Only paths and addresses are another's.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod homes_stand;

use std::fs;
use std::path::Path;
use std::time::Duration;

use homes_stand::{cron_jobs, crontab, example, jobs, text, with_second_repository, yaml};
use serde_json::Value;
use system_tests::site::RepoOptions;
use system_tests::tool::{self, PATH};
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Cluster, Options, Ran, S3, Scratch, Server, Site, Tool};

/// A host or a container: what is installed there, and the environment of what runs.
struct Place<'a> {
    scratch: &'a Scratch,
    shell: &'static str,
    environment: Vec<(String, String)>,
}

impl<'a> Place<'a> {
    /// `bin` has run-pgkeep, and a logger that writes into a file.
    fn new(scratch: &'a Scratch, shell: &'static str) -> Place<'a> {
        scratch.create_dir("bin");
        scratch.write("bin/run-pgkeep", text("cron/run-pgkeep.sh"), 0o755);
        let log = scratch.write("log", "", 0o600);
        let logger = format!("#!/bin/sh\nsed \"s/^/$2: /\" >>'{}'\n", log.display());
        scratch.write("bin/logger", logger, 0o755);
        Place {
            scratch,
            shell,
            environment: Vec::new(),
        }
    }

    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.into(), value.into()));
    }

    fn path(&self) -> String {
        let bin = self.scratch.path("bin");
        format!("{}:{}:{PATH}", bin.display(), tool::programs().display())
    }

    /// Runs a command as cron does.
    fn run(&self, command: &str) -> Ran {
        let tool = Tool::program(self.shell).args(["-c", command]);
        let environment = self.environment.iter();
        let tool = environment.fold(tool, |tool, (name, value)| tool.env(name, value));
        tool.env("PATH", self.path()).timeout(Duration::from_secs(300)).run()
    }

    /// What archive_command calls: the tool, with the environment of this place. The harness starts servers with none.
    fn serves_archive_command(&self) {
        let mut script = "#!/bin/sh\n".to_owned();
        for (name, value) in &self.environment {
            script += &format!("export {name}='{value}'\n");
        }
        let program = tool::programs().join("pgkeep-archive-push");
        script += &format!("exec '{}' \"$@\"\n", program.display());
        self.scratch.write("bin/pgkeep-archive-push", script, 0o755);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.scratch.path("log")).unwrap()
    }
}

/// Shown if the test fails.
fn step(title: &str) {
    println!("{title}");
}

fn cluster(scratch: &Scratch, server: &Server) -> Cluster {
    let cluster = Cluster::started(scratch, server, Options::default());
    cluster.sql("CREATE TABLE orders AS SELECT i, repeat('x', 100) AS what FROM generate_series(1, 5000) i");
    cluster
}

/// What is set on the first start, and the restart that follows it.
fn archives(cluster: &Cluster, sql: &str) {
    let statements: Vec<&str> = sql.split(';').map(str::trim).filter(|text| !text.is_empty()).collect();
    assert_eq!(statements.len(), 3, "{sql}");
    for statement in statements {
        cluster.sql(statement);
    }
    cluster.restart();
    assert_eq!(cluster.query_one("SHOW archive_mode"), "on");
}

/// Waits for a backup of each type, a dump and a restore test that passed.
fn has_all(info: &Ran, repository: &str) {
    let info = info.json();
    let repositories = info["repositories"].as_array().unwrap();
    let found = repositories.iter().find(|one| one["name"] == repository).unwrap();
    let types: Vec<&str> = found["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backup| backup["type"].as_str().unwrap())
        .collect();
    assert!(types.contains(&"full") && types.contains(&"incr"), "{found}");
    assert!(!found["dumps"].as_array().unwrap().is_empty(), "{found}");
}

#[test]
fn a_host_with_cron_has_backups_and_tells_of_them() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("cron");
    let cluster = cluster(&scratch, &server);
    let site = Site::with_repository(&scratch, &cluster).repository(RepoOptions::new("nas").line("required = false"));
    let mails = scratch.write("mails", "", 0o600);
    let sendmail = format!("#!/bin/sh\ncat >>'{}'\n", mails.display());
    let sendmail = scratch.write("sendmail", sendmail, 0o755);
    let notify = format!(
        "\n[notify.local]\nkind = \"sendmail\"\nprogram = \"{}\"\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]\n\
         on = [\"failure\", \"recovery\", \"digest\"]\n",
        sendmail.display()
    );
    let config = fs::read_to_string(&site.config).unwrap() + &notify;
    system_tests::account::write(&site.config, config, 0o600);
    site.tool("init").run().expect_code(0);
    site.archive(&cluster);

    let state = site.state();
    let here = with_second_repository(&text("cron/pgkeep")).replace("/var/lib/pgkeep", &state.to_string_lossy());
    let (lines, variables) = crontab(&here, true);
    let mut place = Place::new(&scratch, "/bin/bash");
    for (name, value) in variables {
        if name == "SHELL" {
            assert_eq!(value, "/bin/bash");
        }
        place.set(&name, value);
    }
    place.set("PGKEEP_CONFIG", site.config.to_string_lossy());
    place.set("JOB_PAUSE", "1");

    step("every line runs and mails nothing");
    for line in &lines {
        let ran = place.run(&line.command);
        // The minute in which no repository missed anything.
        let idle = line.schedule == "* * * * *";
        let ran = ran.expect_code(if idle { 2 } else { 0 });
        // The digest says to whom it went.
        let digest = line.command.contains("--digest");
        assert!(
            ran.stdout.is_empty() && (digest || ran.stderr.is_empty()),
            "{}",
            ran.report()
        );
    }
    let info = site.tool("info").args(["--format", "json"]).run().expect_code(0);
    for name in ["local", "nas"] {
        has_all(&info, name);
    }
    for tool in [
        "base-backup",
        "prune",
        "restore-test",
        "verify",
        "dump",
        "check-archive",
        "sync",
    ] {
        assert_eq!(site.status(tool)["result"], "ok", "{tool}: {}", site.status(tool));
    }
    wait_until("the digest is mailed", PATIENCE, || {
        fs::read_to_string(&mails).unwrap().contains("base-backup")
    });
    wait_until("what is said is in the log", PATIENCE, || {
        place.log().contains("pgkeep-verify: ")
    });

    assert!(!place.log().contains("error:"), "{}", place.log());

    step("what a repository missed is brought level within the minute");
    let nas = &site.repos[1].dir;
    let away = nas.with_extension("away");
    fs::rename(nas, &away).unwrap();
    let segment = cluster.switch_wal();
    cluster.wait_archived(&segment);
    fs::rename(&away, nas).unwrap();
    let minute = lines.iter().find(|line| line.schedule == "* * * * *").unwrap();
    place.run(&minute.command).expect_code(0);
    let name = format!("{segment}.zst");
    let found = Tool::program("find")
        .arg(nas)
        .args(["-name", &name])
        .run()
        .expect_code(0);
    assert!(!found.stdout.is_empty(), "{name}");

    step("a failure is told, and its end");
    let data = &site.repos[0].dir;
    let away = data.with_extension("away");
    fs::rename(data, &away).unwrap();
    let backup = lines.iter().find(|line| line.schedule == "0 2 * * 1-6").unwrap();
    place.set("JOB_TRIES", "2");
    let ran = place.run(&backup.command);
    assert!(matches!(ran.code, Some(1 | 75)), "{}", ran.report());
    let mailed = || fs::read_to_string(&mails).unwrap();
    wait_until("the failure is mailed", PATIENCE, || {
        mailed().contains("base-backup of main failed")
    });
    fs::rename(&away, data).unwrap();
    place.run(&backup.command).expect_code(0);
    wait_until("the recovery is mailed", PATIENCE, || {
        mailed().contains("base-backup of main works again")
    });
}

#[test]
fn a_composed_scheduler_has_backups() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("compose");
    let cluster = cluster(&scratch, &server);
    for part in ["secrets", "state", "spool", "repository", "scratch"] {
        scratch.create_dir(part);
    }
    scratch.write("secrets/slack_url", "http://127.0.0.1:9/hook\n", 0o400);
    let mut place = Place::new(&scratch, "/bin/sh");
    let keyed = place.run(&format!(
        "pgkeep-init --generate-key {}",
        scratch.path("secrets/pgkeep_identity").display()
    ));
    let keyed = keyed.expect_code(0);
    let recipient = keyed.stdout.split_whitespace().find(|word| word.starts_with("age1"));
    let recipient = recipient.unwrap_or_else(|| panic!("{}", keyed.report()));

    let config = text("compose/pgkeep.toml")
        .replace("/var/lib/postgresql/data", &cluster.data().to_string_lossy())
        .replace(
            "/var/run/postgresql\"",
            &format!("{}\"\nport = {}", cluster.socket_dir().display(), cluster.port()),
        );
    let config = ["/run/secrets", "/var/backups/pgkeep", "/srv/restore-test"]
        .into_iter()
        .zip(["secrets", "repository", "scratch"])
        .fold(config, |config, (there, here)| {
            config.replace(there, &scratch.path(here).to_string_lossy())
        });
    // Of their defaults the image has made volumes.
    let config = format!(
        "state_directory = \"{}\"\nspool_directory = \"{}\"\n{config}",
        scratch.path("state").display(),
        scratch.path("spool").display()
    );
    let config = scratch.write("pgkeep.toml", config, 0o644);
    place.set("PGKEEP_CONFIG", config.to_string_lossy());
    let compose = &yaml("compose/docker-compose.yml")[0];
    for (name, value) in compose["services"]["scheduler"]["environment"].as_object().unwrap() {
        let value = value.as_str().unwrap();
        place.set(name, if value.starts_with("${") { recipient } else { value });
    }

    step("archive.sql, init and its check");
    place.serves_archive_command();
    archives(&cluster, &without_comments(&text("compose/archive.sql")));
    place.run("pgkeep-init").expect_code(0);
    cluster.wait_archived(&cluster.switch_wal());
    place.run("pgkeep-init --check").expect_code(0);

    step("the schedule");
    let (lines, variables) = crontab(&text("compose/crontab"), false);
    assert!(variables.is_empty() && lines.len() == 8, "{lines:?}");
    for line in &lines {
        let ran = place.run(&line.command).expect_code(0);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.report());
    }
    let info = place.run("pgkeep-info --format json").expect_code(0);
    has_all(&info, "local");
    assert!(!info.stdout.contains("\"encrypted\":false"), "{}", info.stdout);

    step("a restore in place");
    cluster.sql("DELETE FROM orders WHERE i > 10");
    let segment = cluster.switch_wal();
    cluster.wait_archived(&segment);
    cluster.stop(system_tests::Stop::Fast);
    let restore = format!("pgkeep-restore --to {} --delta", cluster.data().display());
    place.run(&format!("{restore} --dry-run")).expect_code(0);
    place.run(&restore).expect_code(0);
    fetches(&place, cluster.data(), &segment).expect_code(0);
}

fn without_comments(sql: &str) -> String {
    sql.lines()
        .filter(|line| !line.starts_with("--"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Runs the restore_command that a restore has written, as the server does: in the data directory, for one segment.
fn fetches(place: &Place<'_>, data: &Path, segment: &str) -> Ran {
    let settings = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    let command = settings
        .lines()
        .find_map(|line| line.strip_prefix("restore_command = '"));
    let command = command
        .and_then(|rest| rest.strip_suffix('\''))
        .unwrap()
        .replace("''", "'");
    let command = command.replace("%f", segment).replace("%p", "pg_wal/RECOVERYXLOG");
    place.run(&format!("cd '{}' && {command}", data.display()))
}

/// The variables of a container, as far as they are the example's and not a cluster's.
fn config_of(pod: &Value) -> &str {
    let environment = pod["containers"][0]["env"].as_array().unwrap();
    let config = environment.iter().find(|one| one["name"] == "PGKEEP_CONFIG").unwrap();
    Path::new(config["value"].as_str().unwrap())
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
}

#[test]
fn pods_have_backups_and_only_those_that_read_have_the_identity() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("pods");
    let cluster = cluster(&scratch, &server);
    let s3 = S3::start(&scratch.path("s3"), "company-backups");
    for part in ["config", "s3-key", "notify", "identity", "restore-test"] {
        scratch.create_dir(part);
    }
    S3::credentials(&scratch.path("s3-key/credentials"));
    scratch.write("notify/slack.url", "http://127.0.0.1:9/hook\n", 0o400);
    let mut place = Place::new(&scratch, "/bin/bash");
    let keyed = place.run(&format!(
        "pgkeep-init --generate-key {}",
        scratch.path("identity/identity.txt").display()
    ));
    let keyed = keyed.expect_code(0);
    let recipient = keyed.stdout.split_whitespace().find(|word| word.starts_with("age1"));

    let config_maps = yaml("kubernetes/configmap.yaml");
    for (name, value) in config_maps[0]["data"].as_object().unwrap() {
        place.set(name, value.as_str().unwrap());
    }
    place.set("PGKEEP_RECIPIENT", recipient.unwrap());
    place.set("PGKEEP_ENDPOINT", s3.endpoint());
    place.set("PGKEEP_REGION", "us-east-1");
    place.set("PGKEEP_DB_HOST", cluster.socket_dir().to_string_lossy());
    place.set("PGPORT", cluster.port().to_string());
    // A pod has its own volumes: one beside the database those of the database, any other an empty one.
    let pod = |state: &str, name: &str| {
        let data = &config_maps[1]["data"];
        let config = data[name].as_str().unwrap();
        let config = [
            ("/var/lib/postgresql/data/pgdata", cluster.data().to_path_buf()),
            ("/var/lib/pgkeep", scratch.create_dir(state)),
            ("/etc/pgkeep/s3", scratch.path("s3-key")),
            ("/etc/pgkeep/notify", scratch.path("notify")),
            ("/etc/pgkeep/identity", scratch.path("identity")),
            ("/srv/restore-test", scratch.path("restore-test")),
        ]
        .into_iter()
        .fold(config.to_owned(), |config, (there, here)| {
            config.replace(there, &here.to_string_lossy())
        });
        let config = scratch.write(&format!("config/{state}-{name}"), config, 0o644);
        config.to_string_lossy().into_owned()
    };

    step("the database's pod: archive.sql, init and its check");
    place.set("PGKEEP_CONFIG", pod("state", "pgkeep.toml"));
    place.serves_archive_command();
    archives(&cluster, config_maps[1]["data"]["archive.sql"].as_str().unwrap());
    place.run("pgkeep-init").expect_code(0);
    cluster.wait_archived(&cluster.switch_wal());
    place.run("pgkeep-init --check").expect_code(0);

    step("the jobs, each in a pod of its own");
    let data = cluster.data().to_path_buf();
    for (name, line, manifest) in cron_jobs() {
        let beside = manifest["affinity"]["podAffinity"].is_object();
        let state = if beside {
            "state".to_owned()
        } else {
            format!("of-{name}")
        };
        place.set("PGKEEP_CONFIG", pod(&state, config_of(&manifest)));
        // Jobs that are anywhere have neither the files nor, where they read, the server.
        let hidden = data.with_extension("elsewhere");
        let reads = config_of(&manifest) == "restore.toml" || name.ends_with("prune");
        if reads {
            cluster.stop(system_tests::Stop::Fast);
            fs::rename(&data, &hidden).unwrap();
        }
        let ran = place.run(&line.command);
        if reads {
            fs::rename(&hidden, &data).unwrap();
            cluster.start();
        }
        ran.expect_code(0);
        assert_eq!(jobs(&line.command).len(), 1, "{name}");
    }
    place.set("PGKEEP_CONFIG", pod("state", "pgkeep.toml"));
    let info = place.run("pgkeep-info --format json").expect_code(0);
    has_all(&info, "bucket");

    step("a restore in place, and a recovery with the identity");
    cluster.sql("CREATE TABLE later AS SELECT 1 AS one");
    let segment = cluster.switch_wal();
    cluster.wait_archived(&segment);
    cluster.stop(system_tests::Stop::Fast);
    fs::remove_dir_all(&data).unwrap();
    place.set("PGKEEP_CONFIG", pod("state", "restore.toml"));
    let restore = &yaml("kubernetes/restore.yaml")[0]["spec"]["template"]["spec"];
    assert_eq!(config_of(restore), "restore.toml");
    let container = &restore["containers"][0];
    let words = [
        homes_stand::words(&container["command"]),
        homes_stand::words(&container["args"]),
    ]
    .concat();
    let command = words
        .join(" ")
        .replace("/var/lib/postgresql/data/pgdata", &data.to_string_lossy());
    let plan = place.run(&command).expect_code(0);
    plan.expect_said("this host has archived for the cluster before");
    fetches(&place, &data, &segment).expect_code(0);
    // Without the secret of the recovery.
    fs::remove_file(scratch.path("identity/identity.txt")).unwrap();
    fs::remove_dir_all(scratch.path("state/spool")).unwrap();
    fetches(&place, &data, &segment).expect_code(200);
}

/// A program that says how it was called and ends with the next of some codes.
fn stub(scratch: &Scratch, codes: &[i32]) {
    let called = scratch.path("called").display().to_string();
    scratch.write("called", "", 0o600);
    let codes: Vec<String> = codes.iter().map(ToString::to_string).collect();
    let job = format!(
        "#!/bin/bash\necho \"job $*\" >>'{called}'\ncodes=({})\ntimes=$(grep -c ^job '{called}')\nexit \"${{codes[times - 1]}}\"\n",
        codes.join(" ")
    );
    scratch.write("bin/job", job, 0o755);
    let notify = format!(
        "#!/bin/sh\necho \"notify $* $MONITOR_SERVICE_RESULT $MONITOR_EXIT_CODE $MONITOR_EXIT_STATUS\" >>'{called}'\n"
    );
    scratch.write("bin/pgkeep-notify", notify, 0o755);
}

#[test]
fn a_job_is_repeated_as_long_as_that_may_help_and_told_once() {
    let scratch = Scratch::new("run_pgkeep");
    let mut place = Place::new(&scratch, "/bin/sh");
    place.set("JOB_PAUSE", "0");
    place.set("PGKEEP_CLUSTER", "main");
    let told = |job: &str, how: &str| format!("notify --quiet --unit pgkeep-{job}@main.service {how}");
    for (job, codes, runs, code, how) in [
        ("verify", &[0][..], 1, 0, "success exited 0"),
        ("verify", &[75, 137, 0], 3, 0, "success exited 0"),
        ("verify", &[75, 1, 0], 2, 1, "exit-code exited 1"),
        ("verify", &[2, 0], 1, 2, "exit-code exited 2"),
        ("verify", &[143, 0], 1, 143, "signal killed 15"),
        ("verify", &[75; 9], 6, 75, "exit-code exited 75"),
        ("check", &[1, 0], 1, 0, "success exited 0"),
        ("check", &[2, 0], 1, 2, "exit-code exited 2"),
    ] {
        stub(&scratch, codes);
        place.run(&format!("run-pgkeep {job} job a 'b c'")).expect_code(code);
        let called = fs::read_to_string(scratch.path("called")).unwrap();
        let mut wanted = "job a b c\n".repeat(runs);
        wanted += &told(job, how);
        assert_eq!(called.trim_end(), wanted, "{job} {codes:?}");
    }
    stub(&scratch, &[75]);
    place.run("run-pgkeep sync job").expect_code(0).expect_quiet();
    assert_eq!(
        fs::read_to_string(scratch.path("called")).unwrap(),
        "job \n",
        "the next minute tries again"
    );
    place.run("run-pgkeep verify").expect_code(2).expect_said("usage");
    place
        .run("env -u PGKEEP_CLUSTER run-pgkeep verify job")
        .expect_code(2)
        .expect_said("usage");
    assert!(example("cron/run-pgkeep.sh").is_file());
}

#[test]
fn who_stops_the_script_stops_the_job() {
    let scratch = Scratch::new("run_pgkeep_stop");
    let mut place = Place::new(&scratch, "/bin/bash");
    place.set("PGKEEP_CLUSTER", "main");
    stub(&scratch, &[0]);
    let called = scratch.path("called");
    let job = format!(
        "#!/bin/bash\ntrap 'echo ended >>{0}; exit 143' TERM\necho began >>{0}\nwhile :; do sleep 0.1; done\n",
        called.display()
    );
    scratch.write("bin/job", job, 0o755);
    let stopped = place.run(&format!(
        "run-pgkeep verify job & script=$!; until grep -q began {}; do sleep 0.1; done; kill $script; wait $script",
        called.display()
    ));
    stopped.expect_code(143);
    let told = fs::read_to_string(&called).unwrap();
    assert_eq!(
        told,
        "began\nended\nnotify --quiet --unit pgkeep-verify@main.service signal killed 15\n"
    );
}
