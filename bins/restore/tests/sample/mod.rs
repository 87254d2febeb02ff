//! A small repository made with the library, and the tool run against it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use common::codec::{ContentKind, Opening, Reading, Recipients, Sealing, compress_stream, generate_identity};
use common::digest::crc32c;
use common::postgres::{Lsn, SystemId, WalName};
use common::repository::backup::{BackupInfo, Intent};
use common::repository::bundle::{Attributes, BundleWriter};
use common::repository::manifest::{Entry, File, ManifestWriter, Node, Range};
use common::repository::pins::{Pin, Pins};
use common::repository::writer::FolderWriter;
use common::repository::{ClusterName, Identity, Label, Repository, document, wal};
use common::storage::posix::PosixStore;
use common::time::UtcTime;

pub const LABEL: &str = "20261120T020000Z-full-3f9a1c";
/// That of [`CONTROL`].
const SYSTEM: SystemId = SystemId(7_710_397_857_816_060_470);
/// A server's own.
const CONTROL: &[u8] = include_bytes!("../../../../tests/fixtures/pg15/pg_control");
const SEGMENT: u64 = 16 << 20;

/// A configuration with repositories "a" and "b", a backup of a made-up data directory, and its WAL.
pub struct Sample {
    pub dir: tempfile::TempDir,
    pub files: BTreeMap<&'static str, Vec<u8>>,
    repositories: Vec<Repository>,
}

impl Sample {
    /// Repositories, but nothing in them.
    pub fn empty(encrypted: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let (secret, public) = generate_identity();
        std::fs::write(root.join("identity.txt"), secret).unwrap();
        std::fs::set_permissions(root.join("identity.txt"), PermissionsExt::from_mode(0o600)).unwrap();
        let encryption = format!(
            "encryption = {{ recipients = [\"{public}\"], identity_file = \"{}/identity.txt\" }}\n",
            root.display()
        );
        let encryption = if encrypted { encryption } else { String::new() };
        std::fs::create_dir(root.join("configured")).unwrap();
        let mut config = format!(
            "state_directory = \"{0}/state\"\nspool_directory = \"{0}/spool\"\nmetrics_directory = \"{0}/metrics\"\n\
             [cluster.main]\ndata_directory = \"{0}/configured\"\n",
            root.display()
        );
        let cluster = ClusterName::parse("main").unwrap();
        let mut repositories = Vec::new();
        for name in ["a", "b"] {
            let path = root.join(name);
            std::fs::create_dir(&path).unwrap();
            config += &format!("[repository.{name}]\nurl = \"file://{}\"\n{encryption}", path.display());
            let sealing = || match encrypted {
                true => Sealing::Age(Recipients::parse(std::slice::from_ref(&public)).unwrap()),
                false => Sealing::Clear,
            };
            let store = Arc::new(PosixStore::new(path));
            let url = String::new();
            let repository = Repository::new(
                name.into(),
                url,
                true,
                store,
                sealing(),
                sealing(),
                Opening::none(),
                cluster.clone(),
            );
            let identity = Identity::new(&cluster, time("20261101T000000Z"), encrypted).unwrap();
            document::write(
                repository.store.as_ref(),
                &repository.keys().identity().unwrap(),
                &identity,
            )
            .unwrap();
            repositories.push(repository);
        }
        std::fs::write(root.join("pgkeep.toml"), config).unwrap();
        Self {
            dir,
            files: BTreeMap::new(),
            repositories,
        }
    }

