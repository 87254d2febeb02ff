//! Logical dumps: whole databases, tenants and tables, out and back again.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod dump_stand;

use std::time::Instant;

use dump_stand::{clients, dump, fill, labels, listed, nothing_listed, restore, rows, story, story_in, tenants};
use system_tests::mutilate;
use system_tests::story::all;
use system_tests::{Options, RepoOptions, Server, Story, Tool, each_major};

each_major!(all_databases_go_out_and_come_back);

fn all_databases_go_out_and_come_back(server: &Server) {
    for encrypted in [false, true] {
        let repository = RepoOptions::new("local");
        let repository = if encrypted { repository.encrypted() } else { repository };
        let Some(story) = story_in("dump-all", server, vec![repository]) else {
            return;
        };
        fill(&story.cluster);
        let ran = dump(&story, &[]).run().expect_code(0);
        let label = labels(&ran).remove(0);
        assert_eq!(
            ran.json()["dumps"][0]["databases"],
            serde_json::json!(["odd=name", "postgres", "shop"])
        );
        let told =
            ran.stdout + &std::fs::read_to_string(&story.site.repo().matching("dump.json")[0]).unwrap_or_default();
        assert!(!encrypted || !told.contains("orders"), "names are sealed");

        story.step("a whole database into a new one, as a stream and with several sessions");
        restore(&story, &label, &["--into", "new", "--create", "--database", "shop"])
            .run()
            .expect_code(0);
        let jobs = ["--into", "jobs", "--create", "--database", "shop", "--jobs", "2"];
        let parallel = restore(&story, &label, &jobs).run();
        match server.client("pg_restore").is_some() || server.major >= 17 {
            true => drop(parallel.expect_code(0)),
            false => {
                drop(parallel.expect_code(1).expect_said("leave out --jobs"));
                let clean = ["--into", "jobs", "--clean", "--database", "shop"];
                restore(&story, &label, &clean).run().expect_code(0);
            }
        }
        restore(&story, &label, &["--into", "odd", "--create", "--database", "odd=name"])
            .run()
            .expect_code(0);
        let shop = story.cluster.checksum("shop");
        assert_eq!(story.cluster.checksum("new"), shop);
        assert_eq!(story.cluster.checksum("jobs"), shop);
        assert_eq!(story.cluster.checksum("odd"), story.cluster.checksum("odd=name"));
        let large = "SELECT md5(lo_get(4711))";
        assert_eq!(
            story.cluster.query_in("new", large),
            story.cluster.query_in("shop", large)
        );

        story.step("nothing is overwritten unless told");
        let refused = restore(&story, &label, &["--into", "new", "--database", "shop"])
            .run()
            .expect_code(1);
        assert!(
            refused.stderr.contains("not empty") && refused.stderr.contains("--clean"),
            "{}",
            refused.report()
        );
        restore(&story, &label, &["--into", "new", "--database", "shop", "--create"])
            .run()
            .expect_code(1)
            .expect_said("exists");
        story.cluster.sql_in("new", "DELETE FROM orders");
        restore(&story, &label, &["--into", "new", "--database", "shop", "--clean"])
            .run()
            .expect_code(0);
        assert_eq!(story.cluster.checksum("new"), shop);

        story.step("roles as SQL, and a table alone");
        let globals = restore(&story, &label, &["--globals", "--to-sql", "-"])
            .run()
            .expect_code(0);
        assert!(
            globals.stdout.contains("CREATE ROLE keeper") && globals.stdout.contains("PASSWORD '"),
            "{}",
            globals.stdout
        );
        story
            .cluster
            .sql_in("shop", "ALTER TABLE orders RENAME TO orders_broken");
        restore(&story, &label, &["--into", "shop", "--table", "public.orders"])
            .run()
            .expect_code(1)
            .expect_said("orders_id_seq");
        story
            .cluster
            .sql_in("shop", "DROP VIEW words; DROP TABLE orders_broken");
        restore(&story, &label, &["--into", "shop", "--table", "orders"])
            .run()
            .expect_code(0);
        restore(&story, &label, &["--into", "shop", "--table", "part"])
            .run()
            .expect_code(1)
            .expect_said("has a table public.part");
        let count = story.cluster.query_in(
            "shop",
            "SELECT count(*), max(id), (SELECT count(*) FROM pg_indexes WHERE tablename = 'orders') FROM orders",
        );
        assert_eq!(
            count,
            story.cluster.query_in(
                "new",
                "SELECT count(*), max(id), (SELECT count(*) FROM pg_indexes WHERE tablename = 'orders') FROM orders"
            )
        );
    }
}

