//! What is done every day, or once: packages, dumps, tests, checks, a move from another tool, a server of somebody else.

use std::fs;

use host_tests::Reader;
use host_tests::reader::DATA;
use host_tests::typed::{Block, shown};
use system_tests::project;

use super::{TWO, chosen, damages, keeps_for_others, mirrored};

pub fn begin(reader: &mut Reader) {
    reader.host.run("pg_createcluster 15 main --start");
    if chosen().is_some() {
        reader.installs();
    }
}

pub fn before(reader: &mut Reader, block: &Block, command: &str) {
    let is_first = block.commands.first().is_some_and(|first| first == command);
    match (block.document.as_str(), block.section.as_str(), block.number) {
        ("docs/packages.md", "From the package to the first backup", _) if is_first => {
            // The lines that are there are taken.
            reader
                .host
                .run("sed -i -E 's/^#(\\[|[a-z])/\\1/' /etc/pgkeep/pgkeep.toml");
        }
        ("docs/dumps.md", section, number) => dumps(reader, section, number, command),
        ("docs/restore-test.md", _, _) if is_first => {
            reader.directory = "/root".into();
            reader.works(TWO);
        }
        ("docs/verify.md", "Checking what is stored", _) if is_first => {
            ends_kept(reader);
            mirrored(reader);
            let label = reader.values["a full backup"].clone();
            reader.say("the label", label);
        }
        ("docs/verify.md", _, _) if is_first => damages(reader),
        ("docs/monitoring.md", section, _) if is_first => watched(reader, section),
        ("docs/migration.md", _, 1) if is_first => {
            reader.works(TWO);
            reader.sets("archive_command", "/usr/bin/pgkeep-archive-push %p && /bin/true");
        }
        ("docs/snapshots.md", "A machine was put back", _) => put_back(reader, command),
        ("docs/s3.md", _, _) if is_first => {
            let config = shown("docs/s3.md", "Repositories in a bucket", "toml");
            let config = config.first().unwrap();
            reader.configures(config);
        }
        ("docs/managed.md", section, number) => managed(reader, section, number, command),
        ("docs/troubleshooting.md", section, _) if is_first => trouble(reader, section),
        ("packaging/examples/cron/README.md", _, _) if is_first => {
            for name in ["run-pgkeep.sh", "pgkeep"] {
                let text = fs::read_to_string(project(&format!("packaging/examples/cron/{name}"))).unwrap();
                reader.host.write(&format!("/root/cron/{name}"), &text);
            }
            reader.directory = "/root/cron".into();
        }
        _ => {}
    }
}

fn dumps(reader: &mut Reader, section: &str, number: usize, command: &str) {
    match (section, number) {
        ("Taking them", 1) if command.starts_with("pgkeep-dump  ") => reader.works(TWO),
        ("Bringing something back", _) if command.ends_with("--list") => {
            reader.host.run("pgkeep-dump --database shop");
            reader.picks_dump();
        }
        ("Bringing something back", _) if command.contains("--table") => {
            reader.shop("DROP TABLE orders");
        }
        // The schema that was put back is another one, and the command would ask which is meant.
        ("Erasing a tenant", 1) if command.starts_with("pgkeep-prune") => reader.works(TWO),
        ("Without pgkeep", _) if command.starts_with("age") => {
            reader.works(TWO);
            reader.host.run("pgkeep-dump --database shop");
            let label = reader.label("dumps");
            reader.host.run(&format!(
                "cp -a $(find /var/backups/pgkeep -name {label} -type d) /root/dump; cp /etc/pgkeep/identity.txt /root/dump/
                cd /root/dump; find . -name '1.dump.zst.age' -exec cp -n {{}} . ';'; ls -R"
            ));
            reader.directory = "/root/dump".into();
        }
        _ => {}
    }
}

/// Ends the server that a restore test left for a look around.
fn ends_kept(reader: &Reader) {
    reader.host.run(
        "for pid in $(find /var/lib/pgkeep -name postmaster.pid -exec head -qn 1 {} +); do kill -INT $pid; tail --pid=$pid -f /dev/null; done",
    );
}

