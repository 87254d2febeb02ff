//! Which system a cluster is: as pg_control says, or, where there is no data directory here, as its server does.

use common::config::{Cluster, Environment};
use common::error::{Context, Error, Kind, Result};
use common::postgres::{ControlFile, Major, SegmentSize, Session, SystemId};

/// What a repository is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct System {
    /// PostgreSQL's system identifier.
    pub id: SystemId,
    /// PostgreSQL's major version.
    pub major: Major,
    /// The size of WAL segments.
    pub segment_size: SegmentSize,
}

impl From<&ControlFile> for System {
    fn from(control: &ControlFile) -> Self {
        Self {
            id: control.system_id,
            major: control.major,
            segment_size: control.segment_size,
        }
    }
}

/// Looks into the data directory, or asks the server where none is configured.
///
/// # Errors
/// `Transient` if the server does not answer; `Config` if it refuses; else what reading pg_control gave.
pub fn of(cluster: &Cluster, environment: Environment<'_>) -> Result<System> {
    if let Some(directory) = &cluster.data_directory {
        return ControlFile::read(directory)
            .map(|control| System::from(&control))
            .map_err(|error| error.hint("is data_directory right, and does this user own it?"));
    }
    let name = &cluster.name;
    let asked = cluster.connection(environment).and_then(|settings| {
        let mut session = Session::connect_for_cluster(&settings)?;
        log::info!(
            "cluster \"{name}\" has no data_directory: its server {} names the system identifier",
            session.describe()
        );
        ask(&mut session)
    });
    asked
        .map_err(|error| match error.nearest_hint() {
            Some(_) => error,
            None => error.hint(format!(
                "host, port, user and passfile in [cluster.{name}] say how the server is reached; \
                 one that runs on this host is known by its data_directory"
            )),
        })
        .context(|| {
            format!("cluster \"{name}\" has no data_directory, and its server does not name the system identifier")
        })
}

/// Asks the server.
///
/// # Errors
/// `Config` if the role may not know; else as [`Session::query`].
pub fn ask(session: &mut Session) -> Result<System> {
    let id = session.system_id().map_err(|error| match error.kind() {
        Kind::Transient => error,
        Kind::Config => error.hint(
            "let an administrator of the server say, in the database postgres: \
             GRANT EXECUTE ON FUNCTION pg_control_system() TO the configured user",
        ),
        _ => unknown(error),
    })?;
    Ok(System {
        id,
        major: session.server_version(),
        segment_size: session.segment_size()?,
    })
}

fn unknown(error: Error) -> Error {
    error.hint(
        "a server that has no system identifier cannot be bound to a repository: see docs/managed.md for a stand-in",
    )
}
