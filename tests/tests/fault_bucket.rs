//! What may go wrong between the tools and a bucket: each fault is told so that a person can act on it, never taken for
//! absence, loses nothing, and the work completes when it is over.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod archive_stand;

use std::fs;
use std::path::{Path, PathBuf};

use archive_stand::{Archive, destination, expect_nothing};
use system_tests::s3::{Certificate, Fault, Rule, SECRET_KEY};
use system_tests::story::{newer_format, text};
use system_tests::{Ran, RepoOptions, S3, Scratch, Server, account, mutilate};

/// WAL in a bucket, and directories in which the tools run.
struct Bench {
    // The archive's tools are gone before the server.
    archive: Archive,
    s3: S3,
    scratch: Scratch,
    primary: PathBuf,
    recovery: PathBuf,
    standby: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Option<Bench> {
        let server = Server::need(15)?;
        let scratch = Scratch::new(name);
        let s3 = S3::start(&scratch.path("s3"), "backups");
        let credentials = scratch.path("credentials");
        S3::credentials(&credentials);
        let repository = RepoOptions::new("offsite").in_s3(&s3, "backups", &credentials);
        let archive = Archive::new(&server, vec![repository], 3);
        Some(Bench {
            primary: archive.pgdata("primary"),
            recovery: archive.pgdata("recovery"),
            standby: archive.standby("standby"),
            archive,
            s3,
            scratch,
        })
    }

    /// The segment that is pushed; its object is removed first, and what the tools remember.
    fn unstored(&self) -> String {
        let name = self.archive.segments[1].clone();
        for object in self.archive.repo().matching(&name) {
            fs::remove_file(object).unwrap();
        }
        let _ = fs::remove_dir_all(self.archive.site.dir.join("spool/main"));
        self.archive.ready(&self.primary, &name);
        name
    }

    /// archive-push fails with this code, and nothing of the segment can be seen.
    fn push_fails(&self, code: i32, words: &[&str]) {
        let name = self.unstored();
        let ran = told(self.archive.push(&self.primary, &name), code, words);
        let left = self.archive.repo().matching(&format!("{name}.zst"));
        assert!(left.is_empty(), "{left:?}\n{}", ran.report());
    }

    /// Without faults it is stored, once, and comes back as it was.
    fn push_succeeds(&self) {
        let name = self.archive.segments[1].clone();
        self.archive.push(&self.primary, &name).expect_code(0);
        self.archive.repo().wal(&name);
        self.archive.expect_whole(&self.recovery, &name);
    }

    /// archive-get cannot find out, in recovery and in a standby, whether the segment is stored or not.
    fn get_fails(&self, words: &[&str]) {
        for name in [self.archive.segments[0].clone(), self.archive.absent()] {
            for (data, code) in [(&self.recovery, 200), (&self.standby, 75)] {
                let ran = told(self.archive.get(data, &name), code, words);
                nothing_there(data, &ran);
            }
        }
    }

    fn get_succeeds(&self) {
        for data in [&self.recovery, &self.standby] {
            self.archive.expect_whole(data, &self.archive.segments[0]);
            let ran = self.archive.get(data, &self.archive.absent()).expect_code(1);
            expect_nothing(data, &ran);
        }
    }

    /// info and init --check fail and say it too.
    fn others_fail(&self, words: &[&str]) {
        for (tool, arguments) in [("info", &[][..]), ("init", &["--check"][..]), ("init", &[][..])] {
            let ran = self.archive.site.tool(tool).args(arguments).run();
            assert!(matches!(ran.code, Some(1 | 2 | 75)), "{}", ran.report());
            let code = ran.code.unwrap();
            told(ran, code, words);
        }
    }
}

/// It ended with this code, said these words, nothing secret, and did not panic.
fn told(ran: Ran, code: i32, words: &[&str]) -> Ran {
    println!("$ {}\n{}\n{}{}", ran.command, code, ran.stderr, ran.stdout);
    let ran = ran.expect_code(code);
    for words in words {
        ran.clone().expect_said(words);
    }
    for never in [SECRET_KEY, "panicked", "X-Amz-Signature", "HttpError", "reqwest"] {
        assert!(!ran.stderr.contains(never), "{never:?} is said\n{}", ran.report());
    }
    ran
}

/// No file stands where the segment was to be. A part that a killed process left goes with the next call.
fn nothing_there(data: &Path, ran: &Ran) {
    assert!(!destination(data).exists(), "{}", ran.report());
}

