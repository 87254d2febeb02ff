//! The spool: whole, verified segments that were fetched ahead, for one data directory and one set of repositories.
//!
//! A file's name holds the digest of its content, which is checked again when it is handed over. Only whole files get
//! such a name; "absent" is never kept.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use common::digest::{Xxh3Hasher, xxh3_128};
use common::durable;
use common::error::{Context, Error, Kind, Result};
use common::leftovers::{self, LOCK_NAME};
use common::lock::FileLock;
use common::postgres::{SegmentName, SystemId};
use common::repository::pins::Pin;

use crate::place::Placing;

const CHUNK_BYTES: usize = 256 << 10;

/// How the name of a file ends that is still being fetched.
const PART: &str = ".part";

/// The spool of one data directory.
pub struct Spool {
    directory: PathBuf,
}

/// A file in the spool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spooled {
    /// The segment.
    pub name: SegmentName,
    path: PathBuf,
    digest: String,
}

impl Spool {
    /// The spool for the data directory at `data_directory` (absolute) and these repositories.
    pub fn new(root: &Path, cluster: &str, data_directory: &Path, system: SystemId, pins: &[Pin]) -> Self {
        let mut identity = data_directory.as_os_str().as_encoded_bytes().to_vec();
        identity.extend_from_slice(format!("\0{system}").as_bytes());
        for pin in pins {
            identity.extend_from_slice(format!("\0{}", pin.uuid).as_bytes());
        }
        Self {
            directory: root.join(cluster).join("get").join(xxh3_128(&identity).to_string()),
        }
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(&self) -> Result<()> {
        durable::create_dir_all(&self.directory, 0o700)
    }

    /// The file whose lock the one process holds that fetches ahead.
    pub fn lock_path(&self) -> PathBuf {
        self.directory.join(LOCK_NAME)
    }

    /// Whether a process fetches ahead now.
    pub fn is_being_filled(&self) -> bool {
        matches!(FileLock::try_acquire(&self.lock_path()), Ok(None))
    }

    /// The file that `name` is fetched into.
    pub fn part_path(&self, name: SegmentName) -> PathBuf {
        self.directory.join(format!("{name}{PART}"))
    }

    /// The whole file of a segment, if it is there.
    pub fn find(&self, name: SegmentName) -> Option<Spooled> {
        self.files().into_iter().find(|file| file.name == name)
    }

    /// Whole files, sorted by name.
    pub fn files(&self) -> Vec<Spooled> {
        let mut files: Vec<Spooled> = self
            .entries()
            .filter_map(|(file_name, path)| {
                let (name, digest) = file_name.split_once('-')?;
                Some(Spooled {
                    name: name.parse().ok()?,
                    path,
                    digest: digest.to_owned(),
                })
            })
            .collect();
        files.sort();
        files
    }

    fn entries(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
    }

    /// Removes what lies before `first`, on whichever timeline: recovery has gone past it. For the process that holds
    /// the lock only.
    pub fn forget_before(&self, first: SegmentName) {
        for file in self.files().iter().filter(|file| !file.is_at_or_after(first)) {
            let _ = std::fs::remove_file(&file.path);
        }
        // What a killed process left half done, it will not finish.
        for (_, path) in self.entries().filter(|(name, _)| name.ends_with(PART)) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Takes a whole file in: the part of `name`, whose content has this digest, becomes visible.
    ///
    /// # Errors
    /// What the file system says.
    pub fn admit(&self, name: SegmentName, digest: &str) -> Result<()> {
        durable::rename(&self.part_path(name), &self.directory.join(format!("{name}-{digest}")))
    }
}

/// Removes spools that nobody uses any more: of data directories that are gone, of repositories that were made anew.
pub fn collect_unused(root: &Path, cluster: &str) {
    leftovers::collect(&root.join(cluster), &["get", "push"], SystemTime::now());
}

impl Spooled {
    /// Whether it lies at the position of `first` or behind it. Timelines share positions.
    pub fn is_at_or_after(&self, first: SegmentName) -> bool {
        (self.name.log, self.name.segment) >= (first.log, first.segment)
    }

    /// Hands the file over to `destination`: renamed where that is possible, else copied. Its content is checked first.
    ///
    /// # Errors
    /// `Corrupt` if the content is not what was fetched; the file is removed then. Else what the file system says.
    pub fn hand_over(&self, destination: &Path) -> Result<()> {
        let mut file = File::open(&self.path).context(|| format!("open {}", self.path.display()))?;
        self.check(&mut file, &mut std::io::sink())?;
        if durable::rename(&self.path, destination).is_ok() {
            return Ok(());
        }
        // The spool is on another file system.
        let mut file = File::open(&self.path).context(|| format!("open {}", self.path.display()))?;
        let mut placing = Placing::begin(destination)?;
        self.check(&mut file, &mut placing)?;
        placing.finish()?;
        let _ = std::fs::remove_file(&self.path);
        Ok(())
    }

    fn check(&self, file: &mut File, out: &mut dyn Write) -> Result<()> {
        let mut hasher = Xxh3Hasher::new();
        let mut buffer = vec![0u8; CHUNK_BYTES];
        loop {
            let count = file
                .read(&mut buffer)
                .context(|| format!("read {}", self.path.display()))?;
            let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else {
                break;
            };
            hasher.update(chunk);
            out.write_all(chunk)
                .context(|| format!("copy {}", self.path.display()))?;
        }
        if hasher.finish().to_string() == self.digest {
            return Ok(());
        }
        let _ = std::fs::remove_file(&self.path);
        Err(Error::new(
            Kind::Corrupt,
            format!("{} is not what was fetched", self.path.display()),
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spool(root: &Path, uuid: &str) -> Spool {
        let pin = Pin {
            name: "local".into(),
            url: "file:///x".into(),
            uuid: uuid.into(),
        };
        let spool = Spool::new(root, "main", Path::new("/srv/data"), SystemId(7), &[pin]);
        spool.create().unwrap();
        spool
    }

    fn admit(spool: &Spool, name: &str, content: &[u8]) -> SegmentName {
        let name = name.parse().unwrap();
        std::fs::write(spool.part_path(name), content).unwrap();
        spool.admit(name, &xxh3_128(content).to_string()).unwrap();
        name
    }

    #[test]
    fn a_file_is_handed_over_once_and_only_as_it_was_fetched() {
        let root = tempfile::tempdir().unwrap();
        let spool = spool(root.path(), "a");
        let (good, bad) = (
            admit(&spool, "000000010000000000000001", b"good"),
            admit(&spool, "000000010000000000000002", b"fine"),
        );
        let destination = root.path().join("RECOVERYXLOG");
        spool.find(good).unwrap().hand_over(&destination).unwrap();
        assert_eq!(std::fs::read(&destination).unwrap(), b"good");
        assert!(spool.find(good).is_none());

        let damaged = spool.find(bad).unwrap();
        std::fs::write(&damaged.path, b"evil").unwrap();
        assert_eq!(damaged.hand_over(&destination).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(std::fs::read(&destination).unwrap(), b"good");
        assert!(spool.find(bad).is_none(), "it is not offered again");
    }

    #[test]
    fn another_repository_has_another_spool() {
        let root = tempfile::tempdir().unwrap();
        let name = admit(&spool(root.path(), "a"), "000000010000000000000001", b"x");
        assert!(spool(root.path(), "b").find(name).is_none());
    }

    #[test]
    fn what_recovery_has_passed_goes_and_other_timelines_at_its_position_stay() {
        let root = tempfile::tempdir().unwrap();
        let spool = spool(root.path(), "a");
        let names = [
            "000000010000000000000004",
            "000000010000000000000005",
            "000000020000000000000004",
            "000000030000000000000006",
        ]
        .map(|name| admit(&spool, name, b"x"));
        std::fs::write(spool.part_path(names[3]), b"half").unwrap();
        spool.forget_before(names[1]);
        let left: Vec<SegmentName> = spool.files().into_iter().map(|file| file.name).collect();
        assert_eq!(left, [names[1], names[3]]);
        assert!(!spool.part_path(names[3]).exists());
    }
}
