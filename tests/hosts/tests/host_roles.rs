//! The roles: a repository host, a server and a host that tests restores, from nothing to a restore test that passed, by one
//! playbook; what a second run and a dry run change; and what Consul and Prometheus then say.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use host_tests::{Ansible, Archive, Host, Lab, keys};
use serde_json::{Value, json};
use system_tests::wait::{holds_within, wait_until};

const LONG: Duration = Duration::from_secs(300);
const SITE: &str = "ansible/playbooks/site.yml";
/// Everything that means something in a password file.
const PASSWORD: &str = r"s3cret:with\and'";

/// Files that are newer than the marker of [`mark`], where a role might write.
fn touched(host: &Host) -> String {
    host.ask(
        "find /etc /usr /srv /opt /var/lib/dpkg /var/lib/pgkeep /var/spool -xdev -newer /root/mark 2>/dev/null || true",
    )
}

fn mark(host: &Host) {
    host.run("touch /root/mark");
}

fn journal(host: &Host, unit: &str) -> String {
    host.ask(&format!("journalctl --no-pager -o cat -u '{unit}'"))
}

/// Runs a unit of pgkeep and expects it to end well.
fn starts(host: &Host, unit: &str) {
    let ran = host.shell(&format!("systemctl start '{unit}'")).run();
    assert_eq!(ran.code, Some(0), "{}", journal(host, unit));
}

