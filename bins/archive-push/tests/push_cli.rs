//! What archive-push answers on the command line.
#![allow(clippy::unwrap_used, clippy::panic)]

use system_tests::{Bare, Tool, mutilate};

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    Bare::new("push_common").check_common_answers("archive-push", &["pg_wal/00000002.history"], 2);
}

#[test]
fn a_file_is_pushed_once_and_then_is_there() {
    let bare = Bare::new("push_once");
    let name = bare.history(2, "1\t0/3000000\tno recovery target specified\n");
    let push = || bare.tool("archive-push").arg(format!("pg_wal/{name}")).run();
    push()
        .expect_code(2)
        .expect_said("cannot store WAL 00000002.history: repository \"local\": there is no repository at file://")
        .expect_said("hint: create it once with pgkeep-init");
    bare.tool("init").run().expect_code(0);
    push().expect_code(0).expect_quiet();
    push().expect_code(0).expect_quiet();
    bare.tool("archive-push")
        .arg(bare.data.join("pg_wal").join(&name))
        .cwd("/".as_ref())
        .run()
        .expect_code(0);
    let status = bare.scratch.path("state/main/status/archive-push.json");
    assert!(std::fs::read_to_string(status).unwrap().contains("\"result\": \"ok\""));
}

#[test]
fn a_history_that_no_server_wrote_is_refused_and_not_stored() {
    let bare = Bare::new("push_history");
    bare.tool("init").run().expect_code(0);
    let cases = [
        ("nonsense\n", "line \"nonsense\" is not understood"),
        ("", "it does not say which timeline 9 comes from"),
        ("9\t0/3000000\tx\n", "is not an ancestor"),
        ("12\t0/3000000\tx\n", "is not an ancestor"),
    ];
    for (content, words) in cases {
        let name = bare.history(9, content);
        let ran = bare.tool("archive-push").arg(format!("pg_wal/{name}")).run();
        ran.expect_code(1)
            .expect_said("00000009.history: ")
            .expect_said(words)
            .expect_said("hint: it is not what PostgreSQL writes");
        let repository = bare.scratch.path("repository/main/wal");
        assert!(!repository.exists(), "{content:?}");
    }
}

#[test]
fn what_is_no_wal_file_is_refused() {
    let bare = Bare::new("push_wrong");
    bare.tool("init").run().expect_code(0);
    bare.tool("archive-push").run().expect_code(2).expect_said("Usage");
    let push = |path: &str| bare.tool("archive-push").arg(path).run();
    push("pg_wal/nonsense")
        .expect_code(2)
        .expect_said("\"nonsense\" is not the name of a WAL file")
        .expect_said("archive_command = 'pgkeep-archive-push %p'");
    push("").expect_code(2);
    push("pg_wal/").expect_code(2);
    push("pg_wal/00000003.history")
        .expect_code(1)
        .expect_said("pg_wal/00000003.history: No such file");
    bare.scratch
        .write("data/pg_wal/000000010000000000000001", "short", 0o600);
    push("pg_wal/000000010000000000000001")
        .expect_code(1)
        .expect_said("has 5 bytes, and a segment of this cluster has 16777216");
    bare.scratch.create_dir("data/pg_wal/00000004.history");
    push("pg_wal/00000004.history")
        .expect_code(1)
        .expect_said("is not a regular file");
}

#[test]
fn a_data_directory_that_cannot_be_read_is_named() {
    let bare = Bare::new("push_control");
    let name = bare.history(2, "x");
    bare.tool("init").run().expect_code(0);
    let control = bare.data.join("global/pg_control");
    mutilate::flip_bit(&control, 100, 0);
    let push = || bare.tool("archive-push").arg(format!("pg_wal/{name}")).run();
    push().expect_code(1).expect_said("global/pg_control");
    mutilate::remove(&control);
    push().expect_code(1).expect_said("global/pg_control");
    // Outside any data directory, without one configured.
    bare.configure(&bare.text.replace("data_directory", "# data_directory"));
    let away = bare.scratch.create_dir("away");
    bare.scratch.write("away/00000002.history", "x", 0o600);
    bare.tool("archive-push")
        .arg("00000002.history")
        .cwd(&away)
        .run()
        .expect_code(2)
        .expect_said("data_directory");
    Tool::new("archive-push")
        .env("PGKEEP_CONFIG", "/nonexistent")
        .arg("x")
        .run()
        .expect_code(2)
        .expect_said("/nonexistent");
}
