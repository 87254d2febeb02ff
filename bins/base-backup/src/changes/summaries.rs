//! PostgreSQL's own WAL summaries (17 and later, `summarize_wal = on`), in place of maps that this host cannot get: a host that writes only
//! and did not archive the WAL itself, a standby for instance.
//!
//! Knows `pg_available_wal_summaries` and `pg_wal_summary_contents` (`src/backend/backup/walsummaryfuncs.c`) and what they mean
//! (`src/backend/postmaster/walsummarizer.c`): a created or dropped database is its relation 0 with a limit block, and WAL of
//! `wal_level = minimal` is not summarized at all, so that it is a gap. The rules that go beyond summaries (visibility maps are read
//! whole, nothing at or after a limit block comes from an older copy) are kept by whoever uses what comes out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::error::{Result, chain};
use common::interrupt;
use common::postgres::walmap::{BlockRun, Changes, RelationChange, RelationFork};
use common::postgres::{Lsn, Session, TimelineHistory, TimelineId};

use super::Changed;

/// The summarizer may lag behind the server so long without getting on.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// One summary that the server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The timeline of its WAL.
    pub timeline: TimelineId,
    /// Where it begins.
    pub start: Lsn,
    /// Behind its end.
    pub end: Lsn,
}

/// Those of `available` that together tell what changed from `from` to `to` along `history`, or where the first gap begins.
pub fn cover(available: &[Summary], history: &TimelineHistory, from: Lsn, to: Lsn) -> Result<Vec<Summary>, Lsn> {
    let mut chosen = Vec::new();
    let mut reached = from;
    while reached < to {
        let timeline = history.timeline_at(reached);
        // What a timeline wrote after this history left it is of no concern.
        let left = history.switch_point(timeline).unwrap_or(Lsn(u64::MAX));
        let here = |one: &&Summary| one.timeline == timeline && one.start <= reached && one.end.min(left) > reached;
        let Some(best) = available.iter().filter(here).max_by_key(|one| one.end) else {
            return Err(reached);
        };
        chosen.push(*best);
        reached = best.end.min(left);
    }
    Ok(chosen)
}

/// What the server's summaries say has changed from `from` to `to`.
///
/// # Errors
/// Why they do not tell.
pub fn from_server(session: &mut Session, history: &TimelineHistory, from: Lsn, to: Lsn) -> Result<Changed, String> {
    let told = |error| chain(&error);
    match session.setting("summarize_wal").map_err(told)?.as_deref() {
        Some("on") => {}
        Some(_) => return Err("summarize_wal is off".to_owned()),
        None => return Err("PostgreSQL summarizes WAL from version 17 on".to_owned()),
    }
    let mut changed = Changed::default();
    for summary in wait_for(session, history, from, to)? {
        changed.add(&contents(session, summary).map_err(told)?);
    }
    Ok(changed)
}

/// Waits until the summaries reach `to`: the checkpoint that began there is just over.
fn wait_for(session: &mut Session, history: &TimelineHistory, from: Lsn, to: Lsn) -> Result<Vec<Summary>, String> {
    let mut since = Instant::now();
    let mut before = None;
    loop {
        let available = available(session, from).map_err(|error| chain(&error))?;
        let gap = match cover(&available, history, from, to) {
            Ok(chosen) => return Ok(chosen),
            Err(gap) => gap,
        };
        // A gap with summaries behind it stays.
        let later = available
            .iter()
            .any(|one| one.start > gap && one.timeline == history.timeline_at(gap));
        if later || since.elapsed() > PATIENCE {
            return Err(format!("there is no summary of the WAL from {gap} on"));
        }
        if before.replace(gap) != Some(gap) {
            since = Instant::now();
        }
        interrupt::check().map_err(|error| chain(&error))?;
        std::thread::sleep(PAUSE);
    }
}

fn available(session: &mut Session, from: Lsn) -> Result<Vec<Summary>> {
    let sql = format!("select tli, start_lsn, end_lsn from pg_available_wal_summaries() where end_lsn > '{from}'");
    let rows = session.query(&sql)?;
    let summary = |row: &Vec<Option<String>>| {
        let column = |at: usize| row.get(at)?.as_deref();
        Some(Summary {
            timeline: TimelineId(column(0)?.parse().ok()?),
            start: column(1)?.parse().ok()?,
            end: column(2)?.parse().ok()?,
        })
    };
    // One that cannot be read is a gap.
    Ok(rows.iter().filter_map(summary).collect())
}

/// What one summary says, blocks in runs, so that a large one takes little memory here.
fn contents(session: &mut Session, summary: Summary) -> Result<Changes> {
    let Summary { timeline, start, end } = summary;
    let rows = session.query(&format!(
        "select reltablespace, reldatabase, relfilenode, relforknumber, is_limit_block, min(relblocknumber), max(relblocknumber)
         from (select *, relblocknumber - row_number() over
                 (partition by reltablespace, reldatabase, relfilenode, relforknumber, is_limit_block order by relblocknumber) as run
               from pg_wal_summary_contents({timeline}, '{start}', '{end}')) as blocks
         group by 1, 2, 3, 4, 5, run order by 1, 2, 3, 4, 6"
    ))?;
    let mut found = Changes::default();
    let mut relations: BTreeMap<RelationFork, RelationChange> = BTreeMap::new();
    for row in &rows {
        match Row::read(row) {
            Some(row) => row.add(&mut relations, &mut found.databases),
            None => {
                let message = format!("the server describes a changed block as {row:?}");
                return Err(common::error::Error::new(common::error::Kind::Failed, message));
            }
        }
    }
    found.relations = relations.into_values().collect();
    Ok(found)
}

