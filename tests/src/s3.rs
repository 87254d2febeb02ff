//! An S3 server inside the test, which checks signatures and payload digests, and fails on demand.
//!
//! Objects are files below `root/<bucket>`. A [`Rule`] picks requests and says what becomes of them: an answer that says
//! no, silence, a connection that breaks before or in the middle of the answer, a body that lies, a lost answer. Every
//! request is counted, so that a test can let the n-th one fail. Promises that nothing but the rules goes wrong.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::sync::oneshot;

use crate::account;

mod shaped;
mod tls;

pub use shaped::Shaped;
pub use tls::Certificate;

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "AKTESTACCESSKEY00001";
/// Its secret, which must never be seen anywhere.
pub const SECRET_KEY: &str = "never/seen/anywhere+secret0000000000001";
/// Another access key and its secret, which the server knows, too: one that is about to take the first one's place.
pub const NEXT: (&str, &str) = ("AKTESTACCESSKEYSNEXT", "never/seen/anywhere+secret0000000000002");

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This status and S3 code are answered, and nothing is done.
    Answer(u16, &'static str),
    /// The bucket is in this region, S3 answers.
    Elsewhere(&'static str),
    /// Nothing is answered, ever.
    Hang,
    /// The connection is closed instead of an answer, and nothing is done.
    Reset,
    /// The connection breaks when a part of the request's body has come.
    BreakUpload,
    /// It is done, and the connection is closed instead of an answer.
    LoseAnswer,
    /// The connection breaks after so many bytes of the answer's body.
    BreakBody(usize),
    /// The body ends after so many bytes, and the answer says that this is all.
    ShortBody(usize),
    /// One bit of the body's first piece is wrong.
    Flip,
}

/// Which requests a fault befalls.
#[derive(Debug, Clone)]
pub struct Rule {
    method: Option<Method>,
    part: String,
    skip: u32,
    times: u32,
    fault: Fault,
}

impl Rule {
    /// Befalls every request.
    pub fn new(fault: Fault) -> Rule {
        Rule {
            method: None,
            part: String::new(),
            skip: 0,
            times: u32::MAX,
            fault,
        }
    }

    /// Only requests of this method.
    pub fn method(mut self, method: &str) -> Rule {
        self.method = Some(method.parse().unwrap());
        self
    }

    /// Only requests whose path and query hold `part`.
    pub fn part(mut self, part: &str) -> Rule {
        self.part = part.into();
        self
    }

    /// Lets the first so many go.
    pub fn skip(mut self, skip: u32) -> Rule {
        self.skip = skip;
        self
    }

    /// At most so many.
    pub fn times(mut self, times: u32) -> Rule {
        self.times = times;
        self
    }

    fn befalls(&mut self, method: &Method, target: &str) -> bool {
        let is_chosen = self.method.as_ref().is_none_or(|wanted| wanted == method) && target.contains(&self.part);
        if !is_chosen || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    log: Vec<String>,
    headers: Vec<http::HeaderMap>,
}

/// A running server; dropped, it stops.
pub struct S3 {
    /// Where buckets are directories.
    pub root: PathBuf,
    /// The port on the loopback address.
    pub port: u16,
    secure: bool,
    service: S3Service,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3 {
    /// Starts a server with this bucket below `root`, on a port that is free.
    pub fn start(root: &Path, bucket: &str) -> S3 {
        fs::create_dir_all(root.join(bucket)).unwrap();
        S3::start_on(root, 0)
    }

    /// Starts a server on a port, for one that comes back.
    pub fn start_on(root: &Path, port: u16) -> S3 {
        S3::begin(root, (Ipv4Addr::LOCALHOST, port).into(), None, service(root))
    }

    /// Starts a server with this bucket on an address of its own, for other hosts.
    pub fn start_at(root: &Path, bucket: &str, address: SocketAddr) -> S3 {
        fs::create_dir_all(root.join(bucket)).unwrap();
        S3::begin(root, address, None, service(root))
    }

    /// The same server on another port (0: one that is free), with rules and a log of its own.
    pub fn door(&self, port: u16) -> S3 {
        S3::begin(
            &self.root,
            (Ipv4Addr::LOCALHOST, port).into(),
            None,
            self.service.clone(),
        )
    }

    /// Starts a server that speaks TLS and shows this certificate.
    pub fn start_tls(root: &Path, bucket: &str, certificate: &Certificate) -> S3 {
        fs::create_dir_all(root.join(bucket)).unwrap();
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        S3::begin(root, address, Some(certificate.acceptor()), service(root))
    }

    fn begin(root: &Path, address: SocketAddr, tls: Option<tokio_rustls::TlsAcceptor>, service: S3Service) -> S3 {
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = oneshot::channel();
        let (ready, port_of) = std::sync::mpsc::channel();
        let secure = tls.is_some();
        let (served, state_of) = (service.clone(), Arc::clone(&state));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind(address).await.unwrap();
                ready.send(listener.local_addr().unwrap().port()).unwrap();
                tokio::select! {
                    () = serve(listener, tls, served, state_of) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        S3 {
            root: root.to_owned(),
            port: port_of.recv().unwrap(),
            secure,
            service,
            state,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Adds a rule; the first that fits decides.
    pub fn rule(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Forgets what was asked so far.
    pub fn forget(&self) {
        let mut state = self.state();
        state.log.clear();
        state.headers.clear();
    }

    /// What was asked, in order: method, path and query.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    /// The headers of the requests whose line in the log holds `part`.
    pub fn headers(&self, part: &str) -> Vec<http::HeaderMap> {
        let state = self.state();
        let both = state.log.iter().zip(&state.headers);
        both.filter(|(line, _)| line.contains(part))
            .map(|(_, headers)| headers.clone())
            .collect()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a credentials file for this server's key.
    pub fn credentials(path: &Path) {
        account::write(path, credentials_of((ACCESS_KEY, SECRET_KEY)), 0o600);
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a credentials file has for an access key and its secret.
pub fn credentials_of((access_key, secret_key): (&str, &str)) -> String {
    format!("[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")
}

fn service(root: &Path) -> S3Service {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    let mut known = SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY);
    known.register(NEXT.0.to_owned(), NEXT.1.into());
    builder.set_auth(known);
    builder.build()
}

async fn serve(
    listener: tokio::net::TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    service: S3Service,
    state: Arc<Mutex<State>>,
) {
    let http = auto::Builder::new(TokioExecutor::new());
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        let (http, tls, service, state) = (http.clone(), tls.clone(), service.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            let faulty = hyper_util::service::TowerToHyperService::new(Faulty { service, state });
            // A broken connection is the peer's to notice.
            match tls {
                None => drop(http.serve_connection(TokioIo::new(socket), faulty).await),
                Some(tls) => {
                    if let Ok(socket) = tls.accept(socket).await {
                        drop(http.serve_connection(TokioIo::new(socket), faulty).await);
                    }
                }
            }
        });
    }
}

#[derive(Clone)]
struct Faulty {
    service: S3Service,
    state: Arc<Mutex<State>>,
}

type Answered = Result<Response<Shaped>, io::Error>;

impl<B> tower_service::Service<Request<B>> for Faulty
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Response = Response<Shaped>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Answered> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = request.method().clone();
        let target = request
            .uri()
            .path_and_query()
            .map_or("", |target| target.as_str())
            .to_owned();
        let fault = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.log.push(format!("{method} {target}"));
            state.headers.push(request.headers().clone());
            state
                .rules
                .iter_mut()
                .find_map(|rule| rule.befalls(&method, &target).then_some(rule.fault))
        };
        let mut service = self.service.clone();
        Box::pin(async move {
            let broken = || Err(io::Error::from(io::ErrorKind::ConnectionReset));
            match fault {
                Some(Fault::Answer(status, code)) => return Ok(refusal(status, code)),
                Some(Fault::Elsewhere(region)) => {
                    let mut answer = refusal(301, "PermanentRedirect");
                    let region = http::HeaderValue::from_static(region);
                    answer.headers_mut().insert("x-amz-bucket-region", region);
                    return Ok(answer);
                }
                Some(Fault::BreakUpload) => {
                    let mut body = Box::pin(request.into_body());
                    std::future::poll_fn(|task| body.as_mut().poll_frame(task).map(drop)).await;
                    return broken();
                }
                Some(Fault::Hang) => std::future::pending().await,
                Some(Fault::Reset) => return broken(),
                _ => {}
            }
            let answered = tower_service::Service::call(&mut service, request).await;
            let answer = answered.map_err(|error| io::Error::other(format!("{error:?}")))?;
            if fault == Some(Fault::LoseAnswer) {
                return broken();
            }
            let (mut parts, body) = answer.into_parts();
            if let Some(Fault::ShortBody(bytes)) = fault {
                parts.headers.insert(http::header::CONTENT_LENGTH, bytes.into());
            }
            Ok(Response::from_parts(parts, Shaped::new(body, fault)))
        })
    }
}

fn refusal(status: u16, code: &str) -> Response<Shaped> {
    let text =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>asked for by the test</Message></Error>");
    let mut answer = Response::new(Shaped::new(s3s::Body::from(text), None));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}
