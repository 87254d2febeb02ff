//! The account that servers and tools run under: postgres when the tests run as root, else whoever runs them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use nix::unistd::{Gid, Uid, User, geteuid, getgid};

static ACCOUNT: LazyLock<(Uid, Gid)> = LazyLock::new(|| {
    if !geteuid().is_root() {
        return (geteuid(), getgid());
    }
    let user = User::from_name("postgres").unwrap();
    let user = user.expect("the user postgres is not there: run tests/stand/install.sh servers");
    (user.uid, user.gid)
});

/// Whether the tests run as root, whom permissions do not stop.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Makes `command` run under the servers' account, without supplementary groups.
pub fn run_as(command: &mut Command) -> &mut Command {
    if is_root() {
        command.uid(ACCOUNT.0.as_raw()).gid(ACCOUNT.1.as_raw());
    }
    command
}

/// Hands one file or directory to the servers' account.
pub fn give(path: &Path) {
    if is_root() {
        chown(path, Some(ACCOUNT.0.as_raw()), Some(ACCOUNT.1.as_raw()))
            .unwrap_or_else(|error| panic!("chown {}: {error}", path.display()));
    }
}

/// Creates a directory that belongs to the servers' account; its parents must be there.
pub fn create_dir(path: &Path, mode: u32) {
    fs::create_dir(path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    give(path);
}

/// Writes a file that belongs to the servers' account, replacing what was there.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>, mode: u32) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    give(path);
}
