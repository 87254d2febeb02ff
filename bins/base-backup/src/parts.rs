//! Copies a file in parts: what an earlier backup holds stays there, and what differs is stored as pieces.
//!
//! What differs is read a second time where it had to be read to be found out, from the page cache, since a piece's length stands before
//! it. It may have changed meanwhile, as any page may while a backup runs: replay mends that.

use common::codec::FRAME_BYTES;
use common::digest::{crc32c, crc32c_combine};
use common::error::{Context, Error, Kind, Result, chain};
use common::postgres::page::page_lsn;
use common::postgres::relation::{Fork, RelationFile, relation_file};
use common::repository::bundle::Placed;
use common::repository::index::BLOCK_BYTES;
use common::repository::manifest::{File, Node, Range};

use crate::base::cut::cut;
use crate::bundles::Bundles;
use crate::copy::{Copying, attributes};
use crate::damage::Damage;
use crate::earlier::{Earlier, LEAST_BYTES, Member, Run, plan_runs};
use crate::item::Item;
use crate::pages::{FileCheck, ReadAt, read_full};
use crate::take::{Blocks, Take, runs};
use crate::tally::Tally;
use crate::task::Task;
use common::repository::digests::BlockDigests;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// A file of which more than so many percent differ is stored whole.
const WHOLE_PERCENT: u64 = 90;

/// A stretch of a file.
enum Part {
    /// It lies here already.
    Kept(Vec<Range>),
    /// It is to be stored: offset and length.
    Stored(u64, u64),
}

