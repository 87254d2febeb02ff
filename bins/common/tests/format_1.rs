//! Format 1 stays readable: sample repositories, kept under `tests/fixtures/format-1`, open with today's code.
//!
//! `PGKEEP_WRITE_FIXTURES=1 cargo test -p common --test format_1` makes them anew (remove the old ones first); that is
//! right only before a format is published.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::codec::{ContentKind, Opening, Reading, Recipients, Sealing, compress_stream, generate_identity};
use common::digest::crc32c;
use common::postgres::{Lsn, SegmentSize, SystemId, TimelineId, WalName};
use common::repository::backup::{BackupInfo, Intent, WalSpan};
use common::repository::bundle::{Attributes, BundleWriter};
use common::repository::events::{self, What};
use common::repository::manifest::{Entry, File, ManifestWriter, Node, Range};
use common::repository::writer::FolderWriter;
use common::repository::{
    BackupType, ClusterName, FORMAT, Identity, Label, Repository, catalog, document, manifest, reader, wal,
};
use common::storage::posix::PosixStore;
use common::time::UtcTime;

const SYSTEM: SystemId = SystemId(7_390_000_000_000_000_001);
const SEGMENT: &str = "000000010000000000000002";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/format-1")
}

fn full() -> Label {
    "20261120T020000Z-full-3f9a1c".parse().unwrap()
}

fn incr() -> Label {
    "20261121T020000Z-incr-77aa01".parse().unwrap()
}

fn now() -> UtcTime {
    UtcTime::parse_compact("20261120T020000Z").unwrap()
}

fn repository(kind: &str) -> Repository {
    let identity = fixtures().join("identity.txt");
    let public = std::fs::read_to_string(fixtures().join("recipient.txt")).unwrap_or_default();
    let sealing = match kind {
        "encrypted" => Sealing::Age(Recipients::parse(&[public.trim().to_owned()]).unwrap()),
        _ => Sealing::Clear,
    };
    let opening = match kind {
        "encrypted" => Opening::from_identity_file(&private_copy(&identity)).unwrap(),
        _ => Opening::none(),
    };
    Repository::new(
        kind.to_owned(),
        format!("file:///{kind}"),
        true,
        Arc::new(PosixStore::new(fixtures().join(kind))),
        sealing.clone(),
        sealing,
        opening,
        ClusterName::parse("main").unwrap(),
    )
}

