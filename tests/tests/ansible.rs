//! The Ansible collection: what its roles say of themselves is so, its linter finds nothing, and its SQL gives a role what it needs
//! and no more, on every version of PostgreSQL.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use system_tests::ansible::{collection, need, set_up};
use system_tests::stand::{self, debian_program};
use system_tests::{Cluster, Options, RepoOptions, Scratch, Server, Site, Tool, account, each_major};

/// The names of what lies in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// One of Ansible's programs, to be run in the collection.
fn program(programs: &Path, scratch: &Scratch, name: &str) -> Tool {
    let tool = Tool::program(programs.join(name))
        .as_root()
        .cwd(&collection())
        .timeout(Duration::from_secs(300));
    set_up(tool, programs, scratch.dir())
}

/// Reads files of YAML, with what reads them for Ansible.
fn read_yaml(programs: &Path, scratch: &Scratch, files: &[PathBuf]) -> Vec<Value> {
    let script = "import json, sys, yaml; print(json.dumps([yaml.safe_load(open(name)) for name in sys.argv[1:]]))";
    let ran = program(programs, scratch, "python")
        .args(["-c", script])
        .args(files)
        .run()
        .expect_code(0);
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn every_variable_of_a_role_is_described_with_its_default() {
    let Some(programs) = need() else { return };
    let scratch = Scratch::new("ansible_variables");
    let readme = fs::read_to_string(collection().join("README.md")).unwrap();
    let roles = names(&collection().join("roles"));
    assert!(roles.len() >= 7, "{roles:?}");
    for role in roles {
        let directory = collection().join("roles").join(&role);
        let files = ["defaults/main.yml", "meta/argument_specs.yml"].map(|file| directory.join(file));
        let [defaults, specs] = &read_yaml(&programs, &scratch, &files)[..] else {
            panic!("two files were read")
        };
        let defaults = defaults.as_object().unwrap();
        for (entry, spec) in specs["argument_specs"].as_object().unwrap() {
            let options = spec["options"].as_object().unwrap();
            let described: BTreeSet<&String> = options.keys().collect();
            assert_eq!(described, defaults.keys().collect(), "{role}, {entry}");
            for (name, option) in options {
                assert!(name == &role || name.starts_with(&format!("{role}_")), "{name}");
                assert_eq!(option["default"], defaults[name], "{name}");
                let sentence = option["description"].as_str().unwrap_or_default();
                assert!(sentence.ends_with('.'), "{name} is not described");
                let secret = name.contains("password") || name.contains("secrets") || name.ends_with("identity");
                assert_eq!(option["no_log"] == true, secret, "{name}");
            }
        }
        for name in defaults.keys() {
            assert!(
                readme.contains(&format!("| `{name}` |")),
                "README.md does not have {name}"
            );
        }
        assert!(
            readme.contains(&format!("\n## {role}\n")),
            "README.md does not have {role}"
        );
    }
    // And none that is not there any more.
    for line in readme.lines().filter(|line| line.starts_with("| `pgkeep_")) {
        let name = line.split('`').nth(1).unwrap();
        let role = names(&collection().join("roles"))
            .into_iter()
            .filter(|role| name.starts_with(&format!("{role}_")))
            .max_by_key(String::len)
            .unwrap();
        let defaults = fs::read_to_string(collection().join(format!("roles/{role}/defaults/main.yml"))).unwrap();
        assert!(
            defaults.contains(&format!("\n{name}:")),
            "{name} is no variable of {role}"
        );
    }
}

#[test]
fn every_playbook_can_be_read() {
    let Some(programs) = need() else { return };
    let scratch = Scratch::new("ansible_syntax");
    let playbooks = names(&collection().join("playbooks"));
    assert!(playbooks.contains(&"site.yml".to_owned()), "{playbooks:?}");
    for playbook in playbooks.iter().filter(|name| name.ends_with(".yml")) {
        program(&programs, &scratch, "ansible-playbook")
            .args(["--syntax-check", "-i", "localhost,"])
            .arg(format!("playbooks/{playbook}"))
            .run()
            .expect_code(0);
    }
}

#[test]
fn the_linter_finds_nothing() {
    let Some(programs) = need() else { return };
    if !programs.join("ansible-lint").is_file() {
        stand::skipped("ansible-lint is not installed; tests/stand/install.sh hosts fetches it");
        return;
    }
    let scratch = Scratch::new("ansible_lint");
    program(&programs, &scratch, "ansible-lint")
        .args(["--offline", "--profile", "production", "--nocolor"])
        .run()
        .expect_code(0);
}

#[test]
fn the_collection_can_be_built_with_the_rules() {
    let Some(programs) = need() else { return };
    let scratch = Scratch::new("ansible_build");
    program(&programs, &scratch, "ansible-galaxy")
        .args(["collection", "build", "--output-path"])
        .arg(scratch.path("built"))
        .run()
        .expect_code(0);
    let [built] = &names(&scratch.path("built"))[..] else {
        panic!("one archive was expected")
    };
    let rules = Tool::program("tar")
        .args(["-xzOf"])
        .arg(scratch.path("built").join(built))
        .arg("roles/pgkeep_prometheus/files/pgkeep.rules.yml")
        .as_root()
        .run()
        .expect_code(0);
    let source = collection().join("../packaging/prometheus/pgkeep.rules.yml");
    assert_eq!(rules.stdout, fs::read_to_string(source).unwrap());
}

#[test]
fn a_verifier_of_a_password_is_postgresqls() {
    let Some(programs) = need() else { return };
    let scratch = Scratch::new("ansible_verifier");
    // That of the password "pencil" with the salt of RFC 7677.
    let known = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                 wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let script = "import sys; sys.path.insert(0, 'plugins/filter'); import scram_verifier\n\
                  print(scram_verifier.scram_verifier(sys.argv[1], sys.argv[2]))";
    let make = |password: &str, now: &str| {
        let tool = program(&programs, &scratch, "python").args(["-c", script, password, now]);
        tool.run().expect_code(0).stdout.trim().to_owned()
    };
    assert_eq!(make("pencil", known), known);
    for now in ["", "md5e3c7cd8d8c2c4f5a1e1bb2ab6a4d9f3c", "SCRAM-SHA-256$no$thing"] {
        let made = make("pencil", now);
        assert!(made.starts_with("SCRAM-SHA-256$4096:"), "{made}");
        assert_eq!(make("pencil", &made), made);
        assert_ne!(make("pen", &made), made);
    }
}

/// What a file of the role has to say to this server.
fn lacking(cluster: &Cluster, file: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let path = collection().join("roles/pgkeep_postgresql/files").join(file);
    let mut psql = Tool::program(debian_program("psql"))
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", "-"])
        .arg("-h")
        .arg(cluster.socket_dir())
        .arg("-p")
        .arg(cluster.port().to_string());
    for (name, value) in variables {
        psql = psql.arg("-v").arg(format!("{name}={value}"));
    }
    let ran = psql.stdin(fs::read(path).unwrap()).run().expect_code(0);
    ran.stdout.lines().map(str::to_owned).collect()
}

/// Runs the statements that a file of the role has to say, until it has none.
fn settle(cluster: &Cluster, file: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let statements = lacking(cluster, file, variables);
    for statement in &statements {
        cluster.sql(statement);
    }
    assert_eq!(lacking(cluster, file, variables), Vec::<String>::new());
    statements
}

each_major!(a_role_gets_what_backups_need_and_no_more);
fn a_role_gets_what_backups_need_and_no_more(server: &Server) {
    let scratch = Scratch::new("ansible_role");
    let options = Options {
        conf: vec!["archive_timeout = 60".to_owned()],
        ..Options::default()
    };
    let cluster = Cluster::started(&scratch, server, options);
    cluster.sql("CREATE DATABASE shop");
    let site = Site::new(&scratch, &cluster).repository(RepoOptions::new("local"));
    site.tool("init").run().expect_code(0);
    site.archive(&cluster);

    let dumps = server.major >= 14;
    let functions = if server.major < 15 {
        r#"["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)", "pg_create_restore_point(text)", "pg_switch_wal()"]"#
    } else {
        r#"["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)", "pg_create_restore_point(text)", "pg_switch_wal()"]"#
    };
    let vars = fs::read_to_string(collection().join("roles/pgkeep_postgresql/vars/main.yml")).unwrap();
    for function in functions.split('"').filter(|word| word.starts_with("pg_")) {
        assert!(vars.contains(&format!("'{function}'")), "{function} is not in {vars}");
    }
    let groups = if dumps {
        r#"["pg_monitor", "pg_read_all_data"]"#
    } else {
        r#"["pg_monitor"]"#
    };
    let wanted = [
        ("role", "back\"up"),
        ("dumps", if dumps { "true" } else { "false" }),
        ("groups", groups),
        ("functions", functions),
    ];
    let everybody = [("connect", r#"["postgres", "shop"]"#), ("create", r#"["postgres"]"#)];
    let given = settle(&cluster, "rights.sql", &wanted);
    assert!(given.len() > 6, "{given:?}");
    let taken = settle(&cluster, "public.sql", &everybody);
    // From 15 on not everybody may create tables there anyway.
    assert_eq!(taken.len(), if server.major < 15 { 3 } else { 2 }, "{taken:?}");

    let config = fs::read_to_string(&site.config).unwrap();
    let role = "user = 'back\"up'\ndbname = \"postgres\"";
    assert!(config.contains("user = \"postgres\""));
    account::write(&site.config, config.replace("user = \"postgres\"", role), 0o600);
    site.tool("init").arg("--check").run().expect_code(0);
    site.tool("base-backup").run().expect_code(0);
    site.tool("check-archive").run().expect_code(0);
    let attributes =
        "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication FROM pg_roles WHERE rolname = 'back\"up'";
    assert_eq!(cluster.query_one(attributes), "f");

    // What somebody takes away is given again, and only that.
    cluster.sql("REVOKE EXECUTE ON FUNCTION pg_switch_wal() FROM \"back\"\"up\"; ALTER ROLE \"back\"\"up\" NOLOGIN");
    let given = settle(&cluster, "rights.sql", &wanted);
    assert_eq!(
        given,
        [
            "ALTER ROLE \"back\"\"up\" LOGIN",
            "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO \"back\"\"up\""
        ]
    );
}

each_major!(settings_that_would_not_count_are_told: 13 15 18);
fn settings_that_would_not_count_are_told(server: &Server) {
    let scratch = Scratch::new("ansible_settings");
    let cluster = Cluster::started(&scratch, server, Options::default());
    let file = cluster.data().join("pgkeep.conf");
    let path = file.to_str().unwrap();
    let told = |settings: &str| {
        account::write(&file, settings, 0o600);
        lacking(&cluster, "faults.sql", &[("file", path)]).join("\n")
    };
    assert!(told("archive_timeout = 60\n").contains("is not read"));
    let config = cluster.data().join("postgresql.conf");
    let text = fs::read_to_string(&config).unwrap();
    account::write(&config, format!("{text}\ninclude = 'pgkeep.conf'\n"), 0o600);
    // One of these waits for a restart, which is no fault.
    assert_eq!(told("archive_timeout = 60\nmax_wal_senders = 7\n"), "");
    assert!(told("archive_timeuot = 60\n").contains("archive_timeuot: unrecognized configuration parameter"));
    assert!(told("archive_timeout = 'soon'\n").contains("archive_timeout: "));
    assert!(told("archive_timeout 60 60\n").contains("syntax error"));
    cluster.sql("ALTER SYSTEM SET archive_timeout = 10");
    assert!(told("archive_timeout = 60\n").contains("ALTER SYSTEM RESET archive_timeout"));
    assert_eq!(told("archive_timeout = 10\n"), "");
}
