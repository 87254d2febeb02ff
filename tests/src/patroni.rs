//! Patroni's REST API as far as the tools ask it, without Patroni: whether this server leads or follows, in clear or over
//! TLS with an authority that only this test knows.
//!
//! Knows the two paths and what Patroni answers on them. Promises an answer until the test ends. Leaves real
//! clusters, with their switchovers, to tests that run Patroni.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::{Scratch, Tool};

/// An answering API.
#[derive(Debug)]
pub struct Patroni {
    /// What `patroni` in the configuration says.
    pub url: String,
    /// The certificate of the authority that signed the API's, in PEM; none in clear.
    pub authority: Option<PathBuf>,
    leads: Arc<AtomicBool>,
    members: Arc<Mutex<String>>,
}

impl Patroni {
    /// The API of a member in clear, as Patroni has it by default.
    pub fn clear(leads: bool) -> Patroni {
        Patroni::answering("http", leads, None, None)
    }

    /// The API of a member behind TLS. Takes the program openssl.
    pub fn tls(scratch: &Scratch, leads: bool) -> Patroni {
        let directory = scratch.create_dir("patroni-tls");
        make_certificates(&directory);
        let certificate = CertificateDer::from_pem_file(directory.join("server.crt")).unwrap();
        let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let authority = directory.join("authority.crt");
        Patroni::answering("https", leads, Some(Arc::new(config)), Some(authority))
    }

    /// Makes the member a leader or a replica.
    pub fn set_leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::SeqCst);
    }

    /// Says what `/cluster` answers from now on; at first nothing.
    pub fn set_members(&self, document: &str) {
        document.clone_into(&mut self.members.lock().unwrap());
    }

    fn answering(scheme: &str, leads: bool, tls: Option<Arc<ServerConfig>>, authority: Option<PathBuf>) -> Patroni {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let leads = Arc::new(AtomicBool::new(leads));
        let shared = Arc::clone(&leads);
        let members = Arc::new(Mutex::new(String::new()));
        let listed = Arc::clone(&members);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let leads = shared.load(Ordering::SeqCst);
                let members = listed.lock().unwrap().clone();
                // A client that goes away (it does not trust us, say) is its own affair.
                let _ = match &tls {
                    None => answer(stream, leads, &members),
                    Some(config) => over_tls(stream, config, leads, &members),
                };
            }
        });
        Patroni {
            url,
            authority,
            leads,
            members,
        }
    }
}

fn over_tls(stream: TcpStream, config: &Arc<ServerConfig>, leads: bool, members: &str) -> std::io::Result<()> {
    let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
    answer(StreamOwned::new(connection, stream), leads, members)
}

/// One request, one answer: the members, 200 on the path of the role it has, else 503.
fn answer(mut stream: impl Read + Write, leads: bool, members: &str) -> std::io::Result<()> {
    let mut request = String::new();
    let mut lines = BufReader::new(&mut stream);
    lines.read_line(&mut request)?;
    let mut line = String::new();
    while lines.read_line(&mut line)? > 2 {
        line.clear();
    }
    let (path, role) = if leads {
        ("/primary", "primary")
    } else {
        ("/replica", "replica")
    };
    let state = format!("{{\"state\":\"running\",\"role\":\"{role}\"}}");
    let (code, body) = if request.starts_with("GET /cluster ") {
        (200, members)
    } else if request.starts_with(&format!("GET {path} ")) {
        (200, state.as_str())
    } else {
        (503, state.as_str())
    };
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    stream.flush()
}

/// An authority, and a certificate of it for 127.0.0.1, with Debian's openssl.
fn make_certificates(directory: &Path) {
    let make = |words: &str| {
        Tool::program("openssl")
            .args(words.split(' '))
            .cwd(directory)
            .run()
            .expect_code(0);
    };
    let key = "req -x509 -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    make(&format!(
        "{key} -subj /CN=authority -keyout authority.key -out authority.crt"
    ));
    make(&format!(
        "{key} -subj /CN=member -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE \
         -CA authority.crt -CAkey authority.key -keyout server.key -out server.crt"
    ));
}