#[test]
fn a_store_in_trouble_is_waited_for_and_then_told() {
    let Some(bench) = Bench::new("bucket_trouble") else {
        return;
    };
    let table: [(Fault, &[&str]); 7] = [
        (
            Fault::Answer(500, "InternalError"),
            &["500 InternalError", "s3://backups/offsite"],
        ),
        (Fault::Answer(503, "SlowDown"), &["503 SlowDown"]),
        (Fault::Answer(507, "XMinioStorageFull"), &["is full"]),
        (Fault::Answer(403, "QuotaExceeded"), &["is full"]),
        (Fault::Answer(429, "TooManyRequests"), &["429"]),
        (Fault::Reset, &["the connection was closed"]),
        (Fault::Hang, &["nothing moved for 5 s"]),
    ];
    for (fault, words) in table {
        println!("== {fault:?}");
        bench.s3.rule(Rule::new(fault));
        bench.push_fails(75, if fault == Fault::Hang { &[] } else { words });
        if fault != Fault::Hang {
            bench.get_fails(words);
            bench.others_fail(words);
        }
        bench.s3.heal();
        bench.push_succeeds();
        bench.get_succeeds();
        // Whoever waits long enough notices nothing.
        if fault != Fault::Hang {
            bench.unstored();
            bench.s3.rule(Rule::new(fault).times(1));
            bench.push_succeeds();
            bench.s3.heal();
        }
    }
}

#[test]
fn an_upload_that_breaks_is_not_visible_and_one_whose_answer_is_lost_counts_once() {
    let Some(bench) = Bench::new("bucket_uploads") else {
        return;
    };
    let put = |fault| Rule::new(fault).method("PUT").part("/wal/");
    bench.s3.rule(put(Fault::BreakUpload));
    bench.push_fails(75, &["the connection was closed", "s3://backups/offsite/main/wal/"]);
    bench.s3.heal();
    bench.push_succeeds();

    // Done, but nobody heard of it: again and again.
    let name = bench.unstored();
    bench.s3.rule(put(Fault::LoseAnswer).times(2));
    bench.archive.push(&bench.primary, &name).expect_code(0);
    bench.s3.heal();
    bench.push_succeeds();
}

#[test]
fn what_arrives_cut_off_or_changed_is_never_handed_over() {
    let Some(bench) = Bench::new("bucket_bodies") else {
        return;
    };
    let name = &bench.archive.segments[0];
    let get = |fault| Rule::new(fault).method("GET").part(name);
    for fault in [
        Fault::BreakBody(0),
        Fault::BreakBody(1000),
        Fault::ShortBody(0),
        Fault::ShortBody(1000),
        Fault::Flip,
    ] {
        println!("== {fault:?}");
        bench.s3.rule(get(fault));
        for (data, code) in [(&bench.recovery, 200), (&bench.standby, 75)] {
            let ran = told(bench.archive.get(data, name), code, &[name, "s3://backups/offsite"]);
            nothing_there(data, &ran);
        }
        bench.s3.heal();
        bench.get_succeeds();
        if matches!(fault, Fault::BreakBody(_)) {
            // A stream that broke once is taken up where it broke.
            bench.s3.rule(get(fault).times(1));
            bench.archive.expect_whole(&bench.recovery, name);
            bench.s3.heal();
        }
    }
}

#[test]
fn what_only_a_person_can_mend_says_how_and_is_no_absence() {
    let Some(bench) = Bench::new("bucket_refusals") else {
        return;
    };
    let table: [(Fault, &[&str]); 7] = [
        (Fault::Answer(403, "AccessDenied"), &["403", "docs/s3.md"]),
        (Fault::Answer(403, "RequestTimeTooSkewed"), &["clock", "timedatectl"]),
        (Fault::Answer(403, "SignatureDoesNotMatch"), &["secret key is wrong"]),
        (Fault::Answer(403, "InvalidAccessKeyId"), &["access key"]),
        (Fault::Answer(404, "NoSuchBucket"), &["create the bucket"]),
        (Fault::Elsewhere("eu-west-1"), &["region = \"eu-west-1\""]),
        (Fault::Answer(404, ""), &["bucket"]),
    ];
    for (fault, words) in table {
        println!("== {fault:?}");
        bench.s3.rule(Rule::new(fault));
        bench.push_fails(1, words);
        bench.get_fails(words);
        bench.others_fail(words);
        bench.s3.heal();
        bench.push_succeeds();
        bench.get_succeeds();
    }

    println!("== in an archive class");
    let name = &bench.archive.segments[0];
    let frozen = Fault::Answer(403, "InvalidObjectState");
    bench.s3.rule(Rule::new(frozen).method("GET").part(name));
    for (data, code) in [(&bench.recovery, 200), (&bench.standby, 75)] {
        let ran = told(bench.archive.get(data, name), code, &["restore-object", name]);
        nothing_there(data, &ran);
    }
}

