//! Runs pg_restore and psql, and moves bytes between them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::error::{Context, Error, Kind, Result};
use common::postgres::{Client, ConnectionSettings, Programs};

use crate::fetch::Source;
use crate::script::{self, Frame};

/// Lines at the head of a script in which settings are looked at.
const HEAD_LINES: usize = 60;

/// The programs, and how they reach the server.
pub struct Clients<'a> {
    /// Where they are.
    pub programs: &'a Programs,
    /// The server and the database; nothing where SQL is written into a file.
    pub server: Option<(&'a ConnectionSettings, &'a str)>,
    /// What pg_restore is told in every case.
    pub options: Vec<String>,
}

impl Clients<'_> {
    /// Restores a whole archive with several sessions, by way of a file.
    ///
    /// # Errors
    /// What pg_restore says, or the repository; what writing the file gave.
    pub fn whole_in_parallel(&self, source: &mut Source, jobs: usize) -> Result<()> {
        let (_, database) = self.server()?;
        let mut file = tempfile::NamedTempFile::new().context(|| "create a file in TMPDIR")?;
        let length = source.length();
        source.copy(&[(0, length)], &mut file)?.context(|| {
            format!(
                "write {}, which has to hold the whole dump: set TMPDIR, or leave out --jobs",
                file.path().display()
            )
        })?;
        let mut command = self.pg_restore(&["--format=custom", "--exit-on-error"]);
        command
            .arg(format!("--jobs={jobs}"))
            .arg(format!("--dbname={}", database_argument(database)))
            .arg(file.path());
        let mut restoring = self.start(command)?;
        drop(restoring.child().stdin.take());
        expect_success(&mut restoring).map_err(|error| {
            match common::error::chain(&error).contains("unrecognized configuration parameter") {
                true => error.hint(
                    "pg_restore is newer than the server: install the programs of its version, or leave out --jobs",
                ),
                false => error,
            }
        })
    }

    /// Writes all of an archive, or some entries within their frame, as SQL.
    ///
    /// # Errors
    /// What pg_restore says, the repository, or writing.
    pub fn to_sql(&self, source: &mut Source, part: Option<&Part<'_>>, out: &mut dyn Write, server: u32) -> Result<()> {
        let whole = [(0, source.length())];
        let parts = part.map_or(&whole[..], |part| part.parts);
        if let Some(part) = part {
            write(out, part.frame.before.as_bytes())?;
        }
        let list = part.map(|part| list_file(part.chosen)).transpose()?;
        self.sql(
            source,
            parts,
            list.as_ref().map(tempfile::NamedTempFile::path),
            out,
            server,
        )?;
        match part {
            Some(part) => write(out, part.frame.after.as_bytes()),
            None => Ok(()),
        }
    }

    /// Restores all of an archive, or some entries in one transaction: it ends with the last words of the frame, and whatever goes
    /// wrong before, the server takes everything back.
    ///
    /// # Errors
    /// What pg_restore or psql say, or the repository.
    pub fn restore(&self, source: &mut Source, part: Option<&Part<'_>>, server: u32) -> Result<()> {
        let mut command = Command::new(self.programs.program("psql"));
        command.args([
            "--no-psqlrc",
            "--quiet",
            "--no-password",
            "--set=ON_ERROR_STOP=1",
            "--output=/dev/null",
            "--file=-",
        ]);
        let mut psql = self.start(command)?;
        let mut into = psql
            .child()
            .stdin
            .take()
            .ok_or_else(|| Error::new(Kind::Failed, "psql has no input"))?;
        let written = self.to_sql(source, part, &mut into, server);
        drop(into);
        // Where psql gave up, its words say more than the broken pipe.
        expect_success(&mut psql)?;
        written
    }

    fn sql(
        &self,
        source: &mut Source,
        parts: &[(u64, u64)],
        list: Option<&Path>,
        out: &mut dyn Write,
        server: u32,
    ) -> Result<()> {
        let mut command = self.pg_restore(&["--format=custom", "--file=-"]);
        if let Some(list) = list {
            command.arg("--use-list").arg(list);
        }
        command.stdout(Stdio::piped());
        let mut restoring = self.start(command)?;
        let said = restoring
            .child()
            .stdout
            .take()
            .ok_or_else(|| Error::new(Kind::Failed, "pg_restore has no output"))?;
        let mut stdin = restoring.child().stdin.take();
        let (fed, passed) = std::thread::scope(|scope| {
            let feeding = scope.spawn(|| {
                let mut into = stdin.take();
                match into.as_mut() {
                    Some(into) => source.copy(parts, into).map(drop),
                    None => Ok(()),
                }
            });
            let passed = pass_on(said, out, server);
            let fed = feeding
                .join()
                .unwrap_or_else(|_| Err(Error::new(Kind::Failed, "a thread ended early")));
            (fed, passed)
        });
        fed?;
        passed?;
        expect_success(&mut restoring)
    }

    fn server(&self) -> Result<(&ConnectionSettings, &str)> {
        self.server
            .ok_or_else(|| Error::new(Kind::Config, "no database is named").hint("--into DATABASE says where it goes"))
    }

    fn pg_restore(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.program("pg_restore"));
        command.args(arguments).args(&self.options);
        command
    }

    fn start(&self, mut command: Command) -> Result<Client> {
        command.stdin(Stdio::piped()).env("PGAPPNAME", "pgkeep-dump-restore");
        if let Some((connection, database)) = self.server {
            connection.reach(&mut command, database);
        }
        Client::start(command)
    }
}

