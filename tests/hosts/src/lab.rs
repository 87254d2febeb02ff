//! A network of hosts, and the machine that looks after them.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use system_tests::account::is_root;
use system_tests::stand::{self, need_program};
use system_tests::tool::Running;
use system_tests::wait::{PATIENCE, wait_until};
use system_tests::{Ran, Scratch, Tool};

use crate::Host;

/// The network's addresses; the machine that looks after the hosts has the first.
pub const NETWORK: &str = "10.77.0";
/// The hosts that there can be; the first has the address ending in 10.
pub const NAMES: [&str; 8] = ["db1", "db2", "db3", "mon", "repo", "restore", "new1", "new2"];
/// What the machine runs on the network is there.
pub const CONTROL: &str = "10.77.0.1";

/// Ends the hosts of a test that was killed: its groups name its process.
const SWEEP: &str = "for old in /sys/fs/cgroup/pgkeep-*; do [ -d $old ] || continue; of=${old#*/pgkeep-}; \
                     [ -d /proc/${of%%-*} ] || echo 1 > $old/cgroup.kill; done";

/// A network of its own, with mounts and control groups of its own.
#[derive(Debug)]
pub struct Lab {
    /// What the test leaves; keys and configuration lie here.
    pub scratch: Scratch,
    anchor: Option<Running>,
    cgroup: PathBuf,
}

impl Lab {
    /// Makes a network, or says that the calling test is skipped.
    pub fn need(name: &str, releases: &[&str]) -> Option<Lab> {
        if !is_root() {
            stand::skipped("hosts boot for root only");
            return None;
        }
        for program in ["systemd-nspawn", "nsenter", "ip"] {
            need_program(program)?;
        }
        for release in releases {
            if !tree(release).is_dir() {
                stand::skipped(&format!("no tree of {release}; tests/stand/install.sh hosts makes it"));
                return None;
            }
        }
        Some(Lab::new(name))
    }

    fn new(name: &str) -> Lab {
        let scratch = Scratch::new(name);
        let cgroup = PathBuf::from(format!("/sys/fs/cgroup/pgkeep-{}-{name}", std::process::id()));
        // Mounts made here are seen nowhere else, and all of it ends with this process.
        let script = format!(
            "set -e; mount -t cgroup2 none /sys/fs/cgroup; {SWEEP}; mkdir -p {cgroup}; ip link set lo up; \
             ip link add br0 type bridge; ip address add {CONTROL}/24 dev br0; ip link set br0 up; \
             touch {ready}; exec tail -f /dev/null",
            cgroup = cgroup.display(),
            ready = scratch.path("ready").display(),
        );
        let anchor = Tool::program("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--net",
                "--propagation",
                "slave",
                "bash",
                "-c",
                &script,
            ])
            .as_root()
            .spawn();
        let lab = Lab {
            scratch,
            anchor: Some(anchor),
            cgroup,
        };
        wait_until("the network of the hosts", PATIENCE, || {
            lab.scratch.path("ready").exists()
        });
        let key = lab.scratch.path("ssh_key");
        Tool::program("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .as_root()
            .run()
            .expect_code(0);
        lab
    }

    /// The process that holds the network and the mounts.
    pub fn anchor(&self) -> u32 {
        self.anchor.as_ref().unwrap().pid()
    }

    /// Runs a program on the machine that looks after the hosts, as root, in their network.
    pub fn tool(&self, program: impl AsRef<std::ffi::OsStr>) -> Tool {
        Tool::program(program)
            .as_root()
            .timeout(Duration::from_secs(900))
            .under(["nsenter", "-t", &self.anchor().to_string(), "--mount", "--net", "--"])
    }

    /// Runs a script there and expects it to succeed.
    pub fn run(&self, script: &str) -> Ran {
        self.tool("bash").args(["-euc", script]).run().expect_code(0)
    }

    /// Does something in the hosts' network: what it listens on, hosts reach.
    pub fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.anchor())).unwrap();
        let inside = || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            what()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// A fresh host of this release, booted. Its name is one of [`NAMES`] and leads to it on every host.
    pub fn host(&self, name: &str, release: &str) -> Host {
        let host = Host::new(self, name, release);
        host.boot();
        host
    }

    /// Where the groups of its hosts' processes are, in their own view of the file system.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Whatever runs in a group of a host ends with one write; then its groups can go.
        let groups = self.cgroup.display();
        let script = format!(
            "echo 1 > {groups}/cgroup.kill; for n in $(seq 200); do \
             find {groups} -depth -type d -exec rmdir {{}} + 2>/dev/null; [ -e {groups} ] || break; sleep 0.05; done"
        );
        let anchor = self.anchor().to_string();
        let _ = std::process::Command::new("nsenter")
            .args(["-t", &anchor, "--mount", "--net", "--", "bash", "-c", &script])
            .status();
        if let Some(anchor) = self.anchor.take() {
            anchor.kill9();
        }
    }
}

/// The address of a host.
pub fn address(name: &str) -> String {
    let place = NAMES.iter().position(|one| *one == name);
    format!(
        "{NETWORK}.{}",
        10 + place.unwrap_or_else(|| panic!("{name} is none of {NAMES:?}"))
    )
}

/// Where the tree of a release is.
pub fn tree(release: &str) -> PathBuf {
    stand::directory().join(format!("tree-{release}-1/tree"))
}

/// Writes a file, with the directories above it.
pub(crate) fn put(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
