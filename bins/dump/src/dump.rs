//! A run, the steps in order: ask the server, plan, dump each, commit each.

use std::collections::BTreeMap;
use std::time::Instant;

use common::config::{Cluster, Config};
use common::erasure;
use common::error::{Kind, Result, chain};
use common::journal::Loudness;
use common::leadership::{self, Decision, Role};
use common::postgres::{ConnectionSettings, Programs, Session};
use common::progress::Progress;
use common::repository::dumps::{self, CONTENTS, Contents, Database, DumpInfo, GLOBALS, Parts};
use common::repository::lease::{self, Lease};
use common::repository::pins::Pins;
use common::repository::tombstones;
use common::repository::writer::{Folder, FolderWriter};
use common::repository::{ClusterName, DumpLabel, FORMAT, Nonce, Repository, written_by};
use common::time::UtcTime;
use common::units::ByteSize;

use crate::args::Args;
use crate::made::{Ended, Made};
use crate::past::Origin;
use crate::plan::{self, Unit};
use crate::running::Clients;
use crate::{ask, locks};

/// By repository.
type Leases = BTreeMap<String, Result<Lease>>;

/// A run.
pub struct Dumping<'a> {
    /// What the user asked for.
    pub args: &'a Args,
    /// The configuration.
    pub config: &'a Config,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// This host's name.
    pub host: String,
    /// How to reach the server.
    pub connection: ConnectionSettings,
    /// The backup and the moment that the server was made of, if it is a scratch server.
    pub origin: Option<Origin>,
    /// Where the dumps go.
    pub repositories: &'a [Repository],
}

/// What is the same for each dump of a run.
struct Server {
    clients: Programs,
    version: String,
    major: u32,
    system: String,
    pg_dump: String,
    passwords: bool,
}

