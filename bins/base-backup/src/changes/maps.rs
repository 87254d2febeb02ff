//! Where the maps of WAL come from: the repositories, this host's own copies, or the segments themselves, read anew from pg_wal or
//! a repository.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use common::error::{Error, chain};
use common::postgres::walmap::{Segment, SegmentMap};
use common::postgres::walscan::{FRAGMENT_LIMIT, Scanner};
use common::postgres::{SegmentName, SegmentNumber, SegmentSize, SystemId, TimelineHistory, WalName};
use common::repository::Repository;
use common::repository::wal::kept::{KeptMaps, check_beside};
use common::repository::wal::{self, fetch_map};

use super::sum::Maps;

/// So many maps are fetched at a time, by so many threads: a store far away answers slowly, not rarely.
const BATCH: u64 = 64;
const THREADS: usize = 8;
/// No record is longer (`XLogRecordMaxSize`, `src/include/access/xlogrecord.h` of PostgreSQL 16).
const LONGEST_FRAGMENT: usize = 1 << 30;

/// The WAL of one server.
pub struct Wal<'a> {
    /// Where maps and segments are stored.
    pub repositories: Vec<&'a Repository>,
    /// Maps that this host has kept.
    pub kept: KeptMaps,
    /// The server's own WAL.
    pub pg_wal: PathBuf,
    /// Whose.
    pub system: SystemId,
    /// PostgreSQL's major version.
    pub major: u8,
    /// The size of segments.
    pub size: SegmentSize,
    /// The timelines that the server has come along.
    pub history: TimelineHistory,
    /// The last segment that will be asked for.
    pub last: SegmentNumber,
    /// Maps that were fetched ahead.
    pub ahead: BTreeMap<u64, Result<SegmentMap, String>>,
}

impl Maps for Wal<'_> {
    fn map(&mut self, number: SegmentNumber) -> Result<SegmentMap, String> {
        if !self.ahead.contains_key(&number.0) {
            self.fetch_ahead(number);
        }
        self.ahead
            .remove(&number.0)
            .unwrap_or_else(|| Err("a map was not fetched".to_owned()))
    }

    fn scan_whole(&mut self, number: SegmentNumber) -> Result<SegmentMap, String> {
        let name = self.name(number)?;
        self.scan(name, LONGEST_FRAGMENT)
    }
}

impl Wal<'_> {
    /// The segment as this server's history has it: where a timeline begins in it, that one's file.
    fn name(&self, number: SegmentNumber) -> Result<SegmentName, String> {
        let timelines = self.history.candidates(number, self.size);
        let timeline = timelines
            .first()
            .ok_or_else(|| format!("no timeline of this server has segment number {}", number.0))?;
        Ok(SegmentName::new(*timeline, number, self.size))
    }

    fn fetch_ahead(&mut self, from: SegmentNumber) {
        let to = self.last.0.min(from.0.saturating_add(BATCH - 1)).max(from.0);
        let next = AtomicU64::new(from.0);
        let found = Mutex::new(std::mem::take(&mut self.ahead));
        let this = &*self;
        std::thread::scope(|scope| {
            for _ in 0..THREADS.min((to - from.0 + 1) as usize) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number > to {
                            break;
                        }
                        let map = this.look_for(SegmentNumber(number));
                        found.lock().unwrap_or_else(PoisonError::into_inner).insert(number, map);
                    }
                });
            }
        });
        self.ahead = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    }

    fn look_for(&self, number: SegmentNumber) -> Result<SegmentMap, String> {
        let name = self.name(number)?;
        for repository in &self.repositories {
            match fetch_map(repository, self.system, name, self.size) {
                Ok(map) if map.segment.major == self.major => return Ok(map),
                Ok(map) => log::debug!("the map of {name} is of PostgreSQL {}", map.segment.major),
                Err(error) => log::debug!("no map of {name}: {}", chain(&error)),
            }
        }
        self.kept_map(name).or_else(|why| {
            log::debug!("{why}");
            self.scan(name, FRAGMENT_LIMIT)
        })
    }

    /// The map that this host has kept, if a repository holds the very segment that it describes.
    fn kept_map(&self, name: SegmentName) -> Result<SegmentMap, String> {
        let told = |error: Error| format!("no kept map of {name}: {}", chain(&error));
        let map = self.kept.read(self.system, name, self.size).map_err(told)?;
        let mut why = format!("no kept map of {name} fits a stored segment");
        for repository in &self.repositories {
            match check_beside(repository, self.system, name, &map) {
                Ok(()) if map.segment.major == self.major => return Ok(map),
                Ok(()) => {}
                Err(error) => why = told(error),
            }
        }
        Err(why)
    }

    /// Reads a segment anew.
    fn scan(&self, name: SegmentName, fragments: usize) -> Result<SegmentMap, String> {
        let start = name.start(self.size).ok_or_else(|| format!("{name} is no segment"))?;
        let described = Segment {
            system_identifier: self.system.0,
            timeline: name.timeline.0,
            start: start.0,
            size: u32::try_from(self.size.bytes()).map_err(|_| format!("{name} is too large"))?,
            major: self.major,
            sha256: [0; 32],
        };
        let mut scan = Scan(Scanner::new(described).keep_fragments(fragments));
        let path = self.pg_wal.join(name.to_string());
        let own = File::open(&path).and_then(|mut file| copy(&mut file, &mut scan));
        let mut why = match own {
            Ok(()) => return Ok(scan.0.finish()),
            Err(error) => format!("{}: {error}", path.display()),
        };
        for repository in &self.repositories {
            let mut scan = Scan(Scanner::new(described).keep_fragments(fragments));
            match wal::fetch(repository, self.system, &WalName::Segment(name), &mut scan) {
                Ok(_) => return Ok(scan.0.finish()),
                Err(error) => why = format!("{why}; repository \"{}\": {}", repository.name, chain(&error)),
            }
        }
        Err(format!(
            "neither a map of segment {name} nor the segment can be read ({why})"
        ))
    }
}

/// A scanner that can be written to.
struct Scan(Scanner);

impl Write for Scan {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.feed(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn copy(from: &mut File, to: &mut Scan) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
