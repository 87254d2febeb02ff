//! A file that is not in the archive, though others show that it was: never the end of the archive. And the ends that are
//! ends all the same.
#![allow(clippy::unwrap_used, clippy::panic)]

mod archive_stand;

use std::fs;
use std::path::{Path, PathBuf};

use archive_stand::{Archive, expect_nothing, get};
use system_tests::{RepoOptions, Server, Site, account, each_major, mutilate};

/// Who asks, and with which code a hole is answered.
struct Askers {
    recovery: PathBuf,
    standby: PathBuf,
}

impl Askers {
    fn new(archive: &Archive) -> Askers {
        Askers {
            recovery: archive.pgdata("recovery"),
            standby: archive.standby("standby"),
        }
    }

    fn hole(&self, site: &Site, name: &str, words: &str) {
        for (data, code) in [(&self.recovery, 200), (&self.standby, 75)] {
            let ran = get(site, data, name).expect_code(code).expect_said(words);
            expect_nothing(data, &ran);
        }
    }

    fn end(&self, site: &Site, name: &str) {
        for data in [&self.recovery, &self.standby] {
            let ran = get(site, data, name).expect_code(1).expect_quiet();
            expect_nothing(data, &ran);
        }
    }
}

/// Moves paths away while something is done.
fn without(archive: &Archive, paths: &[PathBuf], then: impl FnOnce()) {
    let aside = |at: usize| archive.scratch.path(&format!("aside-{at}"));
    for (at, path) in paths.iter().enumerate() {
        fs::rename(path, aside(at)).unwrap();
    }
    then();
    for (at, path) in paths.iter().enumerate() {
        fs::rename(aside(at), path).unwrap();
    }
}

fn map(object: &Path) -> PathBuf {
    let name = object.file_name().unwrap().to_string_lossy().into_owned();
    object.with_file_name(name.replace(".zst", ".map.zst"))
}

/// The segment, and its map.
fn both(archive: &Archive, name: &str) -> Vec<PathBuf> {
    let object = archive.repo().wal(name);
    vec![map(&object), object]
}

each_major!(a_directory_or_a_file_that_is_missing_is_not_the_end_of_the_archive: 15 18);
fn a_directory_or_a_file_that_is_missing_is_not_the_end_of_the_archive(server: &Server) {
    let archive = Archive::clear(server, 4);
    let askers = Askers::new(&archive);
    let site = &archive.site;
    let repo = archive.repo();
    let [first, second, third] = [0, 1, 2].map(|at| archive.segments[at].as_str());
    let last = archive.segments.last().unwrap().as_str();
    let absent = archive.absent();
    askers.end(site, &absent);
    let status = site.status("archive-get");
    assert_eq!(
        (status["result"].as_str(), status["exit_code"].as_u64()),
        (Some("skipped"), Some(1))
    );

    let shelf = repo.wal(first).parent().unwrap().to_owned();
    let system = shelf.parent().unwrap().to_owned();
    for path in [shelf.clone(), system.clone(), repo.path("wal")] {
        without(&archive, std::slice::from_ref(&path), || {
            for name in [second, absent.as_str(), "00000002.history"] {
                askers.hole(site, name, "has held WAL of this cluster");
            }
            // As a mount point without its file system.
            account::create_dir(&path, 0o700);
            askers.hole(site, &absent, "has held WAL of this cluster");
            fs::remove_dir(&path).unwrap();
        });
    }

    without(&archive, &both(&archive, second), || {
        askers.hole(site, second, &format!("has a gap: {third} is there, and {second}"));
        askers.end(site, &absent);
    });
    // Recovery that needs what lies before the oldest cannot do without it.
    without(&archive, &both(&archive, first), || {
        askers.hole(site, first, &format!("has a gap: {second} is there"));
    });
    // Its server died between storing the map and the segment: recovery after that must find its end.
    without(&archive, &both(&archive, last)[1..], || askers.end(site, last));
    without(&archive, &both(&archive, last), || askers.end(site, last));
    without(&archive, &both(&archive, last), || {
        let object = system.join(&last[..16]).join(format!("{last}.zst"));
        fs::create_dir(&object).unwrap();
        askers.hole(site, last, "is no object");
        fs::remove_dir(&object).unwrap();
    });

    // What comes later may lie in another directory.
    let next = format!("{}00000001", &first[..8]);
    account::create_dir(&system.join(&next), 0o700);
    askers.end(site, &absent);
    account::write(&system.join(&next).join(format!("{next}00000007.zst")), "", 0o600);
    askers.hole(site, &absent, &format!("has a gap: {next}00000007 is there"));
    askers.hole(site, &format!("{next}00000006"), &format!("{next}00000007 is there"));
    askers.end(site, &format!("{next}00000008"));
}

