//! What the facts about archiving mean. Pure.

use std::time::Duration;

use common::check::{Line, Perf, State, above};
use common::open::Purpose;
use common::units::{counted, display_seconds as shown};

/// What is known of the server; nothing is known of what could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Whether there should be WAL at all.
    pub purpose: Purpose,
    /// Why it could not be asked.
    pub silent: Option<String>,
    /// It is a standby, which archives nothing.
    pub standby: bool,
    /// `archive_mode` is off.
    pub off: bool,
    /// Archiving has failed since its last success: for so long, and for which file.
    pub failing: Option<(Option<Duration>, String)>,
    /// WAL files that wait, and for how long the oldest has.
    pub ready: Option<(u64, Option<Duration>)>,
    /// Tenants that were erased and that the server has; or why nobody could find out.
    pub erased: Option<Result<Vec<String>, String>>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            purpose: Purpose::Physical,
            silent: None,
            standby: false,
            off: false,
            failing: None,
            ready: None,
            erased: None,
        }
    }
}

/// What is known of one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Its name.
    pub name: String,
    /// Whether work depends on it.
    pub required: bool,
    /// After how long it had the segment; or why it has not. Nothing: no segment was looked for.
    pub reached: Option<Result<Duration, String>>,
    /// What is missing: for the newest backup, and for older ones; or why nobody could find out.
    pub gaps: Result<Gaps, String>,
    /// What it holds, where that could be found out.
    pub holds: Option<Holds>,
    /// Dumps of erased tenants that are there still.
    pub undeleted: Vec<String>,
}

/// What is left of erased tenants, as far as is known.
pub fn pending(server: &Server, repositories: &[Repository]) -> u64 {
    let of_server = server.erased.as_ref().and_then(|erased| erased.as_ref().ok());
    let dumps: usize = repositories.iter().map(|repository| repository.undeleted.len()).sum();
    (of_server.map_or(0, Vec::len) + dumps) as u64
}

/// What a repository holds of this cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    /// Backups and WAL, in stored bytes.
    pub bytes: u64,
    /// Good backups.
    pub backups: u64,
    /// When the newest good one ended, and the newest good full one, in seconds since 1970.
    pub newest: (Option<i64>, Option<i64>),
    /// The file system it lies on, free and in all, in bytes; nothing for stores that do not know.
    pub space: Option<(u64, u64)>,
}

/// WAL that is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps {
    /// What the newest good backup cannot be recovered beyond, or for want of which not at all.
    pub newest: Option<String>,
    /// The same for older ones.
    pub older: Option<String>,
}

/// What is expected.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// More files that wait are a warning, or critical.
    pub ready: (u64, u64),
    /// The recovery point objective.
    pub rpo: Option<Duration>,
}

/// Judges all of it.
pub fn judge(server: &Server, repositories: &[Repository], limits: Limits) -> Line {
    let mut line = Line::default();
    of_server(server, limits, &mut line);
    for repository in repositories {
        let name = &repository.name;
        let mut add = |state: State, words: String| {
            line.add(state.unless_optional(repository.required), words);
        };
        match &repository.reached {
            Some(Ok(_)) => add(State::Ok, format!("WAL reaches {name}")),
            Some(Err(why)) => add(State::Critical, format!("WAL does not reach {name}: {why}")),
            None => {}
        }
        match &repository.gaps {
            Err(why) => add(State::Unknown, format!("{name} cannot be read: {why}")),
            Ok(gaps) => {
                match &gaps.newest {
                    Some(missing) => add(State::Critical, format!("{name}: the newest backup lacks {missing}")),
                    None if server.purpose == Purpose::Physical => add(State::Ok, format!("no gap in {name}")),
                    None => {}
                }
                if let Some(missing) = &gaps.older {
                    add(State::Warning, format!("{name}: older backups lack {missing}"));
                }
            }
        }
        if let Some(first) = repository.undeleted.first() {
            // What must go must go from every repository.
            let count = counted(repository.undeleted.len() as u64, "dump");
            line.add(
                State::Critical,
                format!("{name}: {count} of erased tenants not deleted yet: {first}"),
            );
        }
        if let Some(Ok(took)) = repository.reached {
            line.perf(Perf::seconds(&format!("reach {name}"), took));
        }
    }
    let pending = pending(server, repositories);
    if pending > 0 {
        line.perf(Perf::count("erasures", pending).limits(0.0, 0.0));
    }
    line
}

