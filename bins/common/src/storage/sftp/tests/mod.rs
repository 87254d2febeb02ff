//! Against the system's sftp-server on a pair of sockets, without ssh.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::storage::retrying::RetryingStore;
use crate::storage::{contract, read_all};

mod broken;

/// Debian's place, and those of other distributions.
const SERVERS: [&str; 3] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
];

/// The server, or the words that the test is skipped.
fn server() -> Option<&'static str> {
    let found = SERVERS.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?");
        // Past libtest, which swallows what a passing test prints.
        let line = format!("SKIPPED: {name}: no sftp-server here (package openssh-sftp-server)\n");
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
    found
}

const QUICK: Limits = Limits {
    connect: Duration::from_secs(20),
    silence: Duration::from_secs(20),
    sync: Duration::from_secs(20),
};

fn policy() -> Policy {
    Policy {
        patience: Duration::from_secs(60),
        first_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(50),
    }
}

fn store_by(command: &[&str], root: &Path, limits: Limits) -> SftpStore {
    let dial = Dial {
        command: command.iter().map(OsString::from).collect(),
        target: None,
        limits,
    };
    SftpStore::over(dial, "sftp://test".into(), root.to_str().unwrap(), policy())
}

fn fresh_with(arguments: &[&str]) -> Option<(TempDir, SftpStore)> {
    let mut command = vec![server()?];
    command.extend(arguments);
    let dir = tempfile::tempdir().unwrap();
    let store = store_by(&command, dir.path(), QUICK);
    Some((dir, store))
}

fn fresh() -> Option<(TempDir, SftpStore)> {
    fresh_with(&[])
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn kind<T>(outcome: Result<T>) -> Kind {
    outcome.err().expect("an error was due").kind()
}

fn listed(store: &dyn Store) -> Vec<String> {
    let mut seen = Vec::new();
    let mut each = |key: Key, _| {
        seen.push(key.to_string());
        Ok(())
    };
    store.list(None, &mut each).unwrap();
    seen
}

/// Servers that refuse some requests, and what is left to them.
const SERVED: [(&[&str], Exclusive, Durability); 6] = [
    (&[], Exclusive::HardLink, Durability::Synced),
    (&["-P", "hardlink"], Exclusive::RenameNoReplace, Durability::Synced),
    (
        &["-P", "hardlink,posix-rename"],
        Exclusive::RenameNoReplace,
        Durability::Synced,
    ),
    (&["-P", "hardlink,rename"], Exclusive::OExcl, Durability::Synced),
    (&["-P", "fsync"], Exclusive::HardLink, Durability::Unsynced),
    (
        &["-P", "limits,statvfs,fsync,expand-path"],
        Exclusive::HardLink,
        Durability::Unsynced,
    ),
];

#[test]
fn it_keeps_the_contract_with_whatever_the_server_allows() {
    if server().is_none() {
        return;
    }
    for (arguments, exclusive, durability) in SERVED {
        let dirs = Mutex::new(Vec::new());
        contract::check(&|| {
            let (dir, store) = fresh_with(arguments).unwrap();
            lock(&dirs).push(dir);
            Box::new(store)
        });
        let (dir, store) = fresh_with(arguments).unwrap();
        assert_eq!(
            (store.exclusive(), store.durability()),
            (exclusive, durability),
            "{arguments:?}"
        );
        drop(store);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "{arguments:?} left something"
        );
    }
}

#[test]
fn it_keeps_the_contract_behind_patience() {
    if server().is_none() {
        return;
    }
    let dirs = Mutex::new(Vec::new());
    contract::check(&|| {
        let (dir, store) = fresh().unwrap();
        lock(&dirs).push(dir);
        Box::new(RetryingStore::new(Arc::new(store), policy()))
    });
}

