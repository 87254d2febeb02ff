//! Names of objects, validated before anything is done with them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::durable::STAGING_PREFIX;
use crate::error::{Error, Kind, Result};

/// What a file system allows for one name.
const COMPONENT_BYTES: usize = 255;

/// What an object store allows for a whole name.
const KEY_BYTES: usize = 1024;

/// A validated object name: components of `[A-Za-z0-9._@=+%-]`, joined by `/`, in the order of their bytes.
///
/// No component is empty, `.` or `..`, longer than 255 bytes, or begins as staging files do; the whole has at
/// most 1024 bytes. So a key is safe as a path below a directory and as a name in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Validates a name.
    ///
    /// # Errors
    /// `Refused` if it is not one.
    pub fn parse(text: &str) -> Result<Self> {
        let refused = |why: &str| Error::new(Kind::Refused, format!("invalid object name {text:?}: {why}"));
        if text.len() > KEY_BYTES {
            return Err(refused("longer than 1024 bytes"));
        }
        for component in text.split('/') {
            check_component(component).map_err(refused)?;
        }
        Ok(Self(text.to_owned()))
    }

    /// The name one component further down.
    ///
    /// # Errors
    /// `Refused` if that is not a name, or if `component` is more than one.
    pub fn join(&self, component: &str) -> Result<Self> {
        if component.contains('/') {
            let message = format!("invalid object name {component:?}: more than one component");
            return Err(Error::new(Kind::Refused, message));
        }
        Self::parse(&format!("{}/{component}", self.0))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// What stands before the last component, if anything does.
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// The components, from the top.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether this lies below `prefix`, by whole components.
    pub fn is_below(&self, prefix: &Self) -> bool {
        self.below(Some(prefix)).is_some()
    }

    /// The part below `prefix`, by whole components.
    pub fn below(&self, prefix: Option<&Self>) -> Option<&str> {
        match prefix {
            Some(prefix) => self.0.strip_prefix(&prefix.0)?.strip_prefix('/'),
            None => Some(&self.0),
        }
    }
}

fn check_component(component: &str) -> Result<(), &'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._@=+%-".contains(&byte);
    match component {
        "" => Err("an empty component"),
        "." | ".." => Err("a component that is a path trick"),
        _ if component.len() > COMPONENT_BYTES => Err("a component longer than 255 bytes"),
        _ if component.starts_with(STAGING_PREFIX) => Err("a component that is kept for unfinished files"),
        _ if !component.bytes().all(is_allowed) => Err("a character that is not allowed"),
        _ => Ok(()),
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&Cow::<'de, str>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn path_tricks_are_refused() {
        let long = "a".repeat(256);
        let deep = "abc/".repeat(256) + "a";
        for text in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/.",
            "a\\b",
            "a\0b",
            "a b",
            "a\n",
            "ä",
            "~",
            "a:b",
            "*",
            ".staging-00",
            "a/.staging-00/b",
            &long,
            &deep,
        ] {
            assert_eq!(Key::parse(text).unwrap_err().kind(), Kind::Refused, "{text:?}");
        }
        let key = Key::parse("a").unwrap();
        for component in ["", "..", "b/c", "/", &long] {
            assert_eq!(key.join(component).unwrap_err().kind(), Kind::Refused, "{component:?}");
        }
    }

    #[test]
    fn ordinary_names_are_accepted() {
        let long = "a".repeat(255);
        let deep = "abc/".repeat(255) + "abcd";
        for text in [
            "a",
            ".a",
            "...",
            "wal/7/0000000100000A3F/0000000100000A3F000000C6.zst.age",
            "%40=+@",
            &long,
            &deep,
        ] {
            assert_eq!(Key::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn below_means_whole_components() {
        let key = |text| Key::parse(text).unwrap();
        assert!(key("a/b/c").is_below(&key("a/b")));
        assert!(!key("a/bc").is_below(&key("a/b")));
        assert!(!key("a/b").is_below(&key("a/b")));
        assert_eq!(key("a/b/c").below(Some(&key("a"))), Some("b/c"));
        assert_eq!(
            (key("a/b").name(), key("a/b").parent(), key("a").parent()),
            ("b", Some(key("a")), None)
        );
    }

    proptest! {
        #[test]
        fn an_accepted_name_stays_below_its_directory(text in "[a./\\\\%~-]{0,12}") {
            if let Ok(key) = Key::parse(&text) {
                let path = std::path::Path::new(key.as_str());
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
                prop_assert_eq!(path.components().count(), key.components().count());
            }
        }
    }
}
