//! The report as a person reads it. Pure.

use std::fmt::Write;

use common::units::{ByteSize, counted, display_seconds};

use crate::report::{BackupReport, Blocks, DumpReport, Report, RepositoryReport, SystemReport, Unfinished};

/// The report as text, ended by a newline.
pub fn text(report: &Report) -> String {
    let mut out = format!("cluster {}\n", report.cluster);
    for repository in &report.repositories {
        push_repository(&mut out, repository);
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(text);
    out.push('\n');
}

fn push_repository(out: &mut String, repository: &RepositoryReport) {
    line(
        out,
        format_args!("\nrepository {}  {}", repository.name, repository.url),
    );
    if let Some(error) = &repository.error {
        line(out, format_args!("  cannot be read: {error}"));
        return;
    }
    let encrypted = if repository.encrypted == Some(true) {
        "encrypted"
    } else {
        "not encrypted"
    };
    line(
        out,
        format_args!(
            "  UUID {}, {encrypted}",
            repository.uuid.as_deref().unwrap_or("unknown")
        ),
    );
    if repository.backups.is_empty() {
        line(out, format_args!("  no backup"));
    } else {
        push_backups(out, &repository.backups);
    }
    for backup in &repository.backups {
        push_damage(out, backup);
    }
    push_dumps(out, &repository.dumps);
    for unfinished in &repository.unfinished {
        let Unfinished {
            label,
            state,
            host,
            pid,
        } = unfinished;
        let by = match (host, pid) {
            (Some(host), Some(pid)) => format!(", begun by process {pid} on {host}"),
            _ => String::new(),
        };
        let state = match *state {
            "unknown" => "running or left behind",
            known => known,
        };
        line(out, format_args!("  unfinished: {label} ({state}{by})"));
    }
    for unreadable in &repository.unreadable {
        line(
            out,
            format_args!("  UNREADABLE: {}: {}", unreadable.label, unreadable.why),
        );
    }
    for system in &repository.systems {
        push_system(out, system);
    }
}

fn push_backups(out: &mut String, backups: &[BackupReport]) {
    line(
        out,
        format_args!(
            "  {:<28} {:<4} {:<20} {:>8} {:>10} {:>10}  {:<9} state",
            "backup", "type", "recoverable from", "took", "size", "stored", "timeline"
        ),
    );
    for backup in backups {
        let state = match (&backup.lacks, backup.good, backup.damaged_pages) {
            (Some(label), ..) => format!("LACKS {label}: cannot be restored from here"),
            (None, true, _) => "good".to_owned(),
            (None, false, pages) => format!("DAMAGED, {pages} pages"),
        };
        let took = std::time::Duration::try_from_secs_f64(backup.duration_seconds).unwrap_or_default();
        line(
            out,
            format_args!(
                "  {:<28} {:<4} {:<20} {:>8} {:>10} {:>10}  {:<9} {state}{}",
                backup.label,
                backup.kind,
                backup.stopped.whole_seconds().to_string(),
                display_seconds(took),
                ByteSize(backup.size_bytes).to_string(),
                ByteSize(backup.stored_bytes).to_string(),
                backup.timeline,
                backup
                    .note
                    .as_ref()
                    .map(|note| format!("  ({note})"))
                    .unwrap_or_default(),
            ),
        );
    }
}

fn push_dumps(out: &mut String, dumps: &[DumpReport]) {
    if dumps.is_empty() {
        return;
    }
    line(
        out,
        format_args!(
            "  {:<28} {:<9} {:<20} {:>8} {:>10} {:>10}  what",
            "dump", "scope", "taken", "took", "size", "stored"
        ),
    );
    for dump in dumps {
        let took = std::time::Duration::try_from_secs_f64(dump.duration_seconds).unwrap_or_default();
        line(
            out,
            format_args!(
                "  {:<28} {:<9} {:<20} {:>8} {:>10} {:>10}  {}, {}",
                dump.label,
                dump.scope,
                dump.started.whole_seconds().to_string(),
                display_seconds(took),
                ByteSize(dump.size_bytes).to_string(),
                ByteSize(dump.stored_bytes).to_string(),
                counted(dump.databases, "database"),
                counted(dump.tables, "table"),
            ),
        );
    }
}

/// So many damaged files of a backup, and so many runs of blocks of one of them, are listed.
const LISTED: usize = 5;

fn push_damage(out: &mut String, backup: &BackupReport) {
    if let Some(why) = &backup.damage_unknown {
        line(
            out,
            format_args!("  DAMAGED: {}: where is not known: {why}", backup.label),
        );
    }
    for file in backup.damage.iter().take(LISTED) {
        let one = |run: &Blocks| match run.first == run.last {
            true => run.first.to_string(),
            false => format!("{}-{}", run.first, run.last),
        };
        let mut blocks = file.blocks.iter().take(LISTED).map(one).collect::<Vec<_>>().join(", ");
        if file.blocks.len() > LISTED {
            blocks += " and more";
        }
        line(
            out,
            format_args!("  DAMAGED: {}: {}: blocks {blocks}", backup.label, file.path),
        );
    }
    if let Some(more) = backup.damage.len().checked_sub(LISTED).filter(|more| *more > 0) {
        line(
            out,
            format_args!(
                "  DAMAGED: {}: {more} more files (--format json lists them)",
                backup.label
            ),
        );
    }
}

fn push_system(out: &mut String, system: &SystemReport) {
    line(
        out,
        format_args!("  system {}  PostgreSQL {}", system.system_identifier, system.major),
    );
    line(
        out,
        format_args!(
            "    WAL: {}, {} stored",
            counted(system.wal_segments, "segment"),
            ByteSize(system.wal_stored_bytes)
        ),
    );
    for range in &system.wal_ranges {
        line(
            out,
            format_args!(
                "      timeline {}  {} .. {}  {}",
                range.timeline,
                range.first,
                range.last,
                counted(range.segments, "segment")
            ),
        );
    }
    for gap in &system.wal_gaps {
        line(
            out,
            format_args!(
                "      GAP         {} .. {}  {} missing",
                gap.first,
                gap.last,
                counted(gap.segments, "segment")
            ),
        );
    }
    for window in &system.windows {
        line(
            out,
            format_args!(
                "    recoverable: from {} ({}) to the end of {} ({}) on timeline {}, from {}{}",
                window.from_time,
                window.from_lsn,
                window.last_segment,
                window.to_lsn,
                window.timeline,
                window.label,
                window
                    .missing
                    .as_ref()
                    .map(|missing| format!("; behind it WAL {missing} is missing"))
                    .unwrap_or_default(),
            ),
        );
    }
    for lost in &system.unrecoverable {
        let what = if lost.is_wal { "WAL " } else { "" };
        line(
            out,
            format_args!("    NOT RECOVERABLE: {}: {what}{} is missing", lost.label, lost.missing),
        );
    }
    for history in &system.unreadable_histories {
        line(
            out,
            format_args!(
                "    UNREADABLE: the history of timeline {}, so what lies beyond that promotion is not shown: {}",
                history.timeline, history.why
            ),
        );
    }
    for name in &system.foreign {
        line(out, format_args!("    foreign name: {name}"));
    }
}
