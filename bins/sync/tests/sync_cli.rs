//! What sync answers on the command line.
#![allow(clippy::unwrap_used)]

use system_tests::Bare;

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    let bare = Bare::new("sync_common");
    bare.check_common_answers("sync", &[], 2);
    bare.tool("sync")
        .args(["--from", "nobody"])
        .run()
        .expect_code(2)
        .expect_said("there is no repository \"nobody\"");
    bare.tool("sync")
        .run()
        .expect_code(2)
        .expect_said("there is only one repository, and sync needs two")
        .expect_said("hint: configure a second one");
}

#[test]
fn a_repository_that_is_not_there_is_named() {
    let bare = Bare::new("sync_absent");
    let second = bare.scratch.path("second");
    let table = format!("\n[repository.second]\nurl = \"file://{}\"\n", second.display());
    bare.configure(&format!("{}{table}", bare.text));
    bare.tool("sync")
        .run()
        .expect_code(1)
        .expect_said("cannot bring repository \"second\" level with \"local\"")
        .expect_said("hint:");
}

#[test]
fn a_run_that_failed_is_not_repeated_at_once_by_a_timer_and_is_by_hand() {
    let bare = Bare::new("sync_needed");
    let second = bare.scratch.path("second");
    let table = format!("\n[repository.second]\nurl = \"file://{}\"\n", second.display());
    bare.configure(&format!("{}{table}", bare.text));
    let status = bare.scratch.path("state/main/status/sync.json");
    let needed = || bare.tool("sync").arg("--if-needed").run();
    needed().expect_code(1).expect_said("cannot bring repository");
    let left = std::fs::read(&status).unwrap();
    needed()
        .expect_code(0)
        .expect_said("nothing to do: the last run failed")
        .expect_said("is tried again after 10m");
    assert_eq!(
        std::fs::read(&status).unwrap(),
        left,
        "nothing was done, and nothing is told"
    );
    bare.tool("sync").run().expect_code(1);

    // Ten minutes later, and at once where WAL was missed.
    let mut told: serde_json::Value = serde_json::from_slice(&std::fs::read(&status).unwrap()).unwrap();
    assert_eq!(told["fields"]["targets"], serde_json::json!(["second"]));
    told["finished"] = "2026-01-01T00:00:00Z".into();
    system_tests::account::write(&status, told.to_string(), 0o644);
    needed().expect_code(1);
    needed().expect_code(0);
    bare.scratch.create_dir("state/main/missed");
    let missed = bare.scratch.create_dir("state/main/missed/second");
    system_tests::account::write(&missed.join("000000010000000000000007"), "", 0o600);
    needed().expect_code(1);
}
