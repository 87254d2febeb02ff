//! A Patroni cluster with all that looks after it: a repository in S3, Consul, Prometheus, a host that tests restores, and
//! somebody who is told; configured by the playbook.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};
use system_tests::mounts::Mounted;
use system_tests::s3::{self, ACCESS_KEY, S3, SECRET_KEY};
use system_tests::wait::wait_until;
use system_tests::{Sink, project};

use crate::lab::CONTROL;
use crate::members::DATA;
use crate::{Ansible, Archive, Host, Lab, Members, keys};

/// The playbook that does everything.
pub const SITE: &str = "ansible/playbooks/site.yml";
/// Long enough for what hosts do on a busy machine.
pub const LONG: Duration = Duration::from_secs(300);
/// Room for the bucket, in kilobytes.
pub const ROOM: u32 = 6 << 20;

/// A cluster, what it is backed up to, and what looks after it.
pub struct Site<'lab> {
    /// The cluster.
    pub members: Members,
    /// The host with Prometheus and Consul's server; it tests restores, too.
    pub watch: Host,
    /// Ansible, with an inventory of all of them.
    pub ansible: Ansible<'lab>,
    /// The bucket's service; none while it is down.
    pub store: Option<S3>,
    /// The file system that the bucket lies on.
    pub room: Mounted,
    /// Whoever is told.
    pub sink: Sink,
    _archive: Archive,
    lab: &'lab Lab,
}

