//! Policies against histories, as a table.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use super::*;
use crate::config::Config;

const DAY: u64 = 86_400;

/// Friday, in the 47th week.
fn now() -> UtcTime {
    UtcTime::parse_compact("20261120T120000Z").unwrap()
}

fn policy(text: &str) -> Retention {
    let text = format!("[cluster.main]\n[repository.a]\nurl = \"file:///a\"\nretention = {{ {text} }}\n");
    let config = Config::parse(Path::new("test.toml"), &text, &|_| None).unwrap();
    config.repositories[0].retention.clone().unwrap()
}

/// One backup: `F10` is a full one of ten days ago, `i` incremental, `d` differential. `!` it is damaged; `@2` on timeline 2; `#8` of
/// system 8; `+3` three hours later. An incremental leans on the one before it and all that leans on, a differential on the last
/// full one.
fn parse(word: &str, before: &[(String, BackupInfo)]) -> BackupInfo {
    let number = |sign: char, default: u64| {
        let digits = word.split_once(sign).map(|(_, rest)| rest);
        let digits = digits.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
        digits.map_or(default, |digits| digits.parse().unwrap())
    };
    let (letter, rest) = word.split_at(1);
    let days: i64 = rest
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '-')
        .collect::<String>()
        .parse()
        .unwrap();
    let kind = match letter {
        "F" => "full",
        "d" => "diff",
        "i" => "incr",
        _ => panic!("{word}"),
    };
    let age = Duration::from_secs(days.unsigned_abs() * DAY);
    let started = if days < 0 { now().plus(age) } else { now().minus(age) };
    let started = started.plus(Duration::from_secs(number('+', 0) * 3600));
    let base = match kind {
        "full" => None,
        "diff" => before.iter().rev().find(|(word, _)| word.starts_with('F')),
        _ => before.last(),
    };
    let references: Vec<Label> = base
        .iter()
        .flat_map(|(_, base)| base.references.iter().copied().chain([base.label]))
        .collect();
    let label = format!("{}-{kind}-{:06x}", started.compact(), before.len());
    let base = base.map_or("null".to_owned(), |(_, base)| format!("\"{}\"", base.label));
    let good = !word.contains('!');
    let text = format!(
        r#"{{"format":1,"label":"{label}","type":"{kind}","cluster":"main","system_identifier":"{}","major":15,
        "server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,"started":"{started}",
        "stopped":"{started}","finished":"{started}","timeline":{},"start_lsn":"0/2000028","stop_lsn":"0/2000138",
        "wal":{{"first":"a","last":"b"}},"segment_size":16777216,"block_size":8192,"data_checksums":true,
        "tablespaces":[],"base":{base},"references":{},"reused_from":null,"files":1,"size":1,"stored":1,"durations":{{}},
        "damaged_pages":{},"good":{good},"objects":[],"signature":null}}"#,
        number('#', 7),
        number('@', 1),
        serde_json::to_string(&references).unwrap(),
        u32::from(!good),
    );
    serde_json::from_str(&text).unwrap()
}

fn history(text: &str) -> Vec<(String, BackupInfo)> {
    let mut parsed: Vec<(String, BackupInfo)> = Vec::new();
    for word in text.split_whitespace() {
        let backup = parse(word, &parsed);
        parsed.push((word.to_owned(), backup));
    }
    parsed
}

/// What else there is.
#[derive(Default)]
struct Besides<'a> {
    marks: &'a [&'a str],
    running: &'a [&'a str],
    unreadable: &'a [&'a str],
    follows: Option<&'a dyn Fn(&BackupInfo) -> bool>,
    lacks: Option<&'a dyn Fn(&BackupInfo) -> bool>,
}

fn judged(policy: Option<&Retention>, text: &str, besides: &Besides<'_>) -> Vec<(String, Verdict)> {
    let parsed = history(text);
    let label = |word: &&str| parsed.iter().find(|(other, _)| other == word).unwrap().1.label;
    let backups: Vec<BackupInfo> = parsed.iter().map(|(_, backup)| backup.clone()).collect();
    let unreadable: Vec<Label> = besides.unreadable.iter().map(|word| parse(word, &[]).label).collect();
    let running: Label = "20261120T115900Z-incr-ffffff".parse().unwrap();
    let leans_on: Vec<Label> = besides.running.iter().map(label).collect();
    let history = History {
        backups: &backups,
        unreadable: &unreadable,
        marks: &besides
            .marks
            .iter()
            .map(|word| (label(word), "audit".to_owned()))
            .collect(),
        running: &[(running, leans_on)],
        follows: besides.follows.unwrap_or(&|_| true),
        lacks: besides.lacks.unwrap_or(&|_| false),
    };
    let verdicts = judge(policy, &history, now());
    parsed.into_iter().map(|(word, _)| word).zip(verdicts).collect()
}

