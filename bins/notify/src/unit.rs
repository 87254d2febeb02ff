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
    /// Its own name.
    pub name: String,
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
            name: name.to_owned(),
            job: other.map_or(job, |(_, job)| job).to_owned(),
            cluster: cluster.to_owned(),
        })
    }
}

/// How a unit failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// In words.
    pub said: String,
    /// Whether systemd does not start it any more: what the job's last run left says nothing of that.
    pub gave_up: bool,
}

/// What systemd calls a unit that it does not start, for it was started too often.
const TOO_OFTEN: &str = "start-limit-hit";

/// How systemd, or who stands in for it, says that it failed; nothing if it did not, or nobody says.
pub fn failure(environment: Environment<'_>) -> Option<Failure> {
    let of = |name: &str| environment(name).filter(|value| !value.is_empty());
    let result = of("MONITOR_SERVICE_RESULT").filter(|result| result != "success")?;
    let gave_up = result == TOO_OFTEN;
    // Where it gave up, code and status are those of a run before.
    let status = of("MONITOR_EXIT_STATUS").map_or_else(String::new, |status| {
        let code = of("MONITOR_EXIT_CODE").unwrap_or_default();
        format!(" ({code} {status})")
    });
    let said = match gave_up {
        true => {
            format!("systemd did not start it, for it was started too often ({TOO_OFTEN}), and goes on so for hours")
        }
        false => {
            format!("it ended with {result}{status}, and left no word of its own; the journal, or the log, has more")
        }
    };
    Some(Failure { said, gave_up })
}

/// What is told of a job: its own word, unless systemd says that it failed and the job does not, or that it is not started any more.
pub fn judge(left: Option<Status>, unit: &Unit, failure: Option<Failure>, host: &str, now: UtcTime) -> Option<Status> {
    let Some(failure) = failure else { return left };
    let is_bad = |status: &Status| !matches!(status.result, Outcome::Ok | Outcome::Skipped);
    let mut status = match left {
        Some(status) if is_bad(&status) && !failure.gave_up => return Some(status),
        Some(status) => status,
        None => never_ran(unit, host, now),
    };
    let own = status.message.take().filter(|_| is_bad(&status));
    if failure.gave_up {
        let name = &unit.name;
        let hint = format!("see to the cause, then: systemctl reset-failed {name}; systemctl start {name}");
        status.fields.insert("hint".to_owned(), hint.into());
    }
    Some(Status {
        result: Outcome::Failed,
        message: Some(own.map_or(failure.said.clone(), |own| format!("{own}; {}", failure.said))),
        finished: now,
        ..status
    })
}

/// Stands for the status of a job that left none.
fn never_ran(unit: &Unit, host: &str, now: UtcTime) -> Status {
    Status {
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
    }
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
        let killed = failure(&with("oom-kill")).unwrap();
        assert!(
            killed.said.contains("oom-kill (killed KILL)") && !killed.gave_up,
            "{killed:?}"
        );
        let gave_up = failure(&with("start-limit-hit")).unwrap();
        assert!(
            gave_up.said.contains("started too often") && !gave_up.said.contains("KILL") && gave_up.gave_up,
            "{gave_up:?}"
        );
        assert_eq!(failure(&with("success")), None);
        assert_eq!(failure(&|_| None), None);
    }

    #[test]
    fn the_jobs_own_word_of_a_failure_comes_first() {
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        let unit = Unit::parse("pgkeep-dump@main.service").unwrap();
        let of = |left: Option<Status>, failure: Option<&str>| {
            let failure = failure.map(|said| Failure {
                said: said.to_owned(),
                gave_up: false,
            });
            judge(left, &unit, failure, "db1", now)
        };
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

    #[test]
    fn a_unit_that_is_started_no_more_is_told_whatever_its_last_run_left() {
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        let unit = Unit::parse("pgkeep-check@main.service").unwrap();
        let gave_up = Failure {
            said: "started too often".to_owned(),
            gave_up: true,
        };
        let of = |left: Option<Status>| judge(left, &unit, Some(gave_up.clone()), "db1", now).unwrap();
        let never = of(None);
        let left = |result, message: &str| Status {
            result,
            message: Some(message.to_owned()),
            ..never.clone()
        };
        for (status, message) in [
            (never.clone(), "started too often"),
            (of(Some(left(Outcome::Ok, "x"))), "started too often"),
            (of(Some(left(Outcome::Skipped, "a replica"))), "started too often"),
            (of(Some(left(Outcome::Failed, "disk"))), "disk; started too often"),
        ] {
            assert_eq!(
                (status.result, status.message.as_deref()),
                (Outcome::Failed, Some(message))
            );
            let hint = status.fields["hint"].as_str().unwrap();
            assert!(
                hint.contains("systemctl reset-failed pgkeep-check@main.service"),
                "{hint}"
            );
        }
    }
}
