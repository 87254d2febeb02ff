//! Erases a tenant: records it everywhere first, then removes the dumps that hold nothing else. What cannot be removed yet goes
//! with a later run.

use std::collections::{BTreeMap, BTreeSet};

use common::config::Cluster;
use common::erasure;
use common::error::{Error, Kind, Result, chain, chain_with_hint};
use common::exit::{self, Verdict};
use common::job::{Origin, Report};
use common::postgres::{Session, sql};
use common::repository::lease::{self, Lease};
use common::repository::tombstones::{self, Erasure, Gone, Tenant};
use common::repository::{DumpLabel, Repository, dumps, events};
use common::time::UtcTime;
use common::units::counted;

use crate::act::{self, Removed};
use crate::plan::Removal;
use crate::tenant::{self, Dumped, Named, Seen};

/// An erasure that is asked for.
pub struct Erasing<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Whose data.
    pub named: Named<'a>,
    /// Why.
    pub reason: &'a str,
    /// Who.
    pub origin: &'a Origin,
    /// Whether it is only shown.
    pub dry_run: bool,
    /// Number of workers.
    pub jobs: usize,
}

/// What came of it.
#[derive(Default)]
pub struct Erased {
    /// For people.
    pub text: String,
    /// Dumps that were removed.
    dumps: u64,
    /// What stores refused to delete.
    refused: u64,
    /// Repositories in which it could not be recorded or removed.
    failed: Vec<Error>,
}

/// What the running server has.
struct Live {
    system: String,
    database_oid: Option<u32>,
    schemas: BTreeMap<u32, String>,
    moment: Option<Gone>,
}

/// A repository, the right to change it, and the dumps in it.
struct Held<'a> {
    repository: &'a Repository,
    /// Nobody else prunes, and no dump comes to be meanwhile. Nothing in a dry run.
    _leases: Vec<Lease>,
    dumps: Vec<Dumped>,
}

