//! A Patroni cluster of three hosts is given pgkeep by the playbook; then it is switched over and loses power in the middle
//! of backups, and the checks tell the truth all along.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use host_tests::members::MEMBERS;
use host_tests::site::{LONG, SITE, Site};
use host_tests::{Host, Lab};
use system_tests::s3::{Fault, Rule};
use system_tests::wait::wait_until;

/// What is newer on a host than the moment that `/root/.before` marks.
fn changed_since(host: &Host) -> String {
    host.ask(
        "{ find /etc /usr/bin /var/lib/pgkeep -xdev -newer /root/.before -not -path '*/__pycache__*' 2>/dev/null || true; } | sort",
    )
}

/// Lets a backup of the leader stand still in the middle, while the store does not answer. Says who led.
fn stands_still(site: &Site<'_>) -> String {
    let leader = site.members.wait_leader().name.clone();
    let store = site.store.as_ref().unwrap();
    store.forget();
    store.rule(Rule::new(Fault::Hang).method("PUT").part("/data/"));
    let host = site.members.wait_leader();
    host.run("systemctl start --no-block pgkeep-full-backup@main.service");
    wait_until("the backup is in its middle", LONG, || {
        store
            .log()
            .iter()
            .any(|line| line.starts_with("PUT") && line.contains("/data/"))
    });
    leader
}

/// The next run of the timers makes one backup, on whoever leads.
fn next_run_is_right(site: &Site<'_>) {
    let before = site.labels();
    let leader = site.members.wait_leader().name.clone();
    let ended = site.everywhere("pgkeep-full-backup@main.service");
    assert!(ended.iter().all(|result| result == "success"), "{ended:?}");
    let after = site.labels();
    assert_eq!(after.len(), before.len() + 1, "{after:?}");
    assert_eq!(after[..before.len()], before[..]);
    for host in &site.members.hosts {
        let status = host.read("/var/lib/pgkeep/main/status/base-backup.json");
        let expected = if host.name == leader { "\"ok\"" } else { "\"skipped\"" };
        assert!(status.contains(expected), "{}: {status}", host.name);
    }
}

#[test]
fn a_cluster_is_given_pgkeep_and_lives_on() {
    let Some(lab) = Lab::need("cluster", &["trixie"]) else {
        return;
    };
    let Some(site) = Site::need(&lab) else { return };
    let members = &site.members;
    members.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");

    // A dry run on hosts without pgkeep says what would come, and changes nothing.
    for host in &members.hosts {
        host.run("touch /root/.before");
    }
    let recap = site.ansible.run(SITE, &["--check", "--diff"]);
    for name in MEMBERS {
        assert!(recap[name].changed > 0 && recap[name].failed == 0, "{recap:?}");
    }
    for host in &members.hosts {
        assert_eq!(changed_since(host), "", "{}", host.name);
    }

    // The first run does everything, the second one nothing.
    site.ansible.run(SITE, &[]);
    members.wait_well();
    assert_eq!(site.labels().len(), 1, "one member takes the first backup");
    site.ansible.run_unchanged(SITE, &[]);
    next_run_is_right(&site);
    site.all_is_well();

    // Another member leads in the middle of a backup.
    members.sql("INSERT INTO kept VALUES (1001)");
    let before = site.labels();
    let led = stands_still(&site);
    let to = members.switch_over();
    assert_ne!(to, led);
    site.store.as_ref().unwrap().heal();
    members.wait_well();
    let old = members.hosts.iter().find(|host| host.name == led).unwrap();
    wait_until("the interrupted backup ends", LONG, || {
        old.ask("systemctl show --value -p SubState pgkeep-full-backup@main.service") == "auto-restart"
    });
    assert_eq!(site.labels(), before, "no backup comes of it");
    old.run("systemctl stop pgkeep-full-backup@main.service");
    next_run_is_right(&site);
    site.all_is_well();

    // The leader loses power in the middle of a backup.
    members.sql("INSERT INTO kept VALUES (1002)");
    members.sql("SELECT pg_switch_wal()");
    let before = site.labels();
    let led = stands_still(&site);
    let old = members.hosts.iter().find(|host| host.name == led).unwrap();
    old.power_cut();
    site.store.as_ref().unwrap().heal();
    wait_until("another member leads", LONG, || {
        members.leader().is_some_and(|host| host.name != led)
    });
    members.sql("INSERT INTO kept VALUES (1003)");
    assert_eq!(site.labels(), before);
    old.boot();
    members.wait_well();
    // The lease that it held stands for five minutes more: the unit tries again by itself, sooner here than usual.
    let leader = members.wait_leader();
    leader.write(
        "/etc/systemd/system/pgkeep-full-backup@.service.d/soon.conf",
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=20s\n",
    );
    leader.run("systemctl daemon-reload; systemctl start --no-block pgkeep-full-backup@main.service");
    wait_until("a backup after the power cut", 2 * LONG, || {
        site.labels().len() > before.len()
    });
    wait_until("it ends", LONG, || {
        leader.ask("systemctl show --value -p ActiveState pgkeep-full-backup@main.service") == "inactive"
    });
    leader.run("rm /etc/systemd/system/pgkeep-full-backup@.service.d/soon.conf; systemctl daemon-reload");
    next_run_is_right(&site);
    site.all_is_well();

    // From the first backup on WAL goes through all timelines, without a gap, to what was written last.
    members.sql("INSERT INTO kept VALUES (1004)");
    members.sql("SELECT pg_switch_wal()");
    site.all_is_well();
    let first = &site.labels()[0];
    let tested = site
        .watch
        .ask(&format!("pgkeep-restore-test --backup {first} --format json"));
    assert!(tested.contains("1004"), "{tested}");
    members.wait_leader().run("pgkeep-verify");
    let timelines = members.sql("SELECT timeline_id FROM pg_control_checkpoint()");
    assert!(timelines.parse::<u32>().unwrap() >= 3, "{timelines}");
}
