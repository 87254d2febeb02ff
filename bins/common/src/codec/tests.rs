//! What stored objects promise as a whole: they open with the standard programs, and no damage to them
//! goes unnoticed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::frames::tests::content;
use super::seal::tests::key;
use super::*;
use crate::digest::Sha256Digest;
use crate::error::Result;

/// A WAL file in small: a page of records, and zeros as after a switch.
fn segment() -> Vec<u8> {
    let mut segment = content(3 * FRAME_BYTES - 5000);
    segment.resize(4 * FRAME_BYTES, 0);
    segment
}

fn encode(plain: &[u8], sealing: &Sealing) -> Vec<u8> {
    encode_small(plain, ContentKind::Wal, 2, sealing).unwrap()
}

fn decode(object: &[u8], opening: &Opening, sealed: bool) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    decode_to(object, opening, sealed, &mut plain)?;
    Ok(plain)
}

/// Whether this program can be run here; a test that needs it says so if not.
fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

fn run(program: &str, arguments: &[&Path]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
    output.stdout
}

#[test]
fn clear_objects_open_with_zstd() {
    if !have("zstd") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("object.zst");
    for plain in [
        segment(),
        Vec::new(),
        b"1\t0/3000060\tno recovery target specified\n".to_vec(),
    ] {
        std::fs::write(&path, encode(&plain, &Sealing::Clear)).unwrap();
        assert!(run("zstd", &[Path::new("-dc"), &path]) == plain);
        run("zstd", &[Path::new("-t"), &path]);
    }
}

