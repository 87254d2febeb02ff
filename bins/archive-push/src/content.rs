//! Looks at a WAL file: is it what its name says, of this cluster, what are its digests, and what does it change?

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use common::codec::{CompressedStream, ContentKind, Reading, compress_once};
use common::digest::{Xxh3_128, Xxh3Hasher};
use common::error::{Context, Error, Kind, Result, chain};
use common::postgres::walscan::Scanner;
use common::postgres::{SegmentHeader, SegmentSize, SystemId, TimelineHistory, TimelineId, WalName, walmap};

const CHUNK_BYTES: usize = 256 << 10;

/// Opens a WAL file and refuses what is not what its name says.
///
/// # Errors
/// `Refused` if size, header, or cluster do not fit the name; else what reading gave.
pub fn open(
    path: &Path,
    name: &WalName,
    system: SystemId,
    segment_size: SegmentSize,
) -> Result<(File, Option<SegmentHeader>)> {
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
        let header = SegmentHeader::parse(&first)
            .and_then(|header| header.agrees_with(name, system).map(|()| header))
            .map_err(|error| {
                error
                    .with_kind(Kind::Refused)
                    .context(format!("check {}", path.display()))
            })?;
        file.rewind().context(|| format!("read {}", path.display()))?;
        return Ok((file, Some(header)));
    }
    if let WalName::History { timeline } = name {
        let mut content = Vec::new();
        (&mut file)
            .take(MOST_HISTORY_BYTES)
            .read_to_end(&mut content)
            .context(|| format!("read {}", path.display()))?;
        check_history(*timeline, &content)
            .map_err(|error| error.context(format!("check {}", path.display())).hint(HISTORY_HINT))?;
        file.rewind().context(|| format!("read {}", path.display()))?;
    }
    Ok((file, None))
}

/// Far more than the history of any server: a line of about 60 bytes for each promotion.
const MOST_HISTORY_BYTES: u64 = 1 << 20;

const HISTORY_HINT: &str = "it is not what PostgreSQL writes, and once stored it would stand in the way of every recovery: \
                            look at the file, and at what wrote it";

/// Refuses what PostgreSQL would not read as the history of `timeline`, and what says nothing.
fn check_history(timeline: TimelineId, content: &[u8]) -> Result<()> {
    if content.len() as u64 >= MOST_HISTORY_BYTES {
        return Err(Error::new(Kind::Refused, "it is too long for a timeline history"));
    }
    let history = TimelineHistory::parse(timeline, content).map_err(|error| error.with_kind(Kind::Refused))?;
    match history.ancestors().is_empty() {
        true => Err(Error::new(
            Kind::Refused,
            format!("it does not say which timeline {} comes from", timeline.0),
        )),
        false => Ok(()),
    }
}

/// A WAL file, ready to be stored.
pub struct Compressed {
    /// The file itself.
    pub stream: CompressedStream,
    /// The map of a whole segment: what its records change.
    pub map: Option<CompressedStream>,
}

/// Reads the file once: for its digests, compressed, and for its map, if it is a whole segment with this header. Without a
/// map the file is stored all the same.
///
/// # Errors
/// What reading gave.
pub fn read(
    file: &mut File,
    name: &WalName,
    header: Option<&SegmentHeader>,
    level: i32,
) -> Result<(Compressed, Reading)> {
    file.rewind().context(|| "read a WAL file")?;
    let size = file.metadata().context(|| "read a WAL file")?.len();
    let Some(segment) = header.and_then(|header| described(name, header)) else {
        let (stream, reading) = compress_once(file, size, ContentKind::Wal, level)?;
        return Ok((Compressed { stream, map: None }, reading));
    };
    let mut watched = Watched {
        file,
        scanner: Scanner::new(segment),
    };
    let (stream, reading) = compress_once(&mut watched, size, ContentKind::Wal, level)?;
    let mut map = watched.scanner.finish();
    // Known only now: the digest and the map come from the same pass.
    map.segment.sha256 = reading.sha256.0;
    let map = map.encode();
    let map = compress_once(&map[..], map.len() as u64, ContentKind::Map, level)
        .map_err(|error| log::debug!("no map of {name}: {}", chain(&error)))
        .ok();
    Ok((
        Compressed {
            stream,
            map: map.map(|(map, _)| map),
        },
        reading,
    ))
}

/// What a map says of the whole segment `name`, its digest left open.
fn described(name: &WalName, header: &SegmentHeader) -> Option<walmap::Segment> {
    let WalName::Segment(segment) = name else { return None };
    Some(walmap::Segment {
        system_identifier: header.system_id.0,
        timeline: segment.timeline.0,
        start: header.page_address.0,
        size: u32::try_from(header.segment_size.bytes()).ok()?,
        major: u8::try_from(header.major.number()).ok()?,
        sha256: [0; 32],
    })
}

/// A reader that lets the scanner see what passes.
struct Watched<'f> {
    file: &'f mut File,
    scanner: Scanner,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.scanner.feed(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_history_that_leads_to_its_timeline_is_taken() {
        let check = |content: &[u8]| check_history(TimelineId(3), content);
        check(b"1\t0/3000000\tno recovery target specified\n").unwrap();
        check(b"1\t0/3000000\tx\n\n2\t0/5000000\ty\n").unwrap();
        let refused: [(&[u8], &str); 8] = [
            (b"", "does not say which timeline 3 comes from"),
            (b"\n# 1\t0/3000000\n", "does not say which timeline 3 comes from"),
            (b"nonsense\n", "is not understood"),
            (b"\0\0\0\0", "is not understood"),
            (b"3\t0/3000000\tx\n", "is not an ancestor"),
            (b"4\t0/3000000\tx\n", "is not an ancestor"),
            (
                b"2\t0/3000000\tx\n1\t0/5000000\ty\n",
                "does not follow a smaller timeline",
            ),
            (b"1\t0/3000000\tx\n2\t0/2000000\ty\n", "goes backwards"),
        ];
        for (content, words) in refused {
            let error = check(content).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{}", chain(&error));
            assert!(chain(&error).contains(words), "{}", chain(&error));
        }
        let long = b"1\t0/3000000\tx\n".repeat(100_000);
        assert!(chain(&check(&long).unwrap_err()).contains("too long"));
    }
}
