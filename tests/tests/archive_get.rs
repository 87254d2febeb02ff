//! The exit codes of archive-get, by which PostgreSQL decides whether to open a database: every failure that one can
//! provoke, in recovery and in a standby.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod archive_stand;

use std::fs;
use std::path::{Path, PathBuf};

use archive_stand::{Archive, Dice, change_system, destination, expect_nothing, get, get_tool};
use system_tests::mounts::Mounted;
use system_tests::story::{all, newer_format};
use system_tests::{Ran, RepoOptions, Server, Site, account, each_major, mutilate};

/// Asks for a segment in recovery and in a standby: neither may take the failure for "absent", nor get a file.
struct Failing<'a> {
    archive: &'a Archive,
    recovery: PathBuf,
    standby: PathBuf,
}

impl Failing<'_> {
    fn expect(&self, site: &Site, name: &str, words: &str) {
        for (data, code) in [(&self.recovery, 200), (&self.standby, 75)] {
            let ran = get(site, data, name).expect_code(code).expect_said(words);
            expect_nothing(data, &ran);
            expect_one_complaint(&ran);
        }
    }

    /// With this damage neither a segment that was stored nor one that was not can be told.
    fn both(&self, words: &str) {
        self.expect(&self.archive.site, &self.archive.segments[1], words);
        self.expect(&self.archive.site, &self.archive.absent(), words);
    }

    /// Moves something of the repository away, and back.
    fn without(&self, path: &Path, then: impl FnOnce()) {
        let aside = self.archive.scratch.path("aside");
        fs::rename(path, &aside).unwrap();
        then();
        fs::rename(&aside, path).unwrap();
    }

    fn with_mode(&self, path: &Path, mode: u32, then: impl FnOnce()) {
        use std::os::unix::fs::PermissionsExt;
        let before = fs::metadata(path).unwrap().permissions().mode();
        mutilate::chmod(path, mode);
        then();
        mutilate::chmod(path, before);
    }

    fn with_content(&self, path: &Path, content: &[u8], then: impl FnOnce()) {
        let before = fs::read(path).unwrap();
        mutilate::empty(path);
        mutilate::append(path, content);
        then();
        mutilate::empty(path);
        mutilate::append(path, &before);
    }
}

/// An error is told once, whichever process met it.
fn expect_one_complaint(ran: &Ran) {
    let lines = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("archive-get: cannot"))
        .count();
    assert!(lines <= 1, "told {lines} times\n{}", ran.report());
}

