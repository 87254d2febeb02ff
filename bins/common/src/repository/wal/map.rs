//! Maps of segments, read back: believed only beside the very segment they describe (FORMAT.md, sections 5 and 11).

use super::descriptor;
use crate::codec::{ContentKind, decode_to};
use crate::error::{Error, Kind, Result};
use crate::postgres::walmap::SegmentMap;
use crate::postgres::{SegmentName, SegmentSize, SystemId, WalName};
use crate::repository::Repository;

/// No map of the largest segment comes near this; what is larger is not read into memory.
const LARGEST_BYTES: u64 = 64 << 20;

/// Reads the map of a segment, and compares it with the segment that the repository holds beside it.
///
/// # Errors
/// `NotFound` if there surely is none; `Corrupt` if it is damaged or describes anything but the segment that is stored;
/// `Config` if there is no key that opens it. Every one of them means "unknown", never "nothing changed".
pub fn fetch_map(
    repository: &Repository,
    system: SystemId,
    segment: SegmentName,
    size: SegmentSize,
) -> Result<SegmentMap> {
    let suffix = repository.suffix()?;
    let name = WalName::Segment(segment);
    let key = repository.keys().map(system, &name, suffix)?;
    let place = repository.store.describe(Some(&key));
    let context = |error: Error| error.context(format!("read {place}"));
    let stream = repository.store.open(&key, 0, None).map_err(context)?;
    let mut limited = Limited(Vec::new());
    let found = decode_to(stream, &repository.opening, !suffix.is_empty(), &mut limited).map_err(context)?;
    if found.kind != ContentKind::Map {
        return Err(context(Error::new(Kind::Corrupt, "it is not the map of a segment")));
    }
    let map = SegmentMap::decode(&limited.0).map_err(context)?;
    if !describes(&map, system, segment, size) {
        return Err(context(Error::new(Kind::Corrupt, "it describes another segment")));
    }
    compare(repository, system, &name, &map).map_err(context)?;
    Ok(map)
}

/// Whether a map is one of this segment.
pub(super) fn describes(map: &SegmentMap, system: SystemId, segment: SegmentName, size: SegmentSize) -> bool {
    let about = &map.segment;
    about.system_identifier == system.0
        && about.timeline == segment.timeline.0
        && segment.start(size).is_some_and(|start| start.0 == about.start)
        && u64::from(about.size) == size.bytes()
}

/// Compares a map with the segment that the repository holds: no key is needed.
pub(super) fn compare(repository: &Repository, system: SystemId, name: &WalName, map: &SegmentMap) -> Result<()> {
    let key = repository.keys().wal(system, name, repository.suffix()?)?;
    let stat = repository.store.stat(&key)?.ok_or_else(|| {
        let missing = repository.store.describe(Some(&key));
        Error::new(Kind::NotFound, format!("{missing} does not exist"))
    })?;
    if descriptor(repository, &key, stat.size)?.sha256.0 != map.segment.sha256 {
        return Err(Error::new(
            Kind::Corrupt,
            "it describes other content than the segment has",
        ));
    }
    Ok(())
}

/// A vector that does not grow without end.
pub(super) struct Limited(pub(super) Vec<u8>);

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if (self.0.len() + bytes.len()) as u64 > LARGEST_BYTES {
            return Err(Error::new(Kind::Corrupt, "it is larger than any map").into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
