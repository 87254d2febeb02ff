//! What sealing and opening promise.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

use super::*;
use crate::codec::descriptor::{ContentKind, peek};
use crate::codec::frames::tests::{Counting, Counts, content};
use crate::codec::frames::{FRAME_BYTES, FrameWriter, SeekableFrames};
use crate::digest::Sha256Digest;

/// A key: how to write for it, and how to read with it.
pub(crate) fn key() -> (Sealing, Opening) {
    let (secret, public) = generate_identity();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("identity.txt");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    file.write_all(secret.as_bytes()).unwrap();
    let opening = Opening::from_identity_file(&path).unwrap();
    (Sealing::Age(Recipients::parse(&[public]).unwrap()), opening)
}

fn descriptor(stream_length: u64) -> Descriptor {
    Descriptor {
        kind: ContentKind::Wal,
        plain_length: 3,
        stream_length,
        sha256: Sha256Digest([9; 32]),
    }
}

fn sealed(sealing: &Sealing, payload: &[u8], descriptor: Option<&Descriptor>) -> Vec<u8> {
    let mut writer = sealing.wrap(Vec::new(), descriptor).unwrap();
    writer.write_all(payload).unwrap();
    writer.finish().unwrap()
}

fn opened(opening: &Opening, object: &[u8]) -> Result<Vec<u8>> {
    let mut payload = Vec::new();
    let mut reader = opening.open(object, true)?;
    reader.read_to_end(&mut payload).context(|| "read")?;
    Ok(payload)
}

#[test]
fn the_stored_size_is_known_from_the_first_bytes_for_every_payload() {
    let (sealing, opening) = key();
    for length in [85, 1000, 65_535, 65_536, 65_537, 131_072, 200_000] {
        // The header has random parts of random length, so once is not enough.
        for _ in 0..5 {
            let payload = content(length);
            let object = sealed(&sealing, &payload, Some(&descriptor(length as u64)));
            let seen = peek(&object[..600.min(object.len())]).unwrap();
            assert_eq!((seen.stored_size, seen.sealed), (object.len() as u64, true));
            assert_eq!(seen.descriptor, descriptor(length as u64));
            assert!(opened(&opening, &object).unwrap() == payload);
        }
    }
    assert_eq!(sealed_size(100, 0), Some(100 + 16 + 16));
    assert_eq!(sealed_size(100, u64::MAX), None);
}

#[test]
fn any_of_several_recipients_opens_an_object_and_nobody_else() {
    let ((one, open_one), (two, open_two), (_, stranger)) = (key(), key(), key());
    let texts = |sealing: &Sealing| match sealing {
        Sealing::Age(recipients) => recipients.texts().map(str::to_owned).collect::<Vec<_>>(),
        Sealing::Clear => panic!("sealed"),
    };
    let both = [texts(&one), texts(&two), texts(&one)].concat();
    let both = Sealing::Age(Recipients::parse(&both).unwrap());
    assert_eq!(texts(&both).len(), 2);
    let object = sealed(&both, b"secret", None);
    assert_eq!(opened(&open_one, &object).unwrap(), b"secret");
    assert_eq!(opened(&open_two, &object).unwrap(), b"secret");
    let error = opened(&stranger, &object).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    let error = opened(&Opening::none(), &object).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().starts_with("cannot decrypt: no identity"));
}

#[test]
fn the_order_of_recipients_does_not_matter() {
    let (one, two) = (generate_identity().1, generate_identity().1);
    let forth = Recipients::parse(&[one.clone(), two.clone()]).unwrap();
    assert_eq!(forth, Recipients::parse(&[two, one]).unwrap());
}

#[test]
fn what_is_no_public_key_is_refused_and_a_secret_is_not_repeated() {
    let (secret, _) = generate_identity();
    let secret = secret.lines().last().unwrap().to_owned();
    let error = Recipients::parse(std::slice::from_ref(&secret)).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    assert!(!format!("{error:?}").contains(&secret));
    for text in [
        "",
        "age1",
        "ssh-ed25519 AAAA",
        "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq",
    ] {
        assert_eq!(Recipients::parse(&[text.to_owned()]).unwrap_err().kind(), Kind::Config);
    }
    assert_eq!(Recipients::parse(&[]).unwrap_err().kind(), Kind::Config);
}

#[test]
fn the_longest_list_of_recipients_still_leaves_a_readable_header() {
    let keys: Vec<String> = (0..MAX_RECIPIENTS).map(|_| generate_identity().1).collect();
    let sealing = Sealing::Age(Recipients::parse(&keys).unwrap());
    let object = sealed(&sealing, &[0; 100], Some(&descriptor(100)));
    assert_eq!(peek(&object).unwrap().stored_size, object.len() as u64);
}

#[test]
fn an_object_whose_header_never_ends_is_corrupt_and_read_no_further() {
    struct Endless(usize);
    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let head = b"age-encryption.org/v1\n-> X25519 a\n";
            for byte in into.iter_mut() {
                *byte = *head.get(self.0).unwrap_or(&b'a');
                self.0 += 1;
            }
            Ok(into.len())
        }
    }
    let mut source = Endless(0);
    assert_eq!(key().1.open(&mut source, true).err().unwrap().kind(), Kind::Corrupt);
    assert!(source.0 < 32 * 1024, "{} bytes", source.0);
}

