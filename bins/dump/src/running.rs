//! Runs pg_dump and pg_dumpall, and reads what they write to the end while it is stored.

use std::io::{BufReader, Read, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::time::Instant;

use common::codec::FrameWriter;
use common::error::{Context, Error, Kind, Result};
use common::interrupt;
use common::postgres::archive::{self, Archive};
use common::postgres::{Client, ConnectionSettings, Programs};
use common::progress::Progress;
use common::repository::writer::Copies;

use crate::refusal;

/// What is read in one piece, in bytes.
const PIECE_BYTES: usize = 128 << 10;

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
    out: &'a mut FrameWriter<Copies<'c>>,
    checker: Option<ChildStdin>,
    taken: u64,
    progress: Option<Progress>,
}

impl<R: Read> Read for Tee<'_, '_, R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        interrupt::check()?;
        let count = self.source.read(into)?;
        let piece = into.get(..count).unwrap_or_default();
        self.out.write_all(piece)?;
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
        let unread = checking.child().stdout.take();
        let swallow = std::thread::spawn(move || unread.map(|mut said| std::io::copy(&mut said, &mut std::io::sink())));
        let mut out = FrameWriter::new(copies, self.level)?;
        let source = dumping.child().stdout.take();
        let source = source.ok_or_else(|| Error::new(Kind::Failed, "pg_dump has no output"))?;
        let tee = Tee {
            source,
            out: &mut out,
            checker: checking.child().stdin.take(),
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
            let _ = dumping.child().kill();
            let _ = checking.child().kill();
            return scanned;
        }
        expect_success(&mut dumping, "pg_dump", database)?;
        expect_success(&mut checking, "pg_restore, which read the dump", database)?;
        let _ = swallow.join();
        let archive = scanned.map_err(|error| error.context(format!("read the dump of database \"{database}\"")))?;
        let plain = out.position();
        out.finish()?.0.finish(plain)?;
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
        let mut out = FrameWriter::new(copies, self.level)?;
        let source = dumping.child().stdout.take();
        let mut source = source.ok_or_else(|| Error::new(Kind::Failed, "pg_dumpall has no output"))?;
        std::io::copy(&mut source, &mut out).context(|| "store roles and tablespaces")?;
        drop(source);
        expect_success(&mut dumping, "pg_dumpall --globals-only", "postgres")?;
        let plain = out.position();
        out.finish()?.0.finish(plain)?;
        Ok(plain)
    }

    fn start(&self, program: &str, arguments: &[String], database: Option<&str>, stdin: Stdio) -> Result<Client> {
        let mut command = Command::new(self.programs.program(program));
        command.args(arguments).stdin(stdin).stdout(Stdio::piped());
        if let Some(database) = database {
            self.connection.reach(&mut command, database);
            command.env("PGAPPNAME", "pgkeep-dump");
        }
        Client::start(command)
    }
}

/// What programs say when they fail.
const WEIGHTY: [&str; 7] = ["error", "ERROR", "FATAL", "PANIC", "DETAIL", "detail", "failed"];

fn expect_success(client: &mut Client, what: &str, database: &str) -> Result<()> {
    match client.failure(&WEIGHTY)? {
        None => Ok(()),
        Some((status, said)) => Err(refusal::of(what, database, status, said)),
    }
}
