//! The playbooks for one server: to a moment, a drill, and new keys of every kind. Each tells what it would do, asks, and leaves
//! everything working.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;

use host_tests::keys::{self, Pair};
use host_tests::lab::CONTROL;
use host_tests::site::SITE;
use host_tests::{Ansible, Archive, Host, Lab};
use serde_json::{Value, json};
use system_tests::s3::{self, ACCESS_KEY, NEXT, S3, SECRET_KEY};

const DATA: &str = "/var/lib/postgresql/15/main";

/// What an operator keeps in a vault, as it is at some time.
struct Vault {
    identities: Vec<Pair>,
    writer: Option<Pair>,
    lets_in: Vec<Pair>,
    reader: Pair,
    credentials: String,
}

/// One server, a repository over SSH and one in a bucket, a host that tests restores.
struct Single<'lab> {
    repo: Host,
    db: Host,
    rescue: Host,
    ansible: Ansible<'lab>,
    vault: Vault,
}

impl Single<'_> {
    fn configure(&self) {
        let vault = &self.vault;
        let recipients: Vec<&str> = vault.identities.iter().map(|pair| pair.public.as_str()).collect();
        let identity: String = vault.identities.iter().map(|pair| pair.private.as_str()).collect();
        let encryption = json!({"recipients": recipients});
        let retention = json!({"full": 9});
        let config = json!({
            "cluster": {"main": {"data_directory": DATA, "host": "/var/run/postgresql"}},
            "repository": {
                "nas": {"url": "sftp://pgkeep@repo/backups", "ssh_key": "/etc/pgkeep/id_ed25519",
                        "encryption": encryption, "retention": retention},
                "s3": {"url": "s3://backups/postgres", "endpoint": format!("http://{CONTROL}:9000"), "region": "us-east-1",
                       "credentials_file": "/etc/pgkeep/s3.credentials", "encryption": encryption, "retention": retention},
            },
        });
        let known_hosts = "{{ groups['pgkeep_repository'] | map('extract', hostvars) \
                           | selectattr('pgkeep_repository_host_known_hosts', 'defined') \
                           | map(attribute='pgkeep_repository_host_known_hosts') | flatten }}";
        let mut secrets = json!({"s3.credentials": vault.credentials});
        if let Some(writer) = &vault.writer {
            secrets["id_ed25519"] = writer.private.clone().into();
        }
        let lets_in: Vec<&str> = vault.lets_in.iter().map(|pair| pair.public.as_str()).collect();
        self.ansible.inventory(
            &[&self.repo, &self.db, &self.rescue],
            &json!({
                "pgkeep_repository": {"hosts": {"repo": {}}, "vars": {
                    "pgkeep_repository_host_keys": lets_in,
                    "pgkeep_repository_host_readers": [vault.reader.public],
                    "pgkeep_repository_host_names": ["repo"],
                }},
                "pgkeep_hosts": {"hosts": {"db1": {}}, "vars": {"pgkeep_secrets": secrets}},
                "pgkeep_restore": {"hosts": {"restore": {}}, "vars": {
                    "pgkeep_restore_host_majors": ["15"],
                    "pgkeep_restore_host_identity": identity,
                    "pgkeep_restore_host_secrets": {
                        "id_ed25519": vault.reader.private, "s3.credentials": vault.credentials,
                    },
                }},
                "everything": {"children": {"pgkeep_hosts": {}, "pgkeep_restore": {}}, "vars": {
                    "pgkeep_apt_url": "http://apt.test",
                    "pgkeep_known_hosts": known_hosts,
                    "pgkeep_config": config,
                    "pgkeep_sql_checks": [{"sql": "SELECT count(*) > 0 FROM kept"}],
                    "pgkeep_health_check_url": "http://apt.test/pgkeep.asc",
                }},
            }),
        );
    }

    /// Runs a playbook three times: it shows what it would do, it is not confirmed, it is. Returns what the last one said.
    fn confirmed(&self, playbook: &str, extra: &[&str]) -> String {
        let playbook = format!("ansible/playbooks/{playbook}.yml");
        for host in [&self.db, &self.repo, &self.rescue] {
            host.run("touch /root/mark");
        }
        let dry = self
            .ansible
            .run(&playbook, &[extra, &["-e", "pgkeep_dry_run=true"]].concat());
        assert!(dry.values().all(|counts| counts.changed == 0), "{dry:?}");
        let refused = self.ansible.plays(&playbook, extra).run();
        assert_ne!(refused.code, Some(0), "nobody said yes: {}", refused.stdout);
        for host in [&self.db, &self.repo, &self.rescue] {
            let touched = host.ask("find /etc /srv -xdev -newer /root/mark");
            assert_eq!(touched, "", "{}", host.name);
        }
        let done = self
            .ansible
            .plays(&playbook, &[extra, &["-e", "pgkeep_confirm=yes"]].concat());
        done.run().expect_code(0).stdout
    }

    /// Whatever is configured now works, and another run of the site's playbook finds it as it should be.
    fn is_as_it_should_be(&self) {
        self.configure();
        self.ansible.run(SITE, &[]);
        self.ansible.run_unchanged(SITE, &[]);
        self.db
            .run("pgkeep-init --check; pgkeep-check-archive; pgkeep-check-age");
    }

    /// The labels of the backups of each repository, oldest first, and their notes.
    fn backups(&self) -> Vec<Vec<(String, String)>> {
        let told: Value = serde_json::from_str(&self.db.ask("pgkeep-info --format json")).unwrap();
        let repositories = told["repositories"].as_array().unwrap();
        let of = |repository: &Value| {
            let backups = repository["backups"].as_array().unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            backups
                .iter()
                .map(|one| (text(&one["label"]), text(&one["note"])))
                .collect()
        };
        repositories.iter().map(of).collect()
    }
}

