//! What answers, rows and times mean. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use common::config::{Assertion, Expected, Objectives};
use common::units::display_duration;

use crate::questions::{Problem, TableRows};

/// Says what is wrong with an answer, given that of the last test.
pub fn answer(assertion: &Assertion, value: Option<&str>, before: Option<&str>) -> Vec<Problem> {
    let wrong = assertion
        .expected
        .iter()
        .filter_map(|expected| judge(expected, value, before).err());
    wrong
        .map(|found| Problem {
            check: "assertion".to_owned(),
            what: assertion.name.clone(),
            found,
        })
        .collect()
}

fn judge(expected: &Expected, value: Option<&str>, before: Option<&str>) -> Result<(), String> {
    let shown = value.map_or_else(|| "nothing".to_owned(), |value| format!("\"{value}\""));
    let number = |value: Option<&str>| value.and_then(|value| value.trim().parse::<f64>().ok());
    let as_number = || number(value).ok_or_else(|| format!("the answer is {shown}, and a number was expected"));
    // Beyond 2^53 a comparison may be off by one, which no bound of a person is about.
    match expected {
        Expected::Equals(wanted) if value == Some(wanted.as_str()) => Ok(()),
        Expected::Equals(wanted) => Err(format!("the answer is {shown}, and \"{wanted}\" was expected")),
        Expected::AtLeast(least) if as_number()? >= *least as f64 => Ok(()),
        Expected::AtLeast(least) => Err(format!("the answer is {shown}, and at least {least} was expected")),
        Expected::AtMost(most) if as_number()? <= *most as f64 => Ok(()),
        Expected::AtMost(most) => Err(format!("the answer is {shown}, and at most {most} was expected")),
        Expected::MayShrink(percent) => match number(before) {
            Some(then) if as_number()? < then * (1.0 - f64::from(*percent) / 100.0) => Err(format!(
                "the answer is {shown}, and was \"{then}\" in the last test: more than {percent} % less"
            )),
            _ => as_number().map(drop),
        },
        Expected::MayGrow(percent) => match number(before) {
            Some(then) if as_number()? > then * (1.0 + f64::from(*percent) / 100.0) => Err(format!(
                "the answer is {shown}, and was \"{then}\" in the last test: more than {percent} % more"
            )),
            _ => as_number().map(drop),
        },
        Expected::Changes if before.is_some() && value == before => Err(format!(
            "the answer is {shown}, as in the last test, and a change was expected"
        )),
        Expected::Changes => Ok(()),
    }
}

/// Compares the rows of tables with those of the last test: what is wrong, and what is worth a word.
pub fn rows(before: &[TableRows], now: &[TableRows], may_shrink: Option<u8>) -> (Vec<Problem>, Vec<String>) {
    let name = |table: &TableRows| (table.database.clone(), table.table.clone());
    let now: BTreeMap<_, u64> = now.iter().map(|table| (name(table), table.rows)).collect();
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    for table in before.iter().filter(|table| table.rows > 0) {
        let what = format!("{}: {}", table.database, table.table);
        let Some(rows) = now.get(&name(table)).copied() else {
            notes.push(format!(
                "{what} is not there any more; it had {} rows in the last test",
                table.rows
            ));
            continue;
        };
        let lost = (table.rows.saturating_sub(rows)) as f64 / table.rows as f64 * 100.0;
        if may_shrink.is_some_and(|most| lost > f64::from(most)) {
            problems.push(Problem {
                check: "rows".to_owned(),
                what,
                found: format!("{rows} rows, and {} in the last test: {lost:.0} % less", table.rows),
            });
        } else if rows == 0 {
            notes.push(format!("{what} is empty; it had {} rows in the last test", table.rows));
        }
    }
    (problems, notes)
}

/// Judges how old the newest commit is, if that was asked for and can be known.
pub fn freshness(age: Option<Duration>, limit: Option<Duration>) -> Option<Problem> {
    let (age, limit) = (age?, limit?);
    (age > limit).then(|| Problem {
        check: "freshness".to_owned(),
        what: "newest commit".to_owned(),
        found: format!(
            "it is {} old, and may be {}",
            display_duration(age),
            display_duration(limit)
        ),
    })
}