impl Erasing<'_> {
    /// Does it.
    ///
    /// # Errors
    /// `Config` without a reason, or if the server does not answer; `NotFound`, `Refused` if it is not clear which schema is
    /// meant. What single repositories said is in the result.
    pub fn run(&self, repositories: &[Repository]) -> Result<Erased> {
        if self.reason.trim().is_empty() {
            return Err(Error::new(Kind::Config, "--reason is empty")
                .hint("say on whose demand: it stands in the report that pgkeep-info writes"));
        }
        let live = self.live()?;
        let mut erased = Erased::default();
        let mut held: Vec<Held<'_>> = Vec::new();
        for repository in repositories {
            match self.look(repository) {
                Ok(one) => held.push(one),
                Err(error) => erased.fail(repository, error),
            }
        }
        let current = self.current(live.as_ref(), &held)?;
        let chosen = tenant::choose(self.named, &self.seen(live.as_ref(), &held), &current)?;
        let erasures: Vec<Erasure> = chosen
            .iter()
            .map(|(system, oid)| self.erasure(system, *oid, live.as_ref().filter(|live| live.system == *system)))
            .collect();
        for erasure in &erasures {
            erased.text += &format!("erased from now on: {erasure}\n");
        }
        for one in held {
            let (alone, others) = tenant::holders(&one.dumps, &chosen, self.named);
            let outcome = self.in_repository(&one, &erasures, &alone);
            erased.tell(self.dry_run, one.repository, outcome, &alone, &others);
        }
        let there = |erasure: &&Erasure| {
            let live = live.as_ref().filter(|live| live.system == erasure.system_identifier);
            live.is_some_and(|live| live.schemas.contains_key(&erasure.schema_oid))
        };
        if erasures.iter().any(|erasure| there(&erasure)) {
            erased.text += &format!(
                "the server has it still, and checks are critical until it has not: pgkeep-dump-restore --apply-erasures --into {}\n",
                self.named.database
            );
        }
        erased.text += "backups taken before hold it until retention removes them; a restore leaves the SQL that erases it again\n";
        Ok(erased)
    }

    /// What the server has; nothing where it does not answer and the OID is given.
    fn live(&self) -> Result<Option<Live>> {
        match self.ask() {
            Ok(live) => Ok(Some(live)),
            Err(error) if self.named.oid.is_some() => {
                log::warn!(
                    "whether the server has the schema still is not known: {}",
                    chain(&error)
                );
                Ok(None)
            }
            Err(error) => Err(error
                .context("ask the server which schema is meant")
                .hint("start it, or say the schema's OID with --schema-oid")),
        }
    }

    fn ask(&self) -> Result<Live> {
        let settings = self.cluster.connection(&exit::environment)?;
        let mut session = Session::connect_for_cluster(&settings)?;
        let Named { database, .. } = self.named;
        let oid = session.first(&format!(
            "select oid from pg_database where datname = {}",
            sql::literal(database)
        ))?;
        let mut live = Live {
            system: session.system_id()?.to_string(),
            database_oid: oid.map(|oid| session.number(&oid)).transpose()?,
            schemas: BTreeMap::new(),
            moment: erasure::now(&mut session)?,
        };
        if live.database_oid.is_some() {
            live.schemas = erasure::schemas(&mut Session::connect(&settings.with_database(database))?)?;
        }
        Ok(live)
    }

    fn look<'r>(&self, repository: &'r Repository) -> Result<Held<'r>> {
        repository.identity_for_writing()?;
        let leases = match self.dry_run {
            true => Vec::new(),
            false => ["prune", "dump"]
                .into_iter()
                .map(|job| lease::take(repository, job, &self.origin.host))
                .collect::<Result<_>>()?,
        };
        let mut dumped = Vec::new();
        for label in dumps::labels(repository)? {
            let info = match dumps::document(repository, label)? {
                Some(Ok(info)) => info,
                Some(Err(error)) => {
                    log::warn!("whether dump {label} holds the tenant is not known: {}", chain(&error));
                    continue;
                }
                None => continue,
            };
            dumped.extend(tenant::dumped(&info, &dumps::contents(repository, &info)?));
        }
        Ok(Held {
            repository,
            _leases: leases,
            dumps: dumped,
        })
    }

    /// The system that runs: by the server, or by what repositories say.
    fn current(&self, live: Option<&Live>, held: &[Held<'_>]) -> Result<String> {
        if let Some(live) = live {
            return Ok(live.system.clone());
        }
        for one in held {
            if let Some(known) = events::systems(one.repository)?.last() {
                return Ok(known.system.to_string());
            }
        }
        Err(Error::new(Kind::NotFound, "no repository knows whose data this is")
            .hint("pgkeep-init has not been run here, or start the server"))
    }

    fn seen(&self, live: Option<&Live>, held: &[Held<'_>]) -> Vec<Seen> {
        let mut seen = Vec::new();
        if let Some(live) = live {
            let named = live.schemas.iter().filter(|(_, name)| *name == self.named.schema);
            seen.extend(named.map(|(oid, _)| Seen {
                system: live.system.clone(),
                oid: *oid,
                place: "the server has it now".to_owned(),
            }));
        }
        for one in held {
            seen.extend(tenant::seen_in_dumps(self.named, &one.dumps));
        }
        seen
    }

    fn erasure(&self, system: &str, schema_oid: u32, live: Option<&Live>) -> Erasure {
        let gone = live.filter(|live| !live.schemas.contains_key(&schema_oid));
        Erasure {
            time: UtcTime::now(),
            host: self.origin.host.clone(),
            user: self.origin.user.clone(),
            system_identifier: system.to_owned(),
            database_oid: live.and_then(|live| live.database_oid),
            schema_oid,
            tenant: Some(Tenant {
                database: self.named.database.to_owned(),
                schema: self.named.schema.to_owned(),
                reason: self.reason.to_owned(),
            }),
            gone: gone.and_then(|live| live.moment).into_iter().collect(),
        }
    }

    /// Records it, then removes what holds nothing else.
    fn in_repository(&self, held: &Held<'_>, erasures: &[Erasure], alone: &BTreeSet<DumpLabel>) -> Result<Removed> {
        if self.dry_run {
            return Ok(Removed::default());
        }
        let of_system = |label: &&DumpLabel, system: &str| {
            let own = |dump: &Dumped| dump.label == **label && dump.system == system;
            held.dumps.iter().any(own)
        };
        for erasure in erasures {
            let own = alone
                .iter()
                .filter(|label| of_system(label, &erasure.system_identifier));
            if let Some(tenant) = &erasure.tenant {
                let gone = erasure.gone.first().copied();
                tombstones::append(held.repository, erasure, tenant, gone, own.copied().collect())?;
            }
        }
        let removal = Removal {
            dumps: alone.iter().map(ToString::to_string).collect(),
            ..Removal::default()
        };
        act::act(held.repository, &removal, self.jobs)
    }
}

impl Erased {
    fn fail(&mut self, repository: &Repository, error: Error) {
        let error = error.context(format!("erase it in repository \"{}\"", repository.name));
        log::error!("{}", chain_with_hint(&error));
        self.failed.push(error);
    }

    fn tell(
        &mut self,
        dry_run: bool,
        repository: &Repository,
        outcome: Result<Removed>,
        alone: &BTreeSet<DumpLabel>,
        others: &BTreeSet<DumpLabel>,
    ) {
        let removed = match outcome {
            Ok(removed) => removed,
            Err(error) => return self.fail(repository, error),
        };
        let mut line = |words: String| self.text += &format!("  repository \"{}\": {words}\n", repository.name);
        let labels: Vec<String> = alone.iter().map(ToString::to_string).collect();
        let labels = labels.join(", ");
        match (alone.is_empty(), dry_run) {
            (true, _) => line("no dump of it alone".to_owned()),
            (false, true) => line(format!("would go: {labels}")),
            (false, false) if removed.refused.is_empty() => line(format!("removed {labels}")),
            (false, false) => line(format!("not all is removed of {labels}")),
        }
        for refused in &removed.refused {
            line(format!("not removed yet, a later pgkeep-prune tries again: {refused}"));
        }
        if let Some(newest) = others.last() {
            line(format!(
                "{} with others stays until retention removes it, the newest is {newest}",
                counted(others.len() as u64, "dump that holds it")
            ));
        }
        if !dry_run {
            self.dumps += alone.len() as u64;
            self.refused += removed.refused.len() as u64;
        }
    }

    /// What the job leaves behind.
    pub fn report(&self) -> Report {
        let report = match self.failed.first() {
            None => Report::success(),
            Some(error) => Report::bad(self.code(), chain(error)),
        };
        report.field("dumps", self.dumps).field("refused", self.refused)
    }
}

impl Verdict for Erased {
    fn code(&self) -> u8 {
        let codes = self.failed.iter().map(|error| exit::WORK.code_of(error));
        codes.map(|code| (code != 75, code)).max().map_or(0, |(_, code)| code)
    }
}