/// To a moment, beside the old data and over it. The server is keyless: the identity comes for as long as it recovers.
fn to_a_moment(single: &Single<'_>, lab: &Lab) {
    let db = &single.db;
    let identity = json!({"pgkeep_identity": single.vault.identities[0].private});
    let identity = lab.scratch.write("identity.json", identity.to_string(), 0o600);
    let identity = format!("@{}", identity.display());
    db.sql("INSERT INTO kept VALUES (1001)");
    let moment =
        db.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\\\"T\\\"HH24:MI:SS.US\\\"Z\\\"')");
    db.sql("DROP TABLE kept");
    db.sql("SELECT pg_switch_wal()");
    let target = format!("{{\"pgkeep_target\": [\"--target-time\", \"{moment}\"]}}");
    let keyless = single
        .ansible
        .plays("ansible/playbooks/restore.yml", &["--limit", "db1", "-e", &target]);
    let keyless = keyless.run();
    assert!(
        keyless.code != Some(0) && keyless.stdout.contains("no identity is configured"),
        "{}",
        keyless.stdout
    );
    let said = single.confirmed("restore", &["--limit", "db1", "-e", &target, "-e", &identity]);
    assert!(!db.holds("test -e /run/pgkeep-restore"), "the identity is gone again");
    assert_eq!(db.sql("SHOW restore_command"), "");
    assert!(said.contains("out of recovery and well"), "{said}");
    assert_eq!(db.sql("SELECT max(n) FROM kept"), "1001");
    // The old data is beside it, and nothing else is.
    let beside = db.ask(&format!("cd {DATA}/..; ls"));
    let beside: Vec<&str> = beside.lines().collect();
    assert!(
        beside.len() == 2 && beside[0] == "main" && beside[1].starts_with("main.before-"),
        "{beside:?}"
    );
    for repository in single.backups() {
        assert_eq!(repository.last().unwrap().1, "after a restore");
    }

    // A run that was interrupted, on its way to another moment, leaves nothing that counts.
    db.sql("INSERT INTO kept VALUES (1002); SELECT pg_switch_wal()");
    db.run("pgkeep-check-archive");
    db.run(&format!(
        "cp -a {DATA} {DATA}.restored; rm {DATA}.restored/postmaster.pid"
    ));
    let all = ["--limit", "db1", "-e", "{\"pgkeep_target\": []}", "-e", &identity];
    single.confirmed("restore", &all);
    assert_eq!(db.sql("SELECT max(n) FROM kept"), "1002");

    db.sql("INSERT INTO kept VALUES (1003); SELECT pg_switch_wal()");
    db.run("pgkeep-check-archive");
    let over = [&all[..], &["-e", "pgkeep_in_place=true"]].concat();
    single.confirmed("restore", &over);
    assert_eq!(db.sql("SELECT max(n) FROM kept"), "1003");
    assert_eq!(db.ask(&format!("cd {DATA}/..; ls | wc -l")), "3");
    single.is_as_it_should_be();
}

/// New recipients and identities: first both, then the new ones alone.
fn new_age_key(single: &mut Single<'_>, lab: &Lab) {
    let refused = single.ansible.plays("ansible/playbooks/rotate_age.yml", &[]).run();
    assert_ne!(refused.code, Some(0));
    assert!(refused.stdout.contains("single recipient"), "{}", refused.stdout);

    single.vault.identities.push(keys::age(lab, "identity2.txt"));
    single.configure();
    let before = single.backups();
    single.confirmed("rotate_age", &[]);
    single.is_as_it_should_be();
    for (now, before) in single.backups().iter().zip(&before) {
        assert_eq!(now.len(), before.len() + 1);
        assert_eq!(now.last().unwrap().1, "new key");
    }

    // The old one is lost, say: what was written since opens without it.
    single.vault.identities.remove(0);
    single.configure();
    single.confirmed("rotate_age", &["-e", "pgkeep_phase=finish"]);
    single.is_as_it_should_be();
    let identity = single.rescue.read("/etc/pgkeep/identity.txt");
    assert_eq!(identity.matches("AGE-SECRET-KEY-").count(), 1);
    single.rescue.run("pgkeep-restore-test");
    let written = single.backups();
    assert_eq!(written[0].last().unwrap().1, "new key");
}

