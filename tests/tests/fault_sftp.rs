//! What may be wrong with a server reached over SFTP: each failure has its code, says what to do, and leaves nothing.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use system_tests::wait::PATIENCE;
use system_tests::{Options, Ran, Scratch, Server, Sshd, Story, Tool, account, wait_until};

/// A cluster that archives over SFTP, and a segment that is not stored yet.
struct Stage {
    // First, so that the cluster stops before what it archives to.
    story: Story,
    sshd: Sshd,
    segment: PathBuf,
}

impl Stage {
    fn set(name: &str) -> Option<Stage> {
        let server = Server::need(15)?;
        let scratch = Scratch::new(name);
        let sshd = Sshd::need(&scratch)?;
        let options = Options {
            segment_size_mb: 1,
            ..Options::default()
        };
        let story = Story::within(scratch.clone(), &server, options, |site| {
            site.repository(sshd.repository("nas")).set("patience", "\"2s\"")
        });
        story.archive_all();
        // From here on the test archives, and nobody else.
        story.cluster.conf(&["archive_command = 'false'"]);
        story.cluster.reload();
        wait_until("archiving is the test's", PATIENCE, || {
            story.cluster.query_one("SHOW archive_command") == "false"
        });
        // Hardly compressible, so that there is something to send.
        story
            .cluster
            .sql("CREATE TABLE t AS SELECT gen_random_uuid() AS u FROM generate_series(1, 20000)");
        let name = story.cluster.switch_wal();
        let segment = story.cluster.data().join("pg_wal").join(name);
        Some(Stage { story, sshd, segment })
    }

    fn name(&self) -> String {
        self.segment.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn push(&self) -> Tool {
        self.story.tool("archive-push").arg(&self.segment)
    }

    fn get(&self, data: &Path) -> Tool {
        let tool = self.story.tool("archive-get").arg(self.name());
        tool.arg("pg_wal/RECOVERYXLOG").cwd(data)
    }

    /// A directory that archive-get takes for a standby's, or for one that recovers alone.
    fn data(&self, name: &str, standby: bool) -> PathBuf {
        let data = self.story.scratch.create_dir(name);
        for below in ["global", "pg_wal"] {
            self.story.scratch.create_dir(&format!("{name}/{below}"));
        }
        let control = fs::read(self.story.cluster.data().join("global/pg_control")).unwrap();
        account::write(&data.join("global/pg_control"), control, 0o600);
        if standby {
            account::write(&data.join("standby.signal"), "", 0o600);
        }
        data
    }

    /// Pushes, and gets, which must fail with these codes and words; nothing appears anywhere.
    fn refused(&self, step: &str, code: i32, words: &[&str]) -> Ran {
        self.story.step(step);
        let before = self.story.site.repo().objects();
        let ran = said(self.push().run().expect_code(code), words);
        let data = self.data("recovering", false);
        let got = said(self.get(&data).run().expect_code(200), words);
        assert!(!data.join("pg_wal/RECOVERYXLOG").exists(), "{}", got.report());
        assert_eq!(self.story.site.repo().objects(), before, "{}", ran.report());
        ran
    }

    fn works_again(&self) {
        self.story.step("and when that is mended it works");
        self.push().run().expect_code(0).expect_quiet();
        assert!(self.story.site.repo().has_wal(&self.name()));
        assert!(self.sshd.staging().is_empty(), "{:?}", self.sshd.staging());
    }
}

fn said(ran: Ran, words: &[&str]) -> Ran {
    for words in words {
        assert!(ran.stderr.contains(words), "{words:?} is not said\n{}", ran.report());
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.report());
    ran
}

#[test]
fn host_keys_and_logins_that_fail_are_explained() {
    let Some(stage) = Stage::set("sftp_login") else { return };
    let sshd = &stage.sshd;
    let known = sshd.known_hosts.display().to_string();

    sshd.kill();
    sshd.new_host_key();
    sshd.start();
    stage.refused(
        "the host key has changed",
        1,
        &[
            "the host key has changed",
            "ssh-keyscan -p",
            "ssh-keygen -f",
            &known,
            "-R '[127.0.0.1]:",
        ],
    );
    fs::write(&sshd.known_hosts, "").unwrap();
    stage.refused(
        "the host key is not known",
        1,
        &["the host key is not known", "ssh-keyscan -p", "known_hosts"],
    );
    sshd.know_host_key();

    let authorized = sshd.dir.join("authorized_keys");
    let right = fs::read(&authorized).unwrap();
    fs::write(&authorized, "").unwrap();
    let key = sshd.key.display().to_string();
    stage.refused(
        "another key is authorized",
        1,
        &[
            "the server refused the login",
            "Permission denied",
            "authorized_keys",
            &key,
        ],
    );
    fs::write(&authorized, right).unwrap();

    fs::set_permissions(&sshd.key, fs::Permissions::from_mode(0o644)).unwrap();
    stage.refused(
        "others can read the key",
        1,
        &["others can read the private key", "chmod 600", &key],
    );
    fs::set_permissions(&sshd.key, fs::Permissions::from_mode(0o600)).unwrap();
    let aside = sshd.key.with_extension("aside");
    fs::rename(&sshd.key, &aside).unwrap();
    stage.refused("the key is not there", 1, &["not accessible", &key]);
    fs::rename(&aside, &sshd.key).unwrap();
    stage.works_again();
}

#[test]
fn servers_that_are_set_up_wrongly_are_explained() {
    let Some(stage) = Stage::set("sftp_setup") else { return };
    let sshd = &stage.sshd;
    let restart = || {
        sshd.kill();
        sshd.start();
    };

    sshd.write_config("# no-subsystem");
    restart();
    stage.refused(
        "there is no SFTP",
        1,
        &["the server offers no SFTP", "Subsystem sftp internal-sftp"],
    );
    sshd.write_config("");
    restart();

    fs::set_permissions(&sshd.chroot, fs::Permissions::from_mode(0o777)).unwrap();
    stage.refused(
        "everybody may write into the chroot",
        1,
        &["cannot connect", "ChrootDirectory", "must belong to root"],
    );
    fs::set_permissions(&sshd.chroot, fs::Permissions::from_mode(0o755)).unwrap();

    let repository = &stage.story.site.repo().dir;
    let aside = repository.with_extension("aside");
    fs::rename(repository, &aside).unwrap();
    fs::create_dir(repository).unwrap();
    fs::set_permissions(repository, fs::Permissions::from_mode(0o700)).unwrap();
    stage.refused(
        "the repository belongs to another one",
        1,
        &["Permission denied", "must belong to pgkeep-sftp"],
    );
    fs::remove_dir(repository).unwrap();

    stage.story.step("the repository is gone: not mounted?");
    said(stage.push().run().expect_code(1), &["does not exist", "mounted"]);
    let data = stage.data("recovering", false);
    said(stage.get(&data).run().expect_code(200), &["mounted"]);
    assert!(!repository.exists(), "nothing is made up");
    fs::rename(&aside, repository).unwrap();
    stage.works_again();
}

#[test]
fn a_directory_that_cannot_be_written_takes_nothing() {
    let Some(stage) = Stage::set("sftp_write") else { return };
    stage.story.step("the directory of the WAL is root's");
    let folder = stage.story.site.repo().wal_folder();
    let owner = fs::metadata(&folder).unwrap();
    chown(&folder, Some(0), Some(0)).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = stage.push().run().expect_code(1);
    said(
        ran,
        &[
            "Permission denied",
            &stage.sshd.url("nas"),
            "must belong to pgkeep-sftp",
        ],
    );
    use std::os::unix::fs::MetadataExt;
    chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    stage.works_again();
}

#[test]
fn a_full_disk_takes_nothing_and_is_said() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("sftp_full");
    let Some(sshd) = Sshd::need(&scratch) else { return };
    sshd.limit(4096);
    let story = Story::within(scratch.clone(), &server, Options::default(), |site| {
        site.repository(sshd.repository("nas")).set("patience", "\"2s\"")
    });
    story.cluster.conf(&["archive_command = 'false'"]);
    story.cluster.reload();
    story.step("a segment that compresses badly does not fit");
    let random = "INSERT INTO t SELECT gen_random_uuid() FROM generate_series(1, 150000)";
    story.cluster.sql(&format!("CREATE TABLE t (u uuid); {random}"));
    story.cluster.switch_wal();
    let segment = "000000010000000000000001";
    let push = story
        .tool("archive-push")
        .arg(story.cluster.data().join("pg_wal").join(segment));
    let ran = said(
        push.run().expect_code(75),
        &["No space left", &sshd.url("nas"), "make room"],
    );
    assert!(!story.site.repo().has_wal(segment), "{}", ran.report());
    assert!(sshd.staging().is_empty(), "{:?}\n{}", sshd.staging(), ran.report());
    story.step("and does when there is room");
    // The larger disk is another one, and empty.
    sshd.limit(65536);
    story.site.init_anew();
    push.run().expect_code(0);
    assert!(story.site.repo().has_wal(segment));
}

