//! How long a repository keeps things; `prune` and `sync` decide with these values.

use std::time::Duration;

use super::reader::{Table, Value};
use crate::error::Result;
use crate::units::parse_duration;

/// A count or an age: `4` or `"30d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// So many of the newest.
    Count(u32),
    /// All that are not older.
    Age(Duration),
}

/// `retention = { ... }` of a repository; a rule that is not written keeps nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Full backups.
    pub full: Option<Keep>,
    /// Differential backups, by age.
    pub diff: Option<Duration>,
    /// Incremental backups, by age.
    pub incremental: Option<Duration>,
    /// WAL that lets any moment be recovered, by age.
    pub wal: Option<Duration>,
    /// Keeps the first full backup of each of the last so many weeks.
    pub weekly: u32,
    /// Keeps the first full backup of each of the last so many months.
    pub monthly: u32,
    /// Keeps the first full backup of each of the last so many years.
    pub yearly: u32,
    /// So many full backups stay, however old they are.
    pub minimum: u32,
    /// Logical dumps.
    pub dumps: Option<Keep>,
}

impl Retention {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let retention = Self {
            full: keep(&mut table, "full")?,
            diff: age(&mut table, "diff")?,
            incremental: age(&mut table, "incremental")?,
            wal: age(&mut table, "wal")?,
            weekly: count(&mut table, "weekly")?.unwrap_or(0),
            monthly: count(&mut table, "monthly")?.unwrap_or(0),
            yearly: count(&mut table, "yearly")?.unwrap_or(0),
            minimum: table
                .value("minimum")
                .map(|value| at_least_one(&value))
                .transpose()?
                .unwrap_or(1),
            dumps: keep(&mut table, "dumps")?,
        };
        table.finish(&[])?;
        Ok(retention)
    }
}

const MOST: i64 = 100_000;

fn count(table: &mut Table<'_>, key: &'static str) -> Result<Option<u32>> {
    Ok(table.whole(key, 0..=MOST)?.map(narrow))
}

fn at_least_one(value: &Value<'_>) -> Result<u32> {
    value.whole(1..=MOST).map(narrow)
}

fn narrow(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn keep(table: &mut Table<'_>, key: &'static str) -> Result<Option<Keep>> {
    let Some(value) = table.value(key) else { return Ok(None) };
    if value.looks_whole()? {
        return at_least_one(&value).map(Keep::Count).map(Some);
    }
    positive(&value).map(Keep::Age).map(Some)
}

fn age(table: &mut Table<'_>, key: &'static str) -> Result<Option<Duration>> {
    table.value(key).map(|value| positive(&value)).transpose()
}

/// An age of nothing would keep nothing, which nobody means to write.
fn positive(value: &Value<'_>) -> Result<Duration> {
    match value.parsed(parse_duration)? {
        Duration::ZERO => Err(value.error("must be longer than nothing")),
        age => Ok(age),
    }
}
