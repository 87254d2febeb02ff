//! Runs pg_dump and pg_dumpall, and reads what they write to the end while it is stored.

use std::io::{BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use common::error::{Context, Error, Kind, Result};
use common::interrupt;
use common::postgres::archive::{self, Archive};
use common::postgres::{ConnectionSettings, Programs};
use common::process;
use common::progress::Progress;
use common::repository::dumps::Framed;
use common::repository::writer::Copies;

use crate::refusal;

/// What is read in one piece, in bytes.
const PIECE_BYTES: usize = 128 << 10;
/// So many lines of what a program said last are kept.
const LAST_LINES: usize = 12;

/// The programs, and how they reach the server.
pub struct Clients<'a> {
    /// Where they are.
    pub programs: &'a Programs,
    /// The server.
    pub connection: &'a ConnectionSettings,
    /// zstd's level.
    pub level: i32,
}

/// Passes on what it reads: to the repositories, and to pg_restore, which reads it to the end.
struct Tee<'a, 'c, R> {
    source: R,
    out: &'a mut Framed<Copies<'c>>,
    checker: Option<ChildStdin>,
    taken: u64,
    progress: Option<Progress>,
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        interrupt::check()?;
        let count = self.source.read(into)?;
        let piece = into.get(..count).unwrap_or_default();
        self.out.put(piece)?;
        // Where it has ended early, its own words say why.
        if self
            .checker
            .as_mut()
            .is_some_and(|checker| checker.write_all(piece).is_err())
        {
            self.checker = None;
        }
        self.taken += count as u64;
        if let Some(progress) = &mut self.progress {
            progress.show(self.taken, Instant::now());
        }
        Ok(count)
    }
}

impl Clients<'_> {
    /// Dumps a database into `copies`. What the archive says of itself comes back once pg_restore has read it to the end.
    ///
    /// # Errors
    /// What pg_dump or pg_restore says; `Corrupt` if the archive is not whole; else what storing gave.
    pub fn dump(
        &self,
        database: &str,
        arguments: &[String],
        copies: Copies<'_>,
        progress: Progress,
    ) -> Result<Archive> {
        let mut dumping = self.start("pg_dump", arguments, Some(database), Stdio::null())?;
        let check = ["--file=-".to_owned(), "--format=custom".to_owned()];
        let mut checking = self.start("pg_restore", &check, None, Stdio::piped())?;
        // Its SQL is for nobody.
        let unread = checking.child.stdout.take();
        let swallow = std::thread::spawn(move || unread.map(|mut said| std::io::copy(&mut said, &mut std::io::sink())));
        let mut out = Framed::new(copies, self.level)?;
        let source = dumping.child.stdout.take();
        let source = source.ok_or_else(|| Error::new(Kind::Failed, "pg_dump has no output"))?;
        let tee = Tee {
            source,
            out: &mut out,
            checker: checking.child.stdin.take(),
            taken: 0,
            progress: Some(progress),
        };
        let mut reader = BufReader::with_capacity(PIECE_BYTES, tee);
        let scanned = archive::scan(&mut reader);
        if matches!(&scanned, Err(error) if error.kind() == Kind::Corrupt) {
            // pg_dump must not wait for somebody to read the rest.
            let _ = std::io::copy(&mut reader, &mut std::io::sink());
        }
        drop(reader);
        interrupt::check()?;
        if matches!(&scanned, Err(error) if error.kind() != Kind::Corrupt) {
            // Not to be stored: nobody waits for the end.
            let _ = dumping.child.kill();
            let _ = checking.child.kill();
            return scanned;
        }
        dumping.expect_success("pg_dump", database)?;
        checking.expect_success("pg_restore, which read the dump", database)?;
        let _ = swallow.join();
        let archive = scanned.map_err(|error| error.context(format!("read the dump of database \"{database}\"")))?;
        let (copies, plain) = out.finish()?;
        copies.finish(plain)?;
        Ok(archive)
    }

    /// Dumps roles and tablespaces into `copies`, and returns the length of the SQL in bytes.
    ///
    /// # Errors
    /// As [`Clients::dump`].
    pub fn globals(&self, with_passwords: bool, copies: Copies<'_>) -> Result<u64> {
        let mut arguments = vec!["--globals-only".to_owned(), "--no-password".to_owned()];
        if !with_passwords {
            arguments.push("--no-role-passwords".to_owned());
        }
        let mut dumping = self.start("pg_dumpall", &arguments, Some("postgres"), Stdio::null())?;
        let mut out = Framed::new(copies, self.level)?;
        let mut buffer = vec![0; PIECE_BYTES];
        let mut source = dumping.child.stdout.take();
        while let Some(said) = source.as_mut() {
            let count = said.read(&mut buffer).context(|| "read from pg_dumpall")?;
            if count == 0 {
                source = None;
            }
            out.put(buffer.get(..count).unwrap_or_default())?;
        }
        dumping.expect_success("pg_dumpall --globals-only", "postgres")?;
        let (copies, plain) = out.finish()?;
        copies.finish(plain)?;
        Ok(plain)
    }

    fn start(&self, program: &str, arguments: &[String], database: Option<&str>, stdin: Stdio) -> Result<Running> {
        let path = self.programs.program(program);
        let mut command = Command::new(&path);
        command
            .args(arguments)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Its words are looked at.
        command.env("LC_ALL", "C");
        if let Some(database) = database {
            self.connection.reach(&mut command, database);
            command.env("PGAPPNAME", "pgkeep-dump");
        }
        let mut child = command
            .spawn()
            .context(|| format!("start {}", path.display()))
            .map_err(|error| {
                error
                    .with_kind(Kind::Config)
                    .hint("the client programs of PostgreSQL are needed: postgresql-client-N")
            })?;
        let said = process::follow(child.stderr.take(), log::Level::Debug, LAST_LINES);
        Ok(Running { child, said })
    }
}

struct Running {
    child: Child,
    said: mpsc::Receiver<Vec<String>>,
}

impl Running {
    fn expect_success(&mut self, program: &str, database: &str) -> Result<()> {
        let status = self.child.wait().context(|| format!("wait for {program}"))?;
        match status.success() {
            true => Ok(()),
            false => Err(refusal::of(
                program,
                database,
                status,
                &self.said.recv().unwrap_or_default(),
            )),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, or nobody wants what it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
