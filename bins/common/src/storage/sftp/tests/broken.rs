//! Connections that break, servers that freeze.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

/// A server that notes its process number, so that something can happen to it.
fn watched(dir: &Path, limits: Limits) -> Option<SftpStore> {
    let (server, pid) = (server()?, dir.join("pid"));
    let script = format!("echo $$ >'{}' && exec {server}", pid.display());
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    Some(store_by(&["/bin/sh", "-c", &script], &root, limits))
}

fn signal(dir: &Path, signal: Signal) {
    let pid = fs::read_to_string(dir.join("pid")).unwrap();
    kill(Pid::from_raw(pid.trim().parse().unwrap()), signal).unwrap();
}

fn body(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

#[test]
fn an_upload_goes_on_after_its_server_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let Some(store) = watched(dir.path(), QUICK) else {
        return;
    };
    let body = body(60 << 20);
    let mut upload = store.create(&key("a/long")).unwrap();
    for (number, piece) in body.chunks(1 << 20).enumerate() {
        upload.write_all(piece).unwrap();
        if [0, 7, 8, 30, 59].contains(&number) {
            signal(dir.path(), Signal::SIGKILL);
        }
    }
    let stored = upload.finish().unwrap();
    assert_eq!(
        (stored.size, stored.sha256),
        (body.len() as u64, Sha256Digest::of(&body))
    );
    assert!(
        fs::read(dir.path().join("root/a/long")).unwrap() == body,
        "what is there is what was written"
    );
    drop(store);
    assert_eq!(
        fs::read_dir(dir.path().join("root/a")).unwrap().count(),
        1,
        "and nothing beside it"
    );
}

#[test]
fn what_an_upload_keeps_in_memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(store) = watched(dir.path(), QUICK) else {
        return;
    };
    let session = store.session().unwrap();
    let staged = store.stage(&session, &key("a/long")).unwrap();
    let mut upload = upload::SftpUpload::new(store.clone(), key("a/long"), staged);
    let piece = body(1 << 20);
    for _ in 0..100 {
        upload.write_all(&piece).unwrap();
        assert!(
            upload.kept_bytes() <= 18 << 20,
            "{} bytes are kept",
            upload.kept_bytes()
        );
    }
    assert!(upload.kept_bytes() > 0);
}

#[test]
fn a_frozen_server_is_given_up_and_another_one_asked() {
    let dir = tempfile::tempdir().unwrap();
    let span = Duration::from_millis(700);
    let Some(store) = watched(
        dir.path(),
        Limits {
            connect: QUICK.connect,
            ..Limits::within(span)
        },
    ) else {
        return;
    };
    store.put_new(&key("a"), b"x").unwrap();
    signal(dir.path(), Signal::SIGSTOP);
    let began = Instant::now();
    let error = store.stat(&key("a")).unwrap_err();
    assert_eq!(error.kind(), Kind::Transient, "{error:?}");
    assert!(format!("{error:?}").contains("no answer within"), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(
        store.stat(&key("a")).unwrap().unwrap().size,
        1,
        "the next attempt has a server of its own"
    );
    // Writing fills every buffer on the way before it waits.
    signal(dir.path(), Signal::SIGSTOP);
    let began = Instant::now();
    assert_eq!(kind(store.put_new(&key("b"), &body(16 << 20))), Kind::Transient);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    store.put_new(&key("b"), b"y").unwrap();
    assert_eq!(listed(&store), ["a", "b"]);
}

/// The first connection ends after so many bytes of requests, or of answers; later ones do not.
fn ending_after(dir: &Path, requests: bool, bytes: usize, refused: &str) -> Option<SftpStore> {
    let (server, mark) = (server()?, dir.join("mark"));
    let refused = if refused.is_empty() {
        String::new()
    } else {
        format!(" -P {refused}")
    };
    let cut = match requests {
        true => format!("stdbuf -o0 head -c {bytes} | {server}{refused}"),
        // In a session of its own, so that the server, which would wait for more, can be ended with it.
        false => format!("{server}{refused} | (stdbuf -o0 head -c {bytes}; kill -KILL 0)"),
    };
    let mark = mark.display();
    let script = format!("if [ -e '{mark}' ]; then exec {server}{refused}; fi; : >'{mark}'; {cut}");
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    Some(store_by(&["setsid", "/bin/sh", "-c", &script], &root, QUICK))
}

/// What is done while the connection breaks, and how it must look afterwards.
fn work(store: &dyn Store, case: &str) {
    let long = body(300_000);
    store
        .put_new(&key("a/put"), b"put")
        .unwrap_or_else(|error| panic!("{case}: {error:?}"));
    let mut upload = store
        .create(&key("a/b/uploaded"))
        .unwrap_or_else(|error| panic!("{case}: {error:?}"));
    upload
        .write_all(&long)
        .unwrap_or_else(|error| panic!("{case}: {error:?}"));
    let stored = upload.finish().unwrap_or_else(|error| panic!("{case}: {error:?}"));
    assert_eq!(
        (stored.size, stored.sha256),
        (long.len() as u64, Sha256Digest::of(&long)),
        "{case}"
    );
    assert!(
        read_all(store, &key("a/b/uploaded"), 1 << 20).unwrap() == long,
        "{case}"
    );
    assert_eq!(
        kind(store.put_new(&key("a/put"), b"other")),
        Kind::AlreadyExists,
        "{case}"
    );
    store
        .delete(&key("a/put"))
        .unwrap_or_else(|error| panic!("{case}: {error:?}"));
    assert_eq!(listed(store), ["a/b/uploaded"], "{case}");
}

/// Where the connection is cut: the upload's bulk is all alike.
fn places(requests: bool) -> impl Iterator<Item = usize> {
    let (small, large) = if requests { (113, 300_000..302_500) } else { (61, 0..0) };
    (20..2_600).step_by(small).chain(large.step_by(113))
}

#[test]
fn a_connection_that_breaks_anywhere_is_not_noticed() {
    for refused in ["", "hardlink", "hardlink,rename"] {
        for requests in [true, false] {
            for bytes in places(requests) {
                let dir = tempfile::tempdir().unwrap();
                let Some(store) = ending_after(dir.path(), requests, bytes, refused) else {
                    return;
                };
                let store = RetryingStore::new(Arc::new(store), policy());
                work(&store, &format!("requests {requests}, -P {refused:?}, {bytes} bytes"));
            }
        }
    }
}
