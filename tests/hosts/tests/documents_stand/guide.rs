//! The operator's guide.

use host_tests::Reader;
use host_tests::reader::DATA;
use host_tests::typed::{Block, shown};

use super::lets_in;

const NAS: &str = r#"
[cluster.main]
data_directory = "/var/lib/postgresql/15/main"
host = "/var/run/postgresql"
user = "postgres"
extra_paths = ["/etc/postgresql/15/main"]

[repository.local]
url = "file:///var/backups/pgkeep"

[repository.nas]
url = "file:///mnt/nas/pgkeep"
required = false
"#;

pub fn begin(reader: &mut Reader) {
    reader.installs();
    let config = &shown("docs/guide.md", "Setting up", "toml")[0];
    reader.begins_anew(config);
}

/// Moves the server's data away before a restore takes its place, and back when that was seen.
fn away(reader: &Reader) {
    reader
        .host
        .run(&format!("systemctl stop postgresql@15-main; mv {DATA} {DATA}.was"));
}

fn back(reader: &Reader) {
    let script = format!(
        "if [ -e {DATA}.was ]; then rm -rf {DATA}; mv {DATA}.was {DATA}; systemctl start postgresql@15-main; fi"
    );
    reader.host.run(&script);
}

/// The repository is on another host from here on.
fn goes_there(reader: &mut Reader) {
    lets_in(reader);
    reader.works(&NAS.replace(
        "url = \"file:///mnt/nas/pgkeep\"",
        "url = \"sftp://pgkeep@nas.example.com/backups\"\nssh_key = \"/etc/pgkeep/id_ed25519\"",
    ));
    reader.host.run("pgkeep-init --check");
}

pub fn before(reader: &mut Reader, block: &Block, command: &str) {
    match (block.section.as_str(), block.number) {
        ("Several repositories", 1) if command.starts_with("pgkeep-sync  ") => reader.works(NAS),
        ("The host that keeps the repository", 1) if command.contains("KEYS.pub") => {
            reader.host.run("cp /etc/pgkeep/id_ed25519.pub /root/KEYS.pub");
        }
        ("Taking backups", 1) if command == "pgkeep-base-backup" => {
            goes_there(reader);
        }
        ("Restoring", 1) => away(reader),
        ("Restoring", _) => {
            back(reader);
            reader.empties();
            if command.contains("--target-lsn") {
                targets(reader);
            }
        }
        ("After the restore", 1) => {
            reader.empties();
            reader.host.run("pgkeep-restore --to /srv/rescue/data");
        }
        ("Standbys", 1) => away(reader),
        ("Tablespaces, pg_wal, configuration", 1) => {
            back(reader);
            reader.empties();
            reader.host.run("install -d -o postgres -g postgres /srv/fast /srv/big");
            reader.host.sql("CREATE TABLESPACE fast LOCATION '/srv/fast'");
            reader.host.sql("CREATE TABLESPACE big LOCATION '/srv/big'");
            let oid = reader.host.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'big'");
            reader.say("a tablespace", format!("--tablespace {oid}="));
            reader.host.run("pgkeep-base-backup");
        }
        ("Upgrades and re-created clusters", 1) if command.starts_with("pgkeep-init") => {
            reader
                .host
                .run("pg_dropcluster --stop 15 main; pg_createcluster 15 main");
            reader.host.run(
                "printf '%s\\n' 'archive_mode = on' \"archive_command = 'pgkeep-archive-push %p'\" >> /etc/postgresql/15/main/postgresql.conf; systemctl start postgresql@15-main",
            );
        }
        _ => {}
    }
}

/// A position, a transaction and a restore point, in this order, in the archive.
fn targets(reader: &mut Reader) {
    let position = reader.host.sql("SELECT pg_current_wal_lsn()");
    reader.say("a position", position);
    reader.orders();
    let xid = reader.host.sql("SELECT pg_current_xact_id()");
    reader.say("a transaction", format!("--target-xid {xid}"));
    reader.orders();
    reader.host.sql("SELECT pg_create_restore_point('before-migration')");
    reader.orders();
    reader.archived();
}
