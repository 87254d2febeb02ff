//! Bytes to bytes: compress, then encrypt.
//!
//! A *compressed stream* is a run of independent zstd frames with the frame table of zstd's seekable
//! format behind it, so `zstd -d` opens it and any part can be read alone; it may open with a
//! [`Descriptor`] that tells digest and length of what is inside. A *sealed* stream is an age file
//! around it, so `age -d` opens it; the descriptor stands in the age header too, readable without a key.
//!
//! The codec promises that what it wrote opens with the standard programs, that whatever is damaged
//! ends in [`Kind::Corrupt`](crate::error::Kind::Corrupt), and that memory does not grow with the
//! content. It knows neither names nor stores, and leaves syncing to whoever it writes to.

pub mod descriptor;
pub mod fanout;
pub mod frames;
pub mod seal;
pub mod small;
#[cfg(test)]
mod tests;

pub use descriptor::{ContentKind, Descriptor, PEEK_BYTES, Peek, peek};
pub use fanout::Fanout;
pub use frames::{FRAME_BYTES, Frame, FramePlace, FrameReader, FrameTable, FrameWriter, SeekableFrames};
pub use seal::{OpenReader, Opening, Recipients, SealedWriter, Sealing, SeekableReader, generate_identity};
pub use small::{CompressedStream, Reading, compress_once, compress_stream, decode_small, decode_to, encode_small};

use crate::error::{Error, Kind};

/// The error for bytes that are not what they should be.
fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, message)
}
