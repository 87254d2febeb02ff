//! What Patroni's REST API says: this server's role, and the cluster's members.
//!
//! An API that does not answer, or not clearly, is an error: "skip" is said only of a server that surely is no leader.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use reqwest::Certificate;
use reqwest::blocking::{Client, Response};
use serde::Deserialize;

use crate::leadership::Role;

/// Patroni answers from memory; one that takes longer is not well.
const PATIENCE: Duration = Duration::from_secs(5);
/// The states of a server that accepts connections, as Patroni 2 to 4 word them.
const RUNNING: [&str; 3] = ["running", "streaming", "in archive recovery"];

/// A member's API.
pub struct Patroni {
    client: Client,
    base: String,
}

/// One member of the cluster, as `GET /cluster` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    role: String,
    state: String,
    host: Option<String>,
    port: Option<u16>,
}

impl Patroni {
    /// The API at `url`, whose certificate is checked against the authorities in the file `authority`, or those that the
    /// system trusts. Nothing is asked yet.
    ///
    /// # Errors
    /// `Config` if the file cannot be used.
    pub fn at(url: &str, authority: Option<&Path>) -> Result<Patroni> {
        Ok(Patroni {
            client: client(url, authority)?,
            base: url.trim_end_matches('/').to_owned(),
        })
    }

    /// This server's role.
    ///
    /// # Errors
    /// `Transient` if the API cannot be reached or says neither; `Config` if the URL is none.
    pub fn role(&self) -> Result<Role> {
        let base = &self.base;
        let primary = self.get("/primary")?;
        if primary.status().is_success() {
            return Ok(Role::Primary);
        }
        let replica = self.get("/replica")?;
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

    /// The cluster's members.
    ///
    /// # Errors
    /// `Transient` if the API cannot be reached or answers something else; `Config` if the URL is none.
    pub fn members(&self) -> Result<Vec<Member>> {
        #[derive(Deserialize)]
        struct Listed {
            members: Vec<Member>,
        }
        let response = self.get("/cluster")?;
        let code = response.status();
        let unclear = || {
            let base = &self.base;
            Error::new(
                Kind::Transient,
                format!("Patroni at {base} does not list the cluster's members (it answers {code})"),
            )
            .hint("patronictl list shows the cluster's state")
        };
        let body = response.text().map_err(|error| unclear().because(error))?;
        let listed: Listed = serde_json::from_str(&body).map_err(|error| unclear().because(error))?;
        Ok(listed.members)
    }

    fn get(&self, path: &str) -> Result<Response> {
        let address = format!("{}{path}", self.base);
        self.client.get(&address).send().map_err(|error| {
            let kind = if error.is_builder() {
                Kind::Config
            } else {
                Kind::Transient
            };
            Error::new(kind, format!("cannot ask Patroni at {address}"))
                .because(error)
                .hint(match address.starts_with("https://") {
                    true => "is Patroni running, is `patroni` in the configuration its restapi address, and did an authority \
                             that this host trusts, or that `patroni_ca` names, sign its certificate?",
                    false => "is Patroni running, and is `patroni` in the configuration its restapi address?",
                })
        })
    }
}

/// Where the primary listens, if one leads. A standby cluster's leader is none.
pub fn leader(members: &[Member]) -> Option<(&str, Option<u16>)> {
    let leads = |member: &&Member| ["leader", "master", "primary"].contains(&member.role.as_str()) && member.runs();
    let member = members.iter().find(leads)?;
    Some((member.host.as_deref()?, member.port))
}

/// Whether a standby runs that a backup can be taken on.
pub fn has_standby(members: &[Member]) -> bool {
    let follows = |member: &Member| ["replica", "sync_standby", "quorum_standby"].contains(&member.role.as_str());
    members.iter().any(|member| follows(member) && member.runs())
}

impl Member {
    fn runs(&self) -> bool {
        RUNNING.contains(&self.state.as_str())
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

/// A running replica by its own words; nothing in a body makes a leader.
fn stated_role(body: &str) -> Option<Role> {
    #[derive(Deserialize)]
    struct State {
        state: String,
        role: String,
    }
    let stated: State = serde_json::from_str(body).ok()?;
    let running = RUNNING.contains(&stated.state.as_str());
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

    fn asked(url: &str) -> Result<Role> {
        Patroni::at(url, None)?.role()
    }

    #[test]
    fn the_leader_is_primary_and_a_replica_is_standby() {
        assert_eq!(asked(&patroni((200, ""), (503, ""))).unwrap(), Role::Primary);
        assert_eq!(
            asked(&format!("{}/", patroni((503, ""), (200, "")))).unwrap(),
            Role::Standby
        );
    }

    #[test]
    fn a_replica_kept_out_of_load_balancing_is_still_a_standby() {
        let body = r#"{"state":"running","role":"replica","timeline":1}"#;
        assert_eq!(asked(&patroni((503, body), (503, body))).unwrap(), Role::Standby);
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
                asked(&patroni((503, body), (503, body))).unwrap_err().kind(),
                Kind::Transient
            );
        }
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(asked(&format!("http://{closed}")).unwrap_err().kind(), Kind::Transient);
    }

    /// As Patroni 3 lists them (`/cluster`), with fields that are not looked at.
    fn members(leader: &str, replica: &str) -> Vec<Member> {
        let listed = format!(
            r#"[{{"name":"a","role":"{leader}","state":"running","api_url":"http://x","host":"10.0.0.1","port":5433,"timeline":2}},
                {{"name":"b","role":"replica","state":"{replica}","host":"10.0.0.2","port":5432,"lag":0}}]"#
        );
        serde_json::from_str(&listed).unwrap()
    }

    #[test]
    fn the_primary_is_the_leader_that_runs_and_never_that_of_a_standby_cluster() {
        assert_eq!(leader(&members("leader", "streaming")), Some(("10.0.0.1", Some(5433))));
        assert_eq!(leader(&members("standby_leader", "streaming")), None);
        assert_eq!(leader(&members("replica", "streaming")), None);
        assert_eq!(leader(&[]), None);
    }

    #[test]
    fn a_standby_counts_while_it_runs() {
        for (state, there) in [
            ("streaming", true),
            ("running", true),
            ("stopped", false),
            ("start failed", false),
        ] {
            assert_eq!(has_standby(&members("leader", state)), there, "{state}");
        }
    }

    #[test]
    fn an_answer_without_members_is_an_error_never_an_empty_cluster() {
        for body in ["", "{}", r#"{"members":3}"#] {
            let url = patroni((503, body), (503, body));
            let error = Patroni::at(&url, None).unwrap().members().unwrap_err();
            assert_eq!(error.kind(), Kind::Transient, "{body}");
        }
    }
}
