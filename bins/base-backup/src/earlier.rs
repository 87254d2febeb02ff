//! What an interrupted backup has stored already.
//!
//! A retry is a new backup with a start of its own: it reads every page again. Where the digest of the page just read is that of a
//! page which the interrupted backup stored, the manifest points there instead of storing it twice; that saves compression and
//! transfer, never reading. Digests come from the indexes of the bundles that were finished; they wait in a file, so memory grows
//! with the number of files only.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::digest::{crc32c, crc32c_combine, xxh3_128};
use common::error::{Context, Error, Kind, Result, chain};
use common::process;
use common::repository::index::BLOCK_BYTES;
use common::repository::{Label, Repository, backup, catalog, reader};

/// Smaller files are stored anew: a reference would cost more than it saves.
pub const LEAST_BYTES: u64 = 64 << 10;

/// A stretch that is not worth two more pieces of its file.
const LEAST_RUN_BYTES: u64 = 256 << 10;

const DIGEST_BYTES: usize = 20;

/// A member of the interrupted backup, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// XXH3-128 of its name: names themselves would take more room.
    name: u128,
    /// Its bundle.
    pub bundle: u32,
    /// Where its data begins in the tar stream.
    pub offset: u64,
    /// How long that is.
    pub size: u64,
    /// Where its digests begin in the file.
    digests: u64,
}

/// The finished bundles of one interrupted backup.
#[derive(Debug)]
pub struct Earlier {
    /// Its label.
    pub label: Label,
    members: Vec<Member>,
    digests: File,
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// The CRC32C of what the earlier backup stored, where that is what was read; `None`: to be stored.
    pub kept: Option<u32>,
}

impl Earlier {
    /// Finds the interrupted backup of this host and cluster that stored most, in all of these repositories; `None` where there is
    /// none, or where its indexes cannot be read here.
    pub fn find(repositories: &[&Repository], host: &str, system: &str, spill: &Path) -> Option<Self> {
        let (first, others) = repositories.split_first()?;
        let found = candidates(first, host, system).and_then(|labels| {
            let mut best: Option<Self> = None;
            for label in labels {
                let earlier = Self::read(first, others, label, spill)?;
                let bytes = |earlier: &Self| earlier.members.iter().map(|member| member.size).sum::<u64>();
                if best.as_ref().is_none_or(|best| bytes(best) < bytes(&earlier)) {
                    best = Some(earlier);
                }
            }
            Ok(best)
        });
        match found {
            Ok(found) => found.filter(|earlier| !earlier.members.is_empty()),
            Err(error) => {
                log::info!("what an interrupted backup stored cannot be used: {}", chain(&error));
                None
            }
        }
    }

    fn read(first: &Repository, others: &[&Repository], label: Label, spill: &Path) -> Result<Self> {
        let keeping = || format!("keep digests in {}", spill.display());
        let file = tempfile::tempfile_in(spill).context(keeping)?;
        let mut out = BufWriter::new(file.try_clone().context(keeping)?);
        let (mut members, mut written) = (Vec::new(), 0u64);
        for bundle in finished_bundles(first, label)? {
            let everywhere = others.iter().map(|other| has_bundle(other, label, bundle));
            if !everywhere
                .collect::<Result<Vec<bool>>>()?
                .into_iter()
                .all(|there| there)
            {
                continue;
            }
            let index = reader::read_unfinished_index(first, label, bundle)?;
            for member in index.members.iter().filter(|member| member.size >= LEAST_BYTES) {
                let blocks = usize::try_from(member.size.div_ceil(BLOCK_BYTES as u64)).unwrap_or(usize::MAX);
                let from = usize::try_from(member.first_digest).unwrap_or(usize::MAX);
                let digests = index.digests.get(from..from.saturating_add(blocks)).ok_or_else(|| {
                    Error::new(
                        Kind::Corrupt,
                        format!("the index of bundle {bundle} of {label} lacks digests"),
                    )
                })?;
                members.push(Member {
                    name: xxh3_128(&member.name).0,
                    bundle,
                    offset: member.offset,
                    size: member.size,
                    digests: written,
                });
                for digest in digests {
                    out.write_all(&digest.xxh3.to_bytes()).context(keeping)?;
                    out.write_all(&digest.crc32c.to_le_bytes()).context(keeping)?;
                    written += DIGEST_BYTES as u64;
                }
            }
        }
        out.flush().context(keeping)?;
        members.sort_unstable();
        Ok(Self {
            label,
            members,
            digests: file,
        })
    }

