//! HTTP as the object stores need it: answers that say no become typed errors, nothing waits for ever, and the store's
//! clock is read off its answers.
//!
//! The library above is told not to try again: patience is [`retrying`](crate::storage::retrying)'s, in one place.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Task, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::Sleep;

use crate::error::{Error, Kind, Result};
use crate::time::UtcTime;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// A body goes out in pieces of this size, so that progress shows.
const PIECE_BYTES: usize = 64 << 10;

/// More of an answer that says no is not read.
const ANSWER_BYTES: usize = 64 << 10;

/// What a store answered, when it was not yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The store's own word, such as `NoSuchKey`; empty if it said none.
    pub code: String,
    /// Its sentence; may be empty.
    pub message: String,
    /// The region that S3 names when a bucket is elsewhere.
    pub region: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store answers {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Answer {}

/// Nothing moved for a while.
#[derive(Debug)]
pub(super) struct Stalled(Duration);

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing moved for {} s", self.0.as_secs())
    }
}

impl std::error::Error for Stalled {}

/// The store's clock: what its last answer said, and when that was here.
#[derive(Debug, Default, Clone)]
pub(super) struct Clock(Arc<Mutex<Option<(UtcTime, Instant)>>>);

impl Clock {
    fn set(&self, time: UtcTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((time, Instant::now()));
    }

    /// The time by the store's clock, if it has answered anything yet.
    pub fn now(&self) -> Option<UtcTime> {
        let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.map(|(time, at)| time.plus(at.elapsed()))
    }
}

/// Makes the connection to one store.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    client: reqwest::Client,
    clock: Clock,
    stall: Duration,
}

impl Wire {
    /// Prepares a client that believes the system's authorities and those in `ca_file`. When nothing moved in either
    /// direction for `stall`, a request counts as hanging.
    ///
    /// # Errors
    /// `Config` if an authority cannot be read.
    pub fn new(secure: bool, ca_file: Option<&Path>, clock: Clock, stall: Duration) -> Result<Self> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT.min(stall))
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(Duration::from_secs(20));
        // The system's authorities cost 2 ms to read: not for a connection in clear.
        if secure {
            builder = builder.tls_backend_preconfigured(tls(ca_file)?);
        } else {
            builder = builder.tls_backend_preconfigured(client_config(rustls::RootCertStore::empty())?);
        }
        let client = builder
            .build()
            .map_err(|error| Error::new(Kind::Failed, "prepare HTTP").because(error))?;
        Ok(Self { client, clock, stall })
    }
}

fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let what = || format!("read ca_file {}", path.display());
        let pem = std::fs::read(path).map_err(|error| Error::io(error, what()).with_kind(Kind::Config))?;
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| Error::new(Kind::Config, what()).because(error))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(Error::new(Kind::Config, format!("{}: it holds no certificate", what())));
        }
    }
    client_config(roots)
}

fn client_config(roots: rustls::RootCertStore) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Kind::Failed, "prepare TLS").because(error))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

impl HttpConnector for Wire {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Wire {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts
            .uri
            .to_string()
            .parse()
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, BadUrl(format!("{error}"))))?;
        let moved = Arc::new(AtomicU64::new(0));
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(reqwest::Body::wrap(Outgoing {
            body,
            piece: Bytes::new(),
            moved: Arc::clone(&moved),
        }));
        let answer = self.watch(self.client.execute(request), &moved).await?;
        let answer: http::Response<reqwest::Body> = answer.into();
        let (parts, body) = answer.into_parts();
        if let Some(date) = parts
            .headers
            .get(http::header::DATE)
            .and_then(|date| date.to_str().ok())
            && let Ok(time) = UtcTime::parse_http_date(date)
        {
            self.clock.set(time);
        }
        let body = HttpResponseBody::new(Incoming::new(body, self.stall));
        if parts.status.is_success() {
            return Ok(HttpResponse::from_parts(parts, body));
        }
        let region = parts.headers.get("x-amz-bucket-region");
        let region = region.and_then(|region| region.to_str().ok()).map(str::to_owned);
        let text = text_of(body).await;
        Err(HttpError::new(
            HttpErrorKind::Unknown,
            Answer {
                status: parts.status.as_u16(),
                code: element(&text, "Code"),
                message: element(&text, "Message"),
                region,
            },
        ))
    }
}

