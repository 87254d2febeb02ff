//! A certificate for the loopback address, and the authority that signed it, made by the openssl program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::account;

/// What a server shows, and what a client has to believe.
#[derive(Debug)]
pub struct Certificate {
    /// The authority's certificate.
    pub authority: PathBuf,
    shown: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// Makes both in a directory.
    pub fn make(directory: &Path) -> Certificate {
        account::create_dir(directory, 0o755);
        let at = |name: &str| directory.join(name).display().to_string();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        fs::write(at("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        let (authority, authority_key) = (at("ca.pem"), at("ca.key"));
        openssl(
            &["req", "-x509", "-days", "3650", "-subj", "/CN=an authority of the test"],
            &key,
            &["-keyout", &authority_key, "-out", &authority],
        );
        let (request, shown, shown_key) = (at("server.csr"), at("server.pem"), at("server.key"));
        openssl(
            &["req", "-subj", "/CN=127.0.0.1"],
            &key,
            &["-keyout", &shown_key, "-out", &request],
        );
        openssl(
            &["x509", "-req", "-days", "3650", "-in", &request, "-out", &shown],
            &["-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial"],
            &["-extfile", &at("names")],
        );
        account::write(Path::new(&authority), fs::read(&authority).unwrap(), 0o644);
        Certificate {
            authority: authority.into(),
            shown: shown.into(),
            key: shown_key.into(),
        }
    }

    pub(super) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        self.server().into()
    }

    /// What a server shows.
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        let shown = CertificateDer::from_pem_slice(&fs::read(&self.shown).unwrap()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&fs::read(&self.key).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![shown], key)
            .unwrap();
        Arc::new(config)
    }
}

fn openssl(first: &[&str], then: &[&str], last: &[&str]) {
    let output = Command::new("openssl").args(first).args(then).args(last).output();
    let output = output.unwrap_or_else(|error| panic!("openssl: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {first:?}: {said}");
}
