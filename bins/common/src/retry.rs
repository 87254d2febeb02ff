//! Trying again: only what is `Transient`, with growing random pauses, until patience ends.
//!
//! The pauses have full jitter (uniform between nothing and the current ceiling, which doubles), so that many
//! hosts which lost the same store do not come back in step. Patience is the whole time, attempts included:
//! the last pause is cut so that one more attempt starts before it ends. Whether an operation may be repeated
//! at all is the caller's to know.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Kind, Result, chain};
use crate::units::display_duration;

/// How long, and at which pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// No attempt starts later than this after the first.
    pub patience: Duration,
    /// The ceiling of the first pause.
    pub first_delay: Duration,
    /// The ceiling of all pauses.
    pub max_delay: Duration,
}

impl Policy {
    /// One attempt.
    pub const fn once() -> Self {
        Self::patient(Duration::ZERO)
    }

    /// Attempts for so long, at pauses of up to 0.2 s at first and 15 s in the end.
    pub const fn patient(patience: Duration) -> Self {
        Self {
            patience,
            first_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(15),
        }
    }

    /// Runs `attempt` until it succeeds, fails for good, or patience ends; logs waits as warnings, the same one only now and then.
    ///
    /// # Errors
    /// The last attempt's; after several its sentence says how many and for how long.
    pub fn run<T>(&self, what: impl Display, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.run_with(&mut Watch(Instant::now()), what, attempt)
    }

    fn run_with<T>(
        &self,
        clock: &mut impl Clock,
        what: impl Display,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut ceiling = self.first_delay;
        let mut attempts = 1u32;
        let mut repeated = Repeated::default();
        loop {
            let error = match attempt() {
                Err(error) if error.kind() == Kind::Transient => error,
                outcome => return outcome,
            };
            let elapsed = clock.elapsed();
            let left = self.patience.saturating_sub(elapsed);
            if left.is_zero() {
                return Err(match attempts {
                    1 => error,
                    _ => error.context(format!(
                        "gave up after {attempts} attempts in {}",
                        display_duration(elapsed)
                    )),
                });
            }
            let pause = jitter(ceiling.min(self.max_delay)).min(left);
            let said = told(&what.to_string(), chain(&error));
            log::log!(
                repeated.level(&said, elapsed),
                "{said}; trying again in {}, for {} at most",
                display_duration(pause),
                display_duration(left)
            );
            clock.sleep(pause);
            ceiling = ceiling.saturating_mul(2);
            attempts = attempts.saturating_add(1);
        }
    }
}

/// The same warning is worth repeating so often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What was said last, and when.
#[derive(Default)]
struct Repeated(Option<(String, Duration)>);

impl Repeated {
    /// How loud something is to be said: what was said a moment ago interests nobody.
    fn level(&mut self, said: &str, elapsed: Duration) -> log::Level {
        match &self.0 {
            Some((before, at)) if before == said && elapsed.saturating_sub(*at) < SAY_AGAIN => log::Level::Debug,
            _ => {
                self.0 = Some((said.to_owned(), elapsed));
                log::Level::Warn
            }
        }
    }
}

/// What failed, and why; said once where the error names the same thing.
fn told(what: &str, error: String) -> String {
    if error.starts_with(what) {
        error
    } else {
        format!("{what}: {error}")
    }
}

/// A random span of up to `ceiling`, and at least a millisecond.
fn jitter(ceiling: Duration) -> Duration {
    let ceiling = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
    // Without random numbers hosts may come back in step, which is slower and not wrong.
    let random = getrandom::u64().unwrap_or(u64::MAX / 2);
    let part = (u128::from(ceiling) * u128::from(random)) >> 64;
    Duration::from_micros(u64::try_from(part).unwrap_or(ceiling)).max(Duration::from_millis(1))
}

/// What passes the time; tests bring their own.
trait Clock {
    fn elapsed(&self) -> Duration;
    fn sleep(&mut self, span: Duration);
}

struct Watch(Instant);

impl Clock for Watch {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&mut self, span: Duration) {
        sleep(span);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::error::Error;

    #[derive(Default)]
    struct Fake {
        now: Duration,
        pauses: Vec<Duration>,
    }

    impl Clock for Fake {
        fn elapsed(&self) -> Duration {
            self.now
        }

        fn sleep(&mut self, span: Duration) {
            self.now += span;
            self.pauses.push(span);
        }
    }

    fn transient<T>() -> Result<T> {
        Err(Error::new(Kind::Transient, "no route"))
    }

    #[test]
    fn the_same_warning_comes_once_a_minute_and_another_one_at_once() {
        let mut repeated = Repeated::default();
        let mut level = |said: &str, seconds| repeated.level(said, Duration::from_secs(seconds));
        assert_eq!(level("refused", 0), log::Level::Warn);
        assert_eq!(level("refused", 1), log::Level::Debug);
        assert_eq!(level("refused", 59), log::Level::Debug);
        assert_eq!(level("refused", 60), log::Level::Warn);
        assert_eq!(level("reset", 61), log::Level::Warn);
        assert_eq!(level("refused", 62), log::Level::Warn);
    }

    #[test]
    fn once_is_one_attempt() {
        let mut attempts = 0;
        let outcome: Result<()> = Policy::once().run("ask", || {
            attempts += 1;
            transient()
        });
        assert_eq!(outcome.unwrap_err().to_string(), "no route");
        assert_eq!(attempts, 1);
    }

    #[test]
    fn only_transient_errors_are_tried_again() {
        for kind in [
            Kind::NotFound,
            Kind::AlreadyExists,
            Kind::Corrupt,
            Kind::Refused,
            Kind::Busy,
            Kind::Failed,
        ] {
            let mut attempts = 0;
            let outcome: Result<()> = Policy::patient(Duration::from_secs(60)).run("ask", || {
                attempts += 1;
                Err(Error::new(kind, "no"))
            });
            assert_eq!((outcome.unwrap_err().kind(), attempts), (kind, 1));
        }
    }

    #[test]
    fn success_ends_it() {
        let mut clock = Fake::default();
        let mut attempts = 0;
        let policy = Policy::patient(Duration::from_secs(600));
        let outcome = policy.run_with(&mut clock, "ask", || {
            attempts += 1;
            if attempts < 4 { transient() } else { Ok(attempts) }
        });
        assert_eq!(outcome.unwrap(), 4);
        assert_eq!(clock.pauses.len(), 3);
    }

    #[test]
    fn pauses_stay_below_the_ceiling_and_patience_is_the_whole_time() {
        let mut clock = Fake::default();
        let policy = Policy::patient(Duration::from_secs(300));
        let error = policy.run_with::<()>(&mut clock, "ask", transient).unwrap_err();
        assert_eq!(clock.now, policy.patience);
        assert!(clock.pauses.iter().all(|pause| *pause <= policy.max_delay));
        assert!(clock.pauses[0] <= policy.first_delay);
        assert!(clock.pauses.len() >= 20, "{:?}", clock.pauses);
        assert_eq!(error.kind(), Kind::Transient);
        assert!(chain(&error).ends_with("attempts in 5m: no route"), "{error:?}");
    }

    #[test]
    fn a_slow_attempt_uses_patience_up() {
        struct Slow(u64);
        impl Clock for Slow {
            fn elapsed(&self) -> Duration {
                Duration::from_secs(61)
            }
            fn sleep(&mut self, _: Duration) {
                self.0 += 1;
            }
        }
        let mut clock = Slow(0);
        let policy = Policy::patient(Duration::from_secs(60));
        assert!(policy.run_with::<()>(&mut clock, "ask", transient).is_err());
        assert_eq!(clock.0, 0);
    }
}
