//! Object stores of others, as programs: moto for S3, Azurite for Azure Blob Storage.
//!
//! Knows where `tests/stand/install.sh emulators` puts them. Promises a running server that answers, ended with the value;
//! a test that cannot have it says so. moto does not look at signatures: [`crate::s3`] does.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;

use crate::stand;
use crate::tool::Tool;
use crate::wait::wait_until;

/// The account that every Azurite has.
pub const AZURITE_ACCOUNT: &str = "devstoreaccount1";
/// Its key, which is public (Azurite's documentation, "Default storage account").
pub const AZURITE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A header by which moto takes a request for that of its bucket's owner; it does not look at the signature.
pub const SOMEBODY: &str = "Authorization: AWS4-HMAC-SHA256 Credential=SOMEBODY/20261121/us-east-1/s3/aws4_request, \
                            SignedHeaders=host, Signature=0\r\n";

/// Long enough for an interpreter on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    /// Its port on the loopback address.
    pub port: u16,
}

impl Emulator {
    /// Starts moto, or says that the calling test is skipped. Its buckets are empty.
    pub fn need_moto(scratch: &Path) -> Option<Emulator> {
        let program = installed("moto-", "bin/python")?;
        Some(start(scratch, "moto", |port| {
            let mut command = Command::new(&program);
            // Its own script names the directory in which it was made.
            command.args(["-c", "import moto.server; moto.server.main()"]);
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command
        }))
    }

    /// Asks moto by boto3, Amazon's own client for Python, which comes with it; `script` finds it as `s3`. Says what the script prints.
    pub fn boto3(&self, script: &str) -> String {
        let program = installed("moto-", "bin/python").unwrap();
        let endpoint = self.endpoint();
        let client = format!(
            "import boto3, json\ns3 = boto3.client('s3', endpoint_url='{endpoint}', region_name='us-east-1', \
             aws_access_key_id='k', aws_secret_access_key='s')\n{script}"
        );
        // Its Python may be of another user's.
        let asked = Tool::program(program).args(["-c", &client]).as_root().run();
        asked.expect_code(0).stdout
    }

    /// Starts Azurite's blob service with the account `devstoreaccount1`, or says that the calling test is skipped.
    pub fn need_azurite(scratch: &Path) -> Option<Emulator> {
        let program = installed("azurite-", "node_modules/azurite/dist/src/blob/main.js")?;
        let node = stand::need_program("node")?;
        let data = scratch.join("azurite");
        fs::create_dir_all(&data).unwrap();
        Some(start(scratch, "azurite", |port| {
            let mut command = Command::new(&node);
            command.arg(&program).args(["--blobHost", "127.0.0.1", "--blobPort"]);
            command.arg(port.to_string()).arg("--location").arg(&data);
            command.args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"]);
            command
        }))
    }

    /// Makes a container in Azurite's account (Azure's documentation, "Authorize with Shared Key").
    pub fn make_container(&self, name: &str) {
        let account = AZURITE_ACCOUNT;
        let headers = "x-ms-date:Sat, 21 Nov 2026 00:00:00 GMT\nx-ms-version:2021-08-06";
        let to_sign = format!(
            "PUT{}{headers}\n/{account}/{account}/{name}\nrestype:container",
            "\n".repeat(12)
        );
        let key = BASE64.decode(AZURITE_KEY).unwrap();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
        let signature = BASE64.encode(ring::hmac::sign(&key, to_sign.as_bytes()));
        let headers = headers.replace('\n', "\r\n");
        let headers = format!("{headers}\r\nAuthorization: SharedKey {account}:{signature}\r\n");
        let (status, body) = self.request("PUT", &format!("/{account}/{name}?restype=container"), &headers, "");
        assert_eq!(status, 201, "{body}");
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The headers of the answer to HEAD, in lower case.
    pub fn head(&self, target: &str) -> String {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let head = format!(
            "HEAD {target} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n{SOMEBODY}\r\n",
            self.port
        );
        socket.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.split(' ').nth(1) == Some("200"), "HEAD {target}: {answer}");
        answer.to_lowercase()
    }

    /// Sends a request without a signature, for servers that need none, and returns status and body.
    pub fn request(&self, method: &str, target: &str, headers: &str, body: &str) -> (u16, String) {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}",
            self.port
        );
        socket.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        (status.unwrap_or_else(|| panic!("an odd answer: {answer:?}")), body)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn installed(prefix: &str, program: &str) -> Option<PathBuf> {
    let stand = stand::directory();
    let entries = fs::read_dir(&stand).into_iter().flatten().flatten();
    let found = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(program))
        .find(|path| path.is_file());
    if found.is_none() {
        stand::skipped(&format!(
            "{}* is not in {}: tests/stand/install.sh emulators fetches it",
            prefix,
            stand.display()
        ));
    }
    found
}

fn start(scratch: &Path, name: &str, command: impl Fn(u16) -> Command) -> Emulator {
    // Free a moment ago, which is the best that a program which takes no 0 allows.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|taken| taken.local_addr())
        .unwrap()
        .port();
    let log = scratch.join(format!("{name}.log"));
    let out = File::create(&log).unwrap();
    let child = command(port)
        .stdin(Stdio::null())
        .stderr(out.try_clone().unwrap())
        .stdout(out)
        .spawn()
        .unwrap_or_else(|error| panic!("start {name}: {error}"));
    let emulator = Emulator { child, port };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    wait_until(&format!("{name} answers (its log: {})", log.display()), START, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
    });
    emulator
}
