//! Erases again, on a server that was restored, what had been erased before.

use common::config::Cluster;
use common::erasure::{self, Found};
use common::error::{Context, Error, Kind, Result, chain};
use common::exit;
use common::job::Origin;
use common::postgres::datadir::ERASURES;
use common::postgres::{ConnectionSettings, Session};
use common::repository::Repository;
use common::repository::tombstones::{self, Erasure, Tenant};
use common::time::UtcTime;
use common::units::counted;

use crate::restore::Done;

/// A run with `--apply-erasures`.
pub struct Applying<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Where the erasures are recorded.
    pub repositories: &'a [Repository],
    /// Only this database.
    pub into: Option<&'a str>,
    /// Whether it is only shown.
    pub dry_run: bool,
    /// Who.
    pub origin: &'a Origin,
}

impl Applying<'_> {
    /// Does it.
    ///
    /// # Errors
    /// `Refused` before promotion; what the server says. What was dropped until then stays dropped.
    pub fn run(&self) -> Result<Done> {
        let settings = self.cluster.connection(&exit::environment)?;
        let mut session = Session::connect_for_cluster(&settings)?;
        if session.in_recovery()? {
            return Err(Error::new(
                Kind::Refused,
                "the server is in recovery, so nothing can be erased in it",
            )
            .hint("promote it first (select pg_promote()), or run this on the primary"));
        }
        let erasures = tombstones::of_all(self.repositories);
        let connect = |database: &str| Session::connect(&settings.with_database(database));
        let all = erasure::still_there(&mut session, &connect, &erasures, &|_| true)?;
        let (chosen, others): (Vec<Found>, Vec<Found>) = all
            .into_iter()
            .partition(|found| self.into.is_none_or(|into| into == found.database));
        let mut text = String::new();
        for found in &chosen {
            if !self.dry_run {
                self.erase(found, &settings, &mut session)?;
            }
            let done = if self.dry_run { "would be erased" } else { "erased" };
            text += &format!("{done}: schema {} of database {}", found.schema, found.database);
            text += &format!(" (OID {})\n", found.erasure.schema_oid);
        }
        if chosen.is_empty() {
            let known = counted(erasures.len() as u64, "erasure");
            let place = self
                .into
                .map_or_else(|| "the server".to_owned(), |into| format!("database {into}"));
            text += &format!("nothing to erase: {place} has none of the tenants of {known} on record\n");
        }
        text += &self.others_of_that_name(&connect, &erasures)?;
        for found in &others {
            text += &format!(
                "still there, and not asked for: schema {} of database {}\n",
                found.schema, found.database
            );
        }
        if others.is_empty() && !self.dry_run {
            self.remove_script()?;
        }
        Ok(Done { text, bytes: 0 })
    }

    fn erase(&self, found: &Found, settings: &ConnectionSettings, session: &mut Session) -> Result<()> {
        let mut inside = Session::connect(&settings.with_database(&found.database))?;
        inside
            .execute(&erasure::statement(found.erasure.schema_oid))
            .map_err(|error| error.context(format!("erase schema {} of database {}", found.schema, found.database)))?;
        let tenant = found.erasure.tenant.clone().unwrap_or_else(|| Tenant {
            database: found.database.clone(),
            schema: found.schema.clone(),
            reason: "erased again".to_owned(),
        });
        let now = Erasure {
            time: UtcTime::now(),
            host: self.origin.host.clone(),
            user: self.origin.user.clone(),
            ..found.erasure.clone()
        };
        let gone = erasure::now(session)?;
        for repository in self.repositories {
            // The tenant is gone; that later restores list it once more does no harm.
            if let Err(error) = tombstones::append(repository, &now, &tenant, gone, Vec::new()) {
                let name = &repository.name;
                log::warn!(
                    "repository \"{name}\" does not learn that it is gone: {}",
                    chain(&error)
                );
            }
        }
        Ok(())
    }

    /// Schemas that were created anew.
    fn others_of_that_name(&self, connect: &dyn Fn(&str) -> Result<Session>, erasures: &[Erasure]) -> Result<String> {
        let Some(into) = self.into else {
            return Ok(String::new());
        };
        let schemas = erasure::schemas(&mut connect(into)?)?;
        let tenants = erasures
            .iter()
            .filter_map(|erasure| Some((erasure, erasure.tenant.as_ref()?)));
        let mut text = String::new();
        for (erasure, tenant) in tenants.filter(|(_, tenant)| tenant.database == into) {
            let anew = schemas
                .iter()
                .find(|(oid, name)| **oid != erasure.schema_oid && **name == tenant.schema);
            if let Some((oid, name)) = anew {
                text += &format!("not touched: schema {name} of database {into} was created anew (OID {oid})\n");
            }
        }
        Ok(text)
    }

    fn remove_script(&self) -> Result<()> {
        let Some(data) = &self.cluster.data_directory else {
            return Ok(());
        };
        let script = data.join(ERASURES);
        match std::fs::remove_file(&script) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.context(|| format!("remove {}", script.display())),
        }
    }
}
