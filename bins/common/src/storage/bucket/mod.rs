//! A store in a bucket: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.
//!
//! The protocols are the library's (`object_store`); ours are the promises. A put is refused where the name is taken:
//! by `If-None-Match` where the store honours it (init tries that out, and [`Store::trust`] brings what it found), else by
//! looking first, which two creators at the same moment can deceive. Uploads carry SHA-256 digests that the store
//! verifies. An object is absent only if the store says so of the object: a missing bucket, a refusal and silence are
//! failures. Each request is bounded in time; asking again is for [`retrying`](super::retrying), except for the parts of
//! an upload, which only this store still has.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::multipart::PartId;
use object_store::path::Path as ObjectPath;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
    PutPayload,
};
use tokio::runtime::Runtime;

use super::{Exclusive, Key, Space, Stat, Store, Stored, Upload, already_exists, not_found};
use crate::digest::{HashingWriter, Sha256Digest};
use crate::error::{Error, Kind, Result};
use crate::retry::Policy;
use crate::time::UtcTime;

mod connect;
mod judge;
mod s3;
mod upload;
mod versions;
mod wire;

pub use connect::{BucketSettings, Classes, Secret, ServerSideEncryption, Service};

use connect::Clients;
use judge::{Verdict, is_absent, is_beyond_the_end, is_not_implemented, judge};
use wire::Clock;

/// No store takes an object of this size (5 TB at S3, 190 TB at Azure).
const MAX_OBJECT_BYTES: u64 = 1 << 48;

/// How names are kept from being taken twice, as far as is known.
const UNKNOWN: u8 = 0;
const IF_NONE_MATCH: u8 = 1;
const NOTHING: u8 = 2;

/// Objects in a bucket; clones are the same store.
#[derive(Clone)]
pub struct BucketStore(Arc<Inner>);

struct Inner {
    clients: Clients,
    prefix: String,
    classes: Classes,
    clock: Clock,
    /// For the parts of uploads.
    policy: Policy,
    creation: AtomicU8,
    /// Objects are locked, so the bucket keeps versions, and the oldest counts.
    keeps_versions: bool,
    /// Something in the bucket has answered, so there is one.
    seen: AtomicBool,
}

/// The one runtime, shared by all buckets of the process.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("bucket")
                .enable_all()
                .build()
                .map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|error| Error::new(Kind::Failed, "start the threads for object stores").because(error.clone()))
}

/// How long nothing may move before a request counts as hanging: less than anybody is ready to wait, so that it is sent
/// again.
fn stall(policy: Policy) -> Duration {
    (policy.patience / 4).clamp(Duration::from_secs(5), Duration::from_secs(30))
}

impl BucketStore {
    /// Prepares a store; nothing is asked of it yet. A failed part of an upload is sent again as `policy` says.
    ///
    /// # Errors
    /// `Config` if the settings cannot be used.
    pub fn new(settings: &BucketSettings, policy: Policy, now: UtcTime) -> Result<Self> {
        let clock = Clock::default();
        let _inside = runtime()?.enter();
        Ok(Self(Arc::new(Inner {
            clients: settings.connect(&clock, now, stall(policy))?,
            prefix: settings.prefix.clone(),
            classes: settings.classes.clone(),
            clock,
            policy,
            creation: AtomicU8::new(UNKNOWN),
            keeps_versions: matches!(settings.service, Service::S3 { lock: Some(_), .. }),
            seen: AtomicBool::new(false),
        })))
    }

    /// The object's name in the bucket, or the prefix of all.
    fn path(&self, key: Option<&Key>) -> Result<ObjectPath> {
        let text = match (self.0.prefix.as_str(), key) {
            (prefix, None) => prefix.to_owned(),
            ("", Some(key)) => key.to_string(),
            (prefix, Some(key)) => format!("{prefix}/{key}"),
        };
        ObjectPath::parse(&text)
            .map_err(|error| Error::new(Kind::Config, format!("{text:?} is no name for an object")).because(error))
    }

