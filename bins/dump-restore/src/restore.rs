//! A run, the steps in order: find the dump, choose entries, ask the database, restore.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use common::config::Cluster;
use common::error::{Error, Kind, Result, chain};
use common::postgres::archive::Archive;
use common::postgres::{ConnectionSettings, Major, Programs, Session, sql};
use common::repository::dumps::{self, Contents, Database, DumpInfo, GLOBALS, Scope};
use common::repository::tombstones::{self, Erasure};
use common::repository::{DumpLabel, Nonce, Repository};
use common::units::display_seconds;

use crate::args::Args;
use crate::erased::{self, Erased};
use crate::fetch::{self, Source};
use crate::running::{self, Clients, Part};
use crate::select::{self, Selection, Wanted};
use crate::{script, show, target};

/// A run.
pub struct Restoring<'a> {
    /// What the user asked for.
    pub args: &'a Args,
    /// The dump.
    pub label: DumpLabel,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// How to reach the server.
    pub connection: ConnectionSettings,
    /// Where the dump may be.
    pub repositories: &'a [Repository],
}

/// What is restored, and out of what.
#[derive(Clone, Copy)]
struct Order<'a> {
    repository: &'a Repository,
    info: &'a DumpInfo,
    database: &'a Database,
    wanted: &'a Wanted,
    selection: &'a Selection,
    /// Tenants that are dropped again at the end.
    erased: &'a [Erased<'a>],
}

/// What was restored, in words, and how big it is.
pub struct Done {
    /// For people.
    pub text: String,
    /// Bytes read of the dump, before compression.
    pub bytes: u64,
}