#[test]
fn any_part_of_a_sealed_object_is_read_by_seeking() {
    let (sealing, opening) = key();
    for length in [0, 1, 65_535, 65_536, 65_537, 131_072, 300_000] {
        let payload = content(length);
        let object = sealed(&sealing, &payload, None);
        let mut reader = opening.open_seekable(Cursor::new(&object), true).unwrap();
        assert_eq!(reader.seek(SeekFrom::End(0)).unwrap(), length as u64);
        for start in [
            0, 1, 65_535, 65_536, 65_537, 100_000, 131_071, 131_072, 299_999, 17, 400_000,
        ] {
            let expected = payload.get(start..).unwrap_or_default();
            let expected = &expected[..expected.len().min(70_000)];
            reader.seek(SeekFrom::Start(start as u64)).unwrap();
            let mut part = Vec::new();
            (&mut reader).take(70_000).read_to_end(&mut part).unwrap();
            assert!(part == expected, "{start} of {length}");
        }
    }
}

#[test]
fn a_sealed_object_cut_anywhere_is_corrupt_when_its_end_is_read() {
    let (sealing, opening) = key();
    let object = sealed(&sealing, &content(3 * 65_536), None);
    let last = |object: &[u8]| -> Result<u8> {
        let mut reader = opening.open_seekable(Cursor::new(object), true)?;
        let reading = || "read the last byte";
        reader.seek(SeekFrom::End(-1)).context(reading)?;
        let mut byte = [0];
        reader.read_exact(&mut byte).context(reading)?;
        Ok(byte[0])
    };
    last(&object).unwrap();
    // Both chunk boundaries, and places around them.
    let chunk = 65_536 + 16;
    for missing in [
        1,
        15,
        16,
        17,
        chunk - 1,
        chunk,
        chunk + 1,
        2 * chunk,
        3 * chunk - 16,
        3 * chunk,
        3 * chunk + 5,
    ] {
        let error = last(&object[..object.len() - missing]).unwrap_err();
        assert!(
            matches!(error.kind(), Kind::Corrupt | Kind::Failed),
            "{missing}: {error:?}"
        );
    }
    for more in [1, 16, 17, chunk] {
        let longer = [&object[..], &vec![0; more]].concat();
        assert_eq!(last(&longer).unwrap_err().kind(), Kind::Corrupt, "{more}");
    }
}

#[test]
fn a_page_of_a_sealed_bundle_costs_one_seek_and_a_few_chunks() {
    let (sealing, opening) = key();
    let plain = content(40 * FRAME_BYTES);
    let mut frames = FrameWriter::new(sealing.wrap(Vec::new(), None).unwrap(), 2).unwrap();
    frames.write_all(&plain).unwrap();
    let (writer, table) = frames.finish().unwrap();
    let counts = Counts::default();
    let source = Counting::new(writer.finish().unwrap(), &counts);
    let reader = opening.open_seekable(source, true).unwrap();
    let mut frames = SeekableFrames::open(reader).unwrap();
    assert_eq!(frames.table(), &table);
    for page in [7, 8, 30, 3, 39] {
        let offset = page * FRAME_BYTES + 8192;
        let (seeks, bytes) = counts.get();
        let mut got = [0; 8192];
        frames.read_at(offset as u64, &mut got).unwrap();
        assert_eq!(got[..], plain[offset..][..8192]);
        let (seeks, bytes) = (counts.get().0 - seeks, counts.get().1 - bytes);
        assert!(
            seeks <= 1 && bytes <= 3 * 65_552,
            "page {page}: {seeks} seeks, {bytes} bytes"
        );
    }
}

#[test]
fn opening_a_sealed_bundle_reads_its_header_and_its_end_and_nothing_else() {
    let (sealing, opening) = key();
    let mut frames = FrameWriter::new(sealing.wrap(Vec::new(), None).unwrap(), 2).unwrap();
    frames.write_all(&content(40 * FRAME_BYTES)).unwrap();
    let (writer, _) = frames.finish().unwrap();
    let counts = Counts::default();
    let source = Counting::new(writer.finish().unwrap(), &counts);
    SeekableFrames::open(opening.open_seekable(source, true).unwrap()).unwrap();
    let (_, bytes) = counts.get();
    assert!(bytes <= 4096 + 3 * 65_552, "{bytes} bytes");
}

#[test]
fn after_an_error_a_sealed_reader_does_not_go_on_with_wrong_bytes() {
    let (sealing, opening) = key();
    let mut object = sealed(&sealing, &content(3 * 65_536), None);
    let middle = object.len() - 100_000;
    object[middle] ^= 1;
    let mut reader = opening.open_seekable(Cursor::new(object), true).unwrap();
    let mut byte = [0; 1];
    reader.seek(SeekFrom::Start(70_000)).unwrap();
    assert_eq!(
        Error::io(reader.read(&mut byte).unwrap_err(), "read").kind(),
        Kind::Corrupt
    );
    reader.seek(SeekFrom::Start(0)).unwrap();
    assert_eq!(
        Error::io(reader.read(&mut byte).unwrap_err(), "read").kind(),
        Kind::Failed
    );
}
