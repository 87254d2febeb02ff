//! What check-age answers, to whom, and with which code.
#![allow(clippy::unwrap_used)]

use std::fs;

use system_tests::{Bare, mutilate};

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    let bare = Bare::new("check_age_common");
    bare.check_common_answers("check-age", &[], 3);
    for arguments in [
        &["--what", "luck"][..],
        &["--warning", "soon"],
        &["--warning", "2d", "--critical", "1d"],
        &["--repository", "elsewhere"],
    ] {
        let ran = bare.tool("check-age").args(arguments).run().expect_code(3);
        assert!(ran.stdout.starts_with("UNKNOWN - "), "{}", ran.report());
    }
}

#[test]
fn no_repository_and_no_backup_are_told_apart() {
    let bare = Bare::new("check_age_none");
    let ran = bare.tool("check-age").run().expect_code(3);
    assert!(
        ran.stdout.starts_with("UNKNOWN - local cannot be read: "),
        "{}",
        ran.report()
    );
    bare.tool("init").run().expect_code(0);
    for (what, words) in [
        ("backup", "CRITICAL - local has no backup\n"),
        ("full", "CRITICAL - local has no full backup\n"),
        ("restore-test", "CRITICAL - local has no restore test\n"),
        ("dump", "CRITICAL - local has no dump\n"),
    ] {
        let ran = bare.tool("check-age").args(["--what", what]).run().expect_code(2);
        assert_eq!(ran.stdout, words);
        assert_eq!(ran.stderr, "");
    }
}

#[test]
fn who_may_not_read_the_repository_gets_the_answer_from_the_status_of_this_host() {
    let bare = Bare::new("check_age_denied");
    bare.tool("init").run().expect_code(0);
    mutilate::chmod(&bare.repository.join("main"), 0o000);
    let ran = bare.tool("check-age").run().expect_code(3);
    assert!(ran.stdout.contains("Permission denied"), "{}", ran.report());
    let status = bare.scratch.path("state/main/status");
    fs::create_dir_all(&status).unwrap();
    let ago = |seconds: u64| {
        let time = common::time::UtcTime::now().minus(std::time::Duration::from_secs(seconds));
        time.to_string()
    };
    let write = |tool: &str, success: &str, result: &str| {
        let text = format!(
            r#"{{"tool":"{tool}","cluster":"main","host":"h","user":"u","pid":1,"started":"{success}","finished":"{success}",
            "result":"{result}","message":"two and two are five","exit_code":0,"last_success":"{success}",
            "last_success_fields":{{"label":"L","newest_full_timestamp_seconds":1700000000}}}}"#
        );
        fs::write(status.join(format!("{tool}.json")), text).unwrap();
    };
    for (tool, what, seconds, result, code, words) in [
        (
            "base-backup",
            "backup",
            60,
            "ok",
            0,
            "OK - the newest backup in the status of this host, L, is 1m old",
        ),
        (
            "base-backup",
            "backup",
            90_000,
            "failed",
            1,
            "WARNING - the newest backup in the status of this host, L, is 1d1h old",
        ),
        ("base-backup", "backup", 100_000, "ok", 2, "CRITICAL - "),
        (
            "base-backup",
            "full",
            60,
            "ok",
            2,
            "CRITICAL - the newest full backup in the status of this host, of 2023-11-14",
        ),
        ("restore-test", "restore-test", 60, "ok", 0, "OK - "),
        (
            "restore-test",
            "restore-test",
            60,
            "failed",
            2,
            "CRITICAL - the newest restore test in the status of this host failed: two and two",
        ),
        ("restore-test", "restore-test", 60, "temporary", 0, "OK - "),
    ] {
        write(tool, &ago(seconds), result);
        let ran = bare.tool("check-age").args(["--what", what]).run().expect_code(code);
        assert!(ran.stdout.starts_with(words), "{}", ran.report());
    }
    fs::write(status.join("base-backup.json"), "{").unwrap();
    bare.tool("check-age").run().expect_code(3);
    mutilate::chmod(&bare.repository.join("main"), 0o700);
}
