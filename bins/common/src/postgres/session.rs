//! The one session that a backup holds from start to stop.
//!
//! A backup lives and dies with its session (`pg_backup_start` documentation), so it must be a real one:
//! a mark is sent with the first packet and asked for afterwards, which no connection pooler passes on,
//! and the process that answers must stay the same. Timeouts that could end it are off. Knows the names
//! of the functions from 13 to 18. Waiting for WAL to be archived is left to the caller.

use super::label::BackupLabel;
use super::lsn::{Lsn, SegmentSize, SystemId, TimelineId};
use super::names::WalName;
use super::settings::{ConnectionSettings, ConnectionTarget};
use super::tls;
use super::version::Major;
use crate::error::{Context, Error, Kind, Result};
use postgres::error::SqlState;
use postgres::{Client, Config, SimpleQueryMessage};
use std::time::Duration;

/// Asked for while a backup runs, so that firewalls do not forget the connection.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A session with a server.
pub struct Session {
    client: Client,
    target: String,
    user: String,
    major: Major,
    version_num: u32,
    pid: i32,
    mark: String,
}

/// Where a backup starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartPoint {
    /// Replay will start here.
    pub lsn: Lsn,
    /// The timeline of the checkpoint it started with. [`StopPoint::backup_label`] has the last word.
    pub timeline: TimelineId,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// The server's clock just before, in microseconds since 1970.
    pub unix_micros: i64,
}

/// Where a backup stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopPoint {
    /// Replay must at least reach this.
    pub lsn: Lsn,
    /// The timeline of `lsn`.
    pub timeline: TimelineId,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// The server's clock just after, in microseconds since 1970.
    pub unix_micros: i64,
    /// The content of backup_label, byte for byte.
    pub backup_label: Vec<u8>,
    /// The content of tablespace_map, if there are tablespaces.
    pub tablespace_map: Option<Vec<u8>>,
}

/// What a statement was for, where that decides what its failure means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Start,
    Stop,
    Switch,
    Other,
}

impl Session {
    /// Connects to the first host that answers.
    ///
    /// # Errors
    /// `Transient` if no server could be reached or none is ready, `Config` if it refuses us, if it is not a
    /// supported version, or if a connection pooler stands between.
    pub fn connect(settings: &ConnectionSettings) -> Result<Session> {
        let mut last = None;
        for target in settings.targets()? {
            match Self::connect_to(&target) {
                Ok(mut session) => {
                    if !settings.primary_only || !session.in_recovery()? {
                        return Ok(session);
                    }
                    let message = format!("server {} is in recovery, but a primary is needed", target.describe());
                    last = Some(Error::new(Kind::Transient, message));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Config, "no host to connect to")))
    }

    fn connect_to(target: &ConnectionTarget) -> Result<Session> {
        let describe = target.describe();
        let mark = random_mark()?;
        let mut config = Config::new();
        config
            .user(&target.user)
            .dbname(&target.dbname)
            .port(target.port)
            .host(&target.host);
        config
            .application_name("pgkeep")
            .connect_timeout(target.connect_timeout)
            .keepalives_idle(KEEPALIVE);
        config.options(&startup_options(target.options.as_deref(), &mark));
        config.notice_callback(|notice| log::debug!("server says: {}", notice.message()));
        if let Some(password) = &target.password {
            config.password(password);
        }
        config.ssl_mode(tls::wanted(target.sslmode));
        let client = config
            .connect(tls::connector(target.sslmode, target.sslrootcert.as_deref())?)
            .map_err(|error| connection_error(&error, target))?;
        let mut session = Session {
            client,
            target: describe,
            user: target.user.clone(),
            major: Major::V13,
            version_num: 0,
            pid: 0,
            mark,
        };
        session.introduce()?;
        Ok(session)
    }

