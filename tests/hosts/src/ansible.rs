//! Playbooks, run on the machine that looks after the hosts, as an administrator runs them: over ssh.
//!
//! ```no_run
//! # use host_tests::{Ansible, Lab};
//! # let Some(lab) = Lab::need("an_example", &["bookworm"]) else { return };
//! # let host = lab.host("db1", "bookworm");
//! let Some(ansible) = Ansible::need(&lab) else { return };
//! ansible.inventory(&[&host], &serde_json::json!({ "pgkeep_hosts": { "hosts": { "db1": {} }, "vars": {} } }));
//! ansible.run("ansible/playbooks/site.yml", &[]);
//! assert_eq!(ansible.run("ansible/playbooks/site.yml", &[])["db1"].changed, 0);
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use system_tests::Tool;

use crate::{Host, Lab};
use system_tests::project;

/// A playbook installs packages, restarts servers and takes backups.
const LONG: Duration = Duration::from_secs(1200);

/// What the end of a play says of one host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tasks that ended well, those that changed something among them.
    pub ok: u32,
    /// Tasks that changed something.
    pub changed: u32,
    /// Tasks for which the host was not reached.
    pub unreachable: u32,
    /// Tasks that failed.
    pub failed: u32,
    /// Tasks that were not for this host.
    pub skipped: u32,
    /// Tasks that failed and were rescued.
    pub rescued: u32,
    /// Tasks whose failure did not matter.
    pub ignored: u32,
}

/// The counts by the name of a host.
pub type Recap = BTreeMap<String, Counts>;

/// Ansible with an inventory of hosts of a [`Lab`], and the project's collection.
#[derive(Debug)]
pub struct Ansible<'lab> {
    lab: &'lab Lab,
    programs: PathBuf,
    place: PathBuf,
}

impl<'lab> Ansible<'lab> {
    /// Finds Ansible, or says that the calling test is skipped.
    pub fn need(lab: &'lab Lab) -> Option<Ansible<'lab>> {
        let programs = system_tests::ansible::need()?;
        let place = lab.scratch.path("ansible");
        fs::create_dir_all(place.join("cp")).unwrap();
        Some(Ansible { lab, programs, place })
    }

    /// Says which hosts there are, and the groups: what YAML has below `children`, as JSON.
    pub fn inventory(&self, hosts: &[&Host], groups: &Value) {
        let reached: serde_json::Map<String, Value> = hosts
            .iter()
            .map(|host| (host.name.clone(), json!({ "ansible_host": host.address })))
            .collect();
        let all = json!({ "all": { "hosts": reached, "children": groups } });
        fs::write(self.place.join("inventory.yml"), format!("{all:#}\n")).unwrap();
    }

    /// Writes a playbook of the test's own; returns what [`run`](Self::run) takes.
    pub fn playbook(&self, name: &str, plays: &Value) -> String {
        let path = self.place.join(name);
        fs::write(&path, format!("{plays:#}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs a playbook, a path below the project's root, with more arguments; expects that no task fails.
    pub fn run(&self, playbook: &str, extra: &[&str]) -> Recap {
        recap(&self.plays(playbook, extra).run().expect_code(0).stdout)
    }

    /// The same, for a test that expects something else.
    pub fn plays(&self, playbook: &str, extra: &[&str]) -> Tool {
        self.tool("ansible-playbook")
            .arg("-i")
            .arg(self.place.join("inventory.yml"))
            .args(extra)
            .arg(project(playbook))
    }

    /// Runs it where everything is as it wants it: no host is changed.
    pub fn run_unchanged(&self, playbook: &str, extra: &[&str]) {
        let recap = self.run(playbook, extra);
        for (host, counts) in &recap {
            assert_eq!((counts.changed, counts.failed), (0, 0), "{host}: {recap:?}");
        }
    }

    /// One of Ansible's programs, with the collection and the key to the hosts.
    pub fn tool(&self, program: &str) -> Tool {
        let tool = self.lab.tool(self.programs.join(program)).timeout(LONG);
        system_tests::ansible::set_up(tool, &self.programs, &self.place)
            .env("ANSIBLE_PRIVATE_KEY_FILE", self.lab.scratch.path("ssh_key"))
            .env("ANSIBLE_REMOTE_USER", "root")
            .env("ANSIBLE_HOST_KEY_CHECKING", "False")
            .env("ANSIBLE_PYTHON_INTERPRETER", "/usr/bin/python3")
            .env("ANSIBLE_PIPELINING", "True")
            .env("ANSIBLE_SSH_CONTROL_PATH_DIR", self.place.join("cp"))
    }
}

impl Drop for Ansible<'_> {
    fn drop(&mut self) {
        // Connections that are kept for the next task outlive a playbook.
        let sockets = self.place.join("cp");
        let end = "for socket in \"$0\"/*; do [ -S \"$socket\" ] && ssh -O exit -o ControlPath=\"$socket\" host; done";
        let _ = std::process::Command::new("sh")
            .args(["-c", end])
            .arg(&sockets)
            .stderr(std::process::Stdio::null())
            .status();
    }
}

/// Reads the counts from the last lines of a run.
pub fn recap(said: &str) -> Recap {
    let lines = said.lines().skip_while(|line| !line.starts_with("PLAY RECAP"));
    let mut found = Recap::new();
    for line in lines.skip(1) {
        let Some((host, numbers)) = line.split_once(" : ").or_else(|| line.split_once(": ")) else {
            continue;
        };
        let of = |name: &str| {
            let words = numbers.split_whitespace().filter_map(|word| word.split_once('='));
            let number = words
                .filter(|(word, _)| *word == name)
                .find_map(|(_, n)| n.parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {line:?}"))
        };
        let counts = Counts {
            ok: of("ok"),
            changed: of("changed"),
            unreachable: of("unreachable"),
            failed: of("failed"),
            skipped: of("skipped"),
            rescued: of("rescued"),
            ignored: of("ignored"),
        };
        found.insert(host.trim().to_owned(), counts);
    }
    assert!(!found.is_empty(), "no host was played on:\n{said}");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_last_lines() {
        let read = recap(
            "TASK [x]\nok: [db1]\n\nPLAY RECAP *********\n\
                      db1                        : ok=12   changed=3    unreachable=0    failed=0    skipped=4    rescued=0    ignored=0   \n\
                      a-very-long-name-of-a-host : ok=1    changed=0    unreachable=1    failed=0    skipped=0    rescued=0    ignored=0   \n\n",
        );
        assert_eq!((read["db1"].ok, read["db1"].changed, read["db1"].skipped), (12, 3, 4));
        assert_eq!(read["a-very-long-name-of-a-host"].unreachable, 1);
    }
}
