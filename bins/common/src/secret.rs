//! Files that hold secrets: read only if nobody else can.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Context, Error, Kind, Result};

/// What a file may hold before it is no secret of ours.
const MAX_BYTES: u64 = 1 << 20;

/// Opens a file that holds a secret; `what` names it in messages ("identity file").
///
/// # Errors
/// `Config` if it is not there, not a regular file, or may be read by others; else the kind of the system's error.
pub fn open(path: &Path, what: &str) -> Result<File> {
    let failed = |error: io::Error| {
        let message = format!("open {what} {}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                Error::new(Kind::Config, message).because(error)
            }
            _ => Error::io(error, message),
        }
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let path = path.display();
    if !metadata.is_file() {
        return Err(Error::new(Kind::Config, format!("{what} {path} is not a regular file")));
    }
    if may_be_read(metadata.mode(), metadata.uid()) {
        return Ok(file);
    }
    let mode = metadata.mode() & 0o7777;
    let message = format!("{what} {path} may be read by others: its mode is {mode:04o}");
    Err(Error::new(Kind::Config, message).hint(format!("chmod 600 {path}")))
}

/// Reads such a file, as text.
///
/// # Errors
/// As for [`open`], and `Config` if it holds no text.
pub fn read(path: &Path, what: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let reading = || format!("read {what} {}", path.display());
    open(path, what)?
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .context(reading)?;
    String::from_utf8(bytes).map_err(|_| Error::new(Kind::Config, format!("{}: it is not text", reading())))
}

/// Whether a file with this mode and owner keeps its secret. systemd's credentials are 0440 and root's.
fn may_be_read(mode: u32, uid: u32) -> bool {
    let permissions = mode & 0o777;
    permissions & 0o077 == 0 || (uid == 0 && permissions == 0o440)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "word\n").unwrap();
        for (mode, allowed) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, "key").is_ok(), allowed, "{mode:o}");
        }
        assert!(may_be_read(0o440, 0) && !may_be_read(0o440, 1000));
        assert_eq!(
            read(&directory.path().join("none"), "key").unwrap_err().kind(),
            Kind::Config
        );
    }
}
