//! A healthy repository of very many backups and WAL files: nothing is found, in seconds and flat memory.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::codec::{ContentKind, Opening, Sealing, compress_once};
use common::postgres::{Lsn, SegmentName, SegmentNumber, SegmentSize, TimelineId};
use common::repository::backup::{self, BackupInfo, ObjectRecord};
use common::repository::events::{self, What};
use common::repository::manifest::ManifestWriter;
use common::repository::{BackupType, ClusterName, Identity, Label, Nonce, Repository, document};
use common::storage::posix::PosixStore;
use common::storage::{Key, Store};
use common::time::UtcTime;
use system_tests::Bare;
use system_tests::story::all;

const SIZE: u64 = 16 << 20;

/// Fills a repository with so many backups, and so many segments of WAL that they share.
fn fill(bare: &Bare, backups: u64, segments: u64) {
    let now = UtcTime::now();
    let store: Arc<dyn Store> = Arc::new(PosixStore::new(bare.repository.clone()));
    let cluster = ClusterName::parse("main").unwrap();
    let (a, b) = (Sealing::Clear, Sealing::Clear);
    let repository = Repository::new(
        "local".to_owned(),
        String::new(),
        true,
        store,
        a,
        b,
        Opening::none(),
        cluster.clone(),
    );
    let identity = Identity::new(&cluster, now, false).unwrap();
    document::write(
        repository.store.as_ref(),
        &Key::parse("main/repository.json").unwrap(),
        &identity,
    )
    .unwrap();
    let system = What::System {
        system_identifier: "7".to_owned(),
        major: 15,
        segment_size: SIZE,
        new_history: false,
    };
    events::append(&repository, now, "h", system).unwrap();
    // The objects need no syncing to be looked at.
    let put = |key: &str, bytes: &[u8]| {
        let path = bare.repository.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let (content, _) = compress_once(&b"a segment"[..], 9, ContentKind::Wal, 2).unwrap();
    let size = SegmentSize::new(SIZE).unwrap();
    for number in 1..=segments {
        let name = SegmentName::new(TimelineId(1), SegmentNumber(number), size);
        put(&format!("main/wal/7/{}/{name}.zst", name.directory()), &content.bytes);
    }
    let manifest = ManifestWriter::new(Vec::new(), 2).unwrap().finish().unwrap().0;
    for at in 0..backups {
        let started = now.minus(Duration::from_secs((backups - at) * 3600)).whole_seconds();
        let label = Label::new(started, BackupType::Full, Nonce::random().unwrap());
        let number = 1 + at * (segments - 1) / backups;
        let lsn = |offset: u64| Lsn(number * SIZE + offset);
        let folder = format!("main/backup/{label}");
        let object = |key: &str, bytes: &[u8]| {
            put(&format!("{folder}/{key}"), bytes);
            ObjectRecord {
                key: key.to_owned(),
                size: bytes.len() as u64,
                sha256: common::digest::Sha256Digest::of(bytes),
                plain: bytes.len() as u64,
            }
        };
        let objects = vec![
            object("data/1.index.zst", b"index"),
            object("data/1.tar.zst", b"bundle"),
            object("manifest.zst", &manifest),
        ];
        let info = serde_json::json!({"format":1,"label":label,"type":"full","cluster":"main","system_identifier":"7",
            "major":15,"server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,"started":started,
            "stopped":started,"finished":started,"timeline":1,"start_lsn":lsn(40),"stop_lsn":lsn(400),
            "wal":{"first":"a","last":"b"},"segment_size":SIZE,"block_size":8192,"data_checksums":true,"tablespaces":[],
            "base":null,"references":[],"reused_from":null,"files":0,"size":0,"stored":1,"durations":{},
            "damaged_pages":0,"good":true,"objects":objects,"signature":null});
        let info: BackupInfo = serde_json::from_value(info).unwrap();
        backup::commit(&repository, &info).unwrap();
    }
    let given = std::process::Command::new("chown")
        .args(["-R", "--reference"])
        .arg(&bare.data)
        .arg(&bare.repository)
        .status();
    assert!(given.unwrap().success());
}

#[test]
fn a_large_healthy_repository_says_nothing_in_seconds() {
    let (backups, segments) = if all() { (1000, 100_000) } else { (60, 4000) };
    let bare = Bare::new("verify_large");
    fill(&bare, backups, segments);
    let since = Instant::now();
    let ran = bare.tool("verify").run();
    let took = since.elapsed();
    let ran = ran.expect_code(0);
    println!(
        "{backups} backups and {segments} segments: {took:?}, {} KiB",
        ran.max_rss_kib
    );
    assert_eq!(
        ran.stdout,
        format!("repository \"local\": whole: {backups} backups, {segments} WAL segments\n")
    );
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(ran.max_rss_kib < 150 << 10, "{} KiB", ran.max_rss_kib);
}
