//! What check-archive answers on the command line.
#![allow(clippy::unwrap_used)]

use system_tests::Bare;

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    let bare = Bare::new("check_archive_common");
    bare.check_common_answers("check-archive", &[], 3);
    for arguments in [
        &["--timeout", "soon"][..],
        &["--ready-warning", "9", "--ready-critical", "8"],
        &["--repository", "elsewhere"],
    ] {
        let ran = bare.tool("check-archive").args(arguments).run().expect_code(3);
        assert!(ran.stdout.starts_with("UNKNOWN - "), "{}", ran.report());
    }
}

#[test]
fn a_server_that_does_not_answer_is_unknown() {
    let bare = Bare::new("check_archive_silent");
    bare.tool("init").run().expect_code(0);
    let ran = bare.tool("check-archive").run().expect_code(3);
    assert!(
        ran.stdout.starts_with("UNKNOWN - the server cannot be asked: "),
        "{}",
        ran.report()
    );
}
