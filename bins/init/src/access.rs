//! What the user whom jobs run as may reach on this host.
//!
//! Root reads the configuration before it becomes that user; archive_command never was root, and would be refused. Nothing is
//! written here: the system is asked whether it would let this process write.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use common::config::{Cluster, Config, Environment};
use common::error::{Context, Error, Kind, Result};
use common::postgres::FoundKind;
use common::postgres::datadir::{self, Found};
use nix::unistd::{AccessFlags, Gid, Group, Uid, User};

/// Whom this process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The user's name, or number where it has none.
    pub user: String,
    /// The group's.
    pub group: String,
}

impl Account {
    /// Asks the operating system.
    pub fn of_this_process() -> Self {
        let (user, group) = (Uid::effective(), Gid::effective());
        let name = User::from_uid(user).ok().flatten().map(|user| user.name);
        let its = Group::from_gid(group).ok().flatten().map(|group| group.name);
        Self {
            user: name.unwrap_or_else(|| user.to_string()),
            group: its.unwrap_or_else(|| group.to_string()),
        }
    }

    /// How root makes a directory that this user may write in, or one that is there this user's.
    pub fn install(&self, directory: &Path) -> String {
        let Self { user, group } = self;
        format!(
            "as root: install -d -o {user} -g {group} -m 700 {}",
            directory.display()
        )
    }
}

/// Whether this process may write in a directory that is there.
pub fn may_write(directory: &Path) -> io::Result<()> {
    nix::unistd::access(directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
}

/// Reads the configuration once more, as every job of this user does.
///
/// # Errors
/// As [`Config::load`], with what lets this user read it.
pub fn configuration(file: &Path, account: &Account, environment: Environment<'_>) -> Result<String> {
    let Account { user, group } = account;
    match Config::load(file, environment) {
        Ok(_) => Ok(format!("{} can be read by {user}", file.display())),
        Err(error) if error.is_denied() => Err(error.hint(format!(
            "{user}, who archives and backs up, may not read it; as root: chown root:{group} {file} && chmod 640 {file}, and \
             let {user} enter the directories above it",
            file = file.display()
        ))),
        Err(error) => Err(error),
    }
}

/// Whether what a cluster's jobs leave in the state directory can be left.
///
/// # Errors
/// As [`writable`].
pub fn state(config: &Config, cluster: &Cluster, account: &Account) -> Result<String> {
    let state = config.state_of(cluster);
    writable(&[state.clone(), state.join("repository")], account)
}

/// Whether archive-push and archive-get can use their part of the spool directory.
///
/// # Errors
/// As [`writable`].
pub fn spool(config: &Config, cluster: &Cluster, account: &Account) -> Result<String> {
    let spool = config.spool_directory.join(&cluster.name);
    writable(&[spool.clone(), spool.join("push"), spool.join("get")], account)
}

/// Whether all of `directories` are there and can be written in, or could be made.
///
/// # Errors
/// `Failed` with the first that cannot, and how root mends it.
fn writable(directories: &[PathBuf], account: &Account) -> Result<String> {
    for directory in directories {
        let asked = nearest(directory).and_then(|there| {
            may_write(there).context(|| format!("{} may not write in {}", account.user, there.display()))
        });
        asked.map_err(|error| error.hint(account.install(directory)))?;
    }
    let first = directories.first().map(|path| path.display().to_string());
    Ok(format!(
        "{} can be written in by {}",
        first.unwrap_or_default(),
        account.user
    ))
}

/// The directory itself, or the nearest above it that is there, in which it would be made.
fn nearest(directory: &Path) -> Result<&Path> {
    for above in directory.ancestors() {
        match fs::metadata(above) {
            Ok(found) if found.is_dir() => return Ok(above),
            Ok(_) => {
                let message = format!("{} is not a directory", above.display());
                return Err(Error::new(Kind::Failed, message));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(error, format!("look at {}", above.display()))),
        }
    }
    let message = format!("nothing of {} is there", directory.display());
    Err(Error::new(Kind::Failed, message))
}

/// Walks through an extra path as a base backup does, and asks of each file whether it may be read.
///
/// # Errors
/// The first thing that cannot be listed or read.
pub fn extra_path(path: &Path, cluster: &Cluster, account: &Account) -> Result<String> {
    let excluded = |path: &Path| cluster.extra_excludes.iter().any(|exclude| exclude == path);
    let mut readable = |found: Found| match found.kind {
        FoundKind::File => nix::unistd::access(&found.source, AccessFlags::R_OK)
            .map_err(io::Error::from)
            .context(|| format!("read {}", found.source.display())),
        _ => Ok(()),
    };
    datadir::walk_extra(path, &excluded, &mut readable)
        .map(|()| format!("can be read by {}", account.user))
        .map_err(|error| {
            error.hint(format!(
                "base backups fail: let {} read it, leave it out with extra_excludes, or mend extra_paths",
                account.user
            ))
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn postgres() -> Account {
        Account {
            user: "postgres".to_owned(),
            group: "dba".to_owned(),
        }
    }

    #[test]
    fn what_is_missing_is_looked_for_where_it_would_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b/c");
        assert_eq!(nearest(&below).unwrap(), dir.path());
        fs::create_dir_all(&below).unwrap();
        assert_eq!(nearest(&below).unwrap(), below);
        assert!(
            writable(&[below], &postgres())
                .unwrap()
                .ends_with("a/b/c can be written in by postgres")
        );
    }

    #[test]
    fn a_file_in_place_of_a_directory_fails_and_the_mend_is_a_command() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = writable(&[dir.path().to_owned(), file.clone()], &postgres()).unwrap_err();
        assert_eq!(error.to_string(), format!("{} is not a directory", file.display()));
        assert_eq!(
            error.nearest_hint().unwrap(),
            format!("as root: install -d -o postgres -g dba -m 700 {}", file.display())
        );
        assert!(writable(&[file.join("below")], &postgres()).is_err());
    }
}
