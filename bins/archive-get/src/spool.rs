//! The spool: whole, verified segments that were fetched ahead, for one data directory and one set of repositories.
//!
//! A file's name holds the digest of its content, which is checked again when it is handed over. Only whole files get
//! such a name; "absent" is never kept.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use common::digest::{Xxh3Hasher, xxh3_128};
use common::durable;
use common::error::{Context, Error, Kind, Result};
use common::postgres::{SegmentName, SystemId};
use common::repository::pins::Pin;

use crate::place::Placing;

const CHUNK_BYTES: usize = 256 << 10;

/// The spool of one data directory.
pub struct Spool {
    directory: PathBuf,
}

/// A file in the spool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spooled {
    /// The segment.
    pub name: String,
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
        self.directory.join("lock")
    }

    /// The file that is locked while `name` is being fetched.
    pub fn part_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.part"))
    }

    /// Whole files, sorted by name.
    pub fn files(&self) -> Vec<Spooled> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        let mut files: Vec<Spooled> = entries
            .flatten()
            .filter_map(|entry| {
                let file_name = entry.file_name().into_string().ok()?;
                let (name, digest) = file_name.split_once('-')?;
                name.parse::<SegmentName>().ok()?;
                Some(Spooled {
                    name: name.to_owned(),
                    path: entry.path(),
                    digest: digest.to_owned(),
                })
            })
            .collect();
        files.sort();
        files
    }

    /// Removes what is older than `name`: recovery has gone past it.
    pub fn forget_before(&self, name: &str) {
        for file in self.files().iter().filter(|file| file.name.as_str() < name) {
            let _ = std::fs::remove_file(&file.path);
        }
    }

    /// Takes a whole file in: `part`, whose content has this digest, becomes visible.
    ///
    /// # Errors
    /// What the file system says.
    pub fn admit(&self, part: &Path, name: &str, digest: &str) -> Result<()> {
        durable::rename(part, &self.directory.join(format!("{name}-{digest}")))
    }
}

impl Spooled {
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
