//! How far the fetch is: a bar on a terminal, else a line in the log now and then.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::units::{ByteSize, display_duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(60);
const BAR_EVERY: Duration = Duration::from_millis(200);

/// Shows `done` on its way to `total` while `work` runs.
pub fn showing<T>(total: u64, on_terminal: bool, done: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let over = (Mutex::new(()), Condvar::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| show(total, on_terminal, done, &over));
        let result = work();
        over.2.store(true, Ordering::Relaxed);
        drop(over.0.lock().unwrap_or_else(PoisonError::into_inner));
        over.1.notify_all();
        result
    })
}

fn show(total: u64, on_terminal: bool, done: &AtomicU64, over: &(Mutex<()>, Condvar, AtomicBool)) {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar =
        on_terminal.then(|| ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style));
    let began = Instant::now();
    let mut next_line = began + LINE_EVERY;
    let mut guard = over.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !over.2.load(Ordering::Relaxed) {
        guard = over
            .1
            .wait_timeout(guard, BAR_EVERY)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        let bytes = done.load(Ordering::Relaxed);
        if let Some(bar) = &bar {
            bar.set_position(bytes);
        } else if Instant::now() >= next_line {
            log::info!("{}", line(bytes, total, began.elapsed()));
            next_line += LINE_EVERY;
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

/// `restored 1.2 GiB of 4.0 GiB (30 %), 200 MiB/s, about 14s left`.
fn line(bytes: u64, total: u64, elapsed: Duration) -> String {
    let percent = (bytes as f64 / total.max(1) as f64 * 100.0).min(100.0);
    let rate = bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let left = Duration::from_secs((total.saturating_sub(bytes) as f64 / rate.max(1.0)) as u64);
    let (bytes, total, rate) = (ByteSize(bytes), ByteSize(total), ByteSize(rate as u64));
    format!(
        "restored {bytes} of {total} ({percent:.0} %), {rate}/s, about {} left",
        display_duration(left)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let text = line(1 << 30, 4 << 30, Duration::from_secs(10));
        assert!(text.contains("25 %") && text.contains("30s"), "{text}");
        assert!(line(0, 0, Duration::ZERO).contains("0 %"));
    }

    #[test]
    fn work_that_ends_at_once_is_not_waited_for() {
        let began = Instant::now();
        assert_eq!(showing(10, false, &AtomicU64::new(0), || 7), 7);
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}
