//! A client program of PostgreSQL's that runs: pg_dump, pg_restore, psql.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;

use crate::error::{Context, Kind, Result};
use crate::process;

/// So many lines of what it said last are kept.
const LAST_LINES: usize = 12;

/// Dropped, it is ended: nobody wants what it does any more.
pub struct Client {
    name: String,
    child: Child,
    said: mpsc::Receiver<Vec<String>>,
}

impl Client {
    /// Starts it. Its words are English, and what it says on stderr is kept.
    ///
    /// # Errors
    /// `Config` if it is not there.
    pub fn start(mut command: Command) -> Result<Self> {
        let path = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stderr(Stdio::piped())
            .env("LC_ALL", "C")
            .spawn()
            .context(|| format!("start {path}"))
            .map_err(|error| {
                error
                    .with_kind(Kind::Config)
                    .hint("the client programs of PostgreSQL are needed: postgresql-client-N")
            })?;
        Ok(Self {
            name: path.rsplit('/').next().unwrap_or(&path).to_owned(),
            said: process::follow(child.stderr.take(), log::Level::Debug, LAST_LINES),
            child,
        })
    }

    /// Its name, without the directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process, for its streams.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for its end; nothing if it was good, else its status and the lines that matter: those with one of `weighty` in them, or
    /// all that were kept if there are none.
    ///
    /// # Errors
    /// What the system says.
    pub fn failure(&mut self, weighty: &[&str]) -> Result<Option<(ExitStatus, String)>> {
        let status = self.child.wait().context(|| format!("wait for {}", self.name))?;
        if status.success() {
            return Ok(None);
        }
        let said = self.said.recv().unwrap_or_default();
        Ok(Some((status, words(&said, weighty))))
    }
}

fn words(said: &[String], weighty: &[&str]) -> String {
    let matters = |line: &&str| weighty.iter().any(|word| line.contains(word));
    let chosen: Vec<&str> = said.iter().map(|line| line.trim()).filter(matters).collect();
    match chosen.is_empty() {
        true => said.join("; "),
        false => chosen.join("; "),
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn its_last_weighty_words_are_told() {
        let shell = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            Client::start(command).unwrap()
        };
        assert_eq!(shell("echo noise >&2").failure(&["error"]).unwrap(), None);
        let told = |script: &str| shell(script).failure(&["error"]).unwrap().unwrap();
        let (status, said) = told("echo noise >&2; echo '  an error' >&2; exit 3");
        assert_eq!((status.code(), said.as_str()), (Some(3), "an error"));
        assert_eq!(told("echo a >&2; echo b >&2; exit 1").1, "a; b");
        let missing = Client::start(Command::new("/nowhere/pg_dump")).err().unwrap();
        assert_eq!(missing.kind(), Kind::Config);
        assert!(missing.to_string().contains("start /nowhere/pg_dump"), "{missing}");
    }
}
