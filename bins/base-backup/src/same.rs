//! Whether the WAL in a repository is what this server wrote. Names prove nothing: a server under which an older copy of its files was put
//! back (a snapshot of a virtual machine), or one of two that were promoted to the same timeline, writes other WAL under names that are
//! there already.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::digest::{Sha256, Sha256Digest};
use common::error::{Error, Kind, Result};
use common::postgres::{SegmentName, SystemId, WalName};
use common::repository::{Repository, wal};

/// Fails if the repository holds other content under the segment's name than `pg_wal` does. A segment that is gone there passes: PostgreSQL
/// removes only what archive_command has taken, and archive-push compares.
///
/// # Errors
/// `Refused` if the content differs; else what reading gave.
pub fn check(repository: &Repository, system: SystemId, pg_wal: &Path, name: SegmentName) -> Result<()> {
    let path = pg_wal.join(name.to_string());
    let read = |error| Error::io(error, format!("read {}", path.display()));
    let Some(own) = digest(&path).map_err(read)? else {
        return Ok(());
    };
    let stored = wal::stored_digest(repository, system, &WalName::Segment(name))?;
    if stored == own {
        return Ok(());
    }
    let message = format!(
        "repository \"{}\" holds another {name} than this server has written: SHA-256 {stored}, and here {own}",
        repository.name
    );
    Err(Error::new(Kind::Refused, message).hint(
        "an older copy of the data directory was put back, or another server has written on this timeline; until archive-push succeeds \
         again no backup can count: its message says what to do",
    ))
}

/// The digest of a segment; `None` if it is not there, or is renamed for reuse while it is read.
fn digest(path: &Path) -> std::io::Result<Option<Sha256Digest>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => sha256.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let same = path
        .metadata()
        .is_ok_and(|there| file.metadata().is_ok_and(|read| read.ino() == there.ino()));
    Ok(same.then(|| sha256.finish()))
}
