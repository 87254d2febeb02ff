//! What prune answers on the command line.
#![allow(clippy::unwrap_used)]

use system_tests::Bare;

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    let bare = Bare::new("prune_common");
    bare.check_common_answers("prune", &[], 2);
    let label = "20261120T020000Z-full-3f9a1c";
    for arguments in [
        &["--keep", label][..],
        &["--reason", "x"],
        &["--keep", label, "--reason", "x", "--unkeep", label],
        &["--keep", "yesterday", "--reason", "x"],
        &["--unkeep", label, "--renew-locks"],
        &["--garbage-after", "soon"],
    ] {
        bare.tool("prune").args(arguments).run().expect_code(2);
    }
    bare.tool("prune")
        .args(["--keep", label, "--reason", " "])
        .run()
        .expect_code(2)
        .expect_said("--reason is empty");
}

#[test]
fn a_repository_that_is_not_there_is_no_empty_one() {
    let bare = Bare::new("prune_absent");
    bare.tool("prune")
        .arg("--dry-run")
        .run()
        .expect_code(1)
        .expect_said("repository \"local\"")
        .expect_said("hint:");
}
