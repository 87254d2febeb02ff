#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

const VERSION: &str = "PG_15_202209061";

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        for directory in [
            "base/5",
            "global",
            "pg_wal/archive_status",
            "pg_tblspc",
            "pg_notify",
            "pg_xact",
        ] {
            std::fs::create_dir_all(tree.at("pgdata").join(directory)).unwrap();
        }
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(&self, path: &str) -> &Tree {
        std::fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        std::fs::write(self.at(path), path).unwrap();
        self
    }

    fn walk(&self, batch: usize) -> Result<Vec<Found>> {
        let pgdata = self.at("pgdata");
        let spaces = tablespaces(&pgdata).unwrap();
        let mut found = Vec::new();
        let mut each = |one| {
            found.push(one);
            Ok(())
        };
        if batch == BATCH {
            walk(&pgdata, &spaces, VERSION, &mut each)?;
        } else {
            let mut walker = Walker::new(&mut each);
            walker.batch = batch;
            walker.root(&pgdata, Path::new("data"), Rules::DataDirectory)?;
        }
        Ok(found)
    }

    fn paths(&self) -> Vec<String> {
        self.walk(BATCH)
            .unwrap()
            .iter()
            .map(|found| found.path.to_str().unwrap().to_string())
            .collect()
    }
}

#[test]
fn what_a_start_rebuilds_stays_out_and_its_directories_stay() {
    let tree = Tree::new();
    for left_out in [
        "postmaster.pid",
        "postmaster.opts",
        "backup_label",
        "tablespace_map",
        "backup_manifest",
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "pg_wal/000000010000000000000001",
        "pg_wal/archive_status/x.ready",
        "pg_notify/0000",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "base/5/pg_internal.init",
        "base/5/pg_internal.init.77",
        "global/pg_internal.init",
        "base/5/t3_16390",
        "base/5/t3_16390_fsm",
    ] {
        tree.file(&format!("pgdata/{left_out}"));
    }
    for kept in [
        "PG_VERSION",
        "base/5/1259",
        "base/5/pg_filenode.map",
        "pg_xact/0000",
        "own/backup_label",
        "base/5/pgx",
    ] {
        tree.file(&format!("pgdata/{kept}"));
    }
    let expected = [
        "data",
        "data/PG_VERSION",
        "data/base",
        "data/base/5",
        "data/base/5/1259",
        "data/base/5/pg_filenode.map",
        "data/base/5/pgx",
        "data/global",
        "data/own",
        "data/own/backup_label",
        "data/pg_notify",
        "data/pg_tblspc",
        "data/pg_wal",
        "data/pg_wal/archive_status",
        "data/pg_xact",
        "data/pg_xact/0000",
    ];
    assert_eq!(tree.paths(), expected);
}

#[test]
fn of_an_unlogged_relation_only_the_init_fork_is_kept() {
    let tree = Tree::new();
    for name in [
        "16384",
        "16384.1",
        "16384_fsm",
        "16384_vm",
        "16384_init",
        "163840",
        "16385",
        "16385_fsm",
    ] {
        tree.file(&format!("pgdata/base/5/{name}"));
    }
    let kept: Vec<String> = tree
        .paths()
        .into_iter()
        .filter(|path| path.starts_with("data/base/5/"))
        .collect();
    assert_eq!(
        kept,
        [
            "data/base/5/163840",
            "data/base/5/16384_init",
            "data/base/5/16385",
            "data/base/5/16385_fsm"
        ]
    );
}

#[test]
fn a_tablespace_is_walked_under_its_number_and_only_in_this_version() {
    let tree = Tree::new();
    tree.file(&format!("space/{VERSION}/5/16390"))
        .file(&format!("space/{VERSION}/5/16391"));
    tree.file(&format!("space/{VERSION}/5/16391_init"))
        .file("space/PG_14_202107181/5/16390");
    symlink(tree.at("space"), tree.at("pgdata/pg_tblspc/16400")).unwrap();
    tree.file("pgdata/pg_tblspc/16500/PG_15_202209061/5/7");
    let found = tree.walk(BATCH).unwrap();
    let link = found
        .iter()
        .find(|found| found.path == Path::new("data/pg_tblspc/16400"))
        .unwrap();
    assert_eq!(link.kind, FoundKind::Link(tree.at("space")));
    let paths = tree.paths();
    assert!(paths.contains(&"data/pg_tblspc/16500/PG_15_202209061/5/7".to_string()));
    let in_space: Vec<&String> = paths.iter().filter(|path| path.starts_with("tablespace")).collect();
    let prefix = format!("tablespace/16400/{VERSION}");
    let expected = [
        "tablespace/16400".into(),
        prefix.clone(),
        format!("{prefix}/5"),
        format!("{prefix}/5/16390"),
        format!("{prefix}/5/16391_init"),
    ];
    assert_eq!(in_space, expected.iter().collect::<Vec<_>>());
}