/// Some entries of an archive.
pub struct Part<'a> {
    /// Their numbers, in the archive's order: pg_restore takes that of the list, and cannot go back in a stream.
    pub chosen: &'a [i64],
    /// Where the archive holds them.
    pub parts: &'a [(u64, u64)],
    /// The SQL around them.
    pub frame: &'a Frame,
}

/// A file for `pg_restore --use-list`: a number on each line.
fn list_file(chosen: &[i64]) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new().context(|| "create a file in TMPDIR")?;
    let lines: String = chosen.iter().map(|id| format!("{id};\n")).collect();
    file.write_all(lines.as_bytes())
        .context(|| format!("write {}", file.path().display()))?;
    Ok(file)
}

/// pg_restore takes a name with "=" or "://" for a connection string; as one it is always a name.
fn database_argument(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Passes SQL on, without the settings at its head that the server does not know.
fn pass_on(said: impl Read, out: &mut dyn Write, server: u32) -> Result<()> {
    let mut said = BufReader::with_capacity(128 << 10, said);
    let mut line = Vec::new();
    for _ in 0..HEAD_LINES {
        line.clear();
        let count = said.read_until(b'\n', &mut line).context(|| "read from pg_restore")?;
        if count == 0 {
            return Ok(());
        }
        if !script::unknown_to(&String::from_utf8_lossy(&line), server) {
            write(out, &line)?;
        }
    }
    std::io::copy(&mut said, out).map(drop).context(|| "write the SQL")
}

fn write(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).context(|| "write the SQL")
}

/// Creates a file that must be new, only for its owner.
///
/// # Errors
/// `Refused` if there is one; else what the file system says.
pub fn create_new(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).map_err(|error| {
        let cause = error.kind();
        let error = Error::io(error, format!("create {}", path.display()));
        match cause {
            io::ErrorKind::AlreadyExists => error
                .with_kind(Kind::Refused)
                .hint("nothing is overwritten: choose another name"),
            io::ErrorKind::PermissionDenied => error.hint(
                "started by root, this runs as the owner of the data directory: name a place that it may write, or let the \
                 shell write the file: --to-sql - > FILE",
            ),
            _ => error,
        }
    })
}

/// What programs say when they fail.
const WEIGHTY: [&str; 5] = ["ERROR", "FATAL", "error:", "DETAIL", "HINT"];
/// What they say when the connection was lost.
const LOST: [&str; 3] = [
    "server closed the connection",
    "terminating connection",
    "connection to server",
];

fn expect_success(client: &mut Client) -> Result<()> {
    let Some((status, words)) = client.failure(&WEIGHTY)? else {
        return Ok(());
    };
    let kind = match LOST.iter().any(|word| words.contains(word)) {
        true => Kind::Transient,
        false => Kind::Failed,
    };
    let error = Error::new(kind, format!("{} failed ({status})", client.name()));
    Err(if words.is_empty() { error } else { error.because(words) })
}