    /// Finds out whom we talk to, and switches the remaining timeouts off.
    fn introduce(&mut self) -> Result<()> {
        self.check_mark("pg_backend_pid()")?;
        let version = self.value("select current_setting('server_version_num')")?;
        self.version_num = self.number(&version)?;
        self.major = Major::from_version_num(self.version_num).context(|| format!("use server {}", self.target))?;
        let pid = self.value("select pg_backend_pid()")?;
        self.pid = self.number(&pid)?;
        // Not every version has them, so they cannot be startup options.
        self.query(
            "select set_config(name, '0', false) from pg_settings where name in ('idle_session_timeout', 'transaction_timeout')",
        )?;
        Ok(())
    }

    /// The server's major version.
    pub fn server_version(&self) -> Major {
        self.major
    }

    /// The server's `server_version_num`, like 150018.
    pub fn version_num(&self) -> u32 {
        self.version_num
    }

    /// Whom we talk to, for messages.
    pub fn describe(&self) -> &str {
        &self.target
    }

    /// Starts a backup; `fast` asks for an immediate checkpoint. On a standby it starts at the last restart point.
    ///
    /// # Errors
    /// `Config` if the role may not, or the server's settings do not allow backups; `Transient` if the session breaks.
    pub fn start(&mut self, label: &str, fast: bool) -> Result<StartPoint> {
        let in_recovery = self.in_recovery()?;
        let unix_micros = self.unix_micros()?;
        let sql = if self.major < Major::V15 {
            "select pg_start_backup($1, $2, false)::text"
        } else {
            "select pg_backup_start($1, $2)::text"
        };
        let row = self
            .client
            .query_one(sql, &[&label, &fast])
            .map_err(|error| self.error(&error, Step::Start, "start a backup"))?;
        let lsn: String = row
            .try_get(0)
            .map_err(|error| self.error(&error, Step::Start, "start a backup"))?;
        let timeline = self.value("select timeline_id from pg_control_checkpoint()")?;
        Ok(StartPoint {
            lsn: self.lsn(&lsn)?,
            timeline: TimelineId(self.number(&timeline)?),
            in_recovery,
            unix_micros,
        })
    }

    /// Stops the backup; does not wait for the WAL to be archived.
    ///
    /// # Errors
    /// `Transient` if the session broke or a standby was promoted meanwhile: the backup is void, another may succeed.
    pub fn stop(&mut self) -> Result<StopPoint> {
        self.check()?;
        let function = if self.major < Major::V15 {
            "pg_stop_backup(false, false)"
        } else {
            "pg_backup_stop(false)"
        };
        // As bytes, so that no character set conversion touches the names in them.
        let sql = format!(
            "select lsn::text, convert_to(labelfile, getdatabaseencoding()), \
             convert_to(coalesce(spcmapfile, ''), getdatabaseencoding()) from {function}"
        );
        let failed = |session: &Self, error| session.error(&error, Step::Stop, "stop the backup");
        let row = self.client.query_one(&sql, &[]).map_err(|error| failed(self, error))?;
        let lsn: String = row.try_get(0).map_err(|error| failed(self, error))?;
        let backup_label: Vec<u8> = row.try_get(1).map_err(|error| failed(self, error))?;
        let map: Vec<u8> = row.try_get(2).map_err(|error| failed(self, error))?;
        let in_recovery = self.in_recovery()?;
        Ok(StopPoint {
            lsn: self.lsn(&lsn)?,
            timeline: self.stop_timeline(in_recovery, &backup_label)?,
            in_recovery,
            unix_micros: self.unix_micros()?,
            backup_label,
            tablespace_map: if map.is_empty() { None } else { Some(map) },
        })
    }

    /// The timeline of the stop point: a running primary never changes its own, a standby may follow another.
    fn stop_timeline(&mut self, in_recovery: bool, label: &[u8]) -> Result<TimelineId> {
        if !in_recovery {
            return Ok(BackupLabel::parse(label)?.start_timeline);
        }
        let timeline = self.value("select min_recovery_end_timeline from pg_control_recovery()")?;
        Ok(TimelineId(self.number(&timeline)?))
    }

