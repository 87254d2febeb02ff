//! Which backups go over, and how one does: everything it names first, `backup.json` last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::config::Retention;
use common::error::{Kind, Result};
use common::repository::backup::{self, BackupInfo, Intent};
use common::repository::catalog::Catalog;
use common::repository::writer::Folder;
use common::repository::{FORMAT, Label, Repository};
use common::retention::wal::Needed;
use common::retention::{self, History, Verdict};
use common::time::UtcTime;

use crate::copy::Route;
use crate::objects;
use crate::sync::How;
use crate::tally::Target;

/// A backup that another host has begun in the target is left alone for so long after its end: whoever writes it may be about
/// to commit.
const COMMITTING: Duration = Duration::from_secs(600);

/// No process of this host writes for so long after a backup's end; its number belongs to another one by now.
const LONGEST: Duration = Duration::from_secs(86_400);

/// What is to be copied.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// Backups, those that others lean on first.
    pub copied: Vec<&'a BackupInfo>,
    /// Backups that stay behind, and why.
    pub skipped: Vec<(Label, String)>,
    /// By system identifier: the WAL that the target's backups need.
    pub needed: BTreeMap<String, Needed>,
}

/// Decides. Nothing damaged goes over, nothing whose base does not, and nothing twice.
///
/// `writing` says whether somebody may still be writing an unfinished backup of the target; `kept` what the target's retention says of each
/// backup that is here or there.
///
/// # Errors
/// `Corrupt` if a backup says something impossible.
pub fn plan<'a>(
    ours: &'a Catalog,
    theirs: &Catalog,
    writing: impl Fn(&BackupInfo) -> bool,
    kept: &[Verdict],
) -> Result<Plan<'a>> {
    let verdict = |info: &BackupInfo| kept.iter().find(|verdict| verdict.label == info.label);
    let mut plan = Plan::default();
    let mut there: BTreeSet<Label> = theirs.backups.iter().map(|info| info.label).collect();
    // Labels sort by time, and a backup leans on older ones only.
    for info in &ours.backups {
        let missing = info.references.iter().find(|label| !there.contains(label));
        let skipped = if there.contains(&info.label) {
            continue;
        } else if verdict(info).is_some_and(|verdict| !verdict.is_kept()) {
            Some("retention there would not keep it".to_owned())
        } else if !info.good {
            Some("it has damaged pages".to_owned())
        } else if theirs.unfinished.contains(&info.label) && writing(info) {
            Some("it is being written there".to_owned())
        } else {
            missing.map(|label| format!("it leans on {label}, which is not there"))
        };
        match skipped {
            Some(why) => plan.skipped.push((info.label, why)),
            None => {
                there.insert(info.label);
                plan.copied.push(info);
            }
        }
    }
    let mut by_system: BTreeMap<String, Vec<(&BackupInfo, bool)>> = BTreeMap::new();
    for info in theirs.backups.iter().chain(plan.copied.iter().copied()) {
        let (stays, window) = verdict(info).map_or((true, true), |verdict| (verdict.is_kept(), verdict.window));
        if stays {
            by_system
                .entry(info.system_identifier.clone())
                .or_default()
                .push((info, window));
        }
    }
    for (system, backups) in by_system {
        plan.needed.insert(system, Needed::by(backups.into_iter())?);
    }
    Ok(plan)
}

/// What the target's retention says of every backup that is here or there.
pub fn kept(
    ours: &Catalog,
    theirs: &Catalog,
    policy: Option<&Retention>,
    marks: &BTreeMap<Label, String>,
    now: UtcTime,
) -> Vec<Verdict> {
    let only_here = ours.backups.iter().filter(|info| theirs.get(info.label).is_none());
    let mut backups: Vec<BackupInfo> = theirs.backups.iter().chain(only_here).cloned().collect();
    backups.sort_by_key(|info| info.label);
    let unreadable: Vec<Label> = theirs.unreadable.iter().map(|(label, _)| *label).collect();
    let history = History {
        backups: &backups,
        unreadable: &unreadable,
        marks,
        running: &[],
        follows: &|_| true,
        lacks: &|info| ours.lacks(info).is_some() && theirs.lacks(info).is_some(),
    };
    retention::judge(policy, &history, now)
}

/// Whether whoever began this backup in the target may still be at it: the intent names host and process.
pub fn may_be_written(target: &Repository, info: &BackupInfo, now: UtcTime) -> bool {
    let since = now.since(info.finished);
    match backup::read_intent(target, info.label) {
        Ok(intent) if intent.host == common::open::host_name() => {
            since < LONGEST && common::process::is_alive(intent.pid)
        }
        // Without an intent there is nothing that anybody would commit.
        Err(error) if error.kind() == Kind::NotFound => false,
        _ => since < COMMITTING,
    }
}

