//! What killed processes and departed data directories leave behind goes by itself, and nothing that is in use.
#![allow(clippy::unwrap_used, clippy::panic)]

mod archive_stand;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use archive_stand::{Archive, get, push};
use system_tests::{Server, Site, account, each_major, wait_until};

const TWO_DAYS: Duration = Duration::from_secs(2 * 86_400);

/// Makes a file or directory look as if nobody had touched it for two days.
fn age(path: &Path) {
    let then = SystemTime::now() - TWO_DAYS;
    File::open(path).unwrap().set_modified(then).unwrap();
}

/// A spool as a data directory that is gone leaves it.
fn abandoned(site: &Site, kind: &str) -> PathBuf {
    let mut place = site.dir.join("spool");
    for part in ["main", kind, "0123456789abcdef0123456789abcdef"] {
        place = place.join(part);
        if !place.is_dir() {
            account::create_dir(&place, 0o700);
        }
    }
    for name in ["lock", "000000010000000000000001-ab"] {
        account::write(&place.join(name), "x", 0o600);
        age(&place.join(name));
    }
    age(&place);
    place
}

each_major!(spools_that_nobody_uses_go_once_an_hour_and_those_in_use_stay: 15);
fn spools_that_nobody_uses_go_once_an_hour_and_those_in_use_stay(server: &Server) {
    let archive = Archive::clear(server, 4);
    let data = archive.pgdata("primary");
    let collected = archive.site.dir.join("spool/main/collected");
    for name in &archive.segments {
        archive.ready(&data, name);
    }
    archive.push(&data, &archive.segments[0]).expect_code(0);
    assert!(collected.exists());
    let (old_get, old_push) = (abandoned(&archive.site, "get"), abandoned(&archive.site, "push"));
    archive.push(&data, &archive.segments[0]).expect_code(0);
    assert!(old_get.exists() && old_push.exists(), "not twice within an hour");
    age(&collected);
    archive.push(&data, &archive.segments[0]).expect_code(0);
    assert!(!old_get.exists() && !old_push.exists());
    // The markers of this data directory are still believed.
    let aside = archive.scratch.path("aside");
    fs::rename(&archive.repo().dir, &aside).unwrap();
    push(&archive.site, &data, &archive.segments[1])
        .run()
        .expect_code(0)
        .expect_quiet();
    fs::rename(&aside, &archive.repo().dir).unwrap();

    // The same by archive-get, in the background.
    let site = archive.site.set("prefetch_limit", "\"100MiB\"");
    let old_get = abandoned(&site, "get");
    age(&collected);
    get(&site, &data, &archive.segments[0]).expect_code(0);
    wait_until("the unused spool is gone", system_tests::wait::PATIENCE, || {
        !old_get.exists()
    });
}

each_major!(a_base_backup_removes_what_was_abandoned_half_written: 15);
fn a_base_backup_removes_what_was_abandoned_half_written(server: &Server) {
    let archive = Archive::clear(server, 1);
    let wal = archive.repo().wal(&archive.segments[0]);
    let (old, young) = (
        wal.with_file_name(".staging-0123456789abcdef"),
        wal.with_file_name(".staging-fedcba9876543210"),
    );
    for path in [&old, &young] {
        account::write(path, "half", 0o400);
    }
    age(&old);
    archive.site.archive(&archive.cluster);
    archive.cluster.start();
    archive
        .site
        .tool("base-backup")
        .args(["--type", "full"])
        .run()
        .expect_code(0);
    assert!(!old.exists() && young.exists());
    archive.cluster.stop(system_tests::Stop::Fast);
}
