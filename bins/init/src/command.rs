//! Whether an archive_command really archives. Pure but for asking which files there are.
//!
//! PostgreSQL removes a segment when the command returns 0, so whatever swallows pgkeep's exit code loses WAL: another
//! command behind it, a pipe, a comment sign before it. Accepted are the plain command, and plain commands that `&&` joins,
//! as during a migration: their code is 0 only if every one succeeded.

use std::path::Path;

use common::config::Config;
use common::error::{Error, Kind, Result};

const HINT: &str = "set archive_command = 'pgkeep-archive-push %p' and reload; another command may be joined to it with && only, and nothing \
                    may swallow its exit code";

const OFF_HINT: &str = "set archive_mode = on and archive_command = 'pgkeep-archive-push %p', and restart";

/// What PostgreSQL shows for the command while archive_mode is off.
const DISABLED: &str = "(disabled)";

/// Words of the shell that may end it with another code, or make the next command another one.
const ENDERS: [&str; 10] = [
    "exit", "exec", "return", "trap", "eval", ".", "source", "alias", "command", "builtin",
];

/// A command that archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Nothing else is called.
    Alone,
    /// Others are called, too, and 0 means that all of them succeeded.
    Beside,
}

/// What a command is compared with.
pub struct Known<'a> {
    /// Whether there is a file.
    pub is_file: &'a dyn Fn(&Path) -> bool,
    /// Whether a path is that of the configuration that is being checked.
    pub is_configuration: &'a dyn Fn(&Path) -> bool,
    /// The cluster whose server has the command.
    pub cluster: &'a str,
    /// The names of all clusters in the configuration.
    pub clusters: Vec<&'a str>,
}

impl<'a> Known<'a> {
    /// What the configuration knows, for `cluster`.
    pub fn of(
        config: &'a Config,
        cluster: &'a str,
        is_file: &'a dyn Fn(&Path) -> bool,
        is_configuration: &'a dyn Fn(&Path) -> bool,
    ) -> Self {
        Self {
            is_file,
            is_configuration,
            cluster,
            clusters: config.clusters.iter().map(|cluster| cluster.name.as_str()).collect(),
        }
    }
}

/// Judges archive_library, which takes the place of archive_command where it is set: from PostgreSQL 15 on, and nowhere before.
///
/// # Errors
/// `Failed` if it is set.
pub fn judge_library(value: &str) -> Result<()> {
    match value.trim() {
        "" => Ok(()),
        library => Err(Error::new(
            Kind::Failed,
            format!("{library} archives in place of archive_command, which is not called: no WAL comes to pgkeep"),
        )
        .hint("set archive_library = '' and archive_command = 'pgkeep-archive-push %p', and reload")),
    }
}

/// Judges the setting by itself and by what is known of the cluster.
///
/// # Errors
/// `Failed` with what is wrong.
pub fn judge(value: &str, known: &Known<'_>) -> Result<Command> {
    let off = |why: &str, hint: &str| Err(Error::new(Kind::Failed, why).hint(hint));
    match value.trim() {
        "" => return off("it is not set: no WAL is archived, and all of it stays in pg_wal", HINT),
        DISABLED => return off("archiving is off (archive_mode), so no command is called", OFF_HINT),
        _ => {}
    }
    let wrong = |why: String| Err(Error::new(Kind::Failed, format!("\"{value}\" {why}")).hint(HINT));
    let commands = match split(value) {
        Ok(commands) => commands,
        Err(sign) => return wrong(format!("is more than plain commands: it has {sign}")),
    };
    let Some(last) = commands.iter().rposition(|words| is_ours(words)) else {
        return wrong("does not call pgkeep-archive-push %p".to_owned());
    };
    for (at, words) in commands.iter().enumerate() {
        if !is_ours(words) {
            let ender = program(words).filter(|program| at < last && ENDERS.contains(program));
            if let Some(ender) = ender {
                return wrong(format!(
                    "has {ender} before pgkeep-archive-push, which may keep it from being called"
                ));
            }
        } else if let Err(why) = judge_ours(words, known.is_file) {
            return wrong(why);
        } else {
            judge_cluster(words, known).map_err(|why| wrong_cluster(value, &why, known.cluster))?;
        }
    }
    Ok(match commands.len() {
        1 => Command::Alone,
        _ => Command::Beside,
    })
}

