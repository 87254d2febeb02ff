//! What changes is an appended event (FORMAT.md, section 6).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::postgres::{SegmentName, SystemId};
use crate::repository::tombstones::Tombstone;
use crate::repository::{Label, Nonce, Repository, document, identity};
use crate::storage::Key;
use crate::time::UtcTime;

/// One event: what every kind has, and the kind's own fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The document's format.
    pub format: u32,
    /// When it happened, by the host's clock.
    pub time: UtcTime,
    /// Where the program ran.
    pub host: String,
    /// The program.
    pub writer: String,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum What {
    /// The cluster has this identity from now on.
    System {
        /// PostgreSQL's system identifier, as text: JSON numbers lose digits.
        system_identifier: String,
        /// PostgreSQL's major version.
        major: u32,
        /// The size of WAL segments, in bytes.
        segment_size: u64,
        /// Whether it replaces an earlier identity on purpose.
        new_history: bool,
    },
    /// WAL of this identifier has been stored: from now on a repository that shows none of it is not all there.
    Wal {
        /// PostgreSQL's system identifier, as text.
        system_identifier: String,
    },
    /// The public keys used from now on; a record, never read as configuration.
    Recipients {
        /// age recipients.
        recipients: Vec<String>,
    },
    /// This backup stays whatever retention says.
    Keep {
        /// Which.
        label: Label,
        /// Why.
        reason: String,
    },
    /// Takes the newest keep of the label back.
    Unkeep {
        /// Which.
        label: Label,
    },
    /// Something stored was found damaged.
    Damage {
        /// Its key.
        key: String,
        /// What was found.
        found: String,
        /// Where it went when it was replaced.
        moved_to: Option<String>,
    },
    /// WAL that was dropped and will never come.
    Gap {
        /// Whose WAL.
        system_identifier: String,
        /// The first missing segment.
        first: String,
        /// The last missing segment.
        last: String,
        /// Why.
        reason: String,
    },
    /// A server offered other content for a segment that is stored: two histories claim this timeline from here on.
    Conflict {
        /// Whose WAL.
        system_identifier: String,
        /// The segment; the stored one stays.
        segment: String,
    },
    /// A tenant's data was erased.
    Tombstone(Tombstone),
    /// A kind that this version does not know: kept and ignored.
    #[serde(untagged)]
    Unknown(Map<String, Value>),
}

