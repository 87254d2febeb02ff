//! Walking the directories of a store, one at a time, in the order of the keys; and proving that a name is absent.

use std::collections::VecDeque;
use std::sync::Arc;

use super::publish::is_missing;
use super::session::{Session, Trouble};
use super::wire::{Attributes, FileType};
use super::{SftpStore, Verb, stat_of};
use crate::durable::STAGING_PREFIX;
use crate::error::{Error, Kind, Result};
use crate::storage::{Key, Stat};
use crate::time::UtcTime;

/// Requests for more names on their way; servers send about a hundred at a time.
const WINDOW: usize = 4;

/// A name in a directory of the store; a directory's ends in a slash, so that sorting gives the keys' order:
/// `a-b`, then `a/c`, then `a0`.
pub(super) struct Entry {
    name: String,
    attributes: Attributes,
}

impl Entry {
    fn as_directory(&self) -> Option<&str> {
        self.name.strip_suffix('/')
    }

    pub(super) fn into_name(mut self) -> String {
        if self.name.ends_with('/') {
            self.name.pop();
        }
        self.name
    }
}

/// Whether an entry of a directory is none of ours: unfinished files, and those that NFS keeps until closed.
fn is_hidden(name: &str) -> bool {
    name.starts_with(STAGING_PREFIX) || name.starts_with(".nfs")
}

/// Everything in a directory but itself and the one above, as the server says it.
fn read_directory(session: &Session, path: &str) -> Result<Vec<(Vec<u8>, Attributes)>, Trouble> {
    let handle = session.open_directory(path)?;
    let read = || {
        let mut found = Vec::new();
        let mut coming = VecDeque::new();
        loop {
            while coming.len() < WINDOW {
                coming.push_back(session.send_readdir(&handle)?);
            }
            let Some(ticket) = coming.pop_front() else {
                return Ok(found);
            };
            let Some(names) = session.wait_readdir(ticket)? else {
                return Ok(found);
            };
            let ours = names
                .into_iter()
                .filter(|entry| entry.name != b"." && entry.name != b"..");
            found.extend(ours.map(|entry| (entry.name, entry.attributes)));
        }
    };
    let found = read();
    session.close(&handle);
    found
}

