//! Which dumps go over, and how one does: its objects first, `dump.json` last.

use std::collections::BTreeSet;
use std::time::Duration;

use common::config::{Keep, Retention};
use common::error::{Error, Kind, Result, chain};
use common::repository::dumps::{self, Dump, DumpInfo};
use common::repository::writer::Folder;
use common::repository::{DumpLabel, Repository, events, tombstones};
use common::retention;
use common::time::UtcTime;

use crate::copy::Route;
use crate::objects;
use crate::sync::How;
use crate::tally::Target;

/// Copies what the target lacks and its policy would keep; one that fails does not hold up the others.
///
/// # Errors
/// What the stores say to a listing.
pub fn copy(route: &Route<'_>, policy: Option<&Retention>, how: &How<'_>, tally: &Target) -> Result<()> {
    let (ours, theirs) = (dumps::list(route.source)?, dumps::list(route.target)?);
    let rule = policy.and_then(|policy| policy.dumps);
    let mut erased = tombstones::dumps(&events::read(route.source)?);
    erased.extend(tombstones::dumps(&events::read(route.target)?));
    for dump in missing(&ours, &theirs, rule, &erased, how.now) {
        let copied = dump.name.parse().and_then(|label| one(route, label, how, tally));
        match copied {
            Ok(()) => tally.add(|copied| copied.dumps += 1),
            Err(error) => tally.fail(&failed(error, dump, route.source, route.target)),
        }
    }
    Ok(())
}

/// The dumps to be copied, oldest first.
fn missing<'a>(
    ours: &'a [Dump],
    theirs: &[Dump],
    rule: Option<Keep>,
    erased: &BTreeSet<DumpLabel>,
    now: UtcTime,
) -> Vec<&'a Dump> {
    let stay = retention::dumps::judge(rule, ours, erased, now, Duration::ZERO);
    let has = |dump: &Dump| theirs.iter().any(|other| other.complete && other.name == dump.name);
    ours.iter()
        .zip(stay)
        .filter(|(dump, verdict)| dump.complete && verdict.is_kept() && !has(dump))
        .map(|(dump, _)| dump)
        .collect()
}

fn failed(error: Error, dump: &Dump, source: &Repository, target: &Repository) -> Error {
    error.context(format!(
        "copy dump {} from repository \"{}\" to \"{}\"",
        dump.name, source.name, target.name
    ))
}

fn one(route: &Route<'_>, label: DumpLabel, how: &How<'_>, tally: &Target) -> Result<()> {
    let info = dumps::read(route.source, label)?;
    if how.dry_run {
        return Ok(());
    }
    let objects = objects::copy(route, Folder::Dump(label), &info.objects, how.jobs, tally)?;
    let copied = DumpInfo {
        stored: objects.iter().map(|object| object.size).sum(),
        objects,
        ..info
    };
    match dumps::commit(route.target, &copied) {
        Err(error) if error.kind() == Kind::AlreadyExists => {
            log::debug!("{}", chain(&error));
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use common::repository::dumps::Scope;

    #[test]
    fn only_what_is_missing_and_would_stay_goes_over() {
        let now = UtcTime::from_unix_seconds(1_000_000).unwrap();
        let dump = |name: &str, complete| Dump {
            name: name.to_owned(),
            started: now,
            complete,
            scope: complete.then_some(Scope::Databases),
        };
        let ours = [dump("a", true), dump("b", true), dump("c", false), dump("d", true)];
        let names = |theirs: &[Dump], rule: Option<Keep>| -> Vec<String> {
            missing(&ours, theirs, rule, &BTreeSet::new(), now)
                .iter()
                .map(|dump| dump.name.clone())
                .collect()
        };
        assert_eq!(names(&[dump("b", true), dump("a", false)], None), ["a", "d"]);
        assert_eq!(names(&[], Some(Keep::Count(1))), ["d"]);
    }
}
