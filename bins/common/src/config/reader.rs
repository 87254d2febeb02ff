//! Reads a TOML table key by key, and knows afterwards which keys nobody asked for.
//!
//! Written by hand rather than derived, so that every complaint names file, line, key and table, the nearest
//! known key, and so that `${NAME}` may stand for a number too. Knows nothing of the keys themselves.

use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::expand::{Expanded, expand};
use crate::error::{Error, Kind, Result};

/// Where variables of `${NAME}` come from.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The file that is read.
pub(super) struct Source<'a> {
    pub file: &'a Path,
    pub text: &'a str,
    pub environment: Environment<'a>,
}

impl Source<'_> {
    /// An error that names the line of `offset`.
    pub fn error(&self, offset: usize, message: impl std::fmt::Display) -> Error {
        let line = 1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        Error::new(Kind::Config, format!("{}:{line}: {message}", self.file.display()))
    }
}

/// One table being read.
pub(super) struct Table<'a> {
    source: &'a Source<'a>,
    /// As it stands in the file: `cluster.main`; empty for the top.
    name: String,
    offset: usize,
    entries: &'a DeTable<'a>,
    asked: Vec<&'static str>,
}

/// One value with the place where it stands.
pub(super) struct Value<'a> {
    source: &'a Source<'a>,
    table: String,
    key: String,
    offset: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Table<'a> {
    pub fn new(source: &'a Source<'a>, name: String, offset: usize, entries: &'a DeTable<'a>) -> Self {
        Self {
            source,
            name,
            offset,
            entries,
            asked: Vec::new(),
        }
    }

    /// The value of `key`, which is known from now on.
    pub fn value(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.asked.push(key);
        let (name, value) = self.entries.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(self.found(name, value))
    }

    /// A variable of the environment, if it is set to something.
    pub fn variable(&self, name: &str) -> Option<String> {
        (self.source.environment)(name).filter(|value| !value.is_empty())
    }

    pub fn text(&mut self, key: &'static str) -> Result<Option<String>> {
        self.value(key).map(|value| value.text()).transpose()
    }

    /// A string that `parse` turns into something; its complaint gets file, line and key in front.
    pub fn parsed<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T>) -> Result<Option<T>> {
        self.value(key).map(|value| value.parsed(parse)).transpose()
    }

    pub fn whole(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        self.value(key).map(|value| value.whole(range)).transpose()
    }

    pub fn boolean(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.value(key).map(|value| value.boolean()).transpose()
    }

    pub fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>> {
        self.parsed(key, absolute)
    }

    /// A list, item by item.
    pub fn list<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Result<T>) -> Result<Option<Vec<T>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value
            .list()?
            .iter()
            .map(|item| item.parsed(&parse))
            .collect::<Result<_>>()
            .map(Some)
    }

    /// The table `key`, written as `[...]` or inline.
    pub fn table(&mut self, key: &'static str) -> Result<Option<Table<'a>>> {
        self.value(key).map(|value| value.table()).transpose()
    }

    /// The tables below `key`, whose names the user chooses (`[cluster.main]`), in the order of the file.
    pub fn named_tables(&mut self, key: &'static str) -> Result<Vec<(String, Table<'a>)>> {
        let Some(all) = self.table(key)? else {
            return Ok(Vec::new());
        };
        let each = |(name, value): (&'a Spanned<_>, _)| {
            let found = all.found(name, value);
            let key = found.key.clone();
            check_name(&key).map_err(|error| all.source.error(found.offset, error))?;
            Ok((key, found.table()?))
        };
        let mut entries: Vec<_> = all.entries.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        entries.into_iter().map(each).collect()
    }

    /// Complains about keys that nobody asked for. `elsewhere` are keys that belong to the top of the file.
    pub fn finish(self, elsewhere: &[&str]) -> Result<()> {
        let unknown =
            |(key, _): &(&Spanned<std::borrow::Cow<'_, str>>, _)| !self.asked.contains(&key.get_ref().as_ref());
        let Some((key, _)) = self
            .entries
            .iter()
            .filter(unknown)
            .min_by_key(|(key, _)| key.span().start)
        else {
            return Ok(());
        };
        let name = key.get_ref();
        let error = self
            .source
            .error(key.span().start, format!("unknown key \"{name}\"{}", place(&self.name)));
        Err(error.hint(match nearest(name, &self.asked) {
            Some(known) => format!("did you mean \"{known}\"?"),
            None if elsewhere.contains(&name.as_ref()) => {
                format!("\"{name}\" belongs to the top of the file, before the first [table]")
            }
            None => format!("known here: {}", self.asked.join(", ")),
        }))
    }

    /// An error about the table as a whole.
    pub fn error(&self, message: impl std::fmt::Display) -> Error {
        self.source
            .error(self.offset, format!("{message}{}", place(&self.name)))
    }

    fn found(&self, name: &'a Spanned<std::borrow::Cow<'a, str>>, value: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        Value {
            source: self.source,
            table: self.name.clone(),
            key: name.get_ref().clone().into_owned(),
            offset: name.span().start,
            value: value.get_ref(),
        }
    }
}

impl<'a> Value<'a> {
    /// An error about this value: `"port" in [cluster.main] <message>`.
    pub fn error(&self, message: impl std::fmt::Display) -> Error {
        self.source
            .error(self.offset, format!("\"{}\"{} {message}", self.key, place(&self.table)))
    }

    /// The value of this key, however it is written, as the text that `${NAME}` became, or as it stands.
    pub fn expanded(&self) -> Result<Option<Expanded>> {
        match self.value {
            DeValue::String(text) => expand(text, self.source.environment)
                .map(Some)
                .map_err(|error| self.error("cannot be expanded").because(error)),
            _ => Ok(None),
        }
    }

    pub fn text(&self) -> Result<String> {
        match self.expanded()? {
            Some(Expanded { text, .. }) if !text.trim().is_empty() => Ok(text),
            Some(_) => Err(self.error("is empty")),
            None => Err(self.wrong_type("a string")),
        }
    }

    pub fn parsed<T>(&self, parse: impl Fn(&str) -> Result<T>) -> Result<T> {
        parse(&self.text()?).map_err(|error| self.error("is not valid").because(error))
    }

    pub fn whole(&self, range: RangeInclusive<i64>) -> Result<i64> {
        let number = match self.value {
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            // A string is a number only where the environment made it: "${PORT}".
            DeValue::String(_) => match self.expanded()? {
                Some(Expanded { text, changed: true }) => text.trim().parse().ok(),
                _ => return Err(self.wrong_type("a whole number")),
            },
            _ => return Err(self.wrong_type("a whole number")),
        };
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            self.error(format!(
                "must be a whole number from {} to {}",
                range.start(),
                range.end()
            ))
        })
    }

    pub fn boolean(&self) -> Result<bool> {
        match (self.value, self.expanded()?) {
            (DeValue::Boolean(value), _) => Ok(*value),
            (_, Some(Expanded { text, changed: true })) => {
                text.trim().parse().map_err(|_| self.error("must be true or false"))
            }
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// Whether it is written as a number, or the environment made it one.
    pub fn looks_whole(&self) -> Result<bool> {
        Ok(match (self.value, self.expanded()?) {
            (DeValue::Integer(_), _) => true,
            (_, Some(Expanded { text, changed: true })) => text.trim().parse::<i64>().is_ok(),
            _ => false,
        })
    }

    fn list(&self) -> Result<Vec<Value<'a>>> {
        let DeValue::Array(items) = self.value else {
            return Err(self.wrong_type("a list such as [\"...\"]"));
        };
        let each = |item: &'a Spanned<DeValue<'a>>| Value {
            source: self.source,
            table: self.table.clone(),
            key: self.key.clone(),
            offset: item.span().start,
            value: item.get_ref(),
        };
        Ok(items.iter().map(each).collect())
    }

    pub fn table(&self) -> Result<Table<'a>> {
        let DeValue::Table(entries) = self.value else {
            return Err(self.wrong_type("a table"));
        };
        let name = match self.table.as_str() {
            "" => self.key.clone(),
            table => format!("{table}.{}", self.key),
        };
        Ok(Table::new(self.source, name, self.offset, entries))
    }

    fn wrong_type(&self, wanted: &str) -> Error {
        let found = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.error(format!("must be {wanted}, not {found}"))
    }
}

