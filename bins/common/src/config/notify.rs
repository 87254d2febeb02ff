//! `[notify.NAME]`: who is told what.

use std::path::PathBuf;
use std::time::Duration;

use super::cluster::http_url;
use super::reader::Table;
use crate::error::{Error, Kind, Result};
use crate::units::parse_duration;

/// What somebody may want to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// A job failed.
    Failure,
    /// A job succeeds again.
    Recovery,
    /// A job succeeded.
    Success,
    /// How all clusters are.
    Digest,
}

impl std::str::FromStr for Topic {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "failure" => Self::Failure,
            "recovery" => Self::Recovery,
            "success" => Self::Success,
            "digest" => Self::Digest,
            other => {
                let message =
                    format!("\"{other}\" is nothing to be told of, only failure, recovery, success and digest");
                return Err(Error::new(Kind::Config, message));
            }
        })
    }
}

/// A secret: in the configuration (from the environment), or in a file that nobody else can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// Here.
    Here(String),
    /// In this file.
    File(PathBuf),
}

/// How somebody is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// A Slack incoming webhook.
    Slack(Secret),
    /// Any URL that takes JSON; the template's `{{name}}` are filled in.
    Webhook {
        /// Where to.
        url: Secret,
        /// The body; nothing: all fields.
        template: Option<String>,
    },
    /// Mail over SMTP.
    Smtp {
        /// `host:port`.
        server: String,
        /// How the connection is encrypted.
        tls: SmtpTls,
        /// Name and password, where the server wants them.
        login: Option<(String, Secret)>,
        /// Who writes.
        from: String,
        /// To whom.
        to: Vec<String>,
    },
    /// Mail through the host's own mail system.
    Sendmail {
        /// The program.
        program: PathBuf,
        /// Who writes.
        from: String,
        /// To whom.
        to: Vec<String>,
    },
    /// A URL that is asked for whenever a job succeeds: whoever watches it notices when that stops.
    Heartbeat(Secret),
}

/// How SMTP is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    /// From the first byte.
    Always,
    /// After STARTTLS, which the server must offer.
    Starttls,
    /// Not at all.
    None,
}

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// The name.
    pub name: String,
    /// How.
    pub channel: Channel,
    /// Of what.
    pub on: Vec<Topic>,
    /// Of which jobs; nothing: of all.
    pub jobs: Option<Vec<String>>,
    /// Of which clusters; nothing: of all.
    pub clusters: Option<Vec<String>>,
    /// The same failure is told again after this.
    pub repeat: Duration,
    /// Most messages in an hour.
    pub limit: usize,
}

