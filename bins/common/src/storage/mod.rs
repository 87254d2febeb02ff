//! Transport: objects under names, in a directory, a bucket, on another host, in memory.
//!
//! A [`Store`] promises that an object appears whole, durable and under a name that was free, or not at all,
//! and that it never calls absent what it could not look for. What the objects mean is the repository's
//! business; what they hold is the codec's. [`contract`] is the suite that every store passes; [`retrying`],
//! [`limited`] and [`faulty`] wrap any store.

use std::fmt;
use std::io::{Read, Write};

use crate::digest::Sha256Digest;
use crate::error::{Error, Kind, Result};
use crate::time::UtcTime;

pub mod bucket;
pub mod contract;
pub mod faulty;
mod key;
pub mod limited;
pub mod memory;
pub mod posix;
mod reader;
pub mod retrying;
pub mod sftp;

pub use key::Key;
pub use reader::{ObjectReader, read_all};

/// What a store says about an object without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Stored bytes.
    pub size: u64,
    /// When it was stored, by the store's clock.
    pub modified: UtcTime,
}

/// What was stored: the bytes as they lie in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Their number.
    pub size: u64,
    /// Their digest.
    pub sha256: Sha256Digest,
}

/// How a store makes sure that of two creators of a name one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exclusive {
    /// link(2), or its SFTP extension.
    HardLink,
    /// renameat2(2) with RENAME_NOREPLACE.
    RenameNoReplace,
    /// open(2) with O_EXCL: for a moment, and after a crash, an empty object may be seen.
    OExcl,
    /// HTTP's `If-None-Match: *`, honoured by the object store.
    IfNoneMatch,
    /// A lock in this process.
    InMemory,
    /// Nothing: two creators at the same moment may both believe that they succeeded.
    Nothing,
    /// It could not be found out.
    Unknown,
}

const EXCLUSIVE_WORDS: [(Exclusive, &str); 6] = [
    (Exclusive::HardLink, "hard-link"),
    (Exclusive::RenameNoReplace, "rename-noreplace"),
    (Exclusive::OExcl, "o-excl"),
    (Exclusive::IfNoneMatch, "if-none-match"),
    (Exclusive::InMemory, "in-memory"),
    (Exclusive::Nothing, "none"),
];

impl Exclusive {
    /// The word for it in `repository.json`; `None` if it is not known.
    pub fn word(self) -> Option<&'static str> {
        EXCLUSIVE_WORDS
            .iter()
            .find_map(|(exclusive, word)| (*exclusive == self).then_some(*word))
    }

    /// What a word in `repository.json` means; a word of a later version is not known.
    pub fn from_word(word: &str) -> Self {
        EXCLUSIVE_WORDS
            .iter()
            .find_map(|(exclusive, known)| (*known == word).then_some(*exclusive))
            .unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HardLink => "hard link",
            Self::RenameNoReplace => "rename without replacing",
            Self::OExcl => "exclusive open",
            Self::IfNoneMatch => "If-None-Match",
            Self::InMemory => "in memory",
            Self::Nothing => "none",
            Self::Unknown => "unknown",
        })
    }
}

/// What a store can promise about an object that it calls stored, should the power go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Content and name are on the disk, or wherever the store keeps them for good.
    Synced,
    /// The content is; the name as soon as the file system's journal gets to it.
    NamesLater,
    /// The store cannot be asked to sync: what was stored in the last seconds may be lost with its power.
    Unsynced,
    /// It could not be found out.
    Unknown,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Synced => "synced",
            Self::NamesLater => "content synced, names when the file system gets to it",
            Self::Unsynced => "the server does not sync",
            Self::Unknown => "unknown",
        })
    }
}

/// The room on the file system behind a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it, in bytes.
    pub total: u64,
    /// What an ordinary user may still fill.
    pub available: u64,
}

/// An object being written. Dropped without [`finish`](Upload::finish), it leaves nothing that can be seen.
pub trait Upload: Write + Send {
    /// Makes the object visible under its name; it is durable on return.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; then what has it is durable too.
    fn finish(self: Box<Self>) -> Result<Stored>;
}

/// Objects under [`Key`]s, each created once and never overwritten.
pub trait Store: Send + Sync {
    /// The store, or an object in it, as messages name it.
    fn describe(&self, key: Option<&Key>) -> String;

    /// Makes what has to be there before the first object: a local store's directory. Harmless where it is there.
    ///
    /// # Errors
    /// What the store says.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Begins a new object. Whether the name is free may show only at the end.
    ///
    /// # Errors
    /// `AlreadyExists` where the store knows it this early.
    fn create(&self, key: &Key) -> Result<Box<dyn Upload>>;

