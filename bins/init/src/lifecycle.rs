//! The lifecycle rules that a bucket of S3 should have, by the retention that is configured. Pure.
//!
//! Rules of a bucket know a prefix and an age, not what is needed. So nothing is moved before it is too old to be needed for recovery to any
//! moment of the WAL window, nothing below `wal/` is moved, nothing goes into a class that has to be thawed (old backups' lists must stay
//! readable, and a rule cannot leave them out), and no current object expires: removing is retention's work.

use std::time::Duration;

use common::config::{Keep, Location, RepositorySettings, Retention};
use common::error::{Error, Kind, Result};
use serde_json::{Value, json};

const DAY: u64 = 86_400;
/// S3 moves nothing into STANDARD_IA earlier, and charges for so many days there.
const INFREQUENT_DAYS: u64 = 30;
/// GLACIER_IR is charged for so many days.
const INSTANT_DAYS: u64 = 90;
/// An upload that was not completed by then never will be.
const UPLOAD_DAYS: u64 = 3;
/// What was deleted or overwritten can be brought back so long.
const NONCURRENT_DAYS: u64 = 30;

/// The rules, and what there is to say about them.
#[derive(Debug, PartialEq)]
pub struct Rules {
    /// As `aws s3api put-bucket-lifecycle-configuration` takes them.
    pub document: Value,
    /// For a person.
    pub said: String,
}

/// The rules for the objects of `cluster` in a bucket.
///
/// # Errors
/// `Config` if the repository is not in S3.
pub fn rules(repository: &RepositorySettings, cluster: &str, full_interval: Duration) -> Result<Rules> {
    let Location::S3 { prefix, .. } = &repository.location else {
        let message = format!("repository \"{}\" is not in a bucket of S3 (s3://)", repository.name);
        return Err(Error::new(Kind::Config, message).hint("name one that is with --repository"));
    };
    let below = match prefix.as_str() {
        "" => format!("{cluster}/"),
        prefix => format!("{prefix}/{cluster}/"),
    };
    let rule = |name: &str, prefix: &str, action: (&str, Value)| {
        let mut rule = json!({
            "ID": format!("pgkeep {cluster}: {name}"), "Status": "Enabled", "Filter": { "Prefix": prefix },
        });
        rule[action.0] = action.1;
        rule
    };
    let mut rules = vec![rule(
        "abandoned uploads",
        &below,
        (
            "AbortIncompleteMultipartUpload",
            json!({ "DaysAfterInitiation": UPLOAD_DAYS }),
        ),
    )];
    // Under object lock the oldest version is the true one, and prune removes all of them.
    let (place, days) = match repository.lock_horizon() {
        Some(_) => (format!("{below}lease/"), 1),
        None => (below.clone(), NONCURRENT_DAYS),
    };
    rules.push(rule(
        "former versions",
        &place,
        ("NoncurrentVersionExpiration", json!({ "NoncurrentDays": days })),
    ));
    let moves = moves(repository.retention.as_ref(), full_interval);
    let said = match &moves {
        Ok(moves) => {
            let (days, class) = moves[0];
            format!("backups are needed at once for {days} days; then they move to {class} and stay readable")
        }
        Err(why) => format!("nothing is moved to another class: {why}"),
    };
    if let Ok(moves) = moves {
        let moves: Vec<Value> = (moves.iter())
            .map(|(days, class)| json!({ "Days": days, "StorageClass": class }))
            .collect();
        rules.push(rule(
            "old backups",
            &format!("{below}backup/"),
            ("Transitions", json!(moves)),
        ));
    }
    Ok(Rules {
        document: json!({ "Rules": rules }),
        said,
    })
}

