//! What the tests of dumps share: stories whose tools find client programs, things to dump, and how to compare them.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use system_tests::{Cluster, Options, Ran, RepoOptions, Server, Site, Story, Tool};

/// The directory with the client programs of `server`'s version, else of the newest.
pub fn clients(server: &Server) -> Option<PathBuf> {
    let own = server.client("pg_restore");
    let found = own.or_else(|| Server::need(18)?.need_client("pg_restore"))?;
    found.parent().map(Path::to_owned)
}

/// A story with these repositories.
pub fn story_in(name: &str, server: &Server, repositories: Vec<RepoOptions>) -> Option<Story> {
    let line = format!(
        "dump.bin_directory = \"{}\"\ndump.lock_wait = \"5s\"",
        clients(server)?.display()
    );
    Some(Story::with(name, server, Options::default(), |site| {
        repositories
            .into_iter()
            .fold(site, Site::repository)
            .cluster_line(&line)
    }))
}

/// A story with one repository in clear.
pub fn story(name: &str, server: &Server) -> Option<Story> {
    story_in(name, server, vec![RepoOptions::new("local")])
}

/// pgkeep-dump, with its result as JSON.
pub fn dump(story: &Story, arguments: &[&str]) -> Tool {
    story.tool("dump").args(arguments).args(["--format", "json"])
}

/// The dumps that a run made.
pub fn labels(ran: &Ran) -> Vec<String> {
    let dumps = ran.json()["dumps"].as_array().unwrap().clone();
    dumps
        .iter()
        .map(|one| one["label"].as_str().unwrap().to_owned())
        .collect()
}

/// With another configuration than the story's.
pub fn dump_with(config: &Path) -> Tool {
    let tool = Tool::new("dump").arg("--config").arg(config);
    tool.args(["--database", "shop", "--format", "json"])
}

/// pgkeep-dump-restore.
pub fn restore(story: &Story, label: &str, arguments: &[&str]) -> Tool {
    story.tool("dump-restore").arg(label).args(arguments)
}

/// How many dumps the first repository lists.
pub fn listed(story: &Story) -> usize {
    story.site.repo().matching("dump.json").len()
}

/// Two databases, a role, a large object, several kinds of things.
pub fn fill(cluster: &Cluster) {
    cluster.sql("CREATE ROLE keeper LOGIN PASSWORD 'seven'");
    cluster.sql("CREATE DATABASE shop");
    cluster.sql("CREATE DATABASE \"odd=name\"");
    cluster.sql_in("odd=name", "CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    cluster.sql_in(
        "shop",
        "CREATE TABLE orders (id serial PRIMARY KEY, word text NOT NULL DEFAULT 'x', bytes bytea);
         INSERT INTO orders (word, bytes) SELECT md5(n::text), decode(md5(n::text), 'hex') FROM generate_series(1, 20000) n;
         CREATE INDEX ON orders (word);
         CREATE VIEW words AS SELECT word FROM orders;
         CREATE TABLE part (n int) PARTITION BY RANGE (n);
         CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (1000);
         INSERT INTO part SELECT n FROM generate_series(0, 999) n;
         ALTER TABLE orders OWNER TO keeper;
         SELECT lo_from_bytea(4711, repeat('large', 5000)::bytea);",
    );
}

/// Tenants t_1 to t_n, each with tables that lean on one another, on a type, a function and a table of all.
pub fn tenants(cluster: &Cluster, count: u32, tables: u32) {
    cluster.sql("CREATE DATABASE shop");
    cluster.sql_in(
        "shop",
        "CREATE TYPE mood AS ENUM ('sad', 'glad');
         CREATE TABLE country (code text PRIMARY KEY);
         INSERT INTO country VALUES ('de'), ('fr');
         CREATE FUNCTION half(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n / 2';",
    );
    for tenant in 1..=count {
        let mut sql = format!("CREATE SCHEMA t_{tenant};");
        for table in 1..=tables {
            sql += &format!(
                "CREATE TABLE t_{tenant}.x_{table} (id serial PRIMARY KEY, mood mood, country text REFERENCES country, word text);
                 INSERT INTO t_{tenant}.x_{table} (mood, country, word)
                     SELECT 'glad', 'de', md5((n * {tenant})::text) FROM generate_series(1, 20) n;"
            );
        }
        sql += &format!("CREATE INDEX halves ON t_{tenant}.x_1 (half(id)); ANALYZE t_{tenant}.x_1;");
        cluster.sql_in("shop", &sql);
    }
}

/// Every row of a schema, without its name.
pub fn rows(cluster: &Cluster, database: &str, schema: &str) -> Vec<String> {
    let of_schema = format!("relnamespace = '{schema}'::regnamespace");
    let sql = format!("SELECT relname, relkind FROM pg_class WHERE {of_schema} AND relkind IN ('r', 'S') ORDER BY 1");
    let mut all = Vec::new();
    for relation in cluster.query_in(database, &sql) {
        let [Some(name), Some(kind)] = relation.as_slice() else {
            panic!("{relation:?}")
        };
        let what = if kind == "S" {
            "last_value, is_called"
        } else {
            "x::text"
        };
        for row in cluster.query_in(database, &format!("SELECT {what} FROM {schema}.{name} x ORDER BY 1")) {
            all.push(format!("{name}: {row:?}"));
        }
    }
    for definition in cluster.query_in(
        database,
        &format!("SELECT replace(indexdef, '{schema}.', '') FROM pg_indexes WHERE schemaname = '{schema}' ORDER BY 1"),
    ) {
        all.push(format!("{definition:?}"));
    }
    for definition in cluster.query_in(
        database,
        &format!("SELECT conname, contype FROM pg_constraint WHERE connamespace = '{schema}'::regnamespace ORDER BY 1"),
    ) {
        all.push(format!("{definition:?}"));
    }
    all
}

/// No dump is listed, and the message has these words.
pub fn nothing_listed(story: &Story, ran: Ran, code: i32, words: &str) {
    let ran = ran.expect_code(code);
    assert!(ran.stderr.contains(words), "{words}\n{}", ran.report());
    assert_eq!(listed(story), 0, "{}", ran.report());
}
