//! A backup under load comes back whole: on every version, and with what clusters may have besides tables.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use system_tests::stand::debian_program;
use system_tests::story::{all, label, text};
use system_tests::wait::PATIENCE;
use system_tests::{Cluster, Options, RepoOptions, Server, Site, Story, Tool, account, each_major, wait_until};

/// PostgreSQL's own judge of backups: the program of the same version, else that of 15, which reads the manifests of 13
/// to 16.
fn verifier(server: &Server) -> Option<PathBuf> {
    let older = || (server.major <= 16).then(|| debian_program("pg_verifybackup"));
    server.client("pg_verifybackup").or_else(older)
}

fn verify_backup(verifier: &Path, data: &Path, arguments: &[&str]) {
    let verify = Tool::program(verifier).args(arguments).arg(data);
    verify.run().expect_code(0).expect_said("backup successfully verified");
}

fn rows(cluster: &Cluster, query: &str) -> String {
    cluster
        .query(query)
        .into_iter()
        .map(|row| row[0].clone().unwrap_or_default())
        .collect::<Vec<_>>()
        .join(" ")
}

each_major!(a_backup_under_load_comes_back_at_a_target_and_at_the_end);
fn a_backup_under_load_comes_back_at_a_target_and_at_the_end(server: &Server) {
    let options = Options {
        // Each size and both kinds of pages are met once.
        segment_size_mb: if server.major == 16 { 1 } else { 16 },
        checksums: server.major != 14,
        ..Options::default()
    };
    let story = Story::begin("round_trip", server, options);
    let cluster = &story.cluster;
    cluster.pgbench_init(1);
    cluster.sql(
        "CREATE TABLE odd (id int, what text, long bytea);
         CREATE SEQUENCE numbers;
         SELECT setval('numbers', 77);
         INSERT INTO odd SELECT n, 'row ' || n, decode(repeat(md5(n::text), 200), 'hex') FROM generate_series(1, 500) n;
         CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 100) AS n;
         SELECT lo_from_bytea(0, '\\x00ff')",
    );

    story.step("a backup under load");
    let load = cluster.pgbench_background(2, 600);
    let started = cluster.current_lsn();
    wait_until("load writes WAL", PATIENCE, || {
        cluster.query_one(&format!("SELECT pg_current_wal_lsn() > '{started}'")) == "t"
    });
    story.backup();
    assert!(cluster.query_one("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") != "0");
    load.stop(cluster);

    story.step("a moment is noted, then more is written");
    cluster.sql("SELECT pg_create_restore_point('noted')");
    let noted = cluster.checksum("postgres");
    cluster.pgbench_run(2, 50);
    cluster.sql("INSERT INTO odd (what) VALUES ('after'); SELECT lo_from_bytea(0, '\\x01')");
    let end = cluster.checksum("postgres");
    assert_ne!(noted, end);
    story.archive_all();

    story.step("restored to the noted moment");
    let restored = story.restored("noted", &["--target-name", "noted", "--target-action", "promote"]);
    restored.start();
    restored.wait_promoted(PATIENCE);
    assert_eq!(restored.checksum("postgres"), noted);
    assert_eq!(
        restored.query_one("SELECT count(*) FROM fleeting"),
        "0",
        "unlogged tables come back empty"
    );
    restored.sql("INSERT INTO fleeting VALUES (1); INSERT INTO odd (what) VALUES ('it takes writes')");

    story.step("restored to the end");
    let restored = story.restored("end", &[]);
    restored.start();
    restored.wait_promoted(PATIENCE);
    assert_eq!(restored.checksum("postgres"), end);
    assert_eq!(restored.query_one("SHOW archive_mode"), "off");
    assert_eq!(
        restored.query_one("SELECT timeline_id FROM pg_control_checkpoint()"),
        "2"
    );
}

/// The WAL that makes a backup consistent, in clear, where pg_verifybackup finds it.
fn unpack_wal(story: &Story, into: &Path) {
    fs::create_dir(into).unwrap();
    let repo = story.site.repo();
    for object in repo.matching("/wal/") {
        let name = object.file_name().unwrap().to_str().unwrap();
        let Some(segment) = name.strip_suffix(".zst").filter(|name| name.len() == 24) else {
            continue;
        };
        Tool::program("zstd")
            .args(["-dqo"])
            .arg(into.join(segment))
            .arg(&object)
            .as_root()
            .run()
            .expect_code(0);
    }
    fs::set_permissions(into, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(into).unwrap().flatten() {
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644)).unwrap();
    }
}

