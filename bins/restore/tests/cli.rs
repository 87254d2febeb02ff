//! The command line of pgkeep-restore: codes, streams, what is left behind.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod sample;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use sample::{LABEL, Sample, read, run};

#[test]
fn wrong_usage_is_2() {
    for args in [
        &[][..],
        &["--to", "/x", "--unknown"],
        &["--to", "/x", "--target-xid", "5", "--target-immediate"],
        &["--to", "/x", "--standby", "--target-immediate"],
        &["--to", "/x", "--target-exclusive"],
        &["--to", "/x", "--target-action", "pause"],
        &["--to", "/x", "--tablespace", "nonsense"],
        &["--to", "/x", "--jobs", "0"],
    ] {
        assert_eq!(run(args).code, 2, "{args:?}");
    }
    assert_eq!(run(&["--version"]).code, 0);
}

#[test]
fn a_configuration_that_cannot_be_used_is_2() {
    run(&["--config", "/nonexistent/pgkeep.toml", "--to", "/x"]).ended(2, &["/nonexistent/pgkeep.toml"]);
    let sample = Sample::empty(false);
    sample.restore_to("pg", &["--repository", "c"]).ended(2, &["\"c\""]);
    sample.restore_to("pg", &["--cluster", "other"]).ended(2, &["other"]);
}

#[test]
fn a_part_of_a_cluster_is_no_standby_and_no_place_to_archive_from() {
    let sample = Sample::empty(false);
    for other in [&["--standby"][..], &["--delta"], &["--archive-mode", "keep"]] {
        let arguments = [&["--only-database", "x"], other].concat();
        sample.restore_to("pg", &arguments).ended(2, &["--only-database"]);
    }
}

#[test]
fn a_target_that_is_not_understood_is_2() {
    let sample = Sample::empty(false);
    for args in [
        &["--target-time", "2026-11-20 12:00:00"][..],
        &["--target-lsn", "x"],
        &["--target-xid", "0"],
        &["--target-timeline", "newest"],
        &["--backup", "../x"],
    ] {
        sample.restore_to("pg", args).ended(2, &[]);
    }
}

#[test]
fn no_backup_and_no_repository_are_told_apart() {
    let sample = Sample::empty(false);
    sample
        .restore_to("pg", &[])
        .ended(1, &["there is no backup", "pgkeep-base-backup"]);
    assert!(!sample.path("pg").exists());
    std::fs::remove_dir_all(sample.path("a")).unwrap();
    std::fs::remove_dir_all(sample.path("b")).unwrap();
    let run = sample.restore_to("pg", &[]).ended(1, &["does not exist"]);
    assert!(!run.stderr.contains("there is no backup"), "{}", run.stderr);
}

#[test]
fn a_destination_that_holds_anything_is_refused_and_left_alone() {
    let sample = Sample::new(false);
    std::fs::create_dir(sample.path("pg")).unwrap();
    std::fs::write(sample.path("pg/precious"), "x").unwrap();
    sample.restore_to("pg", &[]).ended(1, &["not empty", "precious"]);
    assert_eq!(std::fs::read_dir(sample.path("pg")).unwrap().count(), 1);
    std::fs::remove_file(sample.path("pg/precious")).unwrap();
    std::fs::create_dir(sample.path("ts")).unwrap();
    std::fs::write(sample.path("ts/precious"), "x").unwrap();
    sample.restore_to("pg", &[]).ended(1, &["tablespace 16400", "precious"]);
    assert_eq!(std::fs::read_dir(sample.path("pg")).unwrap().count(), 0);
}