each_major!(whatever_is_wrong_with_a_repository_is_never_absence: 15 18);
fn whatever_is_wrong_with_a_repository_is_never_absence(server: &Server) {
    let archive = Archive::clear(server, 3);
    let failing = Failing {
        recovery: archive.pgdata("recovery"),
        standby: archive.standby("standby"),
        archive: &archive,
    };
    let (repo, name) = (archive.repo(), archive.segments[1].as_str());
    for data in [&failing.recovery, &failing.standby] {
        archive.expect_whole(data, name).expect_quiet();
        let ran = archive.get(data, &archive.absent()).expect_code(1).expect_quiet();
        expect_nothing(data, &ran);
    }

    let object = repo.wal(name);
    let whole = fs::read(&object).unwrap();
    let one = |words: &str| failing.expect(&archive.site, name, words);
    failing.with_content(&object, &whole[..whole.len() - 1], || one("read "));
    failing.with_content(&object, &whole[..whole.len() / 2], || one("read "));
    failing.with_content(&object, &whole[..20], || one("read "));
    failing.with_content(&object, b"", || one("read "));
    failing.with_content(&object, &[&whole[..], b"x"].concat(), || one("read "));
    failing.with_content(&object, &vec![0; whole.len()], || one("read "));
    failing.with_mode(&object, 0, || one("Permission denied"));
    failing.with_mode(object.parent().unwrap(), 0, || one("Permission denied"));
    failing.without(&object, || {
        std::os::unix::fs::symlink("/nowhere", &object).unwrap();
        one("not a regular file");
        fs::remove_file(&object).unwrap();
        fs::create_dir(&object).unwrap();
        // No object can be a directory; but what stands there is not nothing.
        one("is no object");
        fs::remove_dir(&object).unwrap();
    });

    // Two objects exchanged are both whole. PostgreSQL would take the other segment for the end of WAL.
    let other = repo.wal(&archive.segments[2]);
    mutilate::swap(&object, &other);
    one("which its name does not say");
    mutilate::swap(&object, &other);

    let identity = repo.path("repository.json");
    let text = fs::read_to_string(&identity).unwrap();
    failing.with_mode(&repo.dir, 0, || failing.both("Permission denied"));
    failing.with_mode(&repo.path(""), 0, || failing.both("Permission denied"));
    failing.with_mode(&identity, 0, || failing.both("Permission denied"));
    failing.without(&repo.dir, || failing.both("does not exist"));
    failing.without(&repo.path(""), || {
        failing.both("there is no repository of this cluster at")
    });
    failing.without(&identity, || failing.both("there is no repository of this cluster at"));
    failing.with_content(&identity, b"", || failing.both("repository.json"));
    failing.with_content(&identity, b"<html>log in</html>", || failing.both("repository.json"));
    let foreign = text.replace("\"cluster\":\"main\"", "\"cluster\":\"other\"");
    assert_ne!(foreign, text);
    failing.with_content(&identity, foreign.as_bytes(), || {
        failing.both("belongs to cluster \"other\"")
    });
    failing.with_content(&identity, newer_format(&text).as_bytes(), || {
        failing.both("newer pgkeep")
    });
    let (uuid_at, mut exchanged) = (text.find("\"uuid\":\"").unwrap() + 8, text.clone());
    exchanged.replace_range(uuid_at..uuid_at + 8, "01234567");
    failing.with_content(&identity, exchanged.as_bytes(), || {
        failing.both("this host knows it as")
    });

    // Absence needs the proof that the repository knows this cluster.
    let events = repo.path("events");
    let absent = archive.absent();
    failing.with_mode(&events, 0, || {
        failing.expect(&archive.site, &absent, "Permission denied")
    });
    failing.without(&events, || {
        failing.expect(&archive.site, &absent, "belongs to system identifier")
    });
    for data in [&failing.recovery, &failing.standby] {
        change_system(data, server.major, 4711);
    }
    failing.expect(&archive.site, name, "and this cluster has 4711");
}