/// New credentials of the bucket; wrong ones never take the place of right ones.
fn new_credentials(single: &mut Single<'_>) {
    let extra = ["-e", "pgkeep_s3_secret=s3.credentials"];
    let file = "/etc/pgkeep/s3.credentials";
    let before = single.db.read(file);
    single.vault.credentials = s3::credentials_of((NEXT.0, SECRET_KEY));
    single.configure();
    let playbook = "ansible/playbooks/rotate_s3.yml";
    let refused = single
        .ansible
        .plays(playbook, &[&extra[..], &["-e", "pgkeep_confirm=yes"]].concat());
    let refused = refused.run();
    assert_ne!(refused.code, Some(0));
    assert!(refused.stdout.contains("SignatureDoesNotMatch"), "{}", refused.stdout);
    assert_eq!(single.db.read(file), before);

    single.vault.credentials = s3::credentials_of(NEXT);
    single.configure();
    single.confirmed("rotate_s3", &extra);
    assert!(single.db.read(file).contains(NEXT.0));
    assert_eq!(single.db.ask("ls /etc/pgkeep | grep new || true"), "");
    single.is_as_it_should_be();
}

/// New keys for ssh: one of the vault, then one that the host makes.
fn new_ssh_key(single: &mut Single<'_>, lab: &Lab) {
    let key = "/etc/pgkeep/id_ed25519";
    let lets_in = "/etc/ssh/authorized_keys/pgkeep";
    let old = single.vault.lets_in[0].clone();
    let new = keys::ssh(lab, "writer2");
    single.vault.writer = Some(new.clone());
    single.configure();
    single.confirmed("rotate_ssh", &[]);
    assert_eq!(single.db.read(key), new.private.trim_end());
    assert!(
        single.repo.read(lets_in).contains(old.public.trim_end()),
        "it is let in until the inventory says otherwise"
    );
    single.vault.lets_in = vec![new.clone()];
    single.is_as_it_should_be();
    assert!(!single.repo.read(lets_in).contains(old.public.trim_end()));

    single.vault.writer = None;
    single.configure();
    let said = single.confirmed("rotate_ssh", &[]);
    let public = single.db.ask(&format!("ssh-keygen -y -f {key}"));
    assert!(said.contains(&public), "{said}");
    assert_ne!(single.db.read(key), new.private.trim_end());
    single.vault.lets_in = vec![Pair {
        private: String::new(),
        public,
    }];
    single.is_as_it_should_be();
    assert!(!single.repo.read(lets_in).contains(new.public.trim_end()));
    assert_eq!(single.db.ask("ls /etc/pgkeep | grep -e new -e '[.]pub' || true"), "");
}

#[test]
fn one_server_is_set_back_and_gets_new_keys() {
    let Some(lab) = Lab::need("playbooks", &["bookworm"]) else {
        return;
    };
    let Some(ansible) = Ansible::need(&lab) else { return };
    let _archive = Archive::new(&lab);
    let bucket = lab.scratch.create_dir("s3");
    let address: SocketAddr = format!("{CONTROL}:9000").parse().unwrap();
    let _store = lab.within(|| S3::start_at(&bucket, "backups", address));
    let host = |name| lab.host(name, "bookworm");
    let writer = keys::ssh(&lab, "writer");
    let mut single = Single {
        repo: host("repo"),
        db: host("db1"),
        rescue: host("restore"),
        ansible,
        vault: Vault {
            identities: vec![keys::age(&lab, "identity.txt")],
            lets_in: vec![writer.clone()],
            writer: Some(writer),
            reader: keys::ssh(&lab, "reader"),
            credentials: s3::credentials_of((ACCESS_KEY, SECRET_KEY)),
        },
    };
    single.db.run("pg_createcluster 15 main --start");
    single
        .db
        .sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n");
    single.is_as_it_should_be();

    to_a_moment(&single, &lab);
    println!("set back");
    let drill = single.ansible.plays("ansible/playbooks/restore_drill.yml", &[]).run();
    let said = drill.expect_code(0).stdout;
    assert!(said.contains("passed") && said.contains("checked by amcheck"), "{said}");
    println!("drilled");
    new_age_key(&mut single, &lab);
    println!("new age key");
    new_credentials(&mut single);
    println!("new credentials");
    new_ssh_key(&mut single, &lab);
}
