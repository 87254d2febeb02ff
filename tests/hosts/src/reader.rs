//! Somebody who reads a document and types what it says, on a host.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use system_tests::wait::wait_until;

use crate::typed::{self, Block};
use crate::{Archive, Host, Lab};

/// Long enough for what a host does on a busy machine.
const LONG: Duration = Duration::from_secs(300);
/// The server's data directory.
pub const DATA: &str = "/var/lib/postgresql/15/main";
/// Where a document's words about the server come from: Debian's own log.
pub const LOG: &str = "/var/log/postgresql/postgresql-15-main.log";

/// What has to be so before a command is typed.
pub type Before = fn(&mut Reader, &Block, &str);

/// The reader, and their host.
#[derive(Debug)]
pub struct Reader {
    /// The host.
    pub host: Host,
    /// Where packages come from.
    pub archive: Archive,
    /// What the reader puts in place of a document's examples.
    pub values: BTreeMap<&'static str, String>,
    /// Where they are.
    pub directory: String,
    /// Who they are.
    pub user: String,
    /// What they have typed before, and still holds.
    pub prelude: String,
    /// What did not do what the document promises.
    pub wrong: Vec<String>,
}

impl Reader {
    /// A host with PostgreSQL's programs and no cluster, which knows where packages are.
    pub fn new(lab: &Lab) -> Reader {
        let (archive, host) = (Archive::new(lab), lab.host("db1", "bookworm"));
        // Repositories have room, however full the machine's own disk is.
        host.run("for place in /var/backups /mnt /srv; do mount -t tmpfs -o size=4G,mode=755 tmpfs $place; done");
        // These names are this host's own, and the primary that a standby asks never answers.
        host.run("echo 127.0.0.1 nas.example.com >> /etc/hosts; ip address add 10.0.0.1/32 dev lo");
        let mut reader = Reader {
            host,
            archive,
            values: BTreeMap::new(),
            directory: "/root".into(),
            user: "root".into(),
            prelude: String::new(),
            wrong: Vec::new(),
        };
        reader.say("the repository for apt", "http://apt.test");
        reader.say("the end of a log", "tail -n 100 ");
        reader.say("what runs", "top -b -n 1 -H");
        reader
    }

    /// Says what the reader puts somewhere.
    pub fn say(&mut self, meant: &'static str, value: impl Into<String>) {
        self.values.insert(meant, value.into());
    }

    /// The packages, by what `docs/packages.md` says.
    pub fn installs(&mut self) {
        let block = typed::blocks("docs/packages.md").remove(0);
        for command in &block.commands {
            self.command(&block, command);
        }
    }

    /// Types a document from top to bottom.
    #[allow(clippy::print_stdout)]
    pub fn types(&mut self, document: &str, before: Before) {
        for block in typed::blocks(document) {
            println!("{}", block.name());
            for command in block.typed() {
                before(self, &block, command);
                let typed = self.typed(&block, command);
                if let Err(wrong) = &typed {
                    println!("WRONG {wrong}");
                }
                self.wrong.extend(typed.err());
            }
        }
    }

    /// Types one command that has to do what the reader expects.
    pub fn command(&self, block: &Block, command: &str) {
        if let Err(wrong) = self.typed(block, command) {
            panic!("{wrong}");
        }
    }

