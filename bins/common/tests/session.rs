//! The backup session against a real server, which each test starts and removes by itself.
//!
//! Needs Debian's PostgreSQL 15 (or the programs in `PGKEEP_TEST_BINDIR`); says so where it is missing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use common::error::Kind;
use common::postgres::{
    BackupLabel, ConnectionSettings, ControlFile, FoundKind, Lsn, Major, ManifestWriter, RecoverySettings,
    RelationFile, Session, Target, TargetAction, WalRange, datadir, manifest, page, recovery, relation,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Server {
    directory: tempfile::TempDir,
    bindir: PathBuf,
}

impl Server {
    /// Starts a scratch server that only its socket directory reaches.
    fn start(options: &str) -> Option<Server> {
        let bindir = std::env::var_os("PGKEEP_TEST_BINDIR").map_or("/usr/lib/postgresql/15/bin".into(), PathBuf::from);
        if !bindir.join("initdb").exists() {
            eprintln!("SKIPPED: there is no initdb in {}", bindir.display());
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("pgkeep-session")
            .tempdir_in("/var/tmp")
            .unwrap();
        let server = Server { directory, bindir };
        give_to_postgres(server.path());
        server.run("initdb", &["-D", &server.data(), "-U", "postgres", "-A", "trust", "-k"]);
        let options = format!(
            "-k {} -c listen_addresses= -c wal_level=replica {options}",
            server.path().display()
        );
        let log = server.path().join("log");
        server.run(
            "pg_ctl",
            &[
                "-D",
                &server.data(),
                "-w",
                "-l",
                log.to_str().unwrap(),
                "-o",
                &options,
                "start",
            ],
        );
        Some(server)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> String {
        self.path().join("data").to_str().unwrap().to_string()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let program = self.bindir.join(program);
        let mut command = Command::new(&program);
        if nix::unistd::geteuid().is_root() {
            command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"])
                .arg(program);
        }
        command.args(arguments).current_dir("/").stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.command(program, arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Runs a program as the user that runs the test.
    fn run_as_is(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(self.bindir.join(program))
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn settings(&self, user: &str) -> ConnectionSettings {
        ConnectionSettings {
            host: Some(self.path().to_str().unwrap().to_string()),
            user: Some(user.to_string()),
            dbname: Some("postgres".to_string()),
            ..Default::default()
        }
    }

    fn session(&self) -> Session {
        Session::connect(&self.settings("postgres")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self
            .command("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"])
            .output();
    }
}

fn give_to_postgres(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

fn give_tree_to_postgres(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    give_to_postgres(path);
    for entry in walkdir::WalkDir::new(path) {
        give_to_postgres(entry.unwrap().path());
    }
    std::fs::set_permissions(path.join("data"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_backup_starts_and_stops_in_one_session() {
    let Some(server) = Server::start("") else { return };
    let mut session = server.session();
    let control = ControlFile::read(Path::new(&server.data())).unwrap();
    assert_eq!(session.server_version(), control.major);
    assert_eq!(session.system_id().unwrap(), control.system_id);
    for timeout in [
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
    ] {
        if timeout != "idle_session_timeout" || session.server_version() > Major::V13 {
            assert_eq!(session.setting(timeout).unwrap().as_deref(), Some("0"), "{timeout}");
        }
    }
    assert_eq!(session.setting("no_such_setting").unwrap(), None);
    assert_eq!(session.setting("client_encoding").unwrap().as_deref(), Some("UTF8"));

    let start = session.start("it's a label", true).unwrap();
    session.check().unwrap();
    let stop = session.stop().unwrap();
    let label = BackupLabel::parse(&stop.backup_label).unwrap();
    assert_eq!((label.start_lsn, label.start_timeline), (start.lsn, start.timeline));
    assert_eq!(label.label, "it's a label");
    assert!(stop.lsn > start.lsn && stop.timeline == start.timeline && stop.unix_micros > start.unix_micros);
    assert!(!start.in_recovery && !stop.in_recovery && stop.tablespace_map.is_none());
    assert_eq!(ControlFile::read(Path::new(&server.data())).unwrap().redo, start.lsn);
    assert!(session.switch_wal_after_restore_point("after").unwrap() > stop.lsn);
}

#[test]
fn a_tablespace_is_in_the_map() {
    let Some(server) = Server::start("") else { return };
    let location = server.path().join("space");
    std::fs::create_dir(&location).unwrap();
    give_to_postgres(&location);
    let mut session = server.session();
    session
        .query(&format!("create tablespace t location '{}'", location.display()))
        .unwrap();
    session.start("label", true).unwrap();
    let map = session.stop().unwrap().tablespace_map.unwrap();
    let spaces = common::postgres::label::parse_tablespace_map(&map).unwrap();
    let found = datadir::tablespaces(Path::new(&server.data())).unwrap();
    assert_eq!(spaces, [(found[0].oid, location.clone())]);
    assert_eq!(found[0].location, location);
}

#[test]
fn a_role_without_the_privilege_is_told_what_to_grant() {
    let Some(server) = Server::start("") else { return };
    let mut session = server.session();
    session.query("create role keeper login").unwrap();
    let mut keeper = Session::connect(&server.settings("keeper")).unwrap();
    let error = keeper.start("label", true).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    let (grant, _) = error.nearest_hint().unwrap().split_once(';').unwrap();
    session.query(grant).unwrap();
    keeper.start("label", true).unwrap();
    keeper.stop().unwrap();
    keeper.switch_wal_after_restore_point("p").unwrap();
}

#[test]
fn refusals_and_broken_sessions_have_their_kinds() {
    let Some(server) = Server::start("-c wal_level=minimal -c max_wal_senders=0") else {
        return;
    };
    let mut session = server.session();
    assert_eq!(session.start("label", true).unwrap_err().kind(), Kind::Config);
    assert_eq!(
        Session::connect(&server.settings("nobody_here")).err().unwrap().kind(),
        Kind::Config
    );
    let elsewhere = ConnectionSettings {
        dbname: Some("nowhere".into()),
        ..server.settings("postgres")
    };
    assert_eq!(Session::connect(&elsewhere).err().unwrap().kind(), Kind::Config);

    let mut other = server.session();
    session
        .query("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()")
        .unwrap();
    // The server may still be about to end it.
    let error = std::iter::repeat_with(|| other.check()).find_map(Result::err).unwrap();
    assert_eq!(error.kind(), Kind::Transient);
}

#[test]
fn a_session_that_lost_its_mark_is_behind_a_pooler() {
    let Some(server) = Server::start("") else { return };
    let mut session = server.session();
    session.check().unwrap();
    session.query("set pgkeep.session = 'another'").unwrap();
    let error = session.check().unwrap_err();
    assert!(
        error.kind() == Kind::Config && error.to_string().contains("pooler"),
        "{error:?}"
    );
}

#[test]
fn of_several_hosts_the_first_that_answers_is_taken() {
    let Some(server) = Server::start("") else { return };
    let both = format!(
        "{},{}",
        server.path().join("nowhere").display(),
        server.path().display()
    );
    let settings = ConnectionSettings {
        host: Some(both),
        primary_only: true,
        ..server.settings("postgres")
    };
    assert!(!Session::connect(&settings).unwrap().in_recovery().unwrap());
}

/// Copies a running server with the pieces of this library, the way a base backup does.
fn copy_backup(server: &Server, to: &Path) -> (ControlFile, Lsn, usize) {
    let pgdata = PathBuf::from(server.data());
    let control = ControlFile::read(&pgdata).unwrap();
    let mut session = server.session();
    let start = session.start("copy", true).unwrap();
    let mut writer = ManifestWriter::new(Vec::new(), control.major, control.system_id).unwrap();
    let mut pages = 0;
    datadir::walk(&pgdata, &[], &control.tablespace_directory(), &mut |found| {
        let path = manifest::manifest_path(&found.path).unwrap();
        match found.kind {
            FoundKind::Dir => std::fs::create_dir(to.join(&path)).unwrap(),
            FoundKind::Link(_) => panic!("no links expected: {found:?}"),
            FoundKind::File => {
                let bytes = std::fs::read(&found.source).unwrap();
                if let Some(file) = relation::relation_file(found.path.to_str().unwrap()) {
                    pages += check_pages(&file, &bytes, &control);
                }
                writer
                    .file(&path, bytes.len() as u64, found.modified, crc32c::crc32c(&bytes))
                    .unwrap();
                std::fs::write(to.join(&path), bytes).unwrap();
            }
        }
        Ok(())
    })
    .unwrap();
    let stop = session.stop().unwrap();
    writer
        .file(
            Path::new("backup_label"),
            stop.backup_label.len() as u64,
            std::time::SystemTime::now(),
            crc32c::crc32c(&stop.backup_label),
        )
        .unwrap();
    std::fs::write(to.join("backup_label"), &stop.backup_label).unwrap();
    let range = WalRange {
        timeline: stop.timeline,
        start: start.lsn,
        end: stop.lsn,
    };
    std::fs::write(to.join("backup_manifest"), writer.finish(&[range]).unwrap()).unwrap();
    session.switch_wal_after_restore_point("after").unwrap();
    (control, stop.lsn, pages)
}

fn check_pages(file: &RelationFile, bytes: &[u8], control: &ControlFile) -> usize {
    let first = file.first_block(control.blocks_per_file);
    for (block, page) in (first..).zip(bytes.chunks(control.block_size as usize)) {
        let state = page::verify_page(page, block, control.data_checksums);
        assert!(
            !matches!(state, page::PageState::Bad { .. }),
            "{file:?} block {block}: {state:?}"
        );
    }
    bytes.len() / control.block_size as usize
}

#[test]
fn a_copy_made_with_these_pieces_is_verified_and_recovers() {
    let Some(server) = Server::start("") else { return };
    let mut session = server.session();
    session
        .query("create table t as select generate_series(1, 50000) i; create index on t (i)")
        .unwrap();
    session
        .query("create unlogged table u as select generate_series(1, 1000) i")
        .unwrap();
    let copy = Server {
        directory: tempfile::tempdir_in("/var/tmp").unwrap(),
        bindir: server.bindir.clone(),
    };
    let pgdata = PathBuf::from(copy.data());
    let (control, stop, pages) = copy_backup(&server, &pgdata);
    assert!(pages > 1000, "only {pages} pages were looked at");
    if server.bindir.join("pg_verifybackup").exists() {
        copy.run_as_is("pg_verifybackup", &["-n", "-e", pgdata.to_str().unwrap()]);
    }

    let settings = RecoverySettings {
        restore_command: format!("cp '{}/pg_wal/%f' '%p'", server.data()),
        target: Target::Lsn(stop),
        action: TargetAction::Promote,
        others: vec![("archive_mode".into(), "off".into())],
        ..Default::default()
    };
    let inherited = "recovery_target_xid = '1234'\nrestore_command = 'false'\nprimary_conninfo = 'host=nowhere'\n";
    // What stands in postgresql.conf has to be overruled as well.
    let conf = pgdata.join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(
        &conf,
        text + inherited + "recovery_target_time = '2020-01-01 00:00:00+00'\n",
    )
    .unwrap();
    let edited = settings.edit_auto_conf(inherited.as_bytes()).unwrap();
    std::fs::write(pgdata.join(recovery::AUTO_CONF), edited).unwrap();
    std::fs::write(pgdata.join(settings.signal_files().0), "").unwrap();
    give_tree_to_postgres(copy.path());
    let options = format!("-k {} -c listen_addresses=", copy.path().display());
    let log = copy.path().join("log");
    copy.run(
        "pg_ctl",
        &[
            "-D",
            &copy.data(),
            "-w",
            "-l",
            log.to_str().unwrap(),
            "-o",
            &options,
            "start",
        ],
    );
    let mut restored = copy.session();
    while restored.in_recovery().unwrap() {
        std::thread::yield_now();
    }
    assert_eq!(
        restored.query("select count(*) from t").unwrap(),
        [[Some("50000".to_string())]]
    );
    assert_eq!(
        restored.query("select count(*) from u").unwrap(),
        [[Some("0".to_string())]]
    );
    assert_eq!(restored.system_id().unwrap(), control.system_id);
}

#[test]
fn a_standby_is_backed_up_too() {
    let Some(server) = Server::start("") else { return };
    let standby = Server {
        directory: tempfile::tempdir_in("/var/tmp").unwrap(),
        bindir: server.bindir.clone(),
    };
    let pgdata = PathBuf::from(standby.data());
    copy_backup(&server, &pgdata);
    let conninfo = format!("host={} user=postgres", server.path().display());
    let settings = RecoverySettings {
        standby: true,
        primary_conninfo: Some(conninfo),
        ..Default::default()
    };
    std::fs::write(pgdata.join(recovery::AUTO_CONF), settings.edit_auto_conf(b"").unwrap()).unwrap();
    std::fs::write(pgdata.join(settings.signal_files().0), "").unwrap();
    give_tree_to_postgres(standby.path());
    let options = format!("-k {} -c listen_addresses=", standby.path().display());
    let log = standby.path().join("log");
    standby.run(
        "pg_ctl",
        &[
            "-D",
            &standby.data(),
            "-w",
            "-l",
            log.to_str().unwrap(),
            "-o",
            &options,
            "start",
        ],
    );

    let mut session = standby.session();
    let start = session.start("from a standby", true).unwrap();
    let stop = session.stop().unwrap();
    assert!(start.in_recovery && stop.in_recovery && stop.timeline == start.timeline && stop.lsn >= start.lsn);
    assert!(BackupLabel::parse(&stop.backup_label).unwrap().from_standby);

    session.start("to be interrupted", true).unwrap();
    standby.run("pg_ctl", &["-D", &standby.data(), "-w", "promote"]);
    assert_eq!(session.stop().unwrap_err().kind(), Kind::Transient);
    let only_primary = ConnectionSettings {
        primary_only: true,
        ..standby.settings("postgres")
    };
    assert!(Session::connect(&only_primary).is_ok());
}

/// Makes an authority, and a certificate of it for `localhost`, with Debian's openssl.
fn make_certificates(server: &Server) {
    let at = |name: &str| server.path().join(name).to_str().unwrap().to_string();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let (key, certificate, request) = (at("server.key"), at("server.crt"), at("server.csr"));
    for (name, authority_key) in [("ca", at("ca.key")), ("other", at("other.key"))] {
        let file = at(&format!("{name}.crt"));
        let subject = format!("/CN={name}");
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            &subject,
            "-keyout",
            &authority_key,
            "-out",
            &file,
        ]);
    }
    openssl(&[
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        &key,
        "-out",
        &request,
    ]);
    std::fs::write(at("names"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        &request,
        "-CA",
        &at("ca.crt"),
        "-CAkey",
        &at("ca.key"),
        "-CAcreateserial",
        "-extfile",
        &at("names"),
        "-out",
        &certificate,
    ]);
    for file in [&key, &certificate] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
        give_to_postgres(Path::new(file));
    }
}

#[test]
fn tls_means_what_libpq_means_by_it() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let Some(server) = Server::start("") else { return };
    make_certificates(&server);
    let conf = Path::new(&server.data()).join("postgresql.conf");
    let mut text = std::fs::read_to_string(&conf).unwrap();
    let at = |name: &str| server.path().join(name);
    text.push_str(&format!(
        "\nssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n",
        at("server.crt").display(),
        at("server.key").display()
    ));
    std::fs::write(&conf, text).unwrap();
    let options = format!("-k {} -c listen_addresses=localhost -p {port}", server.path().display());
    let log = at("log");
    server.run(
        "pg_ctl",
        &[
            "-D",
            &server.data(),
            "-w",
            "-l",
            log.to_str().unwrap(),
            "-o",
            &options,
            "restart",
        ],
    );

    let try_out = |host: &str, mode: &str, roots: Option<&str>| {
        let settings = ConnectionSettings {
            host: Some(host.into()),
            port: Some(port),
            sslmode: Some(mode.parse().unwrap()),
            sslrootcert: roots.map(at),
            ..server.settings("postgres")
        };
        Session::connect(&settings).map(|mut session| {
            session
                .query("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
                .unwrap()[0][0]
                .clone()
                .unwrap()
        })
    };
    for (mode, roots, encrypted) in [
        ("disable", None, "f"),
        ("prefer", None, "t"),
        ("require", None, "t"),
        ("require", Some("ca.crt"), "t"),
        ("verify-ca", Some("ca.crt"), "t"),
        ("verify-ca", Some("server.crt"), "t"),
        ("verify-full", Some("ca.crt"), "t"),
    ] {
        assert_eq!(
            try_out("localhost", mode, roots).unwrap(),
            encrypted,
            "{mode} {roots:?}"
        );
    }
    // The certificate is for another name.
    assert_eq!(try_out("127.0.0.1", "verify-ca", Some("ca.crt")).unwrap(), "t");
    assert!(try_out("127.0.0.1", "verify-full", Some("ca.crt")).is_err());
    // It is of another authority, or of none that is known.
    for mode in ["require", "verify-ca", "verify-full"] {
        assert!(try_out("localhost", mode, Some("other.crt")).is_err(), "{mode}");
    }
    for mode in ["verify-ca", "verify-full"] {
        assert_eq!(try_out("localhost", mode, None).unwrap_err().kind(), Kind::Config);
        assert_eq!(
            try_out("localhost", mode, Some("missing.crt")).unwrap_err().kind(),
            Kind::Config
        );
    }
    // A socket is never encrypted, whatever is asked.
    let socket = server.path().to_str().unwrap();
    assert_eq!(try_out(socket, "verify-full", None).unwrap(), "f");
}