    /// Makes sure that this is still the session it was; worth asking now and then during a long backup.
    ///
    /// # Errors
    /// `Transient` if the connection is gone, `Config` if another process answers.
    pub fn check(&mut self) -> Result<()> {
        let pid = self.pid.to_string();
        let said = self.check_mark("pg_backend_pid()")?;
        if said != pid { Err(self.pooler()) } else { Ok(()) }
    }

    /// Whether the server is a standby, or recovering from an archive.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn in_recovery(&mut self) -> Result<bool> {
        Ok(self.value("select pg_is_in_recovery()")? == "t")
    }

    /// The value of a setting as SHOW prints it; nothing if the server does not know it.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn setting(&mut self, name: &str) -> Result<Option<String>> {
        let row = self
            .client
            .query_one("select current_setting($1, true)", &[&name])
            .map_err(|error| self.error(&error, Step::Other, "read a setting"))?;
        row.try_get(0)
            .map_err(|error| self.error(&error, Step::Other, "read a setting"))
    }

    /// The cluster's identifier.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn system_id(&mut self) -> Result<SystemId> {
        self.value("select system_identifier from pg_control_system()")?.parse()
    }

    /// The size of the cluster's WAL segments.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn segment_size(&mut self) -> Result<SegmentSize> {
        // As SHOW has it, it has a unit.
        let size = self.value("select setting from pg_settings where name = 'wal_segment_size'")?;
        SegmentSize::new(self.number(&size)?)
    }

    /// Writes a restore point and ends the current WAL segment; returns the end of the WAL in it.
    ///
    /// The restore point makes sure that there is something in the segment, so that it is archived.
    ///
    /// # Errors
    /// `Config` if the role may not; `Failed` on a standby.
    pub fn switch_wal_after_restore_point(&mut self, name: &str) -> Result<Lsn> {
        let failed = |session: &Self, error| session.error(&error, Step::Switch, "end the WAL segment");
        self.client
            .query_one("select pg_create_restore_point($1)::text", &[&name])
            .map_err(|error| failed(self, error))?;
        let row = self
            .client
            .query_one("select pg_switch_wal()::text", &[])
            .map_err(|error| failed(self, error))?;
        let lsn: String = row.try_get(0).map_err(|error| failed(self, error))?;
        self.lsn(&lsn)
    }

    /// Runs statements without parameters; returns the rows, all values as text.
    ///
    /// # Errors
    /// `Transient` if the connection breaks or the server is busy, `Config` if the role may not, else `Failed`.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let messages = self
            .client
            .simple_query(sql)
            .map_err(|error| self.error(&error, Step::Other, "run a query"))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|at| row.try_get(at).ok().flatten().map(str::to_string))
                    .collect(),
            ),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Connects where one can ask for the cluster as a whole: to the database postgres, or template1 if that cannot be had.
    ///
    /// # Errors
    /// As [`Session::connect`], to the first.
    pub fn connect_for_cluster(settings: &ConnectionSettings) -> Result<Session> {
        let to = |database| Self::connect(&settings.with_database(database));
        to("postgres").or_else(|error| to("template1").map_err(|_| error))
    }

    /// Runs a statement; returns how many rows it touched, as its command tag says.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn execute(&mut self, sql: &str) -> Result<u64> {
        let messages = self
            .client
            .simple_query(sql)
            .map_err(|error| self.error(&error, Step::Other, "run a statement"))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::CommandComplete(rows) => Some(rows),
            _ => None,
        });
        Ok(rows.last().unwrap_or(0))
    }

    /// The first column of the first row; nothing if there is no row, or null in it.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn first(&mut self, sql: &str) -> Result<Option<String>> {
        Ok(self.query(sql)?.into_iter().flatten().next().flatten())
    }

    /// The timeline that a primary writes now; pg_control may still name the one before a promotion.
    ///
    /// # Errors
    /// As [`Session::query`].
    pub fn current_timeline(&mut self) -> Result<TimelineId> {
        let name = self.value("select pg_walfile_name(pg_current_wal_insert_lsn())")?;
        WalName::parse(&name)
            .map(|name| name.timeline())
            .context(|| "read the name of the current WAL segment")
    }

    /// The first column of the first row, which must not be null.
    ///
    /// # Errors
    /// As [`Session::query`]; `Failed` if there is none.
    pub fn value(&mut self, sql: &str) -> Result<String> {
        self.first(sql)?.ok_or_else(|| {
            Error::new(
                Kind::Failed,
                format!("server {} answers nothing to \"{sql}\"", self.target),
            )
        })
    }

    /// Asks for a value together with our mark, which only the process we first talked to knows.
    fn check_mark(&mut self, what: &str) -> Result<String> {
        let rows = self.query(&format!("select {what}, current_setting('pgkeep.session', true)"))?;
        let mut values = rows.into_iter().flatten();
        match (values.next().flatten(), values.next().flatten()) {
            (Some(value), Some(mark)) if mark == self.mark => Ok(value),
            _ => Err(self.pooler()),
        }
    }

    fn pooler(&self) -> Error {
        Error::new(
            Kind::Config,
            format!("server {} is behind a connection pooler", self.target),
        )
        .hint("a backup needs one session from start to stop: connect to PostgreSQL itself")
    }

    fn unix_micros(&mut self) -> Result<i64> {
        let micros = self.value("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")?;
        self.number(&micros)
    }

    /// A number that the server said.
    ///
    /// # Errors
    /// `Failed` if it is none.
    pub fn number<T: std::str::FromStr>(&self, text: &str) -> Result<T> {
        text.parse().map_err(|_| {
            Error::new(
                Kind::Failed,
                format!("server {} says \"{text}\" for a number", self.target),
            )
        })
    }

    fn lsn(&self, text: &str) -> Result<Lsn> {
        text.parse().map_err(|error: Error| error.with_kind(Kind::Failed))
    }

    fn error(&self, error: &postgres::Error, step: Step, what: &str) -> Error {
        let message = format!("cannot {what} on server {}", self.target);
        let mut made = Error::new(kind_of(error, step), message).because(sentence(error));
        if step != Step::Other && error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
            made = made.hint(grants(self.major, &self.user));
        }
        made
    }
}