#[test]
fn a_server_that_can_neither_link_nor_rename_is_named() {
    let Some((dir, store)) = fresh_with(&["-P", "hardlink,rename,posix-rename"]) else {
        return;
    };
    let error = store.put_new(&key("a"), b"x").unwrap_err();
    assert!(
        format!("{error:?}").contains("neither link files nor rename"),
        "{error:?}"
    );
    assert_eq!(store.exclusive(), Exclusive::Unknown);
    drop(store);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn directories_are_0700_and_objects_0400() {
    for (arguments, ..) in SERVED {
        let Some((dir, store)) = fresh_with(arguments) else {
            return;
        };
        store.put_new(&key("a/b/c"), b"x").unwrap();
        let mut upload = store.create(&key("a/b/d")).unwrap();
        upload.write_all(b"x").unwrap();
        upload.finish().unwrap();
        // With the end of the conversation everything that was asked for is done.
        drop(store);
        for (path, mode) in [("a", 0o700), ("a/b", 0o700), ("a/b/c", 0o400), ("a/b/d", 0o400)] {
            let found = fs::metadata(dir.path().join(path)).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{path} with {arguments:?}");
            assert_eq!(found.nlink() == 1, found.is_file(), "{path} has a second name");
        }
        assert_eq!(
            fs::read_dir(dir.path().join("a/b")).unwrap().count(),
            2,
            "{arguments:?}"
        );
    }
}

#[test]
fn a_missing_root_is_never_absence_and_never_created() {
    let Some(server) = server() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("above/not-mounted");
    let store = store_by(&[server], &root, QUICK);
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
    assert_eq!(
        (store.exclusive(), store.durability()),
        (Exclusive::Unknown, Durability::Unknown)
    );
    assert!(!root.exists());
    store.prepare().unwrap();
    store.prepare().unwrap();
    assert!(store.stat(&key).unwrap().is_none());
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_link_that_leads_nowhere_is_never_absence() {
    let Some((dir, store)) = fresh() else { return };
    symlink("/nonexistent/disk", dir.path().join("wal")).unwrap();
    let key = key("wal/x");
    assert_eq!(kind(store.stat(&key)), Kind::Failed);
    assert_eq!(kind(store.open(&key, 0, None)), Kind::Failed);
    assert_eq!(kind(store.children(key.parent().as_ref())), Kind::Failed);
    assert_eq!(kind(store.list(None, &mut |_, _| Ok(()))), Kind::Failed);
    assert_eq!(kind(store.delete(&key)), Kind::Failed);
    assert_eq!(kind(store.put_new(&key, b"")), Kind::Failed);
}

#[test]
fn a_file_in_place_of_a_directory_is_never_absence() {
    let Some((dir, store)) = fresh() else { return };
    fs::write(dir.path().join("wal"), b"").unwrap();
    for key in [key("wal/x"), key("wal/x/y")] {
        assert_eq!(kind(store.stat(&key)), Kind::Failed);
        assert_eq!(kind(store.open(&key, 0, None)), Kind::Failed);
        assert_eq!(kind(store.delete(&key)), Kind::Failed);
        assert_eq!(kind(store.put_new(&key, b"")), Kind::Failed);
    }
}

#[test]
fn a_link_is_no_object() {
    let Some((dir, store)) = fresh() else { return };
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
    let Some((dir, store)) = fresh() else { return };
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(kind(store.open(&key("pipe"), 0, None)), Kind::Refused);
    assert_eq!(kind(store.list(None, &mut |_, _| Ok(()))), Kind::Refused);
}

#[test]
fn a_directory_on_another_disk_may_be_a_link() {
    let Some((dir, store)) = fresh() else { return };
    let other = tempfile::tempdir().unwrap();
    symlink(other.path(), dir.path().join("wal")).unwrap();
    store.put_new(&key("wal/a/x"), b"x").unwrap();
    assert_eq!(fs::read(other.path().join("a/x")).unwrap(), b"x");
    assert_eq!(listed(&store), ["wal/a/x"]);
}

#[test]
fn stale_staging_files_and_foreign_names_are_not_listed() {
    let Some((dir, store)) = fresh() else { return };
    store.put_new(&key("a/x"), b"x").unwrap();
    for name in [
        ".staging-0011",
        "a/.staging-0011",
        ".nfs0001",
        "a/not ours",
        "a/back\\slash",
        "a/bell\u{7}",
    ] {
        fs::write(dir.path().join(name), b"").unwrap();
    }
    assert_eq!(listed(&store), ["a/x"]);
    assert_eq!(store.children(None).unwrap(), ["a"]);
    assert_eq!(store.children(Some(&key("a"))).unwrap(), ["x"]);
}

#[test]
fn a_sweep_removes_old_staging_files_and_nothing_else() {
    let Some((dir, store)) = fresh() else { return };
    store.put_new(&key("a/x"), b"x").unwrap();
    let stale = dir.path().join("a/.staging-0011");
    let young = store.create(&key("a/y")).unwrap();
    let old = fs::File::create(&stale).unwrap();
    old.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(store.sweep(Duration::from_secs(86_400)).unwrap(), 1);
    assert!(!stale.exists());
    young.finish().unwrap();
    assert_eq!(store.children(Some(&key("a"))).unwrap(), ["x", "y"]);
}

#[test]
fn empty_directories_go_with_their_last_object_and_come_back() {
    let Some((dir, store)) = fresh() else { return };
    store.put_new(&key("a/b/c"), b"x").unwrap();
    store.delete(&key("a/b/c")).unwrap();
    assert!(!dir.path().join("a").exists());
    store.put_new(&key("a/b/c"), b"x").unwrap();
    assert_eq!(read_all(&store, &key("a/b/c"), 9).unwrap(), b"x");
}

#[test]
fn creating_and_deleting_at_once_never_fails() {
    let Some((_dir, store)) = fresh() else { return };
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
fn of_two_hosts_one_creates_a_name() {
    for (arguments, ..) in SERVED {
        let Some((dir, first)) = fresh_with(arguments) else {
            return;
        };
        let mut command = vec![server().unwrap()];
        command.extend(arguments);
        // A connection of its own, as another host has.
        let second = store_by(&command, dir.path(), QUICK);
        for round in 0..20 {
            let key = key(&format!("race/{round}"));
            let start = std::sync::Barrier::new(2);
            let put = |store: &SftpStore, body: &[u8]| {
                start.wait();
                store.put_new(&key, body)
            };
            let outcomes = std::thread::scope(|scope| {
                let other = scope.spawn(|| put(&second, b"second"));
                [put(&first, b"first"), other.join().unwrap()]
            });
            let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            assert_eq!(won, 1, "{arguments:?}: {outcomes:?}");
            let expected: &[u8] = if outcomes[0].is_ok() { b"first" } else { b"second" };
            assert_eq!(read_all(&first, &key, 99).unwrap(), expected, "{arguments:?}");
        }
    }
}

#[test]
fn the_claim_of_another_thread_is_not_taken_over() {
    const THREADS: u8 = 8;
    let Some((_dir, store)) = fresh_with(&["-P", "hardlink,rename"]) else {
        return;
    };
    for round in 0..60 {
        let key = key(&format!("race/{round}"));
        let start = std::sync::Barrier::new(usize::from(THREADS));
        let put = |number: u8| {
            start.wait();
            store.put_new(&key, &[number; 100]).is_ok()
        };
        let won: u8 = std::thread::scope(|scope| {
            let put = &put;
            let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || put(number))).collect();
            threads.into_iter().map(|thread| u8::from(thread.join().unwrap())).sum()
        });
        assert_eq!(won, 1, "in round {round}");
    }
}

#[test]
fn the_clock_is_that_of_the_server() {
    let Some((dir, store)) = fresh() else { return };
    assert!(store.now().unwrap().distance(UtcTime::now()) < Duration::from_secs(5));
    drop(store);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_room_is_that_of_the_server_if_it_tells() {
    let Some((dir, store)) = fresh() else { return };
    let space = store.free_space().unwrap().unwrap();
    let found = nix::sys::statvfs::statvfs(dir.path()).unwrap();
    assert_eq!(space.total, found.blocks() * found.fragment_size());
    let (_dir, silent) = fresh_with(&["-P", "statvfs"]).unwrap();
    assert_eq!(silent.free_space().unwrap(), None);
}

#[test]
fn a_directory_of_many_entries_is_listed_in_order() {
    let Some((dir, store)) = fresh() else { return };
    fs::create_dir(dir.path().join("wal")).unwrap();
    for number in 0..20_000u32 {
        let name = format!("wal/{:08X}", number.wrapping_mul(2_654_435_761));
        fs::File::create(dir.path().join(name)).unwrap();
    }
    let (mut seen, mut last) = (0, None);
    let mut each = |key: Key, _| {
        assert!(last.as_ref() < Some(&key));
        last = Some(key);
        seen += 1;
        Ok(())
    };
    store.list(Some(&key("wal")), &mut each).unwrap();
    assert_eq!(seen, 20_000);
}

#[test]
fn a_program_that_is_not_there_is_a_matter_of_set_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_by(&["/nonexistent/ssh"], dir.path(), QUICK);
    let error = store.stat(&key("a")).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.nearest_hint().unwrap().contains("openssh-client"), "{error:?}");
}

#[test]
fn what_is_no_sftp_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_by(&["/bin/echo", "Welcome to this machine"], dir.path(), QUICK);
    let error = store.stat(&key("a")).unwrap_err();
    assert_eq!(error.kind(), Kind::Failed, "{error:?}");
    assert!(format!("{error:?}").contains("Welc"), "{error:?}");
    assert!(error.nearest_hint().unwrap().contains(".bashrc"), "{error:?}");
    let silent = store_by(&["/bin/cat", "/dev/null"], dir.path(), QUICK);
    assert_eq!(kind(silent.stat(&key("a"))), Kind::Transient);
}

#[test]
fn nothing_waits_longer_than_the_limit() {
    let span = Duration::from_millis(300);
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let store = store_by(&["/bin/sleep", "60"], dir.path(), Limits::within(span));
    let error = store.stat(&key("a")).unwrap_err();
    assert_eq!(error.kind(), Kind::Transient);
    assert!(format!("{error:?}").contains("no answer within"), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
