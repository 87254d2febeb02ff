//! Whoever is configured is told; whoever cannot be reached costs the job nothing.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use system_tests::s3::Certificate;
use system_tests::stand::skipped;
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Bare, Ran, Scratch, Sink, account};

/// Speaks SMTP; `recipient` is the answer to RCPT. Keeps envelopes and mails.
fn smtp(recipient: &'static str) -> Sink {
    Sink::start(move |mut stream| {
        stream.write_all(b"220 sink\r\n").ok()?;
        match converse(&mut stream, recipient, false)? {
            Said::All(kept) => Some(kept),
            Said::StartTls(_) => None,
        }
    })
}

/// The same with TLS, from the first byte on or when asked for.
fn smtp_over_tls(certificate: &Certificate, from_the_start: bool) -> Sink {
    let config = certificate.server();
    Sink::start(move |mut stream| {
        let mut before = String::new();
        if !from_the_start {
            stream.write_all(b"220 sink\r\n").ok()?;
            match converse(&mut stream, "250 yes", true)? {
                Said::StartTls(kept) => before = kept,
                Said::All(kept) => return Some(format!("IN CLEAR\n{kept}")),
            }
        }
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).ok()?;
        let mut stream = rustls::StreamOwned::new(connection, stream);
        if from_the_start {
            stream.write_all(b"220 sink\r\n").ok()?;
        }
        match converse(&mut stream, "250 yes", false)? {
            Said::All(kept) => Some(format!("{before}TLS\n{kept}")),
            Said::StartTls(_) => None,
        }
    })
}

/// How a conversation ended.
enum Said {
    All(String),
    StartTls(String),
}

/// The server's part of SMTP, after its greeting. Reads byte by byte, so that nothing of what follows STARTTLS is lost.
fn converse(stream: &mut (impl Read + Write), recipient: &str, offers_tls: bool) -> Option<Said> {
    let mut kept = String::new();
    loop {
        let Some(line) = line_of(stream) else {
            return Some(Said::All(kept));
        };
        let word = line
            .split([' ', ':', '\r'])
            .next()
            .unwrap_or_default()
            .to_ascii_uppercase();
        let answer = match word.as_str() {
            "EHLO" if offers_tls => "250-sink\r\n250 STARTTLS",
            "EHLO" => "250 sink",
            "RCPT" => recipient,
            "DATA" => "354 go on",
            "QUIT" => "221 bye",
            "STARTTLS" => "220 go on",
            _ => "250 yes",
        };
        kept += &line;
        stream.write_all(format!("{answer}\r\n").as_bytes()).ok()?;
        if word == "DATA" {
            loop {
                let line = line_of(stream)?;
                if line == ".\r\n" {
                    break;
                }
                kept += &line;
            }
            stream.write_all(b"250 taken\r\n").ok()?;
        }
        match word.as_str() {
            "QUIT" => return Some(Said::All(kept)),
            "STARTTLS" => return Some(Said::StartTls(kept)),
            _ => {}
        }
    }
}

/// The next line; nothing at the end.
fn line_of(stream: &mut impl Read) -> Option<String> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => line.extend(byte),
            _ => return None,
        }
    }
    String::from_utf8(line).ok()
}

/// A host with somebody to tell, and a job that failed.
fn host(name: &str, notify: &str) -> Bare {
    let bare = Bare::new(name);
    bare.tool("init").run().expect_code(0);
    bare.configure(&format!("{}\n{notify}", bare.text));
    bare
}

fn tell(bare: &Bare) -> Ran {
    bare.tool("notify").args(["--job", "base-backup"]).run()
}

/// A backup that fails, for there is no server.
fn fail(bare: &Bare) {
    let ran = bare.tool("base-backup").run();
    assert_ne!(ran.code, Some(0), "{}", ran.report());
}

/// The same run as if it had been good.
fn mend(bare: &Bare) {
    let path = bare.scratch.path("state/main/status/base-backup.json");
    let mut status: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    status["result"] = "ok".into();
    status["last_success"] = status["finished"].clone();
    status["fields"] = serde_json::json!({"label": "20261120T020000Z-full-3f9a1c"});
    account::write(&path, status.to_string(), 0o644);
}