impl Dumping<'_> {
    /// Makes the dumps.
    ///
    /// # Errors
    /// What the server, pg_dump or every repository says; then nothing of that dump is listed.
    pub fn run(&self) -> Result<Ended> {
        if let Decision::Skip(why) = leadership::by_patroni(self.args.only_on, self.cluster)? {
            return Ok(Ended::Skipped(why));
        }
        if let Some(younger) = self.young_enough()? {
            return Ok(Ended::Skipped(format!("{younger} is young enough")));
        }
        let mut session = self.first_session()?;
        let role = Role::of(session.in_recovery()?);
        if let Decision::Skip(why) = leadership::judge(self.args.only_on, role, false) {
            return Ok(Ended::Skipped(why));
        }
        let settings = &self.cluster.dump;
        let all = match self.args.databases.is_empty() {
            true => plan::wanted(
                &ask::databases(&mut session)?,
                settings.databases.as_deref(),
                &settings.exclude,
            )?,
            false => Vec::new(),
        };
        let units = plan::units(self.args, &all)?;
        let clients = Programs::of_client(settings.bin_directory.as_deref(), session.server_version())?;
        let version = session.version_num();
        let server = Server {
            pg_dump: clients.version("pg_dump")?,
            clients,
            version: format!("{}.{}", version / 10_000, version % 10_000),
            major: session.server_version().number(),
            // Not everybody may ask, as where somebody else runs the server.
            system: session.system_id().map(|system| system.to_string()).unwrap_or_default(),
            passwords: settings.role_passwords && ask::sees_passwords(&mut session)?,
        };
        if units.iter().any(|unit| unit.globals) && settings.role_passwords && !server.passwords {
            log::warn!("the passwords of roles are not dumped: only a superuser may read them");
        }
        let leases = self.hold()?;
        // Nobody erases a tenant while the leases are held.
        self.check_erased(&mut session, &units)?;
        drop(session);
        let mut made = Vec::new();
        // The dumps of one run share a snapshot, which lives as long as its session.
        let shared = match units.as_slice() {
            [first, _, ..] => Some(self.share(first)?),
            _ => None,
        };
        for unit in &units {
            let snapshot = shared.as_ref().map(|(_, snapshot)| snapshot.as_str());
            made.push(self.take(unit, &server, snapshot, &leases)?);
        }
        Ok(Ended::Made(made))
    }

    /// A dump of whole databases that is young enough, if that was asked.
    fn young_enough(&self) -> Result<Option<String>> {
        let Some(limit) = self.args.if_older_than else {
            return Ok(None);
        };
        let now = UtcTime::now();
        let mut newest = None;
        for repository in self.repositories.iter().filter(|repository| repository.required) {
            let of_databases = dumps::newest_of_databases(repository)?;
            // One repository that lacks it is reason enough.
            let Some(dump) = of_databases else { return Ok(None) };
            if now.since(dump.started) >= limit {
                return Ok(None);
            }
            newest = Some(dump.label.to_string());
        }
        Ok(newest)
    }

    fn first_session(&self) -> Result<Session> {
        match self.args.databases.first() {
            Some(database) => self.connect(database),
            None => Session::connect_for_cluster(&self.connection),
        }
    }

    fn connect(&self, database: &str) -> Result<Session> {
        Session::connect(&self.connection.with_database(database))
    }

    /// The lease of each repository, for the whole run; or why it takes no part.
    fn hold(&self) -> Result<Leases> {
        let pins = Pins::new(&self.config.state_directory, &ClusterName::parse(&self.cluster.name)?);
        let one = |repository: &Repository| {
            repository.identity_for_writing()?;
            pins.check(repository)?;
            lease::take(repository, "dump", &self.host)
        };
        let named = |repository: &Repository| (repository.name.clone(), one(repository));
        Ok(self.repositories.iter().map(named).collect())
    }

    /// Refuses what was erased; that a whole database still holds it is a warning.
    fn check_erased(&self, session: &mut Session, units: &[Unit]) -> Result<()> {
        let erasures = tombstones::of_all(self.repositories);
        if erasures.is_empty() {
            return Ok(());
        }
        let connect = |database: &str| self.connect(database);
        let within = |name: &str| {
            units
                .iter()
                .any(|unit| unit.databases.iter().any(|database| database == name))
        };
        let found = match erasure::still_there(session, &connect, &erasures, &within) {
            Ok(found) => found,
            // Where somebody else runs the server, not everybody may ask for its identifier.
            Err(error) if error.kind() == Kind::Config => {
                log::warn!(
                    "whether an erased tenant is in the dump is not known: {}",
                    chain(&error)
                );
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for found in found {
            let units = units.iter().filter(|unit| unit.databases.contains(&found.database));
            for unit in units {
                plan::refuse_erased(unit, &found)?;
            }
        }
        Ok(())
    }

    fn share(&self, unit: &Unit) -> Result<(Session, String)> {
        let mut session = self.connect(unit.databases.first().map_or("postgres", String::as_str))?;
        let snapshot = ask::snapshot(&mut session)?;
        Ok((session, snapshot))
    }

    /// One dump.
    fn take(&self, unit: &Unit, server: &Server, snapshot: Option<&str>, leases: &Leases) -> Result<Made> {
        let (started, began) = (UtcTime::now(), Instant::now());
        let label = DumpLabel::new(started, Nonce::random()?);
        let announce = |repository: &Repository| match leases.get(&repository.name) {
            Some(Err(error)) => Err(error.copy()),
            _ => Ok(()),
        };
        let writer = FolderWriter::begin(Folder::Dump(label), self.repositories, announce)?;
        log::info!("dump {label} begins");
        let clients = Clients {
            programs: &server.clients,
            connection: &self.connection,
            level: self.args.compression_level.unwrap_or(self.config.compression_level),
        };
        let parts = plan::parts(self.args);
        let mut size = 0;
        let mut databases = Vec::new();
        for name in &unit.databases {
            let database = self.database(name, databases.len() + 1, unit, parts, snapshot, (&writer, &clients))?;
            size += database.archive.size;
            databases.push(database);
        }
        if unit.globals {
            size += clients.globals(server.passwords, writer.create(GLOBALS, false)?)?;
        }
        let contents = Contents {
            format: FORMAT,
            databases,
        };
        dumps::write_contents(writer.create(CONTENTS, true)?, &contents, clients.level)?;
        writer.look_again()?;
        let entries = contents.databases.iter().flat_map(|database| &database.archive.entries);
        let info = DumpInfo {
            format: FORMAT,
            label,
            cluster: self.cluster.name.clone(),
            system_identifier: server.system.clone(),
            major: server.major,
            server_version: server.version.clone(),
            pg_dump: server.pg_dump.clone(),
            pgkeep: written_by().trim_start_matches("pgkeep ").to_owned(),
            host: self.host.clone(),
            started,
            finished: UtcTime::now(),
            backup: self.origin.as_ref().map(|origin| origin.backup),
            target: self.origin.as_ref().map(|origin| origin.target.clone()),
            scope: unit.scope,
            parts,
            databases: contents.databases.len() as u64,
            tables: entries.filter(|entry| entry.kind == "TABLE DATA").count() as u64,
            globals: unit.globals,
            size,
            stored: 0,
            objects: Vec::new(),
            signature: None,
        };
        let outcomes = writer.commit(|repository, objects, stored| {
            let info = DumpInfo {
                objects,
                stored,
                ..info.clone()
            };
            dumps::commit(repository, &info).map(|()| info)
        });
        Made::of(unit, outcomes, began.elapsed())
    }

    fn database(
        &self,
        name: &str,
        number: usize,
        unit: &Unit,
        parts: Parts,
        snapshot: Option<&str>,
        (writer, clients): (&FolderWriter<'_>, &Clients<'_>),
    ) -> Result<Database> {
        let mut session = self.connect(name)?;
        let mut extensions = Vec::new();
        match &unit.schema {
            Some(schema) => {
                ask::require_schema(&mut session, name, schema)?;
                extensions = ask::extensions(&mut session, schema)?;
            }
            None if unit.tables.is_empty() => {
                locks::check(name, ask::tables(&mut session)?, ask::room(&mut session)?)?;
            }
            None => {}
        }
        let progress = Progress::begin(
            "dumped",
            ask::size(&mut session)?,
            std::io::IsTerminal::is_terminal(&std::io::stderr()) && !self.args.verbosity().quiet,
            Instant::now(),
        );
        drop(session);
        let object = format!("{number}.dump.zst");
        let arguments = plan::arguments(unit, parts, self.cluster.dump.lock_wait, snapshot);
        let archive = clients.dump(name, &arguments, writer.create(&object, false)?, progress)?;
        log::info!("database \"{name}\": {} read to the end", ByteSize(archive.size));
        Ok(Database {
            name: name.to_owned(),
            object,
            schemas: unit.schema.iter().cloned().collect(),
            tables: unit
                .tables
                .iter()
                .map(|(schema, table)| format!("{schema}.{table}"))
                .collect(),
            extensions,
            archive,
        })
    }
}
