//! A Patroni cluster of three hosts, with etcd beside it, as somebody has it before pgkeep comes.

use std::time::Duration;

use serde_json::Value;
use system_tests::wait::wait_until;

use crate::{Host, Lab};

/// The members.
pub const MEMBERS: [&str; 3] = ["db1", "db2", "db3"];
/// Where a member's data is.
pub const DATA: &str = "/var/lib/postgresql/17/main";
/// The password of the superuser, who is asked over the network, too.
pub const PASSWORD: &str = "of-the-superuser";

const LONG: Duration = Duration::from_secs(400);

/// Three hosts with Patroni.
#[derive(Debug)]
pub struct Members {
    /// The hosts, in the order of [`MEMBERS`].
    pub hosts: Vec<Host>,
}

impl Members {
    /// Boots three hosts and makes a cluster of them.
    pub fn new(lab: &Lab) -> Members {
        let hosts: Vec<Host> = MEMBERS.into_iter().map(|name| lab.host(name, "trixie")).collect();
        let members = Members { hosts };
        members.set_up();
        members.begin();
        members
    }

    /// Puts the files of etcd and Patroni on every host, and starts etcd.
    pub fn set_up(&self) {
        let peers: Vec<String> = self
            .hosts
            .iter()
            .map(|host| format!("{}=http://{}:2380", host.name, host.address))
            .collect();
        for host in &self.hosts {
            let (name, address) = (&host.name, &host.address);
            host.write(
                "/etc/default/etcd",
                &format!(
                    "ETCD_NAME={name}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_CLUSTER_STATE=new\n\
                     ETCD_LISTEN_PEER_URLS=http://{address}:2380\nETCD_INITIAL_ADVERTISE_PEER_URLS=http://{address}:2380\n\
                     ETCD_LISTEN_CLIENT_URLS=http://{address}:2379,http://127.0.0.1:2379\n\
                     ETCD_ADVERTISE_CLIENT_URLS=http://{address}:2379\n",
                    peers.join(",")
                ),
            );
            host.write("/etc/patroni/config.yml", &self.patroni(host));
            host.run("chown -R postgres:postgres /etc/patroni; chmod 0600 /etc/patroni/config.yml");
            host.run("install -d -o postgres -g postgres -m 0755 /var/lib/postgresql/17");
            host.run("systemctl enable -q etcd patroni; systemctl start --no-block etcd");
        }
        wait_until("etcd has a leader", LONG, || {
            self.hosts.iter().all(|host| host.holds("etcdctl endpoint health"))
        });
    }

    /// Starts Patroni: on the first host, then on the others.
    pub fn begin(&self) {
        for host in &self.hosts {
            host.run("systemctl start patroni");
            if host.name == self.hosts[0].name {
                wait_until("the first member leads", LONG, || self.leader().is_some());
            }
        }
        self.wait_well();
    }

    fn patroni(&self, host: &Host) -> String {
        let address = &host.address;
        let etcd: Vec<String> = self.hosts.iter().map(|host| format!("{}:2379", host.address)).collect();
        format!(
            "# Its owner's notes.\n\
             scope: main\n\
             name: {name}\n\
             etcd3:\n  hosts: {etcd}\n\
             restapi:\n  listen: {address}:8008\n  connect_address: {address}:8008\n\
             bootstrap:\n  dcs:\n    ttl: 20\n    loop_wait: 3\n    retry_timeout: 5\n    maximum_lag_on_failover: 1048576\n\
             \x20   postgresql:\n      use_pg_rewind: true\n      use_slots: true\n\
             \x20     parameters:\n        wal_log_hints: 'on'\n        max_wal_senders: 10\n        checkpoint_timeout: 60\n\
             \x20 initdb:\n  - encoding: UTF8\n  - data-checksums\n\
             postgresql:\n  listen: '*:5432'\n  connect_address: {address}:5432\n  data_dir: {DATA}\n\
             \x20 bin_dir: /usr/lib/postgresql/17/bin\n  pgpass: /var/lib/postgresql/pgpass.patroni\n\
             \x20 use_unix_socket: true\n  use_unix_socket_repl: true\n\
             \x20 authentication:\n    replication: {{username: replicator, password: of-the-replicator}}\n\
             \x20   superuser: {{username: postgres, password: {PASSWORD}}}\n\
             \x20 parameters:\n    unix_socket_directories: /var/run/postgresql\n\
             \x20 pg_hba:\n  - local all all peer\n  - local replication all trust\n\
             \x20 - host all all 127.0.0.1/32 scram-sha-256\n\
             \x20 - host replication replicator 10.77.0.0/24 scram-sha-256\n\
             \x20 - host all all 10.77.0.0/24 scram-sha-256\n",
            name = host.name,
            etcd = etcd.join(","),
        )
    }

    /// What the members say of the cluster; null while none answers.
    pub fn cluster(&self) -> Value {
        self.hosts
            .iter()
            .map(|host| {
                host.shell(&format!("curl -sfm 5 http://{}:8008/cluster", host.address))
                    .run()
            })
            .find_map(|ran| serde_json::from_str(&ran.stdout).ok())
            .unwrap_or_default()
    }

    /// The host that leads now, if one does: Patroni says so, and the server takes what is written.
    pub fn leader(&self) -> Option<&Host> {
        self.hosts.iter().find(|host| {
            let asks = format!(
                "curl -sfm 5 -o /dev/null http://{}:8008/primary && \
                 [ \"$(runuser -u postgres -- psql -XAtqc 'SELECT pg_is_in_recovery()')\" = f ]",
                host.address
            );
            host.holds(&asks)
        })
    }

    /// The host that leads, once one does.
    pub fn wait_leader(&self) -> &Host {
        wait_until("a member leads", LONG, || self.leader().is_some());
        self.leader().unwrap()
    }

    /// The hosts that follow.
    pub fn replicas(&self) -> Vec<&Host> {
        let leader = self.wait_leader().name.clone();
        self.hosts.iter().filter(|host| host.name != leader).collect()
    }

    /// Waits until one member leads and all others stream from it, with nothing left to fetch.
    pub fn wait_well(&self) {
        wait_until("all members are well", LONG, || {
            let cluster = self.cluster();
            let members = cluster["members"].as_array().cloned().unwrap_or_default();
            let state = |name: &str| members.iter().filter(|member| member["state"] == name).count();
            let leads = members
                .iter()
                .any(|member| member["role"] == "leader" && member["state"] == "running");
            let level = members
                .iter()
                .all(|member| member["role"] == "leader" || member["lag"] == 0);
            leads && level && members.len() == self.hosts.len() && state("streaming") == self.hosts.len() - 1
        });
    }

    /// Lets another member lead; says which.
    pub fn switch_over(&self) -> String {
        let leader = self.wait_leader().name.clone();
        let to = self.replicas()[0].name.clone();
        let script =
            format!("patronictl -c /etc/patroni/config.yml switchover main --leader {leader} --candidate {to} --force");
        self.hosts[0].run(&script);
        wait_until(&format!("{to} leads"), LONG, || {
            self.leader().is_some_and(|host| host.name == to)
        });
        to
    }

    /// What a statement says on the leader.
    pub fn sql(&self, statement: &str) -> String {
        self.wait_leader().sql(statement)
    }
}