each_major!(a_configuration_that_misses_the_repository_is_never_absence: 15);
fn a_configuration_that_misses_the_repository_is_never_absence(server: &Server) {
    let archive = Archive::clear(server, 2);
    let failing = Failing {
        recovery: archive.pgdata("recovery"),
        standby: archive.standby("standby"),
        archive: &archive,
    };
    let (name, absent) = (archive.segments[0].clone(), archive.absent());
    let text = fs::read_to_string(&archive.site.config).unwrap();
    let url = format!("file://{}", archive.repo().dir.display());
    let with = |text: &str, words: &str| {
        account::write(&archive.site.config, text, 0o600);
        failing.expect(&archive.site, &name, words);
        failing.expect(&archive.site, &absent, words);
    };
    with(
        &text.replace(&url, &format!("{url}/main")),
        "there is no repository of this cluster at",
    );
    let empty = archive.scratch.create_dir("empty");
    with(
        &text.replace(&url, &format!("file://{}", empty.display())),
        "there is no repository of this cluster at",
    );
    with(&text.replace(&url, "file:///nonexistent/place"), "does not exist");
    with(&text.replace("patience", "patiense"), "patience");
    with(&text.replace("[repository.local]", "[nonsense"), "pgkeep.toml");
    with("", "no cluster is configured");
    with(text.split("[repository").next().unwrap(), "no repository is configured");
    fs::remove_file(&archive.site.config).unwrap();
    with_missing(&failing, &name);

    account::write(&archive.site.config, &text, 0o600);
    archive.expect_whole(&failing.recovery, &name);
    for (data, code) in [(&failing.recovery, 200), (&failing.standby, 75)] {
        let tool = || archive.site.tool("archive-get").cwd(data);
        tool().run().expect_code(code).expect_said("Usage");
        tool().arg(&name).run().expect_code(code).expect_said("Usage");
        tool().args([&name, "a", "b"]).run().expect_code(code);
        tool().args(["--frobnicate", &name, "a"]).run().expect_code(code);
        tool()
            .args(["--repository", "nobody", &name, "a"])
            .run()
            .expect_code(code);
        tool().args(["--cluster", "nobody", &name, "a"]).run().expect_code(code);
        for wrong in [
            "x",
            "../../etc/passwd",
            "",
            "000000010000000000000001.zst",
            "00000001000000000000000g",
        ] {
            tool()
                .args([wrong, "pg_wal/RECOVERYXLOG"])
                .run()
                .expect_code(code)
                .expect_said("not the name of a WAL file");
        }
        let ran = tool()
            .args([name.as_str(), "missing/RECOVERYXLOG"])
            .run()
            .expect_code(code);
        ran.expect_said("missing/RECOVERYXLOG");
        tool().arg("--help").run().expect_code(0);
        tool().arg("--version").run().expect_code(0);
    }
    // Outside a data directory the configured one counts.
    let elsewhere = archive.scratch.create_dir("elsewhere");
    archive.scratch.create_dir("elsewhere/pg_wal");
    archive.expect_whole(&elsewhere, &name);
    mutilate::remove(&archive.cluster.data().join("global/pg_control"));
    let ran = get(&archive.site, &elsewhere, &name).expect_code(200);
    expect_nothing(&elsewhere, &ran);
    ran.expect_said("pg_control");
}

fn with_missing(failing: &Failing<'_>, name: &str) {
    failing.expect(&failing.archive.site, name, "pgkeep.toml");
}

each_major!(no_bit_can_be_changed_unnoticed: 15 18);
fn no_bit_can_be_changed_unnoticed(server: &Server) {
    let mut dice = Dice::new();
    for repository in [RepoOptions::new("local"), RepoOptions::new("local").encrypted()] {
        let archive = Archive::new(server, vec![repository], 1);
        let data = archive.pgdata("recovery");
        let name = archive.segments[0].as_str();
        let (object, content) = (archive.repo().wal(name), archive.content(name));
        let length = fs::metadata(&object).unwrap().len();
        // Headers and tables are small, and damage there is of another kind than in the data.
        let share = if all() { 1 } else { 5 };
        let mut places: Vec<u64> = (0..100 / share).map(|_| dice.below(length)).collect();
        places.extend((0..60 / share).map(|_| dice.below(400.min(length))));
        places.extend((0..40 / share).map(|_| length - 1 - dice.below(200)));
        let (asked, mut noticed) = (places.len(), 0);
        for at in places {
            let bit = u8::try_from(dice.below(8)).unwrap();
            mutilate::flip_bit(&object, at, bit);
            let ran = archive.get(&data, name);
            match ran.code {
                Some(200) => {
                    noticed += 1;
                    expect_nothing(&data, &ran);
                }
                Some(0) => assert!(fs::read(destination(&data)).unwrap() == content, "byte {at} bit {bit}"),
                _ => panic!("byte {at} bit {bit} of {length}\n{}", ran.report()),
            }
            mutilate::flip_bit(&object, at, bit);
        }
        println!("{noticed} of {asked} flipped bits were noticed, the others did not matter");
        assert!(
            noticed * 10 > asked * 9,
            "{noticed} of {asked}: was this object read at all?"
        );
        archive.expect_whole(&data, name);
    }
}

