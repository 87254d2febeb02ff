//! archive-push: stored once and durably, refused where it would overwrite, and never "stored already" by mistake.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod archive_stand;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use archive_stand::{Archive, Dice, change_system, get, incompressible, push};
use system_tests::scratch::copy_dir;
use system_tests::{Cluster, Options, RepoOptions, Scratch, Server, Site, Stop, account, each_major, mutilate};

fn identity_of(path: &Path) -> (u64, i64, u64) {
    let meta = fs::metadata(path).unwrap();
    (meta.ino(), meta.mtime_nsec(), meta.len())
}

/// The markers of a site: files that an earlier run stored ahead.
fn markers(site: &Site) -> Vec<String> {
    let mut found = Vec::new();
    let places = fs::read_dir(site.dir.join("spool/main/push"))
        .into_iter()
        .flatten()
        .flatten();
    for place in places {
        found.extend(
            fs::read_dir(place.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()),
        );
    }
    found.sort();
    found
}

each_major!(a_segment_is_stored_once_and_other_content_is_refused: 15 18);
fn a_segment_is_stored_once_and_other_content_is_refused(server: &Server) {
    let archive = Archive::clear(server, 2);
    let data = archive.pgdata("primary");
    let [first, second] = [&archive.segments[0], &archive.segments[1]];
    let object = archive.repo().wal(first);
    let before = (identity_of(&object), archive.repo().objects());
    archive.ready(&data, first);
    archive.push(&data, first).expect_code(0).expect_quiet();
    assert_eq!((identity_of(&object), archive.repo().objects()), before);

    // One bit more than a header check can see.
    let path = data.join("pg_wal").join(first);
    mutilate::flip_middle_bit(&path);
    let offered = sha256(&path);
    let stored = sha256(&archive.plain.join(first));
    archive
        .push(&data, first)
        .expect_code(1)
        .expect_said(&offered)
        .expect_said(&stored)
        .expect_said("holds other content")
        .expect_said("hint: ");
    let besides = |objects: Vec<PathBuf>| -> Vec<PathBuf> {
        let is_note = |path: &PathBuf| path.to_string_lossy().ends_with("-conflict.json");
        objects.into_iter().filter(|path| !is_note(path)).collect()
    };
    let before = (before.0, archive.repo().objects());
    assert_eq!(besides(before.1.clone()).len() + 1, before.1.len(), "it is noted");

    // A recycled file has the header of its former life.
    account::write(&path, archive.content(second), 0o600);
    archive
        .push(&data, first)
        .expect_code(1)
        .expect_said("which its name does not say");
    account::write(&path, &archive.content(first)[..8192], 0o600);
    archive.push(&data, first).expect_code(1).expect_said("has 8192 bytes");
    account::write(&path, vec![0; 1 << 20], 0o600);
    archive
        .push(&data, first)
        .expect_code(1)
        .expect_said("magic number 0000");
    fs::remove_file(&path).unwrap();
    archive
        .push(&data, first)
        .expect_code(1)
        .expect_said(&format!("pg_wal/{first}"));
    archive
        .push(&data, "nonsense")
        .expect_code(2)
        .expect_said("not the name of a WAL file");
    assert_eq!((identity_of(&object), archive.repo().objects()), before);

    archive.ready(&data, first);
    change_system(&data, server.major, 4711);
    archive
        .push(&data, first)
        .expect_code(1)
        .expect_said("and this cluster has 4711");
    assert_eq!((identity_of(&object), archive.repo().objects()), before);
}

fn sha256(path: &Path) -> String {
    common::digest::Sha256Digest::of(&fs::read(path).unwrap()).to_string()
}

