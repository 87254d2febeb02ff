//! What changes is an appended event (FORMAT.md, section 6).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::postgres::SystemId;
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
    /// A kind that this version does not know: kept and ignored.
    #[serde(untagged)]
    Unknown(Map<String, Value>),
}

impl What {
    fn kind(&self) -> &'static str {
        match self {
            Self::System { .. } => "system",
            Self::Recipients { .. } => "recipients",
            Self::Keep { .. } => "keep",
            Self::Unkeep { .. } => "unkeep",
            Self::Damage { .. } => "damage",
            Self::Gap { .. } => "gap",
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
    let folder = repository.keys().events()?;
    let mut events = Vec::new();
    for name in repository.store.children(Some(&folder))? {
        if name.ends_with(".json") {
            events.push(document::read(repository.store.as_ref(), &folder.join(&name)?)?);
        }
    }
    Ok(events)
}

/// The system identifiers that this repository knows, the newest last.
///
/// # Errors
/// As [`read`].
pub fn systems(repository: &Repository) -> Result<Vec<KnownSystem>> {
    let mut known: Vec<KnownSystem> = Vec::new();
    for event in read(repository)? {
        let What::System {
            system_identifier,
            major,
            segment_size,
            ..
        } = event.what
        else {
            continue;
        };
        let system = system_identifier.parse::<u64>().map(SystemId).map_err(|error| {
            Error::new(
                Kind::Corrupt,
                format!("\"{system_identifier}\" in an event is not a system identifier"),
            )
            .because(error)
        })?;
        known.retain(|other| other.system != system);
        known.push(KnownSystem {
            system,
            major,
            segment_size,
        });
    }
    Ok(known)
}

const FOREIGN_HINT: &str = "if this is another cluster, give it a name of its own: [cluster.NAME] is its directory in the repository; \
                            only after pg_upgrade or initdb of the same cluster: pgkeep-init --new-history";

/// Fails unless `system` is one that this repository knows, now or formerly.
///
/// # Errors
/// `Refused` if it is foreign; else as [`read`].
pub fn require_system(repository: &Repository, system: SystemId) -> Result<KnownSystem> {
    let known = systems(repository)?;
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
    let found = require_system(repository, system)?;
    match systems(repository)?.last() {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_event_of_an_unknown_kind_is_kept_and_ignored() {
        let text =
            r#"{"format":1,"kind":"tombstone","time":"2026-11-20T02:00:00Z","host":"a","writer":"b","schema":"t"}"#;
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
}