each_major!(postgresql_s_own_verifier_accepts_files_and_wal_of_a_restored_backup);
fn postgresql_s_own_verifier_accepts_files_and_wal_of_a_restored_backup(server: &Server) {
    let Some(verifier) = verifier(server).or_else(|| server.need_client("pg_verifybackup")) else {
        return;
    };
    let story = Story::begin("verified", server, Options::default());
    story.cluster.pgbench_init(1);
    let load = story.cluster.pgbench_background(1, 600);
    story.backup();
    load.stop(&story.cluster);
    let restored = story.restored("restored", &["--target-immediate"]);
    // WAL is read by the program of its own version only.
    if server.client("pg_waldump").is_some() {
        let wal = story.scratch.path("wal");
        unpack_wal(&story, &wal);
        verify_backup(&verifier, restored.data(), &["-w", &text(&wal)]);
    } else {
        verify_backup(&verifier, restored.data(), &["-n"]);
    }

    story.step("it sees one changed byte");
    let file = restored.data().join(
        story
            .cluster
            .query_one("SELECT pg_relation_filepath('pgbench_accounts')"),
    );
    system_tests::mutilate::flip_middle_bit(&file);
    Tool::program(&verifier)
        .arg("-n")
        .arg(restored.data())
        .run()
        .expect_code(1)
        .expect_said("checksum mismatch");
}

each_major!(wal_segments_of_64_mb_and_pages_without_checksums_come_back: 15 18);
fn wal_segments_of_64_mb_and_pages_without_checksums_come_back(server: &Server) {
    let options = Options {
        segment_size_mb: 64,
        checksums: false,
        ..Options::default()
    };
    let story = Story::begin("segments64", server, options);
    story.cluster.pgbench_init(1);
    story.backup();
    story.cluster.pgbench_run(1, 50);
    let end = story.cluster.checksum("postgres");
    story.archive_all();
    let restored = story.promoted("restored", &[]);
    assert_eq!(restored.checksum("postgres"), end);
    assert_eq!(restored.query_one("SHOW wal_segment_size"), "64MB");
    assert_eq!(restored.query_one("SHOW data_checksums"), "off");
}

each_major!(many_small_wal_segments_come_back: 15 18);
fn many_small_wal_segments_come_back(server: &Server) {
    let story = Story::begin(
        "segments1",
        server,
        Options {
            segment_size_mb: 1,
            ..Options::default()
        },
    );
    story.cluster.sql("CREATE TABLE t (n int, filler text)");
    story.backup();
    // 40 MB of WAL over the end of a folder's 4,096 segments is no story for here; some dozens of segments are.
    story
        .cluster
        .sql("INSERT INTO t SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 20000) n");
    let end = story.cluster.checksum("postgres");
    story.archive_all();
    assert!(story.site.repo().matching("/wal/").len() > 20);
    assert_eq!(story.promoted("restored", &[]).checksum("postgres"), end);
}

/// Creates two tablespaces with a table each and returns their OIDs.
fn tablespaces(story: &Story, places: [&Path; 2]) -> [String; 2] {
    for (name, place) in ["one", "two"].iter().zip(places) {
        account::create_dir(place, 0o700);
        story
            .cluster
            .sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display()));
        story.cluster.sql(&format!(
            "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 5000) AS n"
        ));
    }
    ["one", "two"].map(|name| {
        story
            .cluster
            .query_one(&format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'"))
    })
}