impl What {
    fn kind(&self) -> &'static str {
        match self {
            Self::System { .. } => "system",
            Self::Wal { .. } => "wal",
            Self::Recipients { .. } => "recipients",
            Self::Keep { .. } => "keep",
            Self::Unkeep { .. } => "unkeep",
            Self::Damage { .. } => "damage",
            Self::Gap { .. } => "gap",
            Self::Conflict { .. } => "conflict",
            Self::Tombstone(_) => "tombstone",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// A system that a repository knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownSystem {
    /// PostgreSQL's system identifier.
    pub system: SystemId,
    /// PostgreSQL's major version.
    pub major: u32,
    /// The size of WAL segments, in bytes.
    pub segment_size: u64,
    /// Whether WAL of it has been stored, ever.
    pub held_wal: bool,
}

/// Appends an event.
///
/// # Errors
/// What the store says.
pub fn append(repository: &Repository, time: UtcTime, host: &str, what: What) -> Result<Key> {
    let key = repository.keys().event(time, Nonce::random()?, what.kind())?;
    let event = Event {
        format: super::FORMAT,
        time,
        host: host.to_owned(),
        writer: identity::writer(),
        what,
    };
    document::write(repository.store.as_ref(), &key, &event)?;
    Ok(key)
}

/// Reads all events, oldest first.
///
/// # Errors
/// `Corrupt` if one cannot be read as an event; else what the store says.
pub fn read(repository: &Repository) -> Result<Vec<Event>> {
    let events = read_named(repository)?;
    Ok(events.into_iter().map(|(_, event)| event).collect())
}

/// When the newest recipient was added to others, by the store's clock; none where the first ones are in use.
///
/// # Errors
/// As [`read`].
pub fn recipients_added(repository: &Repository) -> Result<Option<UtcTime>> {
    let mut known: Option<Vec<String>> = None;
    let mut added = None;
    for (name, event) in read_named(repository)? {
        let What::Recipients { recipients } = event.what else {
            continue;
        };
        let is_new = |one: &String| known.as_ref().is_some_and(|known| !known.contains(one));
        if recipients.iter().any(is_new) {
            added = Some(name);
        }
        known = Some(recipients);
    }
    let Some(name) = added else { return Ok(None) };
    let key = repository.keys().events()?.join(&name)?;
    Ok(repository.store.stat(&key)?.map(|stat| stat.modified))
}

/// All events with the names of their objects.
fn read_named(repository: &Repository) -> Result<Vec<(String, Event)>> {
    let folder = repository.keys().events()?;
    let mut events: Vec<(String, Event)> = Vec::new();
    for name in repository.store.children(Some(&folder))? {
        if name.ends_with(".json") {
            let event = document::read(repository.store.as_ref(), &folder.join(&name)?)?;
            events.push((name, event));
        }
    }
    // Names are sorted and know whole seconds; within one, a nonce must not decide which system is the newest.
    let second = |name: &str| name.split('-').next().unwrap_or_default().to_owned();
    events.sort_by_cached_key(|(name, event)| (second(name), event.time));
    Ok(events)
}

/// Segments of a system for which other content was offered than is stored, and when.
///
/// # Errors
/// As [`read`].
pub fn disputed(repository: &Repository, system: SystemId) -> Result<Vec<(SegmentName, UtcTime)>> {
    let own = system.to_string();
    let segment = |event: Event| match event.what {
        What::Conflict {
            system_identifier,
            segment,
        } if system_identifier == own => Some(segment.parse().map(|segment| (segment, event.time))),
        _ => None,
    };
    read(repository)?.into_iter().filter_map(segment).collect()
}

/// The system identifiers that this repository knows, the newest last.
///
/// # Errors
/// As [`read`].
pub fn systems(repository: &Repository) -> Result<Vec<KnownSystem>> {
    systems_of(&read(repository)?)
}

/// The same, of events that have been read.
///
/// # Errors
/// `Corrupt` if one does not say what it should.
pub fn systems_of(events: &[Event]) -> Result<Vec<KnownSystem>> {
    let mut known: Vec<KnownSystem> = Vec::new();
    let mut held_wal = Vec::new();
    for event in events {
        match &event.what {
            What::Wal { system_identifier } => held_wal.push(identifier(system_identifier)?),
            What::System {
                system_identifier,
                major,
                segment_size,
                ..
            } => {
                let system = identifier(system_identifier)?;
                known.retain(|other| other.system != system);
                known.push(KnownSystem {
                    system,
                    major: *major,
                    segment_size: *segment_size,
                    held_wal: false,
                });
            }
            _ => {}
        }
    }
    for system in &mut known {
        system.held_wal = held_wal.contains(&system.system);
    }
    Ok(known)
}

fn identifier(text: &str) -> Result<SystemId> {
    text.parse::<u64>().map(SystemId).map_err(|error| {
        let message = format!("\"{text}\" in an event is not a system identifier");
        Error::new(Kind::Corrupt, message).because(error)
    })
}

const FOREIGN_HINT: &str = "if this is another cluster, give it a name of its own: [cluster.NAME] is its directory in the repository; \
                            only after pg_upgrade or initdb of the same cluster: pgkeep-init --new-history";

/// Fails unless `system` is one that this repository knows, now or formerly.
///
/// # Errors
/// `Refused` if it is foreign; else as [`read`].
pub fn require_system(repository: &Repository, system: SystemId) -> Result<KnownSystem> {
    choose(repository, &systems(repository)?, system)
}

fn choose(repository: &Repository, known: &[KnownSystem], system: SystemId) -> Result<KnownSystem> {
    if let Some(found) = known.iter().find(|other| other.system == system) {
        return Ok(*found);
    }
    let names: Vec<String> = known.iter().map(|other| other.system.to_string()).collect();
    let names = match names.is_empty() {
        true => "none yet".to_owned(),
        false => names.join(", "),
    };
    let name = &repository.name;
    let message = format!("repository \"{name}\" belongs to system identifier {names}, and this cluster has {system}");
    Err(Error::new(Kind::Refused, message).hint(FOREIGN_HINT))
}

/// Fails unless `system` is the one that writes here now: two that take turns would mix two databases under one name.
///
/// # Errors
/// `Refused` if it is foreign, or was followed by another; else as [`read`].
pub fn require_current_system(repository: &Repository, system: SystemId) -> Result<KnownSystem> {
    let known = systems(repository)?;
    let found = choose(repository, &known, system)?;
    match known.last() {
        Some(last) if last.system != system => {
            let name = &repository.name;
            let message = format!(
                "repository \"{name}\" is continued by system identifier {}, and this cluster has the former {system}",
                last.system
            );
            Err(Error::new(Kind::Refused, message).hint(FOREIGN_HINT))
        }
        _ => Ok(found),
    }
}

/// The backups that are kept by hand, and why, by the events in their order.
pub fn marks(events: impl Iterator<Item = What>) -> BTreeMap<Label, String> {
    let mut marks: BTreeMap<Label, Vec<String>> = BTreeMap::new();
    for event in events {
        match event {
            What::Keep { label, reason } => marks.entry(label).or_default().push(reason),
            What::Unkeep { label } => {
                marks.entry(label).or_default().pop();
            }
            _ => {}
        }
    }
    let newest = |(label, mut reasons): (Label, Vec<String>)| Some((label, reasons.pop()?));
    marks.into_iter().filter_map(newest).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::codec::{Opening, Sealing};
    use crate::repository::ClusterName;
    use crate::storage::memory::MemoryStore;

    fn repository() -> Repository {
        let store = std::sync::Arc::new(MemoryStore::new());
        let cluster = ClusterName::parse("main").unwrap();
        let clear = || Sealing::Clear;
        Repository::new(
            "local".into(),
            "memory:".into(),
            true,
            store,
            clear(),
            clear(),
            Opening::none(),
            cluster,
        )
    }

    #[test]
    fn within_one_second_the_later_system_is_the_current_one() {
        let base = UtcTime::parse_compact("20261120T020000Z").unwrap();
        // Names hold a random part: in some of the rounds it would put them the wrong way round.
        for _ in 0..32 {
            let repository = repository();
            for (part, system) in [(1, 7u64), (2, 8)] {
                let what = What::System {
                    system_identifier: system.to_string(),
                    major: 15,
                    segment_size: 1 << 24,
                    new_history: system == 8,
                };
                let time = base.plus(std::time::Duration::from_millis(part));
                append(&repository, time, "host", what).unwrap();
            }
            assert_eq!(systems(&repository).unwrap().last().unwrap().system, SystemId(8));
            assert_eq!(
                require_current_system(&repository, SystemId(7)).unwrap_err().kind(),
                Kind::Refused
            );
        }
    }

    #[test]
    fn an_event_of_an_unknown_kind_is_kept_and_ignored() {
        let text = r#"{"format":1,"kind":"later","time":"2026-11-20T02:00:00Z","host":"a","writer":"b","schema":"t"}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert!(matches!(event.what, What::Unknown(_)));
    }

    #[test]
    fn an_event_reads_back_as_it_was_written() {
        let text = r#"{"format":1,"kind":"keep","time":"2026-11-20T02:00:00Z","host":"a","writer":"b","label":"20261120T020000Z-full-3f9a1c","reason":"r"}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        let again: Event = serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap();
        assert_eq!(event, again);
        assert!(matches!(event.what, What::Keep { .. }));
    }

    #[test]
    fn a_mark_is_taken_back_once_for_each_time_it_was_made() {
        let label: Label = "20261120T020000Z-full-3f9a1c".parse().unwrap();
        let keep = |reason: &str| What::Keep {
            label,
            reason: reason.to_owned(),
        };
        let unkeep = || What::Unkeep { label };
        let of = |events: Vec<What>| marks(events.into_iter()).remove(&label);
        assert_eq!(of(vec![keep("a"), keep("b")]).unwrap(), "b");
        assert_eq!(of(vec![keep("a"), keep("b"), unkeep()]).unwrap(), "a");
        assert_eq!(of(vec![keep("a"), unkeep(), unkeep(), keep("c")]).unwrap(), "c");
        assert_eq!(of(vec![keep("a"), unkeep()]), None);
    }
}
