//! What init answers on the command line.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use system_tests::{Bare, Ran, Tool, account, mutilate};

#[test]
fn help_version_and_configuration_are_answered_as_everywhere() {
    let bare = Bare::new("init_common");
    bare.check_common_answers("init", &[], 2);
    bare.check_common_answers("init", &["--check"], 2);
    bare.tool("init")
        .args(["--check", "--new-history"])
        .run()
        .expect_code(2)
        .expect_said("cannot be used with");
    bare.tool("init").args(["--format", "json"]).run().expect_code(2);
}

#[test]
fn a_configuration_is_tried_before_anything_exists() {
    let bare = Bare::new("init_check_config");
    let check = || bare.tool("init").arg("--check-config").run();
    let ran = check().expect_code(0);
    assert_eq!(ran.stdout, "clusters: main; repositories: local\n", "{}", ran.report());
    bare.configure(&bare.text.replace("url =", "ulr ="));
    check().expect_code(2).expect_said("ulr").expect_said("url");
    bare.configure("");
    assert_eq!(check().expect_code(0).stdout, "clusters: none; repositories: none\n");
}

#[test]
fn a_key_is_made_once_and_never_overwritten() {
    let bare = Bare::new("init_key");
    let file = bare.scratch.path("identity.txt");
    let generate = || Tool::new("init").arg("--generate-key").arg(&file).run();
    let ran = generate().expect_code(0);
    let recipient = ran.stdout.trim().to_owned();
    assert!(
        recipient.starts_with("age1") && recipient.len() == 62,
        "{}",
        ran.report()
    );
    let before = fs::read_to_string(&file).unwrap();
    assert!(before.contains("AGE-SECRET-KEY-1") && before.contains(&recipient));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    generate()
        .expect_code(1)
        .expect_said("exists, and a key is never overwritten")
        .expect_said("hint: choose another file");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    let missing = bare.scratch.path("missing/identity.txt");
    let ran = Tool::new("init")
        .arg("--generate-key")
        .arg(&missing)
        .run()
        .expect_code(1);
    ran.expect_said(&missing.display().to_string());

    // What init made, init takes.
    let line = format!(
        "encryption = {{ recipients = [\"{recipient}\"], identity_file = \"{}\" }}\n",
        file.display()
    );
    bare.configure(&format!("{}{line}", bare.text));
    bare.tool("init").run().expect_code(0).expect_said(", encrypted,");
    bare.tool("init")
        .arg("--check")
        .run()
        .expect_said("ok   repository \"local\" key: 1 recipients, and the identity opens");
}

#[test]
fn init_may_run_again_and_changes_nothing_then() {
    let bare = Bare::new("init_again");
    bare.tool("init")
        .run()
        .expect_code(0)
        .expect_said("repository \"local\" created: file://")
        .expect_said("hard link");
    let objects = || {
        let mut found: Vec<_> = fs::read_dir(bare.repository.join("main/events"))
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .collect();
        found.sort();
        found
    };
    let before = (
        fs::read(bare.repository.join("main/repository.json")).unwrap(),
        objects(),
    );
    assert_eq!(before.1.len(), 1);
    bare.tool("init")
        .run()
        .expect_code(0)
        .expect_said("repository \"local\" is there");
    assert_eq!(
        (
            fs::read(bare.repository.join("main/repository.json")).unwrap(),
            objects()
        ),
        before
    );

    // Killed between the two objects it writes, it goes on with the second.
    mutilate::remove(&before.1[0]);
    bare.tool("init").run().expect_code(0);
    assert_eq!(objects().len(), 1);
}

/// The UUID that this host knows.
fn uuid_of(bare: &Bare) -> String {
    let text = fs::read(bare.repository.join("main/repository.json")).unwrap();
    let identity: serde_json::Value = serde_json::from_slice(&text).unwrap();
    identity["uuid"].as_str().unwrap().to_owned()
}

