//! A PostgreSQL that nobody reaches and that reaches nobody, on a directory that was restored.
//!
//! Nothing of the configuration that was restored is read but postgresql.auto.conf, which cannot be passed over and holds what
//! pgkeep-restore wrote; the command line comes last and wins over it (`src/backend/utils/misc/guc.c`, 13 to 18). Recovery needs hot
//! standby off: then settings that a standby must have at least do not matter (`CheckRequiredParameterValues`,
//! `src/backend/access/transam/xlogrecovery.c`), and the first connection comes after the end of recovery.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::config::RestoreTest;
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::postgres::{ConnectionSettings, ControlFile, Major, Programs, Session};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The port is part of the socket's name, nothing else.
const PORT: u16 = 5432;

/// How often is asked whether recovery has ended.
const ROUND: Duration = Duration::from_millis(50);

/// How long a server may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(300);

/// A running scratch server. Dropped, it is ended at once; so it is when a signal comes or the time is over, whatever is being asked
/// of it.
pub struct ScratchServer {
    child: Arc<Mutex<Option<Child>>>,
    deadline: Instant,
    data: PathBuf,
    log: PathBuf,
    sockets: tempfile::TempDir,
    user: String,
}

/// What keeps the server apart, and what it needs to replay; on the command line, so that nothing that was restored comes after it.
fn settings(
    major: Major,
    control: &ControlFile,
    asked: &RestoreTest,
    sockets: &str,
    jobs: usize,
) -> Vec<(&'static str, String)> {
    let text = |value: &str| value.to_owned();
    let mut settings = vec![
        ("listen_addresses", text("")),
        ("unix_socket_directories", text(sockets)),
        ("unix_socket_permissions", text("0700")),
        ("port", PORT.to_string()),
        ("ssl", text("off")),
        ("external_pid_file", text("")),
        // Nothing leaves.
        ("archive_mode", text("off")),
        ("archive_command", text("")),
        ("archive_cleanup_command", text("")),
        ("recovery_end_command", text("")),
        ("primary_conninfo", text("")),
        ("primary_slot_name", text("")),
        ("max_wal_senders", text("0")),
        ("max_logical_replication_workers", text("0")),
        ("synchronous_standby_names", text("")),
        ("shared_preload_libraries", asked.preload.clone()),
        ("session_preload_libraries", text("")),
        ("local_preload_libraries", text("")),
        ("autovacuum", text("off")),
        // Nothing stays: what a power cut takes is restored again.
        ("fsync", text("off")),
        ("synchronous_commit", text("off")),
        ("full_page_writes", text("off")),
        // Replay.
        ("restart_after_crash", text("off")),
        ("hot_standby", text("off")),
        ("recovery_min_apply_delay", text("0")),
        (
            "max_prepared_transactions",
            control.max_prepared_xacts.max(256).to_string(),
        ),
        (
            "max_locks_per_transaction",
            control.max_locks_per_xact.max(256).to_string(),
        ),
        ("max_worker_processes", text("8")),
        // Origins of subscriptions are replayed: too few of them would end recovery.
        ("max_replication_slots", text("1000")),
        // Little memory, beside a server at work.
        ("shared_buffers", text("128MB")),
        ("huge_pages", text("off")),
        ("max_connections", (jobs + 10).to_string()),
        ("maintenance_work_mem", text("128MB")),
        ("jit", text("off")),
        ("temp_tablespaces", text("")),
        // Words.
        ("logging_collector", text("off")),
        ("log_destination", text("stderr")),
        ("log_line_prefix", text("%m [%p] ")),
        ("log_statement", text("none")),
        ("log_min_messages", text("log")),
        ("lc_messages", text("C")),
    ];
    if major >= Major::V15 {
        settings.push(("archive_library", text("")));
    }
    if major >= Major::V17 {
        settings.extend([
            ("event_triggers", text("off")),
            ("summarize_wal", text("off")),
            ("sync_replication_slots", text("off")),
        ]);
    }
    if major >= Major::V18 {
        settings.push(("max_active_replication_origins", text("1000")));
    }
    settings
}

impl ScratchServer {
    /// Starts a server on `data`, below `root`, and returns while it recovers.
    ///
    /// # Errors
    /// `Config` if there are no programs of its version; what starting gave.
    pub fn start(
        root: &Path,
        data: &Path,
        programs: &Programs,
        control: &ControlFile,
        (asked, jobs, deadline): (&RestoreTest, usize, Instant),
    ) -> Result<Self> {
        // A socket's path may have 107 bytes: it cannot lie below just any directory.
        let sockets = tempfile::Builder::new()
            .prefix("pgkeep-")
            .tempdir()
            .context(|| "make a directory for the socket")?;
        let own = |name: &str, content: &str| -> Result<PathBuf> {
            let path = root.join(name);
            crate::durable::replace_unsynced(&path, content.as_bytes(), 0o600)?;
            Ok(path)
        };
        let hba = own("pg_hba.conf", "local all all trust\n")?;
        let ident = own("pg_ident.conf", "")?;
        let config = own("postgresql.conf", "")?;
        let log = root.join("server.log");
        let file = File::create(&log).context(|| format!("create {}", log.display()))?;
        let errors = file.try_clone().context(|| format!("open {}", log.display()))?;
        let mut command = Command::new(programs.program("postgres"));
        command.arg("-D").arg(data);
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        for (name, path) in [("config_file", &config), ("hba_file", &hba), ("ident_file", &ident)] {
            set(name, &path.to_string_lossy());
        }
        let place = sockets.path().to_string_lossy().into_owned();
        for (name, value) in settings(control.major, control, asked, &place, jobs) {
            set(name, &value);
        }
        // Its own group: what a terminal sends ends this program, and this program ends the server.
        command.process_group(0).current_dir(data);
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        for variable in [
            "PGDATA",
            "PGPORT",
            "PGHOST",
            "PGUSER",
            "PGDATABASE",
            "PGOPTIONS",
            "NOTIFY_SOCKET",
        ] {
            command.env_remove(variable);
        }
        let child = command
            .spawn()
            .context(|| format!("start {}", programs.program("postgres").display()))?;
        let child = Arc::new(Mutex::new(Some(child)));
        end_in_time(Arc::downgrade(&child), deadline);
        Ok(Self {
            child,
            deadline,
            data: data.to_owned(),
            log,
            sockets,
            user: asked.user.clone(),
        })
    }

