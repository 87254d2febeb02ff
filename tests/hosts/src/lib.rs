//! Hosts that boot: systemd as their first process, an address each, and what may befall them.
//!
//! Knows how to boot a tree that `tests/stand/install.sh hosts` made, several beside each other in a network of their own,
//! and how to run commands on them. Promises that hosts, network and mounts go when the test is over, however it ends;
//! that what fails shows what was run and said; and that a test which cannot have hosts says so. Leaves judging to the
//! tests.
//!
//! ```no_run
//! let Some(lab) = host_tests::Lab::need("an_example", &["bookworm"]) else { return };
//! let host = lab.host("db1", "bookworm");
//! host.run("apt-get --version");
//! ```
// A helper that cannot go on fails the test that called it.
#![allow(clippy::unwrap_used, clippy::panic)]

pub mod ansible;
pub mod archive;
pub mod host;
pub mod keys;
pub mod lab;
pub mod members;
pub mod reader;
pub mod site;
pub mod typed;

pub use ansible::Ansible;
pub use archive::Archive;
pub use host::Host;
pub use lab::Lab;
pub use members::Members;
pub use reader::Reader;
pub use site::Site;
