//! The suite that every store passes; tests of other stores call [`check`].
//!
//! It tells a broken promise by a panic whose message says which, so it belongs in tests only.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};

use super::{Key, Store, read_all};
use crate::digest::Sha256Digest;
use crate::error::{Error, Kind, Result};

/// Makes a store that holds nothing yet.
pub type Make<'a> = &'a dyn Fn() -> Box<dyn Store>;

/// Checks all of the contract, each part against a store of its own.
///
/// # Panics
/// At the first promise that is broken.
pub fn check(make: Make<'_>) {
    what_was_put_comes_back(&*make());
    an_object_is_created_once(&*make());
    an_object_appears_with_finish_and_not_before(&*make());
    an_upload_that_is_dropped_leaves_nothing(&*make());
    ranges_are_cut_to_what_is_there(&*make());
    absence_is_told_apart(&*make());
    a_listing_is_complete_and_in_order(&*make());
    a_prefix_means_whole_components(&*make());
    an_error_of_the_visitor_ends_a_listing(&*make());
    deleting_twice_is_fine(&*make());
    moving_aside_takes_no_name_twice(&*make());
    of_many_creators_one_wins(&*make());
    the_clock_agrees_with_the_objects(&*make());
    let _ = make().free_space().unwrap();
    let _ = make().exclusive();
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn kind<T>(outcome: Result<T>, promise: &str) -> Kind {
    match outcome {
        Ok(_) => panic!("{promise}: it succeeded"),
        Err(error) => error.kind(),
    }
}

fn get(store: &dyn Store, key: &Key) -> Vec<u8> {
    read_all(store, key, u64::MAX).unwrap()
}

fn listed(store: &dyn Store, prefix: Option<&Key>) -> Vec<String> {
    let mut seen = Vec::new();
    let mut each = |key: Key, _| {
        seen.push(key.to_string());
        Ok(())
    };
    store.list(prefix, &mut each).unwrap();
    seen
}

/// Bytes that compress badly and repeat nowhere near.
fn body(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

fn what_was_put_comes_back(store: &dyn Store) {
    for (number, length) in [0, 1, 4096, 5 << 20].into_iter().enumerate() {
        let body = body(length);
        let put = key(&format!("size/{number}/put"));
        let uploaded = key(&format!("size/{number}/uploaded"));
        let stored = store.put_new(&put, &body).unwrap();
        assert_eq!(stored.size, length as u64);
        assert_eq!(
            stored.sha256,
            Sha256Digest::of(&body),
            "the digest is that of the stored bytes"
        );
        let mut upload = store.create(&uploaded).unwrap();
        for piece in body.chunks(100_003) {
            upload.write_all(piece).unwrap();
        }
        upload.flush().unwrap();
        assert_eq!(upload.finish().unwrap(), stored, "upload and put_new report the same");
        for key in [&put, &uploaded] {
            assert!(get(store, key) == body, "{key} comes back as it was");
            assert_eq!(store.stat(key).unwrap().unwrap().size, length as u64);
        }
    }
}

fn an_object_is_created_once(store: &dyn Store) {
    let key = key("a/once");
    store.put_new(&key, b"first").unwrap();
    for body in [&b"first"[..], b"other"] {
        assert_eq!(kind(store.put_new(&key, body), "a second put_new"), Kind::AlreadyExists);
        let second = store.create(&key).and_then(|mut upload| {
            upload.write_all(body).map_err(|error| Error::io(error, "write"))?;
            upload.finish()
        });
        assert_eq!(kind(second, "a second upload"), Kind::AlreadyExists);
    }
    assert_eq!(get(store, &key), b"first", "nothing is overwritten");
    assert_eq!(listed(store, None), ["a/once"], "the losers leave nothing behind");
}

fn an_object_appears_with_finish_and_not_before(store: &dyn Store) {
    let key = key("a/late");
    let mut upload = store.create(&key).unwrap();
    upload.write_all(&body(1 << 20)).unwrap();
    upload.flush().unwrap();
    assert!(store.stat(&key).unwrap().is_none(), "not there before finish");
    assert_eq!(kind(store.open(&key, 0, None), "open before finish"), Kind::NotFound);
    assert!(listed(store, None).is_empty(), "not listed before finish");
    upload.finish().unwrap();
    assert!(store.stat(&key).unwrap().is_some());
}

fn an_upload_that_is_dropped_leaves_nothing(store: &dyn Store) {
    let key = key("a/dropped");
    let mut upload = store.create(&key).unwrap();
    upload.write_all(&body(300_000)).unwrap();
    drop(upload);
    assert!(store.stat(&key).unwrap().is_none());
    assert!(listed(store, None).is_empty());
    store.put_new(&key, b"x").unwrap();
}

fn ranges_are_cut_to_what_is_there(store: &dyn Store) {
    let (key, body) = (key("range"), body(1000));
    store.put_new(&key, &body).unwrap();
    let cases = [
        (0, None, 0..1000),
        (0, Some(1000), 0..1000),
        (10, Some(20), 10..30),
        (999, None, 999..1000),
        (990, Some(100), 990..1000),
        (0, Some(0), 0..0),
        (500, Some(0), 0..0),
        (1000, None, 0..0),
        (1000, Some(1), 0..0),
        (5000, None, 0..0),
        (5000, Some(10), 0..0),
        (1, Some(u64::MAX), 1..1000),
    ];
    for (from, length, expected) in cases {
        let mut found = Vec::new();
        let read = store
            .open(&key, from, length)
            .and_then(|mut reader| reader.read_to_end(&mut found).map_err(|error| Error::io(error, "read")));
        assert!(read.is_ok(), "{length:?} from {from}: {read:?}");
        assert!(
            found == body[expected],
            "{length:?} from {from} gave {} bytes",
            found.len()
        );
    }
}

fn absence_is_told_apart(store: &dyn Store) {
    for absent in ["a", "a/b", "a/b/c"] {
        let absent = key(absent);
        assert!(store.stat(&absent).unwrap().is_none());
        assert_eq!(
            kind(store.open(&absent, 0, None), "open what is absent"),
            Kind::NotFound
        );
        assert_eq!(
            kind(store.open(&absent, 5, Some(1)), "a range of what is absent"),
            Kind::NotFound
        );
        assert!(listed(store, Some(&absent)).is_empty());
        assert!(store.children(Some(&absent)).unwrap().is_empty());
    }
    store.put_new(&key("a/b/c"), b"x").unwrap();
    for above in ["a", "a/b"] {
        let above = key(above);
        assert!(
            store.stat(&above).unwrap().is_none(),
            "what has objects below is none itself"
        );
        assert_eq!(
            kind(store.open(&above, 0, None), "open what only has objects below"),
            Kind::NotFound
        );
    }
    let text = store.describe(Some(&key("a/b/c")));
    assert!(text.contains("a/b/c"), "a message names the object, not {text:?}");
}

/// In the order of their bytes: `-` and `.` come before `/`, digits and letters after.
const NAMES: [&str; 12] = [
    "a",
    "b-c",
    "b.c",
    "b/c",
    "b/c-d",
    "b/cc/d",
    "b/d",
    "b0",
    "c/x%40=+@_.zst",
    "d/e/f/g",
    "d/e0",
    "e",
];

fn a_listing_is_complete_and_in_order(store: &dyn Store) {
    for name in NAMES.iter().rev() {
        store.put_new(&key(name), name.as_bytes()).unwrap();
    }
    assert_eq!(listed(store, None), NAMES);
    let mut each = |key: Key, stat: super::Stat| {
        assert_eq!(stat.size, key.as_str().len() as u64, "the size of {key}");
        Ok(())
    };
    store.list(None, &mut each).unwrap();
    assert_eq!(
        store.children(None).unwrap(),
        ["a", "b", "b-c", "b.c", "b0", "c", "d", "e"]
    );
    assert_eq!(store.children(Some(&key("d"))).unwrap(), ["e", "e0"]);
}

fn a_prefix_means_whole_components(store: &dyn Store) {
    for name in ["a/b/x", "a/b/y/z", "a/bc/x", "a/b-c", "a/b.c/x"] {
        store.put_new(&key(name), b"").unwrap();
    }
    assert_eq!(listed(store, Some(&key("a/b"))), ["a/b/x", "a/b/y/z"]);
    assert_eq!(store.children(Some(&key("a/b"))).unwrap(), ["x", "y"]);
    assert!(
        listed(store, Some(&key("a/b/x"))).is_empty(),
        "nothing is below an object"
    );
    assert!(store.children(Some(&key("a/b/x"))).unwrap().is_empty());
}

fn an_error_of_the_visitor_ends_a_listing(store: &dyn Store) {
    for name in ["a", "b", "c"] {
        store.put_new(&key(name), b"").unwrap();
    }
    for wanted in [Kind::Refused, Kind::Transient] {
        let mut seen = 0;
        let outcome = store.list(None, &mut |_, _| {
            seen += 1;
            if seen == 2 {
                Err(Error::new(wanted, "enough"))
            } else {
                Ok(())
            }
        });
        assert_eq!((kind(outcome, "a visitor's error"), seen), (wanted, 2));
    }
}

fn deleting_twice_is_fine(store: &dyn Store) {
    let (gone, kept) = (key("a/b/gone"), key("a/kept"));
    store.put_new(&gone, b"x").unwrap();
    store.put_new(&kept, b"x").unwrap();
    store.delete(&gone).unwrap();
    store.delete(&gone).unwrap();
    store.delete(&key("never/was")).unwrap();
    assert!(store.stat(&gone).unwrap().is_none());
    assert_eq!(store.children(Some(&key("a"))).unwrap(), ["kept"]);
    store.put_new(&gone, b"again").unwrap();
    assert_eq!(get(store, &gone), b"again", "a deleted name is free");
}

fn moving_aside_takes_no_name_twice(store: &dyn Store) {
    let (from, to, taken) = (key("a/from"), key("damaged/x/to"), key("damaged/taken"));
    store.put_new(&from, b"body").unwrap();
    store.put_new(&taken, b"old").unwrap();
    assert_eq!(
        kind(store.move_aside(&from, &taken), "a name that is taken"),
        Kind::AlreadyExists
    );
    assert_eq!(
        (get(store, &from), get(store, &taken)),
        (b"body".to_vec(), b"old".to_vec())
    );
    store.move_aside(&from, &to).unwrap();
    assert_eq!(get(store, &to), b"body");
    assert!(store.stat(&from).unwrap().is_none());
    assert_eq!(
        kind(store.move_aside(&from, &key("x")), "moving what is not there"),
        Kind::NotFound
    );
    store.put_new(&from, b"new").unwrap();
}

fn of_many_creators_one_wins(store: &dyn Store) {
    const CREATORS: u8 = 8;
    for round in 0..5 {
        let key = key(&format!("race/{round}/object"));
        let start = std::sync::Barrier::new(usize::from(CREATORS));
        let create = |number: u8| {
            let body = vec![number; 10_000];
            start.wait();
            if number.is_multiple_of(2) {
                return store.put_new(&key, &body);
            }
            let mut upload = store.create(&key)?;
            upload.write_all(&body).map_err(|error| Error::io(error, "write"))?;
            upload.finish()
        };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let create = &create;
            let creators: Vec<_> = (0..CREATORS)
                .map(|number| scope.spawn(move || create(number)))
                .collect();
            creators.into_iter().map(|creator| creator.join().unwrap()).collect()
        });
        let winners: Vec<u8> = (0..CREATORS)
            .filter(|number| outcomes[usize::from(*number)].is_ok())
            .collect();
        assert_eq!(
            winners.len(),
            1,
            "of {CREATORS} creators {winners:?} believe that they won"
        );
        for outcome in outcomes {
            if let Err(error) = outcome {
                assert_eq!(error.kind(), Kind::AlreadyExists, "{error:?}");
            }
        }
        assert!(
            get(store, &key) == vec![winners[0]; 10_000],
            "the winner's bytes are there"
        );
        assert_eq!(store.children(key.parent().as_ref()).unwrap(), ["object"]);
    }
}

fn the_clock_agrees_with_the_objects(store: &dyn Store) {
    let key = key("clock");
    store.put_new(&key, b"").unwrap();
    let modified = store.stat(&key).unwrap().unwrap().modified;
    let apart = store.now().unwrap().distance(modified);
    assert!(
        apart < std::time::Duration::from_secs(60),
        "a new object is {apart:?} from now"
    );
}