/// A checkout gives every file its default mode, and an identity that others can read is refused.
fn private_copy(identity: &Path) -> PathBuf {
    let text = std::fs::read(identity).unwrap();
    let path = std::env::temp_dir().join(format!(
        "pgkeep-format-1-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let _ = std::fs::remove_file(&path);
    common::durable::write_new(&path, &text, 0o600).unwrap();
    path
}

/// Content whose every block is different and that compresses.
fn content(size: usize, seed: u8) -> Vec<u8> {
    (0..size)
        .map(|at| ((at / 8192) as u8).wrapping_mul(31).wrapping_add((at % 61) as u8) ^ seed)
        .collect()
}

/// The relation of the samples: three blocks in the full backup, the middle one new in the incremental.
fn relation(changed: bool) -> Vec<u8> {
    let mut bytes = content(3 * 8192, 7);
    if changed {
        bytes[8192..16384].copy_from_slice(&content(8192, 99));
    }
    bytes
}

fn attributes() -> Attributes {
    Attributes {
        mode: 0o600,
        uid: 101,
        gid: 104,
        owner: "postgres".into(),
        group: "postgres".into(),
        mtime: now(),
    }
}

fn entry(path: &str, node: Node) -> Entry {
    let mode = if matches!(node, Node::Directory) { 0o700 } else { 0o600 };
    Entry {
        path: path.into(),
        mode,
        owner: "postgres".into(),
        group: "postgres".into(),
        mtime: now(),
        node,
    }
}

fn file(bytes: &[u8], ranges: Vec<Range>) -> Node {
    Node::File(File {
        size: bytes.len() as u64,
        crc32c: crc32c(bytes),
        ranges,
        damaged: Vec::new(),
    })
}

fn info(label: Label, kind: BackupType) -> BackupInfo {
    BackupInfo {
        format: FORMAT,
        label,
        kind,
        cluster: "main".into(),
        system_identifier: SYSTEM.to_string(),
        major: 15,
        server_version: "15.18".into(),
        pgkeep: "pgkeep 0.1.0".into(),
        host: "sample".into(),
        role: "primary".into(),
        note: Some("a sample".into()),
        started: label.started(),
        stopped: label.started(),
        finished: label.started(),
        timeline: 1,
        start_lsn: Lsn(0x0020_0028),
        stop_lsn: Lsn(0x0020_0138),
        wal: WalSpan {
            first: SEGMENT.into(),
            last: SEGMENT.into(),
        },
        segment_size: 1 << 20,
        block_size: 8192,
        data_checksums: false,
        tablespaces: Vec::new(),
        base: (kind != BackupType::Full).then(full),
        references: if kind == BackupType::Full {
            Vec::new()
        } else {
            vec![full()]
        },
        reused_from: None,
        files: 2,
        size: 3 * 8192 + 3,
        stored: 0,
        durations: std::iter::once(("copy".to_owned(), 1.5)).collect(),
        damaged_pages: 0,
        good: true,
        objects: Vec::new(),
        signature: None,
    }
}

fn write_backup(repository: Repository, label: Label, kind: BackupType) {
    let repositories = [repository];
    let intent = Intent {
        format: FORMAT,
        label,
        host: "sample".into(),
        pid: 1,
        started: label.started(),
        system_identifier: SYSTEM.to_string(),
        leans_on: if kind == BackupType::Full {
            Vec::new()
        } else {
            vec![full()]
        },
    };
    let writer = FolderWriter::begin_backup(&repositories, &intent).unwrap();
    let mut bundle = BundleWriter::new(writer.create("data/1.tar.zst", false).unwrap(), 2).unwrap();
    let bytes = relation(kind != BackupType::Full);
    bundle.directory(b"data/base/5", &attributes()).unwrap();
    let (name, stored) = match kind {
        BackupType::Full => ("data/base/5/16384", bytes.as_slice()),
        _ => ("blocks/data/base/5/16384@1", &bytes[8192..16384]),
    };
    let mut add = |name: &str, bytes: &[u8]| {
        bundle
            .begin_file(name.as_bytes(), bytes.len() as u64, &attributes())
            .unwrap();
        bundle.data(bytes).unwrap();
        bundle.end_file().unwrap()
    };
    let placed = add(name, stored);
    let version = add("data/PG_VERSION", b"15\n");
    let (copies, index, plain) = bundle.finish().unwrap();
    copies.finish(plain).unwrap();
    let encoded = index.encode().unwrap();
    let mut frames = common::codec::FrameWriter::new(writer.create("data/1.index.zst", true).unwrap(), 2).unwrap();
    frames.put(&encoded).unwrap();
    frames.finish().unwrap().0.finish(encoded.len() as u64).unwrap();

    let range = |label, bundle, offset, file_offset: usize, bytes: &[u8]| Range {
        label,
        bundle,
        offset,
        file_offset: file_offset as u64,
        length: bytes.len() as u64,
        crc32c: crc32c(bytes),
    };
    let ranges = match kind {
        BackupType::Full => vec![range(None, 1, placed.offset, 0, &bytes)],
        _ => {
            // The base's bundle holds the same header before the file: its data begins at the same place.
            let base = 1024;
            vec![
                range(Some(full()), 1, base, 0, &bytes[..8192]),
                range(None, 1, placed.offset, 8192, &bytes[8192..16384]),
                range(Some(full()), 1, base + 16384, 16384, &bytes[16384..]),
            ]
        }
    };
    let mut manifest = ManifestWriter::new(writer.create("manifest.zst", true).unwrap(), 2).unwrap();
    let entries = [
        entry(
            "data/PG_VERSION",
            file(b"15\n", vec![range(None, 1, version.offset, 0, b"15\n")]),
        ),
        entry("data/base/5", Node::Directory),
        entry("data/base/5/16384", file(&bytes, ranges)),
        entry("data/pg_tblspc/16400", Node::Link(b"/srv/ts".to_vec())),
    ];
    for entry in &entries {
        manifest.push(&entry.path, &entry.to_lines().unwrap()).unwrap();
    }
    let (copies, plain) = manifest.finish().unwrap();
    copies.finish(plain).unwrap();
    for outcome in writer.commit_backup(&info(label, kind)) {
        outcome.result.unwrap();
    }
}

fn sample_segment() -> Vec<u8> {
    // A segment as a server of version 15 would begin it; only its bytes matter here.
    content(1 << 20, 3)
}

fn write_samples() {
    let directory = fixtures();
    std::fs::create_dir_all(&directory).unwrap();
    let (secret, public) = generate_identity();
    std::fs::write(directory.join("identity.txt"), secret).unwrap();
    std::fs::write(directory.join("recipient.txt"), format!("{public}\n")).unwrap();
    for kind in ["clear", "encrypted"] {
        let repository = || {
            let repository = self::repository(kind);
            repository.store.prepare().unwrap();
            repository
        };
        let first = repository();
        let identity = Identity::new(&first.cluster, now(), kind == "encrypted").unwrap();
        document::write(first.store.as_ref(), &first.keys().identity().unwrap(), &identity).unwrap();
        let system = What::System {
            system_identifier: SYSTEM.to_string(),
            major: 15,
            segment_size: 1 << 20,
            new_history: false,
        };
        events::append(&first, now(), "sample", system).unwrap();
        events::append(
            &first,
            now(),
            "sample",
            What::Keep {
                label: full(),
                reason: "a sample".into(),
            },
        )
        .unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let stream = compress_stream(bytes, &Reading::of(bytes).unwrap(), ContentKind::Wal, 2).unwrap();
            wal::put(&first, SYSTEM, &WalName::parse(name).unwrap(), &stream, now(), "sample").unwrap();
        };
        put(SEGMENT, &sample_segment());
        put("00000002.history", b"1\t0/3000000\tsample\n");
        write_backup(repository(), full(), BackupType::Full);
        write_backup(repository(), incr(), BackupType::Incr);
    }
}

fn read_file(repository: &Repository, entry: &Entry) -> Vec<u8> {
    let Node::File(file) = &entry.node else {
        panic!("a file")
    };
    let mut out = Vec::new();
    for range in &file.ranges {
        let info = common::repository::backup::read(repository, range.label.unwrap_or(incr())).unwrap();
        let mut bundle = reader::open_bundle(repository, &info, range.bundle).unwrap();
        let mut bytes = vec![0; range.length as usize];
        bundle.read_at(range.offset, &mut bytes).unwrap();
        assert_eq!(crc32c(&bytes), range.crc32c);
        out.write_all(&bytes).unwrap();
    }
    assert_eq!(crc32c(&out), file.crc32c);
    out
}

fn check(kind: &str) {
    let repository = repository(kind);
    let identity = repository.identity_for_writing().unwrap();
    assert_eq!((identity.format, identity.encrypted), (1, kind == "encrypted"));
    let known = events::require_system(&repository, SYSTEM).unwrap();
    assert_eq!((known.major, known.segment_size), (15, 1 << 20));
    assert_eq!(events::read(&repository).unwrap().len(), 2);

    let mut segment = Vec::new();
    wal::fetch(&repository, SYSTEM, &WalName::parse(SEGMENT).unwrap(), &mut segment).unwrap();
    assert_eq!(segment, sample_segment());
    let list = wal::list(&repository, SYSTEM, SegmentSize::new(1 << 20).unwrap()).unwrap();
    assert_eq!(
        (list.segments, list.histories, list.foreign),
        (1, vec![TimelineId(2)], Vec::new())
    );

    let catalog = catalog::read(&repository, None).unwrap();
    let labels: Vec<Label> = catalog.backups.iter().map(|info| info.label).collect();
    assert_eq!(labels, [full(), incr()]);
    assert!(catalog.unfinished.is_empty() && catalog.unreadable.is_empty());
    let newest = catalog.newest_good().unwrap();
    assert_eq!(newest.references, [full()]);
    let mut manifest: manifest::ManifestReader<'_> = reader::open_manifest(&repository, newest).unwrap();
    assert_eq!(manifest.entries(), 4);
    let found = manifest.find(b"data/base/5/16384").unwrap().unwrap();
    assert_eq!(read_file(&repository, &found), relation(true));
    let index = reader::read_index(&repository, newest, 1).unwrap();
    assert_eq!(index.members[0].name, b"blocks/data/base/5/16384@1");
    assert_eq!(index.digests[0].crc32c, crc32c(&relation(true)[8192..16384]));
}

#[test]
fn a_clear_repository_of_format_1_reads() {
    if std::env::var_os("PGKEEP_WRITE_FIXTURES").is_some() {
        write_samples();
    }
    check("clear");
}

#[test]
fn an_encrypted_repository_of_format_1_reads() {
    if std::env::var_os("PGKEEP_WRITE_FIXTURES").is_none() {
        check("encrypted");
    }
}