each_major!(timelines_end_where_they_were_left_and_not_before: 15);
fn timelines_end_where_they_were_left_and_not_before(server: &Server) {
    let archive = Archive::clear(server, 4);
    let askers = Askers::new(&archive);
    let site = &archive.site;
    let number = |name: &str| u32::from_str_radix(&name[16..], 16).unwrap();
    let name = |timeline: u32, number: u32| format!("{timeline:08X}00000000{number:08X}");
    let last = archive.segments.last().unwrap();
    // Timeline 2 left timeline 1 in the middle of the segment behind the last, and is two segments long.
    let fork = number(last) + 1;
    let history = |content: String| {
        let path = askers.recovery.join("pg_wal/00000002.history");
        account::write(&path, content, 0o600);
        archive
            .push(&askers.recovery, "00000002.history")
            .expect_code(0)
            .expect_quiet();
        // Or the server's own copy would answer.
        fs::remove_file(&path).unwrap();
    };
    // A history alone proves nothing.
    history(format!("1\t0/{fork:X}40000\tno recovery target specified\n"));
    askers.end(site, &name(1, fork));
    askers.end(site, &name(2, fork));
    askers.end(site, "00000003.history");
    let shelf = archive.repo().wal(last).parent().unwrap().to_owned();
    let younger = shelf.with_file_name(&name(2, 0)[..16]);
    account::create_dir(&younger, 0o700);
    let store = |number: u32| account::write(&younger.join(format!("{}.zst", name(2, number))), "", 0o600);
    // Only the old timeline has a copy of the segment that it was left in.
    askers.end(site, &name(2, fork));
    store(fork);
    store(fork + 1);

    // The old timeline has no whole copy of it, and nothing behind.
    askers.end(site, &name(1, fork));
    askers.end(site, &name(1, fork + 1));
    askers.end(site, &name(2, fork + 2));
    // The new one has nothing before.
    askers.end(site, &name(2, fork - 1));
    // No such timeline.
    askers.end(site, &name(3, fork));
    askers.end(site, "00000003.history");
    askers.hole(site, "00000003.histor", "not the name of a WAL file");

    // All of the old timeline up to there was.
    without(&archive, &both(&archive, last), || {
        askers.hole(
            site,
            last,
            &format!("has a gap: {} is there, and {last}", name(2, fork)),
        );
    });
    fs::remove_file(younger.join(format!("{}.zst", name(2, fork)))).unwrap();
    askers.hole(
        site,
        &name(2, fork),
        &format!("has a gap: {} is there", name(2, fork + 1)),
    );
    store(fork);

    // The old timeline may go on; then it has no gap either.
    let beyond = shelf.join(format!("{}.zst", name(1, fork + 1)));
    account::write(&beyond, "", 0o600);
    askers.hole(
        site,
        &name(1, fork),
        &format!("has a gap: {} is there", name(1, fork + 1)),
    );
    askers.end(site, &name(1, fork + 2));
    fs::remove_file(beyond).unwrap();

    // Without its history nobody knows what the new timeline goes back to.
    let stored = archive.repo().matching("/00000002.history");
    let cache = site.state().join("main/histories");
    without(&archive, &stored, || {
        let _ = fs::remove_dir_all(&cache);
        askers.hole(site, "00000002.history", "holds WAL of timeline 2");
        askers.hole(site, &name(1, fork), "find out which WAL timeline 2 goes back to");
        askers.end(site, &name(2, fork + 2));
    });
}

