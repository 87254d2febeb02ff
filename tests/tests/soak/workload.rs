//! Random work on a database: what changes blocks in every way that PostgreSQL has. A seed repeats it.

use std::thread;

use system_tests::story::archive_all;
use system_tests::{Scratch, Server, Stop, account};

use crate::hosts::Host;

/// A generator of numbers that a seed repeats (SplitMix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }
}

/// The work, and what it has done so far.
pub struct Workload {
    /// The primary.
    pub primary: Host,
    /// A standby of it, if there is one.
    pub standby: Option<Host>,
    pub dice: Dice,
    /// What was run, to be shown if the round fails.
    pub done: Vec<String>,
    databases: u64,
    prepared: u64,
    made: u64,
    scratch: Scratch,
    hosts: u64,
}

const TABLES: u64 = 4;

impl Workload {
    /// Makes tables with every kind of index, a tablespace, and a sequence.
    pub fn begin(scratch: &Scratch, primary: Host, dice: Dice) -> Workload {
        let cluster = &primary.cluster;
        account::create_dir(&primary.space, 0o700);
        cluster.sql(&format!(
            "CREATE TABLESPACE space LOCATION '{}'",
            primary.space.display()
        ));
        for table in 0..TABLES {
            cluster.sql(&format!(
                "CREATE TABLE t{table} (id serial PRIMARY KEY, a int, b text, words text[], spot point, at int4range);
                 CREATE INDEX ON t{table} (a);
                 INSERT INTO t{table} (a, b, words, spot, at)
                 SELECT n, repeat(md5(n::text), 1 + n % 5), ARRAY[n::text, (n % 7)::text], point(n, n % 100), int4range(n, n + 5)
                 FROM generate_series(1, 1500) n"
            ));
        }
        cluster.sql(
            "CREATE INDEX ON t0 USING gin (words);
             CREATE INDEX ON t1 USING gist (at);
             CREATE INDEX ON t1 USING spgist (spot);
             CREATE INDEX ON t2 USING hash (b);
             CREATE INDEX ON t3 USING brin (a);
             CREATE SEQUENCE numbers;
             CREATE UNLOGGED TABLE fleeting AS SELECT generate_series(1, 500) AS n",
        );
        Workload {
            primary,
            standby: None,
            dice,
            done: Vec::new(),
            databases: 0,
            prepared: 0,
            made: 0,
            scratch: scratch.clone(),
            hosts: 0,
        }
    }

    fn run(&mut self, statements: &str) {
        self.done.push(statements.to_owned());
        self.primary.cluster.sql(statements);
    }

    /// Does so many things.
    pub fn steps(&mut self, count: u64) {
        for _ in 0..count {
            self.step();
        }
    }

