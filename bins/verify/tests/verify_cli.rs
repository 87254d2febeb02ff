//! What verify answers on the command line.
#![allow(clippy::unwrap_used)]

use system_tests::Bare;

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    let bare = Bare::new("verify_common");
    bare.check_common_answers("verify", &[], 2);
    for arguments in [
        &["--read-data=0"][..],
        &["--read-data=101"],
        &["--read-data", "5"],
        &["--backup", "x"],
    ] {
        bare.tool("verify").args(arguments).run().expect_code(2);
    }
    bare.tool("verify")
        .args(["--repair-from", "local"])
        .run()
        .expect_code(2)
        .expect_said("cannot be mended from itself");
    bare.tool("verify")
        .args(["--repair-from", "nobody"])
        .run()
        .expect_code(2)
        .expect_said("nobody");
}

#[test]
fn a_repository_that_is_not_there_is_no_damage() {
    let bare = Bare::new("verify_absent");
    let ran = bare
        .tool("verify")
        .run()
        .expect_code(75)
        .expect_said("cannot be checked");
    assert!(!ran.stdout.contains("DAMAGE"), "{}", ran.report());
}
