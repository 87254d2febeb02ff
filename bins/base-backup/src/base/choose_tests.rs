#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use common::postgres::{Lsn, TimelineId};

const DAY: u64 = 86_400;

/// A backup of the given type, so many hours before [`now`].
fn backup(kind: &str, hours: u64) -> BackupInfo {
    let started = now().minus(Duration::from_secs(hours * 3600));
    let label = format!("{}-{kind}-3f9a1c", started.compact());
    let text = format!(
        r#"{{"format":1,"label":"{label}","type":"{kind}","cluster":"main","system_identifier":"7","major":15,
        "server_version":"15.18","pgkeep":"x","host":"h","role":"primary","note":null,"started":"{started}",
        "stopped":"{started}","finished":"{started}","timeline":1,"start_lsn":"0/2000028","stop_lsn":"0/2000138",
        "wal":{{"first":"a","last":"b"}},"segment_size":16777216,"block_size":8192,"data_checksums":true,
        "tablespaces":[],"base":null,"references":[],"reused_from":null,"files":1,"size":1,"stored":1,"durations":{{}},
        "damaged_pages":0,"good":true,"objects":[],"signature":null}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn now() -> UtcTime {
    UtcTime::parse_compact("20261120T020000Z").unwrap()
}

fn cluster() -> Cluster {
    Cluster {
        system_identifier: "7".to_owned(),
        major: 15,
        block_size: 8192,
        data_checksums: true,
        history: TimelineHistory::root(TimelineId(1)),
        disputed: Vec::new(),
    }
}

fn chosen(asked: Asked, backups: &[BackupInfo], cluster: &Cluster) -> Choice {
    let week = Duration::from_secs(7 * DAY);
    choose(asked, backups, cluster, now(), week, &|_| Ok(()))
}

fn full_because(choice: Choice) -> String {
    match choice {
        Choice::Full(Some(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_incremental_leans_on_the_last_backup_and_a_differential_on_the_last_full_one() {
    let backups = [backup("full", 48), backup("incr", 24), backup("diff", 12)];
    let since = |kind, at: usize| Choice::Since(kind, backups[at].label);
    assert_eq!(chosen(Asked::Incr, &backups, &cluster()), since(BackupType::Incr, 2));
    assert_eq!(chosen(Asked::Diff, &backups, &cluster()), since(BackupType::Diff, 0));
    assert_eq!(chosen(Asked::Auto, &backups, &cluster()), since(BackupType::Incr, 2));
    assert_eq!(chosen(Asked::Full, &backups, &cluster()), Choice::Full(None));
}

#[test]
fn wal_that_two_histories_claim_lies_between_no_backup_and_the_one_that_leans_on_it() {
    let backups = [backup("full", 24)];
    let history = TimelineHistory::parse(TimelineId(2), b"1\t0/5000100\tno recovery target specified\n").unwrap();
    let since = |segment: &str, hours: u64| Cluster {
        history: history.clone(),
        disputed: vec![(segment.parse().unwrap(), now().minus(Duration::from_secs(hours * 3600)))],
        ..cluster()
    };
    let with = |segment: &str| since(segment, 30);
    for segment in [
        "000000010000000000000002",
        "000000010000000000000005",
        "000000020000000000000009",
    ] {
        let why = full_because(chosen(Asked::Incr, &backups, &with(segment)));
        assert!(why.contains(segment), "{why}");
    }
    // Noted after the backup, which may be of the other history.
    let why = full_because(chosen(Asked::Incr, &backups, &since("000000010000000000000001", 2)));
    assert!(why.contains("000000010000000000000001"), "{why}");
    // Noted before the backup and at an earlier place, behind the point where the timeline was left, and on a timeline that did not lead here.
    for segment in [
        "000000010000000000000001",
        "000000010000000000000006",
        "000000030000000000000005",
    ] {
        let choice = chosen(Asked::Incr, &backups, &with(segment));
        assert_eq!(choice, Choice::Since(BackupType::Incr, backups[0].label), "{segment}");
    }
}

#[test]
fn without_an_earlier_backup_it_is_a_full_one_and_says_why() {
    for asked in [Asked::Auto, Asked::Diff, Asked::Incr] {
        let why = full_because(chosen(asked, &[], &cluster()));
        assert!(why.contains("no earlier backup"), "{why}");
    }
}

#[test]
fn a_full_one_is_due_when_the_last_is_as_old_as_the_interval_or_nearly() {
    let hours_of_week = 7 * 24;
    let auto = |hours| chosen(Asked::Auto, &[backup("full", hours), backup("incr", 1)], &cluster());
    assert!(matches!(auto(hours_of_week - 8), Choice::Since(..)));
    for hours in [hours_of_week - 7, hours_of_week, 2 * hours_of_week] {
        let why = full_because(auto(hours));
        assert!(why.contains("full_interval is 7d"), "{why}");
    }
    let explicit = chosen(Asked::Incr, &[backup("full", 2 * hours_of_week)], &cluster());
    assert!(
        matches!(explicit, Choice::Since(..)),
        "who asks for an incremental gets one"
    );
}

#[test]
fn a_full_backup_from_the_future_does_not_put_the_next_one_off() {
    let mut future = backup("full", 1);
    future.started = now().plus(Duration::from_secs(DAY));
    let why = full_because(chosen(Asked::Auto, &[future], &cluster()));
    assert!(why.contains("from the future"), "{why}");
}

#[test]
fn what_does_not_fit_this_cluster_is_not_leaned_on() {
    type Change = fn(&mut BackupInfo);
    let changes: [(Change, &str); 5] = [
        (|info| info.good = false, "damaged pages"),
        (|info| info.system_identifier = "8".to_owned(), "another cluster"),
        (|info| info.major = 14, "PostgreSQL 14"),
        (|info| info.block_size = 4096, "another size"),
        (|info| info.data_checksums = false, "checksums were switched on"),
    ];
    for (change, expected) in changes {
        let mut newest = backup("incr", 1);
        change(&mut newest);
        let why = full_because(chosen(Asked::Incr, std::slice::from_ref(&newest), &cluster()));
        assert!(why.contains(expected), "{why}");
        let older = backup("full", 2);
        let choice = chosen(Asked::Incr, &[older.clone(), newest], &cluster());
        assert_eq!(
            choice,
            Choice::Since(BackupType::Incr, older.label),
            "the one before it fits"
        );
    }
}

#[test]
fn after_a_failover_only_what_was_over_before_the_switch_is_leaned_on() {
    // Timeline 2 left timeline 1 at 0/2000100, within the newest backup and behind the older one's stop.
    let mut promoted = cluster();
    promoted.history = TimelineHistory::parse(TimelineId(2), b"1\t0/2000100\tno reason\n").unwrap();
    let newest = backup("incr", 1);
    let why = full_because(chosen(Asked::Incr, std::slice::from_ref(&newest), &promoted));
    assert!(why.contains("timeline 1, which this server's timeline 2 left"), "{why}");
    let mut older = backup("full", 2);
    (older.start_lsn, older.stop_lsn) = (Lsn(0x0100_0028), Lsn(0x0200_0100));
    let choice = chosen(Asked::Incr, &[older.clone(), newest], &promoted);
    assert_eq!(choice, Choice::Since(BackupType::Incr, older.label));
    let mut elsewhere = backup("full", 1);
    elsewhere.timeline = 3;
    assert!(full_because(chosen(Asked::Incr, &[elsewhere], &promoted)).contains("timeline 3"));
}

#[test]
fn what_cannot_be_read_here_is_not_leaned_on() {
    let backups = [backup("full", 48), backup("incr", 24)];
    let week = Duration::from_secs(7 * DAY);
    let no_incr = |info: &BackupInfo| match info.kind {
        BackupType::Full => Ok(()),
        _ => Err("no key".to_owned()),
    };
    let choice = choose(Asked::Incr, &backups, &cluster(), now(), week, &no_incr);
    assert_eq!(choice, Choice::Since(BackupType::Incr, backups[0].label));
    let nothing = |_: &BackupInfo| Err("no key".to_owned());
    let why = full_because(choose(Asked::Auto, &backups, &cluster(), now(), week, &nothing));
    assert_eq!(why, "no key");
}