/// Copies one backup. What an interrupted run has copied already stays.
///
/// # Errors
/// `Corrupt` if an object of it is damaged; else what the stores say. Then it does not exist in the target.
pub fn copy(route: &Route<'_>, info: &BackupInfo, how: &How<'_>, tally: &Target) -> Result<()> {
    if how.dry_run {
        return Ok(());
    }
    announce(route, info)?;
    let objects = objects::copy(route, Folder::Backup(info.label), &info.objects, how.jobs, tally)?;
    let copied = BackupInfo {
        stored: objects.iter().map(|object| object.size).sum(),
        objects,
        ..info.clone()
    };
    match backup::commit(route.target, &copied) {
        Err(error) if error.kind() == Kind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

/// Says that it is being written, so that nobody takes it for garbage.
fn announce(route: &Route<'_>, info: &BackupInfo) -> Result<()> {
    let intent = Intent {
        format: FORMAT,
        label: info.label,
        host: common::open::host_name(),
        pid: std::process::id(),
        started: info.started,
        system_identifier: info.system_identifier.clone(),
        leans_on: info.references.clone(),
    };
    match backup::write_intent(route.target, &intent) {
        Err(error) if error.kind() == Kind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::postgres::{SegmentSize, WalName};

    const BASE: &str = "20261101T020000Z-full-aaaaaa";
    const NEXT: &str = "20261102T020000Z-incr-bbbbbb";

    fn info(label: &str, leans_on: &[&str], good: bool) -> BackupInfo {
        let text = format!(
            r#"{{"format":1,"label":"{label}","type":"full","cluster":"main","system_identifier":"7","major":15,"server_version":"15.1",
            "pgkeep":"0.1.0","host":"db1","role":"primary","note":null,"started":"2026-11-01T02:00:00Z","stopped":"2026-11-01T02:01:00Z",
            "finished":"2026-11-01T02:02:00Z","timeline":1,"start_lsn":"0/2000028","stop_lsn":"0/2000138",
            "wal":{{"first":"000000010000000000000002","last":"000000010000000000000002"}},"segment_size":16777216,"block_size":8192,
            "data_checksums":true,"tablespaces":[],"base":null,"references":[],"reused_from":null,"files":1,"size":1,"stored":1,
            "durations":{{}},"damaged_pages":0,"good":{good},"objects":[],"signature":null}}"#
        );
        let mut info: BackupInfo = serde_json::from_str(&text).unwrap();
        info.references = leans_on.iter().map(|label| label.parse().unwrap()).collect();
        info
    }

    fn catalog(backups: Vec<BackupInfo>) -> Catalog {
        Catalog {
            backups,
            ..Catalog::default()
        }
    }

    fn labels(plan: &Plan<'_>) -> Vec<String> {
        plan.copied.iter().map(|info| info.label.to_string()).collect()
    }

    #[test]
    fn bases_go_first_and_what_is_there_stays() {
        let ours = catalog(vec![info(BASE, &[], true), info(NEXT, &[BASE], true)]);
        let nothing = |_: &BackupInfo| false;
        assert_eq!(
            labels(&plan(&ours, &catalog(vec![]), nothing, &[]).unwrap()),
            [BASE, NEXT]
        );
        assert_eq!(
            labels(&plan(&ours, &catalog(vec![info(BASE, &[], true)]), nothing, &[]).unwrap()),
            [NEXT]
        );
        let plan = plan(&ours, &ours, nothing, &[]).unwrap();
        assert!(plan.copied.is_empty() && plan.skipped.is_empty());
        let name = WalName::parse("000000010000000000000002").unwrap();
        assert!(plan.needed["7"].keeps(&name, SegmentSize::new(16 << 20).unwrap()));
    }

    #[test]
    fn neither_damage_nor_what_leans_on_it_goes_over() {
        let ours = catalog(vec![info(BASE, &[], false), info(NEXT, &[BASE], true)]);
        let plan = plan(&ours, &catalog(vec![]), |_| false, &[]).unwrap();
        assert!(plan.copied.is_empty());
        assert_eq!(plan.skipped[0].1, "it has damaged pages");
        assert!(plan.skipped[1].1.contains("leans on") && plan.skipped[1].1.contains(BASE));
    }

    #[test]
    fn what_somebody_is_writing_is_left_alone() {
        let ours = catalog(vec![info(BASE, &[], true)]);
        let theirs = Catalog {
            unfinished: vec![BASE.parse().unwrap()],
            ..Catalog::default()
        };
        assert!(plan(&ours, &theirs, |_| true, &[]).unwrap().copied.is_empty());
        assert_eq!(
            labels(&plan(&ours, &theirs, |_| false, &[]).unwrap()),
            [BASE],
            "a killed run is taken up"
        );
    }

    #[test]
    fn what_the_target_s_retention_would_not_keep_stays_behind() {
        let ours = catalog(vec![info(BASE, &[], true), info(NEXT, &[], true)]);
        let verdict = |label: &str, stays: bool| Verdict {
            label: label.parse().unwrap(),
            stays: if stays {
                vec![retention::Why::Newest]
            } else {
                Vec::new()
            },
            window: stays,
        };
        let kept = [verdict(BASE, false), verdict(NEXT, true)];
        let plan = plan(&ours, &catalog(vec![]), |_| false, &kept).unwrap();
        assert_eq!(labels(&plan), [NEXT]);
        assert!(plan.skipped[0].1.contains("retention there"));
    }
}