    /// The member with this name.
    pub fn member(&self, name: &[u8]) -> Option<Member> {
        let hash = xxh3_128(name).0;
        let at = self.members.partition_point(|member| member.name < hash);
        self.members.get(at).copied().filter(|member| member.name == hash)
    }

    /// The CRC32C of `chunk`, read at `offset` (a whole number of blocks), if the member holds just these bytes there.
    ///
    /// # Errors
    /// What reading the digests gave.
    pub fn holds(&self, member: &Member, offset: u64, chunk: &[u8]) -> Result<Option<u32>> {
        let end = offset.saturating_add(chunk.len() as u64);
        // The last block of a member may be short; so must ours be.
        let fits = end == member.size || (end < member.size && chunk.len().is_multiple_of(BLOCK_BYTES));
        if chunk.is_empty() || !fits {
            return Ok(None);
        }
        let mut stored = vec![0u8; chunk.len().div_ceil(BLOCK_BYTES) * DIGEST_BYTES];
        let from = member.digests + offset / BLOCK_BYTES as u64 * DIGEST_BYTES as u64;
        self.digests
            .read_exact_at(&mut stored, from)
            .context(|| "read digests of an interrupted backup")?;
        let mut crc = 0;
        for (block, digest) in chunk.chunks(BLOCK_BYTES).zip(stored.chunks_exact(DIGEST_BYTES)) {
            let ours = crc32c(block);
            if digest.get(..16) != Some(&xxh3_128(block).to_bytes()[..])
                || digest.get(16..) != Some(&ours.to_le_bytes()[..])
            {
                return Ok(None);
            }
            crc = crc32c_combine(crc, ours, block.len() as u64);
        }
        Ok(Some(crc))
    }
}

/// Unfinished backups of this host and cluster that nobody writes any more.
fn candidates(repository: &Repository, host: &str, system: &str) -> Result<Vec<Label>> {
    let mut labels = Vec::new();
    for label in catalog::unfinished(repository)? {
        let abandoned = match backup::read_intent(repository, label) {
            Ok(intent) => {
                let alive = intent.pid != std::process::id() && process::is_alive(intent.pid);
                intent.host == host && intent.system_identifier == system && !alive && intent.leans_on.is_empty()
            }
            Err(error) if error.kind() == Kind::NotFound => false,
            Err(error) => return Err(error),
        };
        if abandoned {
            labels.push(label);
        }
    }
    Ok(labels)
}

/// Bundles that have an index: it is written after them.
fn finished_bundles(repository: &Repository, label: Label) -> Result<Vec<u32>> {
    let folder = repository.keys().of_backup(label, "data")?;
    let names = repository.store.children(Some(&folder))?;
    let number = |name: &String| name.split_once(".index.zst")?.0.parse().ok();
    Ok(names.iter().filter_map(number).collect())
}