#[test]
fn a_restore_brings_everything_back() {
    for encrypted in [false, true] {
        let sample = Sample::new(encrypted);
        sample
            .restore_to("pg", &["--extra-to", sample.path("extra").to_str().unwrap()])
            .ended(0, &[LABEL, "restored"]);
        let pg = sample.path("pg");
        for (name, content) in &sample.files {
            let restored = match name.split_once('/').unwrap() {
                ("data", "tablespace_map" | "standby.signal" | "postgresql.auto.conf") => continue,
                ("data", name) => read(&pg, name),
                ("tablespace", name) => read(&sample.path("ts"), name.strip_prefix("16400/").unwrap()),
                (_, name) => read(&sample.path("extra"), name),
            };
            assert!(restored == *content, "{name}");
        }
        assert_eq!(
            std::fs::read_link(pg.join("pg_tblspc/16400")).unwrap(),
            sample.path("ts")
        );
        assert_eq!(
            std::fs::read_link(pg.join("link")).unwrap().to_str(),
            Some("base/5/1259")
        );
        assert!(pg.join("recovery.signal").exists());
        for gone in [
            "standby.signal",
            "tablespace_map",
            "pgkeep-restore-unfinished",
            "global/pg_control.pgkeep-restore",
        ] {
            assert!(!pg.join(gone).exists(), "{gone}");
        }
        let mode = |name: &str| pg.join(name).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(""), mode("base/5"), mode("base/5/1259")), (0o750, 0o700, 0o600));
        assert_eq!(pg.join("base/5/1259").metadata().unwrap().mtime(), 1_795_050_123);
        let settings = String::from_utf8(read(&pg, "postgresql.auto.conf")).unwrap();
        assert!(
            settings.contains("work_mem = '4MB'") && !settings.contains("inherited"),
            "{settings}"
        );
        for line in [
            "archive_mode = 'off'",
            "recovery_target_timeline = '1'",
            "pgkeep-archive-get --config",
        ] {
            assert!(settings.contains(line), "{line} is not in\n{settings}");
        }
        let manifest = String::from_utf8(read(&pg, "backup_manifest")).unwrap();
        assert!(manifest.contains("pg_tblspc/16400/PG_15_202209061/5/1") && manifest.contains("global/pg_control"));
        assert!(!manifest.contains("tablespace_map") && !manifest.contains("main.conf"));
        let status = std::fs::read_to_string(sample.path("state/main/status/restore.json")).unwrap();
        assert!(status.contains(LABEL), "{status}");
    }
}

#[test]
fn places_are_chosen_by_flags() {
    let sample = Sample::new(false);
    let mapping = format!("16400={}", sample.path("other").display());
    let wal = sample.path("wal");
    sample
        .restore_to("pg", &["--tablespace", &mapping, "--wal-dir", wal.to_str().unwrap()])
        .ended(0, &["left out"]);
    assert!(!sample.path("ts").exists());
    assert_eq!(
        std::fs::read_link(sample.path("pg/pg_tblspc/16400")).unwrap(),
        sample.path("other")
    );
    assert_eq!(std::fs::read_link(sample.path("pg/pg_wal")).unwrap(), wal);
    assert!(wal.join("archive_status").is_dir());
    assert!(sample.path("other/PG_15_202209061/5/1").is_file());
}

#[test]
fn archiving_stays_on_only_in_the_configured_directory_or_when_asked() {
    let has = |sample: &Sample, to: &str| {
        String::from_utf8(read(&sample.path(to), "postgresql.auto.conf"))
            .unwrap()
            .contains("archive_mode")
    };
    // Another machine has the same configuration; a pin alone says only that something was read here.
    let sample = Sample::new(false);
    sample.pin("a");
    sample
        .restore_to("configured", &[])
        .ended(0, &["archiving  off", "--archive-mode keep"]);
    assert!(has(&sample, "configured"));
    let sample = Sample::new(false);
    sample.pin("a");
    sample.has_archived();
    sample
        .restore_to("configured", &[])
        .ended(0, &["as configured in the backup"]);
    assert!(!has(&sample, "configured"));
    let sample = Sample::new(false);
    sample.restore_to("pg", &["--archive-mode", "keep"]).ended(0, &[]);
    assert!(!has(&sample, "pg"));
}

#[test]
fn a_standby_follows_its_primary() {
    let sample = Sample::new(false);
    sample
        .restore_to("pg", &["--standby", "--primary-conninfo", "host=b password=it's"])
        .ended(0, &["stay a standby"]);
    assert!(sample.path("pg/standby.signal").exists() && !sample.path("pg/recovery.signal").exists());
    let settings = String::from_utf8(read(&sample.path("pg"), "postgresql.auto.conf")).unwrap();
    assert!(
        settings.contains("primary_conninfo = 'host=b password=it''s'"),
        "{settings}"
    );
    assert!(settings.contains("recovery_target_timeline = 'latest'"), "{settings}");
}

