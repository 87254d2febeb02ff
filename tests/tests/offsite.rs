//! The core's round trip where repositories are elsewhere: in buckets of S3 and of Azure, in clear and encrypted.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;

use system_tests::wait::PATIENCE;
use system_tests::{Emulator, Options, RepoOptions, S3, Scratch, Server, Site, Story, account, emulator, wait_until};

/// Archives, backs up under load, and restores to a noted moment and to the end.
fn round_trip(name: &str, server: &Server, repository: impl FnOnce(RepoOptions) -> RepoOptions) {
    let set_up = |site: Site| site.repository(repository(RepoOptions::new("offsite")));
    let story = Story::with(name, server, Options::default(), set_up);
    let cluster = &story.cluster;
    cluster.pgbench_init(2);

    story.step("a backup under load");
    let load = cluster.pgbench_background(2, 600);
    let started = cluster.current_lsn();
    wait_until("load writes WAL", PATIENCE, || {
        cluster.query_one(&format!("SELECT pg_current_wal_lsn() > '{started}'")) == "t"
    });
    story.backup();
    load.stop(cluster);

    story.step("a moment is noted, then more is written");
    cluster.sql("SELECT pg_create_restore_point('noted')");
    let noted = cluster.checksum("postgres");
    cluster.pgbench_run(2, 50);
    let end = cluster.checksum("postgres");
    story.archive_all();

    story.step("restored to the noted moment");
    let restored = story.restored("noted", &["--target-name", "noted", "--target-action", "promote"]);
    restored.start();
    restored.wait_promoted(PATIENCE);
    assert_eq!(restored.checksum("postgres"), noted);

    story.step("restored to the end");
    let restored = story.restored("end", &[]);
    restored.start();
    restored.wait_promoted(PATIENCE);
    assert_eq!(restored.checksum("postgres"), end);
    story.chain_over(&restored);
    story.site.tool("info").run().expect_code(0).expect_said("-full-");
    story
        .site
        .tool("init")
        .arg("--check")
        .run()
        .expect_said("write, read, delete");
}

fn through_s3(name: &str, shape: fn(RepoOptions) -> RepoOptions) {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("s3_server");
    let s3 = S3::start(&scratch.path("s3"), "backups");
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    round_trip(name, &server, |options| {
        shape(options).in_s3(&s3, "backups", &credentials)
    });
    let changed: Vec<String> = s3.log().into_iter().filter(|line| line.starts_with("DELETE")).collect();
    let passing = |line: &String| line.contains("probe") || line.contains("/lease/");
    assert!(
        changed.iter().all(passing),
        "only trials and leases are deleted: {changed:?}"
    );
}

#[test]
fn a_cluster_comes_back_from_an_s3_bucket() {
    through_s3("s3_clear", |options| options);
}

#[test]
fn a_cluster_comes_back_from_an_encrypted_s3_bucket() {
    through_s3("s3_sealed", RepoOptions::encrypted);
}

fn through_azure(name: &str, shape: fn(RepoOptions) -> RepoOptions) {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("azure_server");
    let Some(azurite) = Emulator::need_azurite(&scratch.path("")) else {
        return;
    };
    azurite.make_container("backups");
    let credentials = scratch.path("credentials");
    account::write(
        &credentials,
        format!("azure_storage_account_key = {}\n", emulator::AZURITE_KEY),
        0o600,
    );
    round_trip(name, &server, |options| {
        let endpoint = format!("{}/{}", azurite.endpoint(), emulator::AZURITE_ACCOUNT);
        shape(options)
            .at(
                &format!("az://{}/backups/pg", emulator::AZURITE_ACCOUNT),
                Path::new("/nowhere"),
            )
            .line(&format!("endpoint = \"{endpoint}\""))
            .line(&format!("credentials_file = \"{}\"", credentials.display()))
    });
}

#[test]
fn a_cluster_comes_back_from_an_azure_container() {
    through_azure("azure_clear", |options| options);
}

#[test]
fn a_cluster_comes_back_from_an_encrypted_azure_container() {
    through_azure("azure_sealed", RepoOptions::encrypted);
}
