//! What breaks is told, in Consul, by alerts and by a message, and all of them are silent again when it is mended.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use host_tests::Lab;
use host_tests::site::{LONG, ROOM, SITE, Site};
use system_tests::Tool;
use system_tests::wait::wait_until;

/// Runs backup and checks as their timers do, and waits until Consul, Prometheus and a message say that something is wrong.
fn is_told(site: &Site<'_>, alert: &str) {
    let before = site.sink.taken().len();
    let leader = site.members.wait_leader();
    // Something has to go to the repository.
    leader.sql("INSERT INTO kept SELECT generate_series(1, 200000)");
    leader.sql("SELECT pg_switch_wal()");
    leader.run("systemctl start --no-block pgkeep-full-backup@main.service");
    // What is broken may show in the second check only: a last segment may have found room.
    let check = "systemctl reset-failed pgkeep-check@main.service; systemctl start pgkeep-check@main.service";
    wait_until("a check is critical in Consul", LONG, || {
        leader.shell(check).run();
        site.consul("pgkeep-archive").iter().any(|state| state == "critical")
    });
    site.wait_alert("PgkeepArchiveCritical", true);
    site.wait_alert(alert, true);
    site.wait_message(before, "check-archive");
}

/// After it was mended: a backup is taken, and everybody says that all is well.
fn is_mended(site: &Site<'_>) {
    let before = site.sink.taken().len();
    let labels = site.labels().len();
    let leader = site.members.wait_leader();
    leader.run("systemctl stop pgkeep-full-backup@main.service; systemctl reset-failed 'pgkeep-*' || true");
    leader.run("systemctl start pgkeep-full-backup@main.service");
    assert_eq!(site.labels().len(), labels + 1);
    site.all_is_well();
    site.wait_message(before, "recover");
}

#[test]
fn what_breaks_is_told_and_what_is_mended_too() {
    let Some(lab) = Lab::need("broken", &["trixie"]) else {
        return;
    };
    let Some(mut site) = Site::need(&lab) else { return };
    // A backup is old after two minutes here.
    let options = "{\"pgkeep_consul_options\": {\"pgkeep-age\": {\"warning\": \"90s\", \"critical\": \"2m\"}, \
                   \"pgkeep-restore-test\": {\"warning\": \"8d\", \"critical\": \"10d\"}}}";
    site.members.sql("CREATE TABLE kept (n integer)");
    site.members.sql("INSERT INTO kept VALUES (1)");
    site.ansible.run(SITE, &["-e", options]);
    site.members.wait_well();
    site.all_is_well();

    println!("the key of the bucket is missing");
    let leader = site.members.wait_leader();
    leader.run("mv /etc/pgkeep/s3.credentials /root/");
    is_told(&site, "PgkeepBackupFailed");
    let leader = site.members.wait_leader();
    leader.run("mv /root/s3.credentials /etc/pgkeep/");
    is_mended(&site);

    println!("the store is away");
    site.store_goes_down();
    is_told(&site, "PgkeepBackupFailed");
    // The member that should have taken it says so; the others know what they saw last.
    wait_until("the backup is too old in Consul", LONG, || {
        site.consul("pgkeep-age").iter().any(|state| state == "critical")
    });
    site.store_comes_up();
    is_mended(&site);

    println!("the repository is full");
    let room = lab.scratch.path("s3");
    let used = Tool::program("df").args(["-k", "--output=used"]).arg(&room).as_root();
    let used = used.run().expect_code(0).stdout;
    let used = used.lines().last().unwrap();
    let used: u32 = used.trim().parse().unwrap();
    site.room.resize(used + 64);
    is_told(&site, "PgkeepBackupFailed");
    site.room.resize(ROOM);
    is_mended(&site);
}