impl Copying<'_> {
    /// Copies a file of which the base holds a part; `None` if it is better stored whole.
    pub(crate) fn since_base(
        &self,
        bundles: &mut Bundles<'_>,
        task: &Task,
        (file, now): (&std::fs::File, u64),
        buffer: &mut [u8],
    ) -> Result<Option<(Node, Damage)>> {
        let (Some(base), Some(digests)) = (task.base(), self.digests) else {
            return Ok(None);
        };
        let digests = match digests.of(base) {
            Ok(digests) => digests,
            Err(error) => {
                let path = String::from_utf8_lossy(&task.item.path);
                log::info!("{path} is stored whole: {}", chain(&error));
                return Ok(None);
            }
        };
        let mut kept = Damage::default();
        let (size, changed) = match &task.take {
            Take::Whole => return Ok(None),
            Take::Blocks(blocks) if !self.audit => (task.item.size, blocks.clone()),
            _ => {
                let (changed, damage) = self.compare(task, (file, now), (base, &digests), buffer)?;
                kept = damage;
                (now, changed)
            }
        };
        let stored: u64 = changed.iter().map(|run| u64::from(run.count)).sum();
        let mostly = stored * 100 > size.div_ceil(BLOCK) * WHOLE_PERCENT;
        if !changed.is_empty() && (mostly || size < LEAST_BYTES) {
            return Ok(None);
        }
        let parts = match parts(base, &digests, size, &changed) {
            Ok(parts) => parts,
            Err(error) => {
                let path = String::from_utf8_lossy(&task.item.path);
                log::warn!("{path} is stored whole: {}", chain(&error));
                return Ok(None);
            }
        };
        let (node, damage) = self.assemble(bundles, &task.item, file, size, parts, buffer)?;
        Ok(Some((node, kept.and(damage))))
    }

    /// Reads all of a file and says which of its blocks differ from the base's.
    fn compare(
        &self,
        task: &Task,
        (file, size): (&std::fs::File, u64),
        (base, digests): (&File, &BlockDigests),
        buffer: &mut [u8],
    ) -> Result<(Vec<Blocks>, Damage)> {
        let relation = std::str::from_utf8(&task.item.path).ok().and_then(relation_file);
        let first_block = |relation: &RelationFile| relation.first_block(self.blocks_per_file);
        let mut check = relation
            .as_ref()
            .map(|relation| FileCheck::new(&self.judge, first_block(relation)));
        let audited = relation.filter(|relation| self.audit && relation.fork == Fork::Main);
        let mut differing: Vec<u32> = Vec::new();
        self.chunks(file, (0, size), buffer, |offset, chunk| {
            Tally::add(&self.tally.read, chunk.len() as u64);
            for (number, block) in (offset / BLOCK..).zip(chunk.chunks_mut(BLOCK_BYTES)) {
                let at = u32::try_from(number).unwrap_or(u32::MAX);
                if is_held(base, digests, number, block) {
                    // A page that was torn then, and is still the same now, is damaged.
                    if let Some(check) = &mut check {
                        check.chunk(file as &dyn ReadAt, number * BLOCK, block)?;
                    }
                    if is_held(base, digests, number, block) {
                        continue;
                    }
                }
                if let Some(relation) = &audited {
                    self.audit_block(relation, task, at, number < base.size / BLOCK, block);
                }
                differing.push(at);
            }
            Ok(())
        })?;
        let damage = check.map(FileCheck::finish).unwrap_or_default();
        Ok((runs(differing.into_iter()), damage))
    }

    /// Notes a block that differs from the base's, and whether WAL would have told.
    fn audit_block(&self, relation: &RelationFile, task: &Task, block: u32, in_base: bool, content: &[u8]) {
        // What changed without WAL (a hint bit) keeps its LSN; what changed after the start is replayed.
        let lsn = page_lsn(content).unwrap_or_default();
        let counts = lsn >= self.base_start && lsn < self.judge.start;
        if !in_base || !counts {
            return;
        }
        Tally::add(&self.tally.audited, 1);
        let told = match &task.take {
            Take::Same => false,
            Take::Compare | Take::Whole => true,
            Take::Blocks(blocks) => blocks
                .iter()
                .any(|run| (run.first..run.first.saturating_add(run.count)).contains(&block)),
        };
        if !told {
            let number = relation.first_block(self.blocks_per_file).saturating_add(block);
            let path = String::from_utf8_lossy(&task.item.path).into_owned();
            self.tally.untold(format!("block {number} of {path}, LSN {lsn}"));
        }
    }

    /// Reads a file that an interrupted backup has stored too, and stores only what differs; `None` if that is all of it.
    pub(crate) fn since_interrupted(
        &self,
        bundles: &mut Bundles<'_>,
        item: &Item,
        (file, size): (&std::fs::File, u64),
        (earlier, member): (&Earlier, Member),
        buffer: &mut [u8],
    ) -> Result<Option<(Node, Damage)>> {
        let mut kept = self.check_of(item);
        let mut found = Vec::new();
        self.chunks(file, (0, size), buffer, |offset, chunk| {
            let mut held = earlier.holds(&member, offset, chunk)?;
            if let (Some(crc), Some(check)) = (held, &mut kept) {
                check.chunk(file as &dyn ReadAt, offset, chunk)?;
                // A page that was torn in both reads well now: that is worth storing.
                held = Some(crc).filter(|crc| crc32c(chunk) == *crc);
            }
            found.push((chunk.len() as u64, held));
            Ok(())
        })?;
        Tally::add(&self.tally.read, size);
        let runs = plan_runs(&found);
        if runs.iter().all(|run| run.kept.is_none()) {
            return Ok(None);
        }
        let part = |run: &Run| match run.kept {
            Some(crc32c) => {
                Tally::add(&self.tally.reused, run.length);
                Part::Kept(vec![Range {
                    label: Some(earlier.label),
                    bundle: member.bundle,
                    offset: member.offset + run.offset,
                    file_offset: run.offset,
                    length: run.length,
                    crc32c,
                }])
            }
            None => Part::Stored(run.offset, run.length),
        };
        let parts = runs.iter().map(part).collect();
        let (node, damage) = self.assemble(bundles, item, file, size, parts, buffer)?;
        let kept = kept.map(FileCheck::finish).unwrap_or_default();
        Ok(Some((node, kept.and(damage))))
    }

    fn check_of(&self, item: &Item) -> Option<FileCheck<'_>> {
        let relation = std::str::from_utf8(&item.path).ok().and_then(relation_file)?;
        Some(FileCheck::new(&self.judge, relation.first_block(self.blocks_per_file)))
    }

    /// Stores what is to be stored and puts the file together.
    fn assemble(
        &self,
        bundles: &mut Bundles<'_>,
        item: &Item,
        file: &std::fs::File,
        size: u64,
        parts: Vec<Part>,
        buffer: &mut [u8],
    ) -> Result<(Node, Damage)> {
        let mut check = self.check_of(item);
        let mut node = File {
            size,
            ..File::default()
        };
        for part in parts {
            let ranges = match part {
                Part::Kept(ranges) => {
                    let bytes = ranges.iter().map(|range| range.length).sum();
                    Tally::add(&self.tally.bytes, bytes);
                    ranges
                }
                Part::Stored(offset, length) => {
                    let (bundle, placed) = self.piece(bundles, item, file, (offset, length), check.as_mut(), buffer)?;
                    vec![Range {
                        label: None,
                        bundle,
                        offset: placed.offset,
                        file_offset: offset,
                        length,
                        crc32c: placed.crc32c,
                    }]
                }
            };
            for range in ranges {
                node.crc32c = crc32c_combine(node.crc32c, range.crc32c, range.length);
                node.ranges.push(range);
            }
        }
        let damage = check.map(FileCheck::finish).unwrap_or_default();
        Ok((Node::File(node), damage))
    }

    /// Stores one stretch of a file as a member of its own.
    fn piece(
        &self,
        bundles: &mut Bundles<'_>,
        item: &Item,
        file: &std::fs::File,
        (from, length): (u64, u64),
        mut check: Option<&mut FileCheck<'_>>,
        buffer: &mut [u8],
    ) -> Result<(u32, Placed)> {
        let metadata = file.metadata().context(|| "look at it")?;
        let mut name = b"blocks/".to_vec();
        name.extend_from_slice(&item.path);
        name.extend_from_slice(format!("@{}", from / BLOCK).as_bytes());
        let bundle = bundles.for_member(length)?;
        bundle.writer.begin_file(&name, length, &attributes(item, &metadata))?;
        self.chunks(file, (from, length), buffer, |offset, chunk| {
            if let Some(check) = &mut check {
                check.chunk(file as &dyn ReadAt, offset, chunk)?;
            }
            Tally::add(&self.tally.bytes, chunk.len() as u64);
            Tally::add(&self.tally.read, chunk.len() as u64);
            bundle.writer.data(chunk)
        })?;
        Ok((bundle.number, bundle.writer.end_file()?))
    }

    /// Shows a stretch of a file, chunk by chunk; what the file has lost meanwhile is zero.
    pub(crate) fn chunks(
        &self,
        file: &std::fs::File,
        (from, length): (u64, u64),
        buffer: &mut [u8],
        mut each: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0u64;
        while done < length {
            let size = usize::try_from(length - done).unwrap_or(FRAME_BYTES).min(buffer.len());
            let chunk = buffer.get_mut(..size).unwrap_or_default();
            let offset = from + done;
            let got = read_full(file, chunk, offset).context(|| format!("read it at {offset}"))?;
            chunk.get_mut(got..).unwrap_or_default().fill(0);
            each(offset, chunk)?;
            done += size as u64;
            if self.is_stopped() {
                return Err(Error::new(Kind::Failed, "stopped because of another error"));
            }
        }
        Ok(())
    }
}

/// Whether the base holds just these bytes as block `number`.
fn is_held(base: &File, digests: &BlockDigests, number: u64, block: &[u8]) -> bool {
    number * BLOCK < base.size && digests.holds(number, block)
}

/// Cuts a file of `size` bytes into what the base holds and what is to be stored.
fn parts(base: &File, digests: &BlockDigests, size: u64, changed: &[Blocks]) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut at = 0u64;
    for run in changed {
        let from = u64::from(run.first) * BLOCK;
        let to = (from + u64::from(run.count) * BLOCK).min(size);
        if at < from {
            parts.push(Part::Kept(cut(base, digests, at, from)?));
        }
        parts.push(Part::Stored(from, to - from));
        at = to;
    }
    if at < size {
        parts.push(Part::Kept(cut(base, digests, at, size)?));
    }
    Ok(parts)
}
