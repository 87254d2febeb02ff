//! The disasters: each has happened before the reader types what its section says.

use host_tests::Reader;
use host_tests::reader::DATA;
use host_tests::typed::{Block, shown};

use super::{TWO, mirrored};

pub fn begin(reader: &mut Reader) {
    reader.installs();
    reader.works(TWO);
    reader
        .host
        .run("rm -r /srv/rescue; systemctl enable -q --now pgkeep-prune@main.timer");
}

pub fn before(reader: &mut Reader, block: &Block, command: &str) {
    let is_first = block.commands.first().is_some_and(|first| first == command);
    let (section, number) = (block.section.as_str(), block.number);
    match section {
        "Save the newest WAL" if is_first => newest_wal(reader, number),
        "Check the data" if is_first => {
            reader.host.run("systemctl start postgresql@15-main");
            reader.wait_open();
            // What was archived, what waited, and what stood in the last file.
            assert_eq!(reader.shop("SELECT count(*) FROM orders"), "6000");
        }
        "A table dropped by mistake" => dropped(reader, number, command),
        "One tenant damaged" => tenant(reader, number, is_first),
        "A whole database server lost" => lost(reader, number, is_first),
        "Data directory corrupted" if is_first => corrupted(reader, number),
        "The primary's disk is full of WAL" if is_first => full(reader, number),
        "Wrong timeline, or two primaries archived" if is_first => two(reader, number),
        "A Patroni cluster lost altogether" if command.starts_with("pgkeep-restore") => {
            reader
                .host
                .run(&format!("systemctl stop postgresql@15-main; rm -rf {DATA}"));
        }
        "The repository is lost" if is_first => repository_lost(reader, number),
        "The repository is damaged" if is_first => repository_damaged(reader, number),
        "The bucket's provider is down while you recover" if is_first => provider(reader, number),
        "The identity is lost" if is_first => identity(reader, number),
        "Identity or S3 key stolen" if is_first => stolen(reader, number),
        "Ransomware on the database host" => ransomware(reader, number, is_first),
        "pgkeep itself cannot be used" if command.starts_with("apt-get") => reader.works(TWO),
        "The wrong PostgreSQL version is installed" if is_first => version(reader, number),
        _ => {}
    }
}

/// The server dies with WAL that nobody has.
fn newest_wal(reader: &mut Reader, number: usize) {
    let host = &reader.host;
    if number == 1 {
        host.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
        host.run("systemctl restart postgresql@15-main");
        reader.orders();
        host.sql("SELECT pg_switch_wal()");
        reader.orders();
        reader.orders();
        host.run(&format!(
            "runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_ctl -D {DATA} -m immediate stop; systemctl stop postgresql@15-main; mv {DATA} {DATA}.broken"
        ));
    } else {
        host.run(&format!("pgkeep-restore --to {DATA}"));
        host.run(&format!("sed -i '/^archive_command/d' {DATA}/postgresql.auto.conf"));
    }
}

fn dropped(reader: &mut Reader, number: usize, command: &str) {
    match number {
        1 if command.starts_with("date") => {
            reader.works(TWO);
            reader.shop("DROP TABLE orders");
        }
        3 if command.ends_with("--list") => reader.picks_dump(),
        4 => assert_eq!(reader.shop("SELECT count(*) FROM orders"), "2000"),
        _ => {}
    }
}

fn tenant(reader: &mut Reader, number: usize, is_first: bool) {
    match number {
        1 if is_first => {
            reader.works(TWO);
            reader.shop("DELETE FROM acme.orders WHERE id > 50");
        }
        3 if is_first => reader.picks_dump(),
        _ => {}
    }
}