    /// Waits until recovery has ended, and returns the first session.
    ///
    /// # Errors
    /// `Failed` with the server's last words if it ends, `Transient` if the time is over.
    pub fn wait_ready(&self) -> Result<Session> {
        loop {
            interrupt::check()?;
            if let Some(status) = self.ended()? {
                self.check_time()
                    .map_err(|error| error.because("recovery had not ended"))?;
                return Err(self.failure(&format!("the server ended before recovery did ({status})")));
            }
            match self.connect("postgres").or_else(|_| self.connect("template1")) {
                Ok(session) => return Ok(session),
                Err(error) if error.kind() != Kind::Transient => return Err(error),
                Err(_) => sleep(ROUND),
            }
        }
    }

    /// Fails where the time is over: then the server has been ended.
    ///
    /// # Errors
    /// `Failed`.
    pub fn check_time(&self) -> Result<()> {
        match Instant::now() < self.deadline {
            true => Ok(()),
            false => Err(Error::new(Kind::Failed, "it did not end within time_limit")
                .hint("raise time_limit in the cluster's restore_test table")),
        }
    }

    /// Connects to a database.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub fn connect(&self, database: &str) -> Result<Session> {
        Session::connect(&self.connection().with_database(database))
    }

    /// How a program connects.
    pub fn connection(&self) -> ConnectionSettings {
        ConnectionSettings {
            host: Some(self.sockets.path().to_string_lossy().into_owned()),
            port: Some(PORT),
            user: Some(self.user.clone()),
            ..ConnectionSettings::default()
        }
    }

    /// How a person connects.
    pub fn reach(&self) -> String {
        format!("psql -h {} -p {PORT} -U {}", self.sockets.path().display(), self.user)
    }

    /// Stops it with a checkpoint.
    ///
    /// # Errors
    /// `Failed` if it does not stop, or not well.
    pub fn stop(&self) -> Result<()> {
        signal(&self.child, Signal::SIGINT);
        let begun = Instant::now();
        while begun.elapsed() < STOP_LIMIT {
            interrupt::check()?;
            if let Some(status) = self.ended()? {
                return match status.success() {
                    true => Ok(()),
                    false => Err(self.failure(&format!("the server did not stop well ({status})"))),
                };
            }
            sleep(ROUND);
        }
        Err(self.failure("the server did not stop"))
    }

    /// Leaves it running.
    pub fn leave(mut self) {
        drop(lock(&self.child).take());
        self.sockets.disable_cleanup(true);
    }

    fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut held = lock(&self.child);
        let Some(child) = held.as_mut() else { return Ok(None) };
        let status = child.try_wait().context(|| "wait for the server")?;
        if status.is_some() {
            *held = None;
        }
        Ok(status)
    }

    /// An error with what the server said last that was not just talk.
    fn failure(&self, what: &str) -> Error {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let weighty = ["FATAL:", "PANIC:", "ERROR:", "HINT:", "DETAIL:", "could not", "invalid"];
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| weighty.iter().any(|word| line.contains(word)) && !line.contains("the database system is"))
            .collect();
        let last = lines.get(lines.len().saturating_sub(4)..).unwrap_or(&lines).join("; ");
        let error = Error::new(Kind::Failed, what);
        if last.is_empty() { error } else { error.because(last) }
    }
}

fn lock(child: &Mutex<Option<Child>>) -> MutexGuard<'_, Option<Child>> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As long as it has not been waited for, the number is its own.
fn signal(child: &Mutex<Option<Child>>, signal: Signal) {
    let held = lock(child);
    if let Some(pid) = held.as_ref().and_then(|child| i32::try_from(child.id()).ok()) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Ends the server when a signal comes or the time is over: whoever waits for an answer then gets an error.
fn end_in_time(child: Weak<Mutex<Option<Child>>>, deadline: Instant) {
    std::thread::spawn(move || {
        while let Some(held) = child.upgrade() {
            if interrupt::caught().is_some() || Instant::now() >= deadline {
                signal(&held, Signal::SIGQUIT);
                return;
            }
            drop(held);
            sleep(ROUND);
        }
    });
}

impl Drop for ScratchServer {
    fn drop(&mut self) {
        signal(&self.child, Signal::SIGQUIT);
        let Some(mut child) = lock(&self.child).take() else {
            return;
        };
        let _ = child.wait();
        log::debug!("the server on {} is ended", self.data.display());
    }
}
