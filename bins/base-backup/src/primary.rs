//! The primary that a standby follows: whoever takes a backup of the standby asks it to archive its WAL.

use common::config::Cluster;
use common::error::{Error, Kind, Result};
use common::leadership::patroni::{Patroni, leader};
use common::postgres::{ConnectionSettings, Session, SystemId};

/// What names the primary when nothing does.
pub const NAME_IT: &str = "let `primary` in the configuration say how to reach the primary (or `patroni` where its API is), \
                           so that it can be asked to end the segment; archive_timeout on the primary does it by itself";

/// How to find the primary.
pub struct Primary<'a> {
    /// The cluster that is backed up.
    pub cluster: &'a Cluster,
    /// How to reach this server; the primary is reached likewise as far as nothing else is said.
    pub own: &'a ConnectionSettings,
    /// What the setting `primary` says.
    pub named: Option<&'a ConnectionSettings>,
    /// The system identifier that it must have.
    pub system: SystemId,
}

impl Primary<'_> {
    /// Connects to it, if the configuration or Patroni names one. Asked anew each time: another may lead by now.
    ///
    /// # Errors
    /// `Transient` if it cannot be reached, or is in recovery; `Config` if it is of another cluster; as Patroni's and the
    /// session's.
    pub fn connect(&self) -> Result<Option<Session>> {
        let Some(settings) = self.settings()? else {
            return Ok(None);
        };
        let mut session = Session::connect(&settings).map_err(|error| {
            error.context("connect to the primary, which archives the WAL of this standby's backup")
        })?;
        let system = session.system_id()?;
        if system != self.system {
            let place = session.describe();
            let message = format!(
                "server {place} has system identifier {system}, and this standby {}",
                self.system
            );
            return Err(Error::new(Kind::Config, message)
                .hint("`primary` of the cluster's configuration must name the primary that this standby follows"));
        }
        Ok(Some(session))
    }

    fn settings(&self) -> Result<Option<ConnectionSettings>> {
        if let Some(named) = self.named {
            return Ok(Some(named.clone()));
        }
        let Some(url) = &self.cluster.patroni else {
            return Ok(None);
        };
        let members = Patroni::at(url, self.cluster.patroni_ca.as_deref())?.members()?;
        match leader(&members) {
            Some((host, port)) => Ok(Some(ConnectionSettings {
                host: Some(host.to_owned()),
                port: port.or(self.own.port),
                primary_only: true,
                ..self.own.clone()
            })),
            None => Err(
                Error::new(Kind::Transient, format!("Patroni at {url} knows no primary that runs")).hint(
                    "patronictl list shows the cluster's state; a standby cluster needs `primary` in the configuration",
                ),
            ),
        }
    }
}
