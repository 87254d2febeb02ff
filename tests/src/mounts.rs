//! File systems that are full or hang. Mounting takes root; without it a test says that it is skipped.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::{account, stand};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted file system, gone with this value.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    /// Closing it ends whatever waits for a file system in user space.
    device: Option<File>,
}

impl Mounted {
    /// A file system in memory with so much room, of the servers' account. None where one may not mount.
    pub fn tiny(path: &Path, kilobytes: u32) -> Option<Mounted> {
        if !may_mount() {
            return None;
        }
        mount_tmpfs(path, kilobytes, MsFlags::empty());
        account::give(path);
        Some(Mounted {
            path: path.to_owned(),
            device: None,
        })
    }

    /// Gives a file system in memory other room.
    pub fn resize(&self, kilobytes: u32) {
        mount_tmpfs(&self.path, kilobytes, MsFlags::MS_REMOUNT);
    }

    /// A file system that greets the kernel and then answers nothing any more, as one whose server is gone. Whoever
    /// looks into it waits and cannot even be killed.
    pub fn hanging(path: &Path) -> Option<Mounted> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let Some(mut device) = opened.ok().filter(|_| may_mount()) else {
            stand::skipped("/dev/fuse cannot be used here");
            return None;
        };
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        mount(
            Some("hanging"),
            path,
            Some("fuse"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        // FUSE_INIT: struct fuse_in_header (len, opcode, unique, ...), then the kernel's version.
        let mut request = vec![0u8; 256 << 10];
        let length = device.read(&mut request).unwrap();
        assert!(length >= 48, "a greeting of {length} bytes");
        let mut answer = Vec::new();
        answer.extend_from_slice(&80u32.to_le_bytes());
        answer.extend_from_slice(&0i32.to_le_bytes());
        answer.extend_from_slice(&request[8..16]);
        // struct fuse_init_out: version 7.31, readahead, flags, background, largest write, time granularity.
        for word in [7u32, 31, 4096, 0, 0, 4096, 1] {
            answer.extend_from_slice(&word.to_le_bytes());
        }
        answer.resize(80, 0);
        device.write_all(&answer).unwrap();
        // Taking a request out of the queue is what makes its sender unkillable.
        let mut requests = device.try_clone().unwrap();
        std::thread::spawn(move || while requests.read(&mut request).is_ok() {});
        Some(Mounted {
            path: path.to_owned(),
            device: Some(device),
        })
    }
}

fn mount_tmpfs(path: &Path, kilobytes: u32, flags: MsFlags) {
    let options = format!("size={kilobytes}k,mode=0700");
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str())).unwrap();
}

fn may_mount() -> bool {
    if !account::is_root() {
        stand::skipped("only root can mount");
    }
    account::is_root()
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.device.is_some() {
            // Ends every request that waits, so that the processes behind them end.
            let _ = umount2(&self.path, MntFlags::MNT_FORCE);
        }
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