impl<'lab> Site<'lab> {
    /// Boots everything; pgkeep is not there yet. None, with the reason said, where this cannot be had.
    pub fn need(lab: &'lab Lab) -> Option<Site<'lab>> {
        let ansible = Ansible::need(lab)?;
        let root = lab.scratch.create_dir("s3");
        let room = Mounted::tiny(&root, ROOM)?;
        let address: SocketAddr = format!("{CONTROL}:9100").parse().unwrap();
        let listener = lab.within(|| TcpListener::bind(address).unwrap());
        let mut site = Site {
            members: Members::new(lab),
            watch: lab.host("mon", "trixie"),
            ansible,
            store: None,
            room,
            sink: Sink::http_on(listener, "200 OK"),
            _archive: Archive::new(lab),
            lab,
        };
        site.store_comes_up();
        site.watch_over();
        site.configure();
        Some(site)
    }

    /// The same, with pgkeep configured by the playbook and a first backup taken.
    pub fn configured(lab: &'lab Lab) -> Option<Site<'lab>> {
        let site = Site::need(lab)?;
        site.ansible.run(SITE, &[]);
        site.members.wait_well();
        Some(site)
    }

    /// Starts the bucket's service.
    pub fn store_comes_up(&mut self) {
        let root = self.lab.scratch.path("s3");
        let address: SocketAddr = format!("{CONTROL}:9000").parse().unwrap();
        self.store = Some(self.lab.within(|| S3::start_at(&root, "backups", address)));
    }

    /// Ends it: connections are refused.
    pub fn store_goes_down(&mut self) {
        self.store = None;
    }

    /// Consul, a node exporter on every host and Prometheus, as their owner has them.
    pub fn watch_over(&self) {
        let mon = &self.watch.address;
        let all = self.all();
        for host in &all {
            let is_server = host.name == self.watch.name;
            let config = json!({
                "node_name": host.name, "bind_addr": host.address, "data_dir": "/var/lib/consul", "server": is_server,
                "retry_join": [mon], "retry_interval": "2s",
            });
            host.write("/etc/consul.d/10-agent.json", &format!("{config:#}"));
            if is_server {
                host.write("/etc/consul.d/20-server.json", "{\"bootstrap_expect\": 1}");
            }
            host.run("systemctl enable -q --now consul prometheus-node-exporter");
        }
        let targets: Vec<String> = all.iter().map(|host| format!("'{}:9100'", host.name)).collect();
        self.watch.write(
            "/etc/prometheus/prometheus.yml",
            &format!(
                "global:\n  scrape_interval: 2s\n  evaluation_interval: 2s\nscrape_configs:\n- job_name: node\n  \
                 static_configs:\n  - targets: [{}]\n",
                targets.join(", ")
            ),
        );
        self.watch.run("systemctl enable -q --now prometheus");
    }

    /// The inventory, with what an operator would say of this cluster. Nobody wants to wait in a test: checks run every few
    /// seconds, and alerts fire after a few.
    pub fn configure(&self) {
        let place = &self.lab.scratch;
        let opens = keys::age(self.lab, "identity.txt");
        let credentials = s3::credentials_of((ACCESS_KEY, SECRET_KEY));
        let rules = fs::read_to_string(project("packaging/prometheus/pgkeep.rules.yml")).unwrap();
        let waits = |line: &str| line.trim_start().starts_with("for: ");
        let soon: Vec<&str> = rules
            .lines()
            .map(|line| if waits(line) { "        for: 4s" } else { line })
            .collect();
        let rules = place.write("soon.rules.yml", soon.join("\n") + "\n", 0o644);
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
                "encryption": {"recipients": [opens.public], "identity_file": "/etc/pgkeep/identity.txt"},
                "retention": {"full": 4, "incremental": "7d", "wal": "14d"},
            }},
            "notify": {"hook": {"kind": "webhook", "url": format!("http://{CONTROL}:9100/hook")}},
        });
        let vars = json!({
            "pgkeep_apt_url": "http://apt.test",
            "pgkeep_config": config,
            "pgkeep_secrets": {"s3.credentials": credentials, "identity.txt": opens.private},
            "pgkeep_patroni_url": "http://{{ ansible_host }}:8008",
            "pgkeep_restore_host_majors": [17],
            "pgkeep_restore_host_identity": opens.private,
            "pgkeep_restore_host_secrets": {"s3.credentials": credentials},
            "pgkeep_consul_intervals": {"pgkeep-age": "3s", "pgkeep-archive": "3s", "pgkeep-restore-test": "3s"},
            "pgkeep_prometheus_rules_source": rules,
            "pgkeep_restore_host_tests": {"assert": {"last": {"sql": "SELECT max(n) FROM kept", "at_least": 1000}}},
            "pgkeep_sql_checks": [{"sql": "SELECT count(*) > 0 FROM kept"}],
        });
        let (hosts, mon) = (json!({"db1": {}, "db2": {}, "db3": {}}), json!({"mon": {}}));
        self.ansible.inventory(
            &self.all(),
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

    fn all(&self) -> Vec<&Host> {
        self.members.hosts.iter().chain([&self.watch]).collect()
    }

    /// Runs the checks as their timers do, and waits until everything that watches agrees that all is well.
    pub fn all_is_well(&self) {
        let ended = self.everywhere("pgkeep-check@main.service");
        assert!(ended.iter().all(|result| result == "success"), "{ended:?}");
        for check in ["pgkeep-age", "pgkeep-archive"] {
            self.wait_consul(check, "passing");
        }
        for alert in [
            "PgkeepArchiveCritical",
            "PgkeepWalGap",
            "PgkeepBackupAbsent",
            "PgkeepBackupFailed",
        ] {
            self.wait_alert(alert, false);
        }
    }

    /// The committed backups of the repository, oldest first, as the host that tests restores sees them.
    pub fn backups(&self) -> Vec<Value> {
        let told: Value = serde_json::from_str(&self.watch.ask("pgkeep-info --format json")).unwrap();
        told["repositories"][0]["backups"].as_array().unwrap().clone()
    }

    /// The labels of the backups.
    pub fn labels(&self) -> Vec<String> {
        let label = |backup: &Value| backup["label"].as_str().unwrap().to_owned();
        self.backups().iter().map(label).collect()
    }

    /// Starts a job on every member at once, as their timers do, and waits until all have ended. Says how each ended.
    pub fn everywhere(&self, unit: &str) -> Vec<String> {
        std::thread::scope(|scope| {
            let one = |host| {
                move || {
                    let host: &Host = host;
                    host.shell(&format!("systemctl start {unit}")).run();
                    host.ask(&format!("systemctl show --value -p Result {unit}"))
                }
            };
            let running: Vec<_> = self.members.hosts.iter().map(|host| scope.spawn(one(host))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// What Consul says of a check on every member: `passing`, `warning`, `critical`.
    pub fn consul(&self, check: &str) -> Vec<String> {
        let told = self
            .watch
            .ask("curl -sf http://127.0.0.1:8500/v1/health/service/pgkeep");
        let told: Value = serde_json::from_str(&told).unwrap_or_default();
        let checks = told.as_array().into_iter().flatten();
        let checks = checks.flat_map(|node| node["Checks"].as_array().cloned().unwrap_or_default());
        checks
            .filter(|one| one["CheckID"].as_str().is_some_and(|id| id.starts_with(check)))
            .map(|one| one["Status"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Waits until a check has this state on every member, in Consul.
    pub fn wait_consul(&self, check: &str, state: &str) {
        wait_until(&format!("{check} is {state} in Consul"), LONG, || {
            let states = self.consul(check);
            states.len() == self.members.hosts.len() && states.iter().all(|one| one == state)
        });
    }

    /// The alerts that fire.
    pub fn alerts(&self) -> Vec<String> {
        let told = self.watch.ask("curl -sf http://127.0.0.1:9090/api/v1/alerts");
        let told: Value = serde_json::from_str(&told).unwrap_or_default();
        let alerts = told["data"]["alerts"].as_array().into_iter().flatten();
        let mut names: Vec<String> = alerts
            .filter(|alert| alert["state"] == "firing")
            .map(|alert| alert["labels"]["alertname"].as_str().unwrap_or_default().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Waits until an alert fires, or does not any more.
    pub fn wait_alert(&self, name: &str, fires: bool) {
        let what = if fires { "fires" } else { "is silent" };
        wait_until(&format!("{name} {what}"), LONG, || {
            self.alerts().iter().any(|alert| alert == name) == fires
        });
    }

    /// Waits until a message with these words has come since there were `before`.
    pub fn wait_message(&self, before: usize, words: &str) {
        wait_until(&format!("somebody is told: {words}"), LONG, || {
            self.sink.taken().iter().skip(before).any(|text| text.contains(words))
        });
    }
}
