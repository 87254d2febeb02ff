//! What becomes of objects in a bucket: parts of large ones, storage classes, encryption by the store, locks and versions;
//! and that keys are seen nowhere.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod archive_stand;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archive_stand::{Archive, Dice, push};
use common::error::{Error, Kind};
use common::retry::Policy;
use common::storage::bucket::{BucketSettings, BucketStore, Classes, ServerSideEncryption, Service};
use common::storage::{Key, Store, read_all};
use common::time::UtcTime;
use system_tests::emulator::SOMEBODY;
use system_tests::s3::{Fault, Rule, SECRET_KEY};
use system_tests::story::all;
use system_tests::wait::PATIENCE;
use system_tests::{Emulator, Options, RepoOptions, S3, Scratch, Server, Story, wait_until};

const DAY: Duration = Duration::from_secs(86_400);

fn settings(endpoint: String, scratch: &Scratch) -> BucketSettings {
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    BucketSettings {
        service: Service::S3 {
            region: None,
            virtual_hosted: None,
            encryption: None,
            lock: None,
        },
        bucket: "backups".into(),
        prefix: "pg".into(),
        endpoint: Some(endpoint),
        ca_file: None,
        credentials_file: Some(credentials),
        environment: Vec::new(),
        classes: Classes::default(),
    }
}