#[test]
fn slack_a_webhook_and_mail_are_told_of_a_failure_once_and_of_its_end() {
    let (slack, hook, mail, heart) = (
        Sink::http("200 OK"),
        Sink::http("204 No Content"),
        smtp("250 yes"),
        Sink::http("200 OK"),
    );
    let bare = host(
        "notify_all",
        &format!(
            "[notify.slack]\nkind = \"slack\"\nurl_file = \"URL_FILE\"\n\n[notify.hook]\nkind = \"webhook\"\nurl = \"{}\"\n\
             template = '{{\"summary\": \"{{{{title}}}}\", \"details\": \"{{{{text}}}}\"}}'\n\n[notify.mail]\nkind = \"smtp\"\n\
             server = \"127.0.0.1:{}\"\ntls = \"none\"\nfrom = \"pgkeep@db1.example.com\"\nto = [\"dba@example.com\", \"Night <night@example.com>\"]\n\n\
             [notify.heart]\nkind = \"heartbeat\"\nurl = \"{}\"\njobs = [\"base-backup\"]\n",
            hook.url(),
            mail.port,
            heart.url()
        ),
    );
    let secret = bare.scratch.path("slack.url");
    account::write(&secret, format!("{}\n", slack.url()), 0o600);
    let text = std::fs::read_to_string(&bare.config)
        .unwrap()
        .replace("URL_FILE", &secret.to_string_lossy());
    bare.configure(&text);

    fail(&bare);
    let ran = bare
        .tool("notify")
        .args(["--job", "base-backup", "--dry-run"])
        .run()
        .expect_code(0);
    assert_eq!(
        ran.stdout.matches("base-backup of main failed on").count(),
        3,
        "{}",
        ran.report()
    );
    assert!(slack.taken().is_empty());
    tell(&bare).expect_code(0);
    tell(&bare).expect_code(0).expect_quiet();
    fail(&bare);
    tell(&bare).expect_code(0);
    mail.expect(1);
    let told = slack.taken();
    assert_eq!(told.len(), 1, "{told:?}");
    let (first, body) = told[0].split_once('\n').unwrap();
    assert_eq!(first, "POST /secret-path HTTP/1.1");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let said = body["text"].as_str().unwrap();
    for words in [
        "base-backup of main failed on",
        "cannot connect to server",
        "last success: never",
        "what to do: ",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let told = hook.taken();
    let body: serde_json::Value = serde_json::from_str(told[0].split_once('\n').unwrap().1).unwrap();
    assert!(
        body["summary"]
            .as_str()
            .unwrap()
            .starts_with("base-backup of main failed on")
    );
    assert!(body["details"].as_str().unwrap().contains("cannot connect"));
    let told = mail.taken();
    assert_eq!(told.len(), 1, "{told:?}");
    for words in [
        "RCPT TO:<dba@example.com>",
        "RCPT TO:<night@example.com>",
        "Subject: [pgkeep] base-backup of main failed on",
        "cannot connect",
    ] {
        assert!(told[0].contains(words), "{words}: {}", told[0]);
    }
    assert!(heart.taken().is_empty());

    mend(&bare);
    tell(&bare).expect_code(0);
    tell(&bare).expect_code(0);
    let told = slack.taken();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[1].contains("base-backup of main works again on") && told[1].contains("20261120T020000Z-full-3f9a1c"));
    mail.expect(2);
    assert_eq!(hook.taken().len(), 2);
    assert_eq!(
        heart.taken(),
        ["GET /secret-path HTTP/1.1\n", "GET /secret-path HTTP/1.1\n"]
    );
}