/// Somebody is told, and there has been a restore test.
fn watched(reader: &mut Reader, section: &str) {
    if section.starts_with("Checks") {
        reader.works(TWO);
        reader.host.run("pgkeep-restore-test --level quick");
        return;
    }
    reader
        .host
        .write("/usr/local/bin/sendmail", "#!/bin/sh\nexec cat >/dev/null\n");
    reader.host.run("chmod 755 /usr/local/bin/sendmail");
    let told = "\n[notify.local]\nkind = \"sendmail\"\nprogram = \"/usr/local/bin/sendmail\"\nfrom = \"pgkeep@db1.example.com\"\nto = [\"root@localhost\"]\non = [\"failure\", \"recovery\", \"digest\"]\n";
    reader.configures(&format!("{TWO}{told}"));
}

/// A snapshot of the machine from before the last orders is put back.
fn put_back(reader: &mut Reader, command: &str) {
    if command.starts_with("systemctl stop") {
        reader.works(TWO);
        reader.host.run(&format!(
            "systemctl stop postgresql@15-main; cp -a {DATA} {DATA}.snapshot; systemctl start postgresql@15-main"
        ));
        reader.orders();
        reader.archived();
        reader.host.run(&format!(
            "systemctl stop postgresql@15-main; rm -r {DATA}; mv {DATA}.snapshot {DATA}; systemctl start postgresql@15-main"
        ));
        assert_eq!(reader.shop("SELECT count(*) FROM orders"), "3000");
    }
    if command.contains("pg_is_in_recovery") {
        reader.wait_open();
        assert_eq!(reader.shop("SELECT count(*) FROM orders"), "4000");
    }
}

const MANAGED: &str = r#"
[cluster.shop]
host = "127.0.0.1"
port = 5432
user = "backup"
dbname = "postgres"
passfile = "/etc/pgkeep/pgpass"

[cluster.shop.dump]
databases = ["shop"]
role_passwords = false

[repository.elsewhere]
url = "file:///mnt/offsite"
encryption = { recipients = ["age1..."] }
retention = { dumps = "30d" }
"#;

const SCRATCH: &str = r#"
[cluster.shop]
host = "/var/run/postgresql"
port = 5499
user = "postgres"

[repository.elsewhere]
url = "file:///mnt/offsite"
encryption = { recipients = ["age1..."], identity_file = "/etc/pgkeep/identity.txt" }
"#;

/// A server that is reached over TCP only, by a role that may read; its statements are those of the page.
fn managed(reader: &mut Reader, section: &str, number: usize, command: &str) {
    match (section, number) {
        ("Setting it up", 1) if command == "pgkeep-init" => {
            reader.begins_anew(MANAGED);
            reader.fills();
            for statements in shown("docs/managed.md", "The role", "sql") {
                reader
                    .host
                    .write("/tmp/role.sql", &statements.replace("'...'", "'secret'"));
                reader
                    .host
                    .run("chmod 644 /tmp/role.sql; runuser -u postgres -- psql -v ON_ERROR_STOP=1 -f /tmp/role.sql");
            }
            reader
                .host
                .write("/etc/pgkeep/pgpass", "127.0.0.1:5432:*:backup:secret\n");
            reader
                .host
                .run("chown postgres: /etc/pgkeep/pgpass; chmod 600 /etc/pgkeep/pgpass");
        }
        ("Trying a dump out", 2) if command.starts_with("pgkeep-dump-restore") => {
            let config = SCRATCH.replace("age1...", &reader.recipient());
            reader.host.write("/etc/pgkeep/scratch.toml", &config);
            reader
                .host
                .run("chown postgres: /etc/pgkeep/scratch.toml; chmod 640 /etc/pgkeep/scratch.toml");
            reader.picks_dump();
        }
        ("Bringing something back, and leaving", _) => {
            reader.configures(&MANAGED.replace(
                "[\"age1...\"] }",
                "[\"age1...\"], identity_file = \"/etc/pgkeep/identity.txt\" }",
            ));
        }
        _ => {}
    }
}

fn trouble(reader: &mut Reader, section: &str) {
    match section {
        "archive_command fails" => reader.works(TWO),
        "A standby does not catch up" => {
            let segment = reader.host.sql("SELECT last_archived_wal FROM pg_stat_archiver");
            reader.host.run(&format!(
                "runuser -u postgres -- pgkeep-archive-get {segment} /var/lib/postgresql/fetched"
            ));
        }
        "Slow restore" => reader.empties(),
        "Remote (SFTP)" => keeps_for_others(reader),
        _ => {}
    }
}