each_major!(a_hole_in_one_repository_is_filled_by_another_and_outweighs_an_absence: 15);
fn a_hole_in_one_repository_is_filled_by_another_and_outweighs_an_absence(server: &Server) {
    let two = vec![RepoOptions::new("first"), RepoOptions::new("second").encrypted()];
    let archive = Archive::new(server, two, 3);
    let askers = Askers::new(&archive);
    let site = &archive.site;
    let [first, second] = &site.repos[..] else { panic!() };
    let name = archive.segments[1].as_str();
    mutilate::remove(&first.wal(name));
    for data in [&askers.recovery, &askers.standby] {
        archive
            .expect_whole(data, name)
            .expect_said("repository \"first\" has a gap");
    }
    // The second holds nothing from there on, as one that was away: to it, that is the end.
    for name in &archive.segments[1..] {
        mutilate::remove(&map_sealed(&second.wal(name)));
        mutilate::remove(&second.wal(name));
    }
    askers.hole(site, name, "repository \"first\" has a gap");
    askers.end(site, &archive.absent());

    // One that was added later and never held any has nothing to miss.
    let fresh = Site::named(&archive.scratch, &archive.cluster, "fresh")
        .shared(second, RepoOptions::new("second").encrypted())
        .repository(RepoOptions::new("third"));
    fresh.tool("init").run().expect_code(0);
    askers.end(&fresh, &archive.absent());
}

fn map_sealed(object: &Path) -> PathBuf {
    let name = object.file_name().unwrap().to_string_lossy().into_owned();
    object.with_file_name(name.replace(".zst.age", ".map.zst.age"))
}

/// What a host remembers of a repository: as it should be, not there, damaged, and out of reach.
enum Memory {
    Damaged,
    Unreadable,
}

each_major!(a_memory_that_cannot_be_read_is_not_taken_for_none: 15);
fn a_memory_that_cannot_be_read_is_not_taken_for_none(server: &Server) {
    let archive = Archive::clear(server, 2);
    let askers = Askers::new(&archive);
    let site = &archive.site;
    let name = archive.segments[0].as_str();
    let pin = site.state().join("main/repository/local.json");
    let kept = fs::read(&pin).unwrap();
    // The other repository that must not be taken for the one that is known.
    let identity = archive.repo().path("repository.json");
    let own = fs::read_to_string(&identity).unwrap();
    let at = own.find("\"uuid\":\"").unwrap() + 8;
    let mut other = own.clone();
    other.replace_range(at..at + 8, "01234567");

    for memory in [Memory::Damaged, Memory::Unreadable] {
        let words = match memory {
            Memory::Damaged => {
                account::write(&pin, "{\"name\":\"local\"", 0o600);
                "it is damaged"
            }
            Memory::Unreadable => {
                mutilate::chmod(&pin, 0);
                "what this host knows of repository \"local\""
            }
        };
        for identity_text in [&own, &other] {
            mutilate::chmod(&identity, 0o600);
            account::write(&identity, identity_text, 0o600);
            askers.hole(site, name, words);
            askers.hole(site, &archive.absent(), words);
            archive.ready(&askers.recovery, name);
            archive
                .push(&askers.recovery, name)
                .expect_code(1)
                .expect_said(words)
                .expect_said("hint: ");
        }
        mutilate::chmod(&pin, 0o600);
    }

    // What is known decides; and where nothing is, what is there becomes known.
    account::write(&pin, &kept, 0o600);
    askers.hole(site, name, "this host knows it as");
    archive
        .push(&askers.recovery, name)
        .expect_code(1)
        .expect_said("this host knows it as");
    fs::remove_file(&pin).unwrap();
    archive.push(&askers.recovery, name).expect_code(0).expect_quiet();
    archive.expect_whole(&askers.recovery, name).expect_quiet();
    assert!(fs::read_to_string(&pin).unwrap().contains("01234567"));
}
