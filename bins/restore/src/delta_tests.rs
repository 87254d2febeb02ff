#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::layout::Places;
use common::repository::manifest::File;
use common::time::UtcTime;
use std::fs;

fn entry(path: &str, node: Node) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        mode: 0o600,
        owner: "postgres".to_owned(),
        group: "postgres".to_owned(),
        mtime: UtcTime::UNIX_EPOCH,
        node,
    }
}

fn layout(data: &Path) -> Layout {
    let places = Places {
        to: data.to_owned(),
        ..Places::default()
    };
    Layout::new(&places, &[]).unwrap()
}

#[test]
fn what_the_backup_does_not_have_or_has_as_something_else_goes_and_nothing_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (data, outside) = (dir.path().join("data"), dir.path().join("outside"));
    let at = |name: &str| data.join(name);
    for name in ["base/5", "base/6/deep", "global", "pg_wal/archive_status", "was_dir/x"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::create_dir(&outside).unwrap();
    for name in [
        "base/5/1",
        "base/5/2",
        "base/6/deep/3",
        "pg_wal/0001",
        "was_file",
        "base/5/same",
        MARKER,
        "was_dir/x/y",
    ] {
        fs::write(at(name), name).unwrap();
    }
    fs::write(outside.join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, at("link")).unwrap();
    std::os::unix::fs::symlink(outside.join("precious"), at("base/5/linked")).unwrap();
    fs::hard_link(outside.join("precious"), at("base/5/second")).unwrap();
    let file = || Node::File(File::default());
    let mut entries = vec![
        entry("data/base", Node::Directory),
        entry("data/base/5", Node::Directory),
        entry("data/base/5/1", file()),
        entry("data/base/5/linked", file()),
        entry("data/base/5/new", file()),
        entry("data/base/5/same", file()),
        entry("data/base/5/second", file()),
        entry("data/global", Node::Directory),
        entry("data/pg_wal", Node::Directory),
        entry("data/was_dir", file()),
        entry("data/was_file", Node::Directory),
    ];
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let each = |take: &mut dyn FnMut(Entry) -> Result<()>| entries.iter().cloned().try_for_each(take);
    clear(&layout(&data), 15, each).unwrap();
    for stays in ["base/5/1", "base/5/same", "global", "pg_wal", MARKER] {
        assert!(at(stays).exists(), "{stays}");
    }
    for goes in [
        "base/5/2",
        "base/6",
        "pg_wal/0001",
        "pg_wal/archive_status",
        "was_dir",
        "was_file",
        "link",
    ] {
        assert!(at(goes).symlink_metadata().is_err(), "{goes}");
    }
    for name in ["base/5/linked", "base/5/second"] {
        assert!(
            at(name).symlink_metadata().is_err(),
            "{name} is written anew, not through another name"
        );
    }
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"x");
}

#[test]
fn only_a_data_directory_that_nobody_uses_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("global")).unwrap();
    let judged = || check(Root::Data, &data, &layout(&data), SystemId(7));
    let error = judged().unwrap_err();
    assert!(error.to_string().contains("not a data directory"), "{error}");
    fs::write(data.join(MARKER), "").unwrap();
    judged().unwrap();
    fs::write(data.join("postmaster.pid"), "1").unwrap();
    assert!(judged().unwrap_err().to_string().contains("in use"));
    fs::remove_file(data.join("postmaster.pid")).unwrap();
    std::os::unix::fs::symlink(dir.path(), data.join("pg_wal")).unwrap();
    assert!(judged().unwrap_err().to_string().contains("is a link"));

    let space = dir.path().join("space");
    fs::create_dir_all(data.join("pg_tblspc")).unwrap();
    fs::create_dir(&space).unwrap();
    let judged = || check(Root::Tablespace(16400), &space, &layout(&data), SystemId(7));
    assert!(judged().is_err(), "it may be a running server's");
    std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16400")).unwrap();
    judged().unwrap();
}
