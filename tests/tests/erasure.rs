//! A tenant whose data was erased stays erased: in dumps, after a restore from before, in every repository.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod dump_stand;

use std::path::Path;
use std::time::{Duration, Instant};

use dump_stand::{clients, dump, labels, restore, rows, tenants};
use system_tests::wait::wait_until;
use system_tests::{Cluster, Emulator, Options, Ran, RepoOptions, S3, Scratch, Server, Site, Story, Tool};

fn story(name: &str, server: &Server, repositories: Vec<RepoOptions>) -> Option<Story> {
    let lines = [
        format!("dump.bin_directory = \"{}\"", clients(server)?.display()),
        format!("restore_test.bin_directory = \"{}\"", server.bin.display()),
    ];
    Some(Story::with(name, server, Options::default(), |site| {
        let site = repositories.into_iter().fold(site, Site::repository);
        lines.iter().fold(site, |site, line| site.cluster_line(line))
    }))
}

fn erase(story: &Story, schema: &str) -> Tool {
    let tool = story.tool("prune").args(["--erase-tenant", schema]);
    tool.args(["--database", "shop", "--reason", "they asked"])
}

fn check(story: &Story) -> Ran {
    story.tool("check-archive").args(["--timeout", "20s"]).run()
}

fn apply(site: &Site, arguments: &[&str]) -> Tool {
    site.tool("dump-restore").arg("--apply-erasures").args(arguments)
}

fn schemas(cluster: &Cluster, database: &str) -> Vec<String> {
    let found = cluster.query_in(
        database,
        "SELECT nspname FROM pg_namespace WHERE nspname LIKE 't\\_%' ORDER BY 1",
    );
    found.into_iter().flatten().flatten().collect()
}

