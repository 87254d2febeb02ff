//! The data directory: what of it belongs into a backup.
//!
//! Knows the exclusions of PostgreSQL's own base backup (`src/backend/backup/basebackup.c`): contents that
//! a start rebuilds, temporary relations, all but the init fork of unlogged relations. Promises the same
//! order for the same files, and memory that does not grow with their number: a directory that is too
//! large for one sorted batch is read again for the next. Files that vanish while it looks are fine; a
//! link is reported as a link, except where the content of the database would stay behind.

use super::relation::{Fork, RelationName, holds_relations, oid, relation_name};
use crate::error::{Error, Kind, Result};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use walkdir::WalkDir;

/// How many names are sorted at once; twice as many are held for a moment.
const BATCH: usize = 100_000;

/// Directories that stay, without their contents.
const WITHOUT_CONTENT: [&str; 8] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_wal",
];

/// What a restore leaves at the top of a data directory: SQL that erases tenants again.
pub const ERASURES: &str = "pgkeep_erasures.sql";

/// Marks a data directory that holds single databases of a cluster; says which, a line for each.
pub const PARTIAL: &str = "pgkeep_only_database";

/// Files at the top that belong to the running server, or are written anew by a restore.
const LEFT_OUT: [&str; 6] = [
    ERASURES,
    "backup_label",
    "backup_manifest",
    "tablespace_map",
    "postmaster.opts",
    "postmaster.pid",
];

/// Directories whose links would hide a part of the database.
const OF_THE_DATABASE: [&str; 8] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_logical",
    "pg_multixact",
    "pg_stat",
    "pg_twophase",
    "pg_xact",
];

/// Something that belongs into the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name in the backup: `data/...`, `tablespace/<oid>/...` or `extra/...`.
    pub path: PathBuf,
    /// Where it is now.
    pub source: PathBuf,
    /// What it is.
    pub kind: FoundKind,
    /// Its size in bytes at this moment; 0 unless it is a file.
    pub size: u64,
    /// The permission bits.
    pub mode: u32,
    /// The owner's name, or number if it has none.
    pub owner: Arc<str>,
    /// The group's name, or number if it has none.
    pub group: Arc<str>,
    /// When its content last changed.
    pub modified: SystemTime,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    /// A regular file.
    File,
    /// A directory; reported before what is in it, and also if it is to be empty.
    Dir,
    /// A symbolic link, with its target as it stands there.
    Link(PathBuf),
}

/// A tablespace outside of the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, the name of its link in pg_tblspc.
    pub oid: u32,
    /// Where it lies.
    pub location: PathBuf,
}

/// Finds the tablespaces of a data directory by the links in pg_tblspc, by OID.
///
/// # Errors
/// `NotFound` if pg_tblspc is missing, else what reading it says.
pub fn tablespaces(pgdata: &Path) -> Result<Vec<Tablespace>> {
    let directory = pgdata.join("pg_tblspc");
    let mut found = Vec::new();
    for entry in WalkDir::new(&directory).min_depth(1).max_depth(1) {
        let entry = entry.map_err(|error| unreadable(error, &directory))?;
        let number = entry.file_name().to_str().and_then(oid);
        if let (Some(number), true) = (number, entry.path_is_symlink()) {
            let target = std::fs::read_link(entry.path())
                .map_err(|error| Error::io(error, format!("read {}", entry.path().display())))?;
            found.push(Tablespace {
                oid: number,
                location: directory.join(target),
            });
        }
    }
    found.sort_by_key(|tablespace| tablespace.oid);
    Ok(found)
}

/// Reports all that belongs into a backup of this data directory, its tablespaces last.
///
/// `version_directory` is the cluster's own directory in a tablespace, like `PG_15_202209061`
/// ([`super::ControlFile::tablespace_directory`]); other versions may have theirs beside it.
///
/// # Errors
/// `Refused` if a part of the database is kept behind a link, what reading says, and what `each` returns.
pub fn walk(
    pgdata: &Path,
    tablespaces: &[Tablespace],
    version_directory: &str,
    each: &mut dyn FnMut(Found) -> Result<()>,
) -> Result<()> {
    let mut walker = Walker::new(each);
    walker.elsewhere = tablespaces
        .iter()
        .map(|tablespace| tablespace.location.clone())
        .collect();
    walker.root(pgdata, Path::new("data"), Rules::DataDirectory)?;
    for tablespace in tablespaces {
        let path = PathBuf::from(format!("tablespace/{}", tablespace.oid));
        walker.single(&tablespace.location, &path)?;
        let source = tablespace.location.join(version_directory);
        match std::fs::symlink_metadata(&source) {
            Ok(_) => walker.root(&source, &path.join(version_directory), Rules::DataDirectory)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(error, format!("look at {}", source.display()))),
        }
    }
    Ok(())
}

