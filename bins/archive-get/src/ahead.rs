//! Fetches the next segments ahead, in a detached process of the same executable that ends by itself.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::config::{Cluster, Config};
use common::digest::Xxh3Hasher;
use common::error::{Context, Error, Kind, Result, chain};
use common::lock::FileLock;
use common::open;
use common::postgres::{SegmentName, WalName};
use common::process;
use common::repository::{Repository, wal};

use crate::get::Call;
use crate::spool::Spool;

/// Starts the process that fetches what follows `segment`, unless one runs or there is enough in the spool.
/// A failure here costs speed only.
pub fn start(config: &Config, call: &Call, spool: &Spool, segment: SegmentName) {
    if let Err(error) = try_start(config, call, spool, segment) {
        log::debug!("cannot fetch ahead: {}", chain(&error));
    }
}

/// How many segments fit the spool's limit.
fn window(config: &Config, call: &Call) -> u64 {
    config.prefetch_limit.bytes() / call.segment_size.bytes()
}

fn try_start(config: &Config, call: &Call, spool: &Spool, segment: SegmentName) -> Result<()> {
    let name = segment.to_string();
    let ahead = spool.files().iter().filter(|file| file.name > name).count() as u64;
    if ahead.saturating_mul(2) >= window(config, call) {
        return Ok(());
    }
    spool.create()?;
    // Whoever holds the lock fetches already. The child tries again; this saves starting one for nothing.
    if FileLock::try_acquire(&spool.lock_path())?.is_none() {
        return Ok(());
    }
    // The flag goes first: what follows may be behind a "--".
    let arguments = std::iter::once("--prefetch-child".into()).chain(std::env::args_os().skip(1));
    process::detach_self(arguments, Path::new("."))?;
    Ok(())
}

/// The detached process: fills the spool with what follows `name`, until it is full or something is not there.
///
/// # Errors
/// What went wrong before the first segment; nobody waits for it.
pub fn run_child(config: &Config, cluster: &Cluster, only: &[String], name: &str) -> Result<()> {
    let segment: SegmentName = name.parse()?;
    let call = Call::find(config, cluster)?;
    let Some(spool) = call.spool(config, only) else {
        return Ok(());
    };
    spool.create()?;
    let Some(_lock) = FileLock::try_acquire(&spool.lock_path())? else {
        return Ok(());
    };
    spool.forget_before(name);
    let Some(number) = segment.number(call.segment_size) else {
        return Ok(());
    };
    let repositories = open::repositories(config, cluster, only)?;
    for repository in &repositories {
        call.pins.check(repository)?;
    }
    let there = spool.files();
    let next = AtomicU64::new(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..config.jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let step = next.fetch_add(1, Ordering::Relaxed);
                    if step > window(config, &call) {
                        break;
                    }
                    let Some(number) = number.0.checked_add(step) else {
                        break;
                    };
                    let name = SegmentName::new(
                        segment.timeline,
                        common::postgres::SegmentNumber(number),
                        call.segment_size,
                    );
                    if there.iter().any(|file| file.name == name.to_string()) {
                        continue;
                    }
                    if let Err(error) = fetch(&call, &repositories, &spool, name) {
                        // "Absent" is never kept; and whoever asks for it hears the error itself.
                        log::debug!("stop fetching ahead at {name}: {}", chain(&error));
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Ok(())
}

/// Fetches one segment into the spool; it becomes visible when all of it has been verified.
fn fetch(call: &Call, repositories: &[Repository], spool: &Spool, segment: SegmentName) -> Result<()> {
    let name = segment.to_string();
    let part = spool.part_path(&name);
    let Some(_lock) = FileLock::try_acquire(&part)? else {
        return Err(Error::new(Kind::Busy, format!("{} is being written", part.display())));
    };
    let mut last = Error::new(Kind::Config, "no repository is configured");
    for repository in repositories {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part);
        let mut out = Hashing {
            file: file.context(|| format!("create {}", part.display()))?,
            hasher: Xxh3Hasher::new(),
        };
        match wal::fetch(repository, call.system, &WalName::Segment(segment), &mut out) {
            Ok(_) => return spool.admit(&part, &name, &out.hasher.finish().to_string()),
            Err(error) => last = error,
        }
    }
    let _ = std::fs::remove_file(&part);
    Err(last)
}

struct Hashing {
    file: std::fs::File,
    hasher: Xxh3Hasher,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
