//! What restore-test answers on the command line.
#![allow(clippy::unwrap_used)]

use system_tests::Bare;

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    let bare = Bare::new("restore_test_common");
    bare.check_common_answers("restore-test", &[], 2);
    for arguments in [
        &["--level", "thorough"][..],
        &["--backup", "yesterday"],
        &["--jobs", "0"],
        &["--target-time"],
    ] {
        bare.tool("restore-test").args(arguments).run().expect_code(2);
    }
}

#[test]
fn a_directory_inside_the_data_directory_is_refused() {
    let bare = Bare::new("restore_test_inside");
    let inside = bare.data.join("tests");
    let line = format!("[cluster.main.restore_test]\ndirectory = \"{}\"\n", inside.display());
    bare.configure(&format!("{}{line}", bare.text));
    bare.tool("restore-test")
        .run()
        .expect_code(2)
        .expect_said("lies in the data directory")
        .expect_said("directory in the cluster's restore_test table");
}