#[test]
fn wrong_keys_wrong_buckets_and_wrong_places_are_told_apart() {
    let Some(bench) = Bench::new("bucket_places") else {
        return;
    };
    let site = &bench.archive.site;
    let config = fs::read_to_string(&site.config).unwrap();
    let credentials = bench.scratch.path("credentials");
    let keys = fs::read_to_string(&credentials).unwrap();
    let with = |title: &str, from: &str, to: &str, push: i32, words: &[&str]| {
        println!("== {title}");
        assert!(config.contains(from), "{from}");
        account::write(&site.config, config.replace(from, to), 0o600);
        bench.push_fails(push, &words[..1]);
        bench.get_fails(words);
        // There init would create a repository.
        if title != "a wrong prefix" && title != "no such bucket" {
            bench.others_fail(words);
        }
        account::write(&site.config, &config, 0o600);
    };
    let endpoint = bench.s3.endpoint();
    // This server calls an object in a missing bucket missing; others answer NoSuchBucket.
    with("no such bucket", "s3://backups/", "s3://others/", 2, &["s3://others/"]);
    with(
        "a wrong prefix",
        "s3://backups/offsite",
        "s3://backups/elsewhere",
        2,
        &["elsewhere", "repository.json"],
    );
    with(
        "nobody listens",
        &endpoint,
        "http://127.0.0.1:1",
        75,
        &["refused", "endpoint"],
    );
    with(
        "no such name",
        &endpoint,
        "http://no-such-host.invalid",
        75,
        &["cannot be resolved", "endpoint"],
    );
    with(
        "TLS where there is none",
        &endpoint,
        &endpoint.replace("http:", "https:"),
        75,
        &["s3://backups/offsite"],
    );
    for (title, from, to, words) in [
        (
            "an unknown key",
            "AKTESTACCESSKEY00001",
            "AKTESTACCESSKEY00002",
            &["access key"][..],
        ),
        (
            "a wrong secret",
            SECRET_KEY,
            "some/other/secret",
            &["secret key is wrong"][..],
        ),
    ] {
        println!("== {title}");
        account::write(&credentials, keys.replace(from, to), 0o600);
        bench.push_fails(1, &[]);
        bench.get_fails(words);
        bench.others_fail(words);
    }
    account::write(&credentials, &keys, 0o600);
    bench.push_succeeds();
    bench.get_succeeds();

    println!("== a newer format, and another repository");
    let identity = bench.archive.repo().path("repository.json");
    let original = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, newer_format(&original)).unwrap();
    bench.get_fails(&["format"]);
    fs::write(&identity, "{}").unwrap();
    bench.get_fails(&["repository.json"]);
    mutilate::empty(&identity);
    bench.get_fails(&["repository.json"]);
    fs::write(&identity, &original).unwrap();
    bench.get_succeeds();
}

#[test]
fn a_certificate_is_believed_only_with_its_authority() {
    let Some(bench) = Bench::new("bucket_tls") else { return };
    let certificate = Certificate::make(&bench.scratch.path("tls"));
    let secure = S3::start_tls(&bench.s3.root, "backups", &certificate);
    let site = &bench.archive.site;
    let config = fs::read_to_string(&site.config).unwrap();
    let config = config.replace(&bench.s3.endpoint(), &secure.endpoint());
    account::write(&site.config, &config, 0o600);
    let words = ["certificate", "ca_file", "s3://backups/offsite"];
    bench.push_fails(1, &words);
    bench.get_fails(&words);
    bench.others_fail(&words);

    let with_authority = |authority: &str| {
        let endpoint = format!("endpoint = \"{}\"", secure.endpoint());
        let line = format!("{endpoint}\nca_file = \"{authority}\"");
        account::write(&site.config, config.replace(&endpoint, &line), 0o600);
    };
    with_authority("/nowhere/ca.pem");
    bench.push_fails(2, &["/nowhere/ca.pem", "ca_file"]);
    bench.get_fails(&["/nowhere/ca.pem"]);
    with_authority(&text(&bench.archive.site.config));
    bench.get_fails(&["holds no certificate"]);
    with_authority(&text(&certificate.authority));
    bench.push_succeeds();
    bench.get_succeeds();
    site.tool("init")
        .arg("--check")
        .run()
        .expect_said("write, read, delete");
    println!("{} requests over TLS", secure.log().len());
    assert!(secure.log().len() > 5);
}