/// Settings that travel in the first packet, so that no role's defaults come before them.
fn startup_options(user: Option<&str>, mark: &str) -> String {
    let own = [
        "statement_timeout=0",
        "lock_timeout=0",
        "idle_in_transaction_session_timeout=0",
    ];
    let mut options = user.map(|user| format!("{user} ")).unwrap_or_default();
    for setting in own {
        options.push_str(&format!("-c {setting} "));
    }
    options + &format!("-c pgkeep.session={mark}")
}

fn random_mark() -> Result<String> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(Kind::Failed, format!("no random numbers: {error}")))?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// What a failed connection means to the one who has to do something about it.
fn connection_error(error: &postgres::Error, target: &ConnectionTarget) -> Error {
    let mut kind = kind_of(error, Step::Other);
    let text = sentence(error);
    let hint = match error.code() {
        Some(code) if *code == SqlState::PROTOCOL_VIOLATION => {
            kind = Kind::Config;
            Some("a connection pooler that does not know startup options? connect to PostgreSQL itself")
        }
        Some(code) if code.code().starts_with("28") => {
            Some("see pg_hba.conf, and the password file (passfile, ~/.pgpass with mode 0600); TLS is not spoken")
        }
        None if text.contains("password missing") => {
            Some("add the role to the password file (passfile, ~/.pgpass with mode 0600)")
        }
        None if kind == Kind::Transient && target.host.starts_with('/') => {
            Some("is the server running, and is this its socket directory?")
        }
        _ => None,
    };
    let made = Error::new(kind, format!("cannot connect to server {}", target.describe())).because(text);
    match hint {
        Some(hint) => made.hint(hint),
        None => made,
    }
}

