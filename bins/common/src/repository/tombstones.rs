//! Tenants whose data was erased (FORMAT.md, section 6): one event for each, with the names sealed where the repository is.
//!
//! A tenant is a schema of one database of one system; its OID tells it from another that was created later under its name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result, chain};
use crate::postgres::{Lsn, TimelineHistory, TimelineId};
use crate::repository::events::{self, Event, What};
use crate::repository::{DumpLabel, Repository};
use crate::time::UtcTime;

/// The names of one tenant are no longer than this, in bytes.
const LIMIT_BYTES: u64 = 1 << 16;

/// What a `tombstone` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// PostgreSQL's system identifier, as text.
    pub system_identifier: String,
    /// OID of the database; nothing where only dumps tell of the tenant.
    pub database_oid: Option<u32>,
    /// OID of the schema.
    pub schema_oid: u32,
    /// Names.
    pub tenant: Names,
    /// The user of the operating system who ran the program.
    pub user: String,
    /// When the running server was seen to have the schema no more; nothing while it has it.
    pub gone: Option<Gone>,
    /// Dumps in this repository that hold this tenant and nothing else: they go.
    pub dumps: Vec<DumpLabel>,
}

/// Names in clear, or an age file in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// In clear.
    Clear(Tenant),
    /// Sealed.
    Sealed(String),
}

/// What a tenant is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tenant {
    /// The database.
    pub database: String,
    /// The schema.
    pub schema: String,
    /// Why its data was erased.
    pub reason: String,
}

/// From here on the server has the schema no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Gone {
    /// The server's timeline.
    pub timeline: u32,
    /// Its position in WAL.
    pub lsn: Lsn,
    /// Its time.
    pub time: UtcTime,
}

/// An erasure as one or several repositories tell it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Erasure {
    /// When it was asked for first, by the host's clock.
    pub time: UtcTime,
    /// Where.
    pub host: String,
    /// By which user of the operating system.
    pub user: String,
    /// PostgreSQL's system identifier.
    pub system_identifier: String,
    /// OID of the database, where it is known.
    pub database_oid: Option<u32>,
    /// OID of the schema.
    pub schema_oid: u32,
    /// Names; nothing where they are sealed and the key is not here.
    pub tenant: Option<Tenant>,
    /// When servers were seen to have it no more, oldest first: one that was restored has a history of its own.
    pub gone: Vec<Gone>,
}

impl Tenant {
    /// As an event of this repository carries it.
    ///
    /// # Errors
    /// As [`Repository::identity`]; `Config` where recipients are missing.
    fn sealed_for(&self, repository: &Repository) -> Result<Names> {
        if !repository.identity_for_writing()?.encrypted {
            return Ok(Names::Clear(self.clone()));
        }
        let plain = serde_json::to_vec(self)
            .map_err(|error| Error::new(Kind::Failed, "encode the names of a tenant").because(error))?;
        let mut writer = repository.metadata_sealing.wrap(Vec::new(), None)?;
        writer.write_all(&plain).context(|| "seal the names of a tenant")?;
        Ok(Names::Sealed(STANDARD.encode(writer.finish()?)))
    }
}

impl Names {
    /// The names.
    ///
    /// # Errors
    /// `Config` without the key; `Corrupt` if they are damaged.
    pub fn open(&self, repository: &Repository) -> Result<Tenant> {
        let text = match self {
            Self::Clear(tenant) => return Ok(tenant.clone()),
            Self::Sealed(text) => text,
        };
        let damaged = |why: String| Error::new(Kind::Corrupt, "the names of an erased tenant are damaged").because(why);
        let sealed = STANDARD.decode(text).map_err(|error| damaged(error.to_string()))?;
        let mut plain = Vec::new();
        repository
            .opening
            .open(sealed.as_slice(), true)?
            .take(LIMIT_BYTES)
            .read_to_end(&mut plain)
            .context(|| "open the names of an erased tenant")?;
        serde_json::from_slice(&plain).map_err(|error| damaged(error.to_string()))
    }
}

/// Records an erasure: since when the server has the tenant no more, and the dumps of this repository that go.
///
/// # Errors
/// What sealing and the store say.
pub fn append(
    repository: &Repository,
    erasure: &Erasure,
    tenant: &Tenant,
    gone: Option<Gone>,
    dumps: Vec<DumpLabel>,
) -> Result<()> {
    let what = What::Tombstone(Tombstone {
        system_identifier: erasure.system_identifier.clone(),
        database_oid: erasure.database_oid,
        schema_oid: erasure.schema_oid,
        tenant: tenant.sealed_for(repository)?,
        user: erasure.user.clone(),
        gone,
        dumps,
    });
    events::append(repository, erasure.time, &erasure.host, what).map(drop)
}