    /// The key of an object in the bucket; `None` for what is not of this repository.
    fn key(&self, path: &ObjectPath) -> Option<Key> {
        let text = match self.0.prefix.as_str() {
            "" => path.as_ref(),
            prefix => path.as_ref().strip_prefix(prefix)?.strip_prefix('/')?,
        };
        Key::parse(text).ok()
    }

    fn run<T>(&self, verb: &str, key: Option<&Key>, work: impl Future<Output = object_store::Result<T>>) -> Result<T> {
        match runtime()?.block_on(work) {
            Ok(done) => {
                self.0.seen.store(true, Ordering::Relaxed);
                Ok(done)
            }
            Err(error) => Err(judge(error, format!("{verb} {}", self.describe(key)))),
        }
    }

    /// The bucket, if the oldest version of an object in it is the one that counts.
    fn versioned(&self) -> Option<&s3::Bucket> {
        self.0.clients.bucket.as_ref().filter(|_| self.0.keeps_versions)
    }

    /// The client that creates an object: leases and trials are never locked.
    fn creating(&self, key: &Key) -> &Arc<dyn ObjectStore> {
        if is_short_lived(key) {
            &self.0.clients.plain
        } else {
            &self.0.clients.creating
        }
    }

    /// Storage class and the like of a new object.
    fn attributes(&self, key: &Key) -> Attributes {
        let mut attributes = Attributes::new();
        if let Some(class) = class(key, &self.0.classes) {
            attributes.insert(Attribute::StorageClass, class.to_owned().into());
        }
        attributes
    }

    /// Puts a whole object in one request.
    fn put(&self, key: &Key, body: Bytes) -> Result<()> {
        let creation = self.0.creation.load(Ordering::Relaxed);
        // A store that ignores If-None-Match would overwrite.
        // In front of a delete marker it would let a second object be made over the first.
        let is_told = creation == IF_NONE_MATCH && self.versioned().is_none();
        if !is_told && self.stat(key)?.is_some() {
            return Err(already_exists(self, key));
        }
        if creation == NOTHING {
            return self.run("store", Some(key), self.put_as(key, body, PutMode::Overwrite)?);
        }
        let outcome = runtime()?.block_on(self.put_as(key, body.clone(), PutMode::Create)?);
        match outcome {
            Err(error) if creation == UNKNOWN && is_not_implemented(&error) => {
                self.0.creation.store(NOTHING, Ordering::Relaxed);
                self.run("store", Some(key), self.put_as(key, body, PutMode::Overwrite)?)
            }
            Err(error) => {
                let error = judge(error, format!("store {}", self.describe(Some(key))));
                Err(match error.kind() {
                    Kind::AlreadyExists => already_exists(self, key),
                    // A put finds no object missing, so it is the bucket.
                    Kind::NotFound => error.with_kind(Kind::Failed),
                    _ => error,
                })
            }
            Ok(()) => Ok(()),
        }
    }

    /// [`put`](Self::put), sent again while that may help: only here the bytes are still there.
    fn put_patiently(&self, key: &Key, body: &Bytes, stored: Stored) -> Result<()> {
        let mut unclear = false;
        self.0.policy.run(format!("store {}", self.describe(Some(key))), || {
            let outcome = self.put(key, body.clone());
            match outcome {
                // An attempt of our own may have done it.
                Err(error) if unclear && error.kind() == Kind::AlreadyExists => match self.digest(key)? == stored {
                    true => Ok(()),
                    false => Err(error),
                },
                Err(error) => {
                    unclear |= error.kind() == Kind::Transient;
                    Err(error)
                }
                Ok(()) => Ok(()),
            }
        })
    }

    fn digest(&self, key: &Key) -> Result<Stored> {
        let mut reader = self.open(key, 0, None)?;
        let mut out = HashingWriter::new(io::sink());
        io::copy(&mut reader, &mut out)
            .map_err(|error| Error::io(error, format!("read back {}", self.describe(Some(key)))))?;
        let (_, size, sha256) = out.finish();
        Ok(Stored { size, sha256 })
    }