fn open(settings: &BucketSettings) -> BucketStore {
    BucketStore::new(settings, Policy::patient(Duration::from_secs(20)), UtcTime::now()).unwrap()
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut dice = Dice::new();
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend_from_slice(&dice.next().to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

fn upload(store: &dyn Store, key: &Key, body: &[u8]) {
    let mut upload = store.create(key).unwrap();
    upload.write_all(body).unwrap();
    upload.finish().unwrap();
}

fn asked(s3: &S3, part: &str) -> usize {
    s3.log().iter().filter(|line| line.contains(part)).count()
}

#[test]
fn a_large_object_goes_in_parts_of_which_only_the_failed_one_is_sent_again() {
    let scratch = Scratch::new("parts");
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let store = open(&settings(s3.endpoint(), &scratch));
    let (large, body) = (key("main/large"), noise(23 << 20));
    s3.rule(Rule::new(Fault::BreakUpload).part("partNumber=2").times(1));
    s3.rule(Rule::new(Fault::Answer(503, "SlowDown")).part("partNumber=4").times(2));
    upload(&store, &large, &body);
    let sent: Vec<usize> = (1..=6).map(|n| asked(&s3, &format!("partNumber={n}&"))).collect();
    assert_eq!(sent, [1, 2, 1, 3, 1, 0], "{:?}", s3.log());
    assert!(read_all(&store, &large, 1 << 30).unwrap() == body);
    // An object that just fills a part goes in one request.
    s3.forget();
    upload(&store, &key("main/small"), &body[..5 << 20]);
    assert_eq!(asked(&s3, "upload"), 0, "{:?}", s3.log());
}

#[test]
fn parts_are_under_way_at_the_same_time() {
    let scratch = Scratch::new("parallel");
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let store = open(&settings(s3.endpoint(), &scratch));
    let (large, body) = (key("main/large"), noise(12 << 20));
    // The first is not answered, and the second does not wait for it.
    s3.rule(Rule::new(Fault::Hang).part("partNumber=1&").times(1));
    std::thread::scope(|scope| {
        let uploading = scope.spawn(|| upload(&store, &large, &body));
        wait_until("the second part is sent", PATIENCE, || asked(&s3, "partNumber=2&") == 1);
        assert_eq!(asked(&s3, "partNumber=1&"), 1, "{:?}", s3.log());
        uploading.join().unwrap();
    });
    assert_eq!(asked(&s3, "partNumber=1&"), 2, "what hung was sent again");
    assert!(read_all(&store, &large, 1 << 30).unwrap() == body);
}

#[test]
fn an_upload_that_fails_or_is_dropped_leaves_nothing() {
    let scratch = Scratch::new("dropped");
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let mut settings = settings(s3.endpoint(), &scratch);
    let store = BucketStore::new(&settings, Policy::once(), UtcTime::now()).unwrap();
    let (large, body) = (key("main/large"), noise(12 << 20));
    let mut begun = store.create(&large).unwrap();
    begun.write_all(&body).unwrap();
    drop(begun);
    s3.rule(Rule::new(Fault::Reset).part("partNumber=2&"));
    let mut begun = store.create(&large).unwrap();
    let outcome = begun
        .write_all(&body)
        .map_err(|error| Error::io(error, "write"))
        .and_then(|()| begun.finish());
    assert_eq!(outcome.unwrap_err().kind(), Kind::Transient);
    s3.heal();
    assert_eq!(store.stat(&large).unwrap(), None);
    assert!(store.children(None).unwrap().is_empty());
    let left: Vec<PathBuf> = fs::read_dir(&s3.root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains(".part-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // A lost answer to the last step of all is found to be success.
    settings.prefix = "lost".into();
    s3.rule(Rule::new(Fault::LoseAnswer).method("POST").part("uploadId=").times(1));
    let store = open(&settings);
    upload(&store, &large, &body);
    assert!(read_all(&store, &large, 1 << 30).unwrap() == body);
}

#[test]
fn abandoned_uploads_are_swept_and_young_ones_stay() {
    let scratch = Scratch::new("sweep");
    let Some(moto) = Emulator::need_moto(&scratch.path("")) else {
        return;
    };
    moto.request("PUT", "/backups", "", "");
    for name in ["pg/main/a", "pg/main/b%2Bc", "pgother/main/a"] {
        assert_eq!(moto.request("POST", &format!("/backups/{name}?uploads"), "", "").0, 200);
    }
    let store = open(&settings(moto.endpoint(), &scratch));
    assert_eq!(store.sweep(DAY * 365 * 100).unwrap(), 0, "nothing is that old");
    // moto says of all uploads that they began in 2010.
    assert_eq!(store.sweep(DAY).unwrap(), 2);
    assert_eq!(store.sweep(DAY).unwrap(), 0);
    let (_, left) = moto.request("GET", "/backups?uploads", "", "");
    assert!(left.contains("pgother/main/a") && !left.contains("<Key>pg/"), "{left}");
}

/// moto with a bucket that keeps versions and allows locks.
fn locking(scratch: &Scratch) -> Option<Emulator> {
    let moto = Emulator::need_moto(&scratch.path(""))?;
    let header = "x-amz-bucket-object-lock-enabled: true\r\n";
    assert_eq!(moto.request("PUT", "/backups", header, "").0, 200);
    Some(moto)
}

fn locked(moto: &Emulator, scratch: &Scratch) -> BucketSettings {
    let mut settings = settings(moto.endpoint(), scratch);
    settings.service = Service::S3 {
        region: None,
        virtual_hosted: None,
        encryption: Some(ServerSideEncryption::S3),
        lock: Some(DAY),
    };
    settings.classes = Classes {
        backup: Some("STANDARD_IA".into()),
        wal: None,
    };
    settings
}

#[test]
fn class_encryption_and_lock_arrive_with_small_and_large_objects() {
    let scratch = Scratch::new("headers");
    let Some(moto) = locking(&scratch) else { return };
    let store = open(&locked(&moto, &scratch));
    let backup = "main/backup/20261120T020000Z-full-3f9a1c";
    let body = noise(6 << 20);
    let (small, large) = (format!("{backup}/data/1.tar.zst"), format!("{backup}/data/2.tar.zst"));
    store.put_new(&key(&small), b"x").unwrap();
    upload(&store, &key(&large), &body);
    for name in [&small, &large] {
        let headers = moto.head(&format!("/backups/pg/{name}"));
        let mut wanted = vec![
            "x-amz-storage-class: standard_ia",
            "x-amz-server-side-encryption: aes256",
        ];
        if name == &small {
            // moto forgets the lock of what comes in parts.
            wanted.extend([
                "x-amz-object-lock-mode: compliance",
                "x-amz-object-lock-retain-until-date: 2",
            ]);
        }
        for header in wanted {
            assert!(headers.contains(header), "{name}: {header} is missing\n{headers}");
        }
    }
    // What says what there is stays where it can be read at once, locked as well.
    let metadata = format!("{backup}/backup.json");
    store.put_new(&key(&metadata), b"{}").unwrap();
    let headers = moto.head(&format!("/backups/pg/{metadata}"));
    assert!(!headers.contains("storage-class"), "{headers}");
    assert!(headers.contains("x-amz-object-lock-mode: compliance"), "{headers}");
    // A lease is never locked.
    let lease = "main/lease/base-backup/1.json";
    store.put_new(&key(lease), b"{}").unwrap();
    let headers = moto.head(&format!("/backups/pg/{lease}"));
    assert!(!headers.contains("object-lock"), "{headers}");
    store.delete(&key(lease)).unwrap();
    assert_eq!(store.stat(&key(lease)).unwrap(), None);

    assert!(read_all(&store, &key(&large), 1 << 30).unwrap() == body);
    let refused = store.delete(&key(&small)).unwrap_err();
    println!("{}", common::error::chain(&refused));
    assert!(refused.nearest_hint().unwrap().contains("object lock"), "{refused:?}");
    assert_eq!(read_all(&store, &key(&small), 100).unwrap(), b"x");
}

#[test]
fn what_comes_in_parts_is_locked_from_the_beginning() {
    let scratch = Scratch::new("locked_parts");
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let mut settings = settings(s3.endpoint(), &scratch);
    settings.service = Service::S3 {
        region: None,
        virtual_hosted: None,
        encryption: None,
        lock: Some(DAY),
    };
    let mut upload = open(&settings).create(&key("main/large")).unwrap();
    upload.write_all(&noise(6 << 20)).unwrap();
    drop(upload);
    let begun = s3.headers("?uploads");
    assert_eq!(begun[0]["x-amz-object-lock-mode"], "COMPLIANCE");
    assert!(begun[0].contains_key("x-amz-object-lock-retain-until-date"));
    // S3 refuses to be told of a checksum that does not come.
    assert!(!begun[0].contains_key("x-amz-sdk-checksum-algorithm"));
    let parts = s3.headers("partNumber=");
    assert!(parts[0].contains_key("x-amz-checksum-sha256") && !parts[0].contains_key("x-amz-object-lock-mode"));
}

#[test]
fn of_an_object_overwritten_or_deleted_the_oldest_version_is_read() {
    let scratch = Scratch::new("versions");
    let Some(moto) = locking(&scratch) else { return };
    let guarded = locked(&moto, &scratch);
    let store = open(&guarded);
    let names = ["main/a", "main/a.b", "main/b", "main/sub/c"];
    for name in names {
        store.put_new(&key(name), name.as_bytes()).unwrap();
    }
    // Somebody with the right to write and to delete.
    assert_eq!(
        moto.request("PUT", "/backups/pg/main/a", SOMEBODY, "evil content").0,
        200
    );
    assert_eq!(moto.request("DELETE", "/backups/pg/main/b", SOMEBODY, "").0, 204);
    assert_eq!(moto.request("PUT", "/backups/pg/main/b", SOMEBODY, "evil").0, 200);
    assert_eq!(moto.request("DELETE", "/backups/pg/main/sub/c", SOMEBODY, "").0, 204);
    let mut unguarded = guarded.clone();
    unguarded.service = settings(moto.endpoint(), &scratch).service;
    let fooled = open(&unguarded);
    assert_eq!(read_all(&fooled, &key("main/a"), 100).unwrap(), b"evil content");
    assert_eq!(fooled.stat(&key("main/sub/c")).unwrap(), None);

    for name in names {
        assert_eq!(read_all(&store, &key(name), 100).unwrap(), name.as_bytes());
        assert_eq!(store.stat(&key(name)).unwrap().unwrap().size, name.len() as u64);
        assert_eq!(
            store.put_new(&key(name), b"again").unwrap_err().kind(),
            Kind::AlreadyExists
        );
    }
    let mut listed = Vec::new();
    store
        .list(Some(&key("main")), &mut |key, stat| {
            listed.push((key.to_string(), stat.size));
            Ok(())
        })
        .unwrap();
    assert_eq!(listed, names.map(|name| (name.to_owned(), name.len() as u64)));
    assert_eq!(store.children(Some(&key("main"))).unwrap(), ["a", "a.b", "b", "sub"]);
    assert_eq!(store.stat(&key("main/none")).unwrap(), None);
    assert_eq!(
        store.open(&key("main/none"), 0, None).err().map(|error| error.kind()),
        Some(Kind::NotFound)
    );

    // What was not locked goes with all its versions.
    for body in ["1", "2"] {
        moto.request("PUT", "/backups/pg/main/free", SOMEBODY, body);
    }
    moto.request("DELETE", "/backups/pg/main/free", SOMEBODY, "");
    assert_eq!(read_all(&store, &key("main/free"), 100).unwrap(), b"1");
    store.delete(&key("main/free")).unwrap();
    assert_eq!(store.stat(&key("main/free")).unwrap(), None);
    let (_, left) = moto.request("GET", "/backups?versions&prefix=pg/main/free", SOMEBODY, "");
    assert!(!left.contains("main/free</Key>"), "{left}");
}

#[test]
fn a_backup_to_a_bucket_needs_little_memory_and_killed_leaves_nothing_visible() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("memory");
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    let story = Story::with("memory", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("offsite").in_s3(&s3, "backups", &credentials))
    });
    let megabytes = if all() { 1000 } else { 60 };
    story.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/true'");
    story.cluster.reload();
    story.cluster.sql(&format!(
        "CREATE TABLE t AS SELECT decode(string_agg(md5(random()::text || n || m), ''), 'hex') AS noise
         FROM generate_series(1, {}) n, generate_series(1, 64) m GROUP BY n",
        megabytes << 10
    ));
    story.archive_all();
    story.cluster.sql("ALTER SYSTEM RESET archive_command");
    story.cluster.reload();
    wait_until("the command is ours again", PATIENCE, || {
        story.cluster.query_one("SHOW archive_command").contains("archive-push")
    });
    s3.forget();
    // One worker: another one might finish a small bundle, which may be seen.
    let mut running = story.tool("base-backup").args(["--jobs", "1"]).spawn();
    wait_until("parts are sent", PATIENCE, || {
        !running.is_running() || asked(&s3, "partNumber=3&") > 0
    });
    let ran = running.kill9();
    assert_eq!(ran.signal, Some(9), "{}", ran.report());
    let left = story.site.repo().matching(".tar.zst");
    assert!(left.is_empty() && story.committed().is_empty(), "{left:?}");

    story.step("a whole one");
    let ran = story
        .tool("base-backup")
        .arg("-v")
        .timeout(PATIENCE * 10)
        .run()
        .expect_code(0);
    println!("{}", ran.stderr);
    println!(
        "backup of {megabytes} MB to a bucket: {} MiB resident, {:?}",
        ran.max_rss_kib >> 10,
        ran.elapsed
    );
    assert!(ran.max_rss_kib <= 96 << 10, "{} KiB\n{}", ran.max_rss_kib, ran.report());
    let to = story.scratch.path("restored");
    let ran = story
        .restore_to(&to, &["--target-immediate"])
        .timeout(PATIENCE * 10)
        .run()
        .expect_code(0);
    println!("its restore: {} MiB resident, {:?}", ran.max_rss_kib >> 10, ran.elapsed);
    assert!(ran.max_rss_kib <= 96 << 10, "{} KiB\n{}", ran.max_rss_kib, ran.report());
}

/// Every file below a directory that holds one of the secrets.
fn holding(directory: &Path, secrets: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(holding(&path, secrets));
        } else if kind.is_file() && has(&fs::read(&path).unwrap(), secrets) {
            found.push(path);
        }
    }
    found
}

