//! A PostgreSQL cluster of a test: created or adopted, started, asked, stopped, killed.
//!
//! Knows how to run a server as a child of the test, on a socket in the scratch directory and on no network. Promises
//! that it is ready when `start` returns and gone when the cluster is dropped. A step that fails, fails the test and
//! shows the end of the server's log. Leaves archiving and backups to [`crate::site`].

pub mod session;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{PATIENCE, holds_within, wait_until};
use crate::{Scratch, Server, account};

/// How a cluster is created.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of a WAL segment, 1 to 1024, a power of two.
    pub segment_size_mb: u32,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// Whether the server syncs. Tests that do not cut the power need not wait for disks.
    pub fsync: bool,
    /// More arguments for initdb.
    pub initdb: Vec<String>,
    /// More lines for postgresql.conf.
    pub conf: Vec<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_size_mb: 16,
            checksums: true,
            fsync: false,
            initdb: Vec::new(),
            conf: Vec::new(),
        }
    }
}

/// How a server is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// When all sessions have ended.
    Smart,
    /// Sessions are ended; a checkpoint is written.
    Fast,
    /// At once, without a checkpoint: recovery follows at the next start.
    Immediate,
}

/// A cluster, running or not.
#[derive(Debug)]
pub struct Cluster {
    server: Server,
    scratch: Scratch,
    data: PathBuf,
    log: PathBuf,
    port: u16,
    /// Settings on the server's command line, where the configuration is not ours.
    overrides: Vec<String>,
    process: Mutex<Option<Child>>,
}

impl Cluster {
    /// Runs initdb below `scratch` and writes the settings; starts nothing.
    pub fn create(scratch: &Scratch, server: &Server, options: Options) -> Cluster {
        let number = scratch.next_cluster();
        let data = scratch.create_dir(&format!("cluster{number}")).join("data");
        let mut cluster = Cluster::at(scratch, server, data, number);
        cluster.overrides.clear();
        cluster.initdb(&options);
        cluster.conf(&cluster.placement());
        cluster.conf(&[
            format!("fsync = {}", if options.fsync { "on" } else { "off" }),
            "shared_buffers = 32MB".into(),
            "max_connections = 40".into(),
            "log_line_prefix = '%m [%p] %q%a '".into(),
            "log_checkpoints = on".into(),
        ]);
        cluster.conf(&options.conf);
        cluster
    }

    /// [`Cluster::create`], started.
    pub fn started(scratch: &Scratch, server: &Server, options: Options) -> Cluster {
        let cluster = Cluster::create(scratch, server, options);
        cluster.start();
        cluster
    }

    /// Takes over a data directory that something else made (a restore); starts nothing and changes no file.
    pub fn adopt(scratch: &Scratch, server: &Server, data: &Path) -> Cluster {
        Cluster::at(scratch, server, data.to_path_buf(), scratch.next_cluster())
    }

    fn at(scratch: &Scratch, server: &Server, data: PathBuf, number: u32) -> Cluster {
        let log = scratch.path(&format!("cluster{number}.log"));
        let port = 5500 + u16::try_from(number).expect("a test has a few clusters");
        let mut cluster = Cluster {
            server: server.clone(),
            scratch: scratch.clone(),
            data,
            log,
            port,
            overrides: Vec::new(),
            process: Mutex::new(None),
        };
        let socket = cluster.socket_dir().join(format!(".s.PGSQL.{port}"));
        let length = socket.as_os_str().len();
        assert!(
            length <= 107,
            "{}: {length} bytes are too long for a socket; set PGKEEP_SCRATCH",
            socket.display()
        );
        cluster.overrides = cluster.placement();
        cluster
            .overrides
            .extend(["fsync = off".into(), "logging_collector = off".into()]);
        cluster
    }

    /// Where the server may be met: only on its own socket.
    fn placement(&self) -> Vec<String> {
        vec![
            "listen_addresses = ''".into(),
            format!("port = {}", self.port),
            format!("unix_socket_directories = '{}'", self.socket_dir().display()),
        ]
    }