each_major!(without_the_right_key_nothing_is_absent_but_what_is: 15);
fn without_the_right_key_nothing_is_absent_but_what_is(server: &Server) {
    let archive = Archive::new(server, vec![RepoOptions::new("local").encrypted()], 1);
    let failing = Failing {
        recovery: archive.pgdata("recovery"),
        standby: archive.standby("standby"),
        archive: &archive,
    };
    let name = archive.segments[0].as_str();
    archive.expect_whole(&failing.recovery, name).expect_quiet();

    let keyless = Site::named(&archive.scratch, &archive.cluster, "keyless")
        .shared(archive.repo(), RepoOptions::new("local").keyless());
    failing.expect(&keyless, name, "cannot decrypt");
    get(&keyless, &failing.recovery, &archive.absent()).expect_code(1);
    assert_eq!(keyless.status("archive-get")["result"], "skipped");

    let identity = archive.repo().identity.clone().unwrap();
    let key = fs::read(&identity).unwrap();
    let other = archive.scratch.path("other.identity");
    archive
        .site
        .tool("init")
        .arg("--generate-key")
        .arg(&other)
        .run()
        .expect_code(0);
    account::write(&identity, fs::read(&other).unwrap(), 0o600);
    failing.expect(&archive.site, name, "cannot decrypt");
    account::write(&identity, "nonsense", 0o600);
    failing.expect(&archive.site, name, "identity");
    fs::remove_file(&identity).unwrap();
    failing.expect(&archive.site, name, "identity");
    account::write(&identity, key, 0o600);
    archive.expect_whole(&failing.recovery, name);
}

each_major!(the_next_repository_is_asked_and_absence_needs_all_of_them: 15);
fn the_next_repository_is_asked_and_absence_needs_all_of_them(server: &Server) {
    let both = vec![RepoOptions::new("first"), RepoOptions::new("second").encrypted()];
    let archive = Archive::new(server, both, 2);
    let data = archive.pgdata("recovery");
    let name = archive.segments[0].as_str();
    let [first, second] = &archive.site.repos[..] else {
        panic!()
    };
    mutilate::flip_middle_bit(&first.wal(name));
    archive.expect_whole(&data, name).expect_said("repository \"first\"");
    mutilate::remove(&first.wal(name));
    archive
        .expect_whole(&data, name)
        .expect_said("repository \"first\" has a gap");

    let absent = archive.absent();
    archive.get(&data, &absent).expect_code(1).expect_quiet();
    mutilate::chmod(&second.dir, 0);
    archive
        .get(&data, &absent)
        .expect_code(200)
        .expect_said("Permission denied");
    archive.get(&data, name).expect_code(200);
    // The operator can leave a lost repository out.
    get_tool(&archive.site, &data, &absent)
        .args(["--repository", "first"])
        .run()
        .expect_code(1);
    mutilate::chmod(&second.dir, 0o700);
}

each_major!(a_partial_segment_never_stands_in_for_a_whole_one: 15);
fn a_partial_segment_never_stands_in_for_a_whole_one(server: &Server) {
    let archive = Archive::clear(server, 2);
    let data = archive.pgdata("recovery");
    let name = archive.segments.last().unwrap().as_str();
    let partial = format!("{name}.partial");
    account::write(&data.join("pg_wal").join(&partial), archive.content(name), 0o600);
    archive.push(&data, &partial).expect_code(0).expect_quiet();
    for path in archive.repo().matching(name) {
        if !path.to_string_lossy().contains(".partial") {
            mutilate::remove(&path);
        }
    }
    archive.get(&data, name).expect_code(1);
    archive.get(&data, &partial).expect_code(0);
}