#[test]
fn a_link_is_kept_as_a_link_but_not_where_it_hides_the_database() {
    let tree = Tree::new();
    tree.file("etc/postgresql.conf");
    symlink("../etc/postgresql.conf", tree.at("pgdata/postgresql.conf")).unwrap();
    symlink("nowhere", tree.at("pgdata/dangling")).unwrap();
    std::fs::remove_dir(tree.at("pgdata/pg_notify")).unwrap();
    symlink("../etc", tree.at("pgdata/pg_notify")).unwrap();
    let found = tree.walk(BATCH).unwrap();
    let kind = |path: &str| &found.iter().find(|found| found.path == Path::new(path)).unwrap().kind;
    assert_eq!(
        kind("data/postgresql.conf"),
        &FoundKind::Link("../etc/postgresql.conf".into())
    );
    assert_eq!(kind("data/dangling"), &FoundKind::Link("nowhere".into()));
    assert_eq!(kind("data/pg_notify"), &FoundKind::Dir);
    assert_eq!(
        found
            .iter()
            .filter(|found| found.path.starts_with("data/pg_notify"))
            .count(),
        1
    );
    symlink("/elsewhere", tree.at("pgdata/base/6")).unwrap();
    assert_eq!(tree.walk(BATCH).unwrap_err().kind(), Kind::Refused);
}

#[test]
fn the_order_does_not_depend_on_how_many_names_fit_in_memory() {
    let tree = Tree::new();
    for number in 0..500 {
        tree.file(&format!("pgdata/base/5/{}", 16384 + number * 7919 % 500));
    }
    let whole = tree.walk(BATCH).unwrap();
    assert_eq!(whole.iter().filter(|found| found.kind == FoundKind::File).count(), 500);
    assert!(whole.is_sorted_by_key(|found| found.path.clone().into_os_string()));
    for batch in [1, 2, 3, 250, 499, 500, 501] {
        assert_eq!(tree.walk(batch).unwrap(), whole, "batch {batch}");
    }
}

#[test]
fn what_is_known_about_a_file_comes_along() {
    let tree = Tree::new();
    tree.file("pgdata/base/5/16384");
    std::fs::set_permissions(tree.at("pgdata/base/5/16384"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let found = tree
        .walk(BATCH)
        .unwrap()
        .into_iter()
        .find(|found| found.kind == FoundKind::File)
        .unwrap();
    assert_eq!((found.mode, found.size), (0o640, "pgdata/base/5/16384".len() as u64));
    assert_eq!(found.source, tree.at("pgdata/base/5/16384"));
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap()
        .name;
    assert_eq!(*found.owner, *user);
    assert!(found.modified.elapsed().unwrap().as_secs() < 600);
}

#[test]
fn what_vanishes_while_walking_is_left_out() {
    let tree = Tree::new();
    tree.file("pgdata/base/5/16384")
        .file("pgdata/base/5/16385")
        .file("pgdata/base/6/1");
    let mut seen = Vec::new();
    walk(&tree.at("pgdata"), &[], VERSION, &mut |found| {
        if found.path == Path::new("data/base/5/16384") {
            std::fs::remove_file(tree.at("pgdata/base/5/16385")).unwrap();
            std::fs::remove_dir_all(tree.at("pgdata/base/6")).unwrap();
        }
        seen.push(found.path);
        Ok(())
    })
    .unwrap();
    assert!(seen.contains(&PathBuf::from("data/base/5/16384")));
    assert!(
        !seen
            .iter()
            .any(|path| path.ends_with("16385") || path.starts_with("data/base/6/"))
    );
}

#[test]
fn a_missing_data_directory_is_not_found() {
    let tree = Tree::new();
    let error = walk(&tree.at("nowhere"), &[], VERSION, &mut |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(tablespaces(&tree.at("nowhere")).is_err());
}

#[test]
fn extra_paths_keep_everything_but_what_is_excluded() {
    let tree = Tree::new();
    tree.file("etc/main/postgresql.conf")
        .file("etc/main/postmaster.pid")
        .file("etc/main/secret/key");
    let mut seen = Vec::new();
    let each = &mut |found: Found| {
        seen.push(found.path);
        Ok(())
    };
    walk_extra(&tree.at("etc/main"), &|path| path.ends_with("secret"), each).unwrap();
    let base = Path::new("extra").join(tree.at("etc/main").strip_prefix("/").unwrap());
    assert_eq!(
        seen,
        [base.clone(), base.join("postgresql.conf"), base.join("postmaster.pid")]
    );
    assert_eq!(
        walk_extra(Path::new("etc"), &|_| false, &mut |_| Ok(()))
            .unwrap_err()
            .kind(),
        Kind::Config
    );
}
