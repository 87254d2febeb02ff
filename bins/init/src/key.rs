//! Makes an age identity: the secret goes into a file for the place where restores run, the public key is the result.

use std::path::Path;

use common::codec::generate_identity;
use common::durable;
use common::error::{Error, Kind, Result};
use common::exit;
use common::time::UtcTime;

/// Writes a new identity to `path`, which must not exist, and prints the recipient.
///
/// # Errors
/// `Refused` if the file exists: a key that is overwritten takes every backup with it.
pub fn generate(path: &Path, now: UtcTime) -> Result<()> {
    let (secret, public) = generate_identity();
    let content = format!("# created: {now}\n# public key: {public}\n{secret}\n");
    durable::write_new(path, content.as_bytes(), 0o600).map_err(|error| match error.kind() {
        Kind::AlreadyExists => Error::new(
            Kind::Refused,
            format!("{} exists, and a key is never overwritten", path.display()),
        )
        .hint("choose another file; the old key opens the old backups"),
        _ => error.context(format!("write the key to {}", path.display())),
    })?;
    log::info!(
        "keep {} where restores run and in a safe; without it no backup can be opened",
        path.display()
    );
    exit::print(&format!("{public}\n"))
}