    fn put_as(
        &self,
        key: &Key,
        body: Bytes,
        mode: PutMode,
    ) -> Result<impl Future<Output = object_store::Result<()>> + use<>> {
        let options = PutOptions {
            mode,
            attributes: self.attributes(key),
            ..PutOptions::default()
        };
        let (path, client) = (self.path(Some(key))?, Arc::clone(self.creating(key)));
        Ok(async move {
            client
                .put_opts(&path, PutPayload::from_bytes(body), options)
                .await
                .map(|_| ())
        })
    }

    /// Begins an upload in parts and returns its name.
    fn begin_parts(&self, key: &Key) -> Result<String> {
        let path = self.path(Some(key))?;
        let what = || format!("begin to store {}", self.describe(Some(key)));
        self.0.policy.run(what(), || {
            let options = PutMultipartOptions {
                attributes: self.attributes(key),
                ..PutMultipartOptions::default()
            };
            let begin = self.0.clients.begin.create_multipart_opts(&path, options);
            self.run("begin to store", Some(key), begin).map_err(never_absent)
        })
    }

    fn put_part(&self, key: &Key, id: &String, number: usize, body: PutPayload) -> Result<PartId> {
        let path = self.path(Some(key))?;
        let what = format!("store part {} of {}", number + 1, self.describe(Some(key)));
        self.0.policy.run(what, || {
            let put = self.0.clients.parts.put_part(&path, id, number, body.clone());
            self.run(&format!("store part {} of", number + 1), Some(key), put)
                .map_err(never_absent)
        })
    }

    /// Makes the parts an object of `size` bytes.
    fn complete_parts(&self, key: &Key, id: &String, parts: Vec<PartId>, size: u64) -> Result<()> {
        let path = self.path(Some(key))?;
        let mut unclear = false;
        let what = format!("complete {}", self.describe(Some(key)));
        self.0
            .policy
            .run(what, || {
                let complete = self.0.clients.parts.complete_multipart(&path, id, parts.clone());
                let outcome = self.run("complete", Some(key), complete);
                match outcome {
                    Ok(_) => Ok(()),
                    // An earlier attempt may have done it, whatever its answer: then the upload is gone and the object there.
                    // Some say so in other words than NoSuchUpload.
                    Err(error) if unclear && error.kind() != Kind::Transient => {
                        match self.stat(key)?.filter(|stat| stat.size == size) {
                            Some(_) => Ok(()),
                            None => Err(never_absent(error)),
                        }
                    }
                    Err(error) => {
                        unclear |= error.kind() == Kind::Transient;
                        Err(error)
                    }
                }
            })
            .map_err(never_absent)
    }

    /// Throws an upload away, if that is possible now; else the bucket's lifecycle rule does.
    fn abort_parts(&self, key: &Key, id: &String) {
        let Ok(path) = self.path(Some(key)) else { return };
        let abort = self.0.clients.parts.abort_multipart(&path, id);
        if let Err(error) = self.run("give up", Some(key), abort) {
            log::debug!("{}", crate::error::chain(&error));
        }
    }

    /// Whether the answer "no such object" can be believed: the answer to HEAD does not tell an object from its bucket.
    fn prove_absent(&self, key: &Key, path: &ObjectPath) -> Result<()> {
        if self.0.seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        match runtime()?.block_on(self.0.clients.plain.get(path)) {
            // It has come into being meanwhile; a moment ago it was not there.
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) == Some(true) => {
                self.0.seen.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(judge(error, format!("look for {}", self.describe(Some(key))))),
        }
    }