each_major!(what_is_ready_goes_along_and_later_calls_are_warm: 15 18);
fn what_is_ready_goes_along_and_later_calls_are_warm(server: &Server) {
    let archive = Archive::clear(server, 4);
    let (data, site) = (archive.pgdata("primary"), &archive.site);
    mutilate::remove(&archive.repo().path("wal"));
    for name in &archive.segments {
        archive.ready(&data, name);
    }
    archive.push(&data, &archive.segments[0]).expect_code(0).expect_quiet();
    for name in &archive.segments {
        assert!(archive.repo().has_wal(name), "{name}");
    }
    assert_eq!(markers(site), archive.segments[1..]);

    // Warm: the repository is not even looked at.
    let aside = archive.scratch.path("aside");
    fs::rename(&archive.repo().dir, &aside).unwrap();
    archive.push(&data, &archive.segments[1]).expect_code(0).expect_quiet();
    assert_eq!(markers(site), archive.segments[2..], "a marker serves once");

    // Other content under the name is no warm call.
    let name = &archive.segments[2];
    mutilate::flip_middle_bit(&data.join("pg_wal").join(name));
    archive.push(&data, name).expect_code(1).expect_said("does not exist");
    fs::rename(&aside, &archive.repo().dir).unwrap();

    // Nor is another cluster at the same path, nor a repository made anew.
    let refill = || {
        for name in &archive.segments {
            archive.ready(&data, name);
        }
        archive.push(&data, &archive.segments[0]).expect_code(0).expect_quiet();
        assert_eq!(markers(site), archive.segments[1..]);
    };
    refill();
    let control = fs::read(data.join("global/pg_control")).unwrap();
    change_system(&data, server.major, 4711);
    archive
        .push(&data, &archive.segments[1])
        .expect_code(1)
        .expect_said("4711");
    account::write(&data.join("global/pg_control"), control, 0o600);
    refill();
    archive_stand::make_anew(site, archive.repo());
    archive.push(&data, &archive.segments[1]).expect_code(0).expect_quiet();
    assert!(archive.repo().has_wal(&archive.segments[1]));
}

each_major!(a_repository_exchanged_behind_our_back_is_refused: 15);
fn a_repository_exchanged_behind_our_back_is_refused(server: &Server) {
    let archive = Archive::clear(server, 1);
    let data = archive.pgdata("primary");
    let name = &archive.segments[0];
    archive.ready(&data, name);
    let known = archive_stand::uuid(archive.repo());
    mutilate::remove(&archive.repo().path(""));
    archive
        .push(&data, name)
        .expect_code(2)
        .expect_said("there is no repository at file://")
        .expect_said("create it once with pgkeep-init");
    // Another host made it anew: this one notices.
    let other =
        Site::named(&archive.scratch, &archive.cluster, "other").shared(archive.repo(), RepoOptions::new("local"));
    other.tool("init").run().expect_code(0);
    archive
        .push(&data, name)
        .expect_code(1)
        .expect_said("this host knows it as");
    push(&other, &data, name).run().expect_code(0);
    archive
        .site
        .tool("init")
        .args(["--replace", &known])
        .run()
        .expect_code(0);
    archive.push(&data, name).expect_code(0).expect_quiet();
    mutilate::remove(&archive.repo().dir);
    let name = "000000010000000000000099";
    archive
        .push(&data, name)
        .expect_code(1)
        .expect_said("does not exist")
        .expect_said("is the file system mounted?");
}

each_major!(a_damaged_object_is_set_aside_and_replaced_loudly: 15);
fn a_damaged_object_is_set_aside_and_replaced_loudly(server: &Server) {
    for repository in [RepoOptions::new("local"), RepoOptions::new("local").encrypted()] {
        let archive = Archive::new(server, vec![repository], 1);
        let data = archive.pgdata("primary");
        let name = &archive.segments[0];
        archive.ready(&data, name);
        let damages: [fn(&Path); 3] = [mutilate::cut_last_byte, mutilate::empty, |path| {
            mutilate::truncate(path, 40)
        }];
        for (round, damage) in damages.into_iter().enumerate() {
            let object = archive.repo().wal(name);
            damage(&object);
            let broken = fs::read(&object).unwrap();
            archive.push(&data, name).expect_code(0).expect_said("damaged");
            archive.expect_whole(&data, name);
            let aside = archive.repo().matching("/damaged/");
            assert_eq!(aside.len(), round + 1, "{aside:?}");
            assert!(aside.iter().any(|path| fs::read(path).unwrap() == broken));
            let events = archive.repo().matching("-damage.json");
            assert_eq!(events.len(), round + 1);
            let text = fs::read_to_string(&events[round]).unwrap();
            assert!(text.contains(name.as_str()) && text.contains("damaged/"), "{text}");
        }
    }
}

