//! A manifest reads back as it was written, and damage is noticed.
#![allow(clippy::unwrap_used, clippy::panic)]
use std::io::Cursor;

use super::*;
use crate::time::UtcTime;

fn entry(path: &[u8], ranges: usize) -> Entry {
    let ranges: Vec<Range> = (0..ranges as u64)
        .map(|n| Range {
            label: None,
            bundle: 1,
            offset: 512 + n * 8192,
            file_offset: n * 8192,
            length: 8192,
            crc32c: n as u32,
        })
        .collect();
    Entry {
        path: path.to_vec(),
        mode: 0o600,
        owner: "postgres".to_owned(),
        group: "postgres".to_owned(),
        mtime: UtcTime::UNIX_EPOCH,
        node: Node::File(File {
            size: ranges.len() as u64 * 8192,
            crc32c: 7,
            ranges,
            damaged: vec![(3, 1)],
        }),
    }
}

fn write(entries: &[Entry]) -> Vec<u8> {
    let mut writer = ManifestWriter::new(Vec::new(), 2).unwrap();
    for entry in entries {
        writer.push(&entry.path, &entry.to_lines().unwrap()).unwrap();
    }
    writer.finish().unwrap().0
}

fn open(bytes: &[u8]) -> Result<ManifestReader<'_>> {
    ManifestReader::open(
        Box::new(Cursor::new(bytes)),
        Box::new(|_| panic!("no other backup is referred to")),
    )
}

fn read(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    open(bytes)?.for_each(|entry| {
        entries.push(entry);
        Ok(())
    })?;
    Ok(entries)
}

#[test]
fn entries_read_back_in_order_whatever_their_number_and_names() {
    let mut entries: Vec<Entry> = (0..2500)
        .map(|n| entry(format!("data/base/5/{n:06}").as_bytes(), n % 4))
        .collect();
    entries.push(entry(b"data/odd \xff name", 1));
    entries.push(Entry {
        node: Node::Link(b"/srv/\xfe".to_vec()),
        ..entry(b"data/z", 0)
    });
    let bytes = write(&entries);
    assert_eq!(read(&bytes).unwrap(), entries);
    let mut reader = open(&bytes).unwrap();
    assert_eq!(reader.entries(), 2502);
    assert_eq!(reader.find(b"data/base/5/001999").unwrap().as_ref(), entries.get(1999));
    assert_eq!(reader.find(b"data/base/5/x").unwrap(), None);
    assert_eq!(reader.find(b"a").unwrap(), None);
}

#[test]
fn a_file_of_very_many_ranges_continues_on_further_lines() {
    let entries = [entry(b"data/a", 3), entry(b"data/b", 40_000), entry(b"data/c", 1)];
    assert_eq!(read(&write(&entries)).unwrap(), entries);
}

#[test]
fn an_empty_manifest_is_possible() {
    assert!(read(&write(&[])).unwrap().is_empty());
}

#[test]
fn entries_out_of_order_are_not_written() {
    let mut writer = ManifestWriter::new(Vec::new(), 2).unwrap();
    writer.push(b"b", b"{}\n").unwrap();
    assert!(writer.push(b"a", b"{}\n").is_err());
}

#[test]
fn a_path_that_leads_out_is_refused() {
    for path in [
        &b"../etc/passwd"[..],
        b"data/../../x",
        b"/etc/passwd",
        b"data//x",
        b"data/./x",
        b"",
        b"data/\0",
    ] {
        let lines = Entry {
            path: path.to_vec(),
            ..entry(b"x", 1)
        }
        .to_lines()
        .unwrap();
        assert_eq!(Entry::from_lines(&lines).unwrap_err().kind(), Kind::Refused);
    }
}

#[test]
fn gaps_and_overlaps_in_a_file_are_corrupt() {
    let mut gap = entry(b"data/a", 3);
    let Node::File(file) = &mut gap.node else {
        panic!("a file")
    };
    file.ranges.remove(1);
    assert_eq!(read(&write(&[gap])).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn damage_never_panics_and_never_changes_an_entry_silently() {
    let entries: Vec<Entry> = (0..40).map(|n| entry(format!("data/{n:02}").as_bytes(), 2)).collect();
    let bytes = write(&entries);
    for cut in 0..bytes.len() {
        assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_group_of_another_manifest_reads_as_if_it_stood_here_and_names_where_its_bytes_lie() {
    let other: Label = "20261120T020000Z-full-3f9a1c".parse().unwrap();
    let entries: Vec<Entry> = (0..2500)
        .map(|n| entry(format!("data/base/5/{n:06}").as_bytes(), 1 + n % 3))
        .collect();
    let base = write(&entries);
    let mut reader = open(&base).unwrap();
    let (first, _) = reader.read_group_of(other, 0).unwrap();
    let (held, second) = reader.read_group_of(other, 1).unwrap();
    assert_eq!((held.len() as u64, second.label()), (second.count(), Some(other)));
    assert_eq!(second.last(), held[held.len() - 1].path);

    let mut writer = ManifestWriter::new(Vec::new(), 2).unwrap();
    let (before, after) = (entry(b"data/base/4", 1), entry(b"data/base/6", 1));
    writer.push(&before.path, &before.to_lines().unwrap()).unwrap();
    writer.refer(&second).unwrap();
    assert!(writer.refer(&second).is_err(), "twice");
    writer.push(&after.path, &after.to_lines().unwrap()).unwrap();
    let bytes = writer.finish().unwrap().0;

    let open_base = |label: Label| {
        assert_eq!(label, other);
        Ok(Box::new(Cursor::new(&base)) as Box<dyn Source + '_>)
    };
    let mut reader = ManifestReader::open(Box::new(Cursor::new(&bytes)), Box::new(open_base)).unwrap();
    assert_eq!((reader.entries(), reader.groups()), (2 + second.count(), 3));
    let mut found = Vec::new();
    reader
        .for_each(|entry| {
            found.push(entry);
            Ok(())
        })
        .unwrap();
    let mut wanted = vec![before];
    wanted.extend(
        entries[first.len()..first.len() + held.len()]
            .iter()
            .cloned()
            .map(|mut entry| {
                entry.name_label(other);
                entry
            }),
    );
    wanted.push(after);
    assert_eq!(found, wanted);
    // A third manifest refers to where the group is, not to the one that refers to it.
    let between: Label = "20261121T020000Z-incr-77aa01".parse().unwrap();
    let (_, again) = reader.read_group_of(between, 1).unwrap();
    assert_eq!(again, second);
}