#[test]
fn a_repository_that_is_gone_is_not_silently_made_anew() {
    let bare = Bare::new("init_gone");
    bare.tool("init").run().expect_code(0);
    let first = uuid_of(&bare);
    let aside = bare.scratch.path("aside");

    // Its file system is not mounted.
    fs::rename(&bare.repository, &aside).unwrap();
    bare.scratch.create_dir("repository");
    bare.tool("init")
        .run()
        .expect_code(1)
        .expect_said(&first)
        .expect_said("is its file system mounted")
        .expect_said(&format!("pgkeep-init --replace {first}"));
    assert_eq!(fs::read_dir(&bare.repository).unwrap().count(), 0, "nothing was made");
    // Not even the directory that it was mounted on.
    fs::remove_dir(&bare.repository).unwrap();
    bare.tool("init")
        .run()
        .expect_code(1)
        .expect_said(&format!(
            "this host knows it with UUID {first}, and there is none at file://"
        ))
        .expect_said("is its file system mounted")
        .expect_said(&format!("pgkeep-init --replace {first}"));
    assert!(!bare.repository.exists(), "nothing was made");
    bare.tool("init").args(["--replace", "another"]).run().expect_code(1);
    bare.tool("init").args(["--replace", &first]).run().expect_code(0);
    let second = uuid_of(&bare);
    assert_ne!(first, second);

    // The first one is back, and is no longer the one that this host knows.
    fs::remove_dir_all(&bare.repository).unwrap();
    fs::rename(&aside, &bare.repository).unwrap();
    bare.tool("init")
        .run()
        .expect_code(1)
        .expect_said(&first)
        .expect_said(&second);
    bare.tool("init").args(["--replace", &second]).run().expect_code(0);
    bare.tool("init").run().expect_code(0);

    // What this host knows cannot be read: then it knows nothing for sure.
    let pin = bare.scratch.path("state/main/repository/local.json");
    account::write(&pin, "{\"x", 0o600);
    bare.tool("init")
        .run()
        .expect_code(1)
        .expect_said("it is damaged")
        .expect_said("hint:");
}

#[test]
fn a_repository_that_is_not_required_must_still_be_made() {
    let bare = Bare::new("init_optional");
    let file = bare.scratch.write("file", "", 0o600);
    let second = format!(
        "[repository.nas]\nurl = \"file://{}/below\"\nrequired = false\n",
        file.display()
    );
    bare.configure(&format!("{}\n{second}", bare.text));
    let ran = bare.tool("init").run().expect_code(1);
    assert!(ran.stdout.contains("repository \"local\" created"), "{}", ran.report());
    ran.expect_said("cannot create repository \"nas\"");
}

#[test]
fn a_repository_does_not_lie_in_what_it_keeps() {
    let bare = Bare::new("init_inside");
    for (from, to) in [
        (bare.repository.clone(), bare.data.join("backups")),
        (bare.repository.clone(), bare.scratch.path("")),
    ] {
        let text = bare.text.replace(
            &format!("file://{}", from.display()),
            &format!("file://{}", to.display()),
        );
        bare.configure(&text);
        bare.tool("init")
            .run()
            .expect_code(2)
            .expect_said("lie in each other")
            .expect_said("hint:");
        assert!(!to.join("main").exists());
    }
}

#[test]
fn a_missing_identity_does_not_keep_a_host_from_storing() {
    let bare = Bare::new("init_no_identity");
    let file = bare.scratch.path("identity.txt");
    let ran = Tool::new("init").arg("--generate-key").arg(&file).run().expect_code(0);
    let line = format!(
        "encryption = {{ recipients = [\"{}\"], identity_file = \"{}\" }}\n",
        ran.stdout.trim(),
        file.display()
    );
    bare.configure(&format!("{}{line}", bare.text));
    mutilate::remove(&file);
    bare.tool("init").run().expect_code(0);
    bare.tool("init")
        .arg("--check")
        .run()
        .expect_code(1)
        .expect_said("FAIL repository \"local\" key")
        .expect_said(&file.display().to_string());
}