impl Restoring<'_> {
    /// Does it.
    ///
    /// # Errors
    /// What the repositories, the server, pg_restore or psql say. A tenant or table is then not restored at all; a whole database
    /// may be there in part.
    pub fn run(&self) -> Result<Done> {
        let args = self.args;
        let (repository, info) = self.find()?;
        if args.globals {
            return self.globals(repository, &info);
        }
        let contents = dumps::contents(repository, &info)?;
        if args.list {
            let text = show::list(&info, &contents, args.tenant.as_deref());
            return Ok(Done { text, bytes: 0 });
        }
        let database = self.database(&info, &contents)?;
        let wanted = self.wanted(&info, database)?;
        let selection = select::select(&database.archive, &wanted).map_err(|what| {
            Error::new(
                Kind::Config,
                format!("database \"{}\" of dump {} has no {what}", database.name, info.label),
            )
            .hint("--list shows what is there; names are taken as they are")
        })?;
        let erasures = self.erasures();
        let erased = erased::in_dump(&info, database, &erasures);
        erased::check(&wanted, info.parts, &erased)?;
        let order = Order {
            repository,
            info: &info,
            database,
            wanted: &wanted,
            selection: &selection,
            erased: if wanted == Wanted::Whole { &erased } else { &[] },
        };
        match (&args.into, &args.to_sql) {
            (Some(into), _) => self.restore_into(into, &order),
            (None, Some(file)) => self.write_sql(file, &order),
            (None, None) => Err(Error::new(Kind::Config, "nothing says where the dump goes")
                .hint("--into DATABASE restores it, --to-sql FILE writes SQL, --list shows what is in it")),
        }
    }

    fn erasures(&self) -> Vec<Erasure> {
        match self.args.even_erased {
            true => Vec::new(),
            false => tombstones::of_all(self.repositories),
        }
    }

    /// The first repository that has the dump.
    fn find(&self) -> Result<(&Repository, DumpInfo)> {
        let mut last = None;
        for repository in self.repositories {
            match dumps::read(repository, self.label) {
                Ok(info) => return Ok((repository, info)),
                Err(error) => {
                    log::debug!("repository \"{}\": {}", repository.name, chain(&error));
                    // That it is absent here says less than that another one cannot be read.
                    if last.as_ref().is_none_or(|last: &Error| last.kind() == Kind::NotFound) {
                        last = Some(error);
                    }
                }
            }
        }
        let names: Vec<&str> = self
            .repositories
            .iter()
            .map(|repository| repository.name.as_str())
            .collect();
        let message = format!("no dump {} in {}", self.label, names.join(", "));
        Err(match last {
            Some(error) if error.kind() != Kind::NotFound => Error::new(error.kind(), message).because(error),
            _ => Error::new(Kind::Failed, message).hint("pgkeep-info lists the dumps that are there"),
        })
    }

    /// The database of the dump.
    fn database<'c>(&self, info: &DumpInfo, contents: &'c Contents) -> Result<&'c Database> {
        let named = self.args.database.as_ref();
        let names: Vec<&str> = contents
            .databases
            .iter()
            .map(|database| database.name.as_str())
            .collect();
        let of = |name: &String| contents.databases.iter().find(|database| database.name == *name);
        match (named, contents.databases.as_slice()) {
            (Some(name), _) => of(name).ok_or_else(|| {
                Error::new(Kind::Config, format!("dump {} has no database \"{name}\"", info.label))
                    .hint(format!("it has: {}", names.join(", ")))
            }),
            (None, [only]) => Ok(only),
            (None, []) => Err(Error::new(Kind::Config, format!("dump {} has no database", info.label))
                .hint("it holds roles and tablespaces: --globals --to-sql FILE writes them")),
            (None, _) => self.args.into.as_ref().and_then(of).ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    format!("dump {} has several databases: {}", info.label, names.join(", ")),
                )
                .hint("--database NAME chooses one of them")
            }),
        }
    }

    fn wanted(&self, info: &DumpInfo, database: &Database) -> Result<Wanted> {
        let args = self.args;
        if let Some(tenant) = &args.tenant {
            return Ok(Wanted::Tenant(tenant.clone()));
        }
        if !args.tables.is_empty() {
            let pair = |name: &String| {
                let (schema, table) = name.split_once('.').unwrap_or(("public", name));
                (schema.to_owned(), table.to_owned())
            };
            return Ok(Wanted::Tables(args.tables.iter().map(pair).collect()));
        }
        match (info.scope, database.schemas.as_slice()) {
            (Scope::Tenant, [schema]) => Ok(Wanted::Tenant(schema.clone())),
            _ if args.rename.is_some() => {
                Err(Error::new(Kind::Config, "only a tenant can get another name")
                    .hint("--tenant SCHEMA says which one"))
            }
            (Scope::Tables, _) => {
                let pair = |name: &String| {
                    name.split_once('.')
                        .map(|(schema, table)| (schema.to_owned(), table.to_owned()))
                };
                Ok(Wanted::Tables(database.tables.iter().filter_map(pair).collect()))
            }
            _ => Ok(Wanted::Whole),
        }
    }

    fn programs(&self, database: &Database) -> Result<Programs> {
        let number = database
            .archive
            .dump_version
            .split(['.', ' ', 'b', 'r', 'd'])
            .next()
            .and_then(|text| text.parse().ok());
        let major = number.and_then(|number: u32| Major::try_from(number).ok());
        let major = major.ok_or_else(|| {
            Error::new(
                Kind::Refused,
                format!("the dump was made by pg_dump {}", database.archive.dump_version),
            )
            .hint("a newer pgkeep is needed, or restore by hand: FORMAT.md says how")
        })?;
        Programs::of_client(self.cluster.dump.bin_directory.as_deref(), major)
    }

    /// The SQL around a tenant or tables.
    fn frame(&self, wanted: &Wanted, extensions: &[String]) -> Result<script::Frame> {
        let aside = format!("pgkeep_aside_{}", Nonce::random()?);
        let rename = self.args.rename.as_deref();
        Ok(script::frame(wanted, rename, self.args.clean, &aside, extensions))
    }

    /// What pg_restore is told.
    fn options(&self, wanted: &Wanted) -> Vec<String> {
        let mut options = Vec::new();
        if self.args.clean && *wanted == Wanted::Whole {
            options.extend(["--clean".to_owned(), "--if-exists".to_owned()]);
        }
        if self.args.no_owner {
            options.push("--no-owner".to_owned());
        }
        if self.args.no_privileges {
            options.push("--no-privileges".to_owned());
        }
        options
    }

    fn restore_into(&self, into: &str, order: &Order<'_>) -> Result<Done> {
        let args = self.args;
        let Order {
            repository,
            info,
            database,
            wanted,
            selection,
            erased,
        } = *order;
        let archive = &database.archive;
        let began = Instant::now();
        let programs = self.programs(database)?;
        let mut session = match args.create {
            true => self.create(into)?,
            false => Some(self.connect(into)?),
        };
        let mut selection = selection.clone();
        let mut extensions = database.extensions.clone();
        if let Some(session) = &mut session {
            target::check_free(session, into, wanted, args.rename.as_deref(), args.clean)?;
            let there = target::there(session, archive, &selection)?;
            selection = select::without(&selection, archive, &there);
            let rows = session.query("select extname from pg_extension")?;
            let installed: BTreeSet<String> = rows.into_iter().flatten().flatten().collect();
            extensions.retain(|extension| !installed.contains(extension));
            self.check_roles(session, archive, &selection)?;
            target::check_anew(session, into, erased)?;
        }
        let chosen = selection.all();
        let parts = fetch::parts_of(archive, wanted, &chosen);
        let bytes = parts.iter().map(|(from, to)| to - from).sum();
        let mut plan = show::plan(archive, wanted, args.rename.as_deref(), &selection, bytes, into);
        plan += &erased::note(erased);
        if args.dry_run {
            return Ok(Done { text: plan, bytes: 0 });
        }
        log::info!("{}", plan.trim_end());
        let server = session.as_ref().map_or(0, |session| session.server_version().number());
        drop(session);
        let mut source = Source::open(repository, info, &database.object)?;
        let clients = Clients {
            programs: &programs,
            server: Some((&self.connection, into)),
            options: self.options(wanted),
        };
        match wanted {
            Wanted::Whole => {
                let restored = match args.jobs {
                    1 => clients.restore(&mut source, None, server),
                    jobs => clients.whole_in_parallel(&mut source, jobs),
                };
                restored.map_err(|error| {
                    let part =
                        format!("database \"{into}\" may hold a part: drop it before the next try, or use --clean");
                    let hint = error.nearest_hint().map(|hint| format!("{hint}; {part}"));
                    error.hint(hint.unwrap_or(part))
                })?;
                if !erased.is_empty() {
                    self.connect(into)?.execute(&erased::sql(erased))?;
                }
            }
            _ => {
                let frame = self.frame(wanted, &extensions)?;
                let part = Part {
                    chosen: &archive.in_order(&chosen),
                    parts: &parts,
                    frame: &frame,
                };
                clients.restore(&mut source, Some(&part), server).map_err(|error| {
                    error.hint(format!(
                        "nothing of it is in database \"{into}\": it was one transaction"
                    ))
                })?;
            }
        }
        let mut text = format!("restored {}", plan.lines().next().unwrap_or_default());
        text += &format!(" in {}\n{}", display_seconds(began.elapsed()), erased::note(erased));
        if let (Wanted::Tenant(old), Some(new)) = (wanted, &args.rename) {
            text += &self.note_mentions(into, new, old)?;
        }
        Ok(Done { text, bytes })
    }

    /// Who owned what must be there before anything begins.
    fn check_roles(&self, session: &mut Session, archive: &Archive, selection: &Selection) -> Result<()> {
        if self.args.no_owner {
            return Ok(());
        }
        let missing = target::missing_roles(session, archive, &selection.all())?;
        match missing.is_empty() {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Refused,
                format!(
                    "the server lacks roles that own what is restored: {}",
                    missing.join(", ")
                ),
            )
            .hint("create them (--globals --to-sql FILE writes them if the dump has them), or use --no-owner")),
        }
    }

    /// Text of functions does not change with the name of a schema.
    fn note_mentions(&self, into: &str, new: &str, old: &str) -> Result<String> {
        let found = target::mentions(&mut self.connect(into)?, new, old)?;
        Ok(match found.is_empty() {
            true => String::new(),
            false => format!(
                "look at functions that still speak of \"{old}\": {}\n",
                found.join(", ")
            ),
        })
    }

    /// Creates the database, unless this is a dry run: then there is nobody to ask.
    fn create(&self, name: &str) -> Result<Option<Session>> {
        let mut session = Session::connect_for_cluster(&self.connection)?;
        let there = session.first(&format!(
            "select 1 from pg_database where datname = {}",
            sql::literal(name)
        ))?;
        if there.is_some() {
            return Err(Error::new(Kind::Refused, format!("database \"{name}\" exists"))
                .hint("restore into it without --create, or choose another name"));
        }
        if self.args.dry_run {
            return Ok(None);
        }
        session.execute(&format!("create database {} template template0", sql::identifier(name)))?;
        self.connect(name).map(Some)
    }

    fn connect(&self, database: &str) -> Result<Session> {
        Session::connect(&self.connection.with_database(database))
    }

    fn write_sql(&self, file: &Path, order: &Order<'_>) -> Result<Done> {
        let Order {
            repository,
            info,
            database,
            wanted,
            selection,
            erased,
        } = *order;
        let archive = &database.archive;
        let chosen = selection.all();
        let parts = fetch::parts_of(archive, wanted, &chosen);
        let bytes = parts.iter().map(|(from, to)| to - from).sum();
        let rename = self.args.rename.as_deref();
        let mut plan = show::plan(archive, wanted, rename, selection, bytes, &file.display().to_string());
        plan += &erased::note(erased);
        if self.args.dry_run {
            return Ok(Done { text: plan, bytes: 0 });
        }
        let programs = self.programs(database)?;
        let mut source = Source::open(repository, info, &database.object)?;
        let clients = Clients {
            programs: &programs,
            server: None,
            options: self.options(wanted),
        };
        let frame = self.frame(wanted, &database.extensions)?;
        let part = Part {
            chosen: &archive.in_order(&chosen),
            parts: &parts,
            frame: &frame,
        };
        let part = (*wanted != Wanted::Whole).then_some(&part);
        for one in erased {
            log::warn!(
                "the SQL has the rows of tenant {}, which was erased, and drops them at its end: do not keep it longer than it is needed",
                one.schema
            );
        }
        self.write(file, |out| {
            clients.to_sql(&mut source, part, out, u32::MAX)?;
            out.write_all(erased::sql(erased).as_bytes())
                .map_err(|error| Error::io(error, "write the SQL"))
        })?;
        let text = if file == Path::new("-") { String::new() } else { plan };
        Ok(Done { text, bytes })
    }

    fn globals(&self, repository: &Repository, info: &DumpInfo) -> Result<Done> {
        let Some(file) = &self.args.to_sql else {
            return Err(Error::new(Kind::Config, "--globals needs --to-sql FILE"));
        };
        if !info.globals {
            return Err(Error::new(
                Kind::Config,
                format!("dump {} has no roles and tablespaces", info.label),
            ));
        }
        let mut source = Source::open(repository, info, GLOBALS)?;
        let bytes = source.length();
        self.write(file, |out| {
            source
                .copy(&[(0, bytes)], &mut &mut *out)?
                .map_err(|error| Error::io(error, "write the SQL"))
        })?;
        let text = match file == Path::new("-") {
            true => String::new(),
            false => format!("roles and tablespaces of dump {} in {}\n", info.label, file.display()),
        };
        Ok(Done { text, bytes })
    }

    /// Lets `work` write into a new file, or to stdout; a file that did not become whole goes.
    fn write(&self, file: &Path, work: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        if file == Path::new("-") {
            return work(&mut std::io::stdout().lock());
        }
        let mut out = running::create_new(file)?;
        let written = work(&mut out);
        if written.is_err() {
            let _ = std::fs::remove_file(file);
        }
        written
    }
}