/// What Patroni 4.0.7 appends to the command of a create_replica_methods entry with keep_data and no_leader.
#[test]
fn what_patroni_appends_is_understood() {
    let sample = Sample::new(false);
    let directory = format!("--datadir={}", sample.path("pg").display());
    let appended = [
        "--standby",
        "--delta",
        "--keep_data=True",
        "--no_leader=True",
        "--scope=main",
        "--role=replica",
        &directory,
        "--connstring=host=10.0.0.1 user=replicator",
    ];
    sample.restore(&appended).ended(0, &["stay a standby"]);
    assert!(sample.path("pg/standby.signal").exists());
}

#[test]
fn a_dry_run_shows_the_plan_on_stdout_and_touches_nothing() {
    let sample = Sample::new(false);
    let run = sample
        .restore_to("pg", &["--dry-run", "--target-lsn", "0/4000000"])
        .ended(0, &[]);
    for words in [
        LABEL,
        "LSN 0/4000000",
        "pause (the default for a target)",
        "3 segments",
        "archiving  off",
    ] {
        assert!(run.stdout.contains(words), "{words} is not in\n{}", run.stdout);
    }
    let json = sample
        .restore_to("pg", &["--dry-run", "--format", "json"])
        .ended(0, &[])
        .stdout;
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["backup"]["label"], LABEL);
    assert_eq!(plan["action"], "promote");
    assert!(!sample.path("pg").exists() && !sample.path("state/main/status").exists());
}

#[test]
fn missing_wal_is_refused_by_name() {
    let sample = Sample::new(false);
    for repository in ["a", "b"] {
        let segment = "wal/7710397857816060470/0000000100000000/000000010000000000000004.zst";
        std::fs::remove_file(sample.object(repository, segment)).unwrap();
    }
    sample
        .restore_to("pg", &[])
        .ended(1, &["000000010000000000000004 is missing", "hint:"]);
    sample
        .restore_to("pg", &["--dry-run", "--target-immediate"])
        .ended(0, &[]);
}

#[test]
fn a_moment_out_of_reach_is_refused_with_the_windows() {
    let sample = Sample::new(false);
    sample
        .restore_to("pg", &["--target-time", "2026-11-20T01:00:00Z"])
        .ended(1, &["lies before", "reachable", "2026-11-20T02:01:00Z"]);
}

#[test]
fn a_bundle_damaged_in_one_repository_is_read_from_the_other() {
    for encrypted in [false, true] {
        let sample = Sample::new(encrypted);
        let suffix = if encrypted { ".age" } else { "" };
        sample.flip("a", &format!("backup/{LABEL}/data/1.tar.zst{suffix}"));
        sample
            .restore_to("pg", &["--jobs", "1"])
            .ended(0, &["repository \"a\" cannot give bundle 1"]);
        assert!(read(&sample.path("pg"), "base/5/1259") == sample.files["data/base/5/1259"]);
    }
}

#[test]
fn damage_everywhere_leaves_nothing_that_starts() {
    let bundle = format!("backup/{LABEL}/data/1.tar.zst");
    let sample = Sample::new(false);
    sample.flip("a", &bundle);
    std::fs::remove_file(sample.object("b", &bundle)).unwrap();
    let object = format!("{bundle} of repository \"a\"");
    sample
        .restore_to("pg", &[])
        .ended(1, &["bundle 1", &object, "no repository that was asked has it whole"]);
    assert!(!sample.path("pg/global/pg_control").exists());
    assert!(sample.path("pg/pgkeep-restore-unfinished").exists());
    sample.restore_to("pg", &[]).ended(1, &["not empty", "did not end"]);
    let status = std::fs::read_to_string(sample.path("state/main/status/restore.json")).unwrap();
    assert!(status.contains("\"failed\""), "{status}");
}

#[test]
fn a_damaged_manifest_is_read_from_the_other_repository_or_ends_the_restore() {
    let manifest = format!("backup/{LABEL}/manifest.zst");
    let sample = Sample::new(false);
    sample.flip("a", &manifest);
    sample
        .restore_to("pg", &["--dry-run"])
        .ended(0, &["from repository \"a\""]);
    sample.flip("b", &manifest);
    sample.restore_to("pg", &[]).ended(1, &["manifest"]);
    assert!(!sample.path("pg").exists());
}

