//! Puts what was decided into the form of a plan. Looks at free space, and at nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::error::Result;
use common::postgres::SegmentSize;
use common::repository::Repository;
use common::repository::backup::BackupInfo;
use common::repository::tombstones::{self, Erasure, Reached};

use crate::layout::{Layout, Root};
use crate::only::Only;
use crate::place;
use crate::plan::{self, Choice};
use crate::prepare::{Order, Totals};
use crate::show::{Place, Plan, PlannedBackup, PlannedWal, Space, Unheard};
use crate::survey::{Silent, Survey};
use crate::target::{Request, Target};

/// The plan, all but `restore_command`.
///
/// # Errors
/// What looking at free space gave.
pub fn describe(
    order: &Order,
    survey: &Survey<'_>,
    choice: &Choice,
    layout: &Layout,
    repositories: &[&Repository],
    info: &BackupInfo,
    totals: &Totals,
) -> Result<Plan> {
    let needs: Vec<(PathBuf, u64)> = totals
        .by_root
        .iter()
        .map(|(path, bytes)| (path.clone(), *bytes))
        .collect();
    let space = |volume: place::Volume| Space {
        path: volume.path.display().to_string(),
        needed_bytes: volume.needed,
        free_bytes: volume.free,
    };
    let holders: BTreeSet<&str> = survey
        .holders
        .get(&info.label)
        .into_iter()
        .flatten()
        .map(|one| one.name.as_str())
        .collect();
    let names = repositories
        .iter()
        .map(|one| one.name.clone())
        .filter(|name| holders.contains(name.as_str()));
    let whole = totals.left_out == 0 && totals.only.is_none();
    let alone = whole && totals.labels.iter().all(|label| *label == info.label);
    let bundles = info
        .objects
        .iter()
        .filter(|object| object.key.contains(".tar.zst"))
        .map(|object| object.size);
    let request = &order.request;
    Ok(Plan {
        schema: 1,
        cluster: order.cluster.clone(),
        to: layout.data.display().to_string(),
        backup: planned_backup(info),
        repositories: names.collect(),
        silent: unheard(survey),
        target: request.target.to_string(),
        target_time: match &request.target {
            Target::Time { time, .. } => Some(*time),
            _ => None,
        },
        exclusive: request.exclusive,
        action: if request.standby {
            "standby".to_owned()
        } else {
            choice.action.to_string()
        },
        action_by_default: request.action.is_none() && choice.target != Target::End,
        timeline: choice.timeline.0,
        wal: planned_wal(choice, survey.archive.segment_size),
        files: totals.files,
        size_bytes: totals.bytes,
        fetch_bytes: alone.then(|| bundles.sum()),
        extra_left_out_bytes: totals.left_out,
        places: other_places(layout),
        space: place::volumes(&needs)?.into_iter().map(space).collect(),
        archiving: order.archiving.keep,
        archiving_why: order.archiving.why.clone(),
        branches: choice.branches.clone(),
        restore_command: String::new(),
        erasures: erasures(survey, choice, info, request),
        notes: order
            .notes
            .iter()
            .chain(&choice.notes)
            .cloned()
            .chain(silence_note(survey))
            .chain(totals.only.as_ref().map(part_note))
            .collect(),
    })
}

/// Tenants whose schema the restored server may have again.
fn erasures(survey: &Survey<'_>, choice: &Choice, info: &BackupInfo, request: &Request) -> Vec<Erasure> {
    let history = plan::history(&survey.archive, choice.timeline);
    let reached = reached(choice, request, survey.archive.segment_size);
    let is_past = |erasure: &Erasure| {
        history
            .as_ref()
            .is_some_and(|history| erasure.is_past(history, reached))
    };
    let mut erasures = tombstones::of_all(survey.answered.iter().map(|(repository, _)| *repository));
    erasures.retain(|erasure| erasure.system_identifier == info.system_identifier && !is_past(erasure));
    erasures
}

/// How far recovery surely goes.
fn reached(choice: &Choice, request: &Request, size: SegmentSize) -> Reached {
    let end_of_wal = choice.wal.last().map(|stretch| stretch.last.next().start(size));
    let consistent = choice.backup.stop_lsn;
    match (&request.target, &choice.target) {
        (Target::Time { time, .. }, _) => Reached::Time(*time),
        (_, Target::Lsn(lsn)) => Reached::Lsn(*lsn),
        (_, Target::End) => Reached::Lsn(end_of_wal.unwrap_or(consistent)),
        _ => Reached::Lsn(consistent),
    }
}

fn part_note(only: &Only) -> String {
    format!(
        "only the content of database {} is fetched: the server is good for a dump of that, and for nothing else",
        only.names.join(", ")
    )
}

/// At the end of WAL, and for a new timeline's number, every repository is asked, and silence may not be taken for a no.
fn silence_note(survey: &Survey<'_>) -> Option<String> {
    let first = survey.silent.first()?;
    let others: Vec<String> = survey
        .answered
        .iter()
        .map(|(repository, _)| format!("--repository {}", repository.name))
        .collect();
    Some(format!(
        "at the end of WAL and before a promotion the server asks repository {} too, and stops without its answer; to do \
         without it, restore with {}",
        first.name,
        others.join(" ")
    ))
}

fn planned_backup(info: &BackupInfo) -> PlannedBackup {
    PlannedBackup {
        label: info.label,
        kind: info.kind.to_string(),
        stopped: info.stopped,
        timeline: info.timeline,
        start_lsn: info.start_lsn,
        system_identifier: info.system_identifier.clone(),
        stop_lsn: info.stop_lsn,
        server_version: info.server_version.clone(),
    }
}

fn planned_wal(choice: &Choice, size: SegmentSize) -> PlannedWal {
    let name = |stretch| plan::stretch_names(stretch, size);
    PlannedWal {
        stretches: choice.wal.iter().map(name).collect(),
        bytes: plan::wal_bytes(&choice.wal, size),
        segment_bytes: size,
        to_end: choice.to_end,
    }
}

fn unheard(survey: &Survey<'_>) -> Vec<Unheard> {
    let one = |silent: &Silent| Unheard {
        name: silent.name.clone(),
        why: silent.why.clone(),
    };
    survey.silent.iter().map(one).collect()
}

/// Where parts go besides the data directory.
fn other_places(layout: &Layout) -> Vec<Place> {
    let place = |(what, path): (Root, &Path)| Place {
        what: what.to_string(),
        path: path.display().to_string(),
    };
    layout.roots().into_iter().skip(1).map(place).collect()
}
