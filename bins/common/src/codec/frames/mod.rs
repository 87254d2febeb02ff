//! Independent zstd frames with a table behind them: the compressed stream.
//!
//! Each frame is made by one call of zstd and states its content size; the table is that of zstd's
//! seekable format (`contrib/seekable_format/zstd_seekable_compression_format.md`), a skippable frame,
//! so `zstd -d` opens the whole. Skippable frames in front are listed in it with a plain size of 0, so
//! that its offsets add up.
//!
//! Damage that zstd or the table can show is [`Kind::Corrupt`](crate::error::Kind::Corrupt); frames carry
//! no checksum of their own, whoever stores something keeps its digest.

mod frame;
mod reader;
mod seekable;
mod table;
#[cfg(test)]
pub(super) mod tests;
mod writer;

pub use reader::FrameReader;
pub use seekable::SeekableFrames;
pub use table::{Frame, FramePlace, FrameTable};
pub use writer::FrameWriter;

/// Plain bytes in a full frame.
pub const FRAME_BYTES: usize = 128 * 1024;

/// The largest plain content of a frame that is read.
pub const MAX_FRAME_PLAIN: usize = 1024 * 1024;

/// The largest stored length of a frame that is read: incompressible content grows a little.
const MAX_FRAME_STORED: usize = MAX_FRAME_PLAIN + 64 * 1024;

/// Magic number and length in front of a skippable frame's content.
pub(super) const FRAME_OVERHEAD: usize = 8;

/// The length of a frame table without entries.
pub(super) const TABLE_OVERHEAD: usize = table::overhead();
