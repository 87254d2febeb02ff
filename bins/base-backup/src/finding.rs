//! Finds out what there is to copy, and what of it has changed.

use std::collections::BTreeMap;
use std::time::Instant;

use common::error::Result;
use common::interrupt;
use common::postgres::datadir::Tablespace;
use common::postgres::{Lsn, SegmentNumber, Session};
use common::repository::manifest::GroupRef;
use common::repository::reach;
use common::repository::wal::kept::KeptMaps;
use common::repository::writer::FolderWriter;
use common::sorter::{Sorted, Sorter};

use crate::base::lean::open_manifest;
use crate::changes::Changed;
use crate::changes::maps::Wal;
use crate::changes::sum::{Unknown, add_up};
use crate::changes::summaries::from_server;
use crate::entries::Entries;
use crate::item::Item;
use crate::listing::{Listing, list};
use crate::making::Making;
use crate::merge::{self, Rules, merge};
use crate::tally::Tally;
use crate::task::Task;

/// What the list of what is to be copied may take of the memory, in bytes; the rest is on disk.
const QUEUE_MEMORY_BYTES: usize = 8 << 20;
/// The pages that this program knows how to compare, in bytes.
const PAGE_BYTES: u32 = 8192;

/// What there is to copy.
pub struct Found {
    /// Tasks, in the order to copy.
    pub queue: Sorted,
    /// What the manifest will say already.
    pub entries: Entries,
    /// The groups of the earlier backup's manifest.
    pub groups: Vec<GroupRef>,
    /// pg_control.
    pub control: Item,
    /// Size of all files, in bytes.
    pub bytes: u64,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
}

impl Making<'_> {
    /// What changed since the backup that this one leans on, as far as WAL tells.
    pub(crate) fn changed_since_base(
        &self,
        writer: &FolderWriter<'_>,
        session: &mut Session,
        start: Lsn,
    ) -> Result<Option<Changed>> {
        let Some(base) = &self.chosen.base else { return Ok(None) };
        let size = self.control.segment_size;
        let first = SegmentNumber::containing(base.start_lsn, size);
        let last = SegmentNumber::containing(reach::before(start), size);
        let mut wal = Wal {
            repositories: writer.alive(),
            kept: KeptMaps::new(&self.state),
            pg_wal: self.data_directory.join("pg_wal"),
            system: self.control.system_id,
            major: u8::try_from(self.control.major.number()).unwrap_or_default(),
            size,
            history: self.chosen.history.clone(),
            last,
            ahead: BTreeMap::new(),
        };
        let since = Instant::now();
        let changed = match self.control.block_size {
            PAGE_BYTES => add_up(&mut wal, first..=last, start),
            bytes => Err(Unknown::Told(format!("this server's pages have {bytes} bytes"))),
        };
        interrupt::check()?;
        let segments = last.0.saturating_sub(first.0) + 1;
        let found = match changed {
            Ok(changed) => Ok((changed, format!("{segments} WAL segments"))),
            Err(Unknown::Missing(why)) => match from_server(session, &self.chosen.history, base.start_lsn, start) {
                Ok(changed) => Ok((changed, format!("the server's own summaries of WAL, since {why}"))),
                Err(neither) => Err(format!(
                    "{why}; and the server's own summaries cannot be used: {neither}"
                )),
            },
            Err(Unknown::Told(why)) => Err(why),
        };
        interrupt::check()?;
        match found {
            Ok((changed, source)) => {
                let (blocks, seconds) = (changed.blocks(), since.elapsed().as_secs_f64());
                log::info!("{blocks} changed blocks are named by {source} ({seconds:.2} s)");
                Ok(Some(changed))
            }
            Err(why) => {
                log::warn!("every file is read and compared, since WAL does not tell what changed: {why}");
                Ok(None)
            }
        }
    }

    /// Lists what there is and decides about each file.
    pub(crate) fn find(
        &self,
        writer: &FolderWriter<'_>,
        changed: Option<&Changed>,
        mut entries: Entries,
        tally: &Tally,
    ) -> Result<Found> {
        let by_path = |item: &Item| item.path.clone();
        let Listing {
            items,
            control,
            bytes,
            tablespaces,
        } = list(
            self.data_directory,
            self.around.cluster,
            &self.control,
            &self.spill,
            &by_path,
        )?;
        let mut queue = Sorter::new(QUEUE_MEMORY_BYTES, &self.spill);
        let (queue, groups) = match &self.chosen.base {
            None => {
                for pair in items {
                    let item = Item::decode(&pair?.1)?;
                    let key = item.key();
                    queue.push(&key, &Task::whole(item).encode()?)?;
                }
                (queue.finish()?, Vec::new())
            }
            Some(base) => {
                let alive = writer.alive();
                let mut before = merge::Earlier::new(base.label, open_manifest(&self.chain, &alive, base.label)?);
                let rules = Rules {
                    changed,
                    blocks_per_file: self.control.blocks_per_file,
                    audit: self.request.audit,
                };
                let queue = merge(items, &mut before, &rules, queue, &mut entries, |entry| {
                    tally.unchanged(entry)
                })?;
                (queue, before.groups)
            }
        };
        Ok(Found {
            queue,
            entries,
            groups,
            control,
            bytes,
            tablespaces,
        })
    }
}
