//! `pgkeep-restore-test`: a backup counts once it has been restored.

mod args;
mod judge;
mod kept;
mod moment;
mod questions;
mod show;
mod test;

use std::process::ExitCode;

use common::config::cli::FormatName;
use common::config::{Cluster, Config};
use common::error::{Error, Kind, Result, chain};
use common::exit::{self, Verdict};
use common::job::interruptible::{self, Ending};
use common::job::{Job, Origin, Report};
use common::lock::FileLock;
use common::repository::evidence;
use common::time::UtcTime;
use common::{durable, open, scratch};

use args::Args;
use kept::{Evidence, Kept};
use test::Test;

fn main() -> ExitCode {
    exit::main(exit::WORK, |args: Args| {
        let config = args.common.load(&exit::environment)?;
        let cluster = args.common.choose(&config)?;
        open::become_postgres(cluster)?;
        let origin = Origin::of_this_process();
        let host = origin.host.clone();
        let job = Job::start(config.job(cluster, "restore-test", origin), UtcTime::now());
        let work = || run(&args, &config, cluster, &host).map(Done);
        let ending = interruptible::run(job, exit::WORK, work, Done::report)?;
        if let Ending::Done(done) = &ending {
            match args.format.format {
                FormatName::Json => exit::print(&show::json(&done.0)?)?,
                FormatName::Text => exit::print(&show::text(&done.0))?,
            }
        }
        Ok::<Ending<Done>, Error>(ending)
    })
}

struct Done(Evidence);

impl Done {
    fn report(&self) -> Report {
        let report = &self.0.report;
        let base = match self.0.details.problems.first() {
            None => Report::success(),
            Some(first) => {
                let more = report.problems.saturating_sub(1);
                let more = if more > 0 {
                    format!("; and {more} more")
                } else {
                    String::new()
                };
                Report::bad(1, format!("{}: {}: {}{more}", first.check, first.what, first.found))
            }
        };
        let mut base = base
            .field("level", serde_json::json!(report.level))
            .field("problems", report.problems)
            .field("duration_seconds", report.finished.since(report.started).as_secs_f64());
        if let Some(label) = report.label {
            base = base.field("label", label.to_string());
        }
        let numbers = [
            ("rto_seconds", report.rto_seconds),
            ("rpo_seconds", report.rpo_seconds),
            ("size_bytes", report.size_bytes.map(|bytes| bytes as f64)),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                base = base.field(name, number);
            }
        }
        base
    }
}

impl Verdict for Done {
    fn code(&self) -> u8 {
        u8::from(!self.0.report.passed)
    }
}

fn run(args: &Args, config: &Config, cluster: &Cluster, host: &str) -> Result<Evidence> {
    let state = config.state_of(cluster);
    durable::create_dir_all(&state, 0o755)?;
    let lock = FileLock::try_acquire(&state.join("restore-test.lock"))?;
    let Some(_lock) = lock else {
        return Err(Error::new(
            Kind::Busy,
            "another restore test of this cluster is running on this host",
        ));
    };
    let place = scratch::place(cluster, &state, "restore-test")?;
    scratch::collect(&place)?;
    let kept = Kept::below(&state);
    let repositories = open::repositories(config, cluster, &args.repositories.names)?;
    let test = Test {
        args,
        config,
        cluster,
        host,
        place: &place,
        repositories: &repositories,
        last: kept.last(),
    };
    let evidence = test.run()?;
    match kept.keep(&evidence) {
        Ok(path) => log::info!("what was found is kept in {}", path.display()),
        Err(error) => log::warn!("what was found cannot be kept on this host: {}", chain(&error)),
    }
    for repository in &repositories {
        let stored = evidence::store(
            repository,
            &evidence.report,
            &evidence.details,
            config.compression_level,
        );
        match stored {
            Ok(()) => {}
            // A host that only restores need not be able to write.
            Err(error) if error.is_denied() || error.kind() == Kind::Refused => {
                log::info!(
                    "repository \"{}\" takes no evidence from here: {}",
                    repository.name,
                    chain(&error)
                );
            }
            Err(error) => log::warn!(
                "what was found cannot be kept in repository \"{}\": {}",
                repository.name,
                chain(&error)
            ),
        }
    }
    Ok(evidence)
}
