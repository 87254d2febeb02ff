//! The role that Patroni tells decides whether a backup is made, in clear and over TLS; an API that cannot be trusted
//! decides nothing.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use system_tests::patroni::Patroni;
use system_tests::stand::need_program;
use system_tests::{Options, RepoOptions, Scratch, Server, Story, Tool};

/// A cluster whose role is asked at this API.
fn story(name: &str, server: &Server, patroni: &Patroni) -> Story {
    Story::with(name, server, Options::default(), |site| {
        site.repository(RepoOptions::new("local"))
            .cluster_line(&format!("patroni = \"{}\"", patroni.url))
    })
}

/// The leader's backup is made, a replica's is not, although the server itself is a primary both times.
fn check(story: &Story, patroni: &Patroni, tool: &dyn Fn() -> Tool) {
    story.step("a replica skips");
    patroni.set_leads(false);
    let skipped = tool().run().expect_code(0);
    skipped
        .expect_said("this server is a standby")
        .expect_said("(says Patroni)");
    assert_eq!(story.committed(), Vec::<String>::new());
    assert_eq!(story.site.status("base-backup")["result"], "skipped");
    story.step("the leader backs up");
    patroni.set_leads(true);
    tool().run().expect_code(0);
    assert_eq!(story.committed().len(), 1);
}

#[test]
fn the_role_is_asked_in_clear() {
    let Some(server) = Server::need(15) else { return };
    let patroni = Patroni::clear(false);
    let story = story("patroni_clear", &server, &patroni);
    check(&story, &patroni, &|| {
        story.tool("base-backup").args(["--only-on", "primary"])
    });
}

#[test]
fn the_role_is_asked_over_tls_of_an_authority_that_the_host_trusts_and_of_no_other() {
    let Some(server) = Server::need(15) else { return };
    if need_program("openssl").is_none() {
        return;
    }
    let scratch = Scratch::new("patroni_authority");
    let patroni = Patroni::tls(&scratch, true);
    let story = story("patroni_tls", &server, &patroni);
    let tool = || story.tool("base-backup").args(["--only-on", "primary"]);

    story.step("an authority that nobody here knows");
    let ran = tool()
        .run()
        .expect_code(75)
        .expect_said(&patroni.url)
        .expect_said("UnknownIssuer");
    assert!(!ran.stderr.contains("panicked"), "{}", ran.report());
    assert_eq!(story.committed(), Vec::<String>::new());

    story.step("trusted, it is believed");
    let authority = patroni.authority.clone().unwrap();
    check(&story, &patroni, &|| tool().env("SSL_CERT_FILE", &authority));

    story.step("another authority of the same name is not");
    let elsewhere = Scratch::new("patroni_other");
    let other = Patroni::tls(&elsewhere, true);
    let ran = tool().env("SSL_CERT_FILE", other.authority.unwrap()).run();
    ran.expect_code(75).expect_said("certificate");
    assert_eq!(story.committed().len(), 1);
}