fn kept(verdicts: &[(String, Verdict)]) -> String {
    let kept = verdicts.iter().filter(|(_, verdict)| verdict.is_kept());
    kept.map(|(word, _)| word.as_str()).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_policy_keeps_what_it_says() {
    // Policy, history, what stays.
    let cases = [
        // Counts of full backups, with what hangs on them.
        ("full = 2", "F9 F6 F3 F1", "F3 F1"),
        ("full = 2", "F9 F3", "F9 F3"),
        ("full = 1", "F9", "F9"),
        ("full = 1", "", ""),
        ("full = 1", "F9 i8 i7 F6 i5 i4", "F6 i5 i4"),
        ("full = 2", "F9 i8 d7 F6 d5 F3", "F6 d5 F3"),
        ("full = 2", "F9 F6! F3", "F9 F3"),
        ("full = 2", "F9 F6 F3!", "F9 F6 F3!"),
        ("full = 1", "F9 F6 F3!", "F6 F3!"),
        ("full = 1", "F9 F6 i3!", "F6 i3!"),
        ("full = 1", "F9! F6!", "F9! F6!"),
        ("full = 1", "F9 F6! F3", "F3"),
        // Ages: the newest full one that is older stays too.
        ("full = \"7d\"", "F20 F10 F5 F1", "F10 F5 F1"),
        ("full = \"7d\"", "F20 F10", "F10"),
        ("full = \"7d\"", "F7 F1", "F7 F1"),
        ("full = \"7d\"", "F20 F10! F5", "F20 F5"),
        ("full = \"7d\"", "F10 i9 i8 F5 i4", "F10 i9 i8 F5 i4"),
        ("full = \"7d\"", "F30 i29 F10 i9 F5", "F10 i9 F5"),
        // Rules of their own for incremental and differential ones; what they lean on stays.
        ("full = 1, incremental = \"3d\"", "F9 i8 i5 i2 i1", "F9 i8 i5 i2 i1"),
        ("full = 1, incremental = \"3d\"", "F9 i8 F7 i6 i2", "F7 i6 i2"),
        ("full = 1, incremental = \"3d\"", "F9 d8 d5 i4 F3 d2 i1", "F3 d2 i1"),
        ("full = 1, diff = \"3d\"", "F9 d8 d5 d2 d1", "F9 d2 d1"),
        ("full = 1, diff = \"7d\"", "F9 d5 F3", "F9 d5 F3"),
        ("full = 1, incremental = \"3d\"", "F9 i8 i7 F5 i4", "F5 i4"),
        ("incremental = \"3d\"", "F9 i8 i2", "F9 i8 i2"),
        (
            "full = 2, incremental = \"3d\", diff = \"3d\"",
            "F9 d8 i7 F6 d5 i4 i1",
            "F9 F6 d5 i4 i1",
        ),
        // Minimum.
        ("full = 1, minimum = 3", "F40 F30 F20 F10", "F30 F20 F10"),
        ("full = \"1d\", minimum = 2", "F40 F30 F20", "F30 F20"),
        ("monthly = 1, minimum = 1", "F90 F60", "F60"),
        // The calendar: the first full one of each, the current one included.
        ("full = 1, weekly = 2", "F12 F11 F10 F4 F3 F1", "F11 F4 F1"),
        (
            "full = 1, monthly = 3",
            "F100 F80 F50 F49 F20 F19 F18 F1",
            "F80 F50 F19 F1",
        ),
        ("full = 1, monthly = 1", "F100 F50 F18 F1", "F18 F1"),
        ("full = 1, monthly = 12", "F400 F300 F200 F1", "F300 F200 F1"),
        ("full = 1, yearly = 2", "F800 F400 F399 F30 F1", "F400 F30 F1"),
        ("full = 1, monthly = 2", "F50 i49 i48 F1", "F50 F1"),
        ("full = 1, monthly = 2", "F50! F48 F1", "F48 F1"),
        ("full = 1, yearly = 100000", "F9000 F1", "F9000 F1"),
        // The window of WAL begins at a backup.
        ("full = 1, wal = \"5d\"", "F20 F9 F3 F1", "F9 F1"),
        ("full = 1, wal = \"5d\"", "F20 i9 F3 F1", "F20 i9 F1"),
        ("full = 1, wal = \"5d\"", "F4 F3 F1", "F4 F1"),
        ("full = 1, wal = \"5d\"", "F20 F9! F3", "F20 F3"),
        ("full = 1, wal = \"30d\"", "F40 F20 F1", "F40 F1"),
        // Another system: pg_upgrade, or a cluster that was made anew.
        ("full = 2", "F9 F6 F3#8 F1#8", "F3#8 F1#8"),
        ("full = 3", "F9 F6 F3#8 F1#8", "F6 F3#8 F1#8"),
        ("full = 1, wal = \"5d\"", "F20 F9 F3#8 F1#8", "F9 F3#8 F1#8"),
        ("full = 1, wal = \"2d\"", "F20 F9 F3#8 F1#8", "F3#8 F1#8"),
        // Clocks: what lies ahead stays and proves nothing.
        ("full = 1", "F9 F1 F-2", "F1 F-2"),
        ("full = \"7d\"", "F30 F9 F-2", "F9 F-2"),
        // No rule at all: the newest good one.
        ("minimum = 1", "F9 F6 i5", "F6 i5"),
        ("wal = \"1d\"", "F9 F6 i5", "F6 i5"),
        ("dumps = 3", "F9 F6", "F6"),
    ];
    assert!(cases.len() >= 40);
    for (rules, text, expected) in cases {
        let verdicts = judged(Some(&policy(rules)), text, &Besides::default());
        assert_eq!(kept(&verdicts), expected, "{rules} of {text}: {verdicts:#?}");
    }
}

#[test]
fn without_a_policy_everything_stays() {
    let verdicts = judged(None, "F900 i800 F1!", &Besides::default());
    assert_eq!(kept(&verdicts), "F900 i800 F1!");
    assert!(verdicts.iter().all(|(_, verdict)| verdict.window));
}

#[test]
fn marks_running_and_unreadable_backups_hold_what_they_need() {
    let rules = policy("full = 1");
    let stays = |text: &str, besides: Besides<'_>| kept(&judged(Some(&rules), text, &besides));
    let marks = |marks| Besides {
        marks,
        ..Besides::default()
    };
    assert_eq!(stays("F9 i8 i7 F1", marks(&["i8"])), "F9 i8 F1");
    assert_eq!(stays("F9! F1", marks(&["F9!"])), "F9! F1");
    let running = |running| Besides {
        running,
        ..Besides::default()
    };
    assert_eq!(stays("F9 i8 i7 F1", running(&["i7"])), "F9 i8 i7 F1");
    assert_eq!(stays("F9 F5 F1", running(&["F5"])), "F5 F1");
    let unreadable = Besides {
        unreadable: &["i5"],
        ..Besides::default()
    };
    assert_eq!(
        stays("F9 i8 F6 F4 F3 F1", unreadable),
        "F9 i8 F6 F1",
        "it may lean on any older one"
    );
}

#[test]
fn the_window_begins_at_a_backup_that_leads_to_what_is_written_now() {
    let rules = policy("full = 1, wal = \"5d\"");
    // The newest one before the window lies on a branch that was left.
    let follows = |backup: &BackupInfo| backup.timeline != 2;
    let besides = Besides {
        follows: Some(&follows),
        ..Besides::default()
    };
    assert_eq!(
        kept(&judged(Some(&rules), "F20 F12 F9@2 F3@3 F1@3", &besides)),
        "F12 F1@3"
    );
}

#[test]
fn what_cannot_be_restored_for_want_of_its_base_is_not_the_newest_good_one() {
    let rules = policy("full = 1");
    let newest = |besides: &Besides<'_>| -> Vec<String> {
        let verdicts = judged(Some(&rules), "F20 F12 i2", besides).into_iter();
        let is_newest = |verdict: &Verdict| verdict.stays.iter().any(|why| why.to_string().contains("newest good"));
        verdicts
            .filter(|(_, verdict)| is_newest(verdict))
            .map(|(word, _)| word)
            .collect()
    };
    assert_eq!(newest(&Besides::default()), ["i2"]);
    let lacks = |backup: &BackupInfo| backup.kind == BackupType::Incr;
    let besides = Besides {
        lacks: Some(&lacks),
        ..Besides::default()
    };
    assert_eq!(newest(&besides), ["F12"]);
}

