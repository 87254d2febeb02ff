//! Maps of WAL that a host keeps for itself, because it cannot open those in its repositories.
//!
//! `<state>/<cluster>/maps/<segment>.map.zst`: the compressed stream in clear. A map counts only if it is whole and describes the
//! segment that it is named after; whether that is also the one that is stored, [`super::fetch_map`] says where the key is, and
//! [`check_beside`] anywhere.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::codec::{CompressedStream, ContentKind, Opening, decode_to};
use crate::durable;
use crate::error::{Context, Error, Kind, Result, chain};
use crate::postgres::walmap::SegmentMap;
use crate::postgres::{Lsn, SegmentName, SegmentSize, SystemId, WalName};
use crate::repository::Repository;

use super::map::{Limited, describes};

/// Without a base backup for so long the maps are of no use any more.
const LONGEST: Duration = Duration::from_secs(40 * 86_400);
/// Old ones are looked for once in so many segments.
const LOOK_EVERY: u64 = 256;

/// The directory that holds them.
#[derive(Debug, Clone)]
pub struct KeptMaps {
    directory: PathBuf,
}

impl KeptMaps {
    /// Below the state directory of a cluster.
    pub fn new(state: &Path) -> Self {
        Self {
            directory: state.join("maps"),
        }
    }

    fn path(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(format!("{segment}.map.zst"))
    }

    /// Keeps a map. What cannot be kept makes a later backup read more, and nothing else.
    pub fn keep(&self, segment: SegmentName, map: &CompressedStream, size: SegmentSize) {
        let path = self.path(segment);
        let kept = durable::create_dir_all(&self.directory, 0o700)
            .and_then(|()| durable::replace_unsynced(&path, &map.bytes, 0o600));
        if let Err(error) = kept {
            log::debug!("cannot keep {}: {}", path.display(), chain(&error));
        }
        if segment
            .number(size)
            .is_some_and(|number| number.0.is_multiple_of(LOOK_EVERY))
        {
            self.forget(&|_, modified| modified.elapsed().is_ok_and(|age| age > LONGEST));
        }
    }

    /// Reads the map of a segment.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Corrupt` if it is damaged or describes another segment.
    pub fn read(&self, system: SystemId, segment: SegmentName, size: SegmentSize) -> Result<SegmentMap> {
        let path = self.path(segment);
        let context = || format!("read {}", path.display());
        let bytes = std::fs::read(&path).context(context)?;
        let mut plain = Limited(Vec::new());
        let found =
            decode_to(&bytes[..], &Opening::none(), false, &mut plain).map_err(|error| error.context(context()))?;
        let map = SegmentMap::decode(&plain.0).map_err(|error| error.context(context()))?;
        if found.kind != ContentKind::Map || !describes(&map, system, segment, size) {
            return Err(Error::new(Kind::Corrupt, "it describes another segment").context(context()));
        }
        Ok(map)
    }

    /// Forgets the maps of segments that end at or before `lsn`, on any timeline.
    pub fn forget_before(&self, lsn: Lsn, size: SegmentSize) {
        self.forget(&|segment, _| segment.start(size).is_some_and(|start| start.0 + size.bytes() <= lsn.0));
    }

    fn forget(&self, old: &dyn Fn(SegmentName, SystemTime) -> bool) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".map.zst"));
            let Some(Ok(WalName::Segment(segment))) = stem.map(WalName::parse) else {
                continue;
            };
            let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) else {
                continue;
            };
            if old(segment, modified)
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                log::debug!("cannot remove {}: {error}", entry.path().display());
            }
        }
    }
}

/// Compares a kept map with the segment that a repository holds: no key is needed.
///
/// # Errors
/// `NotFound` if the segment is surely not there; `Corrupt` if the map describes other content; else what the store says.
pub fn check_beside(repository: &Repository, system: SystemId, segment: SegmentName, map: &SegmentMap) -> Result<()> {
    super::map::compare(repository, system, &WalName::Segment(segment), map)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::codec::compress_once;
    use crate::postgres::walmap::Segment;
    use crate::postgres::walscan::Scanner;

    fn size() -> SegmentSize {
        SegmentSize::new(16 << 20).unwrap()
    }

    fn name(number: u64) -> SegmentName {
        match WalName::parse(&format!("0000000100000000000000{number:02X}")).unwrap() {
            WalName::Segment(segment) => segment,
            other => unreachable!("{other:?}"),
        }
    }

    fn map(number: u64) -> CompressedStream {
        let scanner = Scanner::new(Segment {
            system_identifier: 7,
            timeline: 1,
            start: number << 24,
            size: 16 << 20,
            major: 15,
            sha256: [9; 32],
        });
        let bytes = scanner.finish().encode();
        compress_once(&bytes[..], bytes.len() as u64, ContentKind::Map, 2)
            .unwrap()
            .0
    }

    #[test]
    fn a_map_is_believed_only_under_the_name_of_its_segment_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let maps = KeptMaps::new(dir.path());
        maps.keep(name(3), &map(3), size());
        maps.keep(name(4), &map(3), size());
        assert_eq!(maps.read(SystemId(7), name(3), size()).unwrap().segment.start, 3 << 24);
        let refused = |system, number| maps.read(SystemId(system), name(number), size()).unwrap_err().kind();
        assert_eq!(refused(7, 4), Kind::Corrupt);
        assert_eq!(refused(8, 3), Kind::Corrupt);
        assert_eq!(refused(7, 5), Kind::NotFound);
        let path = dir.path().join(format!("maps/{}.map.zst", name(3)));
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(refused(7, 3), Kind::Corrupt, "cut at {cut}");
        }
    }

    #[test]
    fn what_no_backup_will_ask_for_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let maps = KeptMaps::new(dir.path());
        for number in 1..=5 {
            maps.keep(name(number), &map(number), size());
        }
        maps.forget_before(Lsn((3 << 24) + 40), size());
        let there = |number| maps.read(SystemId(7), name(number), size()).is_ok();
        assert_eq!((1..=5).map(there).collect::<Vec<_>>(), [false, false, true, true, true]);
    }
}