/// The same event with its names sealed for another repository; as it is where the key is not here.
///
/// # Errors
/// What sealing says; `Corrupt` if the names are damaged.
pub fn translated(event: Event, source: &Repository, target: &Repository) -> Result<Event> {
    let What::Tombstone(tombstone) = event.what else {
        return Ok(event);
    };
    let names = match tombstone.tenant.open(source) {
        Ok(tenant) => tenant.sealed_for(target)?,
        Err(error) if error.kind() == Kind::Corrupt => return Err(error),
        Err(error) => {
            log::debug!("the names of an erased tenant stay sealed: {}", chain(&error));
            tombstone.tenant
        }
    };
    let what = What::Tombstone(Tombstone {
        tenant: names,
        ..tombstone
    });
    Ok(Event { what, ..event })
}

/// The erasures that one repository knows, oldest first.
///
/// # Errors
/// As [`events::read`].
pub fn read(repository: &Repository) -> Result<Vec<Erasure>> {
    Ok(merged(of(repository, &events::read(repository)?)))
}

/// What the repositories know together; one that cannot be read is named in the log and passed over.
pub fn of_all<'a>(repositories: impl IntoIterator<Item = &'a Repository>) -> Vec<Erasure> {
    let known = repositories.into_iter().filter_map(|repository| {
        let warn = |error: &Error| {
            let name = &repository.name;
            log::warn!(
                "what was erased by the word of repository \"{name}\" is not known: {}",
                chain(error)
            );
        };
        read(repository).inspect_err(warn).ok()
    });
    merged(known.flatten())
}

/// The erasures among events.
pub fn of(repository: &Repository, events: &[Event]) -> Vec<Erasure> {
    let one = |event: &Event| {
        let What::Tombstone(tombstone) = &event.what else {
            return None;
        };
        let tenant = tombstone.tenant.open(repository);
        Some(Erasure {
            time: event.time,
            host: event.host.clone(),
            user: tombstone.user.clone(),
            system_identifier: tombstone.system_identifier.clone(),
            database_oid: tombstone.database_oid,
            schema_oid: tombstone.schema_oid,
            tenant: tenant.inspect_err(|error| log::debug!("{}", chain(error))).ok(),
            gone: tombstone.gone.into_iter().collect(),
        })
    };
    events.iter().filter_map(one).collect()
}

/// Dumps that events name as erased.
pub fn dumps(events: &[Event]) -> BTreeSet<DumpLabel> {
    let of = |event: &Event| match &event.what {
        What::Tombstone(tombstone) => tombstone.dumps.clone(),
        _ => Vec::new(),
    };
    events.iter().flat_map(of).collect()
}

/// Each tenant once: as it was asked for first, with what is known of it from anywhere.
pub fn merged(erasures: impl IntoIterator<Item = Erasure>) -> Vec<Erasure> {
    let mut known: BTreeMap<(String, Option<u32>, u32), Erasure> = BTreeMap::new();
    for erasure in erasures {
        let key = (
            erasure.system_identifier.clone(),
            erasure.database_oid,
            erasure.schema_oid,
        );
        match known.entry(key) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(erasure);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                let other = place.get_mut();
                let mut gone: Vec<Gone> = other.gone.iter().chain(&erasure.gone).copied().collect();
                gone.sort_by_key(|gone| (gone.time, *gone));
                gone.dedup();
                let tenant = other.tenant.take().or_else(|| erasure.tenant.clone());
                if erasure.time < other.time {
                    *other = erasure;
                }
                other.gone = gone;
                other.tenant = tenant;
            }
        }
    }
    let mut all: Vec<Erasure> = known.into_values().collect();
    all.sort();
    all
}

/// How far recovery surely goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// To this position at least.
    Lsn(Lsn),
    /// To this moment.
    Time(UtcTime),
}

impl Erasure {
    /// Whether recovery along `history` that goes at least so far has passed the moment when the schema was gone.
    pub fn is_past(&self, history: &TimelineHistory, reached: Reached) -> bool {
        let passed = |gone: &Gone| match reached {
            Reached::Lsn(lsn) => gone.lsn <= lsn,
            Reached::Time(time) => gone.time <= time,
        };
        // What happened on a branch behind the point where it was left never happened here.
        let here = |gone: &Gone| history.contains(TimelineId(gone.timeline), gone.lsn);
        self.gone.iter().any(|gone| here(gone) && passed(gone))
    }
}

/// The tenant in words.
impl std::fmt::Display for Erasure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let oid = self.schema_oid;
        match (&self.tenant, self.database_oid) {
            (Some(tenant), _) => write!(f, "{} of database {} (OID {oid})", tenant.schema, tenant.database),
            (None, Some(database)) => write!(f, "OID {oid} of the database with OID {database} (its name is sealed)"),
            (None, None) => write!(f, "OID {oid} (its name is sealed)"),
        }
    }
}

#[cfg(test)]
#[path = "tombstones_tests.rs"]
mod tests;