    /// Types one command and looks whether it does what the reader expects.
    fn typed(&self, block: &Block, command: &str) -> Result<(), String> {
        // What was set before in the same block still holds.
        let is_setting = |line: &&String| {
            line.split_once('=')
                .is_some_and(|(name, _)| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        };
        let before = block.commands.iter().take_while(|other| *other != command);
        let settings: String = before.filter(is_setting).map(|line| format!("{line}\n")).collect();
        let filled = typed::filled(command, &self.values);
        let script = format!("cd '{}'\n{}{settings}{filled}\n", self.directory, self.prelude);
        let ran = match self.user.as_str() {
            "root" => self.host.shell(&script).stdin("y\n").run(),
            user => {
                self.host.write("/tmp/typed.sh", &script);
                self.host
                    .shell(&format!("runuser -u {user} -- bash /tmp/typed.sh"))
                    .run()
            }
        };
        let codes = typed::codes(block, command);
        if ran.code.is_some_and(|code| codes.contains(&code)) {
            return Ok(());
        }
        Err(format!("{}\n{filled}\n{}", block.name(), ran.report()))
    }

    /// Everything as it was after the packages were installed, with a fresh server that archives, and this configuration.
    pub fn begins_anew(&self, config: &str) {
        self.host.run(
            "systemctl stop 'pgkeep-*' || true; systemctl reset-failed 'pgkeep-*' || true
            pg_lsclusters -h | while read -r major name _; do pg_dropcluster --stop \"$major\" \"$name\"; done
            for place in /var/backups/pgkeep /mnt/nas/pgkeep /mnt/offsite /srv/rescue /srv/larger /srv/restore-test; do rm -rf $place; done
            rm -rf /var/lib/postgresql/15 /var/lib/pgkeep/* /var/spool/pgkeep/*
            install -d -o postgres -g postgres -m 700 /var/backups/pgkeep /srv/rescue
            install -d -m 755 /mnt/nas /mnt/offsite && install -d -o postgres -g postgres -m 700 /mnt/nas/pgkeep /mnt/offsite
            pg_createcluster 15 main
            printf '%s\\n' 'archive_mode = on' \"archive_command = 'pgkeep-archive-push %p'\" 'archive_timeout = 60' >> /etc/postgresql/15/main/postgresql.conf
            systemctl start postgresql@15-main
            [ -e /etc/pgkeep/identity.txt ] || runuser -u postgres -- pgkeep-init --generate-key /tmp/identity.txt > /root/recipient
            [ ! -e /tmp/identity.txt ] || install -o postgres -g postgres -m 600 /tmp/identity.txt /etc/pgkeep/identity.txt
            rm -f /tmp/identity.txt"
        );
        self.configures(config);
    }

    /// Writes the configuration; `age1...` in it is the host's own key.
    pub fn configures(&self, config: &str) {
        let config = config.replace("age1...", &self.recipient());
        self.host.write("/etc/pgkeep/pgkeep.toml", &config);
        self.host
            .run("chown postgres: /etc/pgkeep/pgkeep.toml && chmod 640 /etc/pgkeep/pgkeep.toml");
    }

    /// The public part of the host's key.
    pub fn recipient(&self) -> String {
        self.host.read("/root/recipient")
    }

    /// Begins anew, with repositories, a database `shop` that has a tenant, and a full backup of it.
    pub fn works(&mut self, config: &str) {
        self.begins_anew(config);
        self.host.run("pgkeep-init");
        self.fills();
        self.host.run("pgkeep-base-backup --type full");
        let full = self.label("backups");
        self.say("a full backup", full);
        self.moves_on();
    }

    /// Sets a parameter of the server.
    pub fn sets(&self, name: &str, value: &str) {
        self.host.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        self.host.sql("SELECT pg_reload_conf()");
    }

    /// The data that documents speak of.
    pub fn fills(&self) {
        self.host.sql("CREATE ROLE acme LOGIN");
        self.host.sql("CREATE DATABASE shop");
        self.shop("CREATE TABLE orders (id serial PRIMARY KEY, word text, created timestamptz DEFAULT now())");
        self.shop("CREATE INDEX orders_word ON orders (word)");
        self.shop("CREATE SCHEMA acme AUTHORIZATION acme");
        self.shop("CREATE TABLE acme.orders AS SELECT n AS id FROM generate_series(1, 100) AS n");
        self.orders();
    }

    /// Asks the database `shop`.
    pub fn shop(&self, statement: &str) -> String {
        self.host
            .ask(&format!("runuser -u postgres -- psql -XAtq -d shop -c \"{statement}\""))
    }

    /// A thousand more orders.
    pub fn orders(&self) {
        self.shop("INSERT INTO orders (word) SELECT md5(n::text) FROM generate_series(1, 1000) AS n");
    }

    /// Orders come, a moment passes, more orders come, and all of it is archived: the moment can be reached.
    pub fn moves_on(&mut self) {
        self.orders();
        let moment = self
            .host
            .sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\\\"T\\\"HH24:MI:SS.US\\\"Z\\\"')");
        self.say("a moment", moment);
        self.orders();
        self.archived();
    }

    /// Lets everything up to now reach the repositories.
    pub fn archived(&self) {
        let segment = self.host.sql("SELECT pg_walfile_name(pg_switch_wal())");
        wait_until("WAL is archived", LONG, || {
            self.host
                .sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")
                >= segment
        });
    }

    /// The name of the newest of `backups` or `dumps`.
    pub fn label(&self, of: &str) -> String {
        let told: Value = serde_json::from_str(&self.host.ask("pgkeep-info --format json")).unwrap();
        let newest = told["repositories"][0][of].as_array().and_then(|all| all.last());
        let newest = newest.unwrap_or_else(|| panic!("no {of}: {told}"));
        newest["label"].as_str().unwrap().to_owned()
    }

    /// The reader picks the newest dump.
    pub fn picks_dump(&mut self) {
        let label = self.label("dumps");
        self.say("the label", label);
    }

    /// Waits until the server has come out of recovery.
    pub fn wait_open(&self) {
        wait_until("the server is open", LONG, || {
            let asked = "runuser -u postgres -- psql -XAtqc 'SELECT pg_is_in_recovery()'";
            self.host.shell(asked).run().stdout.trim() == "f"
        });
    }

    /// Empties the places that a restore beside goes to.
    pub fn empties(&self) {
        self.host.run("find /srv/rescue -mindepth 1 -delete");
    }
}