#[test]
fn a_backup_that_stays_for_a_month_or_a_mark_keeps_no_wal_behind_it() {
    let window = |rules: &str, text: &str, marks: &[&str]| {
        let besides = Besides {
            marks,
            ..Besides::default()
        };
        let verdicts = judged(Some(&policy(rules)), text, &besides);
        let window = verdicts
            .iter()
            .filter(|(_, verdict)| verdict.is_kept() && verdict.window);
        window.map(|(word, _)| word.as_str()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(window("full = 2, monthly = 12", "F100 F60 F9 F1", &["F60"]), "F9 F1");
    assert_eq!(window("full = 2, incremental = \"3d\"", "F9 F6 i2 F1", &[]), "F6 i2 F1");
    assert_eq!(window("full = 3, wal = \"5d\"", "F20 F9 F3 F1", &[]), "F9 F3 F1");
}

#[test]
fn reasons_say_what_they_mean() {
    let verdicts = judged(
        Some(&policy("full = 1, monthly = 2")),
        "F50 i49 F1",
        &Besides::default(),
    );
    let said = |word: &str| {
        let (_, verdict) = verdicts.iter().find(|(other, _)| other == word).unwrap();
        verdict
            .stays
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    };
    assert_eq!(said("F50"), "monthly: the first of 2026-10");
    assert_eq!(said("i49"), "");
    assert_eq!(
        said("F1"),
        "it is the newest good backup; minimum = 1; full = 1; monthly: the first of 2026-11"
    );
}

/// A generator of numbers that a seed repeats (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }
}

fn random_history(dice: &mut Dice) -> String {
    let mut words = Vec::new();
    let mut age = 5 + dice.below(400);
    while age > 0 && words.len() < 40 {
        let kind = ["F", "i", "i", "i", "d"][dice.below(5) as usize];
        let kind = if words.is_empty() { "F" } else { kind };
        let damaged = if dice.below(6) == 0 { "!" } else { "" };
        let system = if age < 100 && dice.below(50) == 0 { "#8" } else { "" };
        words.push(format!("{kind}{age}{damaged}{system}"));
        age = age.saturating_sub(1 + dice.below(20));
    }
    words.join(" ")
}

fn random_policy(dice: &mut Dice) -> String {
    let mut rules = Vec::new();
    let mut rule = |name: &str, value: String, dice: &mut Dice| {
        if dice.below(2) == 0 {
            rules.push(format!("{name} = {value}"));
        }
    };
    for name in ["full", "diff", "incremental", "wal"] {
        let age = format!("\"{}d\"", 1 + dice.below(60));
        rule(name, age, dice);
    }
    for name in ["weekly", "monthly", "yearly", "minimum"] {
        let count = (1 + dice.below(6)).to_string();
        rule(name, count, dice);
    }
    rules.join(", ")
}

#[test]
fn in_a_thousand_random_histories_nothing_that_stays_loses_what_it_needs() {
    let mut dice = Dice(20_261_120);
    let (mut went, mut stayed) = (0, 0);
    for round in 0..1000 {
        let (text, rules) = (random_history(&mut dice), random_policy(&mut dice));
        let parsed = history(&text);
        let verdicts = judged(Some(&policy(&rules)), &text, &Besides::default());
        let at = format!("round {round}: {rules} of {text}");
        let stays: BTreeSet<Label> = verdicts
            .iter()
            .filter(|(_, verdict)| verdict.is_kept())
            .map(|(_, verdict)| verdict.label)
            .collect();
        for (word, backup) in parsed.iter().filter(|(_, backup)| stays.contains(&backup.label)) {
            for needed in &backup.references {
                assert!(stays.contains(needed), "{word} has lost {needed}; {at}");
            }
        }
        match parsed.iter().rev().find(|(_, backup)| backup.good) {
            Some((word, newest)) => assert!(stays.contains(&newest.label), "{word} has gone; {at}"),
            None => assert_eq!(stays.len(), parsed.len(), "{at}"),
        }
        went += parsed.len() - stays.len();
        stayed += stays.len();
    }
    assert!(went > 1000 && stayed > 1000, "{went} went, {stayed} stayed");
}
