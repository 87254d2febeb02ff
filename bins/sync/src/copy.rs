//! One object from one repository into another, verified on the way.
//!
//! Where both are sealed to the same recipients, or not at all, the stored bytes are copied as they are. Else the source is
//! opened and sealed anew; the compressed stream inside stays the same, so all tables stay right.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use common::codec::{Descriptor, Sealing, decode_to, peek};
use common::digest::{HashingWriter, Sha256Digest};
use common::error::{Context, Error, Kind, Result};
use common::repository::Repository;
use common::storage::{Key, Stored};

/// How objects get from one repository into another.
pub struct Route<'a> {
    /// Where they are.
    pub source: &'a Repository,
    /// Where they come.
    pub target: &'a Repository,
    /// Where an object waits until it has been verified.
    pub spool: &'a Path,
    data: bool,
    metadata: bool,
}

impl<'a> Route<'a> {
    /// Finds out whether the stored bytes can be copied as they are.
    ///
    /// # Errors
    /// `Config` if the source has to be opened and there is no key for it; what reading the identities gave.
    pub fn new(source: &'a Repository, target: &'a Repository, spool: &'a Path) -> Result<Self> {
        let missing = |error: Error| match error.kind() {
            Kind::NotFound => error.hint("is it mounted, is the url right? a new repository is made by pgkeep-init"),
            _ => error,
        };
        let from = source.identity().map_err(missing)?.encrypted;
        let to = target.identity_for_writing().map_err(missing)?.encrypted;
        let same = |a: &Sealing, b: &Sealing| from == to && a.recipients() == b.recipients();
        let data = !same(&source.sealing, &target.sealing);
        let metadata = !same(&source.metadata_sealing, &target.metadata_sealing);
        if from && (data || metadata) && !source.opening.has_identity() {
            let why = source.opening.why_unusable().map(Error::copy);
            let message = format!(
                "repositories \"{}\" and \"{}\" have other recipients, and no identity here opens the first",
                source.name, target.name
            );
            let error = Error::new(Kind::Config, message).hint(
                "give --identity FILE, or run this where the identity is; with the same recipients none is needed",
            );
            return Err(match why {
                Some(why) => error.because(why),
                None => error,
            });
        }
        Ok(Self {
            source,
            target,
            spool,
            data,
            metadata,
        })
    }

    /// Whether this kind of object is sealed anew.
    pub fn reseals(&self, metadata: bool) -> bool {
        if metadata { self.metadata } else { self.data }
    }

    fn sealing(&self, metadata: bool) -> &Sealing {
        match metadata {
            true => &self.target.metadata_sealing,
            false => &self.target.sealing,
        }
    }

    /// Copies an object whose stored bytes have this digest.
    ///
    /// # Errors
    /// `Corrupt` if the source's bytes are others; then nothing is created. `AlreadyExists` if the target has the name.
    pub fn digested(&self, from: &Key, to: &Key, metadata: bool, sha256: Sha256Digest) -> Result<Stored> {
        let place = self.source.store.describe(Some(from));
        let mut reader = Hashed {
            inner: self.source.store.open(from, 0, None)?,
            sha256: common::digest::Sha256::new(),
        };
        let mut upload = self.target.store.create(to)?;
        let reading = || format!("copy {place}");
        if self.reseals(metadata) {
            let sealed = self.source.identity()?.encrypted;
            let mut opened = self.source.opening.open(&mut reader, sealed)?;
            let mut out = self.sealing(metadata).wrap(&mut upload, None)?;
            io::copy(&mut opened, &mut out).context(reading)?;
            out.finish()?;
            drop(opened);
        } else {
            io::copy(&mut reader, &mut upload).context(reading)?;
        }
        // Whatever opening left unread belongs to the object too.
        io::copy(&mut reader, &mut io::sink()).context(reading)?;
        let found = reader.sha256.finish();
        if found != sha256 {
            let message = format!("{place} is damaged: its SHA-256 is {found}, and its backup says {sha256}");
            return Err(Error::new(Kind::Corrupt, message)
                .hint("it is not copied; another repository may have it whole, and the next full backup replaces it"));
        }
        upload.finish()
    }