/// To which class backups move after how many days; or why they do not.
fn moves(retention: Option<&Retention>, full_interval: Duration) -> Result<Vec<(u64, &'static str)>, &'static str> {
    let Some(retention) = retention else {
        return Err("without retention every backup is needed for good");
    };
    let Some(window) = retention.wal else {
        return Err(
            "the retention does not say how far back WAL reaches (wal = \"14d\"), so every backup may be needed",
        );
    };
    // The window begins in a chain whose full backup may be an interval older, and another where one failed.
    let interval = days(full_interval).max(1);
    let needed = (days(window) + 2 * interval).max(INFREQUENT_DAYS);
    let stays = longest(retention, interval);
    if stays < needed + INFREQUENT_DAYS {
        return Err("no backup stays long enough after it is needed for that to be cheaper");
    }
    let mut moves = vec![(needed, "STANDARD_IA")];
    let later = needed + INFREQUENT_DAYS;
    if stays >= later + INSTANT_DAYS {
        moves.push((later, "GLACIER_IR"));
    }
    Ok(moves)
}

/// How old a backup becomes at most, in days.
fn longest(retention: &Retention, interval: u64) -> u64 {
    let full = match retention.full {
        Some(Keep::Count(count)) => u64::from(count) * interval,
        Some(Keep::Age(age)) => days(age),
        None => 0,
    };
    let counted = [(retention.weekly, 7), (retention.monthly, 31), (retention.yearly, 366)];
    let counted = counted.iter().map(|(count, days)| u64::from(*count) * days).max();
    full.max(counted.unwrap_or(0))
}

/// Begun days count.
fn days(span: Duration) -> u64 {
    span.as_secs().div_ceil(DAY)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::Path;

    use common::config::Config;

    fn rules_of(url: &str, lines: &str) -> Result<Rules> {
        let text = format!("[cluster.main]\n[repository.r]\nurl = \"{url}\"\n{lines}");
        let config = Config::parse(Path::new("/etc/x.toml"), &text, &|_| None).unwrap();
        rules(&config.repositories[0], "main", config.clusters[0].full_interval)
    }

    fn moved(lines: &str) -> Vec<(u64, String)> {
        let rules = rules_of("s3://b/p", lines).unwrap();
        let rules = rules.document["Rules"].as_array().unwrap().clone();
        let moved = rules.iter().filter_map(|rule| rule["Transitions"].as_array()).flatten();
        let read = |one: &Value| {
            (
                one["Days"].as_u64().unwrap(),
                one["StorageClass"].as_str().unwrap().to_owned(),
            )
        };
        moved.map(read).collect()
    }

    #[test]
    fn nothing_moves_while_the_window_may_need_it() {
        for lines in [
            "",
            "retention = { full = 4 }",
            "retention = { monthly = 12 }",
            "retention = { full = 4, wal = \"14d\" }",
            "retention = { full = \"30d\", wal = \"30d\" }",
            "retention = { full = \"70d\", wal = \"30d\" }",
        ] {
            assert!(moved(lines).is_empty(), "{lines}");
        }
    }

    #[test]
    fn what_stays_for_long_moves_once_the_window_and_two_intervals_are_over() {
        let infrequent = |days| (days, "STANDARD_IA".to_owned());
        let instant = |days| (days, "GLACIER_IR".to_owned());
        for (lines, expected) in [
            (
                "retention = { monthly = 12, wal = \"14d\" }",
                vec![infrequent(30), instant(60)],
            ),
            (
                "retention = { monthly = 12, wal = \"30d\" }",
                vec![infrequent(44), instant(74)],
            ),
            ("retention = { monthly = 3, wal = \"30d\" }", vec![infrequent(44)]),
            ("retention = { full = \"100d\", wal = \"30d\" }", vec![infrequent(44)]),
            (
                "retention = { yearly = 2, wal = \"36h\" }",
                vec![infrequent(30), instant(60)],
            ),
        ] {
            assert_eq!(moved(lines), expected, "{lines}");
        }
    }

    #[test]
    fn only_backups_move_and_no_current_object_expires() {
        for lines in [
            "",
            "retention = { monthly = 12, wal = \"14d\" }",
            "lock_horizon = \"21d\"",
        ] {
            for url in ["s3://b/p", "s3://b"] {
                let rules = rules_of(url, lines).unwrap().document;
                for rule in rules["Rules"].as_array().unwrap() {
                    let prefix = rule["Filter"]["Prefix"].as_str().unwrap();
                    let below = if url == "s3://b" { "main/" } else { "p/main/" };
                    assert!(prefix.starts_with(below), "{prefix}");
                    assert!(rule.get("Expiration").is_none());
                    assert!(
                        rule.get("Transitions").is_none() || prefix.ends_with("main/backup/"),
                        "{rule}"
                    );
                }
            }
        }
    }

    #[test]
    fn under_object_lock_only_former_leases_expire() {
        let rules = rules_of("s3://b/p", "lock_horizon = \"21d\"").unwrap().document;
        let rules = rules["Rules"].as_array().unwrap().clone();
        let places: Vec<_> = rules
            .iter()
            .filter(|rule| rule.get("NoncurrentVersionExpiration").is_some())
            .map(|rule| rule["Filter"]["Prefix"].as_str().unwrap())
            .collect();
        assert_eq!(places, ["p/main/lease/"]);
    }

    #[test]
    fn a_repository_elsewhere_has_none() {
        assert_eq!(rules_of("file:///srv/r", "").unwrap_err().kind(), Kind::Config);
    }
}
