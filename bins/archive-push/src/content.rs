//! Looks at a WAL file before anything is done with it: is it what its name says, of this cluster, and what are its digests?

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use common::codec::{CompressedStream, ContentKind, Reading, compress_once};
use common::digest::{Xxh3_128, Xxh3Hasher};
use common::error::{Context, Error, Kind, Result};
use common::postgres::{SegmentHeader, SegmentSize, SystemId, WalName};

const CHUNK_BYTES: usize = 256 << 10;

/// Opens a WAL file and refuses what is not what its name says.
///
/// # Errors
/// `Refused` if size, header, or cluster do not fit the name; else what reading gave.
pub fn open(path: &Path, name: &WalName, system: SystemId, segment_size: SegmentSize) -> Result<File> {
    let mut file = File::open(path).context(|| format!("open {}", path.display()))?;
    let metadata = file.metadata().context(|| format!("read {}", path.display()))?;
    if !metadata.is_file() {
        return Err(Error::new(
            Kind::Refused,
            format!("{} is not a regular file", path.display()),
        ));
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
        file.read_exact(&mut first)
            .context(|| format!("read {}", path.display()))?;
        SegmentHeader::parse(&first)
            .and_then(|header| header.agrees_with(name, system))
            .map_err(|error| {
                error
                    .with_kind(Kind::Refused)
                    .context(format!("check {}", path.display()))
            })?;
        file.rewind().context(|| format!("read {}", path.display()))?;
    }
    Ok(file)
}

/// Reads the file once, for its digests and compressed.
///
/// # Errors
/// What reading gave.
pub fn read(file: &mut File, level: i32) -> Result<(CompressedStream, Reading)> {
    file.rewind().context(|| "read a WAL file")?;
    compress_once(file, ContentKind::Wal, level)
}

/// Reads the file once for the cheap digest alone: size and XXH3-128.
///
/// # Errors
/// What reading gave.
pub fn quick_digest(file: &mut File) -> Result<(u64, Xxh3_128)> {
    let (mut xxh3, mut size) = (Xxh3Hasher::new(), 0u64);
    let mut buffer = vec![0u8; CHUNK_BYTES];
    loop {
        let count = file.read(&mut buffer).context(|| "read a WAL file")?;
        match buffer.get(..count) {
            Some(chunk) if count > 0 => xxh3.update(chunk),
            _ => return Ok((size, xxh3.finish())),
        }
        size += count as u64;
    }
}
