//! Which entries of an archive belong to what was asked for, and which others they need.
//!
//! Kinds and names are those of pg_dump's table of contents (`src/bin/pg_dump/pg_dump.c`, `ArchiveEntry` calls, 13 to 18).

use std::collections::{BTreeMap, BTreeSet};

use common::postgres::archive::{Archive, Entry};

/// What is restored out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// A schema.
    Tenant(String),
    /// Tables: schema and name.
    Tables(Vec<(String, String)>),
}

/// Entries, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// What was asked for.
    pub own: BTreeSet<i64>,
    /// What that needs besides, and what belongs to it.
    pub shared: BTreeSet<i64>,
}

/// What else carries the schema of a tenant, and is not the tenant's.
const OF_THE_DATABASE: [&str; 3] = [
    "PUBLICATION TABLE",
    "PUBLICATION TABLES IN SCHEMA",
    "SUBSCRIPTION TABLE",
];

/// What can be named as a table.
const RELATIONS: [&str; 5] = ["TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "SEQUENCE"];

/// What belongs to a relation that it needs.
const PARTS: [&str; 20] = [
    "TABLE DATA",
    "MATERIALIZED VIEW DATA",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
    "FK CONSTRAINT",
    "INDEX",
    "INDEX ATTACH",
    "TABLE ATTACH",
    "DEFAULT",
    "TRIGGER",
    "RULE",
    "POLICY",
    "ROW SECURITY",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "COMMENT",
    "ACL",
    "STATISTICS",
    "STATISTICS DATA",
];

/// Chooses.
///
/// # Errors
/// In words, what is not in the archive.
pub fn select(archive: &Archive, wanted: &Wanted) -> Result<Selection, String> {
    let index = Index::new(archive);
    match wanted {
        Wanted::Whole => Ok(Selection {
            own: archive.entries.iter().map(|entry| entry.id).collect(),
            shared: BTreeSet::new(),
        }),
        Wanted::Tenant(schema) => {
            let own: BTreeSet<i64> = archive
                .entries
                .iter()
                .filter(|entry| of_tenant(entry, schema))
                .map(|entry| entry.id)
                .collect();
            match own.is_empty() {
                true => Err(format!("schema \"{schema}\"")),
                false => Ok(index.with_needs(own)),
            }
        }
        Wanted::Tables(tables) => {
            let mut own = BTreeSet::new();
            for (schema, table) in tables {
                let is = |entry: &&Entry| {
                    RELATIONS.contains(&entry.kind.as_str())
                        && entry.name == *table
                        && entry.schema.as_ref() == Some(schema)
                };
                let found = archive.entries.iter().find(is);
                own.insert(found.ok_or_else(|| format!("table \"{schema}.{table}\""))?.id);
            }
            index.add_parts(&mut own, true);
            Ok(index.with_needs(own))
        }
    }
}

/// Leaves out of what is shared everything that the database has, and what belongs to it. `there` are entries that it has.
pub fn without(selection: &Selection, archive: &Archive, there: &BTreeSet<i64>) -> Selection {
    let index = Index::new(archive);
    let mut gone = there.clone();
    index.add_parts(&mut gone, false);
    Selection {
        own: selection.own.clone(),
        shared: selection.shared.difference(&gone).copied().collect(),
    }
}

impl Selection {
    /// All of them.
    pub fn all(&self) -> BTreeSet<i64> {
        self.own.union(&self.shared).copied().collect()
    }
}

fn of_tenant(entry: &Entry, schema: &str) -> bool {
    if OF_THE_DATABASE.contains(&entry.kind.as_str()) {
        return false;
    }
    let quoted = format!("\"{}\"", schema.replace('"', "\"\""));
    let about = |name: &str| {
        name.strip_prefix("SCHEMA ")
            .is_some_and(|rest| rest == schema || rest == quoted)
    };
    entry.schema.as_deref() == Some(schema)
        || (entry.kind == "SCHEMA" && entry.name == schema)
        || (entry.schema.is_none() && about(&entry.name))
}

struct Index<'a> {
    archive: &'a Archive,
    by_id: BTreeMap<i64, &'a Entry>,
}

impl<'a> Index<'a> {
    fn new(archive: &'a Archive) -> Self {
        let by_id = archive.entries.iter().map(|entry| (entry.id, entry)).collect();
        Self { archive, by_id }
    }

    /// Everything that `own` needs, and what that needs; the rows of tables that are needed, too, for foreign keys look at them.
    fn with_needs(&self, own: BTreeSet<i64>) -> Selection {
        let mut shared = BTreeSet::new();
        let mut open: Vec<i64> = own.iter().copied().collect();
        while let Some(id) = open.pop() {
            for need in self.by_id.get(&id).into_iter().flat_map(|entry| &entry.needs) {
                let known = self.by_id.contains_key(need);
                if known && !own.contains(need) && shared.insert(*need) {
                    open.push(*need);
                }
            }
        }
        let rows = |entry: &&Entry| entry.kind == "TABLE DATA" && entry.needs.iter().any(|need| shared.contains(need));
        let rows: Vec<i64> = self.archive.entries.iter().filter(rows).map(|entry| entry.id).collect();
        shared.extend(rows.into_iter().filter(|id| !own.contains(id)));
        Selection { own, shared }
    }

    /// Adds what belongs to the relations in `set`, until nothing is added; partitions are parts of their table.
    fn add_parts(&self, set: &mut BTreeSet<i64>, sequences: bool) {
        loop {
            let before = set.len();
            for entry in &self.archive.entries {
                let belongs = !set.contains(&entry.id)
                    && PARTS.contains(&entry.kind.as_str())
                    && entry
                        .needs
                        .iter()
                        .any(|need| set.contains(need) && self.owns(*need, entry));
                if !belongs {
                    continue;
                }
                set.insert(entry.id);
                // The sequence of a serial column is needed by what belongs to the table; a partition by what attaches it.
                if sequences && ["DEFAULT", "SEQUENCE OWNED BY", "TABLE ATTACH"].contains(&entry.kind.as_str()) {
                    let more = entry.needs.iter().filter(|need| {
                        self.by_id
                            .get(need)
                            .is_some_and(|other| ["SEQUENCE", "TABLE"].contains(&other.kind.as_str()))
                    });
                    set.extend(more);
                }
            }
            if set.len() == before {
                return;
            }
        }
    }

    /// Whether a part is that relation's own: a foreign key needs the other table as well, a partition's attachment the parent.
    fn owns(&self, relation: i64, part: &Entry) -> bool {
        let Some(relation) = self.by_id.get(&relation) else {
            return false;
        };
        match part.kind.as_str() {
            "FK CONSTRAINT" => {
                let named = part
                    .name
                    .strip_prefix(relation.name.as_str())
                    .is_some_and(|rest| rest.starts_with(' '));
                named && part.schema == relation.schema
            }
            "TABLE ATTACH" | "INDEX ATTACH" => part.name != relation.name,
            _ => true,
        }
    }
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
