//! All knowledge of PostgreSQL 13 to 18: positions and names, file formats, the data directory, the session.
//!
//! Parsers here take bytes that anybody may have written and answer with an error, never a panic. Facts
//! name the PostgreSQL source file they come from, and `tests/fixtures` keeps bytes of real servers that
//! prove them. What is done with the results (storing, waiting, deciding) is left to the layers above.

pub mod archive;
pub mod client;
pub mod control;
pub mod datadir;
pub mod header;
pub mod history;
pub mod label;
pub mod lsn;
pub mod manifest;
pub mod names;
pub mod page;
pub mod programs;
pub mod recovery;
pub mod relation;
pub mod session;
pub mod settings;
pub mod sql;
mod tls;
pub mod version;
pub mod walmap;
pub mod walscan;

pub use client::Client;
pub use control::{ClusterState, ControlFile};
pub use datadir::{Found, FoundKind, Tablespace};
pub use header::SegmentHeader;
pub use history::TimelineHistory;
pub use label::BackupLabel;
pub use lsn::{Lsn, SegmentNumber, SegmentSize, SystemId, TimelineId};
pub use manifest::{ManifestWriter, WalRange};
pub use names::{SegmentName, WalName};
pub use page::{PageDamage, PageState};
pub use programs::Programs;
pub use recovery::{RecoverySettings, Target, TargetAction, TargetTimeline};
pub use relation::{Fork, RelationFile};
pub use session::{Session, StartPoint, StopPoint};
pub use settings::{ConnectionSettings, SslMode};
pub use version::Major;

/// Reads `N` bytes at `at`, if they are there.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// Reads a little-endian u16 at `at`, if it is there.
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

/// Reads a little-endian u32 at `at`, if it is there.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

/// Reads a little-endian u64 at `at`, if it is there.
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! Golden bytes of real servers, see `tests/fixtures/take.sh`.
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::Major;
    use std::path::PathBuf;

    /// The directory of one version's golden bytes.
    pub fn directory(major: Major) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/fixtures/pg{major}"))
    }

    /// One golden file.
    pub fn read(major: Major, name: &str) -> Vec<u8> {
        std::fs::read(directory(major).join(name)).unwrap()
    }

    /// What the server itself said about them.
    pub fn expected(major: Major) -> serde_json::Value {
        serde_json::from_slice(&read(major, "expected.json")).unwrap()
    }
}