each_major!(tablespaces_come_back_where_they_were_or_where_they_are_mapped: 15 18);
fn tablespaces_come_back_where_they_were_or_where_they_are_mapped(server: &Server) {
    let story = Story::begin("tablespaces", server, Options::default());
    let (one, two) = (story.scratch.path("space one"), story.scratch.path("two"));
    let oids = tablespaces(&story, [&one, &two]);
    story.backup();
    story
        .cluster
        .sql("INSERT INTO in_one SELECT 0; CREATE TABLE later TABLESPACE two AS SELECT 1 AS n");
    let end = story.cluster.checksum("postgres");
    story.archive_all();
    let to = story.scratch.path("restored");
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let ran = story.restore_to(&to, arguments).run().expect_code(code);
        words
            .iter()
            .for_each(|words| assert!(ran.stderr.contains(words), "{words}\n{}", ran.report()));
        assert!(!to.exists(), "{} is there\n{}", to.display(), ran.report());
    };

    story.step("without a mapping the places are still in use");
    refused(&[], 1, &["not empty", &text(&one)]);
    story.step("mappings that are wrong are refused");
    refused(
        &["--tablespace", "99999=/srv/x"],
        2,
        &["no tablespace \"99999\"", &oids[0], &text(&two)],
    );
    refused(&["--tablespace", "relative"], 2, &["OLD=NEW"]);
    let full = story.scratch.create_dir("full");
    account::write(&full.join("mine"), "precious", 0o600);
    let (first, second) = (story.place("new one"), story.place("new two"));
    refused(
        &[
            "--tablespace",
            &format!("{}={first}", oids[0]),
            "--tablespace",
            &format!("{}={}", oids[1], full.display()),
        ],
        1,
        &["not empty", "mine", &text(&full)],
    );
    assert!(!Path::new(&first).exists());
    let inside = format!("{}={}", oids[0], to.join("inside").display());
    refused(
        &[
            "--tablespace",
            &inside,
            "--tablespace",
            &format!("{}={second}", oids[1]),
        ],
        2,
        &["lie in one another"],
    );

    story.step("mapped by OID and by path");
    let mappings = [format!("{}={first}", oids[0]), format!("{}={second}", two.display())];
    let restored = story.promoted(
        "restored",
        &["--tablespace", &mappings[0], "--tablespace", &mappings[1]],
    );
    assert_eq!(restored.checksum("postgres"), end);
    let located = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname IN ('one', 'two') ORDER BY 1";
    assert_eq!(rows(&restored, located), format!("{first} {second}"));
    assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o7777, 0o700);
    drop(restored);

    story.step("to the original place, once that is free");
    story.cluster.stop(system_tests::Stop::Fast);
    for place in [&one, &two] {
        fs::remove_dir_all(place).unwrap();
        account::create_dir(place, 0o700);
    }
    let restored = story.promoted("again", &[]);
    assert_eq!(restored.checksum("postgres"), end);
    assert_eq!(rows(&restored, located), format!("{} {}", one.display(), two.display()));
}

#[test]
fn links_extra_paths_wal_directory_and_modes_come_back() {
    let Some(server) = Server::need(15) else { return };
    let outside = std::cell::OnceCell::new();
    let story = Story::with("places", &server, Options::default(), |site| {
        // The configuration lives outside of the data directory, as on Debian.
        let extra = site.dir.join("etc");
        account::create_dir(&extra, 0o755);
        account::create_dir(&extra.join("conf.d"), 0o755);
        account::write(&extra.join("pg_hba.conf"), "local all all trust\n", 0o640);
        account::write(&extra.join("conf.d/my.conf"), "work_mem = 8MB\n", 0o644);
        let line = format!("extra_paths = [\"{}\"]", extra.display());
        outside.set(extra).unwrap();
        site.repository(RepoOptions::new("local")).cluster_line(&line)
    });
    let extra = outside.get().unwrap();
    let target = story.scratch.create_dir("elsewhere");
    account::write(&target.join("notes"), "not part of the cluster", 0o600);
    symlink(&target, story.cluster.data().join("link")).unwrap();
    story
        .cluster
        .sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS n");
    let end = story.cluster.checksum("postgres");
    story.backup();

    story.step("restored with a WAL directory and the extra files of its own");
    let (wal, extra_to) = (story.place("wal"), story.place("extra"));
    let restored = story.promoted("restored", &["--wal-dir", &wal, "--extra-to", &extra_to]);
    assert_eq!(restored.checksum("postgres"), end);
    assert_eq!(fs::read_link(restored.data().join("pg_wal")).unwrap(), Path::new(&wal));
    assert!(fs::read_dir(&wal).unwrap().count() > 1);
    assert_eq!(fs::read_link(restored.data().join("link")).unwrap(), target);
    let below = Path::new(&extra_to).join(extra.strip_prefix("/").unwrap());
    for name in ["pg_hba.conf", "conf.d/my.conf"] {
        let (before, after) = (
            fs::metadata(extra.join(name)).unwrap(),
            fs::metadata(below.join(name)).unwrap(),
        );
        assert_eq!(fs::read(extra.join(name)).unwrap(), fs::read(below.join(name)).unwrap());
        assert_eq!(
            (before.mode(), before.uid(), before.mtime()),
            (after.mode(), after.uid(), after.mtime()),
            "{name}"
        );
    }

    story.step("modes and owners are PostgreSQL's");
    let owner = fs::metadata(story.cluster.data()).unwrap().uid();
    for name in [
        "",
        "base",
        "global",
        "global/pg_control",
        "postgresql.conf",
        "postgresql.auto.conf",
        "pg_wal/",
    ] {
        let found = fs::metadata(restored.data().join(name)).unwrap();
        let mode = if found.is_dir() { 0o700 } else { 0o600 };
        assert_eq!((found.mode() & 0o7777, found.uid()), (mode, owner), "{name}");
    }

    story.step("without --extra-to they stay in the repository, and the plan says so");
    let plan = story
        .restore_to(&story.scratch.path("plain"), &["--dry-run"])
        .run()
        .expect_code(0);
    assert!(plan.stdout.contains("--extra-to"), "{}", plan.report());
    assert!(!story.scratch.path("plain").exists());
}

