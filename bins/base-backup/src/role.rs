//! Which role this server has, as Patroni knows it.
//!
//! An API that does not answer, or not clearly, is an error: "skip" is said only of a server that surely is no leader.

use std::path::Path;
use std::time::Duration;

use common::error::{Error, Kind, Result};
use reqwest::Certificate;
use reqwest::blocking::{Client, Response};

/// Patroni answers from memory; one that takes longer is not well.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It accepts writes.
    Primary,
    /// It follows another.
    Standby,
}

impl Role {
    /// The word in `backup.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// Asks Patroni's REST API at `url`, whose certificate is checked against the authorities in the file `authority`, or
/// those that the system trusts.
///
/// # Errors
/// `Transient` if it cannot be reached or says neither; `Config` if the URL is none, or the file cannot be used.
pub fn ask_patroni(url: &str, authority: Option<&Path>) -> Result<Role> {
    let client = client(url, authority)?;
    let base = url.trim_end_matches('/');
    let primary = get(&client, &format!("{base}/primary"))?;
    if primary.status().is_success() {
        return Ok(Role::Primary);
    }
    let replica = get(&client, &format!("{base}/replica"))?;
    if replica.status().is_success() {
        return Ok(Role::Standby);
    }
    // A replica that is kept out of load balancing answers 503 and says in the body what it is.
    let code = replica.status();
    match stated_role(&replica.text().unwrap_or_default()) {
        Some(role) => Ok(role),
        None => Err(Error::new(
            Kind::Transient,
            format!(
                "Patroni at {base} says neither that this server leads nor that it is a replica (it answers {code})"
            ),
        )
        .hint("patronictl list shows the cluster's state")),
    }
}

fn client(url: &str, authority: Option<&Path>) -> Result<Client> {
    // An error says that it has been installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder().timeout(PATIENCE);
    let builder = match authority {
        Some(path) => builder.tls_certs_only(certificates(path)?),
        // Without TLS nobody's certificate is looked at, so a host that has none of the system's can ask all the same.
        None if url.starts_with("http://") => builder.tls_certs_only([]),
        None => builder,
    };
    builder.build().map_err(|error| {
        let error = Error::new(Kind::Config, "prepare to ask Patroni").because(error);
        error.hint(
            "install the system's certificates (ca-certificates), or name those of Patroni's authority with patroni_ca",
        )
    })
}

fn certificates(path: &Path) -> Result<Vec<Certificate>> {
    let what = || format!("read patroni_ca {}", path.display());
    let hint = "it holds the certificate of the authority that signed Patroni's, in PEM";
    let bytes = std::fs::read(path).map_err(|error| Error::io(error, what()).with_kind(Kind::Config).hint(hint))?;
    match Certificate::from_pem_bundle(&bytes) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error::new(Kind::Config, format!("{}: it holds no certificate", what())).hint(hint)),
        Err(error) => Err(Error::new(Kind::Config, what()).because(error).hint(hint)),
    }
}

fn get(client: &Client, address: &str) -> Result<Response> {
    client.get(address).send().map_err(|error| {
        let kind = if error.is_builder() {
            Kind::Config
        } else {
            Kind::Transient
        };
        Error::new(kind, format!("cannot ask Patroni for this server's role at {address}"))
            .because(error)
            .hint(match address.starts_with("https://") {
                true => "is Patroni running, is `patroni` in the configuration its restapi address, and did an authority that \
                         this host trusts, or that `patroni_ca` names, sign its certificate?",
                false => "is Patroni running, and is `patroni` in the configuration its restapi address?",
            })
    })
}

/// A running replica by its own words; nothing in a body makes a leader.
fn stated_role(body: &str) -> Option<Role> {
    #[derive(serde::Deserialize)]
    struct State {
        state: String,
        role: String,
    }
    let stated: State = serde_json::from_str(body).ok()?;
    let running = ["running", "streaming", "in archive recovery"].contains(&stated.state.as_str());
    (running && ["replica", "standby_leader"].contains(&stated.role.as_str())).then_some(Role::Standby)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    /// A server that answers `/primary` and `/replica` with these codes and bodies.
    fn patroni(primary: (u16, &'static str), replica: (u16, &'static str)) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let (code, body) = if first.starts_with("GET /primary ") {
                    primary
                } else {
                    replica
                };
                let length = body.len();
                let head = format!("HTTP/1.1 {code} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        url
    }

    #[test]
    fn the_leader_is_primary_and_a_replica_is_standby() {
        assert_eq!(
            ask_patroni(&patroni((200, ""), (503, "")), None).unwrap(),
            Role::Primary
        );
        assert_eq!(
            ask_patroni(&format!("{}/", patroni((503, ""), (200, ""))), None).unwrap(),
            Role::Standby
        );
    }

    #[test]
    fn a_replica_kept_out_of_load_balancing_is_still_a_standby() {
        let body = r#"{"state":"running","role":"replica","timeline":1}"#;
        assert_eq!(
            ask_patroni(&patroni((503, body), (503, body)), None).unwrap(),
            Role::Standby
        );
    }

    #[test]
    fn neither_or_nobody_is_an_error_never_a_role() {
        for body in [
            "",
            "{}",
            r#"{"state":"starting","role":"replica"}"#,
            r#"{"state":"running","role":"primary"}"#,
        ] {
            assert_eq!(
                ask_patroni(&patroni((503, body), (503, body)), None)
                    .unwrap_err()
                    .kind(),
                Kind::Transient
            );
        }
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(
            ask_patroni(&format!("http://{closed}"), None).unwrap_err().kind(),
            Kind::Transient
        );
    }
}
