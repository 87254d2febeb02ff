//! The bundles of a backup: each worker fills one, and begins the next when it is full.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use common::codec::FrameWriter;
use common::error::{Context, Result};
use common::repository::Label;
use common::repository::bundle::BundleWriter;
use common::repository::writer::{Copies, FolderWriter};

use common::repository::chain::Chain;

/// A bundle's index is kept in memory, so it takes no more members than this.
const BUNDLE_MEMBERS: u32 = 50_000;

/// Where bundles go.
pub struct Output<'a> {
    writer: &'a FolderWriter<'a>,
    level: i32,
    last: AtomicU32,
    chain: &'a Chain,
    label: Label,
}

impl<'a> Output<'a> {
    /// Bundles of backup `label` go through `writer`, compressed at `level`, and their indexes into `chain` besides.
    pub fn new(writer: &'a FolderWriter<'a>, level: i32, chain: &'a Chain, label: Label) -> Self {
        Self {
            writer,
            level,
            last: AtomicU32::new(0),
            chain,
            label,
        }
    }
}

/// The bundle that one worker is filling.
pub struct Bundles<'a> {
    output: &'a Output<'a>,
    open: Option<OpenBundle<'a>>,
}

/// A bundle being filled.
pub struct OpenBundle<'a> {
    /// Its number.
    pub number: u32,
    members: u32,
    /// Takes its members.
    pub writer: BundleWriter<Copies<'a>>,
}

impl<'a> Bundles<'a> {
    /// No bundle yet.
    pub fn new(output: &'a Output<'a>) -> Self {
        Self { output, open: None }
    }

    /// The bundle that takes a member of `size` bytes, a new one if the current one is full.
    ///
    /// # Errors
    /// What storing gave.
    pub fn for_member(&mut self, size: u64) -> Result<&mut OpenBundle<'a>> {
        let full = |bundle: &OpenBundle<'_>| bundle.members >= BUNDLE_MEMBERS || !bundle.writer.has_room(size);
        if self.open.as_ref().is_some_and(full) {
            self.close()?;
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        let open = self.open.insert(open);
        open.members += 1;
        Ok(open)
    }

    fn begin(&self) -> Result<OpenBundle<'a>> {
        let number = self.output.last.fetch_add(1, Ordering::Relaxed) + 1;
        let copies = self.output.writer.create(&format!("data/{number}.tar.zst"), false)?;
        let writer = BundleWriter::new(copies, self.output.level)?;
        Ok(OpenBundle {
            number,
            members: 0,
            writer,
        })
    }

    /// Makes the open bundle durable, then its index.
    ///
    /// # Errors
    /// What storing gave.
    pub fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let (copies, index, plain) = open.writer.finish()?;
        copies.finish(plain)?;
        let bytes = index.encode()?;
        drop(index);
        let output = self.output;
        output.chain.keep_index(output.label, open.number, &bytes);
        let copies = output.writer.create(&format!("data/{}.index.zst", open.number), true)?;
        let mut frames = FrameWriter::new(copies, output.level)?;
        frames.write_all(&bytes).context(|| "write an index")?;
        let (copies, _) = frames.finish()?;
        copies.finish(bytes.len() as u64)
    }
}