/// Blocks of one relation, or its limit block.
#[derive(Debug, Clone, Copy)]
struct Row {
    fork: RelationFork,
    is_limit: bool,
    first: u32,
    last: u32,
}

impl Row {
    fn read(row: &[Option<String>]) -> Option<Row> {
        let column = |at: usize| row.get(at)?.as_deref();
        let number = |at: usize| column(at)?.parse::<u32>().ok();
        Some(Row {
            fork: RelationFork {
                tablespace: number(0)?,
                database: number(1)?,
                relation: number(2)?,
                fork: column(3)?.parse().ok()?,
            },
            is_limit: match column(4)? {
                "t" => true,
                "f" => false,
                _ => return None,
            },
            first: number(5)?,
            last: number(6)?,
        })
    }

    fn add(self, relations: &mut BTreeMap<RelationFork, RelationChange>, databases: &mut Vec<(u32, u32)>) {
        let fork = self.fork;
        if fork.relation == 0 {
            databases.push((fork.tablespace, fork.database));
            return;
        }
        let change = relations.entry(fork).or_insert_with(|| RelationChange {
            fork,
            limit: None,
            blocks: Vec::new(),
        });
        if self.is_limit {
            change.limit = Some(change.limit.map_or(self.first, |limit| limit.min(self.first)));
        } else {
            change.blocks.push(BlockRun {
                first: self.first,
                last: self.last,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn summary(timeline: u32, start: u64, end: u64) -> Summary {
        Summary {
            timeline: TimelineId(timeline),
            start: Lsn(start),
            end: Lsn(end),
        }
    }

    fn covered(available: &[(u32, u64, u64)], from: u64, to: u64) -> Result<Vec<u64>, u64> {
        let available: Vec<Summary> = available.iter().map(|one| summary(one.0, one.1, one.2)).collect();
        let history = TimelineHistory::parse(TimelineId(2), b"1\t0/300\tno recovery target specified\n").unwrap();
        let ends = |chosen: Vec<Summary>| chosen.iter().map(|one| one.end.0).collect();
        cover(&available, &history, Lsn(from), Lsn(to))
            .map(ends)
            .map_err(|gap| gap.0)
    }

    #[test]
    fn summaries_that_touch_cover_what_lies_between() {
        let all = [
            (1, 0x100, 0x200),
            (1, 0x200, 0x300),
            (2, 0x300, 0x400),
            (2, 0x400, 0x500),
        ];
        assert_eq!(covered(&all, 0x100, 0x500), Ok(vec![0x200, 0x300, 0x400, 0x500]));
        assert_eq!(
            covered(&all, 0x180, 0x410),
            Ok(vec![0x200, 0x300, 0x400, 0x500]),
            "from the middle of one"
        );
        assert_eq!(covered(&all, 0x200, 0x300), Ok(vec![0x300]));
        assert_eq!(covered(&all, 0x200, 0x200), Ok(vec![]));
        let merged = [(1, 0x100, 0x200), (1, 0x100, 0x300), (2, 0x300, 0x500)];
        assert_eq!(covered(&merged, 0x100, 0x500), Ok(vec![0x300, 0x500]), "the longest");
    }

    #[test]
    fn a_gap_is_named_and_never_jumped() {
        assert_eq!(covered(&[], 0x100, 0x200), Err(0x100));
        assert_eq!(covered(&[(1, 0x180, 0x200)], 0x100, 0x200), Err(0x100));
        assert_eq!(
            covered(&[(1, 0x100, 0x200), (1, 0x201, 0x300)], 0x100, 0x300),
            Err(0x200)
        );
        assert_eq!(covered(&[(1, 0x100, 0x200)], 0x100, 0x201), Err(0x200), "not there yet");
    }

    #[test]
    fn what_a_timeline_wrote_after_it_was_left_does_not_count() {
        // Timeline 1 was left at 0x300.
        assert_eq!(covered(&[(1, 0x100, 0x400)], 0x100, 0x400), Err(0x300));
        assert_eq!(covered(&[(2, 0x100, 0x400)], 0x100, 0x400), Err(0x100));
        assert_eq!(
            covered(&[(1, 0x100, 0x400), (2, 0x300, 0x400)], 0x100, 0x400),
            Ok(vec![0x400, 0x400])
        );
    }

    fn row(columns: [&str; 7]) -> Option<Row> {
        Row::read(&columns.map(|text| Some(text.to_owned())))
    }

    #[test]
    fn blocks_limits_and_databases_are_told_apart() {
        let (mut relations, mut databases) = (BTreeMap::new(), Vec::new());
        for columns in [
            ["1663", "5", "16384", "0", "f", "3", "7"],
            ["1663", "5", "16384", "0", "f", "9", "9"],
            ["1663", "5", "16384", "0", "t", "4", "4"],
            ["1663", "6", "0", "0", "t", "0", "0"],
        ] {
            row(columns).unwrap().add(&mut relations, &mut databases);
        }
        assert_eq!(databases, [(1663, 6)]);
        assert_eq!(relations.len(), 1);
        let change = relations.into_values().next().unwrap();
        assert_eq!(change.limit, Some(4));
        let runs: Vec<_> = change.blocks.iter().map(|run| (run.first, run.last)).collect();
        assert_eq!(runs, [(3, 7), (9, 9)]);
    }

    #[test]
    fn what_is_not_understood_is_not_left_out() {
        assert!(row(["1663", "5", "16384", "0", "yes", "3", "7"]).is_none());
        assert!(row(["1663", "5", "", "0", "t", "3", "7"]).is_none());
        assert!(Row::read(&[]).is_none());
    }
}