/// The kind that a failure deserves, by SQLSTATE (PostgreSQL documentation, appendix "Error Codes").
fn kind_of(error: &postgres::Error, step: Step) -> Kind {
    match error.code() {
        Some(code) => kind_of_sqlstate(code.code(), step),
        None => kind_without_sqlstate(error),
    }
}

fn kind_of_sqlstate(code: &str, step: Step) -> Kind {
    match code {
        // object_not_in_prerequisite_state: settings at the start, a promotion at the stop.
        "55000" if step == Step::Start => Kind::Config,
        "55000" if step == Step::Stop => Kind::Transient,
        "42501" | "3D000" => Kind::Config,
        // Cancelled, serialization failures and locks; a statement_timeout cannot be the reason.
        "57014" | "40001" | "40P01" | "55P03" | "55006" => Kind::Transient,
        code if code.starts_with("28") => Kind::Config,
        // Broken connections, shortages, a server that starts or stops.
        code if ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => Kind::Transient,
        _ => Kind::Failed,
    }
}

fn kind_without_sqlstate(error: &postgres::Error) -> Kind {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return if io.kind() == std::io::ErrorKind::PermissionDenied {
                Kind::Config
            } else {
                Kind::Transient
            };
        }
        next = cause.source();
    }
    let text = error.to_string();
    if error.is_closed() || text.contains("timeout") || text.starts_with("error connecting") {
        Kind::Transient
    } else if text.starts_with("invalid configuration")
        || text.starts_with("authentication error")
        || text.contains("TLS")
    {
        Kind::Config
    } else {
        Kind::Failed
    }
}

/// What the server said, or the client library, without repeating itself.
fn sentence(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => {
            let detail = said.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
            format!("{}: {}{detail}", said.severity(), said.message())
        }
        None => crate::error::chain(error),
    }
}

/// How to let a role take backups without making it a superuser.
fn grants(major: Major, user: &str) -> String {
    let functions = if major < Major::V15 {
        "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)"
    } else {
        "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
    };
    let user = user.replace('"', "\"\"");
    format!(
        "GRANT EXECUTE ON FUNCTION {functions}, pg_create_restore_point(text), pg_switch_wal() TO \"{user}\"; \
         and connect to the database in which this was granted"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn each_refusal_of_the_server_has_its_kind() {
        for (code, kind) in [
            ("08006", Kind::Transient),
            ("57P03", Kind::Transient),
            ("57P01", Kind::Transient),
            ("53300", Kind::Transient),
            ("28P01", Kind::Config),
            ("28000", Kind::Config),
            ("3D000", Kind::Config),
            ("42501", Kind::Config),
            ("42601", Kind::Failed),
            ("XX000", Kind::Failed),
        ] {
            assert_eq!(kind_of_sqlstate(code, Step::Other), kind, "{code}");
        }
        assert_eq!(kind_of_sqlstate("55000", Step::Start), Kind::Config);
        assert_eq!(kind_of_sqlstate("55000", Step::Stop), Kind::Transient);
    }

    #[test]
    fn a_server_that_is_not_there_is_worth_another_try() {
        let directory = tempfile::tempdir().unwrap();
        let host = Some(directory.path().to_str().unwrap().to_string());
        let settings = ConnectionSettings {
            host,
            user: Some("u".into()),
            ..Default::default()
        };
        let error = Session::connect(&settings).err().unwrap();
        assert_eq!(error.kind(), Kind::Transient);
        assert!(error.nearest_hint().unwrap().contains("socket directory"));
    }

    #[test]
    fn our_settings_come_after_the_users() {
        let options = startup_options(Some("-c statement_timeout=5"), "abc");
        assert!(options.starts_with("-c statement_timeout=5 -c statement_timeout=0 "));
        assert!(options.ends_with("-c pgkeep.session=abc"));
    }
}
