//! A backup, restored into a directory of its own, with a server on it that nobody reaches: to look at it, and to take out a part.
//!
//! Restores by running pgkeep-restore. What is asked of the server, and what comes of the answers, is left to the tools.

mod directory;
mod restoring;
mod server;

pub use directory::{Scratch, collect, keep, place};
pub use restoring::{Plan, PlannedBackup, Restorer, Wanted};
pub use server::ScratchServer;
