//! A cluster without a data directory here, as a managed server is: created, checked and dumped, and never taken for one that is well
//! because nothing is asked of it.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

use system_tests::{Cluster, Options, Ran, Scratch, Server, Tool, account, each_major};

/// A server that is reached by SQL alone, as a role without privileges.
struct Managed {
    cluster: Cluster,
    config: PathBuf,
    text: String,
    repository: PathBuf,
    optional: PathBuf,
    scratch: Scratch,
}

impl Managed {
    fn begin(name: &str, server: &Server) -> Managed {
        let scratch = Scratch::new(name);
        let cluster = Cluster::started(&scratch, server, Options::default());
        cluster.sql("CREATE ROLE backup LOGIN");
        cluster.sql("CREATE DATABASE shop OWNER backup");
        for directory in ["state", "spool", "metrics"] {
            scratch.create_dir(directory);
        }
        let (repository, optional) = (scratch.create_dir("repository"), scratch.create_dir("optional"));
        let below = |name: &str| scratch.path(name).display().to_string();
        let programs = server.program("postgres").parent().unwrap().to_path_buf();
        let text = format!(
            "state_directory = \"{}\"\nspool_directory = \"{}\"\nmetrics_directory = \"{}\"\npatience = \"1s\"\n\n\
             [cluster.main]\nhost = \"{}\"\nport = {}\nuser = \"backup\"\n\
             dump = {{ databases = [\"shop\"], role_passwords = false, bin_directory = \"{}\" }}\n\n\
             [repository.local]\nurl = \"file://{}\"\n\n[repository.nas]\nurl = \"file://{}\"\nrequired = false\n",
            below("state"),
            below("spool"),
            below("metrics"),
            cluster.socket_dir().display(),
            cluster.port(),
            programs.display(),
            repository.display(),
            optional.display(),
        );
        let config = scratch.write("pgkeep.toml", &text, 0o600);
        Managed {
            cluster,
            config,
            text,
            repository,
            optional,
            scratch,
        }
    }

    fn tool(&self, name: &str) -> Tool {
        Tool::new(name).arg("--config").arg(&self.config)
    }

    fn init(&self) -> Ran {
        self.tool("init").run()
    }

    fn checks(&self, tool: &str, code: i32, words: &str) {
        let ran = self.tool(tool).run().expect_code(code);
        assert!(ran.stdout.starts_with(words), "expected \"{words}\"\n{}", ran.report());
    }
}

each_major!(a_repository_is_created_over_sql: 13 15 18);
fn a_repository_is_created_over_sql(server: &Server) {
    let managed = Managed::begin("init_sql", server);
    let cluster = &managed.cluster;
    cluster.sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC");
    managed
        .init()
        .expect_code(2)
        .expect_said("cluster \"main\" has no data_directory, and its server does not name the system identifier")
        .expect_said("permission denied for function pg_control_system")
        .expect_said("GRANT EXECUTE ON FUNCTION pg_control_system() TO");
    assert_eq!(fs::read_dir(&managed.repository).unwrap().count(), 0);
    cluster.sql("GRANT EXECUTE ON FUNCTION pg_control_system() TO backup");
    let system = cluster.query_one("SELECT system_identifier FROM pg_control_system()");
    let ran = managed
        .init()
        .expect_code(0)
        .expect_said("repository \"local\" created: file://")
        .expect_said(&format!("system identifier {system}, not encrypted"));
    ran.expect_said("its server");
    managed
        .init()
        .expect_code(0)
        .expect_said("repository \"local\" is there");

    println!("the same cluster with its data directory is the same one");
    let physical = format!("[cluster.main]\ndata_directory = \"{}\"\n", cluster.data().display());
    account::write(
        &managed.config,
        managed.text.replace("[cluster.main]\n", &physical),
        0o600,
    );
    managed
        .init()
        .expect_code(0)
        .expect_said("repository \"local\" is there");
    account::write(&managed.config, &managed.text, 0o600);

    println!("another server is refused");
    let other = Scratch::new("init_sql_other");
    let foreign = Cluster::started(&other, server, Options::default());
    foreign.sql("CREATE ROLE backup LOGIN");
    let (own, others) = (cluster.socket_dir(), foreign.socket_dir());
    let text = managed
        .text
        .replace(
            &format!("host = \"{}\"", own.display()),
            &format!("host = \"{}\"", others.display()),
        )
        .replace(
            &format!("port = {}", cluster.port()),
            &format!("port = {}", foreign.port()),
        );
    account::write(&managed.config, text, 0o600);
    managed
        .init()
        .expect_code(1)
        .expect_said(&format!("belongs to system identifier {system}"));
    account::write(&managed.config, &managed.text, 0o600);

    println!("a server that does not answer is waited for by whoever calls");
    cluster.stop(system_tests::Stop::Fast);
    managed
        .init()
        .expect_code(75)
        .expect_said("cluster \"main\" has no data_directory, and its server does not name the system identifier")
        .expect_said("cannot connect to server");
}

