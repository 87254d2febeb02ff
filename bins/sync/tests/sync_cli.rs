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
