//! The plan, for people and for programs. Pure.

use serde::Serialize;

use common::postgres::{Lsn, SegmentSize};
use common::repository::Label;
use common::repository::tombstones::Erasure;
use common::time::UtcTime;
use common::units::{ByteSize, counted};

use crate::branches::Branch;

/// All that a restore is going to do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The version of this form.
    pub schema: u32,
    /// The cluster.
    pub cluster: String,
    /// The data directory that is filled.
    pub to: String,
    /// The backup.
    pub backup: PlannedBackup,
    /// Repositories that hold it, the one that is read first.
    pub repositories: Vec<String>,
    /// Repositories that did not answer, and why.
    pub silent: Vec<Unheard>,
    /// Where recovery ends, in words.
    pub target: String,
    /// The same moment in UTC, if the target is one.
    pub target_time: Option<UtcTime>,
    /// Whether recovery stops just before it.
    pub exclusive: bool,
    /// What happens there: `pause`, `promote`, `shutdown`, or `standby`.
    pub action: String,
    /// Whether the action was chosen by nobody.
    pub action_by_default: bool,
    /// The timeline that is followed.
    pub timeline: u32,
    /// The WAL that is needed and there.
    pub wal: PlannedWal,
    /// Files to restore.
    pub files: u64,
    /// Their size, in bytes.
    pub size_bytes: u64,
    /// What is fetched for them, in bytes before decompression; unknown where other backups are read too.
    pub fetch_bytes: Option<u64>,
    /// Files of extra_paths that are left out, in bytes.
    pub extra_left_out_bytes: u64,
    /// Where each part goes besides the data directory.
    pub places: Vec<Place>,
    /// What each file system must take.
    pub space: Vec<Space>,
    /// Whether the restored server archives.
    pub archiving: bool,
    /// Why, if nobody asked for it.
    pub archiving_why: Option<String>,
    /// Branches of history that are left out.
    pub branches: Vec<Branch>,
    /// How it fetches WAL.
    pub restore_command: String,
    /// Tenants that were erased after the moment that is restored, and may come back with it.
    pub erasures: Vec<Erasure>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// The backup of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedBackup {
    /// Its label.
    pub label: Label,
    /// `full`, `diff` or `incr`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The earliest moment that can be recovered with it.
    pub stopped: UtcTime,
    /// Its timeline.
    pub timeline: u32,
    /// Where replay starts.
    pub start_lsn: Lsn,
    /// What replay must reach.
    pub stop_lsn: Lsn,
    /// PostgreSQL's system identifier, as text.
    pub system_identifier: String,
    /// PostgreSQL's version.
    pub server_version: String,
}

/// WAL of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedWal {
    /// Unbroken stretches, by name, in order.
    pub stretches: Vec<String>,
    /// Their size, in bytes.
    pub bytes: u64,
    /// The size of one segment, in bytes.
    pub segment_bytes: SegmentSize,
    /// Whether recovery takes whatever follows, too.
    pub to_end: bool,
}

/// A repository that did not answer.
#[derive(Debug, Clone, Serialize)]
pub struct Unheard {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
}

/// Something that goes elsewhere than into the data directory.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// What.
    pub what: String,
    /// Where.
    pub path: String,
}

/// A file system that is filled.
#[derive(Debug, Clone, Serialize)]
pub struct Space {
    /// A path on it.
    pub path: String,
    /// What goes there, in bytes.
    pub needed_bytes: u64,
    /// What is free, in bytes.
    pub free_bytes: u64,
}

