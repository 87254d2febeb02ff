//! An answer's body, as a fault shapes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Fault;

/// An answer's body, as the fault shapes it.
pub struct Shaped {
    body: s3s::Body,
    left: Option<usize>,
    breaks: bool,
    flips: bool,
}

impl Shaped {
    pub(super) fn new(body: s3s::Body, fault: Option<Fault>) -> Shaped {
        let left = match fault {
            Some(Fault::BreakBody(bytes) | Fault::ShortBody(bytes)) => Some(bytes),
            _ => None,
        };
        Shaped {
            body,
            left,
            breaks: matches!(fault, Some(Fault::BreakBody(_))),
            flips: fault == Some(Fault::Flip),
        }
    }
}

impl Body for Shaped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == Some(0) {
            let broken = io::Error::from(io::ErrorKind::ConnectionReset);
            return Poll::Ready(self.breaks.then_some(Err(broken)));
        }
        let frame = match Pin::new(&mut self.body).poll_frame(task) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(io::Error::other(format!("{error:?}"))))),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        let mut piece = frame.into_data().unwrap_or_default();
        if let Some(left) = &mut self.left {
            piece.truncate(*left);
            *left -= piece.len();
        }
        if std::mem::take(&mut self.flips) && !piece.is_empty() {
            let mut bytes = piece.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            piece = bytes.into();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}