/// The entries of one directory, in the order of the keys below them. None where there surely is no directory.
pub(super) fn entries(store: &SftpStore, session: &Arc<Session>, prefix: Option<&Key>) -> Result<Vec<Entry>> {
    let path = store.path(prefix);
    let failed = |trouble| store.failed(session, trouble, Verb::List, prefix);
    let read = match (read_directory(session, &path), prefix) {
        (Ok(read), _) => read,
        (Err(trouble), Some(prefix)) if is_missing(&trouble) => {
            prove_nothing_below(store, session, prefix)?;
            return Ok(Vec::new());
        }
        // Some servers have no better word for what is no directory: an object has nothing below it.
        (Err(trouble @ Trouble::Said(..)), Some(_)) => match session.lstat(&path) {
            Ok(found) if found.file_type() == FileType::File => return Ok(Vec::new()),
            _ => return Err(failed(trouble)),
        },
        (Err(trouble), _) => return Err(failed(trouble)),
    };
    let mut found = Vec::new();
    for (name, attributes) in read {
        let name = match String::from_utf8(name) {
            Ok(name) if is_hidden(&name) => continue,
            Ok(name) if Key::parse(&name).is_ok_and(|key| key.as_str() == name) && !name.contains('/') => name,
            Ok(name) => {
                log::warn!("{path}/{} is none of the repository's: ignored", name.escape_debug());
                continue;
            }
            Err(error) => {
                let name = String::from_utf8_lossy(error.as_bytes()).into_owned();
                log::warn!("{path}/{} is none of the repository's: ignored", name.escape_debug());
                continue;
            }
        };
        found.extend(entry(store, session, &path, name, attributes, prefix)?);
    }
    found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn entry(
    store: &SftpStore,
    session: &Arc<Session>,
    directory: &str,
    name: String,
    mut attributes: Attributes,
    prefix: Option<&Key>,
) -> Result<Option<Entry>> {
    let path = format!("{directory}/{name}");
    if attributes.permissions.is_none() || attributes.size.is_none() || attributes.modified.is_none() {
        attributes = match session.lstat(&path) {
            Ok(attributes) => attributes,
            // Deleted since the directory was read.
            Err(trouble) if is_missing(&trouble) => return Ok(None),
            Err(trouble) => return Err(store.failed(session, trouble, Verb::List, prefix)),
        };
    }
    if attributes.file_type() == FileType::Link {
        // A directory may lie on another disk; an object may not, and a link that leads nowhere hides some.
        let found = session.stat(&path);
        attributes = found.map_err(|trouble| store.failed(session, trouble, Verb::List, prefix))?;
        if attributes.file_type() != FileType::Directory {
            let message = format!("{} is a link in place of an object", store.place(&path));
            return Err(Error::new(Kind::Refused, message));
        }
    }
    let name = match attributes.file_type() {
        FileType::Directory => format!("{name}/"),
        _ => name,
    };
    Ok(Some(Entry { name, attributes }))
}

fn below(prefix: Option<&Key>, name: &str) -> Result<Key> {
    prefix.map_or_else(|| Key::parse(name), |prefix| prefix.join(name))
}

/// Shows every object below `prefix`; keeps the entries of the directories on the way in memory, no more.
pub(super) fn list(
    store: &SftpStore,
    session: &Arc<Session>,
    prefix: Option<&Key>,
    each: &mut dyn FnMut(Key, Stat) -> Result<()>,
) -> Result<()> {
    for entry in entries(store, session, prefix)? {
        if let Some(name) = entry.as_directory() {
            // The length of keys bounds the depth, also of links that lead back up.
            list(store, session, Some(&below(prefix, name)?), each)?;
            continue;
        }
        let key = below(prefix, &entry.name)?;
        match entry.attributes.file_type() {
            FileType::File => each(key, stat_of(&entry.attributes)?)?,
            _ => return Err(store.no_object(&key)),
        }
    }
    Ok(())
}

/// Makes sure, after "no such file", that nothing is below `prefix`, rather than out of reach.
fn prove_nothing_below(store: &SftpStore, session: &Arc<Session>, prefix: &Key) -> Result<()> {
    match session.lstat(&store.path(Some(prefix))) {
        Ok(found) if found.file_type() == FileType::Link => {
            let leads = session.stat(&store.path(Some(prefix)));
            let failed = |trouble| store.failed(session, trouble, Verb::Follow, Some(prefix));
            leads.map(|_| ()).map_err(failed)
        }
        // It is an object, which has nothing below it, or there by now.
        Ok(_) => Ok(()),
        Err(trouble) if is_missing(&trouble) => prove_absent(store, session, prefix),
        Err(trouble) => Err(store.failed(session, trouble, Verb::LookFor, Some(prefix))),
    }
}

/// Makes sure, after "no such file", that `key` is absent rather than out of reach: every directory on the way must be
/// there, and be one. (OpenSSH says "no such file" of a file in place of a directory as well.)
pub(super) fn prove_absent(store: &SftpStore, session: &Arc<Session>, key: &Key) -> Result<()> {
    store.check_root(session)?;
    let failed = |trouble| store.failed(session, trouble, Verb::LookFor, Some(key));
    // All questions at once: the way may be long, and so may the way to the server.
    let mut asked = Vec::new();
    let mut path = store.path(None);
    for component in key.components() {
        path = format!("{path}/{component}");
        asked.push((session.send_lstat(&path).map_err(failed)?, path.clone()));
    }
    let last = asked.len().saturating_sub(1);
    for (number, (ticket, path)) in asked.into_iter().enumerate() {
        match session.wait_attributes(ticket) {
            Err(trouble) if is_missing(&trouble) => return Ok(()),
            Err(trouble) => return Err(failed(trouble)),
            Ok(found) if found.file_type() == FileType::Link => {
                // A link on the way must lead somewhere.
                let follows = session.stat(&path);
                follows.map_err(|trouble| store.failed(session, trouble, Verb::Follow, Some(key)))?;
            }
            Ok(found) if number < last && found.file_type() != FileType::Directory => {
                let message = format!(
                    "look for {}: {} is not a directory",
                    store.place(&store.path(Some(key))),
                    store.place(&path)
                );
                return Err(Error::new(Kind::Failed, message));
            }
            Ok(_) => {}
        }
    }
    // It is there by now. To somebody who asked a moment ago that is no lie.
    Ok(())
}

/// Removes staging files last written before a moment.
pub(super) fn sweep(store: &SftpStore, session: &Arc<Session>, directory: &str, before: UtcTime) -> Result<u64> {
    let failed = |trouble| store.failed(session, trouble, Verb::Sweep, None);
    let mut swept = 0;
    let read = match read_directory(session, directory) {
        Ok(read) => read,
        // Removed since the one above was read.
        Err(trouble) if is_missing(&trouble) && directory != store.path(None) => return Ok(0),
        Err(trouble) => return Err(failed(trouble)),
    };
    for (name, attributes) in read {
        let Ok(name) = String::from_utf8(name) else { continue };
        let path = format!("{directory}/{name}");
        match attributes.file_type() {
            FileType::Directory if !name.contains('/') => swept += sweep(store, session, &path, before)?,
            FileType::File if name.starts_with(STAGING_PREFIX) && !name.contains('/') => {
                let stale = stat_of(&attributes).is_ok_and(|stat| stat.modified < before);
                if stale && session.remove(&path).is_ok() {
                    swept += 1;
                }
            }
            _ => {}
        }
    }
    Ok(swept)
}