    /// Stores a new object in one go.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; then what has it is durable too.
    fn put_new(&self, key: &Key, body: &[u8]) -> Result<Stored> {
        let mut upload = self.create(key)?;
        let written = upload.write_all(body);
        written.map_err(|error| Error::io(error, format!("write {}", self.describe(Some(key)))))?;
        upload.finish()
    }

    /// As [`put_new`](Store::put_new), for callers who need no digest of the stored bytes; a store that needs none itself
    /// does not compute it.
    ///
    /// # Errors
    /// As for [`put_new`](Store::put_new).
    fn put_undigested(&self, key: &Key, body: &[u8]) -> Result<()> {
        self.put_new(key, body).map(|_| ())
    }

    /// Reads an object from an offset, to its end or at most so many bytes. What lies beyond the end is not
    /// an error: there is just less to read.
    ///
    /// # Errors
    /// `NotFound` only if there surely is no such object.
    fn open(&self, key: &Key, from: u64, length: Option<u64>) -> Result<Box<dyn Read + Send>>;

    /// Looks at an object without reading it; `None` only if there surely is none.
    ///
    /// # Errors
    /// Everything that keeps the store from being sure.
    fn stat(&self, key: &Key) -> Result<Option<Stat>>;

    /// Shows every object below `prefix` (whole components) in the order of the keys' bytes. What is created
    /// or deleted meanwhile may be shown or not. An error of `each` ends it and is returned.
    ///
    /// # Errors
    /// Everything that keeps the listing from being complete.
    fn list(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, Stat) -> Result<()>) -> Result<()>;

    /// Shows the objects below `prefix` that were overwritten or deleted in a store that keeps versions, with how many versions and marks
    /// lie over the one that counts. Other stores have none.
    ///
    /// # Errors
    /// Everything that keeps the listing from being complete.
    fn list_overlaid(&self, prefix: Option<&Key>, each: &mut dyn FnMut(Key, usize) -> Result<()>) -> Result<()> {
        let _ = (prefix, each);
        Ok(())
    }

    /// The names directly below `prefix`, of objects and of what has objects below it, sorted.
    ///
    /// # Errors
    /// Everything that keeps the listing from being complete.
    fn children(&self, prefix: Option<&Key>) -> Result<Vec<String>>;

    /// Deletes an object, durably; if there is none, that is fine.
    ///
    /// # Errors
    /// Whatever keeps it from being gone.
    fn delete(&self, key: &Key) -> Result<()>;

    /// Keeps an object from being deleted or overwritten until then, where the store can; a lock is never shortened.
    ///
    /// # Errors
    /// `NotFound` without the object; `Config` where the store locks nothing; else what the store says.
    fn renew_lock(&self, key: &Key, until: UtcTime) -> Result<()> {
        let _ = until;
        let place = self.describe(Some(key));
        Err(Error::new(
            Kind::Config,
            format!("{place}: this store has no object locks"),
        ))
    }

    /// Gives an object another name, which must be free.
    ///
    /// # Errors
    /// `NotFound` without the object, `AlreadyExists` if the name is taken.
    fn move_aside(&self, from: &Key, to: &Key) -> Result<()>;

    /// The time by the store's own clock.
    ///
    /// # Errors
    /// Whatever keeps it from being asked.
    fn now(&self) -> Result<UtcTime>;

    /// Which mechanism keeps names from being taken twice.
    fn exclusive(&self) -> Exclusive;

    /// What "stored" means here should the power go.
    fn durability(&self) -> Durability {
        Durability::Synced
    }

    /// Tells the store what was found out before about [`exclusive`](Store::exclusive), so that it need not try again.
    fn trust(&self, exclusive: Exclusive) {
        let _ = exclusive;
    }

    /// The room that is left, where that can be known.
    ///
    /// # Errors
    /// Whatever keeps it from being asked.
    fn free_space(&self) -> Result<Option<Space>>;

    /// Removes what writers that died more than `age` ago left behind unseen; returns how many pieces it was.
    ///
    /// # Errors
    /// Whatever keeps it from looking.
    fn sweep(&self, age: std::time::Duration) -> Result<u64> {
        let _ = age;
        Ok(0)
    }
}

/// The hint of every store that finds no directory where its objects should be; `init` knows by it that there is none.
pub const NO_ROOT_HINT: &str = "is the file system mounted? a new repository is created by pgkeep-init";

/// An error that says what cannot be found, for stores whose own message would be poorer.
fn not_found(store: &dyn Store, key: &Key) -> Error {
    Error::new(Kind::NotFound, format!("{} does not exist", store.describe(Some(key))))
}

/// An error that says which name is taken.
fn already_exists(store: &dyn Store, key: &Key) -> Error {
    Error::new(
        Kind::AlreadyExists,
        format!("{} already exists", store.describe(Some(key))),
    )
}