#[test]
fn whoever_is_down_refuses_or_hangs_keeps_nobody_from_being_told_and_fails_nothing() {
    let good = Sink::http("200 OK");
    let refusing = Sink::http("500 Internal Server Error");
    let unwilling = smtp("550 nobody of that name");
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let down = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let webhook = |name: &str, url: &str| format!("[notify.{name}]\nkind = \"webhook\"\nurl = \"{url}\"\n\n");
    let bare = host(
        "notify_bad",
        &[
            webhook("refusing", &refusing.url()),
            webhook("down", &format!("http://127.0.0.1:{down}/secret-path")),
            webhook("hanging", &format!("http://{}/secret-path", hanging.local_addr().unwrap())),
            format!("[notify.mail]\nkind = \"smtp\"\nserver = \"127.0.0.1:{}\"\ntls = \"none\"\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]\n\n", unwilling.port),
            format!("[notify.lost]\nkind = \"slack\"\nurl_file = \"{}\"\n\n", bare_path()),
            "[notify.program]\nkind = \"sendmail\"\nprogram = \"/nowhere/sendmail\"\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]\n\n".to_owned(),
            webhook("good", &good.url()),
        ]
        .concat(),
    );
    fail(&bare);
    let begun = Instant::now();
    let ran = tell(&bare).expect_code(0);
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    for words in [
        "\"refusing\" cannot be told: the message was refused: 500 Internal Server Error",
        "\"down\" cannot be told: nobody answered",
        "\"hanging\" cannot be told: nobody answered",
        "\"mail\" cannot be told: send mail through 127.0.0.1:",
        "\"lost\" cannot be told: open url_file",
        "\"program\" cannot be told: send mail through /nowhere/sendmail",
    ] {
        ran.clone().expect_said(words);
    }
    assert!(!ran.stderr.contains("secret-path"), "{}", ran.report());
    assert_eq!(good.taken().len(), 1);
    // Who was not reached is told with the next run, who was is not.
    assert_eq!(refusing.taken().len(), 1);
    fail(&bare);
    tell(&bare).expect_code(0);
    assert_eq!((refusing.taken().len(), good.taken().len()), (2, 1));
    let ran = bare.tool("notify").arg("--test").run().expect_code(1);
    ran.expect_said("6 of 7 were not reached");
}

/// A file that is not there.
fn bare_path() -> &'static str {
    "/nowhere/slack.url"
}

#[test]
fn mail_goes_through_the_hosts_own_program() {
    let bare = host("notify_sendmail", "");
    let taken = bare.scratch.path("taken");
    let program = bare.scratch.path("sendmail");
    account::write(
        &program,
        format!("#!/bin/sh\n{{ echo \"$@\"; cat; }} >>{}\n", taken.display()),
        0o755,
    );
    let table = format!(
        "[notify.mail]\nkind = \"sendmail\"\nprogram = \"{}\"\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]\non = [\"failure\", \"digest\"]\n",
        program.display()
    );
    bare.configure(&format!("{}\n{table}", bare.text));
    fail(&bare);
    tell(&bare).expect_code(0);
    bare.tool("notify").arg("--digest").run().expect_code(0);
    let text = std::fs::read_to_string(&taken).unwrap();
    assert!(
        text.contains("b@example.com") && text.contains("base-backup of main failed on"),
        "{text}"
    );
    assert!(
        text.contains("1 cluster, 1 not well") && text.contains("base-backup FAILED"),
        "{text}"
    );
}

#[test]
fn mistakes_are_named() {
    let bare = host("notify_mistakes", "");
    bare.tool("notify").run().expect_code(2);
    // Nobody is configured: there is nobody to fail for.
    fail(&bare);
    tell(&bare).expect_code(0).expect_quiet();
    bare.tool("notify")
        .arg("--test")
        .run()
        .expect_code(2)
        .expect_said("nobody is configured");
    for (table, words) in [
        ("kind = \"pigeon\"", "no kind \"pigeon\" is known"),
        (
            "kind = \"slack\"",
            "\"url_file\" (or \"url\") is missing, which slack needs",
        ),
        ("kind = \"smtp\"\nserver = \"mail\"", "\"mail\" is no host:port"),
        (
            "kind = \"smtp\"\nserver = \"mail:25\"\nfrom = \"me\"",
            "\"me\" is no mail address",
        ),
        (
            "kind = \"slack\"\nurl = \"http://x/\"\non = [\"gossip\"]",
            "\"gossip\" is nothing to be told of",
        ),
        ("url = \"http://x/\"", "\"kind\" is missing"),
    ] {
        bare.configure(&format!("{}\n[notify.ops]\n{table}\n", bare.text));
        tell(&bare).expect_code(2).expect_said(words);
    }
}

