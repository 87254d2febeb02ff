//! backup_label and tablespace_map: what a restored server must know to become consistent.
//!
//! Knows what `pg_backup_stop` returns (`build_backup_content` in `src/backend/access/transam/xlogbackup.c`;
//! `read_backup_label` and `read_tablespace_map` in `xlogrecovery.c`). The server's own bytes are what a
//! backup keeps; this reads them.

use super::lsn::{Lsn, TimelineId};
use super::relation::oid;
use crate::error::{Error, Kind, Result};
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The fields of a backup_label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay starts.
    pub start_lsn: Lsn,
    /// The segment that is in, as the server names it.
    pub start_segment: String,
    /// The checkpoint record that recovery begins with.
    pub checkpoint_lsn: Lsn,
    /// `streamed` for every backup since 15.
    pub method: String,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// When it began, as the server words it.
    pub start_time: String,
    /// What the one who took it called it.
    pub label: String,
    /// The timeline that it started on.
    pub start_timeline: TimelineId,
    /// The backup that an incremental one of PostgreSQL 17 needs.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

impl BackupLabel {
    /// Parses a backup_label.
    ///
    /// # Errors
    /// `Corrupt` if PostgreSQL could not start from it.
    pub fn parse(bytes: &[u8]) -> Result<BackupLabel> {
        let text = String::from_utf8_lossy(bytes);
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .ok_or_else(|| Error::new(Kind::Corrupt, format!("backup_label has no \"{name}\"")))
        };
        let wrong = |name: &str| Error::new(Kind::Corrupt, format!("backup_label has an impossible \"{name}\""));
        let timeline = |name: &str| field(name)?.parse().map(TimelineId).map_err(|_| wrong(name));
        let lsn = |name: &str, value: &str| value.parse::<Lsn>().map_err(|_| wrong(name));
        let start = field("START WAL LOCATION")?;
        let (start_lsn, start_segment) = start
            .strip_suffix(')')
            .and_then(|start| start.split_once(" (file "))
            .ok_or_else(|| wrong("START WAL LOCATION"))?;
        let incremental_from = match field("INCREMENTAL FROM LSN") {
            Ok(from) => Some((lsn("INCREMENTAL FROM LSN", from)?, timeline("INCREMENTAL FROM TLI")?)),
            Err(_) => None,
        };
        Ok(BackupLabel {
            start_lsn: lsn("START WAL LOCATION", start_lsn)?,
            start_segment: start_segment.to_string(),
            checkpoint_lsn: lsn("CHECKPOINT LOCATION", field("CHECKPOINT LOCATION")?)?,
            method: field("BACKUP METHOD")?.to_string(),
            from_standby: match field("BACKUP FROM")? {
                "primary" | "master" => false,
                "standby" => true,
                _ => return Err(wrong("BACKUP FROM")),
            },
            start_time: field("START TIME")?.to_string(),
            label: field("LABEL")?.to_string(),
            start_timeline: timeline("START TIMELINE")?,
            incremental_from,
        })
    }

    /// Formats it as PostgreSQL 14 and later do.
    pub fn to_text(&self) -> String {
        let from = if self.from_standby { "standby" } else { "primary" };
        let mut text = format!(
            "START WAL LOCATION: {} (file {})\nCHECKPOINT LOCATION: {}\nBACKUP METHOD: {}\nBACKUP FROM: {from}\n\
             START TIME: {}\nLABEL: {}\nSTART TIMELINE: {}\n",
            self.start_lsn,
            self.start_segment,
            self.checkpoint_lsn,
            self.method,
            self.start_time,
            self.label,
            self.start_timeline.0
        );
        if let Some((lsn, timeline)) = self.incremental_from {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "INCREMENTAL FROM LSN: {lsn}\nINCREMENTAL FROM TLI: {}\n",
                timeline.0
            );
        }
        text
    }
}

/// Parses a tablespace_map: OID and location of each tablespace.
///
/// # Errors
/// `Corrupt` if a line is not understood.
pub fn parse_tablespace_map(bytes: &[u8]) -> Result<Vec<(u32, PathBuf)>> {
    let mut spaces = Vec::new();
    let mut line: Vec<u8> = Vec::new();
    let mut rest = bytes.iter().copied();
    let mut finish = |line: &mut Vec<u8>| -> Result<()> {
        if !line.is_empty() {
            spaces.push(parse_tablespace(line)?);
            line.clear();
        }
        Ok(())
    };
    while let Some(byte) = rest.next() {
        match byte {
            // Within a path a line end, and the backslash itself, stand behind a backslash.
            b'\\' => line.extend(rest.next()),
            b'\n' | b'\r' => finish(&mut line)?,
            _ => line.push(byte),
        }
    }
    finish(&mut line)?;
    Ok(spaces)
}

