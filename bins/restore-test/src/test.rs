//! One test, from the plan to the last answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::config::{Cluster, Config, RestoreTest};
use common::erasure::{self, Found};
use common::error::{Error, Kind, Result, chain_with_hint};
use common::interrupt;
use common::postgres::{ControlFile, Major, Programs, Session};
use common::process;
use common::repository::backup::BackupInfo;
use common::repository::evidence::{Level, Report};
use common::repository::{FORMAT, Repository, tombstones, written_by};
use common::scratch::{self, Plan, Restorer, Scratch, ScratchServer, Wanted};
use common::time::UtcTime;

use crate::args::Args;
use crate::judge;
use crate::kept::{Details, Evidence};
use crate::moment;
use crate::questions::{self, Problem};

/// What a test is made of.
pub struct Test<'a> {
    /// What the user asked for.
    pub args: &'a Args,
    /// The configuration.
    pub config: &'a Config,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// This host's name.
    pub host: &'a str,
    /// Below it directories of runs are made.
    pub place: &'a Path,
    /// The repositories that are asked.
    pub repositories: &'a [Repository],
    /// The test before.
    pub last: Option<Evidence>,
}

/// What is known so far.
#[derive(Default)]
struct Progress {
    plan: Option<Plan>,
    details: Details,
    durations: BTreeMap<String, f64>,
    rto: Option<Duration>,
    rpo: Option<Duration>,
    newest_commit: Option<UtcTime>,
    checked: u64,
    tested_version: Option<String>,
}