each_major!(while_a_required_repository_fails_the_other_receives_everything: 15 18);
fn while_a_required_repository_fails_the_other_receives_everything(server: &Server) {
    let both = vec![RepoOptions::new("first"), RepoOptions::new("second")];
    let archive = Archive::new(server, both, 6);
    let data = archive.pgdata("primary");
    let site = archive.site;
    let [first, second] = [site.repos[0].clone(), site.repos[1].clone()];
    for repo in [&first, &second] {
        mutilate::remove(&repo.path("wal"));
    }
    // Fewer in a run than there are: the runs must get on although PostgreSQL asks for the same file every time.
    let site = site.set("push_batch", "3");
    let (segments, plain) = (&archive.segments, &archive.plain);
    for name in segments {
        account::write(
            &data.join("pg_wal").join(name),
            fs::read(plain.join(name)).unwrap(),
            0o600,
        );
        account::write(&data.join(format!("pg_wal/archive_status/{name}.ready")), "", 0o600);
    }
    mutilate::chmod(&first.dir, 0);
    for _ in 0..segments.len() {
        push(&site, &data, &segments[0])
            .run()
            .expect_code(1)
            .expect_said("repository \"first\"");
    }
    for name in segments {
        assert!(second.has_wal(name), "{name} did not reach the second repository");
    }
    mutilate::chmod(&first.dir, 0o700);
    for name in segments {
        push(&site, &data, name).run().expect_code(0).expect_quiet();
    }
    for name in segments {
        assert!(first.has_wal(name), "{name} did not reach the first repository");
    }
}

each_major!(a_repository_that_is_not_required_may_be_away_but_not_all_of_them: 15);
fn a_repository_that_is_not_required_may_be_away_but_not_all_of_them(server: &Server) {
    let both = vec![
        RepoOptions::new("first"),
        RepoOptions::new("second").line("required = false"),
    ];
    let archive = Archive::new(server, both, 2);
    let data = archive.pgdata("primary");
    let [first, second] = [&archive.site.repos[0], &archive.site.repos[1]];
    let name = &archive.segments[0];
    archive.ready(&data, name);
    mutilate::remove(&first.wal(name));
    mutilate::chmod(&second.dir, 0);
    archive
        .push(&data, name)
        .expect_code(0)
        .expect_said("repository \"second\"")
        .expect_said("Permission denied");
    assert!(first.has_wal(name));

    let text = fs::read_to_string(&archive.site.config).unwrap();
    let optional = text.replace("[repository.first]", "[repository.first]\nrequired = false");
    account::write(&archive.site.config, optional, 0o600);
    mutilate::chmod(&first.dir, 0);
    archive
        .push(&data, name)
        .expect_code(75)
        .expect_said("no repository has taken it");
    mutilate::chmod(&first.dir, 0o700);
    archive.push(&data, name).expect_code(0);
    mutilate::chmod(&second.dir, 0o700);
}

each_major!(a_taken_timeline_is_refused_with_its_date_and_the_way_out: 15);
fn a_taken_timeline_is_refused_with_its_date_and_the_way_out(server: &Server) {
    let archive = Archive::clear(server, 1);
    let data = archive.pgdata("primary");
    let path = data.join("pg_wal/00000002.history");
    account::write(&path, "1\t0/3000000\tno recovery target specified\n", 0o600);
    archive.push(&data, "00000002.history").expect_code(0).expect_quiet();
    archive.push(&data, "00000002.history").expect_code(0).expect_quiet();
    account::write(&path, "1\t0/4000000\tno recovery target specified\n", 0o600);
    let year = common::time::UtcTime::now().to_string()[..4].to_owned();
    archive
        .push(&data, "00000002.history")
        .expect_code(1)
        .expect_said("timeline 2 was taken by another promotion")
        .expect_said(&format!("stored {year}-"))
        .expect_said("hint: ");
    archive.get(&data, "00000002.history").expect_code(0);
    assert!(
        fs::read_to_string(archive_stand::destination(&data))
            .unwrap()
            .contains("0/3000000")
    );
}

