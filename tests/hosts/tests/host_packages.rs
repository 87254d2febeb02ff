//! A fresh host of each release gets the packages from a signed repository, does what the document says, runs its timers
//! under the hardened units, is upgraded, and keeps its backups when the packages are purged.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use host_tests::typed::shown;
use host_tests::{Archive, Host, Lab};
use system_tests::wait::wait_until;

const LONG: Duration = Duration::from_secs(300);

/// The timers of a cluster `main`, with what each leaves when it worked.
const TIMERS: [(&str, &str); 8] = [
    ("full-backup", "base-backup"),
    ("base-backup", "base-backup"),
    ("prune", "prune"),
    ("verify", "verify"),
    ("restore-test", "restore-test"),
    ("check", "check-archive"),
    ("dump", "dump"),
    ("sync", "sync"),
];

/// What one field of a unit says.
fn shows(host: &Host, unit: &str, field: &str) -> String {
    host.ask(&format!("systemctl show --value -p {field} '{unit}'"))
}

/// The status that a job left, or null.
fn status(host: &Host, job: &str) -> serde_json::Value {
    let told = host.shell(&format!("cat /var/lib/pgkeep/main/status/{job}.json")).run();
    serde_json::from_str(&told.stdout).unwrap_or_default()
}

/// Lets a timer elapse at once instead of on its day, and waits until what it started has ended well.
fn fires(host: &Host, job: &str, leaves: &str) {
    let (timer, service) = (format!("pgkeep-{job}@main.timer"), format!("pgkeep-{job}@main.service"));
    wait_until(&format!("{service} is at rest"), LONG, || {
        ["inactive", "failed"].contains(&shows(host, &service, "ActiveState").as_str())
    });
    let before = status(host, leaves);
    let due = "[Timer]\nOnCalendar=\nOnCalendar=*-*-* *:*:0/3 UTC\nRandomizedDelaySec=0\nAccuracySec=100ms\n";
    host.write(&format!("/etc/systemd/system/{timer}.d/due.conf"), due);
    host.run(&format!("systemctl daemon-reload; systemctl restart '{timer}'"));
    wait_until(&format!("{timer} fires on {}", host.name), LONG, || {
        !shows(host, &timer, "LastTriggerUSec").is_empty() && status(host, leaves) != before
    });
    host.run(&format!(
        "rm -r '/etc/systemd/system/{timer}.d'; systemctl daemon-reload; systemctl restart '{timer}'"
    ));
    wait_until(&format!("{service} ends"), LONG, || {
        shows(host, &service, "ActiveState") == "inactive"
    });
    assert_eq!(
        shows(host, &service, "Result"),
        "success",
        "{}",
        journal(host, &service)
    );
    let left = status(host, leaves);
    assert_eq!(left["result"], "ok", "{job}: {left}");
}

fn journal(host: &Host, unit: &str) -> String {
    host.ask(&format!("journalctl --no-pager -o cat -u '{unit}'"))
}

/// From nothing to a first backup, by what `docs/packages.md` says.
fn install(host: &Host, major: &str) {
    host.run(&format!("pg_createcluster {major} main --start"));
    let blocks = shown("docs/packages.md", "From a repository", "sh");
    let add = blocks.iter().find(|block| block.contains("pgkeep.sources")).unwrap();
    host.run(&add.replace("https://apt.example.com/pgkeep", "http://apt.test"));
    // One file is edited: the lines that are there are taken, for the version of this host.
    host.run(&format!(
        "sed -i -E -e 's/^#(\\[|[a-z])/\\1/' -e 's#/15/main#/{major}/main#' /etc/pgkeep/pgkeep.toml
        printf '[repository.copy]\\nurl = \"file:///srv/copy\"\\nrequired = false\\n' >> /etc/pgkeep/pgkeep.toml
        install -d -o postgres -g postgres -m 0700 /srv/copy"
    ));
    let [begin] = &shown("docs/packages.md", "From the package to the first backup", "sh")[..] else {
        panic!("one block of commands was expected")
    };
    host.run(&begin.replace("postgresql@15-main", &format!("postgresql@{major}-main")));
    host.run("systemctl enable --now pgkeep-dump@main.timer pgkeep-sync@main.timer");
}

