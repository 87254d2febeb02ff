//! Every kind of damage is found and named, what is healthy says nothing, and a good copy mends.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use system_tests::story::label;
use system_tests::{Options, Ran, RepoOptions, Server, Story, account, mutilate};

/// A repository with a full backup, an incremental one, and some WAL; kept aside to be damaged again and again.
struct Stand {
    story: Story,
    full: String,
    incr: String,
    pristine: PathBuf,
}

impl Stand {
    fn new(name: &str, encrypted: bool) -> Option<Stand> {
        let server = Server::need(15)?;
        let story = Story::with(name, &server, Options::default(), |site| {
            let local = RepoOptions::new("local");
            site.repository(if encrypted { local.encrypted() } else { local })
        });
        story.cluster.pgbench_init(2);
        let full = label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
        story.cluster.pgbench_run(1, 30);
        let incr = label(&story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0));
        for _ in 0..3 {
            story.archive_all();
        }
        let pristine = story.scratch.path("pristine");
        copy(&story.site.repo().path(""), &pristine);
        Some(Stand {
            story,
            full,
            incr,
            pristine,
        })
    }

    fn verify(&self, arguments: &[&str]) -> Ran {
        self.story.tool("verify").args(arguments).run()
    }

    /// The objects whose name holds this, in order.
    fn find(&self, part: &str) -> Vec<PathBuf> {
        let mut found = self.story.site.repo().matching(part);
        found.sort();
        found
    }

    fn one(&self, part: &str) -> PathBuf {
        self.find(part)
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("nothing is called {part}"))
    }

    fn restore(&self) {
        let place = self.story.site.repo().path("");
        fs::remove_dir_all(&place).unwrap();
        copy(&self.pristine, &place);
    }

    /// Damages something, and expects all of `words` in one line of what is said.
    fn damaged(&self, what: &str, arguments: &[&str], damage: impl FnOnce(&Stand), words: &[&str]) {
        damage(self);
        let ran = self.verify(arguments);
        assert_eq!(ran.code, Some(1), "{what}\n{}", ran.report());
        let line = ran
            .stdout
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)));
        assert!(line.is_some(), "{what}: no line with {words:?}\n{}", ran.report());
        println!("{what}: {}", line.unwrap());
        self.restore();
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(copied.success());
}

