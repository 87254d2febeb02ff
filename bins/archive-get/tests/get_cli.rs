//! What archive-get answers on the command line: 200 for everything that is no answer, 75 in a standby.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;

use system_tests::Bare;

#[test]
fn help_version_and_configuration_are_answered_with_codes_that_keep_recovery_going() {
    let bare = Bare::new("get_common");
    let arguments = ["00000002.history", "pg_wal/RECOVERYHISTORY"];
    bare.check_common_answers("archive-get", &arguments, 200);
    bare.scratch.write("data/standby.signal", "", 0o600);
    bare.check_common_answers("archive-get", &arguments, 75);
}

#[test]
fn wrong_usage_is_never_absence() {
    let bare = Bare::new("get_usage");
    bare.tool("init").run().expect_code(0);
    for code in [200, 75] {
        let get = |words: &[&str]| bare.tool("archive-get").args(words).run().expect_code(code);
        get(&[]).expect_said("Usage");
        get(&["00000002.history"]).expect_said("Usage");
        get(&["00000002.history", "a", "b"]).expect_said("Usage");
        get(&["--jobs", "3", "00000002.history", "a"]).expect_said("--jobs");
        get(&["--attempt", "--prefetch-from=x", "00000002.history", "a"]);
        get(&["nonsense", "a"]).expect_said("\"nonsense\" is not the name of a WAL file");
        bare.scratch.write("data/standby.signal", "", 0o600);
    }
}

#[test]
fn restored_absent_and_unknown_have_three_codes() {
    let bare = Bare::new("get_codes");
    let get = |name: &str| bare.tool("archive-get").args([name, "pg_wal/RECOVERYHISTORY"]).run();
    get("00000002.history")
        .expect_code(200)
        .expect_said("there is no repository of this cluster at file://");
    bare.tool("init").run().expect_code(0);
    get("00000002.history").expect_code(1).expect_quiet();
    get("000000010000000000000001").expect_code(1).expect_quiet();
    let content = "1\t0/3000000\tno recovery target specified\n";
    let name = bare.history(2, content);
    bare.tool("archive-push")
        .arg(format!("pg_wal/{name}"))
        .run()
        .expect_code(0);
    get(&name).expect_code(0).expect_quiet();
    assert_eq!(
        fs::read_to_string(bare.data.join("pg_wal/RECOVERYHISTORY")).unwrap(),
        content
    );

    // The repository is away: what this host has seen of timelines it still knows, the rest it does not.
    fs::rename(&bare.repository, bare.scratch.path("away")).unwrap();
    get(&name).expect_code(0).expect_said("comes from this host's cache");
    get("00000003.history").expect_code(200).expect_said("does not exist");
    get("000000010000000000000001").expect_code(200).expect_said("hint: ");
}