#[test]
fn mail_goes_over_tls_and_not_to_a_server_that_nobody_vouches_for() {
    let scratch = Scratch::new("notify_tls");
    let certificate = Certificate::make(&scratch.path("certificates"));
    for (tls, from_the_start) in [("always", true), ("starttls", false)] {
        let sink = smtp_over_tls(&certificate, from_the_start);
        let settings = format!(
            "[notify.mail]\nkind = \"smtp\"\nserver = \"127.0.0.1:{}\"\ntls = \"{tls}\"\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]\n",
            sink.port
        );
        let bare = host(&format!("notify_{tls}"), &settings);
        fail(&bare);
        let stranger = tell(&bare).expect_code(0);
        assert!(
            stranger.stderr.contains("\"mail\" cannot be told"),
            "{}",
            stranger.report()
        );
        assert!(
            sink.taken().iter().all(|text| !text.contains("b@example.com")),
            "{:?}",
            sink.taken()
        );
        let known = bare
            .tool("notify")
            .args(["--job", "base-backup"])
            .env("SSL_CERT_FILE", &certificate.authority);
        let told = known.run().expect_code(0);
        assert!(!told.stderr.contains("cannot be told"), "{}", told.report());
        let mailed = || {
            sink.taken()
                .into_iter()
                .find(|text| text.contains("RCPT TO:<b@example.com>"))
        };
        wait_until("the mail is there", PATIENCE, || mailed().is_some());
        let text = mailed().unwrap_or_default();
        let (before, after) = text.split_once("TLS\n").unwrap_or_default();
        assert!(!before.contains("MAIL FROM") && after.contains("MAIL FROM"), "{text}");
    }
    // A server that offers none gets nothing.
    let clear = smtp("250 yes");
    let bare = host(
        "notify_clear",
        &format!(
            "[notify.mail]\nkind = \"smtp\"\nserver = \"127.0.0.1:{}\"\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]\n",
            clear.port
        ),
    );
    fail(&bare);
    tell(&bare).expect_code(0).expect_said("\"mail\" cannot be told");
    assert!(
        clear.taken().iter().all(|text| !text.contains("MAIL FROM")),
        "{:?}",
        clear.taken()
    );
}

#[test]
fn root_tries_out_what_the_units_can_do_and_no_more() {
    if !account::is_root() {
        skipped("only root can run as somebody else");
        return;
    }
    let sink = Sink::http("200 OK");
    let bare = host("notify_root", "");
    let secret = bare.scratch.path("hook.url");
    let table = format!(
        "[notify.hook]\nkind = \"webhook\"\nurl_file = \"{}\"\non = [\"digest\"]\n",
        secret.display()
    );
    bare.configure(&format!("{}\n{table}", bare.text));
    std::fs::write(&secret, sink.url()).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let as_root = |flag: &str| bare.tool("notify").arg(flag).as_root().run();
    as_root("--test")
        .expect_code(1)
        .expect_said("\"hook\" cannot be told: open url_file");
    as_root("--digest")
        .expect_code(0)
        .expect_said("\"hook\" cannot be told");
    assert!(sink.taken().is_empty(), "{:?}", sink.taken());
    account::write(&secret, sink.url(), 0o600);
    as_root("--test").expect_code(0);
    as_root("--digest").expect_code(0);
    assert_eq!(sink.taken().len(), 2);
}

#[test]
fn a_digest_that_nobody_hears_says_so() {
    let bare = host("notify_unheard", "");
    let digest = || bare.tool("notify").arg("--digest").run().expect_code(0);
    digest().expect_said("the digest is told to nobody: no table [notify.NAME]");
    let sink = Sink::http("200 OK");
    let table = format!("[notify.hook]\nkind = \"webhook\"\nurl = \"{}\"\n", sink.url());
    bare.configure(&format!("{}\n{table}on = [\"failure\"]\n", bare.text));
    digest().expect_said("the digest is told to nobody");
    assert!(sink.taken().is_empty());
    bare.configure(&format!("{}\n{table}on = [\"digest\"]\n", bare.text));
    let told = digest();
    assert!(!told.stderr.contains("told to nobody"), "{}", told.report());
    assert_eq!(sink.taken().len(), 1);
}
