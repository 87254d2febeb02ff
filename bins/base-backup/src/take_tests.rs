#![allow(clippy::unwrap_used)]
use super::*;
use common::postgres::relation::relation_file;
use common::postgres::walmap::{BlockRun, Changes, RelationChange, RelationFork};

const PER_FILE: u32 = 131_072;

fn file(size: u64) -> File {
    File {
        size,
        ..File::default()
    }
}

/// WAL that names these blocks of relation 16384, and this limit.
fn changed(fork: u8, limit: Option<u32>, blocks: &[(u32, u32)]) -> Changed {
    let mut changed = Changed::default();
    changed.add(&Changes {
        relations: vec![RelationChange {
            fork: RelationFork {
                tablespace: 1663,
                database: 5,
                relation: 16384,
                fork,
            },
            limit,
            blocks: blocks
                .iter()
                .map(|(first, last)| BlockRun {
                    first: *first,
                    last: *last,
                })
                .collect(),
        }],
        ..Changes::default()
    });
    changed
}

fn taken_at(path: &str, blocks: u64, base_blocks: u64, changed: &Changed) -> Take {
    let relation = relation_file(path);
    let base = file(base_blocks * BLOCK);
    take(relation.as_ref(), blocks * BLOCK, Some(&base), Some(changed), PER_FILE)
}

fn taken(blocks: u64, base_blocks: u64, changed: &Changed) -> Take {
    taken_at("data/base/5/16384", blocks, base_blocks, changed)
}

fn some(pairs: &[(u32, u32)]) -> Take {
    let run = |(first, count): &(u32, u32)| Blocks {
        first: *first,
        count: *count,
    };
    Take::Blocks(pairs.iter().map(run).collect())
}

#[test]
fn the_blocks_that_wal_names_are_read_and_no_others() {
    assert_eq!(
        taken(100, 100, &changed(0, None, &[(3, 4), (9, 9)])),
        some(&[(3, 2), (9, 1)])
    );
    assert_eq!(taken(100, 100, &Changed::default()), Take::Same);
    assert_eq!(taken(0, 0, &Changed::default()), Take::Same);
}

#[test]
fn what_grew_is_read_whether_wal_names_it_or_not() {
    assert_eq!(taken(103, 100, &Changed::default()), some(&[(100, 3)]));
    assert_eq!(taken(103, 100, &changed(0, None, &[(99, 101)])), some(&[(99, 4)]));
}

#[test]
fn nothing_at_or_behind_the_limit_comes_from_the_base() {
    assert_eq!(
        taken(100, 100, &changed(0, Some(60), &[(5, 5)])),
        some(&[(5, 1), (60, 40)])
    );
    assert_eq!(taken(60, 100, &changed(0, Some(60), &[(5, 5)])), some(&[(5, 1)]));
    assert_eq!(taken(60, 100, &changed(0, Some(60), &[])), some(&[]));
    assert_eq!(
        taken(100, 100, &changed(0, Some(0), &[])),
        Take::Whole,
        "a new relation of the same number"
    );
    assert_eq!(
        taken(100, 100, &changed(0, Some(400), &[])),
        Take::Same,
        "behind the end"
    );
    assert_eq!(taken(120, 100, &changed(0, Some(400), &[])), some(&[(100, 20)]));
}

#[test]
fn the_limit_counts_in_the_relation_not_in_its_file() {
    let at = |limit| taken_at("data/base/5/16384.1", 100, 100, &changed(0, Some(limit), &[]));
    assert_eq!(at(PER_FILE - 1), Take::Whole);
    assert_eq!(at(PER_FILE), Take::Whole);
    assert_eq!(at(PER_FILE + 70), some(&[(70, 30)]));
    assert_eq!(
        taken_at(
            "data/base/5/16384.1",
            100,
            100,
            &changed(0, None, &[(3, 3), (PER_FILE + 8, PER_FILE + 9)])
        ),
        some(&[(8, 2)])
    );
}

