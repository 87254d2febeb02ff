//! What this host keeps of the last chain of backups: their manifests and the digests of their pages.
//!
//! `<state>/<cluster>/chain/<label>/` holds `manifest.zst`, the compressed stream of the manifest, its CRC32C in `manifest.crc32c`, and
//! `<n>.index` with the plain index of each bundle. A host without the key can open nothing in its repositories, and this is what
//! its incremental backups go by; any other host saves itself the way to the repository. Only complete and sound files count; what is
//! missing is no error, since it can be fetched, or a full backup be taken.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::digest::{crc32c, crc32c_append};
use crate::durable;
use crate::error::{Context, Result, chain};
use crate::repository::Label;
use crate::repository::backup::BackupInfo;

/// The directory that holds it.
#[derive(Debug, Clone)]
pub struct Chain {
    directory: PathBuf,
}

impl Chain {
    /// Below the state directory of a cluster.
    pub fn new(state: &Path) -> Self {
        Self {
            directory: state.join("chain"),
        }
    }

    fn of(&self, label: Label) -> PathBuf {
        self.directory.join(label.to_string())
    }

    /// Where the index of a bundle is or would be.
    pub fn index_path(&self, label: Label, bundle: u32) -> PathBuf {
        self.of(label).join(format!("{bundle}.index"))
    }

    /// Keeps the index of a bundle. What cannot be kept costs time or a full backup later, and nothing now.
    pub fn keep_index(&self, label: Label, bundle: u32, index: &[u8]) {
        let path = self.index_path(label, bundle);
        let kept = durable::create_dir_all(&self.of(label), 0o700)
            .and_then(|()| durable::replace_unsynced(&path, index, 0o600));
        if let Err(error) = kept {
            log::debug!("cannot keep {}: {}", path.display(), chain(&error));
        }
    }

    /// Begins to keep the manifest of a backup.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep_manifest(&self, label: Label) -> Result<KeptManifest> {
        let directory = self.of(label);
        durable::create_dir_all(&directory, 0o700)?;
        let path = directory.join("manifest.zst");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .context(|| format!("create {}", path.display()))?;
        Ok(KeptManifest {
            out: BufWriter::new(file),
            crc: 0,
            sums: directory.join("manifest.crc32c"),
        })
    }

    /// The manifest's compressed stream, if it is here and sound.
    pub fn manifest(&self, label: Label) -> Option<File> {
        let directory = self.of(label);
        let sum = std::fs::read_to_string(directory.join("manifest.crc32c")).ok()?;
        let mut file = File::open(directory.join("manifest.zst")).ok()?;
        let mut crc = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).ok()? {
                0 => break,
                count => crc = crc32c_append(crc, buffer.get(..count)?),
            }
        }
        (sum.trim() == format!("{crc:08x}")).then_some(file)
    }

    /// Says what of a backup is not here, if anything is missing for a host that can read nothing else.
    pub fn lacks(&self, info: &BackupInfo) -> Option<String> {
        if self.manifest(info.label).is_none() {
            return Some(format!("the manifest of {}", info.label));
        }
        let bundle = |key: &str| key.strip_prefix("data/")?.split_once(".tar.zst")?.0.parse::<u32>().ok();
        let mut bundles = info.objects.iter().filter_map(|object| bundle(&object.key));
        let missing = bundles.find(|bundle| !self.index_path(info.label, *bundle).exists())?;
        Some(format!("the index of bundle {missing} of {}", info.label))
    }

    /// Forgets all but these backups.
    pub fn retain(&self, labels: &BTreeSet<Label>) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let label: Option<Label> = name.to_str().and_then(|name| name.parse().ok());
            if label.is_some_and(|label| !labels.contains(&label))
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                log::debug!("cannot remove {}: {error}", entry.path().display());
            }
        }
    }
}

/// The local copy of a manifest being written.
pub struct KeptManifest {
    out: BufWriter<File>,
    crc: u32,
    sums: PathBuf,
}

impl KeptManifest {
    /// Ends it: from now on it counts.
    ///
    /// # Errors
    /// What the file system says.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().context(|| "keep the manifest")?;
        durable::replace_unsynced(&self.sums, format!("{:08x}\n", self.crc).as_bytes(), 0o600)
    }
}

impl Write for KeptManifest {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.crc = crc32c_append(self.crc, bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Whether the bytes of an index are sound: it ends with the CRC32C of the rest.
pub fn is_sound(index: &[u8]) -> bool {
    index
        .split_last_chunk::<4>()
        .is_some_and(|(body, crc)| crc32c(body) == u32::from_le_bytes(*crc))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn label(nonce: &str) -> Label {
        format!("20261120T020000Z-full-{nonce}").parse().unwrap()
    }

    fn keep(chain: &Chain, label: Label, bytes: &[u8]) {
        let mut kept = chain.keep_manifest(label).unwrap();
        kept.write_all(bytes).unwrap();
        kept.finish().unwrap();
    }

    #[test]
    fn a_manifest_counts_only_when_it_is_whole_and_sound() {
        let dir = tempfile::tempdir().unwrap();
        let chain = Chain::new(dir.path());
        let one = label("000001");
        assert!(chain.manifest(one).is_none());
        keep(&chain, one, b"a manifest");
        assert!(chain.manifest(one).is_some());
        let path = dir.path().join(format!("chain/{one}/manifest.zst"));
        for damaged in [&b"a manifesu"[..], b"a manifes", b""] {
            std::fs::write(&path, damaged).unwrap();
            assert!(chain.manifest(one).is_none());
        }
        let mut unfinished = chain.keep_manifest(label("000002")).unwrap();
        unfinished.write_all(b"half").unwrap();
        drop(unfinished);
        assert!(chain.manifest(label("000002")).is_none());
    }

    #[test]
    fn all_but_the_last_chain_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let chain = Chain::new(dir.path());
        for nonce in ["000001", "000002", "000003"] {
            keep(&chain, label(nonce), b"x");
            chain.keep_index(label(nonce), 1, b"index");
        }
        chain.retain(&BTreeSet::from([label("000002")]));
        assert!(chain.manifest(label("000002")).is_some() && chain.index_path(label("000002"), 1).exists());
        for nonce in ["000001", "000003"] {
            assert!(!dir.path().join(format!("chain/{}", label(nonce))).exists());
        }
    }
}
