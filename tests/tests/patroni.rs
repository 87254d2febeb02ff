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
fn one_member_makes_the_dump() {
    let Some(server) = Server::need(15) else { return };
    let patroni = Patroni::clear(false);
    let story = story("patroni_dump", &server, &patroni);
    let dump = |place: &str| {
        story
            .tool("dump")
            .args(["--database", "postgres", "--only-on", place])
            .run()
    };
    let dumps = || story.site.repo().matching("dump.json").len();
    story.step("the server itself is a primary, and Patroni's word comes first");
    dump("primary").expect_code(0).expect_said("(says Patroni)");
    assert_eq!(
        (dumps(), story.site.status("dump")["result"].as_str()),
        (0, Some("skipped"))
    );
    patroni.set_leads(true);
    dump("primary").expect_code(0);
    assert_eq!(dumps(), 1);

    story.step("without Patroni the server is asked; one that does not answer is no role");
    let config = std::fs::read_to_string(&story.site.config).unwrap();
    let without: Vec<&str> = config.lines().filter(|line| !line.starts_with("patroni")).collect();
    let alone = story.scratch.write("alone.toml", without.join("\n"), 0o600);
    let tool = |config: &std::path::Path| Tool::new("dump").arg("--config").arg(config);
    let arguments = ["--database", "postgres", "--only-on", "standby"];
    let ran = tool(&alone).args(arguments).run().expect_code(0);
    assert!(
        ran.stdout.contains("this server is the primary") && !ran.stdout.contains("Patroni"),
        "{}",
        ran.report()
    );
    let closed = config.replace(&patroni.url, "http://127.0.0.1:1");
    let closed = story.scratch.write("closed.toml", closed, 0o600);
    tool(&closed)
        .args(arguments)
        .run()
        .expect_code(75)
        .expect_said("cannot ask Patroni");
    assert_eq!(dumps(), 1);
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

    story.step("named in the configuration, it is believed where the system trusts nobody");
    let path = authority.to_str().unwrap();
    let config = std::fs::read_to_string(&story.site.config).unwrap();
    let with = config.replace(
        "[cluster.main]\n",
        &format!("[cluster.main]\npatroni_ca = \"{path}\"\n"),
    );
    assert_ne!(config, with);
    let config = story.scratch.write("with-authority.toml", with, 0o600);
    patroni.set_leads(false);
    let alone = Tool::new("base-backup").arg("--config").arg(&config);
    alone
        .env("SSL_CERT_FILE", "/nonexistent")
        .env("SSL_CERT_DIR", "/nonexistent")
        .args(["--only-on", "primary"])
        .run()
        .expect_code(0)
        .expect_said("(says Patroni)");
    patroni.set_leads(true);

    story.step("another authority of the same name is not");
    let elsewhere = Scratch::new("patroni_other");
    let other = Patroni::tls(&elsewhere, true);
    let ran = tool().env("SSL_CERT_FILE", other.authority.unwrap()).run();
    ran.expect_code(75).expect_said("certificate");
    assert_eq!(story.committed().len(), 1);
}
