//! Tenants whose data was erased, by the events of kind `tombstone` (FORMAT.md, section 6). Pure.
//!
//! This version writes none and has no type for them; a repository may have some from a later one, and a report that says
//! "none recorded" over them would be wrong.

use common::repository::events::{Event, What};
use common::time::UtcTime;
use serde::Serialize;
use serde_json::{Map, Value};

/// The kind of event.
const TOMBSTONE: &str = "tombstone";
/// How the base64 of an age file begins: the name is sealed.
const SEALED: &str = "YWdlLWVuY3J5cHRpb24ub3Jn";

/// One erasure.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Erasure {
    /// When it was done, by the host's clock.
    pub time: UtcTime,
    /// Where.
    pub host: String,
    /// The database.
    pub database: Option<String>,
    /// The tenant; nothing where the name is sealed.
    pub schema: Option<String>,
    /// Its number in the database, which is never sealed.
    pub schema_oid: Option<u64>,
    /// Backups and WAL before this position still hold the data.
    pub lsn: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

/// The erasures among events.
pub fn of(events: &[Event]) -> Vec<Erasure> {
    events.iter().filter_map(erasure).collect()
}

fn erasure(event: &Event) -> Option<Erasure> {
    let What::Unknown(fields) = &event.what else {
        return None;
    };
    if text(fields, "kind")? != TOMBSTONE {
        return None;
    }
    Some(Erasure {
        time: event.time,
        host: event.host.clone(),
        database: text(fields, "database"),
        schema: text(fields, "schema").filter(|schema| !schema.starts_with(SEALED)),
        schema_oid: fields.get("schema_oid").and_then(Value::as_u64),
        lsn: text(fields, "lsn"),
        reason: text(fields, "reason"),
    })
}

fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    fields.get(name)?.as_str().map(str::to_owned)
}

impl std::fmt::Display for Erasure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenant = match (&self.schema, self.schema_oid) {
            (Some(schema), _) => format!("tenant {schema}"),
            (None, Some(oid)) => format!("tenant {oid} (its name is sealed)"),
            (None, None) => "a tenant".to_owned(),
        };
        write!(f, "{} {tenant}", self.time.whole_seconds())?;
        if let Some(database) = &self.database {
            write!(f, " of database {database}")?;
        }
        if let Some(lsn) = &self.lsn {
            write!(f, ", erased at {lsn}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn event(kind_and_more: &str) -> Event {
        let text =
            format!(r#"{{"format":1,"time":"2026-11-20T02:00:00Z","host":"a","writer":"b","kind":{kind_and_more}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn words(kind_and_more: &str) -> Vec<String> {
        of(&[event(kind_and_more)]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_tombstone_is_an_erasure_and_nothing_else_is() {
        assert_eq!(
            words(
                r#""tombstone","database":"app","schema_oid":16400,"schema":"acme","lsn":"0/5000000","reason":"asked""#
            ),
            ["2026-11-20T02:00:00Z tenant acme of database app, erased at 0/5000000: asked"]
        );
        assert!(words(r#""unkeep","label":"20261120T020000Z-full-3f9a1c""#).is_empty());
        assert!(words(r#""later","schema":"acme""#).is_empty());
    }

    #[test]
    fn a_sealed_name_is_not_shown_and_what_is_missing_hides_nothing() {
        assert_eq!(
            words(r#""tombstone","schema_oid":7,"schema":"YWdlLWVuY3J5cHRpb24ub3JnL3Yx""#),
            ["2026-11-20T02:00:00Z tenant 7 (its name is sealed)"]
        );
        assert_eq!(words(r#""tombstone""#), ["2026-11-20T02:00:00Z a tenant"]);
    }
}