/// Reports a directory or file outside of the data directory, as `extra/<its absolute path>`.
///
/// Nothing is left out but what `excluded` says; a directory that is left out is not looked into.
///
/// # Errors
/// `Config` for a relative path, `NotFound` if there is nothing, what reading says, and what `each` returns.
pub fn walk_extra(
    path: &Path,
    excluded: &dyn Fn(&Path) -> bool,
    each: &mut dyn FnMut(Found) -> Result<()>,
) -> Result<()> {
    let below = path
        .strip_prefix("/")
        .map_err(|_| Error::new(Kind::Config, format!("extra path {} is not absolute", path.display())))?;
    let mut walker = Walker::new(each);
    walker.root(path, &Path::new("extra").join(below), Rules::Extra(excluded))
}

#[derive(Clone, Copy)]
enum Rules<'a> {
    DataDirectory,
    Extra(&'a dyn Fn(&Path) -> bool),
}

/// What happens to one name.
enum Verdict {
    LeaveOut,
    Keep,
    /// Keep as a directory, also if it is a link, with only these directories in it.
    Empty(&'static [&'static str]),
}

struct Walker<'a> {
    each: &'a mut dyn FnMut(Found) -> Result<()>,
    users: HashMap<u32, Arc<str>>,
    groups: HashMap<u32, Arc<str>>,
    elsewhere: Vec<PathBuf>,
    batch: usize,
}

impl<'a> Walker<'a> {
    fn new(each: &'a mut dyn FnMut(Found) -> Result<()>) -> Self {
        Walker {
            each,
            users: HashMap::new(),
            groups: HashMap::new(),
            elsewhere: Vec::new(),
            batch: BATCH,
        }
    }

    /// Reports `source`, which must exist and may be a link, and what is in it.
    fn root(&mut self, source: &Path, path: &Path, rules: Rules<'_>) -> Result<()> {
        if self.single(source, path)? {
            self.contents(source, path, rules)?;
        }
        Ok(())
    }

    /// Reports `source` alone, following links; says whether it is a directory.
    fn single(&mut self, source: &Path, path: &Path) -> Result<bool> {
        let metadata =
            std::fs::metadata(source).map_err(|error| Error::io(error, format!("look at {}", source.display())))?;
        let kind = if metadata.is_dir() {
            FoundKind::Dir
        } else {
            FoundKind::File
        };
        self.report(source, path, kind, &metadata)?;
        Ok(metadata.is_dir())
    }

