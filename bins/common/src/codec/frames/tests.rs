//! What the frame readers promise, told with streams that the writer made.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::Cell;
use std::io::{BufRead, Cursor, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::codec::descriptor::{ContentKind, Descriptor};
use crate::digest::Sha256Digest;
use crate::error::{Error, Kind};

/// Content that neither repeats nor resists: compresses about 2:1.
pub(crate) fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut content = Vec::with_capacity(length + 8);
    while content.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&(state & 0xFFFF_00FF_FF00_0300).to_le_bytes());
    }
    content.truncate(length);
    content
}

fn stream(plain: &[u8]) -> (Vec<u8>, FrameTable) {
    let mut writer = FrameWriter::new(Vec::new(), 1).unwrap();
    writer.write_all(plain).unwrap();
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> crate::error::Result<Vec<u8>> {
    let mut plain = Vec::new();
    let mut reader = FrameReader::new(bytes)?;
    reader
        .read_to_end(&mut plain)
        .map_err(|error| Error::io(error, "read"))?;
    Ok(plain)
}

/// Seeks that went somewhere else, and bytes read.
#[derive(Default, Clone)]
pub(crate) struct Counts(Rc<Cell<(usize, usize)>>);

impl Counts {
    pub(crate) fn get(&self) -> (usize, usize) {
        self.0.get()
    }
}

/// A source that counts what is asked of it.
pub(crate) struct Counting(Cursor<Vec<u8>>, Counts);

impl Counting {
    pub(crate) fn new(bytes: Vec<u8>, counts: &Counts) -> Self {
        Self(Cursor::new(bytes), counts.clone())
    }
}

impl Read for Counting {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(into)?;
        let (seeks, bytes) = self.1.get();
        self.1.0.set((seeks, bytes + read));
        Ok(read)
    }
}

impl Seek for Counting {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let before = self.0.position();
        let after = self.0.seek(to)?;
        let (seeks, bytes) = self.1.get();
        self.1.0.set((seeks + usize::from(before != after), bytes));
        Ok(after)
    }
}

#[test]
fn every_length_around_a_frame_comes_back() {
    for length in [
        0,
        1,
        255,
        256,
        FRAME_BYTES - 1,
        FRAME_BYTES,
        FRAME_BYTES + 1,
        5 * FRAME_BYTES + 77,
    ] {
        let plain = content(length);
        let (bytes, table) = stream(&plain);
        assert_eq!(read(&bytes).unwrap(), plain);
        assert_eq!(zstd::stream::decode_all(&bytes[..]).unwrap(), plain);
        assert_eq!(FrameTable::read(&mut Cursor::new(&bytes)).unwrap(), table);
    }
}

#[test]
fn a_source_that_gives_one_byte_at_a_time_is_read_alike() {
    struct Dripping<'a>(&'a [u8]);
    impl Read for Dripping<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let end = into.len().min(1);
            self.0.read(&mut into[..end])
        }
    }
    let plain = content(FRAME_BYTES + 999);
    let bytes = stream(&plain).0;
    let mut reader = FrameReader::new(Dripping(&bytes)).unwrap();
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    assert_eq!(back, plain);
}

#[test]
fn the_buffered_reader_hands_out_frames_without_a_copy() {
    let (bytes, _) = stream(&content(FRAME_BYTES + 10));
    let mut reader = FrameReader::new(&bytes[..]).unwrap();
    assert_eq!(reader.fill_buf().unwrap().len(), FRAME_BYTES);
    reader.consume(FRAME_BYTES);
    assert_eq!(reader.fill_buf().unwrap().len(), 10);
    reader.consume(usize::MAX);
    assert!(reader.fill_buf().unwrap().is_empty());
    assert_eq!(reader.consumed(), bytes.len() as u64);
}