/// What is called, behind assignments.
fn program(words: &[String]) -> Option<&str> {
    words.iter().map(String::as_str).find(|word| !is_assignment(word))
}

fn is_ours(words: &[String]) -> bool {
    program(words).is_some_and(|program| program.rsplit('/').next() == Some("pgkeep-archive-push"))
}

/// Whether a call of pgkeep-archive-push can succeed; else why not.
fn judge_ours(words: &[String], is_file: &dyn Fn(&Path) -> bool) -> std::result::Result<(), String> {
    let mut words = words.iter().map(String::as_str).skip_while(|word| is_assignment(word));
    let program = words.next().unwrap_or_default();
    if program.contains('/') && !is_file(Path::new(program)) {
        return Err(format!("calls {program}, which is not there"));
    }
    let rest: Vec<&str> = words.collect();
    if rest.iter().filter(|word| word.contains("%p")).count() != 1 || !rest.contains(&"%p") {
        return Err("does not pass %p".to_owned());
    }
    if let Some(config) = option(&rest, "--config").filter(|config| !is_file(Path::new(config))) {
        return Err(format!("names the configuration {config}, which is not there"));
    }
    Ok(())
}

/// Whether a call stores the WAL as that of the cluster whose server makes it; else why not. What another configuration has
/// is not known here, and what stands in the server's environment is seen by nobody.
fn judge_cluster(words: &[String], known: &Known<'_>) -> std::result::Result<(), String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = |name, variable| {
        let said = option(&words, name).or_else(|| assigned(&words, variable));
        said.filter(|said| !said.is_empty())
    };
    if said("--config", "PGKEEP_CONFIG").is_some_and(|config| !(known.is_configuration)(Path::new(config))) {
        return Ok(());
    }
    let all = || known.clusters.join(", ");
    match said("--cluster", "PGKEEP_CLUSTER") {
        Some(cluster) if cluster == known.cluster => Ok(()),
        Some(cluster) if known.clusters.contains(&cluster) => Err(format!(
            "stores WAL as that of cluster \"{cluster}\", and this is the server of cluster \"{}\"",
            known.cluster
        )),
        Some(cluster) => Err(format!(
            "names cluster \"{cluster}\", which is not configured: {}",
            all()
        )),
        None if known.clusters.len() > 1 => Err(format!(
            "does not say which of the configured clusters it is for: {}",
            all()
        )),
        None => Ok(()),
    }
}

fn wrong_cluster(value: &str, why: &str, cluster: &str) -> Error {
    Error::new(Kind::Failed, format!("\"{value}\" {why}")).hint(format!(
        "set archive_command = 'pgkeep-archive-push --cluster {cluster} %p' and reload"
    ))
}

/// The value of `NAME=value` before the program; the last one counts.
fn assigned<'w>(words: &[&'w str], name: &str) -> Option<&'w str> {
    let before = words.iter().take_while(|word| is_assignment(word));
    before
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .last()
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

