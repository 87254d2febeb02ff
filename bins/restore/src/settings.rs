//! What the restored server is told: recovery settings, signal file, how it fetches WAL.

use std::io;
use std::path::{Path, PathBuf};

use common::durable;
use common::error::{Context, Error, Kind, Result};
use common::postgres::recovery::{self, RecoverySettings, TargetTimeline};

use crate::plan::Choice;
use crate::target::{Request, Timeline};

/// A file of settings is a page of text; a larger one is not edited.
const MOST_BYTES: u64 = 16 << 20;

/// How the restored server calls for WAL.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// The installed pgkeep-archive-get.
    pub program: PathBuf,
    /// The configuration file, absolute.
    pub config: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// The repositories to ask, if they were chosen.
    pub repositories: Vec<String>,
}

impl Fetcher {
    /// The restore_command: a line for the shell in which PostgreSQL replaces `%f` and `%p`.
    ///
    /// # Errors
    /// `Config` if a path is not UTF-8, which a configuration file could not hold.
    pub fn command(&self) -> Result<String> {
        let mut words = vec![word(&self.program)?, "--config".to_owned(), word(&self.config)?];
        words.extend(["--cluster".to_owned(), quote(&self.cluster)]);
        for name in &self.repositories {
            words.extend(["--repository".to_owned(), quote(name)]);
        }
        Ok(format!("{} %f \"%p\"", words.join(" ")))
    }
}

fn word(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| {
        Error::new(
            Kind::Config,
            format!(
                "the path \"{}\" is not UTF-8 and cannot stand in restore_command",
                path.display()
            ),
        )
    })?;
    Ok(quote(text))
}

/// Quotes a word for the shell, and each `%` for PostgreSQL.
fn quote(text: &str) -> String {
    let text = text.replace('%', "%%");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:,@%".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// The settings of a choice.
pub fn recovery(
    choice: &Choice,
    request: &Request,
    restore_command: String,
    primary_conninfo: Option<String>,
    archiving: bool,
    partial: bool,
) -> RecoverySettings {
    // A standby shall follow its primary to timelines that do not exist yet.
    let follow = request.standby && choice.newest && request.timeline == Timeline::Latest;
    RecoverySettings {
        restore_command,
        target: choice.target.for_recovery(),
        exclusive: choice.exclusive,
        timeline: if follow {
            TargetTimeline::Latest
        } else {
            TargetTimeline::Id(choice.timeline)
        },
        action: choice.action.for_recovery(),
        standby: request.standby,
        primary_conninfo,
        others: others(choice, archiving, partial),
    }
}

/// PostgreSQL 15 and later read ahead of what they replay (`src/backend/access/transam/xlogprefetcher.c`), so behind a target that lies
/// just before a gap they would ask for the missing segment, hear that it could not be had, and stop.
///
/// Where databases are left empty, WAL speaks of pages that are new, which recovery takes for damage when it becomes consistent
/// (`XLogCheckInvalidPages`, `src/backend/access/transam/xlogutils.c`); and nobody must clean up in their catalogs.
fn others(choice: &Choice, archiving: bool, partial: bool) -> Vec<(String, String)> {
    let mut others = Vec::new();
    let mut set = |name: &str, value: &str| others.push((name.to_owned(), value.to_owned()));
    if !archiving {
        set("archive_mode", "off");
    }
    if choice.gap_behind && choice.backup.major >= 15 {
        set("recovery_prefetch", "off");
    }
    if partial {
        set("ignore_invalid_pages", "on");
        set("autovacuum", "off");
    }
    others
}

/// Edits postgresql.auto.conf and leaves the right signal file in the data directory.
///
/// # Errors
/// What reading or writing gave; `Config` if a value cannot be written.
pub fn write(data: &Path, settings: &RecoverySettings) -> Result<()> {
    let path = data.join(recovery::AUTO_CONF);
    let before = match path.symlink_metadata() {
        Ok(found) if found.is_file() && found.len() <= MOST_BYTES => {
            std::fs::read(&path).context(|| format!("read {}", path.display()))?
        }
        Ok(_) => {
            return Err(Error::new(
                Kind::Refused,
                format!("{} is not a file of settings", path.display()),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io(error, format!("look at {}", path.display()))),
    };
    durable::replace(&path, &settings.edit_auto_conf(&before)?, 0o600)?;
    let (needed, unwanted) = settings.signal_files();
    match std::fs::remove_file(data.join(unwanted)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(error, format!("remove {}", data.join(unwanted).display())));
        }
        _ => {}
    }
    durable::replace(&data.join(needed), b"", 0o600)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use common::postgres::recovery::{RECOVERY_SIGNAL, STANDBY_SIGNAL};

    fn fetcher() -> Fetcher {
        Fetcher {
            program: "/usr/bin/pgkeep-archive-get".into(),
            config: "/etc/pgkeep/pgkeep.toml".into(),
            cluster: "main".into(),
            repositories: Vec::new(),
        }
    }

    #[test]
    fn plain_words_stay_plain_and_odd_ones_are_quoted() {
        let plain = fetcher().command().unwrap();
        assert_eq!(
            plain,
            "/usr/bin/pgkeep-archive-get --config /etc/pgkeep/pgkeep.toml --cluster main %f \"%p\""
        );
        let odd = Fetcher {
            config: "/srv/it's 100%/c.toml".into(),
            repositories: vec!["nas".into()],
            ..fetcher()
        };
        assert_eq!(
            odd.command().unwrap(),
            "/usr/bin/pgkeep-archive-get --config '/srv/it'\\''s 100%%/c.toml' --cluster main --repository nas %f \"%p\""
        );
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in ["a b", "it's", "$HOME `id` \"x\" \\ ;&|", "", "*"] {
            let output = std::process::Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", quote(text)))
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }

    #[test]
    fn the_signal_file_of_the_backup_gives_way_to_the_right_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(STANDBY_SIGNAL), "").unwrap();
        std::fs::write(
            dir.path().join(recovery::AUTO_CONF),
            "work_mem = '4MB'\nrestore_command = 'old'\n",
        )
        .unwrap();
        write(
            dir.path(),
            &RecoverySettings {
                restore_command: "new".into(),
                ..RecoverySettings::default()
            },
        )
        .unwrap();
        assert!(dir.path().join(RECOVERY_SIGNAL).exists() && !dir.path().join(STANDBY_SIGNAL).exists());
        let text = std::fs::read_to_string(dir.path().join(recovery::AUTO_CONF)).unwrap();
        assert!(
            text.starts_with("work_mem = '4MB'\n") && text.contains("'new'") && !text.contains("'old'"),
            "{text}"
        );
        write(
            dir.path(),
            &RecoverySettings {
                standby: true,
                ..RecoverySettings::default()
            },
        )
        .unwrap();
        assert!(!dir.path().join(RECOVERY_SIGNAL).exists() && dir.path().join(STANDBY_SIGNAL).exists());
    }

    #[test]
    fn settings_that_lead_elsewhere_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(recovery::AUTO_CONF)).unwrap();
        assert_eq!(
            write(dir.path(), &RecoverySettings::default()).unwrap_err().kind(),
            Kind::Refused
        );
    }
}