    fn contents(&mut self, source: &Path, path: &Path, rules: Rules<'_>) -> Result<()> {
        let unlogged = match (rules, path.to_str()) {
            (Rules::DataDirectory, Some(text)) if holds_relations(text) => Some(unlogged_relations(source)?),
            _ => None,
        };
        let mut after: Option<OsString> = None;
        loop {
            let names = next_names(source, after.as_deref(), self.batch)?;
            for name in &names {
                let verdict = match (rules, &unlogged) {
                    (Rules::Extra(excluded), _) if excluded(&source.join(name)) => Verdict::LeaveOut,
                    (Rules::Extra(_), _) => Verdict::Keep,
                    (Rules::DataDirectory, Some(unlogged)) => judge_relation(name, unlogged),
                    (Rules::DataDirectory, None) => judge(path, name),
                };
                self.entry(&source.join(name), &path.join(name), rules, &verdict)?;
            }
            match names.into_iter().next_back() {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    fn entry(&mut self, source: &Path, path: &Path, rules: Rules<'_>, verdict: &Verdict) -> Result<()> {
        if matches!(verdict, Verdict::LeaveOut) || self.elsewhere.iter().any(|location| location == source) {
            return Ok(());
        }
        let metadata = match std::fs::symlink_metadata(source) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(error, format!("look at {}", source.display()))),
        };
        let file_type = metadata.file_type();
        if let Verdict::Empty(inner) = verdict {
            return self.empty(source, path, inner);
        }
        if file_type.is_symlink() {
            if matches!(rules, Rules::DataDirectory) {
                refuse_hiding_link(source, path)?;
            }
            let target = match std::fs::read_link(source) {
                Ok(target) => target,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(Error::io(error, format!("read link {}", source.display()))),
            };
            self.report(source, path, FoundKind::Link(target), &metadata)
        } else if file_type.is_dir() {
            self.report(source, path, FoundKind::Dir, &metadata)?;
            self.contents(source, path, rules)
        } else if file_type.is_file() {
            self.report(source, path, FoundKind::File, &metadata)
        } else {
            if !file_type.is_socket() {
                log::warn!("leaving out {}: neither file, directory nor link", source.display());
            }
            Ok(())
        }
    }

    /// Reports a directory whose contents do not count.
    fn empty(&mut self, source: &Path, path: &Path, inner: &[&str]) -> Result<()> {
        if !self.single(source, path)? {
            return Ok(());
        }
        for name in inner {
            if source.join(name).is_dir() {
                self.single(&source.join(name), &path.join(name))?;
            }
        }
        Ok(())
    }

    fn report(&mut self, source: &Path, path: &Path, kind: FoundKind, metadata: &Metadata) -> Result<()> {
        let found = Found {
            path: path.to_path_buf(),
            source: source.to_path_buf(),
            size: if kind == FoundKind::File { metadata.len() } else { 0 },
            kind,
            mode: metadata.mode() & 0o7777,
            owner: name_of(&mut self.users, metadata.uid(), |id| {
                nix::unistd::User::from_uid(id.into())
                    .ok()
                    .flatten()
                    .map(|user| user.name)
            }),
            group: name_of(&mut self.groups, metadata.gid(), |id| {
                nix::unistd::Group::from_gid(id.into())
                    .ok()
                    .flatten()
                    .map(|group| group.name)
            }),
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        };
        (self.each)(found)
    }
}

fn name_of(known: &mut HashMap<u32, Arc<str>>, id: u32, ask: impl FnOnce(u32) -> Option<String>) -> Arc<str> {
    known
        .entry(id)
        .or_insert_with(|| ask(id).unwrap_or_else(|| id.to_string()).into())
        .clone()
}

/// Judges a name in a directory without relations.
fn judge(directory: &Path, name: &OsStr) -> Verdict {
    // Names that are not UTF-8 are nobody's but the user's.
    let Some(name) = name.to_str() else {
        return Verdict::Keep;
    };
    if name.starts_with("pgsql_tmp") {
        return Verdict::LeaveOut;
    }
    if directory != Path::new("data") {
        return Verdict::Keep;
    }
    if LEFT_OUT.contains(&name)
        || name.ends_with(".auto.conf.tmp")
        || name == "current_logfiles.tmp"
        || name == "lost+found"
    {
        return Verdict::LeaveOut;
    }
    match name {
        "pg_wal" => Verdict::Empty(&["archive_status", "summaries"]),
        name if WITHOUT_CONTENT.contains(&name) => Verdict::Empty(&[]),
        _ => Verdict::Keep,
    }
}

/// Judges a name in a directory with relations; `unlogged` is sorted.
fn judge_relation(name: &OsStr, unlogged: &[u32]) -> Verdict {
    let Some(name) = name.to_str() else {
        return Verdict::Keep;
    };
    match relation_name(name) {
        Some(RelationName::Temporary) => Verdict::LeaveOut,
        Some(RelationName::Permanent { relation, fork, .. })
            if fork != Fork::Init && unlogged.binary_search(&relation).is_ok() =>
        {
            Verdict::LeaveOut
        }
        Some(RelationName::Permanent { .. }) => Verdict::Keep,
        None if name.starts_with("pgsql_tmp") || name.starts_with("pg_internal.init") => Verdict::LeaveOut,
        None => Verdict::Keep,
    }
}

/// A link that hides a part of the database would make a backup that restores to less.
fn refuse_hiding_link(source: &Path, path: &Path) -> Result<()> {
    let mut parts = path.iter().filter_map(OsStr::to_str);
    let hides = match (parts.next(), parts.next()) {
        (Some("data"), Some(top)) => OF_THE_DATABASE.contains(&top),
        (Some("tablespace"), _) => true,
        _ => false,
    };
    if !hides {
        return Ok(());
    }
    let message = format!(
        "{} is a symbolic link; what it points to would not be in the backup",
        source.display()
    );
    Err(Error::new(Kind::Refused, message)
        .hint("use a tablespace or a bind mount instead of a link inside the data directory"))
}

/// The relations of a directory that have an init fork, sorted.
fn unlogged_relations(directory: &Path) -> Result<Vec<u32>> {
    let mut unlogged = Vec::new();
    for_each_name(directory, |name| {
        if let Some(RelationName::Permanent {
            relation,
            fork: Fork::Init,
            ..
        }) = name.to_str().and_then(relation_name)
        {
            unlogged.push(relation);
        }
    })?;
    unlogged.sort_unstable();
    Ok(unlogged)
}

/// The first `batch` names of a directory after `after`, sorted.
fn next_names(directory: &Path, after: Option<&OsStr>, batch: usize) -> Result<Vec<OsString>> {
    let mut names: Vec<OsString> = Vec::new();
    let mut bound: Option<OsString> = None;
    for_each_name(directory, |name| {
        if after.is_some_and(|after| name <= after) || bound.as_deref().is_some_and(|bound| name >= bound) {
            return;
        }
        names.push(name.to_os_string());
        if names.len() >= 2 * batch {
            let (_, middle, _) = names.select_nth_unstable(batch);
            bound = Some(middle.clone());
            names.truncate(batch);
        }
    })?;
    names.sort_unstable();
    names.truncate(batch);
    Ok(names)
}

/// Calls with each name in a directory; one that has vanished is empty.
fn for_each_name(directory: &Path, mut each: impl FnMut(&OsStr)) -> Result<()> {
    for entry in WalkDir::new(directory).min_depth(1).max_depth(1) {
        match entry {
            Ok(entry) => each(entry.file_name()),
            Err(error) => {
                let error = unreadable(error, directory);
                if error.kind() != Kind::NotFound {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

fn unreadable(error: walkdir::Error, directory: &Path) -> Error {
    let message = format!("read directory {}", directory.display());
    match error.into_io_error() {
        Some(error) => Error::io(error, message),
        None => Error::new(Kind::Failed, message),
    }
}

#[cfg(test)]
#[path = "datadir_tests.rs"]
mod tests;