/// The words of plain commands that `&&` joins, as a shell sees them; else the sign that makes it more.
fn split(value: &str) -> std::result::Result<Vec<Vec<String>>, char> {
    let mut commands = Vec::new();
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut signs = value.chars().peekable();
    while let Some(sign) = signs.next() {
        match (quote, sign) {
            (Some(open), _) if sign == open => quote = None,
            (Some('"') | None, '$' | '`' | '\\') => return Err(sign),
            (Some(_), _) => word.get_or_insert_default().push(sign),
            (None, '"' | '\'') => {
                quote = Some(sign);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, '&') if signs.next_if_eq(&'&').is_some() => {
                words.extend(word.take());
                if words.is_empty() {
                    return Err(sign);
                }
                commands.push(std::mem::take(&mut words));
            }
            (None, ';' | '&' | '|' | '#' | '<' | '>' | '(' | ')' | '\n' | '!' | '*' | '?' | '~') => return Err(sign),
            (None, _) => word.get_or_insert_default().push(sign),
        }
    }
    if let Some(open) = quote {
        return Err(open);
    }
    words.extend(word);
    if words.is_empty() {
        return Err('&');
    }
    commands.push(words);
    Ok(commands)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn judged_among(value: &str, clusters: &[&str]) -> Result<Command> {
        let known = Known {
            is_file: &|path| !path.starts_with("/nope"),
            is_configuration: &|path| path == Path::new("/etc/pgkeep.toml"),
            cluster: "main",
            clusters: clusters.to_vec(),
        };
        judge(value, &known)
    }

    fn judged(value: &str) -> Result<Command> {
        judged_among(value, &["main"])
    }

    #[test]
    fn among_several_clusters_the_command_names_its_own() {
        for value in [
            "/usr/bin/pgkeep-archive-push --cluster main %p",
            "pgkeep-archive-push %p --cluster=main",
            "PGKEEP_CLUSTER=main pgkeep-archive-push %p",
            "PGKEEP_CLUSTER=two pgkeep-archive-push --cluster main %p",
            "pgkeep-archive-push --config /etc/pgkeep.toml --cluster main %p",
        ] {
            assert_eq!(
                judged_among(value, &["main", "two"]).unwrap(),
                Command::Alone,
                "{value}"
            );
        }
        for (value, why) in [
            (
                "/usr/bin/pgkeep-archive-push %p",
                "which of the configured clusters it is for: main, two",
            ),
            (
                "PGKEEP_CLUSTER= pgkeep-archive-push %p",
                "which of the configured clusters",
            ),
            (
                "pgkeep-archive-push --config=/etc/pgkeep.toml %p",
                "which of the configured clusters",
            ),
            (
                "test -f PGKEEP_CLUSTER=main && pgkeep-archive-push %p",
                "which of the configured clusters",
            ),
            (
                "pgkeep-archive-push --cluster two %p",
                "as that of cluster \"two\", and this is the server of cluster \"main\"",
            ),
            (
                "PGKEEP_CLUSTER=two pgkeep-archive-push %p",
                "as that of cluster \"two\"",
            ),
            (
                "PGKEEP_CLUSTER=main pgkeep-archive-push --cluster=two %p",
                "as that of cluster \"two\"",
            ),
            (
                "pgkeep-archive-push --cluster main %p && pgkeep-archive-push --cluster two %p",
                "as that of cluster \"two\"",
            ),
            (
                "pgkeep-archive-push --cluster mian %p",
                "names cluster \"mian\", which is not configured: main, two",
            ),
        ] {
            let error = judged_among(value, &["main", "two"]).unwrap_err();
            assert!(error.to_string().contains(why), "{value}: {error}");
            assert!(
                error
                    .nearest_hint()
                    .unwrap()
                    .contains("pgkeep-archive-push --cluster main %p")
            );
        }
        assert!(
            judged("pgkeep-archive-push --cluster two %p").is_err(),
            "nothing else is configured"
        );
    }

    #[test]
    fn what_another_configuration_has_is_not_judged() {
        for value in [
            "pgkeep-archive-push --config /etc/other.toml %p",
            "PGKEEP_CONFIG=/etc/other.toml pgkeep-archive-push %p",
            "pgkeep-archive-push --config /etc/other.toml --cluster two %p",
        ] {
            assert_eq!(
                judged_among(value, &["main", "two"]).unwrap(),
                Command::Alone,
                "{value}"
            );
        }
    }

    #[test]
    fn a_library_takes_the_place_of_the_command() {
        assert!(judge_library("").is_ok());
        let error = judge_library("basic_archive").unwrap_err();
        assert!(
            error.to_string().starts_with("basic_archive archives in place of"),
            "{error}"
        );
        assert!(error.nearest_hint().unwrap().contains("archive_library = ''"));
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
            assert_eq!(judged(value).unwrap(), Command::Alone, "{value}");
        }
    }

    #[test]
    fn beside_it_others_may_be_called_whose_failure_counts_too() {
        for value in [
            "pgkeep-archive-push %p && pgbackrest --stanza=main archive-push %p",
            "/usr/bin/pgkeep-archive-push \"%p\"&&cp %p '/mnt/a && b/%f'",
            "test -d /mnt/a && /usr/bin/pgkeep-archive-push %p && cp %p /mnt/a/%f",
            "pgkeep-archive-push --config /etc/a %p && pgkeep-archive-push --config /etc/b %p",
            "pgkeep-archive-push %p && . /etc/wal-g.env",
            "pgkeep-archive-push %p && exec old",
        ] {
            assert_eq!(judged(value).unwrap(), Command::Beside, "{value}");
        }
    }

    #[test]
    fn where_nothing_is_archived_that_is_said() {
        let error = judged("(disabled)").unwrap_err();
        assert_eq!(
            error.to_string(),
            "archiving is off (archive_mode), so no command is called"
        );
        assert!(error.nearest_hint().unwrap().contains("archive_mode = on"));
        for value in ["", " "] {
            let error = judged(value).unwrap_err();
            assert!(
                error.to_string().starts_with("it is not set: no WAL is archived"),
                "{error}"
            );
            assert_eq!(error.nearest_hint(), Some(HINT));
        }
    }

    #[test]
    fn whatever_swallows_the_exit_code_is_refused() {
        for (value, why) in [
            ("pgkeep-archive-push", "does not pass %p"),
            ("pgkeep-archive-push %f", "does not pass %p"),
            ("pgkeep-archive-push %p || true", "more than plain commands: it has |"),
            ("pgkeep-archive-push %p; exit 0", "more than plain commands: it has ;"),
            ("pgkeep-archive-push %p &", "more than plain commands: it has &"),
            ("pgkeep-archive-push %p & true", "more than plain commands: it has &"),
            ("pgkeep-archive-push %p | logger", "more than plain commands: it has |"),
            (
                "pgkeep-archive-push %p && old %p; true",
                "more than plain commands: it has ;",
            ),
            (
                "pgkeep-archive-push %p && old %p || cp %p /a",
                "more than plain commands: it has |",
            ),
            (
                "pgkeep-archive-push %p && old %p | logger",
                "more than plain commands: it has |",
            ),
            (
                "pgkeep-archive-push %p && old %p & true",
                "more than plain commands: it has &",
            ),
            ("pgkeep-archive-push %p &&", "more than plain commands: it has &"),
            ("&& pgkeep-archive-push %p", "more than plain commands: it has &"),
            ("pgkeep-archive-push %p &&& true", "more than plain commands: it has &"),
            ("pgkeep-archive-push %f && cp %p /a", "does not pass %p"),
            ("cp %p /a && old %p", "does not call"),
            ("echo 'x && pgkeep-archive-push %p'", "does not call"),
            ("exec true && pgkeep-archive-push %p", "has exec before"),
            ("A=1 exit && pgkeep-archive-push %p", "has exit before"),
            ("trap 'exit 0' EXIT && pgkeep-archive-push %p", "has trap before"),
            (
                "pgkeep-archive-push %p && exit && pgkeep-archive-push %p",
                "has exit before",
            ),
            ("true # pgkeep-archive-push %p", "more than"),
            ("true pgkeep-archive-push %p", "does not call"),
            ("! pgkeep-archive-push %p", "more than"),
            ("echo 'pgkeep-archive-push %p'", "does not call"),
            ("$(pgkeep-archive-push %p)", "more than"),
            ("pgkeep-archive-push '%p", "more than"),
            ("/nope/pgkeep-archive-push %p", "is not there"),
            ("old %p && /nope/pgkeep-archive-push %p", "is not there"),
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
