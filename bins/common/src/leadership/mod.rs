//! Which server of a cluster does the work: timers run on every one, and its role decides.
//!
//! Patroni is asked where the configuration names it, and the server itself. A role that cannot be found out is an error, never a guess.

pub mod patroni;

use clap::ValueEnum;

use crate::config::Cluster;
use crate::error::Result;
use patroni::Patroni;

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It accepts writes.
    Primary,
    /// It follows another.
    Standby,
}

impl Role {
    /// The word in `backup.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }

    /// By what `pg_is_in_recovery()` says.
    pub fn of(in_recovery: bool) -> Self {
        if in_recovery { Self::Standby } else { Self::Primary }
    }
}

/// On which server to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Where {
    /// On whichever server this is
    #[default]
    Any,
    /// On the primary
    Primary,
    /// On a standby
    Standby,
    /// On a standby, or on the primary while there is no fit standby
    PreferStandby,
}

/// Whether to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Do the work.
    Go,
    /// There is nothing to do, and why.
    Skip(String),
}

/// Decides by the server's role; `standby_runs` tells whether the cluster has a standby to do it on, as far as that is known.
pub fn judge(wanted: Where, role: Role, standby_runs: bool) -> Decision {
    let why = match (wanted, role) {
        (Where::Primary, Role::Standby) => "this server is a standby, and --only-on primary was asked",
        (Where::Standby, Role::Primary) => "this server is the primary, and --only-on standby was asked",
        (Where::PreferStandby, Role::Primary) if standby_runs => {
            "this server is the primary, a standby runs, and --only-on prefer-standby was asked"
        }
        _ => return Decision::Go,
    };
    Decision::Skip(why.to_owned())
}

/// Decides by what Patroni says, where it is configured: it knows of a role before the server itself does. It is asked only where the
/// role decides.
///
/// # Errors
/// As [`Patroni::role`].
pub fn by_patroni(wanted: Where, cluster: &Cluster) -> Result<Decision> {
    let Some(url) = cluster.patroni.as_ref().filter(|_| wanted != Where::Any) else {
        return Ok(Decision::Go);
    };
    let patroni = Patroni::at(url, cluster.patroni_ca.as_deref())?;
    let role = patroni.role()?;
    let standby_runs = match (wanted, role) {
        (Where::PreferStandby, Role::Primary) => patroni::has_standby(&patroni.members()?),
        _ => false,
    };
    Ok(match judge(wanted, role, standby_runs) {
        Decision::Go => Decision::Go,
        Decision::Skip(why) => Decision::Skip(format!("{why} (says Patroni)")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_the_wrong_role_has_nothing_to_do() {
        let goes = |wanted, role, standby_runs| judge(wanted, role, standby_runs) == Decision::Go;
        for standby_runs in [false, true] {
            assert!(goes(Where::Any, Role::Primary, standby_runs));
            assert!(goes(Where::Any, Role::Standby, standby_runs));
            assert!(goes(Where::Primary, Role::Primary, standby_runs));
            assert!(!goes(Where::Primary, Role::Standby, standby_runs));
            assert!(!goes(Where::Standby, Role::Primary, standby_runs));
            assert!(goes(Where::Standby, Role::Standby, standby_runs));
            assert!(goes(Where::PreferStandby, Role::Standby, standby_runs));
            assert_eq!(goes(Where::PreferStandby, Role::Primary, standby_runs), !standby_runs);
        }
    }
}