each_major!(checks_of_a_cluster_that_is_only_dumped: 15);
fn checks_of_a_cluster_that_is_only_dumped(server: &Server) {
    let managed = Managed::begin("only_dumped", server);
    managed.checks(
        "check-archive",
        3,
        "UNKNOWN - whether this cluster is only dumped is not known, for local cannot be read: ",
    );
    managed.init().expect_code(0);

    println!("nothing about WAL is asked, and the age is that of dumps");
    let ran = managed.tool("init").arg("--check").run();
    for line in [
        "ok   data directory: none is configured: this cluster is only dumped",
        &format!("ok   server: PostgreSQL {} answers, system identifier ", server.major),
        "ok   repository \"local\" system identifier: ",
        "ok   repository \"nas\" write, read, delete: ",
    ] {
        ran.clone().expect_said(line);
    }
    for setting in ["wal_level", "archive_mode", "archive_command", "max_wal_senders"] {
        assert!(!ran.stdout.contains(setting), "{}", ran.report());
    }
    let fails = |line: &&str| line.starts_with("FAIL ") && !line.contains(" space: ");
    assert_eq!(ran.stdout.lines().find(fails), None, "{}", ran.report());
    let well = "OK - nothing is archived: this cluster is only dumped\n";
    managed.checks("check-archive", 0, well);
    managed.checks("check-age", 2, "CRITICAL - local has no dump");
    managed.tool("dump").run().expect_code(0);
    managed.checks("check-age", 0, "OK - the newest dump in local, ");
    let ran = managed.tool("check-age").args(["--what", "backup"]).run();
    ran.expect_code(2).expect_said("local has no backup");

    println!("a repository that cannot be read might know better");
    let aside = managed.scratch.path("aside");
    for (place, code, state) in [(&managed.repository, 3, "UNKNOWN"), (&managed.optional, 1, "WARNING")] {
        fs::rename(place, &aside).unwrap();
        managed.checks("check-archive", code, &format!("{state} - "));
        managed.checks("check-age", code, &format!("{state} - "));
        managed
            .tool("init")
            .arg("--check")
            .run()
            .expect_code(1)
            .expect_said("whether this cluster is only dumped is not known");
        fs::rename(&aside, place).unwrap();
    }
    let optional = ["--repository", "local"];
    fs::rename(&managed.optional, &aside).unwrap();
    managed.tool("check-archive").args(optional).run().expect_code(1);
    managed.tool("check-age").args(optional).run().expect_code(1);
    fs::rename(&aside, &managed.optional).unwrap();

    println!("another repository in the place of the one that is known proves nothing");
    fs::rename(&managed.repository, &aside).unwrap();
    managed.scratch.create_dir("repository");
    let (state, elsewhere) = (managed.scratch.path("state"), managed.scratch.path("state_aside"));
    fs::rename(&state, &elsewhere).unwrap();
    managed.scratch.create_dir("state");
    managed.init().expect_code(0);
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&elsewhere, &state).unwrap();
    managed.checks("check-archive", 3, "UNKNOWN - ");
    managed.checks("check-age", 3, "UNKNOWN - ");
    fs::remove_dir_all(&managed.repository).unwrap();
    fs::rename(&aside, &managed.repository).unwrap();
    managed.checks("check-archive", 0, well);

    println!("what was erased is looked for here, too");
    managed
        .cluster
        .sql_in("shop", "CREATE SCHEMA acme AUTHORIZATION backup");
    let erase = ["--erase-tenant", "acme", "--database", "shop", "--reason", "asked for"];
    managed.tool("prune").args(erase).run().expect_code(0);
    managed.checks("check-archive", 2, "CRITICAL - the server has 1 erased tenant");
    managed.cluster.sql_in("shop", "DROP SCHEMA acme");
    managed.checks("check-archive", 0, well);

    println!("with anything physical in any repository it is asked as ever");
    let begun = managed.optional.join("main/backup/20261120T020000Z-full-3f9a1c");
    fs::create_dir_all(&begun).unwrap();
    account::write(&begun.join("intent.json"), "{}", 0o400);
    for directory in [begun.parent().unwrap(), &begun] {
        account::give(directory);
    }
    managed.checks("check-archive", 3, "UNKNOWN - the server cannot be asked: ");
    managed.cluster.sql("CREATE DATABASE backup");
    managed.checks("check-archive", 2, "CRITICAL - archive_mode is off");
    managed.checks("check-age", 2, "CRITICAL - local has no backup");
    managed
        .tool("init")
        .arg("--check")
        .run()
        .expect_code(1)
        .expect_said("FAIL data directory: none is configured, and there are base backups or WAL of this cluster")
        .expect_said("add data_directory");
}