    fn sweep_uploads(&self, bucket: &s3::Bucket, age: Duration) -> Result<u64> {
        let (prefix, begun_before) = (self.below(None)?, self.now()?.minus(age));
        let (mut from, mut swept) = (None, 0);
        loop {
            let page = self.run("list the uploads of", None, bucket.uploads(&prefix, from.as_ref()));
            let page = page.map_err(never_absent)?;
            let abandoned = page.found.iter().filter(|upload| {
                let path = ObjectPath::parse(&upload.key).ok();
                upload.at < begun_before && path.and_then(|path| self.key(&path)).is_some()
            });
            for upload in abandoned {
                match self.run("give up an upload of", None, bucket.abort(upload)) {
                    Ok(()) => swept += 1,
                    // Somebody else was quicker.
                    Err(error) if error.kind() == Kind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            from = page.next;
            if from.is_none() {
                return Ok(swept);
            }
        }
    }

    fn is_beyond_the_end(&self, error: &object_store::Error, key: &Key, from: u64) -> bool {
        match is_beyond_the_end(error) {
            Verdict::Yes => true,
            Verdict::No => false,
            Verdict::Look => matches!(self.stat(key), Ok(Some(stat)) if stat.size <= from),
        }
    }

    /// Tries whether the second creator of a name is refused.
    fn probe(&self) -> Result<Exclusive> {
        let mut bytes = [0u8; 8];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::new(Kind::Failed, "draw random bytes").because(error.to_string()))?;
        let key = Key::parse(&format!("probe-{}", crate::digest::hex(&bytes)))?;
        self.run(
            "store",
            Some(&key),
            self.put_as(&key, Bytes::from_static(b"1"), PutMode::Overwrite)?,
        )?;
        let second = runtime()?.block_on(self.put_as(&key, Bytes::from_static(b"2"), PutMode::Create)?);
        let found = match second {
            Ok(()) => Ok(Exclusive::Nothing),
            Err(error) if is_not_implemented(&error) => Ok(Exclusive::Nothing),
            Err(error) => match judge(error, "try If-None-Match") {
                refused if refused.kind() == Kind::AlreadyExists => Ok(Exclusive::IfNoneMatch),
                error => Err(error),
            },
        };
        if let Err(error) = self.delete(&key) {
            log::warn!("{} stays: {}", self.describe(Some(&key)), crate::error::chain(&error));
        }
        found
    }
}

/// A missing upload or bucket is no missing object.
fn never_absent(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound | Kind::AlreadyExists => error.with_kind(Kind::Failed),
        _ => error,
    }
}

/// Whether the object is to be deleted soon: a lease, a trial.
fn is_short_lived(key: &Key) -> bool {
    let mut components = key.components();
    components.next().is_some_and(|first| first.starts_with("probe-")) || components.next() == Some("lease")
}

/// The storage class of an object: of bundles, dumps' archives and segments only. What has to be read to know what is there
/// stays where it can be read at once.
fn class<'c>(key: &Key, classes: &'c Classes) -> Option<&'c str> {
    let mut components = key.components().skip(1);
    let name = key.name();
    match components.next()? {
        "backup" if components.nth(1) == Some("data") && name.contains(".tar.") => classes.backup.as_deref(),
        "dump" if name.contains(".dump") => classes.backup.as_deref(),
        "wal" if !name.contains(".map.") && !name.contains(".history.") => classes.wal.as_deref(),
        _ => None,
    }
}

/// An object's bytes as they come.
struct BodyReader {
    store: BucketStore,
    key: Key,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    piece: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.piece.is_empty() {
            match runtime()?.block_on(self.stream.next()) {
                None => return Ok(0),
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => {
                    let what = format!("read {}", self.store.describe(Some(&self.key)));
                    return Err(judge(error, what).into());
                }
            }
        }
        let length = self.piece.len().min(buffer.len());
        let piece = self.piece.split_to(length);
        if let Some(place) = buffer.get_mut(..length) {
            place.copy_from_slice(&piece);
        }
        Ok(length)
    }
}

impl Store for BucketStore {
    fn describe(&self, key: Option<&Key>) -> String {
        match key {
            Some(key) => format!("{}/{key}", self.0.clients.url),
            None => self.0.clients.url.clone(),
        }
    }

    fn create(&self, key: &Key) -> Result<Box<dyn Upload>> {
        Ok(Box::new(upload::BucketUpload::new(self.clone(), key.clone())))
    }

    fn put_new(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        self.put_undigested(key, body)?;
        Ok(Stored {
            size: body.len() as u64,
            sha256: Sha256Digest::of(body),
        })
    }

