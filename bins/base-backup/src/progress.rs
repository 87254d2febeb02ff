//! How far the copy is: a bar on a terminal, else a line in the log now and then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::units::{ByteSize, display_duration};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Without a terminal a line comes this often.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// What the workers have done so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Regular files in the backup.
    pub files: AtomicU64,
    /// Their size, in bytes.
    pub bytes: AtomicU64,
    /// Damaged pages in them.
    pub damaged_pages: AtomicU64,
}

impl Tally {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    /// Reads a counter.
    pub fn read(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Shows a [`Tally`] on its way to what was found.
pub struct Progress {
    bar: Option<ProgressBar>,
    total_bytes: u64,
    began: Instant,
    next_line: Instant,
}

impl Progress {
    /// Begins; `on_terminal` draws a bar on stderr.
    pub fn begin(total_bytes: u64, on_terminal: bool, now: Instant) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = on_terminal
            .then(|| ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr()).with_style(style));
        Self {
            bar,
            total_bytes,
            began: now,
            next_line: now + LINE_EVERY,
        }
    }

    /// Shows where the workers are.
    pub fn show(&mut self, tally: &Tally, now: Instant) {
        let bytes = Tally::read(&tally.bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        } else if now >= self.next_line {
            log::info!("{}", line(bytes, self.total_bytes, now.duration_since(self.began)));
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

/// `copied 1.2 GiB of 4.0 GiB (30 %), 200 MiB/s, about 14s left`.
fn line(bytes: u64, total: u64, elapsed: Duration) -> String {
    let percent = (bytes as f64 / total.max(1) as f64 * 100.0).min(100.0);
    let rate = bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let left = Duration::from_secs((total.saturating_sub(bytes) as f64 / rate.max(1.0)) as u64);
    format!(
        "copied {} of {} ({percent:.0} %), {}/s, about {} left",
        ByteSize(bytes),
        ByteSize(total),
        ByteSize(rate as u64),
        display_duration(left),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let text = line(1 << 30, 4 << 30, Duration::from_secs(10));
        assert!(text.contains("25 %") && text.contains("30s"), "{text}");
    }

    #[test]
    fn nothing_done_yet_is_no_division_by_zero() {
        assert!(line(0, 0, Duration::ZERO).contains("0 %"));
    }
}
