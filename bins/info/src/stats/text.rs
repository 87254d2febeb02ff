//! The statistics as a person reads them. Pure.

use common::time::UtcTime;
use common::units::{ByteSize, counted};

use super::{Growth, InRepository, Rate, Stats};
use crate::timeline::{Row, WIDTH};

/// So many gaps of a timeline are listed.
const LISTED: usize = 5;

impl Stats {
    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("cluster {}", self.cluster), String::new()];
        self.push_jobs(&mut lines);
        for one in &self.repositories {
            lines.push(format!("\nrepository {}", one.name));
            push_repository(&mut lines, one);
        }
        if self.repositories.iter().any(|one| !one.timelines.is_empty()) {
            lines.push(
                "\nF full, D differential, I incremental backup; = can be recovered, . cannot; a line ends when the last \
                 WAL was stored"
                    .to_owned(),
            );
        }
        if !self.incomplete.is_empty() {
            lines.push(String::new());
        }
        lines.extend(self.incomplete.iter().map(|one| format!("NOT COMPLETE: {one}")));
        lines.join("\n") + "\n"
    }

    fn push_jobs(&self, lines: &mut Vec<String>) {
        lines.push("jobs of this host that succeeded".to_owned());
        if self.jobs.is_empty() {
            lines.push("  no run is recorded".to_owned());
        } else {
            lines.push(format!("  {:<16} {:>16} {:>16}", "", "last 7 days", "last 30 days"));
        }
        for (tool, rates) in &self.jobs {
            let (week, month) = (words(rates.days_7), words(rates.days_30));
            lines.push(format!("  {tool:<16} {week:>16} {month:>16}"));
        }
        if self.unreadable_history_lines > 0 {
            lines.push(format!(
                "  {} of the audit record cannot be understood",
                counted(self.unreadable_history_lines, "line")
            ));
        }
    }
}

fn words(rate: Rate) -> String {
    match rate.runs {
        0 => "no run".to_owned(),
        runs => format!("{:.1} % of {runs}", rate.succeeded as f64 / runs as f64 * 100.0),
    }
}

fn push_repository(lines: &mut Vec<String>, one: &InRepository) {
    let time = |time: Option<UtcTime>| time.map_or_else(|| "none".to_owned(), |time| time.whole_seconds().to_string());
    lines.push(match one.backups {
        0 => "  no good backup".to_owned(),
        count => format!(
            "  {}, the oldest of {}, the newest of {}",
            counted(count, "good backup"),
            time(one.oldest),
            time(one.newest)
        ),
    });
    if let Some(bytes) = one.database_bytes {
        lines.push(format!("  database {}", ByteSize(bytes)));
    }
    lines.push(format!(
        "  stored: backups {} (of files of {}), WAL {}, dumps {}",
        ByteSize(one.backups_stored_bytes),
        ByteSize(one.backups_size_bytes),
        ByteSize(one.wal_stored_bytes),
        ByteSize(one.dumps_stored_bytes)
    ));
    if let Some(largest) = &one.largest {
        lines.push(format!(
            "  largest backup {}: {} stored, files of {}",
            largest.label,
            ByteSize(largest.stored_bytes),
            ByteSize(largest.size_bytes)
        ));
    }
    if let Some(compression) = one.compression {
        lines.push(format!(
            "  the newest full backup takes {:.0} % of its files' size",
            compression * 100.0
        ));
    }
    push_growth(lines, "the full backup before", one.growth_since_last_full.as_ref());
    push_growth(lines, "about 30 days before it", one.growth_of_30_days.as_ref());
    let systems = |row: &Row| {
        one.timelines
            .iter()
            .any(|other| other.system_identifier != row.system_identifier)
    };
    for row in &one.timelines {
        push_row(lines, row, systems(row));
    }
}

fn push_growth(lines: &mut Vec<String>, since: &str, growth: Option<&Growth>) {
    if let Some(growth) = growth {
        lines.push(format!(
            "  growth of the newest full backup since {since}, of {}: {:+.1} %",
            growth.stopped.whole_seconds(),
            (growth.factor - 1.0) * 100.0
        ));
    }
}

fn push_row(lines: &mut Vec<String>, row: &Row, with_system: bool) {
    let system = match with_system {
        true => format!(" of system {}", row.system_identifier),
        false => String::new(),
    };
    lines.push(format!("  recoverable on timeline {}{system}", row.timeline));
    lines.push(format!("    {}", row.line));
    let (from, to) = (row.from.whole_seconds().to_string(), row.to.whole_seconds().to_string());
    lines.push(match row.line.len() {
        1 => format!("    {from}"),
        _ => format!("    {from}{to:>space$}", space = WIDTH.saturating_sub(from.len())),
    });
    for gap in row.gaps.iter().take(LISTED) {
        let (from, to) = (gap.from.whole_seconds(), gap.to.whole_seconds());
        lines.push(format!("    NOT RECOVERABLE: from {from} to {to}"));
    }
    if let Some(more) = row.gaps.len().checked_sub(LISTED).filter(|more| *more > 0) {
        lines.push(format!(
            "    NOT RECOVERABLE: {} (--format json lists them)",
            counted(more as u64, "more gap")
        ));
    }
}
