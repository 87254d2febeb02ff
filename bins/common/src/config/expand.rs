//! `${NAME}` in a value, taken from the environment, so that a container needs no secrets in its file.

use super::reader::Environment;
use crate::error::{Error, Kind, Result};

/// A string value after expansion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expanded {
    pub text: String,
    /// Whether anything came from the environment; only then may a string stand for a number.
    pub changed: bool,
}

/// Replaces every `${NAME}`; `$${` is a literal `${`, and what was put in is not looked at again.
pub(super) fn expand(text: &str, environment: Environment<'_>) -> Result<Expanded> {
    let mut out = String::with_capacity(text.len());
    let mut changed = false;
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        let (name, after) = after.split_once('}').ok_or_else(|| {
            Error::new(Kind::Config, "\"${\" has no closing \"}\"").hint("write \"$${\" where \"${\" itself is meant")
        })?;
        out.push_str(before);
        out.push_str(&lookup(name, environment)?);
        changed = true;
        rest = after;
    }
    out.push_str(rest);
    Ok(Expanded { text: out, changed })
}

fn lookup(name: &str, environment: Environment<'_>) -> Result<String> {
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if name.is_empty() || !letters || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Error::new(
            Kind::Config,
            format!("\"${{{name}}}\" does not name an environment variable"),
        )
        .hint("write \"$${\" where \"${\" itself is meant"));
    }
    environment(name).ok_or_else(|| Error::new(Kind::Config, format!("environment variable \"{name}\" is not set")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db1".to_owned()),
            "TRICK" => Some("${HOST}".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_once() {
        let cases = [
            ("plain", "plain", false),
            ("${HOST}", "db1", true),
            ("a-${HOST}-${HOST}.b", "a-db1-db1.b", true),
            ("${TRICK}", "${HOST}", true),
            ("[${EMPTY}]", "[]", true),
            ("$${HOST}", "${HOST}", false),
            ("cost$ $5 {x}", "cost$ $5 {x}", false),
        ];
        for (text, expected, changed) in cases {
            let expanded = expand(text, &environment).unwrap();
            assert_eq!(
                (expanded.text.as_str(), expanded.changed),
                (expected, changed),
                "{text}"
            );
        }
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error = expand("x${NOT_SET}", &environment).unwrap_err();
        assert_eq!(error.to_string(), "environment variable \"NOT_SET\" is not set");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["${", "${}", "${A", "${A B}", "${1A}", "${${HOST}}"] {
            assert_eq!(expand(text, &environment).unwrap_err().kind(), Kind::Config, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_a_dollar_stays_as_it_is(text in "[^$]*") {
            prop_assert_eq!(expand(&text, &environment).unwrap().text, text);
        }

        #[test]
        fn odd_text_never_panics(text in "[${}A-Z]*") {
            let _ = expand(&text, &environment);
        }
    }
}