/// The names of a host's timers of pgkeep.
fn timers(host: &Host) -> Vec<String> {
    let listed =
        host.ask("systemctl list-timers --all --no-legend --plain 'pgkeep*' | grep -o 'pgkeep[^ ]*[.]timer' | sort");
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn a_server_a_repository_and_a_host_that_tests_restores() {
    let Some(lab) = Lab::need("roles", &["bookworm"]) else {
        return;
    };
    let Some(ansible) = Ansible::need(&lab) else { return };
    let _archive = Archive::new(&lab);
    let nas = lab.host("repo", "bookworm");
    let db = lab.host("db1", "bookworm");
    let rescue = lab.host("restore", "bookworm");
    let fresh = lab.host("new1", "bookworm");
    for host in [&db, &fresh] {
        host.run("pg_createcluster 15 main --start");
    }
    db.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");
    db.run("runuser -u postgres -- createdb shop");

    let writer = keys::ssh(&lab, "writer");
    let reader = keys::ssh(&lab, "reader");
    let opens = keys::age(&lab, "identity.txt");
    // As the documents of the collection have it: what the first play collects.
    let known_hosts = "{{ groups['pgkeep_repository'] | map('extract', hostvars) \
                       | selectattr('pgkeep_repository_host_known_hosts', 'defined') \
                       | map(attribute='pgkeep_repository_host_known_hosts') | flatten }}";
    let config = json!({
        "cluster": { "main": {
            "data_directory": "/var/lib/postgresql/15/main",
            "extra_paths": ["/etc/postgresql/15/main"],
            "host": "127.0.0.1", "user": "pgkeep", "dbname": "postgres", "passfile": "/etc/pgkeep/pgpass",
            "dump": { "role_passwords": false },
        } },
        "repository": { "nas": {
            "url": "sftp://pgkeep@repo/backups",
            "ssh_key": "/etc/pgkeep/id_ed25519",
            "encryption": { "recipients": [opens.public] },
            "retention": { "full": 4, "incremental": "7d", "wal": "14d" },
        } },
    });
    ansible.inventory(
        &[&nas, &db, &rescue, &fresh],
        &json!({
            "pgkeep_repository": { "hosts": { "repo": {} }, "vars": {
                "pgkeep_repository_host_keys": [writer.public],
                "pgkeep_repository_host_readers": [reader.public],
                "pgkeep_repository_host_names": ["repo"],
                "pgkeep_repository_host_from": ["10.77.0.0/24"],
                "pgkeep_repository_host_sshd": { "LogLevel": "VERBOSE" },
            } },
            "pgkeep_hosts": { "hosts": { "db1": {}, "new1": {} }, "vars": {
                "pgkeep_secrets": { "id_ed25519": writer.private },
                "pgkeep_timers": ["full-backup", "base-backup", "prune", "verify", "check", "dump"],
                "pgkeep_postgresql_role": "pgkeep",
                "pgkeep_postgresql_role_password": PASSWORD,
                "pgkeep_postgresql_role_dumps": true,
                "pgkeep_postgresql_log_statement": "ddl",
                "pgkeep_postgresql_log_min_duration_statement": "250ms",
                "pgkeep_postgresql_settings": { "log_line_prefix": "%m it's " },
                "pgkeep_postgresql_revoke_connect": ["postgres", "shop"],
                "pgkeep_postgresql_revoke_create": ["postgres"],
            } },
            "pgkeep_restore": { "hosts": { "restore": {} }, "vars": {
                "pgkeep_restore_host_majors": ["15"],
                "pgkeep_restore_host_identity": opens.private,
                "pgkeep_restore_host_secrets": { "id_ed25519": reader.private },
                "pgkeep_restore_host_directory": "/srv/restore-test",
                "pgkeep_restore_host_tests": { "level": "standard", "assert": {
                    "kept": { "database": "postgres", "sql": "SELECT count(*) FROM kept", "at_least": 1000 },
                } },
                "pgkeep_restore_host_calendar": "Tue *-*-* 04:00:00 UTC",
            } },
            "everything": { "children": { "pgkeep_hosts": {}, "pgkeep_restore": {} }, "vars": {
                "pgkeep_apt_url": "http://apt.test",
                "pgkeep_known_hosts": known_hosts,
                "pgkeep_config": config,
            } },
        }),
    );

    // A dry run says what it would do, and does nothing, not even where nothing is there yet.
    for host in [&nas, &db, &rescue, &fresh] {
        mark(host);
    }
    let dry = ansible.run(SITE, &["--check", "--diff"]);
    for host in [&nas, &db, &rescue, &fresh] {
        assert_eq!(touched(host), "", "{}", host.name);
        assert!(dry[&host.name].changed > 0, "{dry:?}");
    }

    let others = ["--limit", "all:!new1"];
    let first = ansible.run(SITE, &others);
    assert!(first["db1"].changed > 5 && first["restore"].changed > 5, "{first:?}");
    ansible.run_unchanged(SITE, &others);
    ansible.run_unchanged(SITE, &["--check", "--diff", "--limit", "all:!new1"]);

    the_server(&db);
    the_repository(&nas, &db, &rescue);
    the_restore_host(&rescue);

    // Others are configured, and a run for this one alone says what it would do.
    mark(&fresh);
    let dry = ansible.run(SITE, &["--check", "--diff", "--limit", "new1"]);
    assert!(dry["new1"].changed > 0, "{dry:?}");
    assert_eq!(touched(&fresh), "");
    assert!(!fresh.holds("dpkg -s pgkeep-common"));

    // Settings that the server does not understand never stay.
    let before = db.read("/etc/postgresql/15/main/conf.d/pgkeep.conf");
    let wrong = r#"{"pgkeep_postgresql_settings": {"archive_timeuot": 1}}"#;
    let refused = ansible.plays(SITE, &["--limit", "db1", "-e", wrong]).run();
    assert_ne!(refused.code, Some(0));
    assert!(refused.stdout.contains("archive_timeuot"), "{}", refused.stdout);
    let wrong = r#"{"pgkeep_postgresql_max_wal_senders": 1000000}"#;
    let refused = ansible.plays(SITE, &["--limit", "db1", "-e", wrong]).run();
    assert!(refused.stdout.contains("outside the valid range"), "{}", refused.stdout);
    assert_eq!(db.read("/etc/postgresql/15/main/conf.d/pgkeep.conf"), before);
    // A dry run of a change shows it, and makes none; a run makes it, and a second run does not again.
    let other = "pgkeep_postgresql_archive_timeout=30";
    let dry = ansible.run(SITE, &["--check", "--limit", "db1", "-e", other]);
    assert!(dry["db1"].changed > 0, "{dry:?}");
    assert_eq!(db.sql("SHOW archive_timeout"), "1min");
    ansible.run(SITE, &["--limit", "db1", "-e", other]);
    assert_eq!(db.sql("SHOW archive_timeout"), "30s");
    let again = ansible.run(SITE, &["--limit", "db1", "-e", other]);
    assert_eq!(again["db1"].changed, 0, "{again:?}");
    // A new password is one.
    let other = r#"{"pgkeep_postgresql_archive_timeout": 30, "pgkeep_postgresql_role_password": "another one"}"#;
    let changed = ansible.run(SITE, &["--limit", "db1", "-e", other]);
    assert!(changed["db1"].changed > 0, "{changed:?}");
    db.run("pgkeep-init --check");
}

/// Archives, has a backup, and its jobs do with a role that may do little.
fn the_server(db: &Host) {
    let said = db.sql(
        "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN \
         ('archive_mode', 'archive_command', 'archive_timeout', 'wal_level', 'log_statement', 'log_line_prefix')",
    );
    let wanted = "archive_command=/usr/bin/pgkeep-archive-push --cluster main %p archive_mode=on archive_timeout=60 \
                  log_line_prefix=%m it's  log_statement=ddl wal_level=replica";
    assert_eq!(said, wanted);
    assert_eq!(db.sql("SELECT count(*) FROM pg_settings WHERE pending_restart"), "0");
    let role =
        db.sql("SELECT rolsuper, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = 'pgkeep'");
    assert_eq!(role, "f|f|f|t");
    let info: Value = serde_json::from_str(&db.ask("pgkeep-info --format json")).unwrap();
    assert!(info.to_string().contains("-full-"), "{info}");
    db.run("pgkeep-init --check; pgkeep-check-age; pgkeep-check-archive");
    starts(db, "pgkeep-dump@main.service");
    starts(db, "pgkeep-base-backup@main.service");
    assert_eq!(
        db.ask("stat -c '%U %a' /etc/pgkeep/pgpass /etc/pgkeep/id_ed25519"),
        "postgres 600\npostgres 600"
    );
    // With DDL in the log the password is in none.
    assert!(!db.holds("grep -rq 's3cret' /var/log/postgresql"));
    assert!(db.holds("grep -rq 'GRANT EXECUTE ON FUNCTION' /var/log/postgresql"));
    assert_eq!(
        db.sql("SELECT has_database_privilege('pgkeep', 'shop', 'CONNECT')"),
        "t"
    );
    db.sql("CREATE ROLE somebody LOGIN");
    let rights = db.sql(
        "SELECT has_database_privilege('somebody', 'shop', 'CONNECT'), has_schema_privilege('somebody', 'public', 'CREATE')",
    );
    assert_eq!(rights, "f|f");
    let expected = ["base-backup", "check", "dump", "full-backup", "prune", "verify"];
    let mut expected: Vec<String> = expected.iter().map(|job| format!("pgkeep-{job}@main.timer")).collect();
    expected.push("pgkeep-digest.timer".to_owned());
    expected.sort();
    assert_eq!(timers(db), expected);
}

/// Lets in with a key, to nothing but files; and to read where that is said.
fn the_repository(nas: &Host, db: &Host, rescue: &Host) {
    assert_eq!(
        nas.ask("stat -c '%U %a' /srv/pgkeep /srv/pgkeep/backups"),
        "root 755\npgkeep 700"
    );
    let ssh = "runuser -u postgres -- ssh -i /etc/pgkeep/id_ed25519 -o BatchMode=yes pgkeep@repo true";
    let sftp = |commands: &str| {
        format!(
            "printf '{commands}\\n' | runuser -u postgres -- sftp -i /etc/pgkeep/id_ed25519 -o BatchMode=yes -b - pgkeep@repo"
        )
    };
    for host in [db, rescue] {
        assert!(!host.holds(ssh), "a shell on {} from {}", nas.name, host.name);
        host.run(&sftp("ls /backups/main"));
    }
    db.run(&sftp("mkdir /backups/probe\\nrmdir /backups/probe"));
    assert!(!rescue.holds(&sftp("mkdir /backups/probe")));
    assert!(!rescue.holds(&sftp("rm /backups/main/repository.json")));
}

/// Tests restores, and does nothing else.
fn the_restore_host(rescue: &Host) {
    assert_eq!(
        timers(rescue),
        ["pgkeep-digest.timer", "pgkeep-restore-test@main.timer"]
    );
    assert_eq!(rescue.ask("pg_lsclusters -h"), "");
    let next = rescue.ask("systemctl show --value -p TimersCalendar pgkeep-restore-test@main.timer");
    assert!(
        next.contains("Tue *-*-* 04:00:00 UTC") && !next.contains("Mon"),
        "{next}"
    );
    starts(rescue, "pgkeep-restore-test@main.service");
    let status: Value = serde_json::from_str(&rescue.read("/var/lib/pgkeep/main/status/restore-test.json")).unwrap();
    assert_eq!(status["result"], "ok", "{status}");
    // It may not write evidence into the repository: monitoring, who reads neither, is told by the status here.
    rescue.run("runuser -u nobody -- pgkeep-check-age --cluster main --what restore-test");
    assert_eq!(rescue.ask("find /srv/restore-test -type f"), "");
}

#[test]
fn consul_and_prometheus_are_told() {
    let Some(lab) = Lab::need("roles_monitoring", &["trixie"]) else {
        return;
    };
    let Some(ansible) = Ansible::need(&lab) else { return };
    let _archive = Archive::new(&lab);
    let db = lab.host("db1", "trixie");
    db.run("pg_createcluster 17 main --start");
    db.write(
        "/etc/consul.d/10-alone.json",
        "{\"server\": true, \"bootstrap_expect\": 1, \"bind_addr\": \"127.0.0.1\"}\n",
    );
    db.run("systemctl start consul prometheus prometheus-node-exporter");
    let hosts = json!({ "db1": {} });
    ansible.inventory(
        &[&db],
        &json!({
            "pgkeep_consul": { "hosts": hosts },
            "pgkeep_hosts": { "hosts": hosts, "vars": {
                "pgkeep_apt_url": "http://apt.test",
                "pgkeep_config": {
                    "cluster": { "main": { "data_directory": "/var/lib/postgresql/17/main", "host": "/var/run/postgresql" } },
                    "repository": { "local": { "url": "file:///var/backups/pgkeep" } },
                },
                "pgkeep_postgresql_summarize_wal": true,
                "pgkeep_consul_checks": ["pgkeep-age", "pgkeep-archive"],
                "pgkeep_consul_intervals": { "pgkeep-age": "2s", "pgkeep-archive": "2s" },
                "pgkeep_prometheus_textfile_directory": "/var/lib/prometheus/node-exporter",
                "pgkeep_prometheus_exporter_service": "prometheus-node-exporter",
                "pgkeep_prometheus_exporter_command": "/usr/bin/prometheus-node-exporter $ARGS",
            } },
            "pgkeep_prometheus": { "hosts": hosts, "vars": {
                "pgkeep_prometheus_scrape": true,
                "pgkeep_prometheus_interval": "2s",
            } },
        }),
    );
    let whose = "stat -c '%U %G %a' /etc/prometheus/prometheus.yml";
    db.run("chgrp prometheus /etc/prometheus/prometheus.yml; chmod 0640 /etc/prometheus/prometheus.yml");
    let config = db.read("/etc/prometheus/prometheus.yml");
    ansible.run(SITE, &[]);
    let again = ansible.run(SITE, &[]);
    assert_eq!(again["db1"].changed, 0, "{again:?}");
    assert_eq!(db.sql("SHOW summarize_wal"), "on");

    starts(&db, "pgkeep-check@main.service");
    let mut told = String::new();
    let passing = holds_within(LONG, || {
        told = db.shell("curl -sf http://127.0.0.1:8500/v1/agent/checks").run().stdout;
        let checks: Value = serde_json::from_str(&told).unwrap_or_default();
        ["pgkeep-age", "pgkeep-archive"]
            .iter()
            .all(|check| checks[check]["Status"] == "passing")
    });
    assert!(passing, "Consul says {told}");
    wait_until("Prometheus has the rules and a backup's metrics", LONG, || {
        let rules = db.shell("curl -sf http://127.0.0.1:9090/api/v1/rules").run().stdout;
        let metric = "http://127.0.0.1:9090/api/v1/query?query=pgkeep_base_backup_success%7Bjob%3D%22pgkeep%22%7D";
        let metrics = db.shell(&format!("curl -sf '{metric}'")).run().stdout;
        rules.contains("PgkeepBackupTooOld") && metrics.contains("\"main\"")
    });
    // What was there stays, as structure, and whose it was.
    assert_eq!(db.ask(whose), "root prometheus 640");
    assert!(config.contains("job_name: 'prometheus'"));
    let now = db.read("/etc/prometheus/prometheus.yml");
    assert!(
        now.contains("job_name: prometheus") && now.contains("localhost:9093"),
        "{now}"
    );

    // What Consul or Prometheus do not understand never stays.
    let before = db.read("/etc/consul.d/pgkeep.json");
    let wrong = r#"{"pgkeep_consul_intervals": {"pgkeep-age": "soon"}}"#;
    let refused = ansible.plays(SITE, &["-e", wrong]).run();
    assert_ne!(refused.code, Some(0), "{}", refused.stdout);
    assert_eq!(db.read("/etc/consul.d/pgkeep.json"), before);
    let refused = ansible.plays(SITE, &["-e", "pgkeep_prometheus_interval=soon"]).run();
    assert_ne!(refused.code, Some(0), "{}", refused.stdout);
    assert_eq!(db.read("/etc/prometheus/prometheus.yml"), now);
    assert_eq!(db.ask(whose), "root prometheus 640");
}