    fn step(&mut self) {
        let table = format!("t{}", self.dice.below(TABLES));
        let (low, many) = (self.dice.below(3000), 1 + self.dice.below(200));
        match self.dice.below(36) {
            0..=3 => self.run(&format!(
                "INSERT INTO {table} (a, b, words, spot, at) SELECT n, repeat(md5((n * 7)::text), 1 + n % 40),
                 ARRAY[n::text], point(n, n), int4range(n, n + 3) FROM generate_series(1, {many}) n"
            )),
            // Heap-only updates, then others.
            4..=6 => self.run(&format!("UPDATE {table} SET b = b || 'x' WHERE id BETWEEN {low} AND {low} + 20")),
            7..=9 => self.run(&format!(
                "UPDATE {table} SET a = a + 1, words = words || 'w'::text, spot = point(a, {low}), at = int4range(a::int, a::int + 9)
                 WHERE id BETWEEN {low} AND {low} + 20"
            )),
            10 | 11 => self.run(&format!("DELETE FROM {table} WHERE id BETWEEN {low} AND {low} + {many}")),
            12 => self.run(&format!("VACUUM {table}")),
            13 => self.run(&format!("VACUUM (FREEZE, ANALYZE) {table}")),
            14 => self.run(&format!("VACUUM FULL {table}")),
            // The end of the table is cut off, and grows again.
            15 => {
                self.run(&format!("DELETE FROM {table} WHERE id > (SELECT max(id) / 2 FROM {table})"));
                self.run(&format!("VACUUM {table}"));
            }
            16 => self.run(&format!("TRUNCATE {table}")),
            17 => {
                self.made += 1;
                let (new, old) = (self.made, self.made.saturating_sub(2));
                self.run(&format!(
                    "CREATE TABLE made{new} AS SELECT n, md5(n::text) AS m FROM generate_series(1, {many} * 10) n;
                     DROP TABLE IF EXISTS made{old}"
                ));
            }
            18 => self.database(),
            19 => {
                let to = ["space", "pg_default"][self.dice.below(2) as usize];
                self.run(&format!("ALTER TABLE {table} SET TABLESPACE {to}"));
            }
            20 => self.run(&format!("REINDEX TABLE {table}")),
            21 => self.run(&format!("CLUSTER {table} USING {table}_pkey")),
            22 => {
                let kind = ["bigint", "int"][self.dice.below(2) as usize];
                self.run(&format!("ALTER TABLE {table} ALTER COLUMN a TYPE {kind}"));
            }
            23 => {
                let kind = ["LOGGED", "UNLOGGED"][self.dice.below(2) as usize];
                self.run(&format!("INSERT INTO fleeting SELECT {low}; ALTER TABLE fleeting SET {kind}"));
            }
            24 => self.run(&format!("SELECT nextval('numbers') FROM generate_series(1, {many})")),
            25 => self.two_phase(&table, low),
            // Subtransactions, some of them rolled back; rows locked by several.
            26 => self.run(&format!(
                "BEGIN; SAVEPOINT a; UPDATE {table} SET b = 'sub' WHERE id = {low}; ROLLBACK TO a; SAVEPOINT b;
                 INSERT INTO {table} (a) VALUES ({low}); RELEASE b; COMMIT"
            )),
            27 => self.multixact(&table, low),
            28 => self.run("CHECKPOINT"),
            29 => {
                self.done.push("switch WAL".to_owned());
                self.primary.cluster.switch_wal();
            }
            30 => {
                self.done.push("crash and restart".to_owned());
                // Without a checkpoint, so that recovery follows.
                self.primary.cluster.stop(Stop::Immediate);
                self.primary.cluster.start();
            }
            31 => self.new_timeline(),
            34 | 35 => self.truncate_and_extend(&table, low / 2),
            32 => self.run(&format!(
                "BEGIN; CREATE TEMP TABLE passing AS SELECT * FROM {table}; ROLLBACK; SELECT count(*) FROM {table}"
            )),
            _ => self.run(&format!(
                "INSERT INTO {table} (b) SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 3000)"
            )),
        }
    }

    /// Creates a database by either strategy, works in it, and drops an earlier one.
    fn database(&mut self) {
        self.databases += 1;
        let name = format!("db{}", self.databases);
        let strategy = match (self.primary.cluster.server().major, self.dice.below(2)) {
            (15.., 0) => " STRATEGY wal_log",
            (15.., _) => " STRATEGY file_copy",
            _ => "",
        };
        self.run(&format!("CREATE DATABASE {name}{strategy}"));
        let work = "CREATE TABLE inside AS SELECT n, md5(n::text) AS m FROM generate_series(1, 500) n;
                    CREATE INDEX ON inside (m); UPDATE inside SET m = 'x' WHERE n % 9 = 0";
        self.primary.cluster.sql_in(&name, work);
        match self.dice.below(3) {
            0 => self.run(&format!("ALTER DATABASE {name} SET TABLESPACE space")),
            1 if self.databases > 1 => {
                let old = self.databases - 1;
                self.run(&format!("DROP DATABASE IF EXISTS db{old}"));
            }
            _ => {}
        }
    }

    fn two_phase(&mut self, table: &str, low: u64) {
        if self.prepared > 0 {
            let name = self.prepared;
            self.prepared = 0;
            let how = ["COMMIT", "ROLLBACK"][self.dice.below(2) as usize];
            self.run(&format!("{how} PREPARED 'two{name}'"));
            return;
        }
        self.prepared = low + 1;
        let name = self.prepared;
        // A table of its own, so that nobody waits for its locks.
        let _ = table;
        self.run(&format!(
            "CREATE TABLE IF NOT EXISTS apart (n int); BEGIN; INSERT INTO apart SELECT generate_series(1, 300);
             PREPARE TRANSACTION 'two{name}'"
        ));
    }