each_major!(a_host_of_a_former_system_identifier_is_refused: 15);
fn a_host_of_a_former_system_identifier_is_refused(server: &Server) {
    let archive = Archive::clear(server, 1);
    let data = archive.pgdata("former");
    let name = &archive.segments[0];
    archive.ready(&data, name);
    let held = || archive.repo().matching("-wal.json").len();
    assert_eq!(held(), 1, "that there is WAL is noted, once");
    archive.push(&data, name).expect_code(0).expect_quiet();
    assert_eq!(held(), 1);

    // The cluster lives on with another identifier.
    let own = archive.cluster.data();
    archive_stand::change_system(own, server.major, 4711);
    archive.site.tool("init").arg("--new-history").run().expect_code(0);
    archive
        .push(&data, name)
        .expect_code(1)
        .expect_said("is continued by system identifier 4711, and this cluster has the former")
        .expect_said("hint: ");
    // Its WAL can still be fetched.
    archive.expect_whole(&data, name).expect_quiet();
}

each_major!(a_server_archives_through_a_crash_without_losing_or_doubling_a_segment: 15 18);
fn a_server_archives_through_a_crash_without_losing_or_doubling_a_segment(server: &Server) {
    let scratch = Scratch::new("archives");
    let cluster = Cluster::create(&scratch, server, Options::default());
    let site = Site::with_repository(&scratch, &cluster);
    site.tool("init").run().expect_code(0);
    site.archive(&cluster);
    cluster.start();
    let mut names = Vec::new();
    for round in 0..6 {
        cluster.sql(&format!("CREATE TABLE t{round} (i int)"));
        names.push(cluster.switch_wal());
        if round % 2 == 1 {
            cluster.kill9();
            cluster.start();
        }
    }
    for name in &names {
        cluster.wait_archived(name);
        site.repo().wal(name);
    }
    assert!(!cluster.log().contains("archive command failed"), "{}", cluster.log());
    assert_eq!(site.status("archive-push")["result"], "ok");
    let metrics = fs::read_to_string(site.dir.join("metrics/pgkeep_main_archive-push.prom")).unwrap();
    assert!(metrics.contains("pgkeep_wal_ready_segments"), "{metrics}");
    cluster.stop(Stop::Fast);
}

each_major!(a_cluster_put_back_to_an_earlier_state_overwrites_nothing_and_is_not_taken_for_stored: 15 18);
fn a_cluster_put_back_to_an_earlier_state_overwrites_nothing_and_is_not_taken_for_stored(server: &Server) {
    let scratch = Scratch::new("put_back");
    let cluster = Cluster::create(&scratch, server, Options::default());
    let site = Site::with_repository(&scratch, &cluster);
    site.tool("init").run().expect_code(0);
    // The test is the archiver.
    cluster.conf(&["archive_mode = on", "archive_command = 'false'"]);
    let aside = scratch.path("aside");
    cluster.start();
    cluster.stop(Stop::Fast);
    copy_dir(cluster.data(), &aside);
    let write = |what: &str| -> Vec<String> {
        cluster.start();
        let segment = |n| {
            cluster.sql(&format!("CREATE TABLE {what}{n} AS SELECT '{what}' AS t"));
            cluster.switch_wal()
        };
        let names = (0..4).map(segment).collect();
        cluster.stop(Stop::Immediate);
        names
    };
    let names = write("first");
    push(&site, cluster.data(), &names[0]).run().expect_code(0);
    let remembered = markers(&site);
    assert!(
        names[1..].iter().all(|name| remembered.contains(name)),
        "{remembered:?}"
    );
    let identities = || {
        names
            .iter()
            .map(|name| identity_of(&site.repo().wal(name)))
            .collect::<Vec<_>>()
    };
    let stored = identities();

    mutilate::remove(cluster.data());
    copy_dir(&aside, cluster.data());
    assert_eq!(write("other"), names, "the same timeline is written again");
    for name in &names {
        push(&site, cluster.data(), name)
            .run()
            .expect_code(1)
            .expect_said(name)
            .expect_said("holds other content")
            .expect_said(&sha256(&cluster.data().join("pg_wal").join(name)));
    }
    assert_eq!(identities(), stored);
    assert!(site.repo().matching("/damaged/").is_empty());
}

