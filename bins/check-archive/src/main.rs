//! `pgkeep-check-archive`: does WAL reach every repository, without gaps.

mod args;
mod judge;
mod look;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::check::{Line, State};
use common::config::access::{Access, access};
use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result, chain};
use common::exit;
use common::job::{Job, Origin, Report, Sample, Status};
use common::open;
use common::repository::tombstones;
use common::time::UtcTime;
use common::units::display_seconds;

use args::Args;
use judge::{Limits, judge};

/// Monitoring does not wait longer for a store.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    exit::main(exit::CHECK, |args: Args| {
        let line = match access(&args.common, &exit::environment)? {
            Access::Full(config) => {
                let cluster = args.common.choose(&config)?;
                full(&args, &config, cluster)?
            }
            Access::StatusOnly(state, cluster) => of_status(&state, &cluster, args.stale)?,
        };
        exit::print(&line.text())?;
        Ok(line)
    })
}

fn full(args: &Args, config: &Config, cluster: &Cluster) -> Result<Line> {
    if args.ready_warning > args.ready_critical {
        return Err(Error::new(
            Kind::Config,
            "--ready-warning is larger than --ready-critical",
        ));
    }
    open::become_owner(cluster)?;
    let state = config.state_of(cluster);
    // Who may not leave a status is told what one that may has left; but the server's own user has to be able to.
    let writes = config.may_leave(cluster);
    let locked_out = !writes && cluster.is_own();
    if !writes
        && !locked_out
        && let Ok(line) = of_status(&config.state_directory, &cluster.name, args.stale)
    {
        return Ok(line);
    }
    let job = writes.then(|| {
        Job::start(
            config.job(cluster, "check-archive", Origin::of_this_process()),
            UtcTime::now(),
        )
    });
    let mut looked = match look_at_all(args, config, cluster) {
        Ok(looked) => looked,
        // Who may leave a status leaves this one, too: else the one before goes on to be told.
        Err(error) if job.is_some() => cannot_look(&error, args),
        Err(error) => return Err(error),
    };
    if locked_out {
        let words = format!(
            "{} cannot be written by the server's user: archive-push needs it",
            state.display()
        );
        looked.line.add(State::Critical, words);
    }
    if let Some(job) = job {
        job.finish(&looked.report(), UtcTime::now());
    }
    Ok(looked.line)
}

/// What came of a look at everything.
#[derive(Default)]
struct Looked {
    line: Line,
    ready: Option<u64>,
    samples: Vec<Sample>,
}