    /// Repositories with a backup and the WAL from segment 2 to 5.
    pub fn new(encrypted: bool) -> Self {
        let mut sample = Self::empty(encrypted);
        sample.back_up();
        sample.archive(2, 5);
        sample
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn back_up(&mut self) {
        let large: Vec<u8> = (0..1_000_003u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        self.files = [
            ("data/PG_VERSION", b"15\n".to_vec()),
            ("data/base/5/1259", large),
            ("data/base/5/empty", Vec::new()),
            ("data/global/pg_control", CONTROL.to_vec()),
            (
                "data/postgresql.auto.conf",
                b"work_mem = '4MB'\nrestore_command = 'inherited'\n".to_vec(),
            ),
            ("data/standby.signal", Vec::new()),
            ("data/tablespace_map", b"16400 /old\n".to_vec()),
            ("extra/etc/postgresql/main.conf", b"port = 5432\n".to_vec()),
            ("tablespace/16400/PG_15_202209061/5/1", vec![3; 8192 * 3]),
        ]
        .into();
        let directories = [
            "base",
            "base/5",
            "global",
            "pg_tblspc",
            "pg_wal",
            "pg_wal/archive_status",
        ];
        let label: Label = LABEL.parse().unwrap();
        let intent = Intent {
            format: 1,
            label,
            host: "h".into(),
            pid: 1,
            started: label.started(),
            system_identifier: SYSTEM.to_string(),
            leans_on: Vec::new(),
        };
        let writer = FolderWriter::begin_backup(&self.repositories, &intent).unwrap();
        let mut bundle = BundleWriter::new(writer.create("data/1.tar.zst", false).unwrap(), 2).unwrap();
        let mut entries: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        let mut add = |path: String, mode, node| {
            let entry = Entry {
                path: path.clone().into_bytes(),
                mode,
                owner: "postgres".into(),
                group: "postgres".into(),
                mtime: time("20261119T010203Z"),
                node,
            };
            entries.insert(path.into_bytes(), entry);
        };
        add("data".into(), 0o750, Node::Directory);
        for name in directories {
            bundle
                .directory(format!("data/{name}").as_bytes(), &attributes())
                .unwrap();
            add(format!("data/{name}"), 0o700, Node::Directory);
        }
        add(
            "data/pg_tblspc/16400".into(),
            0o777,
            Node::Link(self.path("ts").into_os_string().into_encoded_bytes()),
        );
        add("data/link".into(), 0o777, Node::Link(b"base/5/1259".to_vec()));
        add("tablespace/16400/PG_15_202209061".into(), 0o700, Node::Directory);
        add("tablespace/16400/PG_15_202209061/5".into(), 0o700, Node::Directory);
        for (name, content) in &self.files {
            bundle
                .begin_file(name.as_bytes(), content.len() as u64, &attributes())
                .unwrap();
            content.chunks(131_072).for_each(|chunk| bundle.data(chunk).unwrap());
            let placed = bundle.end_file().unwrap();
            let range = Range {
                label: None,
                bundle: 1,
                offset: placed.offset,
                file_offset: 0,
                length: placed.length,
                crc32c: placed.crc32c,
            };
            let ranges = if content.is_empty() { Vec::new() } else { vec![range] };
            let file = File {
                size: content.len() as u64,
                crc32c: crc32c(content),
                ranges,
                damaged: Vec::new(),
            };
            add(
                (*name).to_owned(),
                if name.contains("etc") { 0o644 } else { 0o600 },
                Node::File(file),
            );
        }
        let (copies, _, plain) = bundle.finish().unwrap();
        copies.finish(plain).unwrap();
        let mut manifest = ManifestWriter::new(writer.create("manifest.zst", true).unwrap(), 2).unwrap();
        for (path, entry) in &entries {
            manifest.push(path, &entry.to_lines().unwrap()).unwrap();
        }
        let (copies, plain) = manifest.finish().unwrap();
        copies.finish(plain).unwrap();
        for outcome in writer.commit_backup(&self.info(label)) {
            outcome.result.unwrap();
        }
    }

    fn info(&self, label: Label) -> BackupInfo {
        let text = format!(
            r#"{{"format":1,"label":"{label}","type":"full","cluster":"main","system_identifier":"{SYSTEM}","major":15,
            "server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,
            "started":"2026-11-20T02:00:00Z","stopped":"2026-11-20T02:01:00Z","finished":"2026-11-20T02:02:00Z",
            "timeline":1,"start_lsn":"{}","stop_lsn":"{}","wal":{{"first":"x","last":"y"}},"segment_size":{SEGMENT},
            "block_size":8192,"data_checksums":true,"tablespaces":[{{"oid":16400,"location":"{}"}}],"base":null,
            "references":[],"reused_from":null,"files":9,"size":1,"stored":1,"durations":{{}},"damaged_pages":0,
            "good":true,"objects":[],"signature":null}}"#,
            Lsn(2 * SEGMENT + 0x28),
            Lsn(2 * SEGMENT + 0x138),
            self.path("ts").display(),
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Stores made-up segments.
    pub fn archive(&self, first: u32, last: u32) {
        for number in first..=last {
            let name = WalName::parse(&format!("00000001{:08X}{number:08X}", 0)).unwrap();
            let content = number.to_le_bytes();
            let stream =
                compress_stream(&content[..], &Reading::of(&content[..]).unwrap(), ContentKind::Wal, 1).unwrap();
            for repository in &self.repositories {
                wal::put(repository, SYSTEM, &name, &stream, label_time(), "h").unwrap();
            }
        }
    }

    /// The file of an object in a repository.
    pub fn object(&self, repository: &str, name: &str) -> PathBuf {
        self.path(repository).join("main").join(name)
    }

    /// Changes one byte in the middle of an object.
    pub fn flip(&self, repository: &str, name: &str) {
        let path = self.object(repository, name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }

    /// What this host remembers of a repository that it has used.
    pub fn pin(&self, repository: &str) {
        let identity: Identity =
            serde_json::from_slice(&std::fs::read(self.object(repository, "repository.json")).unwrap()).unwrap();
        let pin = Pin {
            name: repository.into(),
            url: format!("file://{}", self.path(repository).display()),
            uuid: identity.uuid,
        };
        let cluster = ClusterName::parse("main").unwrap();
        Pins::new(&self.path("state"), &cluster).set(&pin).unwrap();
    }

    /// What archive-push leaves behind.
    pub fn has_archived(&self) {
        let status = r#"{"tool":"archive-push","cluster":"main","host":"h","user":"postgres","pid":1,
            "started":"2026-11-20T02:00:00Z","finished":"2026-11-20T02:00:00Z","result":"ok","exit_code":0,
            "last_success":"2026-11-20T02:00:00Z"}"#;
        let directory = self.path("state/main/status");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("archive-push.json"), status).unwrap();
    }

    /// Runs the tool with this configuration.
    pub fn restore(&self, args: &[&str]) -> Run {
        let config = self.path("pgkeep.toml");
        run(&[&["--config", config.to_str().unwrap()], args].concat())
    }

    /// Restores into `to` below the sample's directory.
    pub fn restore_to(&self, to: &str, args: &[&str]) -> Run {
        let to = self.path(to);
        self.restore(&[&["--to", to.to_str().unwrap()], args].concat())
    }
}

fn attributes() -> Attributes {
    Attributes {
        mode: 0o600,
        uid: 1,
        gid: 1,
        owner: "postgres".into(),
        group: "postgres".into(),
        mtime: time("20261119T010203Z"),
    }
}

fn time(text: &str) -> UtcTime {
    UtcTime::parse_compact(text).unwrap()
}

fn label_time() -> UtcTime {
    time("20261120T020000Z")
}

/// What a run left.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Fails, showing everything, unless the code is this one and stderr holds these words.
    #[track_caller]
    pub fn ended(self, code: i32, words: &[&str]) -> Self {
        let words_there = words.iter().all(|words| self.stderr.contains(words));
        let Self { stdout, stderr, .. } = &self;
        assert!(
            self.code == code && words_there,
            "code {} instead of {code}, or not {words:?}\nstdout:\n{stdout}\nstderr:\n{stderr}",
            self.code
        );
        self
    }
}

/// Runs the tool in a clean environment.
pub fn run(args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgkeep-restore"));
    let Output { status, stdout, stderr } = command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Run {
        code: status.code().unwrap_or(-1),
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// Reads a file below a directory.
pub fn read(directory: &Path, name: &str) -> Vec<u8> {
    let path = directory.join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
