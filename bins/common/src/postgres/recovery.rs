//! Recovery settings: what a restored server is told before its first start.
//!
//! Edits the text of postgresql.auto.conf, which has the last word over postgresql.conf
//! (`src/backend/utils/misc/guc-file.l`). What was inherited is removed here and, since it may stand in
//! postgresql.conf too, overruled; the emptied targets stand in front of the chosen one, because each
//! assignment fails while another target is set (`error_multiple_recovery_targets`). Writing the files
//! is left to the caller.

use super::lsn::{Lsn, TimelineId};
use crate::error::{Error, Kind, Result};

/// The file that is edited.
pub const AUTO_CONF: &str = "postgresql.auto.conf";
/// Starts recovery from an archive; empty.
pub const RECOVERY_SIGNAL: &str = "recovery.signal";
/// Starts a standby; empty; counts more than the other.
pub const STANDBY_SIGNAL: &str = "standby.signal";

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// With the last WAL there is.
    #[default]
    EndOfWal,
    /// As soon as the backup is consistent.
    Immediate,
    /// At this time, with its zone.
    Time(String),
    /// At this position.
    Lsn(Lsn),
    /// With this transaction.
    Xid(String),
    /// At this restore point.
    Name(String),
}

/// Which timeline recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetTimeline {
    /// The newest in the archive.
    #[default]
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Id(TimelineId),
}

/// What happens at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetAction {
    /// Stay in recovery and answer queries; PostgreSQL's default.
    #[default]
    Pause,
    /// Become a primary.
    Promote,
    /// Stop the server.
    Shutdown,
}

/// What a restored server is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecoverySettings {
    /// The command that fetches WAL.
    pub restore_command: String,
    /// Where recovery ends.
    pub target: Target,
    /// Stop just before the target instead of after it.
    pub exclusive: bool,
    /// Which timeline recovery follows.
    pub timeline: TargetTimeline,
    /// What happens at the target.
    pub action: TargetAction,
    /// The server becomes a standby: what it inherited about its primary stays.
    pub standby: bool,
    /// How a standby reaches its primary, if that is to change.
    pub primary_conninfo: Option<String>,
    /// Whatever else: names and values.
    pub others: Vec<(String, String)>,
}

/// What is always removed and overruled.
const INHERITED: [&str; 12] = [
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "promote_trigger_file",
];
const OF_A_STANDBY: [&str; 2] = ["primary_conninfo", "primary_slot_name"];

impl RecoverySettings {
    /// The signal file that must be there, and the one that must not.
    pub fn signal_files(&self) -> (&'static str, &'static str) {
        if self.standby {
            (STANDBY_SIGNAL, RECOVERY_SIGNAL)
        } else {
            (RECOVERY_SIGNAL, STANDBY_SIGNAL)
        }
    }

    /// The settings in the order in which they must be written.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: &str| lines.push((name.to_string(), value.to_string()));
        let emptied = [
            "archive_cleanup_command",
            "recovery_end_command",
            "recovery_target",
            "recovery_target_name",
        ];
        for name in emptied
            .into_iter()
            .chain(["recovery_target_time", "recovery_target_xid", "recovery_target_lsn"])
        {
            if Some(name) != self.target_setting().map(|(name, _)| name) {
                set(name, "");
            }
        }
        if !self.standby {
            OF_A_STANDBY.iter().for_each(|name| set(name, ""));
        }
        set("restore_command", &self.restore_command);
        if let Some((name, value)) = self.target_setting() {
            set(name, &value);
        }
        set("recovery_target_inclusive", if self.exclusive { "off" } else { "on" });
        let timeline = match self.timeline {
            TargetTimeline::Latest => "latest".to_string(),
            TargetTimeline::Current => "current".to_string(),
            TargetTimeline::Id(id) => id.0.to_string(),
        };
        set("recovery_target_timeline", &timeline);
        let action = match self.action {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        };
        set("recovery_target_action", action);
        if let Some(conninfo) = &self.primary_conninfo {
            set("primary_conninfo", conninfo);
        }
        lines.extend(self.others.iter().cloned());
        lines
    }

    fn target_setting(&self) -> Option<(&'static str, String)> {
        Some(match &self.target {
            Target::EndOfWal => return None,
            Target::Immediate => ("recovery_target", "immediate".to_string()),
            Target::Time(time) => ("recovery_target_time", time.clone()),
            Target::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Target::Xid(xid) => ("recovery_target_xid", xid.clone()),
            Target::Name(name) => ("recovery_target_name", name.clone()),
        })
    }

    /// Edits the content of a postgresql.auto.conf; other settings and comments stay as they are.
    ///
    /// # Errors
    /// `Config` if a name or a value cannot stand in such a file.
    pub fn edit_auto_conf(&self, text: &[u8]) -> Result<Vec<u8>> {
        let ours = self.lines();
        let mut removed: Vec<&str> = INHERITED.to_vec();
        if !self.standby {
            removed.extend(OF_A_STANDBY);
        }
        removed.extend(ours.iter().map(|(name, _)| name.as_str()));
        let mut edited = Vec::with_capacity(text.len() + 1024);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let name = setting_name(line);
            if !removed
                .iter()
                .any(|removed| name.eq_ignore_ascii_case(removed.as_bytes()))
            {
                edited.extend_from_slice(line);
            }
        }
        if edited.last().is_some_and(|byte| *byte != b'\n') {
            edited.push(b'\n');
        }
        for (name, value) in &ours {
            edited.extend_from_slice(format!("{} = {}\n", checked_name(name)?, quote(value)?).as_bytes());
        }
        Ok(edited)
    }
}

