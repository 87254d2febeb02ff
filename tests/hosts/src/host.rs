//! One host: boots, runs commands, loses power.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use system_tests::tool::Running;
use system_tests::wait::wait_until;
use system_tests::{Ran, Tool};

use crate::lab::{self, CONTROL, Lab, NAMES, put, tree};

/// A host boots in a second or two; a busy machine takes longer.
const BOOT: Duration = Duration::from_secs(120);

/// A host of a [`Lab`].
#[derive(Debug)]
pub struct Host {
    /// Its name, on every host.
    pub name: String,
    /// Its address.
    pub address: String,
    /// The release it runs.
    pub release: String,
    place: PathBuf,
    key: Vec<u8>,
    cgroup: PathBuf,
    anchor: u32,
    log: PathBuf,
    container: std::sync::Mutex<Option<Running>>,
}

impl Host {
    pub(crate) fn new(lab: &Lab, name: &str, release: &str) -> Host {
        let place = lab.scratch.path(&format!("hosts/{name}"));
        let host = Host {
            name: name.to_owned(),
            address: lab::address(name),
            release: release.to_owned(),
            key: fs::read(lab.scratch.path("ssh_key.pub")).unwrap(),
            cgroup: lab.cgroup().join(name),
            anchor: lab.anchor(),
            log: place.join("console"),
            container: std::sync::Mutex::new(None),
            place,
        };
        host.install();
        host
    }

    /// Lays what makes it this host over the tree of its release.
    fn install(&self) {
        let upper = self.place.join("upper");
        for below in ["upper", "work", "root"] {
            fs::create_dir_all(self.place.join(below)).unwrap();
        }
        put(&upper.join("etc/hostname"), format!("{}\n", self.name), 0o644);
        let network = format!(
            "[Match]\nName=host0\n\n[Network]\nAddress={}/24\nLinkLocalAddressing=no\n",
            self.address
        );
        put(&upper.join("etc/systemd/network/10-host0.network"), network, 0o644);
        // Who is who is the same on all, like DNS.
        let mut hosts = format!("127.0.0.1 localhost\n{CONTROL} control s3.test apt.test\n");
        for other in NAMES {
            let _ = writeln!(hosts, "{} {other}", lab::address(other));
        }
        put(&upper.join("etc/hosts"), hosts, 0o644);
        put(&upper.join("root/.ssh/authorized_keys"), &self.key, 0o600);
        fs::create_dir_all(upper.join("etc/ssh")).unwrap();
        // Its journal stays with what a failed test leaves.
        fs::create_dir_all(upper.join("var/log/journal")).unwrap();
        let mount = format!(
            "ssh-keygen -q -A -f {upper}; mount -t overlay overlay -o lowerdir={tree},upperdir={upper},workdir={work} {root}",
            tree = tree(&self.release).display(),
            work = self.place.join("work").display(),
            root = self.root().display(),
            upper = upper.display(),
        );
        self.outside("bash").args(["-euc", &mount]).run().expect_code(0);
    }

    fn root(&self) -> PathBuf {
        self.place.join("root")
    }

    /// The machine is gone, with its disk; one as fresh as it once was takes its name and place.
    pub fn replace(&self) {
        self.power_cut();
        let place = self.place.display();
        let script = format!("umount {place}/root; rm -rf {place}/upper {place}/work");
        self.outside("bash").args(["-euc", &script]).run().expect_code(0);
        self.install();
        self.boot();
    }

    /// Boots it and waits until systemd has started what it starts.
    pub fn boot(&self) {
        let script = format!(
            "ip link delete vb-{name} 2>/dev/null; mkdir -p {group} && echo $$ > {group}/cgroup.procs && exec systemd-nspawn --quiet --keep-unit --register=no --boot \
             --link-journal=no -M {name} -D {root} --network-bridge=br0 --console=read-only --resolv-conf=off \
             --timezone=off >> {log} 2>&1",
            group = self.cgroup.display(),
            name = self.name,
            root = self.root().display(),
            log = self.log.display(),
        );
        let container = self.outside("bash").args(["-c", &script]).spawn();
        *self.container.lock().unwrap() = Some(container);
        wait_until(&format!("{} boots", self.name), BOOT, || self.first_process().is_some());
        wait_until(&format!("{} starts its services", self.name), BOOT, || {
            let state = self.shell("systemctl is-system-running").run().stdout;
            ["running", "degraded"].contains(&state.trim())
        });
        wait_until(&format!("{} is reached", self.name), BOOT, || {
            let probe = format!("exec 3<>/dev/tcp/{}/22", self.address);
            self.outside("bash").args(["-c", &probe]).run().code == Some(0)
        });
    }

    /// Ends everything on it at once, as a power cut does: nothing is written any more.
    pub fn power_cut(&self) {
        let group = self.cgroup.display();
        self.outside("bash")
            .args(["-euc", &format!("echo 1 > {group}/cgroup.kill")])
            .run()
            .expect_code(0);
        wait_until(&format!("{} is off", self.name), BOOT, || {
            let gone = format!(
                "for group in $(find {group} -depth -type d 2>/dev/null); do rmdir $group || exit 1; done; [ ! -e {group} ]"
            );
            self.outside("bash").args(["-c", &gone]).run().code == Some(0)
        });
        if let Some(container) = self.container.lock().unwrap().take() {
            container.kill9();
        }
    }

    /// A script on this host, as root, with what a login has.
    pub fn shell(&self, script: &str) -> Tool {
        let process = self
            .first_process()
            .map_or_else(|| "0".to_owned(), |process| process.to_string());
        Tool::program("nsenter")
            .args(["-t", &process, "--all", "--", "bash", "-c", script])
            .env("HOME", "/root")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .as_root()
            .timeout(Duration::from_secs(600))
    }

    /// Runs a script on this host and expects it to succeed; it ends with the first command that does not.
    pub fn run(&self, script: &str) -> Ran {
        self.shell(&format!("set -euo pipefail\n{script}")).run().expect_code(0)
    }

    /// What a script says, without the end of its last line.
    pub fn ask(&self, script: &str) -> String {
        self.run(script).stdout.trim_end().to_owned()
    }

    /// Whether a script succeeds.
    pub fn holds(&self, script: &str) -> bool {
        self.shell(script).run().code == Some(0)
    }

    /// Asks the server of this host.
    pub fn sql(&self, statement: &str) -> String {
        self.ask(&format!("runuser -u postgres -- psql -XAtqc \"{statement}\""))
    }

    /// A file of this host as it is now.
    pub fn read(&self, path: &str) -> String {
        self.ask(&format!("cat {path}"))
    }

    /// Writes a file of this host.
    pub fn write(&self, path: &str, text: &str) {
        let script = format!("mkdir -p $(dirname {path}) && cat > {path}");
        self.shell(&script).stdin(text).run().expect_code(0);
    }

    fn outside(&self, program: &str) -> Tool {
        Tool::program(program)
            .as_root()
            .under(["nsenter", "-t", &self.anchor.to_string(), "--mount", "--net", "--"])
    }

    /// Its first process, as this machine numbers it.
    fn first_process(&self) -> Option<u32> {
        let found = format!(
            "find {} -name cgroup.procs -exec cat {{}} + 2>/dev/null",
            self.cgroup.display()
        );
        let listed = self.outside("bash").args(["-c", &found]).run();
        listed
            .stdout
            .lines()
            .filter_map(|line| line.parse().ok())
            .find(|process| is_first(*process))
    }
}

/// Whether a process is the first of a space of its own.
fn is_first(process: u32) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| {
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        numbers.len() > 1 && numbers.last() == Some(&"1")
    })
}
