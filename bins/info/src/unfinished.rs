//! Whether a backup without `backup.json` is being made or was left behind.

use std::path::Path;

use common::repository::backup::{self, Intent};
use common::repository::{Label, Repository};

use crate::report::Unfinished;

/// What this host knows of base backups that run on it.
pub struct Running {
    host: String,
    /// The process that took the lock of base backups last.
    process: Option<u32>,
}

impl Running {
    /// Looks into the state directory of the cluster.
    pub fn look(state: &Path, host: String) -> Self {
        let text = std::fs::read_to_string(state.join("base-backup.lock")).ok();
        let process = text.and_then(|text| text.trim().parse().ok());
        Self {
            host,
            // The lock's file stays when its holder has gone.
            process: process.filter(|process: &u32| Path::new("/proc").join(process.to_string()).is_dir()),
        }
    }

    /// Reads what a backup's intent says.
    pub fn describe(&self, repository: &Repository, label: Label) -> Unfinished {
        let intent = backup::read_intent(repository, label).ok();
        Unfinished {
            label: label.to_string(),
            state: self.judge(intent.as_ref()),
            host: intent.as_ref().map(|intent| intent.host.clone()),
            pid: intent.as_ref().map(|intent| intent.pid),
        }
    }

    fn judge(&self, intent: Option<&Intent>) -> &'static str {
        match intent {
            Some(intent) if intent.host != self.host => "unknown",
            Some(intent) if self.process == Some(intent.pid) => "running",
            Some(_) => "left behind",
            None => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_host_that_made_it_knows_whether_it_runs() {
        let intent = |host: &str, pid| Intent {
            format: 1,
            label: "20261120T020000Z-full-3f9a1c".parse().unwrap(),
            host: host.to_owned(),
            pid,
            started: "2026-11-20T02:00:00Z".parse().unwrap(),
            system_identifier: "7".to_owned(),
            leans_on: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id();
        let look = || Running::look(dir.path(), "db1".to_owned());
        assert_eq!(look().judge(Some(&intent("db1", own))), "left behind");
        std::fs::write(dir.path().join("base-backup.lock"), format!("{own}\n")).unwrap();
        assert_eq!(look().judge(Some(&intent("db1", own))), "running");
        assert_eq!(look().judge(Some(&intent("db1", own + 1))), "left behind");
        assert_eq!(look().judge(Some(&intent("db2", own))), "unknown");
        assert_eq!(look().judge(None), "unknown");
        std::fs::write(dir.path().join("base-backup.lock"), "4294967295\n").unwrap();
        assert_eq!(look().judge(Some(&intent("db1", u32::MAX))), "left behind");
    }
}
