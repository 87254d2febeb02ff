#![allow(clippy::unwrap_used, clippy::panic)]
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::storage::{contract, read_all};
use tempfile::TempDir;

const ALL_MEANS: [CreateOnly; 3] = [CreateOnly::HardLink, CreateOnly::RenameNoReplace, CreateOnly::OExcl];

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn fresh() -> (TempDir, PosixStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = PosixStore::new(dir.path());
    (dir, store)
}

fn kind<T>(outcome: Result<T>) -> Kind {
    outcome.err().expect("an error was due").kind()
}

#[test]
fn it_keeps_the_contract_by_every_means() {
    for means in ALL_MEANS {
        let dirs = std::sync::Mutex::new(Vec::new());
        contract::check(&|| {
            let dir = tempfile::tempdir().unwrap();
            let store = PosixStore::starting_with(dir.path(), means);
            dirs.lock().unwrap().push(dir);
            Box::new(store)
        });
    }
}

#[test]
fn directories_are_0700_and_objects_0400() {
    let (dir, store) = fresh();
    store.put_new(&key("a/b/c"), b"x").unwrap();
    let mut upload = store.create(&key("a/b/d")).unwrap();
    upload.write_all(b"x").unwrap();
    upload.finish().unwrap();
    for (path, mode) in [("a", 0o700), ("a/b", 0o700), ("a/b/c", 0o400), ("a/b/d", 0o400)] {
        let found = fs::metadata(dir.path().join(path)).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, mode, "{path}");
        assert_eq!(found.nlink() == 1, found.is_file(), "{path} has a second name");
    }
}

#[test]
fn a_missing_root_is_never_absence_and_never_created() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not-mounted");
    let store = PosixStore::new(&root);
    let key = key("a/b");
    let errors = [
        store.stat(&key).err(),
        store.open(&key, 0, None).err(),
        store.list(None, &mut |_, _| Ok(())).err(),
        store.list(Some(&key), &mut |_, _| Ok(())).err(),
        store.children(None).err(),
        store.children(Some(&key)).err(),
        store.delete(&key).err(),
        store.move_aside(&key, &Key::parse("c").unwrap()).err(),
        store.put_new(&key, b"x").err(),
        store.create(&key).err(),
        store.now().err(),
        store.free_space().err(),
        store.sweep(Duration::ZERO).err(),
    ];
    for (number, error) in errors.into_iter().enumerate() {
        let error = error.unwrap_or_else(|| panic!("operation {number} succeeded"));
        assert_eq!(error.kind(), Kind::Failed, "{number}: {error:?}");
        assert!(error.nearest_hint().unwrap().contains("mounted"), "{number}: {error:?}");
    }
    assert_eq!(store.exclusive(), Exclusive::Unknown);
    assert!(!root.exists());
    store.create_root().unwrap();
    assert!(store.stat(&key).unwrap().is_none());
}

#[test]
fn a_link_that_leads_nowhere_is_never_absence() {
    let (dir, store) = fresh();
    symlink("/nonexistent/disk", dir.path().join("wal")).unwrap();
    let key = key("wal/x");
    assert_eq!(kind(store.stat(&key)), Kind::Failed);
    assert_eq!(kind(store.open(&key, 0, None)), Kind::Failed);
    assert_eq!(kind(store.children(key.parent().as_ref())), Kind::Failed);
    assert_eq!(kind(store.list(None, &mut |_, _| Ok(()))), Kind::Failed);
    assert_eq!(kind(store.delete(&key)), Kind::Failed);
}

#[test]
fn links_that_lead_in_a_circle_are_named_and_no_object() {
    let (dir, _) = fresh();
    let root = dir.path().join("repository");
    symlink(&root, &root).unwrap();
    let store = PosixStore::new(&root);
    let key = key("main/repository.json");
    let errors = [
        store.open(&key, 0, None).err(),
        store.stat(&key).err(),
        store.children(None).err(),
        store.put_new(&key, b"").err(),
    ];
    for error in errors {
        let text = crate::error::chain(&error.unwrap());
        assert!(
            text.contains("repository directory ") && text.contains("symbolic links"),
            "{text}"
        );
    }
    // The same on the way.
    let (dir, store) = fresh();
    symlink("main", dir.path().join("main")).unwrap();
    let text = crate::error::chain(&store.open(&key, 0, None).err().unwrap());
    assert!(
        text.contains("symbolic links") && !text.contains("regular file"),
        "{text}"
    );
}

#[test]
fn a_file_in_place_of_a_directory_is_never_absence() {
    let (dir, store) = fresh();
    fs::write(dir.path().join("wal"), b"").unwrap();
    let key = key("wal/x");
    assert_eq!(kind(store.stat(&key)), Kind::Failed);
    assert_eq!(kind(store.open(&key, 0, None)), Kind::Failed);
    assert_eq!(kind(store.delete(&key)), Kind::Failed);
    assert_eq!(kind(store.put_new(&key, b"")), Kind::Failed);
}