/// The plan in lines.
pub fn text(plan: &Plan) -> String {
    let mut lines = vec![format!("restore of cluster {} into {}", plan.cluster, plan.to)];
    let mut row = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
    let backup = &plan.backup;
    row(
        "backup",
        format!(
            "{} ({}, PostgreSQL {}, stopped {}, timeline {}, {} to {})",
            backup.label,
            backup.kind,
            backup.server_version,
            backup.stopped,
            backup.timeline,
            backup.start_lsn,
            backup.stop_lsn
        ),
    );
    row("system", backup.system_identifier.clone());
    row("from", plan.repositories.join(", then "));
    row("target", target(plan));
    row("then", action(plan));
    row("timeline", plan.timeline.to_string());
    let wal = &plan.wal;
    let more = if wal.to_end {
        ", and what is archived until then"
    } else {
        ""
    };
    row(
        "WAL",
        format!(
            "{}, {}, all present{more}",
            counted(wal.bytes / u64::from(wal.segment_bytes), "segment"),
            ByteSize(wal.bytes)
        ),
    );
    wal.stretches.iter().for_each(|stretch| row("", stretch.clone()));
    let fetch = plan
        .fetch_bytes
        .map(|bytes| format!(", {} to fetch", ByteSize(bytes)))
        .unwrap_or_default();
    row("files", format!("{}, {}{fetch}", plan.files, ByteSize(plan.size_bytes)));
    plan.places
        .iter()
        .for_each(|place| row("place", format!("{} in {}", place.what, place.path)));
    if plan.extra_left_out_bytes > 0 {
        let size = ByteSize(plan.extra_left_out_bytes);
        row("left out", format!("extra files, {size}; --extra-to DIR restores them"));
    }
    for space in &plan.space {
        let short = if space.free_bytes < space.needed_bytes {
            "; THAT IS TOO LITTLE"
        } else {
            ""
        };
        let (needed, free) = (ByteSize(space.needed_bytes), ByteSize(space.free_bytes));
        row("space", format!("{}: {needed} needed, {free} free{short}", space.path));
    }
    let archiving = if plan.archiving {
        "as configured in the backup"
    } else {
        "off"
    };
    let why = plan.archiving_why.as_ref();
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    row("archiving", format!("{archiving}{why}"));
    plan.silent.iter().for_each(|silent| {
        row(
            "warning",
            format!(
                "repository {} did not answer and may hold newer backups and WAL: {}",
                silent.name, silent.why
            ),
        );
    });
    plan.branches
        .iter()
        .for_each(|branch| row("branch", branch.note.clone()));
    plan.erasures
        .iter()
        .for_each(|erasure| row("erased", format!("{}: {erasure}", erasure.time.whole_seconds())));
    if !plan.erasures.is_empty() {
        row(
            "",
            "what of this comes back has to go again, after promotion: pgkeep-dump-restore --apply-erasures".to_owned(),
        );
    }
    plan.notes.iter().for_each(|note| row("note", note.clone()));
    lines.push(String::new());
    lines.join("\n")
}

fn target(plan: &Plan) -> String {
    format!("{}{}", if plan.exclusive { "just before " } else { "" }, plan.target)
}

fn action(plan: &Plan) -> String {
    let default = if plan.action_by_default {
        " (the default for a target)"
    } else {
        ""
    };
    match plan.action.as_str() {
        "pause" => format!("pause{default}: the server answers queries; pg_wal_replay_resume() promotes it"),
        "shutdown" => "shut down".to_owned(),
        "standby" => "stay a standby".to_owned(),
        _ => "promote: the server becomes a primary on a new timeline".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plan() -> Plan {
        Plan {
            schema: 1,
            cluster: "main".into(),
            to: "/srv/pg".into(),
            backup: PlannedBackup {
                label: "20261120T020000Z-full-3f9a1c".parse().unwrap(),
                kind: "full".into(),
                stopped: UtcTime::parse_compact("20261120T020100Z").unwrap(),
                timeline: 1,
                start_lsn: Lsn(0x200_0028),
                stop_lsn: Lsn(0x200_0138),
                system_identifier: "7390000000000000001".into(),
                server_version: "15.18".into(),
            },
            repositories: vec!["local".into(), "offsite".into()],
            silent: vec![Unheard {
                name: "nas".into(),
                why: "timed out".into(),
            }],
            target: "time 2026-11-20T12:30:00+01:00 (2026-11-20T11:30:00Z)".into(),
            target_time: Some(UtcTime::parse_compact("20261120T113000Z").unwrap()),
            exclusive: true,
            action: "pause".into(),
            action_by_default: true,
            timeline: 1,
            wal: PlannedWal {
                stretches: vec!["000000010000000000000002 to 000000010000000000000003".into()],
                bytes: 32 << 20,
                segment_bytes: SegmentSize::DEFAULT,
                to_end: true,
            },
            files: 970,
            size_bytes: 22 << 20,
            fetch_bytes: Some(3 << 20),
            extra_left_out_bytes: 5000,
            places: vec![Place {
                what: "tablespace 16400".into(),
                path: "/srv/ts".into(),
            }],
            space: vec![Space {
                path: "/srv/pg".into(),
                needed_bytes: 10,
                free_bytes: 9,
            }],
            archiving: false,
            archiving_why: None,
            branches: Vec::new(),
            erasures: Vec::new(),
            restore_command: "x".into(),
            notes: vec!["mind the step".into()],
        }
    }

    #[test]
    fn the_text_says_all_that_matters() {
        let text = text(&plan());
        for part in [
            "20261120T020000Z-full-3f9a1c",
            "local, then offsite",
            "just before time 2026-11-20T12:30:00+01:00 (2026-11-20T11:30:00Z)",
            "pause (the default for a target)",
            "2 segments",
            "970, 22.0 MiB, 3.0 MiB to fetch",
            "tablespace 16400 in /srv/ts",
            "--extra-to",
            "THAT IS TOO LITTLE",
            "archiving  off",
            "repository nas did not answer and may hold newer backups and WAL: timed out",
            "mind the step",
            "system     7390000000000000001",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn the_plan_for_programs_has_plain_numbers() {
        let json = serde_json::to_value(plan()).unwrap();
        assert_eq!(json["wal"]["bytes"], 32 << 20);
        assert_eq!(json["backup"]["start_lsn"], "0/2000028");
        assert_eq!(json["target_time"], "2026-11-20T11:30:00Z");
    }
}
