//! Fetches segments ahead, in a detached process of the same executable that ends by itself.

use std::ffi::OsString;
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
use common::repository::Repository;

use crate::call::Call;
use crate::checked;
use crate::spool::{self, Spool};

/// Starts the process that fetches `first` and what follows, unless one runs or there is enough in the spool.
/// A failure here costs speed only.
pub fn start(config: &Config, call: &Call, spool: &Spool, first: SegmentName, arguments: &[OsString]) {
    if let Err(error) = try_start(config, call, spool, first, arguments) {
        log::debug!("cannot fetch ahead: {}", chain(&error));
    }
}

/// How many segments fit the spool's limit.
fn window(config: &Config, call: &Call) -> u64 {
    config.prefetch_limit.bytes() / call.segment_size.bytes()
}

fn try_start(config: &Config, call: &Call, spool: &Spool, first: SegmentName, arguments: &[OsString]) -> Result<()> {
    let ahead = spool.files().iter().filter(|file| file.is_at_or_after(first)).count() as u64;
    if ahead.saturating_mul(2) >= window(config, call) {
        return Ok(());
    }
    spool.create()?;
    // The child tries again; this saves starting one for nothing.
    if spool.is_being_filled() {
        return Ok(());
    }
    // The flag goes first: what follows may be behind a "--".
    let flag = [OsString::from(format!("--prefetch-from={first}"))];
    process::detach_self(flag.iter().chain(arguments), Path::new("."))?;
    Ok(())
}

/// The detached process: fills the spool with `first` and what follows, until it is full or something is not there.
///
/// # Errors
/// What went wrong before the first segment; nobody waits for it.
pub fn run_child(config: &Config, cluster: &Cluster, only: &[String], first: &str) -> Result<()> {
    let first: SegmentName = first.parse()?;
    let call = Call::find(config, cluster)?;
    let Some(spool) = call.spool(config, only) else {
        return Ok(());
    };
    spool.create()?;
    let Some(_lock) = FileLock::try_acquire(&spool.lock_path())? else {
        return Ok(());
    };
    spool.forget_before(first);
    let repositories = open::repositories(config, cluster, only)?;
    for repository in &repositories {
        call.pins.check(repository)?;
    }
    let there = spool.files();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let step = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = nth(&call, first, step).filter(|_| step < window(config, &call)) else {
                break;
            };
            if there.iter().any(|file| file.name == name) {
                continue;
            }
            if let Err(error) = fetch(&call, &repositories, &spool, name) {
                // "Absent" is never kept; and whoever asks for it hears the error itself.
                log::debug!("stop fetching ahead at {name}: {}", chain(&error));
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..config.jobs.max(1) {
            scope.spawn(work);
        }
    });
    // Nobody waits for this process. Its own spool is locked.
    spool::collect_unused(&config.spool_directory, &cluster.name);
    Ok(())
}

fn nth(call: &Call, first: SegmentName, step: u64) -> Option<SegmentName> {
    let number = first.number(call.segment_size)?.0.checked_add(step)?;
    let number = common::postgres::SegmentNumber(number);
    Some(SegmentName::new(first.timeline, number, call.segment_size))
}

/// Fetches one segment into the spool; it becomes visible when all of it has been verified. Only the process that
/// holds the spool's lock writes there.
fn fetch(call: &Call, repositories: &[Repository], spool: &Spool, segment: SegmentName) -> Result<()> {
    let part = spool.part_path(segment);
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
        match checked::fetch(repository, call, &WalName::Segment(segment), &mut out) {
            Ok(()) => return spool.admit(segment, &out.hasher.finish().to_string()),
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
