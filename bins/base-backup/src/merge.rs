//! Puts what is found now beside what the earlier backup holds, both in the order of their paths, and decides about each.

use std::collections::VecDeque;

use common::error::Result;
use common::postgres::FoundKind;
use common::postgres::relation::relation_file;
use common::repository::Label;
use common::repository::manifest::{Entry, GroupRef, ManifestReader, Node};
use common::sorter::{Sorted, Sorter};

use crate::changes::Changed;
use crate::entries::Entries;
use crate::item::Item;
use crate::take::{Take, take};
use crate::task::{Before, Task};

/// The entries of an earlier backup, one after the other.
pub struct Earlier<'a> {
    label: Label,
    reader: ManifestReader<'a>,
    next: usize,
    waiting: VecDeque<Entry>,
    /// The groups read so far.
    pub groups: Vec<GroupRef>,
}

impl<'a> Earlier<'a> {
    /// Reads the manifest of backup `label`.
    pub fn new(label: Label, reader: ManifestReader<'a>) -> Self {
        Self {
            label,
            reader,
            next: 0,
            waiting: VecDeque::new(),
            groups: Vec::new(),
        }
    }

    /// The entry with this path, which must not be smaller than one that was asked for before.
    fn find(&mut self, path: &[u8]) -> Result<Option<Before>> {
        loop {
            while let Some(entry) = self.waiting.pop_front() {
                match entry.path.as_slice().cmp(path) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => {
                        let group = u32::try_from(self.next.saturating_sub(1)).unwrap_or(u32::MAX);
                        return Ok(Some(Before { entry, group }));
                    }
                    std::cmp::Ordering::Greater => {
                        self.waiting.push_front(entry);
                        return Ok(None);
                    }
                }
            }
            if self.next >= self.reader.groups() {
                return Ok(None);
            }
            let (entries, group) = self.reader.read_group_of(self.label, self.next)?;
            self.next += 1;
            self.groups.push(group);
            // What lies before the wanted path is of no use, however much it is.
            if self.groups.last().is_some_and(|group| group.last() < path) {
                continue;
            }
            self.waiting = entries.into();
        }
    }
}

/// How to decide.
pub struct Rules<'a> {
    /// What WAL says, if that is known.
    pub changed: Option<&'a Changed>,
    /// Relations are cut into files of so many blocks.
    pub blocks_per_file: u32,
    /// Whether to read what need not be read.
    pub audit: bool,
}

/// Decides about all `items`, sorted by path: into `entries` goes what need not be looked at, into the result the rest, in the order to
/// copy. Each file that is not looked at is shown to `same`.
///
/// # Errors
/// What reading the manifest or the sorters gave.
pub fn merge(
    items: Sorted,
    earlier: &mut Earlier<'_>,
    rules: &Rules<'_>,
    mut queue: Sorter,
    entries: &mut Entries,
    mut same: impl FnMut(&Entry),
) -> Result<Sorted> {
    for pair in items {
        let item = Item::decode(&pair?.1)?;
        let before = earlier.find(&item.path)?;
        let task = decide(item, before, rules);
        match unchanged(&task, rules) {
            Some(entry) => {
                same(&entry);
                entries.push(&entry, task.same_as_before(&entry))?;
            }
            None => queue.push(&task.item.key(), &task.encode()?)?,
        }
    }
    queue.finish()
}

fn decide(item: Item, before: Option<Before>, rules: &Rules<'_>) -> Task {
    let mut task = Task {
        item,
        take: Take::Whole,
        before,
    };
    if task.item.kind == FoundKind::File {
        let relation = std::str::from_utf8(&task.item.path).ok().and_then(relation_file);
        let (size, base) = (task.item.size, task.base());
        task.take = take(relation.as_ref(), size, base, rules.changed, rules.blocks_per_file);
    }
    task
}

/// The entry of something that need not be looked at.
fn unchanged(task: &Task, rules: &Rules<'_>) -> Option<Entry> {
    let item = &task.item;
    let node = match &item.kind {
        FoundKind::File if task.take == Take::Same && !rules.audit => Node::File(task.base()?.clone()),
        FoundKind::File => return None,
        FoundKind::Dir => Node::Directory,
        FoundKind::Link(target) => {
            use std::os::unix::ffi::OsStrExt;
            Node::Link(target.as_os_str().as_bytes().to_vec())
        }
    };
    let entry = Entry {
        path: item.path.clone(),
        mode: item.mode,
        owner: item.owner.clone(),
        group: item.group.clone(),
        mtime: item.mtime,
        node,
    };
    // A directory or link that is not as it was goes into a bundle, as in a full backup.
    let as_it_was = || task.same_as_before(&entry).is_some();
    (item.kind == FoundKind::File || as_it_was()).then_some(entry)
}