#[test]
fn sealed_objects_open_with_age_and_zstd() {
    if !have("zstd") || !have("age") {
        return;
    }
    let (secret, public) = generate_identity();
    let sealing = Sealing::Age(Recipients::parse(&[generate_identity().1, public]).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let in_directory = |name| directory.path().join(name);
    let (identity, sealed, clear) = (
        in_directory("identity.txt"),
        in_directory("o.zst.age"),
        in_directory("o.zst"),
    );
    std::fs::write(&identity, secret).unwrap();
    for plain in [segment(), Vec::new(), content(7)] {
        // Once with a descriptor, once as a bundle is written.
        let mut frames = FrameWriter::new(sealing.wrap(Vec::new(), None).unwrap(), 2).unwrap();
        frames.write_all(&plain).unwrap();
        let bundle = frames.finish().unwrap().0.finish().unwrap();
        for object in [encode(&plain, &sealing), bundle] {
            std::fs::write(&sealed, object).unwrap();
            let stream = run("age", &[Path::new("-d"), Path::new("-i"), &identity, &sealed]);
            std::fs::write(&clear, stream).unwrap();
            assert!(run("zstd", &[Path::new("-dc"), &clear]) == plain);
        }
    }
}

#[test]
fn what_the_age_program_encrypts_is_opened() {
    if !have("age") {
        return;
    }
    let (sealing, opening) = key();
    let Sealing::Age(recipients) = &sealing else {
        panic!("sealed");
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plain");
    std::fs::write(&path, b"by hand").unwrap();
    let recipient = recipients.texts().next().unwrap();
    let object = run("age", &[Path::new("-r"), Path::new(recipient), &path]);
    let mut plain = String::new();
    opening
        .open(&object[..], true)
        .unwrap()
        .read_to_string(&mut plain)
        .unwrap();
    assert_eq!(plain, "by hand");
    assert_eq!(peek(&object).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(decode(&object, &opening, true).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn one_compression_serves_several_recipient_sets_and_says_the_same_to_all() {
    let plain = segment();
    let first = Reading::of(&plain[..]).unwrap();
    let stream = compress_stream(&plain[..], &first, ContentKind::Wal, 2).unwrap();
    assert_eq!(stream.descriptor.sha256, Sha256Digest::of(&plain));
    let ((one, open_one), (two, open_two)) = (key(), key());
    for (sealing, opening) in [(Sealing::Clear, Opening::none()), (one, open_one), (two, open_two)] {
        let object = stream.seal(&sealing, Vec::new()).unwrap();
        let seen = peek(&object[..600]).unwrap();
        assert_eq!(
            (seen.descriptor, seen.stored_size),
            (stream.descriptor, object.len() as u64)
        );
        assert_eq!(seen.sealed, sealing != Sealing::Clear);
        let mut back = Vec::new();
        let descriptor = decode_to(&object[..], &opening, seen.sealed, &mut back).unwrap();
        assert_eq!(descriptor, stream.descriptor);
        assert!(back == plain && decode_small(&object, &opening).unwrap() == plain);
    }
}

#[test]
fn content_that_changes_between_its_two_readings_is_not_stored() {
    let plain = segment();
    let first = Reading::of(&plain[..]).unwrap();
    let mut other = plain.clone();
    other[70_000] ^= 1;
    for second in [&other[..], &plain[..plain.len() - 1], &[&plain[..], b"x"].concat()] {
        let error = compress_stream(second, &first, ContentKind::Wal, 2).unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.to_string().contains("a second time"), "{error}");
    }
}

/// Decoding has to fail as damaged, or the content has to be the same.
fn survives(damaged: &[u8], plain: &[u8], opening: &Opening, sealed: bool, what: &str) {
    match decode(damaged, opening, sealed) {
        Ok(back) => assert!(back == plain, "{what}: other content, silently"),
        Err(error) if sealed && error.kind() == Kind::Config => {
            // A damaged wrapped key cannot be told from a key for somebody else.
            assert!(
                error.nearest_hint().unwrap().contains("its header is damaged"),
                "{what}: {error:?}"
            );
        }
        Err(error) => assert_eq!(error.kind(), Kind::Corrupt, "{what}: {error:?}"),
    }
    let _ = peek(damaged);
}

fn flip_bits(sealing: &Sealing, opening: &Opening, sealed: bool) {
    let plain = content(FRAME_BYTES + 3000);
    let object = encode(&plain, sealing);
    assert!(decode(&object, opening, sealed).unwrap() == plain);
    let front = (0..200 * 8).collect::<Vec<_>>();
    let step = object.len() * 8 / 500;
    let sampled = (1600..object.len() * 8).step_by(step | 1);
    let end = object.len() * 8 - 300..object.len() * 8;
    for bit in front.into_iter().chain(sampled).chain(end) {
        let mut damaged = object.clone();
        damaged[bit / 8] ^= 1u8 << (bit % 8);
        survives(&damaged, &plain, opening, sealed, &format!("bit {bit}"));
    }
    for part in 0..400 {
        let end = if part < 150 { part } else { object.len() * part / 400 };
        let error = decode(&object[..end], opening, sealed).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "cut at {end}: {error:?}");
    }
    for more in [
        &b"\0"[..],
        &object[..],
        b"age-encryption.org/v1\n",
        &FrameTable::default().encode(),
    ] {
        let error = decode(&[&object[..], more].concat(), opening, sealed).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}

#[test]
fn no_flipped_bit_and_no_truncation_of_a_clear_object_goes_unnoticed() {
    flip_bits(&Sealing::Clear, &Opening::none(), false);
}

#[test]
fn no_flipped_bit_and_no_truncation_of_a_sealed_object_goes_unnoticed() {
    let (sealing, opening) = key();
    flip_bits(&sealing, &opening, true);
}

/// An object whose stream and whose descriptors say what the test wants.
fn forged(plain: &[u8], sealing: &Sealing, change: impl Fn(&mut Descriptor), also_inside: bool) -> Vec<u8> {
    let mut stream = compress_stream(plain, &Reading::of(plain).unwrap(), ContentKind::Wal, 2).unwrap();
    change(&mut stream.descriptor);
    if also_inside {
        stream.bytes[..68].copy_from_slice(&stream.descriptor.encode_frame());
    }
    stream.seal(sealing, Vec::new()).unwrap()
}

#[test]
fn a_descriptor_that_lies_is_corrupt_and_gets_no_more_than_it_names() {
    let plain = segment();
    let lies: [fn(&mut Descriptor); 4] = [
        |descriptor| descriptor.plain_length = 100,
        |descriptor| descriptor.plain_length += 1,
        |descriptor| descriptor.stream_length += 1,
        |descriptor| descriptor.sha256 = Sha256Digest([0; 32]),
    ];
    for lie in lies {
        let object = forged(&plain, &Sealing::Clear, lie, true);
        let named = peek(&object).unwrap().descriptor.plain_length;
        let mut out = Vec::new();
        let error = decode_to(&object[..], &Opening::none(), false, &mut out).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(out.len() as u64 <= named);
    }
}

#[test]
fn a_stanza_that_differs_from_the_stream_is_corrupt() {
    let (sealing, opening) = key();
    let object = forged(
        &segment(),
        &sealing,
        |descriptor| descriptor.kind = ContentKind::Map,
        false,
    );
    let error = decode(&object, &opening, true).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("not the one in the stream"), "{error}");
}

#[test]
fn a_stream_without_a_descriptor_is_corrupt() {
    let mut frames = FrameWriter::new(Vec::new(), 2).unwrap();
    frames.write_all(b"content").unwrap();
    let (object, _) = frames.finish().unwrap();
    assert_eq!(
        decode(&object, &Opening::none(), false).unwrap_err().kind(),
        Kind::Corrupt
    );
    let (sealing, opening) = key();
    let mut writer = sealing.wrap(Vec::new(), None).unwrap();
    writer.write_all(&object).unwrap();
    let sealed = writer.finish().unwrap();
    assert_eq!(decode(&sealed, &opening, true).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_small_object_that_would_unfold_too_far_is_refused_at_once() {
    let lie = |descriptor: &mut Descriptor| descriptor.plain_length = small::SMALL_BYTES + 1;
    let error = decode_small(&forged(b"little", &Sealing::Clear, lie, true), &Opening::none()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("at most"), "{error}");
}

#[test]
fn the_outputs_own_error_keeps_its_kind() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let object = encode(b"content", &Sealing::Clear);
    let error = decode_to(&object[..], &Opening::none(), false, &mut Full).unwrap_err();
    assert_eq!(error.kind(), Kind::Transient);
}

proptest! {
    #[test]
    fn any_content_comes_back(plain in proptest::collection::vec(any::<u8>(), 0..5000), level in -7i32..6, map in any::<bool>()) {
        let kind = if map { ContentKind::Map } else { ContentKind::Wal };
        let object = encode_small(&plain, kind, level, &Sealing::Clear).unwrap();
        prop_assert_eq!(peek(&object).unwrap().descriptor.kind, kind);
        prop_assert_eq!(decode_small(&object, &Opening::none()).unwrap(), plain);
    }

    #[test]
    fn several_flipped_bytes_never_give_other_content(
        damage in proptest::collection::vec((any::<usize>(), 1u8..), 1..6),
        cut in any::<u16>(),
    ) {
        let plain = content(9000);
        let mut object = encode(&plain, &Sealing::Clear);
        object.extend(vec![0; usize::from(cut & 3)]);
        for (at, change) in damage {
            let at = at % object.len();
            object[at] ^= change;
        }
        survives(&object, &plain, &Opening::none(), false, "damage");
    }
}