    fn multixact(&mut self, table: &str, low: u64) {
        self.done
            .push(format!("two sessions lock rows of {table} from {low} on"));
        let mut one = self.primary.cluster.client("postgres");
        let mut two = self.primary.cluster.client("postgres");
        let lock =
            format!("SELECT count(*) FROM (SELECT 1 FROM {table} WHERE id BETWEEN {low} AND {low} + 9 FOR SHARE) s");
        for session in [&mut one, &mut two] {
            session.batch_execute(&format!("BEGIN; {lock}")).unwrap();
        }
        one.batch_execute("COMMIT").unwrap();
        two.batch_execute("COMMIT").unwrap();
    }

    /// Recovers from the archive in place: the server goes on on a new timeline, as after a failover.
    fn new_timeline(&mut self) {
        if self.prepared > 0 {
            return;
        }
        self.done.push("a new timeline".to_owned());
        // It would not follow by itself what it has streamed past.
        self.standby = None;
        self.primary.cluster.stop(Stop::Fast);
        self.primary.site.recover(&self.primary.cluster, false);
        self.primary.cluster.start();
        self.primary.cluster.wait_promoted(system_tests::wait::PATIENCE);
    }

    /// The end of a table goes, and comes back longer by the work of several sessions at once: PostgreSQL then adds blocks that WAL
    /// does not name (`RelationAddExtraBlocks`, `src/backend/access/heap/hio.c`).
    fn truncate_and_extend(&mut self, table: &str, low: u64) {
        self.run(&format!("DELETE FROM {table} WHERE id > {low}"));
        self.run(&format!("VACUUM (TRUNCATE) {table}"));
        self.done.push(format!("six sessions insert into {table}"));
        let cluster = &self.primary.cluster;
        let insert =
            format!("INSERT INTO {table} (a, b) SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 10) n");
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let mut session = cluster.client("postgres");
                    for _ in 0..25 {
                        session.batch_execute(&insert).unwrap();
                    }
                });
            }
        });
    }

    /// Makes a standby from the newest backup, unless there is one.
    pub fn raise_standby(&mut self) {
        if self.standby.is_some() {
            return;
        }
        self.done.push("a standby is made".to_owned());
        self.hosts += 1;
        // The history of its timeline too.
        archive_all(&self.primary.cluster);
        let standby = self.primary.standby(&self.scratch, self.hosts);
        standby.catch_up(&self.primary.cluster);
        self.standby = Some(standby);
    }

    /// The standby takes over. Where the old primary wrote on meanwhile (`split`) and pg_rewind is there, it is rewound, and
    /// sometimes takes over again.
    pub fn fail_over(&mut self, split: bool) {
        self.raise_standby();
        let count = self.dice.below(4);
        self.steps(count);
        self.raise_standby();
        let Some(standby) = self.standby.take() else { return };
        standby.catch_up(&self.primary.cluster);
        let split = split && self.primary.can_be_rewound();
        if !split {
            let how = [Stop::Fast, Stop::Immediate][self.dice.below(2) as usize];
            self.done
                .push(format!("the primary stops ({how:?}), the standby is promoted"));
            self.primary.cluster.stop(how);
        }
        standby.promote();
        let old = std::mem::replace(&mut self.primary, standby);
        if !split {
            return;
        }
        self.done
            .push("the standby is promoted, the old primary writes on".to_owned());
        let lost = "CREATE TABLE lost AS SELECT n, repeat('x', 100) AS b FROM generate_series(1, 500) n; UPDATE t0 SET b = 'lost' WHERE id < 50";
        old.cluster.sql(lost);
        self.run("CHECKPOINT");
        let count = self.dice.below(3);
        self.steps(count);
        self.done
            .push("the old one is rewound to the new one, and follows it".to_owned());
        self.hosts += 1;
        let rewound = old.rewound(&self.primary, &self.scratch, self.hosts);
        rewound.catch_up(&self.primary.cluster);
        if self.dice.below(2) == 0 {
            self.done.push("and takes over again".to_owned());
            self.primary.cluster.stop(Stop::Fast);
            rewound.promote();
            self.primary = rewound;
        } else {
            self.standby = Some(rewound);
        }
    }

    /// Everything is on disk, on the standby too.
    pub fn settle(&mut self) {
        self.run("CHECKPOINT");
        if let Some(standby) = &self.standby {
            standby.catch_up(&self.primary.cluster);
            standby.cluster.checkpoint();
        }
    }
}

/// The version of a round.
pub fn server(dice: &mut Dice) -> Option<Server> {
    let majors = [13, 14, 15, 16, 17, 18];
    Server::need(majors[dice.below(majors.len() as u64) as usize])
}
