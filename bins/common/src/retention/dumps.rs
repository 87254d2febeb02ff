//! Which dumps stay.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::Keep;
use crate::repository::DumpLabel;
use crate::repository::dumps::Dump;
use crate::time::UtcTime;
use crate::units::display_duration;

/// What becomes of a dump, and why, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Stays(String),
    /// It goes.
    Goes(&'static str),
}

impl Verdict {
    /// Whether it stays.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Stays(_))
    }
}

/// Decides about dumps, which come oldest first. Those of whole databases, of tenants, of tables and of roles are counted apart: an
/// export of a tenant must not push out the dumps of all. What was `erased` goes, whatever else is said.
pub fn judge(
    rule: Option<Keep>,
    dumps: &[Dump],
    erased: &BTreeSet<DumpLabel>,
    now: UtcTime,
    after: Duration,
) -> Vec<Verdict> {
    let is_erased = |dump: &Dump| dump.name.parse().is_ok_and(|label| erased.contains(&label));
    let complete: Vec<&Dump> = dumps.iter().filter(|dump| dump.complete && !is_erased(dump)).collect();
    let rank = |dump: &Dump| {
        let alike = complete.iter().rev().filter(|other| other.scope == dump.scope);
        alike.take_while(|other| **other != dump).count()
    };
    let why = |dump: &Dump| {
        let age = now.since(dump.started);
        if is_erased(dump) {
            return Verdict::Goes("its tenant was erased");
        }
        if !dump.complete {
            return match age < after {
                true => Verdict::Stays("it may be running".to_owned()),
                false => Verdict::Goes("it was interrupted"),
            };
        }
        let rank = rank(dump);
        match rule {
            None => Verdict::Stays("there is no rule for dumps".to_owned()),
            Some(_) if rank == 0 => Verdict::Stays("it is the newest dump of its kind".to_owned()),
            Some(Keep::Count(count)) if rank < count as usize => Verdict::Stays(format!("dumps = {count}")),
            Some(Keep::Age(limit)) if age <= limit => {
                Verdict::Stays(format!("dumps = \"{}\"", display_duration(limit)))
            }
            Some(_) => Verdict::Goes("no rule keeps it"),
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
            let verdicts = judge(rule, &dumps, &BTreeSet::new(), now(), after);
            verdicts.iter().map(Verdict::is_kept).collect()
        };
        assert_eq!(stays(None), [true, true, false, true, true, true]);
        assert_eq!(stays(Some(Keep::Count(1))), [false, false, false, false, true, true]);
        assert_eq!(stays(Some(Keep::Count(3))), [false, true, false, true, true, true]);
        let age = |hours: u64| Some(Keep::Age(Duration::from_secs(hours * HOUR)));
        assert_eq!(stays(age(10)), [false, false, false, false, true, true]);
        assert_eq!(stays(age(600)), [false, true, false, true, true, true]);
        let mut mixed = dumps.clone();
        mixed[4].scope = Some(Scope::Tenant);
        let stay = judge(Some(Keep::Count(1)), &mixed, &BTreeSet::new(), now(), Duration::ZERO);
        let stay: Vec<bool> = stay.iter().map(Verdict::is_kept).collect();
        assert_eq!(
            stay,
            [false, false, false, true, true, false],
            "the newest of each scope"
        );
    }

    #[test]
    fn what_was_erased_goes_and_is_not_counted() {
        let labels = ["20261120T010000Z-dump-aaaaaa", "20261120T020000Z-dump-bbbbbb"];
        let dump = |(name, hours): (&&str, u64)| Dump {
            name: (*name).to_owned(),
            started: ago(hours),
            complete: true,
            scope: Some(Scope::Tenant),
        };
        let dumps: Vec<Dump> = labels.iter().zip([10, 1]).map(dump).collect();
        let erased = BTreeSet::from([labels[1].parse().unwrap()]);
        for rule in [None, Some(Keep::Count(1))] {
            let verdicts = judge(rule, &dumps, &erased, now(), Duration::ZERO);
            assert!(verdicts[0].is_kept(), "{verdicts:?}");
            assert_eq!(verdicts[1], Verdict::Goes("its tenant was erased"));
        }
    }
}
