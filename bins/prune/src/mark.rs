//! Marks single backups, and takes marks back.

use common::error::{Error, Kind, Result};
use common::repository::events::{self, What};
use common::repository::{Label, Repository, backup};
use common::time::UtcTime;

/// Marks a backup in every repository that has it.
///
/// # Errors
/// `NotFound` if none has it; else what a store says.
pub fn keep(repositories: &[Repository], label: Label, reason: &str, host: &str) -> Result<String> {
    if reason.trim().is_empty() {
        return Err(Error::new(Kind::Config, "--reason is empty")
            .hint("say why the backup stays: whoever wonders in five years reads it"));
    }
    let what = || What::Keep {
        label,
        reason: reason.to_owned(),
    };
    note(repositories, label, host, &what, "stays from now on")
}

/// Takes the newest mark of a backup back.
///
/// # Errors
/// As [`keep`].
pub fn unkeep(repositories: &[Repository], label: Label, host: &str) -> Result<String> {
    note(
        repositories,
        label,
        host,
        &|| What::Unkeep { label },
        "is left to retention again",
    )
}

fn note(repositories: &[Repository], label: Label, host: &str, what: &dyn Fn() -> What, said: &str) -> Result<String> {
    let mut text = String::new();
    for repository in repositories {
        repository.identity_for_writing()?;
        match backup::read(repository, label) {
            Ok(_) => {}
            // It may be damaged and worth keeping all the same.
            Err(error) if error.kind() == Kind::Corrupt => {}
            Err(error) if error.kind() == Kind::NotFound => continue,
            Err(error) => return Err(error.context(format!("look for it in repository \"{}\"", repository.name))),
        }
        events::append(repository, UtcTime::now(), host, what())?;
        text += &format!("{label} {said} in repository \"{}\"\n", repository.name);
    }
    if text.is_empty() {
        return Err(
            Error::new(Kind::NotFound, format!("no repository has a backup {label}"))
                .hint("pgkeep-info lists the labels"),
        );
    }
    Ok(text)
}