fn table(name: &str, encrypted: bool) {
    let Some(stand) = Stand::new(name, encrypted) else {
        return;
    };
    for arguments in [&[][..], &["--read-data"]] {
        let ran = stand.verify(arguments).expect_code(0);
        assert!(
            ran.stdout.starts_with("repository \"local\": whole: 2 backups"),
            "{}",
            ran.report()
        );
    }
    let suffix = if encrypted { ".age" } else { "" };
    let (full, incr) = (stand.full.clone(), stand.incr.clone());
    let segments: Vec<PathBuf> = stand
        .find("/0000000100000000/0000000100000000")
        .into_iter()
        .filter(|path| !path.to_str().unwrap().contains(".map.") && !path.to_str().unwrap().contains(".backup"))
        .collect();
    let document = fs::read(stand.story.site.repo().path(&format!("backup/{full}/backup.json"))).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let (first, last) = (
        document["wal"]["first"].as_str().unwrap(),
        document["wal"]["last"].as_str().unwrap(),
    );
    let wal = |name: &str| stand.one(&format!("/{name}.zst"));
    let named = |path: &Path| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .split('.')
            .next()
            .unwrap()
            .to_owned()
    };
    let middle = named(&segments[segments.len() - 2]);

    let missing: [(&str, &str, &[&str]); 3] = [
        ("the first segment is missing", first, &["DAMAGE", "is missing"]),
        (
            "the stop segment is missing",
            last,
            &["DAMAGE", "cannot become consistent"],
        ),
        (
            "a middle segment is missing",
            &middle,
            &["DAMAGE", "it is missing", "recovery"],
        ),
    ];
    for (what, segment, words) in missing {
        let path = wal(segment);
        let words: Vec<&str> = words.iter().copied().chain([segment]).collect();
        stand.damaged(what, &[], |_| mutilate::remove(&path), &words);
    }
    let bundle = format!("{full}/data/1.tar.zst{suffix}");
    let index = format!("{incr}/data/1.index.zst{suffix}");
    let manifest = format!("{incr}/manifest.zst{suffix}");
    let segment = format!("{middle}.zst{suffix}");
    let objects: [(&str, &str); 4] = [
        ("a bundle", &bundle),
        ("an index", &index),
        ("a manifest", &manifest),
        ("a segment", &segment),
    ];
    for (what, object) in objects {
        let name = object.rsplit('/').next().unwrap();
        let find = || stand.one(&format!("/{object}"));
        stand.damaged(
            &format!("{what} is empty"),
            &[],
            |_| mutilate::empty(&find()),
            &["DAMAGE", name],
        );
        stand.damaged(
            &format!("{what} is cut off"),
            &[],
            |_| mutilate::cut_last_byte(&find()),
            &["DAMAGE", name, "bytes"],
        );
        let flip = |_: &Stand| mutilate::flip_middle_bit(&find());
        stand.damaged(
            &format!("{what} has a flipped bit"),
            &["--read-data"],
            flip,
            &["DAMAGE", name],
        );
    }
    for (what, object) in [("a bundle", &bundle), ("an index", &index), ("a manifest", &manifest)] {
        let find = || stand.one(&format!("/{object}"));
        let words = ["DAMAGE", object.as_str(), "it is missing"];
        stand.damaged(
            &format!("{what} is deleted"),
            &[],
            |_| mutilate::remove(&find()),
            &words,
        );
    }
    let swap = |_: &Stand| mutilate::swap(&wal(&named(&segments[segments.len() - 3])), &wal(&middle));
    if !encrypted {
        stand.damaged("two segments are swapped", &["--read-data"], swap, &["DAMAGE", &middle]);
    } else {
        stand.damaged(
            "two sealed segments are swapped",
            &["--read-data"],
            swap,
            &["DAMAGE", &middle],
        );
    }
    let map = stand.one(&format!("/{middle}.map.zst"));
    stand.damaged(
        "a map is damaged",
        &["--read-data"],
        |_| mutilate::flip_middle_bit(&map),
        &["DAMAGE", ".map.zst"],
    );
    let backup_json = stand.one(&format!("{incr}/backup.json"));
    let flip = |_: &Stand| mutilate::flip_middle_bit(&backup_json);
    stand.damaged("backup.json is damaged", &[], flip, &["DAMAGE", "backup.json", &incr]);
    let foreign = |below: &str| {
        let path = stand.story.site.repo().path(below);
        move |_: &Stand| account::write(&path, "what is this", 0o600)
    };
    stand.damaged(
        "a stranger among bundles",
        &[],
        foreign(&format!("backup/{full}/data/notes")),
        &["DAMAGE", "notes", "foreign"],
    );
    stand.damaged(
        "a stranger among backups",
        &[],
        |stand| {
            account::create_dir(&stand.story.site.repo().path("backup/old"), 0o700);
            account::write(&stand.story.site.repo().path("backup/old/x"), "x", 0o600);
        },
        &["DAMAGE", "backup/old", "foreign"],
    );
    let wal_folder = stand.story.site.repo().wal_folder();
    let stranger = wal_folder.join("notes.txt");
    stand.damaged(
        "a stranger among WAL",
        &[],
        |_| account::write(&stranger, "x", 0o600),
        &["DAMAGE", "notes.txt", "foreign"],
    );
    let whole = |stand: &Stand| mutilate::remove(&stand.story.site.repo().path(&format!("backup/{full}")));
    stand.damaged("a base is gone", &[], whole, &["DAMAGE", &full, "leans on it"]);

    // What this host remembers and the repository no longer has: worth a note, for retention may have removed it.
    stand
        .story
        .tool("base-backup")
        .args(["--if-older-than", "1h"])
        .run()
        .expect_code(0);
    mutilate::remove(&stand.story.site.repo().path(&format!("backup/{incr}")));
    stand
        .verify(&[])
        .expect_code(0)
        .expect_said("this host remembers it, and it is gone");
    let ran = stand.verify(&[]).expect_code(0);
    assert!(
        !ran.stdout.contains("note"),
        "the memory heals itself\n{}",
        ran.report()
    );
}

