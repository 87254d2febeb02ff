//! What the manifest will say, gathered in any order, written in order; unchanged groups of the earlier backup's manifest are
//! referred to, not repeated.

use std::io::Write;

use common::error::{Error, Kind, Result};
use common::repository::manifest::{Entry, GroupRef, ManifestWriter};
use common::sorter::{Pair, Sorted, Sorter};

/// The entries of the manifest to be.
pub struct Entries(Sorter);

impl Entries {
    /// Gathers in `sorter`.
    pub fn new(sorter: Sorter) -> Self {
        Self(sorter)
    }

    /// Takes an entry. `same` is the group of the earlier backup's manifest that says the same of it.
    ///
    /// # Errors
    /// What the sorter says.
    pub fn push(&mut self, entry: &Entry, same: Option<u32>) -> Result<()> {
        let mut value = same.map_or(u32::MAX, |group| group).to_le_bytes().to_vec();
        value.extend_from_slice(&entry.to_lines()?);
        self.0.push(&entry.path, &value)
    }

    /// Ends the gathering.
    ///
    /// # Errors
    /// What the sorter says.
    pub fn finish(self) -> Result<Sorted> {
        self.0.finish()
    }
}

/// Writes sorted entries; `groups` are those of the earlier backup's manifest. Calls `refers` for each group that is referred to.
///
/// # Errors
/// What writing gave.
pub fn write<W: Write>(
    entries: Sorted,
    groups: &[GroupRef],
    manifest: &mut ManifestWriter<W>,
    mut refers: impl FnMut(&GroupRef),
) -> Result<()> {
    // Entries in a row that one group says too.
    let mut waiting: Vec<Pair> = Vec::new();
    let mut of: Option<u32> = None;
    for pair in entries {
        let (path, value) = pair?;
        let (group, lines) = value
            .split_first_chunk::<4>()
            .ok_or_else(|| Error::new(Kind::Failed, "the list of entries on disk is damaged"))?;
        let group = Some(u32::from_le_bytes(*group)).filter(|group| *group != u32::MAX);
        if group != of {
            flush(&mut waiting, manifest)?;
            of = group;
        }
        let Some(reference) = group.and_then(|group| groups.get(group as usize)) else {
            manifest.push(&path, lines)?;
            continue;
        };
        waiting.push((path, lines.to_vec()));
        if waiting.len() as u64 == reference.count() {
            manifest.refer(reference)?;
            refers(reference);
            waiting.clear();
        }
    }
    flush(&mut waiting, manifest)
}

fn flush<W: Write>(waiting: &mut Vec<Pair>, manifest: &mut ManifestWriter<W>) -> Result<()> {
    for (path, lines) in waiting.drain(..) {
        manifest.push(&path, &lines)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::repository::Label;
    use common::repository::manifest::{ManifestReader, Node, Source};
    use common::time::UtcTime;
    use std::io::Cursor;

    fn entry(number: usize) -> Entry {
        Entry {
            path: format!("data/{number:06}").into_bytes(),
            mode: 0o700,
            owner: "postgres".to_owned(),
            group: "postgres".to_owned(),
            mtime: UtcTime::UNIX_EPOCH,
            node: Node::Directory,
        }
    }

    /// Writes `entries` over a base of 2,500; says what is read back, and how many groups were referred to.
    fn written(entries: &[(Entry, Option<u32>)]) -> (Vec<Entry>, usize) {
        let label: Label = "20261120T020000Z-full-3f9a1c".parse().unwrap();
        let mut base = ManifestWriter::new(Vec::new(), 2).unwrap();
        for entry in (0..2500).map(entry) {
            base.push(&entry.path, &entry.to_lines().unwrap()).unwrap();
        }
        let base = base.finish().unwrap().0;
        let none = Box::new(|_| Err(Error::new(Kind::Failed, "no other")));
        let mut reader = ManifestReader::open(Box::new(Cursor::new(&base)), none).unwrap();
        let groups: Vec<GroupRef> = (0..reader.groups())
            .map(|number| reader.read_group_of(label, number).unwrap().1)
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let mut gathered = Entries::new(Sorter::new(0, dir.path()));
        for (entry, same) in entries.iter().rev() {
            gathered.push(entry, *same).unwrap();
        }
        let mut manifest = ManifestWriter::new(Vec::new(), 2).unwrap();
        let mut referred = 0;
        write(gathered.finish().unwrap(), &groups, &mut manifest, |_| referred += 1).unwrap();
        let bytes = manifest.finish().unwrap().0;
        let other = Box::new(|_| Ok(Box::new(Cursor::new(&base)) as Box<dyn Source + '_>));
        let mut found = Vec::new();
        ManifestReader::open(Box::new(Cursor::new(&bytes)), other)
            .unwrap()
            .for_each(|entry| {
                found.push(entry);
                Ok(())
            })
            .unwrap();
        (found, referred)
    }

    fn same(number: usize) -> (Entry, Option<u32>) {
        (entry(number), Some(number as u32 / 1000))
    }

    fn check(entries: Vec<(Entry, Option<u32>)>, referred: usize) {
        let (found, groups) = written(&entries);
        let wanted: Vec<Entry> = entries.into_iter().map(|(entry, _)| entry).collect();
        assert_eq!(found, wanted);
        assert_eq!(groups, referred);
    }

    #[test]
    fn what_did_not_change_at_all_is_referred_to() {
        check((0..2500).map(same).collect(), 3);
    }

    #[test]
    fn a_group_with_a_change_an_addition_or_a_loss_is_written_anew() {
        let all = || (0..2500).map(same).collect::<Vec<_>>();
        let mut changed = all();
        changed[1500].0.mode = 0o755;
        changed[1500].1 = None;
        check(changed, 2);
        let mut added = all();
        let mut new = entry(1500);
        new.path = b"data/001499x".to_vec();
        added.insert(1500, (new, None));
        check(added, 2);
        let mut lost = all();
        lost.remove(0);
        lost.remove(998);
        check(lost, 2);
        let mut last = all();
        last.pop();
        check(last, 2);
    }

    #[test]
    fn what_stands_between_two_groups_breaks_none() {
        let mut between = (0..2500).map(same).collect::<Vec<_>>();
        let mut new = entry(0);
        new.path = b"data/000999x".to_vec();
        between.insert(1000, (new, None));
        check(between, 3);
    }
}
