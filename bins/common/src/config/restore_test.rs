//! `[cluster.NAME.restore_test]`: where backups are restored to be tried out, how deep is looked, and what must be found.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Table, Value};
use crate::error::{Error, Kind, Result};
use crate::repository::evidence::Level;
use crate::units::parse_duration;

/// What a restore test of a cluster is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreTest {
    /// Below it a directory for each run; nothing: below the state directory.
    pub directory: Option<PathBuf>,
    /// How deep is looked.
    pub level: Level,
    /// A run that takes longer fails.
    pub time_limit: Duration,
    /// The newest commit may be so old; nothing: it is not judged.
    pub freshness: Option<Duration>,
    /// Where PostgreSQL's programs are; `{major}` stands for the version. Nothing: where packages put them.
    pub bin_directory: Option<String>,
    /// The role that asks; it has to be a superuser of the restored cluster.
    pub user: String,
    /// Libraries that the scratch server loads: extensions that it cannot be read without.
    pub preload: String,
    /// Databases to look at; nothing: all that allow connections.
    pub databases: Option<Vec<String>>,
    /// No table may have lost more of its rows since the last test, in percent; nothing: that is told only.
    pub may_shrink: Option<u8>,
    /// Questions and the answers that must come, by name.
    pub assertions: Vec<Assertion>,
}

/// A question to the restored cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assertion {
    /// Its name.
    pub name: String,
    /// The database that is asked.
    pub database: String,
    /// The question: its first column of its first row is the answer.
    pub sql: String,
    /// What must hold for the answer; all of it.
    pub expected: Vec<Expected>,
}

/// What must hold for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// It is this text.
    Equals(String),
    /// It is a number not below this.
    AtLeast(i64),
    /// It is a number not above this.
    AtMost(i64),
    /// It is at most so many percent below the answer of the last test.
    MayShrink(u8),
    /// It is at most so many percent above the answer of the last test.
    MayGrow(u32),
    /// It is not the answer of the last test.
    Changes,
}

impl Default for RestoreTest {
    fn default() -> Self {
        Self {
            directory: None,
            level: Level::Standard,
            time_limit: Duration::from_secs(6 * 3600),
            freshness: None,
            bin_directory: None,
            user: "postgres".to_owned(),
            preload: String::new(),
            databases: None,
            may_shrink: None,
            assertions: Vec::new(),
        }
    }
}

impl RestoreTest {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let default = Self::default();
        let mut settings = Self {
            directory: table.path("directory")?,
            level: table.parsed("level", str::parse)?.unwrap_or(default.level),
            time_limit: table
                .parsed("time_limit", parse_duration)?
                .unwrap_or(default.time_limit),
            freshness: table.parsed("freshness", parse_duration)?,
            bin_directory: table.text("bin_directory")?,
            user: table.text("user")?.unwrap_or(default.user),
            preload: table.text("preload")?.unwrap_or(default.preload),
            databases: table.list("databases", |name| Ok(name.to_owned()))?,
            may_shrink: percent(&mut table, "may_shrink", 100)?.and_then(|value| u8::try_from(value).ok()),
            assertions: Vec::new(),
        };
        let assertions = table.named_tables("assert")?;
        table.finish(&[])?;
        for (name, table) in assertions {
            settings.assertions.push(Assertion::read(name, table)?);
        }
        Ok(settings)
    }
}

impl Assertion {
    fn read(name: String, mut table: Table<'_>) -> Result<Self> {
        let incomplete = |what: &str| table.error(what);
        let (no_sql, no_rule) = (
            incomplete("\"sql\" is missing: the question"),
            incomplete("says of no answer that it is wrong")
                .hint("equals = \"...\", at_least, at_most, may_shrink or may_grow = \"10 %\", or changes = true"),
        );
        let sql = table.text("sql")?.ok_or(no_sql)?;
        let database = table.text("database")?.unwrap_or_else(|| "postgres".to_owned());
        let mut expected = Vec::new();
        expected.extend(
            table
                .value("equals")
                .map(|value| text_or_number(&value))
                .transpose()?
                .map(Expected::Equals),
        );
        expected.extend(table.whole("at_least", i64::MIN..=i64::MAX)?.map(Expected::AtLeast));
        expected.extend(table.whole("at_most", i64::MIN..=i64::MAX)?.map(Expected::AtMost));
        let shrink = percent(&mut table, "may_shrink", 100)?.and_then(|value| u8::try_from(value).ok());
        expected.extend(shrink.map(Expected::MayShrink));
        expected.extend(percent(&mut table, "may_grow", u32::MAX)?.map(Expected::MayGrow));
        if table.boolean("changes")?.unwrap_or(false) {
            expected.push(Expected::Changes);
        }
        table.finish(&[])?;
        if expected.is_empty() {
            return Err(no_rule);
        }
        Ok(Self {
            name,
            database,
            sql,
            expected,
        })
    }
}

/// PostgreSQL answers in text: `5` means `"5"`.
fn text_or_number(value: &Value<'_>) -> Result<String> {
    match value.looks_whole()? {
        true => value.whole(i64::MIN..=i64::MAX).map(|number| number.to_string()),
        false => value.text(),
    }
}

/// `"10 %"` or `"10%"`.
fn percent(table: &mut Table<'_>, key: &'static str, most: u32) -> Result<Option<u32>> {
    table.parsed(key, |text| {
        let number = text
            .strip_suffix('%')
            .map(str::trim_end)
            .and_then(|number| number.parse().ok());
        number
            .filter(|number| *number <= most)
            .ok_or_else(|| Error::new(Kind::Config, format!("\"{text}\" is no share")).hint("such as \"10 %\""))
    })
}