#[test]
fn a_repository_in_clear_is_not_encrypted_later() {
    let bare = Bare::new("init_clear");
    bare.tool("init").run().expect_code(0);
    let recipient = Tool::new("init")
        .arg("--generate-key")
        .arg(bare.scratch.path("id"))
        .run()
        .expect_code(0);
    let line = format!("encryption = {{ recipients = [\"{}\"] }}\n", recipient.stdout.trim());
    bare.configure(&format!("{}{line}", bare.text));
    bare.tool("init")
        .run()
        .expect_code(2)
        .expect_said("is not encrypted, and recipients are configured for it")
        .expect_said("choose another url");
}

#[test]
fn another_clusters_data_directory_is_refused() {
    let bare = Bare::new("init_other");
    bare.tool("init").run().expect_code(0);
    let control = bare.data.join("global/pg_control");
    let mut bytes = fs::read(&control).unwrap();
    bytes[..8].copy_from_slice(&4711u64.to_le_bytes());
    let crc = common::digest::crc32c(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    fs::write(&control, bytes).unwrap();
    bare.tool("init")
        .run()
        .expect_code(1)
        .expect_said("and this cluster has 4711")
        .expect_said("--new-history");
    bare.tool("init")
        .arg("--check")
        .run()
        .expect_code(1)
        .expect_said("FAIL repository \"local\" system identifier");
    bare.tool("init")
        .arg("--new-history")
        .run()
        .expect_code(0)
        .expect_said("system identifier 4711");
    bare.tool("init").run().expect_code(0);
    mutilate::remove(&control);
    bare.tool("init")
        .run()
        .expect_code(1)
        .expect_said("pg_control")
        .expect_said("is data_directory right");
}

#[test]
fn check_has_a_line_for_everything_and_fails_if_one_does() {
    let bare = Bare::new("init_check");
    let check = || bare.tool("init").arg("--check").run();
    let ran = check().expect_code(1);
    ran.expect_said("FAIL repository \"local\" identity: ")
        .expect_said("create it with pgkeep-init");
    assert!(
        fs::read_dir(&bare.repository).unwrap().next().is_none(),
        "--check creates nothing"
    );
    bare.tool("init").run().expect_code(0);
    // The file system of whoever tests may be short of space, which is no more than said.
    let ran = check().expect_code(1);
    let failing = ran.stdout.lines().filter(|line| line.starts_with("FAIL ")).count();
    let ran = ran.expect_said(&format!("{failing} of 12 checks do not hold"));
    for line in [
        "ok   configuration: ",
        "ok   state directory: ",
        "ok   spool directory: ",
        "ok   data directory: ",
        "FAIL server: ",
        "ok   repository \"local\" identity: UUID ",
        "ok   repository \"local\" system identifier: ",
        "ok   repository \"local\" write, read, delete: works, exclusive creation by hard link",
        "ok   repository \"local\" key: not encrypted",
        "ok   repository \"local\" clock: ",
        "repository \"local\" space: ",
    ] {
        ran.clone().expect_said(line);
    }
    assert!(!bare.repository.join("main/lease").exists(), "the probe is gone");
    mutilate::chmod(&bare.repository.join("main"), 0o500);
    check()
        .expect_code(1)
        .expect_said("FAIL repository \"local\" write, read, delete: ")
        .expect_said("Permission denied");
    mutilate::chmod(&bare.repository.join("main"), 0o700);
}

/// The lines of a check that begin with FAIL, but for that of the server, which there is none of, and of free space.
fn failing(check: &Ran) -> Vec<&str> {
    let other =
        |line: &&str| line.starts_with("FAIL ") && !line.starts_with("FAIL server: ") && !line.contains(" space: ");
    check.stdout.lines().filter(other).collect()
}

#[test]
fn check_asks_as_the_owner_what_root_could_reach() {
    if !account::is_root() {
        system_tests::stand::skipped("only root can keep something from somebody else");
        return;
    }
    let bare = Bare::new("init_check_access");
    let (extra, state, spool) = (
        bare.scratch.create_dir("extra"),
        bare.scratch.path("state/main"),
        bare.scratch.path("spool/main"),
    );
    account::write(&extra.join("file"), "", 0o600);
    let line = format!("extra_paths = [\"{}\"]\n[repository.local]", extra.display());
    bare.configure(&bare.text.replace("[repository.local]", &line));
    bare.tool("init").run().expect_code(0);
    account::create_dir(&spool, 0o700);
    let check = || bare.tool("init").arg("--check").as_root().run().expect_code(1);
    let ran = check();
    assert_eq!(failing(&ran), Vec::<&str>::new(), "{}", ran.report());

    for (kept, mode, what, mend) in [
        (&bare.config, 0o600, "configuration", "chmod 640 "),
        (&state, 0o755, "state directory", "install -d -o "),
        (&state.join("repository"), 0o755, "state directory", "install -d -o "),
        (&spool, 0o755, "spool directory", "install -d -o "),
        (&extra, 0o711, "extra path", "extra_excludes"),
        (&extra.join("file"), 0o600, "extra path", "extra_excludes"),
    ] {
        let before = fs::metadata(kept).unwrap().permissions().mode();
        chown(kept, Some(0), Some(0)).unwrap();
        mutilate::chmod(kept, mode);
        let ran = check();
        let [line] = failing(&ran)[..] else {
            panic!("{what}: {}", ran.report())
        };
        assert!(line.starts_with(&format!("FAIL {what}")), "{line}");
        for said in ["Permission denied", mend, &kept.display().to_string()] {
            assert!(line.contains(said), "{said} is not in {line}");
        }
        mutilate::chmod(kept, before & 0o7777);
        account::give(kept);
    }
    let ran = check();
    assert_eq!(failing(&ran), Vec::<&str>::new(), "{}", ran.report());
}

#[test]
fn where_a_repository_may_not_be_made_root_is_told_how() {
    if !account::is_root() {
        system_tests::stand::skipped("only root can keep something from somebody else");
        return;
    }
    let bare = Bare::new("init_not_let_in");
    let above = bare.scratch.create_dir("srv");
    chown(&above, Some(0), Some(0)).unwrap();
    mutilate::chmod(&above, 0o755);
    let wanted = above.join("new");
    bare.configure(&bare.text.replace(
        &format!("file://{}", bare.repository.display()),
        &format!("file://{}", wanted.display()),
    ));
    let hint = format!(" -m 700 {}", wanted.display());
    bare.tool("init")
        .run()
        .expect_code(1)
        .expect_said("Permission denied")
        .expect_said("hint: as root: install -d -o ")
        .expect_said(&hint);
    // It is there, and belongs to somebody else.
    fs::create_dir(&wanted).unwrap();
    bare.tool("init").run().expect_code(1).expect_said(&hint);
    account::give(&wanted);
    bare.tool("init").run().expect_code(0);
}

#[test]
fn without_a_data_directory_the_server_has_to_say_which_system_it_is() {
    let bare = Bare::new("init_no_data");
    let configured = format!("data_directory = \"{}\"\n", bare.data.display());
    bare.configure(&bare.text.replace(&configured, ""));
    bare.tool("init")
        .run()
        .expect_code(75)
        .expect_said("cluster \"main\" has no data_directory, and its server does not name the system identifier")
        .expect_said("hint: ");
    assert_eq!(fs::read_dir(&bare.repository).unwrap().count(), 0, "nothing was made");
    bare.tool("init")
        .arg("--check")
        .run()
        .expect_code(1)
        .expect_said("FAIL data directory: none is configured, and whether this cluster is only dumped is not known")
        .expect_said("FAIL server: ");
}
