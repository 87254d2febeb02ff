//! What systemd knows of a unit that has ended. Pure but for the environment.
//!
//! A unit that OnFailure= or OnSuccess= starts is told by variables how the other one ended (systemd.exec(5), `MONITOR_SERVICE_RESULT`,
//! since systemd 251). That counts where the job left no word of its own: it was killed, or never began.

use common::config::Environment;
use common::error::{Error, Kind, Result};
use common::job::{Outcome, Status};
use common::time::UtcTime;

/// A job by the name of its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The job whose status is told.
    pub job: String,
    /// The cluster.
    pub cluster: String,
}

/// Units whose job has another name.
const OTHERS: [(&str, &str); 2] = [("full-backup", "base-backup"), ("check", "check-archive")];

impl Unit {
    /// Reads `pgkeep-JOB@CLUSTER.service`.
    ///
    /// # Errors
    /// `Config` if it is none.
    pub fn parse(name: &str) -> Result<Self> {
        let parts = name
            .strip_suffix(".service")
            .unwrap_or(name)
            .strip_prefix("pgkeep-")
            .and_then(|rest| rest.split_once('@'))
            .filter(|(job, cluster)| !job.is_empty() && !cluster.is_empty());
        let (job, cluster) = parts.ok_or_else(|| {
            Error::new(Kind::Config, format!("\"{name}\" is no unit of a job"))
                .hint("such a unit is called pgkeep-JOB@CLUSTER.service")
        })?;
        let other = OTHERS.iter().find(|(unit, _)| *unit == job);
        Ok(Self {
            job: other.map_or(job, |(_, job)| job).to_owned(),
            cluster: cluster.to_owned(),
        })
    }
}

/// How systemd, or who stands in for it, says that it failed; nothing if it did not, or nobody says.
pub fn failure(environment: Environment<'_>) -> Option<String> {
    let of = |name: &str| environment(name).filter(|value| !value.is_empty());
    let result = of("MONITOR_SERVICE_RESULT").filter(|result| result != "success")?;
    let status = of("MONITOR_EXIT_STATUS").map_or_else(String::new, |status| {
        let code = of("MONITOR_EXIT_CODE").unwrap_or_default();
        format!(" ({code} {status})")
    });
    Some(format!(
        "it ended with {result}{status}, and left no word of its own; the journal, or the log, has more"
    ))
}

/// What is told of a job: its own word, unless systemd says that it failed and the job does not.
pub fn judge(left: Option<Status>, unit: &Unit, failure: Option<String>, host: &str, now: UtcTime) -> Option<Status> {
    let Some(failure) = failure else { return left };
    let status = match left {
        Some(status) if !matches!(status.result, Outcome::Ok | Outcome::Skipped) => return Some(status),
        Some(status) => status,
        None => Status {
            tool: unit.job.clone(),
            cluster: unit.cluster.clone(),
            host: host.to_owned(),
            user: String::new(),
            pid: 0,
            started: now,
            finished: now,
            result: Outcome::Failed,
            message: None,
            exit_code: 1,
            last_success: None,
            last_failure: None,
            fields: std::collections::BTreeMap::new(),
            last_success_fields: std::collections::BTreeMap::new(),
        },
    };
    Some(Status {
        result: Outcome::Failed,
        message: Some(failure),
        finished: now,
        ..status
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_unit_names_job_and_cluster() {
        for (name, job, cluster) in [
            ("pgkeep-base-backup@main.service", "base-backup", "main"),
            ("pgkeep-full-backup@main.service", "base-backup", "main"),
            ("pgkeep-check@a-b.service", "check-archive", "a-b"),
            ("pgkeep-dump@main", "dump", "main"),
        ] {
            let unit = Unit::parse(name).unwrap();
            assert_eq!((unit.job.as_str(), unit.cluster.as_str()), (job, cluster), "{name}");
        }
        for name in ["ssh.service", "pgkeep-dump", "pgkeep-@main", "pgkeep-dump@", ""] {
            assert_eq!(Unit::parse(name).unwrap_err().kind(), Kind::Config, "{name}");
        }
    }

    #[test]
    fn systemd_says_how_it_failed() {
        let with = |result: &'static str| {
            move |name: &str| match name {
                "MONITOR_SERVICE_RESULT" => Some(result.to_owned()),
                "MONITOR_EXIT_CODE" => Some("killed".to_owned()),
                "MONITOR_EXIT_STATUS" => Some("KILL".to_owned()),
                _ => None,
            }
        };
        assert!(failure(&with("oom-kill")).unwrap().contains("oom-kill (killed KILL)"));
        assert_eq!(failure(&with("success")), None);
        assert_eq!(failure(&|_| None), None);
    }

    #[test]
    fn the_jobs_own_word_of_a_failure_comes_first() {
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        let unit = Unit::parse("pgkeep-dump@main.service").unwrap();
        let of =
            |left: Option<Status>, failure: Option<&str>| judge(left, &unit, failure.map(str::to_owned), "db1", now);
        let killed = of(None, Some("oom-kill")).unwrap();
        assert_eq!((killed.result, killed.tool.as_str()), (Outcome::Failed, "dump"));
        let ok = Status {
            result: Outcome::Ok,
            message: None,
            ..killed.clone()
        };
        assert_eq!(
            of(Some(ok.clone()), Some("oom-kill")).unwrap().message.unwrap(),
            "oom-kill"
        );
        assert_eq!(of(Some(ok.clone()), None), Some(ok));
        let own = Status {
            message: Some("repository full".to_owned()),
            ..killed
        };
        assert_eq!(of(Some(own.clone()), Some("exit-code")), Some(own));
        assert_eq!(of(None, None), None);
    }
}
