//! Test helpers: real servers, the project's executables run as their users run them, and ways to damage a repository.
//!
//! Knows where servers and executables are and how to run them as the user postgres. Promises that a test which cannot
//! run says so ([`stand::skipped`]), that failures show what was run and what it said, and that nothing stays behind but
//! the scratch directory of a test that failed. Leaves judging to the tests.
//!
//! ```no_run
//! use system_tests::{Cluster, Options, Scratch, Server, Site};
//! let Some(server) = Server::need(15) else { return };
//! let scratch = Scratch::new("an_example");
//! let cluster = Cluster::create(&scratch, &server, Options::default());
//! let site = Site::with_repository(&scratch, &cluster);
//! cluster.start();
//! site.tool("init").run().expect_code(0);
//! site.archive(&cluster);
//! let segment = cluster.switch_wal();
//! cluster.wait_archived(&segment);
//! ```
// A helper that cannot go on fails the test that called it.
#![allow(clippy::unwrap_used, clippy::panic)]

pub mod account;
pub mod ansible;
pub mod bare;
pub mod cluster;
pub mod contents;
pub mod emulator;
pub mod mounts;
pub mod mutilate;
pub mod output;
pub mod patroni;
pub mod pgbench;
pub mod s3;
pub mod scratch;
pub mod sink;
pub mod site;
pub mod sshd;
pub mod stand;
pub mod story;
pub mod tool;
pub mod wait;

pub use bare::Bare;
pub use cluster::{Cluster, Options, Stop};
pub use contents::Contents;
pub use emulator::Emulator;
pub use output::project;
pub use s3::S3;
pub use scratch::Scratch;
pub use sink::Sink;
pub use site::{Repo, RepoOptions, Site};
pub use sshd::Sshd;
pub use stand::Server;
pub use story::Story;
pub use tool::{Ran, Tool};
pub use wait::wait_until;