/// The name that a line of a configuration file sets; empty for comments.
fn setting_name(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|byte| !is_name_byte(*byte)).unwrap_or(line.len());
    line.get(..end).unwrap_or_default()
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.' || byte == b'$' || byte >= 0x80
}

fn checked_name(name: &str) -> Result<&str> {
    let plain = name.bytes().all(|byte| byte.is_ascii() && is_name_byte(byte))
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if plain {
        Ok(name)
    } else {
        Err(Error::new(
            Kind::Config,
            format!("\"{name}\" is not the name of a setting"),
        ))
    }
}

/// Quotes a value for a configuration file, as `DeescapeQuotedString` will undo it.
///
/// # Errors
/// `Config` for a zero byte, which PostgreSQL could not read back.
pub fn quote(value: &str) -> Result<String> {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\0' => {
                return Err(Error::new(
                    Kind::Config,
                    format!("the value {value:?} contains a zero byte"),
                ));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    Ok(quoted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn edit(settings: &RecoverySettings, text: &str) -> String {
        String::from_utf8(settings.edit_auto_conf(text.as_bytes()).unwrap()).unwrap()
    }

    fn to_lsn() -> RecoverySettings {
        RecoverySettings {
            restore_command: "get %f %p".into(),
            target: Target::Lsn(Lsn(0x1_0000_0028)),
            ..Default::default()
        }
    }

    #[test]
    fn what_was_inherited_goes_and_the_rest_stays() {
        let text = "# comment, restore_command = 'x'\nwork_mem = '4MB'\nrestore_command = 'old'\n  Recovery_Target_Time='2020'\n\
                    primary_conninfo = 'host=a'\nprimary_slot_name 'slot'\nrecovery_target_times = 'not ours'\nshared_buffers=1";
        let edited = edit(&to_lsn(), text);
        assert!(edited.starts_with(
            "# comment, restore_command = 'x'\nwork_mem = '4MB'\nrecovery_target_times = 'not ours'\nshared_buffers=1\narchive_cleanup"
        ));
        for gone in ["'old'", "2020", "host=a", "'slot'"] {
            assert!(!edited.contains(gone), "{gone}");
        }
    }

    #[test]
    fn the_chosen_target_comes_after_the_emptied_ones() {
        let edited = edit(&to_lsn(), "");
        let at = |line: &str| edited.lines().position(|other| other == line).unwrap();
        for emptied in [
            "recovery_target",
            "recovery_target_name",
            "recovery_target_time",
            "recovery_target_xid",
        ] {
            assert!(at(&format!("{emptied} = ''")) < at("recovery_target_lsn = '1/28'"));
        }
        assert_eq!(edited.matches("recovery_target_lsn").count(), 1);
        assert!(edited.contains("restore_command = 'get %f %p'\n") && edited.contains("primary_conninfo = ''\n"));
        assert!(edited.ends_with("recovery_target_action = 'pause'\n"));
    }

    #[test]
    fn editing_twice_is_editing_once() {
        let settings = to_lsn();
        let once = edit(&settings, "work_mem = 4MB\n");
        assert_eq!(edit(&settings, &once), once);
    }

    #[test]
    fn a_standby_keeps_its_primary_unless_told_another() {
        let text = "primary_conninfo = 'host=a'\nprimary_slot_name = 's'\n";
        let standby = RecoverySettings {
            standby: true,
            ..Default::default()
        };
        assert!(edit(&standby, text).starts_with(text));
        assert_eq!(standby.signal_files(), (STANDBY_SIGNAL, RECOVERY_SIGNAL));
        let moved = RecoverySettings {
            primary_conninfo: Some("host=b password=it's".into()),
            ..standby
        };
        let edited = edit(&moved, text);
        assert!(!edited.contains("host=a") && edited.contains("primary_conninfo = 'host=b password=it''s'\n"));
    }

    #[test]
    fn other_settings_replace_what_stood_there() {
        let settings = RecoverySettings {
            others: vec![("archive_mode".into(), "off".into())],
            ..Default::default()
        };
        let edited = edit(&settings, "archive_mode = on\n");
        assert!(!edited.contains("archive_mode = on") && edited.ends_with("archive_mode = 'off'\n"));
        let bad = RecoverySettings {
            others: vec![("a = 1\nb".into(), String::new())],
            ..Default::default()
        };
        assert_eq!(bad.edit_auto_conf(b"").unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        assert_eq!(quote("it's C:\\x\nend").unwrap(), "'it''s C:\\\\x\\nend'");
        assert!(quote("a\0b").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            to_lsn().edit_auto_conf(&text).unwrap();
        }

        #[test]
        fn a_quoted_value_is_one_line(value in "[^\0]*") {
            prop_assert!(!quote(&value).unwrap().contains(['\n', '\r']));
        }
    }
}