each_major!(settings_that_archive_nothing_or_twice_are_told_apart: 15);
fn settings_that_archive_nothing_or_twice_are_told_apart(server: &Server) {
    let story = system_tests::Story::begin("archive_command", server, Options::default());
    let ours = story.site.archive_command();
    let check = || {
        let ran = story.tool("init").arg("--check").run();
        let line = ran.stdout.lines().find(|line| line.contains(" archive_command: "));
        let fails = |line: &&str| line.starts_with("FAIL ") && !line.contains(" space: ");
        let others = ran.stdout.lines().filter(fails).count();
        (
            line.unwrap_or_else(|| panic!("{}", ran.report())).to_owned(),
            others,
            ran,
        )
    };
    story.cluster.conf(&["archive_timeout = 60"]);
    for (command, begins, failing) in [
        (ours.clone(), "ok   archive_command: ", 0),
        (format!("{ours} && test -f %p"), "WARN archive_command: ", 0),
        (format!("test -f %p && {ours}"), "WARN archive_command: ", 0),
        (format!("{ours} || true"), "FAIL archive_command: ", 1),
        (format!("{ours}; true"), "FAIL archive_command: ", 1),
        (format!("{ours} | cat"), "FAIL archive_command: ", 1),
        (
            String::new(),
            "FAIL archive_command: it is not set: no WAL is archived",
            1,
        ),
    ] {
        story.cluster.conf(&[format!("archive_command = '{command}'")]);
        story.cluster.reload();
        // The setting reaches sessions a moment after the reload.
        system_tests::wait_until("the setting holds", system_tests::wait::PATIENCE, || {
            story.cluster.query_one("SHOW archive_command") == command
        });
        let (line, others, ran) = check();
        assert!(line.starts_with(begins), "{command}\n{}", ran.report());
        assert_eq!(others, failing, "{}", ran.report());
        assert!(failing > 0 || ran.code == Some(0) || ran.stdout.contains("FAIL repository"));
    }
    println!("a file that could not be archived is named until another one was");
    let command = format!("false && {ours}");
    story.cluster.conf(&[format!("archive_command = '{command}'")]);
    story.cluster.reload();
    story
        .cluster
        .sql("SELECT pg_logical_emit_message(false, 'x', 'x'), pg_switch_wal()");
    let asked =
        "SELECT coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) FROM pg_stat_archiver";
    system_tests::wait_until("archiving fails", system_tests::wait::PATIENCE, || {
        story.cluster.query_one(asked) == "t"
    });
    let file = story.cluster.query_one("SELECT last_failed_wal FROM pg_stat_archiver");
    let (_, others, ran) = check();
    assert_eq!(others, 0, "{}", ran.report());
    ran.expect_said(&format!("WARN archiver: {file} could not be archived at "))
        .expect_said("the server's log says why")
        .expect_said(&format!("pg_wal/{file}"));

    println!("a library takes the place of the command");
    story.cluster.conf(&["archive_library = 'basic_archive'"]);
    story.cluster.reload();
    system_tests::wait_until("the setting holds", system_tests::wait::PATIENCE, || {
        story.cluster.query_one("SHOW archive_library") == "basic_archive"
    });
    let ran = story.tool("init").arg("--check").run().expect_code(1);
    assert!(!ran.stdout.contains(" archive_command: "), "{}", ran.report());
    ran.expect_said("FAIL archive_library: basic_archive archives in place of archive_command, which is not called");

    story.cluster.conf(&["archive_library = ''", "archive_mode = off"]);
    story.cluster.restart();
    let (line, ..) = check();
    assert!(
        line.starts_with("FAIL archive_command: archiving is off (archive_mode), so no command is called"),
        "{line}"
    );
}