fn parse_tablespace(line: &[u8]) -> Result<(u32, PathBuf)> {
    let mut parts = line.splitn(2, |byte| *byte == b' ');
    let number = parts.next().and_then(|number| oid(std::str::from_utf8(number).ok()?));
    match (number, parts.next()) {
        (Some(number), Some(path)) if !path.is_empty() => {
            Ok((number, PathBuf::from(OsString::from_vec(path.to_vec()))))
        }
        _ => {
            let message = format!("tablespace_map has the line \"{}\"", String::from_utf8_lossy(line));
            Err(Error::new(Kind::Corrupt, message))
        }
    }
}

/// Formats a tablespace_map.
pub fn format_tablespace_map(spaces: &[(u32, PathBuf)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, path) in spaces {
        bytes.extend_from_slice(format!("{number} ").as_bytes());
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                bytes.push(b'\\');
            }
            bytes.push(*byte);
        }
        bytes.push(b'\n');
    }
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::postgres::{Major, fixtures};
    use proptest::prelude::*;

    #[test]
    fn the_label_of_every_version_is_understood() {
        for major in Major::ALL {
            let bytes = fixtures::read(major, "backup_label");
            let label = BackupLabel::parse(&bytes).unwrap();
            let start = fixtures::expected(major)["backup_start"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!((label.start_lsn, label.start_timeline), (start, TimelineId(3)));
            assert_eq!(
                (label.label.as_str(), label.method.as_str()),
                ("golden label", "streamed")
            );
            assert!(!label.from_standby && label.checkpoint_lsn > label.start_lsn);
            if major > Major::V13 {
                assert_eq!(label.to_text().as_bytes(), bytes);
            }
        }
    }

    #[test]
    fn a_label_that_lacks_a_line_is_corrupt() {
        let text = String::from_utf8(fixtures::read(Major::V17, "backup_label")).unwrap();
        for missing in 0..text.lines().count() {
            let rest: Vec<&str> = text
                .lines()
                .enumerate()
                .filter(|(at, _)| *at != missing)
                .map(|(_, line)| line)
                .collect();
            assert_eq!(
                BackupLabel::parse(rest.join("\n").as_bytes()).unwrap_err().kind(),
                Kind::Corrupt,
                "{missing}"
            );
        }
    }

    #[test]
    fn an_incremental_of_postgresql_itself_is_recognised() {
        let mut bytes = fixtures::read(Major::V17, "backup_label");
        bytes.extend_from_slice(b"INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabel::parse(&bytes).unwrap();
        assert_eq!(label.incremental_from, Some((Lsn(0x200_0028), TimelineId(1))));
        assert_eq!(label.to_text().as_bytes(), bytes);
    }

    #[test]
    fn odd_tablespace_paths_survive() {
        let spaces = vec![
            (16400, PathBuf::from("/mnt/a b")),
            (16401, PathBuf::from("/mnt/new\nline\\")),
        ];
        let bytes = format_tablespace_map(&spaces);
        assert_eq!(bytes, b"16400 /mnt/a b\n16401 /mnt/new\\\nline\\\\\n");
        assert_eq!(parse_tablespace_map(&bytes).unwrap(), spaces);
        assert_eq!(parse_tablespace_map(b"").unwrap(), []);
        for wrong in ["16400\n", "x /mnt\n", "16400 \n", "0 /mnt\n"] {
            assert_eq!(
                parse_tablespace_map(wrong.as_bytes()).unwrap_err().kind(),
                Kind::Corrupt
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = BackupLabel::parse(&bytes);
            let _ = parse_tablespace_map(&bytes);
        }

        #[test]
        fn every_path_survives_the_round_trip(number in 1..u32::MAX, path in proptest::collection::vec(1..=255_u8, 1..50)) {
            let spaces = vec![(number, PathBuf::from(OsString::from_vec(path)))];
            prop_assert_eq!(parse_tablespace_map(&format_tablespace_map(&spaces)).unwrap(), spaces);
        }
    }
}
