//! What is decided before anything is read: whether this run makes a backup at all, and of which type.

use std::time::Duration;

use common::leadership::Decision;
use common::time::UtcTime;
use common::units::display_duration;

/// The newest good backup of one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    /// The repository's name.
    pub repository: String,
    /// The label and when the backup began, if there is one.
    pub backup: Option<(String, UtcTime)>,
}

/// Decides by age: a backup is due if the newest one of any of `repositories` began more than `limit` ago.
pub fn judge_age(repositories: &[Newest], limit: Duration, now: UtcTime) -> Decision {
    let mut reasons = Vec::new();
    for newest in repositories {
        let Some((label, started)) = &newest.backup else {
            return Decision::Go;
        };
        // A backup from the future says that a clock is wrong: better one backup too many.
        let age = now.since(*started);
        if *started > now || age > limit {
            return Decision::Go;
        }
        reasons.push(format!(
            "{label} in repository \"{}\" is {} old",
            newest.repository,
            display_duration(age)
        ));
    }
    if reasons.is_empty() {
        return Decision::Go;
    }
    Decision::Skip(format!(
        "{}, and --if-older-than is {}",
        reasons.join(", "),
        display_duration(limit)
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn newest(ages_in_hours: &[Option<u64>], now: UtcTime) -> Vec<Newest> {
        let one = |age: &Option<u64>| Newest {
            repository: "r".to_owned(),
            backup: age.map(|hours| ("l".to_owned(), now.minus(Duration::from_secs(hours * 3600)))),
        };
        ages_in_hours.iter().map(one).collect()
    }

    #[test]
    fn a_backup_is_due_where_one_repository_has_none_that_is_young() {
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        let limit = Duration::from_secs(20 * 3600);
        for ages in [&[][..], &[None], &[Some(21)], &[Some(1), None], &[Some(1), Some(30)]] {
            assert_eq!(judge_age(&newest(ages, now), limit, now), Decision::Go, "{ages:?}");
        }
        for ages in [&[Some(1)][..], &[Some(20)], &[Some(1), Some(2)]] {
            assert!(
                matches!(judge_age(&newest(ages, now), limit, now), Decision::Skip(_)),
                "{ages:?}"
            );
        }
    }

    #[test]
    fn a_backup_from_the_future_does_not_count_as_young() {
        let now = UtcTime::parse_compact("20261120T020000Z").unwrap();
        let future = Newest {
            repository: "r".to_owned(),
            backup: Some(("l".to_owned(), now.plus(Duration::from_secs(60)))),
        };
        assert_eq!(judge_age(&[future], Duration::from_secs(3600), now), Decision::Go);
    }
}