#[test]
fn a_cluster_that_its_group_may_read_comes_back_so() {
    let Some(server) = Server::need(15) else { return };
    let options = Options {
        initdb: vec!["--allow-group-access".into()],
        ..Options::default()
    };
    let story = Story::begin("group_access", &server, options);
    story.backup();
    let restored = story.promoted("restored", &[]);
    for (name, mode) in [
        ("", 0o750),
        ("base", 0o750),
        ("PG_VERSION", 0o640),
        ("global/pg_control", 0o640),
    ] {
        let found = fs::metadata(restored.data().join(name)).unwrap().mode() & 0o7777;
        assert_eq!(found, mode, "{name}: {found:o}");
    }
}

#[test]
fn a_tool_started_as_root_leaves_everything_to_the_owner() {
    let Some(server) = Server::need(15) else { return };
    if !account::is_root() {
        return system_tests::stand::skipped("only root can become another user");
    }
    let story = Story::begin("as_root", &server, Options::default());
    let owner = fs::metadata(story.cluster.data()).unwrap().uid();
    let ran = story
        .tool("base-backup")
        .as_root()
        .run()
        .expect_code(0)
        .expect_said("postgres");
    label(&ran);
    let to = story.scratch.path("restored");
    story.restore_to(&to, &[]).as_root().run().expect_code(0);
    for path in story
        .site
        .repo()
        .objects()
        .iter()
        .chain([&to, &to.join("global/pg_control"), &to.join("base")])
    {
        assert_eq!(fs::metadata(path).unwrap().uid(), owner, "{}", path.display());
    }
    let restored = Cluster::adopt(&story.scratch, &server, &to);
    restored.start();
    restored.wait_promoted(PATIENCE);
}

#[test]
fn an_encrypted_backup_comes_back_where_the_identity_is_and_only_there() {
    let Some(server) = Server::need(15) else { return };
    let encrypted = |site: Site| site.repository(RepoOptions::new("sealed").encrypted());
    let story = Story::with("sealed", &server, Options::default(), encrypted);
    story.cluster.pgbench_init(1);
    story.backup();
    story.cluster.pgbench_run(1, 50);
    let end = story.cluster.checksum("postgres");
    story.archive_all();
    for object in story.site.repo().objects() {
        let bytes = fs::read(&object).unwrap();
        assert!(
            !bytes.windows(8).any(|window| window == b"pgbench_"),
            "{} is readable",
            object.display()
        );
    }
    let restored = story.promoted("restored", &[]);
    assert_eq!(restored.checksum("postgres"), end);

    story.step("a host without the identity is told what it lacks");
    let keyless = Site::named(&story.scratch, &story.cluster, "keyless")
        .shared(story.site.repo(), RepoOptions::new("sealed").keyless());
    let to = story.scratch.path("never");
    let ran = keyless
        .tool("restore")
        .arg("--to")
        .arg(&to)
        .run()
        .expect_code(2)
        .expect_said("identity_file");
    assert!(!to.exists(), "{}", ran.report());
    if all() {
        story.step("another key does not open it");
        let other =
            Site::named(&story.scratch, &story.cluster, "other").repository(RepoOptions::new("sealed").encrypted());
        let wrong = other.repos[0].identity.clone().unwrap();
        fs::copy(wrong, story.site.repo().identity.clone().unwrap()).unwrap();
        story.restore_to(&to, &[]).run().expect_code(2);
    }
}