/// Every file of the local repository with its digest.
fn repository(host: &Host) -> String {
    host.ask("cd /var/backups/pgkeep && find . -type f -exec sha256sum {} + | sort -k 2")
}

fn story(release: &str, major: &str) {
    let Some(lab) = Lab::need(&format!("packages_{release}"), &[release]) else {
        return;
    };
    let archive = Archive::new(&lab);
    let host = lab.host("db1", release);
    install(&host, major);
    host.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");
    assert_eq!(status(&host, "base-backup")["result"], "ok");

    for (job, leaves) in TIMERS {
        // The repository must know something newer each time, or an incremental backup has nothing to do.
        host.sql("INSERT INTO kept SELECT generate_series(1, 10); SELECT pg_switch_wal()");
        if job == "sync" {
            // It may have run by now, and then has nothing to do for a day.
            host.run("rm -f /var/lib/pgkeep/main/status/sync.json");
        }
        fires(&host, job, leaves);
        let unit = format!("pgkeep-{job}@main.service");
        let score = host.ask(&format!(
            "systemd-analyze security '{unit}' | grep -o 'Overall exposure level.*'"
        ));
        let score: f64 = score.split(' ').find_map(|word| word.parse().ok()).unwrap();
        assert!(score <= 2.0, "{unit}: {score}");
        assert_eq!(shows(&host, &unit, "User"), "postgres");
        assert_eq!(shows(&host, &unit, "NoNewPrivileges"), "yes");
    }
    host.run("pgkeep-check-age; pgkeep-check-age --what restore-test; pgkeep-check-archive");
    host.run("systemctl start pgkeep-digest.service");

    // A new version takes the place of the old one, and nothing else changes.
    let kept = |host: &Host| {
        (
            repository(host),
            host.read("/etc/pgkeep/pgkeep.toml"),
            host.ask("systemctl list-unit-files --no-legend --state=enabled 'pgkeep-*'; ls /etc/systemd/system/timers.target.wants"),
            status(host, "restore-test"),
        )
    };
    host.run("systemctl stop 'pgkeep-*.timer'");
    wait_until("all jobs are at rest", LONG, || {
        host.ask("systemctl list-units --no-legend --state=activating,active 'pgkeep-*.service' | wc -l") == "0"
    });
    let before = kept(&host);
    archive.publish("0.1.1");
    host.run("apt-get update -q && apt-get upgrade -y -q");
    let installed = host.ask("dpkg-query -W -f '${Version}\\n' 'pgkeep*' | sort -u");
    assert_eq!(installed, "0.1.1");
    assert_eq!(kept(&host), before);
    host.run("systemctl start pgkeep-base-backup@main.timer pgkeep-full-backup@main.timer");
    host.sql("INSERT INTO kept SELECT 1; SELECT pg_switch_wal()");
    fires(&host, "base-backup", "base-backup");

    // The packages go, with all they left on the host; the backups stay.
    host.run("runuser -u postgres -- psql -qc \"ALTER SYSTEM SET archive_command = ''\" -c 'SELECT pg_reload_conf()'");
    let before = repository(&host);
    assert!(before.contains("backup.json"), "{before}");
    host.run("apt-get purge -y -q 'pgkeep*'");
    assert_eq!(repository(&host), before);
    let left = host.ask("ls -d /etc/pgkeep /var/lib/pgkeep /var/spool/pgkeep /usr/bin/pgkeep* 2>/dev/null || true");
    assert_eq!(left, "");
    let timers = host
        .ask("systemctl list-timers --all --no-legend 'pgkeep*'; systemctl list-units --failed --no-legend 'pgkeep*'");
    assert_eq!(timers, "");
    assert_eq!(host.ask("find /etc/systemd/system -name 'pgkeep*'"), "");
}

#[test]
fn a_fresh_bookworm_host() {
    story("bookworm", "15");
}

#[test]
fn a_fresh_trixie_host() {
    story("trixie", "17");
}