#[test]
fn an_excerpt_of_whole_frames_needs_no_table() {
    let plain = content(3 * FRAME_BYTES);
    let (bytes, table) = stream(&plain);
    let place = table
        .frames_for(FRAME_BYTES as u64..2 * FRAME_BYTES as u64)
        .next()
        .unwrap();
    let part = &bytes[place.stored_offset as usize..][..place.stored as usize];
    let mut back = Vec::new();
    FrameReader::excerpt(part).unwrap().read_to_end(&mut back).unwrap();
    assert_eq!(back, plain[FRAME_BYTES..2 * FRAME_BYTES]);
    assert_eq!(read(part).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_stream_cut_anywhere_is_corrupt_even_between_two_frames() {
    let (bytes, table) = stream(&content(3 * FRAME_BYTES));
    let mut ends: Vec<usize> = (0..bytes.len()).step_by(997).collect();
    let mut end = 0;
    for frame in table.entries() {
        end += frame.stored as usize;
        ends.push(end);
    }
    ends.extend(end..bytes.len());
    for end in ends {
        assert_eq!(read(&bytes[..end]).unwrap_err().kind(), Kind::Corrupt, "cut at {end}");
        let mut cut = Cursor::new(&bytes[..end]);
        assert_eq!(
            FrameTable::read(&mut cut).unwrap_err().kind(),
            Kind::Corrupt,
            "cut at {end}"
        );
    }
}

#[test]
fn bytes_behind_the_table_and_a_table_of_other_frames_are_corrupt() {
    let (mut bytes, table) = stream(&content(2 * FRAME_BYTES));
    bytes.push(0);
    assert!(read(&bytes).unwrap_err().told().contains("after the end"));
    let mut entries = table.entries().to_vec();
    entries[0].plain -= 1;
    entries[1].plain += 1;
    bytes.truncate(table.stored_length() as usize);
    bytes.extend(FrameTable::new(entries).unwrap().encode());
    assert!(read(&bytes).unwrap_err().told().contains("does not agree"));
}

/// The whole chain of sentences.
trait Told {
    fn told(&self) -> String;
}

impl Told for Error {
    fn told(&self) -> String {
        crate::error::chain(self)
    }
}

#[test]
fn a_frame_that_claims_too_much_is_refused_and_not_allocated() {
    let mut bomb = zstd::bulk::compress(&vec![0; 64 * 1024 * 1024], 1).unwrap();
    assert!(bomb.len() < 20_000);
    bomb.extend(FrameTable::default().encode());
    let error = read(&bomb).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.told().contains("claims 67108864 bytes"), "{error:?}");
}

#[test]
fn the_sources_own_error_keeps_its_kind_and_ends_the_reading() {
    struct Away;
    impl Read for Away {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::TimedOut.into())
        }
    }
    let mut reader = FrameReader::new(Away).unwrap();
    assert_eq!(reader.advance().unwrap_err().kind(), Kind::Transient);
    assert_eq!(reader.advance().unwrap_err().kind(), Kind::Failed);
}

#[test]
fn a_page_is_read_with_one_seek_and_one_frame() {
    let plain = content(20 * FRAME_BYTES);
    let (bytes, table) = stream(&plain);
    let counts = Counts::default();
    let mut frames = SeekableFrames::with_table(Counting::new(bytes, &counts), table.clone()).unwrap();
    let mut page = vec![0; 8192];
    frames.read_at(7 * FRAME_BYTES as u64 + 8192, &mut page).unwrap();
    assert_eq!(page, plain[7 * FRAME_BYTES + 8192..][..8192]);
    // The next page of the same frame costs nothing.
    frames.read_at(7 * FRAME_BYTES as u64 + 16384, &mut page).unwrap();
    assert_eq!(page, plain[7 * FRAME_BYTES + 16384..][..8192]);
    assert_eq!(counts.get(), (1, table.entries()[7].stored as usize));
}

#[test]
fn a_long_range_is_read_in_few_reads_without_seeking_back() {
    let plain = content(40 * FRAME_BYTES);
    let (bytes, table) = stream(&plain);
    let counts = Counts::default();
    let mut frames = SeekableFrames::with_table(Counting::new(bytes, &counts), table).unwrap();
    let mut range = vec![0; 30 * FRAME_BYTES];
    frames.read_at(3 * FRAME_BYTES as u64 + 5, &mut range).unwrap();
    assert!(range == plain[3 * FRAME_BYTES + 5..][..range.len()]);
    assert_eq!(counts.get().0, 1);
}