#[test]
fn a_link_is_no_object() {
    let (dir, store) = fresh();
    fs::write(dir.path().join("secret"), b"s").unwrap();
    symlink("secret", dir.path().join("link")).unwrap();
    let link = key("link");
    assert_eq!(kind(store.open(&link, 0, None)), Kind::Refused);
    assert_eq!(kind(store.stat(&link)), Kind::Refused);
    assert_eq!(kind(store.list(None, &mut |_, _| Ok(()))), Kind::Refused);
    assert_eq!(kind(store.move_aside(&link, &key("x"))), Kind::Refused);
    assert_eq!(kind(store.put_new(&link, b"x")), Kind::AlreadyExists);
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"s");
}

#[test]
fn a_pipe_is_no_object_and_does_not_hang_the_reader() {
    let (dir, store) = fresh();
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(kind(store.open(&key("pipe"), 0, None)), Kind::Refused);
}

#[test]
fn a_directory_on_another_disk_may_be_a_link() {
    let (dir, store) = fresh();
    let other = tempfile::tempdir().unwrap();
    symlink(other.path(), dir.path().join("wal")).unwrap();
    store.put_new(&key("wal/a/x"), b"x").unwrap();
    assert_eq!(fs::read(other.path().join("a/x")).unwrap(), b"x");
    let mut seen = Vec::new();
    store
        .list(None, &mut |key, _| {
            seen.push(key);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [key("wal/a/x")]);
}

#[test]
fn stale_staging_files_and_foreign_names_are_not_listed() {
    let (dir, store) = fresh();
    store.put_new(&key("a/x"), b"x").unwrap();
    for name in [
        ".staging-0011",
        "a/.staging-0011",
        ".nfs0001",
        "a/not ours",
        "a/back\\slash",
    ] {
        fs::write(dir.path().join(name), b"").unwrap();
    }
    let mut seen = Vec::new();
    store
        .list(None, &mut |key, _| {
            seen.push(key);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [key("a/x")]);
    assert_eq!(store.children(None).unwrap(), ["a"]);
    assert_eq!(store.children(Some(&key("a"))).unwrap(), ["x"]);
}

#[test]
fn a_sweep_removes_old_staging_files_and_nothing_else() {
    let (dir, store) = fresh();
    store.put_new(&key("a/x"), b"x").unwrap();
    let stale = dir.path().join("a/.staging-0011");
    let young = store.create(&key("a/y")).unwrap();
    File::create(&stale)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(store.sweep(Duration::from_secs(86_400)).unwrap(), 1);
    assert!(!stale.exists());
    young.finish().unwrap();
    assert_eq!(store.children(Some(&key("a"))).unwrap(), ["x", "y"]);
}

#[test]
fn empty_directories_go_with_their_last_object_and_come_back() {
    let (dir, store) = fresh();
    store.put_new(&key("a/b/c"), b"x").unwrap();
    store.delete(&key("a/b/c")).unwrap();
    assert!(!dir.path().join("a").exists());
    store.put_new(&key("a/b/c"), b"x").unwrap();
    assert_eq!(read_all(&store, &key("a/b/c"), 9).unwrap(), b"x");
}

#[test]
fn creating_and_deleting_at_once_never_fails() {
    let (_dir, store) = fresh();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let key = key(&format!("a/b/{writer}"));
                for _ in 0..25 {
                    store.put_new(&key, b"x").unwrap();
                    store.delete(&key).unwrap();
                }
            });
        }
    });
}

#[test]
fn the_clock_is_that_of_the_file_system() {
    let (_dir, store) = fresh();
    assert!(store.now().unwrap().distance(UtcTime::now()) < Duration::from_secs(5));
    assert!(store.children(None).unwrap().is_empty());
}

#[test]
fn the_means_are_found_out_by_trying_and_leave_nothing() {
    let (dir, store) = fresh();
    assert_eq!(store.exclusive(), Exclusive::HardLink);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
#[allow(clippy::print_stderr)]
fn a_directory_that_may_not_be_read_is_never_absence() {
    if nix::unistd::Uid::effective().is_root() {
        eprintln!("not run: root may read everything");
        return;
    }
    let (dir, store) = fresh();
    store.put_new(&key("a/x"), b"x").unwrap();
    fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(kind(store.stat(&key("a/x"))), Kind::Failed);
    assert_eq!(kind(store.stat(&key("a/y"))), Kind::Failed);
    fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_directory_of_many_entries_is_listed_in_order() {
    // Where memory serves as a disk, the many files cost little.
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let store = PosixStore::new(dir.path());
    fs::create_dir(dir.path().join("wal")).unwrap();
    for number in 0..100_000u32 {
        let name = format!("wal/{:08X}", number.wrapping_mul(2_654_435_761));
        File::create(dir.path().join(name)).unwrap();
    }
    let (mut seen, mut last) = (0, None);
    store
        .list(Some(&key("wal")), &mut |key, _| {
            assert!(last.as_ref() < Some(&key));
            last = Some(key);
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 100_000);
}
