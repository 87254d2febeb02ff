#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;

/// An archive as pg_dump of PostgreSQL 15 (version 1.14) or 18 (1.16) writes it into a pipe.
struct Made(Vec<u8>, u8);

impl Made {
    fn new(minor: u8, entries: i64) -> Self {
        let mut made = Self(b"PGDMP".to_vec(), minor);
        made.0.extend([1, minor, 0, 4, 8, 1]);
        if minor >= 15 {
            made.0.push(0);
        } else {
            made.number(0);
        }
        for part in [1, 2, 3, 4, 5, 126, 0] {
            made.number(part);
        }
        for text in ["shop", "15.18", "15.18"] {
            made.text(text);
        }
        made.number(entries);
        made
    }

    fn number(&mut self, number: i64) {
        self.0.push(u8::from(number < 0));
        self.0.extend(u32::try_from(number.abs()).unwrap().to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as i64);
        self.0.extend(text.as_bytes());
    }

    fn entry(&mut self, id: i64, kind: &str, name: &str, needs: &[i64], data: bool) {
        self.number(id);
        self.number(i64::from(data));
        for text in ["1259", "16384", name, kind] {
            self.text(text);
        }
        self.number(2);
        for text in ["CREATE", "DROP", "", "t_1", ""] {
            self.text(text);
        }
        self.number(-1);
        if self.1 >= 16 {
            self.number(114);
        }
        self.text("postgres");
        self.text("false");
        for need in needs {
            self.text(&need.to_string());
        }
        self.number(-1);
        self.0.push(if data { 1 } else { 3 });
        self.0.extend([0; 8]);
    }

    fn data(&mut self, id: i64, pieces: &[&str]) {
        self.0.push(1);
        self.number(id);
        for piece in pieces {
            self.text(piece);
        }
        self.number(0);
    }
}

fn whole(minor: u8) -> (Vec<u8>, usize) {
    let mut made = Made::new(minor, 3);
    made.entry(7, "TABLE", "orders", &[], false);
    made.entry(9, "TABLE DATA", "orders", &[7], true);
    made.entry(8, "BLOBS", "BLOBS", &[], true);
    let head = made.0.len();
    made.data(9, &["1\tone\n", "2\ttwo\n"]);
    made.0.push(3);
    made.number(8);
    made.number(16400);
    made.text("large");
    made.number(0);
    made.number(0);
    (made.0, head)
}

#[test]
fn entries_and_places_are_found_in_each_version() {
    for minor in [14, 15, 16] {
        let (bytes, head) = whole(minor);
        let archive = scan(bytes.as_slice()).unwrap();
        assert_eq!(
            (archive.database.as_str(), archive.server_version.as_str()),
            ("shop", "15.18")
        );
        assert_eq!((archive.head_bytes, archive.size), (head as u64, bytes.len() as u64));
        let [table, data, large] = archive.entries.as_slice() else {
            panic!("{:?}", archive.entries)
        };
        assert_eq!(
            (table.full_name().as_str(), table.oid, table.data),
            ("t_1.orders", 16384, false)
        );
        assert_eq!(
            (data.needs.as_slice(), data.data, large.kind.as_str()),
            (&[7][..], true, "BLOBS")
        );
        let blocks: Vec<i64> = archive.blocks.iter().map(|block| block.id).collect();
        assert_eq!(blocks, [9, 8]);
        let end = archive.blocks.iter().map(|block| block.length).sum::<u64>() + archive.head_bytes;
        assert_eq!(end, archive.size, "the blocks and the head are all of it");
    }
}

#[test]
fn every_archive_that_ends_early_is_noticed() {
    let (bytes, _) = whole(16);
    for length in 0..bytes.len() {
        let error = scan(&bytes[..length]).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{length}");
    }
}

#[test]
fn data_that_is_promised_and_missing_is_named() {
    let mut made = Made::new(14, 1);
    made.entry(9, "TABLE DATA", "orders", &[], true);
    assert!(
        scan(made.0.as_slice())
            .unwrap_err()
            .to_string()
            .contains("TABLE DATA t_1.orders")
    );
}

#[test]
fn other_versions_and_other_files_are_refused() {
    let (mut bytes, _) = whole(16);
    bytes[6] = 17;
    assert!(scan(bytes.as_slice()).unwrap_err().to_string().contains("1.17"));
    assert!(scan(&b"hello, world, this is no dump"[..]).is_err());
}

proptest::proptest! {
    #[test]
    fn whatever_the_bytes_are_there_is_an_answer(at in 0_usize..400, byte: u8) {
        let (mut bytes, _) = whole(16);
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        let _ = scan(bytes.as_slice());
    }
}
