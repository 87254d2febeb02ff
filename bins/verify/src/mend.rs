//! Replaces what is damaged or missing by the copy of another repository. What is replaced moves to `damaged/`, and an event says so.

use std::io::{Read, Write};

use common::codec::{CompressedStream, ContentKind, compress_once};
use common::digest::{Sha256, Sha256Digest};
use common::error::{Error, Kind, Result};
use common::postgres::{SystemId, WalName};
use common::repository::backup::{self, ObjectRecord};
use common::repository::dumps;
use common::repository::events::{self, What};
use common::repository::wal::{self, mapped_name, stored_name};
use common::repository::{Nonce, Repository};
use common::storage::Key;
use common::time::UtcTime;

/// The two repositories, and how to write.
pub struct Mending<'a> {
    /// What is mended.
    pub target: &'a Repository,
    /// Where good copies come from.
    pub source: &'a Repository,
    /// zstd's level.
    pub level: i32,
    /// This host.
    pub host: &'a str,
}

impl Mending<'_> {
    /// Mends one object; says how.
    ///
    /// # Errors
    /// Why it cannot be mended; then it is as it was, or moved to `damaged/` if it was there.
    pub fn mend(&self, key: &Key) -> Result<String> {
        let text = key.to_string();
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [_, "wal", system, _, name] => self.wal(key, system, name),
            [_, "backup", label, rest @ ..] => {
                let info = backup::read(self.target, label.parse()?)?;
                self.exact(key, record(&info.objects, &rest.join("/"))?)
            }
            [_, "dump", label, rest @ ..] => {
                let info = dumps::read(self.target, label.parse()?)?;
                self.exact(key, record(&info.objects, &rest.join("/"))?)
            }
            _ => Err(Error::new(Kind::Refused, "this kind of object cannot be mended")),
        }
    }

    /// WAL is read from the other repository, verified, and stored as it is stored here.
    fn wal(&self, key: &Key, system: &str, name: &str) -> Result<String> {
        let system: SystemId = system
            .parse()
            .map(SystemId)
            .map_err(|error| Error::new(Kind::Refused, "its system identifier is no number").because(error))?;
        if mapped_name(name).is_some() {
            // Nothing is lost with a map, and the next verify says that it is not there.
            return self
                .aside(key)
                .map(|moved| format!("moved to {moved}: a map is not needed for recovery"));
        }
        let name = stored_name(name).ok_or_else(|| Error::new(Kind::Refused, "it is no WAL file"))?;
        let content = self.fetch(system, &name)?;
        let moved = self.aside(key)?;
        wal::put(self.target, system, &name, &content, UtcTime::now(), self.host)?;
        Ok(format!(
            "replaced by the copy of repository \"{}\"; the old one is {moved}",
            self.source.name
        ))
    }

    fn fetch(&self, system: SystemId, name: &WalName) -> Result<CompressedStream> {
        let mut plain = Vec::new();
        wal::fetch(self.source, system, name, &mut plain)?;
        compress_once(&plain[..], plain.len() as u64, ContentKind::Wal, self.level).map(|(stream, _)| stream)
    }

    /// An object of a backup or a dump has to be the very bytes that its document names; both repositories have the same cluster, so the
    /// same key.
    fn exact(&self, key: &Key, wanted: Sha256Digest) -> Result<String> {
        let bytes = self.source.store.open(key, 0, None);
        let cannot = |why: String| {
            Error::new(Kind::Refused, why).hint(
                "the two repositories hold different bytes of it: move the label's directory away and let pgkeep-sync copy \
                 all of it",
            )
        };
        let source = bytes.map_err(|error| cannot("it cannot be read there".to_owned()).because(error))?;
        let found = digest(source)?;
        if found != wanted {
            return Err(cannot(format!(
                "repository \"{}\" has SHA-256 {found} under this name, and {wanted} is needed",
                self.source.name
            )));
        }
        let moved = self.aside(key)?;
        let mut source = self.source.store.open(key, 0, None)?;
        let mut upload = self.target.store.create(key)?;
        std::io::copy(&mut source, &mut upload).map_err(|error| Error::io(error, "copy it"))?;
        upload.flush().map_err(|error| Error::io(error, "copy it"))?;
        let stored = upload.finish()?;
        if stored.sha256 != wanted {
            return Err(Error::new(
                Kind::Corrupt,
                "it changed while it was copied: verify again",
            ));
        }
        Ok(format!(
            "replaced by the copy of repository \"{}\"; the old one is {moved}",
            self.source.name
        ))
    }

    /// Moves what stands under a key to `damaged/`, and notes it; says where it is.
    fn aside(&self, key: &Key) -> Result<String> {
        let now = UtcTime::now();
        let moved = match self.target.store.stat(key)? {
            None => None,
            Some(_) => {
                let aside = self.target.keys().damaged(now, Nonce::random()?, key)?;
                self.target.store.move_aside(key, &aside)?;
                Some(aside.to_string())
            }
        };
        let what = What::Damage {
            key: key.to_string(),
            found: "found by verify".to_owned(),
            moved_to: moved.clone(),
        };
        events::append(self.target, now, self.host, what)?;
        Ok(moved.unwrap_or_else(|| "gone".to_owned()))
    }
}

fn record(objects: &[ObjectRecord], name: &str) -> Result<Sha256Digest> {
    let record = objects.iter().find(|object| object.key == name);
    let missing = || Error::new(Kind::Refused, format!("its document does not list {name}"));
    record.map(|record| record.sha256).ok_or_else(missing)
}

fn digest(mut source: impl Read) -> Result<Sha256Digest> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(digest.finish()),
            Ok(count) => digest.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(error, "read the copy")),
        }
    }
}