fn of_server(server: &Server, limits: Limits, line: &mut Line) {
    match &server.purpose {
        Purpose::Physical => {}
        Purpose::Dumps => line.add(State::Ok, "nothing is archived: this cluster is only dumped"),
        Purpose::NotKnown(unread) => line.add(
            State::Unknown.unless_optional(unread.required),
            format!(
                "whether this cluster is only dumped is not known, for {} cannot be read: {}",
                unread.repository, unread.why
            ),
        ),
    }
    if let Some(why) = &server.silent {
        line.add(State::Unknown, format!("the server cannot be asked: {why}"));
    }
    if server.standby {
        line.add(State::Ok, "a standby archives nothing");
    }
    if server.off {
        line.add(State::Critical, "archive_mode is off: nothing is archived");
    }
    if let Some((since, file)) = &server.failing {
        let since = since.map_or_else(
            || "it never succeeded".to_owned(),
            |since| format!("the last success was {} ago", shown(since)),
        );
        line.add(State::Critical, format!("archive_command fails for {file}; {since}"));
    }
    match &server.erased {
        Some(Err(why)) => line.add(
            State::Unknown,
            format!("whether erased tenants are there again is not known: {why}"),
        ),
        Some(Ok(erased)) => {
            if let Some(first) = erased.first() {
                let count = counted(erased.len() as u64, "erased tenant");
                line.add(
                    State::Critical,
                    format!("the server has {count}: {first}; pgkeep-dump-restore --apply-erasures erases again"),
                );
            }
        }
        None => {}
    }
    if let Some((count, oldest)) = server.ready {
        let (warning, critical) = limits.ready;
        let waiting = oldest.map_or_else(String::new, |oldest| format!(", the oldest for {}", shown(oldest)));
        line.add(
            above(count, warning, critical),
            format!("{} in pg_wal{waiting}", waits(count)),
        );
        line.perf(Perf::count("ready", count).limits(warning as f64, critical as f64));
        if let (Some(rpo), Some(oldest)) = (
            limits.rpo,
            oldest.filter(|oldest| limits.rpo.is_some_and(|rpo| *oldest > rpo)),
        ) {
            let (rpo, oldest) = (shown(rpo), shown(oldest));
            line.add(
                State::Critical,
                format!("WAL has waited for {oldest}, and the recovery point objective is {rpo}"),
            );
        }
    }
}

