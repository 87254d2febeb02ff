//! What can be recovered, as a line in time. Pure.

use std::fmt::Write;

use common::time::UtcTime;

use crate::report::{BackupReport, SystemReport};

/// Characters of the line.
const WIDTH: usize = 60;

/// A row for each system with backups: `F` full, `D` differential, `I` incremental, `=` can be recovered, `.` cannot.
pub fn rows(systems: &[SystemReport], backups: &[BackupReport], now: UtcTime) -> Vec<String> {
    systems.iter().filter_map(|system| row(system, backups, now)).collect()
}

fn row(system: &SystemReport, backups: &[BackupReport], now: UtcTime) -> Option<String> {
    let mut own: Vec<&BackupReport> = backups
        .iter()
        .filter(|backup| backup.system_identifier == system.system_identifier && backup.good)
        .collect();
    own.sort_by_key(|backup| backup.stopped);
    let first = own.first()?.stopped;
    let span = now.since(first).as_secs_f64().max(1.0);
    let place = |time: UtcTime| {
        let part = time.since(first).as_secs_f64() / span * (WIDTH - 1) as f64;
        (part.round() as usize).min(WIDTH - 1)
    };
    let mut line = vec!['.'; WIDTH];
    for (at, backup) in own.iter().enumerate() {
        let next = own.get(at + 1);
        let end = next.map_or(WIDTH - 1, |next| place(next.stopped));
        if reaches(system, backup, next.copied()) {
            for one in line.iter_mut().take(end + 1).skip(place(backup.stopped)) {
                *one = '=';
            }
        }
    }
    for backup in &own {
        let letter = backup.kind.chars().next().unwrap_or('?').to_ascii_uppercase();
        if let Some(one) = line.get_mut(place(backup.stopped)) {
            *one = letter;
        }
    }
    let mut text = format!("{} ", first.whole_seconds());
    text.extend(line);
    let _ = write!(text, " {} (now)", now.whole_seconds());
    Some(text)
}

/// Whether every moment from this backup to the next one, or to the end of WAL, can be recovered.
fn reaches(system: &SystemReport, backup: &BackupReport, next: Option<&BackupReport>) -> bool {
    let mut windows = system.windows.iter().filter(|window| window.label == backup.label);
    let lsn = |text: &str| text.parse::<common::postgres::Lsn>().ok();
    match next {
        None => windows.any(|window| window.missing.is_none()),
        Some(next) => windows.any(|window| window.missing.is_none() || lsn(&window.to_lsn) >= lsn(&next.start_lsn)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::stats::tests::{backup, system, window};

    fn at(hours: i64) -> UtcTime {
        UtcTime::from_unix_seconds(1_790_000_000 + hours * 3600).unwrap()
    }

    #[test]
    fn backups_stand_at_their_times_and_gaps_are_seen() {
        let backups = [
            backup("a", "full", at(0), 10),
            backup("b", "incr", at(30), 10),
            backup("c", "diff", at(59), 10),
        ];
        let windows = vec![window("a", None), window("b", Some("0/1")), window("c", None)];
        let rows = rows(&[system(windows)], &backups, at(59));
        let line = rows[0].split(' ').nth(1).unwrap();
        assert_eq!(line.len(), WIDTH);
        assert_eq!(&line[..1], "F");
        assert!(line[1..30].chars().all(|one| one == '='), "{line}");
        assert_eq!(&line[30..31], "I");
        assert!(line[31..59].chars().all(|one| one == '.'), "{line}");
        assert_eq!(&line[59..], "D");
    }

    #[test]
    fn without_a_good_backup_there_is_no_line() {
        let mut bad = backup("a", "full", at(0), 10);
        bad.good = false;
        assert!(rows(&[system(Vec::new())], &[bad], at(1)).is_empty());
    }
}
