//! Load, by Debian's pgbench 15 against any version.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::output_file;
use crate::stand::debian_program;
use crate::wait::{PATIENCE, wait_until};
use crate::{Cluster, account};

impl Cluster {
    /// Fills the database postgres with pgbench's tables: 100,000 accounts, about 15 MB, per unit of scale.
    pub fn pgbench_init(&self, scale: u32) {
        let mut load = self.pgbench(&["-i", "-q", "-s", &scale.to_string()]);
        load.finish();
    }

    /// Runs transactions and returns how many were committed.
    pub fn pgbench_run(&self, clients: u32, transactions_each: u32) -> u64 {
        self.pgbench(&["-n", "-c", &clients.to_string(), "-t", &transactions_each.to_string()])
            .wait()
    }

    /// Runs transactions for some seconds, while the test goes on.
    pub fn pgbench_background(&self, clients: u32, seconds: u32) -> Load {
        self.pgbench(&["-n", "-c", &clients.to_string(), "-T", &seconds.to_string()])
    }

    /// Runs pgbench with arguments of the test's choice.
    pub fn pgbench(&self, arguments: &[&str]) -> Load {
        static RUNS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let name = format!("pgbench{}.log", RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let output = output_file(self.scratch(), &name);
        let mut command = Command::new(debian_program("pgbench"));
        command
            .arg("-h")
            .arg(self.socket_dir())
            .args(["-p", &self.port().to_string(), "-U", "postgres"]);
        command
            .args(arguments)
            .arg("postgres")
            .env_clear()
            .env("PATH", crate::tool::PATH)
            .current_dir("/");
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = account::run_as(&mut command).spawn().unwrap();
        Load {
            child,
            output: self.scratch().path(&name),
        }
    }
}

/// A running pgbench; dropping it ends it.
#[derive(Debug)]
pub struct Load {
    child: Child,
    output: PathBuf,
}

impl Load {
    /// Waits until it has done what it was asked, and returns how many transactions it committed.
    pub fn wait(mut self) -> u64 {
        let output = self.finish();
        let line = output
            .lines()
            .find(|line| line.starts_with("number of transactions actually processed"));
        let number = line.and_then(|line| line.split(':').nth(1)?.split('/').next()?.trim().parse().ok());
        number.unwrap_or_else(|| panic!("pgbench said nothing of transactions\n{output}"))
    }

    /// Ends it early. Whatever it says of that does not matter; but what its sessions were about to commit is committed, or not, when
    /// this returns: they live a moment longer than their client.
    pub fn stop(self, cluster: &Cluster) {
        drop(self);
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
        wait_until("the sessions of pgbench are gone", PATIENCE, || {
            cluster.query_one(sessions) == "0"
        });
    }

    fn finish(&mut self) -> String {
        let status = self.child.wait().unwrap();
        let output = fs::read_to_string(&self.output).unwrap();
        assert!(status.success(), "pgbench: {status}\n{output}");
        output
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}