    fn put_undigested(&self, key: &Key, body: &[u8]) -> Result<()> {
        self.put(key, Bytes::copy_from_slice(body))
    }

    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn Read + Send>> {
        if length == Some(0) {
            return match self.stat(key)? {
                Some(_) => Ok(Box::new(io::empty())),
                None => Err(not_found(self, key)),
            };
        }
        // Not every store takes an end beyond what an object may have.
        let end = length
            .map(|length| from.saturating_add(length))
            .filter(|end| *end <= MAX_OBJECT_BYTES);
        let range = match end {
            Some(end) => Some(GetRange::Bounded(from..end)),
            None if from > 0 => Some(GetRange::Offset(from)),
            None => None,
        };
        let version = match self.versioned() {
            Some(bucket) => match self.oldest(bucket, key)? {
                Some(oldest) => Some(oldest.id),
                None => return Err(not_found(self, key)),
            },
            None => None,
        };
        let options = GetOptions {
            range,
            version,
            ..GetOptions::default()
        };
        let path = self.path(Some(key))?;
        match runtime()?.block_on(self.0.clients.plain.get_opts(&path, options)) {
            Ok(found) => {
                self.0.seen.store(true, Ordering::Relaxed);
                Ok(Box::new(BodyReader {
                    store: self.clone(),
                    key: key.clone(),
                    stream: found.into_stream(),
                    piece: Bytes::new(),
                }))
            }
            Err(error) if is_absent(&error) == Some(true) => Err(not_found(self, key)),
            Err(error) if self.is_beyond_the_end(&error, key, from) => Ok(Box::new(io::empty())),
            Err(error) => Err(judge(error, format!("read {}", self.describe(Some(key))))),
        }
    }

    fn stat(&self, key: &Key) -> Result<Option<Stat>> {
        if let Some(bucket) = self.versioned() {
            return Ok(self.oldest(bucket, key)?.as_ref().map(versions::stat_of));
        }
        let path = self.path(Some(key))?;
        match runtime()?.block_on(self.0.clients.plain.head(&path)) {
            Ok(found) => {
                self.0.seen.store(true, Ordering::Relaxed);
                stat_of(&found).map(Some)
            }
            Err(error) if is_absent(&error).is_some() => self.prove_absent(key, &path).map(|()| None),
            Err(error) => Err(judge(error, format!("look at {}", self.describe(Some(key))))),
        }
    }

    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, Stat) -> Result<()>) -> Result<()> {
        if let Some(bucket) = self.versioned() {
            return self.list_oldest(bucket, prefix, each);
        }
        let path = self.path(prefix)?;
        let mut found = self.0.clients.plain.list(Some(&path));
        let mut last: Option<Key> = None;
        while let Some(object) = runtime()?.block_on(found.next()) {
            let object = object.map_err(|error| judge(error, format!("list {}", self.describe(prefix))));
            let object = object.map_err(never_absent)?;
            self.0.seen.store(true, Ordering::Relaxed);
            let Some(key) = self.key(&object.location) else {
                log::warn!(
                    "{} in {} is none of the repository's: ignored",
                    object.location,
                    self.describe(None)
                );
                continue;
            };
            if last.as_ref() >= Some(&key) {
                let message = format!("list {}: the store does not sort by name", self.describe(prefix));
                return Err(Error::new(Kind::Failed, message));
            }
            each(key.clone(), stat_of(&object)?)?;
            last = Some(key);
        }
        Ok(())
    }

    fn list_overlaid(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, usize) -> Result<()>) -> Result<()> {
        match self.versioned() {
            Some(bucket) => self.overlaid(bucket, prefix, each),
            None => Ok(()),
        }
    }

    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>> {
        if let Some(bucket) = self.versioned() {
            return self.children_of_all_versions(bucket, prefix);
        }
        let path = self.path(prefix)?;
        let list = self.0.clients.plain.list_with_delimiter(Some(&path));
        let found = self.run("list", prefix, list).map_err(never_absent)?;
        let objects = found.objects.iter().map(|object| &object.location);
        let mut names: Vec<String> = objects
            .chain(&found.common_prefixes)
            .filter_map(|path| self.key(path).map(|key| key.name().to_owned()))
            .collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    fn delete(&self, key: &Key) -> Result<()> {
        if let Some(bucket) = self.versioned() {
            return self.delete_versions(bucket, key);
        }
        let path = self.path(Some(key))?;
        match runtime()?.block_on(self.0.clients.plain.delete(&path)) {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error).is_some() => self.prove_absent(key, &path),
            Err(error) => Err(judge(error, format!("delete {}", self.describe(Some(key))))),
        }
    }

    fn renew_lock(&self, key: &Key, until: UtcTime) -> Result<()> {
        self.lock_until(key, until)
    }

    fn move_aside(&self, from: &Key, to: &Key) -> Result<()> {
        if self.stat(to)?.is_some() {
            return Err(already_exists(self, to));
        }
        if self.stat(from)?.is_none() {
            return Err(not_found(self, from));
        }
        if self.versioned().is_some() {
            // The library copies the newest version.
            let mut upload = self.create(to)?;
            io::copy(&mut self.open(from, 0, None)?, &mut upload)
                .map_err(|error| Error::io(error, format!("copy {}", self.describe(Some(from)))))?;
            upload.finish()?;
            return self.delete(from);
        }
        let (source, target) = (self.path(Some(from))?, self.path(Some(to))?);
        self.run("copy", Some(from), self.0.clients.creating.copy(&source, &target))?;
        self.delete(from)
    }

    fn now(&self) -> Result<UtcTime> {
        if let Some(now) = self.0.clock.now() {
            return Ok(now);
        }
        // Any answer brings the time, a refusal too.
        let asked = self.children(None);
        match self.0.clock.now() {
            Some(now) => Ok(now),
            None => Err(asked.err().unwrap_or_else(|| {
                Error::new(
                    Kind::Failed,
                    format!("ask {} for the time: its answers have no date", self.describe(None)),
                )
            })),
        }
    }

    fn exclusive(&self) -> Exclusive {
        match self.0.creation.load(Ordering::Relaxed) {
            IF_NONE_MATCH => Exclusive::IfNoneMatch,
            NOTHING => Exclusive::Nothing,
            _ => match self.probe() {
                Ok(found) => {
                    self.trust(found);
                    found
                }
                Err(error) => {
                    log::debug!("{}", crate::error::chain(&error));
                    Exclusive::Unknown
                }
            },
        }
    }

    fn trust(&self, exclusive: Exclusive) {
        let creation = match exclusive {
            Exclusive::IfNoneMatch => IF_NONE_MATCH,
            Exclusive::Nothing => NOTHING,
            _ => return,
        };
        self.0.creation.store(creation, Ordering::Relaxed);
    }

    fn free_space(&self) -> Result<Option<Space>> {
        Ok(None)
    }

    /// Gives up uploads that were begun so long ago and not completed: nobody sees them, but they are paid for.
    fn sweep(&self, age: Duration) -> Result<u64> {
        match &self.0.clients.bucket {
            Some(bucket) => self.sweep_uploads(bucket, age),
            None => Ok(0),
        }
    }
}