#[test]
fn a_server_that_is_away_or_frozen_is_waited_for_and_no_longer() {
    let Some(stage) = Stage::set("sftp_away") else { return };
    let (standby, alone) = (stage.data("standby", true), stage.data("alone", false));

    stage.story.step("nobody listens");
    stage.sshd.kill();
    said(
        stage.push().run().expect_code(75),
        &["refuses the connection", "is sshd running there"],
    );
    said(stage.get(&alone).run().expect_code(200), &["refuses the connection"]);
    let ran = said(stage.get(&standby).run().expect_code(75), &["refuses the connection"]);
    assert!(ran.elapsed < Duration::from_secs(4), "{}", ran.report());
    stage.sshd.start();

    stage.story.step("it lets nobody in: frozen");
    stage.sshd.freeze();
    let ran = said(
        stage.get(&standby).run().expect_code(75),
        &["cannot connect to 127.0.0.1", "no answer within"],
    );
    assert!(ran.elapsed < Duration::from_secs(4), "{}", ran.report());
    let ran = stage.push().run().expect_code(75);
    assert!(ran.elapsed < Duration::from_secs(60), "{}", ran.report());
    said(ran, &["cannot connect to 127.0.0.1"]);
    stage.sshd.thaw();

    stage.story.step("it freezes while it is asked");
    let load = stage.story.tool("base-backup").spawn();
    wait_until("a session is open", PATIENCE, || stage.sshd.is_used());
    stage.sshd.freeze();
    let began = Instant::now();
    let ran = load.wait(Duration::from_secs(110));
    let ran = said(ran.expect_code(75), &["127.0.0.1"]);
    assert!(
        ran.stderr.contains("is lost") || ran.stderr.contains("cannot connect"),
        "{}",
        ran.report()
    );
    assert!(began.elapsed() < Duration::from_secs(100), "{}", ran.report());
    assert!(stage.story.committed().is_empty(), "{}", ran.report());
    stage.sshd.kill();
    stage.sshd.start();
    stage.works_again();
}