fn place(table: &str) -> String {
    match table {
        "" => String::new(),
        table => format!(" in [{table}]"),
    }
}

/// Reads an absolute path, without `.` and `..`.
pub(super) fn absolute(text: &str) -> Result<PathBuf> {
    let path = Path::new(text);
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() {
        let error = Error::new(Kind::Config, format!("path \"{text}\" is relative"));
        return Err(error.hint("paths begin with /: timers and PostgreSQL run the tools from other directories"));
    }
    if !path.components().all(plain) {
        return Err(Error::new(Kind::Config, format!("path \"{text}\" contains \"..\"")));
    }
    // Rebuilding it drops doubled and trailing slashes, so that equal paths compare equal.
    Ok(path.components().collect())
}

/// Names of clusters and repositories become directories, file names and labels of metrics.
pub(super) fn check_name(name: &str) -> Result<()> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if first && rest && name.len() <= 63 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Config,
        format!(
            "invalid name \"{name}\": up to 63 letters, digits, \"_\", \"-\" and \".\", beginning with a letter or digit"
        ),
    ))
}

/// The known name that was probably meant.
pub(super) fn nearest<'n, S: AsRef<str>>(name: &str, known: &'n [S]) -> Option<&'n str> {
    let lower = name.to_ascii_lowercase();
    let allowed = 1 + name.len() / 4;
    let beginning =
        |known: &str| lower.len() >= 3 && known.len() >= 3 && (known.starts_with(&lower) || lower.starts_with(known));
    known
        .iter()
        .map(|known| {
            (
                strsim::osa_distance(&lower, &known.as_ref().to_ascii_lowercase()),
                known.as_ref(),
            )
        })
        .filter(|(distance, known)| *distance <= allowed || beginning(known))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let known = ["url", "required", "retention", "data_directory", "patience"];
        let cases = [
            ("ulr", Some("url")),
            ("retension", Some("retention")),
            ("Required", Some("required")),
            ("data_dir", Some("data_directory")),
            ("colour", None),
            ("", None),
        ];
        for (name, meant) in cases {
            assert_eq!(nearest(name, &known), meant, "{name}");
        }
    }

    #[test]
    fn names_that_would_not_be_safe_in_a_path_are_refused() {
        for name in ["main", "pg-15", "a.b_c", "15"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "-a", "_a", "a b", "ü", "a\n", &"a".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn relative_paths_are_refused_and_equal_ones_become_equal() {
        assert_eq!(absolute("/var//lib/pgkeep/").unwrap(), PathBuf::from("/var/lib/pgkeep"));
        for text in ["", "var/lib", "./x", "../x", "/var/../etc", "~/x"] {
            assert_eq!(absolute(text).unwrap_err().kind(), Kind::Config, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_path_that_is_accepted_has_no_way_up(text: String) {
            if let Ok(path) = absolute(&text) {
                prop_assert!(path.is_absolute());
                prop_assert!(!path.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