    /// Copies a WAL file or a map, whose descriptor tells what it must hold; returns the stored bytes.
    ///
    /// # Errors
    /// `Corrupt` if the source is damaged; then nothing is created. `AlreadyExists` if the target has the name.
    pub fn described(&self, from: &Key, to: &Key, metadata: bool) -> Result<Stored> {
        let mut held = self.hold(from)?;
        let descriptor = self.verify(from, &mut held)?;
        let rewind = |held: &mut File| held.rewind().context(|| "read a held object again");
        rewind(&mut held)?;
        let mut upload = self.target.store.create(to)?;
        let copying = || format!("write {}", self.target.store.describe(Some(to)));
        if self.reseals(metadata) {
            let sealed = self.source.identity()?.encrypted;
            let mut opened = self.source.opening.open(&mut held, sealed)?;
            let mut out = self.sealing(metadata).wrap(&mut upload, Some(&descriptor))?;
            io::copy(&mut opened, &mut out).context(copying)?;
            out.finish()?;
        } else {
            io::copy(&mut held, &mut upload).context(copying)?;
        }
        upload.finish()
    }

    /// Brings an object here, so that it is verified before its first byte goes on.
    fn hold(&self, key: &Key) -> Result<File> {
        let holding = || format!("hold a copy in {}", self.spool.display());
        let mut held = tempfile::tempfile_in(self.spool).context(holding)?;
        let mut reader = self.source.store.open(key, 0, None)?;
        io::copy(&mut reader, &mut held).context(|| format!("read {}", self.source.store.describe(Some(key))))?;
        held.rewind().context(holding)?;
        Ok(held)
    }

    /// Compares an object with its descriptor: the whole content where it can be opened, else its length.
    fn verify(&self, key: &Key, held: &mut File) -> Result<Descriptor> {
        let damaged = |error: Error| {
            let place = self.source.store.describe(Some(key));
            match error.kind() {
                Kind::Corrupt => error
                    .context(format!("{place} is damaged and not copied"))
                    .hint("the server may still have the segment in pg_wal; else recovery through it is not possible from here"),
                _ => error.context(format!("read {place}")),
            }
        };
        let sealed = self.source.identity()?.encrypted;
        if sealed && !self.source.opening.has_identity() {
            let size = held.metadata().context(|| "look at a held object")?.len();
            let mut first = vec![0; usize::try_from(size.min(PEEK_BYTES)).unwrap_or(0)];
            held.read_exact(&mut first).context(|| "read a held object")?;
            let peek = peek(&first).map_err(damaged)?;
            if peek.stored_size != size {
                let message = format!("it has {size} bytes, and its descriptor says {}", peek.stored_size);
                return Err(damaged(Error::new(Kind::Corrupt, message)));
            }
            return Ok(peek.descriptor);
        }
        decode_to(held, &self.source.opening, sealed, &mut io::sink()).map_err(damaged)
    }
}

/// Enough for an age header with many recipients.
const PEEK_BYTES: u64 = 16 << 10;

/// Digests what is read through it.
struct Hashed<R> {
    inner: R,
    sha256: common::digest::Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sha256.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

/// The digest and size of an object that is there already.
///
/// # Errors
/// What reading gave.
pub fn look_at(repository: &Repository, key: &Key) -> Result<Stored> {
    let mut reader = repository.store.open(key, 0, None)?;
    let mut out = HashingWriter::new(io::sink());
    io::copy(&mut reader, &mut out).context(|| format!("read {}", repository.store.describe(Some(key))))?;
    out.flush().context(|| "digest an object")?;
    let (_, size, sha256) = out.finish();
    Ok(Stored { size, sha256 })
}