#[test]
fn every_kind_of_damage_is_found_and_named_in_clear() {
    table("verify_clear", false);
}

#[test]
fn every_kind_of_damage_is_found_and_named_in_an_encrypted_repository() {
    table("verify_sealed", true);
}

#[test]
fn what_is_left_is_told_and_a_good_copy_mends() {
    let Some(server) = Server::need(15) else { return };
    let story = Story::with("mend", &server, Options::default(), |site| {
        site.repository(RepoOptions::new("local"))
            .repository(RepoOptions::new("second"))
    });
    story.cluster.pgbench_init(1);
    let full = label(&story.tool("base-backup").args(["--type", "full"]).run().expect_code(0));
    story.cluster.pgbench_run(1, 20);
    let incr = label(&story.tool("base-backup").args(["--type", "incr"]).run().expect_code(0));
    let expected = story.cluster.checksum("postgres");
    story.archive_all();
    let repo = story.site.repo();
    let bundle = repo.path(&format!("backup/{incr}/data/1.tar.zst"));
    mutilate::flip_middle_bit(&bundle);
    let wal = repo
        .matching("/0000000100000000/")
        .into_iter()
        .find(|path| !path.to_str().unwrap().contains(".map."))
        .unwrap();
    mutilate::cut_last_byte(&wal);
    let manifest = repo.path(&format!("backup/{full}/manifest.zst"));
    mutilate::remove(&manifest);

    let ran = story
        .tool("verify")
        .args(["--repository", "local", "--read-data"])
        .run()
        .expect_code(1);
    ran.expect_said(&format!("{incr}  CANNOT be restored"));
    let json = story
        .tool("verify")
        .args(["--repository", "local", "--read-data", "--format", "json"])
        .run()
        .expect_code(1);
    let said: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(said["repositories"][0]["backups"][1]["restorable"], false);
    assert_eq!(story.site.status("verify")["result"], "failed");

    let mend = ["--repository", "local", "--read-data", "--repair-from", "second"];
    let ran = story.tool("verify").args(mend).run().expect_code(0);
    assert_eq!(ran.stdout.matches("MENDED  ").count(), 3, "{}", ran.report());
    assert_eq!(repo.matching("/damaged/").len(), 2, "what was replaced is kept");
    story.tool("verify").arg("--read-data").run().expect_code(0);
    let arguments = [
        "--repository",
        "local",
        "--backup",
        &incr,
        "--target-immediate",
        "--target-action",
        "promote",
    ];
    assert_eq!(story.promoted("mended", &arguments).checksum("postgres"), expected);
}

#[test]
fn over_some_runs_everything_is_read() {
    let Some(stand) = Stand::new("share", false) else {
        return;
    };
    for object in stand.find(".tar.zst") {
        mutilate::flip_middle_bit(&object);
    }
    let count = stand.find(".tar.zst").len();
    let mut found = 0;
    for _ in 0..4 {
        let ran = stand.verify(&["--read-data=25"]);
        found += ran.stdout.matches("DAMAGE").count();
    }
    assert_eq!(found, count, "each is found in one of four runs");
}

#[test]
fn without_the_key_stored_bytes_are_compared() {
    let Some(stand) = Stand::new("keyless_verify", true) else {
        return;
    };
    let host = system_tests::Site::named(&stand.story.scratch, &stand.story.cluster, "host")
        .shared(stand.story.site.repo(), RepoOptions::new("local").keyless());
    host.tool("verify").arg("--read-data").run().expect_code(0);
    mutilate::flip_middle_bit(&stand.one(".tar.zst"));
    host.tool("verify")
        .arg("--read-data")
        .run()
        .expect_code(1)
        .expect_said("has SHA-256");
}
