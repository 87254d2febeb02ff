//! What interrupted backups left behind: which of it goes.

use std::fmt;
use std::time::Duration;

use common::repository::Label;
use common::time::UtcTime;
use common::units::display_duration;

/// A label without `backup.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Which.
    pub label: Label,
    /// What its intent says that it leans on; nothing where there is no intent that can be read.
    pub leans_on: Vec<Label>,
    /// When something of it was last written, by the store's clock.
    pub written: Option<UtcTime>,
    /// Whether its host holds the lease of base backups.
    pub has_lease: bool,
    /// Its objects.
    pub objects: u64,
    /// Their stored size, in bytes.
    pub bytes: u64,
}

/// Why it stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A backup that stays uses its bundles.
    LentTo(Label),
    /// It may be running: its host holds the lease.
    Lease,
    /// Something of it was written a moment ago: it runs, or a next run will use it.
    Written(Duration, Duration),
    /// Nothing says when it was written.
    NoTime,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LentTo(label) => write!(f, "{label} uses its bundles"),
            Self::Lease => f.write_str("it may be running: its host holds the lease of base backups"),
            Self::Written(ago, limit) => write!(
                f,
                "it was written to {} ago, and it goes after {}",
                display_duration(*ago),
                display_duration(*limit)
            ),
            Self::NoTime => f.write_str("nothing says when it was last written to"),
        }
    }
}

/// Whether a backup may be running, so that what it leans on stays.
pub fn may_run(left: &Left, now: UtcTime, after: Duration) -> bool {
    matches!(
        of_itself(left, now, after),
        Some(Why::Lease | Why::Written(..) | Why::NoTime)
    )
}

fn of_itself(left: &Left, now: UtcTime, after: Duration) -> Option<Why> {
    if left.has_lease {
        return Some(Why::Lease);
    }
    let Some(written) = left.written else {
        return Some(Why::NoTime);
    };
    let ago = now.since(written);
    (ago < after).then_some(Why::Written(ago, after))
}

/// Why it stays; `None`: it goes. `used_by` is a backup that stays and uses its bundles, if there is one; `now` the store's time.
pub fn judge(left: &Left, used_by: Option<Label>, now: UtcTime, after: Duration) -> Option<Why> {
    used_by.map(Why::LentTo).or_else(|| of_itself(left, now, after))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOUR: u64 = 3600;

    fn now() -> UtcTime {
        UtcTime::parse_compact("20261120T120000Z").unwrap()
    }

    fn ago(hours: u64) -> UtcTime {
        now().minus(Duration::from_secs(hours * HOUR))
    }

    #[test]
    fn what_nobody_uses_or_writes_goes_after_a_while() {
        let label: Label = "20261120T020000Z-full-3f9a1c".parse().unwrap();
        let user: Label = "20261121T020000Z-full-3f9a1c".parse().unwrap();
        let left = |hours: Option<u64>, has_lease| Left {
            label,
            leans_on: Vec::new(),
            written: hours.map(ago),
            has_lease,
            objects: 1,
            bytes: 1,
        };
        let after = Duration::from_secs(24 * HOUR);
        let goes = |left: &Left, used_by| judge(left, used_by, now(), after).is_none();
        assert!(goes(&left(Some(24), false), None));
        assert!(goes(&left(Some(1000), false), None));
        assert!(!goes(&left(Some(23), false), None));
        assert!(!goes(&left(Some(1000), true), None), "its host holds the lease");
        assert!(!goes(&left(Some(1000), false), Some(user)), "its bundles are used");
        assert!(!goes(&left(None, false), None));
        // What lent its bundles does not run; what it leans on is not needed for that.
        assert!(!may_run(&left(Some(1000), false), now(), after));
        assert!(may_run(&left(Some(1), false), now(), after));
        // A store whose clock is behind does not make it old.
        let future = Left {
            written: Some(now().plus(Duration::from_secs(HOUR))),
            ..left(Some(0), false)
        };
        assert!(!goes(&future, None));
    }
}
