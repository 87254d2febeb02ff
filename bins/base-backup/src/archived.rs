//! Makes sure that the WAL which a backup needs reaches the repositories.

use std::time::{Duration, Instant};

use common::error::{Error, Kind, Result, chain};
use common::interrupt;
use common::leadership::Role;
use common::postgres::{SegmentName, SegmentNumber, Session, StartPoint, StopPoint};
use common::repository::Repository;
use common::repository::writer::FolderWriter;
use common::units::display_duration;

use crate::making::Making;
use crate::primary::NAME_IT;
use crate::same;
use crate::server;
use crate::wait::{Archiving, Wanted, wait_for};

/// A standby is asked so often how far it is.
const REPLAY_PAUSE: Duration = Duration::from_millis(200);

impl Making<'_> {
    /// Makes the server archive a segment and waits for it: what cannot be archived is not worth copying.
    pub(crate) fn prove_archiving(&self, writer: &FolderWriter<'_>, session: &mut Session) -> Result<()> {
        let mut primary = None;
        let session = match self.role {
            Role::Primary => session,
            Role::Standby => match self.primary.connect()? {
                Some(found) => primary.insert(found),
                // Whether WAL comes is seen when the backup is over.
                None => return Ok(()),
            },
        };
        let timeline = session.current_timeline()?;
        let end = session.switch_wal_after_restore_point(&format!("pgkeep before {}", self.label))?;
        let size = self.control.segment_size;
        let number = SegmentNumber::ending_at(end, size);
        let wanted = Wanted {
            system: self.control.system_id,
            timeline,
            first: number,
            last: number,
            size,
        };
        let alive = writer.alive();
        let patience = self.around.cluster.archive_wait;
        let outcomes = self.own(&alive, &wanted, wait_for(&alive, &wanted, patience));
        interrupt::check()?;
        for (repository, outcome) in alive.iter().zip(outcomes) {
            match outcome {
                Ok(()) => {}
                // A repository that does not answer leaves; the others still get their backup.
                Err(error) if !repository.required || error.kind() == Kind::Transient => {
                    writer.give_up(&repository.name, error);
                }
                Err(error) => return Err(self.late(error, session)),
            }
        }
        writer.check()
    }

    /// Of the repositories that hold what was wanted, those whose last segment is really this server's: it came behind all others.
    fn own(&self, repositories: &[&Repository], wanted: &Wanted, outcomes: Vec<Result<()>>) -> Vec<Result<()>> {
        // What a standby has of it may not be all yet.
        if self.role == Role::Standby {
            return outcomes;
        }
        let pg_wal = self.data_directory.join("pg_wal");
        let name = SegmentName::new(wanted.timeline, wanted.last, wanted.size);
        let both = repositories.iter().zip(outcomes);
        both.map(|(repository, outcome)| outcome.and_then(|()| same::check(repository, wanted.system, &pg_wal, name)))
            .collect()
    }

    /// Waits until a standby has replayed all of the backup that this one leans on: before, its restart point may be older.
    pub(crate) fn await_replay(&self, session: &mut Session) -> Result<()> {
        let (Role::Standby, Some(base)) = (self.role, &self.chosen.base) else {
            return Ok(());
        };
        let patience = self.around.cluster.archive_wait;
        let deadline = Instant::now() + patience;
        loop {
            let replayed = server::replayed(session)?;
            if replayed >= base.stop_lsn {
                return Ok(());
            }
            interrupt::check()?;
            if Instant::now() >= deadline {
                let (label, end) = (base.label, base.stop_lsn);
                let message = format!(
                    "the standby has replayed WAL up to {replayed}, and within {} not to {end}, where {label} ends, which this \
                     backup leans on",
                    display_duration(patience)
                );
                return Err(Error::new(Kind::Transient, message).hint(
                    "why does it lag? (pg_stat_wal_receiver, its log); meanwhile a backup can be taken on the primary",
                ));
            }
            std::thread::sleep(REPLAY_PAUSE);
        }
    }

    /// Asks the primary to end the segment in which a standby's backup stops: it would be archived only when it is full.
    fn end_segment(&self) {
        if self.role == Role::Primary {
            return;
        }
        let ended = self.primary.connect().and_then(|found| {
            let name = format!("pgkeep after {}", self.label);
            found
                .map(|mut primary| primary.switch_wal_after_restore_point(&name))
                .transpose()
        });
        match ended {
            Ok(Some(lsn)) => log::debug!("the primary has ended a segment at {lsn}"),
            Ok(None) => log::info!("waiting until the primary ends the segment by itself"),
            Err(error) => log::warn!("the primary did not end the segment: {}", chain(&error)),
        }
    }

    pub(crate) fn archiving(&self, session: &mut Session) -> Archiving {
        server::archiving(session, self.around.state_directory, self.around.cluster)
    }

    /// That WAL did not come: temporary if that is what keeps archive-push from storing it, a full disk for instance.
    pub(crate) fn late(&self, error: Error, session: &mut Session) -> Error {
        let archiving = self.archiving(session);
        let error = match archiving.push_is_temporary {
            true => error.with_kind(Kind::Transient),
            false => error,
        };
        match self.role {
            Role::Primary => error.hint(archiving.hint()),
            Role::Standby => error.hint(format!("the primary archives it: see its log; {NAME_IT}")),
        }
    }

    /// Waits until all WAL that the backup needs is in the repositories; those that lack it are taken out.
    pub(crate) fn wait_for_wal(
        &self,
        writer: &FolderWriter<'_>,
        (start, stop): (&StartPoint, &StopPoint),
        session: &mut Session,
    ) -> Result<()> {
        self.end_segment();
        let (first, last) = self.wal_span(start, stop);
        let size = self.control.segment_size;
        let wanted = Wanted {
            system: self.control.system_id,
            timeline: stop.timeline,
            first,
            last,
            size,
        };
        let alive = writer.alive();
        let mut lacking = None;
        let outcomes = wait_for(&alive, &wanted, self.around.cluster.archive_wait);
        let outcomes = self.own(&alive, &wanted, outcomes);
        interrupt::check()?;
        for (repository, outcome) in alive.iter().zip(outcomes) {
            if let Err(error) = outcome {
                lacking = Some(error.kind());
                writer.give_up(&repository.name, error);
            }
        }
        match (writer.check(), lacking) {
            (Err(error), Some(_)) => Err(self.late(error, session)),
            (Ok(()), Some(_)) => {
                log::warn!("about the WAL that is missing: {}", self.archiving(session).hint());
                Ok(())
            }
            (result, None) => result,
        }
    }

    /// The first and last segment that a restore needs.
    pub(crate) fn wal_span(&self, start: &StartPoint, stop: &StopPoint) -> (SegmentNumber, SegmentNumber) {
        let size = self.control.segment_size;
        (
            SegmentNumber::containing(start.lsn, size),
            SegmentNumber::ending_at(stop.lsn, size),
        )
    }
}