fn now(cluster: &Cluster) -> String {
    cluster.query_one("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
}

/// The metric of the last check.
fn pending(story: &Story) -> String {
    let file = story.site.dir.join("metrics/pgkeep_main_check-archive.prom");
    let text = std::fs::read_to_string(&file).unwrap();
    let line = text.lines().find(|line| line.starts_with("pgkeep_erasures_pending"));
    line.and_then(|line| line.rsplit(' ').next())
        .unwrap_or_default()
        .to_owned()
}

/// What lies in the events of a repository.
fn tombstones(directory: &Path) -> String {
    let events = std::fs::read_dir(directory.join("main/events")).unwrap().flatten();
    let named = events.filter(|entry| entry.file_name().to_string_lossy().ends_with("-tombstone.json"));
    named
        .map(|entry| std::fs::read_to_string(entry.path()).unwrap())
        .collect()
}

#[test]
fn an_erased_tenant_stays_erased() {
    for major in [15, 18] {
        let Some(server) = Server::need(major) else { return };
        let repositories = vec![RepoOptions::new("local"), RepoOptions::new("sealed").encrypted()];
        let Some(story) = story("erasure", &server, repositories) else {
            return;
        };
        let cluster = &story.cluster;
        tenants(cluster, 4, 2);
        story.backup();
        let whole = labels(&dump(&story, &["--database", "shop"]).run().expect_code(0)).remove(0);
        let alone = dump(&story, &["--database", "shop", "--tenant", "t_2", "--tenant", "t_3"]);
        let alone = labels(&alone.run().expect_code(0));
        let table = dump(&story, &["--database", "shop", "--table", "t_2.x_1", "--data-only"]);
        let table = labels(&table.run().expect_code(0)).remove(0);
        let (moment, others) = (now(cluster), rows(cluster, "shop", "t_3"));

        story.step("it is shown first, then recorded, and dumps of it alone go");
        erase(&story, "t_9").run().expect_code(2).expect_said("--from-backup");
        let shown = erase(&story, "t_2").arg("--dry-run").run().expect_code(0);
        assert!(shown.stdout.contains("would go: "), "{}", shown.report());
        assert_eq!(tombstones(&story.site.repo().dir), "");
        let erased = erase(&story, "t_2").run().expect_code(0);
        let has = |label: &str| story.site.repo().path(&format!("dump/{label}/dump.json")).is_file();
        assert!(has(&whole) && has(&alone[1]), "{}", erased.report());
        assert!(!has(&alone[0]) && !has(&table), "{}", erased.report());
        for part in [
            "erased from now on: t_2 of database shop (OID ",
            &format!("1 dump that holds it with others stays until retention removes it, the newest is {whole}"),
            "pgkeep-dump-restore --apply-erasures --into shop",
        ] {
            assert!(erased.stdout.contains(part), "{part}\n{}", erased.report());
        }
        let sealed = tombstones(&story.site.dir.join("repository-sealed"));
        assert!(
            sealed.contains("schema_oid") && !sealed.contains("t_2") && !sealed.contains("they asked"),
            "{sealed}"
        );
        assert!(tombstones(&story.site.repo().dir).contains("they asked"));

        story.step("while the server has it, checks are critical and there are no dumps of it");
        let ran = check(&story).expect_code(2);
        assert!(
            ran.stdout
                .contains("the server has 1 erased tenant: t_2 of database shop"),
            "{}",
            ran.report()
        );
        assert_eq!(pending(&story), "1");
        dump(&story, &["--database", "shop", "--tenant", "t_2"])
            .run()
            .expect_code(1)
            .expect_said("what was erased gets no dumps");
        dump(&story, &["--database", "shop"])
            .run()
            .expect_code(0)
            .expect_said("comes into the dump");
        let shown = apply(&story.site, &["--into", "shop", "--dry-run"])
            .run()
            .expect_code(0);
        assert!(
            shown.stdout.starts_with("would be erased: schema t_2 of database shop"),
            "{}",
            shown.report()
        );
        apply(&story.site, &["--into", "postgres"]).run().expect_code(0);
        assert!(schemas(cluster, "shop").contains(&"t_2".to_owned()));
        apply(&story.site, &["--into", "shop"]).run().expect_code(0);
        assert_eq!(schemas(cluster, "shop"), ["t_1", "t_3", "t_4"]);
        check(&story).expect_code(0);
        assert_eq!(pending(&story), "0");

        story.step("a schema that is created anew under the name is another one");
        cluster.sql_in("shop", "CREATE SCHEMA t_2; CREATE TABLE t_2.anew AS SELECT 1 AS n");
        check(&story).expect_code(0);
        let again = apply(&story.site, &["--into", "shop"]).run().expect_code(0);
        assert!(
            again.stdout.contains("nothing to erase") && again.stdout.contains("not touched: schema t_2"),
            "{}",
            again.report()
        );
        let anew = labels(
            &dump(&story, &["--database", "shop", "--tenant", "t_2"])
                .run()
                .expect_code(0),
        )
        .remove(0);
        restore(&story, &anew, &["--into", "shop", "--rename", "t_2_copy"])
            .run()
            .expect_code(0);
        cluster.sql_in("shop", "DROP SCHEMA t_2_copy CASCADE");

        story.step("what was erased does not come back out of an older dump");
        let arguments = ["--into", "shop", "--tenant", "t_2", "--rename", "t_2_old"];
        restore(&story, &whole, &arguments)
            .run()
            .expect_code(1)
            .expect_said("they asked");
        restore(&story, &whole, &arguments)
            .arg("--even-erased")
            .run()
            .expect_code(0);
        cluster.sql_in("shop", "DROP SCHEMA t_2_old CASCADE");
        let back = restore(&story, &whole, &["--into", "back", "--create"])
            .run()
            .expect_code(0);
        assert!(
            back.stdout.contains("tenant t_2 has been erased since"),
            "{}",
            back.report()
        );
        assert_eq!(schemas(cluster, "back"), ["t_1", "t_3", "t_4"]);
        let sql = restore(&story, &whole, &["--to-sql", "-"]).run().expect_code(0);
        assert!(
            sql.stdout.ends_with("DROP SCHEMA IF EXISTS \"t_2\" CASCADE;\n"),
            "{}",
            sql.report()
        );

        restore(&story, &whole, &["--into", "shop", "--clean"])
            .run()
            .expect_code(1)
            .expect_said("has a schema \"t_2\"");

        story.step("a backup from before brings it back, says so, and leaves the SQL that erases it");
        story.archive_all();
        let promote = ["--target-time", moment.as_str(), "--target-action", "promote"];
        let plan = story
            .restore_to(&story.scratch.path("plan"), &promote)
            .arg("--dry-run")
            .run();
        assert!(
            plan.clone().expect_code(0).stdout.contains("erased     "),
            "{}",
            plan.report()
        );
        let by_tool = story.promoted("by_tool", &promote);
        assert_eq!(schemas(&by_tool, "shop"), ["t_1", "t_2", "t_3", "t_4"]);
        let script = by_tool.data().join("pgkeep_erasures.sql");
        let text = std::fs::read_to_string(&script).unwrap();
        assert!(text.contains("t_2 of database shop"), "{text}");
        let site =
            Site::named(&story.scratch, &by_tool, "restored").shared(story.site.repo(), RepoOptions::new("local"));
        apply(&site, &[]).run().expect_code(0);
        assert_eq!(schemas(&by_tool, "shop"), ["t_1", "t_3", "t_4"]);
        assert_eq!(rows(&by_tool, "shop", "t_3"), others);
        assert!(!script.exists(), "it has been done");
        by_script(&story, &promote);

        story.step("a restore to the end has passed it, and a restore test of that moment lists it");
        let end = story
            .restore_to(&story.scratch.path("end"), &[])
            .arg("--dry-run")
            .run()
            .expect_code(0);
        assert!(!end.stdout.contains("erased "), "{}", end.report());
        let test = story
            .tool("restore-test")
            .args(["--level", "quick", "--target-time", &moment]);
        let tested = test.run().expect_code(0);
        assert!(
            tested.stdout.contains("tenant t_2 of database shop was erased at"),
            "{}",
            tested.report()
        );

        story.step("the report names it");
        let report = story
            .tool("info")
            .args(["--report", "2020-01-01", "2100-01-01"])
            .run()
            .expect_code(0);
        assert!(
            report.stdout.contains("t_2 of database shop") && report.stdout.contains("they asked"),
            "{}",
            report.report()
        );
        assert_eq!(rows(cluster, "shop", "t_3"), others);
    }
}

/// The same with psql alone.
fn by_script(story: &Story, promote: &[&str]) {
    let restored = story.promoted("by_script", promote);
    let Some(psql) = story
        .cluster
        .server()
        .client("psql")
        .or_else(|| Server::need(18)?.need_client("psql"))
    else {
        return;
    };
    let ran = Tool::program(psql)
        .args(["-X", "-d", "postgres", "-U", "postgres", "-h"])
        .arg(restored.socket_dir())
        .args(["-p", &restored.port().to_string(), "-f"])
        .arg(restored.data().join("pgkeep_erasures.sql"))
        .run();
    ran.expect_code(0);
    assert_eq!(schemas(&restored, "shop"), ["t_1", "t_3", "t_4"]);
}

#[test]
fn of_many_tenants_one_comes_back_as_it_was_and_another_is_erased_for_good() {
    let Some(server) = Server::need(15) else { return };
    let count = if system_tests::story::all() { 1000 } else { 60 };
    let Some(story) = story("erasure-many", &server, vec![RepoOptions::new("local").encrypted()]) else {
        return;
    };
    let cluster = &story.cluster;
    cluster.conf(&["max_locks_per_transaction = 512"]);
    cluster.restart();
    tenants(cluster, count, 10);
    story.backup();
    let moment = now(cluster);
    let before = rows(cluster, "shop", "t_50");
    cluster.sql_in("shop", "DELETE FROM t_50.x_3; DROP TABLE t_50.x_4");
    story.archive_all();

    story.step("as of a moment, from physical backups");
    let began = Instant::now();
    let past = [
        "--database",
        "shop",
        "--tenant",
        "t_50",
        "--from-backup",
        "--target-time",
        &moment,
    ];
    let label = labels(&dump(&story, &past).run().expect_code(0)).remove(0);
    restore(&story, &label, &["--into", "shop", "--rename", "t_50_then"])
        .run()
        .expect_code(0);
    println!("{count} tenants: one as it was in {:.1?}", began.elapsed());
    // WAL tells the values of sequences up to 32 ahead (`SEQ_LOG_VALS`, src/backend/commands/sequence.c).
    let without_sequences = |rows: Vec<String>| {
        rows.into_iter()
            .filter(|row| !row.contains("_seq: "))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        without_sequences(rows(cluster, "shop", "t_50_then")),
        without_sequences(before)
    );

    story.step("another is erased, an older backup restored, the erasure applied");
    erase(&story, "t_51").run().expect_code(0);
    apply(&story.site, &[]).run().expect_code(0);
    story.archive_all();
    let restored = story.promoted(
        "older",
        &["--target-time", moment.as_str(), "--target-action", "promote"],
    );
    let has = |cluster: &Cluster, name: &str| schemas(cluster, "shop").iter().any(|schema| schema == name);
    assert!(has(&restored, "t_51") && !has(cluster, "t_51"));
    let site = Site::named(&story.scratch, &restored, "restored").shared(story.site.repo(), RepoOptions::new("local"));
    apply(&site, &[]).run().expect_code(0);
    assert!(!has(&restored, "t_51") && has(&restored, "t_50") && has(&restored, "t_5"));
    assert_eq!(schemas(&restored, "shop").len(), count as usize - 1);
}

#[test]
fn a_tenant_that_was_renamed_is_erased_under_both_names_and_public_is_none() {
    let Some(server) = Server::need(15) else { return };
    let Some(story) = story("erasure-renamed", &server, vec![RepoOptions::new("local")]) else {
        return;
    };
    tenants(&story.cluster, 2, 1);
    let before = labels(
        &dump(&story, &["--database", "shop", "--tenant", "t_1"])
            .run()
            .expect_code(0),
    )
    .remove(0);
    let odd = "t_1 \"of\" old's";
    story.cluster.sql_in(
        "shop",
        &format!("ALTER SCHEMA t_1 RENAME TO \"{}\"", odd.replace('"', "\"\"")),
    );
    let erased = erase(&story, odd).run().expect_code(0);
    assert!(
        erased.stdout.contains(&format!("removed {before}")),
        "{}",
        erased.report()
    );
    assert_eq!(story.site.repo().matching(&before), Vec::<std::path::PathBuf>::new());
    apply(&story.site, &[]).run().expect_code(0);
    assert_eq!(schemas(&story.cluster, "shop"), ["t_2"]);
    erase(&story, "public")
        .run()
        .expect_code(1)
        .expect_said("it is no tenant");
    erase(&story, "t_2").args(["--reason", " "]).run().expect_code(2);
    assert_eq!(
        tombstones(&story.site.repo().dir).matches("schema_oid").count(),
        2,
        "asked for, and gone"
    );
}

#[test]
fn an_erasure_reaches_a_repository_that_was_away_with_the_next_copy() {
    let Some(server) = Server::need(15) else { return };
    let repositories = vec![RepoOptions::new("local"), RepoOptions::new("away").encrypted()];
    let Some(story) = story("erasure-sync", &server, repositories) else {
        return;
    };
    tenants(&story.cluster, 3, 1);
    story.backup();
    let both = dump(&story, &["--database", "shop", "--tenant", "t_1"]);
    let both = labels(&both.run().expect_code(0)).remove(0);
    let away = story.site.dir.join("repository-away");
    let has = |directory: &Path, label: &str| directory.join(format!("main/dump/{label}/dump.json")).is_file();
    // Several schemas of one name: the user has to say which.
    story.cluster.sql_in(
        "shop",
        "DROP SCHEMA t_1 CASCADE; CREATE SCHEMA t_1; CREATE TABLE t_1.x (n int)",
    );
    let here = ["--repository", "local"];
    let refused = erase(&story, "t_1").args(here).run().expect_code(1);
    let oid = story
        .cluster
        .query_in("shop", "SELECT oid FROM pg_namespace WHERE nspname = 't_1'");
    let new = oid.into_iter().flatten().flatten().next().unwrap();
    let listed: Vec<&str> = refused
        .stderr
        .split("OID ")
        .skip(1)
        .filter_map(|rest| rest.split(' ').next())
        .collect();
    let old = listed
        .into_iter()
        .find(|oid| *oid != new && oid.parse::<u32>().is_ok())
        .unwrap()
        .to_owned();
    erase(&story, "t_1")
        .args(here)
        .args(["--schema-oid", &old])
        .run()
        .expect_code(0);
    assert!(!has(&story.site.repo().dir, &both) && has(&away, &both));
    // The new one is not pending.
    check(&story).expect_code(0);

    story.step("the copy takes the erasure along, sealed, and the dump goes there, too");
    story
        .tool("sync")
        .args(["--from", "local", "--to", "away"])
        .run()
        .expect_code(0);
    let events = tombstones(&away);
    assert!(
        events.contains(&old) && !events.contains("t_1") && !events.contains("they asked"),
        "{events}"
    );
    let ran = check(&story).expect_code(2);
    assert!(
        ran.stdout.contains("away: 1 dump of erased tenants not deleted yet"),
        "{}",
        ran.report()
    );
    story.tool("prune").run().expect_code(0);
    assert!(!has(&away, &both));
    check(&story).expect_code(0);
    story
        .tool("sync")
        .args(["--from", "away", "--to", "local"])
        .run()
        .expect_code(0);
    assert!(!has(&story.site.repo().dir, &both));
}

#[test]
fn a_dump_under_object_lock_is_reported_with_its_end_and_goes_then() {
    let Some(server) = Server::need(15) else { return };
    let scratch = Scratch::new("erasure-lock");
    let Some(moto) = Emulator::need_moto(&scratch.path("")) else {
        return;
    };
    let header = "x-amz-bucket-object-lock-enabled: true\r\n";
    assert_eq!(moto.request("PUT", "/backups", header, "").0, 200);
    let credentials = scratch.path("credentials");
    S3::credentials(&credentials);
    let lines = [
        format!("endpoint = \"{}\"", moto.endpoint()),
        format!("credentials_file = \"{}\"", credentials.display()),
        "lock_horizon = \"30s\"".to_owned(),
    ];
    let locked = RepoOptions::new("locked").at("s3://backups/pg", &scratch.path("nowhere"));
    let locked = lines.iter().fold(locked, |options, line| options.line(line));
    let Some(story) = story("erasure-locked", &server, vec![locked]) else {
        return;
    };
    tenants(&story.cluster, 2, 1);
    let label = dump(&story, &["--database", "shop", "--tenant", "t_1"]);
    let label = labels(&label.run().expect_code(0)).remove(0);
    let erased = erase(&story, "t_1").run().expect_code(0);
    for part in [
        "not all is removed of ",
        "not removed yet",
        "its object lock ends at 20",
    ] {
        assert!(erased.stdout.contains(part), "{part}\n{}", erased.report());
    }
    apply(&story.site, &[]).run().expect_code(0);
    let ran = check(&story).expect_code(2);
    assert!(
        ran.stdout
            .contains(&format!("1 dump of erased tenants not deleted yet: {label}")),
        "{}",
        ran.report()
    );
    wait_until("the lock is over", Duration::from_secs(90), || {
        story.tool("prune").run().expect_code(0);
        let object = format!("/backups/pg/main/dump/{label}/dump.json");
        moto.request("HEAD", &object, "", "").0 == 404
    });
    check(&story).expect_code(0);
}
