//! The scanner against real segments of every version, against damage, and against segments written here.
#![allow(clippy::unwrap_used, clippy::panic)]

mod damage;
mod real;
mod writer;
mod written;

use super::Scanner;
use crate::postgres::walmap::{Segment, SegmentMap};

/// The map of `bytes`, fed in pieces of `piece` bytes.
fn scan_in_pieces(segment: Segment, bytes: &[u8], piece: usize) -> SegmentMap {
    let mut scanner = Scanner::new(segment);
    for part in bytes.chunks(piece) {
        scanner.feed(part);
    }
    scanner.finish()
}

fn scan(segment: Segment, bytes: &[u8]) -> SegmentMap {
    scan_in_pieces(segment, bytes, usize::MAX)
}
