//! A bundle being written: one tar stream in independent frames, with its index (FORMAT.md, section 8.1 and 8.2).
//!
//! Promises that each header and each block lies within one frame. Leaves to the caller what the bytes are.

use std::io::Write;

use crate::codec::{FRAME_BYTES, FrameWriter};
use crate::digest::{crc32c, crc32c_append, xxh3_128};
use crate::error::{Error, Kind, Result};
use crate::repository::index::{BLOCK_BYTES, BlockDigest, Index, Member};
use crate::time::UtcTime;

/// A bundle takes further members until they hold this much data, in bytes.
pub const BUNDLE_BYTES: u64 = 1 << 30;

const TAR_BLOCK: usize = 512;

/// What a tar header says besides name and size.
#[derive(Debug, Clone)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner's number.
    pub uid: u32,
    /// Group's number.
    pub gid: u32,
    /// Owner's name.
    pub owner: String,
    /// Group's name.
    pub group: String,
    /// Last modification.
    pub mtime: UtcTime,
}

/// Where a finished member's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Offset in the tar stream, in bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// CRC32C of the data.
    pub crc32c: u32,
}

/// Writes one bundle.
pub struct BundleWriter<W: Write> {
    frames: FrameWriter<W>,
    index: Index,
    data_bytes: u64,
    open: Option<Open>,
}

struct Open {
    offset: u64,
    size: u64,
    written: u64,
    crc32c: u32,
}

impl<W: Write> BundleWriter<W> {
    /// Begins a bundle in `out`, compressed at `level`.
    ///
    /// # Errors
    /// As the frame writer's.
    pub fn new(out: W, level: i32) -> Result<Self> {
        Ok(Self {
            frames: FrameWriter::new(out, level)?,
            index: Index::default(),
            data_bytes: 0,
            open: None,
        })
    }

    /// Whether a member of `size` bytes still belongs in here.
    pub fn has_room(&self, size: u64) -> bool {
        self.data_bytes == 0 || self.data_bytes.saturating_add(size) <= BUNDLE_BYTES
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// What writing gave.
    pub fn directory(&mut self, name: &[u8], attributes: &Attributes) -> Result<()> {
        let mut name = name.to_vec();
        name.push(b'/');
        self.header(&name, tar::EntryType::Directory, 0, attributes, None)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// What writing gave.
    pub fn link(&mut self, name: &[u8], target: &[u8], attributes: &Attributes) -> Result<()> {
        self.header(name, tar::EntryType::Symlink, 0, attributes, Some(target))
    }

    /// Begins a file of exactly `size` bytes; [`BundleWriter::data`] and [`BundleWriter::end_file`] follow.
    ///
    /// # Errors
    /// What writing gave.
    pub fn begin_file(&mut self, name: &[u8], size: u64, attributes: &Attributes) -> Result<()> {
        self.header(name, tar::EntryType::Regular, size, attributes, None)?;
        let offset = self.frames.position();
        if size > 0 {
            self.index.members.push(Member {
                name: name.to_vec(),
                offset,
                size,
                first_digest: self.index.digests.len() as u64,
            });
        }
        self.open = Some(Open {
            offset,
            size,
            written: 0,
            crc32c: 0,
        });
        Ok(())
    }

    /// Adds the file's next bytes: a whole number of blocks, at most 128 KiB, except at its end.
    ///
    /// # Errors
    /// `Failed` if that does not hold or the bytes are more than the announced size; else what writing gave.
    pub fn data(&mut self, chunk: &[u8]) -> Result<()> {
        let misuse = |why: &str| Error::new(Kind::Failed, format!("write a bundle: {why}"));
        let Some(open) = &mut self.open else {
            return Err(misuse("no file has begun"));
        };
        let after = open.written + chunk.len() as u64;
        if after > open.size
            || chunk.len() > FRAME_BYTES
            || (after < open.size && !chunk.len().is_multiple_of(BLOCK_BYTES))
        {
            return Err(misuse("a chunk does not fit its file"));
        }
        open.written = after;
        open.crc32c = crc32c_append(open.crc32c, chunk);
        for block in chunk.chunks(BLOCK_BYTES) {
            self.index.digests.push(BlockDigest {
                xxh3: xxh3_128(block),
                crc32c: crc32c(block),
            });
        }
        self.data_bytes += chunk.len() as u64;
        self.frames.put(chunk)
    }

    /// How much of the open file is still to come, in bytes.
    pub fn missing(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.size - open.written)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// `Failed` if bytes are missing; else what writing gave.
    pub fn end_file(&mut self) -> Result<Placed> {
        let open = self.open.take().filter(|open| open.written == open.size);
        let Some(open) = open else {
            return Err(Error::new(
                Kind::Failed,
                "write a bundle: a file has fewer bytes than announced",
            ));
        };
        self.pad(open.size)?;
        Ok(Placed {
            offset: open.offset,
            length: open.size,
            crc32c: open.crc32c,
        })
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let over = (size % TAR_BLOCK as u64) as usize;
        if over > 0 {
            self.frames.put([0u8; TAR_BLOCK].get(over..).unwrap_or_default())?;
        }
        Ok(())
    }

    fn header(
        &mut self,
        name: &[u8],
        kind: tar::EntryType,
        size: u64,
        attributes: &Attributes,
        target: Option<&[u8]>,
    ) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(attributes.mode & 0o7777);
        header.set_uid(u64::from(attributes.uid));
        header.set_gid(u64::from(attributes.gid));
        header.set_mtime(u64::try_from(attributes.mtime.unix_seconds()).unwrap_or(0));
        // Names that do not fit their field are left out; the numbers say the same.
        let _ = header.set_username(&attributes.owner);
        let _ = header.set_groupname(&attributes.group);
        self.long_if_needed(name, b'L', TAR_NAME_BYTES)?;
        if let Some(target) = target {
            self.long_if_needed(target, b'K', TAR_NAME_BYTES)?;
        }
        if let Some(gnu) = header.as_gnu_mut() {
            copy_short(&mut gnu.name, name);
            copy_short(&mut gnu.linkname, target.unwrap_or_default());
        }
        header.set_cksum();
        self.frames.put(header.as_bytes())
    }

    /// GNU tar's way with names that do not fit: a member of type `L` (name) or `K` (target) goes before.
    fn long_if_needed(&mut self, text: &[u8], kind: u8, field: usize) -> Result<()> {
        if text.len() <= field {
            return Ok(());
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(text.len() as u64 + 1);
        header.set_mode(0o644);
        if let Some(gnu) = header.as_gnu_mut() {
            copy_short(&mut gnu.name, b"././@LongLink");
        }
        header.set_cksum();
        let mut member = header.as_bytes().to_vec();
        member.extend_from_slice(text);
        member.push(0);
        member.resize(member.len().next_multiple_of(TAR_BLOCK), 0);
        self.frames.put(&member)
    }

    /// Ends the tar stream and hands back the output, the index, and the length of the tar stream in bytes.
    ///
    /// # Errors
    /// What writing gave.
    pub fn finish(mut self) -> Result<(W, Index, u64)> {
        self.frames.put(&[0u8; 2 * TAR_BLOCK])?;
        let plain = self.frames.position();
        let (out, table) = self.frames.finish()?;
        self.index.frames = table;
        Ok((out, self.index, plain))
    }
}

const TAR_NAME_BYTES: usize = 100;

fn copy_short(field: &mut [u8], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::codec::FrameReader;
    use std::io::Read;

    fn attributes() -> Attributes {
        Attributes {
            mode: 0o600,
            uid: 1,
            gid: 2,
            owner: "postgres".into(),
            group: "postgres".into(),
            mtime: UtcTime::UNIX_EPOCH,
        }
    }

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|n| (n / 7 % 251) as u8).collect()
    }