each_major!(one_tenant_comes_back_beside_the_one_that_is_there);

fn one_tenant_comes_back_beside_the_one_that_is_there(server: &Server) {
    let Some(story) = story("dump-tenant", server) else {
        return;
    };
    tenants(&story.cluster, 12, 3);
    let cluster = &story.cluster;
    let label = labels(&dump(&story, &["--database", "shop"]).run().expect_code(0)).remove(0);
    let before = rows(cluster, "shop", "t_7");
    cluster.sql_in(
        "shop",
        "DELETE FROM t_7.x_2; CREATE FUNCTION t_7.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    );
    let broken = rows(cluster, "shop", "t_7");

    story.step("under another name; the live one is not touched");
    let list = restore(&story, &label, &["--list"]).run().expect_code(0);
    assert!(list.stdout.contains("t_7: 3 tables"), "{}", list.stdout);
    restore(&story, &label, &["--into", "shop", "--tenant", "t_7"])
        .run()
        .expect_code(1)
        .expect_said("--rename");
    let arguments = ["--into", "shop", "--tenant", "t_7", "--rename", "t_7 old"];
    let plan = restore(&story, &label, &arguments)
        .arg("--dry-run")
        .run()
        .expect_code(0);
    assert!(
        plan.stdout.starts_with("tenant t_7 as t_7 old into shop"),
        "{}",
        plan.stdout
    );
    assert!(
        !plan.stdout.contains("it needs"),
        "the database has all that: {}",
        plan.stdout
    );
    restore(&story, &label, &arguments).run().expect_code(0);
    cluster.sql_in("shop", "ALTER SCHEMA \"t_7 old\" RENAME TO t_7_old");
    assert_eq!(rows(cluster, "shop", "t_7_old"), before);
    assert_eq!(rows(cluster, "shop", "t_7"), broken);
    assert_eq!(
        cluster.query_in("shop", "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgkeep%'"),
        Vec::<Vec<Option<String>>>::new()
    );

    story.step("into an empty database with what it needs, and as SQL");
    cluster.sql("CREATE DATABASE other");
    let ran = restore(&story, &label, &["--into", "other", "--tenant", "t_3"])
        .run()
        .expect_code(0);
    assert!(ran.stderr.contains("type public.mood"), "{}", ran.report());
    assert_eq!(rows(cluster, "other", "t_3"), rows(cluster, "shop", "t_3"));
    let sql = restore(&story, &label, &["--tenant", "t_3", "--rename", "t_x", "--to-sql", "-"])
        .run()
        .expect_code(0);
    assert!(
        sql.stdout.starts_with("BEGIN;") && sql.stdout.ends_with("COMMIT;\n"),
        "{}",
        sql.report()
    );

    story.step("in place of the one that is there, all or nothing");
    cluster.sql_in("shop", "CREATE VIEW public.watching AS SELECT * FROM t_5.x_1");
    restore(&story, &label, &["--into", "shop", "--tenant", "t_7", "--clean"])
        .run()
        .expect_code(0);
    assert_eq!(rows(cluster, "shop", "t_7"), before);
    let nine = rows(cluster, "shop", "t_9");
    cluster.sql_in(
        "shop",
        "ALTER TABLE country RENAME TO land; CREATE TABLE country (code int PRIMARY KEY)",
    );
    let failed = restore(&story, &label, &["--into", "shop", "--tenant", "t_9", "--clean"])
        .run()
        .expect_code(1);
    assert!(failed.stderr.contains("nothing of it is in"), "{}", failed.report());
    assert_eq!(rows(cluster, "shop", "t_9"), nine, "the one that is there stays");
}

#[test]
fn tenants_are_dumps_of_their_own_and_stand_alone() {
    let Some(server) = Server::need(15) else { return };
    let Some(story) = story("dump-alone", &server) else {
        return;
    };
    tenants(&story.cluster, 3, 2);
    let cluster = &story.cluster;
    let ran = dump(&story, &["--database", "shop", "--tenant", "t_1", "--tenant", "t_2"])
        .run()
        .expect_code(0);
    let labels = labels(&ran);
    assert_eq!(labels.len(), 2);
    cluster.sql("CREATE DATABASE other");
    cluster.sql_in("other", "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE country (code text PRIMARY KEY); INSERT INTO country VALUES ('de')");
    cluster.sql_in(
        "other",
        "CREATE FUNCTION half(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n / 2'",
    );
    restore(&story, &labels[1], &["--into", "other"]).run().expect_code(0);
    restore(&story, &labels[1], &["--into", "other", "--rename", "again"])
        .run()
        .expect_code(0);
    assert_eq!(rows(cluster, "other", "t_2"), rows(cluster, "shop", "t_2"));
    assert_eq!(rows(cluster, "other", "again"), rows(cluster, "shop", "t_2"));
    restore(&story, &labels[1], &["--into", "other", "--tenant", "t_1"])
        .run()
        .expect_code(2)
        .expect_said("has no schema \"t_1\"");

    dump(&story, &["--database", "shop", "--tenant", "T_1"])
        .run()
        .expect_code(2)
        .expect_said("has no schema \"T_1\"");
    let table = dump(&story, &["--database", "shop", "--table", "t_3.x_1", "--schema-only"])
        .run()
        .expect_code(0);
    assert_eq!(table.json()["dumps"][0]["tables"], 0);
    dump(&story, &["--database", "shop", "--table", "t_3.gone"])
        .run()
        .expect_code(2)
        .expect_said("no matching");
    assert_eq!(listed(&story), 3);
    let status = story.site.status("dump");
    assert_eq!(status["result"], "misconfigured");
}

#[test]
fn a_dump_by_hand_needs_no_pgkeep() {
    let Some(server) = Server::need(15) else { return };
    let Some(story) = story("dump-hand", &server) else {
        return;
    };
    fill(&story.cluster);
    dump(&story, &["--database", "shop"]).run().expect_code(0);
    let object = &story.site.repo().matching("1.dump.zst")[0];
    let file = story.scratch.path("shop.dump");
    let open = Tool::program("zstd").args(["-d", "-q", "-o"]).arg(&file).arg(object);
    open.run().expect_code(0);
    story.cluster.sql("CREATE DATABASE hand");
    let port = story.cluster.port().to_string();
    let socket = story.cluster.socket_dir();
    let by_hand = Tool::program(server.client("pg_restore").unwrap()).args(["-d", "hand", "-p", &port, "-h"]);
    by_hand
        .arg(socket)
        .args(["-U", "postgres"])
        .arg(&file)
        .run()
        .expect_code(0);
    assert_eq!(story.cluster.checksum("hand"), story.cluster.checksum("shop"));
}

#[test]
fn many_tenants_need_locks_and_one_comes_back_in_seconds() {
    let Some(server) = Server::need(15) else { return };
    // All of it is a thousand; the small one keeps the same proportion of tables and locks.
    let (count, locks) = if all() { (1000, 64) } else { (150, 10) };
    let Some(story) = story("dump-many", &server) else {
        return;
    };
    let cluster = &story.cluster;
    cluster.conf(&[
        format!("max_locks_per_transaction = {locks}"),
        "max_connections = 100".to_owned(),
    ]);
    cluster.restart();
    tenants(cluster, count, 10);
    let refused = dump(&story, &["--database", "shop"]).run();
    assert!(
        refused.stderr.contains("set max_locks_per_transaction to"),
        "{}",
        refused.report()
    );
    nothing_listed(&story, refused, 2, &format!("would lock {}", count * 10 + 1));
    cluster.conf(&["max_locks_per_transaction = 512"]);
    cluster.restart();
    let began = Instant::now();
    let label = labels(&dump(&story, &["--database", "shop"]).run().expect_code(0)).remove(0);
    let whole = began.elapsed();
    let began = Instant::now();
    let ran = restore(
        &story,
        &label,
        &["--into", "shop", "--tenant", "t_77", "--rename", "t_77_old"],
    )
    .run()
    .expect_code(0);
    println!(
        "{count} tenants: dump {whole:.1?}, one back {:.1?}: {}",
        began.elapsed(),
        ran.stdout.trim()
    );
    assert_eq!(rows(cluster, "shop", "t_77_old"), rows(cluster, "shop", "t_77"));
}

#[test]
fn dumps_are_listed_copied_verified_mended_and_pruned() {
    let Some(server) = Server::need(15) else { return };
    let repository = |name: &str| RepoOptions::new(name).line("retention = { dumps = 1 }");
    let repositories = vec![repository("local"), repository("second")];
    let Some(story) = story_in("dump-kept", &server, repositories) else {
        return;
    };
    fill(&story.cluster);
    let take = |arguments: &[&str]| labels(&dump(&story, arguments).run().expect_code(0)).remove(0);
    let old = take(&["--database", "shop"]);
    let tenant = take(&["--database", "shop", "--tenant", "public"]);
    let label = take(&["--database", "shop", "--repository", "local"]);
    let has = |at: usize, label: &str| {
        story.site.repos[at]
            .dir
            .join("main/dump")
            .join(label)
            .join("dump.json")
            .exists()
    };

    story.step("listed, and young enough");
    let info = story.tool("info").run().expect_code(0);
    assert!(
        info.stdout.contains(&label) && info.stdout.contains("1 database, 2 tables"),
        "{}",
        info.report()
    );
    story
        .tool("check-age")
        .args(["--what", "dump", "--repository", "local"])
        .run()
        .expect_code(0);
    let skipped = story
        .tool("dump")
        .args(["--if-older-than", "1h", "--repository", "local"])
        .run()
        .expect_code(0);
    assert!(skipped.stdout.contains("young enough"), "{}", skipped.report());

    story.step("copied, whole, and the newest of a kind only");
    assert!(!has(1, &label));
    let synced = story.tool("sync").args(["--from", "local"]).run().expect_code(0);
    assert!(
        synced.stdout.contains("1 dump,") && has(1, &label),
        "{}",
        synced.report()
    );

    story.step("a flipped bit is found and mended");
    let objects = story.site.repos[1].matching(&format!("{label}/1.dump.zst"));
    mutilate::flip_middle_bit(&objects[0]);
    let verify = |arguments: &[&str]| {
        story
            .tool("verify")
            .args(["--repository", "second", "--dump", &label])
            .args(arguments)
            .run()
    };
    verify(&[]).expect_code(0);
    let found = verify(&["--read-data"]).expect_code(1);
    assert!(
        found.stdout.contains("DAMAGE") && found.stdout.contains("1.dump.zst"),
        "{}",
        found.report()
    );
    verify(&["--read-data", "--repair-from", "local"])
        .expect_code(0)
        .expect_said("");
    verify(&["--read-data"]).expect_code(0);
    mutilate::remove(&story.site.repos[1].matching(&format!("{label}/contents"))[0]);
    verify(&[]).expect_code(1);
    verify(&["--repair-from", "local"]).expect_code(0);

    story.step("pruned, the tenant's own dump apart");
    let pruned = story.tool("prune").run().expect_code(0);
    assert!(
        !has(0, &old) && has(0, &tenant) && has(0, &label),
        "{}",
        pruned.report()
    );
    assert!(
        !has(1, &old) && has(1, &tenant) && has(1, &label),
        "{}",
        pruned.report()
    );
    restore(
        &story,
        &label,
        &["--into", "back", "--create", "--repository", "second"],
    )
    .run()
    .expect_code(0);
    assert_eq!(story.cluster.checksum("back"), story.cluster.checksum("shop"));
}

fn without_sequences(mut rows: Vec<String>) -> Vec<String> {
    rows.retain(|row| !row.contains("_seq: "));
    rows
}

#[test]
fn a_tenant_as_it_was_comes_out_of_physical_backups() {
    for major in [15, 18] {
        let Some(server) = Server::need(major) else { return };
        let Some(clients) = clients(&server) else { return };
        let lines = [
            format!("dump.bin_directory = \"{}\"", clients.display()),
            format!("restore_test.bin_directory = \"{}\"", server.bin.display()),
        ];
        let story = Story::with("dump-past", &server, Options::default(), |site| {
            let site = site.repository(RepoOptions::new("local").encrypted());
            lines.iter().fold(site, |site, line| site.cluster_line(line))
        });
        let cluster = &story.cluster;
        tenants(cluster, 5, 2);
        story.backup();
        cluster.sql_in("shop", "INSERT INTO t_2.x_1 (mood, word) VALUES ('sad', 'before')");
        let before = rows(cluster, "shop", "t_2");
        let moment = cluster
            .query_one("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
        cluster.sql_in("shop", "DELETE FROM t_2.x_1 WHERE id > 3; DROP TABLE t_2.x_2");
        let after = rows(cluster, "shop", "t_2");
        story.archive_all();

        story.step("as of a moment, and as of the end");
        let past = ["--database", "shop", "--tenant", "t_2", "--from-backup"];
        let label = labels(
            &dump(&story, &past)
                .args(["--target-time", &moment])
                .run()
                .expect_code(0),
        )
        .remove(0);
        let ran = dump(&story, &past).run().expect_code(0);
        let last = labels(&ran).remove(0);
        ran.expect_said("only the content of database shop is fetched");
        restore(&story, &label, &["--into", "shop", "--rename", "t_2_then"])
            .run()
            .expect_code(0);
        restore(&story, &last, &["--into", "shop", "--rename", "t_2_last"])
            .run()
            .expect_code(0);
        // WAL tells the values of sequences up to 32 ahead (`SEQ_LOG_VALS`, src/backend/commands/sequence.c).
        let rows_of = |schema: &str| without_sequences(rows(cluster, "shop", schema));
        assert_eq!(rows_of("t_2_then"), without_sequences(before));
        assert_eq!(rows_of("t_2_last"), without_sequences(after.clone()));
        assert_eq!(rows(cluster, "shop", "t_2"), after, "the running server is not touched");
        let list = restore(&story, &label, &["--list"]).run().expect_code(0);
        assert!(list.stdout.contains("from backup"), "{}", list.report());

        story.step("a database that the backup does not have comes with WAL, from all of it");
        cluster.sql("CREATE DATABASE young");
        cluster.sql_in("young", "CREATE TABLE t AS SELECT 1 AS n");
        story.archive_all();
        dump(&story, &["--database", "young", "--from-backup"])
            .run()
            .expect_code(0)
            .expect_said("the whole cluster is restored");

        story.step("nothing is left behind, and what cannot be reached is refused");
        let place = story.site.state().join("dump");
        assert_eq!(
            std::fs::read_dir(&place).map_or(0, Iterator::count),
            0,
            "{}",
            place.display()
        );
        dump(&story, &past)
            .args(["--target-time", "2020-01-01T00:00:00Z"])
            .run()
            .expect_code(1)
            .expect_said("cannot restore");
        assert_eq!(std::fs::read_dir(&place).map_or(0, Iterator::count), 0);
        assert_eq!(listed(&story), 3);
    }
}
