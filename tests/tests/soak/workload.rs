//! Random work on a database: what changes blocks in every way that PostgreSQL has. A seed repeats it.

use system_tests::{Cluster, Server, Site, Stop, account};

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
pub struct Workload<'a> {
    pub cluster: &'a Cluster,
    pub site: &'a Site,
    pub dice: Dice,
    /// What was run, to be shown if the round fails.
    pub done: Vec<String>,
    databases: u64,
    prepared: u64,
    made: u64,
}

const TABLES: u64 = 4;

impl<'a> Workload<'a> {
    /// Makes tables with every kind of index, a tablespace, and a sequence.
    pub fn begin(cluster: &'a Cluster, site: &'a Site, space: &std::path::Path, dice: Dice) -> Workload<'a> {
        account::create_dir(space, 0o700);
        cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
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
            cluster,
            site,
            dice,
            done: Vec::new(),
            databases: 0,
            prepared: 0,
            made: 0,
        }
    }

    fn run(&mut self, statements: &str) {
        self.done.push(statements.to_owned());
        self.cluster.sql(statements);
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
        match self.dice.below(34) {
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
                self.cluster.switch_wal();
            }
            30 => {
                self.done.push("crash and restart".to_owned());
                // Without a checkpoint, so that recovery follows.
                self.cluster.stop(Stop::Immediate);
                self.cluster.start();
            }
            31 => self.new_timeline(),
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
        let strategy = match (self.cluster.server().major, self.dice.below(2)) {
            (15.., 0) => " STRATEGY wal_log",
            (15.., _) => " STRATEGY file_copy",
            _ => "",
        };
        self.run(&format!("CREATE DATABASE {name}{strategy}"));
        let work = "CREATE TABLE inside AS SELECT n, md5(n::text) AS m FROM generate_series(1, 500) n;
                    CREATE INDEX ON inside (m); UPDATE inside SET m = 'x' WHERE n % 9 = 0";
        self.cluster.sql_in(&name, work);
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
        let mut one = self.cluster.client("postgres");
        let mut two = self.cluster.client("postgres");
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
        self.cluster.stop(Stop::Fast);
        self.site.recover(self.cluster, false);
        self.cluster.start();
        self.cluster.wait_promoted(system_tests::wait::PATIENCE);
    }

    /// Ends what would keep databases from being equal: a transaction that is still prepared stays, as it should.
    pub fn settle(&mut self) {
        self.run("CHECKPOINT");
    }
}

/// The version of a round.
pub fn server(dice: &mut Dice) -> Option<Server> {
    let majors = [13, 14, 15, 16, 17, 18];
    Server::need(majors[dice.below(majors.len() as u64) as usize])
}