#[test]
fn a_file_that_shrank_without_a_record_is_compared() {
    assert_eq!(taken(99, 100, &Changed::default()), Take::Compare);
    assert_eq!(taken(99, 100, &changed(0, None, &[(5, 5)])), Take::Compare);
}

#[test]
fn a_file_that_changed_nearly_everywhere_is_stored_whole() {
    assert_eq!(taken(100, 100, &changed(0, None, &[(0, 90)])), Take::Whole);
    assert_eq!(taken(100, 100, &changed(0, None, &[(0, 89)])), some(&[(0, 90)]));
}

#[test]
fn other_forks_are_compared_whatever_wal_says() {
    for (path, fork) in [("16384_fsm", 1), ("16384_vm", 2), ("16384_init", 3)] {
        let path = format!("data/base/5/{path}");
        assert_eq!(
            taken_at(&path, 10, 10, &changed(fork, None, &[])),
            Take::Compare,
            "{path}"
        );
    }
}

#[test]
fn what_is_no_relation_is_compared() {
    for path in [
        "data/pg_xact/0000",
        "data/base/5/pg_filenode.map",
        "data/postgresql.conf",
        "extra/etc/x",
    ] {
        assert_eq!(taken_at(path, 10, 10, &Changed::default()), Take::Compare, "{path}");
    }
}

#[test]
fn a_new_file_is_stored_whole() {
    let relation = relation_file("data/base/5/16384");
    assert_eq!(
        take(relation.as_ref(), 8192, None, Some(&Changed::default()), PER_FILE),
        Take::Whole
    );
    assert_eq!(take(None, 8192, None, None, PER_FILE), Take::Whole);
}

#[test]
fn without_wal_everything_is_compared() {
    let relation = relation_file("data/base/5/16384");
    let base = file(8192);
    assert_eq!(
        take(relation.as_ref(), 8192, Some(&base), None, PER_FILE),
        Take::Compare
    );
}

#[test]
fn sizes_that_are_no_whole_blocks_or_beyond_a_file_are_compared() {
    let relation = relation_file("data/base/5/16384");
    let at = |size, base_size| {
        take(
            relation.as_ref(),
            size,
            Some(&file(base_size)),
            Some(&Changed::default()),
            PER_FILE,
        )
    };
    assert_eq!(at(8192 * 3 + 1, 8192 * 3), Take::Compare);
    assert_eq!(at(8192 * 3, 8192 * 3 - 512), Take::Compare);
    let large = (u64::from(PER_FILE) + 1) * BLOCK;
    assert_eq!(at(large, large), Take::Compare);
}

#[test]
fn a_base_with_damaged_pages_is_compared() {
    let relation = relation_file("data/base/5/16384");
    let base = File {
        damaged: vec![(1, 1)],
        ..file(8192 * 3)
    };
    assert_eq!(
        take(
            relation.as_ref(),
            8192 * 3,
            Some(&base),
            Some(&Changed::default()),
            PER_FILE
        ),
        Take::Compare
    );
}

#[test]
fn a_database_or_tablespace_that_came_or_went_is_compared() {
    let mut databases = Changed::default();
    databases.add(&Changes {
        databases: vec![(1663, 5)],
        ..Changes::default()
    });
    assert_eq!(taken(10, 10, &databases), Take::Compare);
    assert_eq!(taken_at("data/base/6/16384", 10, 10, &databases), Take::Same);
    let mut tablespaces = Changed::default();
    tablespaces.add(&Changes {
        tablespaces: vec![16400],
        ..Changes::default()
    });
    assert_eq!(
        taken_at("tablespace/16400/PG_15_202209061/5/1", 10, 10, &tablespaces),
        Take::Compare
    );
}

#[test]
fn a_decision_reads_back_as_it_was_written() {
    for take in [
        Take::Same,
        Take::Compare,
        Take::Whole,
        some(&[]),
        some(&[(3, 2), (u32::MAX - 1, 1)]),
    ] {
        assert_eq!(Take::decode(&take.encode()), Some(take));
    }
    for bytes in [&b""[..], &[4], &[0, 0], &[3, 1, 2]] {
        assert_eq!(Take::decode(bytes), None);
    }
}
