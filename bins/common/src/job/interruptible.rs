//! Runs a job that a signal may end, and leaves its traces in every case.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Job, Report};
use crate::error::Result;
use crate::exit::{self, Contract, Verdict};
use crate::interrupt::{self, Interrupt};
use crate::time::UtcTime;

/// How such a job ended, if not by an error.
pub enum Ending<T> {
    /// It came to its end.
    Done(T),
    /// A signal ended it.
    Interrupted(Interrupt),
}

impl<T: Verdict> Verdict for Ending<T> {
    fn code(&self) -> u8 {
        match self {
            Self::Done(result) => result.code(),
            Self::Interrupted(interrupt) => interrupt.exit_code(),
        }
    }
}

/// Does `work`, which asks [`interrupt::check`] now and then, and leaves what `report` makes of its result.
///
/// # Errors
/// Those of `work`, unless a signal caused them.
pub fn run<T>(
    job: Job,
    contract: Contract,
    work: impl FnOnce() -> Result<T>,
    report: impl FnOnce(&T) -> Report,
) -> Result<Ending<T>> {
    let job = Arc::new(Mutex::new(Some(job)));
    let finish = |job: &Mutex<Option<Job>>, report: &Report| {
        let taken = job.lock().unwrap_or_else(PoisonError::into_inner).take();
        let first = taken.is_some();
        if let Some(job) = taken {
            job.finish(report, UtcTime::now());
        }
        first
    };
    let last = Arc::clone(&job);
    interrupt::watch(move |interrupt| {
        // Whoever takes the job ends the process.
        if finish(&last, &Report::interrupted(interrupt)) {
            log::error!("{interrupt}");
            exit::leave(interrupt.exit_code());
        }
    })?;
    let result = work();
    match (result, interrupt::caught()) {
        (Err(_), Some(interrupt)) => {
            if finish(&job, &Report::interrupted(interrupt)) {
                log::error!("{interrupt}");
            }
            Ok(Ending::Interrupted(interrupt))
        }
        (Err(error), None) => {
            finish(&job, &Report::failure(&error, contract));
            Err(error)
        }
        (Ok(done), _) => {
            finish(&job, &report(&done));
            Ok(Ending::Done(done))
        }
    }
}
