//! Logical dumps (FORMAT.md, section 12): what `dump.json` says in clear, and what is sealed where the repository is.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use crate::codec::{FrameReader, FrameWriter, SeekableReader};
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::archive::Archive;
use crate::repository::backup::ObjectRecord;
use crate::repository::writer::Copies;
use crate::repository::{DumpLabel, FORMAT, Label, Repository, document, reader};
use crate::storage::ObjectReader;
use crate::time::UtcTime;

/// What makes it a dump, written last.
pub const DOCUMENT: &str = "dump.json";
/// Names of databases, schemas and tables: sealed where the repository is.
pub const CONTENTS: &str = "contents.json.zst";
/// Roles and tablespaces, as SQL.
pub const GLOBALS: &str = "globals.sql.zst";
/// No list of contents is longer, in bytes.
const CONTENTS_LIMIT_BYTES: u64 = 4 << 30;

/// A dump, or what is left of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// Its folder's name.
    pub name: String,
    /// When it was begun.
    pub started: UtcTime,
    /// Whether it has a `dump.json`.
    pub complete: bool,
    /// How much of a database is in it; nothing if it is not complete, or `dump.json` is damaged.
    pub scope: Option<Scope>,
}

/// How much of a database is in a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Whole databases.
    Databases,
    /// One schema.
    Tenant,
    /// Some tables.
    Tables,
    /// Roles and tablespaces only.
    Globals,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Databases => "databases",
            Self::Tenant => "tenant",
            Self::Tables => "tables",
            Self::Globals => "globals",
        })
    }
}

/// Definitions, rows, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parts {
    /// Definitions and rows.
    All,
    /// Definitions only.
    Schema,
    /// Rows only.
    Data,
}

/// `dump.json`: in clear, so it names no database, schema or table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DumpInfo {
    /// The document's format.
    pub format: u32,
    /// The dump.
    pub label: DumpLabel,
    /// The cluster.
    pub cluster: String,
    /// The server's system identifier.
    pub system_identifier: String,
    /// The server's major version.
    pub major: u32,
    /// The server's version.
    pub server_version: String,
    /// What `pg_dump --version` says.
    pub pg_dump: String,
    /// This program's version.
    pub pgkeep: String,
    /// Where the program ran.
    pub host: String,
    /// When it began, by the host's clock.
    pub started: UtcTime,
    /// When it ended.
    pub finished: UtcTime,
    /// The physical backup that it was taken from; nothing: from the running server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Label>,
    /// The moment that the backup was recovered to, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// How much of a database is in it.
    pub scope: Scope,
    /// Definitions, rows, or both.
    pub parts: Parts,
    /// Databases in it.
    pub databases: u64,
    /// Tables whose rows are in it.
    pub tables: u64,
    /// Whether roles and tablespaces are in it.
    pub globals: bool,
    /// Bytes before compression.
    pub size: u64,
    /// Bytes in the repository.
    pub stored: u64,
    /// The objects, by name.
    pub objects: Vec<ObjectRecord>,
    /// For a signature, later.
    pub signature: Option<String>,
}

/// What is in a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The document's format.
    pub format: u32,
    /// The databases.
    pub databases: Vec<Database>,
}

/// One database of a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its archive: `1.dump.zst`.
    pub object: String,
    /// The schemas it was limited to.
    pub schemas: Vec<String>,
    /// The tables it was limited to.
    pub tables: Vec<String>,
    /// Extensions that objects in it need and that are not in it: a dump of one schema leaves them out.
    pub extensions: Vec<String>,
    /// What the archive says of itself.
    pub archive: Archive,
}

/// The labels, oldest first. What does not carry a dump's name is passed over.
///
/// # Errors
/// What the store says.
pub fn labels(repository: &Repository) -> Result<Vec<DumpLabel>> {
    let names = repository.store.children(Some(&repository.keys().dumps()?))?;
    let mut labels: Vec<DumpLabel> = names.iter().filter_map(|name| name.parse().ok()).collect();
    labels.sort();
    Ok(labels)
}

/// The document of a dump, if it has one; the inner error says why it cannot be used.
///
/// # Errors
/// What the store says.
pub fn document(repository: &Repository, label: DumpLabel) -> Result<Option<Result<DumpInfo>>> {
    match read(repository, label) {
        Ok(info) => Ok(Some(Ok(info))),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Refused) => Ok(Some(Err(error))),
        Err(error) => Err(error),
    }
}

