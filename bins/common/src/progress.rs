//! How far long work is: a bar on a terminal, else a line in the log now and then.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::units::{ByteSize, display_duration};

/// Without a terminal a line comes this often.
const LINE_EVERY: Duration = Duration::from_secs(60);
/// A bar moves this often.
const BAR_EVERY: Duration = Duration::from_millis(200);

/// Shows bytes on their way to a total.
pub struct Progress {
    verb: &'static str,
    bar: Option<ProgressBar>,
    total_bytes: u64,
    began: Instant,
    next_line: Instant,
}

impl Progress {
    /// Begins; `verb` says what was done with the bytes ("copied"), `on_terminal` draws a bar on stderr.
    pub fn begin(verb: &'static str, total_bytes: u64, on_terminal: bool, now: Instant) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = on_terminal
            .then(|| ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr()).with_style(style));
        Self {
            verb,
            bar,
            total_bytes,
            began: now,
            next_line: now + LINE_EVERY,
        }
    }

    /// Shows where the work is.
    pub fn show(&mut self, bytes: u64, now: Instant) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        } else if now >= self.next_line {
            let elapsed = now.duration_since(self.began);
            log::info!("{}", line(self.verb, bytes, self.total_bytes, elapsed));
            self.next_line = now + LINE_EVERY;
        }
    }

    /// Removes the bar.
    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Shows `done`, as another thread, while `work` runs.
pub fn showing<T>(mut progress: Progress, done: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let over = (Mutex::new(()), Condvar::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut guard = over.0.lock().unwrap_or_else(PoisonError::into_inner);
            while !over.2.load(Ordering::Relaxed) {
                let waited = over.1.wait_timeout(guard, BAR_EVERY);
                guard = waited.unwrap_or_else(PoisonError::into_inner).0;
                progress.show(done.load(Ordering::Relaxed), Instant::now());
            }
            progress.end();
        });
        let result = work();
        // The flag changes under the lock, so that the thread either sees it or is woken.
        let guard = over.0.lock().unwrap_or_else(PoisonError::into_inner);
        over.2.store(true, Ordering::Relaxed);
        drop(guard);
        over.1.notify_all();
        result
    })
}

/// `copied 1.2 GiB of 4.0 GiB (30 %), 200 MiB/s, about 14s left`.
fn line(verb: &str, bytes: u64, total: u64, elapsed: Duration) -> String {
    let percent = (bytes as f64 / total.max(1) as f64 * 100.0).min(100.0);
    let rate = bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let left = Duration::from_secs((total.saturating_sub(bytes) as f64 / rate.max(1.0)) as u64);
    let (bytes, total, rate) = (ByteSize(bytes), ByteSize(total), ByteSize(rate as u64));
    format!(
        "{verb} {bytes} of {total} ({percent:.0} %), {rate}/s, about {} left",
        display_duration(left)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_how_far_how_fast_and_how_long() {
        let text = line("copied", 1 << 30, 4 << 30, Duration::from_secs(10));
        assert!(
            text.starts_with("copied 1.0 GiB") && text.contains("25 %") && text.contains("30s"),
            "{text}"
        );
    }

    #[test]
    fn nothing_done_yet_is_no_division_by_zero() {
        assert!(line("copied", 0, 0, Duration::ZERO).contains("0 %"));
    }

    #[test]
    fn work_that_ends_at_once_is_not_waited_for() {
        let began = Instant::now();
        let progress = Progress::begin("restored", 10, false, began);
        assert_eq!(showing(progress, &AtomicU64::new(0), || 7), 7);
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
