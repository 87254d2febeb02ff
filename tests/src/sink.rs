//! A server that takes what is sent to it, and keeps it for the test to look at.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::wait::{PATIENCE, wait_until};

/// A server that takes what comes and keeps it.
#[derive(Debug)]
pub struct Sink {
    /// Its port.
    pub port: u16,
    taken: Arc<Mutex<Vec<String>>>,
}

impl Sink {
    /// Listens on a free port of the loopback address; `serve` has each connection and says what is kept of it.
    pub fn start(serve: impl Fn(TcpStream) -> Option<String> + Send + 'static) -> Sink {
        Sink::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), serve)
    }

    /// The same with a listener of the test's own.
    pub fn start_on(listener: TcpListener, serve: impl Fn(TcpStream) -> Option<String> + Send + 'static) -> Sink {
        let port = listener.local_addr().unwrap().port();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&taken);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(text) = serve(stream) {
                    keep.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                }
            }
        });
        Sink { port, taken }
    }

    /// Answers each request with this status; keeps the first line and the body.
    pub fn http(answer: &'static str) -> Sink {
        Sink::start(move |stream| request(stream, answer))
    }

    /// The same with a listener of the test's own.
    pub fn http_on(listener: TcpListener, answer: &'static str) -> Sink {
        Sink::start_on(listener, move |stream| request(stream, answer))
    }

    /// Waits until so many came: a mail is kept a moment after its sender has gone.
    pub fn expect(&self, count: usize) {
        wait_until("all is taken", PATIENCE, || self.taken().len() == count);
    }

    /// An address on it, whose path is a secret.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/secret-path", self.port)
    }

    /// What came so far.
    pub fn taken(&self) -> Vec<String> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn request(stream: TcpStream, answer: &str) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 5\r\nconnection: close\r\n\r\nno_ok");
    reader.get_mut().write_all(answer.as_bytes()).ok()?;
    Some(format!("{}\n{}", first.trim(), String::from_utf8(body).ok()?))
}