fn waits(count: u64) -> String {
    match count {
        1 => "1 WAL file waits".to_owned(),
        _ => format!("{} wait", counted(count, "WAL file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::open::Unread;

    const LIMITS: Limits = Limits {
        ready: (10, 60),
        rpo: Some(Duration::from_secs(60)),
    };

    fn repository(name: &str, required: bool) -> Repository {
        Repository {
            name: name.to_owned(),
            required,
            reached: Some(Ok(Duration::from_secs(1))),
            gaps: Ok(Gaps::default()),
            holds: None,
            undeleted: Vec::new(),
        }
    }

    fn dumped(purpose: Purpose) -> Server {
        Server {
            purpose,
            ..Server::default()
        }
    }

    fn with(change: impl FnOnce(&mut Server, &mut Repository)) -> Line {
        let mut server = Server {
            ready: Some((0, None)),
            ..Server::default()
        };
        let mut one = repository("a", true);
        change(&mut server, &mut one);
        judge(&server, &[one], LIMITS)
    }

    #[test]
    fn every_state_by_table() {
        type Change = fn(&mut Server, &mut Repository);
        let table: [(Change, u8, &str); 22] = [
            (
                |_, _| {},
                0,
                "OK - 0 WAL files wait in pg_wal; WAL reaches a; no gap in a | 'ready'=0;10;60;0 'reach a'=1s;;;0\n",
            ),
            (|server, _| server.ready = Some((10, None)), 0, "OK - "),
            (
                |server, _| server.ready = Some((11, None)),
                1,
                "WARNING - 11 WAL files wait in pg_wal",
            ),
            (
                |server, _| server.ready = Some((61, None)),
                2,
                "CRITICAL - 61 WAL files wait in pg_wal",
            ),
            (
                |server, _| server.ready = Some((1, Some(Duration::from_secs(60)))),
                0,
                "OK - 1 WAL file waits in pg_wal, the oldest for 1m",
            ),
            (
                |server, _| server.ready = Some((1, Some(Duration::from_secs(61)))),
                2,
                "CRITICAL - WAL has waited for 1m1s",
            ),
            (|server, _| server.ready = None, 0, "OK - WAL reaches a"),
            (|server, _| server.off = true, 2, "CRITICAL - archive_mode is off"),
            (|server, _| server.standby = true, 0, "OK - a standby archives nothing"),
            (
                |server, _| server.silent = Some("x".to_owned()),
                3,
                "UNKNOWN - the server cannot be asked: x",
            ),
            (
                |server, _| server.failing = Some((None, "F".to_owned())),
                2,
                "CRITICAL - archive_command fails for F; it never",
            ),
            (
                |server, _| server.failing = Some((Some(Duration::from_secs(90)), "F".to_owned())),
                2,
                "CRITICAL - archive_command fails for F; the last success was 1m30s ago",
            ),
            (
                |_, one| one.reached = Some(Err("x".to_owned())),
                2,
                "CRITICAL - WAL does not reach a: x",
            ),
            (
                |_, one| one.gaps = Err("x".to_owned()),
                3,
                "UNKNOWN - a cannot be read: x",
            ),
            (
                |_, one| {
                    one.gaps = Ok(Gaps {
                        newest: Some("S".to_owned()),
                        older: None,
                    })
                },
                2,
                "CRITICAL - a: the newest backup lacks S",
            ),
            (
                |_, one| {
                    one.gaps = Ok(Gaps {
                        newest: None,
                        older: Some("S".to_owned()),
                    })
                },
                1,
                "WARNING - a: older backups lack S",
            ),
            (
                |server, _| server.erased = Some(Ok(Vec::new())),
                0,
                "OK - 0 WAL files wait in pg_wal; WAL reaches a; no gap in a | 'ready'",
            ),
            (
                |server, _| server.erased = Some(Ok(vec!["acme of database shop".to_owned()])),
                2,
                "CRITICAL - the server has 1 erased tenant: acme of database shop; pgkeep-dump-restore --apply-erasures",
            ),
            (
                |_, one| one.undeleted = vec!["D".to_owned(), "E".to_owned()],
                2,
                "CRITICAL - a: 2 dumps of erased tenants not deleted yet: D",
            ),
            (
                |server, one| {
                    *server = dumped(Purpose::Dumps);
                    one.reached = None;
                },
                0,
                "OK - nothing is archived: this cluster is only dumped\n",
            ),
            (
                |server, one| {
                    *server = dumped(Purpose::Dumps);
                    server.erased = Some(Err("x".to_owned()));
                    one.reached = None;
                },
                3,
                "UNKNOWN - whether erased tenants are there again is not known: x\n",
            ),
            (
                |_, one| one.reached = None,
                0,
                "OK - 0 WAL files wait in pg_wal; no gap in a | 'ready'",
            ),
        ];
        for (change, code, words) in table {
            let line = with(change);
            assert_eq!(line.state().code(), code, "{words}");
            assert!(line.text().starts_with(words), "{words}: {}", line.text());
        }
    }

    #[test]
    fn what_cannot_be_looked_into_is_never_taken_for_a_cluster_that_is_only_dumped() {
        for (required, code) in [(true, 3), (false, 1)] {
            let server = dumped(Purpose::NotKnown(Unread {
                repository: "b".to_owned(),
                required,
                why: "x".to_owned(),
            }));
            let mut one = repository("a", true);
            one.reached = None;
            let line = judge(&server, &[one], LIMITS);
            let words = "whether this cluster is only dumped is not known, for b cannot be read: x";
            assert_eq!((line.state().code(), line.words().as_str()), (code, words));
        }
    }

    #[test]
    fn an_optional_repository_is_a_warning_at_most() {
        for change in [
            |one: &mut Repository| one.reached = Some(Err("x".to_owned())),
            |one: &mut Repository| one.gaps = Err("x".to_owned()),
        ] {
            let mut optional = repository("b", false);
            change(&mut optional);
            let line = judge(&Server::default(), &[repository("a", true), optional], LIMITS);
            assert_eq!(line.state().code(), 1, "{}", line.text());
        }
    }
}
