//! An SFTP server of a test: OpenSSH's, on a port of the loopback, for one account in a chroot that may do nothing else.
//!
//! Knows how to set it up without touching the machine's own ssh: host key, keys of the client, known_hosts and ssh_config
//! are files of the test, and a program `ssh` that is found first makes the tools use them. Promises that the server
//! and its sessions are gone when it is dropped. It takes root; without it, or without the program, a test says that it
//! is skipped.

use std::fs::{self, File, OpenOptions, Permissions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use crate::wait::{PATIENCE, wait_until};
use crate::{RepoOptions, Scratch, account, stand};

/// The account; it has no shell and no password.
pub const USER: &str = "pgkeep-sftp";

/// Chroots must lie where only root may write all the way up, so not in a scratch directory.
const CHROOTS: &str = "/srv";

/// A server, running or not.
#[derive(Debug)]
pub struct Sshd {
    /// Where configuration, keys and log are.
    pub dir: PathBuf,
    /// The private key that is let in.
    pub key: PathBuf,
    /// The client's list of host keys.
    pub known_hosts: PathBuf,
    /// What the account takes for `/`.
    pub chroot: PathBuf,
    port: u16,
    mounted: Mutex<Vec<PathBuf>>,
    process: Mutex<Option<Child>>,
}

impl Sshd {
    /// Sets a server up and starts it, or says that the test is skipped. In the chroot there is `/backups`, the account's.
    pub fn need(scratch: &Scratch) -> Option<Sshd> {
        stand::need_program("sshd")?;
        stand::need_program("ssh")?;
        if !account::is_root() {
            stand::skipped("only root can run an SSH server for another account");
            return None;
        }
        let sshd = Sshd::set_up(scratch);
        sshd.start();
        sshd.know_host_key();
        Some(sshd)
    }

    fn set_up(scratch: &Scratch) -> Sshd {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let user = sftp_user();
        sweep();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let chroot = PathBuf::from(format!("{CHROOTS}/{USER}.{}.{number}", std::process::id()));
        fs::create_dir(&chroot).unwrap();
        fs::set_permissions(&chroot, Permissions::from_mode(0o755)).unwrap();
        let backups = chroot.join("backups");
        fs::create_dir(&backups).unwrap();
        fs::set_permissions(&backups, Permissions::from_mode(0o700)).unwrap();
        chown(&backups, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        // Whatever the daemon itself reads must be root's, all the way up; the chroot's neighbour is.
        let dir = PathBuf::from(format!("{}.d", chroot.display()));
        fs::create_dir(&dir).unwrap();
        let client = scratch.create_dir("ssh");
        let sshd = Sshd {
            key: client.join("id_ed25519"),
            known_hosts: client.join("known_hosts"),
            dir,
            chroot,
            port: free_port(),
            mounted: Mutex::default(),
            process: Mutex::default(),
        };
        keygen(&sshd.key);
        account::give(&sshd.key);
        let public = fs::read(sshd.key.with_extension("pub")).unwrap();
        fs::write(sshd.dir.join("authorized_keys"), public).unwrap();
        sshd.new_host_key();
        sshd.write_config("");
        // Host keys are checked as by default: an unknown one is refused, since nobody can be asked.
        let config = format!(
            "UserKnownHostsFile {}\nGlobalKnownHostsFile /dev/null\nUpdateHostKeys no\n",
            sshd.known_hosts.display()
        );
        let config = scratch.write("ssh/config", config, 0o600);
        scratch.create_dir("bin");
        let program = format!("#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n", config.display());
        scratch.write("bin/ssh", program, 0o700);
        sshd
    }

    /// Writes the server's configuration, with more lines.
    pub fn write_config(&self, more: &str) {
        let (dir, chroot) = (self.dir.display(), self.chroot.display());
        let text = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {dir}/host_key\nPidFile {dir}/pid\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nAuthorizedKeysFile {dir}/authorized_keys\n\
             AllowUsers {USER}\n{more}\n{subsystem}\
             Match User {USER}\nChrootDirectory {chroot}\nForceCommand internal-sftp\nAllowTcpForwarding no\n",
            self.port,
            subsystem = if more.contains("no-subsystem") {
                ""
            } else {
                "Subsystem sftp internal-sftp\n"
            },
        );
        fs::write(self.dir.join("config"), text).unwrap();
    }

    /// Makes the server another one, as a new installation does. From the next start.
    pub fn new_host_key(&self) {
        let _ = fs::remove_file(self.dir.join("host_key"));
        keygen(&self.dir.join("host_key"));
    }

    /// Makes the client know the server's key.
    pub fn know_host_key(&self) {
        let public = fs::read_to_string(self.dir.join("host_key.pub")).unwrap();
        let line = format!("[127.0.0.1]:{} {public}", self.port);
        account::write(&self.known_hosts, line, 0o600);
    }

    /// Starts the server and waits until it listens.
    pub fn start(&self) {
        fs::create_dir_all("/run/sshd").unwrap();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(self.dir.join("config"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        *self.process.lock().unwrap() = Some(command.env_clear().spawn().unwrap());
        wait_until("sshd listens", PATIENCE, || {
            let ended = self.process.lock().unwrap().as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "sshd did not start:\n{}", self.log());
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    /// Kills the server and every session, as a power cut does.
    pub fn kill(&self) {
        self.signal_sessions(Signal::SIGKILL);
        if let Some(mut process) = self.process.lock().unwrap().take() {
            let _ = process.kill();
            process.wait().unwrap();
        }
    }

    /// Stops the server and its sessions where they stand; they accept and say nothing, until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.signal_all(Signal::SIGSTOP);
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    fn pid(&self) -> Option<i32> {
        let process = self.process.lock().unwrap();
        process.as_ref().and_then(|process| i32::try_from(process.id()).ok())
    }

    fn signal_all(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        self.signal_sessions(signal);
    }

    /// Sends a signal to every process that serves a client.
    pub fn signal_sessions(&self, signal: Signal) {
        for pid in self.pid().map(descendants).unwrap_or_default() {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Whether a client is connected.
    pub fn is_used(&self) -> bool {
        self.pid().is_some_and(|pid| !descendants(pid).is_empty())
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Puts a file system in memory with so much room in place of `/backups`.
    pub fn limit(&self, kilobytes: u32) {
        let (backups, user) = (self.chroot.join("backups"), sftp_user());
        let options = format!("size={kilobytes}k,mode=0700,uid={},gid={}", user.uid, user.gid);
        let flags = MsFlags::empty();
        mount(Some("tmpfs"), &backups, Some("tmpfs"), flags, Some(options.as_str())).unwrap();
        self.mounted.lock().unwrap().push(backups);
    }

    /// The URL of a repository below `/backups`.
    pub fn url(&self, name: &str) -> String {
        format!("sftp://{USER}@127.0.0.1:{}/backups/{name}", self.port)
    }

    /// A repository there.
    pub fn repository(&self, name: &str) -> RepoOptions {
        RepoOptions::new(name)
            .at(&self.url(name), &self.chroot.join("backups").join(name))
            .line(&format!("ssh_key = \"{}\"", self.key.display()))
    }

    /// What lies below `/backups` under staging names.
    pub fn staging(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect_staging(&self.chroot.join("backups"), &mut found);
        found
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill();
        for mounted in self.mounted.lock().unwrap().drain(..) {
            let _ = umount2(&mounted, MntFlags::MNT_DETACH);
        }
        if std::thread::panicking() {
            stand::tell(&format!("the log of sshd:\n{}", self.log()));
        }
        let _ = fs::remove_dir_all(&self.chroot);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn collect_staging(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_staging(&entry.path(), found);
        } else if entry.file_name().to_string_lossy().starts_with(".staging-") {
            found.push(entry.path());
        }
    }
}

/// The account, created when it is first needed. sshd lets nobody in who is locked: without PAM a password of `!` is.
fn sftp_user() -> User {
    // Test processes may need it at the same time.
    let file = File::create("/tmp/pgkeep-sftp-account.lock").unwrap();
    let _lock = Flock::lock(file, FlockArg::LockExclusive).unwrap();
    if let Some(user) = User::from_name(USER).unwrap() {
        return user;
    }
    let mut command = Command::new("useradd");
    command.args([
        "--system",
        "--no-create-home",
        "--shell",
        "/usr/sbin/nologin",
        "--password",
        "*",
        USER,
    ]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "useradd: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    User::from_name(USER).unwrap().expect("it has just been created")
}

fn keygen(path: &Path) {
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "a test", "-f"])
        .arg(path);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "ssh-keygen: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// The processes below one.
fn descendants(above: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold anything.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = vec![above];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, above)| *above == parent).map(|(pid, _)| pid));
        at += 1;
    }
    found.split_off(1)
}

/// Ends the servers of test processes that were killed, and removes what they left.
fn sweep() {
    for entry in fs::read_dir(CHROOTS).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name
            .strip_prefix(&format!("{USER}."))
            .and_then(|rest| rest.split('.').next())
        else {
            continue;
        };
        if Path::new("/proc").join(owner).exists() {
            continue;
        }
        let pid = fs::read_to_string(entry.path().join("pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse::<i32>() {
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // The number may belong to another program by now.
            if words.contains(&name) {
                let sessions = descendants(pid);
                for pid in std::iter::once(pid).chain(sessions) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        let _ = umount2(&entry.path().join("backups"), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(entry.path());
    }
}