    fn add(bundle: &mut BundleWriter<Vec<u8>>, name: &[u8], bytes: &[u8]) -> Placed {
        bundle.begin_file(name, bytes.len() as u64, &attributes()).unwrap();
        for chunk in bytes.chunks(FRAME_BYTES) {
            bundle.data(chunk).unwrap();
        }
        bundle.end_file().unwrap()
    }

    #[test]
    fn the_stream_is_an_ordinary_tar_with_long_names_links_and_directories() {
        let mut bundle = BundleWriter::new(Vec::new(), 2).unwrap();
        let long = [b"extra/".to_vec(), vec![b'x'; 300]].concat();
        bundle.directory(b"data/base", &attributes()).unwrap();
        bundle.link(b"data/pg_tblspc/1", b"/srv/ts", &attributes()).unwrap();
        let mut placed = Vec::new();
        for (name, size) in [(&b"data/a"[..], 0), (b"data/b", 1), (b"data/c", 700_000), (&long, 9000)] {
            placed.push(add(&mut bundle, name, &content(size)));
        }
        let (bytes, index, plain) = bundle.finish().unwrap();
        let mut stream = Vec::new();
        FrameReader::new(bytes.as_slice())
            .unwrap()
            .read_to_end(&mut stream)
            .unwrap();
        assert_eq!(stream.len() as u64, plain);

        let mut archive = tar::Archive::new(stream.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            seen.push((entry.path_bytes().to_vec(), data));
        }
        assert_eq!(seen.len(), 6);
        assert_eq!(seen[0].0, b"data/base/");
        assert_eq!(seen[4], (b"data/c".to_vec(), content(700_000)));
        assert_eq!(seen[5], (long, content(9000)));

        // Where the index says, there the data is.
        assert_eq!(index.members.len(), 3);
        for member in &index.members {
            let at = member.offset as usize;
            assert_eq!(stream[at..at + member.size as usize], content(member.size as usize));
        }
        assert_eq!(placed[2].crc32c, crc32c(&content(700_000)));
    }

    #[test]
    fn no_block_is_split_between_frames() {
        let mut bundle = BundleWriter::new(Vec::new(), 2).unwrap();
        for n in 0..40 {
            add(
                &mut bundle,
                format!("data/{n}").as_bytes(),
                &content(8192 * (n % 5) + n),
            );
        }
        add(&mut bundle, b"data/large", &content(1_000_000));
        let (_, index, _) = bundle.finish().unwrap();
        let mut ends = Vec::new();
        let mut at = 0u64;
        for frame in index.frames.entries() {
            at += u64::from(frame.plain);
            ends.push(at);
        }
        for member in &index.members {
            for block in (0..member.size).step_by(BLOCK_BYTES) {
                let from = member.offset + block;
                let to = member.offset + (block + BLOCK_BYTES as u64).min(member.size);
                assert!(
                    !ends.iter().any(|end| from < *end && *end < to),
                    "a frame ends inside a block"
                );
            }
        }
    }

    #[test]
    fn a_file_with_too_few_or_too_many_bytes_is_refused() {
        let mut bundle = BundleWriter::new(Vec::new(), 2).unwrap();
        bundle.begin_file(b"data/a", 10, &attributes()).unwrap();
        assert!(bundle.data(&[0; 11]).is_err());
        assert!(bundle.end_file().is_err());
    }
}