#[test]
fn without_the_right_key_nothing_is_touched() {
    let sample = Sample::new(true);
    let config = std::fs::read_to_string(sample.path("pgkeep.toml")).unwrap();
    let keyless: Vec<String> = config
        .lines()
        .map(|line| line.split(", identity_file").next().unwrap().to_owned())
        .collect();
    let keyless: Vec<String> = keyless
        .into_iter()
        .map(|line| {
            if line.starts_with("encryption") {
                line + " }"
            } else {
                line
            }
        })
        .collect();
    std::fs::write(sample.path("pgkeep.toml"), keyless.join("\n")).unwrap();
    sample
        .restore_to("pg", &[])
        .ended(2, &["no identity is configured", "identity_file"]);
    std::fs::write(sample.path("pgkeep.toml"), config).unwrap();
    std::fs::write(sample.path("identity.txt"), common::codec::generate_identity().0).unwrap();
    sample.restore_to("pg", &[]).ended(2, &["decrypt"]);
    assert!(!sample.path("pg").exists());
}

#[test]
fn a_repository_that_is_away_is_a_warning_while_another_has_everything() {
    let sample = Sample::new(false);
    std::fs::rename(sample.path("a"), sample.path("away")).unwrap();
    sample
        .restore_to("pg", &["--dry-run"])
        .ended(0, &["repository \"a\" does not answer"]);
}

#[test]
fn a_repository_with_another_uuid_than_this_host_knows_is_refused() {
    let sample = Sample::new(false);
    sample.pin("a");
    let identity = sample.object("a", "repository.json");
    let other = std::fs::read_to_string(sample.object("b", "repository.json")).unwrap();
    std::fs::set_permissions(&identity, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&identity, other).unwrap();
    sample
        .restore_to("pg", &[])
        .ended(1, &["repository \"a\" has UUID", "this host knows it as", "hint:"]);
    assert!(!sample.path("pg").exists());
}

#[test]
fn a_damaged_document_is_never_believed_and_the_way_out_is_named() {
    let sample = Sample::new(false);
    let document = format!("backup/{LABEL}/backup.json");
    sample.flip("a", &document);
    sample
        .restore_to("pg", &["--dry-run"])
        .ended(0, &["repository \"a\"", "cannot be used"]);
    sample.flip("b", &document);
    sample
        .restore_to("pg", &["--dry-run"])
        .ended(1, &["there is no backup that can be used", LABEL, "hint:"]);
}

#[test]
fn a_dry_run_fails_where_the_restore_would() {
    let sample = Sample::new(false);
    let (repository, live) = (sample.path("a/main/x"), sample.path("live"));
    std::fs::create_dir_all(live.join("global")).unwrap();
    std::fs::write(live.join("PG_VERSION"), "15\n").unwrap();
    std::fs::write(sample.path("file"), "").unwrap();
    for dry_run in [&["--dry-run"][..], &[]] {
        for (to, words) in [
            (repository.to_str().unwrap(), "inside repository \"a\""),
            (live.join("x").to_str().unwrap(), "inside the data directory"),
            (sample.path("file/x").to_str().unwrap(), ""),
        ] {
            sample.restore(&[&["--to", to], dry_run].concat()).ended(1, &[words]);
        }
    }
    assert!(!repository.exists() && !live.join("x").exists());
}

#[test]
fn a_transaction_with_an_epoch_says_what_was_cut() {
    let sample = Sample::new(false);
    sample
        .restore_to("pg", &["--target-xid", "12345678901234", "--dry-run"])
        .ended(0, &[]);
    let run = sample.restore_to("pg", &["--target-xid", "12345678901234", "--dry-run"]);
    assert!(run.stdout.contains("epoch 2874 was cut off"), "{}", run.stdout);
}

#[test]
fn a_gap_that_a_repository_without_an_answer_may_fill_is_temporary() {
    let sample = Sample::new(false);
    let segment = "wal/7710397857816060470/0000000100000000/000000010000000000000003.zst";
    std::fs::remove_file(sample.object("b", segment)).unwrap();
    std::fs::rename(sample.path("a"), sample.path("away")).unwrap();
    sample
        .restore_to("pg", &[])
        .ended(75, &["000000010000000000000003 is missing", "did not answer"]);
    sample
        .restore_to("pg", &["--repository", "b"])
        .ended(1, &["is missing"]);
}
