//! Looks at a WAL file before anything is done with it: is it what its name says, of this cluster, and what are its digests?

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use common::codec::{CompressedStream, ContentKind, compress_stream};
use common::digest::{Sha256, Sha256Digest, Xxh3_128, Xxh3Hasher};
use common::error::{Context, Error, Kind, Result};
use common::postgres::{SegmentHeader, SegmentSize, SystemId, WalName};

const CHUNK_BYTES: usize = 256 << 10;

/// The identity of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// In bytes.
    pub size: u64,
    /// What the repository keeps.
    pub sha256: Sha256Digest,
    /// What a later call compares.
    pub xxh3: Xxh3_128,
}

/// Opens a WAL file and refuses what is not what its name says.
///
/// # Errors
/// `Refused` if size, header, or cluster do not fit the name; else what reading gave.
pub fn open(path: &Path, name: &WalName, system: SystemId, segment_size: SegmentSize) -> Result<File> {
    let mut file = File::open(path).context(|| format!("open {}", path.display()))?;
    let metadata = file.metadata().context(|| format!("read {}", path.display()))?;
    if !metadata.is_file() {
        return Err(Error::new(Kind::Refused, format!("{} is not a regular file", path.display())));
    }
    if matches!(name, WalName::Segment(_) | WalName::Partial(_)) {
        if metadata.len() != segment_size.bytes() {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "{} has {} bytes, and a segment of this cluster has {}",
                    path.display(),
                    metadata.len(),
                    segment_size.bytes()
                ),
            ));
        }
        let mut first = [0u8; common::postgres::header::HEADER_BYTES];
        file.read_exact(&mut first).context(|| format!("read {}", path.display()))?;
        SegmentHeader::parse(&first)
            .and_then(|header| header.agrees_with(name, system))
            .map_err(|error| error.with_kind(Kind::Refused).context(format!("check {}", path.display())))?;
        file.rewind().context(|| format!("read {}", path.display()))?;
    }
    Ok(file)
}

/// Reads the file once for its digests.
///
/// # Errors
/// What reading gave.
pub fn digests(file: &mut File) -> Result<Digests> {
    let (mut sha256, mut xxh3, mut size) = (Sha256::new(), Xxh3Hasher::new(), 0u64);
    each_chunk(file, |chunk| {
        sha256.update(chunk);
        xxh3.update(chunk);
        size += chunk.len() as u64;
    })?;
    Ok(Digests { size, sha256: sha256.finish(), xxh3: xxh3.finish() })
}

/// Reads the file once for the cheap digest alone: size and XXH3-128.
///
/// # Errors
/// What reading gave.
pub fn quick_digest(file: &mut File) -> Result<(u64, Xxh3_128)> {
    let (mut xxh3, mut size) = (Xxh3Hasher::new(), 0u64);
    each_chunk(file, |chunk| {
        xxh3.update(chunk);
        size += chunk.len() as u64;
    })?;
    Ok((size, xxh3.finish()))
}

fn each_chunk(file: &mut File, mut each: impl FnMut(&[u8])) -> Result<()> {
    file.rewind().context(|| "read a WAL file")?;
    let mut buffer = vec![0u8; CHUNK_BYTES];
    loop {
        let count = file.read(&mut buffer).context(|| "read a WAL file")?;
        match buffer.get(..count) {
            Some(chunk) if count > 0 => each(chunk),
            _ => return Ok(()),
        }
    }
}

/// Reads the file a second time and compresses it; fails if it is not what the first reading saw.
///
/// # Errors
/// `Corrupt` if the file changed in between; else what reading gave.
pub fn compress(file: &mut File, digests: &Digests, level: i32) -> Result<CompressedStream> {
    file.rewind().context(|| "read a WAL file")?;
    compress_stream(file, digests.size, digests.sha256, digests.xxh3, ContentKind::Wal, level)
}