/// Whether a bundle of an unfinished backup is there, with its index.
///
/// # Errors
/// What the store says.
pub fn has_bundle(repository: &Repository, label: Label, bundle: u32) -> Result<bool> {
    let suffix = repository.suffix()?;
    for name in [
        format!("data/{bundle}.tar.zst{suffix}"),
        format!("data/{bundle}.index.zst{suffix}"),
    ] {
        if repository
            .store
            .stat(&repository.keys().of_backup(label, &name)?)?
            .is_none()
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts stretches together: what was found kept in pieces too small to pay is stored anew. `found` has the length of each chunk and
/// its CRC32C where it is kept, in the order of the file.
pub fn plan_runs(found: &[(u64, Option<u32>)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut offset = 0;
    for (length, kept) in found {
        match runs.last_mut() {
            Some(last) if last.kept.is_some() == kept.is_some() => {
                last.kept = last
                    .kept
                    .zip(*kept)
                    .map(|(before, crc)| crc32c_combine(before, crc, *length));
                last.length += length;
            }
            _ => runs.push(Run {
                offset,
                length: *length,
                kept: *kept,
            }),
        }
        offset += length;
    }
    let whole = runs.len() == 1;
    for run in &mut runs {
        if !whole && run.length < LEAST_RUN_BYTES {
            run.kept = None;
        }
    }
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.kept.is_none() && run.kept.is_none() => last.length += run.length,
            _ => joined.push(run),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CHUNK: u64 = 128 << 10;

    #[test]
    fn stretches_are_put_together_and_small_ones_stored_anew() {
        let bytes: Vec<u8> = (0..10 * CHUNK).map(|n| (n % 251) as u8).collect();
        let chunk = |n: usize| &bytes[n * CHUNK as usize..(n + 1) * CHUNK as usize];
        let found: Vec<(u64, Option<u32>)> = (0..10)
            .map(|n| (CHUNK, (n != 5 && n != 7).then(|| crc32c(chunk(n)))))
            .collect();
        let runs = plan_runs(&found);
        let crc = |from: u64, to: u64| Some(crc32c(&bytes[(from * CHUNK) as usize..(to * CHUNK) as usize]));
        let run = |from: u64, to: u64, kept| Run {
            offset: from * CHUNK,
            length: (to - from) * CHUNK,
            kept,
        };
        let wanted = [run(0, 5, crc(0, 5)), run(5, 8, None), run(8, 10, crc(8, 10))];
        assert_eq!(runs, wanted, "chunk 6 alone is too little to be kept");
        let all = plan_runs(&[(CHUNK, Some(1))]);
        assert_eq!(
            all,
            [Run {
                offset: 0,
                length: CHUNK,
                kept: Some(1)
            }],
            "a small file that is kept whole"
        );
        assert!(plan_runs(&[]).is_empty());
        assert_eq!(
            plan_runs(&[(CHUNK, None), (5, None)]),
            [Run {
                offset: 0,
                length: CHUNK + 5,
                kept: None
            }]
        );
    }

    /// An earlier backup with one member of these bytes.
    fn earlier(bytes: &[u8]) -> Earlier {
        let digests = tempfile::tempfile().unwrap();
        let mut out = &digests;
        for block in bytes.chunks(BLOCK_BYTES) {
            out.write_all(&xxh3_128(block).to_bytes()).unwrap();
            out.write_all(&crc32c(block).to_le_bytes()).unwrap();
        }
        Earlier {
            label: "20261120T020000Z-full-3f9a1c".parse().unwrap(),
            members: vec![Member {
                name: xxh3_128(b"data/base/5/1").0,
                bundle: 2,
                offset: 512,
                size: bytes.len() as u64,
                digests: 0,
            }],
            digests,
        }
    }

    #[test]
    fn only_the_same_bytes_at_the_same_place_are_held() {
        let bytes: Vec<u8> = (0..40_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let earlier = earlier(&bytes);
        let member = earlier.member(b"data/base/5/1").unwrap();
        assert!(earlier.member(b"data/base/5/2").is_none());
        let held = |offset: usize, chunk: &[u8]| earlier.holds(&member, offset as u64, chunk).unwrap();
        assert_eq!(held(0, &bytes[..16_384]), Some(crc32c(&bytes[..16_384])));
        assert_eq!(
            held(32_768, &bytes[32_768..]),
            Some(crc32c(&bytes[32_768..])),
            "the short end"
        );
        assert_eq!(held(8192, &bytes[..8192]), None, "another place");
        assert_eq!(
            held(32_768, &[&bytes[32_768..], &[0]].concat()),
            None,
            "the file has grown"
        );
        assert_eq!(held(0, &bytes[..100]), None, "a part of a block");
        assert_eq!(held(40_960, &bytes[..8192]), None, "behind the end");
        for bit in [0usize, 77_777, 131_071] {
            let mut changed = bytes[..16_384].to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(held(0, &changed), None, "bit {bit}");
        }
    }
}