#[test]
fn a_range_beyond_the_content_is_corrupt() {
    let mut frames = SeekableFrames::open(Cursor::new(stream(&content(100)).0)).unwrap();
    frames.read_at(100, &mut []).unwrap();
    for offset in [93, 100, u64::MAX] {
        assert_eq!(frames.read_at(offset, &mut [0; 8]).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn a_frame_that_is_not_the_one_in_the_table_is_corrupt() {
    let (mut bytes, table) = stream(&content(3 * FRAME_BYTES));
    let place = table
        .frames_for(FRAME_BYTES as u64..FRAME_BYTES as u64 + 1)
        .next()
        .unwrap();
    bytes[place.stored_offset as usize] ^= 1;
    let mut frames = SeekableFrames::open(Cursor::new(bytes)).unwrap();
    assert_eq!(
        frames.read_at(FRAME_BYTES as u64, &mut [0; 10]).unwrap_err().kind(),
        Kind::Corrupt
    );
    frames.read_at(0, &mut [0; 10]).unwrap();
}

#[test]
fn skippable_frames_in_front_are_passed_over_and_a_descriptor_is_noticed() {
    let descriptor = Descriptor {
        kind: ContentKind::Wal,
        plain_length: 5,
        stream_length: 1000,
        sha256: Sha256Digest([1; 32]),
    };
    let mut writer = FrameWriter::new(Vec::new(), 1).unwrap();
    writer.lead(&descriptor.encode_frame()).unwrap();
    writer.lead(&[0x51, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3]).unwrap();
    writer.put(b"hello").unwrap();
    let (bytes, _) = writer.finish().unwrap();
    let mut reader = FrameReader::new(&bytes[..]).unwrap();
    assert!(reader.advance().unwrap());
    assert_eq!(
        (reader.frame(), reader.descriptor()),
        (&b"hello"[..], Some(&descriptor))
    );
    let mut word = [0; 5];
    SeekableFrames::open(Cursor::new(bytes))
        .unwrap()
        .read_at(0, &mut word)
        .unwrap();
    assert_eq!(&word, b"hello");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn units_of_any_size_come_back_at_any_offset(
        units in proptest::collection::vec(0usize..FRAME_BYTES, 0..12),
        offset in any::<u32>(),
        length in any::<u32>(),
    ) {
        let plain = content(units.iter().sum());
        let mut writer = FrameWriter::new(Vec::new(), -3).unwrap();
        let mut rest = &plain[..];
        for unit in units {
            let (now, later) = rest.split_at(unit);
            writer.put(now).unwrap();
            rest = later;
        }
        let (bytes, table) = writer.finish().unwrap();
        prop_assert_eq!(table.plain_length(), plain.len() as u64);
        prop_assert!(read(&bytes).unwrap() == plain);
        let start = offset as usize % (plain.len() + 1);
        let mut part = vec![0; length as usize % (plain.len() - start + 1)];
        SeekableFrames::open(Cursor::new(bytes)).unwrap().read_at(start as u64, &mut part).unwrap();
        prop_assert!(part == plain[start..start + part.len()]);
    }

    #[test]
    fn a_flipped_bit_never_panics(at in any::<usize>(), bit in 0..8) {
        let (mut bytes, _) = stream(&content(FRAME_BYTES + 3000));
        let at = at % bytes.len();
        bytes[at] ^= 1u8 << bit;
        if let Err(error) = read(&bytes) {
            prop_assert_eq!(error.kind(), Kind::Corrupt);
        }
        let mut all = vec![0; FRAME_BYTES + 3000];
        if let Err(error) = SeekableFrames::open(Cursor::new(bytes)).and_then(|mut frames| frames.read_at(0, &mut all)) {
            prop_assert_eq!(error.kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn garbage_is_corrupt_and_never_panics(
        magic in proptest::sample::select(vec![0xFD2F_B528u32, 0x184D_2A5E, 0x184D_2A50, 0x184D_2A53, 0]),
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [&magic.to_le_bytes()[..], &bytes].concat();
        prop_assert_eq!(read(&bytes).unwrap_err().kind(), Kind::Corrupt);
        prop_assert!(FrameTable::read(&mut Cursor::new(&bytes)).is_err());
    }
}