/// Lists them, oldest first. What does not carry a dump's name is passed over.
///
/// # Errors
/// What the store says.
pub fn list(repository: &Repository) -> Result<Vec<Dump>> {
    let mut dumps = Vec::new();
    for label in labels(repository)? {
        let document = document(repository, label)?;
        let info = document.as_ref().and_then(|info| info.as_ref().ok());
        dumps.push(Dump {
            name: label.to_string(),
            // Its label says the second; several dumps of one run share it.
            started: info.map_or_else(|| label.started(), |info| info.started),
            scope: info.map(|info| info.scope),
            complete: document.is_some(),
        });
    }
    dumps.sort_by(|a, b| (a.started, &a.name).cmp(&(b.started, &b.name)));
    Ok(dumps)
}

/// The newest dump of whole databases: one of a tenant or of tables says nothing about the others. Looks at newer ones only.
///
/// # Errors
/// What the store says.
pub fn newest_of_databases(repository: &Repository) -> Result<Option<DumpInfo>> {
    for label in labels(repository)?.into_iter().rev() {
        if let Some(Ok(info)) = document(repository, label)?
            && info.scope == Scope::Databases
        {
            return Ok(Some(info));
        }
    }
    Ok(None)
}

/// Makes a dump of what has been stored.
///
/// # Errors
/// `AlreadyExists` if there is one; else what the store says.
pub fn commit(repository: &Repository, info: &DumpInfo) -> Result<()> {
    let key = repository.keys().of_dump(info.label, DOCUMENT)?;
    document::write_sealed(repository.store.as_ref(), &key, info)?;
    Ok(())
}

/// Reads `dump.json`.
///
/// # Errors
/// `NotFound` if there is no such dump; `Corrupt` if the document is damaged or of another dump; else what the store says.
pub fn read(repository: &Repository, label: DumpLabel) -> Result<DumpInfo> {
    let key = repository.keys().of_dump(label, DOCUMENT)?;
    let info: DumpInfo = document::read_sealed(repository.store.as_ref(), &key)?;
    if info.label != label || info.cluster != repository.cluster.as_str() {
        let place = repository.store.describe(Some(&key));
        let message = format!("{place} is that of dump {} of cluster \"{}\"", info.label, info.cluster);
        return Err(Error::new(Kind::Corrupt, message));
    }
    Ok(info)
}

/// Writes what is in a dump.
///
/// # Errors
/// If no repository is left.
pub fn write_contents(copies: Copies<'_>, contents: &Contents, level: i32) -> Result<()> {
    let bytes = serde_json::to_vec(contents)
        .map_err(|error| Error::new(Kind::Failed, "encode the contents of the dump").because(error))?;
    let mut frames = FrameWriter::new(copies, level)?;
    frames.write_all(&bytes).context(|| "write the contents of the dump")?;
    let (copies, _) = frames.finish()?;
    copies.finish(bytes.len() as u64)
}

/// Reads what is in a dump.
///
/// # Errors
/// `Config` without the key; `Corrupt` if it is damaged; else what the store says.
pub fn contents(repository: &Repository, info: &DumpInfo) -> Result<Contents> {
    let mut bytes = Vec::new();
    FrameReader::new(open(repository, info, CONTENTS)?)?
        .take(CONTENTS_LIMIT_BYTES)
        .read_to_end(&mut bytes)
        .context(|| format!("read the contents of dump {}", info.label))?;
    let contents: Contents = serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(Kind::Corrupt, format!("read the contents of dump {}", info.label)).because(error)
    })?;
    match contents.format {
        0..=FORMAT => Ok(contents),
        newer => Err(Error::new(
            Kind::Refused,
            format!("the contents of dump {} have format {newer}", info.label),
        )
        .hint("a newer pgkeep wrote it: upgrade this host")),
    }
}

/// Opens the decrypted compressed stream of an object of a dump: `name` without `.age`.
///
/// # Errors
/// `Config` without the key; `Corrupt` if it is missing or has another size than `dump.json` says.
pub fn open(repository: &Repository, info: &DumpInfo, name: &str) -> Result<SeekableReader<ObjectReader>> {
    let full = format!("{name}{}", repository.suffix()?);
    let record = info.objects.iter().find(|object| object.key == full).ok_or_else(|| {
        Error::new(
            Kind::Corrupt,
            format!("dump {} does not list its object {full}", info.label),
        )
    })?;
    let key = repository.keys().of_dump(info.label, &full)?;
    reader::open_object(repository, &key, record.size)
}
