//! Waiting for a condition instead of sleeping.

use std::time::{Duration, Instant};

/// Time enough for anything a test waits for on a slow, shared machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until `condition` holds; fails the test naming `what` when `timeout` has passed.
pub fn wait_until(what: &str, timeout: Duration, condition: impl FnMut() -> bool) {
    assert!(holds_within(timeout, condition), "waited {timeout:?} in vain: {what}");
}

/// Asks until `condition` holds, and says whether it did before `timeout` had passed.
pub fn holds_within(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= timeout {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "in vain: a miracle")]
    fn waiting_in_vain_names_what_was_waited_for() {
        wait_until("a miracle", Duration::from_millis(5), || false);
    }

    #[test]
    fn a_condition_that_comes_true_ends_the_wait() {
        let mut asked = 0;
        wait_until("the third question", PATIENCE, || {
            asked += 1;
            asked == 3
        });
        assert_eq!(asked, 3);
    }
}
