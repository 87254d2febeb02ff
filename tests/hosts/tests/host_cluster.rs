//! A Patroni cluster of three hosts is given pgkeep by the playbook, with a repository in S3, Consul, Prometheus and a host
//! that tests restores; then it is switched over, loses power, loses its store, and tells the truth all along.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::net::TcpListener;
use std::time::Duration;

use host_tests::lab::CONTROL;
use host_tests::members::{DATA, MEMBERS, PASSWORD};
use host_tests::{Ansible, Archive, Host, Lab, Members};
use serde_json::{Value, json};
use system_tests::wait::wait_until;
use system_tests::{S3, Sink};

const SITE: &str = "ansible/playbooks/site.yml";
const LONG: Duration = Duration::from_secs(300);

/// A cluster, what it is backed up to, and what looks after it.
struct Site<'lab> {
    members: Members,
    watch: Host,
    ansible: Ansible<'lab>,
    store: Option<S3>,
    sink: Sink,
    _archive: Archive,
    lab: &'lab Lab,
}

fn store(lab: &Lab) -> S3 {
    let root = lab.scratch.path("s3");
    lab.within(|| S3::start_at(&root, "backups", format!("{CONTROL}:9000").parse().unwrap()))
}

impl<'lab> Site<'lab> {
    fn new(lab: &'lab Lab) -> Option<Site<'lab>> {
        let ansible = Ansible::need(lab)?;
        let members = Members::new(lab);
        let watch = lab.host("mon", "trixie");
        let listener = lab.within(|| TcpListener::bind(format!("{CONTROL}:9100")).unwrap());
        let site = Site {
            members,
            watch,
            ansible,
            store: Some(store(lab)),
            sink: Sink::http_on(listener, "200 OK"),
            _archive: Archive::new(lab),
            lab,
        };
        site.watch_over();
        site.configure();
        Some(site)
    }

    /// Consul, a node exporter on every host and Prometheus, as their owner has them.
    fn watch_over(&self) {
        let mon = &self.watch.address;
        let all: Vec<&Host> = self.members.hosts.iter().chain([&self.watch]).collect();
        for host in &all {
            let (name, address) = (&host.name, &host.address);
            let server = *name == self.watch.name;
            let config = json!({
                "node_name": name, "bind_addr": address, "data_dir": "/var/lib/consul", "server": server,
                "retry_join": [mon], "retry_interval": "2s",
            });
            host.write("/etc/consul.d/10-agent.json", &format!("{config:#}"));
            if server {
                host.write("/etc/consul.d/20-server.json", "{\"bootstrap_expect\": 1}");
            }
            host.run("systemctl enable -q --now consul prometheus-node-exporter");
        }
        let targets: Vec<String> = all.iter().map(|host| format!("'{}:9100'", host.name)).collect();
        self.watch.write(
            "/etc/prometheus/prometheus.yml",
            &format!(
                "global:\n  scrape_interval: 2s\n  evaluation_interval: 2s\nscrape_configs:\n- job_name: node\n  static_configs:\n  - targets: [{}]\n",
                targets.join(", ")
            ),
        );
        self.watch.run("systemctl enable -q --now prometheus");
    }

    /// The inventory, with what an operator would say of this cluster.
    fn configure(&self) {
        let key = self.lab.scratch.path("identity.txt");
        let made = system_tests::Tool::new("init")
            .as_root()
            .arg("--generate-key")
            .arg(&key)
            .run();
        let recipient = made.expect_code(0).stdout.trim().to_owned();
        let identity = std::fs::read_to_string(&key).unwrap();
        let credentials = self.lab.scratch.path("s3.credentials");
        S3::credentials(&credentials);
        let credentials = std::fs::read_to_string(&credentials).unwrap();
        let (hosts, mon) = (json!({"db1": {}, "db2": {}, "db3": {}}), json!({"mon": {}}));
        let config = json!({
            "patience": "20s",
            "cluster": {"main": {
                "data_directory": DATA,
                "patroni": "http://{{ ansible_host }}:8008",
                "archive_wait": "2m",
            }},
            "repository": {"s3": {
                "url": "s3://backups/postgres",
                "endpoint": format!("http://{CONTROL}:9000"),
                "region": "us-east-1",
                "credentials_file": "/etc/pgkeep/s3.credentials",
                "encryption": {"recipients": [recipient], "identity_file": "/etc/pgkeep/identity.txt"},
                "retention": {"full": 4, "incremental": "7d", "wal": "14d"},
            }},
            "notify": {"hook": {"kind": "webhook", "url": format!("http://{CONTROL}:9100/hook")}},
        });
        let vars = json!({
            "pgkeep_apt_url": "http://apt.test",
            "pgkeep_config": config,
            "pgkeep_secrets": {"s3.credentials": credentials, "identity.txt": identity},
            "pgkeep_flags": {"full-backup": "--only-on primary", "base-backup": "--only-on primary --if-older-than 1m"},
            "pgkeep_patroni_url": "http://{{ ansible_host }}:8008",
            "pgkeep_restore_host_majors": [17],
            "pgkeep_restore_host_identity": identity,
            "pgkeep_restore_host_secrets": {"s3.credentials": credentials},
            "health_check_sql": "SELECT count(*) > 0 FROM kept",
        });
        let all: Vec<&Host> = self.members.hosts.iter().chain([&self.watch]).collect();
        self.ansible.inventory(
            &all,
            &json!({
                "everything": {"vars": vars, "children": {
                    "pgkeep_hosts": {"hosts": hosts},
                    "pgkeep_patroni": {"hosts": hosts},
                    "pgkeep_consul": {"hosts": hosts},
                    "pgkeep_restore": {"hosts": mon},
                    "pgkeep_prometheus": {"hosts": mon},
                }},
            }),
        );
    }

    /// The committed backups of the repository, oldest first.
    fn backups(&self) -> Vec<Value> {
        let host = self.members.wait_leader();
        let told = host.ask("pgkeep-info --format json");
        let told: Value = serde_json::from_str(&told).unwrap();
        told["backups"].as_array().cloned().unwrap_or_default()
    }
}

/// What differs on a host after something ran on it that should change nothing.
fn fingerprint(host: &Host) -> String {
    host.ask(
        "find /etc /usr/bin /var/lib/pgkeep -xdev -newer /root/.before -not -path '*/__pycache__*' 2>/dev/null | sort",
    )
}

#[test]
fn a_cluster() {
    let Some(lab) = Lab::need("cluster", &["trixie"]) else {
        return;
    };
    let Some(mut site) = Site::new(&lab) else { return };
    site.members
        .sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");

    // A dry run on hosts without pgkeep says what would come, and changes nothing.
    for host in &site.members.hosts {
        host.run("touch /root/.before");
    }
    let recap = site.ansible.run(SITE, &["--check", "--diff"]);
    for name in MEMBERS {
        assert!(recap[name].changed > 0 && recap[name].failed == 0, "{recap:?}");
    }
    for host in &site.members.hosts {
        assert_eq!(fingerprint(host), "", "{}", host.name);
    }

    let recap = site.ansible.run(SITE, &[]);
    println!("{recap:?}");
    site.members.wait_well();
    let backups = site.backups();
    println!("{backups:#?}");
    assert_eq!(backups.len(), 1, "one member takes the first backup");
    let again = site.ansible.run(SITE, &[]);
    for (name, counts) in &again {
        assert_eq!((counts.changed, counts.failed), (0, 0), "{name}: {again:?}");
    }
    let _ = (PASSWORD, site.store.take(), site.sink.taken(), LONG);
    wait_until("x", LONG, || true);
}