/// Compares what was measured with what is expected of the cluster.
pub fn objectives(objectives: Objectives, rpo: Option<Duration>, rto: Option<Duration>) -> Vec<Problem> {
    let missed = |name: &str, what: &str, measured: Option<Duration>, objective: Option<Duration>| {
        let (measured, objective) = (measured?, objective?);
        (measured > objective).then(|| Problem {
            check: "objective".to_owned(),
            what: name.to_owned(),
            found: format!(
                "{what} {}, and the objective is {}",
                display_duration(measured),
                display_duration(objective)
            ),
        })
    };
    let missed = [
        missed("rpo", "a disaster would have cost", rpo, objectives.rpo),
        missed("rto", "recovery took", rto, objectives.rto),
    ];
    missed.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(expected: Expected, value: Option<&str>, before: Option<&str>) -> Option<String> {
        let assertion = Assertion {
            name: "n".to_owned(),
            database: "d".to_owned(),
            sql: "s".to_owned(),
            expected: vec![expected],
        };
        answer(&assertion, value, before).pop().map(|problem| problem.found)
    }

    #[test]
    fn an_answer_is_held_against_what_was_expected() {
        let equals = || Expected::Equals("5".to_owned());
        assert_eq!(judged(equals(), Some("5"), None), None);
        assert!(judged(equals(), Some("6"), None).is_some_and(|found| found.contains("\"6\"")));
        assert!(judged(equals(), None, None).is_some_and(|found| found.contains("nothing")));
        for (expected, good, bad) in [
            (Expected::AtLeast(10), "10", "9"),
            (Expected::AtMost(-1), "-1", "0"),
            (Expected::MayShrink(10), "90", "89"),
            (Expected::MayGrow(50), "150", "151"),
            (Expected::Changes, "99", "100"),
        ] {
            assert_eq!(judged(expected.clone(), Some(good), Some("100")), None, "{expected:?}");
            assert!(
                judged(expected.clone(), Some(bad), Some("100")).is_some(),
                "{expected:?}"
            );
        }
        assert!(judged(Expected::AtLeast(1), Some("many"), None).is_some());
        assert!(
            judged(Expected::MayShrink(1), None, None).is_some(),
            "no answer is no number"
        );
    }

    #[test]
    fn without_a_test_before_nothing_has_changed_too_much() {
        for expected in [Expected::MayShrink(0), Expected::MayGrow(0), Expected::Changes] {
            assert_eq!(judged(expected, Some("7"), None), None);
        }
    }

    fn table(name: &str, rows: u64) -> TableRows {
        TableRows {
            database: "shop".to_owned(),
            table: name.to_owned(),
            rows,
        }
    }

    #[test]
    fn a_table_that_lost_rows_is_told_or_wrong() {
        let before = [
            table("a", 100),
            table("b", 100),
            table("c", 100),
            table("d", 0),
            table("e", 1),
        ];
        let now = [
            table("a", 89),
            table("b", 90),
            table("c", 0),
            table("d", 0),
            table("f", 1),
        ];
        let (problems, notes) = rows(&before, &now, Some(10));
        let at: Vec<&str> = problems.iter().map(|problem| problem.what.as_str()).collect();
        assert_eq!(at, ["shop: a", "shop: c"]);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes.iter().all(|note| note.starts_with("shop: e is not there")));
        let (problems, notes) = rows(&before, &now, None);
        assert!(problems.is_empty());
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert_eq!(rows(&[], &now, Some(0)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn times_are_judged_where_they_are_known_and_somebody_asked() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert!(freshness(seconds(61), seconds(60)).is_some());
        assert!(freshness(seconds(60), seconds(60)).is_none());
        assert!(freshness(None, seconds(60)).is_none() && freshness(seconds(61), None).is_none());
        let set = Objectives {
            rpo: seconds(60),
            rto: seconds(1800),
        };
        let names = |rpo, rto| -> Vec<String> {
            objectives(set, rpo, rto)
                .into_iter()
                .map(|problem| problem.what)
                .collect()
        };
        assert_eq!(names(seconds(61), seconds(1801)), ["rpo", "rto"]);
        assert!(names(seconds(60), seconds(1800)).is_empty() && names(None, None).is_empty());
        assert!(objectives(Objectives::default(), seconds(9), seconds(9)).is_empty());
    }
}