    fn initdb(&self, options: &Options) {
        let mut command = Command::new(self.server.program("initdb"));
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]);
        command.arg(format!("--wal-segsize={}", options.segment_size_mb));
        match (options.checksums, self.server.major) {
            (true, _) => _ = command.arg("--data-checksums"),
            (false, 18..) => _ = command.arg("--no-data-checksums"),
            (false, _) => {}
        }
        command.args(&options.initdb);
        let output = in_clean_environment(account::run_as(&mut command)).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    }

    /// The programs that run this cluster.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The scratch directory it was given.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory of its socket: what a connection calls `host`.
    pub fn socket_dir(&self) -> PathBuf {
        self.scratch.create_dir("s")
    }

    /// The number in its socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Appends lines to postgresql.conf; they hold from the next start or [`Cluster::reload`].
    pub fn conf<L: AsRef<str>>(&self, lines: &[L]) {
        let path = self.data.join("postgresql.conf");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        for line in lines {
            writeln!(file, "{}", line.as_ref()).unwrap();
        }
    }

    /// Everything the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Starts the server and waits until it answers.
    pub fn start(&self) {
        self.start_without_waiting();
        self.wait_ready(PATIENCE);
    }

    /// Starts the server, for recoveries that take time or are meant to fail.
    pub fn start_without_waiting(&self) {
        assert!(!self.is_running(), "the cluster is running already");
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(self.server.program("postgres"));
        command.arg("-D").arg(&self.data);
        for line in &self.overrides {
            let (name, value) = line.split_once(" = ").expect("an override is `name = value`");
            command.arg("-c").arg(format!("{name}={}", value.trim_matches('\'')));
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        in_clean_environment(account::run_as(&mut command)).env("PATH", self.scratch.path_variable());
        *self.process() = Some(command.spawn().unwrap());
    }

    /// Waits until the server takes connections.
    pub fn wait_ready(&self, timeout: Duration) {
        let ready = holds_within(timeout, || !self.is_running() || self.try_client("postgres").is_ok());
        assert!(self.is_running(), "the server ended\n{}", self.log_end());
        assert!(ready, "the server is not ready after {timeout:?}\n{}", self.log_end());
    }

    /// Waits until the server ends by itself, as one does that cannot recover.
    pub fn wait_exit(&self, timeout: Duration) -> ExitStatus {
        let mut process = self.process();
        let child = process.as_mut().expect("the cluster was started");
        let mut status = None;
        let ended = holds_within(timeout, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        assert!(
            ended,
            "the server is still running after {timeout:?}\n{}",
            self.log_end()
        );
        *process = None;
        status.expect("it ended")
    }

    /// Whether the server's first process lives.
    pub fn is_running(&self) -> bool {
        self.process()
            .as_mut()
            .is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// The process number of the server's first process.
    pub fn pid(&self) -> u32 {
        self.process().as_ref().expect("the cluster was started").id()
    }

    /// Stops the server and waits until it is gone.
    pub fn stop(&self, how: Stop) {
        self.signal(match how {
            Stop::Smart => Signal::SIGTERM,
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        });
        self.wait_exit(PATIENCE * 2);
    }

    /// Stops fast and starts again.
    pub fn restart(&self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Kills the server with all its backends, as a crash of the machine does. A command it was running (archiving) may
    /// go on for a while, as it does after a real `kill -9`.
    pub fn kill9(&self) {
        let children = children_of(self.pid());
        self.signal(Signal::SIGKILL);
        self.wait_exit(PATIENCE);
        for child in &children {
            // It may have noticed and gone.
            let _ = kill(*child, Signal::SIGKILL);
        }
        wait_until("the killed server's backends are gone", PATIENCE, || {
            !children.iter().any(is_alive)
        });
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("process numbers are below 2^22");
        kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("{signal}: {error}\n{}", self.log_end()));
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Ok(process) = self.process.get_mut() else { return };
        if let Some(child) = process {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            }
            if !holds_within(Duration::from_secs(10), || !matches!(child.try_wait(), Ok(None))) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn in_clean_environment(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("PATH", crate::tool::PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
}

/// State and parent of a process; the name before them may hold anything but ends with the last parenthesis.
fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Vec<Pid> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = pids.filter(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent));
    children
        .filter_map(|pid| i32::try_from(pid).ok())
        .map(Pid::from_raw)
        .collect()
}

/// Whether a process runs; one that only waits to be reaped does not.
fn is_alive(pid: &Pid) -> bool {
    let pid = u32::try_from(pid.as_raw()).unwrap_or_default();
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z')
}

/// Opens a file for a child's output, beside the servers' logs.
pub(crate) fn output_file(scratch: &Scratch, name: &str) -> File {
    File::create(scratch.path(name)).unwrap()
}
