//! Sends messages, each within a few seconds or not at all.

use std::io::Read;
use std::time::Duration;

use common::config::{Channel, Secret, SmtpTls};
use common::error::{Context, Error, Kind, Result};
use common::secret;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{SendmailTransport, SmtpTransport, Transport};
use reqwest::blocking::Client;

use crate::message::{self, Message};

/// Whoever takes longer is not reached.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends one message.
///
/// # Errors
/// `Config` for a secret that cannot be read or an address that is none; `Transient` if nobody answered; `Failed` if the message was refused.
/// Addresses of webhooks are secrets: no error shows one.
pub fn send(channel: &Channel, message: &Message) -> Result<()> {
    match channel {
        Channel::Slack(url) => post(&read(url, "url_file")?, message::slack(message)),
        Channel::Webhook { url, template } => {
            post(&read(url, "url_file")?, message::webhook(message, template.as_deref()))
        }
        Channel::Heartbeat(url) => {
            let request = client()?.get(read(url, "url_file")?);
            judge(request.send())
        }
        Channel::Smtp {
            server,
            tls,
            login,
            from,
            to,
        } => {
            let (host, port) = server.rsplit_once(':').unwrap_or((server, "25"));
            let encryption = || {
                TlsParameters::new(host.to_owned())
                    .map_err(|error| Error::new(Kind::Config, "prepare TLS for mail").because(error))
            };
            let tls = match tls {
                SmtpTls::Always => Tls::Wrapper(encryption()?),
                SmtpTls::Starttls => Tls::Required(encryption()?),
                SmtpTls::None => Tls::None,
            };
            let mut transport = SmtpTransport::builder_dangerous(host)
                .port(port.parse().unwrap_or(25))
                .timeout(Some(PATIENCE))
                .tls(tls);
            if let Some((user, password)) = login {
                transport = transport.credentials(Credentials::new(user.clone(), read(password, "password_file")?));
            }
            let sent = transport.build().send(&mail(message, from, to)?);
            sent.map(drop).map_err(|error| {
                let kind = if error.is_permanent() {
                    Kind::Failed
                } else {
                    Kind::Transient
                };
                Error::new(kind, format!("send mail through {server}")).because(error)
            })
        }
        Channel::Sendmail { program, from, to } => {
            let transport = SendmailTransport::new_with_command(program);
            transport.send(&mail(message, from, to)?).map_err(|error| {
                Error::new(Kind::Failed, format!("send mail through {}", program.display())).because(error)
            })
        }
    }
}

fn mail(message: &Message, from: &str, to: &[String]) -> Result<lettre::Message> {
    let address = |text: &str| {
        text.parse::<lettre::message::Mailbox>()
            .map_err(|error| Error::new(Kind::Config, format!("\"{text}\" is no mail address")).because(error))
    };
    let mut mail = lettre::Message::builder()
        .from(address(from)?)
        .subject(format!("[pgkeep] {}", message.title))
        .header(ContentType::TEXT_PLAIN);
    for one in to {
        mail = mail.to(address(one)?);
    }
    mail.body(format!("{}\n\n{}\n", message.title, message.text))
        .map_err(|error| Error::new(Kind::Failed, "write the mail").because(error))
}

fn post(url: &str, body: String) -> Result<()> {
    let request = client()?
        .post(url)
        .header("content-type", "application/json")
        .body(body);
    judge(request.send())
}

fn client() -> Result<Client> {
    // Whoever comes second finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .timeout(PATIENCE)
        .build()
        .map_err(|error| Error::new(Kind::Config, "prepare to send").because(error.without_url()))
}

fn judge(response: reqwest::Result<reqwest::blocking::Response>) -> Result<()> {
    let response =
        response.map_err(|error| Error::new(Kind::Transient, "nobody answered").because(error.without_url()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let mut said = String::new();
    let _ = response.take(200).read_to_string(&mut said);
    Err(Error::new(
        Kind::Failed,
        format!("the message was refused: {status}, {}", said.trim().replace('\n', " ")),
    ))
}

fn read(secret: &Secret, key: &str) -> Result<String> {
    match secret {
        Secret::Here(text) => Ok(text.clone()),
        Secret::File(path) => {
            let mut text = String::new();
            secret::open(path, key)?
                .read_to_string(&mut text)
                .context(|| format!("read {key} {}", path.display()))?;
            Ok(text.trim().to_owned())
        }
    }
}
