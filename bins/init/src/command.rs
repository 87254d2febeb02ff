//! Whether an archive_command really archives. Pure but for asking which files there are.
//!
//! PostgreSQL removes a segment when the command returns 0, so whatever swallows pgkeep's exit code loses WAL: another
//! command behind it, a pipe, a comment sign before it. Only the plain form is accepted.

use std::path::Path;

use common::error::{Error, Kind, Result};

const HINT: &str = "set archive_command = 'pgkeep-archive-push %p' and reload; nothing may follow it, and nothing swallow its exit code";

/// Judges the setting; `is_file` tells whether there is a file.
///
/// # Errors
/// `Failed` with what is wrong.
pub fn judge(value: &str, is_file: &dyn Fn(&Path) -> bool) -> Result<String> {
    let wrong = |why: String| Err(Error::new(Kind::Failed, format!("\"{value}\" {why}")).hint(HINT));
    let words = match split(value) {
        Ok(words) => words,
        Err(sign) => return wrong(format!("is more than one plain command: it has {sign}")),
    };
    let mut words = words.iter().map(String::as_str).skip_while(|word| is_assignment(word));
    let Some(program) = words
        .next()
        .filter(|word| word.rsplit('/').next() == Some("pgkeep-archive-push"))
    else {
        return wrong("does not call pgkeep-archive-push %p".to_owned());
    };
    if program.contains('/') && !is_file(Path::new(program)) {
        return wrong(format!("calls {program}, which is not there"));
    }
    let rest: Vec<&str> = words.collect();
    if rest.iter().filter(|word| word.contains("%p")).count() != 1 || !rest.contains(&"%p") {
        return wrong("does not pass %p".to_owned());
    }
    if let Some(config) = option(&rest, "--config").filter(|config| !is_file(Path::new(config))) {
        return wrong(format!("names the configuration {config}, which is not there"));
    }
    Ok(value.to_owned())
}

/// The value of `--name value` or `--name=value`.
fn option<'w>(words: &[&'w str], name: &str) -> Option<&'w str> {
    let after = words
        .iter()
        .position(|word| *word == name)
        .and_then(|at| words.get(at + 1).copied());
    after.or_else(|| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')))
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// The words of one plain command as a shell sees them; else the sign that makes it more.
fn split(value: &str) -> std::result::Result<Vec<String>, char> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for sign in value.chars() {
        match (quote, sign) {
            (Some(open), _) if sign == open => quote = None,
            (Some('"') | None, '$' | '`' | '\\') => return Err(sign),
            (Some(_), _) => word.get_or_insert_default().push(sign),
            (None, '"' | '\'') => {
                quote = Some(sign);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, ';' | '&' | '|' | '#' | '<' | '>' | '(' | ')' | '\n' | '!' | '*' | '?' | '~') => return Err(sign),
            (None, _) => word.get_or_insert_default().push(sign),
        }
    }
    match quote {
        Some(open) => Err(open),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn judged(value: &str) -> Result<String> {
        judge(value, &|path| !path.starts_with("/nope"))
    }

    #[test]
    fn the_plain_command_is_accepted() {
        for value in [
            "pgkeep-archive-push %p",
            "/usr/bin/pgkeep-archive-push \"%p\"",
            "\"/usr/bin/pgkeep-archive-push\" --config '/etc/pg keep.toml' --cluster main %p",
            "PGKEEP_CONFIG=/etc/x.toml PGKEEP_CLUSTER=main pgkeep-archive-push %p",
            "  pgkeep-archive-push -v --config=/etc/x %p ",
        ] {
            judged(value).unwrap();
        }
    }

    #[test]
    fn whatever_swallows_the_exit_code_is_refused() {
        for (value, why) in [
            ("", "does not call"),
            ("(disabled)", "more than one"),
            ("pgkeep-archive-push", "does not pass %p"),
            ("pgkeep-archive-push %f", "does not pass %p"),
            ("pgkeep-archive-push %p || true", "more than one"),
            ("pgkeep-archive-push %p; exit 0", "more than one"),
            ("pgkeep-archive-push %p &", "more than one"),
            ("pgkeep-archive-push %p | logger", "more than one"),
            ("true # pgkeep-archive-push %p", "more than one"),
            ("true pgkeep-archive-push %p", "does not call"),
            ("! pgkeep-archive-push %p", "more than one"),
            ("echo 'pgkeep-archive-push %p'", "does not call"),
            ("$(pgkeep-archive-push %p)", "more than one"),
            ("pgkeep-archive-push '%p", "more than one"),
            ("/nope/pgkeep-archive-push %p", "is not there"),
            ("pgkeep-archive-push --config /nope/x %p", "is not there"),
            ("pgkeep-archive-push --config=/nope/x %p", "is not there"),
            ("my-pgkeep-archive-push %p", "does not call"),
        ] {
            let error = judged(value).unwrap_err();
            assert!(error.to_string().contains(why), "{value}: {error}");
            assert_eq!(error.nearest_hint(), Some(HINT));
        }
    }
}
