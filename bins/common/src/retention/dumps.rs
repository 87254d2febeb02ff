//! Which dumps stay.

use std::time::Duration;

use crate::config::Keep;
use crate::repository::dumps::Dump;
use crate::time::UtcTime;
use crate::units::display_duration;

/// Why each dump stays, in words; `None`: it goes. They come oldest first. Those of whole databases, of tenants, of tables and of roles
/// are counted apart: an export of a tenant must not push out the dumps of all.
pub fn judge(rule: Option<Keep>, dumps: &[Dump], now: UtcTime, after: Duration) -> Vec<Option<String>> {
    let complete: Vec<&Dump> = dumps.iter().filter(|dump| dump.complete).collect();
    let rank = |dump: &Dump| {
        let alike = complete.iter().rev().filter(|other| other.scope == dump.scope);
        alike.take_while(|other| **other != dump).count()
    };
    let why = |dump: &Dump| {
        let age = now.since(dump.started);
        if !dump.complete {
            return (age < after).then(|| "it may be running".to_owned());
        }
        let rank = rank(dump);
        match rule {
            None => Some("there is no rule for dumps".to_owned()),
            Some(_) if rank == 0 => Some("it is the newest dump of its kind".to_owned()),
            Some(Keep::Count(count)) => (rank < count as usize).then(|| format!("dumps = {count}")),
            Some(Keep::Age(limit)) => (age <= limit).then(|| format!("dumps = \"{}\"", display_duration(limit))),
        }
    };
    dumps.iter().map(why).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::repository::dumps::Scope;

    const HOUR: u64 = 3600;

    fn now() -> UtcTime {
        UtcTime::from_unix_seconds(1_790_000_000).unwrap()
    }

    fn ago(hours: u64) -> UtcTime {
        UtcTime::from_unix_seconds(1_790_000_000 - i64::try_from(hours * HOUR).unwrap()).unwrap()
    }

    #[test]
    fn dumps_stay_by_count_or_age_and_the_newest_always() {
        let dump = |hours: u64, complete| Dump {
            name: format!("{hours}"),
            started: ago(hours),
            complete,
            scope: complete.then_some(Scope::Databases),
        };
        let dumps = [
            dump(900, true),
            dump(500, true),
            dump(300, false),
            dump(100, true),
            dump(50, true),
            dump(1, false),
        ];
        let stays = |rule| -> Vec<bool> {
            let after = Duration::from_secs(24 * HOUR);
            judge(rule, &dumps, now(), after).iter().map(Option::is_some).collect()
        };
        assert_eq!(stays(None), [true, true, false, true, true, true]);
        assert_eq!(stays(Some(Keep::Count(1))), [false, false, false, false, true, true]);
        assert_eq!(stays(Some(Keep::Count(3))), [false, true, false, true, true, true]);
        let age = |hours: u64| Some(Keep::Age(Duration::from_secs(hours * HOUR)));
        assert_eq!(stays(age(10)), [false, false, false, false, true, true]);
        assert_eq!(stays(age(600)), [false, true, false, true, true, true]);
        let mut mixed = dumps.clone();
        mixed[4].scope = Some(Scope::Tenant);
        let stay = judge(Some(Keep::Count(1)), &mixed, now(), Duration::ZERO);
        let stay: Vec<bool> = stay.iter().map(Option::is_some).collect();
        assert_eq!(
            stay,
            [false, false, false, true, true, false],
            "the newest of each scope"
        );
    }
}