fn stat_of(found: &object_store::ObjectMeta) -> Result<Stat> {
    let modified = found.last_modified;
    Ok(Stat {
        size: found.size,
        modified: UtcTime::from_unix(modified.timestamp(), i64::from(modified.timestamp_subsec_nanos()))?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_is_large_and_rarely_read_gets_a_storage_class() {
        let classes = Classes {
            backup: Some("GLACIER".into()),
            wal: Some("STANDARD_IA".into()),
        };
        let of = |key: &str| class(&Key::parse(key).unwrap(), &classes).map(str::to_owned);
        let backup = "main/backup/20261120T020000Z-full-3f9a1c";
        assert_eq!(of(&format!("{backup}/data/1.tar.zst.age")).as_deref(), Some("GLACIER"));
        assert_eq!(
            of("main/wal/7/0000000100000000/000000010000000000000001.zst").as_deref(),
            Some("STANDARD_IA")
        );
        for key in [
            format!("{backup}/data/1.index.zst"),
            format!("{backup}/manifest.zst"),
            format!("{backup}/backup.json"),
            "main/repository.json".to_owned(),
            "main/wal/7/0000000100000000/000000010000000000000001.map.zst".to_owned(),
            "main/wal/7/history/00000002.history.zst".to_owned(),
            "main/events/x.json".to_owned(),
        ] {
            assert_eq!(of(&key), None, "{key}");
        }
    }
}