each_major!(every_segment_has_a_map_that_names_its_content: 15 18);
fn every_segment_has_a_map_that_names_its_content(server: &Server) {
    let archive = Archive::clear(server, 2);
    for name in &archive.segments {
        let object = archive.repo().wal(name);
        let map = object.with_file_name(format!("{name}.map.zst"));
        let bytes = common::codec::decode_small(&fs::read(&map).unwrap(), &common::codec::Opening::none()).unwrap();
        let map = common::postgres::walmap::SegmentMap::decode(&bytes).unwrap();
        let content = archive.content(name);
        assert_eq!(map.segment.sha256, common::digest::Sha256Digest::of(&content).0);
        assert!(map.reaches_end(), "{name}: {:?}", map.exit);
    }
    // A map that cannot be stored does not keep the segment out.
    let data = archive.pgdata("primary");
    let name = &archive.segments[0];
    archive.ready(&data, name);
    let object = archive.repo().wal(name);
    let map = object.with_file_name(format!("{name}.map.zst"));
    fs::remove_file(&map).unwrap();
    fs::create_dir(&map).unwrap();
    mutilate::remove(&object);
    archive.push(&data, name).expect_code(0).expect_quiet();
    archive.expect_whole(&data, name);
}

/// A cluster's directory and its segments of 16 MiB, which cannot be compressed.
fn large(server: &Server, encrypted: bool) -> (Large, Vec<String>) {
    let scratch = Scratch::new("large");
    let cluster = Cluster::create(&scratch, server, Options::default());
    let mut local = RepoOptions::new("local");
    if encrypted {
        local = local.encrypted();
    }
    let site = Site::new(&scratch, &cluster).repository(local);
    site.tool("init").run().expect_code(0);
    let real = fs::read(cluster.data().join("pg_wal/000000010000000000000001")).unwrap();
    let mut dice = Dice::new();
    let mut names = Vec::new();
    for number in 1..=4u64 {
        let name = format!("0000000100000000{number:08X}");
        let path = cluster.data().join("pg_wal").join(&name);
        account::write(&path, incompressible(&real, number, &mut dice), 0o600);
        account::write(
            &cluster.data().join(format!("pg_wal/archive_status/{name}.ready")),
            "",
            0o600,
        );
        names.push(name);
    }
    (
        Large {
            site,
            data: cluster.data().to_owned(),
            _cluster: cluster,
        },
        names,
    )
}

struct Large {
    site: Site,
    data: PathBuf,
    _cluster: Cluster,
}

/// What an optimised archive-push takes to say its version, at most.
const RELEASE_IDLE_KIB: u64 = 4200;

each_major!(memory_stays_within_48_mib_for_segments_that_cannot_be_compressed: 15);
fn memory_stays_within_48_mib_for_segments_that_cannot_be_compressed(server: &Server) {
    for encrypted in [false, true] {
        let (archive, names) = large(server, encrypted);
        let ran = push(&archive.site, &archive.data, &names[0])
            .run()
            .expect_code(0)
            .expect_quiet();
        assert!(archive.site.repo().has_wal(&names[3]), "the batch went along");
        // The executables of the tests are not optimised: what they take to say their version is more than the whole difference.
        let idle = archive.site.tool("archive-push").arg("--version").run().max_rss_kib;
        let limit = (48 << 10) + idle.saturating_sub(RELEASE_IDLE_KIB);
        println!(
            "archive-push, encrypted {encrypted}: {} KiB, idle {idle} KiB",
            ran.max_rss_kib
        );
        assert!(ran.max_rss_kib <= limit, "{} KiB\n{}", ran.max_rss_kib, ran.report());

        let ran = get(&archive.site, &archive.data, &names[0]).expect_code(0);
        println!("archive-get, encrypted {encrypted}: {} KiB", ran.max_rss_kib);
        assert!(ran.max_rss_kib <= 48 << 10, "{} KiB", ran.max_rss_kib);
        // The detached child in the foreground, so that it can be measured.
        let child = archive
            .site
            .tool("archive-get")
            .arg(format!("--prefetch-from={}", names[1]))
            .args([&names[0], "x"])
            .cwd(&archive.data)
            .under(["sh", "-c", "\"$0\" \"$@\"; exit $?"])
            .run()
            .expect_code(0);
        println!("fetching ahead, encrypted {encrypted}: {} KiB", child.max_rss_kib);
        assert!(child.max_rss_kib <= 48 << 10, "{} KiB", child.max_rss_kib);
    }
}
