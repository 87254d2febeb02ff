//! Members and whole clusters come back from the repository: a new member by Patroni itself, a cluster at an earlier moment, and
//! all three hosts from nothing but the bucket and the identity. How long each took is told.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use host_tests::members::DATA;
use host_tests::site::{LONG, SITE, Site};
use host_tests::{Host, Lab};
use system_tests::wait::wait_until;

/// Bytes that a host has sent since it booted.
fn sent(host: &Host) -> u64 {
    host.ask("cat /sys/class/net/host0/statistics/tx_bytes")
        .parse()
        .unwrap()
}

/// Takes a member's data away and lets Patroni make it anew. Says how long it took until it streamed, and how much the leader sent.
fn made_anew(site: &Site<'_>, name: &str) -> (Duration, u64) {
    let host = site.members.hosts.iter().find(|host| host.name == name).unwrap();
    let leader = site.members.wait_leader();
    host.run(&format!("systemctl stop patroni; rm -rf {DATA}"));
    // A leader at work has pages to write before a copy of it can begin.
    leader.sql("UPDATE large SET word = reverse(word) WHERE n % 5 = 0");
    let (before, begin) = (sent(leader), Instant::now());
    host.run("systemctl start patroni");
    site.members.wait_well();
    (begin.elapsed(), sent(leader) - before)
}

/// The seconds that a playbook says it took.
fn told_seconds(said: &str) -> u32 {
    let line = said
        .lines()
        .find(|line| line.contains("out of recovery and well"))
        .unwrap_or_else(|| panic!("{said}"));
    line.split("well ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap()
}

#[test]
fn members_and_clusters_come_back() {
    let Some(lab) = Lab::need("recovery", &["trixie"]) else {
        return;
    };
    let Some(site) = Site::configured(&lab) else { return };
    let members = &site.members;
    members.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");
    members.sql("CREATE TABLE large AS SELECT n, md5(n::text) || md5((n * 7)::text) AS word FROM generate_series(1, 2500000) AS n");
    let size: u64 = members
        .sql("SELECT sum(pg_database_size(oid)) FROM pg_database")
        .parse()
        .unwrap();
    members
        .wait_leader()
        .run("systemctl start pgkeep-full-backup@main.service");
    members.wait_well();

    // A member whose disk was replaced is made from the repository, by Patroni itself.
    let name = members.replicas()[0].name.clone();
    let (from_repository, sent_by_leader) = made_anew(&site, &name);
    let host = members.hosts.iter().find(|host| host.name == name).unwrap();
    let log = host.ask("journalctl -u patroni -o cat --no-pager");
    assert!(log.contains("replica has been created using pgkeep"), "{log}");
    // And for comparison from the leader, as Patroni does it without pgkeep.
    let kept = host.read("/etc/patroni/config.yml");
    host.run("sed -i '/^  - pgkeep$/d' /etc/patroni/config.yml");
    let (from_leader, sent_without) = made_anew(&site, &name);
    host.write("/etc/patroni/config.yml", &format!("{kept}\n"));
    host.run("systemctl reload patroni");
    println!(
        "REPORT: new member of {} MB of a leader at work: from the repository {:.0} s, the leader sent {} MB; from the leader {:.0} s \
         (its checkpoint, which a copy waits for, is spread over a minute here and over five by default), it sent {} MB",
        size >> 20,
        from_repository.as_secs_f64(),
        sent_by_leader >> 20,
        from_leader.as_secs_f64(),
        sent_without >> 20
    );
    // What it sends all the time, its WAL to the archive and to the other member, is in both.
    assert!(
        sent_by_leader < sent_without / 4,
        "the leader sent {sent_by_leader} bytes, and {sent_without} when it was read"
    );
    assert!(from_repository < from_leader, "{from_repository:?}, {from_leader:?}");
    assert!(sent_without > size / 2, "{sent_without} of {size}");

    // A new member by playbook is one, too.
    host.run(&format!("systemctl disable --now patroni; rm -rf {DATA}"));
    let playbook = "ansible/playbooks/replica.yml";
    site.ansible.run(playbook, &["--limit", &name]);
    members.wait_well();
    assert!(host.holds("systemctl is-enabled patroni"));
    site.ansible.run_unchanged(playbook, &["--limit", &name]);

    // The cluster is set back to a moment, by the playbook; a dry run before changes nothing.
    members.sql("INSERT INTO kept VALUES (1001)");
    let moment = members
        .sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\\\"T\\\"HH24:MI:SS.US\\\"Z\\\"')");
    members.sql("DROP TABLE large; INSERT INTO kept VALUES (1002)");
    members.sql("SELECT pg_switch_wal()");
    members.wait_leader().run("pgkeep-check-archive");
    let target = format!("{{\"pgkeep_target\": [\"--target-time\", \"{moment}\"]}}");
    let playbook = "ansible/playbooks/patroni_restore.yml";
    let leader = members.wait_leader().name.clone();
    site.ansible
        .run(playbook, &["-e", &target, "-e", "pgkeep_dry_run=true"]);
    assert_eq!(members.wait_leader().name, leader);
    assert_eq!(members.sql("SELECT max(n) FROM kept"), "1002");
    let refused = site.ansible.plays(playbook, &["-e", &target]).run();
    assert_ne!(refused.code, Some(0), "nobody said yes");
    assert_eq!(members.sql("SELECT max(n) FROM kept"), "1002");

    let done = site
        .ansible
        .plays(playbook, &["-e", &target, "-e", "pgkeep_confirm=yes"])
        .run()
        .expect_code(0);
    members.wait_well();
    assert_eq!(members.sql("SELECT max(n) FROM kept"), "1001");
    assert_eq!(members.sql("SELECT count(*) FROM large"), "2500000");
    for host in &members.hosts {
        assert_eq!(host.sql("SELECT max(n) FROM kept"), "1001", "{}", host.name);
    }
    println!(
        "REPORT: cluster of {} MB set back by playbook: {} s",
        size >> 20,
        told_seconds(&done.stdout)
    );
    site.all_is_well();

    // All hosts are gone. Fresh machines, the bucket and the identity bring everything back.
    members.sql("INSERT INTO kept VALUES (1003)");
    members.sql("SELECT pg_switch_wal()");
    site.all_is_well();
    let before = site.labels();
    for host in &members.hosts {
        host.replace();
    }
    members.set_up();
    site.watch_over();
    let begin = Instant::now();
    let playbook = "ansible/playbooks/disaster_recovery.yml";
    let done = site
        .ansible
        .plays(playbook, &["-e", "pgkeep_confirm=yes"])
        .run()
        .expect_code(0);
    let all = begin.elapsed();
    members.wait_well();
    assert_eq!(members.sql("SELECT max(n) FROM kept"), "1003");
    assert_eq!(
        members
            .sql("SELECT count(*), md5(string_agg(word, '' ORDER BY n)) FROM large WHERE n <= 1000")
            .split('|')
            .next(),
        Some("1000")
    );
    println!(
        "REPORT: three hosts of {} MB from the bucket and the identity: {} s, {:.0} s with programs, timers and checks",
        size >> 20,
        told_seconds(&done.stdout),
        all.as_secs_f64()
    );
    members
        .wait_leader()
        .run("systemctl start pgkeep-full-backup@main.service");
    assert!(site.labels().len() > before.len());
    site.all_is_well();
    site.ansible.run_unchanged(SITE, &[]);
    wait_until("an archive without gaps", LONG, || {
        members.wait_leader().holds("pgkeep-check-archive")
    });
    site.watch.run("pgkeep-restore-test");
}
