//! The first page: a host without packages, and the programs where a build puts them.

use host_tests::Reader;
use host_tests::typed::{Block, shown};

const WITHOUT: &str = "apt-get -q update; mkdir /root/debs && cd /root/debs && apt-get -q download 'pgkeep-*'
    for deb in *.deb; do dpkg-deb -x $deb x; done
    mkdir -p /root/pgkeep/target && mv x/usr/bin /root/pgkeep/target/release && rm -r /root/debs";

pub fn begin(reader: &mut Reader) {
    reader.host.run("pg_createcluster 15 main --start");
    let block = host_tests::typed::blocks("docs/packages.md").remove(0);
    for command in &block.commands[..3] {
        reader.command(&block, command);
    }
    reader.host.run(WITHOUT);
    reader.directory = "/root/pgkeep".into();
}

pub fn before(reader: &mut Reader, block: &Block, command: &str) {
    match (block.number, command) {
        (2, command) if command.starts_with("chown") => {
            let config = &shown(&block.document, &block.section, "toml")[0];
            reader.host.write("/etc/pgkeep/pgkeep.toml", config);
        }
        (5, command) if command.starts_with("runuser") && command.contains("psql") => {
            let open = "runuser -u postgres -- psql -XAtp 5433 -c 'SELECT pg_is_in_recovery()'";
            system_tests::wait::wait_until("recovery has ended", std::time::Duration::from_secs(120), || {
                reader.host.ask(open) == "f"
            });
        }
        // The packages in place of step 1.
        (7, command) if command.contains("full-backup") => {
            reader.host.run(
                "rm /usr/bin/pgkeep-*; apt-get install -y -q -o Dpkg::Options::=--force-confold pgkeep; systemctl daemon-reload",
            );
        }
        _ => {}
    }
}