impl Wire {
    /// Waits for the answer as long as something moves.
    async fn watch(
        &self,
        answer: impl Future<Output = Result<reqwest::Response, reqwest::Error>>,
        moved: &AtomicU64,
    ) -> Result<reqwest::Response, HttpError> {
        let mut answer = std::pin::pin!(answer);
        let mut seen = 0;
        loop {
            match tokio::time::timeout(self.stall, &mut answer).await {
                Ok(answer) => return answer.map_err(wrapped),
                Err(_) => {
                    let now = moved.load(Ordering::Relaxed);
                    if now == seen {
                        return Err(HttpError::new(HttpErrorKind::Timeout, Stalled(self.stall)));
                    }
                    seen = now;
                }
            }
        }
    }
}

fn wrapped(error: reqwest::Error) -> HttpError {
    let kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else {
        HttpErrorKind::Interrupted
    };
    // The URL may be signed.
    HttpError::new(kind, error.without_url())
}

#[derive(Debug)]
struct BadUrl(String);

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid URL: {}", self.0)
    }
}

impl std::error::Error for BadUrl {}

/// The beginning of an answer, as text.
async fn text_of(body: HttpResponseBody) -> String {
    let mut stream = body.bytes_stream();
    let mut text = Vec::new();
    while let Some(Ok(piece)) = stream.next().await {
        text.extend_from_slice(&piece);
        if text.len() > ANSWER_BYTES {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The content of the first `<name>` in an XML text, on one line; empty if there is none.
fn element(text: &str, name: &str) -> String {
    let found = text
        .split_once(&format!("<{name}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")))
        .map_or("", |(content, _)| content);
    let plain = found
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&");
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A request's body in small pieces, counted as they leave.
struct Outgoing {
    body: HttpRequestBody,
    piece: Bytes,
    moved: Arc<AtomicU64>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        while self.piece.is_empty() {
            match Pin::new(&mut self.body).poll_frame(task) {
                Poll::Ready(Some(Ok(frame))) => self.piece = frame.into_data().unwrap_or_default(),
                other => return other,
            }
        }
        let length = self.piece.len().min(PIECE_BYTES);
        let out = self.piece.split_to(length);
        self.moved.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(out))))
    }

    fn is_end_stream(&self) -> bool {
        self.piece.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.body.size_hint().exact().unwrap_or(0);
        SizeHint::with_exact(left.saturating_add(self.piece.len() as u64))
    }
}

/// An answer's body, which fails when nothing comes for a while.
struct Incoming {
    body: reqwest::Body,
    stall: Duration,
    patience: Pin<Box<Sleep>>,
}

impl Incoming {
    fn new(body: reqwest::Body, stall: Duration) -> Self {
        Self {
            body,
            stall,
            patience: Box::pin(tokio::time::sleep(stall)),
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(task) {
            Poll::Ready(frame) => {
                let next = tokio::time::Instant::now() + self.stall;
                self.patience.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.map_err(wrapped)))
            }
            Poll::Pending => match self.patience.as_mut().poll(task) {
                Poll::Ready(()) => {
                    let error = HttpError::new(HttpErrorKind::Timeout, Stalled(self.stall));
                    Poll::Ready(Some(Err(error)))
                }
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_says_is_taken_out_of_its_answer() {
        let text = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code>\n<Message>Please  reduce\nyour &quot;rate&quot;</Message></Error>";
        assert_eq!(element(text, "Code"), "SlowDown");
        assert_eq!(element(text, "Message"), "Please reduce your \"rate\"");
        for text in ["", "<Code>", "</Code><Code>", "nonsense", "<Code></Code>"] {
            assert_eq!(element(text, "Code"), "", "{text}");
        }
    }

    #[test]
    fn the_clock_goes_on_after_the_last_answer() {
        let clock = Clock::default();
        assert!(clock.now().is_none(), "nobody has answered");
        let time = UtcTime::parse_http_date("Sat, 21 Nov 2026 09:25:49 GMT").ok();
        assert!(time.is_some());
        if let Some(time) = time {
            clock.set(time);
            assert!(
                clock
                    .now()
                    .is_some_and(|now| now >= time && now.distance(time) < Duration::from_secs(30))
            );
        }
    }
}