fn has(bytes: &[u8], secrets: &[String]) -> bool {
    let found = |secret: &String| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
    secrets.iter().any(found)
}

#[test]
fn keys_are_seen_in_no_process_list_log_state_or_repository() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("secrets");
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    let repository = RepoOptions::new("offsite")
        .encrypted()
        .in_s3(&s3, "backups", &credentials);
    let archive = Archive::new(&server, vec![repository], 2);
    let identity_file = archive.repo().identity.clone().unwrap();
    let identity = fs::read_to_string(&identity_file).unwrap();
    let identity = identity
        .lines()
        .find(|line| line.starts_with("AGE-SECRET-KEY-"))
        .unwrap();
    let secrets = [SECRET_KEY.to_owned(), identity.to_owned()];
    let (primary, recovery) = (archive.pgdata("primary"), archive.pgdata("recovery"));
    let name = archive.segments[1].clone();

    let site = &archive.site;
    let get = site
        .tool("archive-get")
        .args([name.as_str(), "pg_wal/RECOVERYXLOG"])
        .cwd(&recovery);
    archive.ready(&primary, &name);
    let tools = [
        push(site, &primary, &name),
        get,
        site.tool("info"),
        site.tool("init").arg("--check"),
        site.tool("init"),
    ];
    for fault in [
        None,
        Some(Fault::Answer(403, "SignatureDoesNotMatch")),
        Some(Fault::Reset),
    ] {
        if let Some(fault) = fault {
            s3.rule(Rule::new(fault));
        }
        for tool in &tools {
            let ran = tool.clone().arg("-vv").run();
            let said = [ran.stdout.as_bytes(), ran.stderr.as_bytes()].concat();
            assert!(!has(&said, &secrets), "{}", ran.report());
            assert!(!ran.stderr.contains("Signature="), "{}", ran.report());
        }
        s3.heal();
    }

    // While it works: what others see of it, and what would be left of it.
    for object in archive.repo().matching(&name) {
        fs::remove_file(object).unwrap();
    }
    s3.forget();
    s3.rule(Rule::new(Fault::Hang));
    let _ = fs::remove_dir_all(site.dir.join("spool/main"));
    let mut running = push(site, &primary, &name).spawn();
    wait_until("it asks", PATIENCE, || !s3.log().is_empty());
    let of = |pid: &str, what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        assert!(!has(&of(&pid, "cmdline"), &secrets), "process {pid}");
    }
    let pid = running.pid().to_string();
    assert!(running.is_running(), "it has ended too early to be looked at");
    assert!(!has(&of(&pid, "environ"), &secrets), "its environment");
    let limits = String::from_utf8(of(&pid, "limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    drop(running);

    let mut found = holding(&scratch.path(""), &secrets);
    found.extend(holding(archive.scratch.dir(), &secrets));
    found.retain(|path| *path != credentials && *path != identity_file);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_lock_is_prolonged_for_the_version_that_counts() {
    let scratch = Scratch::new("relock");
    let Some(moto) = locking(&scratch) else { return };
    let store = open(&locked(&moto, &scratch));
    let object = key("main/backup/20261120T020000Z-full-3f9a1c/manifest.zst");
    store.put_new(&object, b"first").unwrap();
    // Somebody puts another version over it, which does not count.
    let target = "/backups/pg/main/backup/20261120T020000Z-full-3f9a1c/manifest.zst";
    assert_eq!(moto.request("PUT", target, SOMEBODY, "second").0, 200);
    let until = UtcTime::now().plus(DAY * 30).whole_seconds();
    store.renew_lock(&object, until).unwrap();
    let (_, versions) = moto.request("GET", "/backups?versions&prefix=pg/main/backup", SOMEBODY, "");
    let ids: Vec<&str> = versions
        .split("<VersionId>")
        .skip(1)
        .filter_map(|rest| rest.split('<').next())
        .collect();
    let oldest = ids.last().unwrap();
    let said = moto.head(&format!("{target}?versionId={oldest}"));
    let date = until.to_string();
    let lock = format!("x-amz-object-lock-retain-until-date: {}", &date[..10]);
    assert!(said.contains(&lock), "{lock}: {said}");

    let absent = store.renew_lock(&key("main/absent"), until).unwrap_err();
    assert_eq!(absent.kind(), Kind::NotFound);
    let unlocked = open(&settings(moto.endpoint(), &scratch));
    let refused = unlocked.renew_lock(&object, until).unwrap_err();
    assert_eq!(refused.kind(), Kind::Config);
}

#[test]
fn what_was_overwritten_or_deleted_is_listed() {
    let scratch = Scratch::new("overlaid");
    let Some(moto) = locking(&scratch) else { return };
    let store = open(&locked(&moto, &scratch));
    for name in ["one", "two", "three"] {
        store.put_new(&key(&format!("main/backup/{name}")), b"first").unwrap();
    }
    assert_eq!(
        moto.request("PUT", "/backups/pg/main/backup/one", SOMEBODY, "second").0,
        200
    );
    assert_eq!(
        moto.request("DELETE", "/backups/pg/main/backup/three", SOMEBODY, "").0,
        204
    );
    let mut found = Vec::new();
    store
        .list_overlaid(Some(&key("main")), &mut |key, over| {
            found.push((key.to_string(), over));
            Ok(())
        })
        .unwrap();
    assert_eq!(
        found,
        [("main/backup/one".to_owned(), 1), ("main/backup/three".to_owned(), 1)]
    );
}

#[test]
fn locks_of_all_that_stays_are_renewed_and_their_end_is_told() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("relocks");
    let Some(moto) = locking(&scratch) else { return };
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    let story = Story::with("locks", &server, Options::default(), |site| {
        let away = RepoOptions::new("away").at("s3://backups/pg", &scratch.path("nowhere"));
        let lines = [
            format!("endpoint = \"{}\"", moto.endpoint()),
            format!("credentials_file = \"{}\"", credentials.display()),
            "lock_horizon = \"40s\"".to_owned(),
        ];
        site.repository(lines.iter().fold(away, |options, line| options.line(line)))
    });
    let label = story.backup();
    let ran = story
        .tool("dump")
        .args(["--database", "postgres", "--format", "json"])
        .run()
        .expect_code(0);
    let dump = ran.json()["dumps"][0]["label"].as_str().unwrap().to_owned();
    let told = || -> f64 {
        let files = fs::read_dir(story.site.dir.join("metrics")).unwrap().flatten();
        let text: String = files.map(|file| fs::read_to_string(file.path()).unwrap()).collect();
        let line = text
            .lines()
            .find(|line| line.starts_with("pgkeep_locks_until_timestamp_seconds{"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_default()
    };
    let objects = [
        format!("backup/{label}/manifest.zst"),
        format!("dump/{dump}/1.dump.zst"),
        format!("dump/{dump}/dump.json"),
    ];
    let locked_until = || -> Vec<String> {
        let of = |object: &String| {
            let said = moto.head(&format!("/backups/pg/main/{object}"));
            let line = said
                .lines()
                .find_map(|line| line.strip_prefix("x-amz-object-lock-retain-until-date: "));
            line.unwrap_or_else(|| panic!("{object}: {said}")).to_uppercase()
        };
        objects.iter().map(of).collect()
    };
    let before = locked_until();

    story.step("what was never renewed is locked since the oldest backup");
    story.tool("prune").run().expect_code(0);
    let begun = label
        .split('-')
        .next()
        .and_then(|time| UtcTime::parse_compact(time).ok())
        .unwrap();
    assert_eq!(told(), (begun.unix_seconds() + 40) as f64);

    story.step("a renewal reaches backups, dumps and WAL, once they are not quite new any more");
    wait_until("an eighth of the horizon has passed", PATIENCE, || {
        UtcTime::now().since(begun) > Duration::from_secs(12)
    });
    story.tool("prune").arg("--renew-locks").run().expect_code(0);
    let renewed = told();
    assert!(renewed > (begun.unix_seconds() + 40) as f64, "{renewed}");
    for ((object, before), after) in objects.iter().zip(before).zip(locked_until()) {
        let until: UtcTime = after.parse().unwrap();
        assert!(
            after > before && until.unix_seconds() as f64 >= renewed,
            "{object}: {before} {after} {renewed}"
        );
    }

    story.step("a run without renewing tells the same");
    story.tool("prune").run().expect_code(0);
    assert_eq!(told(), renewed);
}