impl Test<'_> {
    /// Runs it. What is wrong with the backup is in the result; only what keeps a test from being one is an error.
    ///
    /// # Errors
    /// `Config`, `Transient`, or a signal.
    pub fn run(&self) -> Result<Evidence> {
        let started = UtcTime::now();
        let mut progress = Progress::default();
        let scratch = Scratch::create(self.place, started)?;
        let outcome = self.go(&scratch, started, &mut progress);
        if outcome.is_ok() && self.args.keep {
            log::info!("{} stays", scratch.root().display());
        } else {
            scratch.remove()?;
        }
        // A signal is no finding, and neither is a repository that does not answer.
        interrupt::check()?;
        if let Err((check, error)) = outcome {
            if matches!(error.kind(), Kind::Config | Kind::Transient | Kind::Busy) {
                return Err(error);
            }
            progress.details.problems.insert(
                0,
                Problem {
                    check: check.to_owned(),
                    what: progress
                        .plan
                        .as_ref()
                        .map_or_else(|| "backup".to_owned(), |plan| plan.backup.label.to_string()),
                    found: chain_with_hint(&error),
                },
            );
        }
        Ok(self.evidence(started, progress))
    }

    fn settings(&self) -> &RestoreTest {
        &self.cluster.restore_test
    }

    fn level(&self) -> Level {
        self.args.level.unwrap_or(self.settings().level)
    }

    fn jobs(&self) -> usize {
        self.args.jobs.unwrap_or(self.config.jobs)
    }

    /// An error comes with the name of the check that it is a finding of.
    fn go(&self, scratch: &Scratch, started: UtcTime, progress: &mut Progress) -> Result<(), (&'static str, Error)> {
        let at = |check: &'static str| move |error: Error| (check, error);
        let deadline = Instant::now() + self.settings().time_limit;
        let restorer = Restorer::new(self.config, self.cluster, &self.args.repositories.names, deadline);
        let (wanted, plan) = self.choose(&restorer, scratch, started).map_err(at("restore"))?;
        progress.plan = Some(plan.clone());
        let info = plan.info(self.repositories).map_err(at("restore"))?;
        // Before hours of copying.
        let programs = Major::try_from(info.major)
            .and_then(|major| Programs::of_server(self.settings().bin_directory.as_deref(), major))
            .map_err(at("restore"))?;
        if self.level() == Level::Deep && info.data_checksums {
            programs
                .require(
                    "pg_checksums",
                    "the level deep needs it: it comes with the server's package; or choose --level standard",
                )
                .map_err(at("restore"))?;
        }
        progress.tested_version = Some(programs.version("postgres").map_err(at("restore"))?);

        let begun = Instant::now();
        let data = scratch.data();
        restorer
            .restore(&wanted, &data, &scratch.tablespaces(&info), self.jobs())
            .map_err(at("restore"))?;
        progress
            .durations
            .insert("restore".to_owned(), begun.elapsed().as_secs_f64());

        let replaying = Instant::now();
        let control = ControlFile::read(&data).map_err(at("restore"))?;
        let limits = (self.settings(), self.jobs(), deadline);
        let server = ScratchServer::start(scratch.root(), &data, &programs, &control, limits).map_err(at("replay"))?;
        let mut session = server.wait_ready().map_err(at("replay"))?;
        progress.rto = Some(begun.elapsed());
        progress
            .durations
            .insert("replay".to_owned(), replaying.elapsed().as_secs_f64());
        log::info!(
            "recovery has ended, after {}",
            common::units::display_duration(begun.elapsed())
        );

        let asking = Instant::now();
        let to_end = wanted.time.is_none();
        let asked = self.ask(&server, &mut session, &info, (started, to_end), progress);
        drop(session);
        // Where the time is over the server has been ended, and everything asked of it has failed for that.
        server.check_time().map_err(at("read"))?;
        let broken = asked.map_err(at("read"))?;
        if broken {
            progress
                .details
                .notes
                .push("the server broke down, so not everything was looked at".to_owned());
        } else if self.args.keep {
            scratch::keep(scratch).map_err(at("read"))?;
            let reach = server.reach();
            server.leave();
            log::warn!(
                "the server goes on running: {reach}; when you are done: {} -D {} stop && rm -r {}",
                programs.program("pg_ctl").display(),
                data.display(),
                scratch.root().display()
            );
        } else {
            server.stop().map_err(at("read"))?;
            if self.level() == Level::Deep && control.data_checksums {
                checksums(&programs, &data, deadline).map_err(at("checksums"))?;
            }
        }
        progress
            .durations
            .insert("checks".to_owned(), asking.elapsed().as_secs_f64());
        Ok(())
    }

    /// The moment, and the plan for it.
    fn choose(&self, restorer: &Restorer, scratch: &Scratch, now: UtcTime) -> Result<(Wanted, Plan)> {
        let wanted = Wanted {
            backup: self.args.backup,
            time: None,
            databases: Vec::new(),
        };
        match self.args.target_time.as_deref() {
            Some("random") => moment::random(self.repositories, restorer, &wanted, &scratch.data(), now),
            time => {
                let time = time.map(|time| common::time::parse_target(time, now)).transpose()?;
                let wanted = Wanted { time, ..wanted };
                let plan = restorer.plan(&wanted, &scratch.data())?;
                Ok((wanted, plan))
            }
        }
    }

    fn ask(
        &self,
        server: &ScratchServer,
        session: &mut Session,
        info: &BackupInfo,
        (started, to_end): (UtcTime, bool),
        progress: &mut Progress,
    ) -> Result<bool> {
        let newest = session.first("select (extract(epoch from pg_last_xact_replay_timestamp()) * 1000000)::bigint")?;
        let newest = newest.and_then(|text| text.parse().ok());
        progress.newest_commit = newest.map(UtcTime::from_unix_micros).transpose()?;
        if to_end {
            // Where nothing was committed since, all that the backup holds is as new as the backup.
            let newest = progress.newest_commit.into_iter().chain([info.stopped]).max();
            progress.rpo = newest.map(|newest| started.since(newest));
        }
        let databases = questions::databases(session, self.settings().databases.as_deref())?;
        let mut found = questions::look(server, self.level(), &databases, self.jobs())?;
        progress.checked = found.checked;
        // Another moment has other answers.
        let before = self.last.as_ref().map(|last| &last.details).filter(|_| to_end);
        let answers = |name: &str| {
            let last = before?.answers.iter().find(|answer| answer.name == name)?;
            last.value.as_deref()
        };
        let (notes, assertions) = match found.broken {
            true => (Vec::new(), &[][..]),
            false => (questions::collations(session)?, self.settings().assertions.as_slice()),
        };
        for note in notes {
            found.notes.push(format!(
                "{note}: text may sort otherwise here, and amcheck may find that"
            ));
        }
        for assertion in assertions {
            match questions::ask(server, assertion)? {
                Ok(answer) => {
                    let value = answer.value.as_deref();
                    found
                        .problems
                        .extend(judge::answer(assertion, value, answers(&assertion.name)));
                    progress.details.answers.push(answer);
                }
                Err(problem) => found.problems.push(problem),
            }
        }
        if !found.broken {
            found.notes.extend(self.erased(server, session));
        }
        let tables = before.map_or(&[][..], |last| &last.tables);
        // Quick reads no rows, and another moment has other ones.
        if self.level() > Level::Quick && !found.broken {
            let (problems, notes) = judge::rows(tables, &found.tables, self.settings().may_shrink);
            found.problems.extend(problems);
            found.notes.extend(notes);
        }
        found
            .problems
            .extend(judge::freshness(progress.rpo, self.settings().freshness));
        found
            .problems
            .extend(judge::objectives(self.cluster.objectives, progress.rpo, progress.rto));
        progress.details.problems = found.problems;
        progress.details.notes = found.notes;
        progress.details.tables = found.tables;
        Ok(found.broken)
    }

    /// Tenants that were erased and are there again at the restored moment.
    fn erased(&self, server: &ScratchServer, session: &mut Session) -> Vec<String> {
        let erasures = tombstones::of_all(self.repositories);
        if erasures.is_empty() {
            return Vec::new();
        }
        let found = erasure::still_there(session, &|database| server.connect(database), &erasures, &|_| true);
        let found = match found {
            Ok(found) => found,
            // Damage has its own findings.
            Err(error) => {
                return vec![format!(
                    "whether erased tenants come back is not known: {}",
                    chain_with_hint(&error)
                )];
            }
        };
        let note = |found: Found| {
            let (schema, database) = (found.schema, found.database);
            format!(
                "tenant {schema} of database {database} was erased at {} and comes back with this backup: after a restore run \
                 pgkeep-dump-restore --apply-erasures",
                found.erasure.time.whole_seconds()
            )
        };
        found.into_iter().map(note).collect()
    }

    fn evidence(&self, started: UtcTime, progress: Progress) -> Evidence {
        let Progress { plan, details, .. } = progress;
        let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs_f64());
        let report = Report {
            format: FORMAT,
            started,
            finished: UtcTime::now(),
            host: self.host.to_owned(),
            writer: written_by(),
            cluster: self.cluster.name.clone(),
            label: plan.as_ref().map(|plan| plan.backup.label),
            repository: plan.as_ref().and_then(|plan| plan.repositories.first().cloned()),
            level: self.level(),
            target: plan.as_ref().map(|plan| plan.target.clone()),
            passed: details.problems.is_empty(),
            problems: details.problems.len() as u64,
            rto_seconds: seconds(progress.rto),
            rpo_seconds: seconds(progress.rpo),
            newest_commit: progress.newest_commit,
            size_bytes: plan.as_ref().map(|plan| plan.size_bytes),
            durations: progress.durations,
            tables: details.tables.len() as u64,
            rows: details.tables.iter().map(|table| table.rows).sum(),
            checked: progress.checked,
            backed_up_version: plan.map(|plan| plan.backup.server_version),
            tested_version: progress.tested_version,
        };
        Evidence { report, details }
    }
}

/// Reads every page of the stopped cluster.
fn checksums(programs: &Programs, data: &Path, deadline: Instant) -> Result<()> {
    let mut command = Command::new(programs.program("pg_checksums"));
    command.args(["--check", "-D"]).arg(data);
    let output = process::run(command, deadline.saturating_duration_since(Instant::now()))?;
    process::expect_success("pg_checksums --check", &output)
}