impl Notify {
    pub(super) fn read(name: String, mut table: Table<'_>) -> Result<Self> {
        let kind_missing = table
            .error("\"kind\" is missing")
            .hint("slack, webhook, smtp, sendmail or heartbeat");
        let kind = table.text("kind")?.ok_or(kind_missing)?;
        let missing = |table: &Table<'_>, key: &str| table.error(format!("\"{key}\" is missing, which {kind} needs"));
        let channel = match kind.as_str() {
            "slack" => Channel::Slack(url(&mut table, &kind)?),
            "heartbeat" => Channel::Heartbeat(url(&mut table, &kind)?),
            "webhook" => Channel::Webhook {
                url: url(&mut table, &kind)?,
                template: table.text("template")?,
            },
            "smtp" => {
                let server = table.parsed("server", host_and_port)?;
                let server = server.ok_or_else(|| missing(&table, "server"))?;
                let user = table.text("user")?;
                let password = secret(&mut table, "password", "password_file", Ok)?;
                let login = match (user, password) {
                    (Some(user), Some(password)) => Some((user, password)),
                    (None, None) => None,
                    _ => return Err(table.error("user and password_file belong together")),
                };
                Channel::Smtp {
                    server,
                    tls: table.parsed("tls", tls)?.unwrap_or(SmtpTls::Starttls),
                    login,
                    from: address(&mut table, "from")?.ok_or_else(|| missing(&table, "from"))?,
                    to: addresses(&mut table)?.ok_or_else(|| missing(&table, "to"))?,
                }
            }
            "sendmail" => Channel::Sendmail {
                program: table.path("program")?.unwrap_or_else(|| "/usr/sbin/sendmail".into()),
                from: address(&mut table, "from")?.ok_or_else(|| missing(&table, "from"))?,
                to: addresses(&mut table)?.ok_or_else(|| missing(&table, "to"))?,
            },
            other => {
                let message = format!("no kind \"{other}\" is known");
                return Err(table.error(message).hint("slack, webhook, smtp, sendmail or heartbeat"));
            }
        };
        let on = match (&channel, table.list("on", str::parse)?) {
            (_, Some(on)) => on,
            (Channel::Heartbeat(_), None) => vec![Topic::Success],
            (_, None) => vec![Topic::Failure, Topic::Recovery],
        };
        let text = |text: &str| Ok(text.to_owned());
        let notify = Self {
            name,
            channel,
            on,
            jobs: table.list("jobs", text)?,
            clusters: table.list("clusters", text)?,
            repeat: (table.parsed("repeat", parse_duration)?).unwrap_or(Duration::from_secs(86_400)),
            limit: table
                .whole("limit", 1..=1000)?
                .and_then(|limit| usize::try_from(limit).ok())
                .unwrap_or(20),
        };
        table.finish(&[])?;
        Ok(notify)
    }
}

fn url(table: &mut Table<'_>, kind: &str) -> Result<Secret> {
    let found = secret(table, "url", "url_file", |text| http_url(&text))?;
    found.ok_or_else(|| table.error(format!("\"url_file\" (or \"url\") is missing, which {kind} needs")))
}

fn secret(
    table: &mut Table<'_>,
    key: &'static str,
    file: &'static str,
    check: impl Fn(String) -> Result<String>,
) -> Result<Option<Secret>> {
    let here = table.parsed(key, |text| check(text.to_owned()))?;
    match (here, table.path(file)?) {
        (Some(_), Some(_)) => Err(table.error(format!("{key} and {file} are both given"))),
        (Some(here), None) => Ok(Some(Secret::Here(here))),
        (None, file) => Ok(file.map(Secret::File)),
    }
}

fn address(table: &mut Table<'_>, key: &'static str) -> Result<Option<String>> {
    table.parsed(key, parse_address)
}

fn addresses(table: &mut Table<'_>) -> Result<Option<Vec<String>>> {
    table.list("to", parse_address)
}

/// The mail library has the last word; this finds what is no address at all.
fn parse_address(text: &str) -> Result<String> {
    let plain = text.rsplit('<').next().unwrap_or(text).trim_end_matches('>');
    match plain.split_once('@') {
        Some((user, host)) if !user.is_empty() && !host.is_empty() && !text.contains(['\n', '\r']) => {
            Ok(text.to_owned())
        }
        _ => Err(Error::new(Kind::Config, format!("\"{text}\" is no mail address"))),
    }
}

fn host_and_port(text: &str) -> Result<String> {
    match text
        .rsplit_once(':')
        .map(|(host, port)| (host.is_empty(), port.parse::<u16>()))
    {
        Some((false, Ok(_))) => Ok(text.to_owned()),
        _ => {
            Err(Error::new(Kind::Config, format!("\"{text}\" is no host:port"))
                .hint("such as \"smtp.example.com:587\""))
        }
    }
}

fn tls(text: &str) -> Result<SmtpTls> {
    Ok(match text {
        "always" => SmtpTls::Always,
        "starttls" => SmtpTls::Starttls,
        "none" => SmtpTls::None,
        other => {
            return Err(Error::new(
                Kind::Config,
                format!("tls is always, starttls or none, not \"{other}\""),
            ));
        }
    })
}
