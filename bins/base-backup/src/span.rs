//! From where to where a backup reaches, and whether the server stayed what it was meanwhile. Pure.

use common::error::{Error, Kind, Result};
use common::postgres::{BackupLabel, ClusterState, ControlFile, Lsn, StartPoint, StopPoint, TimelineId};

/// Checks where PostgreSQL's backup starts: on `standby` or not, as it was when the job began, on the timeline that the server was
/// seen to follow, and not before the backup that this one leans on, which began at `base`.
///
/// # Errors
/// `Transient`: another backup may succeed.
pub fn open(start: &StartPoint, standby: bool, timeline: TimelineId, base: Option<Lsn>) -> Result<()> {
    if start.in_recovery != standby {
        return Err(changed_role(start.in_recovery));
    }
    if !standby {
        return Ok(());
    }
    let (begun, on) = (start.lsn, start.timeline);
    if on != timeline {
        let message = format!(
            "the standby's last restart point {begun} is on timeline {on}, and it follows timeline {timeline} by now"
        );
        return Err(Error::new(Kind::Transient, message)
            .hint("once it has replayed a checkpoint of the new timeline a backup can be taken: run it again later"));
    }
    match base {
        Some(base) if begun < base => {
            let message =
                format!("the standby's last restart point {begun} is before {base}, where the earlier backup begins");
            Err(Error::new(Kind::Transient, message).hint("run it again later, or on the primary"))
        }
        _ => Ok(()),
    }
}

/// What the pg_control in the backup says.
#[derive(Debug, Clone, Copy)]
pub struct Control {
    /// Whether it is that of a server in archive recovery.
    pub recovering: bool,
    /// What recovery must reach: `minRecoveryPoint`.
    pub demands: Lsn,
    /// The timeline of that.
    pub timeline: TimelineId,
}

impl From<&ControlFile> for Control {
    fn from(control: &ControlFile) -> Self {
        let standby = [ClusterState::InArchiveRecovery, ClusterState::ShutDownInRecovery];
        Self {
            recovering: standby.contains(&control.state),
            demands: control.min_recovery_point,
            timeline: control.min_recovery_timeline,
        }
    }
}

/// Checks where it stops, with `control` as it is in the backup. A standby's recovery has to reach what its pg_control
/// says (`minRecoveryPoint`), which may have grown since PostgreSQL named the stop: that counts.
///
/// # Errors
/// `Transient` if the server's role or timeline changed; `Failed` if what the server says cannot be.
pub fn close(start: &StartPoint, mut stop: StopPoint, control: Control) -> Result<StopPoint> {
    if stop.in_recovery != start.in_recovery {
        return Err(changed_role(stop.in_recovery));
    }
    if start.in_recovery {
        if !control.recovering {
            return Err(changed_role(false));
        }
        let begun_on = BackupLabel::parse(&stop.backup_label)?.start_timeline;
        let later = control.demands > stop.lsn;
        let ends_on = if later { control.timeline } else { stop.timeline };
        if begun_on != ends_on {
            let message = format!("the standby moved from timeline {begun_on} to {ends_on} while it was copied");
            return Err(Error::new(Kind::Transient, message));
        }
        stop.lsn = stop.lsn.max(control.demands);
    }
    if stop.lsn < start.lsn {
        let (start, stop) = (start.lsn, stop.lsn);
        return Err(Error::new(
            Kind::Failed,
            format!("the server says that the backup stopped at {stop}, before {start}"),
        ));
    }
    Ok(stop)
}

fn changed_role(to_standby: bool) -> Error {
    let what = if to_standby {
        "the server became a standby while the backup was made"
    } else {
        "the standby was promoted while the backup was made"
    };
    Error::new(Kind::Transient, what).hint("nothing of it counts; run it again")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn start(in_recovery: bool, timeline: u32) -> StartPoint {
        StartPoint {
            lsn: Lsn(0x500),
            timeline: TimelineId(timeline),
            in_recovery,
            unix_micros: 0,
        }
    }

    fn stop(in_recovery: bool, timeline: u32, lsn: u64) -> StopPoint {
        let label = "START WAL LOCATION: 0/500 (file 000000020000000000000000)\nCHECKPOINT LOCATION: 0/500\n\
                     BACKUP METHOD: streamed\nBACKUP FROM: standby\nSTART TIME: now\nLABEL: l\nSTART TIMELINE: 2\n";
        StopPoint {
            lsn: Lsn(lsn),
            timeline: TimelineId(timeline),
            in_recovery,
            unix_micros: 0,
            backup_label: label.into(),
            tablespace_map: None,
        }
    }

    fn control(recovering: bool, demands: u64, timeline: u32) -> Control {
        Control {
            recovering,
            demands: Lsn(demands),
            timeline: TimelineId(timeline),
        }
    }

    #[test]
    fn a_backup_begins_as_what_the_server_was() {
        for (in_recovery, standby, right) in [
            (false, false, true),
            (true, true, true),
            (true, false, false),
            (false, true, false),
        ] {
            let opened = open(&start(in_recovery, 2), standby, TimelineId(2), None);
            assert_eq!(opened.is_ok(), right, "{in_recovery} {standby}");
        }
    }

    #[test]
    fn a_standby_begins_on_the_timeline_that_it_follows_and_not_before_its_base() {
        for (timeline, base, right) in [
            (2, None, true),
            (3, None, false),
            (2, Some(0x500), true),
            (2, Some(0x4ff), true),
            (2, Some(0x501), false),
        ] {
            let opened = open(&start(true, 2), true, TimelineId(timeline), base.map(Lsn));
            assert_eq!(opened.is_ok(), right, "{timeline} {base:?}");
            assert!(opened.err().is_none_or(|error| error.kind() == Kind::Transient));
        }
    }

    #[test]
    fn what_the_copied_control_file_demands_belongs_to_a_standbys_backup() {
        let closed = close(&start(true, 2), stop(true, 2, 0x600), control(true, 0x700, 2)).unwrap();
        assert_eq!(closed.lsn, Lsn(0x700));
        let closed = close(&start(true, 2), stop(true, 2, 0x600), control(true, 0x5ff, 2)).unwrap();
        assert_eq!(closed.lsn, Lsn(0x600));
    }

    #[test]
    fn a_primarys_control_file_demands_nothing() {
        let production = control(false, 0x700, 3);
        let closed = close(&start(false, 2), stop(false, 2, 0x600), production).unwrap();
        assert_eq!(closed.lsn, Lsn(0x600));
    }

    #[test]
    fn a_change_of_role_or_timeline_voids_the_backup() {
        let cases = [
            (start(true, 2), stop(false, 2, 0x600), control(true, 0x600, 2)),
            (start(false, 2), stop(true, 2, 0x600), control(true, 0x600, 2)),
            // Promoted between the stop and the copy of pg_control.
            (start(true, 2), stop(true, 2, 0x600), control(false, 0x600, 2)),
            (start(true, 2), stop(true, 3, 0x600), control(true, 0x600, 3)),
            (start(true, 2), stop(true, 2, 0x600), control(true, 0x700, 3)),
        ];
        for (start, stop, control) in cases {
            assert_eq!(close(&start, stop, control).unwrap_err().kind(), Kind::Transient);
        }
    }

    #[test]
    fn a_stop_before_the_start_is_not_believed() {
        let error = close(&start(true, 2), stop(true, 2, 0x4ff), control(true, 0x4ff, 2)).unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
    }
}