fn look_at_all(args: &Args, config: &Config, cluster: &Cluster) -> Result<Looked> {
    let patience = config.patience.min(PATIENCE);
    let repositories = open::repositories_within(config, cluster, &args.repositories.names, patience)?;
    let erasures = tombstones::of_all(&repositories);
    let purpose = open::purpose(config, cluster, patience)?;
    let asked = look::server(cluster, &exit::environment, &erasures, purpose);
    let cache = &config.state_of(cluster).join("catalog");
    let begun = Instant::now();
    let deadline = begun + args.timeout;
    let found: Vec<judge::Repository> = std::thread::scope(|scope| {
        let look =
            |repository| scope.spawn(move || look::repository(repository, cache, asked.wanted, (begun, deadline)));
        let looking: Vec<_> = repositories.iter().map(look).collect();
        looking.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let limits = Limits {
        ready: (args.ready_warning, args.ready_critical),
        rpo: cluster.objectives.rpo,
    };
    let help = "Erased tenants that the server has, and dumps of erased tenants that are not deleted.";
    let pending = judge::pending(&asked.server, &found) as f64;
    let pending = Sample::new("pgkeep_erasures_pending", pending, help);
    Ok(Looked {
        line: judge(&asked.server, &found, limits),
        ready: asked.server.ready.map(|(count, _)| count),
        samples: std::iter::once(pending).chain(found.iter().flat_map(samples)).collect(),
    })
}

/// A configuration that cannot be used here is not used by archive-push either.
fn cannot_look(error: &Error, args: &Args) -> Looked {
    let state = match error.kind() {
        Kind::Transient | Kind::Busy => State::Unknown,
        _ if args.repositories.names.is_empty() => State::Critical,
        _ => State::Unknown,
    };
    let mut looked = Looked::default();
    looked.line.add(state, chain(error));
    looked
}

impl Looked {
    fn report(&self) -> Report {
        let report = match self.line.state() {
            State::Ok => Report::success(),
            state => Report::bad(state.code(), self.line.words()),
        };
        let report = report
            .field("line", self.line.text().trim_end())
            .field("state", self.line.state().code());
        let report = match self.ready {
            Some(count) => report.field("ready", count),
            None => report,
        };
        self.samples.iter().cloned().fold(report, Report::sample)
    }
}

/// What is measured of a repository.
fn samples(repository: &judge::Repository) -> Vec<Sample> {
    let told = |name: &str, value: f64, help| Sample::new(name, value, help).label("repository", &repository.name);
    let flag = |name: &str, set: bool, help| told(name, f64::from(u8::from(set)), help);
    let mut samples = vec![flag(
        "pgkeep_repository_readable",
        repository.gaps.is_ok(),
        "Whether the repository could be read.",
    )];
    if let Some(reached) = &repository.reached {
        let help = "Whether a WAL segment reached the repository.";
        samples.push(flag("pgkeep_wal_reaches", reached.is_ok(), help));
    }
    if let Ok(gaps) = &repository.gaps {
        for (behind, gap) in [("newest", gaps.newest.is_some()), ("older", gaps.older.is_some())] {
            let help = "Whether WAL is missing behind the newest good backup, or behind an older one alone.";
            samples.push(flag("pgkeep_wal_gap", gap, help).label("behind", behind));
        }
    }
    let Some(holds) = &repository.holds else { return samples };
    let help = "Stored bytes of backups and WAL.";
    samples.push(told("pgkeep_repository_bytes", holds.bytes as f64, help));
    samples.push(told("pgkeep_repository_backups", holds.backups as f64, "Good backups."));
    if let Some((free, total)) = holds.space {
        let help = "What is free on its file system.";
        samples.push(told("pgkeep_repository_free_bytes", free as f64, help));
        samples.push(told(
            "pgkeep_repository_size_bytes",
            total as f64,
            "The size of its file system.",
        ));
    }
    let newest = [("any", holds.newest.0), ("full", holds.newest.1)];
    for (kind, time) in newest.into_iter().filter_map(|(kind, time)| Some((kind, time?))) {
        let name = "pgkeep_repository_newest_backup_timestamp_seconds";
        let help = "When the newest good backup ended, of any type and full.";
        samples.push(told(name, time as f64, help).label("type", kind));
    }
    samples
}

/// What the last run on this host found, for whoever may not look.
fn of_status(state: &Path, cluster: &str, stale: Duration) -> Result<Line> {
    let path = Status::path(state, cluster, "check-archive");
    let Some(status) = Status::read(&path)? else {
        let message = format!(
            "{} is not there: check-archive never ran as the server's user",
            path.display()
        );
        return Err(Error::new(Kind::NotFound, message)
            .hint("a timer runs it: systemctl enable --now pgkeep-check@CLUSTER.timer"));
    };
    let mut line = Line::default();
    let age = UtcTime::now().since(status.finished);
    let shown = display_seconds(age);
    if age > stale {
        line.add(State::Critical, format!("stale: check-archive last ran {shown} ago"));
        return Ok(line);
    }
    let state = match status.fields.get("state").and_then(|state| state.as_u64()) {
        Some(0) => State::Ok,
        Some(1) => State::Warning,
        Some(2) => State::Critical,
        _ => State::Unknown,
    };
    let words = status
        .fields
        .get("line")
        .and_then(|line| line.as_str())
        .unwrap_or("the last run could not tell");
    let words = words.split_once(" - ").map_or(words, |(_, words)| words);
    let words = words.split(" | ").next().unwrap_or(words);
    line.add(state, format!("{words} ({shown} ago)"));
    Ok(line)
}
