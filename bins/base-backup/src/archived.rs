//! Makes sure that the WAL which a backup needs reaches the repositories.

use common::error::{Error, Kind, Result};
use common::interrupt;
use common::postgres::{SegmentNumber, Session, StartPoint, StopPoint};
use common::repository::writer::BackupWriter;

use crate::making::Making;
use crate::server;
use crate::wait::{Archiving, Wanted, wait_for};

impl Making<'_> {
    /// Makes the server archive a segment and waits for it: what cannot be archived is not worth copying.
    pub(crate) fn prove_archiving(&self, writer: &BackupWriter<'_>, session: &mut Session) -> Result<()> {
        let timeline = server::current_timeline(session)?;
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
        let outcomes = wait_for(&alive, &wanted, patience);
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
        error.hint(archiving.hint())
    }

    /// Waits until all WAL that the backup needs is in the repositories; those that lack it are taken out.
    pub(crate) fn wait_for_wal(
        &self,
        writer: &BackupWriter<'_>,
        (start, stop): (&StartPoint, &StopPoint),
        session: &mut Session,
    ) -> Result<()> {
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