each_major!(a_full_disk_leaves_no_half_file_and_the_next_call_succeeds: 15);
fn a_full_disk_leaves_no_half_file_and_the_next_call_succeeds(server: &Server) {
    let archive = Archive::clear(server, 3);
    let name = archive.segments[0].as_str();
    for (data, code) in [(archive.pgdata("recovery"), 200), (archive.standby("standby"), 75)] {
        let Some(full) = Mounted::tiny(&data.join("pg_wal"), 300) else {
            return;
        };
        let ran = archive
            .get(&data, name)
            .expect_code(code)
            .expect_said("No space left")
            .expect_said("RECOVERYXLOG");
        expect_nothing(&data, &ran);
        drop(full);
        archive.expect_whole(&data, name);
    }

    // A full spool costs nothing but speed. There is room for one segment and a half.
    let site = archive.site;
    let spool = site.dir.join("spool");
    let Some(_full) = Mounted::tiny(&spool, 1600) else {
        return;
    };
    let site = site.set("prefetch_limit", "\"100MiB\"");
    let data = archive.scratch.path("recovery");
    for name in &archive.segments {
        get(&site, &data, name).expect_code(0);
        assert!(fs::read(destination(&data)).unwrap() == fs::read(archive.plain.join(name)).unwrap());
    }
}

each_major!(a_spool_gives_what_was_stored_whatever_happens_to_it: 15 18);
fn a_spool_gives_what_was_stored_whatever_happens_to_it(server: &Server) {
    let archive = Archive::clear(server, 4);
    let data = archive.pgdata("recovery");
    let Archive {
        site, segments, plain, ..
    } = &archive;
    let site = Site::named(&archive.scratch, &archive.cluster, "ahead")
        .shared(site.repo(), RepoOptions::new("local"))
        .set("prefetch_limit", "\"100MiB\"");
    let spooled = || -> Vec<PathBuf> {
        let mut found = Vec::new();
        visit(&site.dir.join("spool"), &mut found);
        // Whole segments, and neither parts nor what else is written there.
        found.retain(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.split_once('-')
                .is_some_and(|(name, _)| segments.iter().any(|each| each == name))
        });
        found.sort();
        found
    };
    let fill = |asked: &str| {
        get(&site, &data, asked).expect_code(0);
        let rest: Vec<&String> = segments.iter().filter(|name| name.as_str() > asked).collect();
        system_tests::wait_until("the rest is fetched ahead", system_tests::wait::PATIENCE, || {
            let there = spooled();
            let is_there = |name: &str| there.iter().any(|path| path.to_string_lossy().contains(name));
            rest.iter().all(|name| is_there(name))
        });
    };
    fill(&segments[0]);
    assert_eq!(spooled().len(), segments.len() - 1);

    // What is there is given without the repository, on the same file system by renaming.
    let dir = &site.repo().dir;
    let aside = archive.scratch.path("aside");
    fs::rename(dir, &aside).unwrap();
    let expect = |name: &str| {
        let ran = get(&site, &data, name).expect_code(0);
        let same = fs::read(destination(&data)).unwrap() == fs::read(plain.join(name)).unwrap();
        assert!(same, "{name}\n{}", ran.report());
        ran
    };
    expect(&segments[1]).expect_quiet();
    // What is absent there is not absent.
    get(&site, &data, &archive.absent()).expect_code(200);
    fs::rename(&aside, dir).unwrap();

    for damage in [
        mutilate::flip_middle_bit as fn(&Path),
        mutilate::empty,
        mutilate::cut_last_byte,
    ] {
        let path = spooled()
            .into_iter()
            .find(|path| path.to_string_lossy().contains(segments[2].as_str()));
        if path.is_none() {
            fill(&segments[1]);
        }
        let mut all = spooled();
        all.retain(|path| path.to_string_lossy().contains(segments[2].as_str()));
        damage(&all[0]);
        expect(&segments[2]).expect_said("is not what was fetched");
    }

    // A repository made anew is another one: nothing that was fetched from the old one is given.
    fill(&segments[0]);
    archive_stand::make_anew(&site, site.repo());
    get(&site, &data, &segments[1]).expect_code(1);
}

fn visit(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.path().is_dir() {
            visit(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}