/// A new machine: nothing of the old one is there but the repository, and the reader's notes.
fn lost(reader: &mut Reader, number: usize, is_first: bool) {
    match number {
        1 if is_first => {
            let config = TWO.split("[repository.offsite]").next().unwrap();
            reader.works(&config.replace("/var/backups/pgkeep", "/mnt/nas/pgkeep"));
            reader.host.run(
                "pg_dropcluster --stop 15 main; pg_createcluster 15 main; systemctl start postgresql@15-main
                apt-get remove -y -q 'pgkeep*'; rm -rf /var/lib/pgkeep/* /var/spool/pgkeep/* /srv/rescue /var/lib/postgresql/15/main.*",
            );
        }
        2 if is_first => {
            let config = &shown("docs/disasters.md", "A whole database server lost", "toml")[0];
            reader.configures(config);
            reader.host.run("chown root: /etc/pgkeep/*; chmod 644 /etc/pgkeep/*");
        }
        _ => {}
    }
}

fn corrupted(reader: &mut Reader, number: usize) {
    match number {
        1 => {
            reader.wait_open();
            assert_eq!(reader.shop("SELECT count(*) FROM orders"), "3000");
            reader.works(TWO);
        }
        3 => {
            reader.works(TWO);
            let database = reader.host.sql("SELECT oid FROM pg_database WHERE datname = 'shop'");
            let file = reader.shop("SELECT pg_relation_filenode('orders')");
            reader.say("a database", format!("oid = {database}"));
            reader.say("a file of a table", format!("(0, {file})"));
        }
        5 => {
            let label = reader.values["a full backup"].clone();
            reader.say("the label", label);
        }
        _ => {}
    }
}

fn full(reader: &mut Reader, number: usize) {
    if number == 1 {
        reader.wait_open();
        assert_eq!(reader.shop("SELECT count(*) FROM orders"), "3000");
        reader
            .host
            .sql("SELECT pg_create_physical_replication_slot('standby2', true)");
        reader.host.run("rm -rf /var/lib/postgresql/15/pg_wal.old");
    }
}

fn two(reader: &mut Reader, number: usize) {
    match number {
        1 => {
            reader.works(TWO);
            reader.host.run("install -d -o postgres -g postgres -m 700 /srv/rescue");
        }
        4 => reader.say("a timeline", "--target-timeline 1"),
        _ => {}
    }
}

/// Its place is there, and empty.
fn repository_lost(reader: &mut Reader, number: usize) {
    if number == 1 {
        mirrored(reader);
        let uuid = reader.host.ask("pgkeep-info --repository local --format json | grep -o '\"uuid\": *\"[^\"]*\"' | head -n 1 | cut -d '\"' -f 4");
        reader.say("the repository that is gone", uuid);
        reader.host.run("find /var/backups/pgkeep -mindepth 1 -delete");
    }
}

fn repository_damaged(reader: &mut Reader, number: usize) {
    match number {
        1 => {
            mirrored(reader);
            reader.host.run("install -d -o postgres -g postgres -m 700 /srv/rescue");
        }
        2 => {
            let full = reader.values["a full backup"].clone();
            reader.host.run(&format!(
                "pgkeep-sync; file=$(find /var/backups/pgkeep/main/backup/{full}/data -type f | sort | head -n 1)
                printf damage | dd of=\"$file\" bs=1 seek=200 conv=notrunc status=none"
            ));
        }
        5 => {
            let segment = reader.host.sql("SELECT pg_walfile_name(pg_switch_wal())");
            reader.say("a segment", format!("/pg_wal/{segment}"));
        }
        _ => {}
    }
}

/// `offsite` is away until the last block.
fn provider(reader: &mut Reader, number: usize) {
    match number {
        1 => {
            reader.works(TWO);
            reader.host.run("mv /mnt/offsite /mnt/away");
        }
        2 => {
            reader.host.run("mv /mnt/away /mnt/offsite");
        }
        _ => {}
    }
}

fn identity(reader: &mut Reader, number: usize) {
    match number {
        1 => {
            reader.works(TWO);
            reader.host.run("cp /etc/pgkeep/identity.txt /root/identity.txt");
        }
        3 => {
            let recipient = reader
                .host
                .ask("grep -om 1 'age1[a-z0-9]*' /root/pgkeep-identity-2.txt");
            reader.configures(&TWO.replace("age1...", &recipient));
            reader
                .host
                .run("install -o postgres -g postgres -m 600 /root/pgkeep-identity-2.txt /etc/pgkeep/identity.txt");
        }
        _ => {}
    }
}

fn stolen(reader: &mut Reader, number: usize) {
    match number {
        1 => {
            reader
                .host
                .run("install -o postgres -g postgres -m 600 /root/identity.txt /etc/pgkeep/identity.txt");
            reader.works(TWO);
        }
        4 => {
            let recipient = reader
                .host
                .ask("grep -om 1 'age1[a-z0-9]*' /root/pgkeep-identity-2.txt");
            reader.host.run(
                "cat /root/pgkeep-identity-2.txt >> /etc/pgkeep/identity.txt; install -d -o postgres -g postgres -m 700 /srv/new",
            );
            reader.configures(&format!(
                "{TWO}\n[repository.new]\nurl = \"file:///srv/new\"\nrequired = false\nencryption = {{ recipients = [\"{recipient}\"], identity_file = \"/etc/pgkeep/identity.txt\" }}\n"
            ));
        }
        _ => {}
    }
}

fn ransomware(reader: &mut Reader, number: usize, is_first: bool) {
    match number {
        1 if is_first => {
            reader
                .host
                .run("install -o postgres -g postgres -m 600 /root/identity.txt /etc/pgkeep/identity.txt");
            reader.works(TWO);
        }
        4 if is_first => {
            reader
                .host
                .run(&format!("systemctl stop postgresql@15-main; mv {DATA} {DATA}.was"));
        }
        _ => {}
    }
}

fn version(reader: &mut Reader, number: usize) {
    match number {
        1 => reader.works(TWO),
        3 => reader.empties(),
        4 => {
            reader.host.run(
                "runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_ctl -D /srv/rescue/data -m fast stop
                pg_dropcluster --stop 15 main; pg_createcluster 15 main
                printf '%s\\n' 'archive_mode = on' \"archive_command = 'pgkeep-archive-push %p'\" >> /etc/postgresql/15/main/postgresql.conf
                systemctl start postgresql@15-main",
            );
        }
        _ => {}
    }
}
